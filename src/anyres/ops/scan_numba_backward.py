"""The cycle-scan's compiled backward pass; ``scan_numba`` has the forward pass and the notation.

The states of one chunk at a time are computed anew from those kept at its start. Two adjoints run
from the end, in one sweep: l of the outputs and m of the end state g, which counts once more in the
repetitions' starts. m at the end is the gradient for g, which follows from that for w, the sum of
exp(A (delta_1 + .. + delta_t)) C_t dy_t, and that is found beforehand, as far as it lasts. With
H = G h + q, what the recurrence answered in all, and v = G l + m:

    dx_t = v_t B_t    dB_t = v_t x_t    dC_t = dy_t H_t    de_t = l_t H_{t-1} + m_t h_{t-1}

Sums over channels are taken over the 16 of a task here, and over tasks by the caller.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops import scan_numba, simd_rows
from anyres.ops.scan_numba import (
    Kept,
    Task,
    fetch,
    lasts,
    put,
    to_sums,
    total_weight,
)
from anyres.ops.scan_numba_steps import CHUNK, ZERO
from anyres.ops.simd import (
    LANES,
    Floats,
    compiled,
    decay,
    load,
    nonzero,
    splat,
    spread,
    store,
    unless_faded,
)
from anyres.ops.simd_rows import sums

_ONE = np.float32(1)
_LN2 = np.float32(0.6931471805599453)

# Working memory of a task: planes of rows, a row of 16 lanes for each token of a chunk and one
# more; then a row for each state, for several purposes. Between planes there is room, so that no
# row is 4 KB from one used next to it (see ``scan_numba``).
_PLANE = LANES * (CHUNK + 5)
U, DELTA, X, DY, DX, DDELTA, DECAY, H, WHOLE, FOR_B, FOR_C, STATES = (_PLANE * i for i in range(12))

# Rows a state in the working memory: w, its gradient, that of g (which is m at the end), l, and how
# much of m is left.
_START, _FOR_START, _FOR_END, _ADJOINT, _LEFT, _CHAIN = range(6)


class Inputs(NamedTuple):
    """What was scanned. J blocks of 16 channels, filled up with zeros; P tokens, filled up."""

    u: Floats  # (B, L, C)
    delta: Floats  # (B, L, C)
    rates: Floats  # (J, N, 16), A / ln 2
    b: Floats  # (B, N, P)
    c: Floats  # (B, N, P)
    direct: Floats  # (J, 16)
    gamma: Floats  # (J, R, 16)


class Gradients(NamedTuple):
    """Gradients; of parameters that tasks share, each task's own part."""

    u: Floats  # (B, L, C)
    delta: Floats  # (B, L, C)
    a: Floats  # (B, J, N, 16)
    b: Floats  # (B, J, N, P)
    c: Floats  # (B, J, N, P)
    direct: Floats  # (B, J, 16)
    gamma: Floats  # (B, J, R, 16)


def work_size(states: int, cycles: int) -> int:
    """How many float32 of working memory a task needs."""
    return STATES + LANES * ((_CHAIN + 1) * states + cycles + 1)


_compiled = compiled(simd_rows.__file__, scan_numba.__file__, __file__)


@_compiled
def _row(task: Task, purpose: int, n: int) -> int:
    return STATES + (purpose * task.states + n) * LANES


@_compiled
def _fetch(task: Task, k: int, source: Floats, work: Floats, plane: int) -> None:
    """Copy chunk k of (B, L, C) to a plane; 0 after the last token."""
    for t in range(task.length - k * CHUNK, CHUNK):
        store(work, plane + t * LANES, splat(ZERO))
    fetch(task, k, source, task.channels, work, plane, LANES)


@_compiled
def backward(
    task: Task, dy: Floats, inputs: Inputs, kept: Kept, out: Gradients, work: Floats
) -> None:
    """Gradients of one task from those of its outputs, dy (B, L, C)."""
    for n in range(task.states):
        for purpose in (_START, _FOR_START, _FOR_END, _ADJOINT):
            store(work, _row(task, purpose, n), splat(ZERO))
        store(work, _row(task, _LEFT, n), splat(_ONE))
        store(out.a, (task.number * task.states + n) * LANES, splat(ZERO))
    store(out.direct, task.number * LANES, splat(ZERO))
    for r in range(task.cycles):
        store(out.gamma, (task.number * task.cycles + r) * LANES, splat(ZERO))
    for_sum = splat(ZERO)
    if task.cycles > 1:
        _back_to_starts(task, dy, inputs, work)
        for_sum = _back_to_ends(task, inputs, kept, out, work)
    for_total = splat(ZERO)
    for k in range(task.chunks - 1, -1, -1):
        for_total = for_total + _back_chunk(task, k, dy, inputs, kept, out, work, for_sum)
    for r in range(task.cycles):
        to = (task.number * task.cycles + r) * LANES
        store(out.gamma, to, load(out.gamma, to) + for_total)


