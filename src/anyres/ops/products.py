"""Products of rows with layers, by the processor's tiles (AMX) where there are, otherwise by torch.

A torch that multiplies puts a weight in order each time. For a few hundred rows that takes as long
as the product: here it is done once for all pieces of a picture.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyres.ops import block_numba
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers

_ROWS = 32  # that tiles take at a time

_buffers = Buffers(1 << 25)


class Layer(NamedTuple):
    """A linear layer: weight (inner, outer), bias in float32, and the weight in tiles, if any."""

    weight: Tensor
    bias: Any
    tiles: Any

    @staticmethod
    def of(weight: Tensor, bias: Tensor) -> "Layer":
        """Made ready from a weight (outer, inner) in the precision of the rows."""
        outer, inner = weight.shape
        tiles = None
        if weight.dtype == torch.bfloat16 and not outer % _ROWS and not inner % _ROWS:
            from anyres.ops import simd_tiles

            if simd_tiles.has_tiles():
                from anyres.ops import product_tiles

                tiles = numbers(torch.empty(outer * inner, dtype=torch.bfloat16))
                product_tiles.order(numbers(weight.contiguous()), inner, outer, tiles)
        return Layer(weight.t(), numbers(bias.float().contiguous()), tiles)

    def multiply(self, x: Tensor, rows: int, out: Tensor, *, active: bool = False) -> None:
        """The first rows of ``x`` times the weight; if ``active``, with bias and GELU.

        Args:
            x: (at least rows, inner), of ``take``.
            rows: how many.
            out: (at least rows, outer), of ``take``; rows beyond may be written to.
            active: whether there is more to do than to multiply.
        """
        inner, outer = self.weight.shape
        if self.tiles is None:
            torch.mm(x[:rows], self.weight, out=out[:rows])
            if active:
                block_numba.gelu(numbers(out), rows, self.bias, outer)
            return
        from anyres.ops import product_tiles, simd_tiles

        sums = numbers(_buffers.take("sums", torch.float32, _ROWS * _ROWS))
        product_tiles.product(
            *(numbers(x), rows, self.tiles, inner, outer, self.bias, active),
            *(simd_tiles.PALETTE, sums, numbers(out)),
        )


def take(buffers: Buffers, name: str, kind: torch.dtype, rows: int, width: int) -> Tensor:
    """A thread's buffer of so many rows, and more for ``Layer.multiply`` to work on."""
    return buffers.take(name, kind, -(-rows // _ROWS) * _ROWS, width)
