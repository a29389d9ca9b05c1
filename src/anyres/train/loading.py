"""Batches by number, made ahead in other processes, and shared out between those that train."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch

from anyres.errors import AnyresError

_Made = TypeVar("_Made")


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

    def of(self, number: int, plan: Sequence[tuple[int, int]]) -> tuple[int, range, int]:
        """Tell what batch ``number`` of this process is made of.

        Args:
            number: from 0; a step has ``accumulate`` of them.
            plan: a round of (size, samples).

        Returns:
            The size, the samples' places in the stream, and that of the first in its step.
        """
        step, part = divmod(number, self.accumulate)
        rounds, turn = divmod(step, len(plan))
        size, some = plan[turn]
        counts = [samples for _, samples in plan]
        before = rounds * sum(counts) + sum(counts[:turn])
        place = (part * self.size + self.rank) * some
        first = before * self.accumulate * self.size + place
        return size, range(first, first + some), place


class _From(torch.utils.data.Sampler[int]):
    """The numbers from ``start`` on, without end."""

    def __init__(self, start: int) -> None:
        """Keep the first number."""
        self.start = start

    def __iter__(self) -> Iterator[int]:
        """Count."""
        return count(self.start)


def made_ahead(
    numbered: torch.utils.data.Dataset[_Made], *, start: int, workers: int
) -> Iterator[_Made]:
    """Yield what stands under ``start``, ``start`` + 1, ... without end, made in other processes.

    Args:
        numbered: gives batches by their numbers.
        start: number of the first.
        workers: processes; 0 makes the batches in this one.
    """
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        numbered,
        batch_size=None,
        sampler=_From(start),
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
    """Keep a worker on one thread, and working when the run is asked to stop.

    Ctrl-C and ``torchrun`` tell all of a group, systemd and containers each process. It is for the
    run, which then takes its last step and ends its workers. They are not deaf: when the run's
    Python ends, it sends a SIGTERM to those left, and would wait for them for ever.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # which tells the sender; not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed_the_run, daemon=True).start()
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def _heed_the_run() -> None:
    """End this worker at a SIGTERM of the process that began it, and of no other."""
    run = multiprocessing.parent_process()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != (run and run.pid):
        pass
    os._exit(0)
