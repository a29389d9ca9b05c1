"""The one place that converts between picture, model input, token grid and mask logits.

Four frames lie over each other, all with their origin at the top left corner of the picture::

    picture        the pixels as read: picture_hw
    model input    the picture resized to resized_hw, zero-padded at the bottom and right: input_hw
    token grid     one cell a patch of the model input: grid_hw = input_hw / patch
    mask logits    4 x 4 cells a token: logits_hw = 4 * grid_hw

Sizes are (height, width). Coordinates are XY, continuous and measured from corners: x = 0 is the
left border of the first pixel or cell, x = width the right border of the last one, and the centre
of pixel i lies at i + 0.5. So a conversion is a scaling and nothing else, and a box given by its
borders keeps its borders.

Segment Anything scales coordinates in the same way (``ResizeLongestSide.apply_coords``), and its
prompt encoder then adds half a pixel of the model input by itself. Nothing here does that: what
``to_input`` gives is what a prompt encoder takes.
"""

import operator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from anyres.errors import InputError

SizeHW = tuple[int, int]
Floats = npt.NDArray[np.float64]

# Mask logits are four times as fine as the tokens: the two upsampling steps of SAM's decoder.
LOGITS_PER_TOKEN = 4


def longest_side_hw(picture_hw: tuple[int, ...], long_side: int) -> SizeHW:
    """The size of a picture whose long side becomes ``long_side``, proportions kept.

    Sides are rounded as in Segment Anything's ``ResizeLongestSide.get_preprocess_shape``, with one
    difference: there the short side can become 0 (1 x 3000 at 1024, say), here it is at least 1.

    Args:
        picture_hw: (height, width) in pixels.
        long_side: in pixels.

    Raises:
        InputError: a side that is no integer or smaller than 1.
    """
    height, width = _size(picture_hw, "picture_hw")
    long_side = _count(long_side, "long_side")
    # Written as SAM writes it: another order of the operations rounds some sizes differently.
    scale = long_side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@dataclass(frozen=True)
