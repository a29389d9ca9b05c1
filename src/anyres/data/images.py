"""All reading and writing of pictures: ``read_image``, ``read_mask``, ``write_png``.

Files may be JPEG, PNG, TIFF, WebP, BMP, GIF, JPEG 2000, AVIF or PNM (PBM, PGM, PPM, PFM), of
whatever name: their first bytes tell. Pillow (``PIL``) is imported when the first picture is read.

What comes out is what a person would see on a screen, as 8-bit sRGB:

- EXIF orientation is applied, in every format that carries it.
- A colour profile (ICC) is applied, with perceptual intent, for grey, RGB and CMYK, to the 8-bit
  values. Values stay exactly as they are where the profile is sRGB in effect (no colour of a test
  chart moves by more than 2 of 255) or there is none. A profile that is damaged or belongs to
  another kind of picture is ignored and a warning logged (to ``anyres.data.images``): a picture
  with slightly wrong colours is of more use than none.
- CMYK without a profile is converted by formula: R = 255 - min(255, C (255 - K) / 255 + K). In a
  JPEG, 255 is no ink if it has Adobe's marker, as all that Photoshop writes, else 0 is.
- What is transparent is shown over white.
- More than 8 bits: see ``anyres.data.pixels``, which also has the rule for floats.
- Of several frames or pages, the first; if the others of a TIFF are not just smaller copies or
  masks of it, a warning is logged. A camera raw file is an error, not its thumbnail.
- A truncated picture is an error, not a picture with a grey end.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from anyres.data import pixels
from anyres.errors import ImageError, InputError
from anyres.files import atomic_write

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS: Final = 1_000_000_000


def read_image(
    source: "str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]",
    *,
    max_pixels: int = MAX_PIXELS,
    stretch: str = "auto",
) -> NDArray[np.uint8]:
    """Read a picture as 8-bit RGB, upright, opaque and in sRGB.

    Args:
        source: a path, the bytes of a file, a PIL image (its EXIF orientation and profile are
            applied too; give 16-bit colour by path, as Pillow keeps 8 bits of it), or an array:
            (H, W) or (H, W, 1) grey, (H, W, 2) grey + alpha, (H, W, 3) RGB, (H, W, 4) RGBA, of
            any integer, float or bool type.
        max_pixels: limit on width times height, checked before anything is decoded. Decoding
            needs about 8 bytes a pixel (WebP 16).
        stretch: ``auto``, ``none``, ``minmax`` or ``percentile``: how values of more than 8 bits
            become 8-bit ones, see ``anyres.data.pixels``.

    Returns:
        (H, W, 3) uint8, contiguous and writable. It is ``source`` itself if that is such an array.

    Raises:
        ImageError: there is no such file, or it is empty, truncated, no picture, too large, or
            of values that ``stretch`` does not cover. The message names it and says what to do.
        MissingExtraError: a rare kind of TIFF that needs packages which are not installed.
        InputError: an unknown ``stretch``.
    """
    method = pixels.check_stretch(stretch)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels, method)
    _check_type(source)
    from anyres.data import unpacking
    from anyres.data.opening import open_picture

    with open_picture(source, max_pixels) as opened:
        return unpacking.as_seen(opened, method)


def _from_array(
    source: NDArray[Any], max_pixels: int, stretch: pixels.Stretch
) -> NDArray[np.uint8]:
    array = pixels.with_channels(source, "the array")
    height, width = array.shape[:2]
    if height * width > max_pixels:
        raise ImageError(
            f"the array is {width}x{height} = {width * height} pixels, over the limit of "
            f"{max_pixels}; raise max_pixels or cut it up"
        )
    rgb = pixels.over_white(pixels.to_eight_bit(array, stretch, "the array"))
    return rgb if rgb.flags.writeable else rgb.copy()


def read_mask(
    source: "str | os.PathLike[str] | bytes | Image.Image",
    *,
    size_hw: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    brightest: bool = False,
) -> NDArray[Any]:
    """Read a map (mask) with its values as stored: no colour profile, no stretch.

    1-bit files give 0 and 255 (uint8), palette files their indices (uint8), grey files their
    values (uint8 or uint16; 32-bit TIFF int32; 2- and 4-bit PNG count in steps of 85 and 17, as
    the format has it). Files in colour are taken if red, green and blue are the same everywhere,
    and with an alpha channel if that is opaque everywhere. EXIF orientation is applied. JPEG can be
    read, but its values are not exactly what was saved.

    Args:
        source: a path, the bytes of a file, or a PIL image.
        size_hw: the (height, width) it must have, such as its picture's.
        max_pixels: limit on width times height, checked before anything is decoded.
        brightest: take files in colour, too, with the largest of red, green and blue for a value;
            a palette counts as the colours in it, and an alpha channel is ignored.

    Returns:
        (H, W) uint8, uint16 or int32, contiguous and writable.

    Raises:
        ImageError: it cannot be read (see ``read_image``), is in colour, has floats, or is of
            another size than ``size_hw``.
    """
    _check_type(source)
    from anyres.data import unpacking
    from anyres.data.opening import open_picture

    with open_picture(source, max_pixels) as opened:
        return unpacking.as_stored(opened, size_hw, brightest=brightest)


def _check_type(source: object) -> None:
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return
    if type(source).__module__.partition(".")[0] == "torch":
        raise InputError("the picture is a tensor; pass tensor.cpu().numpy(), (H, W, 3)")
    if hasattr(source, "read"):
        raise InputError("the picture is an open file; pass file.read() or its path")
    from PIL import Image

    if not isinstance(source, Image.Image):
        raise InputError(
            f"the picture is of type {type(source).__name__}; pass a path, bytes, a PIL image or "
            "an array"
        )


def write_png(path: str | os.PathLike[str], array: NDArray[Any]) -> None:
    """Write a PNG file whole or not at all: an existing one stays as it is if this fails.

    Args:
        path: the file; its folder must exist.
        array: (H, W) bool (becomes 0 and 255), uint8 or uint16; or (H, W, 3) RGB or (H, W, 4)
            RGBA uint8.

    Raises:
        InputError: an array of another shape or type, or without pixels.
        OutputError: the file cannot be written.
    """
    array = np.ascontiguousarray(array)
    height, width, channels = (*array.shape, 1, 1)[:3] if array.ndim in (2, 3) else (0, 0, 0)
    kind = (array.dtype.str[1:], channels)
    modes = {("b1", 1): "L", ("u1", 1): "L", ("u2", 1): "I;16", ("u1", 3): "RGB", ("u1", 4): "RGBA"}
    if kind not in modes or not height or not width:
        raise InputError(
            f"{path}: an array of {array.dtype}, shape {array.shape}, cannot be written as PNG; "
            "it can be (H, W) bool, uint8 or uint16, or (H, W, 3 or 4) uint8"
        )
    from PIL import Image

    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    mode = modes[kind]
    data = array.astype(array.dtype.newbyteorder("<"), copy=False)
    image = Image.frombuffer(mode, (width, height), data.tobytes(), "raw", mode, 0, 1)
    with atomic_write(Path(path)) as file:
        image.save(file, format="PNG")
