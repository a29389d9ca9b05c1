"""HRSAM's image encoder (arXiv 2407.02109): windows joined by cycle-scans, linear in the picture.

Even blocks attend inside plain windows, odd ones inside shifted windows. Before each of
``out_blocks`` a cycle-scan carries information along the raster sequence of all tokens. The outputs
of those blocks are projected, summed and smoothed into the embedding. Parameter names are those of
the official state dict.

Shapes: B pictures, (h, w) token grid, C channels, L = h * w.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import HRSAMConfig
from anyres.models.layers import PatchEmbed, check_pixels, resize_table
from anyres.models.stem import ConvStem
from anyres.ops.rope import frequencies, rotate, window_table
from anyres.ops.scan import cycle_scan
from anyres.ops.windows import WindowPlan, merge, partition, window_plan


class WindowAttention(nn.Module):
    """Attention inside windows with rotary positions and a learned padding vector."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.padding = nn.Parameter(torch.zeros(1, dim))

    def forward(self, x_BhwC: Tensor, plan: WindowPlan, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Attend within the plan's windows; shape kept."""
        # The padding vector is projected once, not once a slot.
        pad = self.qkv(self.padding)[0]
        windows = partition(self.qkv(x_BhwC), plan, pad)
        q, k, v = windows.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, *rope), rotate(k, *rope)
        # Written out: on CPUs batched products beat the fused call at window sizes.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        out = scores.softmax(-1) @ v
        merged: Tensor = self.proj(merge(out.transpose(1, 2).flatten(2), plan))
        return merged


class _MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Window attention and an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, config: HRSAMConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _MLP(dim, int(dim * config.mlp_ratio))

    def forward(self, x_BhwC: Tensor, plan: WindowPlan, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Shape kept."""
        x = x_BhwC + self.attn(self.norm1(x_BhwC), plan, rope)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CycleScan(nn.Module):
    """The state-space block between windows: x + W(z * LN(scan(x)))."""

    def __init__(self, dim: int, state: int, cycles: int) -> None:
        super().__init__()
        self.sizes = (dim, state, state)
        self.in_norm = nn.LayerNorm(dim)
        self.in_proj = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU())
        self.ssm_proj = nn.Linear(dim, dim + 2 * state)
        # A second bias for delta, as in the official parameters; starts steps at 0.001 .. 0.1.
        steps = torch.exp(torch.linspace(-6.9, -2.3, dim))
        self.ssm_proj_bias = nn.Parameter(torch.log(torch.expm1(steps)))
        self.As_log = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(dim, 1))
        self.Ds = nn.Parameter(torch.ones(dim))
        self.gamma = nn.Parameter(torch.full((dim, cycles, 1), 1 / cycles))
        self.out_norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Shape kept; L in raster order."""
        u, gate = self.in_proj(self.in_norm(x_BLC)).chunk(2, dim=-1)
        delta, b, c = self.ssm_proj(u).split(self.sizes, dim=-1)
        wide = torch.promote_types(delta.dtype, torch.float32)
        delta = F.softplus(delta.to(wide) + self.ssm_proj_bias.to(wide))
        a = -torch.exp(self.As_log.to(wide))
        y = cycle_scan(u, delta, a, b, c, self.Ds, self.gamma[..., 0])
        y = self.out_norm(y.to(x_BLC.dtype))
        out: Tensor = x_BLC + self.out_proj(gate * y)
        return out


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
