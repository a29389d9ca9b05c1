"""A convolutional stem in place of the patch embedding (Xiao et al. 2021), to stride 16.

Its maps at strides 4 and 8 are kept for the decoder: with few training pictures that is where
crisp edges come from.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.layers import SiLU, StridedConv2d
from anyres.ops.precision import wide


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, with a residual block at strides 4 and 8.

    BatchNorm rather than GroupNorm: several times cheaper to train on CPUs, and in evaluation mode
    part of the convolution before it. The weights may then be in a higher precision than the map,
    and are rounded once, to that of the map: rounding them before and after, and the norms too, was
    what a bfloat16 encoder lost most by.
    """

    def __init__(self, widths: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.to_s2 = _Conv(3, half, stride=2)
        self.to_s4 = _Conv(half, quarter, stride=2)
        self.block_s4 = _Residual(quarter)
        self.to_s8 = _Conv(quarter, eighth, stride=2)
        self.block_s8 = _Residual(eighth)
        self.to_s16 = StridedConv2d(eighth, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map (B, 3, H, W) to tokens (B, H/16, W/16, dim) and the maps at strides 4 and 8.

        The maps are channels last in memory, in which CPUs convolve several times as fast.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        s4 = self.block_s4(self.to_s4(self.to_s2(x)))
        s8 = self.block_s8(self.to_s8(s4))
        tokens = self.to_s16(s8).permute(0, 2, 3, 1)
        return tokens, (s4, s8)


class _Conv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, act = self
        out: Tensor = act(_normed(conv, norm, x))
        return out


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _Conv(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(x + _normed(self.conv2, self.norm, self.conv1(x)))
        return out


def _normed(conv: Any, norm: Any, x: Tensor) -> Tensor:
    """A convolution without bias and its norm; in evaluation mode the norm is folded into it.

    Folded anew every time, which costs nothing beside the convolution and cannot go stale.
    """
    if norm.training:
        out: Tensor = norm(conv(x))
        return out
    scale = wide(norm.weight) * (wide(norm.running_var) + norm.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale
    return F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype), conv.stride, conv.padding)
