"""The cycle-scan's compiled forward pass, and what it shares with the backward pass.

A task is 16 channels of one sample; the channels lie in the lanes of a vector. A scan from zero,
h_t = e_t h_{t-1} + x_t B_t with e_t = exp(delta_t A) and x_t = delta_t u_t, gives most of the
answer and the end state g. The rest is what the starts of the repetitions add: with w their
weighted sum, q_t = exp(A (delta_1 + .. + delta_t)) w. It dies out along the sequence and is left
off where it has. So y_t = G (C_t h_t + D u_t) + C_t q_t with G = sum_r gamma_r.

All arrays are flat float32. Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

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
)

CHUNK = 64  # tokens between states that are kept; a multiple of LANES
ZERO = np.float32(0)

# Working memory of a task: planes of rows, a row of 16 lanes for each token of a chunk and one
# more; then a row for each state, for several purposes. Planes are no power of 2 apart: their rows
# would compete for the same lines of the cache.
_PLANE = LANES * (CHUNK + 1)
U, DELTA, X, Y, DY = (_PLANE * i for i in range(5))
DX, DDELTA, DECAY, H, WHOLE, FOR_B, FOR_C = (_PLANE * i for i in range(5, 12))
STATES = _PLANE * 12
_STATE_ROWS = 6


class Task(NamedTuple):
    """Which 16 channels of which sample, and the sizes of everything."""

    number: int
    sample: int
    block: int
    width: int  # 16, fewer in the last block
    chunks: int
    length: int
    channels: int
    states: int
    cycles: int
    padded: int  # the length, filled up to whole chunks


class Inputs(NamedTuple):
    """What is scanned. J blocks of 16 channels, filled up with zeros; P tokens, filled up."""

    u: Floats  # (B, L, C)
    delta: Floats  # (B, L, C)
    rates: Floats  # (J, N, 16), A / ln 2
    b: Floats  # (B, N, P)
    c: Floats  # (B, N, P)
    direct: Floats  # (J, 16)
    gamma: Floats  # (J, R, 16)


class Kept(NamedTuple):
    """What the backward pass needs, K chunks: states h and sums of delta, at starts and the end."""

    states: Floats  # (B, J, K + 1, N, 16)
    sums: Floats  # (B, J, K + 1, 16)


def work_size(states: int, cycles: int) -> int:
    """How many float32 of working memory a task needs."""
    return STATES + LANES * (_STATE_ROWS * states + cycles + 1)


_compiled = compiled(__file__)


@_compiled
def fetch(task: Task, k: int, source: Floats, work: Floats, plane: int) -> None:
    """Copy chunk k of (B, L, C); rows after the last token, lanes after the last channel: 0."""
    here = min(CHUNK, task.length - k * CHUNK)
    at = (task.sample * task.length + k * CHUNK) * task.channels + task.block * LANES
    for t in range(CHUNK):
        row = plane + t * LANES
        if t < here and task.width == LANES:
            store(work, row, load(source, at + t * task.channels))
        else:
            store(work, row, splat(ZERO))
            if t < here:
                for lane in range(task.width):
                    work[row + lane] = source[at + t * task.channels + lane]


@_compiled
def put(task: Task, k: int, work: Floats, plane: int, target: Floats) -> None:
    """Copy chunk k back to (B, L, C)."""
    here = min(CHUNK, task.length - k * CHUNK)
    at = (task.sample * task.length + k * CHUNK) * task.channels + task.block * LANES
    for t in range(here):
        row = plane + t * LANES
        if task.width == LANES:
            store(target, at + t * task.channels, load(work, row))
        else:
            for lane in range(task.width):
                target[at + t * task.channels + lane] = work[row + lane]


@_compiled
def total_weight(task: Task, gamma: Floats) -> Any:
    """G, the sum of the repetitions' weights."""
    total = splat(ZERO)
    for r in range(task.cycles):
        total = total + load(gamma, (task.block * task.cycles + r) * LANES)
    return total


@_compiled
def to_sums(work: Floats, before: Any) -> Any:
    """Turn the chunk's steps into running sums that begin with ``before``; returns the last."""
    passed = splat(ZERO)
    for t in range(0, CHUNK * LANES, LANES):
        # Chunk by chunk: in a plain sum, 65,536 steps would cost two digits.
        passed = passed + load(work, DELTA + t)
        store(work, DELTA + t, before + passed)
    return before + passed


