"""A window block in bfloat16 on a CPU with AMX: one compiled call for each group of windows.

What runs on each of ``ops.threads`` is ``block_tiles.run``: products, norms, rotation, softmax and
GELU without a return to Python, so threads need not wait for each other in between. Weights are
used as they lie: nothing is kept that could go stale.
"""

from collections.abc import Iterable
from functools import lru_cache
from threading import local
from typing import Any

import numpy as np
import torch

from anyres.ops import block_cpu, block_tiles
from anyres.ops.block_columns import Layout, Linear, Memory, Norm, Parameters, Sizes
from anyres.ops.block_cpu import numbers
from anyres.ops.product_tiles import SIDE
from anyres.ops.simd import LANES
from anyres.ops.simd_tiles import PALETTE
from anyres.ops.threads import share
from anyres.ops.windows import WindowPlan


def run_block(pieces: Iterable[block_cpu.Piece], parameters: block_cpu.Parameters) -> None:
    """As ``block_cpu.run_block``, in bfloat16."""
    hidden, width = parameters.fc2.weight.shape
    of = _ready(parameters)
    turns = [
        (layout, Sizes(width, hidden, parameters.heads, plan.window**2), numbers(x), numbers(out))
        for x, plan, most, out in pieces
        for layout in _columns(plan, len(x), most)
    ]

    def run(turn: tuple[Layout, Sizes, Any, Any]) -> None:
        layout, sizes, tokens, out = turn
        block_tiles.run(tokens, layout, of, _thread.memory(layout, sizes), sizes, PALETTE, out)

    share(run, turns)


def _ready(parameters: block_cpu.Parameters) -> Parameters:
    _, padding, cos, sin, (first, second), qkv, *others = parameters
    layers = [
        Linear(numbers(layer.weight.t().contiguous()), layer.bias) for layer in (qkv, *others)
    ]
    # Not by torch: its threads would wait for more, spinning where ours are to run.
    projected = torch.empty(len(qkv.bias))
    block_tiles.project_padding(numbers(padding), layers[0], numbers(projected))
    projected = projected.bfloat16()
    arrays = numbers(projected), numbers(projected.float()), cos, sin
    return Parameters(*arrays, _norm(first), _norm(second), *layers)


def _norm(norm: block_cpu.Norm) -> Norm:
    return Norm(norm.gain, norm.shift, np.float32(norm.eps))


@lru_cache(maxsize=8)
def _columns(plan: WindowPlan, batch: int, most: int) -> tuple[Layout, ...]:
    return tuple(_in_columns(layout) for layout in block_cpu.layouts(plan, batch, most))


def _in_columns(layout: block_cpu.Layout) -> Layout:
    """Each window from a multiple of 32 on, filled up by its first token."""
    places: list[Any] = []
    windows: list[tuple[int, ...]] = []
    blocks: list[tuple[int, ...]] = []
    start = 0
    for part, (count, real, _) in enumerate(layout.parts):
        fill = -real % SIDE
        for _ in range(count):
            here = layout.places[start : start + real]
            begin = SIDE * len(blocks)
            windows.append((begin, begin + real + fill, real, part))
            blocks += [(len(windows) - 1, key, part) for key in range(0, real, SIDE)]
            places += [here, np.full(fill, -1 - here[0])]
            start += real
    slots = np.stack([part.slots for part in layout.parts])
    return Layout(np.concatenate(places), np.array(windows), np.array(blocks), slots)


class _Thread(local):
    """What a thread keeps: memory for the sizes it saw last, which grows and stays."""

    def __init__(self) -> None:
        self._sizes: Sizes | None = None
        self._room = (0, 0, 0)  # columns, windows, parts
        self._memory: Memory

    def memory(self, layout: Layout, sizes: Sizes) -> Memory:
        needed = len(layout.places), len(layout.windows), len(layout.slots)
        if sizes != self._sizes:
            self._sizes, self._room = sizes, (0, 0, 0)
        if any(n > room for n, room in zip(needed, self._room, strict=True)):
            self._room = tuple(map(max, needed, self._room))  # type: ignore[assignment]
            self._memory = _memory(*self._room, sizes)
        return self._memory


_thread = _Thread()


def _memory(columns: int, windows: int, parts: int, sizes: Sizes) -> Memory:
    width, hidden, heads, slots = sizes
    angles = parts * width // heads // 2 * slots
    pairs = (
        *[columns * width] * 3,
        *[windows * slots * width] * 2,
        block_tiles.panel(hidden) * hidden,
        SIDE * slots,
        SIDE * LANES,
    )
    floats = max(slots, SIDE) * SIDE, SIDE, angles, angles
    # torch begins at a cache line, numpy need not.
    return Memory(
        *(numbers(torch.empty(size, dtype=torch.bfloat16)) for size in pairs),
        *(numbers(torch.empty(size)) for size in floats),
    )
