"""YOLO's segmentation labels: a text file a picture, a line an object.

A line is the number of the class and the corners of one polygon, x and y as shares of the picture's
width and height, from its corner. The format has one polygon an object and no holes, so all rings
of an object are joined by bridges: lines that run there and back, without area. Under the even-odd
rule the same mask comes back. Empty masks are left out; scores and ids are not kept.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anyres.data.formats.annotations import NAMELESS, Annotated, Annotation
from anyres.data.formats.fields import at
from anyres.data.formats.polygons import Ring, fill, outline
from anyres.errors import InputError
from anyres.files import write_text


def write_yolo(path: Path | str, picture: Annotated, classes: Sequence[str]) -> None:
    """Write a picture's objects.

    Args:
        path: the file, of the picture's name with ``.txt``.
        picture: the objects; those without a category are of the class ``object``.
        classes: the names of the classes, in the order of their numbers.

    Raises:
        InputError: a category that is no class.
        OutputError: the file cannot be written.
    """
    height, width = picture.size_hw
    lines = []
    for each in picture.annotations:
        name = NAMELESS if each.category is None else each.category
        if name not in classes:
            raise InputError(f"{path}: {name!r} is none of the classes {', '.join(classes)}")
        rings = [ring for polygon in outline(each.mask) for ring in polygon]
        if rings:
            shares = _joined(rings) / (width, height)
            corners = " ".join(f"{value:.10g}" for value in shares.ravel().tolist())
            lines.append(f"{classes.index(name)} {corners}\n")
    write_text(path, "".join(lines))


def _joined(rings: Sequence[Ring]) -> NDArray[np.float64]:
    """One ring that goes around all, each from its first corner, and back to where it came from."""
    closed = [np.concatenate([ring, ring[:1]]) for ring in rings]
    back = [ring[:1] for ring in rings[-2::-1]]
    return np.concatenate(closed + back).astype(np.float64)


def read_yolo(
    path: Path | str, *, image: str, size_hw: tuple[int, int], classes: Sequence[str]
) -> Annotated:
    """Read a picture's objects.

    Args:
        path: the file.
        image: the picture's name, which the file does not say.
        size_hw: its (height, width), which the file does not say either.
        classes: the names of the classes, in the order of their numbers.

    Raises:
        InputError: the file cannot be read or is damaged; the message says in which line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no text file: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            with at(f"{path}, line {number}"):
                ring, category = _parsed(line.split(), classes)
                mask = fill([ring * (size_hw[1], size_hw[0])], size_hw)
            found.append(Annotation(mask, category))
    return Annotated(image, size_hw, tuple(found))


def _parsed(words: list[str], classes: Sequence[str]) -> tuple[NDArray[np.float64], str]:
    try:
        number, values = int(words[0]), np.array(words[1:], np.float64)
    except ValueError as error:
        raise InputError(f"it is no line of numbers: {error}") from error
    if not 0 <= number < len(classes):
        raise InputError(f"there is no class {number}; {len(classes)} are known, from 0")
    if len(values) == 4:
        raise InputError("it is a box, not a polygon; these are no labels for segmentation")
    if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
        raise InputError("a class and the x and y of three or more points should stand there")
    return values.reshape(-1, 2), classes[number]
