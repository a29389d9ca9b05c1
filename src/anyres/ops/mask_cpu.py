"""The embedding of previous masks on a CPU without gradients, in bands; kernels: ``mask_tiles``."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyres.ops import mask_tiles, simd_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.grids import projection
from anyres.ops.threads import share

CHANNELS = mask_tiles.LARGE  # within; the only number that there is a kernel for
_BANDS = 4
_LOGITS = 2**15  # of a band, or more: to wake another thread takes as long as some thousands do
_SIDE = 32

_buffers = Buffers(1 << 25)


class Downscaling(NamedTuple):
    """SAM's ``mask_downscaling``, its parameters as they are.

    Attributes:
        first: weight and bias of the first convolution, weight and bias of its norm.
        second: the same of the second.
        eps: of both norms.
        last: weight (C, 16, 1, 1) and bias of the last convolution.
    """

    first: tuple[Tensor, Tensor, Tensor, Tensor]
    second: tuple[Tensor, Tensor, Tensor, Tensor]
    eps: tuple[float, float]
    last: tuple[Tensor, Tensor]


def embed(masks_P1HW: Tensor, layers: Downscaling) -> Tensor:
    """Of logits (P, 1, 4h, 4w) their embeddings (P, C, h, w), bfloat16, channels last."""
    prompts, _, height, width = masks_P1HW.shape
    last = projection(*layers.last, _SIDE)
    parameters = mask_tiles.Downscaling(
        _floats(layers.first), _floats(layers.second), layers.eps, last.weight, last.bias
    )
    masks = masks_P1HW.float().contiguous()
    shape = (prompts, height // 4, width // 4, len(layers.last[1]))
    step = -(-height // 4 // min(_BANDS, -(-height * width // _LOGITS)))
    out = torch.empty(shape, dtype=torch.bfloat16)

    def run(item: tuple[int, int]) -> None:
        prompt, first = item
        full = torch.float32
        space, sums = (numbers(_buffers.take(n, full, _SIDE * _SIDE)) for n in ("space", "sums"))
        rows = numbers(_buffers.take("rows", torch.bfloat16, _SIDE * _SIDE))
        stop = min(first + step, height // 4)
        mask_tiles.embed(
            *(numbers(masks[prompt]), width // 4, first, stop, parameters, simd_tiles.PALETTE),
            *(space, rows, sums, numbers(out[prompt])),
        )

    share(run, ((p, first) for p in range(prompts) for first in range(0, height // 4, step)))
    return out.permute(0, 3, 1, 2)


def _floats(parameters: tuple[Tensor, ...]) -> tuple[Any, Any, Any, Any]:
    weight, bias, norm, norm_bias = (numbers(x.float().contiguous()) for x in parameters)
    return weight, bias, norm, norm_bias
