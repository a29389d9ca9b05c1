"""The same work in several processes: pictures are handed out as they are asked for."""

import multiprocessing
import signal
import traceback
from collections.abc import Iterator, Sequence
from itertools import groupby
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, cast

from anyres.data.datasets import ObjectRef
from anyres.errors import StateError
from anyres.evaluate.choice import Choice
from anyres.evaluate.journal import Result
from anyres.evaluate.run import Task, work

_MORE, _DONE = "more", "done"


def work_in_processes(
    task: Task, choice: Choice, refs: Sequence[ObjectRef], workers: int, threads: int
) -> Iterator[Result]:
    """Try a model on objects in several processes, each with a model of its own.

    Args:
        task: what to do.
        choice: the model.
        refs: the objects; those of one picture are together, and go to one process.
        workers: how many processes.
        threads: of each.

    Yields:
        A result for each object, in the order in which they come.

    Raises:
        StateError: a process died, which is mostly for want of memory.
        AnyresError: what a process raised.
    """
    pictures = [list(group) for _, group in groupby(refs, key=lambda ref: ref.image)]
    context = multiprocessing.get_context("spawn")
    processes: dict[Connection, SpawnProcess] = {}
    try:
        for _ in range(min(workers, len(pictures))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, task, choice, threads), daemon=True
            )
            process.start()
            # Its end is its own: should it die, ours tells.
            theirs.close()
            processes[ours] = process
        yield from _hand_out(iter(pictures), dict(processes))
    finally:
        for pipe, process in processes.items():
            pipe.close()
            process.terminate()
            process.join()


def _hand_out(
    pictures: Iterator[list[ObjectRef]], processes: dict[Connection, SpawnProcess]
) -> Iterator[Result]:
    """Yield what processes answer until all are done."""
    while processes:
        for ready in wait(list(processes)):
            pipe = cast("Connection[Any, Any]", ready)
            try:
                message = pipe.recv()
                if message == _MORE:
                    pipe.send(next(pictures, []))
            except (EOFError, OSError):
                processes[pipe].join()
                raise StateError(
                    f"a worker died (exit code {processes[pipe].exitcode}), perhaps for want of "
                    "memory; the same command with fewer --workers goes on where it stopped"
                ) from None
            if isinstance(message, BaseException):
                raise message
            if message == _DONE:
                del processes[pipe]
            elif message != _MORE:
                yield message


def _serve(pipe: Connection, task: Task, choice: Choice, threads: int) -> None:
    """Work until nothing is left, or until nobody listens any more."""
    # Ctrl-C reaches all processes; the first of them decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def refs() -> Iterator[ObjectRef]:
        while True:
            pipe.send(_MORE)
            picture = pipe.recv()
            if not picture:
                return
            yield from picture

    try:
        for result in work(task, choice.load(threads), refs()):
            pipe.send(result)
        pipe.send(_DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        error.add_note(traceback.format_exc())
        pipe.send(error)
