"""What the training sets are, and the objects in their maps.

A training folder holds data sets (``<set>/images``, ``<set>/masks``) or is one itself. `RULES`
says of the known ones what their maps mean and how often to use them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import opencv
from anyres.data.datasets import picture_checksum
from anyres.data.images import read_mask
from anyres.data.layouts.annotated import Annotations
from anyres.data.layouts.folder import Entry, list_entries
from anyres.data.layouts.listing import find_places, pairs_of
from anyres.data.maps import VOID, Kind, Meaning, Objects, objects_of, read_objects
from anyres.data.scene_notes import source_checksums
from anyres.errors import InputError

CRUMB = 2e-4  # parts of a class map below this share of the picture are no objects of their own


@dataclass(frozen=True)
class Rule:
    """How to read and sample one data set.

    Attributes:
        weight: share of the samples.
        kind: what its maps are.
        union: how often an object is a union of neighbouring ones instead.
        inner: how often only objects that hardly reach the picture's border are taken, for maps
            in which every pixel is labelled and most of what reaches it is background.
        whole: how often it is everything that is not background instead.
        skip: ids that are no objects.
        smooth: standard deviation in pixels of a majority filter over a speckled map, 0 for none.
        thin: whether objects are only a few pixels wide, so that scaling down must not lose them.
        turn: whether there is no up and down, so that quarter turns are natural too.
        upright: whether its cut-outs are pasted as they stand.
        cut: how often it is the source of a pasted cut-out, relative to the others.
    """

    weight: float = 0.03
    kind: Meaning = "auto"
    union: float = 0.0
    inner: float = 0.0
    whole: float = 0.0
    skip: tuple[int, ...] = ()
    smooth: float = 0.0
    thin: bool = False
    turn: bool = False
    upright: bool = False
    cut: float = 0.0


RULES = {
    "bsds500": Rule(0.34, "instance", union=0.5, inner=0.6, cut=0.12),
    "coco128seg": Rule(0.16, "instance", union=0.25, cut=0.26),
    "ccp": Rule(0.14, "class", union=0.15, whole=0.5, smooth=2.5, upright=True, cut=0.18),
    "human290": Rule(0.12, "binary", smooth=1.2, cut=0.2),
    # 0 of camvid is the sky, 11 what nobody labelled.
    "camvid": Rule(0.06, "class", union=0.15, skip=(11,), cut=0.04),
    "fasseg": Rule(0.025, "class", whole=0.3, cut=0.03),
    "cwfid": Rule(0.03, "class", union=0.15, whole=0.1, thin=True, turn=True, cut=0.05),
    "wgisd51": Rule(0.025, "instance", union=0.1, cut=0.04),
    "cables70": Rule(0.03, "instance", thin=True, turn=True, cut=0.05),
    "crackforest": Rule(0.015, "binary", thin=True, turn=True),
    "retina": Rule(0.015, "binary", thin=True, turn=True),
    "dubai72": Rule(0.02, "class", turn=True),
    "dsb2018": Rule(0.02, "instance", union=0.1, turn=True, cut=0.03),
    "magtile": Rule(0.02, "binary", turn=True),
}
# Of what nobody has looked at: objects may be thin, which costs others nothing to speak of.
UNKNOWN = Rule(thin=True, cut=0.05)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """The objects of one map at the kept size.

    Attributes:
        labels: (H, W) uint8 or uint16; 0 none, 1..count the objects, count + 1 crumbs that are
            part of the foreground but of no object.
        void: (H, W) bool or None.
        count: how many objects.
        areas: (count + 2,) pixels of each label.
        boxes: (count + 2, 4) XYXY of each label, right and bottom exclusive.
        inner: (count + 2,) whether a label hardly reaches the picture's border.
    """

    labels: NDArray[Any]
    void: NDArray[np.bool_] | None
    count: int
    areas: NDArray[np.int64]
    boxes: NDArray[np.int64]
    inner: NDArray[np.bool_]
    _neighbours: list[dict[int, int]] = field(default_factory=list)

    def neighbours(self, label: int) -> dict[int, int]:
        """Return the objects that touch this one, with the lengths of the common borders."""
        if not self._neighbours:
            self._neighbours.extend(_adjacency(self.labels, self.count))
        return self._neighbours[label]

    def select(
        self, chosen: tuple[int, ...], window: tuple[slice, slice] = (slice(None), slice(None))
    ) -> NDArray[np.uint8]:
        """Return the mask of a union of labels as 0 and 255, within a window."""
        cv2 = opencv()
        part = self.labels[window]
        mask: NDArray[np.uint8]
        if len(chosen) == 1:
            mask = cv2.inRange(part, chosen[0], chosen[0])
            return mask
        table = np.zeros(max(256, self.count + 2), np.uint8)
        table[list(chosen)] = 255
        mask = cv2.LUT(part, table) if part.dtype == np.uint8 else table[part]
        return mask

    def box(self, chosen: tuple[int, ...]) -> NDArray[np.int64]:
        """Return the XYXY box of a union of labels."""
        boxes = self.boxes[list(chosen)]
        return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _adjacency(labels: NDArray[Any], count: int) -> list[dict[int, int]]:
    """Count, for each pair of objects, the places where one lies beside the other.

    Annotators leave a line of nothing between regions in places, hence steps of 3 pixels.
    """
    found: list[dict[int, int]] = [{} for _ in range(count + 2)]
    small = labels.astype(np.int64)
    codes = []
    for one, other in ((small[:, :-3], small[:, 3:]), (small[:-3], small[3:])):
        differ = (one != other) & (one > 0) & (other > 0) & (one <= count) & (other <= count)
        codes.append(one[differ] * (count + 2) + other[differ])
    values, lengths = np.unique(np.concatenate(codes), return_counts=True)
    for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
        a, b = divmod(value, count + 2)
        found[a][b] = found[a].get(b, 0) + length
        found[b][a] = found[b].get(a, 0) + length
    return found


def majority(labels: NDArray[Any], deviation: float) -> NDArray[Any]:
    """Give every pixel the id that has most weight around it under a Gaussian."""
    cv2 = opencv()
    best = np.full(labels.shape, -1, np.float32)
    result = labels.copy()
    for value in np.unique(labels):
        share = cv2.GaussianBlur((labels == value).astype(np.float32), (0, 0), deviation)
        ahead = share > best
        result[ahead] = value
        best[ahead] = share[ahead]
    return result


def label_map(stored: NDArray[Any], rule: Rule, size_hw: tuple[int, int]) -> LabelMap:
    """Turn a map as stored into labels at the kept size.

    Args:
        stored: (H, W) map of ids.
        rule: what the ids mean.
        size_hw: the size the picture is kept at.
    """
    cv2 = opencv()
    if stored.dtype == np.bool_:
        stored = stored.astype(np.uint8)
    if rule.smooth > 0:
        stored = majority(stored, rule.smooth)
    if stored.shape != size_hw:
        stored = cv2.resize(stored, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    if rule.skip:
        stored = np.where(np.isin(stored, rule.skip), 0, stored)
    meaning: Kind = "instance"  # what `Source.stored` makes of maps of published sets
    if rule.kind != "drawn" and rule.kind != "bright" and rule.kind != "trimap":
        meaning = rule.kind
    objects: Objects = objects_of(stored, meaning)
    areas = np.bincount(objects.labels.ravel(), minlength=len(objects) + 1)
    limit = max(12.0, CRUMB * stored.size)
    kept = [i for i in range(1, len(objects) + 1) if areas[i] >= limit]
    count = len(kept)
    kind = np.uint8 if count < 250 else np.uint16
    table = np.full(len(objects) + 1, count + 1, kind)
    table[0] = 0
    table[kept] = np.arange(1, count + 1)
    labels = table[objects.labels]
    areas = np.bincount(labels.ravel(), minlength=count + 2)
    rim = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    inner = np.bincount(rim, minlength=count + 2) <= 0.06 * min(labels.shape)
    return LabelMap(labels, objects.void, count, areas, _boxes(labels, count), inner)


def _boxes(labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Find the XYXY box of each label; an absent one gets an empty box."""
    boxes = np.zeros((count + 2, 4), np.int64)
    for axis in (0, 1):
        length = labels.shape[axis]
        places = np.arange(length).reshape((-1, 1) if axis == 0 else (1, -1))
        codes = labels.astype(np.int64) * length + places
        present = np.bincount(codes.ravel(), minlength=(count + 2) * length) > 0
        present = present.reshape(count + 2, length)
        some = present.any(axis=1)
        boxes[:, 1 - axis] = np.where(some, present.argmax(axis=1), length)
        boxes[:, 3 - axis] = np.where(some, length - present[:, ::-1].argmax(axis=1), 0)
    return boxes


