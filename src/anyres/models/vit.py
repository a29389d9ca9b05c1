"""SAM's image encoder (Kirillov et al. 2023; ViTDet backbone, Li et al. 2022), for any token grid.

Most blocks attend inside windows, a few over the whole grid (``ops.attention``). Positions are
tables learned on a square grid. For another grid both axes of a table are resized by the factor of
the long side, then the table is cropped: a rectangle's tokens get the positions they would have
inside the padded square. Global attention adapts to the number of tokens (BA-SAM, ``ops.length``);
at the training length the encoder is SAM's, bit for bit. Parameter names are those of the official
state dicts. With a stem (``models.stem``), which SAM has not, finer maps are kept for the decoder.

Shapes: B pictures, (h, w) token grid, C channels.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import ViTConfig
from anyres.models.layers import (
    LastMade,
    MLPBlock,
    PatchEmbed,
    check_pixels,
    neck,
    resize_table,
)
from anyres.models.stem import ConvStem
from anyres.ops.attention import (
    RelativeTables,
    global_attention,
    resize_relative_table,
    window_attention,
)
from anyres.ops.length import LengthConfig, attention_scale, distance_growth, slopes


class Attention(nn.Module):
    """Self-attention with decomposed relative positions, windowed or global.

    Args:
        dim: channels, C.
        heads: number of heads.
        side: side of the square grid that the relative positions are learned on.
        window: side of the windows in tokens, or 0 for global attention.
        relative: whether there are relative positions.
        length: how it adapts to other grids.
    """

    def __init__(
        self, dim: int, heads: int, side: int, window: int, relative: bool, length: LengthConfig
    ) -> None:
        super().__init__()
        self.heads = heads
        self.side = side
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h: nn.Parameter | None = None
        self.rel_pos_w: nn.Parameter | None = None
        if relative:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self._fits = LastMade[Tensor](), LastMade[Tensor]()
        self.adapt(length)

    def adapt(self, length: LengthConfig) -> None:
        """Adapt to other grids in another way; its parameters start anew."""
        self.length = length
        start = self.qkv.weight.detach().new_full((1,), length.coefficient)
        learnable = length.learnable and not self.window
        self.coefficient = nn.Parameter(start) if length.bias == "coefficient" else None
        self.distance = nn.Parameter(start.clone()) if learnable else None

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """Shape kept."""
        qkv = self.qkv(x_BhwC)
        if self.window:
            # SAM pads with zeros before the projection, which makes its bias of them.
            tables = self._tables(self.window)
            out = window_attention(qkv, self.heads, self.window, self.qkv.bias, tables)
        else:
            height, width = x_BhwC.shape[1:3]
            scale = attention_scale(self.length, height * width, self.side**2)
            tables = self._tables(max(height, width))
            penalty = self._penalty(height * width)
            out = global_attention(qkv, self.heads, tables, scale, penalty)
        projected: Tensor = self.proj(out)
        return projected

    def _tables(self, side: int) -> RelativeTables | None:
        """For a square grid of this side."""
        if self.rel_pos_h is None or self.rel_pos_w is None:
            return None
        rows: Tensor = self.rel_pos_h
        columns: Tensor = self.rel_pos_w
        if side != self.side:
            rows, columns = (
                fits([table], side, lambda tables: resize_relative_table(tables[0], side))
                for fits, table in zip(self._fits, (rows, columns), strict=True)
            )
        if self.coefficient is None:
            return rows, columns
        return rows * self.coefficient, columns * self.coefficient

    def _penalty(self, tokens: int) -> Tensor | None:
        """What a token of distance takes off the scores of each head."""
        growth = distance_growth(self.length, tokens, self.side**2)
        if growth == 0:
            return None
        weight = self.qkv.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        per_token = torch.tensor(slopes(self.heads), dtype=wide, device=weight.device) / self.side
        strength = self.length.coefficient if self.distance is None else self.distance.to(wide)
        return per_token * growth * strength


class Block(nn.Module):
    """Attention and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, config: ViTConfig, is_global: bool) -> None:
        super().__init__()
        window = 0 if is_global else config.window
        side = window or config.image_size // config.patch
        # 1e-6 is what SAM is built with; torch's own default is 1e-5.
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attn = Attention(
            config.dim, config.heads, side, window, config.relative_positions, config.length
        )
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = MLPBlock(config.dim, int(config.dim * config.mlp_ratio), F.gelu)

    def forward(self, x_BhwC: Tensor) -> Tensor:
        """Shape kept."""
        x = x_BhwC + self.attn(self.norm1(x_BhwC))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class ImageEncoderViT(nn.Module):
    """SAM's encoder: (B, 3, H, W) to (B, neck, H/patch, W/patch).

    Attributes:
        img_size: side of the square it is trained at, in pixels.
        config: what it was built from.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = config.image_size
        side = config.image_size // config.patch
        self.patch_embed: nn.Module
        if config.stem is None:
            self.patch_embed = PatchEmbed(config.patch, config.dim)
        else:
            self.patch_embed = ConvStem(config.stem, config.dim)
        self.pos_embed: nn.Parameter | None = None
        self._fit = LastMade[Tensor]()
        if config.absolute_positions:
            self.pos_embed = nn.Parameter(torch.randn(1, side, side, config.dim) * 0.02)
        self.blocks = nn.ModuleList(
            Block(config, is_global=i in config.global_blocks) for i in range(config.blocks)
        )
        self.neck = neck(config.dim, config.neck)

    def forward(self, x: Tensor) -> Tensor:
        """Encode normalised pixels.

        Args:
            x: (B, 3, H, W), H and W multiples of the patch; rectangles and any size.

        Returns:
            (B, neck, H/patch, W/patch).

        Raises:
            InputError: another shape.
        """
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embedding, and the stem's maps at strides 4 and 8 (none without a stem)."""
        check_pixels(x, self.config.patch)
        tokens, details = self._embed(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens.permute(0, 3, 1, 2)), details

    def adapt(self, length: LengthConfig) -> None:
        """Adapt to other grids in another way; parameters of the former way are dropped.

        Raises:
            InputError: it multiplies relative positions, and there are none.
        """
        self.config = replace(self.config, length=length)
        for module in self.modules():
            if isinstance(module, Attention):
                module.adapt(length)

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens with positions (B, h, w, C), and the stem's maps."""
        if self.config.stem is None:
            return self._add_positions(self.patch_embed(x)), ()
        tokens, details = self.patch_embed(x)
        return self._add_positions(tokens), details

    def _add_positions(self, tokens_BhwC: Tensor) -> Tensor:
        if self.pos_embed is None:
            return tokens_BhwC
        height, width = tokens_BhwC.shape[1:3]
        side = max(height, width)
        # Bicubic as ViTDet, the backbone, resizes its own; without antialiasing, like the relative
        # tables, so that a grid a little smaller than trained does not blur the table.
        table: Tensor = self.pos_embed
        if side != table.shape[1]:
            table = self._fit([table], side, lambda tables: _resized(tables[0], side))
        return tokens_BhwC + table[:, :height, :width]


def _resized(table_1hwC: Tensor, side: int) -> Tensor:
    table = resize_table(table_1hwC.permute(0, 3, 1, 2), (side, side), "bicubic", stretch=False)
    return table.permute(0, 2, 3, 1)
