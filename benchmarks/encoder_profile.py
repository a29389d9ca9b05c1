"""Where the time of HRSAM's encoder goes, beside its GEMM bound, with and without tiles (AMX).

``python benchmarks/encoder_profile.py hrsam_ti 1024 2048``; milliseconds, medians by turns.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from anyres.benchmark.measure import gemm_bound
from anyres.benchmark.subjects import Subject, make_model
from anyres.ops import block

ROUNDS = 5


def watch(owner: Any, method: str, name: str, spent: dict[str, float]) -> None:
    """Add up the seconds in a method."""
    inner = getattr(owner, method)

    def timed(*args: Any, **more: Any) -> Any:
        begin = time.perf_counter()
        result = inner(*args, **more)
        spent[name] += time.perf_counter() - begin
        return result

    setattr(owner, method, timed)


def watch_parts(encoder: Any, spent: dict[str, float]) -> None:
    """Of a whole encoder; what is within the cycle-scan blocks counts there too."""
    watch(encoder, "_embed", "embedding", spent)
    for layer in encoder.blocks:
        watch(layer, "_in_parts", "window blocks", spent)
    for layer in encoder.mamba_blocks:
        watch(layer, "over", "cycle-scan blocks", spent)
        watch(layer, "_scan", "- the scan", spent)
    watch(encoder, "_join", "laterals and neck", spent)


@torch.no_grad()
def profile(name: str, side: int) -> None:
    """Print one model at one size."""
    subject = Subject.named(name, "bfloat16")
    encoder: Any = make_model(subject).image_encoder
    pixels = torch.randn(1, 3, side, side).bfloat16()
    spent: dict[str, float] = defaultdict(float)
    watch_parts(encoder, spent)
    bound = gemm_bound(subject, (side, side))
    found: dict[str, list[dict[str, float]]] = {"tiles": [], "without": []}
    with_tiles: Callable[..., bool] = block.runs_in_tiles
    for turn in range(ROUNDS + 1):
        for way, rows in found.items():
            block.runs_in_tiles = with_tiles if way == "tiles" else lambda *_: False
            spent.clear()
            begin = time.perf_counter()
            encoder(pixels)
            if turn:
                rows.append({"all": time.perf_counter() - begin, **spent})
        bound.turn()
    block.runs_in_tiles = with_tiles
    gemm = bound.seconds()
    print(f"{name}, {side}²: GEMM bound {gemm * 1e3:.1f}")
    for way, rows in found.items():
        parts = {part: median(row[part] for row in rows) for part in rows[0]}
        text = ", ".join(f"{part} {seconds * 1e3:.1f}" for part, seconds in parts.items())
        print(f"  {way}: {text}; over the bound {parts['all'] / gemm:.2f}")


if __name__ == "__main__":
    for size in sys.argv[2:]:
        profile(sys.argv[1], int(size))
