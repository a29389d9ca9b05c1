"""``anyres compare``: two evaluations, object by object."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyres.cli import common
from anyres.cli.evaluate import number

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """[bold]Examples[/bold]

  anyres compare out/grabcut.json out/default.json

  anyres compare before.json after.json --json difference.json
"""


def compare(
    a: Annotated[Path, typer.Argument(help="A report of 'anyres evaluate'.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Another, on the same data.", metavar="B")],
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    json: Annotated[
        Path | None,
        typer.Option(metavar="PATH|-", help="The differences for programs; '-' is stdout."),
    ] = None,
) -> None:
    """Compare two evaluations object by object: B minus A, and the interval it lies in.

    The interval holds the difference in 95 % of 10,000 resamples of the objects (a paired
    bootstrap). Where it leaves out 0 the difference is marked as clear.
    """
    from anyres.data.scene_notes import LABEL
    from anyres.evaluate.compare import compare as differences
    from anyres.evaluate.report import read

    common.check_outputs({"--json": common.json_file(json)}, {"A": a, "B": b})
    found = differences(read(a), read(b), seed=seed)
    common.write_json({"a": str(a), "b": str(b), **found}, json)
    console = common.console()
    if not found["same_data"] or found["only_a"] or found["only_b"]:
        console.print(
            f"not the same objects: {found['objects']} common ones are compared, "
            f"{found['only_a']} are in A alone, {found['only_b']} in B alone"
        )
    composed = [name for name in found["sets"] if name.endswith(LABEL)]
    if composed:
        console.print("among them: " + ", ".join(composed), markup=False)
    console.print(_differences(f"{b} minus {a}", found["overall"], found["objects"]))
    if len(found["sets"]) > 1:
        console.print(f"--json has the same for each of {len(found['sets'])} sets")


def _differences(title: str, figures: dict[str, dict[str, Any]], objects: int) -> "Table":
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, header_style="bold", title=f"{title}, {objects} objects"
    )
    for heading in ("figure", "A", "B", "B - A", "95 % of resamples", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    for name, row in figures.items():
        cells = [number(name, row[key]) for key in ("a", "b")]
        moves = [number(name, row[key], "+") for key in ("difference", "low", "high")]
        clear = "clear" if row["clear"] else ""
        table.add_row(name, *cells, moves[0], f"{moves[1]} to {moves[2]}", clear)
    return table
