"""The cycle-scan's compiled forward pass, and what it shares with the backward pass.

A task is 16 channels of one sample; the channels lie in the lanes of a vector. A scan from zero,
h_t = e_t h_{t-1} + x_t B_t with e_t = exp(delta_t A) and x_t = delta_t u_t, gives most of the
answer and the end state g. The rest is what the starts of the repetitions add: with w their
weighted sum, q_t = exp(A (delta_1 + .. + delta_t)) w. It dies out along the sequence and is left
off where it has. So y_t = G (C_t h_t + D u_t) + C_t q_t with G = sum_r gamma_r.

All arrays are flat. Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops import pieces, scan_numba_steps, simd_rows
from anyres.ops.pieces import take
from anyres.ops.scan_numba_steps import (
    CHUNK,
    DELTA,
    ROW,
    STATES,
    STEP,
    ZERO,
    X,
    Y,
    brief_softplus,
    load4,
    store4,
    through,
    through_briefly,
)
from anyres.ops.simd import (
    LANES,
    Floats,
    Numbers,
    compiled,
    decay,
    larger,
    load,
    nonzero,
    number,
    softplus,
    splat,
    store,
)
from anyres.ops.simd_rows import put_number

FAINT = np.float32(2.0**-16)  # beside an answer in bfloat16, what has decayed to this is nothing


class Task(NamedTuple):
    """Which 16 channels of which sample, and the sizes of everything."""

    number: int
    sample: int
    first: int  # token, counted from the first sample's first
    block: int
    width: int  # 16, fewer in the last block
    chunks: int
    length: int
    channels: int
    states: int  # a multiple of STEP
    cycles: int
    padded: int  # the length, filled up to whole chunks
    together: int  # blocks that are scanned at a time, from this one on


class Strides(NamedTuple):
    """How many numbers the tokens of each input lie apart."""

    u: int
    delta: int
    b: int
    c: int


class Sources(NamedTuple):
    """What is scanned. J blocks of 16 channels, filled up with zeros."""

    u: Numbers  # (B, L, C)
    delta: Numbers  # (B, L, C)
    rates: Floats  # (J, N, 16), A / ln 2
    b: Numbers  # (B, L, N)
    c: Numbers  # (B, L, N)
    direct: Floats  # (J, 16)
    gamma: Floats  # (J, R, 16)
    bias: Floats  # (J, 16): steps are softplus(delta + bias); or empty: they are delta


class Kept(NamedTuple):
    """What the backward pass needs, K chunks: states h and sums of delta, at starts and the end."""

    states: Floats  # (B, J, K + 1, N, 16)
    sums: Floats  # (B, J, K + 1, 16)


def work_size(states: int, together: int) -> int:
    """How many float32 of working memory a task needs."""
    weights = 2 * CHUNK * -(-states // LANES) * LANES
    return STATES + LANES * states + weights + together * (states + 1) * LANES


_compiled = compiled(__file__, pieces.__file__, scan_numba_steps.__file__, simd_rows.__file__)


@_compiled
def is_brief(sources: Sources) -> bool:
    """Whether to compute as exactly as bfloat16 input and output need, no more."""
    return sources.u.itemsize == 2


@_compiled
def fetch(
    task: Task, k: int, source: Numbers, stride: int, work: Floats, plane: int, row: int
) -> None:
    """Copy chunk k of (B, L, C) to rows; lanes after the last channel: 0."""
    at = (task.first + k * CHUNK) * stride + task.block * LANES
    for t in range(min(CHUNK, task.length - k * CHUNK)):
        to = plane + t * row
        if task.width == LANES:
            store(work, to, load(source, at + t * stride))
        else:
            store(work, to, splat(ZERO))
            for lane in range(task.width):
                work[to + lane] = number(source, at + t * stride + lane)


@_compiled
def put(task: Task, k: int, work: Floats, plane: int, row: int, target: Numbers) -> None:
    """Copy chunk k back to (B, L, C)."""
    at = (task.first + k * CHUNK) * task.channels + task.block * LANES
    for t in range(min(CHUNK, task.length - k * CHUNK)):
        place = plane + t * row
        if task.width == LANES:
            store(target, at + t * task.channels, load(work, place))
        else:
            for lane in range(task.width):
                put_number(target, at + t * task.channels + lane, work[place + lane])


@_compiled
def total_weight(task: Task, gamma: Floats) -> Any:
    """G, the sum of the repetitions' weights."""
    total = splat(ZERO)
    for r in range(task.cycles):
        total = total + load(gamma, (task.block * task.cycles + r) * LANES)
    return total


