"""Tiles of 16 x 16 float32 sums, multiplied by the processor (AMX), for code that numba compiles.

A tile register has 16 rows of 64 bytes. ``multiply`` adds to one the product of two others: of 16
rows with 32 bfloat16 each, and of 16 rows with 16 pairs each (rows 2i and 2i + 1 of the second
factor side by side, as ``store_pairs`` puts them). Arrays are flat, indices count numbers.
"""

import ctypes
import platform
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from anyres.ops.simd import (
    _INTEGERS,
    _VECTOR,
    LANES,
    _Bfloat16,
    _constant,
    _multiply_add,
    _polynomial,
    _vector,
)

# What ``configure`` reads: palette 1, 8 tiles of 16 rows with 64 bytes each.
PALETTE = np.zeros(64, np.uint8)
PALETTE[0] = 1
PALETTE[16:32:2] = 64
PALETTE[48:56] = LANES

_BYTE, _LONG, _WORD = (ir.IntType(bits) for bits in (8, 64, 32))
_ADDRESS = _BYTE.as_pointer()
_ALL_LANES = ir.Constant(ir.IntType(LANES), 2**LANES - 1)

# 2**f for 0 <= f <= 1, to 8e-5 of the value: a fiftieth of what bfloat16 rounds.
_COARSE_EXP2 = (0.99992522, 0.69583351, 0.22606725, 0.07802446)
# x times the normal distribution function is x (1/2 + x p(2 (x / 4.25)^2 - 1)) for |x| <= 4.25 to
# 4e-5; beyond, 0 and x are as near as 5e-5.
_COARSE_EDGE = 4.25
_COARSE_NORMAL = (
    *(0.16593660, -0.08077755, 0.05573306, -0.03916527, 0.02532268),
    *(-0.01461633, 0.00922929, -0.00602775, 0.00201239),
)


@lru_cache(maxsize=1)
def has_tiles() -> bool:
    """Whether this process may use tiles: the processor has them, and Linux lets it."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    wanted = ("+amx-tile", "+amx-bf16", "+avx512bf16", "+avx512dq")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if any(name not in features.split(",") for name in wanted):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


def _call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = get_or_insert_function(builder.module, kind, f"llvm.x86.{name}")
    return builder.call(function, arguments)


def _tile(kind: Any) -> Any:
    return ir.Constant(_BYTE, kind.literal_value)


def _at(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _ADDRESS)


def _moves(name: str) -> Any:
    """An intrinsic between a tile and rows in memory, ``stride`` numbers apart."""

    def moved(typing: Any, tile: Any, array: Any, index: Any, stride: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kinds = signature.args
            index, stride = (context.cast(builder, args[i], kinds[i], types.intp) for i in (2, 3))
            size = ir.Constant(_LONG, array.dtype.bitwidth // 8)
            address = _at(context, builder, array, args[1], index)
            rows = [_tile(kinds[0]), address, builder.mul(stride, size)]
            _call(builder, name, ir.VoidType(), rows)
            return context.get_dummy_value()

        return types.void(tile, array, index, stride), build

    return intrinsic(prefer_literal=True)(moved)


load_tile = _moves("tileloadd64")
store_tile = _moves("tilestored64")


@intrinsic(prefer_literal=True)
def clear(typing: Any, tile: Any) -> Any:
    """Fill a tile with zeros."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(builder, "tilezero", ir.VoidType(), [_tile(signature.args[0])])
        return context.get_dummy_value()

    return types.void(tile), build


@intrinsic(prefer_literal=True)
def multiply(typing: Any, total: Any, rows: Any, pairs: Any) -> Any:
    """Add the product of two tiles to a third."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(builder, "tdpbf16ps", ir.VoidType(), [_tile(kind) for kind in signature.args])
        return context.get_dummy_value()

    return types.void(total, rows, pairs), build


@intrinsic
def configure(typing: Any, palette: Any) -> Any:
    """Take the tiles into use on this thread, shaped as ``PALETTE`` says."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = ir.Constant(_LONG, 0)
        address = _at(context, builder, palette, args[0], start)
        _call(builder, "ldtilecfg", ir.VoidType(), [address])
        return context.get_dummy_value()

    return types.void(palette), build


