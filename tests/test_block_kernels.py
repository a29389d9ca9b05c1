"""The compiled kernels of window blocks against plain definitions in torch."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.errors import InputError, MissingExtraError
from anyres.models import hrsam_blocks
from anyres.models.config import HRSAMConfig
from anyres.models.hrsam_blocks import Block
from anyres.ops import block, kernels
from anyres.ops.rope import frequencies, window_table
from anyres.ops.windows import window_plan

numba = pytest.importorskip("numba")
from anyres.ops import block_cpu, block_numba, simd  # noqa: E402

CONFIG = HRSAMConfig(dim=96, heads=3, window=4, blocks=1, out_blocks=(0,), state=4, mlp_ratio=2.5)
KINDS = [torch.float32, torch.bfloat16]
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # of a value: rounded once
INF, NAN = math.inf, math.nan
numbers = block_cpu.numbers


def close(got: Tensor, wanted: Tensor, least: float = 1.0) -> None:
    torch.testing.assert_close(
        got.double(), wanted, rtol=CLOSE[got.dtype], atol=least * 2e-6, equal_nan=True
    )


def rounding() -> object:
    """Compiled anew, since how it rounds is decided when it is."""

    @numba.njit
    def round_all(x: object, out: object) -> None:
        for i in range(0, len(x), simd.LANES):
            simd.store(out, i, simd.load(x, i))

    return round_all


@pytest.mark.parametrize("itself", [True, False])
def test_bfloat16_is_rounded_like_torchs(itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not itself:
        monkeypatch.setattr(simd, "_rounds_itself", lambda context: False)
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), dtype=torch.int64).int()
    bits[::2] = bits[::2] & -0x8000  # ties
    x = bits.view(torch.float32)
    x[:6] = torch.tensor([INF, -INF, NAN, 3.4e38, 0.0, -0.0])
    x = x[(x.abs() >= 2.0**-126) | (x == 0) | x.isnan()][: 1 << 15]
    got = torch.empty(len(x), dtype=torch.bfloat16)
    rounding()(numbers(x), numbers(got))
    assert torch.equal(got.isnan(), x.isnan())
    assert torch.equal(got[~x.isnan()], x[~x.isnan()].bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_norms_and_sums(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    width, rows = 96, 37
    tokens, places = (torch.randn(50, width) * 3 + 5).to(kind), torch.randperm(50)[:rows]
    gain, shift, bias = torch.randn(3, width)
    y = torch.randn(rows, width).to(kind)
    y[3, 5], y[4, 0] = NAN, INF
    out, summed = torch.empty(2, rows, width, dtype=kind)
    doubles = (gain.double(), shift.double())

    def normed(x: Tensor) -> Tensor:
        return F.layer_norm(x.double(), (width,), *doubles, 1e-5)

    both = numbers(gain), numbers(shift), 1e-5, width
    block_numba.norm(numbers(tokens), places.numpy(), numbers(out), *both)
    close(out, normed(tokens[places]))

    of_y = numbers(y), numbers(bias)
    sums = numbers(summed), numbers(out)
    block_numba.add_norm(numbers(tokens), places.numpy(), *of_y, *sums, *both)
    wanted = tokens[places].double() + y.double() + bias.double()
    close(summed, wanted)
    close(out, normed(summed))

    whole = torch.zeros(50, width, dtype=kind)
    block_numba.add_out(numbers(summed), *of_y, places.numpy(), numbers(whole), width)
    close(whole[places], summed.double() + y.double() + bias.double())
    assert whole.count_nonzero(1).bool().sum() == rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keys", [16, 48, 256])
def test_exponentials_are_a_softmax(kind: torch.dtype, keys: int) -> None:
    torch.manual_seed(0)
    scores = torch.cat([torch.randn(9, keys), 40 * torch.randn(9, keys), torch.zeros(1, keys)])
    extremes = [INF, -INF, NAN, 1e30, -1e30, 3e38]
    odd = torch.randn(len(extremes), keys)
    odd[:, -1] = torch.tensor(extremes)
    scores = torch.cat([scores, odd, torch.full((1, keys), -INF)]).to(kind)
    # nan with every bit set, of which no arithmetic may make a number
    scores[0, 1] = torch.tensor(-1, dtype=torch.int32).view(torch.float32).to(kind)
    wanted = scores.double().softmax(1)
    scales = torch.empty(len(scores))
    block_numba.exponentials(numbers(scores), len(scores), keys, numbers(scales))
    torch.testing.assert_close(
        scores.double() * scales[:, None].double(),
        wanted,
        rtol=1e-5 if kind == torch.float32 else 2**-8,
        atol=1e-9,
        equal_nan=True,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gelu(kind: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-9, 9, 16 * 999), torch.tensor([INF, NAN, 1e30, -1e30] * 4)])
    x, bias = x.view(-1, 16).to(kind), torch.linspace(-1, 1, 16)
    wanted = F.gelu(x.double() + bias.double())
    block_numba.gelu(numbers(x), len(x), numbers(bias), 16)
    rounded = 2e-7 if kind == torch.float32 else 2**-8
    torch.testing.assert_close(x.double(), wanted, rtol=rounded, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_put_together_and_back(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    heads, depth, windows, real, keys, first = 2, 32, 3, 5, 16, 7
    qkv, bias = torch.randn(30, 3 * heads * depth).to(kind), torch.randn(3 * heads * depth)
    slots = torch.randperm(keys)
    cos, sin = window_table(frequencies(depth), 4)
    q = torch.empty(windows, heads, real, depth, dtype=kind)
    k, v = torch.empty(2, windows, heads, keys, depth, dtype=kind)
    block_numba.arrange(
        *(numbers(qkv), first, 29, windows, real, slots.numpy()),
        *map(numbers, (bias, cos.contiguous(), sin.contiguous())),
        *(heads, depth, numbers(q), numbers(k), numbers(v)),
    )
    rows = torch.full((windows, keys), 29)
    rows[:, :real] = torch.arange(first, first + windows * real).view(windows, real)
    split = (qkv.double() + bias.double())[rows].unflatten(2, (3, heads, depth))
    of_q, of_k, of_v = split.permute(2, 0, 3, 1, 4)  # windows, heads, keys, depth

    def turned(x: Tensor) -> Tensor:
        x, y = x.unflatten(-1, (-1, 2)).unbind(-1)
        c, s = cos[slots].double(), sin[slots].double()
        return torch.cat([x * c + y * s, y * c - x * s], -1)

    close(q, turned(of_q)[:, :, :real] / depth**0.5)
    close(k, turned(of_k))
    close(v, of_v)

    out, scales = torch.zeros(30, heads * depth, dtype=kind), torch.rand(windows * heads * real)
    sizes = windows, real, heads, depth
    block_numba.collect(numbers(q), numbers(scales), *sizes, numbers(out), first)
    scaled = q.double() * scales.view(windows, heads, real, 1)
    close(out[first : first + windows * real], scaled.transpose(1, 2).flatten(2).flatten(0, 1))
    assert not out[:first].any()


def make_block(window: int) -> tuple[Block, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    made = Block(replace(CONFIG, window=window)).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made, window_table(frequencies(32).double(), window)


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 50, 10_000])
@pytest.mark.parametrize(
    ("grid", "window"), [((8, 12), 4), ((17, 9), 4), ((1, 9), 8), ((13, 22), 8)]
)
def test_compiled_block_is_the_block(
    grid: tuple[int, int], window: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEAST", "MOST"):
        monkeypatch.setattr(hrsam_blocks, name, size)
    layer, rope = make_block(window)
    for shifted in (False, True):
        plan = window_plan(grid, window, shifted=shifted)
        x = torch.randn(2, *grid, 96, dtype=torch.float64)
        wanted = layer.double()(x, plan, rope)
        for kind in KINDS:
            errors = {}
            for name in ("numba", "torch"):
                monkeypatch.setenv("ANYRES_BLOCK", name)
                got = layer.to(kind)(x.to(kind), plan, rope)
                assert got.dtype == kind
                errors[name] = (got.double() - wanted).norm() / wanted.norm()
            assert errors["numba"] < 1.1 * errors["torch"] + 1e-7
            layer.double()


def test_results_do_not_depend_on_threads_or_modes() -> None:
    layer, rope = make_block(4)
    plan = window_plan((30, 41), 4, shifted=True)
    before = torch.get_num_threads()
    for kind in KINDS:
        x = torch.randn(1, 30, 41, 192, dtype=kind)[..., ::2]
        found = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for mode in (torch.inference_mode, torch.no_grad):
                    with mode():
                        found.append(layer.to(kind)(x, plan, rope))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[0], other) for other in found[1:])


@torch.no_grad()
def test_forgotten_sizes_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_cpu, "_SPACES", 2)
    layer, rope = make_block(4)
    layer = layer.float()
    xs = [torch.randn(1, side, 9, 96) for side in (5, 30, 9, 5, 70)]
    plans = [window_plan((x.shape[1], 9), 4, shifted=True) for x in xs]
    first = [layer(x, plan, rope) for x, plan in zip(xs, plans, strict=True)]
    for x, plan, wanted in zip(xs, plans, first, strict=True):
        assert torch.equal(layer(x, plan, rope), wanted)


def test_names_of_the_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_BLOCK", "torch")
    assert block.kernel_name() == "torch (ANYRES_BLOCK=torch)"
    monkeypatch.setenv("ANYRES_BLOCK", "fortran")
    with pytest.raises(InputError, match="'fortran'"):
        block.kernel_name()
    monkeypatch.delenv("ANYRES_BLOCK")
    assert block.kernel_name().startswith("numba, ")
    monkeypatch.setattr(kernels, "has_numba", lambda: False)
    assert "anyres[fast]" in block.kernel_name()
    monkeypatch.setenv("ANYRES_BLOCK", "numba")
    with pytest.raises(MissingExtraError, match="not installed"):
        block.kernel_name()


def test_what_the_kernels_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 2, 2, 96)
    assert block.runs_compiled(x, 3, 4, 64)
    assert not block.runs_compiled(x.double(), 3, 4, 64)
    for sizes in ((2, 4, 64), (3, 6, 64), (3, 4, 72)):
        assert not block.runs_compiled(x, *sizes)
    monkeypatch.setenv("ANYRES_BLOCK", "numba")
    with pytest.raises(InputError, match="float64"):
        block.runs_compiled(x.double(), 3, 4, 64)
