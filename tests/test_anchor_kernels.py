"""What HRSAM++ does beside its blocks, compiled, against torch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from anyres.models.hrsam import HRSAMEncoder
from tiny import OFFICIAL_HRSAM

pytest.importorskip("numba")
from anyres.ops import shrink_cpu

OWN = replace(OFFICIAL_HRSAM, anchor=64, shift_anchor=False)


@pytest.mark.parametrize("size_hw", [(256, 256), (200, 304), (48, 32), (65, 1600)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_shrink(size_hw: tuple[int, int], kind: torch.dtype) -> None:
    x = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(0)).to(kind)
    wanted = F.interpolate(x.double(), (64, 64), mode="bilinear", antialias=True)
    limit = 2e-6 if kind == torch.float32 else 2**-7
    assert (shrink_cpu.shrink(x, 64) - wanted).abs().max() < limit


def test_shrinking_one_picture_or_several() -> None:
    x = torch.randn(3, 3, 80, 96, generator=torch.Generator().manual_seed(1))
    single = torch.cat([shrink_cpu.shrink(one[None], 32) for one in x])
    assert torch.equal(shrink_cpu.shrink(x, 32), single)


@pytest.mark.parametrize("anchor", [0, 64])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_joining(anchor: int, kind: torch.dtype) -> None:
    torch.manual_seed(2)
    encoder = HRSAMEncoder(replace(OWN, anchor=anchor, dim=64, heads=2, neck=32)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        encoder.to(kind)
        grids = [(9, 14), (4, 4)] if anchor else [(9, 14)]
        kept = [
            [torch.randn(2, *grid, 64).to(kind) for grid in grids] for _ in encoder.lateral_convs
        ]
        compiled, whole = encoder._join(kept, True), encoder._join(kept, False)
        exact = encoder.double()._join([[x.double() for x in one] for one in kept], False)
    assert compiled.shape == whole.shape == exact.shape
    error, limit = ((x.double() - exact).abs() for x in (compiled, whole))
    assert error.mean() < 1.1 * limit.mean()
    assert error.max() < (1e-5 if kind == torch.float32 else 0.1)