@dataclass(frozen=True, eq=False)
class Source:
    """One data set with the share of samples it gives.

    Attributes:
        name: of the set.
        rule: how it is read and sampled.
        entries: its pictures.
        made_of: checksums of the pictures that its own are composed of.
        annotations: where its objects are, if they are not in maps.
    """

    name: str
    rule: Rule
    entries: tuple[Entry, ...]
    made_of: frozenset[str] = frozenset()
    annotations: Annotations | None = None

    @property
    def marked(self) -> tuple[Entry, ...]:
        """Its pictures that have maps."""
        return tuple(entry for entry in self.entries if entry.maps)

    def stored(self, entry: Entry, number: int) -> NDArray[Any]:
        """Read map ``number`` of a picture: ids, of a published set 0, 1, and 255 for void."""
        path = entry.maps[number]
        if self.annotations is not None:
            return self.annotations.labels(entry.image)
        if self.rule.kind not in ("drawn", "bright", "trimap"):
            return read_mask(path)
        objects = read_objects(path, self.rule.kind)
        stored = objects.labels.astype(np.uint8)
        if objects.void is not None:
            stored[objects.void] = VOID
        return stored

    def checksums(self) -> frozenset[str]:
        """What its pictures are known by, and those that they are composed of."""
        return self.made_of.union(picture_checksum(entry.image) for entry in self.entries)


