"""The innermost loops of the compiled cycle-scan: four states go through a chunk of tokens.

``through`` is as exact as float32. ``through_briefly`` is for models in bfloat16, whose parameters
are known to 1 part in 256 and whose answers are rounded to that: its decays are those of rates
wrong by up to 4 parts in 10,000, which takes half the instructions.

Working memory of a task: for each token of a chunk a row of its steps, inputs and outputs; for each
state a row; for each token its input and output weights, one behind the other. (Planes a little
over 4 KB apart would be slower: a load waits for a store before it whose address has the same
lowest 12 bits.)
"""

from typing import Any

import numpy as np

from anyres.ops.simd import (
    LANES,
    Floats,
    compiled,
    decay,
    is_slight,
    larger,
    load,
    multiply_add,
    slight_decay,
    splat,
    spread,
    store,
)

CHUNK = 64  # tokens between states that are kept; a multiple of LANES
STEP = 4  # states that advance together: their sums wait for each other, those of others do not
DELTA, X, Y, ROW = (LANES * i for i in range(4))
STATES = ROW * CHUNK

ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(1.4426950408889634)
# 2**f = 1 + f (B0 + B1 f + B2 f**2) for -1 <= f <= 0: f wrong by a factor of 1 +- 3.9e-4.
B0, B1, B2 = np.float32(0.69287774), np.float32(0.2355956), np.float32(0.04291221)
QUARTER, SIXTEENTH = np.float32(1 / 4), np.float32(1 / 16)
# log(1 + z) = z p(z) for 0 <= z <= 1, to 8.4e-6 of it.
L0, L1, L2 = np.float32(0.9999916), np.float32(-0.49936136), np.float32(0.32520666)
L3, L4, L5 = np.float32(-0.21004864), np.float32(0.10122223), np.float32(-0.02386913)

_compiled = compiled(__file__)


@_compiled
def brief_softplus(x: Any) -> Any:
    """log(1 + exp(x)), to 1e-5 of it down to 2**-64; of any value. Without a division."""
    small = decay(splat(ZERO) - larger(x, splat(ZERO) - x), splat(LOG2E))
    series = multiply_add(splat(L5), small, splat(L4))
    series = multiply_add(series, small, splat(L3))
    series = multiply_add(series, small, splat(L2))
    series = multiply_add(series, small, splat(L1))
    series = multiply_add(series, small, splat(L0))
    return multiply_add(series, small, larger(splat(ZERO), x))


@_compiled
def load4(array: Floats, at: int) -> Any:
    """Four vectors from an index on."""
    return (
        load(array, at),
        load(array, at + LANES),
        load(array, at + 2 * LANES),
        load(array, at + 3 * LANES),
    )


@_compiled
def store4(array: Floats, at: int, values: Any) -> None:
    """Put four vectors from an index on."""
    store(array, at, values[0])
    store(array, at + LANES, values[1])
    store(array, at + 2 * LANES, values[2])
    store(array, at + 3 * LANES, values[3])


@_compiled
def _are_slight(most: Any, rates: Any) -> bool:
    few: bool = is_slight(most, rates[0]) and is_slight(most, rates[1])
    return few and is_slight(most, rates[2]) and is_slight(most, rates[3])


@_compiled
def _advance(work: Floats, t: int, b: int, width: int, e: Any, h: Any) -> Any:
    """Four states after token t, from those before it and their decays; adds to its outputs."""
    x, y, c = load(work, t * ROW + X), load(work, t * ROW + Y), b + width
    h0 = multiply_add(e[0], h[0], x * spread(work, b))
    h1 = multiply_add(e[1], h[1], x * spread(work, b + 1))
    h2 = multiply_add(e[2], h[2], x * spread(work, b + 2))
    h3 = multiply_add(e[3], h[3], x * spread(work, b + 3))
    y = multiply_add(spread(work, c), h0, y)
    y = multiply_add(spread(work, c + 1), h1, y)
    y = multiply_add(spread(work, c + 2), h2, y)
    store(work, t * ROW + Y, multiply_add(spread(work, c + 3), h3, y))
    return h0, h1, h2, h3


