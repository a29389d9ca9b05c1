"""A window block on a CPU without gradients: torch multiplies, compiled kernels do the rest.

A group of windows goes through the whole block on one thread (``ops.threads``). Its tokens lie
window by window, so queries, keys and values need no more than one pass between the products, and
each pass does all that there is to do: ``block_numba``. What is in between stays in buffers that a
thread keeps from call to call: fresh memory of this size would cost more than what is put there.

Shapes: B pictures, (h, w) token grid, C channels, H heads, D channels of a head; m real tokens and
K slots of a window.
"""

from collections.abc import Iterable
from functools import lru_cache
from math import prod
from threading import local
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyres.ops import block_numba as kernels
from anyres.ops.threads import share
from anyres.ops.windows import Group, Span, WindowPlan

# Bytes of queries, keys, values and scores that are made at a time: about half of a core's cache.
_ATTENDED = 1 << 20


class Linear(NamedTuple):
    """A product's weight (inner, outer) and its bias in float32."""

    weight: Tensor
    bias: Any


class Norm(NamedTuple):
    """A layer norm's parameters in float32."""

    gain: Any
    shift: Any
    eps: float


class Parameters(NamedTuple):
    """A block's parameters and what its windows share."""

    heads: int
    padding: Tensor  # (1, C)
    cos: Any  # (K, D / 2), float32, as from rope.window_table
    sin: Any
    norms: tuple[Norm, Norm]
    qkv: Linear
    proj: Linear
    fc1: Linear
    fc2: Linear


class _Windows(NamedTuple):
    """Windows of a group with real tokens at the same slots."""

    count: int
    real: int
    slots: Any  # (K,): first those of the real tokens, then those of the padding


class _Layout(NamedTuple):
    """Where a group's tokens are, window by window."""

    places: Any  # in (B * h * w)
    parts: tuple[_Windows, ...]


class _Buffers(local):
    """What a thread works in. Buffers grow and stay."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """The buffer of this name, with whatever is in it."""
        size = prod(shape)
        buffer = self.kept.get((name, dtype))
        if buffer is None or len(buffer) < size:
            with torch.inference_mode(False):  # else only inference may write into it
                buffer = torch.empty(size, dtype=dtype)
            self.kept[name, dtype] = buffer
        return buffer[:size].view(shape)


_buffers = _Buffers()


def numbers(x: Tensor) -> Any:
    """The tensor's own memory as the kernels want it."""
    flat = x.detach().view(-1)
    return (flat.view(torch.uint16) if x.dtype == torch.bfloat16 else flat).numpy()


def run_block(x_BhwC: Tensor, plan: WindowPlan, most: int, parameters: Parameters) -> Tensor:
    """The whole block; shape kept.

    Args:
        x_BhwC: float32 or bfloat16, like the parameters.
        plan: of the windows.
        most: tokens of a group, about.
        parameters: the block's.
    """
    x_BhwC = x_BhwC.contiguous()
    out_BhwC = torch.empty_like(x_BhwC)
    tokens, out = numbers(x_BhwC), numbers(out_BhwC)
    kind = x_BhwC.dtype
    layouts = _layouts(plan, len(x_BhwC), most)
    share(lambda layout: _run_group(layout, parameters, kind, tokens, out), layouts)
    return out_BhwC


@lru_cache(maxsize=8)
def _layouts(plan: WindowPlan, batch: int, most: int) -> tuple[_Layout, ...]:
    height, width = plan.grid_hw
    places = np.arange(batch * height * width).reshape(batch, height, width)
    return tuple(_layout(places, plan.window, group) for group in plan.groups(most // batch))


def _layout(places_Bhw: Any, window: int, group: Group) -> _Layout:
    here, parts = [], []
    slots = np.arange(window**2).reshape(window, window)
    for columns in group.columns:
        spans = (group.rows, columns)
        cut = places_Bhw[:, *(slice(span.start, span.stop) for span in spans)]
        split = cut.reshape(len(cut), *(n for s in spans for n in (s.windows, s.size)))
        here.append(split.transpose(0, 1, 3, 2, 4).ravel())
        parts.append(_windows(spans, len(cut), slots))
    return _Layout(np.concatenate(here), tuple(parts))


def _windows(spans: Iterable[Span], batch: int, slots: Any) -> _Windows:
    rows, columns = spans
    inside = slots[
        rows.offset : rows.offset + rows.size, columns.offset : columns.offset + columns.size
    ].ravel()
    padding = np.setdiff1d(slots.ravel(), inside)
    count = batch * rows.windows * columns.windows
    return _Windows(count, inside.size, np.concatenate([inside, padding]))


def _run_group(
    layout: _Layout, parameters: Parameters, kind: torch.dtype, tokens: Any, out: Any
) -> None:
    padding, places, count = parameters.padding, layout.places, len(layout.places)
    width, hidden = padding.shape[1], parameters.fc1.weight.shape[1]
    rows = _buffers.take("rows", kind, count + 1, width)
    summed = numbers(_buffers.take("summed", kind, count, width))
    y = _buffers.take("y", kind, count, width)
    wide = _buffers.take("wide", kind, (count + 1) * max(3 * width, hidden))
    first, second = parameters.norms

    kernels.norm(tokens, places, numbers(rows), *first, width)
    rows[count] = padding[0]
    qkv = wide[: (count + 1) * 3 * width].view(count + 1, -1)
    torch.mm(rows, parameters.qkv.weight, out=qkv)
    rows = rows[:count]
    _attend(layout, parameters, qkv, rows)
    torch.mm(rows, parameters.proj.weight, out=y)
    bias = parameters.proj.bias
    kernels.add_norm(tokens, places, numbers(y), bias, summed, numbers(rows), *second, width)
    inner = wide[: count * hidden].view(count, -1)
    torch.mm(rows, parameters.fc1.weight, out=inner)
    kernels.gelu(numbers(inner), count, parameters.fc1.bias, hidden)
    torch.mm(inner, parameters.fc2.weight, out=y)
    kernels.add_out(summed, numbers(y), parameters.fc2.bias, places, out, width)


def _attend(layout: _Layout, parameters: Parameters, qkv: Tensor, out: Tensor) -> None:
    """Attend within each window: qkv (tokens and one row of padding, 3 * C), out (tokens, C)."""
    kind, heads = qkv.dtype, parameters.heads
    depth = out.shape[1] // heads
    first = 0
    for count, real, slots in layout.parts:
        keys = len(slots)
        each = heads * (real * keys + 2 * (real + keys) * depth) * kind.itemsize
        most = max(1, _ATTENDED // each)
        for start in range(0, count, most):
            windows = min(most, count - start)
            problems = windows * heads
            q, values = (
                _buffers.take(name, kind, problems, real, depth) for name in ("q", "values")
            )
            k, v = (_buffers.take(name, kind, problems, keys, depth) for name in "kv")
            scores = _buffers.take("scores", kind, problems, real, keys)
            scales = numbers(_buffers.take("scales", torch.float32, problems * real))
            kernels.arrange(
                numbers(qkv),
                first,
                len(qkv) - 1,
                windows,
                real,
                slots,
                parameters.qkv.bias,
                parameters.cos,
                parameters.sin,
                heads,
                depth,
                *map(numbers, (q, k, v)),
            )
            torch.bmm(q, k.transpose(1, 2), out=scores)
            kernels.exponentials(numbers(scores), problems * real, keys, scales)
            torch.bmm(scores, v, out=values)
            shape = windows, real, heads, depth
            kernels.collect(numbers(values), scales, *shape, numbers(out), first)
            first += windows * real
