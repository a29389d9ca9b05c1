"""Smooth shrinking of pictures, compiled.

Importing this module imports numba; compiling waits for a call.
"""

from typing import Any

import numpy as np

from anyres.ops import pieces, simd_rows
from anyres.ops.pieces import take
from anyres.ops.simd import LANES, Floats, compiled, load, splat, store
from anyres.ops.simd_rows import put_number, total

ZERO = np.float32(0)

_compiled = compiled(__file__, pieces.__file__, simd_rows.__file__)


@_compiled
def _row(
    pixels: Any,
    start: int,
    width: int,
    row: int,
    down: Any,
    across: Any,
    line: Floats,
    out: Any,
    to: int,
) -> None:
    """A row of the answer, to index ``to`` of ``out`` and following.

    Args:
        pixels: of which a colour's rows begin at ``start``.
        start: see there.
        width: of the picture, a multiple of 16.
        row: which row of the answer.
        down: for each row of the answer the first row of the picture it is made of, and the
            weights of that and the following ones.
        across: the same for columns; the number of weights is a multiple of 16.
        line: room for the width and as many numbers as there are weights.
        out: for the answer.
        to: see there.
    """
    firsts, weights = down
    for i in range(0, len(line), LANES):
        store(line, i, splat(ZERO))
    for tap in range(weights.shape[1]):
        if weights[row, tap] == ZERO:
            continue
        at, weight = start + (firsts[row] + tap) * width, splat(weights[row, tap])
        for i in range(0, width, LANES):
            store(line, i, load(pixels, at + i) * weight + load(line, i))
    columns, factors = across
    taps = factors.size // len(columns)
    for column in range(len(columns)):
        passed = splat(ZERO)
        for i in range(0, taps, LANES):
            here = load(line, columns[column] + i) * load(factors, column * taps + i)
            passed = passed + here
        put_number(out, to + column, total(passed))


@_compiled
def shrink(
    pixels: Any,
    queue: Any,
    planes: int,
    height: int,
    width: int,
    down: Any,
    across: Any,
    line: Floats,
    out: Any,
) -> None:
    """Planes (height, width) to the answer's rows and columns, rows of a ``queue``."""
    rows, columns = len(down[0]), len(across[0])
    i = take(queue, planes * rows)
    while i >= 0:
        plane = i // rows
        start, to = plane * height * width, i * columns
        _row(pixels, start, width, i % rows, down, across, line, out, to)
        i = take(queue, planes * rows)