@_compiled
def lasts(task: Task, rates: Floats, passed: Any) -> bool:
    """Whether anything is left of some state after steps that sum to ``passed``."""
    for n in range(task.states):
        if nonzero(decay(passed, load(rates, (task.block * task.states + n) * LANES))):
            return True
    return False


@_compiled
def forward(task: Task, inputs: Inputs, y: Floats, kept: Kept, keep: bool, work: Floats) -> None:
    """Outputs y (B, L, C) of one task; ``kept`` is filled if ``keep``, else it may be empty."""
    states = task.states
    total = total_weight(task, inputs.gamma)
    direct = load(inputs.direct, task.block * LANES)
    passed = splat(ZERO)
    for n in range(states):
        store(work, STATES + n * LANES, splat(ZERO))
    for k in range(task.chunks):
        if keep:
            _keep(task, k, kept, work, passed)
        fetch(task, k, inputs.u, work, U)
        fetch(task, k, inputs.delta, work, DELTA)
        here = splat(ZERO)
        for t in range(0, CHUNK * LANES, LANES):
            here = here + load(work, DELTA + t)
            store(work, X + t, load(work, DELTA + t) * load(work, U + t))
            store(work, Y + t, direct * load(work, U + t))
        passed = passed + here
        for n in range(states):
            _scan_chunk(task, k, n, inputs, work)
        for t in range(0, CHUNK * LANES, LANES):
            store(work, Y + t, total * load(work, Y + t))
        put(task, k, work, Y, y)
    if keep:
        _keep(task, task.chunks, kept, work, passed)
    if task.cycles > 1:
        _weigh_starts(task, inputs, work, passed)
        _add_starts(task, inputs, y, work)


@_compiled
def _keep(task: Task, k: int, kept: Kept, work: Floats, passed: Any) -> None:
    place = task.number * (task.chunks + 1) + k
    for n in range(task.states):
        state = load(work, STATES + n * LANES)
        store(kept.states, (place * task.states + n) * LANES, state)
    store(kept.sums, place * LANES, passed)


@_compiled
def _scan_chunk(task: Task, k: int, n: int, inputs: Inputs, work: Floats) -> None:
    """Advance state n through a chunk and add its part of the outputs."""
    rate = load(inputs.rates, (task.block * task.states + n) * LANES)
    h = load(work, STATES + n * LANES)
    token = (task.sample * task.states + n) * task.padded + k * CHUNK
    for t in range(min(CHUNK, task.length - k * CHUNK)):
        row = t * LANES
        x_b = load(work, X + row) * spread(inputs.b, token + t)
        h = decay(load(work, DELTA + row), rate) * h + x_b
        store(work, Y + row, spread(inputs.c, token + t) * h + load(work, Y + row))
    store(work, STATES + n * LANES, h)


@_compiled
def _weigh_starts(task: Task, inputs: Inputs, work: Floats, passed: Any) -> None:
    """Replace the end states g by w: s_1 = 0, s_{r+1} = g + P s_r, w = sum_r gamma_r s_r."""
    for n in range(task.states):
        power = decay(passed, load(inputs.rates, (task.block * task.states + n) * LANES))
        end = load(work, STATES + n * LANES)
        state = splat(ZERO)
        weighted = splat(ZERO)
        for r in range(1, task.cycles):
            state = power * state + end
            gamma = load(inputs.gamma, (task.block * task.cycles + r) * LANES)
            weighted = gamma * state + weighted
        store(work, STATES + n * LANES, weighted)


@_compiled
def _add_starts(task: Task, inputs: Inputs, y: Floats, work: Floats) -> None:
    """Add C_t q_t to the outputs, as far along the sequence as it has not died out."""
    before = splat(ZERO)
    for k in range(task.chunks):
        if not lasts(task, inputs.rates, before):
            return
        fetch(task, k, inputs.delta, work, DELTA)
        fetch(task, k, y, work, Y)
        after = to_sums(work, before)
        for n in range(task.states):
            rate = load(inputs.rates, (task.block * task.states + n) * LANES)
            if not nonzero(decay(before, rate)):
                continue
            start = load(work, STATES + n * LANES)
            token = (task.sample * task.states + n) * task.padded + k * CHUNK
            for t in range(min(CHUNK, task.length - k * CHUNK)):
                row = t * LANES
                left = decay(load(work, DELTA + row), rate)
                seen = start * spread(inputs.c, token + t)
                store(work, Y + row, left * seen + load(work, Y + row))
        put(task, k, work, Y, y)
        before = after
