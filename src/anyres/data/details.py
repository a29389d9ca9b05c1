"""Large shapes with thin parts: a form that spans a scene, details of a few pixels in width.

The shapes of `anyres.data.shapes` grow as a whole, so at 2048 pixels they show no more than at 256.
Here the width of what is thin is given in pixels of the scene, whatever its size: hair, threads,
bars, teeth and twigs that are gone once the picture is scaled down. A `Drawing` is a list of lines
and outlines, not of pixels, so any window of a scene can be had without drawing all of it. Needs
OpenCV (extra ``train``).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import Generator, Mask
from anyres.data.shapes import Points, Size, empty, fill, outline, smooth_line, stroke

_MARGIN = 32  # pixels drawn round a window: OpenCV cuts lines off uncleanly at a picture's border


@dataclass(frozen=True, eq=False)
class Mark:
    """One step of a drawing.

    Attributes:
        points: (N, 2) XY in pixels.
        width: of the line in pixels; None fills the closed outline.
        value: 255 draws, 0 takes away.
    """

    points: Points
    width: float | None = None
    value: int = 255


Drawing = list[Mark]


def render(drawing: Drawing, size_hw: Size, offset_xy: Points) -> Mask:
    """Draw what a window shows.

    Args:
        drawing: its marks, one over the other.
        size_hw: height and width of the window in pixels.
        offset_xy: (2,) where the window's top left corner has the drawing's origin.

    Returns:
        (H, W) uint8, 255 inside, with antialiased edges.
    """
    height, width = (side + 2 * _MARGIN for side in size_hw)
    alpha = empty((height, width))
    for mark in drawing:
        points = mark.points + offset_xy + _MARGIN
        reach = 2 + (mark.width or 0)
        low, high = points.min(0) - reach, points.max(0) + reach
        if (high < 0).any() or low[0] > width or low[1] > height:
            continue
        if mark.width is None:
            fill(alpha, points, mark.value)
        else:
            stroke(alpha, points, mark.width, mark.value)
    return alpha[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def _thin(rng: Generator, low: float = 2, high: float = 6) -> float:
    """A width in pixels, small ones more often."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _body(extent: float, rng: Generator, roughness: float = 0.25) -> Points:
    return outline(np.zeros(2), extent / 2, rng, roughness)


def _dense(edge: Points, count: int) -> Points:
    """Points (count, 2) evenly along a closed outline."""
    closed = np.concatenate([edge, edge[:1]])
    length = np.r_[0, np.hypot(*np.diff(closed, axis=0).T).cumsum()]
    at = np.linspace(0, length[-1], count, endpoint=False)
    return np.stack([np.interp(at, length, closed[:, axis]) for axis in (0, 1)], 1)


def _normals(edge: Points) -> Points:
    """Unit vectors (N, 2) that point out of a closed outline drawn counter to the clock."""
    along = np.roll(edge, -1, 0) - np.roll(edge, 1, 0)
    out = np.stack([along[:, 1], -along[:, 0]], 1)
    normals: Points = out / np.maximum(np.hypot(*out.T), 1e-9)[:, None]
    return normals


def fur(extent: float, rng: Generator) -> Drawing:
    """A body with strands all round its border that lean one way."""
    edge = _dense(_body(0.8 * extent, rng), 720)
    normals = _normals(edge)
    marks = [Mark(edge)]
    width, long = _thin(rng, 2, 4), extent * float(rng.uniform(0.06, 0.18))
    lean = rng.normal(0, 0.8, 2)
    for start in rng.integers(0, len(edge), int(rng.integers(300, 800))):
        out = normals[start] + lean * 0.4 + rng.normal(0, 0.25, 2)
        step = out * long / 3 * float(rng.uniform(0.5, 1.2))
        control = edge[start] + np.arange(-0.3, 3.5)[:, None] * step
        control[1:] += (rng.normal(0, 0.16, (3, 2)) * long).cumsum(0) / 2
        line = smooth_line(control, 16)
        marks += [Mark(line[:9], width), Mark(line[8:], max(1.0, 0.6 * width))]
    return marks


def mesh(extent: float, rng: Generator) -> Drawing:
    """A bent net of threads in a frame."""
    edge = _body(extent, rng, 0.1)
    thread = _thin(rng, 3, 8)
    pitch = max(thread * float(rng.uniform(4, 10)), extent / 60)
    reach, bend = 0.6 * extent, rng.normal(0, 0.2)
    turn = rng.uniform(0, np.pi)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    along = np.linspace(-reach, reach, 200)
    marks = [Mark(np.concatenate([edge, edge[:1]]), thread * float(rng.uniform(1, 4)))]
    for offset in np.arange(-reach, reach, pitch):
        for axis in (0, 1):
            line = np.empty((200, 2))
            line[:, axis] = along
            line[:, 1 - axis] = offset + bend * (along**2 / reach - reach / 3)
            line = line @ spin.T
            inside = _inside(line, edge)
            steps = np.diff(np.r_[0, inside.astype(np.int8), 0])
            starts, ends = np.flatnonzero(steps > 0), np.flatnonzero(steps < 0)
            marks += [
                Mark(line[a:b], thread) for a, b in zip(starts, ends, strict=True) if b > a + 1
            ]
    return marks


