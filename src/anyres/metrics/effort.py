"""Human correction effort: the clicks a person needs to mend a mask (Qin et al. 2022, DIS5K).

Of what is wrong, and what a tolerance of a few pixels does not forgive, outlines are simplified
to polygons whose corners are counted; a piece that touches nothing right is one click. Needs
OpenCV (extra ``eval``).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import StateError
from anyres.metrics.maps import grey, opencv, same_size, split_target
from anyres.metrics.thinning import skeleton

RELAX = 5  # pixels of tolerance
EPSILON = 2.0  # pixels by which a polygon may miss the outline

Mask = NDArray[np.bool_]


class CorrectionEffort:
    """Mean human correction effort over many pictures; keeps a sum alone."""

    def __init__(self) -> None:
        self._pictures = 0
        self._sum = 0

    def update(self, prediction: NDArray[Any], target: NDArray[Any]) -> None:
        """Add one picture.

        Args:
            prediction: (H, W) as for `anyres.metrics.saliency.Saliency`; the object is where it
                exceeds 0.5.
            target: (H, W) bool, or integers: 1 object, 0 not, 255 void, where nothing is wrong.

        Raises:
            InputError: sizes that differ, another type, or other values.
            MissingExtraError: OpenCV is not installed.
        """
        same_size(prediction, target)
        wanted, void = split_target(target)
        found = grey(prediction) > 0.5
        if void is not None:
            found &= ~void
        self._sum += correction_effort(found, wanted)
        self._pictures += 1

    def result(self) -> dict[str, float]:
        """Return ``pictures`` and ``hce``, the mean over them.

        Raises:
            StateError: no picture yet.
        """
        if not self._pictures:
            raise StateError("there is no picture yet; call update() first")
        return {"pictures": self._pictures, "hce": self._sum / self._pictures}


def correction_effort(pred: Mask, target: Mask) -> int:
    """Count the clicks that turn one (H, W) bool mask into another, roughly.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = opencv()
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    right, either = pred & target, pred | target
    core = cv2.erode(either.view(np.uint8), cross, iterations=RELAX).view(np.bool_)
    false = _unforgiven(pred & ~target, core, target, cross)
    missed = _unforgiven(target & ~pred, core, pred, cross)
    # However thin it is, what holds the object together is not forgiven.
    missed |= skeleton(target) & ~pred
    effort = _clicks(false, right | missed, cross)
    return effort + _clicks(missed, ~(right | false | missed), cross)


def _unforgiven(wrong: Mask, core: Mask, other: Mask, cross: NDArray[np.uint8]) -> Mask:
    """Keep of the errors what is in the core, and what is connected to it over a few pixels."""
    cv2 = opencv()
    kept = wrong & core
    for _ in range(RELAX):
        kept = cv2.dilate(kept.view(np.uint8), cross).view(np.bool_) & ~other
    return kept & wrong


def _clicks(mask: Mask, condition: Mask, cross: NDArray[np.uint8]) -> int:
    """Count corners along outlines that touch the condition, and pieces that nowhere do."""
    cv2 = opencv()
    near = cv2.dilate(condition.view(np.uint8), cross).ravel() > 0
    area = mask.view(np.uint8)
    outlines, _ = cv2.findContours(area, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return 0
    points = np.concatenate(outlines).reshape(-1, 2)
    places = points[:, 1].astype(np.int64) * mask.shape[1] + points[:, 0]
    first = np.zeros(len(places), np.bool_)
    first[np.unique(places, return_index=True)[1]] = True
    counted = near[places] & first  # a pixel that several outlines pass counts in the first
    count, labels = cv2.connectedComponents(area, connectivity=8)
    alone = np.ones(count, np.bool_)
    alone[0] = False
    alone[labels.ravel()[places[counted]]] = False
    corners, begin = 0, 0
    for outline in outlines:
        end = begin + len(outline)
        for run in _runs(points[begin:end], counted[begin:end]):
            corners += len(cv2.approxPolyDP(run[:, None], EPSILON, False))
        begin = end
    return corners + int(np.count_nonzero(alone))


def _runs(points: NDArray[np.int32], counted: Mask) -> Sequence[NDArray[np.int32]]:
    """Cut an outline (n, 2) into its runs of counted points.

    Where the last run ends beside the beginning of the first, the first is put behind it; in
    reverse, as in the official code, though that is not its way round.
    """
    edges = np.flatnonzero(np.diff(counted, prepend=False, append=False))
    runs = [points[start:stop] for start, stop in edges.reshape(-1, 2)]
    if len(runs) > 1 and 0 < np.abs(runs[0][0] - runs[-1][-1]).max() <= 1:
        runs[-1] = np.concatenate([runs[-1], runs[0][::-1]])
        del runs[0]
    return runs
