"""The cycle-scan: both implementations against a plain loop over the repeated sequence."""

import math
import threading
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyres.errors import InputError, MissingExtraError
from anyres.models.hrsam_blocks import CycleScan
from anyres.ops import kernels, scan

needs_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
IMPLEMENTATIONS = ["torch", pytest.param("numba", marks=needs_numba)]
NAMES = ("u", "delta", "a", "b", "c", "d", "gamma")

SHAPES = [  # batch, length, channels, states, cycles
    (1, 1, 1, 1, 1),
    (2, 1, 5, 4, 3),
    (3, 7, 3, 4, 2),
    (1, 64, 16, 16, 3),
    (3, 65, 17, 16, 1),
    (1, 131, 40, 32, 2),
    (2, 50, 31, 3, 5),
    (2, 100, 33, 4, 4),
]


def plain_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gamma: Tensor
) -> Tensor:
    """By definition: every token of every repetition, one after the other."""
    state = u.new_zeros(u.shape[0], u.shape[2], a.shape[1])
    total = torch.zeros_like(u)
    for weight in gamma.unbind(1):
        answers = []
        for t in range(u.shape[1]):
            decay = torch.exp(delta[:, t, :, None] * a)
            state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * b[:, t, None, :]
            answers.append((state * c[:, t, None, :]).sum(2) + d * u[:, t])
        total = total + weight * torch.stack(answers, 1)
    return total


def make(
    batch: int, length: int, channels: int, states: int, cycles: int, *, seed: int = 0
) -> list[Tensor]:
    """Inputs in float64 that float32 holds exactly."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    steps = torch.exp(torch.rand(batch, length, channels, generator=random) * 4.6 - 6.9)
    rates = -torch.arange(1.0, states + 1) * torch.exp(normal(channels, states) / 4)
    tensors = [normal(batch, length, channels), steps, rates]
    tensors += [normal(batch, length, states), normal(batch, length, states)]
    tensors += [normal(channels), normal(channels, cycles)]
    return [x.double() for x in tensors]


def run(
    monkeypatch: pytest.MonkeyPatch, implementation: str, tensors: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Outputs and gradients of an implementation in float32."""
    monkeypatch.setenv("ANYRES_SCAN", implementation)
    return outputs_and_gradients(scan.cycle_scan, [x.float() for x in tensors])


