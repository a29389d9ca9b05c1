"""Pictures and objects of the training sets, decoded once and kept."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import CutOut, opencv
from anyres.data.images import read_image
from anyres.data.layouts.folder import Entry
from anyres.errors import InputError
from anyres.train.sources import LabelMap, Source, label_map


class Cache:
    """Decoded pictures and label maps, up to a number of bytes; the oldest go first.

    Pictures longer than ``long_side`` pixels are shrunk to that.
    """

    def __init__(self, limit: int, long_side: int = 1000) -> None:
        """Start empty."""
        self.limit = limit
        self.long_side = long_side
        self._used = 0
        self._sizes: dict[Path, tuple[int, ...]] = {}
        self._kept: OrderedDict[tuple[Path, int], tuple[Any, int]] = OrderedDict()

    def picture(self, entry: Entry) -> NDArray[np.uint8]:
        """Return a picture, (H, W, 3) uint8, at most ``long_side`` long."""
        key = (entry.image, -1)
        if key not in self._kept:
            cv2 = opencv()
            image = read_image(entry.image)
            height, width = self._sizes[entry.image] = image.shape[:2]
            if max(height, width) > self.long_side:
                scale = self.long_side / max(height, width)
                size = (max(1, round(width * scale)), max(1, round(height * scale)))
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            self._keep(key, image, image.nbytes)
        kept: NDArray[np.uint8] = self._kept[key][0]
        return kept

    def labels(self, source: Source, entry: Entry, number: int) -> LabelMap:
        """Return map ``number`` of a picture at the size the picture is kept at.

        Raises:
            InputError: a map of another size than its picture.
        """
        key = (entry.image, number)
        if key not in self._kept:
            height, width = self.picture(entry).shape[:2]
            stored = source.stored(entry, number)
            if stored.shape != self._sizes[entry.image]:
                raise InputError(
                    f"the map {entry.maps[number]} is {stored.shape}, its picture "
                    f"{self._sizes[entry.image]} (height, width); they must be of one size"
                )
            found = label_map(stored, source.rule, (height, width))
            self._keep(key, found, found.labels.nbytes)
        kept: LabelMap = self._kept[key][0]
        return kept

    def _keep(self, key: tuple[Path, int], value: Any, size: int) -> None:
        """Take something in and drop the oldest while there is too much."""
        self._kept[key] = (value, size)
        self._used += size
        while self._used > self.limit and len(self._kept) > 1:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._used -= dropped


def cut_out(image: NDArray[np.uint8], found: LabelMap, chosen: tuple[int, ...]) -> CutOut:
    """Cut a union of labels out of its picture, with a margin of 6 pixels."""
    x0, y0, x1, y1 = (int(v) for v in found.box(chosen))
    height, width = image.shape[:2]
    touches = (x0 <= 1, y0 <= 1, x1 >= width - 1, y1 >= height - 1)
    window = (slice(max(0, y0 - 6), y1 + 6), slice(max(0, x0 - 6), x1 + 6))
    mask = found.select(chosen, window) // np.uint8(255)
    return CutOut(image[window], mask, touches)
