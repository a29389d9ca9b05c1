"""Plain and shifted windows over a token grid (HRSAM, arXiv 2407.02109, section 3).

Both kinds cut the grid into full windows by padding; no window is ever smaller. Plain windows
start at the top left corner and pad at the bottom and right. Shifted windows first pad
``window - window // 2`` tokens at the top and left. The padding is one learned vector, and it is a
key and a value like any other: nothing is masked.

What padding would answer as a query is never used. ``WindowPlan.groups`` leaves it out: along each
axis the windows fall into at most three spans (first, inner, last) that hold the same number of
real tokens at the same place, so a span's real tokens make one rectangle, cut evenly.

Shapes: B pictures, (H, W) token grid, w window, n windows a picture, C channels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Consecutive windows along one axis with equally many real tokens at the same place.

    Attributes:
        start: the first real token, counted in the grid.
        windows: how many windows.
        size: real tokens of each window.
        offset: padding of each window before them.
    """

    start: int
    windows: int
    size: int
    offset: int

    @property
    def stop(self) -> int:
        """The first token after the span."""
        return self.start + self.windows * self.size

    def cut(self, most: int) -> list["Span"]:
        """Into as few parts as have no more than ``most`` windows, of about equal length."""
        parts = -(-self.windows // most)
        bounds = [self.windows * i // parts for i in range(parts + 1)]
        return [
            Span(self.start + first * self.size, last - first, self.size, self.offset)
            for first, last in pairwise(bounds)
        ]


@dataclass(frozen=True)
class Group:
    """Neighbouring windows whose real tokens make a rectangle of the grid.

    Attributes:
        rows: the windows along the vertical axis.
        columns: those along the horizontal axis, from left to right; each span by itself.
    """

    rows: Span
    columns: tuple[Span, ...]

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """Where its tokens are in (B, H, W, C)."""
        left, right = self.columns[0].start, self.columns[-1].stop
        return slice(None), slice(self.rows.start, self.rows.stop), slice(left, right)


@dataclass(frozen=True)
class WindowPlan:
    """How a token grid is cut into windows.

    Attributes:
        grid_hw: the grid, in tokens.
        window: side of a window, in tokens.
        before: tokens of padding at the top and at the left.
    """

    grid_hw: tuple[int, int]
    window: int
    before: int

    @property
    def windows_hw(self) -> tuple[int, int]:
        """Windows along each axis."""
        height, width = self.grid_hw
        return (
            -(-(self.before + height) // self.window),
            -(-(self.before + width) // self.window),
        )

    @property
    def padded_hw(self) -> tuple[int, int]:
        """The padded grid, in tokens."""
        rows, columns = self.windows_hw
        return rows * self.window, columns * self.window

    @property
    def is_exact(self) -> bool:
        """Whether no padding is needed."""
        return self.padded_hw == self.grid_hw

    def groups(self, most: int) -> Iterator[Group]:
        """Cut the grid into groups of at most so many real tokens, or one window.

        A group holds whole rows of windows where that many tokens allow it: its tokens are then
        neighbours in memory.
        """
        height, width = self.grid_hw
        columns = self._spans(width)
        for span in self._spans(height):
            rows = most // (span.size * width)
            most_windows = most // (span.size * self.window)
            parts = [columns] if rows else _cut(columns, max(1, most_windows))
            for some in span.cut(max(1, rows)):
                for part in parts:
                    yield Group(some, part)

    def _spans(self, length: int) -> tuple[Span, ...]:
        """The spans along an axis of so many tokens."""
        bounds = [
            (max(0, start), min(start + self.window, length), max(0, -start))
            for start in range(-self.before, length, self.window)
        ]
        return _joined(
            Span(first, 1, stop - first, before) for first, stop, before in bounds if stop > first
        )


def _joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """As few spans as possible; none of consecutive ones is empty."""
    joined: list[Span] = []
    for span in spans:
        last = joined[-1] if joined else None
        if last is not None and (last.size, last.offset) == (span.size, span.offset):
            joined[-1] = replace(last, windows=last.windows + span.windows)
        else:
            joined.append(span)
    return tuple(joined)


def _cut(spans: tuple[Span, ...], most: int) -> list[tuple[Span, ...]]:
    """Consecutive spans in as few parts as have no more than ``most`` windows, of equal length."""
    windows = [one for span in spans for one in span.cut(1)]
    parts = -(-len(windows) // most)
    bounds = [len(windows) * i // parts for i in range(parts + 1)]
    return [_joined(windows[first:last]) for first, last in pairwise(bounds)]


def window_plan(grid_hw: tuple[int, int], window: int, *, shifted: bool) -> WindowPlan:
    """Plan plain or shifted windows over a grid."""
    return WindowPlan(grid_hw, window, window - window // 2 if shifted else 0)


def partition(x_BHWC: Tensor, plan: WindowPlan, pad_C: Tensor) -> Tensor:
    """Cut tokens into windows.

    Args:
        x_BHWC: tokens.
        plan: for the grid (H, W).
        pad_C: what fills the padding.

    Returns:
        (B * n, w * w, C), windows of a picture in raster order, tokens of a window likewise.
    """
    batch, height, width, channels = x_BHWC.shape
    (rows, columns), w = plan.windows_hw, plan.window
    if not plan.is_exact:
        top = plan.before
        padded = pad_C.to(x_BHWC.dtype).expand(batch, *plan.padded_hw, channels).contiguous()
        padded[:, top : top + height, top : top + width] = x_BHWC
        x_BHWC = padded
    windows = x_BHWC.reshape(batch, rows, w, columns, w, channels).transpose(2, 3)
    return windows.reshape(batch * rows * columns, w * w, channels)


def merge(windows: Tensor, plan: WindowPlan) -> Tensor:
    """Put windows (B * n, w * w, C) back as (B, H, W, C); padding is dropped."""
    (rows, columns), w = plan.windows_hw, plan.window
    height, width = plan.grid_hw
    x = windows.reshape(-1, rows, columns, w, w, windows.shape[-1]).transpose(2, 3)
    x = x.reshape(-1, rows * w, columns * w, windows.shape[-1])
    top = plan.before
    return x[:, top : top + height, top : top + width]
