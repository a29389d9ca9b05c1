"""Products of rows with a layer's weight in bfloat16, in the processor's tiles (AMX), compiled.

Rows lie as they are, one after the other; a weight is put in order first (``order``), pairs of its
inner numbers side by side. Sums are float32. Rows are worked on 32 at a time, so arrays have room
for a multiple of 32; inner and outer sizes are multiples of 32. Nothing checks this.

Importing this module imports numba; compiling waits for a call.
"""

from typing import Any

import numpy as np

from anyres.ops import simd_rows, simd_tiles
from anyres.ops.simd import LANES, Floats, compiled, load, splat, store
from anyres.ops.simd_tiles import (
    clear,
    coarse_gelu,
    configure,
    load_tile,
    multiply,
    release,
    store_pairs,
    store_tile,
    turn,
)

SIDE = 2 * LANES  # rows and columns of what is multiplied at a time: four tiles of sums
TILE = LANES * SIDE  # numbers of a tile

_compiled = compiled(__file__, str(simd_rows.__file__), str(simd_tiles.__file__))


@_compiled
def order(weight: Any, inner: int, outer: int, out: Any) -> None:
    """A weight (outer, inner) as tiles: (outer / 16, inner / 32), each (16 pairs, 16, 2)."""
    to = 0
    for o in range(0, outer, LANES):
        for i in range(0, inner, SIDE):
            turn(weight, o * inner + i, inner, out, to, SIDE)
            to += TILE


@_compiled
def rounded_up(rows: int) -> int:
    """To whole tiles' rows."""
    return (rows + SIDE - 1) // SIDE * SIDE


@_compiled
def order_rounded(weight: Floats, inner: int, outer: int, rows: Any, out: Any) -> None:
    """As ``order`` a float32 weight, zeros added up to whole tiles; ``rows`` is memory for it."""
    size, count = outer * inner, rounded_up(outer)
    for i in range(0, size, LANES):
        store(rows, i, load(weight, i))
    rows[size : count * inner] = 0
    order(rows, inner, count, out)


@_compiled
def order_across(weight: Floats, inner: int, outer: int, out: Any) -> None:
    """As ``order`` a float32 weight (inner, outer), zeros added up to whole tiles."""
    count, zero = rounded_up(inner), splat(np.float32(0))
    for i in range(0, count, 2):
        for o in range(0, outer, LANES):
            x = load(weight, i * outer + o) if i < inner else zero
            y = load(weight, (i + 1) * outer + o) if i + 1 < inner else zero
            to = (o // LANES * (count // SIDE) + i // SIDE) * TILE + i % SIDE // 2 * SIDE
            store_pairs(out, to, x, y)


@_compiled
def tile_product(
    left: Any,
    at: int,
    row: int,
    step: int,
    right: Any,
    first: int,
    second: int,
    count: int,
    sums: Floats,
    to: int,
    apart: int,
) -> None:
    """Multiply 32 rows by two columns of ``count`` tiles: rows of 32 sums.

    ``row`` and ``step`` are between rows and between 32 columns of the left factor; the sums' rows
    are ``apart`` from each other, the first at index ``to``.
    """
    clear(0)
    clear(1)
    clear(2)
    clear(3)
    lower = at + LANES * row
    for i in range(count):
        load_tile(4, left, at + i * step, row)
        load_tile(6, right, first + i * TILE, SIDE)
        multiply(0, 4, 6)
        load_tile(7, right, second + i * TILE, SIDE)
        multiply(1, 4, 7)
        load_tile(5, left, lower + i * step, row)
        multiply(2, 5, 6)
        multiply(3, 5, 7)
    store_tile(0, sums, to, apart)
    store_tile(1, sums, to + LANES, apart)
    store_tile(2, sums, to + LANES * apart, apart)
    store_tile(3, sums, to + LANES * apart + LANES, apart)


@_compiled
def product(
    x: Any,
    rows: int,
    weight: Any,
    inner: int,
    outer: int,
    bias: Floats,
    active: bool,
    palette: Any,
    sums: Floats,
    out: Any,
) -> None:
    """Multiply rows by a weight of ``order``; if ``active``, add the bias and apply GELU."""
    configure(palette)
    count = inner // SIDE
    for o in range(0, outer, SIDE):
        first = o // LANES * count * TILE
        b0, b1 = load(bias, o), load(bias, o + LANES)
        for t in range(0, rows, SIDE):
            tile_product(
                x, t * inner, inner, SIDE, weight, first, first + count * TILE, count, sums, 0, SIDE
            )
            to = t * outer + o
            for row in range(SIDE):
                s0, s1 = load(sums, row * SIDE), load(sums, row * SIDE + LANES)
                if active:
                    s0, s1 = coarse_gelu(s0 + b0), coarse_gelu(s1 + b1)
                store(out, to + row * outer, s0)
                store(out, to + row * outer + LANES, s1)
    release()
