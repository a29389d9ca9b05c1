"""Plain folder data sets: pictures, maps of masks, and the objects in them.

A data set is a folder of ``images/`` and ``masks/``. A map of a picture is
``masks/<stem>.png`` or ``masks/<stem>__<anything>.png``; a picture may have several. A map is

- *binary*: 0 and 255, the white pixels are one object;
- *instance*: an id an object;
- *class*: an id a class, whose 8-connected components are the objects.

0 is "no object". In 8-bit instance and class maps 255 is void: it belongs to nobody and
counts for nothing. A 16-bit map has no void, 255 is an id like any other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anyres.data.images import read_image, read_mask
from anyres.errors import InputError, MissingExtraError

Kind = Literal["auto", "binary", "instance", "class"]

VOID = 255
_SUFFIXES = "jpg jpeg png tif tiff webp bmp gif jp2 avif ppm pgm"
IMAGE_SUFFIXES = tuple(f".{name}" for name in _SUFFIXES.split())


@dataclass(frozen=True)
class Entry:
    """One picture of a data set and its maps, in the order of their names."""

    image: Path
    maps: tuple[Path, ...]


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


class FolderDataset:
    """The pictures under ``root/images`` that have at least one map under ``root/masks``."""

    def __init__(self, root: Path | str, *, kind: Kind = "auto") -> None:
        """List the pictures and their maps; nothing is decoded yet.

        Args:
            root: folder that holds ``images/`` and ``masks/``.
            kind: what the maps are, see `objects_of`.

        Raises:
            InputError: a folder that is missing, or no picture with a map in it.
        """
        self.root = Path(root)
        self.kind: Kind = kind
        if not (self.root / "images").is_dir():
            raise InputError(
                f"{self.root} has no folder images/; a data set has images/ and masks/"
            )
        self.entries = tuple(entry for entry in list_entries(self.root) if entry.maps)
        if not self.entries:
            raise InputError(f"no picture of {self.root}/images has a map <stem>.png in masks/")

    def __len__(self) -> int:
        """Count the pictures."""
        return len(self.entries)

    def __getitem__(self, index: int) -> Entry:
        """Return the paths of picture ``index``."""
        return self.entries[index]

    def __iter__(self) -> Iterator[Entry]:
        """Go through the pictures in the order of their names."""
        return iter(self.entries)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """Read picture ``index`` as (H, W, 3) uint8 RGB."""
        return read_image(self.entries[index].image)

    def objects(self, index: int, number: int = 0) -> Objects:
        """Read map ``number`` of picture ``index`` as objects."""
        path = self.entries[index].maps[number]
        return objects_of(read_mask(path), self.kind)


def list_entries(root: Path) -> list[Entry]:
    """List the pictures of ``root/images`` with their maps (perhaps none), by name."""
    maps: dict[str, list[Path]] = {}
    folder = root / "masks"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() == ".png":
            maps.setdefault(path.stem, []).append(path)
    owners: dict[str, list[Path]] = {}
    images = sorted(p for p in (root / "images").iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    stems = {path.stem for path in images}
    for stem, paths in maps.items():
        owner = _owner(stem, stems)
        if owner is not None:
            owners.setdefault(owner, []).extend(paths)
    return [Entry(path, tuple(owners.get(path.stem, []))) for path in images]


def _owner(stem: str, stems: set[str]) -> str | None:
    """Find the picture a map's stem belongs to; picture names may hold ``__`` themselves."""
    if stem in stems:
        return stem
    cut = stem.rfind("__")
    while cut > 0:
        if stem[:cut] in stems:
            return stem[:cut]
        cut = stem.rfind("__", 0, cut)
    return None
