"""What image tokens do in a two-way transformer, in bfloat16 with the processor's tiles (AMX).

Compiled. Image tokens pass 32 at a time: they attend to what a block's prompt tokens tell, a few
rows (heads x tokens) that the layers' weights are folded into; the sum is normalised; and it is
seen by what the next block's prompt tokens ask. Softmax and norm are float32.

bfloat16 is uint16, parameters are float32 but for products' factors, in order of ``product_tiles``.
Channels are multiples of 32; rows asked and told are rounded up to that, with zeros. Nothing checks
this. Importing this module imports numba; compiling waits for a call.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from anyres.ops import product_tiles, simd_rows, simd_tiles
from anyres.ops.product_tiles import SIDE, TILE, block
from anyres.ops.simd import LANES, Floats, compiled, load, multiply_add, number, splat, store
from anyres.ops.simd_rows import larger, largest, total
from anyres.ops.simd_tiles import (
    coarse_power,
    configure,
    inverse,
    release,
    store_pairs,
    turn,
)

SEEN = 512  # tokens that are seen at a time; their scores stay in the cache
ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(math.log2(math.e))
LEAST = np.float32(-1e30)

_compiled = compiled(__file__, *(str(m.__file__) for m in (product_tiles, simd_rows, simd_tiles)))


class Told(NamedTuple):
    """What image tokens attend to, and the norm after it.

    Attributes:
        weight: (rows, C) in order: scores of a token at its place.
        bias: (rows).
        values: (C, rows) in order.
        heads, each: rows are heads x each.
        norm, norm_bias, eps: of the layer norm.
    """

    weight: Any
    bias: Floats
    values: Any
    heads: int
    each: int
    norm: Floats
    norm_bias: Floats
    eps: float


class Asked(NamedTuple):
    """What looks at image tokens: weight (rows, C) in order and bias (rows)."""

    weight: Any
    bias: Floats


class Space(NamedTuple):
    """A thread's memory, for R rows and C channels.

    Attributes:
        palette: of the tiles.
        placed: (32, C), bfloat16.
        sums: (32, max(C, R)).
        columns: (R, 32).
        attention: (32, R), bfloat16.
        scores: (R, SEEN).
        shares: (R, SEEN), bfloat16.
        pairs: (C / 16, SEEN / 32, 512), bfloat16: tokens as a second factor.
    """

    palette: Any
    placed: Any
    sums: Floats
    columns: Floats
    attention: Any
    scores: Floats
    shares: Any
    pairs: Any


@_compiled
def _score(
    space: Space, channels: int, weight: Any, bias: Floats, columns: Floats, step: int, at: int
) -> None:
    """Scores of 32 placed tokens for all rows, rows ``step`` apart, tokens side by side."""
    placed, sums, count, rows = space.placed, space.sums, channels // SIDE, len(bias)
    for o in range(0, rows, SIDE):
        first = o // LANES * count * TILE
        block(placed, 0, channels, weight, first, first + count * TILE, count, sums, 0, SIDE)
        for half in range(2):
            for side in range(2):
                here = half * LANES * SIDE + side * LANES
                there = (o + side * LANES) * step + at + half * LANES
                turn(sums, here, SIDE, columns, there, step)
        for row in range(o, o + SIDE):
            b = splat(number(bias, row))
            for half in range(2):
                there = row * step + at + half * LANES
                store(columns, there, load(columns, there) + b)


@_compiled
def _hear(image: Any, at: int, some: int, channels: int, told: Told, space: Space) -> None:
    """32 tokens, ``image`` from ``at`` on, hear: rows of ``space.sums``, before the norm."""
    columns, attention, sums, values = space.columns, space.attention, space.sums, told.values
    rows, heads, each = len(told.bias), told.heads, told.each
    _score(space, channels, told.weight, told.bias, columns, SIDE, 0)
    for half in range(0, SIDE, LANES):
        for head in range(heads):
            start = head * each * SIDE + half
            highest = load(columns, start)
            for i in range(1, each):
                highest = larger(load(columns, start + i * SIDE), highest)
            added = splat(ZERO)
            for i in range(each):
                v = coarse_power((load(columns, start + i * SIDE) - highest) * splat(LOG2E))
                store(columns, start + i * SIDE, v)
                added = added + v
            scale = inverse(added)
            for i in range(each):
                store(columns, start + i * SIDE, load(columns, start + i * SIDE) * scale)
        for o in range(0, rows, LANES):
            turn(columns, o * SIDE + half, SIDE, sums, 0, LANES)
            for r in range(LANES):
                store(attention, (half + r) * rows + o, load(sums, r * LANES))
    count = rows // SIDE
    for o in range(0, channels, SIDE):
        first = o // LANES * count * TILE
        second = first + count * TILE
        block(attention, 0, rows, values, first, second, count, sums, o, channels)
    for r in range(some):
        for c in range(0, channels, LANES):
            here = r * channels + c
            store(sums, here, load(sums, here) + load(image, at + here))


@_compiled
def _norm(sums: Floats, some: int, channels: int, told: Told) -> None:
    weight, bias, eps = told.norm, told.norm_bias, np.float32(told.eps)
    share = ONE / np.float32(channels)
    for r in range(some):
        here, added = r * channels, splat(ZERO)
        for c in range(0, channels, LANES):
            added = added + load(sums, here + c)
        mean, squared = splat(total(added) * share), splat(ZERO)
        for c in range(0, channels, LANES):
            v = load(sums, here + c) - mean
            squared = multiply_add(v, v, squared)
        scale = splat(ONE / np.sqrt(total(squared) * share + eps))
        for c in range(0, channels, LANES):
            v = (load(sums, here + c) - mean) * scale
            store(sums, here + c, multiply_add(v, load(weight, c), load(bias, c)))


@_compiled
def _pair(sums: Floats, channels: int, first: int, pairs: Any) -> None:
    """32 tokens as a part of a second factor; ``first`` is the number of the 32."""
    blocks = SEEN // SIDE
    for r in range(0, SIDE, 2):
        for c in range(0, channels, LANES):
            to = (c // LANES * blocks + first) * TILE + r // 2 * SIDE
            x, y = load(sums, r * channels + c), load(sums, (r + 1) * channels + c)
            store_pairs(pairs, to, x, y)


@_compiled
def _see(
    rows: int,
    channels: int,
    some: int,
    space: Space,
    highest: Floats,
    sum_of: Floats,
    values: Floats,
) -> None:
    """Add what is seen of ``some`` tokens, whose scores and pairs are there."""
    scores, shares, pairs, sums = space.scores, space.shares, space.pairs, space.sums
    blocks = (some + SIDE - 1) // SIDE
    for row in range(rows):
        start, top = row * SEEN, splat(LEAST)
        for i in range(some, blocks * SIDE):
            scores[start + i] = LEAST
        for i in range(0, blocks * SIDE, LANES):
            top = larger(load(scores, start + i), top)
        now = max(largest(top), highest[row])
        scale = splat((highest[row] - now) * LOG2E)
        keep = total(coarse_power(scale)) / np.float32(LANES)
        keep = keep if highest[row] > LEAST else ZERO
        highest[row] = now
        added, base = splat(ZERO), splat(now)
        for i in range(0, blocks * SIDE, LANES):
            v = coarse_power((load(scores, start + i) - base) * splat(LOG2E))
            added = added + v
            store(shares, start + i, v)
        sum_of[row] = sum_of[row] * keep + total(added)
        factor = splat(keep)
        for c in range(0, channels, LANES):
            store(values, row * channels + c, load(values, row * channels + c) * factor)
    for first in range(0, rows, SIDE):
        for o in range(0, channels, SIDE):
            at = o // LANES * (SEEN // SIDE) * TILE
            block(
                *(shares, first * SEEN, SEEN, pairs, at, at + SEEN // SIDE * TILE, blocks),
                *(sums, 0, SIDE),
            )
            for r in range(SIDE):
                for c in range(0, SIDE, LANES):
                    here = (first + r) * channels + o + c
                    store(values, here, load(values, here) + load(sums, r * SIDE + c))


@_compiled
def step(
    image: Any,
    places: Any,
    first: int,
    stop: int,
    channels: int,
    hears: bool,
    told: Told,
    asked: Asked,
    space: Space,
    out: Any,
    highest: Floats,
    sum_of: Floats,
    values: Floats,
) -> None:
    """Image tokens from ``first`` up to ``stop`` hear, if they do, and are seen.

    Args:
        image: tokens (.., channels).
        places: what is added where they are compared.
        first: token.
        stop: token.
        channels: of a token.
        hears: whether they attend to ``told``; if not, they stay what they are.
        told: what they attend to.
        asked: what looks at them.
        space: memory.
        out: the new tokens, if they hear.
        highest: the largest score of each row asked, to begin with very low.
        sum_of: of exponentials of the scores, less the largest; 0 to begin with.
        values: of tokens so weighted, (rows, channels); 0 to begin with.
    """
    configure(space.palette)
    placed, sums, pairs = space.placed, space.sums, space.pairs
    rows = len(asked.bias)
    for start in range(first, stop, SEEN):
        seen = min(SEEN, stop - start)
        for t in range(0, seen, SIDE):
            some, at = min(SIDE, seen - t), (start + t) * channels
            if hears:
                for i in range(0, some * channels, LANES):
                    store(placed, i, load(image, at + i) + load(places, at + i))
                for i in range(some * channels, SIDE * channels, LANES):
                    store(placed, i, splat(ZERO))
                _hear(image, at, some, channels, told, space)
                _norm(sums, some, channels, told)
                for i in range(0, some * channels, LANES):
                    store(out, at + i, load(sums, i))
            else:
                for i in range(0, some * channels, LANES):
                    store(sums, i, load(image, at + i))
            for i in range(some * channels, SIDE * channels, LANES):
                store(sums, i, splat(ZERO))
            for i in range(0, some * channels, LANES):
                store(placed, i, load(sums, i) + load(places, at + i))
            _pair(sums, channels, t // SIDE, pairs)
            _score(space, channels, asked.weight, asked.bias, space.scores, SEEN, t)
        _see(rows, channels, seen, space, highest, sum_of, values)
    release()
