"""What the metrics take for predictions and targets, checked once and for all of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, MissingExtraError

VOID = 255
BLOCK = 1 << 18  # pixels


def opencv() -> Any:
    """Import OpenCV, which some metrics need.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            'this metric needs OpenCV; install it with: pip install "anyres[eval]"'
        ) from error
    return cv2


def binary(mask: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Take 0 and 1 for a mask and nothing else: 255 means void to some and object to others.

    Raises:
        InputError: other values, or neither bool nor integers.
    """
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind not in "ui" or (mask.size and (mask.min() < 0 or mask.max() > 1)):
        raise InputError(
            f"the {name} must hold 0 and 1 alone (dtype {mask.dtype}); compare it with a "
            "threshold first, and pass void pixels as void=(target == 255)"
        )
    return mask.astype(np.bool_)


def split_target(target: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Split the truth into object and void.

    Args:
        target: (H, W) bool, or integers: 1 object, 0 not, 255 void.

    Returns:
        (H, W) bool the object, and (H, W) bool the void pixels or None when there are none.

    Raises:
        InputError: not (H, W), empty, or other values. So is 255 without any 1: that is more
            likely a 0/255 mask than a truth of void and background.
    """
    if target.ndim != 2 or not target.size:
        raise InputError(f"the target must be a map (H, W) with pixels in it, got {target.shape}")
    if target.dtype == np.bool_:
        return target, None
    if target.dtype.kind not in "ui":
        raise InputError(f"the target must be bool or integers, got {target.dtype}")
    wanted, void = target == 1, target == VOID
    if not (wanted | void | (target == 0)).all():
        raise InputError("the target must hold 0, 1 and, for void, 255 alone; compare it first")
    if not void.any():
        return wanted, None
    if not wanted.any():
        raise InputError(
            "the target holds 255, which is void, and no 1; if it is a mask of 0 and 255, "
            "pass target > 0"
        )
    return wanted, void


def same_size(prediction: NDArray[Any], target: NDArray[Any]) -> None:
    """Check that a prediction has the size of its target.

    Raises:
        InputError: it has not.
    """
    if prediction.shape != target.shape:
        raise InputError(f"the prediction is {prediction.shape} and the target {target.shape}")


def grey(prediction: NDArray[Any]) -> NDArray[np.floating[Any]]:
    """Turn a prediction into numbers from 0 to 1, as the field's code does.

    Args:
        prediction: (H, W). An 8-bit map is what is read from a file: divided by 255, then
            stretched so that its least is 0 and its greatest 1 unless they are equal. float32,
            float64 and bool maps are taken as they are.

    Returns:
        (H, W) float64, or float32 where the prediction is.

    Raises:
        InputError: another type, numbers outside of 0 to 1, or not finite.
    """
    if prediction.dtype == np.uint8:
        table = np.arange(256) / 255
        low, high = table[prediction.min()], table[prediction.max()]
        if low != high:
            table = (table - low) / (high - low)
        stretched: NDArray[np.float64] = table[prediction]
        return stretched
    if prediction.dtype == np.bool_:
        return prediction.astype(np.float64)
    if prediction.dtype not in (np.float32, np.float64):
        raise InputError(
            f"the prediction must be uint8, float32, float64 or bool, got {prediction.dtype}"
        )
    if not (prediction.min() >= 0 and prediction.max() <= 1):
        raise InputError(
            f"the prediction reaches from {prediction.min():g} to {prediction.max():g}; "
            "bring it to 0 to 1 first (logits through a sigmoid)"
        )
    return prediction


def blocks(shape: tuple[int, ...]) -> list[slice]:
    """Cut the rows of a map (H, W) into pieces whose temporaries stay in the cache."""
    step = max(1, BLOCK // shape[1])
    return [slice(top, top + step) for top in range(0, shape[0], step)]
