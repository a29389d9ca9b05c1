"""Pictures of a run for people: IoU against clicks, and the worst and the best cases."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anyres.errors import MissingExtraError
from anyres.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_BLUE, _GREY = "#2684ff", "#5b6472"


def figure(width: float, height: float) -> "Figure":
    """A figure that needs no display, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            'plots need matplotlib; install it with: pip install "anyres[eval]"'
        ) from error
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def draw_curves(path: Path, report: Mapping[str, Any]) -> None:
    """Draw how the IoU grows with the clicks, or how it is spread, in a panel a set.

    Args:
        path: the PNG.
        report: of a run.
    """
    rows = [row for row in report["results"] if "problem" not in row]
    panels = {name: [row for row in rows if row["set"] == name] for name in report["sets"]}
    figures = report["sets"]
    if len(panels) > 1:
        panels = {"all sets": rows, **panels}
        figures = {"all sets": report["overall"], **figures}
    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    drawing = figure(max(6.4, 4.2 * columns), 0.6 + 3.6 * lines)
    axes = drawing.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
    curves = report["protocol"]["protocol"] == "clicks"
    draw = _against_clicks if curves else _spread
    for axis, (name, own) in zip(axes, panels.items(), strict=False):
        draw(axis, own, name, figures[name])
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes[0].legend(loc="lower right" if curves else "lower left", frameon=False, fontsize=8)
    drawing.suptitle(_title(report), fontsize=10)
    with atomic_write(path) as file, warnings.catch_warnings():
        # Letters that the font lacks, in names of data sets, are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        drawing.savefig(file, format="png")


def _title(report: Mapping[str, Any]) -> str:
    model, rules = report["model"], report["protocol"]
    on = f"{report['data']['name']}, protocol {rules['protocol']}"
    return f"{model['name']} at {model['resolution']} on {on}"


def _against_clicks(
    axis: "Axes", rows: Sequence[Mapping[str, Any]], name: str, figures: Mapping[str, Any]
) -> None:
    """Mean and median IoU after each click, with the middle half and the middle 80 % of objects."""
    ious = np.array([row["ious"] for row in rows])
    clicks = np.arange(1, ious.shape[1] + 1)
    tenth, quarter, middle, three, nine = np.quantile(ious, (0.1, 0.25, 0.5, 0.75, 0.9), axis=0)
    axis.fill_between(clicks, tenth, nine, color=_BLUE, alpha=0.12, lw=0, label="80 % of objects")
    axis.fill_between(clicks, quarter, three, color=_BLUE, alpha=0.25, lw=0, label="half of them")
    axis.plot(clicks, middle, color=_BLUE, lw=1, ls="--", label="median")
    axis.plot(clicks, ious.mean(0), color=_BLUE, lw=2, marker="o", ms=3, label="mean")
    axis.axhline(0.9, color=_GREY, lw=0.8, ls=":")
    said = "" if figures["noc90"] is None else f", NoC90 {figures['noc90']:.1f}"
    axis.set(title=f"{name}: {len(rows)} objects{said}", xlabel="clicks", ylabel="IoU")
    axis.set(xlim=(0.5, len(clicks) + 0.5), ylim=(0, 1.01))
    axis.set_xticks([click for click in (1, 3, 5, 10, 15, 20) if click <= len(clicks)])
    _dress(axis)


def _spread(
    axis: "Axes", rows: Sequence[Mapping[str, Any]], name: str, figures: Mapping[str, Any]
) -> None:
    """Which share of objects has at least an IoU."""
    ious = np.sort([row["iou"] for row in rows])[::-1]
    share = np.arange(1, len(ious) + 1) / len(ious) * 100
    # From IoU 0, which all objects have, to 1.
    ious, share = np.r_[ious, 0.0], np.r_[share, 100.0]
    axis.fill_between(ious, 0, share, step="post", color=_BLUE, alpha=0.15, lw=0)
    axis.step(ious, share, where="post", color=_BLUE, lw=2, label="objects with at least this IoU")
    axis.axvline(figures["iou"], color=_GREY, lw=1, ls="--", label="mean")
    axis.set(title=f"{name}: {len(rows)} objects, mean {figures['iou']:.3f}")
    axis.set(xlabel="IoU", ylabel="% of objects", xlim=(0, 1), ylim=(0, 101))
    _dress(axis)


def _dress(axis: "Axes") -> None:
    axis.title.set_fontsize(9)
    axis.grid(alpha=0.3, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelbottom=True, labelleft=True, labelsize=8)
