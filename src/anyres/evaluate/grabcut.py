"""What a person gets without a model: OpenCV's GrabCut under the same prompts."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anyres.errors import MissingExtraError, StateError

NAME = "grabcut"
LONG_SIDE = 640
DISC = 5
ITERATIONS = 2


class GrabCut:
    """GrabCut (Rother et al. 2004) on a picture of at most 640 pixels, with a predictor's methods.

    All starts as probable background, with a disc of probable foreground, a sixth of the long side
    in radius, about the first click; or, with a box, as certain background outside of it and
    probable foreground inside. Each step paints every click so far as a certain disc of radius 5
    and runs 2 iterations on the labels of the last, which travel as "logits".

    Raises:
        MissingExtraError: OpenCV is not installed.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingExtraError(
                'GrabCut needs OpenCV; install it with: pip install "anyres[eval]"'
            ) from error
        self._cv2: Any = cv2
        self._picture: NDArray[np.uint8] | None = None

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Scale an (H, W, 3) uint8 RGB picture down."""
        self._size_hw = image.shape[:2]
        self._scale = min(1.0, LONG_SIDE / max(self._size_hw))
        height, width = (max(1, round(side * self._scale)) for side in self._size_hw)
        area = self._cv2.INTER_AREA
        small = self._cv2.resize(image, (width, height), interpolation=area)
        self._picture = self._cv2.cvtColor(small, self._cv2.COLOR_RGB2BGR)

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = False,
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
        """Paint the clicks and cut.

        Args:
            point_coords: (N, 2) XY in pixels of the picture, all so far; or None.
            point_labels: (N,) 1 object, 0 not.
            box: (4,) XYXY; it counts at the beginning only.
            mask_input: the labels of the last step. None begins another object.
            multimask_output: there is never more than one mask.

        Returns:
            The mask (1, H, W), the score (1,), always 1 since GrabCut has no opinion of its masks,
            and the labels (1, h, w).

        Raises:
            StateError: no picture is set.
        """
        if self._picture is None:
            raise StateError("no picture is set: call set_image(...) before you predict masks")
        cv2 = self._cv2
        height, width = self._picture.shape[:2]
        places = [
            (
                min(int((x + 0.5) * self._scale), width - 1),
                min(int((y + 0.5) * self._scale), height - 1),
            )
            for x, y in np.asarray([] if point_coords is None else point_coords).reshape(-1, 2)
        ]
        positive = np.asarray([] if point_labels is None else point_labels).ravel() == 1
        if mask_input is None:
            cv2.setRNGSeed(0)
            labels = self._begin((height, width), places, box)
        else:
            labels = np.asarray(mask_input)[0].astype(np.uint8)
        for place, on_object in zip(places, positive, strict=True):
            cv2.circle(labels, place, DISC, cv2.GC_FGD if on_object else cv2.GC_BGD, -1)
        labels = self._cut(self._picture, labels)
        found = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
        full = cv2.resize(found, self._size_hw[::-1], interpolation=cv2.INTER_NEAREST)
        return full[None] > 0, np.ones(1, np.float32), labels[None].astype(np.float32)

    def _begin(
        self, size_hw: tuple[int, int], places: list[tuple[int, int]], box: ArrayLike | None
    ) -> NDArray[np.uint8]:
        """The labels (h, w) before anything is certain."""
        cv2 = self._cv2
        if box is None:
            labels = np.full(size_hw, cv2.GC_PR_BGD, np.uint8)
        else:
            labels = np.full(size_hw, cv2.GC_BGD, np.uint8)
            low, high = np.asarray(box, np.float64).reshape(2, 2) * self._scale
            (left, top), (right, bottom) = np.floor(low).astype(int), np.ceil(high).astype(int)
            labels[top:bottom, left:right] = cv2.GC_PR_FGD
        for place in places[:1] if box is None else ():
            cv2.circle(labels, place, max(size_hw) // 6, cv2.GC_PR_FGD, -1)
        return labels

    def _cut(self, picture: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The labels after another two iterations."""
        cv2 = self._cv2
        cut, colours = labels.copy(), (np.zeros((1, 65)), np.zeros((1, 65)))
        try:
            cv2.grabCut(picture, cut, None, *colours, ITERATIONS, cv2.GC_INIT_WITH_MASK)
        except cv2.error:
            # Nothing is left that may be background (or object): no colours to learn from.
            return labels
        return cut
