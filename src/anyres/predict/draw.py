"""Draw a mask and its prompt over a picture, to be looked at: at 300 pixels as at 4000."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from anyres.errors import InputError
from anyres.types import Prompt

_RGB = tuple[int, int, int]

TINT: _RGB = (38, 132, 255)
OUTLINE: _RGB = (255, 255, 255)
OUTLINE_OUTSIDE: _RGB = (10, 24, 64)
POSITIVE: _RGB = (24, 160, 72)
NEGATIVE: _RGB = (214, 40, 40)
BOX: _RGB = (255, 196, 0)

_TINT_STRENGTH = 0.42
_SUPERSAMPLE = 4


def overlay(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], prompt: Prompt | None = None
) -> npt.NDArray[np.uint8]:
    """The picture with the mask tinted and outlined and the prompt drawn on it.

    The outline has two tones, light inside the mask's border and dark outside it, so that it is
    seen on any ground; what is one pixel thin stays visible. Positive clicks are green discs with
    a plus, negative ones red with a minus. Lines and discs grow with the picture.

    Args:
        image: (H, W, 3) RGB.
        mask: (H, W).
        prompt: points and box in pixels of the picture; its mask is not drawn.

    Returns:
        (H, W, 3) RGB; the arguments are left as they were.

    Raises:
        InputError: the shapes do not fit.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"overlay needs an RGB picture (H, W, 3) of uint8, got {image.shape} {image.dtype}"
        )
    if mask.shape != image.shape[:2]:
        raise InputError(f"the mask is {mask.shape}, the picture {image.shape[:2]} (H, W)")
    out = image.copy()
    unit = math.sqrt(mask.size) / 1000
    line = max(1, round(1.8 * unit))
    _paint_mask(out, mask.astype(bool), line)
    if prompt is not None:
        canvas = Image.fromarray(out)
        if prompt.box is not None:
            _draw_box(canvas, prompt.box, line)
        if prompt.points is not None and prompt.labels is not None:
            radius = max(4.5, 14 * unit)
            for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
                _draw_click(canvas, float(x), float(y), bool(label == 1), radius)
        out = np.array(canvas)
    return out


def _paint_mask(out: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], line: int) -> None:
    """Tint the mask and draw its outline, in place; only the mask's surroundings are touched."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    margin = line + 1
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    near = np.s_[top : rows[-1] + margin + 1, left : columns[-1] + margin + 1]
    # A frame of background, so that nothing wraps round while growing and the picture's border
    # counts as the mask's border.
    inside = np.pad(mask[near], line)
    crop = np.s_[line:-line, line:-line]
    outer = (_grow(inside, line) & ~inside)[crop]
    inner = (inside & _grow(~inside, line))[crop]
    part = out[near]
    tinted = part[mask[near]] * (1 - _TINT_STRENGTH) + np.array(TINT) * _TINT_STRENGTH
    part[mask[near]] = (tinted + 0.5).astype(np.uint8)
    part[outer] = OUTLINE_OUTSIDE
    part[inner] = OUTLINE


def _grow(mask: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """Dilate by about a disc: steps along the axes and over the corners in turn."""
    grown = mask.copy()
    for step in range(steps):
        before = grown.copy()
        grown[1:] |= before[:-1]
        grown[:-1] |= before[1:]
        if step % 2:
            before = grown.copy()
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
    return grown


def _draw_box(canvas: Image.Image, box: npt.NDArray[np.float64], line: int) -> None:
    """A light rectangle between two dark ones."""
    draw = ImageDraw.Draw(canvas)
    # A box's right and lower edge lie after its last pixel.
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    x1, y1 = max(x0, min(x1, canvas.width) - 1), max(y0, min(y1, canvas.height) - 1)
    dark = line + 2 * max(1, line // 2)
    for colour, width in ((OUTLINE_OUTSIDE, dark), (BOX, line)):
        grow = width // 2
        corners = [(x0 - grow, y0 - grow), (x1 + grow, y1 + grow)]
        draw.rectangle(corners, outline=colour, width=width)


def _draw_click(canvas: Image.Image, x: float, y: float, positive: bool, radius: float) -> None:
    """A disc with a plus or a minus, drawn large and scaled down to have smooth borders."""
    half = math.ceil(radius) + 2
    side = (2 * half + 1) * _SUPERSAMPLE
    sprite = Image.new("RGBA", (side, side), (*OUTLINE_OUTSIDE, 0))
    draw = ImageDraw.Draw(sprite)
    middle = side / 2
    scaled = radius * _SUPERSAMPLE

    def disc(r: float, colour: _RGB) -> None:
        bounds = [middle - r, middle - r, middle + r, middle + r]
        draw.ellipse(bounds, fill=(*colour, 255))

    disc(scaled * 1.12, OUTLINE_OUTSIDE)
    disc(scaled, OUTLINE)
    disc(scaled * 0.82, POSITIVE if positive else NEGATIVE)
    arm, thick = scaled * 0.52, max(_SUPERSAMPLE / 2, scaled * 0.15)
    bars = [(arm, thick), (thick, arm)] if positive else [(arm, thick)]
    for dx, dy in bars:
        bounds = [middle - dx, middle - dy, middle + dx, middle + dy]
        draw.rectangle(bounds, fill=(*OUTLINE, 255))
    small = sprite.resize((2 * half + 1, 2 * half + 1), Image.Resampling.BOX)
    # A click at the far edge (x = width) belongs to the last pixel.
    column, row = (min(int(v), size - 1) for v, size in zip((x, y), canvas.size, strict=True))
    canvas.paste(small, (column - half, row - half), small)
