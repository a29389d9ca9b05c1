"""What the verbs share: where outputs may go, how they are written, and who reads what."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyres import files
from anyres.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from anyres.predict.resolution import Resolution

STDOUT = "-"

# Options of all verbs that load a model.
MODEL_PANEL = "Model"
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A .safetensors or .pth checkpoint; the default model needs none.",
        rich_help_panel=MODEL_PANEL,
    ),
]
ResolutionText = Annotated[
    str | None,
    typer.Option(
        metavar="N|train|native",
        help="Long side fed to the model. [dim]Default: the model's own rule[/dim]",
        rich_help_panel=MODEL_PANEL,
    ),
]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MODEL_PANEL)
]
Dtype = Annotated[
    str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=MODEL_PANEL)
]


def console() -> "Console":
    """The console for people: stderr, so that stdout stays free for results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def progress(what: str, console: "Console") -> "Progress":
    """A bar of so many of ``what``, with the time that is left and the task's description.

    In a narrow terminal the bar goes first, and counts and times are never broken.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    return Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.description}"),
        console=console,
    )


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None], suffix: str = ".png"
) -> None:
    """Find out before any work whether the outputs can be written.

    Args:
        outputs: option name -> path, or None where the option is not given.
        inputs: the same of files that must not be overwritten.
        suffix: what the names must end in; ``--json`` may end in anything.

    Raises:
        InputError: a folder is missing or closed, a suffix is not known, or two paths are one file.
    """
    taken = {_identity(path): name for name, path in inputs.items() if path is not None}
    for name, path in outputs.items():
        if path is None:
            continue
        if name != "--json" and path.suffix.lower() != suffix:
            raise InputError(f"{name} {path} cannot be written: its name must end in {suffix}")
        if path.is_dir():
            raise InputError(f"{name} {path} is a folder; give the name of a file in it")
        folder = path.parent
        if not folder.is_dir():
            raise InputError(f"{name} {path} cannot be written: there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{name} {path} cannot be written: {folder} is closed to you")
        identity = _identity(path)
        if identity in taken:
            raise InputError(f"{name} {path} would overwrite {taken[identity]}; give another name")
        taken[identity] = name


def _identity(path: Path) -> str | tuple[int, int]:
    """The same for two names of one file, be it through links or not."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def write_json(result: Mapping[str, Any], target: Path | None) -> None:
    """Write a result as JSON to a file, atomically, or to stdout for ``-``; nothing for None."""
    if target is None:
        return
    if str(target) == STDOUT:
        sys.stdout.write(json.dumps(result, indent=2, allow_nan=False) + "\n")
        sys.stdout.flush()
    else:
        files.write_json(target, result)


def json_file(target: Path | None) -> Path | None:
    """The file that ``--json`` names, or None for stdout and where it is not given."""
    return None if target is None or str(target) == STDOUT else target


def parse_resolution(text: str | None) -> "Resolution | None":
    """``--resolution``: a number of pixels, ``train`` or ``native``; None stays None.

    Raises:
        InputError: it is none of these.
    """
    if text is None:
        return None
    if text == "train":
        return "train"
    if text == "native":
        return "native"
    if text.isascii() and text.isdigit():
        return int(text)
    raise InputError(f"--resolution {text!r}: give the long side in pixels, 'train' or 'native'")
