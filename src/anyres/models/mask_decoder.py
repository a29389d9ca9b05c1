"""SAM's two-way mask decoder (Kirillov et al. 2023, appendix A), with detail features as an option.

Shapes: P prompts, T tokens, C channels, (h, w) token grid, M masks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import DecoderConfig
from anyres.models.layers import MLP, LayerNorm2d, MLPBlock


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its model width."""

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from q (P, Tq, C) to k and v (P, Tk, C); gives (P, Tq, C)."""
        q, k, v = (
            self._split(layer(x))
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        # Written out: with few tokens on one side this is faster on CPUs than the fused call.
        out = scores.softmax(-1) @ v
        merged: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return merged

    def _split(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return split


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

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Update tokens (P, T, C) and image (P, h*w, C)."""
        if self.first:
            # As in SAM: the first block's self-attention replaces the tokens.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(k, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Blocks of two-way attention and a last look of the tokens at the image."""

    def __init__(self, dim: int, depth: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, heads, mlp, i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(dim, heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Give updated tokens (P, T, C) and image tokens (P, h*w, C)."""
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


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
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, dim // 8, 3) for _ in range(masks)
        )
        self.iou_prediction_head = MLP(dim, config.iou_hidden, masks, config.iou_depth)
        self.detail_s4: nn.Module | None = None
        self.detail_s8: nn.Module | None = None
        self.direct: nn.Module | None = None
        if details is not None:
            self.detail_s4 = nn.Conv2d(details[0], dim // 8, 1)
            self.detail_s8 = nn.Conv2d(details[1], dim // 4, 1)
            self.direct = nn.Sequential(
                nn.Conv2d(dim // 8, dim // 8, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(dim // 8, masks, 1),
            )

    def forward(
        self,
        image_PChw: Tensor,
        image_pe_1Chw: Tensor,
        sparse_PTC: Tensor,
        details: tuple[Tensor, ...] = (),
        dense_details: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor, Tensor]:
        """Predict all masks.

        Args:
            image_PChw: image embedding plus dense prompt, one for each prompt.
            image_pe_1Chw: dense positions.
            sparse_PTC: prompt tokens.
            details: the stem's maps at strides 4 and 8, (P or 1 or B, c, 4h, 4w) and (…, 2h, 2w).
            dense_details: dense prompts at strides 4 and 8, added to the projected details.

        Returns:
            Logits (P, M, 4h, 4w) and predicted IoU (P, M); mask 0 is the single-mask output.
        """
        prompts, _, h, w = image_PChw.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(prompts, -1, -1), sparse_PTC], dim=1)
        image = image_PChw.flatten(2).transpose(1, 2)
        image_pe = image_pe_1Chw.flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe, tokens)
        image = image.transpose(1, 2).unflatten(2, (h, w))
        upscaled = self._upscale(image, details, dense_details)
        mask_tokens = tokens[:, 1 : 1 + len(self.output_hypernetworks_mlps)]
        hyper = torch.stack(
            [
                mlp(token)
                for mlp, token in zip(
                    self.output_hypernetworks_mlps, mask_tokens.unbind(1), strict=True
                )
            ],
            dim=1,
        )
        masks = (hyper @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        if self.direct is not None:
            masks = masks + self.direct(upscaled)
        return masks, self.iou_prediction_head(tokens[:, 0])

    def _upscale(
        self, image: Tensor, details: tuple[Tensor, ...], dense: tuple[Tensor, ...]
    ) -> Tensor:
        if self.detail_s4 is None or self.detail_s8 is None:
            out: Tensor = self.output_upscaling(image)
            return out
        up1, norm, act, up2, act2 = self.output_upscaling
        detail4, detail8 = self.detail_s4(details[0]), self.detail_s8(details[1])
        repeat = image.shape[0] // detail4.shape[0]
        if repeat > 1:
            detail4, detail8 = (d.repeat_interleave(repeat, 0) for d in (detail4, detail8))
        if dense:
            detail4, detail8 = detail4 + dense[0], detail8 + dense[1]
        x = act(norm(up1(image) + detail8))
        upscaled: Tensor = act2(up2(x) + detail4)
        return upscaled
