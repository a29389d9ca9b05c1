"""Random shapes as antialiased maps: blobs, polygons with holes, nets, hair, plants and wires.

Each function draws into a fresh (H, W) uint8 map, 255 inside, with soft edges; a pixel belongs to
the shape where more than `EDGE` is left of it. Coordinates are XY in pixels, drawn in sixteenths of
one, so that thin shapes move smoothly. Needs OpenCV (extra ``train``).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import Generator, Mask, opencv

Size = tuple[int, int]
Points = NDArray[np.float64]

# Below the half: of a line of one pixel that runs between two, each gets a half.
EDGE = 100

_SHIFT = 4  # binary digits of a coordinate's fraction


def empty(size_hw: Size) -> Mask:
    """A map with nothing in it."""
    return np.zeros(size_hw, np.uint8)


def fill(alpha: Mask, outline: Points, value: int = 255) -> None:
    """Fill a closed outline (N, 2), in place."""
    points = np.rint(outline * 2**_SHIFT).astype(np.int32)
    opencv().fillPoly(alpha, [points], value, opencv().LINE_AA, _SHIFT)


def stroke(alpha: Mask, line: Points, width: float, value: int = 255) -> None:
    """Draw a line (N, 2) of some width in pixels, at least 1, in place."""
    cv2 = opencv()
    points = np.rint(line * 2**_SHIFT).astype(np.int32)
    cv2.polylines(alpha, [points], False, value, max(1, round(width)), cv2.LINE_AA, _SHIFT)


def smooth_line(control: Points, count: int) -> Points:
    """A curve through control points (K, 2): Catmull-Rom splines, ``count`` points in all."""
    ends = np.concatenate(
        [2 * control[:1] - control[1:2], control, 2 * control[-1:] - control[-2:-1]]
    )
    at = np.linspace(0, len(control) - 1 - 1e-9, count)
    i = at.astype(int)
    t = (at - i)[:, None]
    p0, p1, p2, p3 = (ends[i + k] for k in range(4))
    curve: Points = 0.5 * (
        2 * p1
        + (p2 - p0) * t
        + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
        + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    return curve


def outline(centre: Points, radius: float, rng: Generator, roughness: float = 0.35) -> Points:
    """A closed smooth outline about a centre: a circle with random waves, then squeezed."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    waves = np.zeros_like(angle)
    for k in range(2, 9):
        waves += rng.normal(0, roughness / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    unit = np.stack([np.cos(angle), np.sin(angle)], 1) * (radius * np.exp(waves))[:, None]
    turn = rng.uniform(0, np.pi)
    squeeze = np.diag([1.0, float(np.exp(-abs(rng.normal(0, 0.5))))])
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shaped: Points = unit @ squeeze @ spin.T + centre
    return shaped


def _place(size_hw: Size, rng: Generator) -> tuple[Points, float]:
    """A centre within the picture and a radius of 4 to 40 % of its short side."""
    height, width = size_hw
    radius = float(np.exp(rng.uniform(np.log(0.04), np.log(0.4)))) * min(size_hw)
    return rng.uniform(0.1, 0.9, 2) * (width, height), radius


def blob(size_hw: Size, rng: Generator) -> Mask:
    """One smooth closed shape."""
    alpha = empty(size_hw)
    fill(alpha, outline(*_place(size_hw, rng), rng))
    return alpha


def polygon(size_hw: Size, rng: Generator) -> Mask:
    """Straight edges, with up to four holes."""
    alpha = empty(size_hw)
    centre, radius = _place(size_hw, rng)
    count = int(rng.integers(3, 11))
    angle = np.sort(rng.uniform(0, 2 * np.pi, count))
    reach = radius * rng.uniform(0.5, 1.3, count)
    fill(alpha, centre + np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None])
    for _ in range(int(rng.integers(0, 5))):
        middle = centre + rng.normal(0, 0.4 * radius, 2)
        fill(alpha, outline(middle, radius * float(rng.uniform(0.08, 0.35)), rng, 0.15), 0)
    return alpha


def ring(size_hw: Size, rng: Generator) -> Mask:
    """A closed band."""
    alpha = empty(size_hw)
    edge = outline(*_place(size_hw, rng), rng, 0.2)
    fill(alpha, edge)
    fill(alpha, edge.mean(0) + (edge - edge.mean(0)) * float(rng.uniform(0.5, 0.92)), 0)
    return alpha


