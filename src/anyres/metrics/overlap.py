"""How much two masks have in common: intersection over union, and Dice."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError

EMPTY = 1.0  # two empty masks agree; the official HRSAM code says 0.0 for their IoU


def iou(
    pred: NDArray[Any],
    target: NDArray[Any],
    *,
    void: NDArray[np.bool_] | None = None,
    empty: float = EMPTY,
) -> float:
    """Return intersection over union of two masks.

    Args:
        pred: (H, W) bool, or integers 0 and 1.
        target: (H, W) the truth, likewise.
        void: (H, W) bool, pixels that count for nothing.
        empty: the answer where both masks are empty (or all is void).

    Returns:
        A number from 0 to 1.

    Raises:
        InputError: sizes that differ, or values other than 0 and 1.
    """
    common, one, other = _counts(pred, target, void)
    union = one + other - common
    return common / union if union else empty


def dice(
    pred: NDArray[Any],
    target: NDArray[Any],
    *,
    void: NDArray[np.bool_] | None = None,
    empty: float = EMPTY,
) -> float:
    """Return the Dice coefficient (F1) of two masks; arguments and errors as in `iou`."""
    common, one, other = _counts(pred, target, void)
    return 2 * common / (one + other) if one + other else empty


def _counts(
    pred: NDArray[Any], target: NDArray[Any], void: NDArray[np.bool_] | None
) -> tuple[int, int, int]:
    """Count the pixels of the intersection, of the one mask and of the other."""
    one, other = _as_bool(pred, "prediction"), _as_bool(target, "target")
    if one.shape != other.shape:
        raise InputError(f"the prediction is {one.shape} and the target {other.shape}")
    if void is not None:
        if void.dtype != np.bool_ or void.shape != one.shape:
            raise InputError(f"void must be a bool mask of shape {one.shape}, got {void.shape}")
        one, other = one & ~void, other & ~void
    common = np.count_nonzero(one & other)
    return int(common), int(np.count_nonzero(one)), int(np.count_nonzero(other))


def _as_bool(mask: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Take 0 and 1 for a mask and nothing else: 255 means void to some and object to others."""
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind not in "ui" or (mask.size and (mask.min() < 0 or mask.max() > 1)):
        raise InputError(
            f"the {name} must hold 0 and 1 alone (dtype {mask.dtype}); compare it with a "
            "threshold first, and pass void pixels as void=(target == 255)"
        )
    return mask.astype(np.bool_)
