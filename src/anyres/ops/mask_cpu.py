"""The embedding of previous masks on a CPU without gradients; kernels: ``mask_tiles``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyres.ops import mask_tiles, simd_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.grids import projection
from anyres.ops.threads import share_out

CHANNELS = mask_tiles.LARGE  # within; the only number that there is a kernel for
_SIDE = 32

_buffers = Buffers(1 << 25)


def ordered(parameters: Sequence[Tensor], eps: tuple[float, float]) -> mask_tiles.Downscaling:
    """Made ready from weights and biases of SAM's ``mask_downscaling``, one after the other.

    Args:
        parameters: of a convolution and its norm, of the same again, and of the last convolution.
        eps: of both norms.
    """
    floats = [numbers(x.float().contiguous()) for x in parameters[:8]]
    last = projection(parameters[8], parameters[9], _SIDE)
    return mask_tiles.Downscaling(tuple(floats[:4]), tuple(floats[4:]), eps, last.weight, last.bias)


def embed(masks_P1HW: Tensor, layers: mask_tiles.Downscaling) -> Tensor:
    """Of logits (P, 1, 4h, 4w) their embeddings (P, C, h, w), bfloat16, channels last."""
    prompts, _, height, width = masks_P1HW.shape
    masks = numbers(masks_P1HW.float().contiguous())
    shape = prompts, height // 4, width // 4
    out = torch.empty(*shape, len(layers.last_bias), dtype=torch.bfloat16)

    def run(queue: Any) -> None:
        full = torch.float32
        space, sums = (_buffers.flat(name, full, _SIDE * _SIDE) for name in ("space", "sums"))
        rows = _buffers.flat("rows", torch.bfloat16, _SIDE * _SIDE)
        count = shape[0] * shape[1]
        given = layers, simd_tiles.PALETTE, space, rows, sums, numbers(out)
        mask_tiles.embed(queue, masks, count, shape[2], *given)

    share_out(run)
    return out.permute(0, 3, 1, 2)
