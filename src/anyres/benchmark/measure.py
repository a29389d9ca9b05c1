"""Times: by turns, so that what disturbs one disturbs all, and the median of several rounds."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np
import torch

import anyres.models.hrsam_blocks as blocks
from anyres.benchmark.products import bound_seconds, encoder_products
from anyres.benchmark.subjects import Subject, encode_call
from anyres.models.segmenter import Segmenter
from anyres.predict.predictor import Predictor

K = TypeVar("K", bound=Hashable)

ROUNDS = 5
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
    """How often to call what takes so long: five times, fewer beyond 2 s and 10 s."""
    if seconds < 2:
        return ROUNDS
    return min(ROUNDS, 3 if seconds < 10 else 2)


def by_turns(calls: Mapping[K, Callable[[], object]]) -> dict[K, Timing]:
    """Time each call several times, all of them in each round, after one call to warm up."""
    times: dict[K, list[float]] = {name: [] for name in calls}
    warm = {name: _seconds(call) for name, call in calls.items()}
    for turn in range(ROUNDS):
        for name, call in calls.items():
            if turn < rounds(warm[name]):
                times[name].append(_seconds(call))
    return {name: Timing.of(each) for name, each in times.items()}


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def encode_once(subject: Subject, model: Segmenter, size_hw: tuple[int, int]) -> Callable[[], None]:
    """A call that encodes one picture of this size."""
    encode = encode_call(subject, model)
    pixels = torch.randn(1, 3, *size_hw).to(model.dtype)

    def run() -> None:
        with torch.no_grad():
            encode(pixels)

    return run


def gemm_bound(subject: Subject, size_hw: tuple[int, int], dtype: torch.dtype) -> float:
    """Seconds for the encoder's matrix products alone."""
    encoder = subject.config.encoder
    grid_hw = (size_hw[0] // encoder.patch, size_hw[1] // encoder.patch)
    return bound_seconds(encoder_products(encoder, grid_hw), dtype, torch.device("cpu"))


def scan_seconds(run: Callable[[], object], encoder: float) -> Timing:
    """Seconds within the scan kernel while ``run`` runs, which takes ``encoder`` seconds."""
    inner = getattr(blocks, _SCAN)
    spent = 0.0

    def timed(*tensors: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        begin = time.perf_counter()
        result: torch.Tensor = inner(*tensors)
        spent += time.perf_counter() - begin
        return result

    found = []
    setattr(blocks, _SCAN, timed)
    try:
        for _ in range(rounds(encoder)):
            spent = 0.0
            run()
            found.append(spent)
    finally:
        setattr(blocks, _SCAN, inner)
    return Timing.of(found)


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
    predictor.set_image(image)
    again = range(rounds(encoder))
    setting = Timing.of([_seconds(lambda: predictor.set_image(image)) for _ in again])
    points = rng.uniform(0.1, 0.9, (CLICKS, 2)) * (width, height)
    labels = np.arange(CLICKS) % 3 != 2
    single, inner = [], []
    logits = None
    for turn in range(2):
        for k in range(1, CLICKS + 1):
            begin = time.perf_counter()
            answer = predictor.predict(
                points[:k], labels[:k].astype(int), mask_input=logits, multimask_output=False
            )
            if turn:
                inner.append(time.perf_counter() - begin)
            logits = answer[2]
    for _ in range(CLICKS):
        begin = time.perf_counter()
        predictor.predict(points[:1], [1], mask_input=logits, multimask_output=False)
        single.append(time.perf_counter() - begin)
    return ClickTimes(setting, Timing.of(single), sum(inner) / CLICKS + encoder / CLICKS)
