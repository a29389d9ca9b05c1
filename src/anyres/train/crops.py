"""Which object a sample is about, which window of the picture it sees, and the cutting of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import Generator, opencv
from anyres.train.sources import LabelMap, Rule

FILL = (124, 116, 104)  # the mean colour: next to 0 once normalised, as padding at use is
ZOOM = 3.0  # source pixels are enlarged at most this much

Window = tuple[float, float, float, float]  # XYXY in picture pixels; may reach beyond the picture


@dataclass(frozen=True)
class Crop:
    """A window of a picture and where it lands in a square sample.

    Attributes:
        window: slices of the picture, what of the window lies inside it.
        target: slices of the sample, where that goes.
        side: of the sample.
    """

    window: tuple[slice, slice]
    target: tuple[slice, slice]
    side: int

    @classmethod
    def of(cls, window: Window, picture_hw: tuple[int, ...], side: int) -> "Crop":
        """Lay a window out; beyond the picture the sample stays empty."""
        spans = []
        for low, high, length in (
            (window[1], window[3], picture_hw[0]),
            (window[0], window[2], picture_hw[1]),
        ):
            scale = side / (high - low)
            first, last = max(0, round(low)), min(length, round(high))
            last = max(last, first + 1)
            start = min(side - 1, max(0, round((first - low) * scale)))
            end = max(start + 1, min(side, round((last - low) * scale)))
            spans.append((slice(first, last), slice(start, end)))
        return cls((spans[0][0], spans[1][0]), (spans[0][1], spans[1][1]), side)

    def _resized(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize what lies in the window to its place in the sample.

        OpenCV's area filter is fast for whole factors only, so such a step comes first; the
        few pixels that it leaves over at the end are the same for the picture and its masks.
        """
        cv2 = opencv()
        height = self.target[0].stop - self.target[0].start
        width = self.target[1].stop - self.target[1].start
        fy, fx = max(1, part.shape[0] // height), max(1, part.shape[1] // width)
        if fy > 1 or fx > 1:
            rows, columns = part.shape[0] // fy, part.shape[1] // fx
            part = part[: rows * fy, : columns * fx]
            part = cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)
        resized: NDArray[np.uint8] = cv2.resize(part, (width, height))
        return resized

    def picture(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (S, S, 3) sample of a picture, filled with the mean colour where it ends."""
        part = self._resized(image[self.window])
        if part.shape[:2] == (self.side, self.side):
            return part
        sample = np.full((self.side, self.side, 3), FILL, np.uint8)
        sample[self.target] = part
        return sample

    def mask(self, part: NDArray[np.uint8], *, thin: bool = False) -> NDArray[np.uint8]:
        """Return the (S, S) 0/1 sample of a 0/255 mask that is already cut to the window.

        A pixel belongs to the object when more than half of it does; for thin objects, which
        would be torn, more than a third.
        """
        sample = np.zeros((self.side, self.side), np.uint8)
        sample[self.target] = self._resized(part) > (84 if thin else 127)
        return sample

    def inside(self) -> NDArray[np.uint8]:
        """Return (S, S) uint8, 1 where the sample shows the picture."""
        sample = np.zeros((self.side, self.side), np.uint8)
        sample[self.target] = 1
        return sample


def draw_object(
    found: LabelMap, rule: Rule, rng: Generator, *, whole: bool | None = None
) -> tuple[int, ...]:
    """Draw the labels that make up one object: one, a union of neighbours, or all.

    Larger ones come more often, by the fourth root of their area.
    """
    if rng.random() < rule.whole if whole is None else whole:
        return tuple(range(1, found.count + 2))
    weights = found.areas[1 : found.count + 1].astype(np.float64) ** 0.25
    inner = bool(rng.random() < rule.inner and found.inner[1 : found.count + 1].any())
    if inner:
        weights = weights * found.inner[1 : found.count + 1]
    first = 1 + int(rng.choice(found.count, p=weights / weights.sum()))
    if rng.random() < rule.union:
        return _union(found, first, 20 if inner else int(rng.integers(2, 6)), rng, inner=inner)
    return (first,)


def _union(
    found: LabelMap, first: int, number: int, rng: Generator, *, inner: bool = False
) -> tuple[int, ...]:
    """Grow a union from one object, over neighbours with long common borders first.

    Over inner ones alone the union is often a whole thing of which each label is a part.
    """
    chosen = [first]
    while len(chosen) < number:
        near: dict[int, int] = {}
        for one in chosen:
            for other, length in found.neighbours(one).items():
                if other not in chosen and (found.inner[other] or not inner):
                    near[other] = near.get(other, 0) + length
        if not near:
            break
        lengths = np.array(list(near.values()), np.float64)
        chosen.append(list(near)[int(rng.choice(len(near), p=lengths / lengths.sum()))])
    return tuple(chosen)


def draw_others(
    found: LabelMap,
    rule: Rule,
    window: tuple[slice, slice],
    chosen: tuple[int, ...],
    number: int,
    rng: Generator,
) -> list[tuple[int, ...]]:
    """Draw up to ``number`` objects that the window shows besides the chosen one."""
    seen = np.bincount(found.labels[window][::4, ::4].ravel(), minlength=found.count + 2)
    if len(chosen) == 1:
        seen[chosen[0]] = 0
    seen = seen[1 : found.count + 1]
    labels = np.flatnonzero(seen >= max(2, 0.001 * seen.sum())) + 1
    if len(labels) == 0:
        return []
    weights = seen[labels - 1].astype(np.float64) ** 0.5
    draws = rng.choice(
        labels, size=min(number, len(labels)), replace=False, p=weights / weights.sum()
    )
    some: list[tuple[int, ...]] = []
    for label in draws.tolist():
        if rng.random() < rule.union:
            some.append(_union(found, label, int(rng.integers(2, 6)), rng))
        else:
            some.append((label,))
    return some


def draw_window(
    box: NDArray[np.int64], picture_hw: tuple[int, ...], side: int, rng: Generator
) -> Window:
    """Draw the window a sample sees: about an object of varied share, or the whole picture.

    Args:
        box: XYXY of the object.
        picture_hw: height and width of the picture.
        side: of the sample; a window is not so small that pixels grow more than `ZOOM` times.
        rng: where the random numbers come from.
    """
    height, width = picture_hw
    if rng.random() < 0.35:
        return _whole_window(picture_hw, box, rng)
    extent = float(max(box[2] - box[0], box[3] - box[1]))
    share = float(np.exp(rng.uniform(np.log(0.12), np.log(1.4))))
    room = max(height, width) if rng.random() < 0.2 else min(height, width)
    length = min(max(extent / share, side / ZOOM), room)
    stretch = float(np.exp(rng.uniform(-0.14, 0.14)))
    sides = (min(length * stretch, width), min(length / stretch, height))
    if room > min(height, width):
        sides = (length, length)
    x, y = (
        _start(int(low), int(high), size, limit, rng)
        for low, high, size, limit in zip(box[:2], box[2:], sides, (width, height), strict=True)
    )
    return x, y, x + sides[0], y + sides[1]


def _start(low: int, high: int, size: float, limit: int, rng: Generator) -> float:
    """Draw where a window begins on one axis, so that it shows the object or a part of it."""
    if size >= high - low:
        start = rng.uniform(high - size, low) + rng.normal(0, 0.05) * size
    else:
        start = rng.uniform(low, high - size)
    if size >= limit:
        return float(rng.uniform(limit - size, 0))
    return float(min(max(start, 0), limit - size))


def _whole_window(picture_hw: tuple[int, ...], box: NDArray[np.int64], rng: Generator) -> Window:
    """The whole picture, padded at the right or bottom, or the largest square of it."""
    height, width = picture_hw
    if rng.random() < 0.35:
        length = float(max(height, width))
        return 0.0, 0.0, length, length
    length = min(height, width) * float(rng.uniform(0.75, 1))
    x = _start(int(box[0]), int(box[2]), length, width, rng)
    y = _start(int(box[1]), int(box[3]), length, height, rng)
    return x, y, x + length, y + length


def plain_window(picture_hw: tuple[int, ...], rng: Generator) -> Window:
    """Draw any square window of a picture, at least a quarter of its short side."""
    height, width = picture_hw
    length = min(height, width) * float(np.exp(rng.uniform(np.log(0.25), 0)))
    x, y = rng.uniform(0, width - length), rng.uniform(0, height - length)
    return float(x), float(y), float(x + length), float(y + length)
