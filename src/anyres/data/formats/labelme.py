"""labelme's JSON, one file a picture.

Coordinates are from the picture's corner; a pixel belongs to a polygon if its centre lies inside.
(labelme's own conversion to masks paints the outline as well, half a pixel more on every side.)

A mask without holes is written as polygons, which share a ``group_id`` if they are several. A mask
with holes is written as a ``mask`` shape: its box, and the pixels in it as a PNG file in base64. An
empty mask is left out. The name of the class is the ``label``; a score goes to ``description`` as
``score=0.87``. Objects without a category get the label ``object``.
"""

import base64
import binascii
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.data.formats.annotations import NAMELESS, Annotated, Annotation, box_xywh
from anyres.data.formats.fields import at, get, optional, points, read_json, size_of
from anyres.data.formats.polygons import fill, outline
from anyres.data.images import read_mask
from anyres.errors import InputError
from anyres.files import write_json

_VERSION = "5.5.0"  # of labelme, the first to be sure of mask shapes


def write_labelme(path: Path | str, picture: Annotated) -> None:
    """Write a picture's objects; ``picture.image`` should be its path as seen from the file.

    Raises:
        OutputError: the file cannot be written.
    """
    height, width = picture.size_hw
    shapes: list[dict[str, Any]] = []
    for group, each in enumerate(picture.annotations, 1):
        mask = each.mask
        common: dict[str, Any] = {
            "label": NAMELESS if each.category is None else each.category,
            "group_id": None,
            "description": "" if each.score is None else f"score={each.score!r}",
            "flags": {},
        }
        polygons = outline(mask)
        if all(len(polygon) == 1 for polygon in polygons):
            if len(polygons) > 1:
                common["group_id"] = group
            shapes += [
                common | {"shape_type": "polygon", "points": polygon[0].tolist(), "mask": None}
                for polygon in polygons
            ]
        else:
            shapes.append(common | _mask_shape(mask))
    content: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": picture.image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write_json(path, content)


def _mask_shape(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """The box's corners are pixels, the last one included."""
    from PIL import Image

    x, y, width, height = box_xywh(mask)
    part = mask[y : y + height, x : x + width].astype(np.uint8) * np.uint8(255)
    file = io.BytesIO()
    Image.fromarray(part).save(file, format="PNG")
    return {
        "shape_type": "mask",
        "points": [[x, y], [x + width - 1, y + height - 1]],
        "mask": base64.b64encode(file.getvalue()).decode("ascii"),
    }


def read_labelme(path: Path | str) -> Annotated:
    """Read polygons, rectangles, circles and masks; those of one label and group are united.

    Raises:
        InputError: the file cannot be read or is damaged, or it has a shape without area (a point
            or a line); the message says which.
    """
    content = read_json(path)
    with at(str(path)):
        size_hw = size_of(content, "imageHeight", "imageWidth")
        image, shapes = get(content, "imagePath", str), get(content, "shapes", list)
    found: dict[tuple[Any, ...], Annotation] = {}
    for number, fields in enumerate(shapes):
        with at(f"{path}, shapes[{number}]"):
            label = get(fields, "label", str)
            group = optional(fields, "group_id", int)
            mask = _mask_of(fields, size_hw)
            key = (number,) if group is None else (label, group)
            if key in found:
                mask = mask | found[key].mask
            found[key] = Annotation(mask, label, _score(optional(fields, "description", str)))
    return Annotated(image, size_hw, tuple(found.values()))


def _score(description: str | None) -> float | None:
    match = re.search(r"\bscore=([0-9.eE+-]+)", description or "")
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def _mask_of(fields: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    kind = optional(fields, "shape_type", str) or "polygon"
    given = get(fields, "points", list)
    if kind == "polygon":
        return fill([points(given, 3, "'points'")], size_hw)
    if kind in ("rectangle", "circle", "mask"):
        corners = points(given, 2, "'points'")
        if len(corners) != 2:
            raise InputError(f"a {kind} has 2 points, not {len(corners)}")
        if kind == "rectangle":
            (x0, y0), (x1, y1) = corners
            return fill([np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])], size_hw)
        if kind == "circle":
            return _disc(corners, size_hw)
        return _decoded(get(fields, "mask", str), corners, size_hw)
    raise InputError(f"it is a {kind}, which has no area; polygon, rectangle, circle and mask have")


def _disc(corners: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A circle by its centre and a point on it."""
    (x, y), (edge_x, edge_y) = corners
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    squares = (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2
    inside: NDArray[np.bool_] = squares <= (edge_x - x) ** 2 + (edge_y - y) ** 2
    return inside


def _decoded(
    text: str, corners: NDArray[np.float64], size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    x, y = (round(value) for value in corners.min(axis=0).tolist())
    try:
        part = read_mask(base64.b64decode(text, validate=True)) > 0
    except (binascii.Error, InputError) as error:
        raise InputError(f"its mask is no PNG file in base64: {error}") from error
    height, width = part.shape
    if x < 0 or y < 0 or x + width > size_hw[1] or y + height > size_hw[0]:
        raise InputError(
            f"its mask of {width}x{height} at {x},{y} reaches outside the picture, which is "
            f"{size_hw[1]}x{size_hw[0]} (width x height)"
        )
    mask = np.zeros(size_hw, np.bool_)
    mask[y : y + height, x : x + width] = part
    return mask
