"""Smooth shrinking of pictures on a CPU without gradients: each row of the answer is read once.

As ``torch.nn.functional.interpolate`` with ``bilinear`` and ``antialias``, which takes ten times as
long: each pixel of the answer is a weighted mean of all that lie within one of its own widths.

Shapes: B pictures, (H, W) pixels.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyres.ops import shrink_numba as kernels
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.simd import LANES
from anyres.ops.threads import share_out

_buffers = Buffers(1 << 20)


def shrink(x_BCHW: Tensor, side: int) -> Tensor:
    """(B, C, side, side) of float32 or bfloat16 whose width is a multiple of 16."""
    x_BCHW = x_BCHW.contiguous()
    batch, colours, height, width = x_BCHW.shape
    made = x_BCHW.new_empty(batch, colours, side, side)
    source, target = numbers(x_BCHW), numbers(made)
    down, (columns, factors) = _weights(height, side), _weights(width, side)
    filled = -(-factors.shape[1] // LANES) * LANES
    factors = np.pad(factors, ((0, 0), (0, filled - factors.shape[1]))).ravel()

    def run(queue: Any) -> None:
        line = numbers(_buffers.take("line", torch.float32, width + filled))
        sizes = batch * colours, height, width
        kernels.shrink(source, queue, *sizes, down, (columns, factors), line, target)

    share_out(run)
    return made


@lru_cache(maxsize=8)
def _weights(length: int, side: int) -> tuple[Any, Any]:
    """Of each pixel of the answer: the first it is made of (side,), and weights (side, taps)."""
    scale = length / side
    reach = max(scale, 1.0)
    centres = (np.arange(side) + 0.5) * scale
    firsts = np.maximum((centres - reach + 0.5).astype(int), 0)
    stops = np.minimum((centres + reach + 0.5).astype(int), length)
    at = firsts[:, None] + np.arange((stops - firsts).max())
    weights = np.maximum(1 - np.abs(at + 0.5 - centres[:, None]) / reach, 0) * (at < stops[:, None])
    return firsts, (weights / weights.sum(1, keepdims=True)).astype(np.float32)
