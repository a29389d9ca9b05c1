"""Synthetic scenes: objects whose masks are exact, composed over photographs at any size.

Shapes (`anyres.data.shapes`) are filled with colours, gradients or pieces of other photographs,
shaded, given shadows and softened borders, and laid over one another. What lies on top hides what
is below, so every mask holds just the pixels that are seen. Everything is drawn from the generator
that is given: the same state gives the same scene.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import Generator, Image, Mask, opencv
from anyres.data.shapes import EDGE, SHAPES, Size, wires

Filling = Callable[[], NDArray[np.float32]]

SHARES = (0.2, 0.16, 0.08, 0.1, 0.18, 0.28)  # of SHAPES, in their order


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn over a picture.

    Attributes:
        covered: (H, W) uint8 0/1, all pixels that changed hands.
        objects: (H, W) uint8 0/1 each: the whole, and its parts if they may be meant alone.
    """

    covered: Mask
    objects: list[Mask]


def draw_shape(image: Image, rng: Generator, texture: Image | None = None) -> Drawn | None:
    """Draw one shape, or several of a kind, in place.

    Args:
        image: (H, W, 3) uint8 RGB, changed.
        rng: where the random numbers come from.
        texture: a photograph that may fill the shape.

    Returns:
        None if nothing of it lies in the picture.
    """
    size_hw = (image.shape[0], image.shape[1])
    draw = SHAPES[int(rng.choice(len(SHAPES), p=SHARES))]
    fills = _filling(image, rng, texture)
    parts: list[Mask] = []
    # A crowd of the same kind: to segment one, the others have to be told apart.
    for _ in range(int(rng.choice([1, 2, 4], p=[0.7, 0.2, 0.1]))):
        alpha = draw(size_hw, rng)
        parts = _lay(image, alpha, fills(), parts, rng)
    return _drawn(parts, whole=rng.random() < 0.2)


def draw_wires(image: Image, rng: Generator) -> Drawn | None:
    """Draw a bundle of wires in place, each with its colour, or all with one."""
    size_hw = (image.shape[0], image.shape[1])
    same = _colour(rng) if rng.random() < 0.25 else None
    parts: list[Mask] = []
    for alpha, width in wires(size_hw, rng):
        front = _round(alpha, width, _colour(rng) if same is None else same, rng)
        parts = _lay(image, alpha, front, parts, rng)
    return _drawn(parts, whole=True)


def _drawn(parts: list[Mask], *, whole: bool) -> Drawn | None:
    parts = [part for part in parts if part.any()]
    if not parts:
        return None
    covered = parts[0].copy()
    for part in parts[1:]:
        covered |= part
    return Drawn(covered, ([covered] if whole and len(parts) > 1 else []) + parts)


def _lay(
    image: Image, alpha: Mask, front: NDArray[np.float32], parts: list[Mask], rng: Generator
) -> list[Mask]:
    """Blend ``front`` over the picture and take what it hides from the parts below."""
    cv2 = opencv()
    found: Mask = (alpha > EDGE).astype(np.uint8)
    window = _window(alpha)
    if window is None:
        return parts
    if rng.random() < 0.35:
        _shadow(image, alpha, rng)
    soft = alpha[window]
    if rng.random() < 0.5:
        # The border of a thing out of focus; half of it stays inside, so the mask stays exact.
        soft = cv2.GaussianBlur(soft, (0, 0), float(rng.uniform(0.4, 1.2)))
    blend = soft.astype(np.float32)[..., None] * np.float32(1 / 255)
    part = image[window].astype(np.float32)
    image[window] = (part + (front[window] - part) * blend).clip(0, 255).astype(np.uint8)
    return [below & (1 - found) for below in parts] + [found]


def _window(alpha: Mask) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if not len(rows):
        return None
    return (
        slice(max(0, int(rows[0]) - 4), int(rows[-1]) + 5),
        slice(max(0, int(columns[0]) - 4), int(columns[-1]) + 5),
    )


