"""A window block on a CPU without gradients: torch multiplies, compiled kernels do the rest.

A group of windows goes through the whole block on one thread (``ops.threads``). Its tokens lie
window by window, so queries, keys and values need no more than one pass between the products, and
each pass does all that there is to do: ``block_numba``. What is in between stays in buffers that a
thread keeps from call to call: fresh memory of this size would cost more than what is put there.

Shapes: B pictures, (h, w) token grid, C channels, H heads, D channels of a head; m real tokens and
K slots of a window.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from math import prod
from threading import local
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from anyres.ops import block_numba as kernels
from anyres.ops.threads import share
from anyres.ops.windows import Group, Span, WindowPlan

# Bytes of queries, keys, values and scores that are made at a time: what a core's cache holds. In
# half of that a batched product of few heads would have too few problems to be quick.
_ATTENDED = 1 << 21
_SPACES = 64  # sizes that a thread remembers; pictures of one size have about ten


class Linear(NamedTuple):
    """A product's weight (inner, outer) and its bias in float32."""

    weight: Tensor
    bias: Any


class Norm(NamedTuple):
    """A layer norm's parameters in float32."""

    gain: Any
    shift: Any
    eps: float

    @classmethod
    def of(cls, layer: nn.LayerNorm) -> "Norm":
        """A layer's."""
        return cls(numbers(layer.weight.float()), numbers(layer.bias.float()), layer.eps)


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


class Piece(NamedTuple):
    """A map that goes through a block, in windows of its own."""

    tokens: Tensor  # (B, h, w, C), float32 or bfloat16, like the parameters; contiguous
    plan: WindowPlan
    most: int  # tokens of a picture in a group, if more than a window's
    out: Tensor  # for the answer; the tokens themselves are allowed


class Layout(NamedTuple):
    """Where a group's tokens are, window by window."""

    places: Any  # in (B * h * w)
    parts: tuple["Windows", ...]


class Windows(NamedTuple):
    """Windows of a group with real tokens at the same slots."""

    windows: int
    real: int
    slots: Any  # (K,): first those of the real tokens, then those of the padding


class _Sizes(NamedTuple):
    """Sizes of a layout and a block: what a thread needs to work on them."""

    kind: torch.dtype
    width: int
    heads: int
    hidden: int
    windows: tuple[tuple[int, int, int], ...]  # count, real tokens and slots, in the layout's order


class _Problems(NamedTuple):
    """Windows that attend at a time, H heads of each a problem."""

    part: int
    start: int  # row of their first token
    windows: int
    real: int
    q: Tensor
    k: Tensor  # transposed
    v: Tensor
    scores: Tensor
    values: Tensor
    arrays: tuple[Any, ...]  # q, k, v, scores and values again, and the scales


