"""Dense prompts of clicks on a CPU without gradients, some rows at a time.

Kernels: ``click_tiles`` and ``grid_tiles``. Shapes: B pictures, P prompts (prompt p belongs to
picture p // (P // B)), N clicks, c channels of a map, (h, w) token grid.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import click_tiles, grid_tiles, product_tiles, simd_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.grids import convolution, padded, projection
from anyres.ops.threads import share

_BANDS = 6  # that a map is cut into: few, since the rows at their edges are computed twice
_TOKENS = 1024  # of a band, or more: to wake another thread takes as long as some hundreds do
_PIXELS = 2**15  # that are compared with clicks at a time
_ROWS = 4  # of a map that a thread keeps: three are needed
_LANES = 16
_SIDE = 32

_buffers = Buffers(1 << 25)


_Call = Callable[[Any], None]  # of a thread's memory


class Clicks(NamedTuple):
    """The clicks of all prompts.

    Attributes:
        labels: (P, N): 1, 0, or others, which do not count.
        features: at strides 4, 8 and 16, of length 1, (P, N, c) each, float32.
        colours: (P, N, 3) float32.
    """

    labels: Tensor
    features: tuple[Tensor, ...]
    colours: Tensor


class Picture(NamedTuple):
    """What clicks are compared with: as ``models.click_maps.Landmarks``."""

    maps: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    colours: Tensor
    squares: Tensor


class Layers(NamedTuple):
    """A 3 x 3 convolution with SiLU, and what a 1 x 1 convolution makes of it, as they are."""

    weight: Tensor
    bias: Tensor
    stride: int
    last_weight: Tensor
    last_bias: Tensor


class Others(NamedTuple):
    """What else is stacked.

    Attributes:
        bumps: (P, 2, 4h, 4w) float32.
        inside: rows (P, 4h) and columns (P, 4w) of a box as 1 and others as 0, float32.
        previous: (P, 1, 4h, 4w) float32, or None.
    """

    bumps: Tensor
    inside: tuple[Tensor, Tensor]
    previous: Tensor | None


def run(
    picture: Picture,
    clicks: Clicks,
    sharpness: list[float],
    scales: tuple[float, float],
    others: Others,
    layers: list[Layers],
    own: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, ...]:
    """The dense prompts at strides 4, 8 and 16 with maps of the picture added, channels last.

    Args:
        picture: features and colours.
        clicks: compared with them.
        sharpness: of the comparison at strides 4, 8 and 16.
        scales: of the squared differences of colours.
        others: what is stacked besides.
        layers: of strides 1, 2 and 2.
        own: what is added, (B, C, ., .) each, channels last.
    """
    prompts, pictures = len(clicks.labels), len(picture.colours)
    made = [_layers(layer, 16 if i == 0 else 32) for i, layer in enumerate(layers)]
    outs = [
        torch.empty((prompts, *x.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last)
        for x in own
    ]
    for prompt in range(prompts):
        b = prompt // (prompts // pictures)
        near = _likeness(picture, b, clicks, prompt, sharpness)
        planes = _planes(picture, b, clicks, prompt, near, others, scales)
        stages = [
            click_tiles.Stage(
                convolve,
                project,
                numbers(added[b].permute(1, 2, 0)),
                numbers(out[prompt].permute(1, 2, 0)),
                len(out[prompt]),
            )
            for (convolve, project), added, out in zip(made, own, outs, strict=True)
        ]
        _dense(planes, stages, outs[2].shape[2:])
    return tuple(outs)


def _bands(count: int, bands: int, least: int = 1) -> Iterator[tuple[int, int]]:
    """Pieces of so many rows or pixels, each a multiple of ``least`` but for the last, and more."""
    step = -(-count // (bands * least)) * least
    firsts = range(0, max(1, count - least + 1), step)
    yield from zip(firsts, (*firsts[1:], count), strict=True)


def _likeness(
    picture: Picture, b: int, clicks: Clicks, prompt: int, sharpness: list[float]
) -> list[Tensor]:
    """Of each map (2, H, W) float32, the largest likeness to a click of each label."""
    labels = clicks.labels[prompt].numpy()
    answers: list[Tensor] = []
    calls: list[_Call] = []
    for map_, lengths, features, s in zip(
        picture.maps, picture.lengths, clicks.features, sharpness, strict=True
    ):
        channels, height, width = map_[b].shape
        answers.append(torch.empty(2, height, width))
        x, each, out = (numbers(y) for y in (map_[b].permute(1, 2, 0), lengths[b], answers[-1]))
        ordered = _in_order(features[prompt])
        bands = -(-height * width // _PIXELS)
        for first, stop in _bands(height * width, bands, _SIDE):
            given = (x, first, stop, channels, ordered, labels, each, s, out, height * width)
            calls.append(partial(click_tiles.likeness, *given, simd_tiles.PALETTE))

    def work(call: _Call) -> None:
        call(numbers(_buffers.take("likeness", torch.float32, 1024 + 512 + 64)))

    share(work, calls)
    return answers


def _in_order(features_Nc: Tensor) -> Any:
    """Groups of 16 clicks in two bfloat16 each, their sum nearly exact, as tiles."""
    count, channels = features_Nc.shape
    groups = F.pad(features_Nc, (0, 0, 0, -count % _LANES)).unflatten(0, (-1, _LANES))
    upper = groups.bfloat16()
    both = torch.cat([upper, (groups - upper.float()).bfloat16()], 1).flatten(0, 1)
    tiles = numbers(torch.empty(both.numel(), dtype=torch.bfloat16))
    product_tiles.order(numbers(both), channels, len(both), tiles)
    return tiles


def _planes(
    picture: Picture,
    b: int,
    clicks: Clicks,
    prompt: int,
    near: list[Tensor],
    others: Others,
    scales: tuple[float, float],
) -> click_tiles.Planes:
    colours, previous = clicks.colours[prompt], others.previous
    nearest = torch.cat([2 * colours, -colours.square().sum(-1, True)], -1)
    return click_tiles.Planes(
        (numbers(near[0]), numbers(near[1]), numbers(near[2])),
        numbers(picture.colours[b]),
        numbers(picture.squares[b]),
        numbers(nearest),
        clicks.labels[prompt].numpy(),
        numbers(others.bumps[prompt]),
        numbers(others.inside[0][prompt]),
        numbers(others.inside[1][prompt]),
        numbers(near[0] if previous is None else previous[prompt]),
        previous is not None,
        scales,
    )


def _layers(layer: Layers, least: int) -> tuple[grid_tiles.Convolution, grid_tiles.Projection]:
    inner = -(-layer.weight.shape[1] // least) * least
    first = convolution(layer.weight, layer.bias, inner, layer.stride)
    return first, projection(layer.last_weight, layer.last_bias, first.outer)


def _dense(
    planes: click_tiles.Planes, stages: list[click_tiles.Stage], grid_hw: torch.Size
) -> None:
    height, width = grid_hw
    s4, s8, s16 = stages
    channels = [click_tiles.CHANNELS, *(stage.convolution.outer for stage in stages)]

    def work(band: tuple[int, int]) -> None:
        stacked, *grids = (
            padded(_buffers, f"rows {i}", _ROWS, width * scale, count)
            for i, (scale, count) in enumerate(zip((4, 4, 2, 1), channels, strict=True))
        )
        sums = numbers(_buffers.take("sums", torch.float32, _SIDE * _SIDE))
        space = numbers(_buffers.take("lines", torch.float32, 5 * (4 * width + _LANES) + 512))
        rows = click_tiles.Rows(simd_tiles.PALETTE, sums, space, stacked, *grids)
        click_tiles.dense(planes, (s4, s8, s16), 4 * height, *band, rows)

    share(work, _bands(height, min(_BANDS, -(-height * width // _TOKENS))))
