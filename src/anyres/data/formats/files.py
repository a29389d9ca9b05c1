"""Formats by their names, for one picture: what ``anyres predict --format`` offers."""

from pathlib import Path
from typing import Final

from anyres.data.formats.annotations import NAMELESS, Annotated, coding
from anyres.data.formats.coco import write_coco, write_sa1b
from anyres.data.formats.geojson import write_geojson
from anyres.data.formats.labelme import write_labelme
from anyres.data.formats.png import write_binary, write_ids
from anyres.data.formats.polygons import opencv
from anyres.data.formats.yolo import write_yolo
from anyres.errors import InputError

# What the name of a file of each format ends in.
SUFFIXES: Final = {
    "png": ".png",
    "coco": ".json",
    "labelme": ".json",
    "geojson": ".geojson",
    "yolo": ".txt",
    "sa1b": ".json",
}


def format_of(name: str | None, path: Path | None) -> str:
    """The format that is meant by its name or by a file's; ``png`` where neither is given.

    Raises:
        InputError: an unknown format, an ending that several formats have, or one that no format
            has.
    """
    if name is not None:
        if name not in SUFFIXES:
            raise InputError(f"there is no format {name!r}; there are {', '.join(SUFFIXES)}")
        return name
    if path is None:
        return "png"
    fitting = [each for each, suffix in SUFFIXES.items() if suffix == path.suffix.lower()]
    if len(fitting) > 1:
        raise InputError(f"{path} can be of the formats {', '.join(fitting)}: say which")
    if not fitting:
        endings = ", ".join(dict.fromkeys(SUFFIXES.values()))
        raise InputError(f"{path} is of no known format; names end in {endings}")
    return fitting[0]


def require(name: str) -> None:
    """Make sure that what a format needs is installed, before there is anything to lose.

    Raises:
        MissingExtraError: it is not.
    """
    if name in ("coco", "sa1b"):
        coding()
    elif name != "png":
        opencv()


def write(path: Path, picture: Annotated, name: str) -> None:
    """Write one picture's objects; several in PNG as 16-bit ids, YOLO's classes by their names.

    Raises:
        InputError: the objects do not fit the format.
        MissingExtraError: the format needs a package that is not installed.
        OutputError: the file cannot be written.
    """
    if name == "coco":
        write_coco(path, [picture])
    elif name == "sa1b":
        write_sa1b(path, picture)
    elif name == "labelme":
        write_labelme(path, picture)
    elif name == "geojson":
        write_geojson(path, picture)
    elif name == "yolo":
        names = {
            NAMELESS if each.category is None else each.category for each in picture.annotations
        }
        write_yolo(path, picture, sorted(names))
    elif len(picture.annotations) == 1:
        write_binary(path, picture)
    else:
        write_ids(path, picture)
