"""Which files of a data set belong together. Nothing is decoded here."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anyres.data.layouts.folder import IMAGE_SUFFIXES, list_entries
from anyres.data.layouts.published import LAYOUTS, Part
from anyres.data.scene_notes import LABEL, is_composed
from anyres.errors import InputError

FOLDER = "folder"
_JPEG = (".jpg", ".jpeg")


@dataclass(frozen=True)
class Problem:
    """A picture or mask that cannot be used; the rest of the data set can.

    Attributes:
        set: the part it belongs to.
        path: the file or folder.
        reason: what is wrong with it.
    """

    set: str
    path: Path
    reason: str

    def __str__(self) -> str:
        """Return it as a line for people."""
        return f"{self.set}: {self.path}: {self.reason}"


@dataclass(frozen=True)
class Place:
    """A part of a data set that is there.

    Attributes:
        part: its description.
        images: the folder of its pictures.
        masks: the folder of its masks, or a JSON file of annotations.
        prefix: what the keys of its objects begin with.
    """

    part: Part
    images: Path
    masks: Path
    prefix: str

    @property
    def annotated(self) -> bool:
        """Tell whether its objects are in a JSON file."""
        return self.masks.suffix == ".json"


@dataclass(frozen=True)
class Pair:
    """A picture and its maps, at least one; ``name`` is unique in its place."""

    name: str
    image: Path
    maps: tuple[Path, ...]


def find_places(
    root: Path, layout: str, part: str | None
) -> tuple[str, list[Place], list[Problem]]:
    """Find the parts of a data set.

    Args:
        root: its folder, or the one above it.
        layout: ``folder``, or a key of ``LAYOUTS``.
        part: the name of the part that is meant; None for those that papers score.

    Returns:
        The data set's name, its parts, and those that are missing.

    Raises:
        InputError: no such folder, layout or part, or nothing of it there.
    """
    if not root.is_dir():
        raise InputError(f"the data set {root} is no folder; check the path")
    if layout == FOLDER:
        name, places = root.resolve().name, list(_plain(root))
        return name, _of_name(places, part, root), []
    if layout not in LAYOUTS:
        known = ", ".join((FOLDER, *LAYOUTS))
        raise InputError(f"there is no layout {layout!r}; there are {known}")
    described = LAYOUTS[layout]
    several = len(described.parts) > 1
    places, missing = [], []
    for each in described.parts:
        prefix = f"{layout}/{each.name}" if several else layout
        place = _first(root, described.inside, each, prefix)
        if place is not None:
            places.append(place)
        elif part is None and each.name in described.default:
            missing.append(Problem(each.name, root / each.places[0][0], "is not there"))
    if part is None:
        wanted = [place for place in places if place.part.name in described.default]
        if not wanted:
            there = ", ".join(place.part.name for place in places)
            expected = " and ".join(described.parts[-1].places[0])
            raise InputError(
                f"{root} has no {' or '.join(described.default)}; "
                + (f"name one of the parts that are there: {there}" if there else "")
                + ("" if there else f"layout {layout} has folders such as {expected}")
            )
        return layout, wanted, missing
    return layout, _of_name(places, part, root), missing


def _plain(root: Path) -> Iterator[Place]:
    """A plain folder, or each of those in a folder."""
    folders = [root] if (root / "images").is_dir() else sorted(p for p in root.iterdir())
    found = [folder for folder in folders if (folder / "images").is_dir()]
    if not found:
        raise InputError(
            f"{root} has no folder images/; a data set has images/ and masks/, "
            "published ones need their layout's name"
        )
    for folder in found:
        name = folder.resolve().name
        prefix = name if folder == root else f"{root.resolve().name}/{name}"
        # In the name, as that is what every table, report and plot shows.
        part = Part(name + LABEL if is_composed(folder) else name, (("images", "masks"),), "auto")
        yield Place(part, folder / "images", folder / "masks", prefix)


def _of_name(places: list[Place], part: str | None, root: Path) -> list[Place]:
    if part is None:
        return places
    asked = part.lower().removesuffix(LABEL)
    wanted = [place for place in places if place.part.name.lower().removesuffix(LABEL) == asked]
    if not wanted:
        there = ", ".join(place.part.name for place in places) or "none that is known"
        raise InputError(f"{root} has no part {part!r}; it has {there}")
    return wanted


def _first(root: Path, inside: tuple[str, ...], part: Part, prefix: str) -> Place | None:
    for base in (root, *(root / name for name in inside)):
        for images, masks in part.places:
            if (base / images).is_dir() and (base / masks).exists():
                return Place(part, base / images, base / masks, prefix)
    return None


def pairs_of(place: Place) -> tuple[list[Pair], list[Problem]]:
    """List the pictures of a part with their masks, by name, and what has no counterpart.

    Names that begin with a dot are no pictures.
    """
    part = place.part
    if part.meaning in ("drawn", "bright", "trimap"):
        matched, used = _published(place)
    else:
        matched = {entry.image: entry.maps for entry in list_entries(place.images.parent)}
        used = {path for maps in matched.values() for path in maps}
    matched = {path: maps for path, maps in matched.items() if not path.name.startswith(".")}
    problems = [
        Problem(part.name, path, "has no mask") for path, maps in matched.items() if not maps
    ]
    if place.images != place.masks and place.masks.is_dir() and not part.without:
        problems += [
            Problem(part.name, path, _unused(part, path))
            for path in sorted(place.masks.iterdir())
            if path not in used
            and path.suffix.lower() in IMAGE_SUFFIXES
            and not path.name.startswith(".")
        ]
    stems = Counter(path.stem for path in matched)
    pairs = [
        Pair(path.stem if stems[path.stem] == 1 else path.name, path, maps)
        for path, maps in matched.items()
        if maps
    ]
    return pairs, problems


def _unused(part: Part, path: Path) -> str:
    plain = part.meaning not in ("drawn", "bright", "trimap")
    if plain and path.suffix.lower() != ".png":
        return "is no PNG file, as the masks of a plain folder are"
    return "is a mask without a picture"


def _published(place: Place) -> tuple[dict[Path, tuple[Path, ...]], set[Path]]:
    part = place.part
    mixed = place.images == place.masks
    images = sorted(
        path
        for path in place.images.iterdir()
        if path.suffix.lower() in (_JPEG if mixed else IMAGE_SUFFIXES)
        and not (part.without and path.name.startswith(part.without))
    )
    masks: dict[str, list[Path]] = {}
    for path in sorted(place.masks.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not (mixed and path.suffix.lower() in _JPEG):
            for stem in {path.stem, re.sub(r"#\d+$", "", path.stem)}:
                masks.setdefault(stem, []).append(path)
    matched = {image: tuple(masks.get(image.stem + part.ending, ())) for image in images}
    return matched, {path for maps in matched.values() for path in maps}
