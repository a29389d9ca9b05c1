"""Plain and shifted windows over a token grid (HRSAM, arXiv 2407.02109, section 3).

Both kinds cut the grid into full windows by padding; no window is ever smaller. Plain windows
start at the top left corner and pad at the bottom and right. Shifted windows first pad
``window - window // 2`` tokens at the top and left. The padding is one learned vector, and it is a
key and a value like any other: nothing is masked.

Shapes: B pictures, (H, W) token grid, w window, n windows a picture, C channels.
"""

from dataclasses import dataclass

from torch import Tensor


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