@_compiled
def _back_to_starts(task: Task, dy: Floats, inputs: Inputs, work: Floats) -> None:
    """Gradient for w."""
    before = splat(ZERO)
    for k in range(task.chunks):
        if not lasts(task, inputs.rates, before):
            return
        _fetch(task, k, inputs.delta, work, DELTA)
        _fetch(task, k, dy, work, DY)
        after = to_sums(task, k, work, DELTA, LANES, before)
        for n in range(task.states):
            rate = load(inputs.rates, (task.block * task.states + n) * LANES)
            if not nonzero(decay(before, rate)):
                continue
            gradient = splat(ZERO)
            token = (task.sample * task.states + n) * task.padded + k * CHUNK
            for t in range(min(CHUNK, task.length - k * CHUNK)):
                seen = load(work, DY + t * LANES) * spread(inputs.c, token + t)
                gradient = decay(load(work, DELTA + t * LANES), rate) * seen + gradient
            to = _row(task, _FOR_START, n)
            store(work, to, load(work, to) + gradient)
        before = after


@_compiled
def _back_to_ends(task: Task, inputs: Inputs, kept: Kept, out: Gradients, work: Floats) -> Any:
    """Through s_{r+1} = g + P s_r: w, gradients for g, gamma, A; returns that for sum delta."""
    place = task.number * (task.chunks + 1) + task.chunks
    passed = load(kept.sums, place * LANES)
    chain = _row(task, _CHAIN, task.states)  # behind all: s_1, s_2 ...
    for_sum = splat(ZERO)
    for n in range(task.states):
        rate = load(inputs.rates, (task.block * task.states + n) * LANES)
        power = decay(passed, rate)
        end = load(kept.states, (place * task.states + n) * LANES)
        for_start = load(work, _row(task, _FOR_START, n))
        state = splat(ZERO)
        weighted = splat(ZERO)
        store(work, chain, state)
        for r in range(1, task.cycles):
            state = power * state + end
            store(work, chain + r * LANES, state)
            gamma = load(inputs.gamma, (task.block * task.cycles + r) * LANES)
            weighted = gamma * state + weighted
            to = (task.number * task.cycles + r) * LANES
            store(out.gamma, to, for_start * state + load(out.gamma, to))
        for_state = splat(ZERO)
        for_end = splat(ZERO)
        for_power = splat(ZERO)
        for r in range(task.cycles - 1, 0, -1):
            gamma = load(inputs.gamma, (task.block * task.cycles + r) * LANES)
            for_state = power * for_state + gamma * for_start
            for_end = for_end + for_state
            for_power = for_state * load(work, chain + (r - 1) * LANES) + for_power
        through = for_power * power
        store(out.a, (task.number * task.states + n) * LANES, through * passed)
        for_sum = through * rate + for_sum
        store(work, _row(task, _START, n), weighted)
        store(work, _row(task, _FOR_END, n), for_end)
    return for_sum * splat(_LN2)


