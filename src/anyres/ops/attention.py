"""Attention over a token grid with SAM's decomposed relative positions.

``global_attention`` lets every token see every token, ``window_attention`` only those of its own
window. Both take the joint projection of queries, keys and values and give the heads' outputs side
by side, ready for the output projection. Relative positions (MViTv2, Li et al. 2022; SAM, Kirillov
et al. 2023) add to each score a term for the row distance and one for the column distance, both
read off by the unscaled query. BA-SAM (arXiv 2401.02317) adds two things for grids larger than in
training (``ops.length``): another factor of the scores and a penalty that grows with the city-block
distance. It too is a term for the row and one for the column, so that no tensor ever has a value
for each pair of tokens: memory grows with n, not with n * n, in training as well. (A Euclidean
distance does not come apart: blocks would have to look it up and add it score by score.)

Shapes: B pictures, N heads, (h, w) token grid, n = h * w tokens, d channels of a head, C = N * d,
G attention problems (a head of a picture or of a window), r query rows of the grid.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyres.ops.windows import merge, partition, window_plan

# Relative positions of rows and of columns, each (2 * S - 1, d) for a square grid of side S, from
# the key farthest after the query to the key farthest before it.
RelativeTables = tuple[Tensor, Tensor]

# Scores computed at once. On CPUs 2 MB of them stay in the cache: 2.5 times as fast as all scores
# together on 64 x 64 tokens.
_SCORES = {"cpu": 2**19}
_SCORES_ELSEWHERE = 2**26

# Scores kept for the backward pass, at most; where there are more they are computed again.
_KEPT = 2**25

# The largest rows + columns where folding the terms into the heads is faster than blocks of scores
# (measured on a CPU): in float32, in float32 with gradients, in half precision.
_FOLDED, _FOLDED_TRAINING, _FOLDED_HALF = 48, 96, 192


def global_attention(
    qkv_BhwC3: Tensor,
    heads: int,
    tables: RelativeTables | None,
    scale: float = 1.0,
    penalty_N: Tensor | None = None,
) -> Tensor:
    """Attend from every token of a grid to every token of it.

    Args:
        qkv_BhwC3: queries, keys and values side by side, (B, h, w, 3 * C).
        heads: number of heads, N.
        tables: relative positions learned on a square grid of any side; fitted to this grid by
            ``fit_relative_table``, so that a rectangle's tokens relate to each other as they would
            inside the padded square.
        scale: factor of the scores of queries and keys, on top of 1 / sqrt(d).
        penalty_N: what each token of city-block distance takes off a head's scores, (N,), or
            None for nothing.

    Returns:
        (B, h, w, C).
    """
    height, width = qkv_BhwC3.shape[1:3]
    if tables is not None:
        side = max(height, width)
        tables = (
            fit_relative_table(tables[0], height, side),
            fit_relative_table(tables[1], width, side),
        )
    return _attend(qkv_BhwC3, heads, tables, scale, penalty_N)


def window_attention(
    qkv_BhwC3: Tensor,
    heads: int,
    window: int,
    padding_C3: Tensor,
    tables: RelativeTables | None,
) -> Tensor:
    """Attend inside square windows that tile the grid from its top left corner.

    The grid is padded at the bottom and right to whole windows. Padding takes part as keys and
    values, unmasked, as in SAM.

    Args:
        qkv_BhwC3: queries, keys and values side by side, (B, h, w, 3 * C).
        heads: number of heads, N.
        window: side of a window in tokens.
        padding_C3: what the projection makes of a padding token, (3 * C,).
        tables: relative positions for a grid of side ``window``.

    Returns:
        (B, h, w, C).
    """
    plan = window_plan((qkv_BhwC3.shape[1], qkv_BhwC3.shape[2]), window, shifted=False)
    windows = partition(qkv_BhwC3, plan, padding_C3).unflatten(1, (window, window))
    return merge(_attend(windows, heads, tables).flatten(1, 2), plan)


def _attend(
    qkv_BhwC3: Tensor,
    heads: int,
    tables: RelativeTables | None,
    scale: float = 1.0,
    penalty_N: Tensor | None = None,
) -> Tensor:
    """All heads of all grids, as much at once as is good for the device."""
    batch, height, width, _ = qkv_BhwC3.shape
    split = qkv_BhwC3.unflatten(3, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)
    q_Ghwd, k_Ghwd, v_Ghwd = split.flatten(1, 2)
    scale = q_Ghwd.shape[-1] ** -0.5 * scale
    if tables is None and penalty_N is None:
        out_Gnd = _fused(q_Ghwd, k_Ghwd, v_Ghwd, scale)
    else:
        rows, columns = _no_tables(q_Ghwd) if tables is None else tables
        relative = (get_rel_pos(height, height, rows), get_rel_pos(width, width, columns))
        penalty_G = None if penalty_N is None else penalty_N.repeat(batch)
        attend = _attend_folded if _folds(q_Ghwd) else _attend_blocks
        out_Gnd = attend(q_Ghwd, k_Ghwd, v_Ghwd, scale, relative, penalty_G)
    out_BNhwd = out_Gnd.unflatten(1, (height, width)).unflatten(0, (batch, heads))
    side_by_side: Tensor = out_BNhwd.permute(0, 2, 3, 1, 4).flatten(3)
    return side_by_side


def _no_tables(q_Ghwd: Tensor) -> RelativeTables:
    height, width, channels = q_Ghwd.shape[1:]
    rows = q_Ghwd.new_zeros(2 * height - 1, channels)
    return rows, q_Ghwd.new_zeros(2 * width - 1, channels)


def _folds(q_Ghwd: Tensor) -> bool:
    """Whether terms go into the heads."""
    if q_Ghwd.dtype.itemsize == 2:
        limit = _FOLDED_HALF
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
    outs = []
    for q, k, v, penalty in _chunks(many, q_Ghwd, k_Ghwd, v_Ghwd, penalty_G):
        terms = score_terms(q, *relative, penalty)
        # The scale will multiply them as well.
        q = torch.cat([q, *(term.to(q.dtype) / scale for term in terms)], -1)
        k = torch.cat([k, place_hwk.expand(len(k), -1, -1, -1)], -1)
        # Kernels that keep no scores want values as wide as keys.
        v = F.pad(v, (0, height + width))
        outs.append(_fused(q, k, v, scale)[..., :channels])
    return torch.cat(outs)


def _fused(q_Ghwd: Tensor, k_Ghwd: Tensor, v_Ghwd: Tensor, scale: float) -> Tensor:
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
    dtype = q_Ghwd.dtype
    if q_Ghwd.device.type == "cpu":
        # Sums and softmax of half precision are slow there: float32 is twice as fast.
        wide = torch.promote_types(dtype, torch.float32)
        q_Ghwd, k_Ghwd, v_Ghwd = (x.to(wide) for x in (q_Ghwd, k_Ghwd, v_Ghwd))
    rows, columns = (table.to(q_Ghwd.dtype) for table in relative)
    problems, height, width, channels = q_Ghwd.shape
    tokens, scores = height * width, _budget(q_Ghwd)
    many = max(1, scores // tokens**2)
    high = min(height, max(1, scores // (width * tokens)))
    forget = torch.is_grad_enabled() and problems * tokens**2 > _KEPT
    blocks = []
    for q, k, v, penalty in _chunks(many, q_Ghwd, k_Ghwd, v_Ghwd, penalty_G):
        keys, values = k.flatten(1, 2), v.flatten(1, 2)
        # Split, not sliced: the gradient of each slice would be as large as the whole.
        parts = zip(range(0, height, high), q.split(high, 1), rows.split(high), strict=True)
        for first, some, their_rows in parts:
            inputs = (some, keys, values, scale, their_rows, columns, penalty, first)
            if forget:
                block: Tensor = checkpoint(
                    _attend_block, *inputs, use_reentrant=False, preserve_rng_state=False
                )
            else:
                block = _attend_block(*inputs)
            blocks.append(block.reshape(-1, channels))
    # Either several whole problems make a block, or several blocks make a problem.
    out_Gnd: Tensor = torch.cat(blocks).to(dtype).unflatten(0, (problems, tokens))
    return out_Gnd


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


def _attend_block(
    q_Grwd: Tensor,
    k_Gnd: Tensor,
    v_Gnd: Tensor,
    scale: float,
    rows_rhd: Tensor,
    columns_wwd: Tensor,
    penalty_G: Tensor | None,
    first: int,
) -> Tensor:
    with torch.autocast(q_Grwd.device.type, enabled=False):
        scores_Gqn = (q_Grwd.flatten(1, 2) * scale) @ k_Gnd.transpose(1, 2)
        terms = score_terms(q_Grwd, rows_rhd, columns_wwd, penalty_G, first)
        # Written out: in blocks as fast as the fused call.
        out_Gqd: Tensor = _add(scores_Gqn, terms).softmax(-1) @ v_Gnd
    return out_Gqd


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


def add_relative(
    scores_Gqn: Tensor, q_Grwd: Tensor, rows_rhd: Tensor, columns_wwd: Tensor
) -> Tensor:
    """Add decomposed relative positions to attention scores, in place.

    Args:
        scores_Gqn: scores of the queries in r rows of a grid, q = r * w, with all its tokens.
        q_Grwd: the queries, as ``score_terms`` takes them and the rest.
        rows_rhd: relative positions from the query rows to all rows.
        columns_wwd: relative positions from column to column.

    Returns:
        The scores, (G, q, n).
    """
    return _add(scores_Gqn, score_terms(q_Grwd, rows_rhd, columns_wwd))


def _add(scores_Gqn: Tensor, terms: tuple[Tensor, Tensor]) -> Tensor:
    by_row, by_column = terms
    grid = scores_Gqn.view(*by_row.shape, by_column.shape[-1])
    grid += by_row[..., :, None]
    grid += by_column[..., None, :]
    return scores_Gqn


def get_rel_pos(q_size: int, k_size: int, table: Tensor) -> Tensor:
    """Relative positions of each query and key along one axis (MViTv2, as in SAM).

    Queries and keys cover the same extent, whatever their numbers: the coarser axis is stretched.

    Args:
        q_size: number of queries.
        k_size: number of keys.
        table: (rows, d); resized linearly if it has not 2 * max(q_size, k_size) - 1 rows.

    Returns:
        (q_size, k_size, d).
    """
    table = _resize(table, 2 * max(q_size, k_size) - 1)
    q_step, k_step = max(k_size / q_size, 1.0), max(q_size / k_size, 1.0)
    q_at = torch.arange(q_size, device=table.device)[:, None] * q_step
    k_at = torch.arange(k_size, device=table.device)[None, :] * k_step
    # Distances between sizes that do not divide are no whole numbers: SAM cuts the fraction off.
    distance = q_at - k_at + (k_size - 1) * k_step
    return table[distance.long()]


def fit_relative_table(table: Tensor, size: int, side: int) -> Tensor:
    """Fit a table learned on a square grid to one axis of a rectangle.

    It is resized for the longer side of the rectangle, then cut to the distances along the axis.

    Args:
        table: (2 * S - 1, d) for a training grid of side S.
        size: tokens along the axis.
        side: tokens along the longer side.

    Returns:
        (2 * size - 1, d); a plain slice of the table if ``side`` is S.
    """
    return resize_relative_table(table, side)[side - size : side + size - 1]


def resize_relative_table(table: Tensor, side: int) -> Tensor:
    """Fit a table learned on a square grid to another square, (2 * side - 1, d)."""
    return _resize(table, 2 * side - 1)


def _resize(table: Tensor, rows: int) -> Tensor:
    if table.shape[0] == rows:
        return table
    # Interpolating a bf16 table would round twice.
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    resized = F.interpolate(wide.t()[None], size=rows, mode="linear")
    return resized[0].t().to(table.dtype)
