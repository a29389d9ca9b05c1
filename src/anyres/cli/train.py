"""``anyres train``: train a model on folders of pictures and masks."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyres.cli import common
from anyres.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from anyres.train.config import TrainConfig
    from anyres.train.preflight import Estimate

EXAMPLES = """[bold]Examples[/bold]

Train the embedded model anew; DATA holds one folder a set, with images/ and masks/ in each:

  anyres train scratch --data DATA --out runs/first

Fine-tune the embedded model on a folder of your own, with images/ and masks/:

  anyres train adapt --data MYFOLDER --out runs/mine

Distil a SAM into a small HRSAM; any folder of pictures does:

  anyres train distil --data PICTURES --out runs/small --set teacher=sam_vit_b_01ec64.pth

What training anew would take, found out by a few steps:

  anyres train scratch --data DATA --out runs/first --check

The same, shorter and on one thread; Ctrl-C stops it, the same line goes on:

  anyres train scratch --data DATA --out runs/short --set steps=500 --set threads=1

In two processes, or on two GPUs:

  torchrun --nproc-per-node 2 -m anyres train scratch --data DATA --out runs/two

Use what came out:

  anyres predict cat.jpg --point 420,310 --weights runs/first/model.safetensors
"""
# What the log records -> what it is called on the screen.
_WORDS = {
    "loss": "loss",
    "iou_first": "first IoU",
    "iou_last": "last IoU",
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
    check: Annotated[
        bool,
        typer.Option("--check", help="Only tell what the run would take: time, memory, disk."),
    ] = False,
) -> None:
    """Train a model with simulated clicks; started again with the same --out it goes on."""
    from anyres.train.config import load_config

    config = load_config(recipe, set_ or [])
    if not data.is_dir():
        raise InputError(f"--data {data} is not a folder; give the folder that holds the sets")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder for the run")
    console = common.console()
    # Of several processes the first talks.
    console.quiet = os.environ.get("RANK", "0") != "0"
    if check:
        from anyres.train.loop import estimate

        console.print("a step of each kind, twice ...")
        _tell(console, config, estimate(config, data, out))
        return
    _run(console, config, data, out)


def _run(console: "Console", config: "TrainConfig", data: Path, out: Path) -> None:
    from anyres.train.loop import train as run

    mean: dict[str, float] = {}
    with common.progress("steps", console) as progress:
        task = progress.add_task("", total=config.steps)

        def report(step: int, record: Mapping[str, Any]) -> None:
            if not mean:  # a run that goes on: the steps before took no time of this one
                progress.reset(task, completed=step - 1)
            for name in _WORDS.keys() & record.keys():
                mean[name] = 0.95 * mean.get(name, record[name]) + 0.05 * record[name]
            text = ", ".join(f"{_WORDS[name]} {mean[name]:.3f}" for name in _WORDS if name in mean)
            progress.update(task, completed=step, description=text)
            if "validation" in record:
                figures = ", ".join(f"{k} {v:.3f}" for k, v in record["validation"].items())
                progress.console.print(f"step {step}: {figures}")

        def prepared(done: int, total: int) -> None:
            text = "" if done == total else f"looked at {done} of {total}"
            progress.update(task, description=text)

        finished = run(config, data, out, report, prepared)
        if finished:
            progress.update(task, completed=config.steps)
    if finished:
        console.print(f"done: {out / 'model.safetensors'}")
    else:
        console.print(f"stopped; the same command goes on from {out / 'checkpoint.pt'}")


def _tell(console: "Console", config: "TrainConfig", found: "Estimate") -> None:
    for side, pictures, seconds in found.rounds:
        batch = f"{pictures} pictures" + (f" x {config.accumulate}" * (config.accumulate > 1))
        console.print(f"a step at {side} pixels, {batch}: {seconds:.2f} s")
    console.print(f"all steps that are left: {timedelta(seconds=round(found.seconds))}")
    console.print(
        f"memory of a process, without those that make samples: {found.memory / 1e6:.0f} MB"
    )
    console.print(
        f"disk: {found.disk / 1e6:.0f} MB, of {found.free / 1e6:.0f} MB that are free; "
        f"a checkpoint is written in {found.checkpoint_seconds:.1f} s"
    )
