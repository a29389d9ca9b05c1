"""TinyViT on a CPU without gradients: a piece of the picture at a time.

Convolutions and MLPs go over tiles or bands of rows, attention over groups of windows, each piece
on one thread (``ops.threads``): nothing wide is of the picture's size. With kernels (``ops.block``)
that is ``ops.conv_cpu`` and ``ops.bias_cpu``. Otherwise the layers themselves are called on pieces.

Where a convolution looks beyond a band, it is given the rows that it looks at as well, and its
answer for those, beside false zeros, is dropped: only zeros around the picture count.

Shapes: B pictures, (h, w) grid of a stage, C channels.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.config import TinyViTConfig
from anyres.ops import block
from anyres.ops.buffers import TOKENS
from anyres.ops.threads import alone, share
from anyres.ops.windows import Group, window_plan

if TYPE_CHECKING:
    from anyres.models.tiny_vit import ConvBlock, ConvNorm, PatchEmbed, Stage, TinyViT, WindowBlock
    from anyres.ops.block_cpu import Norm
    from anyres.ops.conv_cpu import Depthwise
    from anyres.ops.products import Layer

PIXELS = 4096  # of a band, if a row has no more

_Step = Callable[[Tensor], Tensor]  # from a map (B, h, w, C) to the next


class _Steps(NamedTuple):
    """A way through the encoder: the stages' blocks, and what comes between them."""

    embed: _Step
    blocks: list[list[_Step]]
    between: list[_Step]


