"""TinyViT's window blocks on a CPU without gradients: groups of windows, then bands of rows.

The convolution after attention looks across windows, so a block is two passes over the picture: a
group of windows goes through the attention, then a band of rows through convolution and MLP, each
on one thread (``ops.threads``) and in buffers that the thread keeps. Torch does the matrix
products, compiled kernels the rest: ``bias_numba``.

Shapes: B pictures, (h, w) token grid, C channels, N heads, D channels of a head, n slots of a
window, K of them filled up to a multiple of 16.
"""

from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyres.ops import bias_numba as kernels
from anyres.ops import block_numba, conv_numba, cycle_numba
from anyres.ops.block_cpu import Layout, Norm, Windows, layouts, numbers
from anyres.ops.buffers import TOKENS, Buffers
from anyres.ops.conv_cpu import Depthwise
from anyres.ops.products import Layer, take
from anyres.ops.simd import LANES
from anyres.ops.threads import share
from anyres.ops.windows import window_plan

_buffers = Buffers(1 << 25)


class Block(NamedTuple):
    """A block's parameters."""

    heads: int
    window: int
    scale: float  # of the scores
    biases: Any  # (N, window, window) by distance, float32
    before: Norm
    padding: Tensor  # (C,): what the norm makes of padding
    qkv: Layer  # of rows (N, 3, D)
    proj: Layer
    across: Depthwise
    between: Norm
    fc1: Layer
    fc2: Layer


def run_block(x_BhwC: Tensor, block: Block) -> Tensor:
    """The whole block; shape kept."""
    attended = _attend(x_BhwC, block)
    out = torch.empty_like(x_BhwC)
    batch, height, width, channels = x_BhwC.shape
    kind, hidden = x_BhwC.dtype, block.fc1.weight.shape[1]
    source, target = numbers(attended), numbers(out)
    most = max(1, TOKENS // width)

    def run(band: tuple[int, int]) -> None:
        picture, top = band
        rows = min(most, height - top)
        count, start = rows * width, picture * height * width * channels
        summed = _buffers.take("summed", kind, count, channels)
        of_summed = numbers(summed)
        conv_numba.depthwise(
            *(source, start, height, width, channels, top, 0, 1),
            *(block.across.weight, block.across.bias, False, of_summed, rows, width),
        )
        normed = take(_buffers, "normed", kind, count, channels)
        cycle_numba.norm(of_summed, 0, count, *block.between, channels, numbers(normed))
        inner = take(_buffers, "wide", kind, count, hidden)
        block.fc1.multiply(normed, count, inner, active=True)
        block.fc2.multiply(inner, count, normed)
        to = start + top * width * channels
        kernels.add_rows(of_summed, numbers(normed), block.fc2.bias, count, channels, target, to)

    share(run, product(range(batch), range(0, height, most)))
    return out


def _attend(x_BhwC: Tensor, block: Block) -> Tensor:
    """Attention beside its shortcut."""
    plan = window_plan((x_BhwC.shape[1], x_BhwC.shape[2]), block.window, shifted=False)
    out = torch.empty_like(x_BhwC)
    kind, width = x_BhwC.dtype, x_BhwC.shape[3]
    source, target = numbers(x_BhwC), numbers(out)
    slots = block.window**2
    table = torch.empty(block.heads * slots * _filled(slots), dtype=kind)
    biases = numbers(table)
    kernels.table(block.biases, block.heads, block.window, _filled(slots), biases)

    def run(layout: Layout) -> None:
        count = len(layout.places)
        # The padding comes after the tokens, as one of them.
        normed = take(_buffers, "normed", kind, count + 1, width)
        of_normed = numbers(normed)
        block_numba.norm(source, layout.places, of_normed, *block.before, width)
        normed[count] = block.padding
        qkv = take(_buffers, "wide", kind, count + 1, 3 * width)
        block.qkv.multiply(normed, count + 1, qkv)
        start = 0
        for windows in layout.parts:
            _attend_windows(windows, numbers(qkv), start, count, block, biases, of_normed, kind)
            start += windows.windows * windows.real
        y = take(_buffers, "summed", kind, count, width)
        block.proj.multiply(normed, count, y)
        kernels.add_places(source, layout.places, numbers(y), block.proj.bias, target, width)

    share(run, layouts(plan, len(x_BhwC), max(1, TOKENS // len(x_BhwC))))
    return out


def _filled(slots: int) -> int:
    return -(-slots // LANES) * LANES


def _attend_windows(
    windows: Windows,
    qkv: Any,
    start: int,
    padding: int,
    block: Block,
    biases: Any,
    out: Any,
    kind: torch.dtype,
) -> None:
    """Attend within some windows: from rows of ``qkv`` to rows of ``out``."""
    count, real, slots = windows
    heads, depth, keys = block.heads, block.padding.shape[0] // block.heads, _filled(len(slots))
    q, values = (_buffers.take(name, kind, count * heads, real, depth) for name in ("q", "values"))
    k, v = (_buffers.take(name, kind, count * heads, keys, depth) for name in ("k", "v"))
    scores = _buffers.take("scores", kind, count * heads, real, keys)
    scales = numbers(_buffers.take("scales", torch.float32, count * heads * real))
    of_q, of_k, of_v, of_scores, of_values = (numbers(x) for x in (q, k, v, scores, values))
    kernels.arrange(
        *(qkv, start, padding, count, real, slots, keys, block.qkv.bias, heads, depth),
        *(of_q, of_k, of_v),
    )
    torch.bmm(q, k.transpose(1, 2), out=scores)
    kernels.exponentials(of_scores, count, heads, real, slots, keys, block.scale, biases, scales)
    torch.bmm(scores, v, out=values)
    block_numba.collect(of_values, scales, count, real, heads, depth, out, start)
