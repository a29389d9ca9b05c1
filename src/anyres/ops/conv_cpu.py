"""Convolutions with GELU between on a CPU without gradients, a tile of the map at a time.

A tile goes through a whole inverted bottleneck on one thread (``ops.threads``): what is wide inside
it never leaves the cache. Neighbouring tiles both compute the pixels at their edges. Where a tile
ends at the picture's edge, the depthwise convolution sees zeros beyond, as in the whole picture.

Torch does the matrix products, compiled kernels the rest: ``conv_numba``.

Shapes: B pictures, (h, w) pixels of a map, C channels; maps are (B, h, w, C) and contiguous.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import conv_numba as kernels
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import ROWS, SIDE, Buffers
from anyres.ops.products import Layer, take
from anyres.ops.threads import share

_buffers = Buffers(1 << 25)


class Depthwise(NamedTuple):
    """A depthwise convolution: weight (3, 3, C) and bias, flat and in float32."""

    weight: Any
    bias: Any
    stride: int


class Bottleneck(NamedTuple):
    """An inverted bottleneck; with a shortcut it is of stride 1 and ends in a GELU."""

    widen: Layer
    across: Depthwise
    narrow: Layer
    shortcut: bool


class Stem(NamedTuple):
    """Two convolutions of stride 2: the first one's weight (3, 3, 3, C), flat and in float32."""

    weight: Any
    bias: Any
    second: Tensor  # (C', C, 3, 3)
    second_bias: Tensor


def run_stem(pixels_B3HW: Tensor, stem: Stem) -> Tensor:
    """(B, H/4, W/4, C') of pictures; H and W are multiples of 8."""
    pixels_B3HW = pixels_B3HW.contiguous()
    batch, _, height, width = pixels_B3HW.shape
    kind, outputs, channels = pixels_B3HW.dtype, *stem.second.shape[:2]
    out = pixels_B3HW.new_empty(batch, height // 4, width // 4, outputs)
    pixels = numbers(pixels_B3HW)

    def run(band: tuple[int, int]) -> None:
        picture, first = band
        rows = out[picture, first : first + ROWS]
        # The second convolution's zeros come after the first's answer.
        missing = first == 0
        count = 2 * len(rows) + 1
        half = _buffers.take("half", kind, count, width // 2, channels)
        half[:missing] = 0
        planes = _buffers.take("planes", torch.float32, 9 * (width + 1))
        kernels.stem(
            *(pixels, picture, height, width, 2 * first - 1 + missing, count - missing),
            *(stem.weight, stem.bias, channels, numbers(planes), numbers(half[missing:])),
        )
        source = half.permute(2, 0, 1)[None]
        made = F.conv2d(source, stem.second, stem.second_bias, stride=2, padding=(0, 1))
        rows.copy_(made[0].permute(1, 2, 0))

    share(run, product(range(batch), range(0, height // 4, ROWS)))
    return out


class _Tile(NamedTuple):
    """Of the answer; and of the input, what it needs."""

    picture: int
    rows: slice
    columns: slice
    source_rows: slice
    source_columns: slice


def _cuts(length: int, stride: int) -> list[tuple[slice, slice]]:
    """Pieces of an axis of the answer, and what each needs of an input of this length."""
    after = -(-length // stride)
    ends = [(first, min(first + SIDE, after)) for first in range(0, after, SIDE)]
    return [
        (slice(a, b), slice(max(0, a * stride - 1), min(length, (b - 1) * stride + 2)))
        for a, b in ends
    ]


def _tiles(shape: torch.Size, stride: int) -> Iterator[_Tile]:
    rows, columns = (_cuts(length, stride) for length in shape[1:3])
    for picture, (down, need_down), (across, need_across) in product(
        range(shape[0]), rows, columns
    ):
        yield _Tile(picture, down, across, need_down, need_across)


def run_bottleneck(x_BhwC: Tensor, layers: Bottleneck) -> Tensor:
    """(B, h / stride, w / stride, C') of a map, rounded up."""
    kind, stride = x_BhwC.dtype, layers.across.stride
    inputs, hidden = layers.widen.weight.shape
    outputs = layers.narrow.weight.shape[1]
    height, width = (-(-side // stride) for side in x_BhwC.shape[1:3])
    out = x_BhwC.new_empty(len(x_BhwC), height, width, outputs)
    of_x, of_out = numbers(x_BhwC), numbers(out)

    def run(tile: _Tile) -> None:
        needed = x_BhwC[tile.picture, tile.source_rows, tile.source_columns]
        down, across = needed.shape[:2]
        source = take(_buffers, "narrow", kind, down * across, inputs)
        source[: down * across].view(needed.shape).copy_(needed)
        wide = take(_buffers, "wide", kind, down * across, hidden)
        layers.widen.multiply(source, down * across, wide, active=True)

        rows, columns = (s.stop - s.start for s in (tile.rows, tile.columns))
        top = tile.rows.start * stride - tile.source_rows.start
        left = tile.columns.start * stride - tile.source_columns.start
        inner = take(_buffers, "inner", kind, rows * columns, hidden)
        kernels.depthwise(
            *(numbers(wide), 0, down, across, hidden, top, left, stride),
            *(layers.across.weight, layers.across.bias, True, numbers(inner), rows, columns),
        )
        y = take(_buffers, "narrow", kind, rows * columns, outputs)
        layers.narrow.multiply(inner, rows * columns, y)
        at = ((tile.picture * height + tile.rows.start) * width + tile.columns.start) * outputs
        kernels.finish(
            *(numbers(y), layers.narrow.bias, rows, columns * outputs, outputs),
            *(of_x, of_out, at, width * outputs, layers.shortcut),
        )

    share(run, _tiles(x_BhwC.shape, stride))
    return out
