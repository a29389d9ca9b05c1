"""Random changes of a training picture: light, colour, noise, and pasted cut-outs.

Everything works on (H, W, 3) uint8 RGB arrays and draws from the generator it is given, so the
same generator state gives the same picture. OpenCV is imported on first use (extra ``train``).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import MissingExtraError

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Generator = np.random.Generator


@cache
def opencv() -> Any:
    """Import OpenCV, on one thread: samples are made in processes of their own."""
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            'making training samples needs OpenCV; install it with: pip install "anyres[train]"'
        ) from error
    cv2.setNumThreads(0)
    return cv2


@dataclass(frozen=True, eq=False)
class CutOut:
    """An object cut from its picture.

    Attributes:
        image: (h, w, 3) uint8, the object's box and a margin.
        mask: (h, w) uint8 0/1.
        touches: whether the object is cut off at (left, top, right, bottom) by its picture.
    """

    image: Image
    mask: Mask
    touches: tuple[bool, bool, bool, bool]


def photometric(image: Image, rng: Generator) -> Image:
    """Change light and colour, then perhaps blur, add noise or compress.

    Args:
        image: (H, W, 3) uint8 RGB.
        rng: where the random numbers come from.

    Returns:
        A new (H, W, 3) uint8 RGB array.
    """
    if rng.random() < 0.85:
        image = _tone(image, rng)
    if rng.random() < 0.7:
        image = _colour(image, rng)
    if rng.random() < 0.10:
        image = opencv().GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.6)))
    if rng.random() < 0.06:
        image = _motion_blur(image, rng)
    if rng.random() < 0.15:
        image = noise(image, float(np.exp(rng.uniform(np.log(2.0), np.log(20.0)))), rng)
    if rng.random() < 0.2:
        image = _jpeg(image, int(rng.integers(25, 90)))
    return image


def _tone(image: Image, rng: Generator) -> Image:
    """Brightness, contrast and gamma, with a little of each a channel apart (white balance)."""
    x = np.arange(256, dtype=np.float32) / 255
    contrast = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.04, 3))
    shift = rng.normal(0, 0.07) + rng.normal(0, 0.015, 3)
    gamma = np.exp(rng.normal(0, 0.25))
    table = (x[:, None] ** gamma - 0.5) * contrast + 0.5 + shift
    lut = (table * 255 + 0.5).clip(0, 255).astype(np.uint8)
    changed: Image = opencv().LUT(image, lut[None])
    return changed


def _colour(image: Image, rng: Generator) -> Image:
    """Saturation and hue as one colour matrix; sometimes all the way to grey."""
    grey = np.full((3, 3), 1 / 3) * np.array([0.9, 1.75, 0.35])
    saturation = 0.0 if rng.random() < 0.07 else float(np.exp(rng.normal(0, 0.3)))
    turn = rng.normal(0, 0.12) if rng.random() < 0.9 else rng.uniform(-np.pi, np.pi)
    # Rotation about the grey axis keeps greys grey (Rodrigues' formula for (1, 1, 1) / sqrt 3).
    axis = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    hue = np.cos(turn) * np.eye(3) + np.sin(turn) * axis + (1 - np.cos(turn)) / 3
    matrix = (saturation * np.eye(3) + (1 - saturation) * grey) @ hue
    changed: Image = opencv().transform(image, matrix.astype(np.float32))
    return changed


def _motion_blur(image: Image, rng: Generator) -> Image:
    """Blur along a short straight line."""
    cv2 = opencv()
    size = int(rng.integers(1, 5)) * 2 + 1
    angle = rng.uniform(0, np.pi)
    reach = (size - 1) / 2 * np.array([np.cos(angle), np.sin(angle)])
    ends = np.rint(np.stack([(size - 1) / 2 - reach, (size - 1) / 2 + reach])).astype(int)
    kernel = np.zeros((size, size), np.float32)
    cv2.line(kernel, tuple(map(int, ends[0])), tuple(map(int, ends[1])), 1.0)
    changed: Image = cv2.filter2D(image, -1, kernel / kernel.sum())
    return changed


@cache
def _noise_bank() -> NDArray[np.float32]:
    """Hold one long row of normal numbers: drawing fresh ones costs more than all the rest."""
    return np.random.default_rng(0).standard_normal(1 << 21).astype(np.float32)


def noise(image: Image, deviation: float, rng: Generator) -> Image:
    """Add normal noise, grey or coloured, from random stretches of a bank.

    Args:
        image: (H, W, 3) uint8 RGB.
        deviation: the noise's standard deviation.
        rng: where the random numbers come from.

    Returns:
        A new (H, W, 3) uint8 RGB array.
    """
    bank = _noise_bank()
    channels = 3 if rng.random() < 0.6 else 1
    changed = np.empty_like(image)
    step = max(1, bank.size // (2 * image.shape[1] * channels))  # rows that half of it lasts for
    for top in range(0, len(image), step):
        part = image[top : top + step]
        shape = (*part.shape[:2], channels)
        count = int(np.prod(shape))
        start = int(rng.integers(0, max(1, bank.size - count)))
        added = np.resize(bank[start : start + count], shape) * np.float32(deviation)
        changed[top : top + step] = (part + added).clip(0, 255).astype(np.uint8)
    return changed


def _jpeg(image: Image, quality: int) -> Image:
    """Compress and decompress."""
    cv2 = opencv()
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    changed: Image = cv2.imdecode(code, cv2.IMREAD_COLOR)
    return changed


def paste(
    image: Image, cut: CutOut, extent: float, rng: Generator, *, rotate: bool = True
) -> Mask | None:
    """Paste a cut-out into a picture, in place.

    Args:
        image: (H, W, 3) uint8 RGB, changed.
        cut: what to paste. A side where its own picture cut it off comes to lie beyond the
            same side of this picture.
        extent: longer side of the object's box here, in pixels.
        rng: where the random numbers come from.
        rotate: whether the cut-out may be turned.

    Returns:
        (H, W) uint8 0/1, the pixels that are now the object's, or None when it cannot be placed.
    """
    cv2 = opencv()
    height, width = image.shape[:2]
    placed = _placement(cut, extent, (height, width), rng, rotate=rotate)
    if placed is None:
        return None
    matrix, shrink = placed
    source, mask = cut.image, cut.mask * np.uint8(255)
    if shrink < 0.7:
        # warpAffine samples single pixels: bring the source near its final size first.
        source = cv2.resize(source, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        matrix = matrix.copy()
        matrix[:, 0] *= cut.mask.shape[1] / mask.shape[1]
        matrix[:, 1] *= cut.mask.shape[0] / mask.shape[0]
    window = _reach(matrix, mask.shape, (height, width))
    if window is None:
        return None
    rows, columns = window
    matrix = matrix - np.array([[0, 0, columns.start], [0, 0, rows.start]])
    size = (columns.stop - columns.start, rows.stop - rows.start)
    front = cv2.warpAffine(source, matrix, size, flags=cv2.INTER_LINEAR, borderMode=1)
    alpha = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_LINEAR)
    alpha = cv2.GaussianBlur(alpha, (0, 0), float(rng.uniform(0.4, 1.1)))
    placed_mask = (alpha >= 135).astype(np.uint8)  # where it is half of the blend below, or more
    if not placed_mask.any():
        return None
    front = _relight(front, image, placed_mask, rng)
    found = np.zeros((height, width), np.uint8)
    found[window] = placed_mask
    if rng.random() < 0.3:
        _shadow(image, found, extent, rng)
    # The rim of a cut-out still holds its old background: start the blend half a pixel inside.
    blend = ((alpha.astype(np.float32) - 40) * (1 / 190)).clip(0, 1)[..., None]
    part = image[window]
    part[:] = (part + (front - part.astype(np.float32)) * blend + 0.5).astype(np.uint8)
    return found


def _reach(
    matrix: NDArray[np.float64], shape: tuple[int, ...], size_hw: tuple[int, int]
) -> tuple[slice, slice] | None:
    """Find the window of the picture that the corners of the warped cut-out span."""
    height, width = shape
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
    spread = corners @ matrix.T
    low = np.maximum(np.floor(spread.min(axis=0)) - 2, 0).astype(int)
    high = np.minimum(np.ceil(spread.max(axis=0)) + 2, size_hw[::-1]).astype(int)
    if (high <= low).any():
        return None
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _placement(
    cut: CutOut, extent: float, size_hw: tuple[int, int], rng: Generator, *, rotate: bool
) -> tuple[NDArray[np.float64], float] | None:
    """Draw the 2x3 affine map from the cut-out to the picture; also how much it shrinks."""
    left, top, right, bottom = cut.touches
    if (left and right) or (top and bottom):
        return None
    height, width = size_hw
    h, w = cut.mask.shape
    scale = extent / max(h, w)
    flip = rng.random() < 0.5
    if flip:
        left, right = right, left
    stretch = np.exp(rng.normal(0, 0.08))
    turn = 0.0
    if rotate and not any(cut.touches):
        turn = rng.normal(0, 0.25) if rng.random() < 0.85 else rng.uniform(-np.pi, np.pi)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = linear @ np.diag([(-1 if flip else 1) * scale * stretch, scale / stretch])
    half = np.abs(linear) @ np.array([w / 2, h / 2])
    centre = [
        _along(width, half[0], low=left, high=right, rng=rng),
        _along(height, half[1], low=top, high=bottom, rng=rng),
    ]
    offset = np.array(centre) - linear @ np.array([w / 2, h / 2])
    return np.concatenate([linear, offset[:, None]], axis=1), min(1.0, float(scale))


def _along(length: int, half: float, *, low: bool, high: bool, rng: Generator) -> float:
    """Draw a centre on one axis; a side that was cut off goes just beyond the border."""
    if low:
        return float(half - 1 - rng.uniform(0, 0.2) * half)
    if high:
        return float(length - half + 1 + rng.uniform(0, 0.2) * half)
    if rng.random() < 0.85 and 2 * half < length:
        return float(rng.uniform(half, length - half))
    return float(rng.uniform(0.1 * length, 0.9 * length))


def _relight(front: Image, image: Image, mask: Mask, rng: Generator) -> Image:
    """Bring the cut-out's light nearer to, or further from, that of the picture it enters."""
    cv2 = opencv()
    old = np.array(cv2.mean(front, mask)[:3])
    new = np.array(cv2.mean(image)[:3])
    gain = np.exp(rng.normal(0, 0.2))
    if rng.random() < 0.5:
        gain = gain * ((new + 20) / (old + 20)) ** rng.uniform(0.1, 0.8)
    table = np.arange(256)[:, None] * np.broadcast_to(gain, 3)
    front = cv2.LUT(front, (table + 0.5).clip(0, 255).astype(np.uint8)[None])
    if rng.random() < 0.15:
        front = cv2.GaussianBlur(front, (0, 0), float(rng.uniform(0.5, 1.5)))
    changed: Image = front
    return changed


def _shadow(image: Image, alpha: Mask, extent: float, rng: Generator) -> None:
    """Darken the picture beside the cut-out, in place."""
    cv2 = opencv()
    shift = rng.normal(0, 0.08 * extent, 2)
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    height, width = alpha.shape
    moved = cv2.warpAffine(alpha, matrix, (width, height), flags=cv2.INTER_NEAREST)
    moved = cv2.blur(moved, (int(rng.integers(2, 8)) * 2 + 1,) * 2)
    dark = 1 - moved.astype(np.float32) * float(rng.uniform(0.1, 0.6) / 255)
    np.copyto(image, (image * dark[..., None]).astype(np.uint8))
