"""A mask decoder's upscaling in bfloat16 on a processor with tiles (AMX), compiled.

From a row of image tokens to four rows of logits, without a map in between: each token becomes
2 x 2 pixels, normalised, and each of those 2 x 2 again; what the picture shows there is added.
Sums and everything between two products are float32.

Maps are channels last; bfloat16 is uint16, parameters are float32 but for weights, which
``product_tiles.order`` has put in order: outer channels are (row, column, channel) of the pixels
that one becomes. Tokens' channels are multiples of 128. Nothing checks this.

Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops import grid_tiles, product_tiles, simd_rows
from anyres.ops.grid_tiles import Convolution, Grid, convolve, pixel
from anyres.ops.product_tiles import SIDE, TILE, tile_product
from anyres.ops.simd import LANES, Floats, compiled, load, multiply_add, splat, store
from anyres.ops.simd_rows import sums as sums_of_rows
from anyres.ops.simd_rows import total
from anyres.ops.simd_tiles import coarse_gelu, configure, release

ZERO, ONE = np.float32(0), np.float32(1)
GROUP = LANES // 2  # pixels of the first map whose 16 in a row of the second are done at a time

_compiled = compiled(__file__, *(str(m.__file__) for m in (grid_tiles, product_tiles, simd_rows)))


class Layers(NamedTuple):
    """Parameters: two weights in order with biases, the norm between, and what is picture's.

    Attributes:
        first, first_bias: (4 c', c) and (c').
        norm, norm_bias, eps: of the layer norm over c'.
        second, second_bias: (4 c'', c') and (c'').
        detailed: whether there are details.
        details_s8, details_s4: maps (P, 2h, 2w, c') and (P, 4h, 4w, c'').
    """

    first: Any
    first_bias: Floats
    norm: Floats
    norm_bias: Floats
    eps: float
    second: Any
    second_bias: Floats
    detailed: bool
    details_s8: Any
    details_s4: Any


class Space(NamedTuple):
    """Memory: ``sums`` (32, 2c), ``middle`` (4w + 31, c'), ``dots`` (16, 16)."""

    palette: Any
    sums: Floats
    middle: Any
    dots: Floats


@_compiled
def _widen(
    x: Any, start: int, width: int, channels: int, layers: Layers, at: int, space: Space
) -> None:
    """A row of tokens to two rows of pixels, ``space.middle``; their details are at ``at``."""
    # Taken out of the tuples once: each time, the arrays' owners would be counted anew.
    weight, bias, detailed, details = (
        layers.first,
        layers.first_bias,
        layers.detailed,
        layers.details_s8,
    )
    norm, norm_bias, eps = layers.norm, layers.norm_bias, np.float32(layers.eps)
    sums, middle, inner, count = space.sums, space.middle, channels // 4, channels // SIDE
    share = ONE / np.float32(inner)
    for t in range(0, width, SIDE):
        for corner in range(4):
            for o in range(0, inner, SIDE):
                first = (corner * inner + o) // LANES * count * TILE
                second = first + count * TILE
                row = start + t * channels
                tile_product(x, row, channels, SIDE, weight, first, second, count, sums, o, inner)
            for r in range(min(SIDE, width - t)):
                pixel = (corner // 2) * 2 * width + 2 * (t + r) + corner % 2
                added, here = splat(ZERO), r * inner
                for c in range(0, inner, LANES):
                    v = load(sums, here + c) + load(bias, c)
                    if detailed:
                        v = v + load(details, at + pixel * inner + c)
                    store(sums, here + c, v)
                    added = added + v
                mean = splat(total(added) * share)
                squared = splat(ZERO)
                for c in range(0, inner, LANES):
                    v = load(sums, here + c) - mean
                    squared = multiply_add(v, v, squared)
                scale = splat(ONE / np.sqrt(total(squared) * share + eps))
                for c in range(0, inner, LANES):
                    v = (load(sums, here + c) - mean) * scale
                    v = multiply_add(v, load(norm, c), load(norm_bias, c))
                    store(middle, pixel * inner + c, coarse_gelu(v))


@_compiled
def _put(vector: Any, some: int, space: Floats, out: Floats, to: int, added: bool) -> None:
    """Write or add the first numbers of a vector; ``space`` has room for 16."""
    if some == LANES:
        store(out, to, vector + load(out, to) if added else vector)
        return
    store(space, 0, vector)
    for i in range(some):
        out[to + i] = space[i] + out[to + i] if added else space[i]


@_compiled
def _finish(
    row: int,
    width: int,
    channels: int,
    layers: Layers,
    at: int,
    hyper: Floats,
    masks: int,
    space: Space,
    logits: Floats,
    to: int,
    plane: int,
    keep: bool,
    fine: Grid,
) -> None:
    """``space.middle`` to four rows of logits; their details are at ``at``."""
    weight, bias, detailed, details = (
        layers.second,
        layers.second_bias,
        layers.detailed,
        layers.details_s4,
    )
    middle, sums, dots, kept = space.middle, space.sums, space.dots, fine.numbers
    outer, inner = channels // 4, channels // 8
    count, wide = outer // SIDE, 4 * inner
    for line in range(2):
        for t in range(0, 2 * width, SIDE):
            start = (line * 2 * width + t) * outer
            for o in range(0, wide, SIDE):
                first = o // LANES * count * TILE
                second = first + count * TILE
                tile_product(
                    middle, start, outer, SIDE, weight, first, second, count, sums, o, wide
                )
            rows = min(SIDE, 2 * width - t)
            for dy in range(2):
                y = 2 * line + dy
                for group in range(0, rows, GROUP):
                    some = 2 * min(GROUP, rows - group)
                    x = 2 * (t + group)
                    p = at + (y * 4 * width + x) * inner
                    f = ((4 * row + y + 1) * (4 * width + 3) + x + 1) * inner
                    for m in range(masks):
                        for i in range(some):
                            here = ((group + i // 2) * 4 + 2 * dy + i % 2) * inner
                            dot = splat(ZERO)
                            for c in range(0, inner, LANES):
                                if m == 0:
                                    v = load(sums, here + c) + load(bias, c)
                                    if detailed:
                                        v = v + load(details, p + i * inner + c)
                                    v = coarse_gelu(v)
                                    if keep:
                                        store(kept, f + i * inner + c, v)
                                    if masks > 1:
                                        store(sums, here + c, v)
                                else:
                                    v = load(sums, here + c)
                                dot = multiply_add(v, load(hyper, m * inner + c), dot)
                            store(dots, i * LANES, dot)
                        there = to + m * plane + y * 4 * width + x
                        _put(sums_of_rows(dots, 0), some, dots, logits, there, False)


@_compiled
def upscale(
    x: Any,
    picture: int,
    height: int,
    width: int,
    channels: int,
    first: int,
    stop: int,
    layers: Layers,
    hyper: Floats,
    masks: int,
    space: Space,
    logits: Floats,
    keep: bool,
    fine: Grid,
) -> None:
    """Four rows of logits from each row of tokens, from ``first`` up to ``stop``.

    Args:
        x: tokens of these rows, with room for 31 more.
        picture: number of the tokens' picture among those of the details.
        height: of the token grid.
        width: of the token grid.
        channels: of a token.
        first: row.
        stop: row.
        layers: parameters and details.
        hyper: each mask's weights, (masks, channels / 8).
        masks: how many.
        space: memory.
        logits: the answer, (masks, 4 height, 4 width).
        keep: whether to keep what is multiplied by ``hyper``.
        fine: for that, of channels / 8.
    """
    configure(space.palette)
    plane = 16 * height * width
    for row in range(first, stop):
        line = picture * height + row
        start, at = (row - first) * width * channels, line * 4 * width * (channels // 4)
        _widen(x, start, width, channels, layers, at, space)
        at = line * 16 * width * (channels // 8)
        to = row * 16 * width
        _finish(
            *(row, width, channels, layers, at, hyper, masks, space, logits, to, plane),
            *(keep, fine),
        )
    release()


@_compiled
def add_direct(
    x: Grid,
    first: int,
    stop: int,
    layer: Convolution,
    between: Grid,
    weight: Floats,
    bias: Floats,
    masks: int,
    space: Space,
    logits: Floats,
    to: int,
    plane: int,
) -> None:
    """Add to logits what a convolution and a product with each mask's weight give.

    Args:
        x: the finest map.
        first: row.
        stop: row after the last.
        layer: the convolution.
        between: for some rows of what it gives.
        weight: (masks, outer channels of the layer).
        bias: (masks).
        masks: how many.
        space: memory.
        logits: those of the first row of the map and the first mask begin at ``to``.
        to: index.
        plane: numbers between two masks.
    """
    configure(space.palette)
    made, dots, channels, width = between.numbers, space.dots, layer.outer, x.width
    for row in range(first, stop):
        convolve(x, True, layer, row, space.sums, between)
        line = pixel(width, row % between.height, 0, channels)
        for column in range(0, width, LANES):
            some = min(LANES, width - column)
            for m in range(masks):
                for i in range(some):
                    at, dot = line + (column + i) * channels, splat(ZERO)
                    for c in range(0, channels, LANES):
                        v = load(made, at + c)
                        dot = multiply_add(v, load(weight, m * channels + c), dot)
                    store(dots, i * LANES, dot)
                there = to + m * plane + row * width + column
                found = sums_of_rows(dots, 0) + splat(bias[m])
                _put(found, some, dots, logits, there, True)
    release()
