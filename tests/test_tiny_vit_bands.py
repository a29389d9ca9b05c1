"""TinyViT in pieces on a CPU: the same numbers as the whole picture's, at any size."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyres.errors import InputError
from anyres.models import tiny_vit, tiny_vit_bands
from anyres.models.config import TinyViTConfig
from anyres.models.tiny_vit import TinyViT
from anyres.ops import block, kernels
from anyres.predict.load import put

# Channels are multiples of 16, so that the kernels run; windows and strides fit nothing.
CONFIG = TinyViTConfig(
    dims=(32, 64, 32, 96),
    depths=(2, 1, 2, 1),
    heads=(2, 1, 3),
    windows=(3, 6, 2),
    mlp_ratio=2.0,
    expand=1.5,
    neck=16,
)
OTHER = replace(
    CONFIG, dims=(9, 14, 6), depths=(2, 1, 1), heads=(1, 3), windows=(5, 7), local_conv=5
)
SIDES = st.integers(1, 9).map(lambda n: 16 * n)
KINDS = {torch.float64: 1e-12, torch.float32: 1e-5}


def random_encoder(config: TinyViTConfig, kind: torch.dtype = torch.float64) -> TinyViT:
    torch.manual_seed(0)
    encoder = TinyViT(config).eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            values = torch.randn(tensor.shape)
            if name.endswith("running_var"):
                values = values.abs() + 0.3
            elif tensor.ndim > 1 and not name.endswith("attention_biases"):
                values *= tensor[0].numel() ** -0.5
            tensor.copy_(values)
    put_encoder: TinyViT = put(encoder, torch.device("cpu"), kind)  # type: ignore[arg-type]
    return put_encoder


@contextmanager
def whole() -> Iterator[None]:
    """The whole picture at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vit, "runs_in_parts", lambda x: False)
        yield


