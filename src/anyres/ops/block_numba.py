"""What a window block does between its matrix products, compiled: one pass over the data each.

Tokens of a group lie in rows, window by window; ``places`` says where in the picture each of them
is. Numbers are float32, or bfloat16 as uint16; whatever is computed is so in float32. Parameters
are float32. Channels and keys are multiples of 16, those of a head of 32. Nothing checks this.

Importing this module imports numba; compiling waits for a call.
"""

import math
from typing import Any

import numpy as np

from anyres.ops import simd_rows
from anyres.ops.simd import LANES, Floats, compiled, decay, load, splat, store
from anyres.ops.simd_rows import firsts, larger, largest, normal, seconds, total, unless_nan

PAIRS = 2 * LANES
ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(math.log2(math.e))

_compiled = compiled(__file__, simd_rows.__file__)


@_compiled
def _norm_row(
    x: Any, at: int, out: Any, to: int, gain: Floats, shift: Floats, eps: float, width: int
) -> None:
    """Layer norm of one row."""
    passed = splat(ZERO)
    for i in range(0, width, LANES):
        passed = passed + load(x, at + i)
    mean = splat(total(passed) / np.float32(width))
    passed = splat(ZERO)
    for i in range(0, width, LANES):
        off = load(x, at + i) - mean
        passed = off * off + passed
    scale = splat(ONE / math.sqrt(total(passed) / np.float32(width) + np.float32(eps)))
    for i in range(0, width, LANES):
        off = (load(x, at + i) - mean) * scale
        store(out, to + i, off * load(gain, i) + load(shift, i))


@_compiled
def norm(
    tokens: Any, places: Any, out: Any, gain: Floats, shift: Floats, eps: float, width: int
) -> None:
    """Fetch the tokens of a group and norm them."""
    for row in range(len(places)):
        _norm_row(tokens, places[row] * width, out, row * width, gain, shift, eps, width)


@_compiled
def add_norm(
    tokens: Any,
    places: Any,
    y: Any,
    bias: Floats,
    summed: Any,
    out: Any,
    gain: Floats,
    shift: Floats,
    eps: float,
    width: int,
) -> None:
    """Fetch the tokens, add ``y`` and its bias, keep the sum and norm it."""
    for row in range(len(places)):
        at, to = places[row] * width, row * width
        for i in range(0, width, LANES):
            store(summed, to + i, load(tokens, at + i) + (load(y, to + i) + load(bias, i)))
        _norm_row(summed, to, out, to, gain, shift, eps, width)


@_compiled
def add_out(summed: Any, y: Any, bias: Floats, places: Any, out: Any, width: int) -> None:
    """Add ``y`` and its bias to the sum, and put the tokens in their places."""
    for row in range(len(places)):
        at, to = row * width, places[row] * width
        for i in range(0, width, LANES):
            store(out, to + i, load(summed, at + i) + (load(y, at + i) + load(bias, i)))


@_compiled
def arrange(
    qkv: Any,
    first: int,
    padding: int,
    windows: int,
    real: int,
    slots: Any,
    bias: Floats,
    cos: Floats,
    sin: Floats,
    heads: int,
    depth: int,
    q: Any,
    k: Any,
    v: Any,
) -> None:
    """Add the bias, turn queries and keys, and put each head of a window together.

    ``qkv`` has rows of 3 * heads * depth: those of the windows from ``first`` on, ``real`` of each,
    and one of ``padding``. ``slots`` are the keys' places in a window, those of the real tokens
    first. ``cos`` and ``sin`` are (slots, depth / 2), for pairs of neighbouring channels. It fills
    ``q`` (windows, heads, real, depth), scaled, ``k`` and ``v`` (windows, heads, keys, depth). Of
    32 channels q and k have the first of all pairs, then the second: no dot product notices.
    """
    width, keys = heads * depth, len(slots)
    scale = splat(ONE / math.sqrt(np.float32(depth)))
    for n in range(windows):
        for j in range(keys):
            row = first + n * real + j if j < real else padding
            angle = slots[j] * (depth // 2)
            for head in range(heads):
                column = head * depth
                at = row * 3 * width + column
                to = ((n * heads + head) * keys + j) * depth
                q_to = ((n * heads + head) * real + j) * depth
                for i in range(0, depth, PAIRS):
                    c, s = load(cos, angle + i // 2), load(sin, angle + i // 2)
                    if j < real:
                        x = firsts(qkv, at + i) + firsts(bias, column + i)
                        y = seconds(qkv, at + i) + seconds(bias, column + i)
                        store(q, q_to + i, (x * c + y * s) * scale)
                        store(q, q_to + i + LANES, (y * c - x * s) * scale)
                    x = firsts(qkv, at + width + i) + firsts(bias, width + column + i)
                    y = seconds(qkv, at + width + i) + seconds(bias, width + column + i)
                    store(k, to + i, x * c + y * s)
                    store(k, to + i + LANES, y * c - x * s)
                for i in range(0, depth, LANES):
                    x = load(qkv, at + 2 * width + i) + load(bias, 2 * width + column + i)
                    store(v, to + i, x)


@_compiled
def exponentials(scores: Any, rows: int, keys: int, scales: Floats) -> None:
    """Each row's exp(score - largest) in place, and what scales it to a sum of 1."""
    log2e = splat(LOG2E)
    for row in range(rows):
        at = row * keys
        top = load(scores, at)
        for j in range(LANES, keys, LANES):
            top = larger(load(scores, at + j), top)
        most = splat(largest(top))
        passed = splat(ZERO)
        for j in range(0, keys, LANES):
            off = load(scores, at + j) - most
            power = unless_nan(decay(off, log2e), off)
            store(scores, at + j, power)
            passed = passed + power
        scales[row] = ONE / total(passed)


@_compiled
def collect(
    values: Any, scales: Floats, windows: int, real: int, heads: int, depth: int, out: Any, to: int
) -> None:
    """Scale (windows, heads, real, depth) and put it into rows from ``to`` on, heads together."""
    for n in range(windows):
        for head in range(heads):
            for j in range(real):
                row = (n * heads + head) * real + j
                scale = splat(scales[row])
                place = ((to + n * real + j) * heads + head) * depth
                for i in range(0, depth, LANES):
                    store(out, place + i, load(values, row * depth + i) * scale)


@_compiled
def gelu(x: Any, rows: int, bias: Floats, width: int) -> None:
    """Add the bias and apply the exact GELU in place."""
    for row in range(rows):
        for i in range(0, width, LANES):
            number = load(x, row * width + i) + load(bias, i)
            store(x, row * width + i, number * normal(number))
