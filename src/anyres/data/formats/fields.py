"""Fields of JSON files: there, and of the right kind, or an error that says where."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.data.images import MAX_PIXELS
from anyres.errors import InputError


def read_json(path: Path | str) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        InputError: it cannot be read, is no JSON, or no object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; it must be a JSON object")
    return content


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put where it is before what an error says."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def get(fields: Any, name: str, *kinds: type) -> Any:
    """A field of an object.

    Raises:
        InputError: no object, no such field, or one of another kind.
    """
    if not isinstance(fields, Mapping):
        raise InputError(f"a {type(fields).__name__} stands where an object should be")
    if name not in fields:
        raise InputError(f"there is no {name!r}")
    value = fields[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"{name!r} is {_short(value)}; it must be of type {wanted}")
    return value


def optional(fields: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """The same, but None where the field is absent or null."""
    return None if fields.get(name) is None else get(fields, name, *kinds)


def score_of(fields: Mapping[str, Any], name: str) -> float | None:
    """A number, if it is there."""
    value = optional(fields, name, int, float)
    return None if value is None else float(value)


def size_of(fields: Any, height: str, width: str) -> tuple[int, int]:
    """(height, width) of a picture, within the limit that pictures have."""
    size: tuple[int, int] = get(fields, height, int), get(fields, width, int)
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"the picture is {size[1]}x{size[0]}; it must have 1 to {MAX_PIXELS} pixels"
        )
    return size


def points(value: Any, least: int, name: str) -> NDArray[np.float64]:
    """A list of at least so many [x, y], as (N, 2).

    Raises:
        InputError: it is none, or holds anything but finite numbers.
    """
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(0)
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise InputError(f"{name} is {_short(value)}; it must be a list of [x, y]")
    if len(array) < least:
        raise InputError(f"{name} has {len(array)} points; it must have {least} or more")
    return array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
