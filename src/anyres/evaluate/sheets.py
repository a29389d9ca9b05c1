"""Contact sheets: the worst and the best cases of a run, with truth, answer and prompts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from anyres.clicks import as_points
from anyres.data.images import write_png
from anyres.data.scene_notes import LABEL
from anyres.evaluate.protocols import Promptable, Target, Trial
from anyres.evaluate.run import Task, replay
from anyres.predict.draw import overlay
from anyres.types import Prompt

CASES = 12
_COLUMNS = 3
_TILE = 300  # pixels, side of a square
_TEXT = 44
_GAP = 10
_MARGIN = 0.15  # around an object, of its size

Picture = NDArray[np.uint8]


def ranked(report: Mapping[str, Any]) -> list[str]:
    """Keys of the objects, the worst first: by the mean IoU over all clicks, or by the one IoU."""
    rows = [row for row in report["results"] if "problem" not in row]
    return [row["key"] for row in sorted(rows, key=lambda row: (_height(row), row["key"]))]


def _height(row: Mapping[str, Any]) -> float:
    return float(np.mean(row["ious"])) if "ious" in row else float(row["iou"])


def draw_sheet(path: Path, task: Task, model: Promptable, keys: Sequence[str]) -> None:
    """Draw objects, the truth on the left and the last answer on the right.

    Each is tried once more, since no masks are kept.

    Args:
        path: the PNG.
        task: of the run.
        model: of the run.
        keys: the objects, in order.
    """
    refs = {ref.key: ref for ref in task.dataset.objects}
    tiles = []
    for key in keys:
        picture, target, trial = replay(task, model, refs[key])
        said = LABEL if refs[key].set.endswith(LABEL) else ""
        tiles.append(_tile(key + said, picture, target, trial))
    columns = min(_COLUMNS, len(tiles))
    lines = math.ceil(len(tiles) / columns)
    height, width = tiles[0].shape[0] + _GAP, tiles[0].shape[1] + _GAP
    sheet = np.full((lines * height + _GAP, columns * width + _GAP, 3), 255, np.uint8)
    for place, tile in enumerate(tiles):
        line, column = divmod(place, columns)
        top, left = line * height + _GAP, column * width + _GAP
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    write_png(path, sheet)


def _tile(title: str, picture: Picture, target: Target, trial: Trial) -> Picture:
    """Two squares and two lines of text."""
    box = _surroundings(target, trial)
    prompt = _prompt(trial)
    truth = _square(picture, target.wanted, None, box)
    answer = _square(picture, trial.mask, prompt, box)
    tile = Image.new("RGB", (2 * _TILE + 4, _TILE + _TEXT), "white")
    tile.paste(truth, (0, _TEXT))
    tile.paste(answer, (_TILE + 4, _TEXT))
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(15)
    draw.text((2, 2), _short(title, draw, font, 2 * _TILE), fill="black", font=font)
    draw.text((2, 22), "truth", fill="#5b6472", font=font)
    draw.text((_TILE + 6, 22), _said(trial), fill="#5b6472", font=font)
    return np.array(tile)


def _surroundings(target: Target, trial: Trial) -> tuple[int, int, int, int]:
    """What to show, XYXY: object, answer and clicks, with a margin, no narrower than a square."""
    seen = target.wanted | trial.mask
    rows, columns = (np.flatnonzero(seen.any(axis=axis)) for axis in (1, 0))
    y = [*rows[[0, -1]], *(click.y for click in trial.clicks)]
    x = [*columns[[0, -1]], *(click.x for click in trial.clicks)]
    side = max(max(y) - min(y), max(x) - min(x), 32) * (1 + 2 * _MARGIN)
    spans = []
    for values, size in ((x, seen.shape[1]), (y, seen.shape[0])):
        middle = (min(values) + max(values)) / 2
        low = max(0, math.floor(min(middle - side / 2, size - side)))
        spans.append((low, min(size, math.ceil(low + side))))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _prompt(trial: Trial) -> Prompt:
    if trial.box is not None:
        return Prompt(box=np.array(trial.box))
    return Prompt(*as_points(trial.clicks))


def _square(
    picture: Picture, mask: NDArray[np.bool_], prompt: Prompt | None, box: tuple[int, int, int, int]
) -> Image.Image:
    """A part of the picture with mask and prompt, scaled to a square."""
    left, top, right, bottom = box
    scale = _TILE / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    part = Image.fromarray(picture[top:bottom, left:right]).resize(size, Image.Resampling.LANCZOS)
    covered = Image.fromarray(mask[top:bottom, left:right].view(np.uint8) * 255)
    # What is thin must not vanish: a quarter of a pixel is enough.
    small = np.asarray(covered.resize(size, Image.Resampling.BOX)) >= 64
    if prompt is not None:
        prompt = _moved(prompt, left, top, scale)
    square = Image.new("RGB", (_TILE, _TILE), "#e8eaed")
    place = (_TILE - size[0]) // 2, (_TILE - size[1]) // 2
    square.paste(Image.fromarray(overlay(np.asarray(part), small, prompt)), place)
    return square


def _moved(prompt: Prompt, left: int, top: int, scale: float) -> Prompt:
    """A prompt in the frame of a part that is scaled; a click means the middle of its pixel."""
    origin = np.array([left, top], np.float64)
    points = prompt.points
    if points is not None:
        points = (points + 0.5 - origin) * scale
    box = None if prompt.box is None else (prompt.box - np.tile(origin, 2)) * scale
    return Prompt(points, prompt.labels, box)


def _said(trial: Trial) -> str:
    """What came of it, in a few words."""
    if trial.box is not None:
        return f"box: IoU {trial.ious[-1]:.3f}"
    after = [click for click in (1, 5, len(trial.ious)) if click <= len(trial.ious)]
    ious = ", ".join(f"{trial.ious[click - 1]:.2f}" for click in dict.fromkeys(after))
    counts = ", ".join(map(str, dict.fromkeys(after)))
    return f"IoU {ious} after {counts} click{'s' if after[-1] > 1 else ''}"


def _short(text: str, draw: ImageDraw.ImageDraw, font: Any, width: int) -> str:
    """The end of a text, as much of it as there is room for."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength("..." + text, font=font) > width:
        text = text[1:]
    return "..." + text
