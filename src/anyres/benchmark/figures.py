"""Ratios of what was measured in one run, each beside what anyres asks of itself."""

from collections.abc import Callable
from dataclasses import dataclass

from anyres.benchmark.run import Cell, Results
from anyres.benchmark.subjects import ONE_CYCLE, STOCK

BF16, F32 = "bfloat16", "float32"


@dataclass(frozen=True)
class Figure:
    """A figure and its limit; ``value`` is None where something it needs was not measured."""

    name: str
    limit: float
    value: float | None
    unit: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether it is within its limit; None where it is not known."""
        return None if self.value is None else self.value <= self.limit


def figures(results: Results) -> list[Figure]:
    """All figures, in the order of the table that asks for them."""

    def encoder(model: str, side: int, dtype: str = BF16) -> float | None:
        cell = results.find(model, side, dtype)
        return cell.encoder.median if cell is not None and cell.encoder is not None else None

    def of(model: str, side: int, get: Callable[[Cell], float | None]) -> float | None:
        cell = results.find(model, side, BF16)
        return get(cell) if cell is not None else None

    stock = encoder(STOCK, 1024, F32)
    found = [
        Figure("hrsam_b bfloat16 / stock, 1024²", 0.14, _ratio(encoder("hrsam_b", 1024), stock)),
        Figure(
            "hrsam_b float32 / stock, 1024²", 0.45, _ratio(encoder("hrsam_b", 1024, F32), stock)
        ),
    ]
    for model, side, limit in (
        ("hrsam_b", 1024, 1.7),
        ("hrsam_ti", 1024, 2.5),
        ("hrsam_ti", 2048, 2.5),
    ):
        value = _ratio(encoder(model, side), of(model, side, lambda cell: cell.gemm))
        found.append(Figure(f"{model} / its GEMM bound, {side}²", limit, value))
    ti, scan = encoder("hrsam_ti", 2048), of("hrsam_ti", 2048, _scan)
    found.append(Figure("scan kernel / hrsam_ti, 2048²", 0.15, _ratio(scan, ti)))
    one = encoder(f"hrsam_ti{ONE_CYCLE}", 2048)
    found.append(Figure("hrsam_ti with 3 cycles / with 1, 2048²", 1.08, _ratio(ti, one)))
    for large, small in ((4096, 2048), (2048, 1024)):
        value = _ratio(encoder("hrsam_ti", large), of("hrsam_ti", large, _quarter))
        found.append(Figure(f"hrsam_ti, {large}² / {small}²", 4.4, value))
    peak = of("hrsam_ti", 4096, lambda cell: cell.peak_memory)
    found.append(Figure("hrsam_ti peak memory, 4096²", 1.2, _ratio(peak, 1e9), " GB"))
    for size in ("ti", "b"):
        for side, limit in ((1024, 1.30), (2048, 1.22)):
            joint, plain = encoder(f"hrsam_pp_{size}", side), encoder(f"hrsam_{size}", side)
            found.append(
                Figure(f"hrsam_pp_{size} / hrsam_{size}, {side}²", limit, _ratio(joint, plain))
            )
    for side, limit in ((1024, 25.0), (2048, 80.0)):
        click = of("default", side, _click)
        found.append(Figure(f"default, one click, {side}²", limit, _ratio(click, 1e-3), " ms"))
    return found


def _click(cell: Cell) -> float | None:
    return cell.clicks.click.median if cell.clicks is not None else None


def _quarter(cell: Cell) -> float | None:
    return cell.quarter.median if cell.quarter is not None else None


def _scan(cell: Cell) -> float | None:
    return cell.scan.median if cell.scan is not None else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base
