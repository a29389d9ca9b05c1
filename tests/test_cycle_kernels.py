"""The compiled kernels of the cycle-scan block against plain definitions in torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.errors import InputError
from anyres.models.hrsam_blocks import CycleScan
from anyres.ops.threads import alone

pytest.importorskip("numba")
from anyres.ops import cycle_cpu, cycle_numba
from anyres.ops.block_cpu import numbers
from anyres.ops.buffers import Buffers

KINDS = [torch.float32, torch.bfloat16]
WIDTH, ROWS, FIRST = 48, 5, 2  # rows before the first must stay as they are


def close(got: Tensor, wanted: Tensor) -> None:
    limit = {torch.float32: 3e-6, torch.bfloat16: 2**-8}[got.dtype]
    torch.testing.assert_close(got.double(), wanted, rtol=limit, atol=3e-6)


def make(kind: torch.dtype, *shape: int) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) * 3).to(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_norm(kind: torch.dtype) -> None:
    x = make(kind, FIRST + ROWS, WIDTH) + 7
    gain, shift = torch.randn(WIDTH), torch.randn(WIDTH)
    out = torch.empty(ROWS, WIDTH, dtype=kind)
    parameters = numbers(gain), numbers(shift), 1e-5, WIDTH
    cycle_numba.norm(numbers(x), FIRST * WIDTH, ROWS, *parameters, numbers(out))
    close(out, F.layer_norm(x[FIRST:].double(), (WIDTH,), gain.double(), shift.double()))


@pytest.mark.parametrize("kind", KINDS)
def test_norm_gated(kind: torch.dtype) -> None:
    y, gate = make(kind, FIRST + ROWS, WIDTH), make(kind, 1, FIRST + ROWS, WIDTH)[0]
    gain, shift = torch.randn(WIDTH), torch.randn(WIDTH)
    out = torch.empty(ROWS, WIDTH, dtype=kind)
    parameters = numbers(gain), numbers(shift), 1e-5, WIDTH
    cycle_numba.norm_gated(
        numbers(y), numbers(gate), FIRST * WIDTH, ROWS, *parameters, numbers(out)
    )
    wanted = F.layer_norm(y[FIRST:].double(), (WIDTH,), gain.double(), shift.double())
    close(out, wanted * gate[FIRST:].double())


@pytest.mark.parametrize("kind", KINDS)
def test_activate(kind: torch.dtype) -> None:
    x, bias = make(kind, ROWS, 2 * WIDTH) * 5, torch.randn(2 * WIDTH)
    x[0, :4] = torch.tensor([1e30, -1e30, 200.0, -200.0])
    x[1, 0] = x[2, -1] = math.nan
    u, gate = (torch.full((FIRST + ROWS, WIDTH), 9.0, dtype=kind) for _ in range(2))
    arrays = numbers(u), numbers(gate)
    cycle_numba.activate(numbers(x), ROWS, numbers(bias), WIDTH, *arrays, FIRST * WIDTH)
    wanted = F.silu(x.double() + bias.double())
    limit = {torch.float32: 3e-6, torch.bfloat16: 2**-8}[kind]
    got = torch.cat([u, gate], 1).double()
    # A nan also comes into what shares its division; nothing else.
    got[FIRST + 1, WIDTH] = wanted[1, WIDTH]
    got[FIRST + 2, WIDTH - 1] = wanted[2, WIDTH - 1]
    torch.testing.assert_close(got[FIRST:], wanted, rtol=limit, atol=3e-6, equal_nan=True)
    assert bool((got[:FIRST] == 9).all())


@pytest.mark.parametrize("kind", KINDS)
def test_add(kind: torch.dtype) -> None:
    x, y, bias = make(kind, FIRST + ROWS, WIDTH), make(kind, ROWS, WIDTH), torch.randn(WIDTH)
    out = torch.full_like(x, 9)
    arrays = numbers(y), ROWS, numbers(bias), WIDTH, numbers(out)
    cycle_numba.add(numbers(x), FIRST * WIDTH, *arrays)
    close(out[FIRST:], x[FIRST:].double() + y.double() + bias.double())
    assert bool((out[:FIRST] == 9).all())


def test_samples_stay_apart() -> None:
    block = CycleScan(32, 4, 3)
    maps = [torch.randn(3, 7, 6, 32), torch.randn(3, 2, 2, 32)]
    with torch.no_grad():
        together = block.over(maps)
        single = [block.over([x[i : i + 1] for x in maps]) for i in range(3)]
    for i, both in enumerate(single):
        for one, of_all in zip(both, together, strict=True):
            torch.testing.assert_close(one[0], of_all[i], rtol=1e-6, atol=1e-6)


def test_memory_beyond_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cycle_cpu, "_buffers", Buffers(kept=30_000))
    block = CycleScan(32, 4, 1)
    with torch.no_grad():
        block(torch.randn(1, 40, 32))
        assert max(x.nbytes for x in cycle_cpu._buffers.buffers.values()) < 30_000
        block(torch.randn(1, 4000, 32))
    assert max(x.nbytes for x in cycle_cpu._buffers.buffers.values()) < 30_000


def test_forcing_channels_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_BLOCK", "numba")
    with torch.no_grad(), pytest.raises(InputError, match="multiples of 16"):
        CycleScan(24, 4, 1)(torch.randn(1, 5, 24))


def test_alone_keeps_to_one_thread() -> None:
    with torch.inference_mode():
        inside = alone(lambda: (torch.get_num_threads(), torch.is_inference_mode_enabled()))
    assert inside == (1, True)
