"""The whole measurement: what is asked for, in which order, and what is kept of it."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from anyres import __version__
from anyres.benchmark import measure, memory
from anyres.benchmark.subjects import Subject, make_model, needed_bytes
from anyres.errors import InputError
from anyres.models.segmenter import Segmenter
from anyres.ops.precision import cpu_features
from anyres.ops.scan import kernel_name

Size = tuple[int, int]
Report = Callable[[str, float], None]  # what is being measured, share done

LONGEST = 40.0  # seconds; a model is left out where one picture would take longer
BUSY = 0.1  # a spread above this says that the machine did something else too


@dataclass(frozen=True)
class Cell:
    """One model at one size in one precision. Times in seconds, memory in bytes.

    ``note`` says why something is missing. ``clicks`` is for models that answer clicks here,
    ``scan`` for those with a scan, ``quarter`` for those measured at half the sides before: that
    size again, by turns with this one.
    """

    model: str
    height: int
    width: int
    dtype: str
    encoder: measure.Timing | None = None
    gemm: float | None = None
    scan: measure.Timing | None = None
    quarter: measure.Timing | None = None
    clicks: measure.ClickTimes | None = None
    peak_memory: int | None = None
    note: str = ""

    @property
    def pixels(self) -> int:
        """Of the picture."""
        return self.height * self.width


@dataclass
class Results:
    """All cells so far, and where and when they were measured."""

    machine: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    complete: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "complete": self.complete,
            "machine": self.machine,
            "cells": [asdict(cell) for cell in self.cells],
        }

    def find(self, model: str, side: int, dtype: str) -> Cell | None:
        """The cell of a square size, if it was measured."""
        return self._find(model, (side, side), dtype)

    def at(self, subject: Subject, size: Size) -> Cell | None:
        """A model's cell of a size, if it was measured."""
        return self._find(subject.name, size, subject.dtype_name)

    def _find(self, model: str, size: Size, dtype: str) -> Cell | None:
        for cell in self.cells:
            if (cell.model, cell.height, cell.width, cell.dtype) == (model, *size, dtype):
                return cell
        return None


def run(
    models: Sequence[str],
    sizes: Sequence[Size],
    dtype: str,
    results: Results,
    report: Report,
    finished: Callable[[], None],
) -> None:
    """Measure everything and add it to ``results``, which is of use after an interruption too.

    Args:
        models: names for ``Subject.named``.
        sizes: heights and widths in pixels.
        dtype: precision of models whose name has none.
        results: receives each cell when it is done, sizes from small to large.
        report: told what comes next and the share that is done.
        finished: called when a size is done and in ``results``.

    Raises:
        InputError: an unknown model, or a size that is no multiple of its patch.
    """
    subjects = list(dict.fromkeys(Subject.named(name, dtype) for name in models))
    sizes = sorted(dict.fromkeys(sizes), key=lambda size: size[0] * size[1])
    for subject in subjects:
        _check(subject, sizes)
    total = float(sum(h * w for h, w in sizes))
    done = 0.0
    for size in sizes:
        share = size[0] * size[1] / total
        for step, text in _measure_size(subjects, size, results):
            report(text, done + share * step)
        done += share
        results.complete = size == sizes[-1]
        finished()


def _check(subject: Subject, sizes: Sequence[Size]) -> None:
    patch = subject.config.encoder.patch
    for height, width in sizes:
        if height % patch or width % patch or min(height, width) < patch:
            raise InputError(
                f"{height}x{width} is no multiple of the patch of {subject.name}, {patch} pixels"
            )


def _measure_size(
    subjects: list[Subject], size: Size, results: Results
) -> Iterator[tuple[float, str]]:
    """Yields (share of this size done, what comes next)."""
    name = f"{size[0]}x{size[1]}"
    notes = {
        subject: _does_not_fit(subject, size) or _takes_too_long(subject, size, results)
        for subject in subjects
    }
    fits = [subject for subject in subjects if not notes[subject]]
    yield 0.0, f"{name}: encoders by turns"
    models = {subject: make_model(subject) for subject in fits}
    calls = {subject: measure.encode_once(subject, models[subject], size) for subject in fits}
    bounds = {
        subject: measure.gemm_bound(subject, size) for subject in fits if not subject.is_baseline
    }
    half = size[0] // 2, size[1] // 2
    quarters = {
        subject: measure.encode_once(subject, models[subject], half)
        for subject in bounds
        if (cell := results.at(subject, half)) is not None and cell.encoder is not None
    }
    passes = measure.by_turns(calls, bounds, quarters)
    del calls, quarters
    cells = []
    for i, subject in enumerate(subjects):
        yield (i + 1) / (len(subjects) + 1), f"{name}: {subject.name} {subject.dtype_name}"
        if notes[subject]:
            cells.append(Cell(subject.name, *size, subject.dtype_name, note=notes[subject]))
        else:
            cells.append(_cell(subject, size, models.pop(subject), passes[subject]))
    results.cells += cells


def _cell(subject: Subject, size: Size, model: Segmenter, passes: measure.Passes) -> Cell:
    """The rest about one model, now that its encoder has been timed."""
    peak = memory.measure(subject, size) if memory.can_measure() else None
    clicks = None
    if not subject.is_baseline:
        clicks = measure.click_times(model, size, passes.encoder.median)
    return Cell(
        subject.name, *size, subject.dtype_name, **vars(passes), clicks=clicks, peak_memory=peak
    )


def _does_not_fit(subject: Subject, size: Size) -> str:
    needed, free = needed_bytes(subject, size), available_bytes()
    if free is None or needed < 0.9 * free:
        return ""
    return f"does not fit: needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"


def _takes_too_long(subject: Subject, size: Size, results: Results) -> str:
    """Judged by the last size, as if time grew with the pixels."""
    for cell in reversed(results.cells):
        if (cell.model, cell.dtype) == (subject.name, subject.dtype_name) and cell.encoder:
            seconds = cell.encoder.median * size[0] * size[1] / cell.pixels
            return f"left out: about {seconds:.0f} s a picture" if seconds > LONGEST else ""
    return ""


def available_bytes() -> int | None:
    """Memory that may be taken without swapping; None where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def describe_machine() -> dict[str, Any]:
    """What a table must carry to be worth reading."""
    return {
        "anyres": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_features": list(cpu_features()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "scan": kernel_name(),
        "date": datetime.now(UTC).date().isoformat(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def busy(results: Results) -> list[str]:
    """Measurements whose calls differ so much that something else was running."""
    return [
        f"{cell.model} {cell.dtype} at {cell.height}x{cell.width}"
        for cell in results.cells
        if cell.encoder is not None and cell.encoder.spread > BUSY
    ]
