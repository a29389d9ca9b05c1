"""The parts of HRSAM's encoders (arXiv 2407.02109): window blocks and the cycle-scan between them.

On a CPU and without gradients both go through a picture in parts (``ops.threads``): everything in a
block is local to its windows, so a few windows go through a whole block at a time, on one thread,
and nothing of the picture's size is made but the answer. There, layers' parameters are read and the
layers themselves are not called, so blocks with other layers put in, or with hooks, are left whole.

Parameter names are those of the official state dict.

Shapes: B pictures, (h, w) token grid, C channels, L = h * w; H heads, D channels of a head.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import HRSAMConfig
from anyres.models.layers import ChannelsLast, PatchEmbed
from anyres.ops import block
from anyres.ops.precision import wide
from anyres.ops.rope import split_pairs, turn_table
from anyres.ops.scan import cycle_scan
from anyres.ops.threads import runs_in_parts, share
from anyres.ops.window_attention import Slots, attend_windows
from anyres.ops.windows import Group, Span, WindowPlan, merge, partition

# Tokens that go through a block at a time: a quarter of all, for threads to find work, within what
# is enough for a product and what lets the buffers of a thread stay small. Not a matter of how many
# threads there are: a product's last digits may change with its rows.
LEAST, MOST = 256, 2048


def group_size(x_BhwC: Tensor, parts: int = 4) -> int:
    """Tokens of each picture that go through layers at a time."""
    tokens = x_BhwC.shape[:3].numel()
    return min(max(tokens // parts, LEAST), MOST) // len(x_BhwC)


class _Projection:
    """A block's ``qkv`` made ready for ``attend_windows``, and what its windows share."""

    def __init__(self, attention: "WindowAttention", rope: tuple[Tensor, Tensor]) -> None:
        heads, padding = attention.heads, attention.padding
        self._sizes = (3, heads, -1)
        self._other: nn.Module | None = None
        if as_built([attention.qkv], padding.dtype):
            linear = attention.qkv
            self._weight, self._bias = (_ready(x, heads) for x in (linear.weight, linear.bias))
        else:
            self._other = attention.qkv
        cos, sin = turn_table(*rope, like=padding)
        side = round(len(cos) ** 0.5)
        pad = self(padding)[0]
        shape = (side, side, -1)
        self.slots = Slots(cos.view(shape), sin.view(shape), pad)

    def __call__(self, x: Tensor) -> Tensor:
        """Queries, keys and values (..., 3, H, D) of tokens (..., C)."""
        if self._other is None:
            rows = F.linear(x, self._weight, self._bias)
        else:
            rows = _ready(self._other(x).movedim(-1, 0), self._sizes[1]).movedim(0, -1)
        qkv: Tensor = rows.unflatten(-1, self._sizes)
        return qkv


def _ready(rows: Tensor, heads: int) -> Tensor:
    """Rows of ``qkv``: pairs apart for the rotation, the scale of the scores in the queries."""
    q, k, v = rows.unflatten(0, (3, heads, -1))
    q, k = split_pairs(q * q.shape[1] ** -0.5), split_pairs(k)
    return torch.stack([q, k, v]).flatten(0, 2)


