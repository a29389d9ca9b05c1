"""A mask decoder's upscaling on a CPU without gradients, some rows of tokens at a time.

Kernels: ``upscale_tiles``. Shapes: P prompts, M masks, C channels of a token, (h, w) token grid;
maps are (P, C, h, w), channels last in memory.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import simd_tiles, upscale_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.grid_tiles import Grid
from anyres.ops.grids import convolution, padded
from anyres.ops.products import Layer
from anyres.ops.simd import Floats
from anyres.ops.threads import share_out

_BANDS = 6  # that a map is cut into: few, since what Python does for each costs as much as a row
_PIXELS = 2**14  # of a band, or more: to wake another thread takes as long as some thousands do

_buffers = Buffers(1 << 25)


class Ordered(NamedTuple):
    """Parameters made ready: of the upscaling, and of further layers, if there are."""

    layers: upscale_tiles.Layers
    direct: upscale_tiles.Direct | None


def ordered(parameters: Sequence[Tensor], eps: float) -> Ordered:
    """Made ready from weights and biases, one after the other.

    Args:
        parameters: of the first transposed convolution, (C, C / 4, 2, 2), of the layer norm, and of
            the second one, (C / 4, C / 8, 2, 2); if there are further layers, of a 3 x 3
            convolution with SiLU and of a 1 x 1 convolution.
        eps: of the norm.
    """
    first, second = (
        Layer.of(weight.permute(2, 3, 1, 0).flatten(0, 2).bfloat16(), bias)
        for weight, bias in (parameters[:2], parameters[4:6])
    )
    norm, norm_bias = map(_floats, parameters[2:4])
    layers = upscale_tiles.Layers(
        first.tiles, first.bias, norm, norm_bias, eps, second.tiles, second.bias
    )
    if len(parameters) == 6:
        return Ordered(layers, None)
    layer = convolution(parameters[6], parameters[7], parameters[6].shape[1], 1)
    weight, bias = parameters[8:]
    last = _floats(F.pad(weight.flatten(1), (0, layer.outer - weight.shape[1])))
    return Ordered(layers, upscale_tiles.Direct(layer, last, _floats(bias)))


def upscale(
    image_PhwC: Tensor, ready: Ordered, details: tuple[Tensor, ...], hyper_PMc: Tensor
) -> Tensor:
    """Logits (P, M, 4h, 4w), float32.

    Args:
        image_PhwC: the tokens, bfloat16, contiguous.
        ready: parameters.
        details: maps at strides 4 and 8, (P, C / 8, 4h, 4w) and (P, C / 4, 2h, 2w), or nothing.
        hyper_PMc: what the finest map is multiplied by, (P, M, C / 8).
    """
    prompts, height, width, channels = image_PhwC.shape
    masks = hyper_PMc.shape[1]
    logits = torch.empty(prompts, masks, 4 * height, 4 * width)
    size = (4 * height, 4 * width) if ready.direct else (1, 1)
    fine = padded(_buffers, "fine", *size, channels // 8)
    bands = min(_BANDS, -(-16 * height * width // _PIXELS))
    step = -(-height // bands)
    maps = [x.permute(0, 2, 3, 1).contiguous() for x in reversed(details)]
    for tokens, hyper, answer, *own in zip(image_PhwC, hyper_PMc, logits, *maps, strict=True):
        picture = upscale_tiles.Picture(
            *(numbers(tokens), height, width, channels, bool(own)),
            *map(numbers, own or (tokens, tokens)),
        )
        run = partial(_upscale, picture, step, ready, _floats(hyper), masks, fine, answer)
        share_out(run, bands, phases=2)
    return logits


def _upscale(
    picture: upscale_tiles.Picture,
    step: int,
    ready: Ordered,
    hyper: Floats,
    masks: int,
    fine: Grid,
    answer: Tensor,
    queue: Any,
) -> None:
    space = _space(picture.width, picture.channels, ready.direct)
    upscale_tiles.upscale(
        *(queue, picture, step, ready.layers, hyper, masks, fine, ready.direct, space),
        numbers(answer),
    )


def _floats(x: Tensor) -> Floats:
    found: Floats = numbers(x.float().contiguous())
    return found


def _space(width: int, channels: int, direct: upscale_tiles.Direct | None) -> upscale_tiles.Space:
    """The thread's own."""
    half, full = torch.bfloat16, torch.float32
    line = _buffers.flat("line", half, (width + 31) * channels)
    middle = _buffers.flat("middle", half, (4 * width + 31) * channels // 4)
    sums = _buffers.flat("sums", full, 32 * max(32, channels // 2))
    dots = _buffers.flat("dots", full, 256)
    between = padded(_buffers, "between", 1, 4 * width, direct.convolution.outer if direct else 1)
    return upscale_tiles.Space(simd_tiles.PALETTE, line, sums, middle, dots, between)
