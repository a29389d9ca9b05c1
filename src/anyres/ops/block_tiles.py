"""A window block in bfloat16 on a processor with tiles (AMX), compiled: products and all between.

A group's tokens lie in columns, 16 to a stripe: channels of a token one below the other, two
channels of a token side by side, as a product wants its second factor. So weights are first factors
as they lie, what a product yields is put where the next finds it, and norms, the softmax and the
rotation go down columns, 16 tokens at a time, without a sum across lanes.

Numbers are bfloat16 as uint16, parameters float32 but for weights; channels, those of a head or
the MLP, and slots are multiples of 32. A window's tokens begin at a multiple of 32 columns; columns
that are left over repeat its first token and are never put back. Nothing checks this. A stripe of C
channels has C * 16 numbers; other shapes: ``block_columns``.
"""

import math
from typing import Any

import numpy as np

from anyres.ops import block_columns, product_tiles, simd_rows, simd_tiles
from anyres.ops.block_columns import Layout, Linear, Memory, Norm, Parameters, Sizes
from anyres.ops.product_tiles import SIDE, tile_product
from anyres.ops.simd import LANES, Floats, compiled, load, splat, store
from anyres.ops.simd_rows import firsts, larger, seconds, total
from anyres.ops.simd_tiles import (
    coarse_gelu,
    coarse_power,
    configure,
    inverse,
    inverse_root,
    release,
    store_pairs,
    turn,
)

PANEL = 2**19  # numbers within the MLP at a time: with all else what a core's cache holds
ZERO, ONE = np.float32(0), np.float32(1)
LOG2E = np.float32(math.log2(math.e))

_sources = (block_columns, product_tiles, simd_rows, simd_tiles)
_compiled = compiled(__file__, *(str(source.__file__) for source in _sources))


