"""High-resolution scenes: objects with exact masks, composed over a photograph at any size.

Drawn objects (`anyres.data.details`) are filled with pieces of photographs or with clouds of
colour, lit, given shadows and soft borders; cut-outs come from pictures with masks. A pixel belongs
to an object where it covers half of the pixel or more and nothing covers that object. The same
generator state gives the same scene. Needs OpenCV (extra ``train``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anyres.data.augment import CutOut, Generator, Image, Mask, noise, opencv, paste
from anyres.data.details import DETAILED, Drawing, render
from anyres.data.shapes import Size
from anyres.data.synthetic import clouds

LEAST = 0.002  # share of the scene that an object must have
SHARES = (0.2, 0.1, 0.16, 0.18, 0.12, 0.1, 0.14)  # of DETAILED, in their order
_STRIP = 128  # rows that are blended at once


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W) uint8 0/1 each, at least `LEAST` of the scene, without common pixels.
    """

    image: Image
    masks: list[Mask]


def compose(
    photo: Image, textures: Sequence[Image], cuts: Sequence[CutOut], size_hw: Size, rng: Generator
) -> Scene:
    """Compose a scene.

    Args:
        photo: (h, w, 3) uint8 RGB, what lies behind. If it is smaller than the scene it is scaled
            up, and gets grain made of its own finest detail, so that sharpness alone does not tell
            an object from it.
        textures: photographs that fill drawn objects, at least one; taken from in turn.
        cuts: objects to paste before anything is drawn over them.
        size_hw: of the scene.
        rng: where the random numbers come from.
    """
    image = backdrop(photo, size_hw, rng)
    side = min(size_hw)
    masks: list[Mask] = []
    whole: list[int] = []  # pixels before anything lay over them
    for number in range(len(cuts) + int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        share = rng.uniform(0.45, 0.95) if number == 0 else rng.uniform(0.2, 0.5)
        found: Mask | None
        if number < len(cuts):
            extent = float(share) * side
            found = paste(image, _grown(cuts[number], extent), extent, rng)
        else:
            texture = textures[number % len(textures)]
            found = _draw(image, float(share) * side, texture, rng)
        if found is None:
            continue
        masks = [mask & (1 - found) for mask in masks] + [found]
        whole.append(int(np.count_nonzero(found)))
    if rng.random() < 0.3:
        image = opencv().GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 0.6)))
    image = noise(image, float(rng.uniform(0.5, 4)), rng)
    kept = [
        mask
        for mask, before in zip(masks, whole, strict=True)
        if np.count_nonzero(mask) >= max(LEAST * mask.size, before / 2)
    ]
    return Scene(image, kept)


