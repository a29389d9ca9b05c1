"""Attention inside windows, from projected tokens to answers in the tokens' own places.

Shapes: B pictures, (y, x) tokens of a rectangle of windows, w window, n windows in all, H heads,
D channels of a head, m real tokens of a window.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops.rope import turn
from anyres.ops.windows import Span


class Slots(NamedTuple):
    """What all windows of a block have in common.

    Attributes:
        cos_wwD: ``rope.turn_table`` for each slot.
        sin_wwD: the same.
        pad_3HD: query, key and value of the padding, not turned.
    """

    cos_wwD: Tensor  # noqa: N815
    sin_wwD: Tensor  # noqa: N815
    pad_3HD: Tensor  # noqa: N815


def attend_windows(qkv_Byx3HD: Tensor, rows: Span, columns: Span, slots: Slots) -> Tensor:
    """Attend within the windows of two spans.

    Keys and values of padding are put where a window has it; its queries are left out.

    Args:
        qkv_Byx3HD: queries, keys and values of the spans' real tokens; the first two with their
            channels in the order of ``rope.turn``, queries times the scale of the scores.
        rows: windows along the vertical axis.
        columns: windows along the horizontal axis.
        slots: positions and padding.

    Returns:
        (B, y, x, H * D).
    """
    batch = len(qkv_Byx3HD)
    cut = qkv_Byx3HD.unflatten(2, (columns.windows, columns.size))
    cut = cut.unflatten(1, (rows.windows, rows.size))  # B, down, y, across, x, 3, H, D
    qkv = cut.permute(5, 0, 1, 3, 6, 2, 4, 7)
    qk, v = qkv[:2].flatten(1, 3), qkv[2].flatten(0, 2)  # (2,) n, H, y, x, D
    down, across = (slice(s.offset, s.offset + s.size) for s in (rows, columns))
    q, k = turn(qk, slots.cos_wwD[down, across], slots.sin_wwD[down, across])
    if rows.size * columns.size < slots.cos_wwD[..., 0].numel():
        _, pad_k, pad_v = slots.pad_3HD[:, :, None, None]
        k = _filled(k, turn(pad_k, slots.cos_wwD, slots.sin_wwD), down, across)
        v = _filled(v, pad_v.expand(-1, *slots.cos_wwD.shape), down, across)
    out = attend(*(x.flatten(2, 3) for x in (q, k, v)))
    out = out.unflatten(0, (batch, rows.windows, columns.windows))
    out_split: Tensor = out.unflatten(4, (rows.size, columns.size))  # B, down, across, H, y, x, D
    return out_split.permute(0, 1, 4, 2, 5, 3, 6).flatten(5).flatten(3, 4).flatten(1, 2)


def _filled(x_nHyxD: Tensor, pad_HwwD: Tensor, down: slice, across: slice) -> Tensor:
    """Whole windows: the real tokens in their slots, padding in the others."""
    whole = pad_HwwD.expand(len(x_nHyxD), -1, -1, -1, -1).clone()
    whole[:, :, down, across] = x_nHyxD
    return whole


def attend(q_nHmD: Tensor, k_nHmD: Tensor, v_nHmD: Tensor) -> Tensor:
    """Softmax attention, the scale being in the queries.

    Written out except on CUDA. On CPUs neither form was clearly the faster at window sizes.
    """
    if q_nHmD.is_cuda:
        return F.scaled_dot_product_attention(q_nHmD, k_nHmD, v_nHmD, scale=1.0)
    return torch.softmax(q_nHmD @ k_nHmD.transpose(-2, -1), -1) @ v_nHmD
