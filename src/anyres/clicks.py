"""The simulated annotator: where the next click goes, given a mask and the truth.

The click of HRSAM's evaluation and training (arXiv 2407.02109): of the two kinds of error,
false negatives and false positives, take the one that contains the pixel farthest from its
border, and click there. A false negative gets a positive click, a false positive a negative one,
and so does a tie. Needs OpenCV (extra ``eval``), imported at the first click.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, MissingExtraError

EVALUATION_K = 1.0
TRAINING_K = 1.7
_EPS = float(np.finfo(np.float32).eps)


class Click(NamedTuple):
    """A click on the pixel in row ``y`` and column ``x``; positive says "this is the object"."""

    y: int
    x: int
    positive: bool


class ErrorRegion(NamedTuple):
    """All errors of one kind.

    Attributes:
        distance: (h, w) float32, distance in pixels to the nearest pixel outside the region, of
            which everything beyond the picture is one; 0 outside. Only the region's box is held.
        top: row of the picture where the box begins.
        left: column of the picture where the box begins.
        largest: greatest distance, 0.0 for an empty region.
    """

    distance: NDArray[np.float32]
    top: int
    left: int
    largest: float

    def candidates(self, k: float) -> NDArray[np.intp]:
        """List the pixels that may be clicked.

        Args:
            k: those whose distance exceeds the largest / (k + float32 epsilon): 1 gives the
                farthest alone, more gives more; a negative number gives the whole region.

        Returns:
            (n, 2) rows and columns of the picture, in row-major order.
        """
        found: NDArray[np.intp] = np.argwhere(self._allowed(k))
        found += np.array([self.top, self.left])
        return found

    def _allowed(self, k: float) -> NDArray[np.bool_]:
        """Mark the candidates within the box."""
        if not self.largest:
            return np.zeros(self.distance.shape, np.bool_)
        limit = self.largest / (k + _EPS) if k > 0 else 0.0
        allowed: NDArray[np.bool_] = self.distance > limit
        return allowed

    def pick(self, k: float, rng: np.random.Generator | None) -> tuple[int, int]:
        """Return row and column of the first candidate or, with a generator, of a random one."""
        places = np.flatnonzero(self._allowed(k))
        place = int(places[0] if rng is None else places[rng.integers(len(places))])
        y, x = divmod(place, self.distance.shape[1])
        return self.top + y, self.left + x


def next_click(
    pred: NDArray[Any],
    target: NDArray[Any],
    clicks: Sequence[tuple[int, int, bool]] = (),
    *,
    k: float = EVALUATION_K,
    rng: np.random.Generator | None = None,
    ignore: NDArray[np.bool_] | None = None,
) -> Click | None:
    """Place the next click.

    Args:
        pred: (H, W) the mask so far; bool, or integers of which only 1 is the object.
        target: (H, W) the truth, likewise. Void (255) is background here, as in the official
            simulator; pass ``ignore`` to keep clicks off it.
        clicks: earlier ones as (y, x, positive). Their pixels are cut out of the error
            regions before distances are taken, so that no pixel is clicked twice.
        k: how far from the farthest pixel a click may be, see `ErrorRegion.candidates`:
            1.0 (`EVALUATION_K`) in evaluation, 1.7 (`TRAINING_K`) in training.
        rng: draws among the candidates; without it the first in row-major order is taken.
        ignore: (H, W) bool, pixels that count as no error.

    Returns:
        The click, or None when no error is left.

    Raises:
        InputError: maps that are not 2-D or not of one size, or k = 0.
        MissingExtraError: OpenCV is not installed.
    """
    if k == 0:
        raise InputError("k is 0; give 1.0 or more, or a negative number for the whole region")
    missed, false = _errors(pred, target, clicks, ignore)
    boxes = _box(missed), _box(false)
    most = [_bound(box) for box in boxes]
    if most[0] == most[1] == 0:
        return None
    # The more promising one first: the other's box may be too narrow to beat it.
    order = (0, 1) if most[0] > most[1] else (1, 0)
    best, kind = _region((missed, false)[order[0]], boxes[order[0]]), order[0]
    # A tie clicks negative, so false positives may win with the same distance.
    if most[order[1]] > best.largest or (kind == 0 and most[1] == best.largest):
        other = _region((missed, false)[order[1]], boxes[order[1]])
        if other.largest > best.largest or (kind == 0 and other.largest == best.largest):
            best, kind = other, order[1]
    return Click(*best.pick(k, rng), kind == 0)


def error_regions(
    pred: NDArray[Any],
    target: NDArray[Any],
    clicks: Sequence[tuple[int, int, bool]] = (),
    *,
    ignore: NDArray[np.bool_] | None = None,
) -> tuple[ErrorRegion, ErrorRegion]:
    """Return both error regions, false negatives first; arguments as in `next_click`."""
    missed, false = _errors(pred, target, clicks, ignore)
    return _region(missed, _box(missed)), _region(false, _box(false))


def as_points(
    clicks: Sequence[tuple[int, int, bool]],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Turn clicks into the (N, 2) XY pixel coordinates and (N,) labels of a point prompt."""
    coords = np.array([(x, y) for y, x, _ in clicks], np.float64).reshape(-1, 2)
    return coords, np.array([int(positive) for _, _, positive in clicks], np.int64)


@cache
def _opencv() -> Any:
    """Import OpenCV."""
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            'simulated clicks need OpenCV; install it with: pip install "anyres[eval]"'
        ) from error
    return cv2


Box = tuple[int, int, int, int]  # left, top, width, height


def _errors(
    pred: NDArray[Any],
    target: NDArray[Any],
    clicks: Sequence[tuple[int, int, bool]],
    ignore: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the (H, W) 0/1 maps of false negatives and false positives."""
    if pred.ndim != 2 or pred.shape != target.shape:
        raise InputError(
            f"mask and target must be (H, W) of one size, got {pred.shape} and {target.shape}"
        )
    if ignore is not None and ignore.shape != pred.shape:
        raise InputError(f"the ignore mask is {ignore.shape}, the target {target.shape}")
    got = (pred if pred.dtype == np.bool_ else pred == 1).view(np.uint8)
    wanted = (target if target.dtype == np.bool_ else target == 1).view(np.uint8)
    false = got > wanted
    missed = wanted > got
    if ignore is not None:
        false &= ~ignore
        missed &= ~ignore
    for y, x, _ in clicks:
        false[y, x] = missed[y, x] = False
    return missed.view(np.uint8), false.view(np.uint8)


def _box(mask: NDArray[np.uint8]) -> Box:
    """Return left, top, width and height of a region; width and height 0 when empty."""
    if mask.size == 0:
        return 0, 0, 0, 0
    left, top, width, height = _opencv().boundingRect(mask)
    return int(left), int(top), int(width), int(height)


def _bound(box: Box) -> int:
    """Return a distance that no pixel of a region with this box can exceed."""
    return (min(box[2], box[3]) + 1) // 2


def _region(mask: NDArray[np.uint8], box: Box) -> ErrorRegion:
    """Take distances within a region's box; nothing of the region lies beyond it."""
    left, top, width, height = box
    if not width:
        return ErrorRegion(np.zeros((0, 0), np.float32), 0, 0, 0.0)
    cv2 = _opencv()
    part = mask[top : top + height, left : left + width]
    padded = cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    return ErrorRegion(distance, top, left, float(distance.max()))
