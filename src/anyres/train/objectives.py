"""What a run teaches: the loss of a batch, and where the batches come from."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from numpy.random import Generator
from torch import Tensor

from anyres.models.segmenter import Segmenter
from anyres.train.batches import batches
from anyres.train.config import TrainConfig
from anyres.train.distil import distil_loss, lessons, prepare
from anyres.train.embeddings import seen_in
from anyres.train.interactive import interactive_loss
from anyres.train.loading import Share
from anyres.train.samples import stream_of


class Objective(Protocol):
    """The loss of a model on a batch."""

    def __call__(
        self, model: Segmenter, batch: Any, config: TrainConfig, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute it, with its graph.

        Args:
            model: what is trained; in training mode but for what is frozen.
            batch: as its ``Task`` makes them, on the model's device.
            config: the settings.
            rng: the same for the same step of a run, whatever came before.

        Returns:
            The loss, the mean over the batch, and what the log records beside it.
        """


@dataclass(frozen=True, eq=False)
class Task:
    """What a run teaches.

    Attributes:
        objective: the loss of a batch.
        batches: the batches of this process without end, from those of a given step on; each is
            brought to a device by ``to`` (as `samples.Batch`).
        pictures: checksums of what the batches are made of, by data set, as
            `Segmenter.trained_on`.
    """

    objective: Objective
    batches: Callable[[int], Iterator[Any]]
    pictures: Mapping[str, Collection[str]]


Prepared = Callable[[int, int], None]


def find_task(
    config: TrainConfig, data: Path, share: Share, prepared: Prepared | None = None
) -> Task:
    """Make the task that ``config.task`` names.

    Args:
        config: the settings.
        data: folder of training sets; of pictures for ``distil``.
        share: which part of every step's batches this process makes.
        prepared: called while a teacher looks at them, with how many it has seen of how many.

    Raises:
        InputError: no data.
        WeightsError: a teacher that cannot be read.
    """
    if config.task == "distil":
        return _distil(config, data, share, prepared)
    return _interactive(config, data, share)


def _interactive(config: TrainConfig, data: Path, share: Share) -> Task:
    stream = stream_of(config, data)

    def feed(start: int) -> Iterator[Any]:
        return batches(stream, config.rounds, start=start, workers=config.workers, share=share)

    return Task(interactive_loss, feed, stream.pictures())


def _distil(config: TrainConfig, data: Path, share: Share, prepared: Prepared | None) -> Task:
    views, store = prepare(config, data, share, prepared)
    pictures = {data.resolve().name: seen_in(views)}
    return Task(distil_loss, partial(lessons, config, views, store, share), pictures)