def find_sources(
    root: Path,
    shares: Mapping[str, float] | None = None,
    layouts: Mapping[str, str] | None = None,
) -> list[Source]:
    """List the data sets under ``root``, pictures without any map included.

    Args:
        root: a folder of data sets, or one data set.
        shares: of the samples, by set, together at most 1; 0 leaves one out. The others share what
            is left as they would share all.
        layouts: for sets that are no plain folders, the published layout and part that is meant,
            such as ``duts/DUTS-TR`` (`anyres.data.layouts.published`).

    Raises:
        InputError: no data set there, or a share or layout that cannot be used.
    """
    if not root.is_dir():
        raise InputError(f"the training folder {root} does not exist")
    shares, layouts = shares or {}, layouts or {}
    alone = (root / "images").is_dir() or root.name in layouts
    folders = [root] if alone else sorted(path for path in root.iterdir() if path.is_dir())
    for what, named in (("sampling", shares), ("layouts", layouts)):
        unknown = sorted(set(named) - {folder.name for folder in folders})
        if unknown:
            raise InputError(f"{what} names sets that are not in {root}: {', '.join(unknown)}")
    sources = []
    for folder in folders:
        if folder.name in layouts:
            sources.append(_published(folder, layouts[folder.name]))
        elif (folder / "images").is_dir():
            rule = RULES.get(folder.name, UNKNOWN)
            entries, made_of = tuple(list_entries(folder)), source_checksums(folder)
            sources.append(Source(folder.name, rule, entries, made_of))
    if not any(source.marked for source in sources):
        raise InputError(
            f"{root} has no picture with a mask: a set is a folder with images/ and masks/, and "
            "the masks of images/NAME.jpg are masks/NAME.png and masks/NAME__ANYTHING.png"
        )
    return _shared(sources, shares)


def _shared(sources: list[Source], shares: Mapping[str, float]) -> list[Source]:
    """Give the sets the shares stated, and the others what is left."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"the share of {name} is {share}; it must be from 0 to 1")
    left = 1 - sum(shares.values())
    if left < -1e-6:
        raise InputError(f"the shares of {', '.join(shares)} are {1 - left:g} together, above 1")
    usual = sum(s.rule.weight for s in sources if s.name not in shares and s.marked)
    found = []
    for source in sources:
        share = shares.get(source.name, max(0.0, left) * source.rule.weight / (usual or 1))
        if share > 1e-9 or not source.marked:
            found.append(replace(source, rule=replace(source.rule, weight=share)))
    return found


def _published(folder: Path, layout: str) -> Source:
    """A part of a published set as a source."""
    name, _, part = layout.partition("/")
    if not part:
        raise InputError(
            f"the layout of {folder.name} is {layout!r}; name its part, too: duts/DUTS-TR"
        )
    place = find_places(folder, name, part)[1][0]
    annotations = Annotations(place) if place.annotated else None
    pairs = pairs_of(place)[0] if annotations is None else annotations.pairs
    entries = tuple(Entry(pair.image, pair.maps) for pair in pairs)
    kind = place.part.meaning if annotations is None else "instance"
    rule = replace(RULES.get(folder.name, UNKNOWN), kind=kind)
    return Source(folder.name, rule, entries, annotations=annotations)
