"""Grey maps against binary truth: the measures of saliency, camouflage and dichotomous sets.

MAE, S-measure, E-measure, F-measure and weighted F-measure, as the field's MATLAB toolboxes and
their Python port (PySODMetrics) compute them; ``docs/metrics.md`` says where we differ. Needs
OpenCV (extra ``eval``). The human correction effort is in `anyres.metrics.effort`.

Shape legend: everything is (H, W); a curve is (256,), one value for each threshold 255, 254, ... 0.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, StateError
from anyres.metrics.maps import blocks, grey, opencv, same_size, split_target
from anyres.metrics.weighted import weighted_f

BETA_SQUARED = 0.3  # Achanta et al. 2009: precision weighs more
ALPHA = 0.5  # Fan et al. 2017: object and region weigh the same
EPS = float(np.spacing(1))

Grey = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Curve = NDArray[np.float64]


class Saliency:
    """Mean measures over many pictures; keeps two curves and a handful of sums."""

    def __init__(self) -> None:
        self._pictures = 0
        self._sums: dict[str, float] = {}
        self._f = np.zeros(256)
        self._e = np.zeros(256)

    def update(self, prediction: NDArray[Any], target: NDArray[Any]) -> None:
        """Add one picture.

        Args:
            prediction: (H, W) uint8 as read from a file, float32 or float64 from 0 to 1, or
                bool; see `anyres.metrics.maps.grey` for how 8 bits are stretched.
            target: (H, W) bool, or integers: 1 object, 0 not, 255 void, which counts for nothing.

        Raises:
            InputError: sizes that differ, another type, other values, or nothing but void.
            MissingExtraError: OpenCV is not installed.
        """
        same_size(prediction, target)
        wanted, void = split_target(target)
        found, f_curve, e_curve = _measure(grey(prediction), wanted, void)
        self._pictures += 1
        for name, value in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._f += f_curve
        self._e += e_curve

    def curves(self) -> tuple[Curve, Curve]:
        """Return the mean F- and E-measure at the 256 thresholds 255, 254, ... 0.

        Raises:
            StateError: no picture yet.
        """
        if not self._pictures:
            raise StateError("there is no picture yet; call update() first")
        return self._f / self._pictures, self._e / self._pictures

    def result(self) -> dict[str, float]:
        """Return the means over all pictures.

        Returns:
            ``pictures, mae, s, e_adaptive, e_mean, e_max, f_adaptive, f_mean, f_max,
            f_weighted``. ``_mean`` and ``_max`` are those of the curve averaged over pictures.

        Raises:
            StateError: no picture yet.
        """
        f_curve, e_curve = self.curves()
        found = {name: value / self._pictures for name, value in self._sums.items()}
        for name, curve in (("f", f_curve), ("e", e_curve)):
            found |= {f"{name}_mean": float(curve.mean()), f"{name}_max": float(curve.max())}
        return {"pictures": self._pictures, **found}


class Counts(NamedTuple):
    """Pixels found, inside the truth and outside; numbers, or (256,) at falling thresholds."""

    inside: Any
    outside: Any


def _measure(pred: Grey, wanted: Mask, void: Mask | None) -> tuple[dict[str, float], Curve, Curve]:
    """Return the measures of one picture, and its curves."""
    parts = _quadrants(pred, wanted, void)
    known = pred if void is None else pred[~void]
    area, total = int(np.count_nonzero(wanted)), known.size
    threshold = min(2 * known.mean(), 1)
    adaptive, curve = _counts(pred, wanted, void, threshold)
    found = {
        "mae": sum(part.errors for part in parts) / total,
        "s": _structure(parts, float(known.mean())),
        "e_adaptive": float(_alignment(adaptive, area, total)),
        "f_adaptive": float(_f_measure(adaptive, area)),
        "f_weighted": weighted_f(pred, wanted, void),
    }
    return found, _f_measure(curve, area), _alignment(curve, area, total)


def _counts(pred: Grey, wanted: Mask, void: Mask | None, threshold: float) -> tuple[Counts, Counts]:
    """Count what is found at the adaptive threshold and at each of the 256."""
    cv2 = opencv()
    histograms = np.zeros((2, 256))
    reached = [0, 0]
    for rows in blocks(pred.shape):
        part, inside = pred[rows], wanted[rows]
        levels = (part * 255).astype(np.uint8)
        above = part >= threshold
        outside = ~inside if void is None else ~(inside | void[rows])
        for place, mask in enumerate((inside, outside)):
            counted = cv2.calcHist([levels], [0], mask.view(np.uint8), [256], [0, 256])
            histograms[place] += counted.ravel()  # (256,) or, by OpenCV 4, (256, 1)
            reached[place] += int(np.count_nonzero(above & mask))
    falling = np.cumsum(histograms[:, ::-1], axis=1)
    return Counts(*reached), Counts(*falling)


def _f_measure(found: Counts, area: int) -> Any:
    """Return the F-measure (Achanta et al. 2009); 0 where nothing right is found."""
    precision = found.inside / np.maximum(found.inside + found.outside, 1)
    recall = found.inside / max(area, 1)
    below = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(below == 0, 1, below)


def _alignment(found: Counts, area: int, total: int) -> Any:
    """Return the E-measure of a binary map (Fan et al. 2018, equations 2 to 5)."""
    positive = found.inside + found.outside
    negative = total - positive
    if area == 0:
        summed = negative
    elif area == total:
        summed = positive
    else:
        share, truth = positive / total, area / total
        missed = area - found.inside
        summed = (
            found.inside * _enhanced(1 - share, 1 - truth)
            + found.outside * _enhanced(1 - share, -truth)
            + missed * _enhanced(-share, 1 - truth)
            + (negative - missed) * _enhanced(-share, -truth)
        )
    return summed / max(total - 1, 1)


def _enhanced(one: Any, other: Any) -> Any:
    """Return how well two deviations from the mean align, from 0 to 1."""
    return (2 * one * other / (one**2 + other**2 + EPS) + 1) ** 2 / 4


class Part(NamedTuple):
    """A quadrant of the picture about the object's centre, summed up.

    Sums and squares are of deviations from ``mean``, errors of the absolute differences from the
    truth; ``_in`` is for the object's pixels alone.
    """

    pixels: int
    area: int
    mean: float
    sum: float
    sum_in: float
    squares: float
    squares_in: float
    errors: float


def _quadrants(pred: Grey, wanted: Mask, void: Mask | None) -> list[Part]:
    """Sum up the four quadrants, without those that hold nothing but void."""
    y, x = _centre(wanted)
    parts = []
    for rows in (slice(0, y), slice(y, None)):
        for columns in (slice(0, x), slice(x, None)):
            here, inside = pred[rows, columns], wanted[rows, columns]
            if void is not None:
                known = ~void[rows, columns]
                here, inside = here[known][None], inside[known][None]
            if here.size:
                parts.append(_sum_up(here, inside))
    if not parts:
        raise InputError("the target is void everywhere; there is nothing to measure")
    return parts


def _centre(wanted: Mask) -> tuple[int, int]:
    """Return row and column after the object's centroid, or after the middle without object."""
    sums = [np.count_nonzero(wanted, axis=axis).astype(np.float64) for axis in (1, 0)]
    area = sums[0].sum()
    if not area:
        y, x = (np.round(side / 2) for side in wanted.shape)
    else:
        y, x = (np.round(line @ np.arange(len(line)) / area) for line in sums)
    return int(y) + 1, int(x) + 1


