"""3 x 3 convolutions of padded maps in bfloat16 on a processor with tiles (AMX), compiled.

The three neighbours of a pixel in a row lie side by side, so tiles read them where they are: rows
of a first factor that overlap. That wants zeros around the map: a row above and below, a pixel
before a row and two after it.

A map may hold a few of its rows only, each in the place of one that is no longer needed.

bfloat16 is uint16, parameters are float32 but for weights. Channels are 16 or multiples of 32, of
answers multiples of 32; behind a map there is room for 64 more pixels, whatever it holds. Nothing
checks this. Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

from anyres.ops import cycle_tiles, product_tiles
from anyres.ops.cycle_tiles import silu
from anyres.ops.product_tiles import SIDE, TILE, tile_product
from anyres.ops.simd import LANES, Floats, compiled, load, store
from anyres.ops.simd_tiles import (
    clear,
    load_tile,
    multiply,
    store_tile,
)

_compiled = compiled(__file__, str(cycle_tiles.__file__), str(product_tiles.__file__))


class Grid(NamedTuple):
    """A padded map, or ``height`` rows of it in turn: (height + 2, width + 3, channels)."""

    numbers: Any
    height: int
    width: int
    channels: int


class Convolution(NamedTuple):
    """A convolution with SiLU: weight in order, (outer, 3 rows of 3 c, rounded up to tiles)."""

    weight: Any
    bias: Floats
    outer: int
    stride: int


class Projection(NamedTuple):
    """A linear layer: weight in order, (outer, inner); outer rounded up to a multiple of 32."""

    weight: Any
    bias: Floats
    outer: int


@_compiled
def pixel(width: int, row: int, column: int, channels: int) -> int:
    """Where a pixel of a padded map of this width begins."""
    return ((row + 1) * (width + 3) + column + 1) * channels


@_compiled
def convolve(x: Grid, whole: bool, layer: Convolution, row: int, sums: Floats, out: Grid) -> None:
    """A row of the answer, after its SiLU.

    Args:
        x: the map.
        whole: whether all its rows are there, and not some in turn.
        layer: the convolution.
        row: of the answer.
        sums: memory, (32, 32).
        out: rows in turn, with ``layer.outer`` channels.
    """
    # Taken out of the tuples once: each time, the arrays' owners would be counted anew.
    source, weight, bias, to = x.numbers, layer.weight, layer.bias, out.numbers
    stride, outer, channels, width = layer.stride, layer.outer, x.channels, x.width
    step, count = stride * channels, out.width
    tiles = (3 * channels + SIDE - 1) // SIDE
    for o in range(0, outer, SIDE):
        first = o // LANES * 3 * tiles * TILE
        second = first + 3 * tiles * TILE
        b0, b1 = load(bias, o), load(bias, o + LANES)
        for column in range(0, count, SIDE):
            clear(0)
            clear(1)
            clear(2)
            clear(3)
            for ky in range(3):
                above = row * stride + ky - 1
                above = above if whole else above % x.height
                line = pixel(width, above, column * stride - 1, channels)
                for i in range(tiles):
                    at, k = line + i * SIDE, (ky * tiles + i) * TILE
                    load_tile(4, source, at, step)
                    load_tile(6, weight, first + k, SIDE)
                    multiply(0, 4, 6)
                    load_tile(7, weight, second + k, SIDE)
                    multiply(1, 4, 7)
                    load_tile(5, source, at + LANES * step, step)
                    multiply(2, 5, 6)
                    multiply(3, 5, 7)
            store_tile(0, sums, 0, SIDE)
            store_tile(1, sums, LANES, SIDE)
            store_tile(2, sums, LANES * SIDE, SIDE)
            store_tile(3, sums, LANES * SIDE + LANES, SIDE)
            here = pixel(count, row % out.height, column, outer) + o
            for r in range(min(SIDE, count - column)):
                s0, s1 = load(sums, r * SIDE), load(sums, r * SIDE + LANES)
                store(to, here + r * outer, silu(s0 + b0))
                store(to, here + r * outer + LANES, silu(s1 + b1))


@_compiled
def project(
    x: Grid, layer: Projection, row: int, sums: Floats, own: Any, at: int, out: Any, to: int, c: int
) -> None:
    """A row through a linear layer, and another map's row added, of ``c`` channels each.

    Args:
        x: rows of the map in turn.
        layer: its ``outer`` is ``c``, rounded up.
        row: of the map.
        sums: memory, (32, 32).
        own: what is added, from index ``at`` on.
        at: index.
        out: the answer, from index ``to`` on.
        to: index.
        c: channels, a multiple of 16.
    """
    source, weight, bias = x.numbers, layer.weight, layer.bias
    width, channels = x.width, x.channels
    count = channels // SIDE
    for o in range(0, layer.outer, SIDE):
        first = o // LANES * count * TILE
        second = first + count * TILE
        for column in range(0, width, SIDE):
            line = pixel(width, row % x.height, column, channels)
            tile_product(source, line, channels, SIDE, weight, first, second, count, sums, 0, SIDE)
            for r in range(min(SIDE, width - column)):
                here = (column + r) * c + o
                for half in range(0, min(SIDE, c - o), LANES):
                    s = load(sums, r * SIDE + half) + load(bias, o + half)
                    store(out, to + here + half, s + load(own, at + here + half))


@_compiled
def clear_edges(x: Grid) -> None:
    """Zeros around the map, and behind it; what is there already may be zero for other threads."""
    to, line = x.numbers, (x.width + 3) * x.channels
    to[:line] = 0
    to[(x.height + 1) * line :] = 0
    for row in range(1, x.height + 1):
        start = row * line
        to[start : start + x.channels] = 0
        to[start + (x.width + 1) * x.channels : start + line] = 0


@_compiled
def clear_row(x: Grid, row: int) -> None:
    """Zeros, of a map that holds rows in turn."""
    start = pixel(x.width, row % x.height, 0, x.channels)
    x.numbers[start : start + x.width * x.channels] = 0
