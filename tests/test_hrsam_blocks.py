"""HRSAM's blocks in parts against themselves as a whole, and against plain definitions."""

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anyres.models import hrsam_blocks
from anyres.models.config import HRSAMConfig
from anyres.models.hrsam_blocks import Block, CycleScan, WindowAttention
from anyres.ops.rope import frequencies, split_pairs, turn, turn_table, window_table
from anyres.ops.threads import share
from anyres.ops.window_attention import attend
from anyres.ops.windows import Span, WindowPlan, partition, window_plan

CONFIG = HRSAMConfig(dim=24, heads=3, window=4, blocks=1, out_blocks=(0,), state=4)

plans = st.builds(
    lambda height, width, window, shifted: window_plan((height, width), window, shifted=shifted),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 7),
    st.booleans(),
)


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """By definition: neighbours are pairs."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((first * cos + second * sin, second * cos - first * sin), -1).flatten(-2)


def plain_attention(
    attention: WindowAttention, x: Tensor, plan: WindowPlan, rope: tuple[Tensor, Tensor]
) -> Tensor:
    """By definition: everything padded before it is projected, one window and head at a time."""
    windows = partition(x, plan, attention.padding[0])
    qkv = attention.qkv(windows).unflatten(-1, (3, attention.heads, -1))
    answers = torch.empty_like(windows).unflatten(-1, (attention.heads, -1))
    for n in range(len(windows)):
        for head in range(attention.heads):
            q, k, v = qkv[n, :, :, head].unbind(1)
            q, k = plain_rotate(q, *rope), plain_rotate(k, *rope)
            answers[n, :, head] = torch.softmax(q @ k.t() / q.shape[1] ** 0.5, -1) @ v
    (rows, columns), w, top = plan.windows_hw, plan.window, plan.before
    grid = answers.flatten(2).reshape(len(x), rows, columns, w, w, -1).transpose(2, 3)
    grid = grid.reshape(len(x), rows * w, columns * w, -1)
    return attention.proj(grid[:, top : top + x.shape[1], top : top + x.shape[2]])


def make_block(window: int = 4) -> tuple[Block, tuple[Tensor, Tensor]]:
    """A block with random parameters in double, and its rotation."""
    torch.manual_seed(0)
    block = Block(replace(CONFIG, window=window)).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block, window_table(frequencies(8).double(), window)


@given(plan=plans, most=st.integers(1, 200))
def test_groups_hold_every_token_once(plan: WindowPlan, most: int) -> None:
    seen = torch.zeros(1, *plan.grid_hw, 1)
    for group in plan.groups(most):
        windows = group.rows.windows * sum(span.windows for span in group.columns)
        assert windows == 1 or seen[group.place].numel() <= most
        assert all(a.stop == b.start for a, b in pairwise(group.columns))
        assert seen[group.place].numel() == (group.rows.stop - group.rows.start) * sum(
            span.stop - span.start for span in group.columns
        )
        seen[group.place] += 1
    assert bool((seen == 1).all())


@given(plan=plans, most=st.integers(1, 200))
def test_spans_are_the_padded_windows(plan: WindowPlan, most: int) -> None:
    """A window filled up from its span is the window that the padded grid has there."""
    height, width = plan.grid_hw
    tokens = torch.arange(height * width).reshape(height, width)
    padded = partition(tokens[None, :, :, None], plan, torch.tensor([-1]))
    wanted = {tuple(window.flatten().tolist()) for window in padded if bool((window >= 0).any())}
    side, found = plan.window, []
    for group in plan.groups(most):
        for columns in group.columns:
            for i in range(group.rows.windows):
                for j in range(columns.windows):
                    window = torch.full((side, side), -1)
                    down, across = _slots(group.rows), _slots(columns)
                    window[down, across] = tokens[_tokens(group.rows, i), _tokens(columns, j)]
                    found.append(tuple(window.flatten().tolist()))
    assert len(found) == len(wanted)
    assert set(found) == wanted


def _slots(span: Span) -> slice:
    return slice(span.offset, span.offset + span.size)


def _tokens(span: Span, window: int) -> slice:
    return slice(span.start + window * span.size, span.start + (window + 1) * span.size)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(8, 8), (6, 5), (1, 9), (3, 2), (17, 4)])
def test_attention_is_the_definition(grid: tuple[int, int], shifted: bool) -> None:
    block, rope = make_block()
    plan = window_plan(grid, 4, shifted=shifted)
    x = torch.randn(2, *grid, 24, dtype=torch.float64)
    wanted = plain_attention(block.attn, x, plan, rope)
    assert (block.attn(x, plan, rope) - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [1, 40, 10_000])
@pytest.mark.parametrize("grid", [(8, 12), (6, 5), (1, 9), (3, 2), (17, 4)])
def test_block_in_groups_is_the_block(
    grid: tuple[int, int], part: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LEAST", "MOST"):
        monkeypatch.setattr(hrsam_blocks, name, part)
    block, rope = make_block()
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for shifted in (False, True):
        plan = window_plan(grid, 4, shifted=shifted)
        x = torch.randn(2, *grid, 24).to(dtype)
        wanted = block.double()(x.double(), plan, rope)
        block.to(dtype)
        before = x.clone()
        with torch.no_grad():
            got = block(x, plan, rope)
        with torch.inference_mode():
            again = block(x, plan, rope)
        assert got.dtype == dtype
        assert (got.double() - wanted).abs().max() <= limit * wanted.abs().max()
        assert torch.equal(x, before)
        assert torch.equal(got, again)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [32, 24])  # the kernels want a multiple of 16
def test_scan_in_parts_is_the_scan(
    dtype: torch.dtype, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr("anyres.ops.cycle_cpu.MOST", 16)
    torch.manual_seed(0)
    scan = CycleScan(dim, 4, 3)
    for parameter in scan.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    scan.to(dtype)
    maps = [torch.randn(2, 7, 5, dim).to(dtype), torch.randn(2, 3, 3, dim).to(dtype)]
    maps[0] = maps[0].transpose(1, 2)  # not contiguous
    before = [x.clone() for x in maps]
    with torch.no_grad():
        together, alone = scan.over(maps), scan(maps[1].flatten(1, 2))
    with torch.inference_mode():
        assert all(map(torch.equal, scan.over(maps), together))
    assert all(map(torch.equal, maps, before))
    exact = scan.double()
    limit = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    sequence = torch.cat([x.double().flatten(1, 2) for x in maps], 1)
    wanted = exact(sequence).split([35, 9], 1)
    for got, want in zip(together, wanted, strict=True):
        assert got.dtype == dtype
        assert (got.double().flatten(1, 2) - want).abs().max() <= limit * want.abs().max()
    want = exact(maps[1].double().flatten(1, 2))
    assert (alone.double() - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize("size", [1e4, 1e15])
@pytest.mark.parametrize("sign", [1, -1])
def test_steps_of_any_size_are_safe(size: float, sign: int) -> None:
    scan = CycleScan(8, 4, 3)
    torch.nn.init.constant_(scan.ssm_proj_bias, sign * size)
    with torch.no_grad():
        assert bool(scan(torch.randn(1, 30, 8)).isfinite().all())


def test_fused_attention_is_the_written_out_one() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 16, 8), torch.randn(2, 3, 16, 8)
    fused = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    assert (attend(q, k, v) - fused).abs().max() < 1e-5


def test_turning_sorted_pairs_is_turning_neighbours() -> None:
    cos, sin = window_table(frequencies(16).double(), 5)
    x = torch.randn(3, 25, 16, dtype=torch.float64)
    wanted = split_pairs(plain_rotate(x, cos, sin).transpose(1, 2)).transpose(1, 2)
    got = turn(split_pairs(x.transpose(1, 2)).transpose(1, 2), *turn_table(cos, sin, like=x))
    assert (got - wanted).abs().max() < 1e-14


def test_rotation_sees_differences_only() -> None:
    """Scores of rotated q and k depend on how far apart two tokens are, not on where they are."""
    table = window_table(frequencies(16).double(), 6)
    cos, sin = turn_table(*table, like=table[0])
    q, k = torch.randn(2, 1, 16, dtype=torch.float64)
    scores = turn(q.expand(36, -1), cos, sin) @ turn(k.expand(36, -1), cos, sin).t()
    scores = scores.unflatten(0, (6, 6)).unflatten(2, (6, 6))  # row, column, row', column'
    assert torch.allclose(scores[0, 0, 1, 2], scores[3, 2, 4, 4])
    assert not torch.allclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])


@pytest.mark.parametrize("threads", [1, 3])
def test_shared_work_is_done_once(threads: int) -> None:
    before = torch.get_num_threads()
    done, alone = [], []
    try:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            share(lambda i: done.append((i, torch.is_inference_mode_enabled())), range(50))
        share(lambda i: alone.append(torch.get_num_threads()), range(9))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert sorted(done) == [(i, True) for i in range(50)]
    assert alone == [1] * 9


@pytest.mark.parametrize("threads", [1, 3])
def test_errors_of_shared_work_are_raised(threads: int) -> None:
    def fail(item: int) -> None:
        raise ValueError(f"item {item}")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with pytest.raises(ValueError, match="item"):
            share(fail, range(5))
    finally:
        torch.set_num_threads(before)


def test_new_threads_keep_torchs_number() -> None:
    share(lambda _: None, range(4))
    numbers: list[int] = []
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert numbers == [torch.get_num_threads()]
