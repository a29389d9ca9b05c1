"""The cycle-scan block on a CPU without gradients: torch multiplies, compiled kernels do the rest.

A few tokens at a time go through all that comes before the scan, and through all that comes after
it, on one thread (``ops.threads``). Between, in buffers that the calling thread keeps, lie the
scan's input, which its answer replaces, the gate, and steps and weights: fresh memory of this size
would cost as much as the scan.

The sequence may be in pieces, each a tensor of its own: nothing is put together but in the buffers.

Shapes: B pictures, L tokens of all pieces, C channels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyres.ops import cycle_numba as kernels
from anyres.ops.block_cpu import Linear, Norm, numbers
from anyres.ops.buffers import Buffers
from anyres.ops.threads import share

# Tokens that are made ready at a time. Enough for what a product costs however small it is; few
# enough for what they become to stay in the cache.
PART = 1024
KEPT = 1 << 27  # bytes that a thread keeps; more are given back after each call


class Parameters(NamedTuple):
    """A block's parameters but for the scan's."""

    in_norm: Norm
    in_proj: Linear
    ssm_weight: Tensor  # (C, C + 2 N)
    ssm_bias: Tensor
    out_norm: Norm
    out_proj: Linear


class _Part(NamedTuple):
    """Tokens of one sample and piece."""

    piece: int
    start: int  # the first's row in its piece
    place: int  # and in the buffers
    tokens: int


_buffers = Buffers(KEPT)


def run(
    pieces: Sequence[Tensor],
    parameters: Parameters,
    scan: Callable[[Tensor, Tensor], Tensor],
    outputs: Sequence[Tensor],
) -> None:
    """The whole block.

    Args:
        pieces: (B, .., C) each, contiguous, of float32 or bfloat16 like the parameters; their
            tokens, one piece after the other, are the sequence.
        parameters: the block's.
        scan: called with the input (B, L, C) and with steps and weights (B, L, C + 2 N). It
            replaces the former by its answer.
        outputs: for the answers; the pieces themselves are allowed.
    """
    batch, channels, kind = len(pieces[0]), pieces[0].shape[-1], pieces[0].dtype
    lengths = [piece[0].numel() // channels for piece in pieces]
    parts, rows = _parts(batch, lengths), batch * sum(lengths)
    sources, targets = ([numbers(x) for x in tensors] for tensors in (pieces, outputs))
    # In one buffer: what is kept is one size.
    columns = len(parameters.ssm_bias)
    memory = _buffers.take("sequence", kind, rows * (2 * channels + columns))
    u, gate, weights = memory.split([rows * channels, rows * channels, rows * columns])
    of_u, of_gate = numbers(u), numbers(gate)
    u, weights = u.view(rows, channels), weights.view(rows, columns)

    def before(part: _Part) -> None:
        first, count = part.place, part.tokens
        normed = _buffers.take("normed", kind, count, channels)
        wide = _buffers.take("wide", kind, count, 2 * channels)
        source, start = sources[part.piece], part.start * channels
        kernels.norm(source, start, count, *parameters.in_norm, channels, numbers(normed))
        torch.mm(normed, parameters.in_proj.weight, out=wide)
        bias, place = parameters.in_proj.bias, first * channels
        kernels.activate(numbers(wide), count, bias, channels, of_u, of_gate, place)
        here = slice(first, first + count)
        torch.addmm(parameters.ssm_bias, u[here], parameters.ssm_weight, out=weights[here])

    def after(part: _Part) -> None:
        count, place, start = part.tokens, part.place * channels, part.start * channels
        normed = _buffers.take("normed", kind, count, channels)
        added = _buffers.take("wide", kind, count, channels)
        norm, product = parameters.out_norm, parameters.out_proj
        kernels.norm_gated(of_u, of_gate, place, count, *norm, channels, numbers(normed))
        torch.mm(normed, product.weight, out=added)
        source, target = sources[part.piece], targets[part.piece]
        kernels.add(source, start, numbers(added), count, product.bias, channels, target)

    share(before, parts)
    scan(u.view(batch, -1, channels), weights.view(batch, -1, columns))
    share(after, parts)


def _parts(batch: int, lengths: list[int]) -> list[_Part]:
    parts = []
    place = 0
    for sample in range(batch):
        for piece, length in enumerate(lengths):
            for start in range(0, length, PART):
                count = min(PART, length - start)
                parts.append(_Part(piece, sample * length + start, place + start, count))
            place += length
    return parts


def sum_of_norms(products: Tensor, norms: Sequence[Norm]) -> Tensor:
    """Sum layer norms, computed in float32: of products (P, .., C), P norms, to (.., C)."""
    products = products.contiguous()
    made = torch.empty_like(products[0])
    width = made.shape[-1]
    gains, shifts = (np.concatenate([norm[i] for norm in norms]) for i in (0, 1))
    eps = np.array([norm.eps for norm in norms], np.float32)
    rows = made.numel() // width
    kernels.sum_norms(numbers(products), len(norms), rows, gains, shifts, eps, width, numbers(made))
    return made
