"""Plain folder data sets: ``images/`` and ``masks/``.

A map of a picture is ``masks/<stem>.png`` or ``masks/<stem>__<anything>.png``; a picture may have
several. What maps are: ``anyres.data.maps``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anyres.data.images import read_image, read_mask
from anyres.data.maps import Kind, Objects, objects_of
from anyres.errors import InputError

_SUFFIXES = "jpg jpeg png tif tiff webp bmp gif jp2 avif ppm pgm"
IMAGE_SUFFIXES = tuple(f".{name}" for name in _SUFFIXES.split())


@dataclass(frozen=True)
class Entry:
    """One picture of a data set and its maps, in the order of their names."""

    image: Path
    maps: tuple[Path, ...]


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
