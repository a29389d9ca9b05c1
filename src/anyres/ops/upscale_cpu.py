"""A mask decoder's upscaling on a CPU without gradients, some rows of tokens at a time.

Kernels: ``upscale_tiles``. Shapes: P prompts, M masks, C channels of a token, (h, w) token grid;
maps are (P, C, h, w), channels last in memory.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import simd_tiles, upscale_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.grid_tiles import Grid
from anyres.ops.grids import convolution, padded
from anyres.ops.products import Layer, take
from anyres.ops.simd import Floats
from anyres.ops.threads import share

_BANDS = 6  # that a map is cut into: few, since what Python does for each costs as much as a row
_PIXELS = 2**14  # of a band, or more: to wake another thread takes as long as some thousands do

_buffers = Buffers(1 << 25)


class Upscaling(NamedTuple):
    """Layers of the upscaling, their parameters as they are.

    Attributes:
        first: weight (C, C / 4, 2, 2) and bias of the first transposed convolution.
        norm: weight, bias and epsilon of the layer norm.
        second: the same of the second one, (C / 4, C / 8, 2, 2).
    """

    first: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor, float]
    second: tuple[Tensor, Tensor]


class Direct(NamedTuple):
    """Two convolutions that give logits of their own: 3 x 3 and SiLU, then 1 x 1."""

    first: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]


def upscale(
    image_PhwC: Tensor,
    layers: Upscaling,
    details: tuple[Tensor, ...],
    hyper_PMc: Tensor,
    direct: Direct | None,
) -> Tensor:
    """Logits (P, M, 4h, 4w), float32.

    Args:
        image_PhwC: the tokens, bfloat16, contiguous.
        layers: parameters.
        details: maps at strides 4 and 8, (P, C / 8, 4h, 4w) and (P, C / 4, 2h, 2w), or nothing.
        hyper_PMc: what the finest map is multiplied by, (P, M, C / 8).
        direct: further layers, if any.
    """
    prompts, height, width, _ = image_PhwC.shape
    masks = hyper_PMc.shape[1]
    logits = torch.empty(prompts, masks, 4 * height, 4 * width)
    parameters = _parameters(layers, details)
    kept = direct is not None
    fine = _fine(image_PhwC.shape, kept)
    for prompt in range(prompts):
        answer, hyper = numbers(logits[prompt]), _floats(hyper_PMc[prompt])
        run = partial(
            _upscale, image_PhwC[prompt], prompt, parameters, hyper, masks, answer, fine, kept
        )
        share(run, _bands(height, 16 * width))
        if direct is not None:
            _add_direct(logits[prompt], fine, direct)
    return logits


def _upscale(
    image_hwC: Tensor,
    prompt: int,
    parameters: upscale_tiles.Layers,
    hyper: Floats,
    masks: int,
    answer: Floats,
    fine: Grid,
    kept: bool,
    rows: slice,
) -> None:
    height, width, channels = image_hwC.shape
    tokens = image_hwC[rows].flatten(0, 1)
    x = take(_buffers, "x", image_hwC.dtype, len(tokens), channels)
    x[: len(tokens)] = tokens
    upscale_tiles.upscale(
        *(numbers(x), prompt, height, width, channels, rows.start, rows.stop, parameters),
        *(hyper, masks, _space(width, channels), answer, kept, fine),
    )


def _bands(height: int, width: int) -> Iterator[slice]:
    step = -(-height // min(_BANDS, -(-height * width // _PIXELS)))
    for first in range(0, height, step):
        yield slice(first, min(first + step, height))


def _fine(shape: torch.Size, kept: bool) -> Grid:
    _, height, width, channels = shape
    if not kept:
        return padded(_buffers, "none", 1, 1, 1)
    return padded(_buffers, "fine", 4 * height, 4 * width, channels // 8)


def _parameters(layers: Upscaling, details: tuple[Tensor, ...]) -> upscale_tiles.Layers:
    weights = [
        Layer.of(weight.permute(2, 3, 1, 0).flatten(0, 2).bfloat16(), bias)
        for weight, bias in (layers.first, layers.second)
    ]
    norm, norm_bias, eps = layers.norm
    nothing = numbers(torch.empty(0, dtype=torch.bfloat16))
    maps = [numbers(x.permute(0, 2, 3, 1).contiguous()) for x in details] or [nothing, nothing]
    return upscale_tiles.Layers(
        *(weights[0].tiles, weights[0].bias, _floats(norm), _floats(norm_bias), eps),
        *(weights[1].tiles, weights[1].bias, bool(details), maps[1], maps[0]),
    )


def _floats(x: Tensor) -> Floats:
    found: Floats = numbers(x.float().contiguous())
    return found


def _space(width: int, channels: int) -> upscale_tiles.Space:
    """The thread's own."""
    middle = take(_buffers, "middle", torch.bfloat16, 4 * width + 31, channels // 4)
    sums = _buffers.take("sums", torch.float32, 32 * max(32, channels // 2))
    dots = _buffers.take("dots", torch.float32, 256)
    return upscale_tiles.Space(simd_tiles.PALETTE, *map(numbers, (sums, middle, dots)))


def _add_direct(logits_MHW: Tensor, fine: Grid, layers: Direct) -> None:
    """Add the logits that the further layers give."""
    masks, height, width = logits_MHW.shape
    layer = convolution(*layers.first, fine.channels, 1)
    weight, bias = layers.second
    last = _floats(F.pad(weight.flatten(1), (0, layer.outer - weight.shape[1])))
    last_bias, answer = _floats(bias), numbers(logits_MHW)

    def run(rows: slice) -> None:
        between = padded(_buffers, "between", 1, width, layer.outer)
        upscale_tiles.add_direct(
            *(fine, rows.start, rows.stop, layer, between, last, last_bias, masks),
            *(_space(width, 8 * fine.channels), answer, 0, height * width),
        )

    share(run, _bands(height, width))
