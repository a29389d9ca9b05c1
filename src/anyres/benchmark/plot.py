"""Time and memory against pixels, as a picture."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anyres.benchmark.run import Cell, Results
from anyres.benchmark.subjects import ONE_CYCLE, STOCK
from anyres.errors import MissingExtraError
from anyres.files import atomic_write

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3fbf", "#999933")
_MARKERS = "osD^vP*X"


def check_installed() -> None:
    """Find out before anything is measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "--plot needs matplotlib; install it with: pip install 'anyres[eval]'"
        )


def draw(results: Results, path: Path) -> None:
    """Write the picture as PNG; matplotlib must be installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    time, memory = figure.subplots(1, 2)
    lines = _lines(results)
    for place, (label, cells) in enumerate(lines.items()):
        is_baseline = label.startswith(STOCK)
        style: dict[str, Any] = {
            "color": "#444444" if is_baseline else _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
            "linestyle": "--" if is_baseline else "-",
            "markersize": 5,
            "label": "SAM ViT-B, as is, float32" if is_baseline else label,
        }
        timed = [c for c in cells if c.encoder is not None]
        time.plot(
            [c.pixels / 1e6 for c in timed],
            [c.encoder.median for c in timed if c.encoder is not None],
            **style,
        )
        held = [c for c in cells if c.peak_memory]
        memory.plot(
            [c.pixels / 1e6 for c in held],
            [c.peak_memory / 1e9 for c in held if c.peak_memory],
            **style,
        )
    sides = sorted({c.pixels for c in results.cells})
    names = {c.pixels: f"{c.height}²" if c.height == c.width else f"{c.height}×{c.width}"
             for c in results.cells}  # fmt: skip
    for axes, title in ((time, "encoder, seconds"), (memory, "peak memory, GB")):
        axes.set(xscale="log", yscale="log", title=title, xlabel="picture")
        axes.set_xticks([pixels / 1e6 for pixels in sides], [names[pixels] for pixels in sides])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*time.get_legend_handles_labels(), loc="outside right center", frameon=False)
    about = results.machine
    figure.supxlabel(
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, {about['date']}",
        fontsize=8,
        color="#666666",
    )
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _lines(results: Results) -> dict[str, list[Cell]]:
    """Cells of each model and precision, by size; variants that only ratios need are left out."""
    lines: dict[str, list[Cell]] = {}
    for cell in sorted(results.cells, key=lambda cell: cell.pixels):
        if not cell.model.endswith(ONE_CYCLE) and (cell.encoder or cell.peak_memory):
            lines.setdefault(f"{cell.model} {cell.dtype}", []).append(cell)
    return lines
