"""The cycle-scan on a CPU: compiled kernels, on as many threads as torch has.

They compute in float32. Where everything read is bfloat16 and no gradient is wanted, the answer is
bfloat16 too and decays are as exact as that needs (``scan_numba_steps``).

The work is cut into tasks of 16 channels of one sample that share nothing; sums over tasks are
taken afterwards in a fixed order. So the result does not depend on the number of threads.

The threads are ordinary ones (``ops.threads``); kernels run without the interpreter's lock.

Shapes: B batch, L tokens, C channels, N states a channel, R cycles; J blocks of 16 channels, P
tokens filled up to whole chunks.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from anyres.ops.scan_numba import Kept, Sources, Strides, Task, forward_all, work_size
from anyres.ops.scan_numba_backward import Gradients, Inputs, backward
from anyres.ops.scan_numba_backward import work_size as back_work_size
from anyres.ops.scan_numba_steps import CHUNK, STEP
from anyres.ops.simd import LANES
from anyres.ops.threads import share, share_out

_LOG2E = math.log2(math.e)


def cycle_scan(*tensors: Tensor, out: Tensor | None, lengths: Sequence[int] = ()) -> Tensor:
    """As ``anyres.ops.scan.cycle_scan``, on the CPU, for what it computes in float32.

    Shapes are checked, but for that of ``out``. Several ``lengths``: without gradients only.
    """
    learns = learned(tensors)
    u, delta, a, b, c, *others = tensors
    kind = u.dtype
    if learns or any(x.dtype != torch.bfloat16 for x in (u, delta, b, c)):
        u, delta, b, c = (x.float() for x in (u, delta, b, c))
    a, d, gamma, *bias = (x.float() for x in (a, *others))
    if fill := -a.shape[1] % STEP:
        a, b, c = (F.pad(x, (0, fill)) for x in (a, b, c))
    if not learns:
        there = out if out is not None and out.dtype == u.dtype and out.is_contiguous() else None
        y = _forward(u, delta, a, b, c, d, gamma, *bias, keep=False, out=there, lengths=lengths)[0]
    else:
        if bias:
            delta = F.softplus(delta + bias[0])
        y = _CycleScan.apply(u, delta, a, b, c, d, gamma)  # type: ignore[no-untyped-call]
    if out is None or y is out:
        return y.to(kind)
    return out.copy_(y)


def learned(tensors: Sequence[Tensor]) -> bool:
    """Whether a gradient is wanted."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


