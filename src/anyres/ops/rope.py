"""Two-dimensional rotary positions as HRSAM uses them (arXiv 2407.02109; Su et al. 2021).

The first half of a head's channels turns with the row, the second with the column. Positions are
halved, channels are paired as neighbours (0, 1), (2, 3), ..., and the turn is by minus the angle.
Only differences of positions within one window matter, so positions count from its corner.

Pairs of neighbours are slow to turn. Queries and keys are therefore made with their channels in
another order, which no dot product notices: the first of all pairs, then the second of all pairs.
"""

import torch
from torch import Tensor

POSITION_SCALE = 0.5


def frequencies(head_dim: int) -> Tensor:
    """Frequencies of one axis, (head_dim / 4,): 10000^(-2i / (head_dim / 2))."""
    half = head_dim // 2
    exponent = torch.arange(0, half, 2, dtype=torch.float32) / half
    return 1.0 / 10000.0**exponent


def window_table(freqs: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines for every token of a window.

    Args:
        freqs: of one axis, (head_dim / 4,).
        window: side in tokens.

    Returns:
        Two tensors (window * window, head_dim / 2): an angle for each pair of channels.
    """
    position = torch.arange(window, device=freqs.device, dtype=freqs.dtype) * POSITION_SCALE
    angles = position[:, None] * freqs
    rows = angles[:, None].expand(-1, window, -1)
    columns = angles[None].expand(window, -1, -1)
    both = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    return both.cos(), both.sin()


def split_pairs(weight: Tensor) -> Tensor:
    """Put the rows of one head after another, (heads, head_dim, ...), into the order of ``turn``.

    Returns:
        (heads, head_dim, ...): the first rows of all pairs, then the second.
    """
    apart: Tensor = weight.unflatten(1, (-1, 2)).transpose(1, 2)
    return apart.flatten(1, 2)


def turn_table(cos: Tensor, sin: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """``window_table``'s angles as ``turn`` wants them, in the precision of ``like``.

    Returns:
        Two tensors (tokens, head_dim).
    """
    both = torch.cat([cos, cos], -1), torch.cat([sin, -sin], -1)
    return both[0].to(like.dtype), both[1].to(like.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs of (..., tokens, head_dim), the firsts before the seconds."""
    first, second = x.chunk(2, -1)
    return (x * cos).addcmul_(torch.cat([second, first], -1), sin)
