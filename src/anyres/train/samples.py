"""An endless, repeatable stream of training samples: a crop, masks of objects in it, augmented.

``stream.sample(index)`` depends on the seed and the index alone, so a resumed run sees the same
data from where it stopped, in one process or several.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import Generator, opencv, paste, photometric
from anyres.data.maps import VOID
from anyres.data.scenes import draw_detail
from anyres.data.synthetic import Drawn, draw_shape, draw_wires
from anyres.errors import InputError
from anyres.train.cache import Cache, cut_out
from anyres.train.config import TrainConfig
from anyres.train.crops import FILL, Crop, draw_object, draw_others, draw_window, plain_window
from anyres.train.sources import Source, find_sources

SMALLEST = 0.002  # share of the crop an object must have; a thin one a quarter of it
LARGEST = 0.8
WIRES = 0.35  # share of those with wires
CACHE_BYTES = 6 << 30
ATTEMPTS = 60  # crops for a sample until one holds an object


@dataclass(frozen=True, eq=False)
class Sample:
    """One training sample.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        masks: (objects, S, S) uint8 0/1, none of them empty.
        valid: (S, S) uint8, 0 where the picture ends or its map is void: no loss there.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    valid: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Scene:
    """A crop at its final size, before light and colour."""

    image: NDArray[np.uint8]
    masks: list[NDArray[np.uint8]]
    valid: NDArray[np.uint8]
    inside: NDArray[np.uint8]  # 0 where the picture ends


