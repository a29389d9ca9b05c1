"""HRSAM's image encoder (arXiv 2407.02109): windows joined by cycle-scans, linear in the picture.

Even blocks attend inside plain windows, odd ones inside shifted windows. Before each of
``out_blocks`` a cycle-scan carries information along the raster sequence of all tokens. The outputs
of those blocks are projected, summed and smoothed into the embedding. Parameter names are those of
the official state dict.

Shapes: B pictures, (h, w) token grid, C channels, L = h * w.
"""

import torch
from torch import Tensor, nn

from anyres.models.config import HRSAMConfig
from anyres.models.hrsam_blocks import Block, CycleScan
from anyres.models.layers import PatchEmbed, check_pixels, resize_table
from anyres.models.stem import ConvStem
from anyres.ops.rope import frequencies, window_table
from anyres.ops.windows import window_plan


class _Frequencies(nn.Module):
    freqs: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("freqs", frequencies(head_dim))


class HRSAMEncoder(nn.Module):
    """HRSAM's encoder: (B, 3, H, W) to (B, neck, H/patch, W/patch).

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
        self.rope = _Frequencies(dim // config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        outs = config.out_blocks
        self.mamba_blocks = nn.ModuleList(CycleScan(dim, config.state, config.cycles) for _ in outs)
        self.lateral_convs = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, config.neck, bias=False), nn.LayerNorm(config.neck))
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
        embedded = self.patch_embed(x)
        tokens, details = embedded if self.config.stem is not None else (embedded, ())
        tokens = self._add_positions(tokens)
        grid_hw = (tokens.shape[1], tokens.shape[2])
        plans = [window_plan(grid_hw, self.config.window, shifted=s) for s in (False, True)]
        rope = window_table(self.rope.freqs, self.config.window)
        outs = {block: i for i, block in enumerate(self.config.out_blocks)}
        laterals: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            if i in outs:
                scanned = self.mamba_blocks[outs[i]](tokens.flatten(1, 2))
                tokens = scanned.unflatten(1, grid_hw)
            tokens = block(tokens, plans[i % 2], rope)
            if i in outs:
                laterals.append(self.lateral_convs[outs[i]](tokens))
        summed = torch.stack(laterals).sum(0)
        embedding = self.out_conv(summed.permute(0, 3, 1, 2)).permute(0, 3, 1, 2)
        return embedding, details

    def _add_positions(self, tokens_BhwC: Tensor) -> Tensor:
        if self.pos_embed is None:
            return tokens_BhwC
        side = self.config.table
        table = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        grid_hw = (tokens_BhwC.shape[1], tokens_BhwC.shape[2])
        fitted = resize_table(table, grid_hw, "bilinear", self.config.positions == "stretch")
        return tokens_BhwC + fitted.permute(0, 2, 3, 1)


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)
