"""What image tokens do in a two-way transformer, in bfloat16 with the processor's tiles (AMX).

Compiled. Image tokens pass 32 at a time: they attend to a block's prompt tokens, of which keys and
values are a few rows (heads x tokens) with the layers' weights folded in; the sum is normalised;
and the next block's queries, folded likewise, attend to it. Softmax and norm are float32.

bfloat16 is uint16, parameters are float32 but for products' factors, in order of ``product_tiles``.
Channels are multiples of 32; rows are rounded up to that, with zeros. Nothing checks this.
Importing this module imports numba; compiling waits for a call.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from anyres.ops import pieces, product_tiles, simd_rows, simd_tiles
from anyres.ops.pieces import finish, take, wait
from anyres.ops.product_tiles import (
    SIDE,
    TILE,
    order_across,
    order_rounded,
    rounded_up,
    tile_product,
)
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

BLOCK = 512  # tokens that queries attend to at a time; their scores stay in the cache
ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(math.log2(math.e))
LEAST = np.float32(-1e30)

_sources = (pieces, product_tiles, simd_rows, simd_tiles)
_compiled = compiled(__file__, *(str(m.__file__) for m in _sources))


class KeysValues(NamedTuple):
    """What image tokens attend to, and the norm after it.

    Attributes:
        weight: (rows, C): scores of a token at its place; within in order.
        bias: (rows).
        values: (rows, C); within (C, rows) in order.
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


