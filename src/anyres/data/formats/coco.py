"""COCO's instances (``instances_*.json``), and SA-1B's files of one picture, which are like it.

Run lengths are exact. Polygons are in coordinates from the picture's corner and are filled by
pycocotools, as COCO's own evaluation does it: an annotation's polygons are united, so they cannot
cut holes. Where there are any, run lengths are written instead.

``iscrowd`` marks a region of many objects; such annotations are left out when reading. Objects
without a category are written as ``object``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anyres.data.formats.annotations import (
    NAMELESS,
    Annotated,
    Annotation,
    box_xywh,
    coding,
    packed_shape,
)
from anyres.data.formats.fields import at, get, optional, read_json, score_of, size_of
from anyres.data.formats.polygons import outline
from anyres.errors import InputError
from anyres.files import write_json
from anyres.types import mask_to_rle

Style = Literal["rle", "counts", "polygon"]


def write_coco(path: Path | str, pictures: Sequence[Annotated], style: Style = "rle") -> None:
    """Write pictures and their objects as one file.

    Args:
        path: the file.
        pictures: numbered from 1 in their order, as are the objects that have no id.
        style: ``rle`` compressed run lengths; ``counts`` plain ones; ``polygon`` polygons for masks
            that have pixels and no hole, else compressed run lengths.

    Raises:
        InputError: an unknown style, or two objects of one id.
        MissingExtraError: pycocotools is not installed.
        OutputError: the file cannot be written.
    """
    if style not in get_args(Style):
        raise InputError(f"style {style!r} is not one of {', '.join(get_args(Style))}")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    numbers = _numbers([each for picture in pictures for each in picture.annotations])
    for image_id, picture in enumerate(pictures, 1):
        height, width = picture.size_hw
        images.append(
            {"id": image_id, "file_name": picture.image, "height": height, "width": width}
        )
        for each in picture.annotations:
            mask = each.mask
            name = NAMELESS if each.category is None else each.category
            entry = {
                "id": numbers[len(annotations)],
                "image_id": image_id,
                "category_id": categories.setdefault(name, len(categories) + 1),
                "segmentation": _segmentation(each, mask, style),
                "area": int(mask.sum()),
                "bbox": box_xywh(mask),
                "iscrowd": 0,
            }
            annotations.append(entry | ({} if each.score is None else {"score": each.score}))
    named = [{"id": number, "name": name} for name, number in categories.items()]
    write_json(path, {"images": images, "annotations": annotations, "categories": named})


def _numbers(annotations: Sequence[Annotation]) -> list[int]:
    given = [each.id for each in annotations if each.id is not None]
    if len(set(given)) < len(given):
        twice = next(number for number in given if given.count(number) > 1)
        raise InputError(f"two objects have the id {twice}; ids are unique in a file")
    free = (number for number in range(1, len(annotations) + 1) if number not in set(given))
    return [next(free) if each.id is None else each.id for each in annotations]


def _segmentation(annotation: Annotation, mask: NDArray[np.bool_], style: Style) -> Any:
    if style == "counts":
        return mask_to_rle(mask)
    polygons = outline(mask) if style == "polygon" else []
    if polygons and all(len(polygon) == 1 for polygon in polygons):
        return [polygon[0].ravel().tolist() for polygon in polygons]
    return _text(packed_shape(annotation))


def _text(packed: Mapping[str, Any]) -> dict[str, Any]:
    size = [int(side) for side in packed["size"]]
    return {"size": size, "counts": packed["counts"].decode("ascii")}


def read_coco(path: Path | str) -> list[Annotated]:
    """Read all pictures of a file, those without objects, too.

    Masks stay packed until they are asked for. Crowds are left out.

    Raises:
        InputError: the file cannot be read or is damaged; the message says where.
        MissingExtraError: pycocotools is not installed.
    """
    content = read_json(path)
    pictures = []
    for image, annotations in grouped(content, path):
        size_hw = image_size(image, path)
        found = []
        for number, fields, category in annotations:
            with at(f"{path}, annotation {number}"):
                packed = packed_of(get(fields, "segmentation", list, dict), size_hw)
                found.append(Annotation(packed, category, score_of(fields, "score"), number))
        pictures.append(Annotated(get(image, "file_name", str), size_hw, tuple(found)))
    return pictures


def image_size(image: Mapping[str, Any], path: Path | str) -> tuple[int, int]:
    """(height, width) of an entry of ``images``."""
    with at(f"{path}, image {image.get('id')}"):
        return size_of(image, "height", "width")


Group = tuple[dict[str, Any], list[tuple[int, dict[str, Any], str | None]]]


def grouped(content: dict[str, Any], path: Path | str) -> list[Group]:
    """Put the annotations to their images: (image, [(id, annotation, category)]), in order.

    Raises:
        InputError: damaged lists, two images or annotations of one id, or an unknown image.
    """
    groups: dict[int, Group] = {}
    with at(str(path)):
        images = get(content, "images", list)
        annotations = get(content, "annotations", list)
        categories = _categories(optional(content, "categories", list) or [])
    for at_place, image in enumerate(images):
        with at(f"{path}, images[{at_place}]"):
            number = get(image, "id", int)
            get(image, "file_name", str)
            if number in groups:
                raise InputError(f"the id {number} is taken by another image")
        groups[number] = (image, [])
    seen: set[int] = set()
    for at_place, fields in enumerate(annotations):
        with at(f"{path}, annotations[{at_place}]"):
            number, image_id = get(fields, "id", int), get(fields, "image_id", int)
            if number in seen:
                raise InputError(f"the id {number} is taken by another annotation")
            if image_id not in groups:
                raise InputError(f"there is no image {image_id}")
            category = optional(fields, "category_id", int)
        seen.add(number)
        if not fields.get("iscrowd"):
            groups[image_id][1].append((number, fields, categories.get(category)))
    return list(groups.values())


def _categories(entries: list[Any]) -> dict[int | None, str]:
    names: dict[int | None, str] = {}
    for at_place, entry in enumerate(entries):
        with at(f"categories[{at_place}]"):
            names[get(entry, "id", int)] = get(entry, "name", str)
    return names


def packed_of(segmentation: Any, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Turn a ``segmentation`` of any kind into compressed run lengths.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, ...], or run lengths, compressed or not.
        size_hw: (height, width) of the picture.

    Raises:
        InputError: it is none of these, or does not fit the picture.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, size_hw)
    size, counts = get(segmentation, "size", list), get(segmentation, "counts", list, str)
    if size != list(size_hw):
        raise InputError(
            f"its run lengths are for {size}, the picture is {list(size_hw)} (height, width)"
        )
    if isinstance(counts, list):
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        if not whole or sum(counts) != size_hw[0] * size_hw[1]:
            raise InputError("its counts are no whole numbers from 0 that add up to the picture")
        packed: dict[str, Any] = coding().frPyObjects(segmentation, *size_hw)
        return packed
    if _pixels(counts) != size_hw[0] * size_hw[1]:
        raise InputError("its compressed counts do not add up to the picture")
    return {"size": size, "counts": counts.encode("ascii")}


def _from_polygons(polygons: list[Any], size_hw: tuple[int, int]) -> dict[str, Any]:
    arrays = []
    for number, polygon in enumerate(polygons, 1):
        try:
            array = np.array(polygon, np.float64)
        except (TypeError, ValueError, OverflowError):
            array = np.zeros(0)
        # pycocotools would take four numbers for a box.
        if array.ndim != 1 or len(array) < 6 or len(array) % 2 or not np.isfinite(array).all():
            raise InputError(f"polygon {number} is no list of x, y of three or more points")
        arrays.append(array.tolist())
    codes = coding()
    if not arrays:
        raise InputError("it has no polygon")
    packed: dict[str, Any] = codes.merge(codes.frPyObjects(arrays, *size_hw))
    return packed


def _pixels(counts: str) -> int:
    """How many pixels compressed run lengths stand for; -1 if they are damaged.

    pycocotools leaves what they do not cover as it finds it in memory. Each character holds five
    bits, the lowest first, and whether more follow; from the fourth number on, each is the
    difference to the last but one.
    """
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return -1
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 6:
        return -1
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    values = np.add.reduceat((codes & 31) << shifts, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return int(values.sum()) if values.min() >= 0 else -1


def write_sa1b(path: Path | str, picture: Annotated) -> None:
    """Write one picture's objects as SA-1B does: compressed run lengths, no categories.

    A score is written as ``predicted_iou``. What SAM's automatic masks have besides and a mask
    does not tell (``stability_score``, ``point_coords``, ``crop_box``) is not written; a category
    is, as a field of its own.

    Raises:
        InputError: two objects of one id.
        MissingExtraError: pycocotools is not installed.
        OutputError: the file cannot be written.
    """
    height, width = picture.size_hw
    numbers = _numbers(picture.annotations)
    annotations = []
    for number, each in zip(numbers, picture.annotations, strict=True):
        mask = each.mask
        entry: dict[str, Any] = {
            "id": number,
            "segmentation": _text(packed_shape(each)),
            "area": int(mask.sum()),
            "bbox": box_xywh(mask),
        }
        entry |= {} if each.score is None else {"predicted_iou": each.score}
        annotations.append(entry | ({} if each.category is None else {"category": each.category}))
    image = {"image_id": 1, "width": width, "height": height, "file_name": picture.image}
    write_json(path, {"image": image, "annotations": annotations})


def read_sa1b(path: Path | str) -> Annotated:
    """Read a file of SA-1B; ``predicted_iou`` becomes the score.

    Raises:
        InputError: the file cannot be read or is damaged; the message says where.
        MissingExtraError: pycocotools is not installed.
    """
    content = read_json(path)
    with at(f"{path}, image"):
        image = get(content, "image", dict)
        size_hw, name = size_of(image, "height", "width"), get(image, "file_name", str)
    found = []
    for number, fields in enumerate(get(content, "annotations", list)):
        with at(f"{path}, annotations[{number}]"):
            packed = packed_of(get(fields, "segmentation", list, dict), size_hw)
            score = score_of(fields, "predicted_iou")
            category = optional(fields, "category", str)
            found.append(Annotation(packed, category, score, optional(fields, "id", int)))
    return Annotated(name, size_hw, tuple(found))