class _CycleScan(torch.autograd.Function):
    """Differentiable once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        y, states, sums = _forward(*tensors, keep=True)
        ctx.save_for_backward(*tensors, states, sums)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        *tensors, states, sums = ctx.saved_tensors
        return _backward(dy.contiguous(), tensors, Kept(_flat(states), _flat(sums)))


def _forward(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    gamma: Tensor,
    *bias: Tensor,
    keep: bool,
    out: Tensor | None = None,
    lengths: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, and what is kept for the backward pass."""
    blocks = len(u) * -(-u.shape[2] // LANES)
    # Two at a time, as long as there is something to do for all threads.
    tasks = _tasks(u, a, gamma, lengths, 2 if blocks >= 4 * torch.get_num_threads() else 1)
    places = blocks * (tasks[0].chunks + 1) if keep else 0
    y = u.new_empty(u.shape) if out is None else out
    states = torch.empty(places * tasks[0].states * LANES)
    sums = torch.empty(places * LANES)
    u, delta, b, c = (_evenly_spaced(x) for x in (u, delta, b, c))
    rates, direct, weights = _to_blocks(a * _LOG2E), _to_blocks(d[:, None]), _to_blocks(gamma)
    added = _to_blocks(bias[0][:, None]) if bias else torch.empty(0)
    sources = Sources(*(_flat(x) for x in (u, delta, rates, b, c, direct, weights, added)))
    strides = Strides(*(x.stride(1) for x in (u, delta, b, c)))
    kept, answers = Kept(_flat(states), _flat(sums)), _flat(y)

    of_tasks, size = np.array(tasks), work_size(a.shape[1], tasks[0].together)

    def run(queue: Any) -> None:
        memory = _memory(size)
        forward_all(of_tasks, queue, sources, strides, answers, kept, keep, memory)

    share_out(run)
    return y, states, sums


def _backward(dy: Tensor, tensors: list[Tensor], kept: Kept) -> tuple[Tensor, ...]:
    """Gradients for u, delta, A, B, C, D and gamma."""
    u, delta, a, b, c, d, gamma = tensors
    batch, length, channels = u.shape
    tasks = _tasks(u, a, gamma)
    fill = -length % CHUNK
    b, c = (F.pad(x.transpose(1, 2), (0, fill)).contiguous() for x in (b, c))
    rates, direct, weights = _to_blocks(a * _LOG2E), _to_blocks(d[:, None]), _to_blocks(gamma)
    scanned = (u.contiguous(), delta.contiguous(), rates, b, c, direct, weights)
    of_tokens = (len(rates), *b.shape[1:])
    shapes = (rates.shape, of_tokens, of_tokens, direct.shape, weights.shape)
    shared = [u.new_empty(batch, *shape) for shape in shapes]
    parts = [u.new_empty(u.shape), u.new_empty(u.shape), *shared]
    of_y, inputs, out = _flat(dy), Inputs(*map(_flat, scanned)), Gradients(*map(_flat, parts))

    def run(task: Task) -> None:
        memory = _memory(back_work_size(task.states, task.cycles))
        backward(task, of_y, inputs, kept, out, memory)

    share(run, tasks)
    for_b, for_c = (_sum(x, 1)[..., :length].transpose(1, 2) for x in shared[1:3])
    for_a, for_direct, for_gamma = (
        _sum(x, 0).transpose(1, 2).flatten(0, 1)[:channels] for x in (shared[0], *shared[3:])
    )
    return *parts[:2], for_a, for_b, for_c, for_direct[:, 0], for_gamma


def _evenly_spaced(x_BLX: Tensor) -> Tensor:
    """Itself if its tokens, the samples' one after the other, lie equally far apart in memory."""
    token = x_BLX.stride(1)
    even = x_BLX.stride(2) == 1 and (len(x_BLX) == 1 or x_BLX.stride(0) == x_BLX.shape[1] * token)
    return x_BLX if even else x_BLX.contiguous()


def _to_blocks(x_CX: Tensor) -> Tensor:
    """(C, X) to (J, X, 16)."""
    filled = F.pad(x_CX, (0, 0, 0, -len(x_CX) % LANES))
    blocks: Tensor = filled.unflatten(0, (-1, LANES)).transpose(1, 2)
    return blocks.contiguous()


def _flat(x: Tensor) -> Any:
    """The memory from its first number to its last; bfloat16 as uint16."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    row = x.detach().as_strided((size if x.numel() else 0,), (1,))
    return (row.view(torch.uint16) if x.dtype == torch.bfloat16 else row).numpy()


def _sum(x: Tensor, dim: int) -> Tensor:
    """The sum over a dimension, always in the same order."""
    first, *others = x.unbind(dim)
    total = first.clone()
    for other in others:
        total += other
    return total


def _tasks(
    u: Tensor, a: Tensor, gamma: Tensor, lengths: Sequence[int] = (), together: int = 1
) -> list[Task]:
    batch, all_tokens, channels = u.shape
    blocks = -(-channels // LANES)
    tasks = []
    start = 0
    for length in lengths or [all_tokens]:
        chunks = -(-length // CHUNK)
        sizes = (chunks, length, channels, a.shape[1], gamma.shape[1], chunks * CHUNK)
        for sample, block in product(range(batch), range(0, blocks, together)):
            first, width = sample * all_tokens + start, min(LANES, channels - block * LANES)
            place = sample * blocks + block, sample, first, block, width
            tasks.append(Task(*place, *sizes, min(together, blocks - block)))
        start += length
    return tasks


def _memory(size: int) -> Any:
    # torch begins at a cache line, numpy need not.
    return torch.empty(size).numpy()
