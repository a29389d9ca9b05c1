"""SAM's two-way mask decoder (Kirillov et al. 2023, appendix A), with detail features as an option.

Shapes: P prompts, T tokens, C channels, (h, w) token grid, M masks.
"""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import DecoderConfig
from anyres.models.layers import (
    MLP,
    DoublingConv2d,
    LayerNorm2d,
    MLPBlock,
    SiLU,
    each,
    rows,
    weight_and_bias,
)
from anyres.ops import block
from anyres.ops.precision import wide
from anyres.ops.threads import runs_in_parts

# Upscaled pixels at once. On CPUs their float32 channels stay in the cache.
_PIXELS = {"cpu": 2**15}
_PIXELS_ELSEWHERE = 2**26


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its model width.

    Tokens are few (T of them, H heads), image tokens are many (n). Where one side is the image, its
    projection is moved over to the tokens' side: ``q (x Wk)ᵀ`` is ``(q Wkᵀ) xᵀ``, and ``a (x Wv)``
    is ``(a x) Wv``. The image then takes part in two products with H * T columns and is never
    projected; nothing is left that could be computed once a picture.
    """

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from tokens q (P, T, C) to tokens k and v (P, T', C); gives (P, T, C)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self.v_proj(v)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        # Written out: with few tokens this is faster on CPUs than the fused call.
        return self._merge(scores.softmax(-1) @ self._split(v))

    def ask(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens q (P, T, C) ask of the image, for ``look``."""
        q = self._split(self.q_proj(q))
        q = q * q.shape[-1] ** -0.5
        weight, bias = self._heads(self.k_proj)
        return (q @ weight).flatten(1, 2), (q @ bias[..., None]).flatten(1, 2)

    @staticmethod
    def look(asked: tuple[Tensor, Tensor], k_image: Tensor, v_image: Tensor) -> "Seen":
        """Attend to a part of the image, (P, n, C) of keys and of values."""
        weight, bias = asked
        scores = wide(torch.baddbmm(bias, weight, k_image.transpose(1, 2)))
        highest = scores.detach().amax(-1, True)
        shares = (scores - highest).exp()
        return Seen(highest, shares.sum(-1, True), shares.to(v_image.dtype) @ v_image)

    def understand(self, parts: "list[Seen]") -> Tensor:
        """From what was seen of all parts of the image to tokens (P, T, C)."""
        seen = wide(parts[0].values) / parts[0].total
        if len(parts) > 1:
            highest, total, values = (torch.stack(each) for each in zip(*parts, strict=True))
            weight = (highest - highest.amax(0)).exp()
            seen = (values * weight).sum(0) / (total * weight).sum(0)
        seen = seen.to(self.v_proj.weight.dtype).unflatten(1, (self.heads, -1))
        weight, bias = self._heads(self.v_proj)
        return self._merge(seen @ weight.transpose(1, 2) + bias[:, None])

    def tell(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What tokens k, v (P, T, C) tell the image, for ``hear``."""
        k = self._split(self.k_proj(k))
        k = k * k.shape[-1] ** -0.5
        weight, bias = self._heads(self.q_proj)
        # The weights of each head sum to 1, so every head brings its share of the bias.
        out_weight = self.out_proj.weight.t().unflatten(0, (self.heads, -1))
        values = self._split(self.v_proj(v)) @ out_weight + self.out_proj.bias / self.heads
        return (k @ weight).flatten(1, 2), (k @ bias[..., None]).flatten(1, 2), values.flatten(1, 2)

    def hear(self, image: Tensor, q_image: Tensor, told: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Add to a part of the image (P, n, C) what q_image (P, n, C) attends to in tokens."""
        weight, bias, values = told
        scores = torch.baddbmm(bias, weight, q_image.transpose(1, 2))
        # A softmax along the middle: along T in memory it takes ten times as long on CPUs.
        attention = scores.unflatten(1, (self.heads, -1)).softmax(2).flatten(1, 2)
        return torch.baddbmm(image, attention.transpose(1, 2), values)

    def _split(self, x: Tensor) -> Tensor:
        """(P, T, H * d) to (P, H, T, d)."""
        split: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split

    def _merge(self, x: Tensor) -> Tensor:
        merged: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))
        return merged

    def _heads(self, layer: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weights (H, d, C) and bias (H, d) of each head."""
        return layer.weight.unflatten(0, (self.heads, -1)), layer.bias.unflatten(
            0, (self.heads, -1)
        )


class Seen(NamedTuple):
    """Attention to a part of the image.

    Attributes:
        highest: the highest of each row's scores, (P, H * T, 1).
        total: the sum of their exponentials, less the highest.
        values: the sum of values so weighted, (P, H * T, C).
    """

    highest: Tensor
    total: Tensor
    values: Tensor


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, to the image, pass an MLP; then the image attends to them."""

    def __init__(self, dim: int, heads: int, mlp: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp, F.relu)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, heads, downsample=2)
        self.first = first

    def look_around(self, tokens: Tensor, token_pe: Tensor) -> Tensor:
        """Tokens (P, T, C) before they attend to the image."""
        if self.first:
            # As in SAM: the first block's self-attention replaces the tokens.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        normed: Tensor = self.norm1(tokens)
        return normed

    def think(self, tokens: Tensor, parts: list[Seen]) -> Tensor:
        """Tokens (P, T, C) after they attended to the image."""
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.understand(parts))
        normed: Tensor = self.norm3(tokens + self.mlp(tokens))
        return normed


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention and a last look of the tokens at the image.

    Whatever image tokens do needs only themselves and the prompt's: where a kernel runs, a few of
    them take the whole step from one block to the next at a time.
    """

    def __init__(self, dim: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, heads, mlp, i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Give updated tokens (P, T, C) and image tokens (P, h*w, C)."""
        token_pe = tokens = tokens.to(self.norm_final_attn.weight.dtype)
        told, told_by = None, None
        for layer in cast("list[TwoWayBlock]", list(self.layers)):
            tokens = layer.look_around(tokens, token_pe)
            asked = layer.cross_attn_token_to_image.ask(tokens + token_pe)
            image, parts = _step(image, image_pe, told_by, told, asked)
            tokens = layer.think(tokens, parts)
            told = layer.cross_attn_image_to_token.tell(tokens + token_pe, tokens)
            told_by = layer
        asked = self.final_attn_token_to_image.ask(tokens + token_pe)
        image, parts = _step(image, image_pe, told_by, told, asked)
        attended = self.final_attn_token_to_image.understand(parts)
        return self.norm_final_attn(tokens + attended), image