def encode(encoder: "TinyViT", pixels: Tensor, scale: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Through all stages, without the neck.

    Args:
        encoder: its layers as they were built, in the precision of the pixels.
        pixels: (B, 3, H, W).
        scale: of the scores of attention, beside 1 / sqrt(d).

    Returns:
        (B, C, h, w) and the maps of the first two stages likewise, channels last in memory.
    """
    kind = pixels.dtype
    read = _compiled if _runs_compiled(encoder.config, kind) else _called
    steps = alone(lambda: read(encoder, kind, scale))
    x_BhwC = steps.embed(pixels)
    maps = []
    for i, blocks in enumerate(steps.blocks):
        if i > 0:
            x_BhwC = steps.between[i - 1](x_BhwC)
        for run in blocks:
            x_BhwC = run(x_BhwC)
        if i < 2:
            maps.append(x_BhwC.permute(0, 3, 1, 2))
    return x_BhwC.permute(0, 3, 1, 2), tuple(maps)


def _steps(
    encoder: "TinyViT",
    embed: Callable[["PatchEmbed"], _Step],
    convolve: Callable[["ConvBlock"], _Step],
    attend: Callable[["WindowBlock"], _Step],
) -> _Steps:
    first, *others = cast("list[Stage]", list(encoder.layers))
    blocks = [[convolve(layer) for layer in cast("list[ConvBlock]", list(first.blocks))]]
    blocks += [[attend(layer) for layer in _window_blocks(stage)] for stage in others]
    between = [convolve(stage.downsample) for stage in (first, *others) if stage.downsample]
    return _Steps(embed(encoder.patch_embed), blocks, between)


def _window_blocks(stage: "Stage") -> "list[WindowBlock]":
    return cast("list[WindowBlock]", list(stage.blocks))


def _runs_compiled(config: TinyViTConfig, kind: torch.dtype) -> bool:
    """Whether kernels run; errors as ``ops.block.runs_compiled``."""
    first, *others = config.dims
    channels = [first // 2, int(first * config.expand), *config.dims]
    channels += [int(dim * config.mlp_ratio) for dim in others]
    channels += [dim // heads for dim, heads in zip(others, config.heads, strict=True)]
    return block.runs_in_lanes(kind, channels, config.local_conv)


def _convs(layer: "PatchEmbed") -> tuple["ConvNorm", "ConvNorm"]:
    first, _, second = layer.seq
    return cast("ConvNorm", first), cast("ConvNorm", second)


# Compiled.


def _compiled(encoder: "TinyViT", kind: torch.dtype, scale: float) -> _Steps:
    from anyres.ops import bias_cpu, conv_cpu
    from anyres.ops.products import Layer

    def embed(layer: "PatchEmbed") -> _Step:
        (weight, bias), (second, second_bias) = (conv.folded() for conv in _convs(layer))
        stem = conv_cpu.Stem(
            _floats(weight.permute(2, 1, 3, 0)),
            _floats(bias),
            second.to(kind),
            second_bias.to(kind),
        )
        return partial(conv_cpu.run_stem, stem=stem)

    def convolve(layer: "ConvBlock") -> _Step:
        widen, across, narrow = layer.conv1, layer.conv2, layer.conv3
        layers = conv_cpu.Bottleneck(
            _pointwise(widen, kind), _depthwise(across), _pointwise(narrow, kind), layer.shortcut
        )
        return partial(conv_cpu.run_bottleneck, layers=layers)

    def attend(layer: "WindowBlock") -> _Step:
        attn, mlp = layer.attn, layer.mlp
        block = bias_cpu.Block(
            attn.heads,
            attn.window,
            scale * (attn.proj.in_features // attn.heads) ** -0.5,
            _floats(attn.attention_biases),
            _norm(attn.norm),
            attn.norm.bias,
            Layer.of(attn.qkv.weight, attn.qkv.bias),
            Layer.of(attn.proj.weight, attn.proj.bias),
            _depthwise(layer.local_conv),
            _norm(mlp.norm),
            Layer.of(mlp.fc1.weight, mlp.fc1.bias),
            Layer.of(mlp.fc2.weight, mlp.fc2.bias),
        )
        return partial(bias_cpu.run_block, block=block)

    return _steps(encoder, embed, convolve, attend)


def _floats(x: Tensor) -> object:
    from anyres.ops.block_cpu import numbers

    return numbers(x.float().contiguous())


def _norm(norm: nn.LayerNorm) -> "Norm":
    from anyres.ops.block_cpu import Norm

    return Norm(_floats(norm.weight), _floats(norm.bias), norm.eps)


def _pointwise(conv: "ConvNorm", kind: torch.dtype) -> "Layer":
    from anyres.ops.products import Layer

    weight, bias = conv.folded()
    return Layer.of(weight[:, :, 0, 0].to(kind), bias)


def _depthwise(conv: "ConvNorm") -> "Depthwise":
    from anyres.ops.conv_cpu import Depthwise

    weight, bias = conv.folded()
    return Depthwise(_floats(weight[:, 0].permute(1, 2, 0)), _floats(bias), conv.c.stride[0])


# The layers themselves.


def _called(encoder: "TinyViT", kind: torch.dtype, scale: float) -> _Steps:
    return _steps(
        encoder,
        lambda layer: partial(_patch_embed, layer),
        lambda layer: partial(_conv_block, layer),
        lambda layer: partial(_window_block, layer, scale),
    )


class _Band(NamedTuple):
    """Rows of a convolution's answer, and the rows of its input that they come from."""

    rows: slice
    source: slice
    before: int  # rows of the answer to the source that come before

    @staticmethod
    def of(conv: "ConvNorm", rows: slice, height: int) -> "_Band":
        """Of an input of that height."""
        stride, reach = conv.c.stride[0], conv.c.kernel_size[0] // 2
        before = min(rows.start, -(-reach // stride))
        stop = min(height, (rows.stop - 1) * stride + reach + 1)
        return _Band(rows, slice((rows.start - before) * stride, stop), before)

    def keep(self, answer_BChw: Tensor) -> Tensor:
        """The rows themselves."""
        return answer_BChw[:, :, self.before : self.before + self.rows.stop - self.rows.start]


def _bands(out_BhwC: Tensor) -> Iterator[tuple[int, slice]]:
    """The answer's pictures and rows, a band at a time."""
    batch, height, width = out_BhwC.shape[:3]
    most = max(1, PIXELS // width)
    for picture, top in product(range(batch), range(0, height, most)):
        yield picture, slice(top, min(top + most, height))


def _channels_last(x_BhwC: Tensor, picture: int, rows: slice) -> Tensor:
    return x_BhwC[picture : picture + 1, rows].permute(0, 3, 1, 2)


def _patch_embed(layer: "PatchEmbed", pixels: Tensor) -> Tensor:
    first, second = _convs(layer)
    batch, _, height, width = pixels.shape
    out = pixels.new_empty(batch, height // 4, width // 4, second.c.out_channels)

    def run(item: tuple[int, slice]) -> None:
        picture, rows = item
        outer = _Band.of(second, rows, height // 2)
        inner = _Band.of(first, outer.source, height)
        x = pixels[picture : picture + 1, :, inner.source]
        x = first(x.contiguous(memory_format=torch.channels_last))
        x = outer.keep(second(F.gelu(inner.keep(x))))
        out[picture, rows] = x[0].permute(1, 2, 0)

    share(run, _bands(out))
    return out


def _conv_block(layer: "ConvBlock", x_BhwC: Tensor) -> Tensor:
    batch, height, width = x_BhwC.shape[:3]
    across, stride = layer.conv2, layer.conv2.c.stride[0]
    outputs = layer.conv3.c.out_channels
    out = x_BhwC.new_empty(batch, -(-height // stride), -(-width // stride), outputs)

    def run(item: tuple[int, slice]) -> None:
        picture, rows = item
        band = _Band.of(across, rows, height)
        x = F.gelu(layer.conv1(_channels_last(x_BhwC, picture, band.source)))
        x = layer.conv3(F.gelu(band.keep(across(x))))
        if layer.shortcut:
            x = F.gelu(x + _channels_last(x_BhwC, picture, rows))
        out[picture, rows] = x[0].permute(1, 2, 0)

    share(run, _bands(out))
    return out


def _window_block(layer: "WindowBlock", scale: float, x_BhwC: Tensor) -> Tensor:
    plan = window_plan((x_BhwC.shape[1], x_BhwC.shape[2]), layer.attn.window, shifted=False)
    attended, out = torch.empty_like(x_BhwC), torch.empty_like(x_BhwC)

    def attend(group: Group) -> None:
        tokens = x_BhwC[group.place]
        torch.add(tokens, layer.attn(tokens, scale), out=attended[group.place])

    def mix(item: tuple[int, slice]) -> None:
        picture, rows = item
        band = _Band.of(layer.local_conv, rows, x_BhwC.shape[1])
        x = band.keep(layer.local_conv(_channels_last(attended, picture, band.source)))
        x_hwC = x[0].permute(1, 2, 0)
        torch.add(x_hwC, layer.mlp(x_hwC), out=out[picture, rows])

    share(attend, plan.groups(max(1, TOKENS // len(x_BhwC))))
    share(mix, _bands(out))
    return out
