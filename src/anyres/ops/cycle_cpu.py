"""The cycle-scan block on a CPU without gradients: torch multiplies, compiled kernels do the rest.

A few tokens at a time go through all that comes before the scan, and through all that comes after
it, on one thread (``ops.threads``). Between, in buffers that the calling thread keeps, lie the
scan's input, which its answer replaces, the gate, and steps and weights: fresh memory of this size
would cost as much as the scan.

The sequence may be in pieces, each a tensor of its own: nothing is put together but in the buffers.

Shapes: B pictures, L tokens of all pieces, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyres.ops import block
from anyres.ops import cycle_numba as kernels
from anyres.ops.block_cpu import Linear, Norm, numbers
from anyres.ops.buffers import Buffers
from anyres.ops.threads import share

# What is made ready at a time: a quarter of the tokens, for threads to find work. At least so many
# numbers that sharing them saves more than it costs; at most so many tokens that what becomes of
# them stays in the cache. Not a matter of how many threads there are: a product's last digits may
# change with its rows.
LEAST, MOST = 3 << 14, 1024
TILE = 32  # rows of a product in tiles
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
    parts, rows = _parts(batch, lengths, channels), batch * sum(lengths)
    sources, targets = ([numbers(x) for x in tensors] for tensors in (pieces, outputs))
    columns = len(parameters.ssm_bias)
    # In one buffer: what is kept is one size. Whole tiles are read, beyond the last row too.
    memory = _buffers.take("sequence", kind, rows * (2 * channels + columns) + TILE * channels)
    u, gate, weights, _ = memory.split(
        [rows * channels, rows * channels, rows * columns, TILE * channels]
    )
    of_u, of_gate = numbers(u), numbers(gate)
    u, weights = u.view(rows, channels), weights.view(rows, columns)
    in_tiles = block.scan_runs_in_tiles(u, (columns - channels) // 2)
    products = (_Tiles if in_tiles else _Products)(parameters, u, gate, weights)

    def before(part: _Part) -> None:
        count = part.tokens
        normed = _buffers.take("normed", kind, count + TILE, channels)[:count]
        source, start = sources[part.piece], part.start * channels
        kernels.norm(source, start, count, *parameters.in_norm, channels, numbers(normed))
        products.before(normed, part.place)

    def after(part: _Part) -> None:
        count, place = part.tokens, part.place * channels
        normed = _buffers.take("normed", kind, count + TILE, channels)[:count]
        norm = parameters.out_norm
        kernels.norm_gated(of_u, of_gate, place, count, *norm, channels, numbers(normed))
        products.after(normed, sources[part.piece], part.start, targets[part.piece])

    share(before, parts)
    scan(u.view(batch, -1, channels), weights.view(batch, -1, columns))
    share(after, parts)


class _Products:
    """The block's products by torch, and what follows each."""

    def __init__(self, parameters: Parameters, u: Tensor, gate: Tensor, weights: Tensor) -> None:
        self._of = parameters
        self._u, self._weights = u, weights
        self._arrays = numbers(u), numbers(gate)

    def before(self, normed: Tensor, place: int) -> None:
        """Input, gate, steps and weights of normed tokens, to rows from ``place`` on."""
        count, channels = normed.shape
        layer = self._of.in_proj
        wide = _buffers.take("wide", normed.dtype, count, 2 * channels)
        torch.mm(normed, layer.weight, out=wide)
        kernels.activate(
            numbers(wide), count, layer.bias, channels, *self._arrays, place * channels
        )
        here = slice(place, place + count)
        of = self._of
        torch.addmm(of.ssm_bias, self._u[here], of.ssm_weight, out=self._weights[here])

    def after(self, normed: Tensor, source: Any, start: int, target: Any) -> None:
        """The answer to normed tokens, added to those of the source from ``start`` on."""
        count, channels = normed.shape
        added = _buffers.take("wide", normed.dtype, count, channels)
        layer = self._of.out_proj
        torch.mm(normed, layer.weight, out=added)
        kernels.add(source, start * channels, numbers(added), count, layer.bias, channels, target)


class _Tiles:
    """As ``_Products``, by the processor's tiles."""

    def __init__(self, parameters: Parameters, u: Tensor, gate: Tensor, weights: Tensor) -> None:
        from anyres.ops import cycle_tiles, simd_tiles

        self._run, self._palette = cycle_tiles, simd_tiles.PALETTE
        into, out = parameters.in_proj, parameters.out_proj
        ssm = Linear(parameters.ssm_weight, numbers(parameters.ssm_bias.float()))
        self._into, self._ssm, self._out = map(
            self._paired, ("into", "ssm", "out"), (into, ssm, out)
        )
        self._u, self._gate, self._weights = numbers(u), numbers(gate), numbers(weights)

    def _paired(self, name: str, layer: Linear) -> tuple[Any, Any]:
        """A layer's weight in pairs, and its bias."""
        inner, outer = layer.weight.shape
        pairs = numbers(_buffers.take(name, layer.weight.dtype, outer, inner))
        self._run.pair(numbers(layer.weight.t().contiguous()), 0, outer, inner, pairs)
        return pairs, layer.bias

    def before(self, normed: Tensor, place: int) -> None:
        count, channels = normed.shape
        sums, run = numbers(_buffers.take("sums", torch.float32, TILE, TILE)), self._run
        arrays = sums, self._u, self._gate, place
        run.activate(numbers(normed), count, *self._into, channels, self._palette, *arrays)
        run.project(self._u, place, count, *self._ssm, channels, self._palette, sums, self._weights)

    def after(self, normed: Tensor, source: Any, start: int, target: Any) -> None:
        count, channels = normed.shape
        sums = numbers(_buffers.take("sums", torch.float32, TILE, TILE))
        arrays = sums, source, start, target
        self._run.add(numbers(normed), count, *self._out, channels, self._palette, *arrays)


def _parts(batch: int, lengths: list[int], channels: int) -> list[_Part]:
    parts = []
    place = 0
    most = min(max(sum(lengths) // 4, -(-LEAST // channels)), MOST)
    for sample in range(batch):
        for piece, length in enumerate(lengths):
            for start in range(0, length, most):
                count = min(most, length - start)
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
