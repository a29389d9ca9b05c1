"""Padded maps and layers made ready for ``grid_tiles``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import grid_tiles, product_tiles
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers

_ROOM = 64  # pixels behind a map that tiles may read
_SIDE = 32


def padded(buffers: Buffers, name: str, height: int, width: int, channels: int) -> grid_tiles.Grid:
    """A thread's buffer as a map, with whatever is in it: see ``grid_tiles.clear_edges``."""
    size = (height + 2) * (width + 3) + _ROOM
    flat = buffers.flat(name, torch.bfloat16, size * channels)
    return grid_tiles.Grid(flat, height, width, channels)


def convolution(weight: Tensor, bias: Tensor, inner: int, stride: int) -> grid_tiles.Convolution:
    """Of a weight (o, c, 3, 3) with bias (o), for maps of ``inner`` channels, c or more."""
    outputs, inputs = weight.shape[:2]
    taps = F.pad(weight.detach().permute(0, 2, 3, 1), (0, inner - inputs)).flatten(2)
    taps = F.pad(taps, (0, -3 * inner % _SIDE, 0, 0, 0, -outputs % _SIDE))
    return grid_tiles.Convolution(_order(taps.flatten(1)), _bias(bias), len(taps), stride)


def projection(weight: Tensor, bias: Tensor, inner: int) -> grid_tiles.Projection:
    """Of a weight (o, c, 1, 1) with bias (o), for maps of ``inner`` channels, c or more."""
    outputs, inputs = weight.shape[:2]
    flat = F.pad(weight.detach().flatten(1), (0, inner - inputs, 0, -outputs % _SIDE))
    return grid_tiles.Projection(_order(flat), _bias(bias), len(flat))


def _order(weight: Tensor) -> Any:
    outer, inner = weight.shape
    tiles = numbers(torch.empty(outer * inner, dtype=torch.bfloat16))
    product_tiles.order(numbers(weight.bfloat16().contiguous()), inner, outer, tiles)
    return tiles


def _bias(bias: Tensor) -> Any:
    return numbers(F.pad(bias.detach().float(), (0, -len(bias) % _SIDE)))
