"""Attention over a token grid whose scores have a term by row and a term by column.

Such are decomposed relative positions and the city-block distance (``ops.attention`` says what they
are). No tensor ever has a value for each pair of tokens: memory grows with n, not with n * n, in
training as well. Small grids have the terms folded into the heads, larger ones are computed in
blocks of query rows.

Shapes: (h, w) token grid, n = h * w tokens, d channels of a head, G attention problems (a head of a
picture or of a window), r query rows of the grid.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores computed at once. On CPUs 2 MB of them stay in the cache: 2.5 times as fast as all scores
# together on 64 x 64 tokens.
_SCORES = {"cpu": 2**19}
_SCORES_ELSEWHERE = 2**26

# The largest rows + columns where folding the terms into the heads is faster than blocks of scores
# (measured on a CPU): in float32, in float32 with gradients, in half precision. CUDA's kernels
# for heads end at 256 channels.
_FOLDED, _FOLDED_TRAINING, _FOLDED_HALF = 48, 96, {"cpu": 256, "cuda": 192}


def attend(
    q_Ghwd: Tensor,
    k_Ghwd: Tensor,
    v_Ghwd: Tensor,
    scale: float,
    relative: tuple[Tensor, Tensor],
    penalty_G: Tensor | None,
) -> Tensor:
    """Attend from every token of a grid to every token of it.

    Args:
        q_Ghwd: queries.
        k_Ghwd: keys.
        v_Ghwd: values.
        scale: factor of the products of queries and keys.
        relative: relative positions of rows (h, h, d) and columns (w, w, d), read off by the
            queries.
        penalty_G: what a token of city-block distance takes off the scores, or None for nothing.

    Returns:
        (G, n, d).
    """
    path = _attend_folded if _folds(q_Ghwd) else _attend_blocks
    return path(q_Ghwd, k_Ghwd, v_Ghwd, scale, relative, penalty_G)


def _folds(q_Ghwd: Tensor) -> bool:
    """Whether terms go into the heads."""
    if q_Ghwd.dtype.itemsize == 2:
        limit = _FOLDED_HALF.get(q_Ghwd.device.type, _FOLDED)
    elif torch.is_grad_enabled() and q_Ghwd.requires_grad:
        limit = _FOLDED_TRAINING
    else:
        limit = _FOLDED
    return q_Ghwd.shape[1] + q_Ghwd.shape[2] <= limit


def _attend_folded(
    q_Ghwd: Tensor,
    k_Ghwd: Tensor,
    v_Ghwd: Tensor,
    scale: float,
    relative: tuple[Tensor, Tensor],
    penalty_G: Tensor | None,
) -> Tensor:
    """With the terms as further channels of the queries: (G, n, d).

    The keys' further channels are one-hot, their row and their column.
    """
    height, width, channels = q_Ghwd.shape[1:]
    row = torch.eye(height).to(q_Ghwd)[:, None].expand(-1, width, -1)
    column = torch.eye(width).to(q_Ghwd).expand(height, -1, -1)
    place_hwk = torch.cat([row, column], -1)
    many = max(1, _budget(q_Ghwd) // (height * width * (channels + height + width)))

    def parts() -> Iterator[Tensor]:
        for q, k, v, penalty in _chunks(many, q_Ghwd, k_Ghwd, v_Ghwd, penalty_G):
            terms = score_terms(q, *relative, penalty)
            # The scale will multiply them as well.
            q = torch.cat([q, *(term.to(q.dtype) / scale for term in terms)], -1)
            k = torch.cat([k, place_hwk.expand(len(k), -1, -1, -1)], -1)
            # Kernels that keep no scores want values as wide as keys.
            v = F.pad(v, (0, height + width))
            yield fused(q, k, v, scale)[..., :channels]

    if torch.is_grad_enabled():
        return torch.cat(list(parts()))
    # Parts that last, between larger ones that do not, would leave the heap in pieces.
    out_Gnd = q_Ghwd.new_empty(len(q_Ghwd), height * width, channels)
    for out, part in zip(out_Gnd.split(many), parts(), strict=True):
        out.copy_(part)
    return out_Gnd


def fused(q_Ghwd: Tensor, k_Ghwd: Tensor, v_Ghwd: Tensor, scale: float) -> Tensor:
    """Scores of queries and keys alone: (G, n, d)."""
    q, k, v = (x[None].flatten(2, 3) for x in (q_Ghwd, k_Ghwd, v_Ghwd))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[0]


def _attend_blocks(
    q_Ghwd: Tensor,
    k_Ghwd: Tensor,
    v_Ghwd: Tensor,
    scale: float,
    relative: tuple[Tensor, Tensor],
    penalty_G: Tensor | None,
) -> Tensor:
    """Over blocks of query rows: (G, n, d)."""
    dtype = wide = q_Ghwd.dtype
    if q_Ghwd.device.type == "cpu":
        # Sums and softmax of half precision are slow there: float32 is twice as fast.
        wide = torch.promote_types(dtype, torch.float32)
    rows, columns = relative
    tensors = [x.to(wide) for x in (q_Ghwd, k_Ghwd, v_Ghwd, rows, columns)]
    if penalty_G is not None:
        tensors.append(penalty_G.to(wide))
    with torch.autocast(q_Ghwd.device.type, enabled=False):
        out: Tensor = _Blocks.apply(scale, *tensors)  # type: ignore[no-untyped-call]
    return out.to(dtype)


class _Blocks(torch.autograd.Function):
    """Attention by blocks of scores that are forgotten, and computed again for the gradient."""

    @staticmethod
    def forward(ctx: Any, scale: float, *tensors: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*tensors)
        q_Ghwd = tensors[0]
        out_Ghwd = torch.empty_like(q_Ghwd, memory_format=torch.contiguous_format)
        # Used by all blocks: large tensors that come and go would leave the heap in pieces.
        room: tuple[Tensor, Tensor] | None = None
        for problems, rows in _blocks(q_Ghwd):
            inputs = _inputs(tensors, problems, rows)
            if room is None:
                shape = (len(inputs[0]), inputs[0][0, ..., 0].numel(), q_Ghwd[0, ..., 0].numel())
                room = q_Ghwd.new_empty(shape), q_Ghwd.new_empty(shape)
            out_Ghwd[problems, rows] = _attend_block(scale, rows.start, room, *inputs)
        return out_Ghwd.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Gnd: Tensor) -> tuple[Tensor | None, ...]:
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in tensors]
        grad_Ghwd = grad_Gnd.unflatten(1, tensors[0].shape[1:3])
        for problems, rows in _blocks(tensors[0]):
            inputs = [x.detach().requires_grad_() for x in _inputs(tensors, problems, rows)]
            with torch.enable_grad():
                out = _attend_block(ctx.scale, rows.start, None, *inputs)
            some = torch.autograd.grad(out, inputs, grad_Ghwd[problems, rows])
            for total, part in zip(_inputs(grads, problems, rows), some, strict=True):
                total += part
        return None, *grads


def _blocks(q_Ghwd: Tensor) -> Iterator[tuple[slice, slice]]:
    """Problems and query rows of each block: several whole problems, or some rows of one."""
    problems, height, width, _ = q_Ghwd.shape
    tokens, scores = height * width, _budget(q_Ghwd)
    many = max(1, scores // tokens**2)
    high = min(height, max(1, scores // (width * tokens)))
    for g in range(0, problems, many):
        for y in range(0, height, high):
            yield slice(g, g + many), slice(y, y + high)


def _inputs(tensors: Sequence[Tensor], problems: slice, rows: slice) -> list[Tensor]:
    """What a block needs of queries, keys, values, both tables and penalties."""
    q, k, v, row_table, columns, *penalty = tensors
    some = (q[problems, rows], k[problems], v[problems], row_table[rows], columns)
    return [*some, *(x[problems] for x in penalty)]


def _attend_block(
    scale: float,
    first: int,
    room: tuple[Tensor, Tensor] | None,
    q_Grwd: Tensor,
    k_Ghwd: Tensor,
    v_Ghwd: Tensor,
    rows_rhd: Tensor,
    columns_wwd: Tensor,
    penalty_G: Tensor | None = None,
) -> Tensor:
    """Of r query rows, from the first on: (G, r, w, d).

    ``room`` is for scores and their softmax of the largest block; None where a gradient is wanted.
    """
    q_Gqd, keys = q_Grwd.flatten(1, 2), k_Ghwd.flatten(1, 2)
    scores_Gqn = weights_Gqn = None
    if room is not None:
        scores_Gqn, weights_Gqn = (x[: len(q_Gqd), : q_Gqd.shape[1]] for x in room)
    scores_Gqn = torch.bmm(q_Gqd * scale, keys.transpose(1, 2), out=scores_Gqn)
    add_terms(scores_Gqn, score_terms(q_Grwd, rows_rhd, columns_wwd, penalty_G, first))
    weights_Gqn = torch.softmax(scores_Gqn, -1, out=weights_Gqn)
    # Written out: in blocks as fast as the fused call.
    out_Gqd = torch.bmm(weights_Gqn, v_Ghwd.flatten(1, 2))
    out_Grwd: Tensor = out_Gqd.unflatten(1, q_Grwd.shape[1:3])
    return out_Grwd


def _budget(x: Tensor) -> int:
    return _SCORES.get(x.device.type, _SCORES_ELSEWHERE)


def _chunks(
    many: int, q: Tensor, k: Tensor, v: Tensor, penalty_G: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """So many problems at once."""
    penalties: Iterable[Tensor | None] = itertools.repeat(None)
    if penalty_G is not None:
        penalties = penalty_G.split(many)
    return zip(q.split(many), k.split(many), v.split(many), penalties, strict=False)


def score_terms(
    q_Grwd: Tensor,
    rows_rhd: Tensor,
    columns_wwd: Tensor,
    penalty_G: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """What decomposed relative positions and distances add to attention scores.

    Args:
        q_Grwd: the queries in r rows of a grid, not scaled by 1 / sqrt(d).
        rows_rhd: relative positions from the query rows to all rows, as ``get_rel_pos`` gives.
        columns_wwd: relative positions from column to column.
        penalty_G: what each token of distance along either axis takes off.
        first: the first query row.

    Returns:
        For each query a term for every row (G, r, w, h) and one for every column (G, r, w, w).
    """
    by_row = torch.einsum("grwd,rkd->grwk", q_Grwd, rows_rhd)
    by_column = torch.einsum("grwd,wkd->grwk", q_Grwd, columns_wwd)
    if penalty_G is not None:
        down = _distances(first, rows_rhd, penalty_G)
        across = _distances(0, columns_wwd, penalty_G)
        by_row = by_row - down[:, :, None].to(by_row.dtype)
        by_column = by_column - across[:, None].to(by_column.dtype)
    return by_row, by_column


def _distances(first: int, table_qkd: Tensor, penalty_G: Tensor) -> Tensor:
    """(G, queries, keys): what the distances along one axis take off."""
    queries, keys = table_qkd.shape[:2]
    at = torch.arange(keys, device=penalty_G.device)
    distance = (at[first : first + queries, None] - at).abs()
    return penalty_G[:, None, None] * distance


def add_terms(scores_Gqn: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
    """Add what ``score_terms`` gave to the scores of the same queries, in place."""
    by_row, by_column = terms
    grid = scores_Gqn.view(*by_row.shape, by_column.shape[-1])
    grid += by_row[..., :, None]
    grid += by_column[..., None, :]
    return scores_Gqn
