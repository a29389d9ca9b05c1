"""Thinning a mask to lines of one pixel."""

import numpy as np
from numpy.typing import NDArray

from anyres.metrics.maps import opencv

# The eight neighbours (dy, dx) from above on, clockwise: P2 to P9 of the paper.
RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))

# Where the tables in use, scikit-image's among them, are not what the paper's conditions give: for
# both steps, the places in RING of all neighbours that are set. Ends of lines stay, and pixels in
# the corner of a diagonal line go.
STAYS = ("23 34 234 45 56 456 67", "01 12 012 34 07 67 067")
GOES = ("02 24 06 016 46 056 0156 027 467", "02 023 24 245 1245 06 46 346")


def skeleton(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Thin a mask (Zhang and Suen, CACM 1984, in the variant that scikit-image made the field's).

    Rounds of two steps each take away border pixels, all at once in a step, until none goes. A
    pixel is looked at again only when one of its neighbours went in the two steps before:
    otherwise the answer would be the same.

    Args:
        mask: (H, W) bool; what lies beyond the picture is 0.

    Returns:
        (H, W) bool.

    Raises:
        MissingExtraError: OpenCV is not installed.
    """
    cv2 = opencv()
    padded = np.pad(mask, 1).view(np.uint8)
    flat, stride = padded.ravel(), padded.shape[1]
    steps = np.array([dy * stride + dx for dy, dx in RING])
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8))
    border = np.flatnonzero(flat > inner.ravel())
    mark = np.zeros(flat.size, np.int32)
    tables = _removable()
    before, latest, turn = border, border, 0
    while len(before) or len(latest):
        places = _distinct(np.concatenate([before, latest]), mark)
        code = np.zeros(len(places), np.uint8)
        for bit, step in enumerate(steps):
            code |= flat[places + step] << bit
        gone = places[tables[turn][code]]
        flat[gone] = 0
        touched = (gone[:, None] + steps).ravel()
        before, latest = latest, touched[flat[touched] > 0]
        before = before[flat[before] > 0]
        turn = 1 - turn
    return padded[1:-1, 1:-1].view(np.bool_)


def _distinct(places: NDArray[np.intp], mark: NDArray[np.int32]) -> NDArray[np.intp]:
    """Drop repeated places; ``mark`` is scratch space."""
    order = np.arange(len(places), dtype=np.int32)
    mark[places] = order
    kept: NDArray[np.intp] = places[mark[places] == order]
    return kept


def _removable() -> NDArray[np.bool_]:
    """Tell for both steps and all 256 neighbourhoods (bit i: RING[i] is set) what may go."""
    ring = (np.arange(256)[:, None] >> np.arange(8)) & 1
    count = ring.sum(axis=1)
    rises = ((ring == 0) & (np.roll(ring, -1, axis=1) == 1)).sum(axis=1)
    north, east, south, west = ring[:, 0], ring[:, 2], ring[:, 4], ring[:, 6]
    common = (count >= 2) & (count <= 6) & (rises == 1)
    first = common & (north * east * south == 0) & (east * south * west == 0)
    second = common & (north * east * west == 0) & (north * south * west == 0)
    tables = np.stack([first, second])
    for exceptions, answer in ((STAYS, False), (GOES, True)):
        for table, codes in zip(tables, exceptions, strict=True):
            for code in codes.split():
                table[sum(1 << int(place) for place in code)] = answer
    return tables
