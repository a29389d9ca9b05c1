"""What a picture shows where it is clicked, and where that is, compiled: one call for all clicks.

Coordinates are XY in pixels of the model input. bfloat16 is uint16; channels are multiples of 32.
Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops import product_tiles
from anyres.ops.product_tiles import order
from anyres.ops.simd import LANES, Floats, compiled, load, splat, store

HALF = np.float32(0.5)

_compiled = compiled(__file__, str(product_tiles.__file__))


class Map(NamedTuple):
    """Features of a picture at a stride: (height, width, channels).

    Attributes:
        lengths: one over the length of each pixel's features.
    """

    features: Any
    channels: int
    height: int
    width: int
    stride: int
    lengths: Floats


@_compiled
def _cell(at: Any, stride: int, count: int) -> int:
    return min(max(int(np.floor(at / np.float32(stride))), 0), count - 1)


@_compiled
def features(
    map_: Map, xy: Floats, out: Floats, at: int, row: int, memory: Any, tiles: Any
) -> None:
    """Features at the clicks, of length 1.

    Args:
        map_: the picture's.
        xy: (N, 2).
        out: (N, row), from column ``at`` on.
        at: column.
        row: numbers of a click.
        memory: (32, channels), bfloat16.
        tiles: of each 16 clicks what bfloat16 rounds to, and what that left, in order; zeros for
            clicks that there are not.
    """
    count, channels, source = len(xy) // 2, map_.channels, map_.features
    for first in range(0, count, LANES):
        memory[: 2 * LANES * channels] = 0
        for n in range(first, min(first + LANES, count)):
            column = _cell(xy[2 * n], map_.stride, map_.width)
            pixel = _cell(xy[2 * n + 1], map_.stride, map_.height) * map_.width + column
            scale, here = splat(map_.lengths[pixel]), (n - first) * channels
            for c in range(0, channels, LANES):
                v = load(source, pixel * channels + c) * scale
                store(out, n * row + at + c, v)
                store(memory, here + c, v)
                store(memory, here + LANES * channels + c, v - load(memory, here + c))
        order(memory, channels, 2 * LANES, tiles[2 * first * channels :])


@_compiled
def colours(planes: Floats, height: int, width: int, xy: Floats, out: Floats) -> None:
    """Twice the colours at the clicks and minus their squared length, (N, 4).

    ``planes`` are at stride 4.
    """
    for n in range(len(xy) // 2):
        pixel = _cell(xy[2 * n + 1], 4, height) * width + _cell(xy[2 * n], 4, width)
        squared = np.float32(0)
        for c in range(3):
            v = planes[c * height * width + pixel]
            out[4 * n + c] = v + v
            squared += v * v
        out[4 * n + 3] = -squared


@_compiled
def bumps(
    xy: Floats, labels: Any, height: int, width: int, sigma: Any, reach: int, out: Any
) -> None:
    """A Gaussian bump at each click, the highest of the labels 1 and 0: (2, height, width).

    Pixels are at stride 4, ``sigma`` and ``reach`` in them; a click means the centre of its pixel.
    """
    out[:] = 0
    rate = np.float32(-0.5 / (4 * sigma) ** 2)
    across = np.empty(2 * reach + 1, np.float32)
    for n in range(len(labels)):
        if not 0 <= labels[n] <= 1:
            continue
        x, y = xy[2 * n] + HALF, xy[2 * n + 1] + HALF
        left, top = int(np.floor(x / 4)) - reach, int(np.floor(y / 4)) - reach
        plane = (1 - labels[n]) * height * width
        for i in range(2 * reach + 1):
            away = (np.float32(left + i) + HALF) * 4 - x
            across[i] = np.exp(rate * away * away)
        for row in range(max(top, 0), min(top + 2 * reach + 1, height)):
            away = (np.float32(row) + HALF) * 4 - y
            down = np.exp(rate * away * away)
            for column in range(max(left, 0), min(left + 2 * reach + 1, width)):
                here = plane + row * width + column
                out[here] = max(out[here], down * across[column - left])