def _inside(points: Points, edge: Points) -> NDArray[np.bool_]:
    """Tell which points (N, 2) lie within an outline that is a star about the origin."""
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    order = np.argsort(angle)
    limit = np.interp(
        np.arctan2(points[:, 1], points[:, 0]),
        angle[order],
        np.hypot(*edge[order].T),
        period=2 * np.pi,
    )
    inside: NDArray[np.bool_] = np.hypot(*points.T) < limit
    return inside


def grille(extent: float, rng: Generator) -> Drawing:
    """A plate with many holes, of which the bars between are thin."""
    edge = _body(extent, rng, 0.12)
    marks = [Mark(edge)]
    bar = _thin(rng, 3, 10)
    pitch = max(bar * float(rng.uniform(2.5, 6)), extent / 32)
    turn, corners = rng.uniform(0, np.pi), int(rng.choice([4, 6, 24]))
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    around = np.linspace(0, 2 * np.pi, corners, endpoint=False) + np.pi / 4
    # The corners of a square lie further out than its sides.
    radius = (pitch - bar) / 2 * (np.sqrt(2) if corners == 4 else 1)
    hole = radius * np.stack([np.cos(around), np.sin(around)], 1)
    margin = 1 - 2 * (pitch + bar) / extent
    filled = float(rng.uniform(0.6, 1))
    for x in np.arange(-extent, extent, pitch):
        for y in np.arange(-extent, extent, pitch):
            centre = np.array([[x, y]]) @ spin.T
            if rng.random() < filled and _inside(centre / margin, edge)[0]:
                marks.append(Mark(centre + hole @ spin.T, None, 0))
    return marks


def leaf(extent: float, rng: Generator) -> Drawing:
    """A form with teeth along its border and slits into it."""
    body = _body(0.9 * extent, rng)
    length = float(np.hypot(*np.diff(body, axis=0, append=body[:1]).T).sum())
    pitch = _thin(rng, 10, 40)
    teeth = max(3, round(length / pitch))
    edge = _dense(body, 8 * teeth)
    high = min(0.1 * extent, pitch * float(rng.uniform(1, 4)))
    wave = np.abs(np.arange(8 * teeth) % 8 / 4 - 1) ** 1.5
    edge = edge + _normals(edge) * (high * wave)[:, None]
    marks = [Mark(edge)]
    for start in rng.integers(0, len(edge), int(rng.integers(0, 60))):
        end = edge[start] * float(rng.uniform(0.5, 0.9))
        middle = (edge[start] + end) / 2 + rng.normal(0, 0.02 * extent, 2)
        line = smooth_line(np.stack([edge[start] * 1.03, middle, end]), 12)
        marks.append(Mark(line, _thin(rng, 3, 8), 0))
    return marks


def twigs(extent: float, rng: Generator) -> Drawing:
    """A stem that forks again and again, down to twigs, some with leaves."""
    marks: Drawing = []
    thick = max(6.0, extent * float(rng.uniform(0.012, 0.03)))
    leafy = float(rng.choice([0.0, 0.8]))

    def grow(base: Points, angle: float, long: float, width: float) -> None:
        out = np.array([np.cos(angle), np.sin(angle)])
        control = base + np.linspace(0, long, 4)[:, None] * out
        control[1:] += rng.normal(0, 0.06 * long, (3, 2))
        line = smooth_line(control, 14)
        marks.append(Mark(line, width))
        if width <= 2.5 or long < 0.04 * extent:
            if rng.random() < leafy:
                body = outline(line[-1], max(3.0, 0.35 * long), rng, 0.1)
                marks.append(Mark(body))
            return
        for _ in range(int(rng.integers(2, 5))):
            place = line[int(rng.integers(6, 14))]
            size = float(rng.uniform(0.5, 0.8))
            grow(place, angle + float(rng.normal(0, 0.6)), long * size, max(2.0, width * 0.6))

    up = float(rng.uniform(0, 2 * np.pi))
    base = -0.5 * extent * np.array([np.cos(up), np.sin(up)])
    grow(base, up, 0.4 * extent, thick)
    return marks


def cords(extent: float, rng: Generator) -> Drawing:
    """One to five long curves that are one thing."""
    count = int(rng.choice([1, 2, 3, 5]))
    width = _thin(rng, 4, 12)
    common = rng.normal(0, 0.2 * extent, (6, 2))
    common[:, 0] += np.linspace(-extent, extent, 6) / 2
    turn = rng.uniform(0, np.pi)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    marks = []
    for _ in range(count):
        control = common + rng.normal(0, 0.05 * extent, (6, 2))
        marks.append(Mark(smooth_line(control @ spin.T, 120), width))
    return marks


def solid(extent: float, rng: Generator) -> Drawing:
    """A smooth or many-cornered form with up to four holes."""
    edge = _body(extent, rng)
    if rng.random() < 0.4:
        edge = edge[np.sort(rng.choice(len(edge), int(rng.integers(4, 11)), replace=False))]
    marks = [Mark(edge)]
    for _ in range(int(rng.integers(0, 5))):
        centre = rng.normal(0, 0.15 * extent, 2)
        marks.append(Mark(outline(centre, extent * float(rng.uniform(0.02, 0.1)), rng), None, 0))
    return marks


DETAILED: tuple[Callable[[float, Generator], Drawing], ...] = (
    fur,
    mesh,
    grille,
    leaf,
    twigs,
    cords,
    solid,
)
