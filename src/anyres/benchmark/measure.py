"""Times: by turns, so that what disturbs one disturbs all, and the median of several rounds."""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np
import torch

import anyres.models.hrsam_blocks as blocks
from anyres.benchmark.products import Bound, encoder_products
from anyres.benchmark.subjects import Subject, encode_call
from anyres.models.segmenter import Segmenter
from anyres.predict.predictor import Predictor

K = TypeVar("K", bound=Hashable)

ROUNDS = 5
MOST = 3  # times as many of what is brief: ratios of five medians differ by a fifth on a busy host
BRIEF = 0.5  # seconds
LONG = 2.0  # seconds; what takes longer is called less often, and not to warm up
CLICKS = 20
_SCAN = "cycle_scan"  # of the blocks' module: what runs the kernel


@dataclass(frozen=True)
class Timing:
    """Seconds: the median, the least and the most of some calls."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """From single calls."""
        return cls(median(seconds), min(seconds), max(seconds))

    @property
    def spread(self) -> float:
        """How far apart the quickest call and the median are, as a share of the median."""
        return (self.median - self.least) / self.median


def rounds(seconds: float) -> int:
    """How often to call what takes so long: 15 times, five from 0.5 s on, three from 2 s on."""
    if seconds < BRIEF:
        return MOST * ROUNDS
    return ROUNDS if seconds < LONG else min(ROUNDS, 3)


@dataclass(frozen=True)
class Passes:
    """What the passes of an encoder gave.

    Attributes:
        encoder: their times.
        scan: those within the scan.
        gemm: the GEMM bound.
        quarter: times of a quarter of the pixels, each pass of which follows one of all.
    """

    encoder: Timing
    scan: Timing | None
    gemm: float | None
    quarter: Timing | None


def by_turns(
    calls: Mapping[K, Callable[[], object]],
    bounds: Mapping[K, Bound],
    quarters: Mapping[K, Callable[[], object]],
) -> dict[K, Passes]:
    """Time each call several times, all in each round, followed by its quarter and its bound.

    The first call of each only warms up, unless it takes so long that this does not matter; and
    then too, if the second is twice as fast: kernels are compiled when they are first called.
    """
    times: dict[K, list[tuple[float, float, float]]] = {name: [] for name in calls}
    wanted = dict.fromkeys(calls, 1)
    with _watched_scan() as scan_clock:
        for turn in range(MOST * ROUNDS + 1):
            for name, call in calls.items():
                if len(times[name]) == wanted[name]:
                    continue
                scan_clock.seconds = 0.0
                seconds = _seconds(call), scan_clock.seconds
                less = _seconds(quarters[name]) if name in quarters else 0.0
                times[name].append((*seconds, less))
                if name in bounds:
                    bounds[name].turn()
                if turn == 0:
                    first = times[name][0][0]
                    wanted[name] = rounds(first)
                    if first < LONG:
                        times[name].clear()
                elif len(times[name]) == 2 and 2 * times[name][1][0] < times[name][0][0]:
                    # What took so long was to compile.
                    del times[name][0]
                    wanted[name] = rounds(times[name][0][0])
    passes = {}
    for name, each in times.items():
        encoder, scan, quarter = (Timing.of(column) for column in zip(*each, strict=True))
        bound = bounds[name].seconds() if name in bounds else None
        passes[name] = Passes(
            encoder, scan if scan.most else None, bound, quarter if name in quarters else None
        )
    return passes


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class _Clock:
    seconds = 0.0


@contextmanager
def _watched_scan() -> Iterator[_Clock]:
    """Adds up the seconds within the scan kernel."""
    clock, inner = _Clock(), getattr(blocks, _SCAN)

    def timed(*tensors: torch.Tensor) -> torch.Tensor:
        begin = time.perf_counter()
        result: torch.Tensor = inner(*tensors)
        clock.seconds += time.perf_counter() - begin
        return result

    setattr(blocks, _SCAN, timed)
    try:
        yield clock
    finally:
        setattr(blocks, _SCAN, inner)


def encode_once(subject: Subject, model: Segmenter, size_hw: tuple[int, int]) -> Callable[[], None]:
    """A call that encodes one picture of this size."""
    encode = encode_call(subject, model)
    pixels = torch.randn(1, 3, *size_hw).to(model.dtype)

    def run() -> None:
        with torch.no_grad():
            encode(pixels)

    return run


def gemm_bound(subject: Subject, size_hw: tuple[int, int]) -> Bound:
    """The encoder's matrix products alone, to be timed by turns with it."""
    encoder = subject.config.encoder
    grid_hw = (size_hw[0] // encoder.patch, size_hw[1] // encoder.patch)
    return Bound(encoder_products(encoder, grid_hw), subject.dtype, torch.device("cpu"))


@dataclass(frozen=True)
class ClickTimes:
    """What a person who clicks waits for, in seconds.

    Attributes:
        set_image: a new picture.
        click: one click with the last answer's logits, to the mask at picture size.
        spc: the papers' seconds per click: the mean of 20 clicks in a row, each with all before
            it, and a twentieth of the encoder's time.
    """

    set_image: Timing
    click: Timing
    spc: float


def click_times(model: Segmenter, size_hw: tuple[int, int], encoder: float) -> ClickTimes:
    """Time the predictor on a picture of noise of this size."""
    rng = np.random.default_rng(0)
    height, width = size_hw
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    predictor = Predictor(model, resolution=max(size_hw))
    setting = [_seconds(lambda: predictor.set_image(image))]
    if setting[0] < LONG:
        setting.clear()
    while len(setting) < rounds(encoder):
        setting.append(_seconds(lambda: predictor.set_image(image)))
    points = rng.uniform(0.1, 0.9, (CLICKS, 2)) * (width, height)
    labels = np.arange(CLICKS) % 3 != 2
    logits = None

    def click(count: int) -> None:
        nonlocal logits
        logits = predictor.predict(
            points[:count], labels[:count].astype(int), mask_input=logits, multimask_output=False
        )[2]

    for count in (1, CLICKS):
        click(count)
    single = [_seconds(lambda: click(1)) for _ in range(CLICKS)]
    logits = None
    inner = [_seconds(partial(click, count)) for count in range(1, CLICKS + 1)]
    return ClickTimes(Timing.of(setting), Timing.of(single), sum(inner) / CLICKS + encoder / CLICKS)
