"""A data set of composed scenes: planned, made in several processes, whole or not there.

What each scene is made of follows from the seed, its number and the names of the sources alone, so
the plan is written first (``scenes.json``), and a set that was stopped goes on where it was.
"""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from anyres import __version__, files
from anyres.data.augment import CutOut, Generator, Image, opencv
from anyres.data.images import read_image, write_png
from anyres.data.layouts.folder import IMAGE_SUFFIXES, Entry, list_entries
from anyres.data.maps import read_objects
from anyres.data.scene_notes import NOTES, is_composed, read_notes
from anyres.data.scenes import Scene, compose
from anyres.data.shapes import Size
from anyres.errors import InputError, OutputError, StateError

FORMAT: Final = 1
SMALLEST_SIDE: Final = 64
LARGEST_SIDE: Final = 4096
SMALLEST_PHOTO: Final = 240  # pixels: the short side of a photograph
CUT_SHARE: Final = 0.4  # of the scenes, that get a cut-out if there are any
_QUALITY: Final = 94
_TEMPORARY: Final = ".anyres-*.tmp"  # as files.atomic_write names them
_TRIES: Final = 20


@dataclass(frozen=True)
class Recipe:
    """What one scene is made of.

    Attributes:
        name: of its files, without suffix.
        photo: what lies behind.
        textures: what fills drawn objects.
        cuts: (picture, map) of what is pasted.
    """

    name: str
    photo: Path
    textures: tuple[Path, ...]
    cuts: tuple[tuple[Path, Path], ...]

    @property
    def sources(self) -> tuple[Path, ...]:
        """All pictures in it."""
        return (self.photo, *self.textures, *(image for image, _ in self.cuts))


@dataclass(frozen=True)
class SceneSet:
    """A set of scenes: everything that decides its bytes, with the versions of the packages.

    Attributes:
        photos: pictures for what lies behind and for textures.
        objects: pictures whose maps say what may be cut out.
        size_hw: of every scene.
        count: how many.
        seed: of all random draws.
    """

    photos: tuple[Path, ...]
    objects: tuple[Entry, ...]
    size_hw: Size
    count: int
    seed: int

    def __post_init__(self) -> None:
        """Check what can be checked before any work."""
        if not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in self.size_hw):
            raise InputError(
                f"scenes of {self.size_hw[1]}x{self.size_hw[0]} are asked for; "
                f"each side can have {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
            )
        if self.count < 1 or self.seed < 0:
            raise InputError(f"count {self.count} (from 1), seed {self.seed} (from 0)")
        if not self.photos:
            raise InputError("there are no photographs to compose scenes over")

    def recipe(self, number: int) -> Recipe:
        """What scene ``number`` (from 0) is made of."""
        rng = np.random.default_rng((self.seed, number, 0))
        # In turn, in an order that the seed decides: all are used before one comes again.
        order = np.random.default_rng(self.seed).permutation(len(self.photos))
        photo = self.photos[order[number % len(order)]]
        textures = tuple(self.photos[i] for i in rng.integers(len(self.photos), size=2))
        cuts: tuple[tuple[Path, Path], ...] = ()
        if self.objects and rng.random() < CUT_SHARE:
            entry = self.objects[int(rng.integers(len(self.objects)))]
            cuts = ((entry.image, entry.maps[int(rng.integers(len(entry.maps)))]),)
        return Recipe(f"scene_{number:05d}", photo, textures, cuts)

    def scene(self, number: int) -> Scene:
        """Compose scene ``number``.

        Raises:
            InputError: a source cannot be read, or is too small.
        """
        recipe = self.recipe(number)
        rng = np.random.default_rng((self.seed, number, 1))
        photo = _photo(recipe.photo)
        textures = [_photo(path) for path in recipe.textures]
        for _ in range(_TRIES):
            cuts = [cut for paths in recipe.cuts if (cut := _cut(*paths, rng)) is not None]
            scene = compose(photo, textures, cuts, self.size_hw, rng)
            if scene.masks:
                return scene
        raise InputError(f"{recipe.name}: no object could be seen in {_TRIES} tries; change --seed")

    def notes(self) -> dict[str, Any]:
        """What the set's folder says of itself, checksums of the sources included."""
        checksums: dict[Path, str] = {}
        scenes = {}
        for number in range(self.count):
            recipe = self.recipe(number)
            for path in recipe.sources:
                if path not in checksums:
                    checksums[path] = files.sha256_file(path)[:16]
            scenes[recipe.name] = [checksums[path] for path in recipe.sources]
        return {
            "format": FORMAT,
            "what": "Semi-synthetic: objects drawn by a program, or cut out of other pictures, "
            "over photographs. The masks are exact. Made by `anyres scenes`.",
            "semi_synthetic": True,
            "anyres": __version__,
            "seed": self.seed,
            "size_hw": list(self.size_hw),
            "count": self.count,
            "sources": {digest: path.name for path, digest in sorted(checksums.items())},
            "scenes": scenes,
        }


