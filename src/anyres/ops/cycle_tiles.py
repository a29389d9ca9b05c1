"""The cycle-scan block's products in bfloat16 on a processor with tiles (AMX), compiled.

Tokens lie in rows and are first factors as they are; so what a product yields has channels side by
side, and goes where it belongs without being turned. Weights are put into pairs for each call:
kept, they could go stale.

Rows of bfloat16 as uint16, one after the other; widths are multiples of 32. 32 rows are multiplied
at a time: up to 31 after the last are read, whatever they hold, and none is written. Nothing checks
this.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from anyres.ops import cycle_numba, pieces, product_tiles, simd_rows
from anyres.ops.pieces import take
from anyres.ops.product_tiles import SIDE, tile_product
from anyres.ops.simd import LANES, compiled, load, splat, store
from anyres.ops.simd_tiles import (
    coarse_inverse,
    coarse_power,
    configure,
    release,
    turn,
)

ONE = np.float32(1)
MINUS_LOG2E = np.float32(-math.log2(math.e))

_sources = (cycle_numba, pieces, product_tiles, simd_rows)
_compiled = compiled(__file__, *(str(source.__file__) for source in _sources))


class Layer(NamedTuple):
    """A linear layer."""

    pairs: Any  # its weight, of ``pair``
    bias: Any  # float32


class Norm(NamedTuple):
    """A layer norm, in float32."""

    gain: Any
    shift: Any
    eps: Any  # float32


@_compiled
def pair(weight: Any, first: int, stop: int, inner: int, pairs: Any) -> None:
    """Rows of a weight (outer, inner), multiples of 16, as stripes (outer / 16, inner, 16)."""
    for o in range(first, stop, LANES):
        for i in range(0, inner, SIDE):
            turn(weight, o * inner + i, inner, pairs, o * inner + i * LANES, SIDE)


@_compiled
def _multiply(x: Any, row: int, pairs: Any, o: int, inner: int, sums: Any) -> None:
    """Rows ``row`` to ``row`` + 31 by outer channels ``o`` to ``o`` + 31: sums (32, 32)."""
    first, second = o * inner, (o + LANES) * inner
    tile_product(x, row * inner, inner, SIDE, pairs, first, second, inner // SIDE, sums, 0, SIDE)


@_compiled
def silu(x: Any) -> Any:
    """The product x / (1 + exp(-x)), to 2e-4 of it."""
    return x * coarse_inverse(splat(ONE) + coarse_power(x * splat(MINUS_LOG2E)))


@_compiled
def activate(
    x: Any,
    rows: int,
    pairs: Any,
    bias: Any,
    width: int,
    palette: Any,
    sums: Any,
    u: Any,
    gate: Any,
    first: int,
) -> None:
    """SiLU of a linear layer's answer to rows; halves to ``u`` and ``gate`` from row ``first``."""
    configure(palette)
    for o in range(0, 2 * width, SIDE):
        out, column = (u, o) if o < width else (gate, o - width)
        left, right = load(bias, o), load(bias, o + LANES)
        for row in range(0, rows, SIDE):
            _multiply(x, row, pairs, o, width, sums)
            for r in range(min(SIDE, rows - row)):
                to = (first + row + r) * width + column
                store(out, to, silu(load(sums, r * SIDE) + left))
                store(out, to + LANES, silu(load(sums, r * SIDE + LANES) + right))
    release()


@_compiled
def project(
    x: Any,
    first: int,
    rows: int,
    pairs: Any,
    bias: Any,
    inner: int,
    palette: Any,
    sums: Any,
    out: Any,
    others: Any,
) -> None:
    """A linear layer's answer to rows from ``first`` on, to the same rows of ``out``.

    As many channels as it is given go there; what it answers more, to rows of ``others``.
    """
    configure(palette)
    for o in range(0, len(bias), SIDE):
        to_out = o < inner
        width, column = (inner, o) if to_out else (len(bias) - inner, o - inner)
        left, right = load(bias, o), load(bias, o + LANES)
        for row in range(first, first + rows, SIDE):
            _multiply(x, row, pairs, o, inner, sums)
            for r in range(min(SIDE, first + rows - row)):
                to = (row + r) * width + column
                one, two = load(sums, r * SIDE) + left, load(sums, r * SIDE + LANES) + right
                if to_out:
                    store(out, to, one)
                    store(out, to + LANES, two)
                else:
                    store(others, to, one)
                    store(others, to + LANES, two)
    release()


@_compiled
def add(
    x: Any,
    rows: int,
    pairs: Any,
    bias: Any,
    width: int,
    palette: Any,
    sums: Any,
    source: Any,
    first: int,
    out: Any,
) -> None:
    """Rows of ``source`` from ``first`` on, plus a linear layer's answer to those of ``x``."""
    configure(palette)
    for o in range(0, width, SIDE):
        left, right = load(bias, o), load(bias, o + LANES)
        for row in range(0, rows, SIDE):
            _multiply(x, row, pairs, o, width, sums)
            for r in range(min(SIDE, rows - row)):
                to = (first + row + r) * width + o
                store(out, to, load(source, to) + (load(sums, r * SIDE) + left))
                sum_right = load(sums, r * SIDE + LANES) + right
                store(out, to + LANES, load(source, to + LANES) + sum_right)
    release()


@_compiled
def all_before(
    parts: Any,
    queue: Any,
    sources: Any,
    norm: Norm,
    into: Layer,
    ssm: Layer,
    width: int,
    palette: Any,
    memory: Any,
    u: Any,
    gate: Any,
    steps: Any,
    weights: Any,
) -> None:
    """All that comes before the scan, for parts of a ``queue``.

    ``parts`` (P, 4) are: which of the sources, the first row in it, in the answers, and how many
    rows; ``memory`` is for the rows of a part, and for sums.
    """
    normed, sums = memory
    i = take(queue, len(parts))
    while i >= 0:
        source, place, rows = parts[i, 0], parts[i, 2], parts[i, 3]
        first = parts[i, 1] * width
        cycle_numba.norm(
            sources[source], first, rows, norm.gain, norm.shift, norm.eps, width, normed
        )
        activate(normed, rows, into.pairs, into.bias, width, palette, sums, u, gate, place)
        project(u, place, rows, ssm.pairs, ssm.bias, width, palette, sums, steps, weights)
        i = take(queue, len(parts))


@_compiled
def all_after(
    parts: Any,
    queue: Any,
    u: Any,
    gate: Any,
    norm: Norm,
    layer: Layer,
    width: int,
    palette: Any,
    memory: Any,
    sources: Any,
    targets: Any,
) -> None:
    """All that comes after the scan; as ``all_before``."""
    normed, sums = memory
    i = take(queue, len(parts))
    while i >= 0:
        source, start, rows = parts[i, 0], parts[i, 1], parts[i, 3]
        first = parts[i, 2] * width
        cycle_numba.norm_gated(u, gate, first, rows, norm.gain, norm.shift, norm.eps, width, normed)
        x, y = sources[source], targets[source]
        add(normed, rows, layer.pairs, layer.bias, width, palette, sums, x, start, y)
        i = take(queue, len(parts))
