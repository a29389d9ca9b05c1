"""What HRSAM makes of its out blocks, on a CPU without gradients: a band of rows at a time.

A band's tokens of all out blocks are joined with the anchor's, projected, normed and summed on one
thread (``ops.threads``), and nothing of it but the sum leaves the cache. A second pass smooths the
sums. Kernels do it (``cycle_numba``), but for torch's products where the processor has no tiles.

Shapes: B pictures, (h, w) token grid, C channels, E channels of the embedding.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anyres.ops import conv_numba
from anyres.ops import cycle_numba as kernels
from anyres.ops.block_cpu import Norm, numbers
from anyres.ops.buffers import TOKENS, Buffers
from anyres.ops.products import Layer, take
from anyres.ops.threads import share

_buffers = Buffers(1 << 25)


class Out(NamedTuple):
    """What came out of an out block, and what is done to it."""

    scales: Sequence[Tensor]  # the picture's tokens (B, h, w, C), and the anchor's, if there is one
    joint: nn.LayerNorm | None  # of both scales
    lateral: nn.Linear  # without a bias
    norm: nn.LayerNorm


def run(outs: Sequence[Out], across: nn.Conv2d, norm: nn.LayerNorm) -> Tensor:
    """The embedding (B, h, w, E).

    Args:
        outs: of each out block.
        across: a depthwise convolution of side 3 that keeps the size, without a bias.
        norm: what follows it.
    """
    batch, height, width = outs[0].scales[0].shape[:3]
    channels = across.out_channels
    made = [_ready(out) for out in outs]
    summed = outs[0].scales[0].new_empty(batch, height, width, channels)
    of_summed = summed.view(-1, channels)
    most = max(1, min(max(height * width // 4, TOKENS), 2 * TOKENS) // width)
    bands = [
        (picture, top, min(most, height - top))
        for picture, top in product(range(batch), range(0, height, most))
    ]

    def project(band: tuple[int, int, int]) -> None:
        picture, top, rows = band
        count, first = rows * width, (picture * height + top) * width
        sums = _buffers.take("sums", torch.float32, count, channels).zero_()
        for put in made:
            put(band, sums)
        of_summed[first : first + count] = sums

    share(project, bands)
    smoothed = torch.empty_like(summed)
    weight = numbers(across.weight.float().permute(2, 3, 0, 1).contiguous())
    arrays, of_norm = (numbers(summed), numbers(smoothed.view(-1))), Norm.of(norm)
    bias = numbers(torch.zeros(channels))

    def smooth(band: tuple[int, int, int]) -> None:
        picture, top, rows = band
        count, start = rows * width, picture * height * width * channels
        first = start + top * width * channels
        inner = numbers(_buffers.take("sums", torch.float32, count, channels))
        conv_numba.depthwise(
            *(arrays[0], start, height, width, channels, top, 0, 1),
            *(weight, bias, False, inner, rows, width),
        )
        kernels.norm(inner, 0, count, *of_norm, channels, arrays[1][first:])

    share(smooth, bands)
    return smoothed


def _ready(out: Out) -> Callable[[tuple[int, int, int], Tensor], None]:
    """What adds an out block's part to the sums of a band."""
    tokens, *anchors = (x.contiguous() for x in out.scales)
    _, height, width, channels = tokens.shape
    source, kind = numbers(tokens), tokens.dtype
    outer, inner = out.lateral.weight.shape
    layer, norm = Layer.of(out.lateral.weight, torch.zeros(outer)), Norm.of(out.norm)

    def fetch(band: tuple[int, int, int], to: Tensor) -> None:
        picture, top, rows = band
        to[: rows * width].view(rows, width, channels).copy_(tokens[picture, top : top + rows])

    if anchors and out.joint is not None:
        (small,) = anchors
        sides, of_joint, of_small = small.shape[1:3], Norm.of(out.joint), numbers(small)

        def fetch(band: tuple[int, int, int], to: Tensor) -> None:
            picture, top, rows = band
            work = numbers(_buffers.take("line", torch.float32, sides[1] + 1, channels))
            first, of_picture = (picture * height + top) * width, picture * sides.numel() * channels
            places = source, first, (height, width), top, rows, of_small, of_picture, tuple(sides)
            kernels.join(*places, *of_joint, channels, work, numbers(to))

    def put(band: tuple[int, int, int], sums: Tensor) -> None:
        count = band[2] * width
        joined = take(_buffers, "joined", kind, count, inner)
        fetch(band, joined)
        made = take(_buffers, "made", kind, count, outer)
        layer.multiply(joined, count, made)
        kernels.add_norm(numbers(made), count, *norm, outer, numbers(sums))

    return put
