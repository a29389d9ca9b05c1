"""Mask logits brought to the size of a picture on a CPU; kernel: ``enlarge_numba``."""

import torch
from torch import Tensor

from anyres.ops import enlarge_numba
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.threads import share

Axis = tuple[Tensor, Tensor, Tensor]  # two cells for each place, int64, and their blend, float32

_BANDS = 8  # that a mask is cut into

_buffers = Buffers(1 << 25)


def enlarge(source_Mhw: Tensor, down: Axis, across: Axis, out_MHW: Tensor, limit: float) -> None:
    """Interpolate M maps, float32, into ``out_MHW``: float32, or bool for what is above a limit."""
    cells, (height, width) = source_Mhw.shape[2], out_MHW.shape[1:]
    source = source_Mhw.contiguous()
    rows, columns = (enlarge_numba.Taps(*map(numbers, axis)) for axis in (down, across))
    step = -(-height // _BANDS)
    nothing = torch.empty(0)

    def run(item: tuple[int, int]) -> None:
        index, start = item
        out = out_MHW[index]
        exact = out.dtype == torch.float32
        upper, lower = (_buffers.take(name, torch.float32, width) for name in ("upper", "lower"))
        enlarge_numba.enlarge(
            *(numbers(source[index]), cells, start, min(start + step, height), rows, columns),
            *(numbers(upper), numbers(lower), numbers(out if exact else nothing), limit),
            numbers(nothing.bool() if exact else out),
        )

    share(run, ((i, start) for i in range(len(source)) for start in range(0, height, step)))
