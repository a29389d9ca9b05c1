"""Dense prompts of clicks on a CPU without gradients, some rows at a time.

Kernels: ``click_tiles`` and ``grid_tiles``. Shapes: B pictures, P prompts (prompt p belongs to
picture p // (P // B)), N clicks, c channels of a map, (h, w) token grid.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyres.ops import click_read, click_tiles, grid_tiles, simd_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.grids import convolution, padded, projection
from anyres.ops.threads import share_out

_BANDS = 6  # that a map is cut into: few, since the rows at their edges are computed twice
_TOKENS = 1024  # of a band, or more: to wake another thread takes as long as some hundreds do
_ROWS = 4  # of a map that a thread keeps: three are needed
_LANES = 16
_SIDE = 32

_buffers = Buffers(1 << 25)


class Clicks(NamedTuple):
    """The clicks of all prompts.

    Attributes:
        xy: (P, N, 2) XY in pixels of the model input, float32.
        labels: (P, N): 1, 0, or others, which do not count.
        sigma: of the bump at a click, in pixels of stride 4.
        reach: of the bump, likewise.
    """

    xy: Tensor
    labels: Tensor
    sigma: float
    reach: int


class Picture(NamedTuple):
    """What clicks are compared with: as ``models.click_maps.Landmarks``."""

    maps: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    colours: Tensor
    squares: Tensor


# Of each stage a 3 x 3 convolution with SiLU, and what a 1 x 1 convolution makes of it.
Layers = list[tuple[grid_tiles.Convolution, grid_tiles.Projection]]


class Others(NamedTuple):
    """What else is stacked.

    Attributes:
        inside: rows (P, 4h) and columns (P, 4w) of a box as 1 and others as 0, float32.
        previous: (P, 1, 4h, 4w) float32, or None.
    """

    inside: tuple[Tensor, Tensor]
    previous: Tensor | None


def ordered(parameters: Sequence[Tensor]) -> Layers:
    """Made ready from weight and bias of both convolutions of each stage, one after the other."""
    made = []
    for i, stride in enumerate((1, 2, 2)):
        weight, bias, last_weight, last_bias = parameters[4 * i : 4 * i + 4]
        least = 16 if i == 0 else 32
        first = convolution(weight, bias, -(-weight.shape[1] // least) * least, stride)
        made.append((first, projection(last_weight, last_bias, first.outer)))
    return made


def run(
    picture: Picture,
    clicks: Clicks,
    sharpness: list[float],
    scales: tuple[float, float],
    others: Others,
    layers: Layers,
    own: tuple[Tensor, Tensor, Tensor],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The dense prompts at strides 4, 8 and 16 with maps of the picture added, channels last.

    And features at the clicks, of length 1, (P, N, c + c' + c'') float32.

    Args:
        picture: features and colours.
        clicks: compared with them.
        sharpness: of the comparison at strides 4, 8 and 16.
        scales: of the squared differences of colours.
        others: what is stacked besides.
        layers: of strides 1, 2 and 2, of ``ordered``.
        own: what is added, (B, C, ., .) each, channels last.
    """
    prompts, pictures = len(clicks.labels), len(picture.colours)
    outs = [
        torch.empty((prompts, *x.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last)
        for x in own
    ]
    row = sum(x.shape[1] for x in picture.maps)
    features = torch.empty(*clicks.labels.shape, row)
    for prompt in range(prompts):
        b = prompt // (prompts // pictures)
        xy, labels = numbers(clicks.xy[prompt]), clicks.labels[prompt].numpy()
        maps = _maps(picture, b, xy, sharpness, numbers(features[prompt]), row)
        planes = _planes(picture, b, clicks, xy, labels, prompt, others, scales)
        stages = [
            click_tiles.Stage(
                convolve,
                project,
                numbers(added[b].permute(1, 2, 0)),
                numbers(out[prompt].permute(1, 2, 0)),
                len(out[prompt]),
            )
            for (convolve, project), added, out in zip(layers, own, outs, strict=True)
        ]
        _dense(maps, planes, stages, outs[2].shape[2:])
    return tuple(outs), features


def _maps(
    picture: Picture, b: int, xy: Any, sharpness: list[float], features: Any, row: int
) -> tuple[click_tiles.Map, ...]:
    """What clicks are compared with; features at them are written to ``features``, (N, row)."""
    found, at = [], 0
    groups = -(-len(xy) // 2 // _LANES)
    for i, (map_, lengths, s) in enumerate(
        zip(picture.maps, picture.lengths, sharpness, strict=True)
    ):
        channels, height, width = map_[b].shape
        x, scales = numbers(map_[b].permute(1, 2, 0)), numbers(lengths[b])
        memory = _buffers.flat("clicks", torch.bfloat16, 2 * _LANES * channels)
        tiles = _buffers.flat(f"tiles {i}", torch.bfloat16, 2 * _LANES * channels * groups)
        source = click_read.Map(x, channels, height, width, 4 * 2**i, scales)
        click_read.features(source, xy, features, at, row, memory, tiles)
        pixels = height * width
        near = _buffers.flat(f"near {i}", torch.float32, 2 * pixels)
        found.append(click_tiles.Map(x, channels, pixels, scales, tiles, s, near))
        at += channels
    return tuple(found)


def _planes(
    picture: Picture,
    b: int,
    clicks: Clicks,
    xy: Any,
    labels: Any,
    prompt: int,
    others: Others,
    scales: tuple[float, float],
) -> click_tiles.Planes:
    colours, previous = picture.colours[b], others.previous
    _, height, width = colours.shape
    nearest = np.empty(2 * len(xy), np.float32)
    click_read.colours(numbers(colours), height, width, xy, nearest)
    bumps = _buffers.flat("bumps", torch.float32, 2 * height * width)
    click_read.bumps(xy, labels, height, width, clicks.sigma, clicks.reach, bumps)
    return click_tiles.Planes(
        numbers(colours),
        numbers(picture.squares[b]),
        nearest,
        labels,
        bumps,
        numbers(others.inside[0][prompt]),
        numbers(others.inside[1][prompt]),
        bumps if previous is None else numbers(previous[prompt]),
        previous is not None,
        scales,
    )


def _dense(
    maps: Any,
    planes: click_tiles.Planes,
    stages: list[click_tiles.Stage],
    grid_hw: torch.Size,
) -> None:
    height, width = grid_hw
    channels = [click_tiles.CHANNELS, *(stage.convolution.outer for stage in stages)]
    bands = min(_BANDS, -(-height * width // _TOKENS))
    step = -(-height // bands)
    of: Any = tuple(stages)

    def work(queue: Any) -> None:
        grids = [
            padded(_buffers, f"rows {i}", _ROWS, width * scale, count)
            for i, (scale, count) in enumerate(zip((4, 4, 2, 1), channels, strict=True))
        ]
        sums = _buffers.flat("sums", torch.float32, _SIDE * _SIDE)
        lines = max(5 * (4 * width + _LANES) + 512, _SIDE * _SIDE + 512 + 64)
        space = _buffers.flat("lines", torch.float32, lines)
        rows = click_tiles.Rows(simd_tiles.PALETTE, sums, space, *grids)
        click_tiles.dense(queue, maps, planes, of, 4 * height, step, rows)

    share_out(work, bands, phases=2)
