"""MobileSAM's image encoder, TinyViT (Zhang et al. 2023, arXiv 2306.14289; Wu et al. 2022).

A stage of convolutions, then stages of attention in windows with a convolution in each block, for
any size of picture. Parameter names are those of the official state dict.

Shapes: B pictures, (h, w) grid of a stage, C channels, N heads, w window, n = w * w.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models import tiny_vit_bands
from anyres.models.config import TinyViTConfig
from anyres.models.layers import StridedConv2d, check_pixels, neck
from anyres.ops.length import LengthConfig, mobile_scale
from anyres.ops.threads import runs_in_parts
from anyres.ops.windows import merge, partition, window_plan


class FrozenNorm(nn.Module):
    """A batch normalisation that keeps the statistics it was trained with.

    Pictures of full size are trained one or two at a time: their own statistics would be other
    ones in training than in use.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self) -> tuple[Tensor, Tensor]:
        """What it multiplies each channel by, and what it adds, in float32 or wider."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        scale = self.weight.to(wide) * (self.running_var.to(wide) + 1e-5).rsqrt()
        return scale, self.bias.to(wide) - self.running_mean.to(wide) * scale


class ConvNorm(nn.Module):
    """A convolution and a normalisation, computed as one convolution."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = StridedConv2d(
            inputs, outputs, kernel, stride, kernel // 2, bias=False, groups=groups
        )
        self.bn = FrozenNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride), rounded up."""
        weight, bias = self.folded()
        return self.c.convolve(x, weight.to(x.dtype), bias.to(x.dtype))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of that one convolution, in float32 or wider."""
        scale, shift = self.bn()
        return self.c.weight * scale[:, None, None, None], shift


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, dim // 2, 3, stride=2), nn.GELU(), ConvNorm(dim // 2, dim, 3, stride=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, dim, H/4, W/4)."""
        out: Tensor = self.seq(x)
        return out


class ConvBlock(nn.Module):
    """The inverted bottleneck of MobileNet beside a shortcut, or without one between stages.

    Args:
        inputs: channels.
        hidden: channels inside.
        outputs: channels.
        stride: of the depthwise convolution.
        shortcut: whether the input is added, and the sum activated.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, stride: int = 1, *, shortcut: bool
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, hidden, 1)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = ConvNorm(hidden, outputs, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride), rounded up."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(out + x) if self.shortcut else out


class Attention(nn.Module):
    """Attention inside windows, with a bias for each distance of rows and of columns."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Row distances times column distances, in raster order.
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))

    def forward(self, x_BhwC: Tensor, scale: float) -> Tensor:
        """Shape kept; ``scale`` multiplies the scores beside 1 / sqrt(d)."""
        plan = window_plan((x_BhwC.shape[1], x_BhwC.shape[2]), self.window, shifted=False)
        # Padding is zeros before the norm, which makes its bias of them.
        padding = self.qkv(self.norm.bias)
        windows = partition(self.qkv(self.norm(x_BhwC)), plan, padding)
        # Queries, keys and values lie side by side head by head.
        q, k, v = windows.unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(
            q, k, v, self._biases().to(q.dtype), scale=scale * q.shape[-1] ** -0.5
        )
        projected: Tensor = self.proj(merge(out.transpose(1, 2).flatten(2), plan))
        return projected

    def _biases(self) -> Tensor:
        """Of each pair of tokens: (1, N, n, n)."""
        at = torch.arange(self.window, device=self.attention_biases.device)
        distance = (at[:, None] - at).abs()
        table = self.attention_biases.unflatten(1, (self.window, self.window))
        pairs: Tensor = table[:, distance[:, None, :, None], distance[None, :, None, :]]
        return pairs.flatten(3).flatten(1, 2)[None]