class SampleStream:
    """Samples drawn from a folder of training sets."""

    def __init__(
        self,
        root: Path | str,
        *,
        size: int,
        objects: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        layouts: Mapping[str, str] | None = None,
        long_side: int = 1000,
        pasted: float = 0.4,
        drawn: float = 0.35,
        detailed: float = 0.2,
    ) -> None:
        """List the sets; pictures are decoded when first drawn.

        Args:
            root: a folder of data sets, or one data set (`anyres.train.sources`).
            size: side of a sample in pixels.
            objects: how many masks a sample has; a crop with fewer repeats some.
            seed: of all random draws, 0 or more.
            weights: share of each set, see `find_sources`.
            layouts: of sets that are no plain folders, see `find_sources`.
            long_side: pictures are kept at most this long, in pixels.
            pasted: share of samples with cut-outs pasted over them, where sets give any.
            drawn: share of samples with shapes or wires drawn over them.
            detailed: share that show part of a large object with thin parts, pixel for pixel.

        Raises:
            InputError: a size, count, seed or weight out of range, or no data under ``root``.
        """
        if size < 16 or objects < 1 or seed < 0:
            raise InputError(f"size {size} (from 16), objects {objects} (1), seed {seed} (0)")
        self.size = size
        self.objects = objects
        self.seed = seed
        self.pasted = pasted
        self.drawn = drawn
        self.detailed = detailed
        self._found = sources = find_sources(Path(root), weights, layouts)
        self._sources = [s for s in sources if s.marked]
        self._weights = _shares([s.rule.weight for s in self._sources])
        self._cutters = [s for s in self._sources if s.rule.cut > 0]
        self._cut_weights = _shares([s.rule.cut for s in self._cutters])
        self._marked = {s.name: s.marked for s in self._sources}
        self._plain = [(s, e) for s in sources for e in s.entries if not e.maps]
        self._cache = Cache(CACHE_BYTES, long_side)

    def pictures(self) -> dict[str, frozenset[str]]:
        """Checksums of what samples are made of, by set, those for backgrounds included."""
        return {source.name: source.checksums() for source in self._found}

    def __iter__(self) -> Iterator[Sample]:
        """Yield samples 0, 1, 2, ... without end."""
        index = 0
        while True:
            yield self.sample(index)
            index += 1

    def sample(self, index: int, size: int | None = None) -> Sample:
        """Make sample ``index``.

        Args:
            index: 0 or more.
            size: side in pixels; None is the stream's own.
        """
        rng = np.random.default_rng((self.seed, index))
        # Drawn once: sets whose crops often hold nothing have their share, too.
        source = self._sources[int(rng.choice(len(self._sources), p=self._weights))]
        for _ in range(ATTEMPTS):
            scene = self._composed(source, rng, size or self.size)
            if scene.masks:
                return self._finished(scene, rng)
        raise InputError(
            f"{ATTEMPTS} crops in a row held no object of a usable size (set {source.name}): are "
            f"the masks empty, or all objects smaller than {_least(source):.2%} of a crop?"
        )

    def example(
        self, number: int, count: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """Draw an object of a whole picture, which is not changed.

        Args:
            number: of the example, from 0.
            count: how many there will be: as many, or all, pictures come evenly.

        Returns:
            The picture, (H, W, 3), and its truth, (H, W): 1 object, 0 not, 255 void. None where
            the map that is drawn has no object.
        """
        rng = np.random.default_rng((self.seed, number, count))
        every = [(source, entry) for source in self._sources for entry in source.marked]
        source, entry = every[number * max(len(every), count) // count % len(every)]
        found = self._cache.labels(source, entry, int(rng.integers(len(entry.maps))))
        if found.count == 0:
            return None
        target = found.select(draw_object(found, source.rule, rng)) // np.uint8(255)
        if found.void is not None:
            target[found.void] = VOID
        return self._cache.picture(entry), target

    def _composed(self, source: Source, rng: Generator, side: int) -> _Scene:
        """Take a crop and perhaps paste things over it."""
        pasting = rng.random() < self.pasted
        if pasting and self._plain and rng.random() < 0.3:
            _, entry = self._plain[int(rng.integers(len(self._plain)))]
            scene = _plain_crop(self._cache.picture(entry), side, rng)
        else:
            scene = self._crop(source, side, rng)
        if pasting and self._cutters:
            scene = self._pasted(scene, rng)
        if scene.masks and rng.random() < self.drawn:
            scene = self._synthetic(scene, rng)
        if scene.masks and rng.random() < self.detailed:
            scene = self._detailed(scene, rng)
        return scene

    def _synthetic(self, scene: _Scene, rng: Generator) -> _Scene:
        """Draw shapes or wires over a crop: objects whose masks are exact."""
        if rng.random() < WIRES:
            drawn = draw_wires(scene.image, rng)
        else:
            drawn = draw_shape(scene.image, rng, self._texture(rng))
        return scene if drawn is None else _with_drawn(scene, drawn)

    def _detailed(self, scene: _Scene, rng: Generator) -> _Scene:
        """Draw the window of a large object that a crop of a high-resolution scene shows."""
        found = draw_detail(scene.image, self._texture(rng), rng)
        return scene if found is None else _over(scene, found, SMALLEST / 4)

    def _texture(self, rng: Generator) -> NDArray[np.uint8]:
        """Draw a photograph that may fill drawn objects."""
        source = self._sources[int(rng.choice(len(self._sources), p=self._weights))]
        entries = self._marked[source.name]
        return self._cache.picture(entries[int(rng.integers(len(entries)))])

    def _crop(self, source: Source, side: int, rng: Generator) -> _Scene:
        """Cut a square out of a picture around one of its objects, with that and others' masks."""
        entries = self._marked[source.name]
        entry = entries[int(rng.integers(len(entries)))]
        number = int(rng.integers(len(entry.maps)))
        image = self._cache.picture(entry)
        found = self._cache.labels(source, entry, number)
        if found.count == 0:
            return _plain_crop(image, side, rng)
        chosen = draw_object(found, source.rule, rng)
        window = draw_window(found.box(chosen), image.shape[:2], side, rng)
        crop = Crop.of(window, image.shape[:2], side)
        inside = crop.inside()
        valid = inside.copy()
        if found.void is not None:
            valid &= crop.mask(255 - found.void[crop.window].view(np.uint8) * np.uint8(255))
        masks = []
        others = draw_others(found, source.rule, crop.window, chosen, self.objects - 1, rng)
        for some in (chosen, *others):
            mask = crop.mask(found.select(some, crop.window), thin=source.rule.thin)
            if _worth(mask, _least(source)):
                masks.append(mask)
        scene = _Scene(crop.picture(image), masks, valid, inside)
        if source.rule.turn:
            scene = _turned(scene, int(rng.integers(4)))
        return scene

    def _pasted(self, scene: _Scene, rng: Generator) -> _Scene:
        """Paste one to three cut-outs over a crop."""
        side = scene.image.shape[0]
        number = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
        for turn in range(number):
            source = self._cutters[int(rng.choice(len(self._cutters), p=self._cut_weights))]
            entries = self._marked[source.name]
            entry = entries[int(rng.integers(len(entries)))]
            found = self._cache.labels(source, entry, int(rng.integers(len(entry.maps))))
            if found.count == 0:
                continue
            chosen = draw_object(found, source.rule, rng, whole=source.rule.whole > 0)
            share = found.areas[list(chosen)].sum() / found.labels.size
            if share < 2e-3 or share > 0.7:
                continue
            cut = cut_out(self._cache.picture(entry), found, chosen)
            largest = min(1.1 * side, 2.5 * max(cut.mask.shape))
            smallest = min(0.12 * side, largest / 2)
            extent = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
            if turn and scene.masks:
                extent *= 0.7
            pasted = paste(scene.image, cut, extent, rng, rotate=not source.rule.upright)
            if pasted is not None:
                scene = _over(scene, pasted, _least(source))
        return scene

    def _finished(self, scene: _Scene, rng: Generator) -> Sample:
        """Choose the masks, flip, and change light and colour."""
        masks = scene.masks
        if len(masks) > self.objects:
            # The last are the pasted ones, the first is what the crop was made for.
            order = rng.permutation(len(masks) - 1)[: self.objects - 1]
            masks = [masks[-1], *(masks[i] for i in order)]
        elif len(masks) < self.objects:
            masks = masks + [masks[i] for i in rng.integers(len(masks), size=self.objects)]
        image, valid = photometric(scene.image, rng), scene.valid
        stacked = np.stack(masks[: self.objects])
        if not valid.all():
            image[scene.inside == 0] = FILL
            stacked &= valid
        if rng.random() < 0.5:
            cv2 = opencv()
            image, valid = cv2.flip(image, 1), cv2.flip(valid, 1)
            stacked = np.stack([cv2.flip(mask, 1) for mask in stacked])
        return Sample(image, stacked, valid)


def stream_of(config: TrainConfig, data: Path) -> SampleStream:
    """The stream that the settings of a run describe.

    Args:
        config: the settings.
        data: folder of training sets.

    Raises:
        InputError: as ``SampleStream``.
    """
    return SampleStream(
        data,
        size=config.rounds[0][0],
        objects=config.objects,
        seed=config.seed,
        weights=config.sampling,
        layouts=config.layouts,
        long_side=config.long_side,
        pasted=config.pasted,
        drawn=config.drawn,
        detailed=config.detailed,
    )


def _least(source: Source) -> float:
    """Return the least share of the crop that an object of this set must have."""
    return SMALLEST / 4 if source.rule.thin else SMALLEST


def _shares(weights: list[float]) -> NDArray[np.float64]:
    """Scale weights to a sum of 1."""
    total = sum(weights)
    return np.array(weights) / total if total > 0 else np.array(weights)


def _worth(mask: NDArray[np.uint8], least: float) -> bool:
    """Tell whether a mask is neither next to nothing nor next to everything."""
    share = float(np.count_nonzero(mask)) / mask.size
    return least <= share <= LARGEST


def _plain_crop(image: NDArray[np.uint8], side: int, rng: Generator) -> _Scene:
    """Cut a square without any masks."""
    crop = Crop.of(plain_window(image.shape[:2], rng), image.shape[:2], side)
    inside = crop.inside()
    return _Scene(crop.picture(image), [], inside.copy(), inside)


def _over(scene: _Scene, pasted: NDArray[np.uint8], least: float) -> _Scene:
    """Account for something painted over the scene: it hides, and is an object itself."""
    pasted = pasted & scene.inside
    masks = [mask & (1 - pasted) for mask in scene.masks]
    masks = [mask for mask in masks if _worth(mask, least)]
    if _worth(pasted, least):
        masks.append(pasted)
    return _Scene(scene.image, masks, scene.valid | pasted, scene.inside)


def _with_drawn(scene: _Scene, drawn: Drawn) -> _Scene:
    """Account for what was drawn: it hides, and its objects come last, the whole the very last."""
    least = SMALLEST / 4
    hidden = _over(scene, drawn.covered, least)
    objects = [mask & scene.inside for mask in reversed(drawn.objects)]
    base = hidden.masks[:-1] if _worth(drawn.covered & scene.inside, least) else hidden.masks
    masks = base + [mask for mask in objects if _worth(mask, least)]
    return _Scene(hidden.image, masks, hidden.valid, hidden.inside)


def _turned(scene: _Scene, quarters: int) -> _Scene:
    """Turn a scene by quarter turns."""
    image, valid, inside = (
        np.ascontiguousarray(np.rot90(x, quarters))
        for x in (scene.image, scene.valid, scene.inside)
    )
    masks = [np.ascontiguousarray(np.rot90(mask, quarters)) for mask in scene.masks]
    return _Scene(image, masks, valid, inside)
