"""GeoJSON (RFC 7946) in pixels: a FeatureCollection, one Feature an object.

Coordinates are X, Y from the picture's top left corner, Y downwards; a pixel belongs to a polygon
if its centre lies inside it and in none of its holes. Outlines go along the pixels' sides, so that
reading gives the same mask. An object in one piece is a Polygon, one in several a MultiPolygon,
an empty one has the geometry null. Outer rings run counterclockwise in the plane of the numbers, as
the RFC asks. ``category``, ``score`` and ``id`` are properties; the collection has ``image`` and
``size_hw`` besides.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.data.formats.annotations import Annotated, Annotation
from anyres.data.formats.fields import (
    at,
    get,
    optional,
    points,
    read_json,
    score_of,
    size_of,
)
from anyres.data.formats.polygons import Polygon, fill_all, outline
from anyres.errors import InputError
from anyres.files import write_text


def write_geojson(path: Path | str, picture: Annotated) -> None:
    """Write a picture's objects.

    Raises:
        MissingExtraError: masks of several parts with holes, without OpenCV.
        OutputError: the file cannot be written.
    """
    features = [
        {
            "type": "Feature",
            "geometry": _geometry(outline(each.mask)),
            "properties": {"category": each.category, "score": each.score, "id": each.id},
        }
        for each in picture.annotations
    ]
    content = {
        "type": "FeatureCollection",
        "image": picture.image,
        "size_hw": list(picture.size_hw),
        "features": features,
    }
    # Not indented: that would put each number on a line of its own.
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


def _geometry(polygons: list[Polygon]) -> dict[str, Any] | None:
    if not polygons:
        return None
    closed = [
        [np.concatenate([ring, ring[:1]]).tolist() for ring in polygon] for polygon in polygons
    ]
    if len(closed) == 1:
        return {"type": "Polygon", "coordinates": closed[0]}
    return {"type": "MultiPolygon", "coordinates": closed}


def read_geojson(
    path: Path | str, *, image: str | None = None, size_hw: tuple[int, int] | None = None
) -> Annotated:
    """Read a picture's objects.

    Args:
        path: the file.
        image: the picture's name, for files that do not say it.
        size_hw: its (height, width), for files that do not say it.

    Raises:
        InputError: the file cannot be read or is damaged, or nobody says the picture's size; the
            message says where.
    """
    content = read_json(path)
    with at(str(path)):
        if content.get("type") != "FeatureCollection":
            raise InputError(f"its type is {content.get('type')!r}, not 'FeatureCollection'")
        stored = optional(content, "size_hw", list)
        if stored is not None:
            size_hw = size_of(
                dict(zip(("height", "width"), stored, strict=False)), "height", "width"
            )
        if size_hw is None:
            raise InputError("it has no 'size_hw'; pass the picture's size_hw=(height, width)")
        name = optional(content, "image", str) or image or ""
        features = get(content, "features", list)
    found = []
    for number, feature in enumerate(features):
        with at(f"{path}, features[{number}]"):
            mask = _mask_of(feature, size_hw)
            fields = optional(feature, "properties", dict) or {}
            found.append(
                Annotation(
                    mask,
                    optional(fields, "category", str),
                    score_of(fields, "score"),
                    optional(fields, "id", int),
                )
            )
    return Annotated(name, size_hw, tuple(found))


def _mask_of(feature: Any, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    geometry = get(feature, "geometry", dict, type(None))
    if geometry is None:
        return np.zeros(size_hw, np.bool_)
    kind, given = get(geometry, "type", str), get(geometry, "coordinates", list)
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"it is a {kind}, which has no area; Polygon and MultiPolygon have")
    polygons = []
    for number, polygon in enumerate([given] if kind == "Polygon" else given):
        if not isinstance(polygon, list):
            raise InputError(f"polygon {number} is no list of rings")
        polygons.append(
            [
                points(ring, 4, f"ring {place} of polygon {number}")
                for place, ring in enumerate(polygon)
            ]
        )
    return fill_all(polygons, size_hw)