class Frame:
    """How one picture lies in the input of a model.

    Attributes:
        picture_hw: (height, width) of the picture.
        resized_hw: (height, width) of the picture in the model input, where it is at the top left.
        input_hw: (height, width) of the model input, padding included.
        patch: side of a token in pixels of the model input.

    Raises:
        InputError: a size below 1, a resized picture larger than the model input, or a model input
            that is no multiple of the patch.
    """

    picture_hw: SizeHW
    resized_hw: SizeHW
    input_hw: SizeHW
    patch: int = 16

    def __post_init__(self) -> None:
        for name in ("picture_hw", "resized_hw", "input_hw"):
            object.__setattr__(self, name, _size(getattr(self, name), name))
        object.__setattr__(self, "patch", _count(self.patch, "patch"))
        if any(a > b for a, b in zip(self.resized_hw, self.input_hw, strict=True)):
            raise InputError(
                f"the resized picture {self.resized_hw} is larger than the model input "
                f"{self.input_hw} (height, width)"
            )
        if any(side % self.patch for side in self.input_hw):
            raise InputError(
                f"the model input {self.input_hw} (height, width) is no multiple of the patch "
                f"{self.patch}: pad it at the bottom and right"
            )

    @classmethod
    def fit(
        cls,
        picture_hw: tuple[int, ...],
        *,
        long_side: int,
        patch: int = 16,
        pad: Literal["square", "patch"],
    ) -> "Frame":
        """Fit a picture into a model input by its long side.

        Args:
            picture_hw: (height, width) in pixels.
            long_side: what the picture's long side becomes, in pixels; at least a patch.
            patch: side of a token in pixels of the model input.
            pad: ``"square"`` gives a square whose side is ``long_side`` rounded up to a multiple
                of the patch; ``"patch"`` rounds each side of the resized picture up by itself.

        Raises:
            InputError: a size below 1, ``long_side`` below ``patch``, or an unknown ``pad``.
        """
        patch, long_side = _count(patch, "patch"), _count(long_side, "long_side")
        if long_side < patch:
            raise InputError(
                f"a long side of {long_side} pixels is smaller than one patch of {patch}: "
                f"give at least {patch}"
            )
        resized_hw = longest_side_hw(picture_hw, long_side)
        if pad == "square":
            input_hw = (_round_up(long_side, patch),) * 2
        elif pad == "patch":
            input_hw = (_round_up(resized_hw[0], patch), _round_up(resized_hw[1], patch))
        else:
            raise InputError(f"pad is {pad!r}; it must be 'square' or 'patch'")
        return cls(_size(picture_hw, "picture_hw"), resized_hw, input_hw, patch)

    @property
    def grid_hw(self) -> SizeHW:
        """(rows, columns) of tokens."""
        return self.input_hw[0] // self.patch, self.input_hw[1] // self.patch

    @property
    def logits_hw(self) -> SizeHW:
        """(rows, columns) of mask logits."""
        rows, columns = self.grid_hw
        return LOGITS_PER_TOKEN * rows, LOGITS_PER_TOKEN * columns

    @property
    def long_side(self) -> int:
        """The long side of the model input in pixels, padding included."""
        return max(self.input_hw)

    @property
    def _scale_xy(self) -> Floats:
        """Model input pixels a picture pixel."""
        (height, width), (resized_height, resized_width) = self.picture_hw, self.resized_hw
        return np.array([resized_width / width, resized_height / height])

    def to_input(self, xy: npt.ArrayLike) -> Floats:
        """Picture pixels -> model input pixels.

        Args:
            xy: (..., 2) XY. Points outside the picture are converted like all others.

        Returns:
            (..., 2) XY, a new array. As in all conversions, going there and back gives the same
            within 1e-6 pixels.

        Raises:
            InputError: the last axis is not 2, or there are NaN or infinite numbers.
        """
        return _coordinates(xy, 2) * self._scale_xy

    def to_picture(self, xy: npt.ArrayLike) -> Floats:
        """Model input pixels -> picture pixels; (..., 2) XY, errors as in ``to_input``."""
        return _coordinates(xy, 2) / self._scale_xy

    def box_to_input(self, xyxy: npt.ArrayLike) -> Floats:
        """Boxes (..., 4) XYXY, picture pixels -> model input pixels; errors as in ``to_input``."""
        return _coordinates(xyxy, 4) * np.tile(self._scale_xy, 2)

    def box_to_picture(self, xyxy: npt.ArrayLike) -> Floats:
        """Boxes (..., 4) XYXY, model input pixels -> picture pixels; errors as in ``to_input``."""
        return _coordinates(xyxy, 4) / np.tile(self._scale_xy, 2)

    def input_to_grid(self, xy: npt.ArrayLike) -> Floats:
        """Model input pixels -> tokens; (..., 2) XY, errors as in ``to_input``.

        The token that holds a point is the floor of the result.
        """
        return _coordinates(xy, 2) / self.patch

    def grid_to_input(self, xy: npt.ArrayLike) -> Floats:
        """Tokens -> model input pixels; (..., 2) XY, errors as in ``to_input``."""
        return _coordinates(xy, 2) * self.patch

    def input_to_logits(self, xy: npt.ArrayLike) -> Floats:
        """Model input pixels -> mask logit cells; (..., 2) XY, errors as in ``to_input``.

        The cell that holds a point is the floor of the result.
        """
        return _coordinates(xy, 2) * (LOGITS_PER_TOKEN / self.patch)

    def logits_to_input(self, xy: npt.ArrayLike) -> Floats:
        """Mask logit cells -> model input pixels; (..., 2) XY, errors as in ``to_input``."""
        return _coordinates(xy, 2) / (LOGITS_PER_TOKEN / self.patch)


def _round_up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _count(value: Any, name: str) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}; it must be a whole number of pixels") from None
    if isinstance(value, bool | np.bool_) or number < 1:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1 pixel")
    return number


def _size(value: Any, name: str) -> SizeHW:
    try:
        height, width = value
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; it must be (height, width)") from None
    return _count(height, f"height of {name}"), _count(width, f"width of {name}")


def _coordinates(values: npt.ArrayLike, axis: int) -> Floats:
    names = "XY" if axis == 2 else "XYXY"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"{names} coordinates must be one array (..., {axis}): {error}") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{names} coordinates must be real numbers, not {array.dtype}")
    if array.ndim == 0 or array.shape[-1] != axis:
        raise InputError(f"{names} coordinates are {array.shape}; they must be (..., {axis})")
    coordinates = array.astype(np.float64)
    if not np.isfinite(coordinates).all():
        raise InputError(f"{names} coordinates hold NaN or infinite numbers")
    return coordinates
