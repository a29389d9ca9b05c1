"""Work shared out among ordinary threads, on each of which torch runs on that thread alone.

Inside one operation torch divides the work itself, and all threads meet at its end. Where the work
falls into parts that need nothing of each other, dividing those is better: no waiting between
operations, and what a part makes stays in the cache of one core.

numba's own threads are not used: depending on which library it finds they abort the process when
two threads call at once, or when a process that has used them forks.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from threading import Barrier, get_ident, local
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")

_here = local()  # .threads: how many ``alone`` has, on the thread that it runs on


def runs_in_parts(x: Tensor) -> bool:
    """Whether a tensor's work may be cut up for threads: on a CPU, without gradients.

    Recorded graphs and autocast belong to the thread that began them, so they are left whole.
    """
    cpu = x.device.type == "cpu"
    return cpu and not (torch.is_grad_enabled() or in_graph() or torch.is_autocast_enabled("cpu"))


def in_graph() -> bool:
    """Whether torch records a graph: for ``torch.compile``, ``torch.export`` or a trace."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced or torch.compiler.is_compiling()


def share(work: Callable[[T], None], items: Iterable[T]) -> None:
    """Call ``work`` with each item, on as many threads as torch has; without gradients.

    The caller's is one of them; it takes items from the first on, the others from the last on, so
    that of a picture in parts each finds most often what it made before. Returns when all calls
    have. Which thread gets which item is left to chance, so calls must write to different places.
    With one thread, or one item, the caller does it all.

    Raises:
        Exception: what a call raised, the first of them; items not yet begun are dropped.
    """
    waiting = deque(items)
    inference = torch.is_inference_mode_enabled()

    def work_off(next_one: Callable[[], T]) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                try:
                    item = next_one()
                except IndexError:
                    return
                work(item)

    within = getattr(_here, "threads", 0)
    threads = within or torch.get_num_threads()
    if threads == 1 or len(waiting) < 2:
        work_off(waiting.popleft)
        return
    pool = _pool(threads, os.getpid())
    futures = [pool.submit(work_off, waiting.pop) for _ in range(min(threads, len(waiting)) - 1)]
    errors: list[BaseException] = []
    try:
        # The caller is one of them: to wake another thread takes as long as a small item.
        with nullcontext() if within else _on_this_thread_alone(threads):
            work_off(waiting.popleft)
        for future in futures:
            # One that has not woken yet has nothing left to do.
            if not future.cancel() and (error := future.exception()) is not None:
                waiting.clear()
                errors.append(error)
    finally:
        waiting.clear()
        # They write into our tensors: wait for those that have begun, interrupted or not.
        for future in futures:
            if not future.cancel():
                future.exception()
    if errors:
        raise errors[0]


def share_out(work: Callable[[Any], None]) -> None:
    """Call compiled ``work`` on each thread, with a queue that all have in common.

    It takes one piece after the other from it (``simd_rows.take``) until none is left. So a thread
    asks for the interpreter once, not for each piece: to wait for another that has it takes as
    long as a small piece does.
    """
    begun, caller = np.zeros(3, np.int64), get_ident()  # of all, from the last on, from the first
    threads = getattr(_here, "threads", 0) or torch.get_num_threads()
    share(lambda _: work((begun, get_ident() != caller)), range(threads))


@contextmanager
def _on_this_thread_alone(threads: int) -> Iterator[None]:
    # A thread that asks torch for the first time meanwhile takes this number over.
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def alone(work: Callable[[], T]) -> T:
    """What a call returns for which torch uses the caller's thread alone; without gradients.

    For small things beside a ``share``: torch divides even 2,048 exponentials among its own
    threads, and those then spin for 4 ms on cores that ours need. ``share`` may be called within.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return work()
    _here.threads = threads
    try:
        with _on_this_thread_alone(threads), torch.no_grad():
            return work()
    finally:
        _here.threads = 0


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
