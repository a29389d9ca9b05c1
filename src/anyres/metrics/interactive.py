"""How many clicks an object takes: NoC, failures, IoU after n clicks, seconds per click.

The protocol of interactive segmentation (HRSAM, arXiv 2407.02109, section 4): 20 clicks an
object, its IoU noted after each. Curves come in one an object; none of them is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, StateError

CLICKS = 20
THRESHOLDS = (80, 85, 90, 95)  # per cent
IOU_AFTER = (1, 3, 5, 20)


class Curve(NamedTuple):
    """IoU against clicks over all objects.

    Attributes:
        mean: (20,) float64, mean IoU after 1, 2, ... 20 clicks.
        spread: (20,) float64, standard deviation over the objects (of all of them: n below).
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]


def clicks_to_reach(ious: Sequence[float], threshold: float, limit: int = CLICKS) -> int:
    """Return after how many clicks the IoU first is at least a threshold.

    Args:
        ious: IoU after 1, 2, ... clicks; what comes after ``limit`` is not looked at.
        threshold: 0 to 1.
        limit: the answer for an object that never gets there. So counts the official code:
            20, not 21.

    Raises:
        InputError: a limit below 1.
    """
    if limit < 1:
        raise InputError(f"the limit is {limit} clicks; give 1 or more")
    reached = (place for place, iou in enumerate(ious[:limit], start=1) if iou >= threshold)
    return next(reached, limit)


class Interactive:
    """The figures of interactive segmentation over many objects.

    Memory does not grow with the number of objects.
    """

    def __init__(self) -> None:
        self._objects = 0
        self._timed = 0
        self._mean = np.zeros(CLICKS)
        self._squares = np.zeros(CLICKS)  # summed squared deviations (Welford 1962)
        self._clicks = dict.fromkeys(THRESHOLDS, 0)
        self._failures = dict.fromkeys(THRESHOLDS, 0)
        self._seconds_per_click = 0.0
        self._online = 0.0

    def update(
        self,
        ious: Sequence[float],
        *,
        encoder_seconds: float | None = None,
        click_seconds: Sequence[float] | None = None,
    ) -> None:
        """Add one object.

        Args:
            ious: IoU after 1, 2, ... up to 20 clicks. A shorter curve ended because nothing was
                left to click on: its last value stands for the clicks that were not needed.
            encoder_seconds: time to take in the picture, before any click.
            click_seconds: time to answer each click; given together with ``encoder_seconds``.

        Raises:
            InputError: no value or more than 20, an IoU outside of 0 to 1, one time without
                the other, or a time that is negative or not a number.
        """
        if not 1 <= len(ious) <= CLICKS:
            raise InputError(f"a curve has 1 to {CLICKS} values, got {len(ious)}")
        curve = np.full(CLICKS, ious[-1], np.float64)
        curve[: len(ious)] = ious
        if not ((curve >= 0) & (curve <= 1)).all():
            raise InputError(f"an IoU lies from 0 to 1, got {list(ious)}")
        times = _times(encoder_seconds, click_seconds)
        if times:
            self._timed += 1
            self._seconds_per_click += times[0]
            self._online += times[1]
        self._objects += 1
        before = curve - self._mean
        self._mean += before / self._objects
        self._squares += before * (curve - self._mean)
        for threshold in THRESHOLDS:
            self._clicks[threshold] += clicks_to_reach(ious, threshold / 100)
            self._failures[threshold] += max(ious) < threshold / 100

    def curve(self) -> Curve:
        """Return mean and spread of the IoU after each click.

        Raises:
            StateError: no object yet.
        """
        self._check()
        return Curve(self._mean.copy(), np.sqrt(self._squares / self._objects))

    def result(self) -> dict[str, float]:
        """Return all figures.

        Returns:
            ``objects``; ``noc80, noc85, noc90, noc95``: mean number of clicks to the IoU of
            0.80 and so on, never counting as 20; ``nof80`` to ``nof95``: how many objects never
            get there; ``iou1, iou3, iou5, iou20``: mean IoU after so many clicks (``iou5`` is
            the papers' 5-mIoU); and, where times were given, ``spc``: seconds a click with a
            twentieth of the encoder's, and ``online_seconds``: those alone that a person waits
            after a click.

        Raises:
            StateError: no object yet.
        """
        self._check()
        found: dict[str, float] = {"objects": self._objects}
        found |= {f"noc{at}": self._clicks[at] / self._objects for at in THRESHOLDS}
        found |= {f"nof{at}": self._failures[at] for at in THRESHOLDS}
        found |= {f"iou{after}": float(self._mean[after - 1]) for after in IOU_AFTER}
        if self._timed:
            found["spc"] = self._seconds_per_click / self._timed
            found["online_seconds"] = self._online / self._timed
        return found

    def _check(self) -> None:
        if not self._objects:
            raise StateError("there is no object yet; call update() with its IoUs first")


def _times(encoder: float | None, clicks: Sequence[float] | None) -> tuple[float, float] | None:
    """Return an object's seconds per click with and without its share of the encoder."""
    if encoder is None and clicks is None:
        return None
    if encoder is None or not clicks:
        raise InputError("encoder_seconds and click_seconds go together; one is missing")
    online = sum(clicks) / len(clicks)
    if not (encoder >= 0 and min(clicks) >= 0 and np.isfinite(encoder + online)):
        raise InputError(f"times are not negative, got {encoder} and {list(clicks)}")
    return online + encoder / CLICKS, online
