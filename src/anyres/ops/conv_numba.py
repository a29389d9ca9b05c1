"""What a tile of a map goes through between its matrix products, compiled: one pass over it each.

Maps are channels last. Numbers are float32, or bfloat16 as uint16; whatever is computed is so in
float32. Biases and the weights here are float32. Channels are multiples of 16. Nothing checks this.

Importing this module imports numba; compiling waits for a call.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from anyres.ops import simd_rows, simd_tiles
from anyres.ops.simd import (
    LANES,
    Floats,
    compiled,
    load,
    multiply_add,
    number,
    splat,
    spread,
    store,
)
from anyres.ops.simd_rows import normal
from anyres.ops.simd_tiles import coarse_gelu

ZERO, ONE = np.float32(0), np.float32(1)
PIXELS = 4  # neighbours that the first convolution does at a time

_compiled = compiled(__file__, str(simd_rows.__file__), str(simd_tiles.__file__))


def _gelu(x: Any, out: Any) -> Any:
    """GELU of a vector, as exactly as what it goes to can hold."""


@overload(_gelu)  # type: ignore[untyped-decorator]
def _gelu_of(x: Any, out: Any) -> Any:
    def exact(x: Any, out: Any) -> Any:
        return x * normal(x)

    def coarse(x: Any, out: Any) -> Any:
        return coarse_gelu(x)

    return coarse if out.dtype == types.uint16 else exact


@_compiled
def _plane(pixels: Any, at: int, width: int, inside: bool, planes: Floats, to: int) -> None:
    """A row of one colour behind a zero; nothing but zeros outside the picture."""
    planes[to] = ZERO
    for i in range(width):
        planes[to + 1 + i] = number(pixels, at + i) if inside else ZERO


@_compiled
def stem(
    pixels: Any,
    picture: int,
    height: int,
    width: int,
    first: int,
    rows: int,
    weight: Floats,
    bias: Floats,
    channels: int,
    planes: Floats,
    out: Any,
) -> None:
    """Convolve three colours, 3 x 3 with stride 2, and apply GELU.

    ``pixels`` are pictures (3, height, width), one after the other, both even and the width a
    multiple of 8; ``out`` gets rows of picture number ``picture`` from ``first`` on. ``weight`` is
    (3 rows, 3 colours, 3 columns, channels). ``planes`` has room for 9 (width + 1).
    """
    for row in range(rows):
        for ky in range(3):
            y = 2 * (first + row) + ky - 1
            for colour in range(3):
                at = ((picture * 3 + colour) * height + y) * width
                to = (ky * 3 + colour) * (width + 1)
                _plane(pixels, at, width, 0 <= y < height, planes, to)
        for x in range(0, width // 2, PIXELS):
            to = (row * (width // 2) + x) * channels
            for c in range(0, channels, LANES):
                s0 = load(bias, c)
                s1, s2, s3 = s0, s0, s0
                for plane in range(9):
                    for kx in range(3):
                        w = load(weight, (plane * 3 + kx) * channels + c)
                        at = plane * (width + 1) + 2 * x + kx
                        s0 = multiply_add(spread(planes, at), w, s0)
                        s1 = multiply_add(spread(planes, at + 2), w, s1)
                        s2 = multiply_add(spread(planes, at + 4), w, s2)
                        s3 = multiply_add(spread(planes, at + 6), w, s3)
                store(out, to + c, _gelu(s0, out))
                store(out, to + channels + c, _gelu(s1, out))
                store(out, to + 2 * channels + c, _gelu(s2, out))
                store(out, to + 3 * channels + c, _gelu(s3, out))


@_compiled
def depthwise(
    x: Any,
    start: int,
    height: int,
    width: int,
    channels: int,
    top: int,
    left: int,
    stride: int,
    weight: Floats,
    bias: Floats,
    active: bool,
    out: Any,
    rows: int,
    columns: int,
) -> None:
    """Convolve each channel by itself, 3 x 3, with zeros around; then GELU, if ``active``.

    ``x`` is (height, width, channels) from index ``start`` on, ``out`` (rows, columns, channels).
    The answer's first number is that around row ``top`` and column ``left`` of ``x``, the next one
    ``stride`` further. ``weight`` is (3, 3, channels).
    """
    line = width * channels
    for row in range(rows):
        y = top + row * stride
        middle = start + y * line
        above, below = (ONE if y > 0 else ZERO), (ONE if y + 1 < height else ZERO)
        upper = middle - line if y > 0 else middle
        lower = middle + line if y + 1 < height else middle
        for c in range(0, channels, LANES):
            w0, w3 = load(weight, c) * splat(above), load(weight, 3 * channels + c)
            w1, w4 = load(weight, channels + c) * splat(above), load(weight, 4 * channels + c)
            w2, w5 = load(weight, 2 * channels + c) * splat(above), load(weight, 5 * channels + c)
            w6 = load(weight, 6 * channels + c) * splat(below)
            w7 = load(weight, 7 * channels + c) * splat(below)
            w8 = load(weight, 8 * channels + c) * splat(below)
            added = load(bias, c)
            # Columns before, at and after the one in the middle, each of three rows.
            a0, a1, a2 = splat(ZERO), splat(ZERO), splat(ZERO)
            if left > 0:
                at = (left - 1) * channels + c
                a0, a1, a2 = load(x, upper + at), load(x, middle + at), load(x, lower + at)
            at = left * channels + c
            b0, b1, b2 = load(x, upper + at), load(x, middle + at), load(x, lower + at)
            for column in range(columns):
                i = left + column * stride
                if stride == 2 and column > 0:
                    at = i * channels + c
                    b0, b1, b2 = load(x, upper + at), load(x, middle + at), load(x, lower + at)
                c0, c1, c2 = splat(ZERO), splat(ZERO), splat(ZERO)
                if i + 1 < width:
                    at = (i + 1) * channels + c
                    c0, c1, c2 = load(x, upper + at), load(x, middle + at), load(x, lower + at)
                s = multiply_add(a0, w0, added)
                t = a1 * w3
                u = a2 * w6
                s = multiply_add(b0, w1, s)
                t = multiply_add(b1, w4, t)
                u = multiply_add(b2, w7, u)
                s = multiply_add(c0, w2, s)
                t = multiply_add(c1, w5, t)
                u = multiply_add(c2, w8, u)
                s = s + t + u
                if active:
                    s = _gelu(s, out)
                store(out, (row * columns + column) * channels + c, s)
                if stride == 1:
                    a0, a1, a2, b0, b1, b2 = b0, b1, b2, c0, c1, c2
                else:
                    a0, a1, a2 = c0, c1, c2


@_compiled
def finish(
    y: Any,
    bias: Floats,
    rows: int,
    size: int,
    width: int,
    x: Any,
    out: Any,
    at: int,
    step: int,
    shortcut: bool,
) -> None:
    """Add the bias to a tile and put it into a map; with a shortcut, first that and a GELU.

    ``y`` has ``rows`` rows of ``size`` numbers, ``width`` of them a pixel's; they go to index
    ``at`` of ``out``, and ``step`` further each. The shortcut is in the same place in ``x``.
    """
    for row in range(rows):
        for first in range(0, size, width):
            here, there = row * size + first, at + row * step + first
            for i in range(0, width, LANES):
                s = load(y, here + i) + load(bias, i)
                if shortcut:
                    s = s + load(x, there + i)
                    s = _gelu(s, out)
                store(out, there + i, s)
