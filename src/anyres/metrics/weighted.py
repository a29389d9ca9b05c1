"""The weighted F-measure of Margolin et al. 2014, "How to evaluate foreground maps?"."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.metrics.maps import blocks, opencv

EPS = float(np.spacing(1))
WINDOW = 7
SIGMA = 5.0
FADING = float(np.log(0.5) / 5)  # errors weigh less near the object, half-way at 5 pixels


def weighted_f(
    pred: NDArray[np.floating[Any]], wanted: NDArray[np.bool_], void: NDArray[np.bool_] | None
) -> float:
    """Return the weighted F-measure with beta 1.

    Args:
        pred: (H, W) from 0 to 1.
        wanted: (H, W) bool, the object.
        void: (H, W) bool, where nothing is wrong whatever was predicted; or None.

    Returns:
        A number up to 1; 0 when there is no object.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = opencv()
    area = int(np.count_nonzero(wanted))
    if not area:
        return 0.0
    truth = wanted.view(np.uint8)
    error = pred.astype(np.float32)
    # In place: |prediction - truth|.
    np.subtract(1, error, out=error, where=wanted)
    if void is not None:
        error[void] = 0
    missing = _dependent(error, wanted)
    outside = 1 - truth
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    false = 0.0
    for rows in blocks(error.shape):
        worth = error[rows] * (2 - np.exp(FADING * distance[rows]))
        worth[wanted[rows]] = 0
        false += float(worth.sum(dtype=np.float64))
    right = area - missing
    recall = 1 - missing / area
    precision = right / (right + false + EPS)
    return 2 * recall * precision / (recall + precision + EPS)


def _dependent(error: NDArray[np.float32], wanted: NDArray[np.bool_]) -> float:
    """Sum the object's errors, each lessened where those around it are smaller.

    "Around" is a 7 x 7 Gaussian window, in which pixels outside of the object have the error
    of the object's pixel nearest to them.
    """
    cv2 = opencv()
    left, top, width, height = cv2.boundingRect(wanted.view(np.uint8))
    margin = WINDOW // 2
    rows = slice(max(top - margin, 0), top + height + margin)
    columns = slice(max(left - margin, 0), left + width + margin)
    inside = np.ascontiguousarray(wanted[rows, columns])
    spread = _extended(error[rows, columns], inside)
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA, cv2.CV_32F)
    around = cv2.sepFilter2D(spread, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    lesser = np.minimum(around, error[rows, columns])
    return float(lesser.sum(where=inside, dtype=np.float64))


def _extended(error: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give pixels near the object the error of the object's nearest pixel.

    Among equally near ones the leftmost, then the topmost is taken, as by scipy's
    ``distance_transform_edt``: it changes the result, so it has to be the field's.
    """
    cv2 = opencv()
    margin = WINDOW // 2
    box = np.ones((WINDOW, WINDOW), np.uint8)
    near = cv2.dilate(inside.view(np.uint8), box).view(np.bool_) & ~inside
    width = 2 * margin  # so that no step leaves the padded map
    known, values = np.pad(inside, width).ravel(), np.pad(error, width).ravel()
    extended, stride = values.copy(), error.shape[1] + 2 * width
    places = np.flatnonzero(np.pad(near, width))
    # A pixel in the corner of a window is at most so far from the object's pixel in its middle.
    for dy, dx in _nearest_first(2 * margin**2):
        there = places + (dy * stride + dx)
        hit = known[there]
        extended[places[hit]] = values[there[hit]]
        places = places[~hit]
        if not len(places):
            break
    return extended.reshape(-1, stride)[width:-width, width:-width]


def _nearest_first(limit: int) -> list[tuple[int, int]]:
    """List the steps (dy, dx) of at most a squared length, shortest, leftmost, topmost first."""
    reach = range(-int(limit**0.5), int(limit**0.5) + 1)
    steps = [(dy * dy + dx * dx, dx, dy) for dy in reach for dx in reach]
    return [(dy, dx) for length, dx, dy in sorted(steps) if 0 < length <= limit]
