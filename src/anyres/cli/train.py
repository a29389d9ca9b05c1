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

The same, shorter and on one thread; Ctrl-C stops it, the same line goes on:

  anyres train scratch --data DATA --out runs/short --set steps=500 --set threads=1

Use what came out:

  anyres predict cat.jpg --point 420,310 --weights runs/first/model.safetensors
"""


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
            for name in ("loss", "iou_first", "iou_last"):
                mean[name] = 0.95 * mean.get(name, record[name]) + 0.05 * record[name]
            text = (
                f"loss {mean['loss']:.3f}, IoU at the first prompt {mean['iou_first']:.3f}, "
                f"at the last {mean['iou_last']:.3f}"
            )
            progress.update(task, completed=step, description=text)

        finished = run(config, data, out, report)
        if finished:
            progress.update(task, completed=config.steps)
    if finished:
        console.print(f"done: {out / 'model.safetensors'}")
    else:
        console.print(f"stopped; the same command goes on from {out / 'checkpoint.pt'}")
