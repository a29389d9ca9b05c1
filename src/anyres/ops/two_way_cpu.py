"""What image tokens do in a two-way transformer, on a CPU without gradients, in bands.

Kernels: ``two_way_tiles``. Shapes: P prompts, n image tokens, C channels, R rows (heads x tokens).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import product_tiles, simd_tiles
from anyres.ops import two_way_tiles as kernels
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.threads import share

_BANDS = 4  # that an image is cut into
_TOKENS = 2048  # of a band, or more: to wake another thread takes as long as some hundreds do
_SIDE = 32

_buffers = Buffers(1 << 25)


class KeysValues(NamedTuple):
    """What image tokens attend to.

    Attributes:
        weight, bias: of scores, (P, R, C) and (P, R, 1).
        values: (P, R, C).
        heads: R is a multiple.
        norm: weight, bias and epsilon of the layer norm that follows.
    """

    weight: Tensor
    bias: Tensor
    values: Tensor
    heads: int
    norm: tuple[Tensor, Tensor, float]


def step(
    image: Tensor, places: Tensor, keys_values: KeysValues | None, queries: tuple[Tensor, Tensor]
) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
    """Image tokens after they attended; and the queries' attention to each band of them.

    Args:
        image: (P, n, C), bfloat16.
        places: (1, n, C).
        keys_values: what they attend to, if they do.
        queries: weight and bias of the queries' scores, (P, R, C) and (P, R, 1).

    Returns:
        (P, n, C), and a list of: the maximum scores (P, R, 1), the sums of their exponentials
        (P, R, 1) and of tokens so weighted (P, R, C), float32.
    """
    image, places = image.contiguous(), places.contiguous()
    prompts, tokens, channels = image.shape
    rows = queries[0].shape[1]
    out = image if keys_values is None else torch.empty_like(image)
    bands = list(_bands(tokens))
    shape = (len(bands), prompts, -(-rows // _SIDE) * _SIDE)
    maximum, totals = torch.full(shape, float(kernels.LEAST)), torch.zeros(shape)
    values = torch.zeros(*shape, channels)
    folded = [_keys_values(keys_values, p) for p in range(prompts)]
    of_queries = [
        kernels.Queries(_in_order(weight), _bias(bias[:, 0]))
        for weight, bias in zip(*queries, strict=True)
    ]
    most = max(len(folded[0].bias), shape[2])
    attends = keys_values is not None

    def run(item: tuple[int, int]) -> None:
        p, band = item
        kernels.step(
            *(numbers(image[p]), numbers(places[0]), *bands[band], channels, attends),
            *(folded[p], of_queries[p], _space(channels, most), numbers(out[p])),
            *(numbers(x[band, p]) for x in (maximum, totals, values)),
        )

    share(run, ((p, band) for p in range(prompts) for band in range(len(bands))))
    parts = zip(
        maximum[:, :, :rows, None], totals[:, :, :rows, None], values[:, :, :rows], strict=True
    )
    return out, list(parts)


def _bands(tokens: int) -> Iterator[tuple[int, int]]:
    each = max(_TOKENS, -(-tokens // (_BANDS * kernels.BLOCK)) * kernels.BLOCK)
    for first in range(0, tokens, each):
        yield first, min(first + each, tokens)


def _keys_values(keys_values: KeysValues | None, prompt: int) -> kernels.KeysValues:
    if keys_values is None:
        nothing = torch.zeros(1)
        one, half = numbers(nothing), numbers(nothing.bfloat16())
        return kernels.KeysValues(half, one, half, 0, 0, one, one, 0.0)
    weight, bias, values = (
        keys_values.weight[prompt],
        keys_values.bias[prompt, :, 0],
        keys_values.values[prompt],
    )
    norm, norm_bias, eps = keys_values.norm
    padded = F.pad(values, (0, 0, 0, -len(values) % _SIDE))
    return kernels.KeysValues(
        *(_in_order(weight), _bias(bias), _in_order(padded.t()), keys_values.heads),
        *(len(weight) // keys_values.heads, numbers(norm.float()), numbers(norm_bias.float()), eps),
    )


def _in_order(weight: Tensor) -> Any:
    """(rows, inner) in order, rounded up to whole tiles of rows."""
    weight = F.pad(weight, (0, 0, 0, -len(weight) % _SIDE)).bfloat16().contiguous()
    tiles = numbers(torch.empty(weight.numel(), dtype=torch.bfloat16))
    product_tiles.order(numbers(weight), weight.shape[1], len(weight), tiles)
    return tiles


def _bias(bias: Tensor) -> Any:
    return numbers(F.pad(bias.float(), (0, -len(bias) % _SIDE)))


def _space(channels: int, rows: int) -> kernels.Space:
    """The thread's own."""
    half, full = torch.bfloat16, torch.float32
    return kernels.Space(
        simd_tiles.PALETTE,
        *(
            numbers(_buffers.take(name, kind, size))
            for name, kind, size in (
                ("placed", half, _SIDE * channels),
                ("sums", full, _SIDE * max(channels, rows, _SIDE)),
                ("columns", full, _SIDE * rows),
                ("attention", half, _SIDE * rows),
                ("scores", full, rows * kernels.BLOCK),
                ("shares", half, rows * kernels.BLOCK),
                ("pairs", half, channels * kernels.BLOCK),
            )
        ),
    )