def find_photos(folder: Path) -> tuple[Path, ...]:
    """List the pictures of a folder, or of ``images/`` in it.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    inner = folder / "images"
    place = inner if inner.is_dir() else folder
    if not place.is_dir():
        raise InputError(f"the photographs' folder {folder} does not exist")
    found = (
        path
        for path in place.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    photos = tuple(sorted(found, key=lambda path: path.name))
    if not photos:
        raise InputError(f"{folder} holds no photographs, nor does a folder images/ in it")
    return photos


def find_objects(folder: Path) -> tuple[Entry, ...]:
    """List the pictures with maps of a data set.

    Raises:
        InputError: no such data set, or no map in it.
    """
    if not (folder / "images").is_dir():
        raise InputError(f"{folder} is no data set: it has no folder images/")
    entries = tuple(entry for entry in list_entries(folder) if entry.maps)
    if not entries:
        raise InputError(f"no picture of {folder} has a map masks/<stem>.png: nothing to cut out")
    return entries


def _photo(path: Path) -> Image:
    image = read_image(path)
    if min(image.shape[:2]) < SMALLEST_PHOTO:
        raise InputError(
            f"{path} is {image.shape[1]}x{image.shape[0]}; photographs need at least "
            f"{SMALLEST_PHOTO} pixels on the short side: take it out"
        )
    return image


def _cut(image: Path, map_: Path, rng: Generator) -> CutOut | None:
    """Cut one object of a map out with a margin of 6 pixels; None if none is large enough."""
    picture = read_image(image)
    height, width = picture.shape[:2]
    found = read_objects(map_, size_hw=(height, width))
    areas = np.bincount(found.labels.ravel(), minlength=len(found) + 1)[1:]
    large = np.flatnonzero((areas > 0.01 * found.labels.size) & (areas < 0.8 * found.labels.size))
    if not len(large):
        return None
    mask = found.mask(int(rng.choice(large)))
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
    touches = (x0 <= 1, y0 <= 1, x1 >= width - 1, y1 >= height - 1)
    window = slice(max(0, y0 - 6), y1 + 6), slice(max(0, x0 - 6), x1 + 6)
    return CutOut(picture[window], mask[window].astype(np.uint8), touches)


def write_set(out: Path, scenes: SceneSet, *, workers: int = 1) -> Iterator[int]:
    """Write a set, or what is missing of it.

    Args:
        out: its folder: new, empty, or one that was begun with the same settings.
        scenes: what to make.
        workers: processes.

    Yields:
        How many scenes are there, each time that there is one more, those of before at once.

    Raises:
        InputError: the folder holds something else, or a source cannot be used.
        OutputError: it cannot be written.
        StateError: a process died.
    """
    left = _begin(out, scenes)
    yield scenes.count - len(left)
    for done, _ in enumerate(_work(out, scenes, left, workers), scenes.count - len(left) + 1):
        yield done


def _begin(out: Path, scenes: SceneSet) -> list[int]:
    """Make the folder and its notes, or find out what is left to do there."""
    notes = scenes.notes()
    with _naming(out):
        if out.exists() and not is_composed(out) and (not out.is_dir() or any(_entries(out))):
            raise InputError(f"{out} holds something else; give a new or empty folder")
        out.mkdir(parents=True, exist_ok=True)
    # First of all: from now on the folder is known for what it is.
    if not is_composed(out):
        files.write_json(out / NOTES, notes)
    elif read_notes(out) != notes:
        raise InputError(
            f"{out} holds scenes of other settings, sources or another version; "
            "give another folder, or those settings to go on"
        )
    with _naming(out):
        for folder in (out, out / "images", out / "masks"):
            folder.mkdir(exist_ok=True)
            for stale in folder.glob(_TEMPORARY):
                stale.unlink()
    return [n for n in range(scenes.count) if not _image_file(out, scenes.recipe(n).name).exists()]


def _entries(folder: Path) -> Iterator[Path]:
    """What lies in a folder, but for what a kill left of a file."""
    return (path for path in folder.iterdir() if not path.match(_TEMPORARY))


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Turn what the system says about a folder into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out} cannot be made or written: {error.strerror or error}") from error


def _image_file(out: Path, name: str) -> Path:
    return out / "images" / f"{name}.jpg"


def _work(out: Path, scenes: SceneSet, left: Sequence[int], workers: int) -> Iterator[None]:
    if workers == 1 or len(left) < 2:
        for number in left:
            write_scene(out, scenes, number)
            yield
        return
    pool = ProcessPoolExecutor(
        min(workers, len(left)), multiprocessing.get_context("spawn"), initializer=_calm
    )
    try:
        for done in as_completed([pool.submit(write_scene, out, scenes, n) for n in left]):
            done.result()
            yield
    except BrokenProcessPool:
        raise StateError(
            "a worker died, perhaps for want of memory; the same command with fewer --workers "
            "goes on where it stopped"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _calm() -> None:
    """Ctrl-C reaches all processes; the first of them decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def write_scene(out: Path, scenes: SceneSet, number: int) -> None:
    """Compose a scene and write its masks, then its picture: with that it is there."""
    cv2 = opencv()
    recipe, scene = scenes.recipe(number), scenes.scene(number)
    for index, mask in enumerate(scene.masks, 1):
        write_png(out / "masks" / f"{recipe.name}__o{index}.png", mask.astype(np.bool_))
    # Thin coloured lines would lose their colour if chroma were kept at half the size.
    options = [
        *(cv2.IMWRITE_JPEG_QUALITY, _QUALITY),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ]
    _, code = cv2.imencode(".jpg", scene.image[..., ::-1], options)
    files.write_bytes(_image_file(out, recipe.name), code.tobytes())
