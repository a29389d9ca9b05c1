"""A teacher's embeddings of pictures, computed once and kept in shards.

A store is for one teacher, one size and one way of showing pictures; others have folders of their
own. A shard is written whole or not at all and carries a checksum, so that a run that is killed
goes on where it was, and what is damaged is computed again.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from anyres.data.datasets import picture_checksum
from anyres.data.images import read_image
from anyres.data.layouts.folder import IMAGE_SUFFIXES
from anyres.data.scene_notes import source_checksums
from anyres.data.transforms import ResizeLongestSide
from anyres.errors import InputError, WeightsError
from anyres.files import write_bytes
from anyres.models.reading import read_safetensors
from anyres.models.segmenter import Segmenter

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 60.0  # at most so much work is lost when a run is killed
_PIXELS = 1 << 20  # a batch of the teacher
_KEY = "anyres.embeddings"
# Raise when views show something else than before.
_VIEWS = 1
_PATTERN = "shard-*.safetensors"

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class View:
    """One way to look at a picture, for which there is an embedding.

    Attributes:
        path: of the picture.
        checksum: of its file (``picture_checksum``).
        number: 0 is the whole picture, 1 its mirror image, those above are squares cut out of it,
            every other one mirrored; the same ones at all times.
    """

    path: Path
    checksum: str
    number: int

    @property
    def key(self) -> str:
        """What its embedding is kept under."""
        return f"{self.checksum}/{self.number}"

    def read(self, size: int) -> NDArray[np.uint8]:
        """Read it as (h, w, 3) uint8 RGB with ``size`` pixels on the long side.

        Raises:
            ImageError: the picture cannot be read.
        """
        image = read_image(self.path)
        if self.number > 1:
            rng = np.random.default_rng((int(self.checksum, 16), self.number))
            height, width = image.shape[:2]
            side = max(1, round(min(height, width) * rng.uniform(0.4, 1)))
            y, x = (int(rng.integers(length - side + 1)) for length in (height, width))
            image = image[y : y + side, x : x + side]
        if self.number % 2:
            image = image[:, ::-1]
        return ResizeLongestSide(size).apply_image(np.ascontiguousarray(image))


def find_views(root: Path, number: int) -> list[View]:
    """List the views of all pictures under a folder; those in folders called masks are none.

    Args:
        root: searched with all that is in it, links followed; copies of a picture count once.
        number: views of a picture.

    Raises:
        InputError: there is no picture.
    """
    paths = {picture_checksum(path): path for path in sorted(_pictures(root), reverse=True)}
    if not paths:
        known = " ".join(IMAGE_SUFFIXES)
        raise InputError(f"there is no picture in {root}; pictures are files that end in {known}")
    ordered = sorted(paths.items(), key=lambda item: item[1])
    return [View(path, checksum, i) for checksum, path in ordered for i in range(number)]


def seen_in(views: Sequence[View]) -> set[str]:
    """Checksums of the pictures of views, and of those that they are composed of.

    Raises:
        InputError: the notes of a set of scenes are damaged.
    """
    folders = {view.path.parent.parent for view in views}
    return {view.checksum for view in views}.union(*map(source_checksums, folders))


def _pictures(root: Path) -> Iterator[Path]:
    """The pictures under a folder; one that is linked to from several places comes once."""
    searched: set[Path] = set()
    for name, folders, files in os.walk(root, followlinks=True):
        folder = Path(name)
        if folder.resolve() in searched:  # or a link to a folder above would never end
            folders.clear()
            continue
        searched.add(folder.resolve())
        folders[:] = sorted(x for x in folders if x != "masks" and not x.startswith("."))
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES:
                yield folder / file


class Store:
    """Embeddings of one teacher at one size, by key.

    Args:
        folder: of all stores; this one is a folder in it.
        teacher: checksum of its weights (``models.parts.checksum``).
        size: long side in pixels that the teacher is fed, and the side of the padded square.
    """

    def __init__(self, folder: Path, teacher: str, size: int) -> None:
        self.folder = folder / f"{teacher}-{size}"
        self._facts = {"teacher": teacher, "size": size, "views": _VIEWS}
        self._shards: dict[str, Path] = {}

    def look(self, report: Report | None = None) -> None:
        """Find out what is there; damaged shards are removed.

        Args:
            report: is told (shards read, of how many).
        """
        self._shards = {}
        found = sorted(self.folder.glob(_PATTERN))
        for done, path in enumerate(found, 1):
            keys = self._whole(path)
            if keys is None:
                path.unlink(missing_ok=True)
            else:
                self._shards |= dict.fromkeys(keys, path)
            if report is not None:
                report(done, len(found))

    def __contains__(self, key: str) -> bool:
        """Tell whether there is an embedding, as far as was looked."""
        return key in self._shards

    def __getitem__(self, key: str) -> Tensor:
        """Read an embedding, (C, h, w) float32.

        Raises:
            WeightsError: its shard has been damaged or removed since.
        """
        try:
            with safe_open(self._shards[key], framework="pt") as file:
                tensor: Tensor = file.get_tensor(key)
        except Exception as error:  # as in models.reading, damage may break anything
            raise WeightsError(
                f"the embedding {key} in {self.folder} cannot be read any more ({error}): start "
                "again, it is computed anew"
            ) from error
        return tensor.float()

    def write(self, embeddings: Mapping[str, Tensor]) -> None:
        """Keep embeddings, in float16, as one more shard.

        Raises:
            OutputError: the folder cannot be written to.
        """
        tensors = {key: each.half().cpu().contiguous() for key, each in embeddings.items()}
        facts = json.dumps(self._facts | {"sha256": _digest(tensors)}, sort_keys=True)
        name = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _PATTERN.replace("*", name)
        write_bytes(path, to_bytes(tensors, {_KEY: facts}))
        self._shards |= dict.fromkeys(tensors, path)

    def _whole(self, path: Path) -> list[str] | None:
        """The keys of a shard, or None if it is damaged or not of this store."""
        try:
            tensors, metadata = read_safetensors(path)
            facts = json.loads(metadata[_KEY])
        except (WeightsError, KeyError, ValueError):
            return None
        return list(tensors) if facts == self._facts | {"sha256": _digest(tensors)} else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def embed(
    teacher: Segmenter,
    views: Sequence[View],
    store: Store,
    size: int,
    report: Report | None = None,
) -> None:
    """Compute the embeddings that a store lacks. It may be killed at any time, and goes on.

    Pictures are padded to squares, as SAM is fed, and as the paper's teacher was.

    Args:
        teacher: on the device and in the precision to compute in.
        views: what to look at.
        store: where the embeddings go.
        size: the store's.
        report: is told (embeddings there, of how many).

    Raises:
        ImageError: a picture cannot be read.
        OutputError: the store cannot be written.
    """
    missing = iter([view for view in views if view.key not in store])
    done = sum(view.key in store for view in views)
    kept: dict[str, Tensor] = {}
    began = time.monotonic()
    while some := list(islice(missing, max(1, _PIXELS // size**2))):
        kept |= dict(_embedded(teacher, some, size))
        done += len(some)
        used = sum(each.numel() for each in kept.values()) * 2
        if used >= SHARD_BYTES or time.monotonic() - began >= SHARD_SECONDS:
            store.write(kept)
            kept, began = {}, time.monotonic()
        if report is not None:
            report(done, len(views))
    if kept:
        store.write(kept)


@torch.inference_mode()
def _embedded(teacher: Segmenter, views: Sequence[View], size: int) -> Iterator[tuple[str, Tensor]]:
    inputs = torch.cat([padded(teacher, view.read(size), size) for view in views])
    embeddings = teacher.encode(inputs).embedding.half().cpu()
    for view, embedding in zip(views, embeddings, strict=True):
        yield view.key, embedding.clone()


def padded(model: Segmenter, image: NDArray[np.uint8], size: int) -> Tensor:
    """Normalise (h, w, 3) RGB and pad it to a square, (1, 3, size, size)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    return model.preprocess(pixels, (size, size))
