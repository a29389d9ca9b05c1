"""Time of the cycle-scan's innermost loops alone, as exact as float32 and briefly.

    OMP_NUM_THREADS=1 python benchmarks/scan_loops.py

A chunk of 64 tokens over and over in the first cache, 4 states of 16 channels, by how large the
steps are: the loops that ``ops/scan_numba_steps.py`` chooses between. "product" is what one
multiply-add of 16 numbers takes where nothing waits: the floor is that times those of a loop.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from anyres.ops import scan_numba_steps as steps
from anyres.ops.simd import compiled, load, multiply_add, splat

# name, step times rate at most, multiply-adds and products of a brief loop for 16 states
CASES = [("at once", 1, 6), ("4th power", 4, 8), ("16th power", 16, 10), ("any", 40, None)]
TURNS, RUNS = 2000, 7
_compiled = compiled(__file__, steps.__file__)


@_compiled
def chunks(work: Any, rates: Any, most: Any, brief: bool) -> None:
    """Take four states through the same chunk again and again."""
    four, largest = steps.load4(rates, 0), load(most, 0)
    begin = steps.STATES + 4 * 16
    for _ in range(TURNS):
        if brief:
            steps.through_briefly(work, steps.CHUNK, steps.STATES, begin, 16, four, largest)
        else:
            steps.through(work, steps.CHUNK, steps.STATES, begin, 16, four, largest)


@_compiled
def products(work: Any, turns: int) -> float:
    """Ten multiply-adds a turn that need nothing of each other."""
    x, y = splat(np.float32(0.999)), splat(np.float32(0.001))
    a, b, c, d, e = load(work, 0), load(work, 16), load(work, 32), load(work, 48), load(work, 64)
    f, g, h, i, j = (
        load(work, 80),
        load(work, 96),
        load(work, 112),
        load(work, 128),
        load(work, 144),
    )
    for _ in range(turns):
        a, b, c = multiply_add(a, x, y), multiply_add(b, x, y), multiply_add(c, x, y)
        d, e, f = multiply_add(d, x, y), multiply_add(e, x, y), multiply_add(f, x, y)
        g, h, i = multiply_add(g, x, y), multiply_add(h, x, y), multiply_add(i, x, y)
        j = multiply_add(j, x, y)
    steps.store(work, 0, a + b + c + d + e + f + g + h + i + j)
    return 0.0


def nanoseconds(call: Callable[[], object], count: int) -> float:
    """Median of a call, a ``count``-th of it."""
    call()
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) / count * 1e9


def main() -> None:
    """Print a table in Markdown."""
    work = np.full(steps.STATES + 4 * 16 + 2 * steps.CHUNK * 16, 0.01, np.float32)
    rates = np.full(4 * 16, -1, np.float32)
    turns = 1_000_000
    product = nanoseconds(lambda: products(work, turns), 10 * turns)
    print(f"product: {product:.3f} ns\n")
    print("| decays | float32, ns for 16 states | brief, ns | floor of brief, ns |")
    print("|---|---|---|---|")
    for name, largest, count in CASES:
        work[:] = 0.01
        most = np.full(16, largest, np.float32)
        each = [
            nanoseconds(lambda: chunks(work, rates, most, brief), TURNS * steps.CHUNK * 4)  # noqa: B023
            for brief in (False, True)
        ]
        floor = f"{count * product:.2f}" if count else ""
        print(f"| {name} | {each[0]:.2f} | {each[1]:.2f} | {floor} |")


if __name__ == "__main__":
    main()