def outputs_and_gradients(function: Any, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = function(*leaves)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return y.detach(), list(torch.autograd.grad(y, leaves, towards))


def far(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value wanted."""
    assert got.shape == wanted.shape
    assert bool(got.isfinite().all())
    largest = float(wanted.abs().max())
    return float((got.double() - wanted).abs().max()) / (largest or 1.0)


def check(
    got: tuple[Tensor, list[Tensor]], wanted: tuple[Tensor, list[Tensor]], limit: float = 1e-5
) -> None:
    distances = {"y": far(got[0], wanted[0])}
    distances |= {name: far(x, y) for name, x, y in zip(NAMES, got[1], wanted[1], strict=True)}
    assert max(distances.values()) < limit, distances


@pytest.mark.parametrize("shape", SHAPES)
def test_torch_in_double_is_the_definition(shape: tuple[int, ...]) -> None:
    tensors = make(*shape)
    got = outputs_and_gradients(scan.cycle_scan, tensors)
    check(got, outputs_and_gradients(plain_scan, tensors), limit=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_near_the_definition(
    shape: tuple[int, ...], implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make(*shape)
    got = run(monkeypatch, implementation, tensors)
    assert got[0].dtype == torch.float32
    check(got, outputs_and_gradients(plain_scan, tensors))


@needs_numba
@settings(max_examples=30)
@given(
    shape=st.tuples(
        st.integers(1, 3),
        st.integers(1, 140),
        st.integers(1, 36),
        st.integers(1, 20),
        st.integers(1, 5),
    ),
    seed=st.integers(0, 1000),
)
def test_any_shape(shape: tuple[int, ...], seed: int) -> None:
    tensors = make(*shape, seed=seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        got = run(monkeypatch, "numba", tensors)
        monkeypatch.setenv("ANYRES_SCAN", "torch")
        check(got, outputs_and_gradients(scan.cycle_scan, tensors))


def test_gradients_by_finite_differences() -> None:
    tensors = [x.requires_grad_() for x in make(2, 5, 2, 3, 3)]
    assert torch.autograd.gradcheck(scan.cycle_scan, tensors)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("lowest", "highest"),
    [(1e4, 1e6), (20.0, 60.0), (1e-9, 1e-7), (1e-8, 1e3)],
    ids=["nothing-lasts", "underflow", "all-lasts", "both"],
)
def test_extreme_steps(
    lowest: float, highest: float, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make(2, 70, 18, 4, 3)
    spread = torch.rand(tensors[1].shape, generator=torch.Generator().manual_seed(2))
    exponents = math.log(lowest) + spread * (math.log(highest) - math.log(lowest))
    tensors[1] = torch.exp(exponents).float().double()
    got = run(monkeypatch, implementation, tensors)
    check(got, outputs_and_gradients(plain_scan, tensors))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_steps_of_zero_pass_the_state(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(1, 70, 3, 2, 2)
    tensors[1][:, 5:] = 0
    got = run(monkeypatch, implementation, tensors)
    check(got, outputs_and_gradients(plain_scan, tensors))


@needs_numba
def test_starts_that_die_out_along_a_long_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(1, 3000, 17, 8, 3)
    tensors[2][:, 1] = -1e-4  # one state lasts to the end
    got = run(monkeypatch, "numba", tensors)
    monkeypatch.setenv("ANYRES_SCAN", "torch")
    check(got, outputs_and_gradients(scan.cycle_scan, tensors))


@needs_numba
def test_weights_of_the_cycles_that_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(1, 80, 5, 4, 2)
    tensors[-1][:, 1] = -tensors[-1][:, 0]
    y, wanted = outputs_and_gradients(plain_scan, tensors)
    wanted[NAMES.index("d")].zero_()  # but for rounding
    check(run(monkeypatch, "numba", tensors), (y, wanted))


@needs_numba
def test_not_a_number_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_SCAN", "numba")
    tensors = [x.float() for x in make(1, 30, 2, 2, 1)]
    tensors[0][0, 20, 1] = math.nan
    y = scan.cycle_scan(*tensors)
    assert bool(y[0, :, 0].isfinite().all())
    assert bool(y[0, :20, 1].isfinite().all())
    assert bool(y[0, 20:, 1].isnan().all())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_strided_inputs(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(2, 20, 6, 4, 2)
    strided = [torch.stack([x.float(), torch.full(x.shape, 7.0)], -1)[..., 0] for x in tensors]
    assert not any(x.is_contiguous() for x in strided)
    monkeypatch.setenv("ANYRES_SCAN", implementation)
    got = scan.cycle_scan(*strided)
    assert far(got, plain_scan(*tensors)) < 1e-5


@pytest.mark.parametrize("implementation", ["torch", pytest.param("numba", marks=needs_numba)])
def test_memory_for_gradients(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_SCAN", implementation)
    sizes = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    leaves = [x.float().requires_grad_() for x in make(1, 1024, 16, 16, 2)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        scan.cycle_scan(*leaves)
    assert sum(sizes) < 1024 * 16 * 16 * {"torch": 2.5, "numba": 0.5}[implementation]


@needs_numba
def test_same_bits_on_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(2, 90, 50, 4, 2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y, gradients = run(monkeypatch, "numba", tensors)
            results.append([y, *gradients])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@needs_numba
def test_calls_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_SCAN", "numba")
    cases = [[x.float() for x in make(1, 200, 40, 8, 2, seed=i)] for i in range(4)]
    wanted = [scan.cycle_scan(*case) for case in cases]
    got: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        got[i] = [scan.cycle_scan(*cases[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(y, wanted[i]) for i in range(4) for y in got[i])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["L20_b2", "L20_b1", "pp_nosplit_L20_b2"])
def test_golden_block(
    case: str, implementation: str, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, tensors = golden("hrsam_mamba_block")
    sizes = facts["constructor_args"]
    block = CycleScan(sizes["embed_dim"], sizes["state_dim"], sizes["extend_ratio"])
    block.load_state_dict({k: v for k, v in tensors.items() if "::" not in k})
    x = tensors[f"in::{case}::x"].unflatten(0, (facts["cases"][case]["batch_size"], -1))
    wanted = tensors[f"out::{case}::y_f64"]
    monkeypatch.setenv("ANYRES_SCAN", implementation)
    with torch.no_grad():
        assert far(block(x).flatten(0, 1), wanted) < 1e-5
        monkeypatch.delenv("ANYRES_SCAN")
        assert far(block.double()(x.double()).flatten(0, 1), wanted) < 1e-12


@needs_numba
def test_decays() -> None:
    from anyres.ops import simd

    @simd.compiled(__file__)
    def decays(steps: Any, rate: float, out: Any) -> None:
        for i in range(0, steps.size, 16):
            simd.store(out, i, simd.decay(simd.load(steps, i), simd.splat(rate)))

    exponents = np.concatenate([np.linspace(0, 63.4, 9984), np.logspace(-12, 0, 1600)])
    steps = exponents.astype(np.float32)
    got = np.empty_like(steps)
    decays(steps, -1.0, got)
    wanted = np.exp2(-steps.astype(np.float64))
    assert np.max(np.abs(got - wanted) / np.spacing(wanted.astype(np.float32))) < 1.5

    special = np.array([0, 65, 127, 150, 1e30, np.inf, np.nan] + [0] * 9, dtype=np.float32)
    got = np.empty_like(special)
    decays(special, -1.0, got)
    np.testing.assert_array_equal(got, [1, 0, 0, 0, 0, 0, np.nan] + [1] * 9)


@needs_numba
def test_a_source_that_changes_is_compiled_anew() -> None:
    from anyres.ops import scan_numba, simd

    def name(*sources: str) -> str:
        def function() -> None: ...

        simd.compiled(*sources)(function)
        return function.__qualname__

    assert name(__file__) == name(__file__)
    assert name(__file__) != name(__file__, scan_numba.__file__)


@needs_numba
def test_compiles_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    from anyres.ops import simd

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])

    @simd.compiled(__file__)
    def double(numbers: Any) -> None:
        simd.store(numbers, 0, simd.load(numbers, 0) + simd.load(numbers, 0))

    numbers = np.arange(16, dtype=np.float32)
    double(numbers)
    assert numbers.tolist() == list(range(0, 32, 2))


@needs_numba
def test_errors_of_the_kernel_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyres.ops import scan_cpu

    def broken(*arguments: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(scan_cpu, "forward_all", broken)
    monkeypatch.delenv("ANYRES_SCAN", raising=False)
    with pytest.raises(RuntimeError, match="no such instruction"):
        scan.cycle_scan(*(x.float() for x in make(2, 4, 40, 2, 1)))


@needs_numba
def test_twice_differentiated_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_SCAN", "numba")
    leaves = [x.float().requires_grad_() for x in make(1, 4, 2, 2, 1)]
    (first,) = torch.autograd.grad(
        scan.cycle_scan(*leaves).square().sum(), leaves[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_exported_graphs_hold_torch_operations() -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return scan.cycle_scan(*tensors)

    tensors = tuple(x.float() for x in make(1, 6, 3, 2, 2))
    exported = torch.export.export(Module(), tensors).module()
    others = [x.float() for x in make(1, 6, 3, 2, 2, seed=5)]
    assert far(exported(*others), plain_scan(*(x.double() for x in others))) < 1e-5


def test_half_precision_is_scanned_in_float32() -> None:
    tensors = make(1, 40, 4, 4, 2)
    tensors[0] = tensors[0].bfloat16().double()
    mixed = [tensors[0].bfloat16(), *(x.float() for x in tensors[1:])]
    y = scan.cycle_scan(*mixed)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, scan.cycle_scan(mixed[0].float(), *mixed[1:]).bfloat16())
    assert far(y, plain_scan(*tensors)) < 2**-8


@pytest.mark.parametrize("name", NAMES[1:])
def test_shapes_that_do_not_fit(name: str) -> None:
    tensors = dict(zip(NAMES, make(2, 6, 4, 3, 2), strict=True))
    longer = 0 if name in ("a", "d", "gamma") else 1
    tensors[name] = torch.cat([tensors[name], tensors[name]], longer)
    with pytest.raises(InputError, match=rf"got {name} of shape"):
        scan.cycle_scan(*tensors.values())


def test_nothing_to_scan() -> None:
    with pytest.raises(InputError, match="something to scan"):
        scan.cycle_scan(*make(1, 0, 4, 3, 2))


def test_names_of_the_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_SCAN", "torch")
    assert scan.kernel_name() == "torch, chunked (ANYRES_SCAN=torch)"
    monkeypatch.setenv("ANYRES_SCAN", "fortran")
    with pytest.raises(InputError, match="'fortran'"):
        scan.kernel_name()
    monkeypatch.delenv("ANYRES_SCAN")
    monkeypatch.setattr(kernels, "has_numba", lambda: True)
    assert scan.kernel_name().startswith("numba, ")
    monkeypatch.setattr(kernels, "has_numba", lambda: False)
    assert "anyres[fast]" in scan.kernel_name()


def test_forcing_what_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYRES_SCAN", "numba")
    monkeypatch.setattr(kernels, "has_numba", lambda: True)
    with pytest.raises(InputError, match="float64"):
        scan.cycle_scan(*make(1, 4, 2, 2, 1))
    monkeypatch.setattr(kernels, "has_numba", lambda: False)
    with pytest.raises(MissingExtraError, match="anyres\\[fast\\]"):
        scan.cycle_scan(*make(1, 4, 2, 2, 1))


def test_without_numba_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYRES_SCAN", raising=False)
    monkeypatch.setattr(kernels, "has_numba", lambda: False)
    calls = []
    original = scan._torch_scan
    monkeypatch.setattr(scan, "_torch_scan", lambda *x: calls.append(1) or original(*x))
    scan.cycle_scan(*(x.float() for x in make(1, 4, 2, 2, 1)))
    assert calls == [1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_from_a_bias(
    implementation: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANYRES_SCAN", implementation)
    tensors = [x.float() for x in make(2, 70, 18, 5, 3)]
    raw = torch.linspace(-30, 30, tensors[1].numel()).view_as(tensors[1])
    bias = torch.linspace(-2, 2, 18)
    for i, x in ((0, tensors[0]), (1, raw), (3, tensors[3]), (4, tensors[4])):
        tensors[i] = x.to(dtype)
    exact = [x.double() for x in tensors]
    exact[1] = torch.nn.functional.softplus(exact[1] + bias.double())
    wanted = plain_scan(*exact)
    limit = 1e-5 if dtype == torch.float32 else 2**-8
    assert far(scan.cycle_scan(*tensors, bias), wanted) < limit
    leaf = bias.clone().requires_grad_()
    y = scan.cycle_scan(*tensors, leaf)
    assert far(y.detach(), wanted) < limit
    (gradient,) = torch.autograd.grad(y.sum(), [leaf])
    assert bool(gradient.abs().sum() > 0)


@needs_numba
@pytest.mark.parametrize("rate", [0.01, 0.7, 2.0, 8.0, 40.0])
def test_brief_decays(rate: float) -> None:
    """One token's input, seen later: how far it has decayed shows the rate that was used."""
    u, b = torch.zeros(1, 80, 16), torch.zeros(1, 80, 4)
    u[:, 0], b[:, 0], c = 1, 1, torch.ones(1, 80, 4)
    steps = torch.linspace(0.25, 1, 16).expand(1, 80, 16)
    steps = torch.where(torch.arange(80)[:, None] == 1, steps, 0)
    rates, d = torch.full((16, 4), -rate), torch.zeros(16)
    # An input of 1 with a step of 0 leaves nothing: the first step is 1.
    steps[:, 0] = 1
    steps = steps.bfloat16()
    tensors = [u.bfloat16(), steps]
    tensors += [rates, b.bfloat16(), c.bfloat16(), d, torch.ones(16, 1)]
    with torch.no_grad():
        y = scan.cycle_scan(*tensors).double()
    left = torch.exp(-rate * steps[0, 1].double())
    # 2**-9 for the answer's rounding.
    limit = (torch.exp(4e-4 * rate * steps[0, 1].double()) - 1 + 2**-8) * 4 * left + 2**-62
    assert bool(((y[0, 2] - 4 * left).abs() <= limit).all())
    assert y[0, 79].tolist() == y[0, 2].tolist()


@needs_numba
@pytest.mark.parametrize("highest", [0.1, 3.0, 40.0])
def test_bfloat16_is_the_rounded_answer(highest: float) -> None:
    """Beside what rounding the answer costs, what is brief about it does not show.

    It is rounded twice where the first state's part is added to what has been written already.
    """
    tensors = make(2, 300, 24, 8, 3)
    tensors[1] = tensors[1] * (highest / 0.1)
    bias = torch.linspace(-7, 0, 24)
    raw = torch.log(torch.expm1(tensors[1].clamp(max=80))) - bias
    short = [tensors[0].bfloat16(), raw.bfloat16(), tensors[2].float()]
    short += [tensors[3].bfloat16(), tensors[4].bfloat16(), tensors[5].float(), tensors[6].float()]
    with torch.no_grad():
        y = scan.cycle_scan(*short, bias)
    exact = [x.double() for x in short]
    exact[1] = torch.nn.functional.softplus(exact[1] + bias.double())
    wanted = plain_scan(*exact)
    assert y.dtype == torch.bfloat16
    rounding = (wanted.bfloat16().double() - wanted).norm()
    assert float((y.double() - wanted).norm()) < 1.45 * float(rounding)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("learns", [False, True])
def test_sequences_of_their_own(kind: torch.dtype, learns: bool) -> None:
    tensors = [x.to(kind).requires_grad_(learns) for x in make(2, 90, 48, 4, 3)]
    u, delta, a, b, c, *others = tensors
    lengths = [70, 1, 19]
    y = scan.cycle_scan(*tensors, lengths=lengths)
    parts = zip(*(x.split(lengths, 1) for x in (u, delta, b, c)), strict=True)
    wanted = [scan.cycle_scan(u, delta, a, b, c, *others) for u, delta, b, c in parts]
    assert torch.equal(y, torch.cat(wanted, 1))
    assert not torch.equal(y, scan.cycle_scan(*tensors))


@pytest.mark.parametrize("lengths", [[5], [4, 3], [6, 0], [7, -1]])
def test_wrong_lengths(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="sequences"):
        scan.cycle_scan(*make(1, 6, 4, 3, 2), lengths=lengths)


@needs_numba
def test_any_number_of_threads_scans_the_same() -> None:
    tensors = [x.bfloat16() for x in make(1, 150, 80, 4, 3)]
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):  # blocks of channels go in pairs, or alone
            torch.set_num_threads(threads)
            answers.append(scan.cycle_scan(*tensors))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
