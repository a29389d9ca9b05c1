"""The simulated annotator: where the next click goes, given a mask and the truth.

The click of HRSAM's evaluation and training (arXiv 2407.02109): of the two kinds of error,
false negatives and false positives, take the one that contains the pixel farthest from its
border, and click there. A false negative gets a positive click, a false positive a negative one,
and so does a tie. Needs OpenCV (extra ``eval``), imported at the first click.
"""

from collections.abc import Sequence
from functools import cache
from math import isqrt
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
        limit = 0.0
        if k > 0:
            # Distances are roots of integers. OpenCV's may be off in the last bit, depending on
            # where in the map a pixel is, so the limit goes between two of them.
            largest = self.largest / (k + _EPS)
            squared = int(largest**2)
            while float(np.sqrt(np.float32(squared))) <= largest:
                squared += 1
            limit = (squared - 0.5) ** 0.5
        allowed: NDArray[np.bool_] = self.distance > limit
        return allowed

    def pick(self, k: float, rng: np.random.Generator | None) -> tuple[int, int]:
        """Return row and column of the first candidate or, with a generator, of a random one."""
        allowed = self._allowed(k)
        if rng is None:
            place = int(allowed.argmax())
        else:
            places = np.flatnonzero(allowed)
            place = int(places[rng.integers(len(places))])
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
            1.0 (`EVALUATION_K`) in evaluation, 1.7 (`TRAINING_K`) in training; negative for
            anywhere in the region.
        rng: draws among the candidates; without it the first in row-major order is taken.
        ignore: (H, W) bool, pixels that count as no error.

    Returns:
        The click, or None when no error is left.

    Raises:
        InputError: maps that are not 2-D or not of one size, or k from 0 to below 1.
        MissingExtraError: OpenCV is not installed.
    """
    if 0 <= k < 1:
        raise InputError(f"k is {k}; give 1.0 or more, or a negative number for the whole region")
    masks = _errors(pred, target, clicks, ignore)
    outlooks = [_look(mask) for mask in masks]
    if not any(outlook.high for outlook in outlooks):
        return None
    # No pixel of either region matters that is surely nearer to its border than this.
    floor = max(outlook.low for outlook in outlooks)
    best, kind = _NOTHING, False
    # The more promising first: the other may then be unable to beat it.
    for positive in sorted((False, True), key=lambda kind: -outlooks[not kind].high):
        mask, outlook = masks[not positive], outlooks[not positive]
        # A tie clicks negative, so false positives win with the same distance.
        if outlook.high < floor or (positive and outlook.high <= best.largest):
            continue
        window = _window(outlook, floor / k if k > 0 else 0.0)
        if k > 0 and 1 <= best.largest < _FAR and window[2] * window[3] > _LARGE:
            squared = int(round(best.largest**2) / k**2) - (k > 1 or not positive)
            region = _rival(mask, window, max(squared, 0), outlook.high)
        else:
            region = _region(mask, window)
        if region.largest > best.largest or (not positive and region.largest == best.largest):
            best, kind = region, positive
        floor = max(floor, best.largest)
    return Click(*best.pick(k, rng), kind)


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


class _Outlook(NamedTuple):
    """What a quick look at a region tells.

    Attributes:
        box: the region's.
        low: a distance that some pixel has at least; 0.0 for an empty region.
        high: a distance that no pixel exceeds.
        cells: (h, w) float32, depth of each whole cell of the box, counted in cells; or None.
    """

    box: Box
    low: float
    high: float
    cells: NDArray[np.float32] | None


_CELL = 8
# A cell at depth D is D cells from the nearest one with a pixel outside of the region. Its middle
# pixels are then at least so much less than D cells from the border, and none so much farther.
_LESS = 4 * 2**0.5
_MORE = 7 * 2**0.5


def _look(mask: NDArray[np.uint8]) -> _Outlook:
    """Bound a region's largest distance through its box and cells of 8 x 8 pixels."""
    box = left, top, width, height = _box(mask)
    # Half the smaller side of the box bounds the distance.
    low, high = float(width > 0), float((min(width, height) + 1) // 2)
    rows, columns = height // _CELL, width // _CELL
    if not rows or not columns:
        return _Outlook(box, low, high, None)
    lines = mask[top : top + rows * _CELL, left : left + columns * _CELL]
    full = lines[::_CELL].copy()
    for row in range(1, _CELL):
        full &= lines[row::_CELL]
    whole = (full.view(np.uint64) == 0x0101010101010101).view(np.uint8)
    cells = _distance(whole)
    depth = float(cells.max())
    if depth:
        low = max(low, depth * _CELL - _LESS)
    return _Outlook(box, low, min(high, depth * _CELL + _MORE), cells)


def _window(outlook: _Outlook, floor: float) -> Box:
    """Return a box with all pixels at a distance of ``floor`` or more, and what surrounds them.

    Their distances within it are exact; others may come out too small.
    """
    left, top, width, height = outlook.box
    if outlook.cells is None or floor <= _MORE:
        return outlook.box
    deep = (outlook.cells * _CELL + _MORE >= floor).view(np.uint8)
    x, y, columns, rows = (side * _CELL for side in _box(deep))
    if not columns:
        return 0, 0, 0, 0
    margin = int(outlook.high) + 1
    x, right = max(x - margin, 0), min(x + columns + margin, width)
    y, bottom = max(y - margin, 0), min(y + rows + margin, height)
    return left + x, top + y, right - x, bottom - y


_LARGE = 1 << 20  # pixels: more are worth a look at where a region can beat the other
_FAR = 128  # pixels: erosion costs more the wider it is
_TILE = 64


def _rival(mask: NDArray[np.uint8], box: Box, squared: int, high: float) -> ErrorRegion:
    """Take distances only where their squares can exceed a limit; elsewhere they are 0.

    A disc of that radius then lies in the region, and so do rectangles in the disc: erosion by
    some of them leaves little to look at, for less than a distance transform of everything.
    """
    cv2 = _opencv()
    left, top, width, height = box
    padded = _padded(mask, box)
    found = padded.copy()
    for angle in (0.0, 0.5, 0.25, 0.125, 0.375):
        x = int(squared**0.5 * np.cos(angle * np.pi) + 1e-9)
        y = isqrt(squared - x * x)
        found &= cv2.erode(padded, np.ones((2 * y + 1, 2 * x + 1), np.uint8))
        if not cv2.hasNonZero(found):
            return _NOTHING
    tops, lefts = range(0, height, _TILE), range(0, width, _TILE)
    lines = np.bitwise_or.reduceat(found[1:-1, 1:-1], tops, axis=0)
    tiles = np.argwhere(np.bitwise_or.reduceat(lines, lefts, axis=1)) * _TILE
    if len(tiles) > len(tops) * len(lefts) // 8:
        return _region(mask, box)
    distance, largest, margin = np.zeros((height, width), np.float32), 0.0, int(high) + 1
    for y, x in tiles.tolist():
        y0, x0 = max(y - margin, 0), max(x - margin, 0)
        y1, x1 = min(y + _TILE + margin, height), min(x + _TILE + margin, width)
        near = _region(mask, (left + x0, top + y0, x1 - x0, y1 - y0)).distance
        here = near[y - y0 : y - y0 + _TILE, x - x0 : x - x0 + _TILE]
        distance[y : y + _TILE, x : x + _TILE] = here
        largest = max(largest, _root(float(here.max())))
    return ErrorRegion(distance, top, left, largest)


def _region(mask: NDArray[np.uint8], box: Box) -> ErrorRegion:
    """Take distances within a box, beyond which nothing of the region may lie."""
    left, top, width, height = box
    if not width:
        return _NOTHING
    distance = _distance(mask[top : top + height, left : left + width])
    return ErrorRegion(distance, top, left, _root(float(distance.max())))


def _root(distance: float) -> float:
    """Return a distance as the float32 nearest to it of the roots of integers."""
    return float(np.sqrt(np.float32(round(distance**2))))


def _distance(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return each pixel's exact distance to the nearest 0; beyond the map all is 0."""
    cv2 = _opencv()
    height, width = mask.shape
    padded = _padded(mask, (0, 0, width, height))
    found = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance: NDArray[np.float32] = found[1:-1, 1:-1]
    return distance


def _padded(mask: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Cut a box out, with a border of zeros."""
    left, top, width, height = box
    cv2 = _opencv()
    # A view's surroundings would be taken for the border but for BORDER_ISOLATED.
    kind = cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED
    part = mask[top : top + height, left : left + width]
    padded: NDArray[np.uint8] = cv2.copyMakeBorder(part, 1, 1, 1, 1, kind, value=0)
    return padded


_NOTHING = ErrorRegion(np.zeros((0, 0), np.float32), 0, 0, 0.0)