def _sum_up(pred: Grey, wanted: Mask) -> Part:
    """Take the sums of a quadrant, in double precision and two passes."""
    # Numpy's own mean in the map's own type: whether deviations from it are all exactly zero
    # decides the measure of a constant quadrant, here and in the field's code.
    mean = pred.mean()
    sums = np.zeros(5)
    for rows in blocks(pred.shape):
        inside = wanted[rows].astype(np.float64).ravel()
        deviation = (pred[rows] - mean).astype(np.float64).ravel()
        square, error = deviation * deviation, np.abs(pred[rows].ravel() - inside)
        sums += (
            deviation.sum(),
            deviation @ inside,
            square.sum(),
            square @ inside,
            error.sum(),
        )
    return Part(pred.size, int(np.count_nonzero(wanted)), float(mean), *sums.tolist())


def _structure(parts: list[Part], mean: float) -> float:
    """Return the S-measure (Fan et al. 2017)."""
    area, total = sum(part.area for part in parts), sum(part.pixels for part in parts)
    if area == 0:
        return 1 - mean
    if area == total:
        return mean
    inside = [(p.area, p.mean, p.sum_in, p.squares_in) for p in parts]
    outside = [
        (p.pixels - p.area, p.mean, p.sum - p.sum_in, p.squares - p.squares_in) for p in parts
    ]
    share = area / total
    by_object = share * _similarity(inside) + (1 - share) * _similarity(outside, inverse=True)
    by_region = sum(part.pixels / total * _ssim(part) for part in parts)
    return max(0.0, ALPHA * by_object + (1 - ALPHA) * by_region)


def _similarity(groups: list[tuple[int, float, float, float]], *, inverse: bool = False) -> float:
    """Return equation 5's similarity of a group of pixels to all ones (inverse: all zeros).

    Groups are (pixels, reference, sum and summed squares of deviations from the reference).
    """
    pixels = sum(group[0] for group in groups)
    mean = sum(count * at + dev for count, at, dev, _ in groups) / pixels
    squares = sum(
        square + 2 * (at - mean) * dev + count * (at - mean) ** 2
        for count, at, dev, square in groups
    )
    spread = (max(squares, 0.0) / (pixels - 1)) ** 0.5 if pixels > 1 else 0.0
    mean = 1 - mean if inverse else mean
    return 2 * mean / (mean**2 + 1 + spread + EPS)


def _ssim(part: Part) -> float:
    """Return the structural similarity of a quadrant (equation 3)."""
    below = part.pixels - 1 + EPS
    truth = part.area / part.pixels
    variance = part.squares / below
    truth_variance = part.area * (1 - truth) / below
    covariance = (part.sum_in - truth * part.sum) / below
    above = 4 * part.mean * truth * covariance
    beneath = (part.mean**2 + truth**2) * (variance + truth_variance)
    if above != 0:
        return above / (beneath + EPS)
    return 1.0 if beneath == 0 else 0.0