@_compiled
def to_sums(task: Task, k: int, work: Floats, plane: int, row: int, before: Any) -> Any:
    """Turn the chunk's steps into running sums that begin with ``before``; returns the last."""
    passed = splat(ZERO)
    for t in range(min(CHUNK, task.length - k * CHUNK)):
        # Chunk by chunk: in a plain sum, 65,536 steps would cost two digits.
        passed = passed + load(work, plane + t * row)
        store(work, plane + t * row, before + passed)
    return before + passed


@_compiled
def lasts(task: Task, rates: Floats, passed: Any) -> bool:
    """Whether anything is left of some state after steps that sum to ``passed``."""
    for n in range(task.states):
        if nonzero(decay(passed, load(rates, (task.block * task.states + n) * LANES))):
            return True
    return False


@_compiled
def _width(task: Task) -> int:
    """Numbers a row of weights takes."""
    return (task.states + LANES - 1) // LANES * LANES


@_compiled
def _fetch_steps(task: Task, k: int, sources: Sources, strides: Strides, work: Floats) -> None:
    fetch(task, k, sources.delta, strides.delta, work, DELTA, ROW)
    if sources.bias.size:
        bias = load(sources.bias, task.block * LANES)
        for t in range(min(CHUNK, task.length - k * CHUNK)):
            raw = load(work, t * ROW + DELTA) + bias
            step = brief_softplus(raw) if is_brief(sources) else softplus(raw)
            store(work, t * ROW + DELTA, step)


@_compiled
def _fetch_weights(
    task: Task, k: int, source: Numbers, stride: int, work: Floats, second: int
) -> None:
    """Copy a chunk's input weights, or those of outputs to the second half of the rows."""
    width = _width(task)
    at = (task.first + k * CHUNK) * stride
    to = STATES + task.states * LANES + second * width
    for _t in range(min(CHUNK, task.length - k * CHUNK)):
        for n in range(0, task.states, LANES):
            if at + n + LANES <= source.size:
                store(work, to + n, load(source, at + n))
            else:
                for i in range(n, task.states):
                    work[to + i] = number(source, at + i)
        at += stride
        to += 2 * width


@_compiled
def _neighbour(t: Task, i: int) -> Task:
    """The i-th block after a task's own, as a task."""
    block, width = t.block + i, min(LANES, t.channels - (t.block + i) * LANES)
    sizes = t.chunks, t.length, t.channels, t.states, t.cycles, t.padded
    return Task(t.number + i, t.sample, t.first, block, width, *sizes, 1)


@_compiled
def _copy(work: Floats, at: int, size: int, to: int) -> None:
    for i in range(0, size, LANES):
        store(work, to + i, load(work, at + i))


@_compiled
def forward(
    task: Task,
    sources: Sources,
    strides: Strides,
    y: Numbers,
    kept: Kept,
    keep: bool,
    work: Floats,
) -> None:
    """Outputs y (B, L, C) of one task; ``kept`` is filled if ``keep``, else it may be empty.

    Its blocks go through a chunk one after the other: they have their weights in common, and
    inputs that are neighbours in memory.
    """
    size = task.states * LANES
    # Behind the weights, for each block: states and, after them, the sum of the steps.
    first, apart = STATES + size + 2 * CHUNK * _width(task), size + LANES
    for i in range(0, task.together * apart, LANES):
        store(work, first + i, splat(ZERO))
    for k in range(task.chunks):
        _fetch_weights(task, k, sources.b, strides.b, work, 0)
        _fetch_weights(task, k, sources.c, strides.c, work, 1)
        for i in range(task.together):
            at = first + i * apart
            _copy(work, at, size, STATES)
            passed = load(work, at + size)
            passed = _scan(_neighbour(task, i), k, sources, strides, y, kept, keep, work, passed)
            store(work, at + size, passed)
            _copy(work, STATES, size, at)
    for i in range(task.together):
        one, at = _neighbour(task, i), first + i * apart
        _copy(work, at, size, STATES)
        passed = load(work, at + size)
        if keep:
            _keep(one, task.chunks, kept, work, passed)
        if task.cycles > 1:
            _weigh_starts(one, sources, work, passed)
            _add_starts(one, sources, strides, y, work)


@_compiled
def _scan(
    task: Task,
    k: int,
    sources: Sources,
    strides: Strides,
    y: Numbers,
    kept: Kept,
    keep: bool,
    work: Floats,
    passed: Any,
) -> Any:
    """Outputs of a block's chunk, but for the starts' part; returns the sum of the steps."""
    if keep:
        _keep(task, k, kept, work, passed)
    direct = load(sources.direct, task.block * LANES)
    _fetch_steps(task, k, sources, strides, work)
    fetch(task, k, sources.u, strides.u, work, X, ROW)
    here = most = splat(ZERO)
    rows = min(CHUNK, task.length - k * CHUNK)
    for row in range(0, rows * ROW, ROW):
        u, delta = load(work, row + X), load(work, row + DELTA)
        here = here + delta
        most = larger(delta, most)
        store(work, row + X, delta * u)
        store(work, row + Y, direct * u)
    for n in range(0, task.states, STEP):
        _scan_chunk(task, rows, n, sources, work, most)
    total = total_weight(task, sources.gamma)
    for row in range(0, rows * ROW, ROW):
        store(work, row + Y, total * load(work, row + Y))
    put(task, k, work, Y, ROW, y)
    return passed + here


