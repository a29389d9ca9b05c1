"""Time and accuracy of the cycle-scan, torch alone against the compiled kernels.

    OMP_NUM_THREADS=1 python benchmarks/cycle_scan.py

Random inputs in float32 with the steps of a fresh block. "wall" is the median of the runs and their
range; "CPU" the median of processor time, which other programs disturb less. "error" is the largest
difference from float64, relative to the largest value, of outputs and, in training, gradients.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from anyres.ops.scan import cycle_scan

# name, whether gradients are wanted, batch, tokens, channels, states, cycles
CASES = [
    ("training", True, 6, 256, 192, 8, 2),
    ("training", True, 6, 256, 192, 16, 2),
    ("1024²", False, 1, 4096, 192, 32, 3),
    ("2048²", False, 1, 16384, 192, 32, 1),
    ("2048²", False, 1, 16384, 192, 32, 3),
]


def make(batch: int, length: int, channels: int, states: int, cycles: int) -> list[Tensor]:
    """Inputs of the scan, float32."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    steps = torch.exp(torch.rand(batch, length, channels, generator=random) * 4.6 - 6.9)
    rates = -torch.arange(1.0, states + 1).repeat(channels, 1)
    tensors = [normal(batch, length, channels), steps, rates]
    tensors += [normal(batch, length, states), normal(batch, length, states)]
    return [*tensors, normal(channels), normal(channels, cycles)]


def run(tensors: list[Tensor], gradients: bool) -> list[Tensor]:
    """Outputs, and gradients if wanted."""
    if not gradients:
        with torch.no_grad():
            return [cycle_scan(*tensors)]
    leaves = [x.detach().requires_grad_() for x in tensors]
    y = cycle_scan(*leaves)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, towards)]


def times(work: Callable[[], object], count: int) -> tuple[list[float], list[float]]:
    """Wall and processor time in milliseconds."""
    wall, used = [], []
    for _ in range(count):
        start = time.perf_counter(), time.process_time()
        work()
        wall.append((time.perf_counter() - start[0]) * 1e3)
        used.append((time.process_time() - start[1]) * 1e3)
    return wall, used


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(f"{torch.get_num_threads()} thread(s), {runs} runs\n")
    print("| case | B, L, C, N, R | with | wall, ms | CPU, ms | CPU, ns a step and state | error |")
    print("|---|---|---|---|---|---|---|")
    for name, gradients, *sizes in CASES:
        batch, length, channels, states, _ = sizes
        tensors = make(*sizes)
        os.environ.pop("ANYRES_SCAN", None)
        exact = run([x.double() for x in tensors], gradients)
        for implementation in ("torch", "numba"):
            os.environ["ANYRES_SCAN"] = implementation
            got = run(tensors, gradients)  # compiles, too
            errors = [
                float((x - y).abs().max() / y.abs().max()) for x, y in zip(got, exact, strict=True)
            ]
            wall, used = times(lambda: run(tensors, gradients), runs)  # noqa: B023
            median = statistics.median(used)
            each = median * 1e6 / (batch * length * channels * states)
            print(
                f"| {name} | {', '.join(map(str, sizes))} | {implementation} "
                f"| {statistics.median(wall):.1f} ({min(wall):.1f} to {max(wall):.1f}) "
                f"| {median:.1f} | {each:.2f} | {max(errors):.0e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
