"""A convolutional stem in place of the patch embedding (Xiao et al. 2021), to stride 16.

Its maps at strides 4 and 8 are kept for the decoder: with few training pictures that is where
crisp edges come from.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.layers import StridedConv2d


class ConvStem(nn.Module):
    """3x3 convolutions of stride 2, with a residual block at strides 4 and 8.

    BatchNorm rather than GroupNorm: several times cheaper to train on CPUs, free once folded.
    """

    def __init__(self, widths: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        half, quarter, eighth = widths
        self.to_s2 = _conv(3, half, stride=2)
        self.to_s4 = _conv(half, quarter, stride=2)
        self.block_s4 = _Residual(quarter)
        self.to_s8 = _conv(quarter, eighth, stride=2)
        self.block_s8 = _Residual(eighth)
        self.to_s16 = StridedConv2d(eighth, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Map (B, 3, H, W) to tokens (B, H/16, W/16, dim) and the maps at strides 4 and 8."""
        s4 = self.block_s4(self.to_s4(self.to_s2(x)))
        s8 = self.block_s8(self.to_s8(s4))
        tokens = self.to_s16(s8).permute(0, 2, 3, 1)
        return tokens, (s4, s8)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.norm(self.conv2(self.conv1(x))))
