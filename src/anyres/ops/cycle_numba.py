"""What HRSAM does around its scans and after its lateral products, compiled: one pass each.

Rows of ``width`` channels, a multiple of 16, float32 or bfloat16 (as uint16), one after the other
from an index on; whatever is computed is so in float32, and parameters are. Nothing checks this.

Importing this module imports numba; compiling waits for a call.
"""

import math
from typing import Any

import numpy as np

from anyres.ops import simd_rows
from anyres.ops.simd import LANES, Floats, compiled, decay, larger, load, splat, store
from anyres.ops.simd_rows import quotient, total

ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(math.log2(math.e))
FAR = np.float32(-100)  # exp of it counts as 0

_compiled = compiled(__file__, simd_rows.__file__)


@_compiled
def moments(x: Any, at: int, width: int, eps: float) -> Any:
    """Of a row, in all lanes: its mean, and 1 over its deviation."""
    passed = splat(ZERO)
    for i in range(0, width, LANES):
        passed = passed + load(x, at + i)
    mean = splat(total(passed) / np.float32(width))
    passed = splat(ZERO)
    for i in range(0, width, LANES):
        off = load(x, at + i) - mean
        passed = off * off + passed
    scale = ONE / math.sqrt(total(passed) / np.float32(width) + np.float32(eps))
    return mean, splat(scale)


@_compiled
def norm(
    x: Any, first: int, rows: int, gain: Floats, shift: Floats, eps: float, width: int, out: Any
) -> None:
    """Layer norm of rows, to the beginning of ``out``."""
    for to in range(0, rows * width, width):
        at = first + to
        mean, scale = moments(x, at, width, eps)
        for i in range(0, width, LANES):
            off = (load(x, at + i) - mean) * scale
            store(out, to + i, off * load(gain, i) + load(shift, i))


@_compiled
def activate(x: Any, rows: int, bias: Floats, width: int, u: Any, gate: Any, first: int) -> None:
    """Add the bias to rows of twice the width and apply SiLU: halves to ``u`` and ``gate``."""
    for row in range(rows):
        at, to = 2 * row * width, first + row * width
        for i in range(0, width, LANES):
            p = load(x, at + i) + load(bias, i)
            q = load(x, at + width + i) + load(bias, width + i)
            # x / (1 + exp(-x)) = max(x, 0) - |x| e / (1 + e) with e = exp(-|x|).
            far_p = larger(splat(ZERO) - larger(p, splat(ZERO) - p), splat(FAR))
            far_q = larger(splat(ZERO) - larger(q, splat(ZERO) - q), splat(FAR))
            e_p, e_q = decay(far_p, splat(LOG2E)), decay(far_q, splat(LOG2E))
            one_p, one_q = splat(ONE) + e_p, splat(ONE) + e_q
            # One division for both: it takes as long as a dozen products.
            both = quotient(splat(ONE), one_p * one_q)
            store(u, to + i, far_p * e_p * one_q * both + larger(splat(ZERO), p))
            store(gate, to + i, far_q * e_q * one_p * both + larger(splat(ZERO), q))


@_compiled
def norm_gated(
    y: Any,
    gate: Any,
    first: int,
    rows: int,
    gain: Floats,
    shift: Floats,
    eps: float,
    width: int,
    out: Any,
) -> None:
    """Layer norm of rows, times the gate's; to the beginning of ``out``."""
    for to in range(0, rows * width, width):
        at = first + to
        mean, scale = moments(y, at, width, eps)
        for i in range(0, width, LANES):
            off = (load(y, at + i) - mean) * scale
            store(out, to + i, (off * load(gain, i) + load(shift, i)) * load(gate, at + i))


@_compiled
def add(x: Any, first: int, y: Any, rows: int, bias: Floats, width: int, out: Any) -> None:
    """Rows of ``x``, plus those from the beginning of ``y`` and a bias."""
    for row in range(0, rows * width, width):
        for i in range(0, width, LANES):
            added = load(y, row + i) + load(bias, i)
            store(out, first + row + i, load(x, first + row + i) + added)


@_compiled
def add_norm(
    x: Any, rows: int, gain: Floats, shift: Floats, eps: float, width: int, sums: Floats
) -> None:
    """Add the layer norm of rows to sums."""
    for at in range(0, rows * width, width):
        mean, scale = moments(x, at, width, eps)
        for i in range(0, width, LANES):
            off = (load(x, at + i) - mean) * scale
            more = off * load(gain, i) + load(shift, i)
            store(sums, at + i, load(sums, at + i) + more)


@_compiled
def _place(i: int, length: int, side: int) -> Any:
    """Where pixel i of so many is between those of a map of another side: the first, the share."""
    at = min(max((i + 0.5) * side / length - 0.5, 0.0), side - 1.0)
    before = int(at)
    return before, np.float32(at - before)


@_compiled
def _blend(x: Any, first: int, second: int, share: Any, size: int, out: Floats, to: int) -> None:
    """Numbers between those from one index on and those from another on."""
    for i in range(0, size, LANES):
        here = load(x, first + i)
        store(out, to + i, (load(x, second + i) - here) * splat(share) + here)


@_compiled
def join(
    tokens: Any,
    first: int,
    grid: Any,
    top: int,
    rows: int,
    small: Any,
    of_small: int,
    sides: Any,
    gain: Floats,
    shift: Floats,
    eps: float,
    width: int,
    work: Floats,
    out: Any,
) -> None:
    """Layer norms of a map's tokens and of a smaller map's between them, side by side.

    Args:
        tokens: (.., width).
        first: number of the first token of row ``top``.
        grid: rows and columns of the map.
        top: the first row that is wanted.
        rows: how many.
        small: the smaller map, from index ``of_small`` on, enlarged bilinearly.
        of_small: see there.
        sides: its rows and columns.
        gain: of both norms.
        shift: the same.
        eps: the same.
        width: channels.
        work: room for a row of the smaller map, and a token.
        out: (rows, columns, 2 * width).
    """
    line, token = sides[1] * width, sides[1] * width
    at, to = first * width, 0
    for y in range(top, top + rows):
        above, share = _place(y, grid[0], sides[0])
        below = min(above + 1, sides[0] - 1)
        _blend(small, of_small + above * line, of_small + below * line, share, line, work, 0)
        for x in range(grid[1]):
            mean, scale = moments(tokens, at, width, eps)
            for i in range(0, width, LANES):
                off = (load(tokens, at + i) - mean) * scale
                store(out, to + i, off * load(gain, i) + load(shift, i))
            left, share = _place(x, grid[1], sides[1])
            right = min(left + 1, sides[1] - 1)
            _blend(work, left * width, right * width, share, width, work, token)
            mean, scale = moments(work, token, width, eps)
            for i in range(0, width, LANES):
                off = (load(work, token + i) - mean) * scale
                store(out, to + width + i, off * load(gain, i) + load(shift, i))
            at += width
            to += 2 * width