@_compiled
def through(work: Floats, rows: int, at: int, b: int, width: int, rates: Any, most: Any) -> None:
    """Take four states through a chunk and add their part of the outputs.

    Args:
        work: the task's memory.
        rows: tokens in the chunk.
        at: of the first state in ``work``.
        b: of the first token's first input weight.
        width: numbers from an input weight to its output weight.
        rates: of the four.
        most: the largest step in the chunk, of each channel.
    """
    r0, r1, r2, r3 = rates
    h = load4(work, at)
    if _are_slight(most, rates):
        for t in range(rows):
            d = load(work, t * ROW + DELTA)
            e = slight_decay(d, r0), slight_decay(d, r1), slight_decay(d, r2), slight_decay(d, r3)
            h = _advance(work, t, b + t * 2 * width, width, e, h)
    else:
        for t in range(rows):
            d = load(work, t * ROW + DELTA)
            e = decay(d, r0), decay(d, r1), decay(d, r2), decay(d, r3)
            h = _advance(work, t, b + t * 2 * width, width, e, h)
    store4(work, at, h)


@_compiled
def _factors(rate: Any) -> Any:
    """Of the brief decay as a polynomial of the step."""
    square = rate * rate
    return rate * splat(B0), square * splat(B1), square * rate * splat(B2)


@_compiled
def _brief_decay(d: Any, factors: Any) -> Any:
    """2 ** (d * rate) for products from -1 to 0."""
    e = multiply_add(factors[2], d, factors[1])
    e = multiply_add(e, d, factors[0])
    return multiply_add(e, d, splat(ONE))


@_compiled
def _brief_decays(d: Any, p0: Any, p1: Any, p2: Any, p3: Any) -> Any:
    return _brief_decay(d, p0), _brief_decay(d, p1), _brief_decay(d, p2), _brief_decay(d, p3)


@_compiled
def _fourth_powers(e: Any) -> Any:
    s0, s1, s2, s3 = e[0] * e[0], e[1] * e[1], e[2] * e[2], e[3] * e[3]
    return s0 * s0, s1 * s1, s2 * s2, s3 * s3


@_compiled
def through_briefly(
    work: Floats, rows: int, at: int, b: int, width: int, rates: Any, most: Any
) -> None:
    """As ``through``, with brief decays: at once, as a 4th or as a 16th power.

    Steps so large that none of them does are left to ``through``.
    """
    # What the 4th and 16th root have in their place must not underflow when it is raised again.
    one = _are_slight(most, rates)
    four = one or _are_slight(most * splat(QUARTER), rates)
    if not four and not _are_slight(most * splat(SIXTEENTH), rates):
        through(work, rows, at, b, width, rates, most)
        return
    scale = splat(ONE if one else (QUARTER if four else SIXTEENTH))
    p0, p1 = _factors(rates[0] * scale), _factors(rates[1] * scale)
    p2, p3 = _factors(rates[2] * scale), _factors(rates[3] * scale)
    h = load4(work, at)
    if one:
        for t in range(rows):
            e = _brief_decays(load(work, t * ROW + DELTA), p0, p1, p2, p3)
            h = _advance(work, t, b + t * 2 * width, width, e, h)
    elif four:
        for t in range(rows):
            e = _fourth_powers(_brief_decays(load(work, t * ROW + DELTA), p0, p1, p2, p3))
            h = _advance(work, t, b + t * 2 * width, width, e, h)
    else:
        for t in range(rows):
            e = _brief_decays(load(work, t * ROW + DELTA), p0, p1, p2, p3)
            h = _advance(work, t, b + t * 2 * width, width, _fourth_powers(_fourth_powers(e)), h)
    store4(work, at, h)
