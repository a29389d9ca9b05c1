"""What is in a data set: every picture and map read once, the outcome kept in the cache folder.

A picture's entry holds its size, its objects with their areas, and a checksum of its files. It is
made anew when a file's name, size or time of change is another one.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anyres.data.images import read_image
from anyres.data.layouts.listing import Pair
from anyres.data.maps import Meaning, read_objects
from anyres.errors import InputError, MissingExtraError
from anyres.files import cache_folder, sha256_file, write_text

Progress = Callable[[int, int], None]
_VERSION = 1


@dataclass(frozen=True)
class Found:
    """An object as the index has it.

    Attributes:
        source: which of the picture's maps it is in.
        label: its number in that map from 0, or the id of its annotation.
        area: pixels.
        category: the name of its class, if that is known.
    """

    source: int
    label: int
    area: int
    category: str | None = None


@dataclass(frozen=True)
class Indexed:
    """A picture as the index has it.

    Attributes:
        stamp: names, sizes and times of its files.
        digest: checksums of what its files hold, the picture's first.
        size_hw: (height, width).
        objects: all of them, whatever their size.
        problem: what is wrong, as (file, reason); it then has no objects.
    """

    stamp: str
    digest: str = ""
    size_hw: tuple[int, int] = (0, 0)
    objects: tuple[Found, ...] = ()
    problem: tuple[str, str] | None = None


Reader = Callable[[Pair, tuple[int, int]], tuple[list[Found], str]]


def read_maps(pair: Pair, size_hw: tuple[int, int], meaning: Meaning) -> tuple[list[Found], str]:
    """Find the objects of a picture's maps, and a checksum of these.

    Raises:
        InputError: a map that cannot be read, is of another size, or is binary and empty.
    """
    found = []
    for source, path in enumerate(pair.maps):
        objects = read_objects(path, meaning, size_hw)
        areas = np.bincount(objects.labels.ravel(), minlength=len(objects) + 1)[1:]
        if not len(objects) and meaning not in ("instance", "class"):
            raise InputError(f"{path} is empty: it has no object")
        classes = meaning == "class"
        found += [
            Found(source, label, int(area), str(objects.ids[label]) if classes else None)
            for label, area in enumerate(areas)
        ]
    return found, " ".join(sha256_file(path) for path in pair.maps)


def index(
    pairs: Sequence[Pair],
    reader: Reader,
    cache: str,
    on_progress: Progress | None = None,
) -> list[Indexed]:
    """Read pictures and maps, except for those that the cache knows.

    Args:
        pairs: what to read.
        reader: finds the objects of one.
        cache: what tells this data set and how it is read from all others.
        on_progress: is told how many pictures of how many have been read; not called when the
            cache knows all.

    Raises:
        MissingExtraError: a package that the reader needs is not installed.
    """
    name = hashlib.sha256(cache.encode()).hexdigest()[:32]
    file = cache_folder() / "datasets" / f"{name}.json"
    known = _load(file)
    stamps = [_stamp(pair) for pair in pairs]
    todo = [i for i, stamp in enumerate(stamps) if stamp not in known]
    if todo:
        work = partial(_read, reader=reader)
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            results = pool.map(work, [pairs[i] for i in todo], [stamps[i] for i in todo])
            for done, result in enumerate(results, 1):
                known[result.stamp] = result
                if on_progress is not None:
                    on_progress(done, len(todo))
        finally:
            pool.shutdown(cancel_futures=True)
        _save(file, [known[stamp] for stamp in stamps])
    return [known[stamp] for stamp in stamps]


def _read(pair: Pair, stamp: str, reader: Reader) -> Indexed:
    try:
        image = read_image(pair.image)
        height, width = image.shape[:2]
        del image
        objects, digest = reader(pair, (height, width))
    except MissingExtraError:
        raise
    except InputError as error:
        return Indexed(stamp, problem=_blamed(pair, str(error)))
    digest = f"{sha256_file(pair.image)} {digest}"
    return Indexed(stamp, digest, (height, width), tuple(objects))


def _blamed(pair: Pair, text: str) -> tuple[str, str]:
    """Which of the files an error names, and the rest of what it says."""
    for path in (*pair.maps, pair.image):
        if text.startswith(str(path)):
            return str(path), text.removeprefix(str(path)).strip(" :,")
    return str(pair.image), text


def _stamp(pair: Pair) -> str:
    parts = [pair.name]
    for path in (pair.image, *pair.maps):
        try:
            status = path.stat()
            parts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            parts.append(f"{path.name} unreadable")
    return "\n".join(parts)


def _load(file: Path) -> dict[str, Indexed]:
    """The cached entries by stamp; none from a file that is damaged or of another version."""
    try:
        checksum, content = file.read_text(encoding="utf-8").split("\n", 1)
        if checksum != _checksum(content):
            return {}
    except (OSError, ValueError):
        return {}
    return {
        stamp: Indexed(
            stamp,
            digest,
            (size[0], size[1]),
            tuple(Found(*values) for values in objects),
        )
        for stamp, digest, size, objects, _ in json.loads(content)
    }


def _save(file: Path, entries: list[Indexed]) -> None:
    """Keep the index. Without a place for it, it is made anew the next time."""
    # What failed is tried again: the reason may have been the system, not the file.
    sound = [astuple(entry) for entry in entries if entry.problem is None]
    content = json.dumps(sound, separators=(",", ":"))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, f"{_checksum(content)}\n{content}")


def _checksum(content: str) -> str:
    return hashlib.sha256(f"{_VERSION} {content}".encode()).hexdigest()
