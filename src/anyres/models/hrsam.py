"""The image encoders HRSAM and HRSAM++ (arXiv 2407.02109): windows joined by cycle-scans.

Their cost is linear in the picture.

Even blocks attend inside plain windows, odd ones inside shifted windows. Before each of
``out_blocks`` a cycle-scan carries information along the raster sequence of all tokens. The outputs
of those blocks are projected, summed and smoothed into the embedding.

HRSAM++ also sees the whole picture shrunk to a small square, the anchor. Both scales go through the
same blocks, each in windows of its own; the scan before an out block runs over each scale, and one
more after it over the tokens of both, picture first: there they meet. The anchor's map is then
brought to the picture's grid and joined to its channels.

Parameter names are those of the official state dicts.

Shapes: B pictures, (h, w) token grid, C channels, L = h * w.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import HRSAMConfig
from anyres.models.hrsam_blocks import Block, CycleScan
from anyres.models.layers import FitCache, PatchEmbed, check_pixels, resize_table
from anyres.models.stem import ConvStem
from anyres.ops.rope import frequencies, window_table
from anyres.ops.windows import WindowPlan, window_plan


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", frequencies(head_dim))


class HRSAMEncoder(nn.Module):
    """HRSAM's encoder, with an anchor HRSAM++'s: (B, 3, H, W) to (B, neck, H/patch, W/patch).

    Attributes:
        img_size: long side it is trained at, in pixels; 0 outside a ``Segmenter``.
        config: what it was built from.
    """

    def __init__(self, config: HRSAMConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = 0
        dim = config.dim
        self.patch_embed: nn.Module
        if config.stem is None:
            self.patch_embed = PatchEmbed(config.patch, dim)
        else:
            self.patch_embed = ConvStem(config.stem, dim)
        # One slot more than positions: MAE's class token, unused.
        self.pos_embed = (
            nn.Parameter(torch.randn(1, config.table**2 + 1, dim) * 0.02) if config.table else None
        )
        self._fits = (FitCache(), FitCache())  # the picture's, the anchor's
        self.rope = _Frequencies(dim // config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        outs = config.out_blocks
        scans = [
            nn.ModuleList(_scan(config) for _ in outs) for _ in range(2 if config.anchor else 1)
        ]
        if config.anchor:
            self.ss_mamba_blocks, self.ms_mamba_blocks = scans
            self.multi_scale_fusion = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim)) for _ in outs)
        else:
            (self.mamba_blocks,) = scans
        seen = 2 * dim if config.anchor else dim
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(nn.Linear(seen, config.neck, bias=False), nn.LayerNorm(config.neck))
            for _ in outs
        )
        neck = config.neck
        self.out_conv = nn.Sequential(
            nn.Conv2d(neck, neck, 3, padding=1, groups=neck, bias=False),
            _ChannelsLast(),
            nn.LayerNorm(neck),
        )

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
        *scales, details = self._embed(x)
        if self.config.anchor:
            scales.append(self._embed(self._shrink(x))[0])
        plans = [self._plans(scale, is_anchor=i > 0) for i, scale in enumerate(scales)]
        rope = window_table(self.rope.freqs, self.config.window)
        outs = {block: i for i, block in enumerate(self.config.out_blocks)}
        laterals: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i in outs:
                scans = self.ss_mamba_blocks if self.config.anchor else self.mamba_blocks
                scales = [_over(scans[outs[i]], [scale])[0] for scale in scales]
            scales = [
                block(scale, plan[i % 2], rope) for scale, plan in zip(scales, plans, strict=True)
            ]
            if i in outs:
                if self.config.anchor:
                    scales = _over(self.ms_mamba_blocks[outs[i]], scales)
                laterals.append(self.lateral_convs[outs[i]](self._fuse(scales, outs[i])))
        summed = torch.stack(laterals).sum(0)
        embedding = self.out_conv(summed.permute(0, 3, 1, 2)).permute(0, 3, 1, 2)
        return embedding, details

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Tokens with positions (B, h, w, C), and the stem's maps."""
        embedded = self.patch_embed(x)
        tokens, details = embedded if self.config.stem is not None else (embedded, ())
        return self._add_positions(tokens), details

    def _shrink(self, x: Tensor) -> Tensor:
        """The picture as a square of the anchor's side, whatever its proportions."""
        side = self.config.anchor
        # The first version of the paper takes single pixels. The second's anchor is smaller, and of
        # a picture of 4096 pixels it would see one pixel in 256.
        smooth = not self.config.shift_anchor
        wide = torch.promote_types(x.dtype, torch.float32)
        small = F.interpolate(
            x.to(wide), (side, side), mode="bilinear", align_corners=False, antialias=smooth
        )
        return small.to(x.dtype)

    def _plans(self, tokens_BhwC: Tensor, *, is_anchor: bool) -> list[WindowPlan]:
        """Windows of even and of odd blocks."""
        grid_hw = (tokens_BhwC.shape[1], tokens_BhwC.shape[2])
        shifts = (False, self.config.shift_anchor or not is_anchor)
        return [window_plan(grid_hw, self.config.window, shifted=shifted) for shifted in shifts]

    def _fuse(self, scales: list[Tensor], number: int) -> Tensor:
        """Both scales' channels side by side at the picture's grid; the picture's alone without."""
        if not self.config.anchor:
            return scales[0]
        tokens, small = scales
        grown = F.interpolate(
            small.permute(0, 3, 1, 2), tokens.shape[1:3], mode="bilinear", align_corners=False
        )
        norm = self.multi_scale_fusion[number]
        return torch.cat([norm(tokens), norm(grown.permute(0, 2, 3, 1))], dim=-1)

    def _add_positions(self, tokens_BhwC: Tensor) -> Tensor:
        if self.pos_embed is None:
            return tokens_BhwC
        side = self.config.table
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid_hw = (tokens_BhwC.shape[1], tokens_BhwC.shape[2])
        stretch = self.config.positions == "stretch"

        def fit(table_1CHW: Tensor) -> Tensor:
            fitted = resize_table(table_1CHW, grid_hw, "bilinear", stretch)
            return fitted.permute(0, 2, 3, 1).contiguous()

        cache = self._fits[max(grid_hw) * self.config.patch == self.config.anchor]
        return tokens_BhwC + cache(table, grid_hw, fit)


def _scan(config: HRSAMConfig) -> CycleScan:
    return CycleScan(config.dim, config.state, config.cycles)


def _over(scan: nn.Module, scales: list[Tensor]) -> list[Tensor]:
    """Scan the tokens of all scales as one sequence, each in raster order."""
    return cast(CycleScan, scan).over(scales)


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)
