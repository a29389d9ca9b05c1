"""Two reports on the same objects: differences, and how sure they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError
from anyres.evaluate.figures import reached
from anyres.metrics.interactive import CLICKS, IOU_AFTER, THRESHOLDS

RESAMPLES = 10_000
LEVEL = 0.95
_BLOCK = 1 << 22  # drawn numbers held at once

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """One figure of both, and B minus A with the interval that holds it in 95 % of resamples."""

    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def compare(a: Mapping[str, Any], b: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Compare two reports object by object.

    The interval is that of a paired bootstrap over objects (percentiles): in each of 10,000
    resamples, as many objects as there are, drawn with replacement, keep their two results
    together.

    Args:
        a: a report of ``anyres evaluate``.
        b: another.
        seed: of the resamples.

    Returns:
        ``objects``: how many are common; ``only_a`` and ``only_b``: how many are not;
        ``same_data``; ``overall`` and ``sets``: figure -> ``a, b, difference, low, high, clear``.

    Raises:
        InputError: other protocols, no common object, or a common one that is not the same.
    """
    if a["protocol"] != b["protocol"]:
        raise InputError(f"the protocols differ: {a['protocol']} and {b['protocol']}")
    first, second = _usable(a), _usable(b)
    keys = [key for key in first if key in second]
    if not keys:
        raise InputError(
            f"the reports have no object in common: {a['data']['name']} and {b['data']['name']}"
        )
    _check_same(first, second, keys)
    names = dict.fromkeys(first[key]["set"] for key in keys)
    of_set = {name: [key for key in keys if first[key]["set"] == name] for name in names}

    def differences(keys: list[str]) -> dict[str, dict[str, Any]]:
        return _differences([first[key] for key in keys], [second[key] for key in keys], seed)

    return {
        "objects": len(keys),
        "only_a": len(first) - len(keys),
        "only_b": len(second) - len(keys),
        "same_data": a["data"]["fingerprint"] == b["data"]["fingerprint"],
        "resamples": RESAMPLES,
        "level": LEVEL,
        "seed": seed,
        "overall": differences(keys),
        "sets": {name: differences(own) for name, own in of_set.items()},
    }


def _usable(report: Mapping[str, Any]) -> dict[str, Result]:
    return {row["key"]: row for row in report["results"] if "problem" not in row}


def _check_same(first: Mapping[str, Result], second: Mapping[str, Result], keys: list[str]) -> None:
    """Make sure that objects of one name are one object, as far as their size tells."""
    for key in keys:
        one, other = first[key], second[key]
        if (one["area"], one["size_hw"]) != (other["area"], other["size_hw"]):
            raise InputError(
                f"{key} is not the same in both: {one['area']} pixels of {one['size_hw']} and "
                f"{other['area']} of {other['size_hw']}; evaluate both on the same data"
            )


def _differences(one: list[Result], other: list[Result], seed: int) -> dict[str, dict[str, Any]]:
    names, a = _table(one)
    names, b = _table(other)
    low, high = _interval(b - a, seed)
    found = {}
    for place, name in enumerate(names):
        # Failures are counted, all others are means.
        times = len(one) if name.startswith("nof") else 1
        figures = (a[:, place].mean(), b[:, place].mean(), (b - a)[:, place].mean())
        difference = Difference(*(float(f) * times for f in (*figures, low[place], high[place])))
        found[name] = {**vars(difference), "clear": difference.clear}
    return found


def _table(results: list[Result]) -> tuple[list[str], NDArray[np.float64]]:
    """Figures of each object, (objects, figures), whose means are the report's."""
    rows = [_figures(result) for result in results]
    return list(rows[0]), np.array([list(row.values()) for row in rows], np.float64)


def _figures(result: Result) -> dict[str, float]:
    if "ious" not in result:
        names = "iou dice boundary_iou mae s e_adaptive e_mean f_adaptive f_mean f_weighted"
        return {name: result[name] for name in names.split()}
    ious, seconds = result["ious"], result["prompt_seconds"]
    found: dict[str, float] = {}
    if len(ious) == CLICKS:
        found |= {f"noc{at}": reached(result, at / 100) for at in THRESHOLDS}
        found |= {f"nof{at}": max(ious) < at / 100 for at in THRESHOLDS}
    found |= {f"iou{after}": ious[after - 1] for after in IOU_AFTER if after <= len(ious)}
    found["spc"] = sum(seconds) / len(seconds) + result["encoder_seconds"] / CLICKS
    return found


def _interval(
    values: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the means of resampled rows, for each column of (objects, figures)."""
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    step = max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = rng.integers(count, size=(size, count)) + np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means[start : start + size] = times @ values / count
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(means, (outside, 1 - outside), axis=0)
    return low, high