class WindowAttention(nn.Module):
    """Attention inside windows with rotary positions and a learned padding vector."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.padding = nn.Parameter(torch.zeros(1, dim))

    def forward(self, x_BhwC: Tensor, plan: WindowPlan, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Attend within the plan's windows, all at once; shape kept."""
        project = _Projection(self, rope)
        side, slots = plan.window, project.slots
        windows = partition(project(x_BhwC).flatten(3), plan, slots.pad_3HD.flatten())
        whole = Span(0, 1, side, 0)
        qkv = windows.unflatten(1, (side, side)).unflatten(3, slots.pad_3HD.shape)
        out = attend_windows(qkv, whole, whole, slots)
        attended: Tensor = self.proj(merge(out.flatten(1, 2), plan))
        return attended

    def attend_group(self, x_ByxC: Tensor, group: Group, project: _Projection) -> Tensor:
        """Attend within the windows of a group, from its tokens; shape kept."""
        qkv = project(x_ByxC)
        sizes = [span.stop - span.start for span in group.columns]
        parts = [
            attend_windows(part, group.rows, span, project.slots)
            for part, span in zip(qkv.split(sizes, 2), group.columns, strict=True)
        ]
        attended: Tensor = self.proj(torch.cat(parts, 2) if len(parts) > 1 else parts[0])
        return attended


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
        if runs_in_parts(x_BhwC) and as_built(list(self.modules())[1:], x_BhwC.dtype):
            return self.over([x_BhwC], [plan], rope)[0]
        x = x_BhwC + self.attn(self.norm1(x_BhwC), plan, rope)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def over(
        self,
        maps: Sequence[Tensor],
        plans: Sequence[WindowPlan],
        rope: tuple[Tensor, Tensor],
        in_place: bool = False,
    ) -> list[Tensor]:
        """Each map (B, h, w, C) in windows of its own, for layers as built that run in parts.

        ``in_place`` allows to overwrite them.
        """
        maps = [x.contiguous() for x in maps]
        outs = maps if in_place else [torch.empty_like(x) for x in maps]
        hidden = self.mlp.fc1.out_features
        if block.runs_compiled(maps[0], self.attn.heads, plans[0].window, hidden):
            self._compiled(maps, plans, rope, outs)
            return outs
        for x_BhwC, plan, out_BhwC in zip(maps, plans, outs, strict=True):
            self._in_groups(x_BhwC, plan, rope, out_BhwC)
        return outs

    def _compiled(
        self,
        maps: Sequence[Tensor],
        plans: Sequence[WindowPlan],
        rope: tuple[Tensor, Tensor],
        outs: Sequence[Tensor],
    ) -> None:
        from anyres.ops import block_amx, block_cpu

        numbers = block_cpu.numbers
        qkv, proj, fc1, fc2 = (
            block_cpu.Linear(linear.weight.t(), numbers(linear.bias.float()))
            for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2)
        )
        first, second = map(block_cpu.Norm.of, (self.norm1, self.norm2))
        cos, sin = (numbers(table.float().contiguous()) for table in rope)
        parameters = block_cpu.Parameters(
            self.attn.heads, self.attn.padding, cos, sin, (first, second), qkv, proj, fc1, fc2
        )
        in_tiles = block.runs_in_tiles(maps[0], plans[0].window, self.mlp.fc1.out_features)
        parts, run = (16, block_amx.run_block) if in_tiles else (4, block_cpu.run_block)
        pieces = [
            block_cpu.Piece(x, plan, group_size(x, parts), out)
            for x, plan, out in zip(maps, plans, outs, strict=True)
        ]
        run(pieces, parameters)

    def _in_groups(
        self, x_BhwC: Tensor, plan: WindowPlan, rope: tuple[Tensor, Tensor], out_BhwC: Tensor
    ) -> None:
        project = _Projection(self.attn, rope)

        def run(group: Group) -> None:
            tokens = x_BhwC[group.place]
            x = self.attn.attend_group(self.norm1(tokens), group, project).add_(tokens)
            torch.add(x, self.mlp(self.norm2(x)), out=out_BhwC[group.place])

        share(run, plan.groups(group_size(x_BhwC)))


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
        if self._runs_compiled(x_BLC):
            return self._compiled([x_BLC])[0]
        inputs = self.in_proj(self.in_norm(x_BLC))
        u, gate = inputs.split(self.sizes[0], dim=-1)
        y = self.out_norm(self._scan(u, *self.ssm_proj(u).tensor_split(self.sizes[:1], dim=-1)))
        out: Tensor = x_BLC + self.out_proj(gate * y)
        return out

    def over(self, maps: list[Tensor], in_place: bool = False) -> list[Tensor]:
        """Scan the tokens of all maps (B, h, w, C) as one sequence; shapes kept.

        ``in_place`` allows to overwrite them.
        """
        if self._runs_compiled(maps[0]):
            return self._compiled(maps, in_place)
        sequence = torch.cat([x.flatten(1, 2) for x in maps], dim=1)
        parts = self(sequence).split(_lengths(maps), dim=1)
        return [part.unflatten(1, x.shape[1:3]) for part, x in zip(parts, maps, strict=True)]

    def over_each(self, maps: list[Tensor], in_place: bool = False) -> list[Tensor]:
        """As ``over``, each map's tokens as a sequence of their own."""
        if self._runs_compiled(maps[0]):
            return self._compiled(maps, in_place, _lengths(maps))
        return [self.over([x])[0] for x in maps]

    def _runs_compiled(self, x: Tensor) -> bool:
        in_parts = runs_in_parts(x) and as_built(list(self.modules())[1:], x.dtype)
        return in_parts and block.scan_runs_compiled(x)

    def _scan(
        self,
        u: Tensor,
        delta: Tensor,
        weights: Tensor,
        out: Tensor | None = None,
        lengths: Sequence[int] = (),
    ) -> Tensor:
        b, c = weights.chunk(2, dim=-1)
        logs = wide(self.As_log)
        # Not by torch before compiled kernels: it would wake its threads for this.
        a = -torch.exp(logs) if out is None else torch.from_numpy(-np.exp(logs.detach().numpy()))
        gamma, bias = self.gamma[..., 0], self.ssm_proj_bias
        return cycle_scan(u, delta, a, b, c, self.Ds, gamma, bias, out, lengths)

    def _compiled(
        self, maps: list[Tensor], in_place: bool = False, lengths: Sequence[int] = ()
    ) -> list[Tensor]:
        from anyres.ops import block_cpu, cycle_cpu

        numbers = block_cpu.numbers
        wide_proj = cast(nn.Linear, self.in_proj[0])
        into, out = (
            block_cpu.Linear(linear.weight.t(), numbers(linear.bias.float()))
            for linear in (wide_proj, self.out_proj)
        )
        first, second = map(block_cpu.Norm.of, (self.in_norm, self.out_norm))
        ssm = self.ssm_proj
        parameters = cycle_cpu.Parameters(first, into, ssm.weight.t(), ssm.bias, second, out)
        maps = [x.contiguous() for x in maps]
        outs = maps if in_place else [torch.empty_like(x) for x in maps]

        def scan(u: Tensor, delta: Tensor, weights: Tensor) -> Tensor:
            return self._scan(u, delta, weights, u, lengths)

        cycle_cpu.run(maps, parameters, scan, outs)
        return outs


def _lengths(maps: Iterable[Tensor]) -> list[int]:
    return [x.shape[1] * x.shape[2] for x in maps]


# What encoders are built of.
_BUILT_OF = (
    *(nn.Linear, nn.LayerNorm, nn.Sequential, nn.SiLU, nn.Conv2d, nn.ModuleList),
    *(PatchEmbed, ChannelsLast, WindowAttention, _MLP, Block, CycleScan),
)


def as_built(layers: Iterable[nn.Module], dtype: torch.dtype) -> bool:
    """Whether layers do what their parameters say: no others in their places, and no hooks.

    Products must be in this precision, too.
    """
    for layer in layers:
        if type(layer) not in _BUILT_OF or layer._forward_hooks or layer._forward_pre_hooks:
            return False
        if isinstance(layer, nn.LayerNorm | CycleScan):
            continue
        if any(x.dtype != dtype for x in layer._parameters.values() if x is not None):
            return False
    return True
