"""Batches of samples: made ahead in other processes, and shared out among those that train."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from anyres.errors import AnyresError, InputError
from anyres.train.samples import SampleStream


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one size, stacked, as tensors.

    Attributes:
        images: (B, S, S, 3) uint8 RGB.
        masks: (B, objects, S, S) uint8 0/1.
        valid: (B, S, S) uint8 0/1.
        number: which batch of the run this is, from 0.
        place: of its first sample among those of its step, of which it may be a share.
    """

    images: torch.Tensor
    masks: torch.Tensor
    valid: torch.Tensor
    number: int
    place: int = 0

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        images, masks, valid = (x.to(device) for x in (self.images, self.masks, self.valid))
        return Batch(images, masks, valid, self.number, self.place)


Plan = int | Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Share:
    """Which part of every step's samples a process makes.

    Attributes:
        rank: which process this is.
        size: how many there are.
        accumulate: batches a step that each of them makes.
    """

    rank: int = 0
    size: int = 1
    accumulate: int = 1


class _Batches(torch.utils.data.Dataset[Batch]):
    """Batch by number, each made of the next samples of the stream.

    The samples of a step are the same however many processes share them out.
    """

    def __init__(self, stream: SampleStream, plan: Sequence[tuple[int, int]], share: Share) -> None:
        """Keep the stream, the round of (size, batch size) and this process's share."""
        self.stream = stream
        self.plan = plan
        self.share = share
        self._firsts = np.cumsum([0, *(some for _, some in plan)]).tolist()

    def __getitem__(self, number: int) -> Batch:
        """Make batch ``number``."""
        share = self.share
        step, part = divmod(number, share.accumulate)
        rounds, turn = divmod(step, len(self.plan))
        size, number_of = self.plan[turn]
        before = rounds * self._firsts[-1] + self._firsts[turn]
        place = (part * share.size + share.rank) * number_of
        first = before * share.accumulate * share.size + place
        samples = [self.stream.sample(first + i, size) for i in range(number_of)]
        images, masks, valid = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))
            for name in ("image", "masks", "valid")
        )
        return Batch(images, masks, valid, number, place)


class _From(torch.utils.data.Sampler[int]):
    """The numbers from ``start`` on, without end."""

    def __init__(self, start: int) -> None:
        """Keep the first number."""
        self.start = start

    def __iter__(self) -> Iterator[int]:
        """Count."""
        return count(self.start)


def batches(
    stream: SampleStream,
    plan: Plan,
    *,
    start: int = 0,
    workers: int = 1,
    share: Share | None = None,
) -> Iterator[Batch]:
    """Yield the batches of step ``start`` on, without end, made ahead in other processes.

    Args:
        stream: where the samples come from. Each worker decodes and keeps pictures of its own.
        plan: samples a batch, or a round of (size, samples) that is gone through over and over,
            such as ``[(256, 6), (256, 6), (256, 6), (384, 3)]``.
        start: the first step, to take a run up again with the data it would have had.
        workers: processes; 0 makes the batches in this one.
        share: of a step's samples; None is all of them, as one batch.

    Raises:
        InputError: an empty plan, or a size or count in it out of range.
    """
    rounds = [(stream.size, plan)] if isinstance(plan, int) else list(plan)
    if not rounds or any(size < 16 or number < 1 for size, number in rounds):
        raise InputError(f"the plan {plan} needs sizes from 16 and at least 1 sample a batch")
    share = share or Share()
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        _Batches(stream, rounds, share),
        batch_size=None,
        sampler=_From(start * share.accumulate),
        num_workers=workers,
        prefetch_factor=6 if workers else None,
        worker_init_fn=_calm if workers else None,
    )
    try:
        yield from loader
    except AnyresError as error:
        # A worker's error comes with the worker's whole traceback as its message.
        kind = type(error)
        message = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2]
        raise kind(message.strip()) from None


def _calm(_: int) -> None:
    """Keep a worker on one thread, and deaf to signals that go to all processes of a group.

    Ctrl-C and ``torchrun`` send them so. It is for the run to stop, which then ends its workers.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
