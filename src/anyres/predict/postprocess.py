"""From mask logits to masks of the picture, and from a mask of the picture back to logits.

Frames are those of ``geometry.Frame``: the picture lies in the top left part, ``resized_hw``, of
the model input, the rest is padding. Pixels and cells are the squares around their centres, so
picture pixel x lies at (x + 0.5) * valid / width - 0.5 in logit cells, where ``valid`` is how many
cells the picture covers: not a whole number in general.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from anyres.geometry import Frame
from anyres.ops.block import enlarging_runs_compiled
from anyres.ops.threads import runs_in_parts

# Picture pixels upscaled at once. On a CPU the block of float logits stays in the cache, which
# is as fast as torch's own upsampling and needs no float copy of the picture.
_BLOCK = {"cpu": 2**16}
_BLOCK_ELSEWHERE = 2**26

# Picture pixels of one prompt that SAM's two steps handle at once.
_SAM_PIXELS = 2**28

_Part = Any  # an index of an array

# What a mask given by the user is worth in logits: surely in, surely out. SAM's own masks, which
# the mask input was trained on, reach about this far from zero inside objects.
MASK_LOGIT = 10.0


def upscale(
    logits: Tensor, frame: Frame, *, two_step: bool, threshold: float | None = None
) -> Tensor:
    """Bring mask logits to the size of the picture.

    Args:
        logits: (P, M, h, w) at ``frame.logits_hw``.
        frame: where the picture lies in the model input.
        two_step: as SAM does: to the model input, crop, to the picture, so that the answer is
            SAM's bit for bit. Otherwise once, from the part of the logits that is picture.
        threshold: None gives the logits; a number gives what is larger, as bool.

    Returns:
        (P, M, H, W) float32 or bool, on the device of the logits.
    """
    shape = (*logits.shape[:2], *frame.picture_hw)
    dtype = torch.float32 if threshold is None else torch.bool
    out = torch.empty(shape, dtype=dtype, device=logits.device)
    steps = _upscale_as_sam if two_step else _upscale_once
    compiled = not two_step and runs_in_parts(logits) and enlarging_runs_compiled()
    for source, target in zip(logits.float(), out, strict=True):
        if compiled:
            _upscale_compiled(source, frame, target, threshold)
            continue
        for part, block in steps(source, frame):
            if threshold is None:
                target[part] = block
            else:
                torch.gt(block, threshold, out=target[part])
    return out


def _upscale_as_sam(logits: Tensor, frame: Frame) -> Iterator[tuple[_Part, Tensor]]:
    """Segment Anything's ``postprocess_masks`` for one prompt: (M, h, w) -> (M, H, W)."""
    height, width = frame.resized_hw
    masks = len(logits)
    # All masks of a prompt together, as SAM does: on CPUs torch rounds three channels otherwise
    # than one. For huge pictures that last bit is given up for memory.
    step = masks if masks * math.prod(frame.picture_hw) <= _SAM_PIXELS else 1
    for start in range(0, masks, step):
        part = slice(start, start + step)
        x = logits[None, part]
        x = F.interpolate(x, frame.input_hw, mode="bilinear", align_corners=False)
        x = x[..., :height, :width]
        x = F.interpolate(x, frame.picture_hw, mode="bilinear", align_corners=False)
        yield np.s_[part], x[0]


def _upscale_once(logits: Tensor, frame: Frame) -> Iterator[tuple[_Part, Tensor]]:
    """One bilinear interpolation (M, h, w) -> (M, H, W), in blocks of rows, mask by mask."""
    (top, bottom, y), (left, right, x) = _axes(logits, frame)
    height, width = frame.picture_hw
    step = max(1, _BLOCK.get(logits.device.type, _BLOCK_ELSEWHERE) // width)
    for index, mask in enumerate(logits):
        # Columns first: the map is still small there.
        wide = torch.lerp(mask.index_select(1, left), mask.index_select(1, right), x)
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            upper, lower = (wide.index_select(0, taps[rows]) for taps in (top, bottom))
            yield np.s_[index, rows], torch.lerp(upper, lower, y[rows, None])


def _upscale_compiled(logits: Tensor, frame: Frame, out: Tensor, threshold: float | None) -> None:
    """The same into ``out`` (M, H, W), float32, or bool for what is larger than a threshold."""
    from anyres.ops import enlarge_cpu

    enlarge_cpu.enlarge(logits, *_axes(logits, frame), out, threshold)


_Taps = tuple[Tensor, Tensor, Tensor]


def _axes(logits: Tensor, frame: Frame) -> tuple[_Taps, _Taps]:
    """``_taps`` of rows and of columns."""
    rows, columns = (
        _taps(picture, resized * cells / model, logits.device)
        for picture, resized, model, cells in zip(
            frame.picture_hw, frame.resized_hw, frame.input_hw, logits.shape[1:], strict=True
        )
    )
    return rows, columns


@lru_cache(maxsize=8)
def _taps(count: int, valid: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``count`` picture pixels along an axis the two cells and their blend.

    Cells that are wholly padding never take part.
    """
    cells = math.ceil(valid - 1e-9)
    at = (torch.arange(count, dtype=torch.float64) + 0.5) * (valid / count) - 0.5
    at = at.clamp(0, cells - 1)
    first = at.floor()
    second = (first + 1).clamp(max=cells - 1)
    blend = (at - first).float()
    return first.long().to(device), second.long().to(device), blend.to(device)


def mask_to_logits(mask: npt.NDArray[np.bool_], frame: Frame) -> npt.NDArray[np.float32]:
    """A binary mask of the picture as the mask input of the model.

    Each logit is the mask's exact area in its cell, from ``-MASK_LOGIT`` (none of it) to
    ``MASK_LOGIT`` (all of it). Padding is background.

    Args:
        mask: (H, W) bool at ``frame.picture_hw``.
        frame: where the picture lies in the model input.

    Returns:
        (1, h, w) at ``frame.logits_hw``.
    """
    (edges_y, size_y), (edges_x, size_x) = (
        _cell_edges(picture, resized * cells / model, cells)
        for picture, resized, model, cells in zip(
            frame.picture_hw, frame.resized_hw, frame.input_hw, frame.logits_hw, strict=True
        )
    )
    height, width = mask.shape
    share = np.empty((height, len(size_x)), np.float64)
    step = max(1, 2**20 // width)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        share[rows] = _integrate(mask[rows], edges_x) / size_x
    share = (_integrate(share.T, edges_y) / size_y).T
    return ((2 * share - 1) * MASK_LOGIT).astype(np.float32)[None]


def _cell_edges(
    count: int, valid: float, cells: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Edges of the cells in picture pixels, cut at the picture, and the sizes (never 0)."""
    edges = np.minimum(np.arange(cells + 1) * (count / valid), float(count))
    sizes = np.diff(edges)
    return edges, np.where(sizes > 0, sizes, 1.0)


def _integrate(
    rows: npt.NDArray[np.bool_] | npt.NDArray[np.float64], edges: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Integrals of piecewise constant rows (n, count) between consecutive edges."""
    total = np.zeros((rows.shape[0], rows.shape[1] + 1))
    np.cumsum(rows, axis=1, dtype=np.float64, out=total[:, 1:])
    whole = np.minimum(edges.astype(np.int64), rows.shape[1] - 1)
    part = edges - whole
    at_edges = total[:, whole] * (1 - part) + total[:, whole + 1] * part
    return np.diff(at_edges, axis=1)
