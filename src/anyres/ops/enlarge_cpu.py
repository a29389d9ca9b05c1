"""Mask logits brought to the size of a picture on a CPU; kernel: ``enlarge_numba``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyres.ops import enlarge_numba
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.threads import share_out

Axis = tuple[Tensor, Tensor, Tensor]  # two cells for each place, int64, and their blend, float32

_BANDS = 8  # that a mask is cut into

_buffers = Buffers(1 << 25)


def enlarge(
    source_Mhw: Tensor, down: Axis, across: Axis, out_MHW: Tensor, limit: float | None
) -> None:
    """Interpolate M maps, float32, into ``out_MHW``, float32; or bool for what is above a limit."""
    height, width = out_MHW.shape[1:]
    source, out = numbers(source_Mhw.contiguous()), numbers(out_MHW)
    cells = source_Mhw.shape[1], source_Mhw.shape[2]
    rows, columns = (enlarge_numba.Taps(*map(numbers, axis)) for axis in (down, across))
    above = None if limit is None else np.float32(limit)

    def run(queue: Any) -> None:
        upper, lower = (_buffers.flat(name, torch.float32, width) for name in ("upper", "lower"))
        step = -(-height // _BANDS)
        enlarge_numba.enlarge(
            queue, source, cells, step, (rows, columns), (upper, lower), above, out
        )

    share_out(run)
