"""``anyres evaluate``: score a model on a data set."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from anyres.cli import common
from anyres.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from anyres.data.datasets import Dataset
    from anyres.evaluate.session import Session

EXAMPLES = """[bold]Examples[/bold]

The embedded model under the papers' 20 clicks, with pictures of the worst and the best cases:

  anyres evaluate --data DATA --resolution 1024 --json out/default.json --plots out/default

What a person gets without a model:

  anyres evaluate --model grabcut --data DATA --json out/grabcut.json

Your SAM checkpoint with the true boxes, on one part of a published set:

  anyres evaluate --model sam_vit_b --weights sam_vit_b_01ec64.pth --data DIS5K --layout dis5k
  --part DIS-TE1 --protocol box --resolution 2048 --json out/sam.json

The difference between two runs, and how sure it is:

  anyres compare out/grabcut.json out/default.json

A run that was stopped goes on when the same command is given again.
"""

_MODEL = common.MODEL_PANEL
_DATA, _PROTOCOL, _RUN, _OUTPUT = "Data", "Protocol", "Run", "Output"


def evaluate(
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The data set.", rich_help_panel=_DATA)
    ],
    json: Annotated[
        Path,
        typer.Option(
            metavar="PATH|-",
            help="The report: every figure, and the result of every object. '-' is stdout, and "
            "then a stopped run begins anew.",
            rich_help_panel=_OUTPUT,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            help="See 'anyres models'; or 'grabcut', OpenCV's, which needs no model.",
            rich_help_panel=_MODEL,
        ),
    ] = "default",
    weights: common.Weights = None,
    resolution: common.ResolutionText = None,
    device: common.Device = "auto",
    dtype: common.Dtype = "auto",
    layout: Annotated[
        str,
        typer.Option(
            help="folder (images/ and masks/), hqseg44k, davis, grabcut, dis5k, duts, cod10k, "
            "isic or coco.",
            rich_help_panel=_DATA,
        ),
    ] = "folder",
    part: Annotated[
        str | None,
        typer.Option(
            help="One part of the data set. [dim]Default: those papers score[/dim]",
            rich_help_panel=_DATA,
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--map",
            help="What the maps of a folder are: auto, binary, instance, class.",
            rich_help_panel=_DATA,
        ),
    ] = "auto",
    smallest: Annotated[
        float | None,
        typer.Option(
            help="Leave out objects below this share of the picture. [dim]Default: 0.002, and 0 "
            "in published sets whose papers score all[/dim]",
            rich_help_panel=_DATA,
        ),
    ] = None,
    largest: Annotated[
        float | None,
        typer.Option(
            help="Leave out objects above this share. [dim]Default: 0.95, and 1 in those "
            "sets[/dim]",
            rich_help_panel=_DATA,
        ),
    ] = None,
    void: Annotated[
        str,
        typer.Option(
            help="Pixels that belong to nobody: 'background', as in papers, or 'ignore'.",
            rich_help_panel=_DATA,
        ),
    ] = "background",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop at a missing or damaged file; otherwise the report names it.",
            rich_help_panel=_DATA,
        ),
    ] = False,
    allow_leak: Annotated[
        bool,
        typer.Option(
            "--allow-leak",
            help="Score a model even on what it was trained on.",
            rich_help_panel=_DATA,
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only the first so many objects.", rich_help_panel=_DATA),
    ] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="clicks: up to 20, each on the largest error. box: the true box. point: one "
            "click in the middle.",
            rich_help_panel=_PROTOCOL,
        ),
    ] = "clicks",
    clicks: Annotated[
        int,
        typer.Option(min=1, max=20, help="Clicks an object.", rich_help_panel=_PROTOCOL),
    ] = 20,
    jitter: Annotated[
        float,
        typer.Option(
            help="Move each edge of the box by up to this part of its side.",
            rich_help_panel=_PROTOCOL,
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the jitter.", rich_help_panel=_PROTOCOL)] = 0,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Processes, each with a model of its own; worth it where a model leaves "
            "processors idle.",
            rich_help_panel=_RUN,
        ),
    ] = 1,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="One row an object.", rich_help_panel=_OUTPUT),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="IoU against clicks, the worst and the best cases, as PNGs.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
) -> None:
    """Score a model on a data set.

    A simulated annotator prompts the model for each object and compares its mask with the truth.
    Results are kept beside the report while the run lasts: stopped or killed, the same command
    goes on.
    """
    from anyres import files
    from anyres.evaluate import session as sessions
    from anyres.evaluate.choice import Choice
    from anyres.evaluate.journal import sole
    from anyres.evaluate.protocols import ProtocolName, Rules
    from anyres.evaluate.report import to_csv, to_json
    from anyres.evaluate.run import Task

    out = common.json_file(json)
    _check_outputs(out, csv, plots, weights)
    rules = Rules(cast("ProtocolName", protocol), clicks, jitter, seed)
    choice = Choice(model, weights, common.parse_resolution(resolution), device, dtype)
    opening = {
        "layout": layout,
        "kind": kind,
        "part": part,
        "smallest": smallest,
        "largest": largest,
        "void": void,
    }
    with sole(None if out is None else sessions.lock_file(out)):
        task = Task(_open(data, opening | {"strict": strict}), rules, strict)
        with common.console().status("loading the model"):
            session = sessions.Session(
                task, choice, out, limit=limit, workers=workers, allow_leak=allow_leak
            )
        _run(session)
        command = shlex.join(["anyres", *sys.argv[1:]])
        report = session.report(command, {"path": str(data), **opening})
        if out is None:
            sys.stdout.write(to_json(report))
        else:
            files.write_text(out, to_json(report))
        if csv is not None:
            files.write_text(csv, to_csv(report))
        if plots is not None:
            _draw(plots, session, report)
        session.journal.remove()
    _account(report, [str(path) for path in (out, csv, plots) if path is not None])


def _check_outputs(
    out: Path | None, csv: Path | None, plots: Path | None, weights: Path | None
) -> None:
    """Find out before any work whether the results can be written; make the folder of plots."""
    common.check_outputs({"--json": out, "--csv": csv}, {"--weights": weights}, suffix=".csv")
    if plots is None:
        return
    from anyres.evaluate.plots import figure

    figure(1, 1)
    if plots.exists() and not plots.is_dir():
        raise InputError(f"--plots {plots} is a file; give a folder")
    try:
        plots.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"--plots {plots} cannot be made: {error.strerror or error}") from error


def _open(path: Path, options: dict[str, Any]) -> "Dataset":
    """Open the data set; reading it for the first time may take a while."""
    from rich.progress import Progress

    from anyres.data.datasets import open_dataset

    with Progress(console=common.console(), transient=True) as progress:
        task = progress.add_task("reading the masks", visible=False)

        def tell(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        return open_dataset(path, **options, on_progress=tell)


def _run(session: "Session") -> None:
    """Run with a bar of progress and the figure that people wait for."""
    from anyres.evaluate.figures import Running

    console = common.console()
    done = [
        session.journal.done[ref.key] for ref in session.refs if ref.key in session.journal.done
    ]
    if done:
        console.print(f"going on: {len(done)} of {len(session.refs)} objects have their results")
    running = Running(session.task.rules)
    with common.progress("objects", console) as progress:
        task = progress.add_task("", total=len(session.refs))

        def tell(result: dict[str, Any]) -> None:
            progress.update(task, advance=1, description=running.add(result))

        for result in done:
            running.add(result)
        progress.update(task, completed=len(done))
        try:
            session.run(tell)
        except KeyboardInterrupt:
            progress.stop()
            kept = len(session.journal.done)
            console.print(f"stopped after {kept} objects; the same command goes on")
            raise typer.Exit(1) from None


def _draw(folder: Path, session: "Session", report: dict[str, Any]) -> None:
    from anyres.evaluate.plots import draw_curves
    from anyres.evaluate.sheets import CASES, draw_sheet, ranked

    with common.console().status("drawing"):
        draw_curves(folder / "iou.png", report)
        keys = ranked(report)
        draw_sheet(folder / "worst.png", session.task, session.model, keys[:CASES])
        draw_sheet(folder / "best.png", session.task, session.model, keys[::-1][:CASES])


def _account(report: dict[str, Any], written: list[str]) -> None:
    """Show the figures, and tell where they are."""
    console = common.console()
    console.print(_figures(report))
    if report["problems"]:
        console.print(f"{len(report['problems'])} problems, the first: ", end="")
        console.print(report["problems"][0], markup=False)
    if written:
        console.print("wrote " + ", ".join(written), markup=False)


def _figures(report: dict[str, Any]) -> "Table":
    """The figures of each set and of all."""
    from rich.table import Column, Table

    overall = report["overall"]
    shown = (
        "objects noc85 noc90 noc95 nof95 iou1 iou3 iou5 iou20 spc"
        if "spc" in overall
        else "objects iou dice boundary_iou mae s e_mean f_weighted ap"
    )
    names = [name for name in shown.split() if overall.get(name) is not None]
    first = Column("set", overflow="fold")
    table = Table(first, *names, box=None, pad_edge=False, header_style="bold")
    sets = report["sets"]
    for title, figures in [*sets.items()] if len(sets) > 1 else []:
        table.add_row(title, *(number(name, figures[name]) for name in names))
    name = "overall" if len(sets) > 1 else next(iter(sets))
    table.add_row(name, *(number(name, overall[name]) for name in names))
    return table


def number(name: str, value: float | None, sign: str = "") -> str:
    """A figure with as many digits as it deserves."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:{sign}d}"
    return f"{value:{sign}.2f}" if name.startswith("no") else f"{value:{sign}.3f}"
