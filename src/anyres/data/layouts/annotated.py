"""Parts of data sets whose objects are in one JSON file, in COCO's format."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.data.formats.annotations import coding, unpack
from anyres.data.formats.coco import grouped, image_size, packed_of
from anyres.data.formats.fields import at, get, read_json
from anyres.data.layouts.index import Found
from anyres.data.layouts.listing import Pair, Place
from anyres.errors import InputError


class Annotations:
    """The annotations of a part, by picture.

    Attributes:
        pairs: the pictures in the order of their names, each with the JSON file for a map.
    """

    def __init__(self, place: Place) -> None:
        """Read the JSON file; crowds are left out.

        Raises:
            InputError: it cannot be read or is damaged; the message says where.
        """
        self._file = place.masks
        groups = grouped(read_json(place.masks), place.masks)
        stems = Counter(Path(image["file_name"]).stem for image, _ in groups)
        self._groups = {}
        pairs = []
        for group in groups:
            path = Path(group[0]["file_name"])
            name = path.stem if stems[path.stem] == 1 else path.as_posix()
            self._groups[name] = group
            pairs.append(Pair(name, place.images / path, (place.masks,)))
        self.pairs = sorted(pairs, key=lambda pair: pair.name)
        self._names = {pair.image: pair.name for pair in pairs}
        self._shapes: dict[int, Any] = {
            number: fields.get("segmentation")
            for _, annotations in groups
            for number, fields, _ in annotations
        }

    def find(self, pair: Pair, size_hw: tuple[int, int]) -> tuple[list[Found], str]:
        """Find the objects of a picture, and a checksum of their annotations.

        Raises:
            InputError: a damaged annotation, or a picture of another size than theirs.
            MissingExtraError: pycocotools is not installed.
        """
        image, annotations = self._groups[pair.name]
        stored = image_size(image, self._file)
        if stored != size_hw:
            raise InputError(
                f"{pair.image} is {size_hw[1]}x{size_hw[0]}, its annotations are for "
                f"{stored[1]}x{stored[0]} (width x height)"
            )
        found = []
        for number, fields, category in annotations:
            with at(f"{self._file}, annotation {number}"):
                packed = packed_of(get(fields, "segmentation", list, dict), size_hw)
            found.append(Found(0, number, int(coding().area(packed)), category))
        content = json.dumps([fields for _, fields, _ in annotations])
        return found, hashlib.sha256(content.encode()).hexdigest()

    def labels(self, image: Path) -> NDArray[np.int32]:
        """Return the objects of a picture as an (H, W) map of ids from 1; 0 is none.

        Where objects overlap, a pixel belongs to the smallest of them.

        Args:
            image: the file of one of the ``pairs``.

        Raises:
            InputError: a damaged annotation.
            MissingExtraError: pycocotools is not installed.
        """
        fields, annotations = self._groups[self._names[image]]
        size_hw = image_size(fields, self._file)
        masks = [self.mask(number, size_hw) for number, _, _ in annotations]
        labels = np.zeros(size_hw, np.int32)
        for number, mask in enumerate(sorted(masks, key=np.count_nonzero, reverse=True), 1):
            labels[mask] = number
        return labels

    def mask(self, number: int, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the (H, W) bool mask of an annotation."""
        with at(f"{self._file}, annotation {number}"):
            return unpack(packed_of(self._shapes[number], size_hw))
