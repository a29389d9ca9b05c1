"""What all formats have in common: the objects of one picture, each a mask with a few words."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, MissingExtraError

NAMELESS = "object"  # what objects without a category are called where there has to be a name


@dataclass(frozen=True, eq=False)
class Annotation:
    """One object of a picture.

    Attributes:
        shape: its mask, (H, W) bool; or COCO's compressed run lengths ``{"size": [H, W], "counts":
            bytes}``, as large files hold them, which ``mask`` unpacks.
        category: the name of its class.
        score: how sure a model is of it.
        id: its number, positive; in a map of ids the value of its pixels.
    """

    shape: NDArray[np.bool_] | Mapping[str, Any]
    category: str | None = None
    score: float | None = None
    id: int | None = None

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask, (H, W) bool.

        Raises:
            MissingExtraError: run lengths without pycocotools.
        """
        return self.shape if isinstance(self.shape, np.ndarray) else unpack(self.shape)

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the mask."""
        if isinstance(self.shape, np.ndarray):
            height, width = self.shape.shape
        else:
            height, width = self.shape["size"]
        return int(height), int(width)


@dataclass(frozen=True, eq=False)
class Annotated:
    """A picture's objects.

    Attributes:
        image: the name of the picture's file, as it is to stand in the file of annotations.
        size_hw: (height, width) of the picture and of all masks.
        annotations: the objects.

    Raises:
        InputError: a mask of another size, or one that is no (H, W) of bool.
    """

    image: str
    size_hw: tuple[int, int]
    annotations: tuple[Annotation, ...]

    def __post_init__(self) -> None:
        for number, each in enumerate(self.annotations, 1):
            shape = each.shape
            if isinstance(shape, np.ndarray) and (shape.ndim != 2 or shape.dtype != np.bool_):
                raise InputError(
                    f"mask {number} of {self.image} is {shape.dtype} of shape {shape.shape}; "
                    "it must be bool, (H, W)"
                )
            if each.size_hw != tuple(self.size_hw):
                raise InputError(
                    f"mask {number} of {self.image} is {each.size_hw}, the picture "
                    f"{tuple(self.size_hw)} (height, width); they must be of one size"
                )


def coding() -> Any:
    """Import pycocotools' masks.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingExtraError(
            'run lengths need pycocotools; install it with: pip install "anyres[eval]"'
        ) from error
    return mask


def pack(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Turn an (H, W) bool mask into COCO's compressed run lengths, counts as bytes."""
    packed: dict[str, Any] = coding().encode(np.asfortranarray(mask.view(np.uint8)))
    return packed


def unpack(packed: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Turn compressed run lengths into an (H, W) bool mask.

    Raises:
        InputError: lengths that do not add up to the size.
    """
    codes = coding()
    try:
        with warnings.catch_warnings():
            # pycocotools has not heard of numpy 2's copy keyword; numpy copes.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            mask = codes.decode(dict(packed))
    except ValueError as error:
        raise InputError(f"damaged run lengths: {error}") from error
    return np.ascontiguousarray(mask).view(np.bool_)


def packed_shape(annotation: Annotation) -> Mapping[str, Any]:
    """An annotation's compressed run lengths."""
    shape = annotation.shape
    return pack(shape) if isinstance(shape, np.ndarray) else shape


def box_xywh(mask: NDArray[np.bool_]) -> list[int]:
    """The box [x, y, width, height] around a mask's pixels; zeros for an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