def _grown(cut: CutOut, extent: float) -> CutOut:
    """Bring a cut-out that is too small to its size, its border smooth instead of in steps."""
    cv2 = opencv()
    scale = extent / max(cut.mask.shape)
    if scale <= 1:
        return cut
    image = cv2.resize(cut.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    mask = cv2.GaussianBlur(cut.mask * np.uint8(255), (0, 0), 1.0)
    mask = cv2.resize(mask, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return CutOut(image, (mask >= 128).astype(np.uint8), cut.touches)


def draw_detail(image: Image, texture: Image, rng: Generator) -> Mask | None:
    """Draw a window of a large detailed object, in place: what a crop of a scene shows.

    Args:
        image: (S, S, 3) uint8 RGB, changed. The object spans 0.6 to 5 times its side.
        texture: a photograph that may fill the object.
        rng: where the random numbers come from.

    Returns:
        (S, S) uint8 0/1, or None if nothing of it lies in the picture.
    """
    height, width = image.shape[:2]
    extent = float(np.exp(rng.uniform(np.log(0.6), np.log(5.0)))) * min(height, width)
    drawing = _detailed(extent, rng)
    # A point of its border comes to lie within the crop.
    mark = drawing[int(rng.integers(len(drawing)))].points
    place = rng.uniform(0.15, 0.85, 2) * (width, height)
    alpha = render(drawing, (height, width), place - mark[int(rng.integers(len(mark)))])
    return _lay(image, alpha, texture, rng)


def _detailed(extent: float, rng: Generator) -> Drawing:
    return DETAILED[int(rng.choice(len(DETAILED), p=SHARES))](extent, rng)


def _draw(image: Image, extent: float, texture: Image, rng: Generator) -> Mask | None:
    height, width = image.shape[:2]
    drawing = _detailed(extent, rng)
    room = np.array([width, height])
    centre = room / 2 + rng.uniform(-0.5, 0.5, 2) * np.maximum(room - 0.9 * extent, 0.2 * extent)
    alpha = render(drawing, (height, width), centre)
    return _lay(image, alpha, texture, rng)


def backdrop(photo: Image, size_hw: Size, rng: Generator) -> Image:
    """Fit a photograph to a scene: a window of it, scaled down, or up with grain.

    Args:
        photo: (h, w, 3) uint8 RGB.
        size_hw: of the scene.
        rng: where the random numbers come from.

    Returns:
        A new (H, W, 3) uint8 RGB array.
    """
    cv2 = opencv()
    (height, width), (h, w) = size_hw, photo.shape[:2]
    fit = min(h / height, w / width)
    share = float(rng.uniform(min(1, max(fit, 1)), max(1, fit))) if fit > 1 else fit
    rows, columns = min(h, max(1, int(share * height))), min(w, max(1, int(share * width)))
    y, x = int(rng.integers(h - rows + 1)), int(rng.integers(w - columns + 1))
    part = photo[y : y + rows, x : x + columns]
    if rng.random() < 0.5:
        part = cv2.flip(part, 1)
    how = cv2.INTER_AREA if share > 1 else cv2.INTER_CUBIC
    image: Image = cv2.resize(part, (width, height), interpolation=how)
    if share < 0.8:
        _grain(image, part, rng)
    return image if image.base is None else image.copy()


def _grain(image: Image, part: Image, rng: Generator) -> None:
    """Add a photograph's finest detail, as large as it is there, over one that was scaled up."""
    cv2 = opencv()
    height, width = image.shape[:2]
    fine = cv2.cvtColor(part, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine -= cv2.GaussianBlur(fine, (0, 0), 1.2)
    # Strong edges would be seen again as ghosts.
    limit = 1.5 * float(fine.std())
    fine = fine.clip(-limit, limit)
    busy = cv2.blur(np.abs(fine), (9, 9))
    gain = cv2.resize(busy / max(float(busy.mean()), 1e-3), (width, height)).clip(0.2, 2)
    tiled = _tiled(fine, (height, width), rng)
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        grown = image[rows] + (tiled[rows] * gain[rows])[..., None]
        image[rows] = (grown + 0.5).clip(0, 255).astype(np.uint8)


def _tiled(source: NDArray[np.generic], size_hw: Size, rng: Generator) -> NDArray[np.generic]:
    """Lay mirrored copies of a picture side by side; (H, W) or (H, W, C) of another size."""
    spans = []
    for length, wanted in zip(source.shape[:2], size_hw, strict=True):
        start = int(rng.integers(2 * length))
        at = (np.arange(wanted) + start) % (2 * length)
        spans.append(np.minimum(at, 2 * length - 1 - at))
    tiled: NDArray[np.generic] = source[spans[0]][:, spans[1]]
    return tiled


def _lay(image: Image, alpha: Mask, texture: Image, rng: Generator) -> Mask | None:
    """Blend an object over a picture, in place; returns the pixels that are at least half its."""
    cv2 = opencv()
    if rng.random() < 0.5:
        alpha = cv2.GaussianBlur(alpha, (0, 0), float(rng.uniform(0.4, 0.9)))
    found: Mask = (alpha >= 128).astype(np.uint8)
    if not found.any():
        return None
    if rng.random() < 0.5:
        _shadow(image, alpha, rng)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    top, left = int(rows[0]), int(columns[0])
    part = image[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    alpha = alpha[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    front = _front(part, alpha, texture, rng)
    y, x = (np.linspace(-1, 1, side, dtype=np.float32) for side in alpha.shape)
    gy, gx = rng.normal(0, 0.15, 2).astype(np.float32)
    for start in range(0, len(alpha), _STRIP):
        strip = slice(start, start + _STRIP)
        light = 1 + gy * y[strip, None] + gx * x
        below = part[strip].astype(np.float32)
        above = (front[strip] * light[..., None]).clip(0, 255)
        share = alpha[strip].astype(np.float32)[..., None] * np.float32(1 / 255)
        part[strip] = (below + (above - below) * share + 0.5).astype(np.uint8)
    return found


def _front(part: Image, alpha: Mask, texture: Image, rng: Generator) -> Image:
    """What fills an object, (h, w, 3): around a colour that differs from what lies behind."""
    cv2 = opencv()
    height, width = alpha.shape
    behind = np.array(cv2.mean(part, (alpha >= 128).astype(np.uint8))[:3])
    for _ in range(8):
        colour = rng.uniform(0, 255, 3)
        colour += (colour.mean() - colour) * rng.uniform(0, 0.9)
        if np.linalg.norm(colour - behind) > 60:
            break
    if rng.random() < 0.35:
        small = (height // 4 + 1, width // 4 + 1)
        rough = cv2.resize(clouds(small, rng), (width, height))
    else:
        zoom = float(rng.uniform(1, 2))
        small = (int(height / zoom) + 1, int(width / zoom) + 1)
        rough = _tiled(texture, small, rng)
        rough = cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC)
    middle = np.array(cv2.mean(rough)[:3])
    contrast = float(rng.uniform(0.25, 0.9))
    front: Image = cv2.transform(
        rough, np.c_[contrast * np.eye(3), colour - contrast * middle].astype(np.float32)
    )
    return front if front.dtype == np.uint8 else front.clip(0, 255).astype(np.uint8)


def _shadow(image: Image, alpha: Mask, rng: Generator) -> None:
    """Darken the picture beside an object, in place; soft, so computed at an eighth of the size."""
    cv2 = opencv()
    height, width = alpha.shape
    small = cv2.resize(
        alpha, (max(1, width // 8), max(1, height // 8)), interpolation=cv2.INTER_AREA
    )
    shift = rng.normal(0, 0.02 * min(small.shape), 2)
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    small = cv2.warpAffine(small, matrix, small.shape[::-1])
    small = cv2.GaussianBlur(small, (0, 0), max(0.5, 0.01 * min(small.shape)))
    dark = cv2.resize(small, (width, height)).astype(np.float32)
    dark *= np.float32(-rng.uniform(0.15, 0.6) / 255)
    for top in range(0, height, _STRIP):
        rows = slice(top, top + _STRIP)
        image[rows] = (image[rows] * (1 + dark[rows, :, None])).astype(np.uint8)
