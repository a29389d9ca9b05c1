"""16 float32 in the lanes of one vector, for code that numba compiles.

The vector is a type of its own with a few operations, each a piece of LLVM's language: the
instructions come out the same whatever an optimiser thinks of the loops around them, and LLVM cuts
them to what the processor has (one AVX-512 register, two of AVX2, four of SSE or NEON). numba's own
vectoriser gives up on ``exp`` without Intel's SVML library.

Arrays are flat, and indices count numbers. Nothing checks bounds. They hold float32, or bfloat16 as
uint16 (numpy has no such type), which is widened when loaded and rounded when stored.
"""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar
from zlib import crc32

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, overload, register_model

P = ParamSpec("P")
T = TypeVar("T")
Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float32]]
Numbers: TypeAlias = Floats | np.ndarray[tuple[int], np.dtype[np.uint16]]

LANES = 16

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_HALVES = ir.VectorType(ir.IntType(16), LANES)
# Lets a product and a sum become one instruction, and nothing else: inf and nan stay what they are.
_FUSE = ("contract",)

# 2**f = 1 + f p(f) for |f| <= 1/2, to 2e-9 of the value.
_EXP2 = (0.69314718, 0.24022648, 0.055503324, 0.009618437, 0.0013398875, 0.0001535336)
# The same for -1 <= f <= 0, to 2e-9.
_SLIGHT_EXP2 = (
    0.693147063,
    0.240224361,
    0.0554907583,
    0.00957917981,
    0.00127474824,
    0.000109023225,
)
_ROUND = 1.5 * 2.0**23  # added, it leaves the nearest integer in the low bits

FADED = 64  # decays below 2**-64 are taken for 0

_LOG2E = 1.4426950408889634
# log(1 + z) = 2 atanh(s) = s (2 + s**2 p(s**2)) with s = z / (2 + z), 0 <= z <= 1, to 1e-9.
_ATANH = (0.66666412, 0.40021697, 0.27999139, 0.28024465)


def compiled(*sources: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Compile at the first call; kept on disk, if there is a folder for it, until a source changes.

    numba looks at the file of the function only, so the contents of all ``sources`` (this file and
    those given) become part of the function's name.
    """
    contents = b"".join(Path(source).read_bytes() for source in (__file__, *sources))

    def compile_later(function: Callable[P, T]) -> Callable[P, T]:
        function.__qualname__ += f"_{crc32(contents):08x}"
        made: Callable[P, T]
        try:
            made = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # neither beside the code nor in the user's home may it write
            made = numba.njit(nogil=True, error_model="numpy")(function)
        return made

    return compile_later


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


_vector = _VectorType()


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _all(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * LANES)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    vector = _HALVES if _is_half(kind) else _VECTOR
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _upper(builder: Any, words: Any) -> Any:
    """The number whose bfloat16 is the lower half of each word."""
    return builder.bitcast(builder.shl(words, _all(_INTEGERS, 16)), _VECTOR)


class _Bfloat16(ir.Type):
    """llvmlite does not know it, LLVM does."""

    def _to_string(self) -> str:
        return "bfloat"


def _rounds_itself(context: Any) -> bool:
    """Whether the processor rounds to bfloat16; if not, LLVM wants a function that is not there."""
    return "+avx512bf16" in context.codegen().magic_tuple()[2]


def _rounded(context: Any, builder: Any, value: Any) -> Any:
    """The nearest bfloat16, to even between two; nan stays nan."""
    if _rounds_itself(context):
        short = builder.fptrunc(value, ir.VectorType(_Bfloat16(), LANES))
        return builder.bitcast(short, _HALVES)
    bits = builder.bitcast(value, _INTEGERS)
    odd = builder.and_(builder.lshr(bits, _all(_INTEGERS, 16)), _all(_INTEGERS, 1))
    up = builder.add(bits, builder.add(odd, _all(_INTEGERS, 0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", value, value)
    whole = builder.select(is_nan, _all(_INTEGERS, 0x7FC00000), up)
    return builder.trunc(builder.lshr(whole, _all(_INTEGERS, 16)), _HALVES)


def _is_half(kind: Any) -> bool:
    return bool(kind.dtype == types.uint16)


def _widened(builder: Any, half: Any) -> Any:
    """One bfloat16 as float32."""
    word = builder.zext(half, ir.IntType(32))
    return builder.bitcast(builder.shl(word, ir.Constant(word.type, 16)), ir.FloatType())


def _multiply_add(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """One instruction where there is one, even if the product is wanted elsewhere too."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fmuladd.v{LANES}f32"
    return builder.call(get_or_insert_function(builder.module, kind, name), [x, y, z])


def _polynomial(builder: Any, factors: tuple[float, ...], x: Any) -> Any:
    """The factor of the lowest power comes first."""
    value = _constant(factors[-1])
    for factor in factors[-2::-1]:
        value = _multiply_add(builder, value, x, _constant(factor))
    return value


def _in_all_lanes(builder: Any, number: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, nothing, _all(_INTEGERS, 0))


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """16 numbers from an index on."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer = _pointer(context, builder, array, args[0], index)
        if _is_half(array):
            return _upper(builder, builder.zext(builder.load(pointer, align=2), _INTEGERS))
        return builder.load(pointer, align=4)

    return _vector(array, index), build


@intrinsic
def number(typing: Any, array: Any, index: Any) -> Any:
    """One number."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        data = context.make_array(array)(context, builder, args[0]).data
        found = builder.load(builder.gep(data, [index]))
        if _is_half(array):
            found = _widened(builder, found)
        return found

    return types.float32(array, index), build


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write 16 numbers from an index on."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer = _pointer(context, builder, array, args[0], index)
        if array.dtype == types.uint16:
            builder.store(_rounded(context, builder, args[2]), pointer, align=2)
        else:
            builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, index, _vector), build


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """One number in all lanes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[0], signature.args[0], types.float32)
        return _in_all_lanes(builder, number)

    return _vector(value), build


@intrinsic
def spread(typing: Any, array: Any, index: Any) -> Any:
    """One number of an array in all lanes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        data = context.make_array(array)(context, builder, args[0]).data
        return _in_all_lanes(builder, builder.load(builder.gep(data, [index])))

    return _vector(array, index), build


