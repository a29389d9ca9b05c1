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

from anyres.ops import grid_tiles, pieces, product_tiles, simd_rows
from anyres.ops.grid_tiles import Convolution, Grid, clear_edges, convolve, pixel
from anyres.ops.pieces import finish, take, wait
from anyres.ops.product_tiles import SIDE, TILE, tile_product
from anyres.ops.simd import LANES, Floats, compiled, load, multiply_add, splat, store
from anyres.ops.simd_rows import sums as sums_of_rows
from anyres.ops.simd_rows import total
from anyres.ops.simd_tiles import coarse_gelu, configure, release

ZERO, ONE = np.float32(0), np.float32(1)
GROUP = LANES // 2  # pixels of the first map whose 16 in a row of the second are done at a time

_sources = (grid_tiles, pieces, product_tiles, simd_rows)
_compiled = compiled(__file__, *(str(m.__file__) for m in _sources))


class Layers(NamedTuple):
    """Two weights in order with biases, and the norm between.

    Attributes:
        first, first_bias: (4 c', c) and (c').
        norm, norm_bias, eps: of the layer norm over c'.
        second, second_bias: (4 c'', c') and (c'').
    """

    first: Any
    first_bias: Floats
    norm: Floats
    norm_bias: Floats
    eps: float
    second: Any
    second_bias: Floats


class Direct(NamedTuple):
    """A convolution, and of what it gives each mask's weight (masks, outer) and bias."""

    convolution: Convolution
    weight: Floats
    bias: Floats


class Picture(NamedTuple):
    """A prompt's picture.

    Attributes:
        tokens: (h, w, c).
        height, width, channels: h, w and c.
        detailed: whether there are details.
        details_s8, details_s4: maps (2h, 2w, c') and (4h, 4w, c'').
    """

    tokens: Any
    height: int
    width: int
    channels: int
    detailed: bool
    details_s8: Any
    details_s4: Any


class Space(NamedTuple):
    """Memory: ``line`` (w + 31, c), ``sums`` (32, 2c), ``middle`` (4w + 31, c'), ``dots`` (16, 16).

    ``between`` is a row of what a convolution of the finest map gives.
    """

    palette: Any
    line: Any
    sums: Floats
    middle: Any
    dots: Floats
    between: Grid


@_compiled
def _widen(picture: Picture, row: int, layers: Layers, space: Space) -> None:
    """A row of tokens to two rows of pixels, ``space.middle``."""
    # Taken out of the tuples once: each time, the arrays' owners would be counted anew.
    weight, bias, x, tokens = layers.first, layers.first_bias, space.line, picture.tokens
    detailed, details = picture.detailed, picture.details_s8
    width, channels = picture.width, picture.channels
    line, at = width * channels, row * width * channels
    x[:line] = tokens[row * line : (row + 1) * line]
    norm, norm_bias, eps = layers.norm, layers.norm_bias, np.float32(layers.eps)
    sums, middle, inner, count = space.sums, space.middle, channels // 4, channels // SIDE
    share = ONE / np.float32(inner)
    for t in range(0, width, SIDE):
        for corner in range(4):
            for o in range(0, inner, SIDE):
                first = (corner * inner + o) // LANES * count * TILE
                second = first + count * TILE
                tile_product(
                    x, t * channels, channels, SIDE, weight, first, second, count, sums, o, inner
                )
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
    picture: Picture,
    row: int,
    layers: Layers,
    hyper: Floats,
    masks: int,
    space: Space,
    logits: Floats,
    keep: bool,
    fine: Grid,
) -> None:
    """``space.middle`` to four rows of logits."""
    weight, bias = layers.second, layers.second_bias
    detailed, details = picture.detailed, picture.details_s4
    width, channels = picture.width, picture.channels
    at, to = row * 16 * width * (channels // 8), row * 16 * width
    plane = 16 * picture.height * width
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
def _add_direct(
    row: int, x: Grid, layers: Direct, masks: int, space: Space, logits: Floats
) -> None:
    """Add to a row of logits what further layers make of the finest map."""
    between, dots, weight, bias = space.between, space.dots, layers.weight, layers.bias
    made, channels, width = between.numbers, layers.convolution.outer, x.width
    convolve(x, True, layers.convolution, row, space.sums, between)
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
            there = (m * x.height + row) * width + column
            found = sums_of_rows(dots, 0) + splat(bias[m])
            _put(found, some, dots, logits, there, True)


@_compiled
def upscale(
    queue: Any,
    picture: Picture,
    step: int,
    layers: Layers,
    hyper: Floats,
    masks: int,
    fine: Grid,
    direct: Any,
    space: Space,
    logits: Floats,
) -> None:
    """Four rows of logits from each row of tokens; then what further layers add, if there are.

    Args:
        queue: of ``pieces``, with two phases.
        picture: its tokens and details.
        step: rows of tokens of a piece.
        layers: parameters.
        hyper: each mask's weights, (masks, channels / 8).
        masks: how many.
        fine: memory for what is multiplied by ``hyper``, if there are further layers.
        direct: ``Direct``, or None.
        space: memory.
        logits: the answer, (masks, 4 height, 4 width).
    """
    configure(space.palette)
    keep = direct is not None
    if direct is not None:
        clear_edges(fine)
    count = (picture.height + step - 1) // step
    i = take(queue, count)
    while i >= 0:
        for row in range(i * step, min((i + 1) * step, picture.height)):
            _widen(picture, row, layers, space)
            _finish(picture, row, layers, hyper, masks, space, logits, keep, fine)
        finish(queue)
        i = take(queue, count)
    if direct is not None:
        wait(queue, count)
        i = take(queue, count, 1)
        while i >= 0:
            for row in range(4 * i * step, 4 * min((i + 1) * step, picture.height)):
                _add_direct(row, fine, direct, masks, space, logits)
            i = take(queue, count, 1)
    release()
