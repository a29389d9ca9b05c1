"""Maps of numbers brought to another size, bilinear, and compared, compiled: no map in between.

Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops import pieces
from anyres.ops.pieces import take
from anyres.ops.simd import Floats, compiled

_compiled = compiled(__file__, str(pieces.__file__))


class Taps(NamedTuple):
    """For each place along an axis the two cells, int64, and their blend."""

    first: Any
    second: Any
    blend: Floats


@_compiled
def _line(x: Floats, at: int, taps: Taps, out: Floats) -> None:
    first, second, blend = taps
    for i in range(len(blend)):
        a, b = x[at + first[i]], x[at + second[i]]
        out[i] = a + blend[i] * (b - a)


@_compiled
def _rows(
    x: Floats,
    cells: int,
    start: int,
    stop: int,
    taps: tuple[Taps, Taps],
    lines: tuple[Floats, Floats],
    limit: Any,
    out: Any,
) -> None:
    """Rows from ``start`` up to ``stop``."""
    first, second, blend = taps[0]
    upper, lower = lines
    width = len(taps[1].blend)
    known_a, known_b = np.int64(-1), np.int64(-1)
    for row in range(start, stop):
        a, b = first[row], second[row]
        if a != known_a or b != known_b:
            if a == known_b:
                upper, lower = lower, upper
            else:
                _line(x, a * cells, taps[1], upper)
            _line(x, b * cells, taps[1], lower)
            known_a, known_b = a, b
        y, line = blend[row], out[row * width : (row + 1) * width]
        if limit is None:
            for i in range(width):
                line[i] = upper[i] + y * (lower[i] - upper[i])
        else:
            for i in range(width):
                line[i] = upper[i] + y * (lower[i] - upper[i]) > limit


@_compiled
def enlarge(
    queue: Any,
    x: Floats,
    cells: tuple[int, int],
    step: int,
    taps: tuple[Taps, Taps],
    lines: tuple[Floats, Floats],
    limit: Any,
    out: Any,
) -> None:
    """Enlarge maps, rows of a queue.

    Args:
        queue: of ``pieces``.
        x: the maps, one after the other.
        cells: down and across.
        step: rows of the answer that a piece has.
        taps: of the answer's rows and columns.
        lines: memory, two rows.
        limit: what masks are larger than, float32, or None.
        out: the answers: bool for what is larger, or float32.
    """
    down, across = len(taps[0].blend), len(taps[1].blend)
    bands = (down + step - 1) // step
    plane, size = cells[0] * cells[1], down * across
    count = len(x) // plane * bands
    i = take(queue, count)
    while i >= 0:
        one, start = i // bands, i % bands * step
        source = x[one * plane : (one + 1) * plane]
        target = out[one * size : (one + 1) * size]
        stop = min(start + step, down)
        _rows(source, cells[1], start, stop, taps, lines, limit, target)
        i = take(queue, count)
