"""``anyres train``: train a model on folders of pictures and masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anyres.cli import common
from anyres.errors import InputError

if TYPE_CHECKING:
    from anyres.train.config import TrainConfig

EXAMPLES = """[bold]Examples[/bold]

Train the embedded model anew; DATA holds one folder a set, with images/ and masks/ in each:

  anyres train scratch --data DATA --out runs/first

Fine-tune the embedded model on a folder of your own, with images/ and masks/:

  anyres train adapt --data MYFOLDER --out runs/mine

Distil a SAM into a small HRSAM; any folder of pictures does:

  anyres train distil --data PICTURES --out runs/small --set teacher=sam_vit_b_01ec64.pth

The first again, shorter and on one thread; Ctrl-C stops it, the same line goes on:

  anyres train scratch --data DATA --out runs/short --set steps=500 --set threads=1

Use what came out:

  anyres predict cat.jpg --point 420,310 --weights runs/first/model.safetensors
"""

# What the log records -> what it is called on the screen.
_SHOWN = {
    "loss": "loss",
    "iou_first": "IoU at the first prompt",
    "iou_last": "at the last",
    "unexplained": "unexplained",
}


def train(
    recipe: Annotated[
        str, typer.Argument(help="A TOML file, or the name of a recipe that ships with anyres.")
    ],
    data: Annotated[Path, typer.Option(metavar="FOLDER", help="The training sets.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The run: checkpoint, weights, log.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Override a setting. Repeatable."),
    ] = None,
) -> None:
    """Train a model with simulated clicks; started again with the same --out it goes on."""
    from anyres.train.config import load_config

    config = load_config(recipe, set_ or [])
    if not data.is_dir():
        raise InputError(f"--data {data} is not a folder; give the folder that holds the sets")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder for the run")
    _run(config, data, out)


def _run(config: "TrainConfig", data: Path, out: Path) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from anyres.train.loop import train as run

    console = common.console()
    columns = (
        TextColumn("steps"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    mean: dict[str, float] = {}
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=config.steps)

        def report(step: int, record: dict[str, float]) -> None:
            for name in record.keys() & _SHOWN.keys():
                mean[name] = 0.95 * mean.get(name, record[name]) + 0.05 * record[name]
            shown = (f"{text} {mean[name]:.3f}" for name, text in _SHOWN.items() if name in mean)
            progress.update(task, completed=step, description=", ".join(shown))

        def prepared(done: int, total: int) -> None:
            text = "" if done == total else f"the teacher has seen {done} of {total}"
            progress.update(task, description=text)

        finished = run(config, data, out, report, prepared)
        if finished:
            progress.update(task, completed=config.steps)
    if finished:
        console.print(f"done: {out / 'model.safetensors'}")
    else:
        console.print(f"stopped; the same command goes on from {out / 'checkpoint.pt'}")
