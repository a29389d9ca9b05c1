"""Distillation (HRSAM, arXiv 2407.02109, section 4): a student learns a teacher's embeddings.

The loss is the mean squared error between the two embeddings of a picture, padding included. Both
see the picture as a zero-padded square; where the student is fed another size than the teacher,
the teacher's embedding is resized to the student's grid. A picture is seen in a few fixed views,
because each needs an embedding of the teacher's.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from anyres.files import cache_folder
from anyres.models import parts
from anyres.models.segmenter import Segmenter
from anyres.predict.load import choose_dtype, put, resolve_device
from anyres.train.config import TrainConfig
from anyres.train.embeddings import Report, Store, View, embed, find_views
from anyres.train.loading import Share, made_ahead
from anyres.train.start import read_named


@dataclass(frozen=True, eq=False)
class Lessons:
    """Pictures of one size and what the teacher makes of them.

    Attributes:
        images: (B, S, S, 3) uint8 RGB, 0 to the right and below of what is shown.
        sizes_hw: (B, 2) height and width of what is shown.
        targets: (B, C, h, w) float32.
        number: which batch of the run this is, from 0.
    """

    images: Tensor
    sizes_hw: Tensor
    targets: Tensor
    number: int

    def to(self, device: torch.device) -> "Lessons":
        """Bring it to a device."""
        images, sizes, targets = (
            tensor.to(device) for tensor in (self.images, self.sizes_hw, self.targets)
        )
        return Lessons(images, sizes, targets, self.number)


def distil_loss(
    model: Segmenter, batch: Lessons, config: TrainConfig, rng: Generator
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared error of the embeddings; the record has its share of the targets' variance."""
    side = batch.images.shape[1]
    pixels = batch.images.permute(0, 3, 1, 2)
    inputs = torch.cat(
        [
            model.preprocess(picture[None, :, :height, :width], (side, side))
            for picture, (height, width) in zip(pixels, batch.sizes_hw.tolist(), strict=True)
        ]
    )
    embeddings = model.encode(inputs).embedding.float()
    targets = batch.targets
    if targets.shape != embeddings.shape:
        targets = F.interpolate(targets, embeddings.shape[2:], mode="bilinear", align_corners=False)
    loss = F.mse_loss(embeddings, targets)
    return loss, {"unexplained": float(loss.detach() / targets.var())}


class _Lessons(torch.utils.data.Dataset[Lessons]):
    """Batch by number: all views in an order that is drawn anew each time they are through."""

    def __init__(
        self,
        views: Sequence[View],
        store: Store,
        rounds: Sequence[tuple[int, int]],
        share: Share,
        seed: int,
    ) -> None:
        self.views = views
        self.store = store
        self.rounds = rounds
        self.share = share
        self.seed = seed
        self._order = (-1, np.zeros(0, np.int64))

    def __getitem__(self, number: int) -> Lessons:
        """Make batch ``number``."""
        size, indices, _ = self.share.of(number, self.rounds)
        images = np.zeros((len(indices), size, size, 3), np.uint8)
        sizes, targets = [], []
        for i, index in enumerate(indices):
            view = self._view(index)
            image = view.read(size)
            images[i, : image.shape[0], : image.shape[1]] = image
            sizes.append(image.shape[:2])
            targets.append(self.store[view.key])
        return Lessons(torch.from_numpy(images), torch.tensor(sizes), torch.stack(targets), number)

    def _view(self, index: int) -> View:
        epoch, place = divmod(index, len(self.views))
        if self._order[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._order = epoch, rng.permutation(len(self.views))
        return self.views[int(self._order[1][place])]


def lessons(
    config: TrainConfig, views: Sequence[View], store: Store, share: Share, start: int
) -> Iterator[Lessons]:
    """Yield this process's share of the batches of step ``start`` on, without end."""
    dataset = _Lessons(views, store, config.rounds, share, config.seed)
    return made_ahead(dataset, start=start * share.accumulate, workers=config.workers)


def prepare(
    config: TrainConfig, data: Path, share: Share, report: Report | None = None
) -> tuple[list[View], Store]:
    """Have the teacher look at all pictures that it has not seen yet.

    Embeddings are kept in ``config.cache``, or in the cache folder of anyres.

    Args:
        config: the settings.
        data: folder with pictures, at any depth.
        share: of several processes each computes its part, and waits for the others.
        report: is told (embeddings there, of how many of this process).

    Raises:
        InputError: no picture there.
        ImageError: one cannot be read.
        WeightsError: the teacher's file is missing, damaged, or none.
        OutputError: the cache cannot be written.
    """
    views = find_views(data, config.views)
    teacher = read_named(config.teacher)
    size = teacher.config.image_size
    folder = Path(config.cache) if config.cache else cache_folder() / "embeddings"
    store = Store(folder, parts.checksum(teacher), size)
    store.look()
    place = resolve_device(config.device)
    put(teacher, place, choose_dtype("auto", place, teacher.config))
    embed(teacher, views[share.rank :: share.size], store, size, report)
    while not all(view.key in store for view in views):
        time.sleep(1)
        store.look()
    return views, store
