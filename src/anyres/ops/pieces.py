"""Pieces of work that compiled code on several threads takes from one queue, without Python.

A queue is numbers that all threads have in common, and whether this thread takes from the end
(``threads.share_out`` makes it): so that of a picture in parts each thread finds most often what it
made before. Work may have phases, each with pieces of its own, that wait for the one before.

Importing this module imports numba; compiling waits for a call.
"""

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from anyres.ops.simd import compiled

FIELDS = 4  # of a phase: pieces that were asked for, taken from the end, from the first on, done
_X86 = platform.machine().lower() in {"x86_64", "amd64"}


@intrinsic
def _one_more(typing: Any, array: Any, index: Any) -> Any:
    """A number, which becomes one more; no two threads get the same."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        data = context.make_array(array)(context, builder, args[0]).data
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", builder.gep(data, [index]), one, "acq_rel")

    return types.int64(array, index), build


@intrinsic
def _now(typing: Any, array: Any, index: Any) -> Any:
    """A number as other threads left it, after a short rest for whatever shares the core."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        if _X86:
            nothing = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(get_or_insert_function(builder.module, nothing, name), [])
        data = context.make_array(array)(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [index]), "acquire", 8)

    return types.int64(array, index), build


@compiled(__file__)
def take(queue: Any, count: int, phase: int = 0) -> Any:
    """The next of a phase's so many pieces for this thread, -1 if none is left."""
    numbers, from_end = queue
    at = phase * FIELDS
    if _one_more(numbers, at) >= count:
        return -1
    if from_end:
        return count - 1 - _one_more(numbers, at + 1)
    return _one_more(numbers, at + 2)


@compiled(__file__)
def finish(queue: Any, phase: int = 0) -> None:
    """A piece that was taken is done."""
    _one_more(queue[0], phase * FIELDS + 3)


@compiled(__file__)
def wait(queue: Any, count: int, phase: int = 0) -> None:
    """Until all of a phase's so many pieces are done; each was taken by a thread that runs."""
    while _now(queue[0], phase * FIELDS + 3) < count:
        pass


@compiled(__file__)
def changes(numbers: Any, index: int, known: int, looks: int) -> bool:
    """Whether a number becomes another than is known within so many looks."""
    for _ in range(looks):  # noqa: SIM110 -- numba knows no generators within any()
        if _now(numbers, index) != known:
            return True
    return False
