"""What pixels have in common with clicks, in bfloat16 on a processor with tiles (AMX), compiled.

Pixels lie in lanes, 16 at a time; all they are compared with is in float32, or in two bfloat16
that together are as exact.

Maps of features are channels last, other maps planes; bfloat16 is uint16. Maps have 32 pixels or
more, their rows 16. Nothing checks this. Importing this module imports numba; compiling waits for a
call.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from anyres.ops import grid_tiles, pieces, product_tiles, simd_rows, simd_tiles
from anyres.ops.grid_tiles import (
    Convolution,
    Grid,
    Projection,
    clear_edges,
    clear_row,
    convolve,
    pixel,
    project,
)
from anyres.ops.pieces import finish, take, wait
from anyres.ops.product_tiles import SIDE, TILE, tile_product
from anyres.ops.simd import LANES, Floats, compiled, decay, load, multiply_add, splat, spread, store
from anyres.ops.simd_rows import larger
from anyres.ops.simd_tiles import configure, release, turn

CHANNELS = 16  # of the stacked map
PIXELS = 2**13  # that are compared with clicks at a time
ZERO, ONE, MINUS_ONE = np.float32(0), np.float32(1), np.float32(-1)
LOG2E = np.float32(math.log2(math.e))
NOTHING = np.float32(-1e9)  # the likeness to no click; times 0 it is not NaN

_compiled = compiled(
    __file__, *(str(m.__file__) for m in (grid_tiles, pieces, product_tiles, simd_rows, simd_tiles))
)


class Map(NamedTuple):
    """Features of pixels, the clicks' features there, and where their likeness goes.

    Attributes:
        features: (pixels, channels).
        channels: a multiple of 32.
        pixels: 32 or more.
        lengths: one over the length of each pixel's features.
        clicks: features of length 1 in order; of 16 clicks what bfloat16 rounds to, and what that
            left, and so on.
        sharpness: s in exp(s (cos - 1)).
        near: two planes, likeness to the most alike click of the labels 1 and 0.
    """

    features: Any
    channels: int
    pixels: int
    lengths: Floats
    clicks: Any
    sharpness: float
    near: Floats


@_compiled
def _likeness(map_: Map, first: int, stop: int, labels: Any, space: Floats) -> None:
    """That of pixels from ``first`` up to ``stop``, 32 or more; tiles are configured."""
    # Taken out of the tuples once: each time, the arrays' owners would be counted anew.
    x, channels, clicks = map_.features, map_.channels, map_.clicks
    lengths, out, pixels = map_.lengths, map_.near, map_.pixels
    tiles, turned, best = channels // SIDE, SIDE * SIDE, SIDE * SIDE + 2 * LANES * LANES
    rate = splat(np.float32(map_.sharpness) * LOG2E)
    for start in range(first, stop, SIDE):
        at = min(start, stop - SIDE)
        for i in range(0, 4 * LANES, LANES):
            store(space, best + i, splat(NOTHING))
        for group in range(0, len(labels), LANES):
            to = 2 * group // LANES * tiles * TILE
            tile_product(
                *(x, at * channels, channels, SIDE, clicks, to, to + tiles * TILE, tiles),
                *(space, 0, SIDE),
            )
            for half in range(2):
                here = half * LANES * SIDE
                turn(space, here, SIDE, space, turned, LANES)
                turn(space, here + LANES, SIDE, space, turned + LANES * LANES, LANES)
                positive = load(space, best + half * LANES)
                negative = load(space, best + (2 + half) * LANES)
                for i in range(min(LANES, len(labels) - group)):
                    label, column = labels[group + i], turned + i * LANES
                    v = load(space, column) + load(space, column + LANES * LANES)
                    if label == 1:
                        positive = larger(v, positive)
                    elif label == 0:
                        negative = larger(v, negative)
                store(space, best + half * LANES, positive)
                store(space, best + (2 + half) * LANES, negative)
        for half in range(2):
            length = load(lengths, at + half * LANES)
            for label in range(2):
                v = load(space, best + (2 * label + half) * LANES)
                v = decay(multiply_add(v, length, splat(MINUS_ONE)), rate)
                store(out, label * pixels + at + half * LANES, v)


class Planes(NamedTuple):
    """What is stacked of a prompt; planes are float32, one after the other.

    Attributes:
        colours: of the picture, 3 planes, and a fourth one.
        squares: the colours' squared length.
        nearest: (N, 4) twice the clicks' colours, and minus their squared length.
        labels: of the clicks.
        bumps: two planes.
        inside_rows, inside_columns: whether the box reaches there.
        previous: a plane, or nothing.
        has_previous: whether there is one.
        scales: of the squared differences of colours.
    """

    colours: Floats
    squares: Floats
    nearest: Floats
    labels: Any
    bumps: Floats
    inside_rows: Floats
    inside_columns: Floats
    previous: Floats
    has_previous: bool
    scales: tuple[float, float]


@_compiled
def _stretch(
    plane: Floats,
    at: int,
    height: int,
    width: int,
    times: int,
    row: int,
    space: Floats,
    out: Floats,
) -> None:
    """A row of a plane (height, width) enlarged, bilinear, to the beginning of ``out``."""
    y = max((np.float32(row) + np.float32(0.5)) / np.float32(times) - np.float32(0.5), ZERO)
    upper = int(y)
    blend, lower = y - np.float32(upper), min(upper + 1, height - 1)
    for x in range(width):
        a, b = plane[at + upper * width + x], plane[at + lower * width + x]
        space[x] = a + blend * (b - a)
    space[width] = space[width - 1]
    half = times // 2
    step = ONE / np.float32(times)
    for i in range(half):
        out[i] = space[0]
    for x in range(width):
        a, b = space[x], space[x + 1]
        for i in range(times):
            share = (np.float32(i) + np.float32(0.5)) * step
            to = half + x * times + i
            if to < width * times:
                out[to] = a + share * (b - a)


@_compiled
def _stack(
    near: tuple[Floats, Floats, Floats],
    planes: Planes,
    height: int,
    row: int,
    space: Floats,
    out: Grid,
) -> None:
    """A row of all that is known of clicks, 16 channels a pixel."""
    # Taken out of the tuples once: each time, the arrays' owners would be counted anew.
    near4, near8, near16 = near
    colours, squares, nearest, labels = (
        planes.colours,
        planes.squares,
        planes.nearest,
        planes.labels,
    )
    bumps, previous, known = planes.bumps, planes.previous, planes.has_previous
    inside_rows, inside_columns = planes.inside_rows, planes.inside_columns
    width, to = out.width, out.numbers
    size, pitch = height * width, width + LANES
    a8, b8, a16, b16 = space, space[pitch:], space[2 * pitch :], space[3 * pitch :]
    line, both = space[4 * pitch :], space[5 * pitch :]
    fine = splat(-LOG2E / np.float32(planes.scales[0]))
    coarse = splat(-LOG2E / np.float32(planes.scales[1]))
    flag = splat(ONE if known else ZERO)
    h8, w8, h16, w16 = height // 2, width // 2, height // 4, width // 4
    _stretch(near8, 0, h8, w8, 2, row, line, a8)
    _stretch(near8, h8 * w8, h8, w8, 2, row, line, b8)
    _stretch(near16, 0, h16, w16, 4, row, line, a16)
    _stretch(near16, h16 * w16, h16, w16, 4, row, line, b16)
    for start in range(0, width, LANES):
        x = min(start, width - LANES)
        at = row * width + x
        positive, negative = splat(NOTHING), splat(NOTHING)
        red, green = load(colours, at), load(colours, size + at)
        blue = load(colours, 2 * size + at)
        for i in range(len(labels)):
            if 0 <= labels[i] <= 1:
                v = multiply_add(red, spread(nearest, 4 * i), spread(nearest, 4 * i + 3))
                v = multiply_add(green, spread(nearest, 4 * i + 1), v)
                v = multiply_add(blue, spread(nearest, 4 * i + 2), v)
                if labels[i] == 1:
                    positive = larger(v, positive)
                else:
                    negative = larger(v, negative)
        square = load(squares, at)
        positive = larger(square - positive, splat(ZERO))
        negative = larger(square - negative, splat(ZERO))
        store(both, 0, load(near4, at))
        store(both, 16, load(near4, size + at))
        store(both, 32, load(a8, x))
        store(both, 48, load(b8, x))
        store(both, 64, load(a16, x))
        store(both, 80, load(b16, x))
        store(both, 96, decay(positive, fine))
        store(both, 112, decay(negative, fine))
        store(both, 128, decay(positive, coarse))
        store(both, 144, decay(negative, coarse))
        store(both, 160, load(bumps, at))
        store(both, 176, load(bumps, size + at))
        store(both, 192, load(inside_columns, x) * spread(inside_rows, row))
        store(both, 208, load(previous, at) if known else splat(ZERO))
        store(both, 224, flag)
        store(both, 240, splat(ZERO))
        turn(both, 0, LANES, both, 256, LANES)
        here = pixel(width, row % out.height, x, CHANNELS)
        for i in range(LANES):
            store(to, here + i * CHANNELS, load(both, 256 + i * LANES))


class Stage(NamedTuple):
    """A convolution, what is made of its answer, and where that goes.

    Attributes:
        convolution: of the stage before.
        projection: of its answer.
        own: a map (., ., channels) that is added.
        out: the sum.
        channels: of both.
    """

    convolution: Convolution
    projection: Projection
    own: Any
    out: Any
    channels: int


class Rows(NamedTuple):
    """A thread's memory: rows of the maps in turn, of stacked channels and of each stage."""

    palette: Any
    sums: Floats
    space: Floats
    stacked: Grid
    s4: Grid
    s8: Grid
    s16: Grid


