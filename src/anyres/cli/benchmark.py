"""``anyres benchmark``: how fast and how large models are on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anyres.cli import common
from anyres.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyres.benchmark.run import Cell, Results

EXAMPLES = """[bold]Examples[/bold]

The embedded model beside SAM as people run it, up to 2048 x 2048:

  anyres benchmark

Others, one of them in both precisions, with a picture of time and memory:

  anyres benchmark --models hrsam_ti,hrsam_ti/float32,hrsam_b,stock --plot out/speed.png

Models are presets (with random weights where none ship), or [bold]stock[/bold]: SAM ViT-B in
float32 with whole score matrices, as people run it. A preset may have [bold]/cycles=1[/bold] and
[bold]/float32[/bold] behind it.
"""


def benchmark(
    models: Annotated[
        str, typer.Option(metavar="A,B", help="Presets, or 'stock'.")
    ] = "default,hrsam_ti,stock",
    sizes: Annotated[
        str, typer.Option(metavar="N,HxW", help="Sides of squares, or heights and widths.")
    ] = "512,1024,2048",
    dtype: Annotated[
        str, typer.Option(help="auto, float32 or bfloat16, where a model names none.")
    ] = "auto",
    json: Annotated[
        Path | None, typer.Option(metavar="PATH|-", help="All numbers; '-' is stdout.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Time and memory against pixels.")
    ] = None,
) -> None:
    """Measure encoders, clicks and memory, beside baselines in the same run.

    What --json names is written anew after each size; Ctrl-C keeps the sizes that were finished.
    """
    common.check_outputs({"--json": common.json_file(json), "--plot": plot}, {})
    if plot is not None:
        from anyres.benchmark.plot import check_installed

        check_installed()
    wanted = [name for name in models.split(",") if name]
    if not wanted:
        raise InputError("--models names none; give presets with commas between")
    file = common.json_file(json)
    results, stopped = _measure(
        wanted, _sizes(sizes), dtype, lambda found: common.write_json(_report(found), file)
    )
    if str(json) != common.STDOUT:
        _print(results)
    common.write_json(_report(results), json)
    if plot is not None:
        from anyres.benchmark.plot import draw

        draw(results, plot)
    if stopped:
        raise typer.Exit(1)


def _sizes(text: str) -> list[tuple[int, int]]:
    found = []
    for word in filter(None, text.split(",")):
        parts = word.lower().split("x")
        if len(parts) > 2 or not all(p.isascii() and p.isdigit() and int(p) for p in parts):
            raise InputError(
                f"--sizes {word!r}: give pixels as 1024, or height and width as 768x1024"
            )
        found.append((int(parts[0]), int(parts[-1])))
    if not found:
        raise InputError("--sizes names none; give some such as 512,1024")
    return found


def _measure(
    models: list[str],
    sizes: list[tuple[int, int]],
    dtype: str,
    save: "Callable[[Results], None]",
) -> "tuple[Results, bool]":
    """The results, and whether it was stopped before the end."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from anyres.benchmark.run import Results, busy, describe_machine, run

    console = common.console()
    results = Results(describe_machine())
    if results.machine["load"] is not None and results.machine["load"] > 0.5:
        console.print(
            f"[yellow]the machine is busy (load {results.machine['load']}): "
            "figures will be too high[/yellow]"
        )
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    stopped = False
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=1.0)
        try:
            run(
                models,
                sizes,
                dtype,
                results,
                lambda text, share: progress.update(task, description=text, completed=share),
                lambda: save(results),
            )
            progress.update(task, description="done", completed=1.0)
        except KeyboardInterrupt:
            stopped = True
    if stopped:
        console.print("stopped; sizes that were finished are kept")
    for name in busy(results):
        console.print(f"[yellow]{name}: calls differ by more than a tenth[/yellow]")
    return results, stopped


def _report(results: "Results") -> dict[str, object]:
    from dataclasses import asdict

    from anyres.benchmark.figures import figures

    found = [asdict(figure) | {"holds": figure.holds} for figure in figures(results)]
    return results.to_dict() | {"figures": found}


def _print(results: "Results") -> None:
    from rich.console import Console
    from rich.table import Table

    from anyres.benchmark.figures import figures

    console = Console(highlight=False)
    # In a file or a pipe there is no width to keep to.
    console.width = max(console.width, 0 if console.is_terminal else 120)
    about = results.machine
    table = Table(
        title=f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['date']}"
    )
    for name in ("model", "dtype", "size"):
        table.add_column(name)
    for name in (
        "encoder ms",
        "± %",
        "× GEMM",
        "scan %",
        "set_image ms",
        "click ms",
        "SPC ms",
        "peak MB",
    ):
        table.add_column(name, justify="right")
    for cell in results.cells:
        table.add_row(cell.model, cell.dtype, f"{cell.height}x{cell.width}", *_values(cell))
    console.print(table)
    known = [figure for figure in figures(results) if figure.value is not None]
    if known:
        ratios = Table("figure", "value", "limit", "", title="Ratios of this run")
        for figure in known:
            value = f"{figure.value:.3g}{figure.unit}"
            ratios.add_row(
                figure.name, value, f"{figure.limit:g}{figure.unit}", "" if figure.holds else "over"
            )
        console.print(ratios)
    if not _has_gpu():
        console.print("No GPU here: CUDA is not measured.")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _values(cell: "Cell") -> list[str]:
    if cell.encoder is None:
        return [cell.note]

    def text(value: float | None, scale: float, digits: int = 0) -> str:
        return "" if value is None else f"{value * scale:,.{digits}f}"

    median, clicks = cell.encoder.median, cell.clicks
    return [
        text(median, 1e3),
        text(cell.encoder.spread, 100),
        text(median / cell.gemm if cell.gemm else None, 1, 2),
        text(cell.scan.median / median if cell.scan else None, 100),
        text(clicks.set_image.median if clicks else None, 1e3),
        text(clicks.click.median if clicks else None, 1e3, 1),
        text(clicks.spc if clicks else None, 1e3, 1),
        text(cell.peak_memory, 1e-6),
    ]
