"""Data sets to score models on: which objects there are, their pictures and their masks.

Plain folders and published layouts look alike: ``open_dataset`` gives the objects in order,
``picture`` and ``target`` read what is asked for.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anyres.data.images import read_image
from anyres.data.layouts.annotated import Annotations
from anyres.data.layouts.index import Found, Indexed, Reader, index, read_maps
from anyres.data.layouts.listing import FOLDER, Pair, Place, Problem, find_places, pairs_of
from anyres.data.layouts.published import LAYOUTS, SYNONYMS
from anyres.data.maps import VOID, Kind, Meaning, Objects, read_objects
from anyres.data.scene_notes import LABEL, source_checksums
from anyres.errors import InputError
from anyres.files import sha256_file

VoidRule = Literal["background", "ignore"]

SMALLEST, LARGEST = 0.002, 0.95
_DIGITS = 16
_PATIENCE = 2.0  # seconds until progress is told


@dataclass(frozen=True)
class ObjectRef:
    """One object of a data set.

    Attributes:
        key: its name, unique in the data set and the same wherever that lies:
            ``<data set>[/<part>]/<picture>/<number>``.
        set: the part of the data set that it belongs to.
        image: the file of its picture.
        number: its place among the objects of its picture, those too small or large included.
        area: its pixels.
        size_hw: (height, width) of the picture.
        category: the name of its class, if that is known.
    """

    key: str
    set: str
    image: Path
    number: int
    area: int
    size_hw: tuple[int, int]
    category: str | None
    _source: Path = field(repr=False)
    _label: int = field(repr=False)
    _meaning: Meaning = field(repr=False)


class Dataset:
    """The objects of a data set; ``open_dataset`` makes one.

    Attributes:
        name: the folder's name, or the layout's.
        objects: in the order of their pictures' names; those of a picture are neighbours.
        problems: pictures and masks that cannot be used.
        fingerprint: SHA-256 over what the files hold, the keys of the objects that are counted, and
            the rule for void: a copy elsewhere has the same one.
        pictures: part -> the checksums of its pictures, as ``picture_checksum`` gives them, and of
            those that composed scenes are made of.
    """

    def __init__(
        self,
        name: str,
        objects: tuple[ObjectRef, ...],
        problems: tuple[Problem, ...],
        fingerprint: str,
        void: VoidRule,
        annotations: Mapping[Path, Annotations],
        pictures: Mapping[str, Set[str]],
    ) -> None:
        self.name = name
        self.objects = objects
        self.pictures = pictures
        self.problems = problems
        self.fingerprint = fingerprint
        self._void = void
        self._annotations = annotations
        self._last: tuple[Path, Objects] | None = None

    def __len__(self) -> int:
        """Count the objects."""
        return len(self.objects)

    @property
    def sets(self) -> tuple[str, ...]:
        """The parts that the objects belong to, in order."""
        return tuple(dict.fromkeys(ref.set for ref in self.objects))

    def picture(self, ref: ObjectRef) -> NDArray[np.uint8]:
        """Read an object's picture as (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be read any more.
        """
        return read_image(ref.image)

    def target(self, ref: ObjectRef) -> NDArray[np.uint8]:
        """Read an object's mask as (H, W) uint8: 1 object, 0 not, 255 void.

        Void is 0 under the rule ``background``.

        Raises:
            InputError: it cannot be read any more, or the file has changed.
        """
        void = None
        if ref._source in self._annotations:
            mask = self._annotations[ref._source].mask(ref._label, ref.size_hw)
        else:
            objects = self._map(ref)
            mask = objects.mask(ref._label) if ref._label < len(objects) else np.zeros(0, np.bool_)
            void = objects.void
        if np.count_nonzero(mask) != ref.area:
            raise InputError(
                f"{ref._source} has changed: {ref.key} is another object now; "
                "open the data set anew"
            )
        target = mask.astype(np.uint8)
        if void is not None and self._void == "ignore":
            target[void] = VOID
        return target

    def _map(self, ref: ObjectRef) -> Objects:
        """Read a map. The last one is kept: objects of one map are asked for one by one."""
        last = self._last
        if last is None or last[0] != ref._source:
            last = ref._source, read_objects(ref._source, ref._meaning, ref.size_hw)
            self._last = last
        return last[1]


def open_dataset(
    path: Path | str,
    *,
    layout: str = FOLDER,
    kind: Kind = "auto",
    part: str | None = None,
    smallest: float | None = None,
    largest: float | None = None,
    void: VoidRule = "background",
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Open a data set: find its files, read each once (or look it up), choose the objects.

    What is found is kept in the cache folder; only files that have changed since are read again.

    Args:
        path: the folder. A plain one has ``images/`` and ``masks/``, or folders that have.
        layout: ``folder`` for a plain one, or a published layout: ``hqseg44k``, ``davis``,
            ``grabcut``, ``dis5k``, ``duts``, ``cod10k``, ``isic``, ``coco``.
        kind: what the maps of a plain folder are, see ``anyres.data.maps``.
        part: the name of one part; None for all parts of a plain folder and those parts of a
            published set that papers score.
        smallest: objects below this share of the picture are left out. None is 0.002, and 0 in
            published sets whose papers score every object (all but ``coco``).
        largest: objects above this share are left out. None is 0.95, and 1 in those sets.
        void: pixels that belong to nobody are ``background``, as in papers, or ``ignore``.
        strict: whether a missing or damaged file is an error. Else it is one of the ``problems``.
        on_progress: is told (pictures read, of how many to read in this part) when reading takes
            longer than 2 s.

    Raises:
        InputError: no such folder, layout, part or kind; bounds that exclude everything; no object
            at all; a problem if ``strict``.
        MissingExtraError: class maps need OpenCV, annotations pycocotools.
    """
    if kind not in get_args(Kind):
        raise InputError(f"map kind {kind!r} is not one of {', '.join(get_args(Kind))}")
    if kind != "auto" and layout != FOLDER:
        raise InputError(f"layout {layout} says itself what its maps are; leave out kind {kind!r}")
    if void not in get_args(VoidRule):
        raise InputError(f"the rule for void is {void!r}; it can be background or ignore")
    root = Path(path)
    name, places, problems = find_places(root, layout, part)
    low, high = _bounds(layout, smallest, largest)
    progress = _patient(on_progress)
    objects: list[ObjectRef] = []
    annotations: dict[Path, Annotations] = {}
    areas: list[float] = []
    pictures: dict[str, set[str]] = {}
    digest = hashlib.sha256(f"{void}\n".encode())
    for place in places:
        pictures[place.part.name] = set(source_checksums(place.images.parent))
        if layout == FOLDER:
            place = replace(place, part=replace(place.part, meaning=kind))
        reader: Reader
        if place.annotated:
            annotations[place.masks] = Annotations(place)
            pairs, reader = annotations[place.masks].pairs, annotations[place.masks].find
        else:
            pairs, missing = pairs_of(place)
            problems += missing
            reader = partial(read_maps, meaning=place.part.meaning)
        cache = f"{place.images.resolve()}\n{place.masks.resolve()}\n{place.part.meaning}"
        entries = index(pairs, reader, cache, progress)
        for pair, entry in zip(pairs, entries, strict=True):
            if entry.problem is not None:
                problems.append(Problem(place.part.name, Path(entry.problem[0]), entry.problem[1]))
            refs = _refs(place, pair, entry, low, high)
            areas += [found.area / math.prod(entry.size_hw) for found in entry.objects]
            objects += refs
            if refs:
                pictures[place.part.name].add(entry.digest[:_DIGITS])
                digest.update(f"{entry.digest} {[(r.key, r.area) for r in refs]}\n".encode())
    if strict and problems:
        raise InputError(f"{len(problems)} problems, the first: {problems[0]}")
    if not objects:
        raise InputError(_nothing(root, areas, low, high, problems))
    return Dataset(
        name, tuple(objects), tuple(problems), digest.hexdigest(), void, annotations, pictures
    )


