"""Maps of masks, and the objects in them.

A map is

- *binary*: 0 and 255, the white pixels are one object;
- *instance*: an id an object;
- *class*: an id a class, whose 8-connected components are the objects.

0 is "no object". In 8-bit instance and class maps 255 is void: it belongs to nobody and
counts for nothing. A 16-bit map has no void, 255 is an id like any other.

Published sets have binary maps of three more sorts, which people save in colour, too: each pixel
then counts with the largest of red, green and blue.

- *drawn*: whatever is not 0 is the object;
- *bright*: what is above 128 of 255 is the object, as saliency benchmarks have it;
- *trimap*: the same, and 128 itself is void.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anyres.data.images import read_mask
from anyres.errors import InputError, MissingExtraError

Kind = Literal["auto", "binary", "instance", "class"]
Meaning = Kind | Literal["drawn", "bright", "trimap"]

VOID = 255
_HALF = 128


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one map.

    Attributes:
        labels: (H, W) int32; 0 is no object, object ``i`` of ``ids`` has label ``i + 1``.
        ids: the value each object has in the file (of its class, for a class map).
        void: (H, W) bool, pixels that count for nothing, or None when there are none.
    """

    labels: NDArray[np.int32]
    ids: tuple[int, ...]
    void: NDArray[np.bool_] | None

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.ids)

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the (H, W) bool mask of object ``index``, counted from 0."""
        if not 0 <= index < len(self.ids):
            raise InputError(f"object {index} asked for, but the map has {len(self.ids)} objects")
        mask: NDArray[np.bool_] = self.labels == index + 1
        return mask

    def target(self, index: int) -> NDArray[np.uint8]:
        """Return object ``index`` as an (H, W) uint8 map: 1 object, 0 not, 255 void."""
        target = self.mask(index).astype(np.uint8)
        if self.void is not None:
            target[self.void] = VOID
        return target


def kind_of(array: NDArray[Any]) -> Literal["binary", "instance"]:
    """Tell what a map is from its values: only 0 and 255 is binary, all else instance."""
    if array.dtype == np.bool_:
        return "binary"
    if array.dtype != np.uint8:
        return "instance"
    # A map of nothing but void and background cannot be told from a binary one.
    return "binary" if bool(((array == 0) | (array == 255)).all()) else "instance"


def objects_of(array: NDArray[Any], kind: Kind = "auto") -> Objects:
    """Split a map into its objects.

    Args:
        array: (H, W) bool or integer map as stored.
        kind: what the map is; ``"auto"`` reads a map of only 0 and 255 as binary and any other
            as instance. A class map has to be named.

    Raises:
        InputError: an unknown kind, or an array that is not a 2-D map of ids.
        MissingExtraError: a class map without OpenCV.
    """
    if kind not in get_args(Kind):
        raise InputError(f"map kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise InputError(
            f"a map is a 2-D array of integers, got shape {array.shape} of {array.dtype}"
        )
    if kind == "auto":
        kind = kind_of(array)
    if kind == "binary":
        # Any value counts: other tools write 1 for the object.
        labels = (array != 0).astype(np.int32)
        return Objects(labels, (int(array.max()),) if labels.any() else (), None)
    void = array == VOID if array.dtype == np.uint8 else np.zeros(0, np.bool_)
    stored = np.where(void, 0, array) if void.any() else array
    values = [value for value in _values(stored) if value != 0]
    labels, ids = _components(stored, values) if kind == "class" else _ordered(stored, values)
    return Objects(labels, ids, void if void.any() else None)


_SMALL = 1 << 16  # ids up to here are looked up in tables, which is much faster than sorting


def _values(array: NDArray[Any]) -> list[int]:
    """List the values of a map in order."""
    if array.dtype.itemsize <= 2 and array.dtype.kind == "u":
        return np.flatnonzero(np.bincount(array.ravel())).tolist()
    return [int(value) for value in np.unique(array)]


def _ordered(array: NDArray[Any], values: list[int]) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Number the ids of an instance map 1, 2, ... in the order of their values."""
    if values and (values[-1] > _SMALL or values[0] < 0):
        labels = np.searchsorted(np.array(values), array).astype(np.int32) + 1
        labels[array == 0] = 0
        return labels, tuple(values)
    table = np.zeros(values[-1] + 1 if values else 1, np.int32)
    table[values] = np.arange(1, len(values) + 1)
    return table[array], tuple(values)


def _components(
    array: NDArray[Any], values: list[int]
) -> tuple[NDArray[np.int32], tuple[int, ...]]:
    """Number the 8-connected components of each class of a class map."""
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "class maps need OpenCV to find their connected components; "
            'install it with: pip install "anyres[eval]"'
        ) from error
    labels = np.zeros(array.shape, np.int32)
    ids: list[int] = []
    for value in values:
        mask = (array == value).astype(np.uint8)
        count, parts = cv2.connectedComponents(mask, connectivity=8)
        labels = np.where(parts > 0, parts + len(ids), labels).astype(np.int32)
        ids += [value] * (count - 1)
    return labels, tuple(ids)


def read_objects(
    path: Path, meaning: Meaning = "auto", size_hw: tuple[int, int] | None = None
) -> Objects:
    """Read a map and split it into its objects.

    Args:
        path: the file.
        meaning: what its values are.
        size_hw: the (height, width) it must have, that of its picture.

    Raises:
        ImageError: it cannot be read or is of another size.
        MissingExtraError: a class map without OpenCV.
    """
    if meaning != "drawn" and meaning != "bright" and meaning != "trimap":
        return objects_of(read_mask(path, size_hw=size_hw), meaning)
    array = read_mask(path, size_hw=size_hw, brightest=True)
    unit = 257 if array.dtype == np.uint16 else 1
    labels = (array > (0 if meaning == "drawn" else _HALF * unit)).astype(np.int32)
    void = array == _HALF * unit if meaning == "trimap" else np.zeros(0, np.bool_)
    return Objects(labels, (VOID,) if labels.any() else (), void if void.any() else None)