class MLP(nn.Module):
    """A norm and two linear layers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class WindowBlock(nn.Module):
    """Attention, a depthwise convolution without a shortcut, and an MLP."""

    def __init__(self, config: TinyViTConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        self.attn = Attention(dim, config.heads[stage - 1], config.windows[stage - 1])
        self.local_conv = ConvNorm(dim, dim, config.local_conv, groups=dim)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio))

    def forward(self, x_BChw: Tensor, scale: float) -> Tensor:
        """Shape kept."""
        x_BhwC = x_BChw.permute(0, 2, 3, 1)
        x_BhwC = x_BhwC + self.attn(x_BhwC, scale)
        x_BhwC = self.local_conv(x_BhwC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = x_BhwC + self.mlp(x_BhwC)
        return out.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks, and the way to the next stage."""

    def __init__(self, config: TinyViTConfig, stage: int) -> None:
        super().__init__()
        dim = config.dims[stage]
        hidden = int(dim * config.expand)
        self.blocks = nn.ModuleList(
            WindowBlock(config, stage) if stage else ConvBlock(dim, hidden, dim, shortcut=True)
            for _ in range(config.depths[stage])
        )
        self.downsample: ConvBlock | None = None
        if stage + 1 < len(config.dims):
            after = config.dims[stage + 1]
            # TinyViT's last stage is half as fine. MobileSAM keeps SAM's grid.
            stride = 1 if stage == 2 else 2
            self.downsample = ConvBlock(dim, after, after, stride, shortcut=False)

    def forward(self, x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Map (B, C, h, w) to what the next stage takes, and to what the blocks made."""
        for block in self.blocks:
            x = block(x, scale) if isinstance(block, WindowBlock) else block(x)
        return (x if self.downsample is None else self.downsample(x)), x


class TinyViT(nn.Module):
    """MobileSAM's encoder: (B, 3, H, W) to (B, neck, H/patch, W/patch).

    Attributes:
        img_size: side of the square it is trained at, in pixels.
        config: what it was built from.
    """

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = config.image_size
        self.patch_embed = PatchEmbed(config.dims[0])
        self.layers = nn.ModuleList(Stage(config, i) for i in range(len(config.dims)))
        self.neck = neck(config.dim, config.neck)

    def forward(self, x: Tensor) -> Tensor:
        """Encode normalised pixels.

        Args:
            x: (B, 3, H, W), H and W multiples of the patch; rectangles and any size.

        Returns:
            (B, neck, H/patch, W/patch).

        Raises:
            InputError: another shape, or too small for the factor of the scores.
        """
        return self.forward_features(x)[0]

    def forward_features(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The embedding, and the maps of the first two stages, at strides 4 and 8."""
        check_pixels(x, self.config.patch)
        scale = mobile_scale(self.config.length, max(x.shape[2:]))
        if runs_in_parts(x) and self._as_built(x.dtype):
            x, first_two = tiny_vit_bands.encode(self, x, scale)
            return self.neck(x), first_two
        # Channels last is 1.4 times as fast on CPUs, in bfloat16 2.4 times.
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.layers:
            x, own = stage(x, scale)
            maps.append(own)
        return self.neck(x), tuple(maps[:2])

    def _as_built(self, kind: torch.dtype) -> bool:
        """Whether layers do what their parameters say, in this precision.

        No others in their places, and no hooks, but in the neck. Convolutions are in any.
        """
        for layer in (self.patch_embed, self.layers):
            for each in layer.modules():
                if type(each) not in _BUILT_OF or each._forward_hooks or each._forward_pre_hooks:
                    return False
                if isinstance(each, nn.Linear | nn.LayerNorm) and each.weight.dtype != kind:
                    return False
        return True

    def adapt(self, length: LengthConfig) -> None:
        """Adapt to other sizes in another way.

        Raises:
            InputError: that is no way for this encoder.
        """
        self.config = replace(self.config, length=length)


# What an encoder is built of.
_BUILT_OF = (
    *(nn.Linear, nn.LayerNorm, nn.GELU, nn.Sequential, nn.ModuleList, StridedConv2d),
    *(FrozenNorm, ConvNorm, PatchEmbed, ConvBlock, Attention, MLP, WindowBlock, Stage),
)
