"""Resizing of pictures and prompts by the long side, as Segment Anything does it.

The interface and the numbers are those of ``segment_anything/utils/transforms.py``. The arithmetic
is ``anyres.geometry``'s.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anyres.errors import InputError
from anyres.geometry import Frame, longest_side_hw

if TYPE_CHECKING:
    from torch import Tensor


class ResizeLongestSide:
    """Resizes pictures so that their long side has ``target_length``, and coordinates with them.

    Args:
        target_length: in pixels.

    Raises:
        InputError: ``target_length`` is no integer or smaller than 1.
    """

    def __init__(self, target_length: int) -> None:
        longest_side_hw((1, 1), target_length)
        self.target_length = target_length

    def apply_image(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize a picture with Pillow: bilinear, averaging where it shrinks.

        Args:
            image: (H, W, 3) uint8.

        Returns:
            (h, w, 3) uint8, a new array.

        Raises:
            InputError: another shape or type, or an empty picture.
        """
        from PIL import Image

        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(
                f"the picture is {image.shape} {image.dtype}; it must be (H, W, 3) uint8: "
                "anyres.data.images.read_image converts others"
            )
        height, width = longest_side_hw(image.shape[:2], self.target_length)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.array(resized)

    def apply_coords(
        self, coords: npt.NDArray[Any], original_size: tuple[int, ...]
    ) -> npt.NDArray[np.float64]:
        """Bring coordinates of the picture to the resized picture.

        Args:
            coords: (..., 2) XY in pixels of the picture.
            original_size: (H, W) of the picture.

        Returns:
            (..., 2) XY, a new array.

        Raises:
            InputError: the last axis is not 2, NaN or infinite numbers, or an empty picture.
        """
        return self._frame(original_size).to_input(coords)

    def apply_boxes(
        self, boxes: npt.NDArray[Any], original_size: tuple[int, ...]
    ) -> npt.NDArray[np.float64]:
        """Bring boxes of the picture to the resized picture.

        Args:
            boxes: (..., 4) XYXY in pixels of the picture.
            original_size: (H, W) of the picture.

        Returns:
            (N, 4) XYXY, a new array; N is 1 for a single box (4,).

        Raises:
            InputError: the last axis is not 4, NaN or infinite numbers, or an empty picture.
        """
        return self._frame(original_size).box_to_input(boxes).reshape(-1, 4)

    def apply_image_torch(self, image: "Tensor") -> "Tensor":
        """Resize a batch of pictures with torch: bilinear, averaging where it shrinks.

        Pillow rounds, so that ``apply_image`` differs from this by up to about 1.

        Args:
            image: (B, C, H, W) float.

        Returns:
            (B, C, h, w) of the same type.

        Raises:
            InputError: another shape, or an empty picture.
        """
        import torch.nn.functional as F

        if image.ndim != 4:
            raise InputError(f"the pictures are {tuple(image.shape)}; they must be (B, C, H, W)")
        target_hw = longest_side_hw(tuple(image.shape[2:]), self.target_length)
        return F.interpolate(image, target_hw, mode="bilinear", align_corners=False, antialias=True)

    def apply_coords_torch(self, coords: "Tensor", original_size: tuple[int, ...]) -> "Tensor":
        """Bring coordinates of the picture to the resized picture.

        Args:
            coords: (..., 2) XY in pixels of the picture.
            original_size: (H, W) of the picture.

        Returns:
            (..., 2) XY float32 on the same device, a new tensor.

        Raises:
            InputError: the last axis is not 2, or an empty picture.
        """
        import torch

        if coords.ndim == 0 or coords.shape[-1] != 2:
            raise InputError(f"XY coordinates are {tuple(coords.shape)}; they must be (..., 2)")
        scale_xy = self._frame(original_size).to_input((1, 1)).tolist()
        return coords.to(torch.float32) * coords.new_tensor(scale_xy, dtype=torch.float32)

    def apply_boxes_torch(self, boxes: "Tensor", original_size: tuple[int, ...]) -> "Tensor":
        """Bring boxes of the picture to the resized picture.

        Args:
            boxes: (..., 4) XYXY in pixels of the picture.
            original_size: (H, W) of the picture.

        Returns:
            (N, 4) XYXY float32 on the same device, a new tensor; N is 1 for a single box (4,).

        Raises:
            InputError: the last axis is not 4, or an empty picture.
        """
        if boxes.ndim == 0 or boxes.shape[-1] != 4:
            raise InputError(f"XYXY boxes are {tuple(boxes.shape)}; they must be (..., 4)")
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """The (height, width) of a resized picture; unlike Segment Anything's never 0.

        Raises:
            InputError: a side that is no integer or smaller than 1.
        """
        return longest_side_hw((oldh, oldw), long_side_length)

    def _frame(self, original_size: tuple[int, ...]) -> Frame:
        # The patch plays no part in what is asked of this frame.
        return Frame.fit(original_size, long_side=self.target_length, patch=1, pad="patch")
