"""At which size, and with which padding, a picture is fed to a model."""

from typing import Literal

from anyres.errors import InputError
from anyres.geometry import Frame
from anyres.models.config import ModelConfig, Pad

Resolution = int | Literal["train", "native"]


def long_side(
    picture_hw: tuple[int, int],
    resolution: int | Literal["native"],
    limit: int,
    config: ModelConfig,
) -> int:
    """The long side that a picture is brought to, in pixels.

    Args:
        picture_hw: (height, width) of the picture.
        resolution: as ``known_resolution`` gives it.
        limit: the largest native long side, where a smaller one than the model was trained at is
            enlarged to that; 0 for neither.
        config: of the model. Under ``native``, pictures smaller than one of its attention windows
            are enlarged to it: the model would see little but padding.
    """
    if resolution != "native":
        return resolution
    native = max(picture_hw)
    if limit:
        native = min(max(native, config.image_size), limit)
    return max(native, config.encoder.window * config.encoder.patch)


def fit(picture_hw: tuple[int, int], side: int, pad: Pad, config: ModelConfig) -> Frame:
    """How a picture brought to a long side lies in the input of a model."""
    return Frame.fit(picture_hw, long_side=side, patch=config.encoder.patch, pad=pad)


def known_resolution(resolution: Resolution | None, config: ModelConfig) -> int | Literal["native"]:
    """The long side that a predictor works at.

    Raises:
        InputError: it is no such thing, or smaller than a patch.
    """
    if resolution is None:
        return "native" if config.native_limit else config.image_size
    if resolution == "train":
        return config.image_size
    if resolution == "native":
        return "native"
    if isinstance(resolution, str | bool) or not hasattr(resolution, "__index__"):
        raise InputError(
            f"resolution is {resolution!r}; it must be the long side in pixels, 'train' or 'native'"
        )
    if resolution < config.encoder.patch:
        raise InputError(
            f"resolution {resolution} is smaller than one patch of {config.encoder.patch} pixels"
        )
    return int(resolution)


def known_pad(pad: Pad | None, resolution: Resolution | None, config: ModelConfig) -> Pad:
    """The padding that a predictor works with.

    Raises:
        InputError: it is no such thing, or would change a square model's official answers.
    """
    if pad is None:
        return config.pad
    if pad not in ("square", "patch"):
        raise InputError(f"pad is {pad!r}; it must be 'square' or 'patch'")
    at_train = resolution == "train" or (resolution is None and not config.native_limit)
    if at_train and config.pad == "square" and pad == "patch":
        raise InputError(
            f"{config.name} was trained in squares and is padded to one at resolution 'train'; "
            f"pass resolution={config.image_size} to have pad='patch' at that size"
        )
    return pad
