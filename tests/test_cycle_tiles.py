"""The cycle-scan block multiplied by the processor's tiles, against plain definitions in torch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.models.hrsam_blocks import CycleScan
from anyres.ops import block

pytest.importorskip("numba")
from anyres.ops import cycle_cpu, simd_tiles
from anyres.ops.block_cpu import Linear, numbers

pytestmark = pytest.mark.skipif(not simd_tiles.has_tiles(), reason="this processor has no AMX")
WIDTH = 64


def make(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).bfloat16()


@pytest.mark.parametrize("rows", [1, 31, 70])
def test_products(rows: int) -> None:
    from anyres.ops import cycle_tiles

    x, weight, bias = make(rows + 32, WIDTH), make(2 * WIDTH, WIDTH), torch.randn(2 * WIDTH)
    x[rows:] = math.nan  # read, never used
    x[0] *= 1e4
    pairs = torch.empty_like(weight)
    cycle_tiles.pair(numbers(weight), 0, 2 * WIDTH, WIDTH, numbers(pairs))
    more = numbers(pairs), numbers(bias), WIDTH, simd_tiles.PALETTE, numbers(torch.empty(32, 32))
    wanted = F.linear(x[:rows].double(), weight.double(), bias.double())
    u, gate, *outs = (torch.full((rows + 5, WIDTH), 9.0).bfloat16() for _ in range(4))
    cycle_tiles.activate(numbers(x), rows, *more, numbers(u), numbers(gate), 2)
    got = torch.cat([u, gate], 1).double()
    torch.testing.assert_close(got[2 : rows + 2], F.silu(wanted), rtol=2**-8, atol=1e-4)
    assert bool((got[:2] == 9).all())
    assert bool((got[rows + 2 :] == 9).all())
    cycle_tiles.project(numbers(x), 0, rows, *more, *map(numbers, outs))
    out = torch.cat(outs, 1)
    torch.testing.assert_close(out[:rows].double(), wanted, rtol=2**-8, atol=1e-4)
    assert bool((out[rows:] == 9).all())
    source, added = make(rows + 5, WIDTH), torch.full((rows + 5, WIDTH), 9.0).bfloat16()
    cycle_tiles.add(numbers(x), rows, *more, numbers(source), 2, numbers(added))
    wanted = source[2 : rows + 2].double() + wanted[:, :WIDTH]
    torch.testing.assert_close(added[2 : rows + 2].double(), wanted, rtol=2**-8, atol=1e-4)
    assert bool((added[:2] == 9).all())
    assert bool((added[rows + 2 :] == 9).all())


@pytest.mark.parametrize("batch", [1, 3])
def test_the_block_is_as_near_as_without(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = CycleScan(WIDTH, 16, 3).double()
    maps = [make(batch, 9, 14, WIDTH) * 2, make(batch, 4, 4, WIDTH)]
    calls = []
    with torch.no_grad():
        exact = made.over([x.double() for x in maps])
        made.bfloat16()
        paired = cycle_cpu._Tiles._paired

        def count(tiles: cycle_cpu._Tiles, name: str, layer: Linear) -> object:
            calls.append(name)
            return paired(tiles, name, layer)

        monkeypatch.setattr(cycle_cpu._Tiles, "_paired", count)
        tiles = made.over(maps)
        monkeypatch.setattr(block, "scan_runs_in_tiles", lambda *_: False)
        without = made.over(maps)
    assert calls == ["into", "ssm", "out"]
    for near, other, right in zip(tiles, without, exact, strict=True):
        limit = (other.double() - right).abs().mean()
        assert (near.double() - right).abs().mean() < 1.05 * limit
        torch.testing.assert_close(near, other, rtol=2**-6, atol=2**-5)
