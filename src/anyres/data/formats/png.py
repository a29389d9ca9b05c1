"""PNG maps: one mask (0 and 255), ids in 8 bits with a palette, or ids in 16 bits.

A pixel has one id, so masks must not overlap; empty ones are left out. Categories and scores are
not kept. 255 is void in 8-bit maps, so ids there go to 254.
"""

import colorsys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anyres.data.formats.annotations import Annotated, Annotation
from anyres.data.images import read_mask, write_png
from anyres.data.maps import Kind, objects_of
from anyres.errors import InputError
from anyres.files import atomic_write

_PALETTE_IDS, _MOST_IDS = 254, 65535


def write_binary(path: Path | str, picture: Annotated) -> None:
    """Write the one object of a picture as 0 and 255.

    Raises:
        InputError: there are none or several.
        OutputError: the file cannot be written.
    """
    if len(picture.annotations) != 1:
        raise InputError(
            f"{path}: a binary map holds one object, not {len(picture.annotations)}; "
            "write a map of ids"
        )
    write_png(path, picture.annotations[0].mask)


def write_ids(path: Path | str, picture: Annotated, *, palette: bool = False) -> None:
    """Write the ids of a picture's objects: those they have, or 1, 2, ... where none has any.

    Args:
        path: the file.
        picture: the objects.
        palette: 8 bits with a colour for each id, rather than 16 bits.

    Raises:
        InputError: some objects have ids and some not, two have the same, an id is out of range,
            or two masks overlap.
        OutputError: the file cannot be written.
    """
    ids = _ids(path, picture, _PALETTE_IDS if palette else _MOST_IDS)
    values = np.zeros(picture.size_hw, np.uint16)
    for number, each in zip(ids, picture.annotations, strict=True):
        mask = each.mask
        taken = values[mask]
        if taken.any():
            y, x = np.argwhere(mask & (values > 0))[0]
            raise InputError(
                f"{path}: objects {values[y, x]} and {number} overlap, at x={x} y={y} for one, and "
                "a pixel has one id; cut one of them or write another format"
            )
        values[mask] = number
    if palette:
        _write_palette(Path(path), values.astype(np.uint8))
    else:
        write_png(path, values)


def _ids(path: Path | str, picture: Annotated, most: int) -> list[int]:
    given = [each.id for each in picture.annotations if each.id is not None]
    ids = given or list(range(1, len(picture.annotations) + 1))
    if len(ids) != len(picture.annotations):
        raise InputError(f"{path}: some of the objects have ids, some have not; give all or none")
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: two objects have the same id; a map tells them apart by it")
    if ids and not (min(ids) >= 1 and max(ids) <= most):
        raise InputError(
            f"{path}: ids go from {min(ids)} to {max(ids)}; they must be 1 to {most} in "
            + ("8 bits (255 is void); write 16" if most == _PALETTE_IDS else "16 bits")
        )
    return ids


def _write_palette(path: Path, values: NDArray[np.uint8]) -> None:
    from PIL import Image

    image = Image.fromarray(values)
    image.putpalette(_colours())
    with atomic_write(path) as file:
        image.save(file, format="PNG")


def _colours() -> list[int]:
    """Black for 0, white for void, hues a golden section apart for the ids between them."""
    colours = [0, 0, 0]
    for number in range(1, 255):
        hue, value = number * 0.618034 % 1, 1 - 0.2 * (number % 3)
        colours += [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value)]
    return [*colours, 255, 255, 255]


def read_png(path: Path | str, *, image: str = "", kind: Kind = "auto") -> Annotated:
    """Read a map's objects, with their ids; a binary map's object has the id None.

    Args:
        path: the file.
        image: the picture's name, which the file does not say.
        kind: what the map is, see ``anyres.data.maps``; a map of nothing but 0 and 255 counts as
            binary.

    Raises:
        InputError: the file cannot be read, or is no map.
    """
    values = read_mask(path)
    objects = objects_of(values, kind)
    binary = kind == "binary" or (
        kind == "auto" and values.dtype == np.uint8 and set(objects.ids) <= {255}
    )
    annotations = tuple(
        Annotation(objects.mask(number), id=None if binary else objects.ids[number])
        for number in range(len(objects))
    )
    height, width = values.shape
    return Annotated(image, (height, width), annotations)