@_compiled
def forward_all(
    tasks: Any,
    queue: Any,
    sources: Sources,
    strides: Strides,
    y: Numbers,
    kept: Kept,
    keep: bool,
    work: Floats,
) -> None:
    """As ``forward``, of tasks (T, fields) of a ``queue``, until there are no more."""
    i = take(queue, len(tasks))
    while i >= 0:
        t = tasks[i]
        task = Task(t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11])
        forward(task, sources, strides, y, kept, keep, work)
        i = take(queue, len(tasks))


@_compiled
def _keep(task: Task, k: int, kept: Kept, work: Floats, passed: Any) -> None:
    place = task.number * (task.chunks + 1) + k
    for n in range(task.states):
        state = load(work, STATES + n * LANES)
        store(kept.states, (place * task.states + n) * LANES, state)
    store(kept.sums, place * LANES, passed)


@_compiled
def _scan_chunk(task: Task, rows: int, n: int, sources: Sources, work: Floats, most: Any) -> None:
    """Advance states n to n + 3 through a chunk and add their part of the outputs."""
    rates = load4(sources.rates, (task.block * task.states + n) * LANES)
    width = _width(task)
    at, b = STATES + n * LANES, STATES + task.states * LANES + n
    if is_brief(sources):
        through_briefly(work, rows, at, b, width, rates, most)
    else:
        through(work, rows, at, b, width, rates, most)


@_compiled
def _weigh_starts(task: Task, sources: Sources, work: Floats, passed: Any) -> None:
    """Replace the end states g by w: s_1 = 0, s_{r+1} = g + P s_r, w = sum_r gamma_r s_r."""
    for n in range(task.states):
        power = decay(passed, load(sources.rates, (task.block * task.states + n) * LANES))
        end = load(work, STATES + n * LANES)
        state = splat(ZERO)
        weighted = splat(ZERO)
        for r in range(1, task.cycles):
            state = power * state + end
            gamma = load(sources.gamma, (task.block * task.cycles + r) * LANES)
            weighted = gamma * state + weighted
        store(work, STATES + n * LANES, weighted)


@_compiled
def _begin(task: Task, n: int, sources: Sources, work: Floats, passed: Any) -> bool:
    """Put what is left of states n to n + 3, after steps that sum to ``passed``, in their place.

    Not if that is nothing: it returns whether it is something.
    """
    least = splat(FAINT if is_brief(sources) else ZERO)
    at, rates = STATES + n * LANES, load4(sources.rates, (task.block * task.states + n) * LANES)
    left0, left1 = decay(passed, rates[0]), decay(passed, rates[1])
    left2, left3 = decay(passed, rates[2]), decay(passed, rates[3])
    most = larger(larger(left0, left1), larger(left2, left3))
    if not nonzero(larger(most - least, splat(ZERO))):
        return False
    start = load4(work, at)
    # Not handed on from chunk to chunk: it would end in subnormal numbers.
    store4(work, at, (start[0] * left0, start[1] * left1, start[2] * left2, start[3] * left3))
    return True


@_compiled
def _add_starts(task: Task, sources: Sources, strides: Strides, y: Numbers, work: Floats) -> None:
    """Add C_t q_t to the outputs, as far along the sequence as it has not died out.

    It is what a scan of zeros answers that begins with w.
    """
    passed = splat(ZERO)
    for k in range(task.chunks):
        _fetch_steps(task, k, sources, strides, work)
        _fetch_weights(task, k, sources.c, strides.c, work, 1)
        fetch(task, k, y, task.channels, work, Y, ROW)
        rows = min(CHUNK, task.length - k * CHUNK)
        here = most = splat(ZERO)
        for row in range(0, rows * ROW, ROW):
            delta = load(work, row + DELTA)
            here = here + delta
            most = larger(delta, most)
            store(work, row + X, splat(ZERO))
        lasts = False
        for n in range(0, task.states, STEP):
            start = load4(work, STATES + n * LANES)
            if _begin(task, n, sources, work, passed):
                lasts = True
                _scan_chunk(task, rows, n, sources, work, most)
                store4(work, STATES + n * LANES, start)
        if not lasts:
            return
        put(task, k, work, Y, ROW, y)
        passed = passed + here
