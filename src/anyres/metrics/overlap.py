"""How much two masks have in common: intersection over union, Dice, and boundary IoU."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, StateError
from anyres.metrics.maps import binary, opencv, same_size, split_target

EMPTY = 1.0  # two empty masks agree; the official HRSAM code says 0.0 for their IoU
DILATION = 0.02  # of the diagonal: Cheng et al. 2021, section 5
SIZES = {"small": 0.01, "medium": 0.1, "large": 1.0}  # up to which share of the picture


class Overlap:
    """Mean overlap over many objects, also by their size; keeps sums alone.

    Sizes are shares of the picture's area: small below 1 %, medium below 10 %, large the rest.
    COCO's limits of 32² and 96² pixels are about 0.3 and 3 % of its pictures, but would call
    nearly everything large in one of 4096²: here an object stays in its class whatever the
    resolution.
    """

    def __init__(self) -> None:
        self._objects = 0
        self._sums = np.zeros(3)
        self._of_size = {size: [0, 0.0] for size in SIZES}

    def update(self, prediction: NDArray[Any], target: NDArray[Any]) -> None:
        """Add one object.

        Args:
            prediction: (H, W) bool, or integers 0 and 1.
            target: (H, W) bool, or integers: 1 object, 0 not, 255 void, which counts for nothing.

        Raises:
            InputError: sizes that differ, or other values.
            MissingExtraError: OpenCV is not installed.
        """
        wanted, void = split_target(target)
        found = iou(prediction, wanted, void=void)
        self._objects += 1
        self._sums += (
            found,
            dice(prediction, wanted, void=void),
            boundary_iou(prediction, wanted, void=void),
        )
        share = np.count_nonzero(wanted) / wanted.size
        size = next((name for name, limit in SIZES.items() if share < limit), "large")
        self._of_size[size][0] += 1
        self._of_size[size][1] += found

    def result(self) -> dict[str, float]:
        """Return the means over all objects.

        Returns:
            ``objects, iou, dice, boundary_iou``; ``objects_small`` and so on; and for each
            size of which there are objects ``iou_small, iou_medium, iou_large``.

        Raises:
            StateError: no object yet.
        """
        if not self._objects:
            raise StateError("there is no object yet; call update() first")
        means = (self._sums / self._objects).tolist()
        found = {"objects": self._objects, "iou": means[0], "dice": means[1]}
        found["boundary_iou"] = means[2]
        for size, (count, total) in self._of_size.items():
            found[f"objects_{size}"] = count
            if count:
                found[f"iou_{size}"] = total / count
        return found


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


def boundary_iou(
    pred: NDArray[Any],
    target: NDArray[Any],
    *,
    void: NDArray[np.bool_] | None = None,
    ratio: float = DILATION,
    empty: float = EMPTY,
) -> float:
    """Return the IoU of what lies near the borders of two masks (Cheng et al. 2021).

    Only pixels of a mask that are at most ``ratio`` of the picture's diagonal (rounded, at least
    1 pixel) inside its border count, distance being the larger of rows and columns. The picture's
    edge is a border, and so is that of void.

    Args:
        pred: (H, W) bool, or integers 0 and 1.
        target: (H, W) the truth, likewise.
        void: (H, W) bool, pixels that count for nothing.
        ratio: of the diagonal.
        empty: the answer where both masks are empty (or all is void).

    Raises:
        InputError: sizes that differ, or values other than 0 and 1.
        MissingExtraError: OpenCV is not installed.
    """
    one, other = _known(pred, target, void)
    reach = max(1, round(ratio * float(np.hypot(*one.shape))))
    return iou(_rim(one, reach), _rim(other, reach), empty=empty)


def _rim(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask from which its border is at most ``reach`` pixels away."""
    cv2 = opencv()
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    part = (slice(top, top + height), slice(left, left + width))
    rim = mask.copy()
    if min(width, height) > 2 * reach:
        # With a border of zeros: the picture's edge, or what is beyond the mask's box.
        padded = np.pad(mask[part], 1).view(np.uint8)
        depth = cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]
        rim[part] &= depth <= reach
    return rim


def _known(
    pred: NDArray[Any], target: NDArray[Any], void: NDArray[np.bool_] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Check two masks and take void out of them."""
    one, other = binary(pred, "prediction"), binary(target, "target")
    same_size(one, other)
    if void is not None:
        if void.dtype != np.bool_ or void.shape != one.shape:
            raise InputError(f"void must be a bool mask of shape {one.shape}, got {void.shape}")
        one, other = one & ~void, other & ~void
    return one, other


def _counts(
    pred: NDArray[Any], target: NDArray[Any], void: NDArray[np.bool_] | None
) -> tuple[int, int, int]:
    """Count the pixels of the intersection, of the one mask and of the other."""
    one, other = _known(pred, target, void)
    common = np.count_nonzero(one & other)
    return int(common), int(np.count_nonzero(one)), int(np.count_nonzero(other))
