"""More for the vectors of ``simd``: neighbours in pairs, what rows have in common, functions."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anyres.ops.simd import (
    _INTEGERS,
    _VECTOR,
    LANES,
    _all,
    _constant,
    _in_all_lanes,
    _is_half,
    _multiply_add,
    _pointer,
    _rounded,
    _upper,
    _vector,
)

# The normal distribution function is 1/2 + x p(2 (x / 5.5)^2 - 1) for |x| <= 5.5, to 5e-8.
_NORMAL_EDGE = 5.5
_NORMAL = (
    *(0.128551945, -0.0641724542, 0.0477368198, -0.0387879349, 0.0320848003),
    *(-0.0261064544, 0.0202676356, -0.0146942697, 0.0105324667, -0.00763269048),
    *(0.0041343621, -0.00126603036, 0.00110413053, -0.00135662174, 0.000513398496),
)


def _neighbours(which: int) -> Any:
    """An intrinsic that loads every other number."""

    def chosen(typing: Any, array: Any, index: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            index = context.cast(builder, args[1], signature.args[1], types.intp)
            if array.dtype == types.uint16:
                data = context.make_array(array)(context, builder, args[0]).data
                pointer = builder.bitcast(builder.gep(data, [index]), _INTEGERS.as_pointer())
                words = builder.load(pointer, align=2)
                if which == 0:
                    return _upper(builder, words)
                upper = builder.and_(words, _all(_INTEGERS, 0xFFFF0000))
                return builder.bitcast(upper, _VECTOR)
            both = []
            for start in (0, LANES):
                at = builder.add(index, ir.Constant(index.type, start))
                pointer = _pointer(context, builder, array, args[0], at)
                both.append(builder.load(pointer, align=4))
            lanes = ir.Constant(_INTEGERS, list(range(which, 2 * LANES, 2)))
            return builder.shuffle_vector(*both, lanes)

        return _vector(array, index), build

    return intrinsic(chosen)


firsts = _neighbours(0)  # of the 16 pairs of neighbours from an index on
seconds = _neighbours(1)


@intrinsic
def normal(typing: Any, value: Any) -> Any:
    """The normal distribution function, to 5e-8 and what float32 rounds."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (value,) = args
        one, edge = _constant(1.0), _constant(_NORMAL_EDGE)
        square = builder.fmul(value, value)
        at = _multiply_add(builder, square, _constant(2 / _NORMAL_EDGE**2), _constant(-1.0))
        at = builder.select(builder.fcmp_ordered(">", at, one), one, at)
        share = _constant(_NORMAL[-1])
        for factor in _NORMAL[-2::-1]:
            share = _multiply_add(builder, share, at, _constant(factor))
        share = _multiply_add(builder, share, value, _constant(0.5))
        share = builder.select(builder.fcmp_ordered(">", value, edge), one, share)
        below = builder.fcmp_ordered("<", value, builder.fneg(edge))
        return builder.select(below, _constant(0.0), share)

    return _vector(_vector), build


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@intrinsic
def larger(typing: Any, x: Any, y: Any) -> Any:
    """The larger of two numbers in each lane; beside a nan the second, whichever it is."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _larger(builder, *args)

    return _vector(_vector, _vector), build


@intrinsic
def unless_nan(typing: Any, value: Any, source: Any) -> Any:
    """A value; nan in lanes where what it was made from is."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_unordered("uno", args[1], args[1]), *args[::-1])

    return _vector(_vector, _vector), build


def _across(join: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic that joins all lanes into one number."""

    def joined(typing: Any, value: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector, half = args[0], LANES
            while half > 1:
                half //= 2
                lanes = ir.Constant(_INTEGERS, [(i + half) % LANES for i in range(LANES)])
                vector = join(builder, vector, builder.shuffle_vector(vector, vector, lanes))
            return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

        return types.float32(_vector), build

    return intrinsic(joined)


total = _across(lambda builder, x, y: builder.fadd(x, y))
largest = _across(_larger)


@intrinsic
def quotient(typing: Any, x: Any, y: Any) -> Any:
    """The quotient x / y."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fdiv(*args)

    return _vector(_vector, _vector), build


@intrinsic
def put_number(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write one number."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        data = context.make_array(array)(context, builder, args[0]).data
        found = args[2]
        if _is_half(array):
            lanes = _rounded(context, builder, _in_all_lanes(builder, found))
            found = builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0))
        builder.store(found, builder.gep(data, [index]))
        return context.get_dummy_value()

    return types.void(array, index, types.float32), build


@intrinsic
def sums(typing: Any, array: Any, index: Any) -> Any:
    """The sums of 16 vectors that lie one after the other, as one vector in their order."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        rows = []
        for i in range(LANES):
            at = builder.add(index, ir.Constant(index.type, i * LANES))
            rows.append(builder.load(_pointer(context, builder, array, args[0], at), align=4))
        even, odd = (ir.Constant(_INTEGERS, list(range(i, 2 * LANES, 2))) for i in (0, 1))
        while len(rows) > 1:  # neighbours are added, in rows and in lanes alike
            rows = [
                builder.fadd(builder.shuffle_vector(x, y, even), builder.shuffle_vector(x, y, odd))
                for x, y in zip(rows[::2], rows[1::2], strict=True)
            ]
        return rows[0]

    return _vector(array, index), build
