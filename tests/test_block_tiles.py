"""Window blocks multiplied by the processor's tiles, against plain definitions in torch."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.models import hrsam_blocks
from anyres.models.config import HRSAMConfig
from anyres.models.hrsam_blocks import Block
from anyres.ops import block
from anyres.ops.rope import frequencies, window_table
from anyres.ops.windows import window_plan

numba = pytest.importorskip("numba")
from anyres.ops import simd, simd_tiles  # noqa: E402
from anyres.ops.block_cpu import numbers  # noqa: E402

pytestmark = pytest.mark.skipif(not simd_tiles.has_tiles(), reason="this processor has no AMX")
CONFIG = HRSAMConfig(dim=96, heads=3, window=8, blocks=1, out_blocks=(0,), state=4, mlp_ratio=8 / 3)
INF, NAN = math.inf, math.nan


def make_block(config: HRSAMConfig) -> tuple[Block, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    made = Block(config).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made, window_table(frequencies(config.dim // config.heads).double(), config.window)


def apply(function: object, x: Tensor) -> Tensor:
    @numba.njit
    def all_of(x: object, out: object) -> None:
        for i in range(0, len(x), simd.LANES):
            simd.store(out, i, function(simd.load(x, i)))

    out = torch.empty_like(x)
    all_of(numbers(x), numbers(out))
    return out


def test_coarse_functions() -> None:
    x = torch.linspace(-99, 0, 16 * 9999)
    powers = apply(simd_tiles.coarse_power, x)
    torch.testing.assert_close(powers.double(), 2 ** x.double(), rtol=8e-5, atol=0)
    odd = torch.tensor([NAN, -INF, -1e30, -101.0] * 4)
    wanted = torch.tensor([NAN, 2.0**-100, 2.0**-100, 2.0**-100] * 4)
    torch.testing.assert_close(
        apply(simd_tiles.coarse_power, odd), wanted, rtol=8e-5, atol=0, equal_nan=True
    )
    x = torch.cat([torch.linspace(-12, 12, 16 * 9999), torch.tensor([1e30, NAN, -1e30, 0.0] * 4)])
    got = apply(simd_tiles.coarse_gelu, x)
    torch.testing.assert_close(got, F.gelu(x), rtol=1e-6, atol=5e-5, equal_nan=True)


def test_pairs_are_stored_and_turned() -> None:
    @numba.njit
    def store_and_turn(x: object, y: object, pairs: object, turned: object) -> None:
        for row in range(16):
            at = row * 16
            simd_tiles.store_pairs(pairs, 2 * at, simd.load(x, at), simd.load(y, at))
        simd_tiles.turn(pairs, 0, 32, turned, 3, 40)

    torch.manual_seed(0)
    x, y = torch.randn(2, 16, 16)
    x[0, 0], x[1, 1], y[2, 2] = NAN, INF, -3.4e38
    pairs, turned = torch.empty(16, 32).bfloat16(), torch.zeros(16, 40).bfloat16()
    store_and_turn(*map(numbers, (x, y, pairs, turned)))
    wanted = torch.stack([x, y], -1).bfloat16()
    torch.testing.assert_close(pairs.view(16, 16, 2), wanted, rtol=0, atol=0, equal_nan=True)
    found = turned.flatten()[3:].unfold(0, 32, 40).reshape(-1, 16, 2)
    wanted = wanted.transpose(0, 1)[: len(found)]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 200, 10_000])
@pytest.mark.parametrize(
    ("grid", "window", "heads", "width"),
    [
        ((16, 24), 8, 3, 96),
        ((17, 9), 8, 1, 64),  # heads of 64
        ((1, 9), 8, 2, 64),
        ((23, 37), 16, 2, 64),
    ],
)
def test_block_is_the_block(
    grid: tuple[int, int],
    window: int,
    heads: int,
    width: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LEAST", "MOST"):
        monkeypatch.setattr(hrsam_blocks, name, size)
    layer, rope = make_block(replace(CONFIG, window=window, heads=heads, dim=width, mlp_ratio=3))
    for shifted in (False, True):
        plan = window_plan(grid, window, shifted=shifted)
        x = torch.randn(2, *grid, width, dtype=torch.float64)
        wanted = layer.double()(x, plan, rope)
        layer.bfloat16()
        assert block.runs_in_tiles(x.bfloat16(), window, 3 * width)
        errors = []
        for name in ("numba", "torch"):
            monkeypatch.setenv("ANYRES_BLOCK", name)
            got = layer(x.bfloat16(), plan, rope)
            errors.append((got.double() - wanted).norm() / wanted.norm())
        assert errors[0] < 1.1 * errors[1]


@torch.no_grad()
def test_tiles_do_what_the_other_kernels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, rope = make_block(CONFIG)
    plan = window_plan((30, 41), 8, shifted=True)
    x = torch.randn(1, 30, 41, 96).bfloat16()
    tiles = layer.bfloat16()(x, plan, rope)
    monkeypatch.setattr(block, "runs_in_tiles", lambda *_: False)
    others = layer(x, plan, rope)
    assert not torch.equal(tiles, others)
    assert (tiles - others).float().norm() < 0.005 * others.float().norm()


def test_results_do_not_depend_on_threads_or_modes() -> None:
    layer, rope = make_block(CONFIG)
    plan = window_plan((30, 41), 8, shifted=True)
    x = torch.randn(1, 30, 41, 192).bfloat16()[..., ::2]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for mode in (torch.inference_mode, torch.no_grad):
                with mode():
                    found.append(layer.bfloat16()(x, plan, rope))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@torch.no_grad()
def test_changed_weights_count_at_once() -> None:
    layer, rope = make_block(CONFIG)
    plan = window_plan((16, 16), 8, shifted=True)
    x = torch.randn(1, 16, 16, 96).bfloat16()
    before = layer.bfloat16()(x, plan, rope)
    for parameter in layer.parameters():
        old = parameter.clone()
        parameter.data.view(-1).view(torch.uint8).add_(1)  # torch counts no version of this
        assert not torch.equal(layer(x, plan, rope), before)
        parameter.data.copy_(old)
    assert torch.equal(layer(x, plan, rope), before)


@torch.no_grad()
def test_nan_stays_in_its_window() -> None:
    layer, rope = make_block(CONFIG)
    x = torch.randn(1, 16, 24, 96).bfloat16()
    x[0, 3, 9] = NAN
    out = layer.bfloat16()(x, window_plan((16, 24), 8, shifted=False), rope)
    lost = out.isnan().any(-1)[0]
    assert lost[:8, 8:16].all()
    assert lost.sum() == 64


def test_what_tiles_do_not_fit() -> None:
    x = torch.zeros(1, 2, 2, 96).bfloat16()
    assert block.runs_in_tiles(x, 8, 96)
    assert not block.runs_in_tiles(x.float(), 8, 96)
    assert not block.runs_in_tiles(x, 4, 96)
    assert not block.runs_in_tiles(x, 8, 48)


def test_doctor_names_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYRES_BLOCK", raising=False)
    assert "bfloat16 in AMX tiles" in block.kernel_name()