@_compiled
def _back_chunk(
    task: Task,
    k: int,
    dy: Floats,
    inputs: Inputs,
    kept: Kept,
    out: Gradients,
    work: Floats,
    for_sum: Any,
) -> Any:
    """Gradients of one chunk, the last first; returns its part of G's."""
    total = total_weight(task, inputs.gamma)
    _fetch(task, k, inputs.u, work, U)
    _fetch(task, k, inputs.delta, work, DELTA)
    _fetch(task, k, dy, work, DY)
    for t in range(0, CHUNK * LANES, LANES):
        store(work, X + t, load(work, DELTA + t) * load(work, U + t))
        store(work, DX + t, splat(ZERO))
        store(work, DDELTA + t, splat(ZERO))
    for_total = splat(ZERO)
    for n in range(task.states):
        _run_chunk(task, k, n, inputs, kept, work, total)
        for_total = for_total + _reverse_chunk(task, k, n, inputs, out, work, total)
    direct = load(inputs.direct, task.block * LANES)
    for_direct = load(out.direct, task.number * LANES)
    for t in range(0, CHUNK * LANES, LANES):
        u = load(work, U + t)
        gradient = load(work, DY + t)
        for_x = load(work, DX + t)
        for_direct = gradient * u * total + for_direct
        for_total = gradient * u * direct + for_total
        for_delta = load(work, DDELTA + t) * splat(_LN2) + for_sum
        store(work, DDELTA + t, for_x * u + for_delta)
        store(work, DX + t, for_x * load(work, DELTA + t) + gradient * total * direct)
    store(out.direct, task.number * LANES, for_direct)
    put(task, k, work, DDELTA, LANES, out.delta)
    put(task, k, work, DX, LANES, out.u)
    return for_total


@_compiled
def _rows(task: Task, k: int) -> int:
    """Tokens of a chunk, filled up: a token with delta 0 and dy 0 changes nothing."""
    here = min(CHUNK, task.length - k * CHUNK)
    return (here + LANES - 1) // LANES * LANES


@_compiled
def _run_chunk(
    task: Task, k: int, n: int, inputs: Inputs, kept: Kept, work: Floats, total: Any
) -> None:
    """Decays, states h and H of state n in one chunk, computed anew."""
    place = task.number * (task.chunks + 1) + k
    rate = load(inputs.rates, (task.block * task.states + n) * LANES)
    start = load(work, _row(task, _START, n))
    left = decay(load(kept.sums, place * LANES), rate)
    h = load(kept.states, (place * task.states + n) * LANES)
    token = (task.sample * task.states + n) * task.padded + k * CHUNK
    rows = _rows(task, k)
    for t in range(rows):
        row = t * LANES
        store(work, H + row, h)
        store(work, WHOLE + row, total * h + left * start)
        step = decay(load(work, DELTA + row), rate)
        store(work, DECAY + row, step)
        h = step * h + load(work, X + row) * spread(inputs.b, token + t)
        left = unless_faded(left * step)
    store(work, H + rows * LANES, h)
    store(work, WHOLE + rows * LANES, total * h + left * start)


@_compiled
def _reverse_chunk(
    task: Task, k: int, n: int, inputs: Inputs, out: Gradients, work: Floats, total: Any
) -> Any:
    """The adjoints of state n in one chunk, last token first; returns the part of G's gradient."""
    rate = load(inputs.rates, (task.block * task.states + n) * LANES)
    for_end = load(work, _row(task, _FOR_END, n))
    adjoint = load(work, _row(task, _ADJOINT, n))
    left = load(work, _row(task, _LEFT, n))
    for_a = splat(ZERO)
    for_total = splat(ZERO)
    token = (task.sample * task.states + n) * task.padded + k * CHUNK
    rows = _rows(task, k)
    for t in range(rows - 1, -1, -1):
        row = t * LANES
        gradient = load(work, DY + row)
        step = load(work, DECAY + row)
        seen = gradient * spread(inputs.c, token + t)
        adjoint = adjoint + seen
        of_end = left * for_end
        both = total * adjoint + of_end
        store(work, DX + row, both * spread(inputs.b, token + t) + load(work, DX + row))
        store(work, FOR_B + row, both * load(work, X + row))
        store(work, FOR_C + row, gradient * load(work, WHOLE + row + LANES))
        for_total = seen * load(work, H + row + LANES) + for_total
        through = (adjoint * load(work, WHOLE + row) + of_end * load(work, H + row)) * step
        store(work, DDELTA + row, through * rate + load(work, DDELTA + row))
        for_a = through * load(work, DELTA + row) + for_a
        adjoint = adjoint * step
        left = unless_faded(left * step)
    store(work, _row(task, _ADJOINT, n), adjoint)
    store(work, _row(task, _LEFT, n), left)
    to = (task.number * task.states + n) * LANES
    store(out.a, to, load(out.a, to) + for_a)
    token = (task.number * task.states + n) * task.padded + k * CHUNK
    for t in range(0, rows, LANES):
        store(out.b, token + t, sums(work, FOR_B + t * LANES))
        store(out.c, token + t, sums(work, FOR_C + t * LANES))
    return for_total
