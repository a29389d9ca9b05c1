"""What image tokens do in a two-way transformer, on a CPU without gradients, in bands.

Kernels: ``two_way_tiles``. Shapes: P prompts, n image tokens, C channels, R rows (heads x tokens).
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops import product_tiles, simd_tiles
from anyres.ops import two_way_tiles as kernels
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers
from anyres.ops.threads import share_out

_BANDS = 4  # that an image is cut into
_TOKENS = 1024  # of a band, or more
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
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Image tokens after they attended; and the queries' attention to each band of them.

    Args:
        image: (P, n, C), bfloat16.
        places: (1, n, C).
        keys_values: what they attend to, if they do.
        queries: weight and bias of the queries' scores, (P, R, C) and (P, R, 1).

    Returns:
        (P, n, C); and of each band the maximum scores (bands, P, R, 1), the sums of their
        exponentials (bands, P, R, 1) and of tokens so weighted (bands, P, R, C), float32.
    """
    image, places = image.contiguous(), places.contiguous()
    prompts, tokens, channels = image.shape
    rows = queries[0].shape[1]
    out = image if keys_values is None else torch.empty_like(image)
    band = max(_TOKENS, -(-tokens // (_BANDS * kernels.BLOCK)) * kernels.BLOCK)
    shape = (prompts, -(-tokens // band), -(-rows // _SIDE) * _SIDE)
    maximum, totals = torch.full(shape, float(kernels.LEAST)), torch.zeros(shape)
    values = torch.zeros(*shape, channels)
    for p in range(prompts):
        known = _keys_values(keys_values, p)
        asked = kernels.Queries(_in_order(queries[0][p]), _bias(queries[1][p, :, 0]))
        answer = kernels.Answer(*(numbers(x[p]) for x in (out, maximum, totals, values)))
        given = numbers(image[p]), numbers(places[0]), band, channels, known, asked
        most = max(len(known.bias), shape[2])
        share_out(partial(_step, given, most, answer), shape[1])
    return out, tuple(
        x[:, :, :rows].transpose(0, 1) for x in (maximum[..., None], totals[..., None], values)
    )


def _step(given: tuple[Any, ...], most: int, answer: kernels.Answer, queue: Any) -> None:
    kernels.step(queue, *given, _space(given[3], most), answer)


def _keys_values(keys_values: KeysValues | None, prompt: int) -> kernels.KeysValues:
    if keys_values is None:
        nothing = torch.zeros(1)
        one, half = numbers(nothing), numbers(nothing.bfloat16())
        return kernels.KeysValues(half, one[:0], half, 0, 0, one, one, 0.0)
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
            _buffers.flat(name, kind, size)
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