class Queries(NamedTuple):
    """Queries to image tokens: weight (rows, C), within in order, and bias (rows)."""

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
        scores: (R, BLOCK).
        shares: (R, BLOCK), bfloat16.
        pairs: (C / 16, BLOCK / 32, 512), bfloat16: tokens as a second factor.
        rounded, ordered, biases: (R, C) bfloat16, three of it, and two of R.
    """

    palette: Any
    placed: Any
    sums: Floats
    columns: Floats
    attention: Any
    scores: Floats
    shares: Any
    pairs: Any
    rounded: Any
    ordered: Any
    biases: Floats


@_compiled
def _score(
    space: Space, channels: int, weight: Any, bias: Floats, columns: Floats, step: int, at: int
) -> None:
    """Scores of 32 placed tokens for all rows, rows ``step`` apart, tokens side by side."""
    placed, sums, count, rows = space.placed, space.sums, channels // SIDE, len(bias)
    for o in range(0, rows, SIDE):
        first = o // LANES * count * TILE
        tile_product(
            placed, 0, channels, SIDE, weight, first, first + count * TILE, count, sums, 0, SIDE
        )
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
def _attend(
    image: Any, at: int, some: int, channels: int, keys_values: KeysValues, space: Space
) -> None:
    """32 tokens, ``image`` from ``at`` on, attend to prompt tokens: ``space.sums``, not normed."""
    columns, attention, sums, values = (
        space.columns,
        space.attention,
        space.sums,
        keys_values.values,
    )
    rows, heads, each = len(keys_values.bias), keys_values.heads, keys_values.each
    _score(space, channels, keys_values.weight, keys_values.bias, columns, SIDE, 0)
    for half in range(0, SIDE, LANES):
        for head in range(heads):
            start = head * each * SIDE + half
            maximum = load(columns, start)
            for i in range(1, each):
                maximum = larger(load(columns, start + i * SIDE), maximum)
            added = splat(ZERO)
            for i in range(each):
                v = coarse_power((load(columns, start + i * SIDE) - maximum) * splat(LOG2E))
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
        tile_product(attention, 0, rows, SIDE, values, first, second, count, sums, o, channels)
    for r in range(some):
        for c in range(0, channels, LANES):
            here = r * channels + c
            store(sums, here, load(sums, here) + load(image, at + here))


@_compiled
def _norm(sums: Floats, some: int, channels: int, keys_values: KeysValues) -> None:
    weight, bias, eps = keys_values.norm, keys_values.norm_bias, np.float32(keys_values.eps)
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
    blocks = BLOCK // SIDE
    for r in range(0, SIDE, 2):
        for c in range(0, channels, LANES):
            to = (c // LANES * blocks + first) * TILE + r // 2 * SIDE
            x, y = load(sums, r * channels + c), load(sums, (r + 1) * channels + c)
            store_pairs(pairs, to, x, y)


@_compiled
def _accumulate(
    rows: int,
    channels: int,
    some: int,
    space: Space,
    maximum: Floats,
    sum_of: Floats,
    values: Floats,
) -> None:
    """Attend to ``some`` tokens, whose scores and pairs are there."""
    scores, shares, pairs, sums = space.scores, space.shares, space.pairs, space.sums
    blocks = (some + SIDE - 1) // SIDE
    for row in range(rows):
        start, top = row * BLOCK, splat(LEAST)
        for i in range(some, blocks * SIDE):
            scores[start + i] = LEAST
        for i in range(0, blocks * SIDE, LANES):
            top = larger(load(scores, start + i), top)
        now = max(largest(top), maximum[row])
        scale = splat((maximum[row] - now) * LOG2E)
        keep = total(coarse_power(scale)) / np.float32(LANES)
        keep = keep if maximum[row] > LEAST else ZERO
        maximum[row] = now
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
            at = o // LANES * (BLOCK // SIDE) * TILE
            tile_product(
                *(shares, first * BLOCK, BLOCK, SIDE, pairs, at, at + BLOCK // SIDE * TILE, blocks),
                *(sums, 0, SIDE),
            )
            for r in range(SIDE):
                for c in range(0, SIDE, LANES):
                    here = (first + r) * channels + o + c
                    store(values, here, load(values, here) + load(sums, r * SIDE + c))


@_compiled
def _in_order(given: Queries, channels: int, space: Space, at: int, place: int) -> Queries:
    """A weight in order and its bias, kept in ``space`` from ``at`` and ``place`` on."""
    rows = rounded_up(len(given.bias))
    ordered = space.ordered[at : at + rows * channels]
    biases = space.biases[place : place + rows]
    order_rounded(given.weight, channels, len(given.bias), space.rounded, ordered)
    biases[: len(given.bias)] = given.bias
    biases[len(given.bias) :] = ZERO
    return Queries(ordered, biases)


@_compiled
def _ready(given: KeysValues, channels: int, space: Space) -> KeysValues:
    """What tokens attend to, in order."""
    size = rounded_up(len(given.bias)) * channels
    weight, bias = _in_order(Queries(given.weight, given.bias), channels, space, 0, 0)
    values = space.ordered[size : 2 * size]
    order_across(given.values, len(given.bias), channels, values)
    return KeysValues(
        weight, bias, values, given.heads, given.each, given.norm, given.norm_bias, given.eps
    )


class Answer(NamedTuple):
    """What a step gives.

    Attributes:
        tokens: (n, C), if they change.
        seen: what each row of queries sees of the tokens, (R, C).
        maximum: for each band of tokens the largest score of each row, (bands, R).
        sums: of exponentials of the scores, less the largest, (bands, R).
        values: of tokens so weighted, (bands, R, C).
    """

    tokens: Any
    seen: Floats
    maximum: Floats
    sums: Floats
    values: Floats


@_compiled
def _join(answer: Answer, rows: int, bands: int, channels: int) -> None:
    """What is seen of all bands (online softmax)."""
    seen, maximum, sums, values = answer.seen, answer.maximum, answer.sums, answer.values
    for row in range(len(seen) // channels):
        top, total_sum = LEAST, ZERO
        for band in range(bands):
            top = max(top, maximum[band * rows + row])
        for band in range(bands):
            at = band * rows + row
            maximum[at] = np.exp(maximum[at] - top)
            total_sum += sums[at] * maximum[at]
        for c in range(0, channels, LANES):
            v = splat(ZERO)
            for band in range(bands):
                at = band * rows + row
                share = splat(maximum[at] / total_sum)
                v = multiply_add(load(values, at * channels + c), share, v)
            store(seen, row * channels + c, v)


@_compiled
def _step(
    image: Any,
    places: Any,
    dense: Any,
    number: int,
    band: int,
    channels: int,
    keys_values: KeysValues,
    queries: Queries,
    space: Space,
    answer: Answer,
) -> None:
    """The tokens of a band."""
    rows, attends, out = len(queries.bias), len(keys_values.bias) > 0, answer.tokens
    here = slice(number * rows, (number + 1) * rows)
    there = slice(here.start * channels, here.stop * channels)
    maximum, sum_of, values = answer.maximum[here], answer.sums[here], answer.values[there]
    maximum[:], sum_of[:], values[:] = LEAST, ZERO, ZERO
    placed, sums, pairs = space.placed, space.sums, space.pairs
    stop = min((number + 1) * band, len(places) // channels)
    for start in range(number * band, stop, BLOCK):
        count = min(BLOCK, stop - start)
        for t in range(0, count, SIDE):
            some, at = min(SIDE, count - t), (start + t) * channels
            if attends:
                for i in range(0, some * channels, LANES):
                    store(placed, i, load(image, at + i) + load(places, at + i))
                for i in range(some * channels, SIDE * channels, LANES):
                    store(placed, i, splat(ZERO))
                _attend(image, at, some, channels, keys_values, space)
                _norm(sums, some, channels, keys_values)
                for i in range(0, some * channels, LANES):
                    store(out, at + i, load(sums, i))
            else:
                for i in range(0, some * channels, LANES):
                    v = load(image, at + i)
                    if dense is not None:
                        v = v + load(dense, at + i)
                        store(out, at + i, v)
                    store(sums, i, v)
            for i in range(some * channels, SIDE * channels, LANES):
                store(sums, i, splat(ZERO))
            for i in range(0, some * channels, LANES):
                store(placed, i, load(sums, i) + load(places, at + i))
            _pair(sums, channels, t // SIDE, pairs)
            _score(space, channels, queries.weight, queries.bias, space.scores, BLOCK, t)
        _accumulate(rows, channels, count, space, maximum, sum_of, values)


@_compiled
def step(
    queue: Any,
    image: Any,
    places: Any,
    dense: Any,
    band: int,
    channels: int,
    keys_values: KeysValues,
    queries: Queries,
    space: Space,
    answer: Answer,
) -> None:
    """Image tokens attend, if they do; then queries attend to them: bands of a queue.

    Args:
        queue: of ``pieces``, with two phases.
        image: tokens (n, channels).
        places: what is added where they are compared.
        dense: what is added to them, where they do not attend, or None.
        band: how many tokens a band has.
        channels: of a token.
        keys_values: what they attend to; without any, they stay what they are.
        queries: what attends to them.
        space: memory.
        answer: where it goes.
    """
    configure(space.palette)
    attended = _ready(keys_values, channels, space)
    place = rounded_up(len(keys_values.bias))
    asked = _in_order(queries, channels, space, 2 * place * channels, place)
    count = (len(places) // channels + band - 1) // band
    i = take(queue, count)
    while i >= 0:
        _step(image, places, dense, i, band, channels, attended, asked, space, answer)
        finish(queue)
        i = take(queue, count)
    if take(queue, 1, 1) == 0:
        wait(queue, count)
        _join(answer, len(asked.bias), count, channels)
    release()
