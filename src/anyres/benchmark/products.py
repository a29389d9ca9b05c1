"""The matrix products of an image encoder, and how long this machine needs for them alone.

The GEMM bound of an encoder is the time for its products and nothing else: every linear layer,
every convolution that is one (as a product of its patches), scores and values of every attention.
Queries are real tokens only; padding takes part as keys and values. Each product is timed at its
real shape, with operands that stay where the last call left them, in two ways: whole, and in pieces
small enough for the cache, one thread a piece; the faster counts. So the bound is what no order of
the work in torch would beat, not what the encoder happens to call.
"""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import NamedTuple, TypeAlias

import torch

from anyres.models.config import (
    STEM_STRIDE,
    EncoderConfig,
    HRSAMConfig,
    TinyViTConfig,
    ViTConfig,
)
from anyres.ops.threads import share
from anyres.ops.windows import WindowPlan, window_plan

_PIECE_ROWS = 1024  # of a linear layer
_PIECE_SCORES = 2**19  # of attention
_WHOLE = 2**24  # elements of the largest operand or result that is made to time a product


class Product(NamedTuple):
    """``batch`` independent products (rows, inner) by (inner, columns)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.inner * self.columns


Products = Counter[Product]
# Makes the operands of a product and returns what multiplies them.
Way: TypeAlias = Callable[[Product, torch.dtype, torch.device], Callable[[], None]]


def encoder_products(config: EncoderConfig, grid_hw: tuple[int, int]) -> Products:
    """All products of an encoder for one picture of this token grid."""
    found: Products = Counter()
    if isinstance(config, ViTConfig):
        _vit(found, config, grid_hw)
    elif isinstance(config, TinyViTConfig):
        _tiny_vit(found, config, grid_hw)
    else:
        _hrsam(found, config, grid_hw)
    return found


def _linear(found: Products, rows: int, inner: int, *columns: int) -> None:
    for width in columns:
        found[Product(1, rows, inner, width)] += 1


def _attention(found: Products, problems: int, queries: int, keys: int, head: int) -> None:
    found[Product(problems, queries, head, keys)] += 1
    found[Product(problems, queries, keys, head)] += 1


def _hrsam(found: Products, config: HRSAMConfig, grid_hw: tuple[int, int]) -> None:
    dim, tokens = config.dim, math.prod(grid_hw)
    grids = [grid_hw]
    if config.anchor:
        grids.append((config.anchor // config.patch,) * 2)
    for grid in grids:
        count = math.prod(grid)
        _embedding(found, config, count)
        for i in range(config.blocks):
            is_shifted = i % 2 == 1 and (grid is grid_hw or config.shift_anchor)
            plan = window_plan(grid, config.window, shifted=is_shifted)
            for queries, windows in _real_tokens(plan).items():
                problems = windows * config.heads
                _attention(found, problems, queries, config.window**2, dim // config.heads)
            hidden = int(dim * config.mlp_ratio)
            _linear(found, count, dim, 3 * dim, dim, hidden)
            _linear(found, count, hidden, dim)
    scans = [math.prod(grid) for grid in grids]
    if config.anchor:
        scans.append(sum(scans))
    for _ in config.out_blocks:
        for count in scans:
            _linear(found, count, dim, 2 * dim, dim + 2 * config.state, dim)
        _linear(found, tokens, dim * len(grids), config.neck)


def _embedding(found: Products, config: HRSAMConfig | ViTConfig, tokens: int) -> None:
    if config.stem is None:
        _linear(found, tokens, 3 * config.patch**2, config.dim)
        return
    half, quarter, eighth = config.stem
    pixels = tokens * STEM_STRIDE**2
    _linear(found, pixels // 4, 27, half)
    _linear(found, pixels // 16, 9 * half, quarter)
    _linear(found, pixels // 16, 9 * quarter, quarter, quarter)
    _linear(found, pixels // 64, 9 * quarter, eighth)
    _linear(found, pixels // 64, 9 * eighth, eighth, eighth)
    _linear(found, tokens, 9 * eighth, config.dim)


def _real_tokens(plan: WindowPlan) -> Counter[int]:
    """How many windows hold how many tokens that are not padding."""

    def along(side: int, count: int) -> list[int]:
        edges = [min(max(0, i * plan.window - plan.before), side) for i in range(count + 1)]
        return [stop - start for start, stop in pairwise(edges)]

    rows, columns = (along(*axis) for axis in zip(plan.grid_hw, plan.windows_hw, strict=True))
    return Counter(high * wide for high in rows for wide in columns)


def _vit(found: Products, config: ViTConfig, grid_hw: tuple[int, int]) -> None:
    dim, tokens, heads = config.dim, math.prod(grid_hw), config.heads
    _embedding(found, config, tokens)
    for i in range(config.blocks):
        side = 0 if i in config.global_blocks else config.window
        plan = window_plan(grid_hw, side, shifted=False) if side else None
        height, width = (side, side) if side else grid_hw
        problems = heads * (math.prod(plan.windows_hw) if plan else 1)
        _attention(found, problems, height * width, height * width, dim // heads)
        if config.relative_positions:
            found[Product(height, problems * width, dim // heads, height)] += 1
            found[Product(width, problems * height, dim // heads, width)] += 1
        hidden = int(dim * config.mlp_ratio)
        _linear(found, tokens, dim, 3 * dim, dim, hidden)
        _linear(found, tokens, hidden, dim)
    _neck(found, tokens, dim, config.neck)


def _neck(found: Products, tokens: int, dim: int, neck: int) -> None:
    _linear(found, tokens, dim, neck)
    _linear(found, tokens, 9 * neck, neck)


def _tiny_vit(found: Products, config: TinyViTConfig, grid_hw: tuple[int, int]) -> None:
    first, *dims = config.dims
    high, wide = (side * config.patch // 4 for side in grid_hw)
    _linear(found, 4 * high * wide, 27, first // 2)
    _linear(found, high * wide, 9 * (first // 2), first)
    inside = int(first * config.expand)
    for _ in range(config.depths[0]):
        _linear(found, high * wide, first, inside)
        _linear(found, high * wide, inside, first)
    before = first
    stages = zip(dims, config.depths[1:], config.heads, config.windows, strict=True)
    for i, (dim, depth, heads, window) in enumerate(stages):
        _linear(found, high * wide, before, dim)
        if i < 2:
            high, wide = -(-high // 2), -(-wide // 2)
        _linear(found, high * wide, dim, dim)
        plan = window_plan((high, wide), window, shifted=False)
        for _ in range(depth):
            for queries, windows in _real_tokens(plan).items():
                _attention(found, windows * heads, queries, window**2, dim // heads)
            hidden = int(dim * config.mlp_ratio)
            _linear(found, high * wide, dim, 3 * dim, dim, hidden)
            _linear(found, high * wide, hidden, dim)
        before = dim
    _neck(found, high * wide, before, config.neck)


class Bound:
    """The GEMM bound of some products, timed a turn at a time: the sum of the faster ways."""

    def __init__(self, products: Products, dtype: torch.dtype, device: torch.device) -> None:
        self._products, self._dtype, self._device = products, dtype, device
        self._times: dict[tuple[Product, Way], list[float]] = defaultdict(list)
        self._ways: tuple[Way, ...] = (_whole, _in_pieces) if device.type == "cpu" else (_whole,)

    @torch.no_grad()
    def turn(self) -> None:
        """Time each product once in each way."""
        for product in self._products:
            part, parts = _part(product)
            for way in self._ways:
                self._times[product, way].append(
                    parts * _time(way(part, self._dtype, self._device))
                )

    def seconds(self) -> float:
        """The bound, of the medians of the turns so far."""
        return sum(
            count * min(median(self._times[product, way]) for way in self._ways)
            for product, count in self._products.items()
        )


def _part(product: Product) -> tuple[Product, int]:
    """Of what is too large to be made, a part like it in all that matters, and how many."""
    parts = 1
    while _largest(product) > _WHOLE and (product.batch > 1 or product.rows > 1):
        batch, rows, inner, columns = product
        product = (
            Product(-(-batch // 2), rows, inner, columns)
            if batch > 1
            else Product(1, -(-rows // 2), inner, columns)
        )
        parts *= 2
    return product, parts


def _largest(product: Product) -> int:
    batch, rows, inner, columns = product
    return batch * max(rows * inner, inner * columns, rows * columns)


def _operands(
    product: Product, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, ...]:
    batch, rows, inner, columns = product
    # Numbers that are made quickly; how long a product takes does not depend on them.
    left = torch.full((batch, rows, inner), 0.3, device=device, dtype=dtype)
    # As the weights of a linear layer and the keys lie.
    right = torch.full((batch, columns, inner), 0.7, device=device, dtype=dtype).transpose(1, 2)
    out = torch.empty(batch, rows, columns, device=device, dtype=dtype)
    if batch == 1:
        return left[0], right[0], out[0]
    return left, right, out


def _multiply(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> None:
    torch.matmul(left, right, out=out)


def _whole(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    operands = _operands(product, dtype, device)

    def run() -> None:
        _multiply(*operands)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _in_pieces(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    batch, rows, inner, columns = product
    if batch == 1:
        piece = Product(1, min(rows, _PIECE_ROWS), inner, columns)
        count = -(-rows // piece.rows)
    else:
        piece = Product(max(1, min(batch, _PIECE_SCORES // (rows * columns))), rows, inner, columns)
        count = -(-batch // piece.batch)
    threads = min(torch.get_num_threads(), count)
    operands = [_operands(piece, dtype, device) for _ in range(threads)]
    turns = [operands[i % threads] for i in range(count)]
    return lambda: share(lambda some: _multiply(*some), turns)


def _time(run: Callable[[], None]) -> float:
    """Median of calls that fill 5 ms; one before."""
    run()
    times: list[float] = []
    while sum(times) < 0.005:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times)