def _step(
    image: Tensor,
    image_pe: Tensor,
    told_by: TwoWayBlock | None,
    told: tuple[Tensor, Tensor, Tensor] | None,
    asked: tuple[Tensor, Tensor],
) -> tuple[Tensor, list[Seen]]:
    """Image tokens (P, n, C) hear what a block's tokens tell, if any; then others look at them."""
    if not _in_tiles(image):
        if told_by is not None and told is not None:
            weight, bias, values = (x.to(image.dtype) for x in told)
            hear = told_by.cross_attn_image_to_token.hear
            image = told_by.norm4(hear(image, image + image_pe, (weight, bias, values)))
        weight, bias = (x.to(image.dtype) for x in asked)
        return image, [Attention.look((weight, bias), image + image_pe, image)]
    from anyres.ops import two_way_cpu

    known = None
    if told_by is not None and told is not None:
        heads = told_by.cross_attn_image_to_token.heads
        norm = told_by.norm4
        known = two_way_cpu.Told(*told, heads, (norm.weight, norm.bias, norm.eps))
    image, found = two_way_cpu.step(image, image_pe, known, asked)
    return image, [Seen(*each) for each in found]


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
        image = each(image_embeddings, prompts)
        if dense_prompt_embeddings is not None:
            image = image + dense_prompt_embeddings
        image = image.expand(prompts, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(prompts, -1, -1), sparse], dim=1)
        tokens, flat = self.transformer(rows(image), rows(image_pe), tokens)
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
        if _in_tiles(image_PhwC):
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
        layers = upscale_cpu.Upscaling(
            weight_and_bias(first), (*weight_and_bias(norm), cast("LayerNorm2d", norm).eps),
            weight_and_bias(second),
        )  # fmt: skip
        direct = None
        if self.direct is not None:
            weight, bias = weight_and_bias(self.direct[2])
            direct = upscale_cpu.Direct(
                weight_and_bias(self.direct[0]), (weight[chosen], bias[chosen])
            )
        return upscale_cpu.upscale(image_PhwC.contiguous(), layers, details, hyper_PMc, direct)

    def _upscale(self, image_PhwC: Tensor, details: list[Tensor]) -> Tensor:
        """(P, C / 8, 4h, 4w), float32 or wider, channels last in memory."""
        up1, norm, act, up2, act2 = self.output_upscaling
        x = wide(up1(image_PhwC.permute(0, 3, 1, 2)))
        x = up2(act(norm(x + details[1] if details else x)))
        upscaled: Tensor = act2(x + details[0] if details else x)
        return upscaled


def _in_tiles(image: Tensor) -> bool:
    """Whether kernels run for image tokens (.., C)."""
    return runs_in_parts(image) and block.decoder_runs_in_tiles(image.dtype, image.shape[-1])
