"""Two-dimensional rotary positions as HRSAM uses them (arXiv 2407.02109; Su et al. 2021).

The first half of a head's channels turns with the row, the second with the column. Positions are
halved, channels are paired as neighbours (0, 1), (2, 3), ..., and the turn is by minus the angle.
Only differences of positions within one window matter, so positions count from its corner.
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs of (..., tokens, head_dim) by the table's angles."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    turned = (first * cos + second * sin, second * cos - first * sin)
    return torch.stack(turned, dim=-1).flatten(-2)