def _nothing(
    root: Path, areas: list[float], low: float, high: float, problems: list[Problem]
) -> str:
    """Say why no object is left: which bound left out how many, and what could not be read."""
    text = f"{root} has no object of {low:.3g} to {high:.3g} of its picture"
    small, large = sum(area < low for area in areas), sum(area > high for area in areas)
    if areas:
        text += f": {small} are smaller, {large} larger; give other bounds (smallest, largest)"
    if problems:
        text += f"; the first of {len(problems)} problems: {problems[0]}"
    return text


def _bounds(layout: str, smallest: float | None, largest: float | None) -> tuple[float, float]:
    every = layout in LAYOUTS and LAYOUTS[layout].every
    low = (0.0 if every else SMALLEST) if smallest is None else smallest
    high = (1.0 if every else LARGEST) if largest is None else largest
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"objects of {low:g} to {high:g} of the picture are asked for; "
            "the bounds are shares from 0 to 1, the smallest first"
        )
    return low, high


def _refs(place: Place, pair: Pair, entry: Indexed, low: float, high: float) -> list[ObjectRef]:
    height, width = entry.size_hw

    def ref(number: int, found: Found) -> ObjectRef:
        return ObjectRef(
            f"{place.prefix}/{pair.name}/{number}",
            place.part.name,
            pair.image,
            number,
            found.area,
            entry.size_hw,
            found.category,
            pair.maps[found.source],
            found.label,
            place.part.meaning,
        )

    return [
        ref(number, found)
        for number, found in enumerate(entry.objects)
        if low * height * width <= found.area <= high * height * width
    ]


def _patient(
    on_progress: Callable[[int, int], None] | None,
) -> Callable[[int, int], None] | None:
    """Tell nothing of what takes no time."""
    if on_progress is None:
        return None
    start = time.monotonic()

    def told(done: int, total: int) -> None:
        if time.monotonic() - start > _PATIENCE:
            on_progress(done, total)

    return told


def picture_checksum(path: Path) -> str:
    """What a picture is known by in lists of what a model was trained on, whatever its name.

    Returns:
        The first 16 hexadecimal digits of its file's SHA-256.

    Raises:
        InputError: the file cannot be read.
    """
    return sha256_file(path)[:_DIGITS]


def leaks(dataset: Dataset, trained_on: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Name the parts of a data set that a model has been trained on: it must not be scored on them.

    A part with one of the pictures that a model was trained on is a leak, whatever it is called.
    Where a set is listed without pictures its name decides, without regard to case and punctuation:
    that of a part; or of a published set, for its training parts (a model trained on ``HQSeg44K``
    has seen, among others, ``DUTS-TE``).

    Args:
        dataset: what is to be scored.
        trained_on: names of data sets or parts -> ``picture_checksum`` of their pictures.
    """
    seen = {_plain_name(name) for name, pictures in trained_on.items() if not pictures}
    for name, parts in SYNONYMS.items():
        if _plain_name(name) in seen:
            seen |= {_plain_name(part) for part in parts}
    checksums = {checksum for pictures in trained_on.values() for checksum in pictures}
    return tuple(
        name
        for name in dataset.sets
        if _plain_name(name.removesuffix(LABEL)) in seen
        or not checksums.isdisjoint(dataset.pictures[name])
    )


def _plain_name(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
