"""From answers to figures: what is noted of an object, and what the objects come to together."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from anyres.data.datasets import ObjectRef
from anyres.evaluate.journal import Result
from anyres.evaluate.protocols import Rules, Target, Trial
from anyres.metrics.detection import AveragePrecision, Instances
from anyres.metrics.interactive import CLICKS, IOU_AFTER, THRESHOLDS, Interactive, clicks_to_reach
from anyres.metrics.overlap import Overlap
from anyres.metrics.saliency import Saliency

Figures = dict[str, float | int | None]

# Means over objects; the others of `Saliency` are read off curves averaged over objects.
_SALIENCY = ("mae", "s", "e_adaptive", "e_mean", "f_adaptive", "f_mean", "f_weighted")


def measure(rules: Rules, trial: Trial, target: Target, ref: ObjectRef) -> Result:
    """Note what is needed of one object: numbers, and run lengths where it has a class.

    Returns:
        ``ious`` (one an answer) and ``clicks`` [row, column, 1 or 0] for clicks; for the other
        protocols ``prompt``, ``score``, and the overlap and saliency measures of the mask. An
        object that is right before its last click keeps its IoU for the clicks left over.
    """
    clicks = [[click.y, click.x, int(click.positive)] for click in trial.clicks]
    if rules.protocol == "clicks":
        ious = trial.ious + trial.ious[-1:] * (rules.clicks - len(trial.ious))
        return {"ious": ious, "clicks": clicks}
    return {
        "prompt": clicks[0] if trial.box is None else list(trial.box),
        "score": trial.score,
        **_mask_figures(trial, target),
        **({} if ref.category is None else _run_lengths(trial, target)),
    }


def _mask_figures(trial: Trial, target: Target) -> Result:
    overlap, saliency = Overlap(), Saliency()
    overlap.update(trial.mask, target.values)
    saliency.update(trial.mask, target.values)
    found, grey = overlap.result(), saliency.result()
    f_curve, e_curve = saliency.curves()
    return {
        **{name: found[name] for name in ("iou", "dice", "boundary_iou")},
        "size": next(name for name in ("small", "medium", "large") if found[f"objects_{name}"]),
        **{name: grey[name] for name in _SALIENCY},
        # A mask is the same at all thresholds but 0, where all is found.
        "f_curve": [float(f_curve[0]), float(f_curve[-1])],
        "e_curve": [float(e_curve[0]), float(e_curve[-1])],
    }


def _run_lengths(trial: Trial, target: Target) -> Result:
    from pycocotools import mask as coco

    found, wanted = (
        coco.encode(np.asfortranarray(mask.view(np.uint8)))["counts"].decode()
        for mask in (trial.mask, target.wanted)
    )
    return {"found": found, "wanted": wanted}


RUN_LENGTHS = ("found", "wanted")


def summarise(
    rules: Rules, refs: Iterable[ObjectRef], results: Mapping[str, Result]
) -> dict[str, Any]:
    """Bring the objects' results together.

    Args:
        rules: the protocol.
        refs: the objects, in the order of the data set, which is that of all sums.
        results: key -> result; objects without figures (``problem``) do not count.

    Returns:
        ``overall``: all figures of all objects; ``sets``: name -> the same of each set.
    """
    usable = [ref for ref in refs if ref.key in results and "problem" not in results[ref.key]]
    names = dict.fromkeys(ref.set for ref in usable)
    of = _interactive if rules.protocol == "clicks" else _single
    return {
        "overall": of(rules, usable, results),
        "sets": {
            name: of(rules, [ref for ref in usable if ref.set == name], results) for name in names
        },
    }


def _interactive(rules: Rules, refs: list[ObjectRef], results: Mapping[str, Result]) -> Figures:
    figures = Interactive()
    for ref in refs:
        result = results[ref.key]
        figures.update(
            result["ious"],
            encoder_seconds=result["encoder_seconds"],
            click_seconds=result["prompt_seconds"],
        )
    found: Figures = dict(figures.result())
    if rules.clicks < CLICKS:
        # They are defined for 20 clicks.
        unknown = [f"{name}{at}" for name in ("noc", "nof") for at in THRESHOLDS]
        unknown += [f"iou{after}" for after in IOU_AFTER if after > rules.clicks]
        found |= dict.fromkeys(unknown)
    return found


def _single(rules: Rules, refs: list[ObjectRef], results: Mapping[str, Result]) -> Figures:
    own = [results[ref.key] for ref in refs]
    found: Figures = {"objects": len(own)}
    for name in ("iou", "dice", "boundary_iou", *_SALIENCY):
        found[name] = float(np.mean([result[name] for result in own]))
    for name in ("f", "e"):
        found[f"{name}_max"] = float(np.mean([r[f"{name}_curve"] for r in own], axis=0).max())
    for size in ("small", "medium", "large"):
        ious = [result["iou"] for result in own if result["size"] == size]
        found[f"objects_{size}"] = len(ious)
        found[f"iou_{size}"] = float(np.mean(ious)) if ious else None
    if any("found" in result for result in own):
        found |= _precision(refs, results)
    found["seconds_per_prompt"] = float(np.mean([r["prompt_seconds"][0] for r in own]))
    found["seconds_per_picture"] = float(np.mean([r["encoder_seconds"] for r in own]))
    return found


def _precision(refs: list[ObjectRef], results: Mapping[str, Result]) -> dict[str, float]:
    """COCO's average precision of the objects that have a class."""
    classes = sorted({ref.category for ref in refs if ref.category is not None})
    pictures: dict[Any, list[ObjectRef]] = {}
    for ref in refs:
        if "found" in results[ref.key]:
            pictures.setdefault(ref.image, []).append(ref)
    precision = AveragePrecision()
    for own in pictures.values():
        numbers = [classes.index(ref.category) for ref in own if ref.category is not None]
        found, wanted = (
            [{"size": list(ref.size_hw), "counts": results[ref.key][which]} for ref in own]
            for which in RUN_LENGTHS
        )
        scores = [results[ref.key]["score"] for ref in own]
        precision.update(Instances(found, numbers, scores), Instances(wanted, numbers))
    return {name: value for name, value in precision.result().items() if name != "pictures"}


def reached(result: Mapping[str, Any], threshold: float) -> int:
    """After how many clicks an object's IoU is at least a threshold; 20 where it never is."""
    return clicks_to_reach(result["ious"], threshold)


class Running:
    """The figure that people watch while a run lasts."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._count = 0
        self._sum = 0.0

    def add(self, result: Result) -> str:
        """Add a result; return the mean so far, in words."""
        if "problem" not in result:
            self._count += 1
            self._sum += self._value(result)
        if not self._count:
            return ""
        mean = self._sum / self._count
        if self._rules.protocol != "clicks":
            return f"IoU {mean:.3f}"
        return f"NoC90 {mean:.2f}" if self._full else f"IoU@{self._rules.clicks} {mean:.3f}"

    @property
    def _full(self) -> bool:
        return self._rules.clicks == CLICKS

    def _value(self, result: Result) -> float:
        if self._rules.protocol != "clicks":
            return float(result["iou"])
        return reached(result, 0.9) if self._full else float(result["ious"][-1])