@intrinsic
def release(typing: Any) -> Any:
    """Give the tiles back, so that a change of threads need not save them."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(builder, "tilerelease", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def store_pairs(typing: Any, array: Any, index: Any, x: Any, y: Any) -> Any:
    """Write 16 pairs of neighbours in bfloat16, from an index on."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index = context.cast(builder, args[1], signature.args[1], types.intp)
        kind = ir.VectorType(_Bfloat16(), 2 * LANES)
        apart = _call(builder, "avx512bf16.cvtne2ps2bf16.512", kind, [args[3], args[2]])
        order = ir.Constant(
            ir.VectorType(_WORD, 2 * LANES), [i // 2 + i % 2 * LANES for i in range(2 * LANES)]
        )
        halves = builder.bitcast(apart, ir.VectorType(ir.IntType(16), 2 * LANES))
        pairs = builder.shuffle_vector(halves, halves, order)
        address = _at(context, builder, array, args[0], index)
        builder.store(pairs, builder.bitcast(address, pairs.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(array, index, _vector, _vector), build


@intrinsic
def turn(typing: Any, source: Any, start: Any, step: Any, array: Any, to: Any, apart: Any) -> Any:
    """Exchange the rows and columns of 16 x 16 pairs; rows are ``step`` and ``apart`` apart."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def address(kind: Any, which: int, row: int) -> Any:
            first, stride = (
                context.cast(builder, args[i], signature.args[i], types.intp)
                for i in (which + 1, which + 2)
            )
            index = builder.add(first, builder.mul(stride, ir.Constant(_LONG, row)))
            at = _at(context, builder, kind, args[which], index)
            return builder.bitcast(at, _INTEGERS.as_pointer())

        rows = [builder.load(address(source, 0, i), align=2) for i in range(LANES)]
        for half in (8, 4, 2, 1):  # blocks of this side change places
            keep = [i if i & half == 0 else i - half + LANES for i in range(LANES)]
            swap = [i + half if i & half == 0 else i + LANES for i in range(LANES)]
            for i in (i for i in range(LANES) if i & half == 0):
                both = rows[i], rows[i + half]
                rows[i], rows[i + half] = (
                    builder.shuffle_vector(*both, ir.Constant(_INTEGERS, lanes))
                    for lanes in (keep, swap)
                )
        for i, row in enumerate(rows):
            builder.store(row, address(array, 3, i), align=2)
        return context.get_dummy_value()

    return types.void(source, start, step, array, to, apart), build


@intrinsic
def coarse_power(typing: Any, value: Any) -> Any:
    """2 ** value, to 8e-5; nothing is less than 2 ** -100, nan stays nan."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        least, mode = _constant(-100.0), ir.Constant(_WORD, 4)
        value = builder.select(builder.fcmp_ordered(">", least, args[0]), least, args[0])
        down, others = ir.Constant(_WORD, 9), [_constant(0.0), _ALL_LANES, mode]
        rest = _call(builder, "avx512.mask.reduce.ps.512", _VECTOR, [value, down, *others])
        power = _polynomial(builder, _COARSE_EXP2, rest)
        return _call(builder, "avx512.mask.scalef.ps.512", _VECTOR, [power, value, *others])

    return _vector(_vector), build


@intrinsic
def coarse_gelu(typing: Any, value: Any) -> Any:
    """GELU, to 5e-5; nan stays nan."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,) = args
        low, high, zero = (_constant(v) for v in (-_COARSE_EDGE, _COARSE_EDGE, 0.0))
        near = builder.select(builder.fcmp_ordered(">", low, x), low, x)
        near = builder.select(builder.fcmp_ordered("<", high, near), high, near)
        square = builder.fmul(near, near)
        at = _multiply_add(builder, square, _constant(2 / _COARSE_EDGE**2), _constant(-1.0))
        share = _polynomial(builder, _COARSE_NORMAL, at)
        share = _multiply_add(builder, share, near, _constant(0.5))
        share = builder.select(builder.fcmp_ordered(">", zero, share), zero, share)
        return builder.fmul(x, share)

    return _vector(_vector), build


@intrinsic
def inverse(typing: Any, value: Any) -> Any:
    """1 / value."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fdiv(_constant(1.0), args[0])

    return _vector(_vector), build


@intrinsic
def coarse_inverse(typing: Any, value: Any) -> Any:
    """1 / value, to 6.2e-5 of it; nan stays nan."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        others = [_constant(0.0), _ALL_LANES]
        return _call(builder, "avx512.rcp14.ps.512", _VECTOR, [args[0], *others])

    return _vector(_vector), build


@intrinsic
def inverse_root(typing: Any, value: Any) -> Any:
    """1 / sqrt(value)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        function = get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32")
        return builder.fdiv(_constant(1.0), builder.call(function, args))

    return _vector(_vector), build
