"""``anyres scenes``: make a data set of high-resolution scenes with exact masks."""

from pathlib import Path
from typing import Annotated

import typer

from anyres.cli import common
from anyres.errors import InputError

EXAMPLES = """[bold]Examples[/bold]

Forty scenes of 2048 x 2048 pixels, drawn objects over your photographs:

  anyres scenes --photos PHOTOS --out scenes2048

Wider ones, from two folders of photographs, with cut-outs of a data set's objects among them:

  anyres scenes --photos HOLIDAY --photos STREETS --objects DATA --size 4096x2730 --count 100
  --seed 7 --workers 2 --out scenes4096

Does a model gain from more pixels there?

  anyres evaluate --data scenes2048 --resolution 2048 --json out/at2048.json

Stopped, the same command goes on.
"""


def scenes(
    photos: Annotated[
        list[Path],
        typer.Option(
            metavar="FOLDER",
            help="Photographs to compose over, or a data set's folder. Repeatable. Large ones are "
            "best: smaller ones than --size are scaled up and get grain.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The data set: images/, masks/, scenes.json.")
    ],
    objects: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="A data set whose objects are cut out and pasted, too. Repeatable.",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="N|WxH", help="Pixels of a side, or width x height; 64 to 4096.")
    ] = "2048",
    count: Annotated[int, typer.Option(min=1, help="Scenes.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Another one makes other scenes.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Make a data set of high-resolution scenes: exact masks with details of a few pixels.

    Figures on such a set are semi-synthetic, and 'anyres evaluate' calls them so. It also refuses
    a model that was trained on a picture which went into the scenes.
    """
    from anyres.data.scene_sets import SceneSet, find_objects, find_photos, write_set

    asked = SceneSet(
        tuple(path for folder in photos for path in find_photos(folder)),
        tuple(entry for folder in objects or [] for entry in find_objects(folder)),
        _size_hw(size),
        count,
        seed,
    )
    console = common.console()
    with common.progress("scenes", console) as progress:
        task = progress.add_task("", total=count)
        done = 0
        try:
            for done in write_set(out, asked, workers=workers):
                progress.update(task, completed=done)
        except KeyboardInterrupt:
            progress.stop()
            console.print(f"stopped after {done} scenes; the same command goes on")
            raise typer.Exit(1) from None
    console.print(f"done: {out}", markup=False)


def _size_hw(text: str) -> tuple[int, int]:
    """``2048`` or ``2048x1365`` as (height, width)."""
    width, cross, height = text.lower().partition("x")
    sides = (height, width) if cross else (width, width)
    if not all(side.isascii() and side.isdigit() for side in sides):
        raise InputError(f"--size {text!r}: give pixels of a side, such as 2048, or 2048x1365")
    return int(sides[0]), int(sides[1])
