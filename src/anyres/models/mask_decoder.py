"""SAM's two-way mask decoder (Kirillov et al. 2023, appendix A), with detail features as an option.

Shapes: P prompts, T tokens, C channels, (h, w) token grid, M masks.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import DecoderConfig
from anyres.models.layers import (
    MLP,
    DoublingConv2d,
    LastMade,
    LayerNorm2d,
    SiLU,
    each,
    rows,
    weight_and_bias,
)
from anyres.models.two_way import TwoWayTransformer, in_tiles
from anyres.ops.precision import wide

# Upscaled pixels at once. On CPUs their float32 channels stay in the cache.
_PIXELS = {"cpu": 2**15}
_PIXELS_ELSEWHERE = 2**26


class MaskDecoder(nn.Module):
    """Predict masks and their quality from an image embedding and prompt embeddings.

    ``details``: channels of the stem's stride-4 and stride-8 maps, which are then projected and
    added while upscaling, as in SAM 2. Then a 1x1 convolution also gives each mask a logit of its
    own beside the hypernetwork's product: it learns sooner with few training pictures.
    """

    def __init__(self, config: DecoderConfig, details: tuple[int, int] | None = None) -> None:
        super().__init__()
        dim = config.dim
        masks = config.multimask_outputs + 1
        self.transformer = TwoWayTransformer(dim, config.depth, config.heads, config.mlp)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(masks, dim)
        self.output_upscaling = nn.Sequential(
            DoublingConv2d(dim, dim // 4),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            DoublingConv2d(dim // 4, dim // 8),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, 3) for _ in range(masks)
        )
        self.iou_prediction_head = MLP(dim, config.iou_hidden, masks, config.iou_depth)
        self.detail_s4: nn.Module | None = None
        self.detail_s8: nn.Module | None = None
        self.direct: nn.Sequential | None = None
        self._ordered = LastMade[Any]()
        if details is not None:
            self.detail_s4 = nn.Conv2d(details[0], dim // 8, 1)
            self.detail_s8 = nn.Conv2d(details[1], dim // 4, 1)
            self.direct = nn.Sequential(
                nn.Conv2d(dim // 8, dim // 8, 3, padding=1),
                SiLU(),
                nn.Conv2d(dim // 8, masks, 1),
            )

    def of_tokens(self) -> Iterator[Tensor]:
        """Parameters that no image token meets, of whatever precision they are."""
        for name, module in self.transformer.named_modules():
            # ``norm4`` is the image's; what is projected of it is folded into the tokens' side.
            if isinstance(module, nn.Linear | nn.LayerNorm) and not name.endswith("norm4"):
                yield from module.parameters()
        yield from self.output_hypernetworks_mlps.parameters()
        yield from self.iou_prediction_head.parameters()

    def project(self, details: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What upscaling adds of a picture, the same for all its prompts.

        Args:
            details: the stem's maps at strides 4 and 8, (B, c, 4h, 4w) and (B, c', 2h, 2w).

        Returns:
            The same sizes with C / 8 and C / 4 channels; nothing where the model has no details.
        """
        if self.detail_s4 is None or self.detail_s8 is None:
            return ()
        return self.detail_s4(details[0]), self.detail_s8(details[1])

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor | None = None,
        multimask_output: bool | None = None,
        details: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Predict masks; names and order are Segment Anything's.

        Args:
            image_embeddings: (B, C, h, w). Prompt p is for picture p // (P // B).
            image_pe: dense positions, (1, C, h, w).
            sparse_prompt_embeddings: prompt tokens, (P, T, C).
            dense_prompt_embeddings: (P, C, h, w), or None where the embeddings hold them already.
            multimask_output: True gives the masks for ambiguous prompts, False the single one, None
                all, the single one first. Only what is given is computed.
            details: what ``project`` gave of the B pictures, or that with dense prompts added, for
                each of the P prompts.

        Returns:
            Logits (P, M, 4h, 4w) and predicted IoU (P, M).
        """
        sparse = sparse_prompt_embeddings
        prompts = len(sparse)
        image = each(image_embeddings, prompts).expand(prompts, -1, -1, -1)
        image = image.contiguous(memory_format=torch.channels_last)
        dense = None if dense_prompt_embeddings is None else rows(dense_prompt_embeddings)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(prompts, -1, -1), sparse], dim=1)
        tokens, flat = self.transformer(rows(image), rows(image_pe), tokens, dense)
        chosen = {None: slice(None), True: slice(1, None), False: slice(0, 1)}[multimask_output]
        heads = list(self.output_hypernetworks_mlps)
        hyper = torch.stack(
            [
                mlp(token)
                for mlp, token in zip(
                    heads[chosen], tokens[:, 1 : 1 + len(heads)].unbind(1)[chosen], strict=True
                )
            ],
            dim=1,
        )
        grid = flat.unflatten(1, image.shape[2:])
        logits = self._logits(grid, hyper, chosen, details)
        return logits, self.iou_prediction_head(tokens[:, 0])[:, chosen]

    def _logits(
        self,
        image_PhwC: Tensor,
        hyper_PMc: Tensor,
        chosen: slice,
        details: tuple[Tensor, ...],
    ) -> Tensor:
        """Upscale the image and multiply, in strips of token rows: each token makes its own 4 x 4.

        Returns:
            (P, M, 4h, 4w), float32 or wider.
        """
        prompts, height, width, _ = image_PhwC.shape
        details = tuple(each(map_, prompts) for map_ in details)
        if in_tiles(image_PhwC):
            return self._logits_in_tiles(image_PhwC, hyper_PMc, chosen, details)
        pixels = _PIXELS.get(image_PhwC.device.type, _PIXELS_ELSEWHERE)
        step = height if torch.is_grad_enabled() else max(1, pixels // (16 * prompts * width))
        products, fine = [], []
        for start in range(0, height, step):
            part = [
                map_[:, :, k * start : k * (start + step)]
                for map_, k in zip(details, (4, 2), strict=False)
            ]
            strip = self._upscale(image_PhwC[:, start : start + step], part)
            products.append(wide(hyper_PMc) @ rows(strip).transpose(1, 2))
            if self.direct is not None:
                fine.append(strip.to(image_PhwC.dtype))
        logits: Tensor = torch.cat(products, 2).unflatten(2, (4 * height, 4 * width))
        if self.direct is not None:
            conv, act, last = self.direct
            x = act(conv(torch.cat(fine, 2)))
            weight, bias = last.get_parameter("weight"), last.get_parameter("bias")
            logits = logits + F.conv2d(x, weight[chosen], bias[chosen])
        return logits

    def _logits_in_tiles(
        self,
        image_PhwC: Tensor,
        hyper_PMc: Tensor,
        chosen: slice,
        details: tuple[Tensor, ...],
    ) -> Tensor:
        from anyres.ops import upscale_cpu

        first, norm, _, second, _ = self.output_upscaling
        parameters = [x for layer in (first, norm, second) for x in weight_and_bias(layer)]
        if self.direct is not None:
            weight, bias = weight_and_bias(self.direct[2])
            parameters += [*weight_and_bias(self.direct[0]), weight[chosen], bias[chosen]]
        eps = cast("LayerNorm2d", norm).eps
        ready = self._ordered(parameters, eps, lambda given: upscale_cpu.ordered(given, eps))
        return upscale_cpu.upscale(image_PhwC.contiguous(), ready, details, hyper_PMc)

    def _upscale(self, image_PhwC: Tensor, details: list[Tensor]) -> Tensor:
        """(P, C / 8, 4h, 4w), float32 or wider, channels last in memory."""
        up1, norm, act, up2, act2 = self.output_upscaling
        x = wide(up1(image_PhwC.permute(0, 3, 1, 2)))
        x = up2(act(norm(x + details[1] if details else x)))
        upscaled: Tensor = act2(x + details[0] if details else x)
        return upscaled
