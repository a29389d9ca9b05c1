"""Go through the objects of a data set: read ahead, ask the model, note the results."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from anyres.data.datasets import Dataset, ObjectRef
from anyres.errors import AnyresError
from anyres.evaluate.figures import measure
from anyres.evaluate.journal import Result
from anyres.evaluate.protocols import Promptable, Rules, Target, Trial

_AHEAD = 2

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Task:
    """What is asked of a model.

    Attributes:
        dataset: pictures and objects.
        rules: the protocol.
        strict: a picture or mask that cannot be read stops the run; otherwise it is a result of
            its own, with ``problem`` in place of figures.
    """

    dataset: Dataset
    rules: Rules
    strict: bool = False


class _Item(NamedTuple):
    """An object that is read, or what kept it from being read."""

    ref: ObjectRef
    picture: NDArray[np.uint8]
    target: Target


def work(task: Task, model: Promptable, refs: Iterable[ObjectRef]) -> Iterator[Result]:
    """Try a model on objects, and yield a result for each.

    Args:
        task: what to do.
        model: what is tried.
        refs: the objects; those of one picture should be together.

    Raises:
        AnyresError: a picture or mask cannot be read and the task is ``strict``.
    """
    picture: NDArray[np.uint8] | None = None
    encoder_seconds = 0.0
    for item in ahead(refs, _Reader(task)):
        if isinstance(item, dict):
            yield item
            continue
        if picture is None:
            # What is compiled or allocated at first is no part of the model's speed.
            _encode(model, item.picture)
            task.rules.run(model, item.target, item.ref.key)
        if picture is not item.picture:
            picture = item.picture
            encoder_seconds = _encode(model, picture)
        trial = task.rules.run(model, item.target, item.ref.key)
        yield {
            "key": item.ref.key,
            **measure(task.rules, trial, item.target, item.ref),
            "encoder_seconds": round(encoder_seconds, 6),
            "prompt_seconds": [round(seconds, 6) for seconds in trial.seconds],
        }


def replay(
    task: Task, model: Promptable, ref: ObjectRef
) -> tuple[NDArray[np.uint8], Target, Trial]:
    """Try an object once more, to look at it: its picture, its truth and what came."""
    picture, target = task.dataset.picture(ref), Target(task.dataset.target(ref))
    model.set_image(picture)
    return picture, target, task.rules.run(model, target, ref.key)


def _encode(model: Promptable, picture: NDArray[np.uint8]) -> float:
    """Set the picture; return the seconds until it is."""
    start = time.perf_counter()
    model.set_image(picture)
    place = getattr(model, "device", None)
    if place is not None and place.type == "cuda":
        # Otherwise the first prompt would wait for the encoder and be called slow.
        import torch

        torch.cuda.synchronize(place)
    return time.perf_counter() - start


class _Reader:
    """Reads objects; the picture of the last one is kept for its neighbours."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._last: tuple[Path, NDArray[np.uint8]] | None = None

    def __call__(self, ref: ObjectRef) -> _Item | Result:
        """Read one."""
        dataset = self._task.dataset
        try:
            if self._last is None or self._last[0] != ref.image:
                self._last = None
                self._last = ref.image, dataset.picture(ref)
            return _Item(ref, self._last[1], Target(dataset.target(ref)))
        except AnyresError as error:
            if self._task.strict:
                raise
            return {"key": ref.key, "problem": str(error)}


def ahead(items: Iterable[T], read: Callable[[T], R]) -> Iterator[R]:
    """Apply a function to items in a thread, at most two ahead of who asks for the results."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for item in items:
                waiting.append(thread.submit(read, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
