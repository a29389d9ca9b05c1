"""Attention over a token grid with SAM's decomposed relative positions.

``global_attention`` lets every token see every token, ``window_attention`` only those of its own
window. Both take the joint projection of queries, keys and values and give the heads' outputs side
by side, ready for the output projection. Relative positions (MViTv2, Li et al. 2022; SAM, Kirillov
et al. 2023) add to each score a term for the row distance and one for the column distance, both
read off by the unscaled query. BA-SAM (arXiv 2401.02317) adds two things for grids larger than in
training (``ops.length``): another factor of the scores and a penalty that grows with the city-block
distance. It too is a term for the row and one for the column, so nothing grows with n * n
(``ops.grid_attention``). A Euclidean distance does not come apart: blocks would have to look it up
and add it score by score.

Shapes: B pictures, N heads, (h, w) token grid, n = h * w tokens, d channels of a head, C = N * d,
G attention problems (a head of a picture or of a window), r query rows of the grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops.grid_attention import add_terms, attend, fused, score_terms
from anyres.ops.windows import merge, partition, window_plan

# Relative positions of rows and of columns, each (2 * S - 1, d) for a square grid of side S, from
# the key farthest after the query to the key farthest before it.
RelativeTables = tuple[Tensor, Tensor]


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
        out_Gnd = fused(q_Ghwd, k_Ghwd, v_Ghwd, scale)
    else:
        rows, columns = _no_tables(q_Ghwd) if tables is None else tables
        relative = (get_rel_pos(height, height, rows), get_rel_pos(width, width, columns))
        penalty_G = None if penalty_N is None else penalty_N.repeat(batch)
        out_Gnd = attend(q_Ghwd, k_Ghwd, v_Ghwd, scale, relative, penalty_G)
    out_BNhwd = out_Gnd.unflatten(1, (height, width)).unflatten(0, (batch, heads))
    side_by_side: Tensor = out_BNhwd.permute(0, 2, 3, 1, 4).flatten(3)
    return side_by_side


def _no_tables(q_Ghwd: Tensor) -> RelativeTables:
    height, width, channels = q_Ghwd.shape[1:]
    rows = q_Ghwd.new_zeros(2 * height - 1, channels)
    return rows, q_Ghwd.new_zeros(2 * width - 1, channels)


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
    return add_terms(scores_Gqn, score_terms(q_Grwd, rows_rhd, columns_wwd))


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
