"""The cycle-scan on a CPU in float32: compiled kernels, on as many threads as torch has.

The work is cut into tasks of 16 channels of one sample that share nothing; sums over tasks are
taken afterwards in a fixed order. So the result does not depend on the number of threads.

The threads are ordinary ones (``ops.threads``); kernels run without the interpreter's lock.

Shapes: B batch, L tokens, C channels, N states a channel, R cycles; J blocks of 16 channels, P
tokens filled up to whole chunks.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from anyres.ops.scan_numba import CHUNK, Inputs, Kept, Task, forward, work_size
from anyres.ops.scan_numba_backward import Gradients, backward
from anyres.ops.simd import LANES
from anyres.ops.threads import share


def cycle_scan(*tensors: Tensor) -> Tensor:
    """As ``anyres.ops.scan.cycle_scan``; float32 tensors on the CPU, their shapes checked."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        y: Tensor = _CycleScan.apply(*tensors)  # type: ignore[no-untyped-call]
        return y
    return _forward(_prepare(*tensors), keep=False)[0]


class _CycleScan(torch.autograd.Function):
    """Differentiable once."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        prepared = _prepare(*tensors)
        y, states, sums = _forward(prepared, keep=True)
        ctx.save_for_backward(*prepared, states, sums)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        *prepared, states, sums = ctx.saved_tensors
        return _backward(dy.contiguous(), prepared, Kept(_flat(states), _flat(sums)))


def _prepare(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gamma: Tensor
) -> list[Tensor]:
    """The tensors as ``scan_numba.Inputs`` wants them."""
    fill = -u.shape[1] % CHUNK
    return [
        u.contiguous(),
        delta.contiguous(),
        _to_blocks(a * math.log2(math.e)),
        *(F.pad(x.transpose(1, 2), (0, fill)).contiguous() for x in (b, c)),
        _to_blocks(d[:, None]),
        _to_blocks(gamma),
    ]


def _forward(prepared: list[Tensor], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, and what is kept for the backward pass."""
    tasks = _tasks(prepared)
    places = len(tasks) * (tasks[0].chunks + 1) if keep else 0
    y = torch.empty_like(prepared[0])
    states = torch.empty(places * tasks[0].states * LANES)
    sums = torch.empty(places * LANES)
    inputs, kept, out = Inputs(*map(_flat, prepared)), Kept(_flat(states), _flat(sums)), _flat(y)

    share(lambda task: forward(task, inputs, out, kept, keep, _work_of(task)), tasks)
    return y, states, sums


def _backward(dy: Tensor, prepared: list[Tensor], kept: Kept) -> tuple[Tensor, ...]:
    """Gradients for u, delta, A, B, C, D and gamma."""
    tasks = _tasks(prepared)
    u, _, rates, b, _, direct, gamma = prepared
    batch, length, channels = u.shape
    of_tokens = (len(rates), *b.shape[1:])
    shapes = (rates.shape, of_tokens, of_tokens, direct.shape, gamma.shape)
    shared = [u.new_empty(batch, *shape) for shape in shapes]
    parts = [torch.empty_like(u), torch.empty_like(u), *shared]
    of_y, inputs, out = _flat(dy), Inputs(*map(_flat, prepared)), Gradients(*map(_flat, parts))

    share(lambda task: backward(task, of_y, inputs, kept, out, _work_of(task)), tasks)
    for_b, for_c = (_sum(x, 1)[..., :length].transpose(1, 2) for x in shared[1:3])
    for_a, for_direct, for_gamma = (
        _sum(x, 0).transpose(1, 2).flatten(0, 1)[:channels] for x in (shared[0], *shared[3:])
    )
    return *parts[:2], for_a, for_b, for_c, for_direct[:, 0], for_gamma


def _to_blocks(x_CX: Tensor) -> Tensor:
    """(C, X) to (J, X, 16)."""
    filled = F.pad(x_CX, (0, 0, 0, -len(x_CX) % LANES))
    blocks: Tensor = filled.unflatten(0, (-1, LANES)).transpose(1, 2)
    return blocks.contiguous()


def _flat(x: Tensor) -> Any:
    return x.detach().view(-1).numpy()


def _sum(x: Tensor, dim: int) -> Tensor:
    """The sum over a dimension, always in the same order."""
    first, *others = x.unbind(dim)
    total = first.clone()
    for other in others:
        total += other
    return total


def _tasks(prepared: list[Tensor]) -> list[Task]:
    u, _, rates, b, _, _, gamma = prepared
    batch, length, channels = u.shape
    blocks, states = rates.shape[:2]
    sizes = (length, channels, states, gamma.shape[1], b.shape[2])
    return [
        Task(
            sample * blocks + block,
            sample,
            block,
            min(LANES, channels - block * LANES),
            b.shape[2] // CHUNK,
            *sizes,
        )
        for sample in range(batch)
        for block in range(blocks)
    ]


def _work_of(task: Task) -> Any:
    # torch begins at a cache line, numpy need not.
    return torch.empty(work_size(task.states, task.cycles)).numpy()