@_compiled
def panel(hidden: int) -> int:
    """Columns that go through products at a time."""
    return max(1, PANEL // (hidden * SIDE)) * SIDE


@_compiled
def _norm(source: Any, out: Any, at: int, norm: Norm, width: int) -> None:
    """Layer norm of a stripe."""
    x_sum, y_sum = splat(ZERO), splat(ZERO)
    for i in range(0, width * LANES, SIDE):
        x_sum = x_sum + firsts(source, at + i)
        y_sum = y_sum + seconds(source, at + i)
    share = splat(ONE / np.float32(width))
    mean = (x_sum + y_sum) * share
    x_sum, y_sum = splat(ZERO), splat(ZERO)
    for i in range(0, width * LANES, SIDE):
        x, y = firsts(source, at + i) - mean, seconds(source, at + i) - mean
        x_sum = x * x + x_sum
        y_sum = y * y + y_sum
    scale = inverse_root((x_sum + y_sum) * share + splat(norm.eps))
    for i in range(0, width, 2):
        x = (firsts(source, at + i * LANES) - mean) * scale
        y = (seconds(source, at + i * LANES) - mean) * scale
        x = x * splat(norm.gain[i]) + splat(norm.shift[i])
        y = y * splat(norm.gain[i + 1]) + splat(norm.shift[i + 1])
        store_pairs(out, at + i * LANES, x, y)


@_compiled
def _fetch(tokens: Any, places: Any, column: int, memory: Memory, width: int) -> None:
    """A stripe's tokens into columns."""
    at = column * width
    for i in range(0, width, SIDE):
        for j in range(LANES):
            place = places[column + j]
            start = (place if place >= 0 else -1 - place) * width + i
            store(memory.rows, j * SIDE, load(tokens, start))
            store(memory.rows, j * SIDE + LANES, load(tokens, start + LANES))
        turn(memory.rows, 0, SIDE, memory.summed, at + i * LANES, SIDE)


@_compiled
def _put_back(memory: Memory, places: Any, column: int, out: Any, width: int) -> None:
    """A stripe's columns to their tokens' places."""
    at = column * width
    for i in range(0, width, SIDE):
        turn(memory.summed, at + i * LANES, SIDE, memory.rows, 0, SIDE)
        for j in range(LANES):
            place = places[column + j]
            if place >= 0:
                store(out, place * width + i, load(memory.rows, j * SIDE))
                store(out, place * width + i + LANES, load(memory.rows, j * SIDE + LANES))


@_compiled
def _add(
    weight: Any,
    bias: Floats,
    inner: int,
    source: Any,
    begin: int,
    end: int,
    offset: int,
    memory: Memory,
    width: int,
) -> None:
    """Add a linear layer's answer to the sum, for columns from ``begin`` to ``end``."""
    sums, summed = memory.sums, memory.summed
    for o in range(0, width, SIDE):
        for t in range(begin, end, SIDE):
            first = (t - offset) * inner
            tile_product(
                weight,
                o * inner,
                inner,
                SIDE,
                source,
                first,
                first + LANES * inner,
                inner // SIDE,
                sums,
                0,
                SIDE,
            )
            for half in range(0, SIDE, LANES):
                at = (t + half) * width + o * LANES
                for r in range(0, SIDE, 2):
                    x = load(sums, r * SIDE + half) + splat(bias[o + r])
                    y = load(sums, r * SIDE + SIDE + half) + splat(bias[o + r + 1])
                    x = x + firsts(summed, at + r * LANES)
                    y = y + seconds(summed, at + r * LANES)
                    store_pairs(summed, at + r * LANES, x, y)


@_compiled
def _widen(
    weight: Any, bias: Floats, begin: int, end: int, memory: Memory, width: int, hidden: int
) -> None:
    """The MLP's first layer and GELU, for columns from ``begin`` to ``end``."""
    sums, inner = memory.sums, memory.inner
    for o in range(0, hidden, SIDE):
        for t in range(begin, end, SIDE):
            first = t * width
            tile_product(
                weight,
                o * width,
                width,
                SIDE,
                memory.x,
                first,
                first + LANES * width,
                width // SIDE,
                sums,
                0,
                SIDE,
            )
            for half in range(0, SIDE, LANES):
                at = (t - begin + half) * hidden + o * LANES
                for r in range(0, SIDE, 2):
                    x = load(sums, r * SIDE + half) + splat(bias[o + r])
                    y = load(sums, r * SIDE + SIDE + half) + splat(bias[o + r + 1])
                    store_pairs(inner, at + r * LANES, coarse_gelu(x), coarse_gelu(y))


@_compiled
def _project(
    weight: Any, bias: Floats, begin: int, end: int, blocks: Any, memory: Memory, sizes: Sizes
) -> None:
    """Queries, keys and values of some columns, the first two turned by their places."""
    width, keys = sizes.width, sizes.slots
    depth = width // sizes.heads
    sums, cos, sin = memory.sums, memory.cos, memory.sin
    scale = splat(LOG2E / math.sqrt(np.float32(depth)))
    for o in range(0, 3 * width, SIDE):
        kind, channel = o // width, o % width
        head, inside = channel // depth, channel % depth
        for t in range(begin, end, SIDE):
            first = t * width
            tile_product(
                weight,
                o * width,
                width,
                SIDE,
                memory.x,
                first,
                first + LANES * width,
                width // SIDE,
                sums,
                0,
                SIDE,
            )
            block = t // SIDE
            window, key, part = blocks[block, 0], blocks[block, 1], blocks[block, 2]
            place = window * sizes.heads + head
            if kind == 2:
                at = (place * keys + key) * depth + inside * SIDE
                for r in range(SIDE):
                    added = splat(bias[o + r])
                    store(memory.v, at + r * SIDE, load(sums, r * SIDE) + added)
                    store(memory.v, at + r * SIDE + LANES, load(sums, r * SIDE + LANES) + added)
                continue
            for half in range(0, SIDE, LANES):
                at = (t + half) * width + channel * LANES
                angle = (part * (depth // 2) + inside // 2) * keys + key + half
                for r in range(0, SIDE, 2):
                    x = load(sums, r * SIDE + half) + splat(bias[o + r])
                    y = load(sums, r * SIDE + SIDE + half) + splat(bias[o + r + 1])
                    c, s = load(cos, angle), load(sin, angle)
                    angle += keys
                    if kind == 0:
                        c, s = c * scale, s * scale
                        store_pairs(memory.q, at + r * LANES, x * c + y * s, y * c - x * s)
                    else:
                        store_pairs(memory.rows, r * LANES, x * c + y * s, y * c - x * s)
                if kind == 1:
                    to = (place * (depth // SIDE) + inside // SIDE) * keys + key + half
                    turn(memory.rows, 0, SIDE, memory.k, to * SIDE, SIDE)


@_compiled
def _pad(window: int, layout: Layout, of: Parameters, memory: Memory, sizes: Sizes) -> None:
    """A window's keys and values of padding."""
    width, keys = sizes.width, sizes.slots
    depth = width // sizes.heads
    real, part = layout.windows[window, 2], layout.windows[window, 3]
    for head in range(sizes.heads):
        place = window * sizes.heads + head
        of_head = width + head * depth
        for key in range(real, keys):
            angle = layout.slots[part, key] * (depth // 2)
            for i in range(0, depth, SIDE):
                c, s = load(of.cos, angle + i // 2), load(of.sin, angle + i // 2)
                x, y = firsts(of.padding, of_head + i), seconds(of.padding, of_head + i)
                to = (place * (depth // SIDE) + i // SIDE) * keys + key
                store_pairs(memory.k, to * SIDE, x * c + y * s, y * c - x * s)
            at = (place * keys + key // SIDE * SIDE) * depth + key % SIDE
            for i in range(depth):
                memory.v[at + i * SIDE] = of.pads[width + of_head + i]


@_compiled
def _attend(window: int, head: int, begin: int, end: int, memory: Memory, sizes: Sizes) -> None:
    """One head of a window, for queries in columns from ``begin`` to ``end``."""
    width, keys = sizes.width, sizes.slots
    depth = width // sizes.heads
    sums, powers = memory.sums, memory.powers
    of_keys = (window * sizes.heads + head) * keys * depth
    for t in range(begin, end, SIDE):
        first = t * width + head * depth * LANES
        second = first + LANES * width
        for key in range(0, keys, SIDE):
            tile_product(
                memory.k,
                of_keys + key * SIDE,
                SIDE,
                keys * SIDE,
                memory.q,
                first,
                second,
                depth // SIDE,
                sums,
                key * SIDE,
                SIDE,
            )
        for half in range(0, SIDE, LANES):
            top, other = load(sums, half), load(sums, SIDE + half)
            for key in range(2, keys, 2):
                top = larger(load(sums, key * SIDE + half), top)
                other = larger(load(sums, key * SIDE + SIDE + half), other)
            top = larger(other, top)
            passed, others = splat(ZERO), splat(ZERO)
            for key in range(0, keys, 2):
                x = coarse_power(load(sums, key * SIDE + half) - top)
                y = coarse_power(load(sums, key * SIDE + SIDE + half) - top)
                passed, others = passed + x, others + y
                store_pairs(powers, (half * keys) + key * LANES, x, y)
            store(memory.scales, half, inverse(passed + others))
        for i in range(0, depth, SIDE):
            tile_product(
                memory.v,
                of_keys + i * SIDE,
                SIDE,
                depth * SIDE,
                powers,
                0,
                LANES * keys,
                keys // SIDE,
                sums,
                0,
                SIDE,
            )
            for half in range(0, SIDE, LANES):
                scale = load(memory.scales, half)
                at = (t + half) * width + (head * depth + i) * LANES
                for r in range(0, SIDE, 2):
                    x = load(sums, r * SIDE + half) * scale
                    y = load(sums, r * SIDE + SIDE + half) * scale
                    store_pairs(memory.x, at + r * LANES, x, y)


@_compiled
def project_padding(padding: Any, layer: Linear, out: Floats) -> None:
    """The linear layer's answer to one token."""
    width = len(padding)
    for o in range(len(out)):
        passed = splat(ZERO)
        for i in range(0, width, LANES):
            passed = load(padding, i) * load(layer.weight, o * width + i) + passed
        out[o] = total(passed) + layer.bias[o]


@_compiled
def _tables(layout: Layout, of: Parameters, memory: Memory, sizes: Sizes) -> None:
    """Angles in the order of each part's keys, of one pair side by side."""
    half, keys = sizes.width // sizes.heads // 2, sizes.slots
    for part in range(len(layout.slots)):
        for key in range(keys):
            start = layout.slots[part, key] * half
            for pair in range(half):
                to = (part * half + pair) * keys + key
                memory.cos[to], memory.sin[to] = of.cos[start + pair], of.sin[start + pair]


@_compiled
def run(
    tokens: Any,
    layout: Layout,
    of: Parameters,
    memory: Memory,
    sizes: Sizes,
    palette: Any,
    out: Any,
) -> None:
    """A group of windows through the whole block."""
    columns, width, hidden = len(layout.places), sizes.width, sizes.hidden
    step = panel(hidden)
    _tables(layout, of, memory, sizes)
    for t in range(0, columns, LANES):
        _fetch(tokens, layout.places, t, memory, width)
        _norm(memory.summed, memory.x, t * width, of.first, width)
    configure(palette)
    for t in range(0, columns, step):
        end = min(t + step, columns)
        _project(of.qkv.weight, of.qkv.bias, t, end, layout.blocks, memory, sizes)
    for window in range(len(layout.windows)):
        if layout.windows[window, 2] < sizes.slots:
            _pad(window, layout, of, memory, sizes)
        begin, end = layout.windows[window, 0], layout.windows[window, 1]
        for head in range(sizes.heads):
            _attend(window, head, begin, end, memory, sizes)
    for begin in range(0, columns, step):
        end = min(begin + step, columns)
        _add(of.proj.weight, of.proj.bias, width, memory.x, begin, end, 0, memory, width)
        for t in range(begin, end, LANES):
            _norm(memory.summed, memory.x, t * width, of.second, width)
        _widen(of.fc1.weight, of.fc1.bias, begin, end, memory, width, hidden)
        _add(of.fc2.weight, of.fc2.bias, hidden, memory.inner, begin, end, begin, memory, width)
    release()
    for t in range(0, columns, LANES):
        _put_back(memory, layout.places, t, out, width)
