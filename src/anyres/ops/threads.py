"""Work shared out among ordinary threads, on each of which torch runs on that thread alone.

Inside one operation torch divides the work itself, and all threads meet at its end. Where the work
falls into parts that need nothing of each other, dividing those is better: no waiting between
operations, and what a part makes stays in the cache of one core.

numba's own threads are not used: depending on which library it finds they abort the process when
two threads call at once, or when a process that has used them forks.
"""

from collections import deque
from collections.abc import Callable, Iterable
from threading import get_ident, local
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from anyres.ops.team import Team

T = TypeVar("T")

_here = local()  # .team: that of ``alone``, on the thread that it runs on


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

    team = _team()
    threads = team.threads if team else torch.get_num_threads()
    if threads == 1 or len(waiting) < 2:
        work_off(waiting.popleft)
    elif team is None:
        alone(lambda: share(work, waiting))
    else:
        _here.team = None  # within, there is only this thread
        try:
            team.share(work_off, waiting)
        finally:
            _here.team = team


def share_out(work: Callable[[Any], None], most: int | None = None, phases: int = 1) -> None:
    """Call compiled ``work`` on each thread, with a queue that all have in common.

    It takes one piece after the other from it (``pieces.take``) until none is left. So a thread
    asks for the interpreter once, not for each piece: to wait for another that has it takes as
    long as a small piece does.

    Args:
        work: what is called with the queue.
        most: how many threads there is something to do for.
        phases: of the work.
    """
    from anyres.ops.pieces import FIELDS

    numbers, caller = np.zeros(FIELDS * phases, np.int64), get_ident()
    team = _team()
    threads = team.threads if team else torch.get_num_threads()
    share(
        lambda _: work((numbers, get_ident() != caller)),
        range(threads if most is None else min(threads, most)),
    )


def alone(work: Callable[[], T]) -> T:
    """What a call returns for which torch uses the caller's thread alone; without gradients.

    For small things beside a ``share``: torch divides even 2,048 exponentials among its own
    threads, and those then spin for 4 ms on cores that ours need. ``share`` may be called within;
    the threads that take part stay ready between two calls of it.

    A thread that asks torch for its number for the first time meanwhile takes 1 over.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return work()
    team = Team(threads)
    try:  # at once: threads that nobody lets go would keep the process from ending
        _here.team = team
        torch.set_num_threads(1)
        with torch.no_grad():
            return work()
    finally:
        torch.set_num_threads(threads)
        _here.team = None
        team.dismiss()


def _team() -> Team | None:
    """That of the ``alone`` which this thread is in, if it is."""
    found: Team | None = getattr(_here, "team", None)
    return found
