"""SAM's image encoder as people run it today: eager, with every score matrix as a whole.

The baseline of ``anyres benchmark``. Blocks pad the grid to whole windows (global ones need none),
scores are a whole matrix for every head, and decomposed relative positions are added to it (Li et
al. 2022, "Exploring Plain Vision Transformer Backbones", and Kirillov et al. 2023).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.models.config import ViTConfig
from anyres.models.vit import Attention, Block, ImageEncoderViT
from anyres.ops.attention import fit_relative_table, get_rel_pos

# The scores, the scores with positions, and their softmax are alive at once.
_COPIES = 3


def bytes_needed(config: ViTConfig, size_hw: tuple[int, int]) -> int:
    """Memory of one global block's score matrices in float32, for a picture (H, W) in pixels."""
    tokens = (size_hw[0] // config.patch) * (size_hw[1] // config.patch)
    return _COPIES * config.heads * tokens * tokens * 4


def encode(encoder: ImageEncoderViT, pixels: Tensor) -> Tensor:
    """The embedding (B, neck, h, w) of pixels (B, 3, H, W), as ``encoder`` gives it, but slowly."""
    tokens, _ = encoder._embed(pixels)
    for block in cast("list[Block]", encoder.blocks):
        tokens = tokens + _windowed(block.attn, block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    embedding: Tensor = encoder.neck(tokens.permute(0, 3, 1, 2))
    return embedding


def _windowed(attention: Attention, x_BhwC: Tensor) -> Tensor:
    if not attention.window:
        return _attend(attention, x_BhwC)
    batch, height, width, dim = x_BhwC.shape
    side = attention.window
    x = F.pad(x_BhwC, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    x = x.reshape(batch, rows, side, columns, side, dim).transpose(2, 3)
    out = _attend(attention, x.reshape(-1, side, side, dim))
    out = out.reshape(batch, rows, columns, side, side, dim).transpose(2, 3)
    out = out.reshape(batch, rows * side, columns * side, dim)
    return out[:, :height, :width]


def _attend(attention: Attention, x_BhwC: Tensor) -> Tensor:
    batch, height, width, dim = x_BhwC.shape
    heads, tokens = attention.heads, height * width
    qkv = attention.qkv(x_BhwC).reshape(batch, tokens, 3, heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if attention.rel_pos_h is not None and attention.rel_pos_w is not None:
        side = max(height, width)
        by_row, by_column = (
            get_rel_pos(size, size, fit_relative_table(table, size, side))
            for size, table in ((height, attention.rel_pos_h), (width, attention.rel_pos_w))
        )
        q = q.reshape(batch, heads, height, width, -1)
        rows = torch.einsum("bnhwc,hkc->bnhwk", q, by_row)[..., :, None]
        columns = torch.einsum("bnhwc,wkc->bnhwk", q, by_column)[..., None, :]
        scores = scores.reshape(batch, heads, height, width, height, width) + rows + columns
        scores = scores.reshape(batch, heads, tokens, tokens)
    out = scores.softmax(-1) @ v
    projected: Tensor = attention.proj(out.transpose(1, 2).reshape(batch, height, width, dim))
    return projected
