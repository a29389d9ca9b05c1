"""Attention over a token grid with SAM's decomposed relative positions.

``global_attention`` lets every token see every token, ``window_attention`` only those of its own
window. Both take the joint projection of queries, keys and values and give the heads' outputs side
by side, ready for the output projection. Relative positions (MViTv2, Li et al. 2022; SAM, Kirillov
et al. 2023) add to each score a term for the row distance and one for the column distance, both
read off by the unscaled query.

Shapes: B pictures, N heads, (h, w) token grid, n = h * w tokens, d channels of a head, C = N * d,
G attention problems (a head of a picture or of a window), r query rows of the grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.ops.windows import merge, partition, window_plan

# Relative positions of rows and of columns, each (2 * S - 1, d) for a square grid of side S, from
# the key farthest after the query to the key farthest before it.
RelativeTables = tuple[Tensor, Tensor]

# Scores computed at once. On CPUs 2 MB of them stay in the cache: 1.5 times as fast as all scores
# together, for 14 x 14 windows as for 64 x 64 tokens, and the memory does not grow with n * n.
_SCORES = {"cpu": 2**19}
_SCORES_ELSEWHERE = 2**26


def global_attention(qkv_BhwC3: Tensor, heads: int, tables: RelativeTables | None) -> Tensor:
    """Attend from every token of a grid to every token of it.

    Args:
        qkv_BhwC3: queries, keys and values side by side, (B, h, w, 3 * C).
        heads: number of heads, N.
        tables: relative positions learned on a square grid of any side; fitted to this grid by
            ``fit_relative_table``, so that a rectangle's tokens relate to each other as they would
            inside the padded square.

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
    return _attend(qkv_BhwC3, heads, tables)


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


def _attend(qkv_BhwC3: Tensor, heads: int, tables: RelativeTables | None) -> Tensor:
    """All heads of all grids, as many scores at once as are good for the device."""
    batch, height, width, _ = qkv_BhwC3.shape
    split = qkv_BhwC3.unflatten(3, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)
    q_Ghwd, k_Ghwd, v_Ghwd = split.flatten(1, 2)
    k_Gnd, v_Gnd = k_Ghwd.flatten(1, 2), v_Ghwd.flatten(1, 2)
    rows = columns = None
    if tables is not None:
        rows = get_rel_pos(height, height, tables[0])
        columns = get_rel_pos(width, width, tables[1])

    problems, tokens = k_Gnd.shape[:2]
    scores = _SCORES.get(qkv_BhwC3.device.type, _SCORES_ELSEWHERE)
    many = max(1, scores // tokens**2)
    high = min(height, max(1, scores // (width * tokens)))
    blocks = []
    for g in range(0, problems, many):
        part = slice(g, g + many)
        for y in range(0, height, high):
            bias = None
            if rows is not None and columns is not None:
                bias = (rows[y : y + high], columns)
            blocks.append(_attend_block(q_Ghwd[part, y : y + high], k_Gnd[part], v_Gnd[part], bias))
    # Either several whole problems make a block, or several blocks make a problem.
    out_Gnd = torch.cat([block.reshape(-1, block.shape[-1]) for block in blocks])
    out_BNhwd = out_Gnd.unflatten(0, (batch, heads, height, width))
    side_by_side: Tensor = out_BNhwd.permute(0, 2, 3, 1, 4).flatten(3)
    return side_by_side


def _attend_block(
    q_Grwd: Tensor, k_Gnd: Tensor, v_Gnd: Tensor, relative: tuple[Tensor, Tensor] | None
) -> Tensor:
    q_Gqd = q_Grwd.flatten(1, 2)
    scores_Gqn: Tensor = (q_Gqd * q_Gqd.shape[-1] ** -0.5) @ k_Gnd.transpose(1, 2)
    if relative is not None:
        scores_Gqn = add_relative(scores_Gqn, q_Grwd, *relative)
    # Written out: in blocks as fast as the fused call, and in bf16 faster on CPUs.
    out_Gqd: Tensor = scores_Gqn.softmax(-1) @ v_Gnd
    return out_Gqd


def add_relative(
    scores_Gqn: Tensor, q_Grwd: Tensor, rows_rhd: Tensor, columns_wwd: Tensor
) -> Tensor:
    """Add decomposed relative positions to attention scores, in place.

    Args:
        scores_Gqn: scores of the queries in r rows of a grid, q = r * w, with all its tokens.
        q_Grwd: the queries, not scaled by 1 / sqrt(d).
        rows_rhd: relative positions from the query rows to all rows, as ``get_rel_pos`` gives.
        columns_wwd: relative positions from column to column.

    Returns:
        The scores, (G, q, n).
    """
    by_row = torch.einsum("grwd,rkd->grwk", q_Grwd, rows_rhd)
    by_column = torch.einsum("grwd,wkd->grwk", q_Grwd, columns_wwd)
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
    return _resize(table, 2 * side - 1)[side - size : side + size - 1]


def _resize(table: Tensor, rows: int) -> Tensor:
    if table.shape[0] == rows:
        return table
    # Interpolating a bf16 table would round twice.
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    resized = F.interpolate(wide.t()[None], size=rows, mode="linear")
    return resized[0].t().to(table.dtype)