class _Space:
    """Where a thread puts what is between the products, made for some sizes.

    Tensors and, as ``numbers``, the same memory for the kernels: to make these each time would take
    as long as a kernel, and only one thread at a time could do it.
    """

    def __init__(self, take: Callable[..., Tensor], sizes: _Sizes) -> None:
        kind, width, heads, hidden, parts = sizes
        count = sum(windows * real for windows, real, _ in parts)
        wide = take("wide", kind, (count + 1) * max(3 * width, hidden))
        self.rows = take("rows", kind, count + 1, width)
        self.qkv = wide[: (count + 1) * 3 * width].view(count + 1, -1)
        self.inner = wide[: count * hidden].view(count, -1)
        self.tokens, self.padding = self.rows[:count], self.rows[count]
        self.y, summed = (take(name, kind, count, width) for name in ("y", "summed"))
        self.wide, self.normed, self.of_y, self.summed = map(
            numbers, (wide, self.rows, self.y, summed)
        )
        self.problems: list[_Problems] = []
        start = 0
        for i, (windows, real, slots) in enumerate(parts):
            depth = width // heads
            each = heads * (real * slots + 2 * (real + slots) * depth) * kind.itemsize
            most = max(1, _ATTENDED // each)
            for first in range(0, windows, most):
                some = min(most, windows - first)
                n = some * heads
                q, values = (take(name, kind, n, real, depth) for name in ("q", "values"))
                k, v = (take(name, kind, n, slots, depth) for name in "kv")
                scores = take("scores", kind, n, real, slots)
                scales = take("scales", torch.float32, n * real)
                arrays = tuple(map(numbers, (q, k, v, scores, values, scales)))
                self.problems.append(
                    _Problems(i, start, some, real, q, k.transpose(1, 2), v, scores, values, arrays)
                )
                start += some * real


class _Thread(local):
    """What a thread keeps: memory, which grows and stays, and spaces in it."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.spaces: dict[_Sizes, _Space] = {}

    def space(self, sizes: _Sizes) -> _Space:
        if sizes not in self.spaces:
            if len(self.spaces) == _SPACES:
                self.spaces.clear()
            self.spaces[sizes] = _Space(self._take, sizes)
        return self.spaces[sizes]

    def _take(self, name: str, kind: torch.dtype, *shape: int) -> Tensor:
        """The beginning of a buffer, with whatever is in it."""
        size = prod(shape)
        buffer = self.buffers.get((name, kind))
        if buffer is None or len(buffer) < size:
            self.spaces.clear()  # they would keep what it replaces
            with torch.inference_mode(False):  # else only inference may write into it
                buffer = torch.empty(size, dtype=kind)
            self.buffers[name, kind] = buffer
        return buffer[:size].view(shape)


_thread = _Thread()


def numbers(x: Tensor) -> Any:
    """The tensor's own memory as the kernels want it."""
    flat = x.detach().view(-1)
    return (flat.view(torch.uint16) if x.dtype == torch.bfloat16 else flat).numpy()


def run_block(pieces: Iterable[Piece], parameters: Parameters) -> None:
    """The whole block, for all pieces; windows of different ones do not know of each other."""

    def run(turn: tuple[Layout, Any, Any, torch.dtype]) -> None:
        layout, tokens, out, kind = turn
        _run_group(layout, parameters, kind, tokens, out)

    share(
        run,
        [
            (layout, numbers(x), numbers(out), x.dtype)
            for x, plan, most, out in pieces
            for layout in layouts(plan, len(x), most)
        ],
    )


@lru_cache(maxsize=8)
def layouts(plan: WindowPlan, batch: int, most: int) -> tuple[Layout, ...]:
    """Of the groups of a plan."""
    height, width = plan.grid_hw
    places = np.arange(batch * height * width).reshape(batch, height, width)
    return tuple(_layout(places, plan.window, group) for group in plan.groups(most))


def _layout(places_Bhw: Any, window: int, group: Group) -> Layout:
    here, parts = [], []
    slots = np.arange(window**2).reshape(window, window)
    for columns in group.columns:
        spans = (group.rows, columns)
        cut = places_Bhw[:, *(slice(span.start, span.stop) for span in spans)]
        split = cut.reshape(len(cut), *(n for s in spans for n in (s.windows, s.size)))
        here.append(split.transpose(0, 1, 3, 2, 4).ravel())
        parts.append(_windows(spans, len(cut), slots))
    return Layout(np.concatenate(here), tuple(parts))


def _windows(spans: Iterable[Span], batch: int, slots: Any) -> Windows:
    rows, columns = spans
    inside = slots[
        rows.offset : rows.offset + rows.size, columns.offset : columns.offset + columns.size
    ].ravel()
    padding = np.setdiff1d(slots.ravel(), inside)
    count = batch * rows.windows * columns.windows
    return Windows(count, inside.size, np.concatenate([inside, padding]))


def _run_group(
    layout: Layout, parameters: Parameters, kind: torch.dtype, tokens: Any, out: Any
) -> None:
    places, count = layout.places, len(layout.places)
    width, hidden = parameters.padding.shape[1], parameters.fc1.weight.shape[1]
    windows = tuple((part.windows, part.real, len(part.slots)) for part in layout.parts)
    space = _thread.space(_Sizes(kind, width, parameters.heads, hidden, windows))
    first, second = parameters.norms

    kernels.norm(tokens, places, space.normed, *first, width)
    space.padding.copy_(parameters.padding[0])
    torch.mm(space.rows, parameters.qkv.weight, out=space.qkv)
    for problems in space.problems:
        _attend(problems, layout.parts[problems.part].slots, parameters, space)
    torch.mm(space.tokens, parameters.proj.weight, out=space.y)
    bias, y, summed = parameters.proj.bias, space.of_y, space.summed
    kernels.add_norm(tokens, places, y, bias, summed, space.normed, *second, width)
    torch.mm(space.tokens, parameters.fc1.weight, out=space.inner)
    kernels.gelu(space.wide, count, parameters.fc1.bias, hidden)
    torch.mm(space.inner, parameters.fc2.weight, out=space.y)
    kernels.add_out(summed, y, parameters.fc2.bias, places, out, width)


def _attend(problems: _Problems, slots: Any, parameters: Parameters, space: _Space) -> None:
    """Attend within some windows: from rows of the projection to rows of answers."""
    _, start, windows, real, *tensors, (q, k, v, scores, values, scales) = problems
    of_q, of_k, of_v, of_scores, of_values = tensors
    heads, depth = parameters.heads, of_q.shape[2]
    cos, sin, bias = parameters.cos, parameters.sin, parameters.qkv.bias
    places = start, len(space.tokens), windows, real
    kernels.arrange(space.wide, *places, slots, bias, cos, sin, heads, depth, q, k, v)
    torch.bmm(of_q, of_k, out=of_scores)
    kernels.exponentials(scores, windows * heads * real, len(slots), scales)
    torch.bmm(of_scores, of_v, out=of_values)
    kernels.collect(values, scales, windows, real, heads, depth, space.normed, start)
