"""Maps of numbers brought to another size, bilinear, and compared, compiled: no map in between.

Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops.simd import Floats, compiled

_compiled = compiled(__file__)


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
def enlarge(
    x: Floats,
    cells: int,
    start: int,
    stop: int,
    down: Taps,
    across: Taps,
    upper: Floats,
    lower: Floats,
    logits: Floats,
    threshold: float,
    masks: Any,
) -> None:
    """Rows from ``start`` up to ``stop`` of the answer: to ``logits``, or compared to ``masks``.

    Args:
        x: the map, in rows of ``cells``.
        cells: of a row.
        start: row.
        stop: row.
        down: of the rows.
        across: of the columns.
        upper: memory, a row.
        lower: memory, a row.
        logits: (rows, columns), or empty.
        threshold: what masks are larger than.
        masks: (rows, columns) bool; not written to if there are logits.
    """
    first, second, blend = down
    width = len(across.blend)
    limit, exact = np.float32(threshold), len(logits) > 0
    known_a, known_b = np.int64(-1), np.int64(-1)
    for row in range(start, stop):
        a, b = first[row], second[row]
        if a != known_a or b != known_b:
            if a == known_b:
                upper, lower = lower, upper
            else:
                _line(x, a * cells, across, upper)
            _line(x, b * cells, across, lower)
            known_a, known_b = a, b
        y, at = blend[row], row * width
        if exact:
            for i in range(width):
                logits[at + i] = upper[i] + y * (lower[i] - upper[i])
        else:
            for i in range(width):
                masks[at + i] = upper[i] + y * (lower[i] - upper[i]) > limit
