"""Batches of samples for training with clicks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anyres.errors import InputError
from anyres.train.loading import Share, made_ahead
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


class _Batches(torch.utils.data.Dataset[Batch]):
    """Batch by number, each made of the next samples of the stream.

    The samples of a step are the same however many processes share them out.
    """

    def __init__(self, stream: SampleStream, plan: Sequence[tuple[int, int]], share: Share) -> None:
        """Keep the stream, the round of (size, batch size) and this process's share."""
        self.stream = stream
        self.plan = plan
        self.share = share

    def __getitem__(self, number: int) -> Batch:
        """Make batch ``number``."""
        size, indices, place = self.share.of(number, self.plan)
        samples = [self.stream.sample(index, size) for index in indices]
        images, masks, valid = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))
            for name in ("image", "masks", "valid")
        )
        return Batch(images, masks, valid, number, place)


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
    dataset = _Batches(stream, rounds, share)
    return made_ahead(dataset, start=start * share.accumulate, workers=workers)
