"""Small layers that several models share."""

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.errors import InputError
from anyres.ops.precision import wide
from anyres.ops.threads import in_graph

T = TypeVar("T")


class LayerNorm2d(nn.Module):
    """Layer normalisation over the channels of a (B, C, H, W) map (ConvNeXt; eps 1e-6 in SAM).

    In the precision of the map, whatever that of the parameters.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel of (B, C, H, W) over its channels."""
        # The channel axis last is what layer_norm wants; for channels-last maps this is a view.
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], weight, bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class SiLU(nn.Module):
    """SiLU of what nothing else holds: in place, unless a gradient needs it."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        return F.silu(x, inplace=not torch.is_grad_enabled())


class ChannelsLast(nn.Module):
    """(B, C, H, W) as (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """A view."""
        return x.permute(0, 2, 3, 1)


def neck(inputs: int, outputs: int) -> nn.Sequential:
    """From an encoder's map (B, inputs, h, w) to SAM's embedding (B, outputs, h, w)."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        LayerNorm2d(outputs),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        LayerNorm2d(outputs),
    )


class StridedConv2d(nn.Conv2d):
    """A convolution that makes a map smaller; right at every width, in every precision.

    torch 2.13 on CPUs with AMX answers garbage in bfloat16 where the output is one column wide,
    as it is of pictures one token wide. That case is computed in float32: it costs nothing there.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        padding: int = 0,
        bias: bool = True,
        groups: int = 1,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
        self._two_columns = kernel + stride - 2 * padding  # the width of input that gives two

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H', W')."""
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same with another weight and bias, of the same shapes."""
        if x.device.type != "cpu" or x.shape[-1] >= self._two_columns:
            bias = None if bias is None else bias.to(x.dtype)
            out: Tensor = self._conv_forward(x, weight.to(x.dtype), bias)
            return out
        bias = None if bias is None else wide(bias)
        with torch.autocast("cpu", enabled=False):
            exact: Tensor = self._conv_forward(wide(x), wide(weight), bias)
        return exact.to(x.dtype)


class DoublingConv2d(nn.ConvTranspose2d):
    """A transposed convolution of kernel and stride 2: every pixel becomes four of its own.

    So it is a product and a shuffle, which on CPUs takes a third of the time of the general call.
    In the precision of the map, whatever that of the parameters.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=2, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, 2H, 2W), channels last in memory."""
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2).to(x.dtype)
        bias = None if self.bias is None else self.bias.repeat(4).to(x.dtype)
        four = F.linear(x.permute(0, 2, 3, 1), weight, bias).unflatten(3, (2, 2, -1))
        out: Tensor = four.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)
        return out


class MLP(nn.Module):
    """The heads of SAM's mask decoder: linear layers with ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int, depth: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class MLPBlock(nn.Module):
    """Two linear layers with an activation between, as SAM's blocks have them."""

    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        out: Tensor = self.lin2(self.activation(self.lin1(x)))
        return out


class PatchEmbed(nn.Module):
    """Non-overlapping patches to tokens: a strided convolution, computed as one matrix product.

    On CPUs that takes a third of the time of the convolution, and is right at every width.
    """

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to tokens (B, H/patch, W/patch, dim)."""
        size = self.proj.kernel_size[0]
        patches = x.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
        out: Tensor = F.linear(patches.flatten(3), self.proj.weight.flatten(1), self.proj.bias)
        return out


def check_pixels(pixels: Tensor, patch: int) -> None:
    """Check what an image encoder is given: a convolution would cut off what makes no whole patch.

    Raises:
        InputError: not (B, 3, H, W) with H and W multiples of the patch, or no picture.
    """
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[1] != 3 or any(side < 1 or side % patch for side in shape[2:]):
        raise InputError(
            f"the encoder takes (B, 3, H, W) with H and W multiples of {patch}, not {shape}; "
            "pad the picture at the bottom and right (Segmenter.preprocess)"
        )
    if shape[0] < 1:
        raise InputError(f"the encoder got no picture: {shape}; give it one or more")


def resize_table(table_1CHW: Tensor, grid_hw: tuple[int, int], mode: str, stretch: bool) -> Tensor:
    """Fit a table of absolute positions to a token grid.

    Args:
        table_1CHW: positions learned on a square grid, (1, C, S, S).
        grid_hw: the grid wanted, in tokens.
        mode: interpolation, ``bilinear`` or ``bicubic``; align_corners is False.
        stretch: resize each axis by itself. Otherwise both axes are resized by the long side's
            factor and the shorter is cropped, so that a rectangle's tokens get the positions they
            would have inside the padded square.

    Returns:
        (1, C, h, w).
    """
    height, width = grid_hw
    side = max(grid_hw)
    target = (height, width) if stretch else (side, side)
    if tuple(table_1CHW.shape[-2:]) != target:
        # Interpolation of a bf16 table would round twice.
        resized = F.interpolate(wide(table_1CHW), size=target, mode=mode, align_corners=False)
        table_1CHW = resized.to(table_1CHW.dtype)
    return table_1CHW[..., :height, :width]


def each(maps_BCHW: Tensor, prompts: int) -> Tensor:
    """Maps of B pictures for P prompts, P / B a picture; one picture's are left to broadcast."""
    pictures = len(maps_BCHW)
    return maps_BCHW if pictures == 1 else maps_BCHW.repeat_interleave(prompts // pictures, 0)


def add_each(maps_PCHW: Tensor, own_BCHW: Tensor) -> Tensor:
    """The sum of P maps that nothing else holds and those of B pictures, P / B a picture.

    In place unless a gradient needs them: these maps are large. Both keep their order in memory.
    """
    grouped = maps_PCHW.unflatten(0, (len(own_BCHW), -1))
    if not torch.is_grad_enabled():
        grouped += own_BCHW[:, None]
        return maps_PCHW
    out: Tensor = (grouped + own_BCHW[:, None]).flatten(0, 1)
    return out


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's parameters, for kernels."""
    return layer.get_parameter("weight"), layer.get_parameter("bias")


def rows(maps_BCHW: Tensor) -> Tensor:
    """(B, H * W, C): pixels as rows; a view of what is channels last in memory."""
    return maps_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


class LastMade(Generic[T]):
    """What was last made of some tensors, so that it need not be made anew while they stay.

    Only where no gradient is recorded. The tensors are compared, not their versions: optimisers
    and ``load_state_dict`` change weights in place, some in ways that torch does not count. Copies
    of a model, and pickles, start empty.
    """

    def __init__(self) -> None:
        self._last: tuple[Hashable, tuple[Tensor, ...], T] | None = None

    def __reduce__(self) -> "tuple[type[LastMade[T]], tuple[()]]":
        return LastMade, ()

    def __call__(
        self, tensors: Sequence[Tensor], key: Hashable, make: Callable[[Sequence[Tensor]], T]
    ) -> T:
        """``make(tensors)``, from the last call if that was for the same tensors and key."""
        learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if in_graph() or learns or any(x.is_meta for x in tensors):
            return make(tensors)
        key = (key, *((x.device, x.dtype, x.shape) for x in tensors))
        last = self._last  # read once: another thread may replace it
        if last is not None and last[0] == key and all(map(torch.equal, last[1], tensors)):
            return last[2]
        # Made in inference mode, it could not take part in a later call with gradients.
        with torch.inference_mode(False), torch.no_grad():
            copies = tuple(x.detach().clone() for x in tensors)
            made = make(copies)
        self._last = (key, copies, made)
        return made
