"""The embedding of a previous mask (SAM's), in bfloat16 with the processor's tiles (AMX), compiled.

Each token's comes of its own 4 x 4 logits: 16 tokens lie in lanes, all up to the last layer is
float32. Importing this module imports numba; compiling waits for a call.
"""

from typing import Any, NamedTuple

import numpy as np

from anyres.ops import pieces, product_tiles, simd_tiles
from anyres.ops.pieces import take
from anyres.ops.product_tiles import SIDE, TILE, tile_product
from anyres.ops.simd import LANES, Floats, compiled, load, multiply_add, splat, spread, store
from anyres.ops.simd_tiles import coarse_gelu, configure, inverse_root, release, turn

SMALL, LARGE = 4, 16  # channels after the first and the second convolution
ZERO = np.float32(0)

_compiled = compiled(__file__, *(str(m.__file__) for m in (pieces, product_tiles, simd_tiles)))


class Downscaling(NamedTuple):
    """Two 2 x 2 convolutions, each with a layer norm and GELU, and a last layer.

    Attributes:
        first: weight (4, 1, 2, 2), bias, and weight and bias of the norm.
        second: the same of the second one, (16, 4, 2, 2).
        eps: of both norms.
        last: weight (C, 16) in order, rounded up to 32 inner channels.
        last_bias: (C).
    """

    first: tuple[Floats, Floats, Floats, Floats]
    second: tuple[Floats, Floats, Floats, Floats]
    eps: tuple[float, float]
    last: Any
    last_bias: Floats


@_compiled
def _norm(
    x: Floats, at: int, step: int, count: int, weight: Floats, bias: Floats, eps: Any
) -> None:
    """Layer norm and GELU over so many vectors, ``step`` apart."""
    share = splat(np.float32(1) / np.float32(count))
    added, squared = splat(ZERO), splat(ZERO)
    for i in range(count):
        added = added + load(x, at + i * step)
    mean = added * share
    for i in range(count):
        v = load(x, at + i * step) - mean
        squared = multiply_add(v, v, squared)
    scale = inverse_root(multiply_add(squared, share, splat(eps)))
    for i in range(count):
        v = (load(x, at + i * step) - mean) * scale
        v = multiply_add(v, spread(weight, i), spread(bias, i))
        store(x, at + i * step, coarse_gelu(v))


@_compiled
def embed(
    queue: Any,
    masks: Floats,
    count: int,
    width: int,
    layers: Downscaling,
    palette: Any,
    space: Floats,
    rows: Any,
    sums: Floats,
    out: Any,
) -> None:
    """Embeddings of all tokens, a row of them after the other from a queue.

    Args:
        queue: of ``pieces``.
        masks: logits (4 count, 4 width).
        count: of rows of tokens, of all prompts.
        width: of the token grid.
        layers: parameters.
        palette: of the tiles.
        space: memory, 3 x 256 numbers.
        rows: memory, (32, 32) bfloat16.
        sums: memory, (32, 32).
        out: (count, width, C).
    """
    configure(palette)
    weight, bias, norm, norm_bias = layers.first
    weight2, bias2, norm2, norm_bias2 = layers.second
    last, last_bias = layers.last, layers.last_bias
    eps, eps2 = np.float32(layers.eps[0]), np.float32(layers.eps[1])
    channels = len(last_bias)
    small, large = LANES * LANES, 2 * LANES * LANES
    rows[:] = 0
    row = take(queue, count)
    while row >= 0:
        for start in range(0, width, SIDE):
            for half in range(0, SIDE, LANES):
                for t in range(LANES):
                    x = min(start + half + t, width - 1)
                    for ky in range(4):
                        for kx in range(4):
                            logit = masks[(4 * row + ky) * 4 * width + 4 * x + kx]
                            space[small + t * LANES + ky * 4 + kx] = logit
                turn(space, small, LANES, space, 0, LANES)
                for corner in range(4):
                    above = (corner // 2 * 8 + corner % 2 * 2) * LANES
                    for o in range(SMALL):
                        v = spread(bias, o)
                        for k in range(4):
                            at = above + (k // 2 * 4 + k % 2) * LANES
                            v = multiply_add(load(space, at), spread(weight, o * 4 + k), v)
                        store(space, small + (o * 4 + corner) * LANES, v)
                    _norm(*(space, small + corner * LANES, 4 * LANES, SMALL, norm, norm_bias, eps))
                for o in range(LARGE):
                    v = spread(bias2, o)
                    for k in range(4 * SMALL):
                        at = small + k * LANES
                        v = multiply_add(load(space, at), spread(weight2, o * 4 * SMALL + k), v)
                    store(space, large + o * LANES, v)
                _norm(space, large, LANES, LARGE, norm2, norm_bias2, eps2)
                turn(space, large, LANES, space, 0, LANES)
                for t in range(LANES):
                    store(rows, (half + t) * SIDE, load(space, t * LANES))
            some = min(SIDE, width - start)
            for o in range(0, channels, SIDE):
                to = o // LANES * TILE
                tile_product(rows, 0, SIDE, SIDE, last, to, to + TILE, 1, sums, 0, SIDE)
                left, right = load(last_bias, o), load(last_bias, o + LANES)
                for r in range(some):
                    here = (row * width + start + r) * channels + o
                    store(out, here, load(sums, r * SIDE) + left)
                    store(out, here + LANES, load(sums, r * SIDE + LANES) + right)
        row = take(queue, count)
    release()
