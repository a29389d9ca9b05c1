"""Threads that take part in one caller's work and, between two pieces of it, do not go to sleep.

To wake a sleeping thread takes up to a millisecond on a busy host, which is as long as a piece of a
click. So the threads look at a number in memory for a while first (``pieces.changes``, where numba
is), outside Python's lock.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from queue import SimpleQueue
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch

from anyres.ops.kernels import has_numba

T = TypeVar("T")

# Looks before a thread sleeps: some 0.4 ms, about what it takes to wake it.
_LOOKS = 20_000


class Team:
    """Threads of the pool that stay for several calls of ``share``, of one caller.

    Attributes:
        threads: how many, the caller's among them.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        # How many calls there were, and of each thread, whether it is at work.
        self._numbers = np.zeros(threads, np.int64)
        self._asleep = [False] * threads  # of each thread; the caller is the first
        self._bells = [SimpleQueue[None]() for _ in range(threads)]
        self._work: Callable[[], None] | None = None
        self._over = False
        pool = _pool(threads, os.getpid())
        for number in range(1, threads):
            pool.submit(self._stay, number)

    def share(self, work_off: Callable[[Callable[[], T]], None], waiting: deque[T]) -> None:
        """Call ``work_off`` on all threads with what gives the next item until there is none.

        The caller takes items from the first on, the others from the last on. A thread that comes
        too late finds nothing; those that have begun are waited for, whatever happens.

        Raises:
            BaseException: what a thread raised; items not yet begun are dropped.
        """

        def work() -> None:
            try:
                work_off(waiting.pop)
            except BaseException as error:
                waiting.clear()
                errors.append(error)

        errors: list[BaseException] = []
        self._work = work
        self._call()
        try:
            work_off(waiting.popleft)
        finally:
            waiting.clear()
            # They write into our tensors: wait for those that have begun, interrupted or not.
            for number in range(1, self.threads):
                while self._numbers[number]:
                    self._await(0, number, 1)
            self._work = None
        if errors:
            raise errors[0]

    def dismiss(self) -> None:
        """Let the threads go; nothing may be shared any more."""
        self._over = True
        self._call()

    def _call(self) -> None:
        self._numbers[0] += 1
        for number in range(1, self.threads):
            self._wake(number)

    def _stay(self, number: int) -> None:
        """What a thread does until it is dismissed."""
        seen = 0
        while not self._over:
            self._await(number, 0, seen)
            seen = int(self._numbers[0])
            # Said before the work is looked at: who finds it not said may be sure that this thread
            # will find no item.
            self._numbers[number] = 1
            work = self._work
            if work is not None:
                work()
            del work  # and all that it holds
            self._numbers[number] = 0
            self._wake(0)

    def _await(self, number: int, index: int, known: int) -> None:
        """A thread waits until a number is another than is known, or is woken without a reason."""
        if _look(self._numbers, index, known, _LOOKS):
            return
        # In this order, as the one who changes the number looks for sleepers after it.
        self._asleep[number] = True
        if self._numbers[index] == known:
            self._bells[number].get()
        self._asleep[number] = False

    def _wake(self, number: int) -> None:
        if self._asleep[number]:
            self._asleep[number] = False
            self._bells[number].put(None)


def _look(numbers: Any, index: int, known: int, looks: int) -> bool:
    if not has_numba():
        return bool(numbers[index] != known)
    from anyres.ops.pieces import changes

    return changes(numbers, index, known, looks)


@lru_cache(maxsize=1)
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """The threads. They do not survive a fork: ``process`` makes a child start its own."""
    pool = ThreadPoolExecutor(count, thread_name_prefix="anyres")
    started, before = Barrier(count), torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        # A thread takes torch's number over when it first asks; later, that would be another one.
        torch.get_num_threads()
        started.wait()

    for future in [pool.submit(start) for _ in range(count)]:
        future.result()
    # torch keeps a number for each thread, and that set last for threads to come.
    torch.set_num_threads(before)
    return pool
