"""What image tokens do in a two-way transformer, on a CPU without gradients, in bands.

Kernels: ``two_way_tiles``. Shapes: P prompts, n image tokens, C channels, R rows (heads x tokens).
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyres.ops import simd_tiles
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
    image: Tensor,
    places: Tensor,
    dense: Tensor | None,
    keys_values: KeysValues | None,
    queries: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Image tokens after they attended; and what the queries see of them.

    Args:
        image: (P, n, C), bfloat16.
        places: (1, n, C).
        dense: what is added to the image, (P, n, C), if it does not attend.
        keys_values: what they attend to, if they do.
        queries: weight and bias of the queries' scores, (P, R, C) and (P, R, 1).

    Returns:
        (P, n, C) and (P, R, C), the latter float32.
    """
    image, places = image.contiguous(), places.contiguous()
    dense = None if dense is None else dense.contiguous()
    prompts, tokens, channels = image.shape
    rows = queries[0].shape[1]
    changes = keys_values is not None or dense is not None
    out = torch.empty_like(image) if changes else image
    seen = torch.empty(prompts, rows, channels)
    band = max(_TOKENS, -(-tokens // (_BANDS * kernels.BLOCK)) * kernels.BLOCK)
    bands = -(-tokens // band)
    padded = bands * -(-rows // _SIDE) * _SIDE
    sizes = ("maximum", padded), ("totals", padded), ("values", padded * channels)
    for p in range(prompts):
        known = _keys_values(keys_values, p)
        asked = kernels.Queries(*(_floats(x[p]) for x in queries))
        parts = (_buffers.flat(name, torch.float32, size) for name, size in sizes)
        answer = kernels.Answer(numbers(out[p]), numbers(seen[p]), *parts)
        also = None if dense is None else numbers(dense[p])
        given = numbers(image[p]), numbers(places[0]), also, band, channels, known, asked
        share_out(partial(_step, given, answer), bands, phases=2)
    return out, seen


def _step(given: tuple[Any, ...], answer: kernels.Answer, queue: Any) -> None:
    *_, channels, known, asked = given
    padded = (-(-len(x.bias) // _SIDE) * _SIDE for x in (known, asked))
    everything: list[Any] = [queue, *given, _space(channels, *padded), answer]
    kernels.step(*everything)


def _keys_values(keys_values: KeysValues | None, prompt: int) -> kernels.KeysValues:
    if keys_values is None:
        nothing = _floats(torch.empty(0))
        return kernels.KeysValues(nothing, nothing, nothing, 0, 0, nothing, nothing, 0.0)
    weight, bias, values, heads, (norm, norm_bias, eps) = keys_values
    weight, bias, values, norm, norm_bias = map(
        _floats, (weight[prompt], bias[prompt], values[prompt], norm, norm_bias)
    )
    each = len(bias) // heads
    return kernels.KeysValues(weight, bias, values, heads, each, norm, norm_bias, eps)


def _floats(x: Tensor) -> Any:
    return numbers(x.float().contiguous())


def _space(channels: int, keys: int, queries: int) -> kernels.Space:
    """The thread's own, for so many rows of keys and of queries."""
    rows = max(keys, queries, _SIDE)
    half, full = torch.bfloat16, torch.float32
    return kernels.Space(
        simd_tiles.PALETTE,
        *(
            _buffers.flat(name, kind, size)
            for name, kind, size in (
                ("placed", half, _SIDE * channels),
                ("sums", full, _SIDE * max(channels, rows)),
                ("columns", full, _SIDE * rows),
                ("attention", half, _SIDE * rows),
                ("scores", full, rows * kernels.BLOCK),
                ("shares", half, rows * kernels.BLOCK),
                ("pairs", half, channels * kernels.BLOCK),
                ("rounded", half, rows * channels),
                ("ordered", half, (2 * keys + queries) * channels),
                ("biases", full, keys + queries),
            )
        ),
    )