@_compiled
def _make(x: Grid, stage: Stage, row: int, wanted: bool, sums: Floats, out: Grid) -> None:
    """A row of a stage, and of its answer if that is wanted."""
    convolve(x, False, stage.convolution, row, sums, out)
    if wanted:
        at, c = row * out.width * stage.channels, stage.channels
        project(out, stage.projection, row, sums, stage.own, at, stage.out, at, c)


@_compiled
def _dense(
    near: tuple[Floats, Floats, Floats],
    planes: Planes,
    stages: tuple[Stage, Stage, Stage],
    height: int,
    first: int,
    stop: int,
    rows: Rows,
) -> None:
    """All stages' answers for token rows from ``first`` up to ``stop``.

    What the convolutions need beyond these rows is computed here as well.
    """
    next8 = 2 * first - 1
    next4 = 2 * next8 - 1
    next_stacked = next4 - 1
    for row16 in range(first, stop):
        for row8 in range(next8, 2 * row16 + 2):
            for row4 in range(next4, 2 * row8 + 2):
                for row in range(next_stacked, row4 + 2):
                    if 0 <= row < height:
                        _stack(near, planes, height, row, rows.space, rows.stacked)
                    else:
                        clear_row(rows.stacked, row)
                next_stacked = row4 + 2
                if row4 < 0:
                    clear_row(rows.s4, row4)
                    continue
                wanted = 4 * first <= row4 < 4 * stop
                _make(rows.stacked, stages[0], row4, wanted, rows.sums, rows.s4)
            next4 = 2 * row8 + 2
            if row8 < 0:
                clear_row(rows.s8, row8)
                continue
            wanted = 2 * first <= row8 < 2 * stop
            _make(rows.s4, stages[1], row8, wanted, rows.sums, rows.s8)
        next8 = 2 * row16 + 2
        _make(rows.s8, stages[2], row16, True, rows.sums, rows.s16)


