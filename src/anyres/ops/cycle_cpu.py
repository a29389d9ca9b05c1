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
from anyres.ops.threads import share, share_out

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

    def ssm_layers(self, channels: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Weight and bias of the steps, and of input and output weights."""
        steps, others = slice(channels), slice(channels, None)
        return tuple((self.ssm_weight[:, some], self.ssm_bias[some]) for some in (steps, others))


class _Part(NamedTuple):
    """Tokens of one sample and piece."""

    piece: int
    start: int  # the first's row in its piece
    place: int  # and in the buffers
    tokens: int


class _Maps(NamedTuple):
    """Of all tokens: input, gate and steps (rows, C), weights (rows, 2 N); and the pieces."""

    u: Tensor
    gate: Tensor
    steps: Tensor
    weights: Tensor
    sources: tuple[Any, ...]
    targets: tuple[Any, ...]


_buffers = Buffers(KEPT)


def run(
    pieces: Sequence[Tensor],
    parameters: Parameters,
    scan: Callable[[Tensor, Tensor, Tensor], Tensor],
    outputs: Sequence[Tensor],
) -> None:
    """The whole block.

    Args:
        pieces: (B, .., C) each, contiguous, of float32 or bfloat16 like the parameters; their
            tokens, one piece after the other, are the sequence.
        parameters: the block's.
        scan: called with the input (B, L, C), steps (B, L, C) and weights (B, L, 2 N). It
            replaces the input by its answer.
        outputs: for the answers; the pieces themselves are allowed.
    """
    batch, channels, kind = len(pieces[0]), pieces[0].shape[-1], pieces[0].dtype
    lengths = [piece[0].numel() // channels for piece in pieces]
    rows, columns = batch * sum(lengths), len(parameters.ssm_bias)
    # In one buffer: what is kept is one size. Whole tiles are read, beyond the last row too.
    memory = _buffers.take("sequence", kind, rows * (2 * channels + columns) + TILE * channels)
    u, gate, steps, weights, _ = memory.split(
        [*[rows * channels] * 3, rows * (columns - channels), TILE * channels]
    )
    between = [x.view(rows, -1) for x in (u, gate, steps, weights)]
    in_tiles = block.scan_runs_in_tiles(between[0], (columns - channels) // 2)
    maps = [tuple(numbers(x) for x in tensors) for tensors in (pieces, outputs)]
    products = (_Tiles if in_tiles else _Products)(parameters, _Maps(*between, *maps))
    parts = _parts(batch, lengths, channels, *((8, MOST // 2) if in_tiles else (4, MOST)))
    products.before(parts)
    scan(*(x.view(batch, -1, x.shape[1]) for x in (between[0], *between[2:])))
    products.after(parts)


class _Products:
    """What comes before and after the scan, multiplied by torch."""

    def __init__(self, parameters: Parameters, maps: _Maps) -> None:
        u, gate, steps, weights, sources, targets = maps
        self._of, self._u, self._wide = parameters, u, (steps, weights)
        self._arrays = numbers(u), numbers(gate)
        self._sources, self._targets = sources, targets

    def before(self, parts: list[_Part]) -> None:
        """From the pieces to input, gate, steps and weights."""
        of, channels = self._of, self._u.shape[1]

        def run(part: _Part) -> None:
            count, place = part.tokens, part.place
            normed = _buffers.take("normed", self._u.dtype, count, channels)
            source, start = self._sources[part.piece], part.start * channels
            kernels.norm(source, start, count, *of.in_norm, channels, numbers(normed))
            wide = _buffers.take("wide", normed.dtype, count, 2 * channels)
            torch.mm(normed, of.in_proj.weight, out=wide)
            bias, first = of.in_proj.bias, place * channels
            kernels.activate(numbers(wide), count, bias, channels, *self._arrays, first)
            here = slice(place, place + count)
            for x, out in zip(of.ssm_layers(channels), self._wide, strict=True):
                torch.addmm(x[1], self._u[here], x[0], out=out[here])

        share(run, parts)

    def after(self, parts: list[_Part]) -> None:
        """From the scan's answer and the gate to the pieces' answers."""
        of, channels = self._of, self._u.shape[1]

        def run(part: _Part) -> None:
            count, first = part.tokens, part.place * channels
            normed = _buffers.take("normed", self._u.dtype, count, channels)
            (u, gate), norm = self._arrays, of.out_norm
            kernels.norm_gated(u, gate, first, count, *norm, channels, numbers(normed))
            added = _buffers.take("wide", normed.dtype, count, channels)
            torch.mm(normed, of.out_proj.weight, out=added)
            source, target = self._sources[part.piece], self._targets[part.piece]
            kernels.add(
                *(source, part.start * channels, numbers(added), count, of.out_proj.bias),
                *(channels, target),
            )

        share(run, parts)


class _Tiles:
    """As ``_Products``, by the processor's tiles: all parts in one call on each thread."""

    def __init__(self, parameters: Parameters, maps: _Maps) -> None:
        u, gate, steps, weights, sources, targets = maps
        from anyres.ops import cycle_tiles, simd_tiles

        self._run, self._palette = cycle_tiles, simd_tiles.PALETTE
        self._channels = u.shape[1]
        into, out = parameters.in_proj, parameters.out_proj
        ssm = Linear(parameters.ssm_weight, numbers(parameters.ssm_bias.float()))
        self._into, self._ssm, self._out = map(
            self._paired, ("into", "ssm", "out"), (into, ssm, out)
        )
        self._norms = [
            cycle_tiles.Norm(norm.gain, norm.shift, np.float32(norm.eps))
            for norm in (parameters.in_norm, parameters.out_norm)
        ]
        self._u, self._gate = numbers(u), numbers(gate)
        self._made = numbers(steps), numbers(weights)
        self._sources, self._targets = sources, targets

    def _paired(self, name: str, layer: Linear) -> Any:
        """A layer's weight in pairs, and its bias."""
        inner, outer = layer.weight.shape
        pairs = numbers(_buffers.take(name, layer.weight.dtype, outer, inner))
        self._run.pair(numbers(layer.weight.t().contiguous()), 0, outer, inner, pairs)
        return self._run.Layer(pairs, layer.bias)

    def _memory(self, parts: list[_Part]) -> tuple[Any, Any]:
        rows = max(part.tokens for part in parts) + TILE
        normed = _buffers.take("normed", torch.bfloat16, rows, self._channels)
        return numbers(normed), numbers(_buffers.take("sums", torch.float32, TILE, TILE))

    def before(self, parts: list[_Part]) -> None:
        of_parts = np.array(parts)

        def run(queue: Any) -> None:
            self._run.all_before(
                *(of_parts, queue, self._sources, self._norms[0], self._into, self._ssm),
                *(self._channels, self._palette, self._memory(parts)),
                *(self._u, self._gate, *self._made),
            )

        share_out(run)

    def after(self, parts: list[_Part]) -> None:
        of_parts = np.array(parts)

        def run(queue: Any) -> None:
            self._run.all_after(
                *(of_parts, queue, self._u, self._gate, self._norms[1], self._out),
                *(self._channels, self._palette, self._memory(parts)),
                *(self._sources, self._targets),
            )

        share_out(run)


def _parts(batch: int, lengths: list[int], channels: int, count: int, most: int) -> list[_Part]:
    parts = []
    place = 0
    most = min(max(sum(lengths) // count, -(-LEAST // channels)), most)
    for sample in range(batch):
        for piece, length in enumerate(lengths):
            for start in range(0, length, most):
                count = min(most, length - start)
                parts.append(_Part(piece, sample * length + start, place + start, count))
            place += length
    return parts
