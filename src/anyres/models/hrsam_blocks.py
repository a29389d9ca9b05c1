"""The parts of HRSAM's encoders (arXiv 2407.02109): window blocks and the cycle-scan between them.

Parameter names are those of the official state dict.

Shapes: B pictures, (h, w) token grid, C channels, L = h * w.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import HRSAMConfig
from anyres.ops.rope import rotate
from anyres.ops.scan import cycle_scan
from anyres.ops.windows import WindowPlan, merge, partition


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