def _shadow(image: Image, alpha: Mask, rng: Generator) -> None:
    cv2 = opencv()
    height, width = alpha.shape
    side = min(height, width)
    shift = rng.normal(0, 0.02 * side, 2)
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    moved = cv2.warpAffine(alpha, matrix, (width, height))
    size = 2 * int(rng.integers(1, 2 + max(1, side // 100))) + 1
    moved = cv2.blur(moved, (size, size))
    dark = 1 - moved.astype(np.float32) * float(rng.uniform(0.1, 0.6) / 255)
    np.copyto(image, (image * dark[..., None]).astype(np.uint8))


def _colour(rng: Generator) -> NDArray[np.float32]:
    """A colour: any, or a grey, black and white more often than in between."""
    if rng.random() < 0.3:
        return np.full(3, 255 * float(rng.beta(0.5, 0.5)), np.float32)
    return rng.uniform(0, 255, 3).astype(np.float32)


def _round(
    alpha: Mask, width: float, colour: NDArray[np.float32], rng: Generator
) -> NDArray[np.float32]:
    """A round thing lit from the front: brightest along its middle, perhaps with a gloss."""
    cv2 = opencv()
    depth = cv2.distanceTransform((alpha > 64).astype(np.uint8), cv2.DIST_L2, 3)
    depth = np.minimum(depth * np.float32(2 / max(width, 1.0)), 1)
    shade = 1 + (depth - 0.6) * np.float32(rng.uniform(0, 0.8))
    front = shade[..., None] * colour
    if rng.random() < 0.3:
        front += (depth**4)[..., None] * np.float32(rng.uniform(20, 110))
    lit: NDArray[np.float32] = front
    return lit


def _filling(image: Image, rng: Generator, texture: Image | None) -> Filling:
    """What makes the fillings (H, W, 3) of the shapes of a crowd, one after the other."""
    height, width = image.shape[:2]
    kind = rng.choice(["photo", "self", "plain", "noise"], p=[0.45, 0.1, 0.25, 0.2])
    base = _colour(rng)
    if kind == "plain" or (kind == "photo" and texture is None):
        ramp = _ramp((height, width), rng)
        plain = np.broadcast_to(base, (height, width, 3)) + ramp
        return lambda: plain
    if kind == "noise":
        return lambda: base + clouds((height, width), rng)
    source = image.copy() if texture is None or kind == "self" else texture
    gain = np.exp(rng.normal(0, 0.25, 3)).astype(np.float32)
    shift = np.float32(rng.normal(0, 25))

    def photo() -> NDArray[np.float32]:
        cv2 = opencv()
        share = float(rng.uniform(0.2, 1))
        h, w = (min(side, max(8, int(share * side))) for side in source.shape[:2])
        y, x = (int(rng.integers(source.shape[axis] - (h, w)[axis] + 1)) for axis in (0, 1))
        piece = cv2.resize(source[y : y + h, x : x + w], (width, height))
        if rng.random() < 0.5:
            piece = cv2.flip(piece, int(rng.integers(-1, 2)))
        filled: NDArray[np.float32] = piece.astype(np.float32) * gain + shift
        return filled

    return photo


def _ramp(size_hw: Size, rng: Generator) -> NDArray[np.float32]:
    """A linear change of light over the picture, (H, W, 1)."""
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in size_hw)
    gy, gx = rng.normal(0, 30, 2).astype(np.float32)
    ramp: NDArray[np.float32] = (gy * y[:, None] + gx * x[None])[..., None]
    return ramp


def clouds(size_hw: Size, rng: Generator) -> NDArray[np.float32]:
    """Noise of several coarsenesses about 0, (H, W, 3)."""
    cv2 = opencv()
    height, width = size_hw
    made = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64):
        shape = (min(cells, height), min(cells, width), 3 if rng.random() < 0.3 else 1)
        noise = rng.normal(0, rng.uniform(5, 35), shape).astype(np.float32)
        grown = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        made += grown.reshape(height, width, -1)
    return made
