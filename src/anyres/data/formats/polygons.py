"""Masks as polygons and back, exactly.

Coordinates are XY from the picture's top left corner, so that pixel (0, 0) is the square from
(0, 0) to (1, 1). ``outline`` goes along the pixels' sides: its corners are whole numbers. ``fill``
takes the pixels whose centres lie inside, by the even-odd rule. One undoes the other.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import MissingExtraError

Ring = NDArray[Any]  # (N, 2) XY, not closed: the last corner is joined with the first
Polygon = list[Ring]  # the outer ring, then those of its holes


def outline(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Find the outlines of a mask.

    Pixels that touch at a corner only are apart. Rings can touch themselves at corners, but never
    cross. Outer rings have the object to their right, clockwise as seen on a screen; holes turn the
    other way.

    Args:
        mask: (H, W) bool.

    Returns:
        One polygon for each 4-connected part, in the order of their topmost pixels, of (N, 2) int64
        rings.

    Raises:
        MissingExtraError: several parts with holes, without OpenCV.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    starts, ends, following = _sides(part)
    rings = _rings(following)
    # The first side of a ring is its topmost: of an outer one it runs to the right.
    outer = [ring for ring in rings if ends[ring[0], 0] > starts[ring[0], 0]]
    holes = [ring for ring in rings if ends[ring[0], 0] < starts[ring[0], 0]]
    offset = np.array([left, top])

    def corners(ring: list[int]) -> Ring:
        both = np.stack([starts[ring], ends[ring]], axis=1).reshape(-1, 2)
        return np.asarray(both + offset)

    polygons = [[corners(ring)] for ring in outer]
    if holes and len(outer) > 1:
        labels = _labelled(part)
        owners = {int(labels[starts[r[0], 1], starts[r[0], 0]]): i for i, r in enumerate(outer)}
        for ring in holes:
            x, y = starts[ring[0]]
            polygons[owners[int(labels[y - 1, x - 1])]].append(corners(ring))
    else:
        for ring in holes:
            polygons[0].append(corners(ring))
    return polygons


def _sides(
    mask: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Find the horizontal sides of the outlines, each with the object to its right.

    An outline turns by 90 degrees at each of its corners, so along a row the corners are joined two
    by two, and along a column, too. Where two pixels touch at a corner only, there are two corners
    at one place.

    Returns:
        Starts (N, 2) XY and ends (N, 2) of the sides, by rows, and (N,) which side comes next.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.bool_)
    padded[1:-1, 1:-1] = mask
    across = padded[:, :-1] ^ padded[:, 1:]
    upper, lower = across[:-1], across[1:]
    crossing = upper & lower & (padded[:-1, :-1] ^ padded[1:, :-1])
    y, x = np.divmod(np.flatnonzero((upper ^ lower) | crossing), width + 1)
    count = crossing[y, x] + 1
    y, x, double = np.repeat(y, count), np.repeat(x, count), np.repeat(count, count) == 2
    second = np.zeros(len(y), np.bool_)
    second[1:] = double[1:] & (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    # Of two corners at one place the first ends a side on the left, the second begins one on the
    # right. Which of them goes on upwards depends on which two of the pixels are the object's.
    downwards = double & (second == padded[y, x])
    order = np.lexsort((downwards, y, x))
    joined = np.empty(len(y), np.int64)
    joined[order[0::2]], joined[order[1::2]] = order[1::2], order[0::2]
    left, right = np.arange(0, len(y), 2), np.arange(1, len(y), 2)
    below = padded[y[left] + 1, x[left] + 1]  # the object is below: the side runs to the right
    points = np.stack([x, y], axis=1)
    start, end = np.where(below, left, right), np.where(below, right, left)
    return points[start], points[end], joined[end] // 2


def _rings(following: NDArray[np.int64]) -> list[list[int]]:
    """Go along the sides until each has been passed; every ring begins with its first side."""
    after = following.tolist()
    passed = bytearray(len(after))
    rings = []
    for first in range(len(after)):
        if passed[first]:
            continue
        ring, side = [], first
        while not passed[side]:
            passed[side] = 1
            ring.append(side)
            side = after[side]
        rings.append(ring)
    return rings


def opencv() -> Any:
    """Import OpenCV.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            'outlines need OpenCV; install it with: pip install "anyres[eval]"'
        ) from error
    return cv2


def _labelled(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number the 4-connected parts of a mask."""
    _, labels = opencv().connectedComponents(mask.view(np.uint8), connectivity=4)
    return np.asarray(labels, np.int32)


def fill(rings: Sequence[Ring], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Take the pixels whose centres lie inside rings, by the even-odd rule.

    A centre on a border is inside if the object is to its right, or below where the border is
    level: two polygons with a common border share no pixel and leave none out.

    Args:
        rings: each (N, 2) XY, N at least 1; they may leave the picture.
        size_hw: (height, width) of the picture.

    Returns:
        (H, W) bool.
    """
    return fill_all([list(rings)], size_hw)


def fill_all(polygons: Sequence[Polygon], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons, each by the even-odd rule over its rings, and unite them."""
    mask = np.zeros(size_hw, np.bool_)
    for polygon in polygons:
        _paint(mask, polygon)
    return mask


def _paint(mask: NDArray[np.bool_], rings: Sequence[Ring]) -> None:
    """Add the inside of rings to a mask; only their surroundings are touched."""
    height, width = mask.shape
    x0, y0, x1, y1 = _edges(rings)
    # The rows whose centre lies between the ends of an edge.
    first = np.ceil(y0 - 0.5).clip(0, height).astype(np.int64)
    last = np.ceil(y1 - 0.5).clip(0, height).astype(np.int64)
    count = last - first
    if not count.any():
        return
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (x1 - x0) / (y1 - y0)
    x = x0[edge] + (row + 0.5 - y0[edge]) * slope[edge]
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    places, times = np.unique(row * (width + 1) + column, return_counts=True)
    row, column = np.divmod(places[times % 2 == 1], width + 1)
    if not len(row):
        return
    top, bottom, left = row[0], row[-1] + 1, column.min()
    turns = np.zeros((bottom - top, int(column.max()) - left + 1), np.uint8)
    turns[row - top, column - left] = 1
    inside = np.bitwise_xor.accumulate(turns, axis=1)[:, :-1].view(np.bool_)
    mask[top:bottom, left : left + inside.shape[1]] |= inside


def _edges(rings: Sequence[Ring]) -> tuple[NDArray[np.float64], ...]:
    """All edges of all rings: x0, y0, x1, y1, each (N,), with y0 <= y1.

    An edge that is gone along twice is so computed alike, whichever way it goes.
    """
    starts = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings]
    ends = [np.roll(ring, -1, axis=0) for ring in starts]
    if not starts:
        return (np.zeros(0),) * 4
    start, end = np.concatenate(starts), np.concatenate(ends)
    up = start[:, 1] > end[:, 1]
    start[up], end[up] = end[up], start[up]
    return start[:, 0], start[:, 1], end[:, 0], end[:, 1]
