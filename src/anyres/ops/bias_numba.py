"""What attention with a bias does between its matrix products, compiled: one pass over it each.

Windows of any size: rows of scores, keys and values are filled up to ``keys``, a multiple of 16, by
keys that nothing attends to. Slots of a window are in raster order. Numbers are float32, or
bfloat16 as uint16; whatever is computed is so in float32. Channels of a head are a multiple of 16.
Nothing checks this.

Importing this module imports numba; compiling waits for a call.
"""

import math
from typing import Any

import numpy as np

from anyres.ops import simd_rows
from anyres.ops.simd import LANES, Floats, compiled, decay, load, multiply_add, splat, store
from anyres.ops.simd_rows import larger, largest, put_number, total, unless_nan

ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(math.log2(math.e))
NEVER = np.float32(-np.inf)

_compiled = compiled(__file__, simd_rows.__file__)


@_compiled
def table(biases: Floats, heads: int, side: int, keys: int, out: Any) -> None:
    """Biases by distance (heads, side rows, side columns) as those of pairs of slots.

    ``out`` is (heads, side * side, keys).
    """
    slots = side * side
    for head in range(heads):
        for y in range(side):
            for x in range(side):
                to = ((head * side + y) * side + x) * keys
                for j in range(side):
                    at = (head * side + abs(y - j)) * side
                    for i in range(side):
                        put_number(out, to + j * side + i, biases[at + abs(x - i)])
                for key in range(slots, keys):
                    put_number(out, to + key, NEVER)


@_compiled
def _put(qkv: Any, at: int, bias: Floats, first: int, out: Any, to: int, depth: int) -> None:
    for i in range(0, depth, LANES):
        store(out, to + i, load(qkv, at + i) + load(bias, first + i))


@_compiled
def arrange(
    qkv: Any,
    first: int,
    padding: int,
    windows: int,
    real: int,
    slots: Any,
    keys: int,
    bias: Floats,
    heads: int,
    depth: int,
    q: Any,
    k: Any,
    v: Any,
) -> None:
    """Add the bias, and put each head of a window together.

    ``qkv`` has rows of (heads, 3, depth): those of the windows from ``first`` on, ``real`` of each,
    and one of ``padding``. ``slots`` are places in a window, those of the real tokens first. It
    fills ``q`` (windows, heads, real, depth), ``k`` and ``v`` (windows, heads, keys, depth).
    """
    width = 3 * heads * depth
    for n in range(windows):
        for j in range(len(slots)):
            row = (first + n * real + j if j < real else padding) * width
            for head in range(heads):
                of = head * 3 * depth
                if j < real:
                    to = ((n * heads + head) * real + j) * depth
                    _put(qkv, row + of, bias, of, q, to, depth)
                to = ((n * heads + head) * keys + slots[j]) * depth
                _put(qkv, row + of + depth, bias, of + depth, k, to, depth)
                _put(qkv, row + of + 2 * depth, bias, of + 2 * depth, v, to, depth)
        for head in range(heads):
            for key in range(len(slots), keys):
                to = ((n * heads + head) * keys + key) * depth
                for i in range(0, depth, LANES):
                    store(k, to + i, splat(ZERO))
                    store(v, to + i, splat(ZERO))


@_compiled
def exponentials(
    scores: Any,
    windows: int,
    heads: int,
    real: int,
    slots: Any,
    keys: int,
    scale: float,
    biases: Any,
    scales: Floats,
) -> None:
    """Each row's exp(score - largest) in place, and what scales it to a sum of 1.

    A score is what the product gave, times ``scale``, plus its bias of ``table``.
    """
    log2e, factor = splat(LOG2E), splat(np.float32(scale))
    for problem in range(windows * heads):
        of_head = problem % heads * len(slots)
        for j in range(real):
            row = problem * real + j
            at, bias = row * keys, (of_head + slots[j]) * keys
            top = multiply_add(load(scores, at), factor, load(biases, bias))
            for key in range(LANES, keys, LANES):
                score = multiply_add(load(scores, at + key), factor, load(biases, bias + key))
                top = larger(score, top)
            most = splat(largest(top))
            passed = splat(ZERO)
            for key in range(0, keys, LANES):
                score = multiply_add(load(scores, at + key), factor, load(biases, bias + key))
                off = score - most
                power = unless_nan(decay(off, log2e), off)
                store(scores, at + key, power)
                passed = passed + power
            scales[row] = ONE / total(passed)


@_compiled
def add_places(tokens: Any, places: Any, y: Any, bias: Floats, out: Any, width: int) -> None:
    """Add ``y`` and its bias to the tokens of a group, each into its own place."""
    for row in range(len(places)):
        at = places[row] * width
        for i in range(0, width, LANES):
            store(out, at + i, load(tokens, at + i) + (load(y, row * width + i) + load(bias, i)))


@_compiled
def add_rows(x: Any, y: Any, bias: Floats, rows: int, width: int, out: Any, to: int) -> None:
    """Add rows of ``x``, ``y`` and a bias, to ``out`` from index ``to`` on."""
    for row in range(0, rows * width, width):
        for i in range(0, width, LANES):
            added = load(y, row + i) + load(bias, i)
            store(out, to + row + i, load(x, row + i) + added)
