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
def _moments(x: Any, at: int, width: int, eps: float) -> Any:
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
        mean, scale = _moments(x, at, width, eps)
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
        mean, scale = _moments(y, at, width, eps)
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
def sum_norms(
    x: Any, count: int, rows: int, gains: Floats, shifts: Floats, eps: Floats, width: int, out: Any
) -> None:
    """The sum of ``count`` layer norms, each of as many rows, the one's after the other's.

    Gains and shifts lie in the same order.
    """
    sums = np.empty(width, np.float32)
    for row in range(0, rows * width, width):
        for part in range(count):
            at, of = part * rows * width + row, part * width
            mean, scale = _moments(x, at, width, eps[part])
            for i in range(0, width, LANES):
                off = (load(x, at + i) - mean) * scale * load(gains, of + i) + load(shifts, of + i)
                store(sums, i, load(sums, i) + off if part else off)
        for i in range(0, width, LANES):
            store(out, row + i, load(sums, i))