@intrinsic
def _mul(typing: Any, x: Any, y: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(*args, flags=_FUSE)

    return _vector(_vector, _vector), build


@intrinsic
def _add(typing: Any, x: Any, y: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args, flags=_FUSE)

    return _vector(_vector, _vector), build


@intrinsic
def _sub(typing: Any, x: Any, y: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fsub(*args, flags=_FUSE)

    return _vector(_vector, _vector), build


@overload(operator.mul)
def _operator_mul(x: Any, y: Any) -> Any:
    def build(x: Any, y: Any) -> Any:
        return _mul(x, y)

    return build if x is y is _vector else None


@overload(operator.add)
def _operator_add(x: Any, y: Any) -> Any:
    def build(x: Any, y: Any) -> Any:
        return _add(x, y)

    return build if x is y is _vector else None


@overload(operator.sub)
def _operator_sub(x: Any, y: Any) -> Any:
    def build(x: Any, y: Any) -> Any:
        return _sub(x, y)

    return build if x is y is _vector else None


def _decay(builder: Any, step: Any, rate: Any) -> Any:
    shifted = _multiply_add(builder, step, rate, _constant(_ROUND))
    whole = builder.fsub(shifted, _constant(_ROUND))
    rest = _multiply_add(builder, step, rate, builder.fneg(whole))
    power = _polynomial(builder, (1.0, *_EXP2), rest)
    exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), _all(_INTEGERS, 23))
    bits = builder.add(builder.bitcast(power, _INTEGERS), exponent)
    gone = builder.fcmp_ordered("<", shifted, _constant(_ROUND - FADED))
    # Chosen among integers, so that it is one instruction with the sum.
    return builder.bitcast(builder.select(gone, _all(_INTEGERS, 0), bits), _VECTOR)


@intrinsic
def decay(typing: Any, step: Any, rate: Any) -> Any:
    """2 ** (step * rate) for products <= 0, to about an ulp; 0 below 2**-64, for -inf too.

    No sum in float32 can tell such a decay from 0, and processors are slow with the subnormal
    numbers that it would lead to.
    """

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _decay(builder, *args)

    return _vector(_vector, _vector), build


@intrinsic
def slight_decay(typing: Any, step: Any, rate: Any) -> Any:
    """2 ** (step * rate) for products from -1 to 0, to about an ulp; in fewer instructions."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _polynomial(builder, (1.0, *_SLIGHT_EXP2), builder.fmul(*args))

    return _vector(_vector, _vector), build


@intrinsic
def is_slight(typing: Any, step: Any, rate: Any) -> Any:
    """Whether step * rate is between -1 and 0 in all lanes."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _everywhere(
            builder, builder.fcmp_ordered(">=", builder.fmul(*args), _constant(-1.0))
        )

    return types.boolean(_vector, _vector), build


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Any:
    """The larger of two numbers in each lane; y if one of them is nan."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return _vector(_vector, _vector), build


@intrinsic
def multiply_add(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """The sum x * y + z, rounded once where the processor can; the operators leave that open."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _multiply_add(builder, *args)

    return _vector(_vector, _vector, _vector), build


@intrinsic
def softplus(typing: Any, value: Any) -> Any:
    """log(1 + exp(value)), to about an ulp of the larger of it and 2**-64; of any value."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        zero = _constant(0.0)
        positive = builder.fcmp_ordered(">", x, zero)
        down = builder.select(positive, builder.fneg(x), x)
        small = _decay(builder, down, _constant(_LOG2E))
        s = builder.fdiv(small, builder.fadd(small, _constant(2.0)))
        square = builder.fmul(s, s)
        series = _polynomial(builder, (2.0, *_ATANH), square)
        return _multiply_add(builder, s, series, builder.select(positive, x, zero))

    return _vector(_vector), build


@intrinsic
def unless_faded(typing: Any, value: Any) -> Any:
    """A decay itself, 0 below 2**-64."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        gone = builder.fcmp_ordered("<", args[0], _constant(2.0**-FADED))
        return builder.select(gone, _constant(0.0), args[0])

    return _vector(_vector), build


def _everywhere(builder: Any, lanes: Any) -> Any:
    bits = builder.bitcast(lanes, ir.IntType(LANES))
    return builder.icmp_unsigned("==", bits, ir.Constant(ir.IntType(LANES), 2**LANES - 1))


@intrinsic
def nonzero(typing: Any, value: Any) -> Any:
    """Whether any lane is other than 0."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        other = builder.fcmp_unordered("!=", args[0], _constant(0.0))
        bits = builder.bitcast(other, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(_vector), build