@_compiled
def _pieces(pixels: int) -> int:
    return max(1, pixels // PIXELS)


@_compiled
def dense(
    queue: Any,
    maps: tuple[Map, Map, Map],
    planes: Planes,
    stages: tuple[Stage, Stage, Stage],
    height: int,
    step: int,
    rows: Rows,
) -> None:
    """Likeness to the clicks, then all stages' answers: two phases of a ``queue``.

    Args:
        queue: of ``pieces``.
        maps: what clicks are compared with, at strides 4, 8 and 16.
        planes: what is stacked with that.
        stages: at strides 4, 8 and 16.
        height: of the planes at stride 4.
        step: token rows of a piece.
        rows: memory.
    """
    configure(rows.palette)
    count = _pieces(maps[0].pixels) + _pieces(maps[1].pixels) + _pieces(maps[2].pixels)
    i = take(queue, count)
    while i >= 0:
        which = 0
        while i >= _pieces(maps[which].pixels):
            i -= _pieces(maps[which].pixels)
            which += 1
        map_ = maps[which]
        last = i == _pieces(map_.pixels) - 1
        stop = map_.pixels if last else (i + 1) * PIXELS
        _likeness(map_, i * PIXELS, stop, planes.labels, rows.space)
        finish(queue)
        i = take(queue, count)
    wait(queue, count)
    near = maps[0].near, maps[1].near, maps[2].near
    clear_edges(rows.stacked)
    clear_edges(rows.s4)
    clear_edges(rows.s8)
    clear_edges(rows.s16)
    bands = (height // 4 + step - 1) // step
    i = take(queue, bands, 1)
    while i >= 0:
        _dense(near, planes, stages, height, i * step, min((i + 1) * step, height // 4), rows)
        i = take(queue, bands, 1)
    release()