@contextmanager
def small_pieces(pixels: int, tokens: int) -> Iterator[None]:
    """Many pieces, though pictures are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vit_bands, "PIXELS", pixels)
        patch.setattr(tiny_vit_bands, "TOKENS", tokens)
        if kernels.has_numba():
            from anyres.ops import bias_cpu, conv_cpu

            patch.setattr(conv_cpu, "SIDE", max(1, pixels // 8))
            patch.setattr(conv_cpu, "ROWS", max(1, pixels // 16))
            patch.setattr(bias_cpu, "TOKENS", tokens)
        yield


@torch.no_grad()
def answers(encoder: TinyViT, pixels: Tensor) -> list[Tensor]:
    embedding, maps = encoder.forward_features(pixels)
    return [embedding, *maps]


def check(encoder: TinyViT, pixels: Tensor, tolerance: float) -> None:
    with whole():
        wanted = answers(encoder, pixels)
    found = answers(encoder, pixels)
    assert len(found) == 3
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * max(1, other.abs().max())


ENCODERS = {
    (name, kind): random_encoder(config, kind)
    for name, config in (("fits", CONFIG), ("other", OTHER))
    for kind in KINDS
}


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(ENCODERS, key=str)),
    st.integers(1, 2),
    SIDES,
    SIDES,
    st.sampled_from([(1, 1), (24, 10), (100, 40), (4096, 512)]),
)
def test_pieces_are_the_whole(
    which: tuple[str, torch.dtype], batch: int, height: int, width: int, sizes: tuple[int, int]
) -> None:
    torch.manual_seed(height + width)
    pixels = torch.randn(batch, 3, height, width, dtype=which[1])
    with small_pieces(*sizes):
        check(ENCODERS[which], pixels, KINDS[which[1]])


@pytest.mark.parametrize("implementation", ["torch", "numba"])
@pytest.mark.parametrize("size_hw", [(64, 80), (16, 160), (144, 16)])
def test_half_precision_errs_no_more_than_the_whole(
    implementation: str, size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if implementation == "numba" and not kernels.has_numba():
        pytest.skip("there are no kernels")
    monkeypatch.setenv("ANYRES_BLOCK", implementation)
    exact = ENCODERS["fits", torch.float32]
    narrow = random_encoder(CONFIG, torch.bfloat16)
    # Of so few tokens one picture's errors say little: by chance one way rounds better.
    torch.manual_seed(1)
    pixels = torch.randn(16, 3, *size_hw).bfloat16()
    with whole():
        wanted = answers(exact, pixels.float())
        others = answers(narrow, pixels)
    with small_pieces(100, 40):
        found = answers(narrow, pixels)
    for one, other, right in zip(found, others, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - right).norm() <= 1.15 * (other - right).norm()


def test_results_do_not_depend_on_threads_or_modes() -> None:
    encoder = random_encoder(CONFIG, torch.bfloat16)
    pixels = torch.randn(2, 3, 144, 176).bfloat16()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for mode in (torch.inference_mode, torch.no_grad):
                with mode():
                    found.append(tiny_vit_bands.encode(encoder, pixels, 1.0))
    finally:
        torch.set_num_threads(before)
    for embedding, maps in found[1:]:
        for one, other in zip((embedding, *maps), (found[0][0], *found[0][1]), strict=True):
            assert torch.equal(one, other)


def test_what_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = []
    encode = tiny_vit_bands.encode

    def count(*arguments: object) -> object:
        pieces.append(1)
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_vit_bands, "encode", count)
    encoder = random_encoder(CONFIG, torch.float32)
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        plain = encoder(pixels)
        assert pieces == [1]
        with torch.autocast("cpu", torch.bfloat16):
            encoder(pixels)
        seen: list[object] = []
        layer = encoder.layers[1].blocks[0].mlp.fc1
        hook = layer.register_forward_hook(lambda *arguments: seen.append(arguments))
        torch.testing.assert_close(encoder(pixels), plain, rtol=1e-4, atol=1e-4)
        assert seen
        hook.remove()
    with torch.enable_grad():
        encoder(pixels).sum().backward()
    assert pieces == [1]


def test_what_the_kernels_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_BLOCK", "numba")
    if not kernels.has_numba():
        pytest.skip("there are no kernels")
    with torch.no_grad(), pytest.raises(InputError, match=r"float64.*unset ANYRES_BLOCK"):
        ENCODERS["fits", torch.float64](torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    with pytest.raises(InputError, match=r"\[8, 16\] and 3"):
        block.runs_in_lanes(torch.float32, [16, 8])
    with pytest.raises(InputError, match=r"\[16\] and 5"):
        block.runs_in_lanes(torch.float32, [16], 5)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5), (4, 1), (7, 6)])
def test_the_depthwise_convolution(
    kind: torch.dtype, stride: int, size_hw: tuple[int, int]
) -> None:
    pytest.importorskip("numba")
    from anyres.ops import conv_numba
    from anyres.ops.block_cpu import numbers

    torch.manual_seed(0)
    height, width = size_hw
    x = torch.randn(height, width, 48).to(kind)
    weight, bias = torch.randn(3, 3, 48), torch.randn(48)
    wanted = F.conv2d(
        *(x.double().permute(2, 0, 1)[None], weight.double().permute(2, 0, 1)[:, None]),
        *(bias.double(), stride, 1, 1, 48),
    )[0].permute(1, 2, 0)
    for active in (False, True):
        out = torch.empty(wanted.shape, dtype=kind)
        conv_numba.depthwise(
            *(numbers(x), 0, height, width, 48, 0, 0, stride, numbers(weight), numbers(bias)),
            *(active, numbers(out), *out.shape[:2]),
        )
        right = F.gelu(wanted) if active else wanted
        limit = 2**-8 if kind == torch.bfloat16 else 1e-5
        # In bfloat16 GELU is ``coarse_gelu``, right to 5e-5.
        least = 6e-5 if active and kind == torch.bfloat16 else 1e-5
        torch.testing.assert_close(out.double(), right, rtol=limit, atol=least)


@torch.no_grad()
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 32, 32), (33, 64, 96), (70, 48, 32)])
@pytest.mark.parametrize("tiles", [True, False])
def test_products(rows: int, inner: int, outer: int, tiles: bool) -> None:
    pytest.importorskip("numba")
    from anyres.ops import simd_tiles
    from anyres.ops.buffers import Buffers
    from anyres.ops.products import Layer, take

    torch.manual_seed(0)
    buffers, half = Buffers(1 << 20), torch.bfloat16
    weight, bias = torch.randn(outer, inner).to(half), torch.randn(outer)
    layer = Layer.of(weight, bias)
    fits = inner % 32 == 0
    assert (layer.tiles is not None) == (fits and simd_tiles.has_tiles())
    if not tiles:
        layer = layer._replace(tiles=None)
    x = take(buffers, "x", half, rows, inner)
    out = take(buffers, "out", half, rows, outer)
    assert len(x) == len(out) == -(-rows // 32) * 32
    x[:] = torch.nan  # rows beyond must not matter
    x[:rows] = torch.randn(rows, inner)
    wanted = x[:rows].double() @ weight.double().T
    for active in (False, True):
        layer.multiply(x, rows, out, active=active)
        right = F.gelu(wanted + bias.double()) if active else wanted
        # Without tiles the product is rounded before the bias is added.
        torch.testing.assert_close(out[:rows].double(), right, rtol=2**-7, atol=0.07)
        if tiles and fits and simd_tiles.has_tiles():
            torch.testing.assert_close(out[:rows].double(), right, rtol=2**-8, atol=6e-5)
