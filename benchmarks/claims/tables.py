"""The results as the Markdown tables of docs/claims.md: mean and spread over the seeds."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.plan import (
    GENERALISTS,
    KINDS,
    LENGTHS,
    OTHER_SIZES,
    PHOTOS,
    SCENES,
    SEEDS,
    SIZES,
    TRAINED,
    VARIANTS,
    Score,
    Training,
    jobs,
)

FIGURES = ("noc90", "noc95", "iou1", "iou5", "iou20")
HEADS = ("NoC90", "NoC95", "IoU@1", "IoU@5", "IoU@20")
# What claims are judged by: clicks, and IoU for models that do not get there in 20 of them.
JUDGED = ("noc90", "noc95", "iou5")
Key = tuple[str, str, int, str]


class Results:
    """What has been scored so far: model, set, size and variant -> the seeds' values."""

    def __init__(self, out: Path) -> None:
        """Read all scores in a folder."""
        self._found: dict[Key, dict[str, dict[str, float]]] = {}
        self.minutes: dict[str, dict[str, float]] = {}
        variants = {json.dumps(v): name for name, v in (LENGTHS | VARIANTS).items()}
        for job in jobs():
            if isinstance(job, Training):
                done = out / job.name / "done.json"
                if done.exists():
                    kind, _, seed = job.name.rpartition("-")
                    minutes = json.loads(done.read_text())["minutes"]
                    self.minutes.setdefault(kind, {})[seed] = minutes
                continue
            place = out / "scores" / f"{job.name}.json"
            if place.exists():
                self._add(job, variants, json.loads(place.read_text())["figures"])

    def _add(self, job: Score, variants: dict[str, str], figures: dict[str, Any]) -> None:
        variant = variants[json.dumps(job.length)] if job.length else ""
        model, _, seed = job.weights.rpartition("-")
        of = self._found.setdefault((model, job.data, job.resolution, variant), {})
        for name, value in figures.items():
            if isinstance(value, int | float):
                of.setdefault(name, {})[seed] = float(value)

    def values(self, key: Key, figure: str) -> dict[str, float]:
        """By seed, none if nothing is there."""
        return self._found.get(key, {}).get(figure, {})

    def cell(self, key: Key, figure: str) -> str:
        """Mean, and least and most over the seeds."""
        values = self.values(key, figure).values()
        if not values:
            return "-"
        digits = 3 if figure.startswith(("iou", "spc")) else 2
        mean = f"{statistics.fmean(values):.{digits}f}"
        if len(values) == 1:
            return f"{mean} (one seed)"
        return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_size(results: Results, models: Sequence[str]) -> str:
    """(a) and (b): models at once, twice and four times the teacher's size."""
    rows = [
        [
            *(data, model, str(size)),
            *(results.cell((model, data, size, ""), f) for f in (*FIGURES, "spc")),
        ]
        for data in (*PHOTOS, SCENES)
        for model in models
        for size in SIZES
    ]
    return table(("set", "model", "long side", *HEADS, "SPC, s"), rows)


def by_length(results: Results) -> str:
    """(c): the teacher at other sizes, with each part of BA-SAM."""
    rows = []
    for data in PHOTOS:
        for size in OTHER_SIZES:
            for name in (*LENGTHS, *VARIANTS):
                key = ("teacher", data, size, name)
                if results.values(key, "noc90"):
                    cells = [results.cell(key, figure) for figure in FIGURES]
                    rows.append([data, f"{size / TRAINED:g}x", name, *cells])
    return table(("set", "size", "attention", *HEADS), rows)


def by_training(results: Results) -> str:
    """(d): specialists, the generalist and what both began with."""
    rows = []
    for name, data in KINDS.items():
        for model in ("teacher", f"on-{name}", *(f"on-{kind}" for kind in GENERALISTS)):
            key = (model, data, TRAINED, "")
            rows.append([data, model, *(results.cell(key, figure) for figure in FIGURES)])
    return table(("set", "model", *HEADS), rows)


def verdicts(results: Results) -> str:
    """Which claims hold: in the mean, and whether every seed says so."""
    claims: list[tuple[str, Key, Key]] = []
    for data in (*PHOTOS, SCENES):
        own = ("teacher", data, TRAINED, "")
        for model in ("student", "anchored"):
            for size in SIZES[1:]:
                what = f"{model} at {size} better than teacher at {TRAINED}, {data}"
                claims.append((what, (model, data, size, ""), own))
            for size in SIZES:
                pair = ((model, data, size, ""), ("teacher", data, size, ""))
                claims.append((f"{model} better than teacher, both at {size}, {data}", *pair))
        for size in SIZES:
            pair = (("anchored", data, size, ""), ("student", data, size, ""))
            claims.append((f"HRSAM++ better than HRSAM at {size}, {data}", *pair))
    for data in PHOTOS:
        for size in OTHER_SIZES[2:]:
            plain = ("teacher", data, size, "plain")
            for name in ("scale", "bias", "both"):
                what = f"{name} better than plain at {size}, {data}"
                claims.append((what, ("teacher", data, size, name), plain))
    for name, data in KINDS.items():
        specialist = (f"on-{name}", data, TRAINED, "")
        for kind, times in GENERALISTS.items():
            what = f"generalist of {times}x the steps better than specialist, {data}"
            claims.append((what, (f"on-{kind}", data, TRAINED, ""), specialist))
    rows = [_verdict(results, *claim, figure) for claim in claims for figure in JUDGED]
    heads = ("claim", "figure", "difference", "seeds for it", "holds")
    return table(heads, [row for row in rows if row])


def _verdict(results: Results, what: str, one: Key, other: Key, figure: str) -> list[str]:
    first, second = results.values(one, figure), results.values(other, figure)
    seeds = first.keys() & second.keys()
    if not seeds:
        return []
    # Fewer clicks are better, more IoU is.
    sign = 1 if figure.startswith("iou") else -1
    gains = [sign * (first[seed] - second[seed]) for seed in sorted(seeds)]
    wins, mean = sum(gain > 0 for gain in gains), statistics.fmean(gains)
    apart = min(sign * first[s] for s in seeds) > max(sign * second[s] for s in seeds)
    if apart and len(seeds) == len(SEEDS):
        holds = "yes, beyond the spread"
    else:
        holds = "yes" if wins == len(seeds) else ("in the mean" if mean > 0 else "no")
    digits = 3 if sign > 0 else 2
    return [what, figure, f"{sign * mean + 0.0:+.{digits}f}", f"{wins} of {len(seeds)}", holds]


def page(out: Path) -> str:
    """All tables."""
    results = Results(out)
    minutes = [
        [name, *(f"{value:.1f}" for value in of.values())] for name, of in results.minutes.items()
    ]
    parts: list[tuple[str, Callable[[], str]]] = [
        ("Claims", lambda: verdicts(results)),
        ("(a), (b) Sizes", lambda: by_size(results, ("teacher", "student", "anchored"))),
        ("(c) BA-SAM, zero-shot", lambda: by_length(results)),
        ("(d) Generalist and specialists", lambda: by_training(results)),
    ]
    text = [f"## {title}\n\n{make()}" for title, make in parts]
    text.append("## Minutes of training, by seed\n\n" + "\n".join(" ".join(m) for m in minutes))
    return "\n\n".join(text) + "\n"