def net(size_hw: Size, rng: Generator) -> Mask:
    """A bent grid of lines inside an outline."""
    alpha = empty(size_hw)
    centre, radius = _place(size_hw, rng)
    radius = max(radius, 0.12 * min(size_hw))
    pitch = radius * float(rng.uniform(0.12, 0.4))
    width = max(1.0, pitch * float(rng.uniform(0.06, 0.25)))
    turn, bend = rng.uniform(0, np.pi), rng.normal(0, 0.25)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    along = np.linspace(-radius, radius, 24)
    for offset in np.arange(-radius, radius + pitch, pitch):
        for axis in (0, 1):
            line = np.empty((24, 2))
            line[:, axis] = along
            line[:, 1 - axis] = offset + bend * (along**2 / radius - radius / 3)
            stroke(alpha, centre + line @ spin.T, width)
    if rng.random() < 0.5:
        inside = empty(size_hw)
        fill(inside, outline(centre, radius * 0.9, rng, 0.1))
        alpha = np.minimum(alpha, inside)
    return alpha


def hair(size_hw: Size, rng: Generator) -> Mask:
    """A body with tapering strands round its border."""
    alpha = empty(size_hw)
    centre, radius = _place(size_hw, rng)
    edge = outline(centre, radius, rng, 0.2)
    fill(alpha, edge)
    width = max(1.0, 0.006 * min(size_hw))
    for start in edge[rng.integers(0, len(edge), int(rng.integers(20, 90)))]:
        out = (start - centre) / max(1e-6, float(np.hypot(*(start - centre))))
        step = radius * float(rng.uniform(0.05, 0.22))
        bends = rng.normal(0, 0.35, (3, 2)).cumsum(0)
        control = start + step * np.arange(4)[:, None] * out
        control[1:] += step * bends
        line = smooth_line(control, 12)
        for part, share in ((slice(0, 6), 1.0), (slice(5, 12), 0.6)):
            stroke(alpha, line[part], width * share)
    return alpha


def plant(size_hw: Size, rng: Generator) -> Mask:
    """Stems from one point with leaves along them, seen from above."""
    alpha = empty(size_hw)
    centre, radius = _place(size_hw, rng)
    width = max(1.0, radius * float(rng.uniform(0.02, 0.07)))
    slim = float(rng.uniform(0.12, 0.6))
    turn = rng.uniform(0, 2 * np.pi)
    for k in range(stems := int(rng.integers(2, 9))):
        angle = turn + 2 * np.pi * k / stems + rng.normal(0, 0.3)
        reach = radius * float(rng.uniform(0.5, 1.2))
        out = np.array([np.cos(angle), np.sin(angle)])
        control = centre + np.linspace(0, reach, 4)[:, None] * out
        control[1:] += rng.normal(0, 0.1 * reach, (3, 2))
        stem = smooth_line(control, 16)
        stroke(alpha, stem, width)
        leaves = int(rng.integers(1, 7))
        for place in np.linspace(15, 15 - 2 * (leaves - 1), leaves).astype(int).clip(3):
            long = reach * float(rng.uniform(0.12, 0.4))
            lean = angle + rng.normal(0, 0.7)
            _leaf(alpha, stem[place], long, long * slim, lean)
    return alpha


def _leaf(alpha: Mask, base: Points, long: float, wide: float, angle: float) -> None:
    along = np.linspace(0, 1, 12)
    half = 0.5 * wide * np.sin(np.pi * along**0.8)
    upper = np.stack([along * long, half], 1)
    edge = np.concatenate([upper, (upper * (1, -1))[::-1]])
    spin = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    fill(alpha, base + edge @ spin.T)


def wires(size_hw: Size, rng: Generator) -> list[tuple[Mask, float]]:
    """A bundle of wires that run roughly the same way, each a map of its own and its width."""
    height, width = size_hw
    count = int(rng.choice([1, 2, 3, 4, 6, 8, 10], p=[0.2, 0.1, 0.15, 0.15, 0.15, 0.15, 0.1]))
    angle = rng.uniform(0, 2 * np.pi)
    along, across = (
        np.array([np.cos(angle), np.sin(angle)]),
        np.array([-np.sin(angle), np.cos(angle)]),
    )
    side = float(np.hypot(height, width))
    spread = side * float(rng.uniform(0.02, 0.25))
    middle = rng.uniform(0.25, 0.75, 2) * (width, height)
    common = rng.normal(0, 0.12 * side, 5)
    thick = max(1.2, side * float(np.exp(rng.uniform(np.log(0.003), np.log(0.022)))))
    # Wires often leave the picture at both ends, and some end within it.
    reach = side * (0.75 if rng.random() < 0.7 else float(rng.uniform(0.2, 0.6)))
    made = []
    for _ in range(count):
        offset = common + rng.normal(0, spread) + rng.normal(0, 0.4 * spread, 5)
        steps = np.linspace(-reach, reach, 5) + rng.normal(0, 0.05 * side, 5)
        control = middle + steps[:, None] * along + offset[:, None] * across
        alpha = empty(size_hw)
        own = thick * float(np.exp(rng.normal(0, 0.15)))
        stroke(alpha, smooth_line(control, 64), own)
        made.append((alpha, own))
    return made


SHAPES: tuple[Callable[[Size, Generator], Mask], ...] = (blob, polygon, ring, net, hair, plant)
