"""Dense maps of the clicks and of what resembles them, as part of the dense prompt (our design).

A click says more than where it is: the pixels that look like it are likely to belong with it.
For every click, features of the picture are read at the click and compared with all pixels, at
strides 4, 8 and 16 and for plain colour. Together with the clicks' own places, the box and the
previous mask these maps pass three convolutions and join the picture's features at strides 4, 8
and 16. What this is worth against tokens alone is in docs/decisions.

Shapes: B pictures, P prompts (prompt p belongs to picture p // (P // B)), N points, c channels of a
map, (h, w) token grid; maps at stride 4 are (4h, 4w). Coordinates are XY in input pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.layers import (
    LastMade,
    SiLU,
    StridedConv2d,
    add_each,
    each,
    rows,
    weight_and_bias,
)
from anyres.ops import block
from anyres.ops.precision import wide
from anyres.ops.threads import runs_in_parts

MAP_CHANNELS = 15
# Scales of the squared colour difference, in units of the normalised input (std 1).
COLOUR_SCALES = (0.1, 1.0)
# Width of the bump at a click, in pixels of stride 4.
CLICK_SIGMA = 1.5
# Beyond so many pixels of stride 4 the bump of a click is below 1e-8.
CLICK_REACH = 9
# Tokens in a row, and in all, that the compiled kernels want.
_LEAST_WIDTH = 4
_LEAST_TOKENS = 32
# Stands for the likeness to no click at all; times 0 it is not NaN.
NOTHING = -1e9
# Float32 numbers compared at once. On CPUs they stay in the cache.
_NUMBERS = {"cpu": 2**20}
_NUMBERS_ELSEWHERE = 2**26


@dataclass(frozen=True, eq=False)
class Landmarks:
    """What clicks on a picture are compared with, the same for all of them.

    Attributes:
        maps: features at strides 4, 8 and 16 as they are, (B, c, ., .) each.
        lengths: one over their length at each pixel, (B, 1, ., .), float32 or wider.
        colours: normalised colours at stride 4 and a 1, (B, 4, 4h, 4w), float32 or wider.
        squares: their squared length, (B, 1, 4h, 4w).
    """

    maps: tuple[Tensor, ...]
    lengths: tuple[Tensor, ...]
    colours: Tensor
    squares: Tensor

    @classmethod
    def of(cls, maps: tuple[Tensor, ...], pixels_s4: Tensor) -> "Landmarks":
        """Measure features (B, c, ., .) at strides 4, 8 and 16 and colours (B, 3, 4h, 4w)."""
        colours = F.pad(wide(pixels_s4), (0, 0, 0, 0, 0, 1), value=1.0)
        lengths = tuple(
            torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=colours.dtype)
            .clamp_min(1e-12)
            .reciprocal()
            for x in maps
        )
        return cls(maps, lengths, colours, wide(pixels_s4).square().sum(1, True))


class ClickMaps(nn.Module):
    """Dense prompts at strides 4, 8 and 16, and what to add to the click tokens."""

    def __init__(self, details: tuple[int, int], dim: int) -> None:
        super().__init__()
        widths = (*details, dim)
        self.sharpness = nn.Parameter(torch.full((3,), 2.0))  # log of t in exp(t (cos - 1))
        self.to_s4 = nn.Sequential(nn.Conv2d(MAP_CHANNELS, 24, 3, padding=1), SiLU())
        self.to_s8 = nn.Sequential(nn.Conv2d(24, 48, 3, stride=2, padding=1), SiLU())
        self.to_s16 = nn.Sequential(StridedConv2d(48, dim, 3, stride=2, padding=1), SiLU())
        self.out_s4 = nn.Conv2d(24, dim // 8, 1)
        self.out_s8 = nn.Conv2d(48, dim // 4, 1)
        self.out_s16 = nn.Conv2d(dim, dim, 1)
        self.to_token = nn.Linear(sum(widths), dim)
        self._ordered = LastMade[Any]()

    def forward(
        self,
        landmarks: Landmarks,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        own: tuple[Tensor, Tensor, Tensor],
        prompts: int,
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Compute the dense prompts and add them to what they are for.

        Args:
            landmarks: of the pictures.
            points: coordinates (P, N, 2) and labels (P, N): 1, 0, or -1 for none.
            boxes: (P, 4) XYXY.
            masks: previous logits (P, 1, 4h, 4w).
            own: maps of the pictures at strides 4, 8 and 16, (B, dim/8, 4h, 4w),
                (B, dim/4, 2h, 2w) and (B, dim, h, w).
            prompts: P.

        Returns:
            Those maps with the dense prompts added, for each prompt; and additions to the tokens of
            the points, (P, N, dim).
        """
        colours, dtype = landmarks.colours, landmarks.maps[0].dtype
        size_hw = (colours.shape[2], colours.shape[3])
        if points is not None and self._runs_in_tiles(landmarks, own):
            return self._in_tiles(landmarks, points, boxes, masks, own)
        tokens = None
        if points is None:
            channels = [colours.new_zeros(prompts, 12, *size_hw)]
        else:
            channels, features = self._likeness(landmarks, *points)
            channels.append(_bumps(*points, size_hw))
            known = (points[1] >= 0).to(dtype)[..., None]
            tokens = self.to_token(features) * known
        channels.append(_inside(boxes, prompts, colours))
        channels += _previous(masks, prompts, colours)
        stacked = torch.cat([channel.to(dtype) for channel in channels], 1)
        stacked = stacked.contiguous(memory_format=torch.channels_last)
        s4 = self.to_s4(stacked)
        s8 = self.to_s8(s4)
        s16 = self.to_s16(s8)
        dense = (self.out_s4(s4), self.out_s8(s8), self.out_s16(s16))
        return tuple(add_each(d, x) for d, x in zip(dense, own, strict=True)), tokens

    def _runs_in_tiles(self, landmarks: Landmarks, own: tuple[Tensor, ...]) -> bool:
        channels = [x.shape[1] for x in landmarks.maps]
        height, width = landmarks.maps[2].shape[2:]
        fits = width >= _LEAST_WIDTH and height * width >= _LEAST_TOKENS
        last = all(x.is_contiguous(memory_format=torch.channels_last) for x in own)
        return (
            runs_in_parts(landmarks.colours)
            and block.clicks_run_in_tiles(landmarks.maps[0].dtype, channels, own[0].shape[1])
            and fits
            and last
        )

    def _in_tiles(
        self,
        landmarks: Landmarks,
        points: tuple[Tensor, Tensor],
        boxes: Tensor | None,
        masks: Tensor | None,
        own: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        from anyres.ops import click_cpu

        xy, labels = points
        colours, dtype = landmarks.colours, landmarks.maps[0].dtype
        xy, labels = xy.float().contiguous(), labels.long().contiguous()
        clicks = click_cpu.Clicks(xy, labels, CLICK_SIGMA, CLICK_REACH)
        others = click_cpu.Others(
            _sides_inside(boxes, len(xy), colours),
            None if masks is None else _squashed(masks, colours),
        )
        layers = (
            self.to_s4[0],
            self.out_s4,
            self.to_s8[0],
            self.out_s8,
            self.to_s16[0],
            self.out_s16,
        )
        parameters = [x for layer in layers for x in weight_and_bias(layer)]
        sums, features = click_cpu.run(
            click_cpu.Picture(landmarks.maps, landmarks.lengths, colours, landmarks.squares),
            clicks,
            self.sharpness.exp().tolist(),
            COLOUR_SCALES,
            others,
            self._ordered(parameters, None, click_cpu.ordered),
            own,
        )
        known = (labels >= 0).to(dtype)[..., None]
        return sums, self.to_token(features.to(dtype)) * known

    def _at_clicks(self, landmarks: Landmarks, xy: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features at the clicks, of length 1, (P, N, c) of each map, and colours (P, N, 3)."""
        (fine, *others), (length, *lengths) = landmarks.maps, landmarks.lengths
        found, scale, colours = _sample([fine, length, landmarks.colours], xy, 4)
        features = [wide(found) * scale]
        for map_, length, stride in zip(others, lengths, (8, 16), strict=True):
            found, scale = _sample([map_, length], xy, stride)
            features.append(wide(found) * scale)
        return features, colours[..., :3]

    def _likeness(
        self, landmarks: Landmarks, xy: Tensor, labels: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Likeness to the clicks, (P, 2, 4h, 4w) each, and the features at them (P, N, sum c).

        What is most alike is sought before the exponential, which keeps the order.
        """
        likeness, (features, colour) = [], self._at_clicks(landmarks, xy)
        for i, (features_map, lengths, at_click) in enumerate(
            zip(landmarks.maps, landmarks.lengths, features, strict=True)
        ):
            cosine = _largest_products(at_click, features_map, labels) * each(lengths, len(xy))
            similar = _exp(self.sharpness[i].exp() * (cosine - 1))
            if i:
                size_hw = landmarks.colours.shape[2:]
                similar = F.interpolate(similar, size=size_hw, mode="bilinear", align_corners=False)
            likeness.append(similar)
        # |a - b|² = |a|² - 2 ab + |b|², so that no (P, N, 3, 4h, 4w) is built.
        # The largest of (2a, -|a|²) times (b, 1) is the nearest.
        extended = torch.cat([2 * colour, -colour.square().sum(-1, True)], -1)
        largest = _largest_products(extended, landmarks.colours, labels)
        squared = (each(landmarks.squares, len(xy)) - largest).clamp_min(0)
        likeness += [_exp(-squared / scale) for scale in COLOUR_SCALES]
        return likeness, torch.cat(features, -1).to(landmarks.maps[0].dtype)


def _bumps(xy: Tensor, labels: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """A Gaussian bump at each click, the highest of each label, (P, 2, 4h, 4w) float32."""
    xy = xy.float() + 0.5  # a click means the centre of its pixel
    reach = torch.arange(-CLICK_REACH, CLICK_REACH + 1, device=xy.device)
    bumps, cells = [], []
    for axis, cells_there in enumerate(reversed(size_hw)):
        at = xy[..., axis, None]
        cell = (at / 4).floor().long() + reach
        # Centres of the pixels of stride 4, in input pixels.
        bump = torch.exp((-0.5 / (4 * CLICK_SIGMA) ** 2) * ((cell + 0.5) * 4 - at).square())
        bumps.append(bump * ((cell >= 0) & (cell < cells_there)))
        cells.append(cell.clamp(0, cells_there - 1))
    bump = bumps[1][..., :, None] * bumps[0][..., None, :]
    height, width = size_hw
    index = cells[1][..., :, None] * width + cells[0][..., None, :]
    index = index + (labels == 0)[..., None, None] * (height * width)
    bump = bump * (labels >= 0)[..., None, None]
    out = bump.new_zeros(len(xy), 2 * height * width)
    out.scatter_reduce_(1, index.flatten(1), bump.flatten(1), "amax")
    maps: Tensor = out.unflatten(1, (2, *size_hw))
    return maps


def _inside(boxes: Tensor | None, prompts: int, like: Tensor) -> Tensor:
    """1 inside the box, 0 elsewhere, (P, 1, 4h, 4w)."""
    rows, columns = _sides_inside(boxes, prompts, like)
    return rows[:, None, :, None] * columns[:, None, None, :]


def _sides_inside(boxes: Tensor | None, prompts: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """1 for rows (P, 4h) and columns (P, 4w) that the box reaches, 0 for others."""
    height, width = like.shape[2:]
    if boxes is None:
        return like.new_zeros(prompts, height), like.new_zeros(prompts, width)
    # Centres of the pixels of stride 4, in input pixels.
    y, x = ((torch.arange(n, device=like.device) + 0.5) * 4 for n in (height, width))
    x0, y0, x1, y1 = boxes.float()[..., None].unbind(1)
    return ((y >= y0) & (y <= y1)).to(like.dtype), ((x >= x0) & (x <= x1)).to(like.dtype)


def _previous(masks: Tensor | None, prompts: int, like: Tensor) -> list[Tensor]:
    """The previous mask in -1 .. 1, and whether there is one."""
    if masks is None:
        return [like.new_zeros(prompts, 2, *like.shape[2:])]
    squashed = _squashed(masks, like)
    return [squashed, torch.ones_like(squashed)]


def _squashed(masks: Tensor, like: Tensor) -> Tensor:
    """Logits in -1 .. 1."""
    return torch.tanh(masks.to(like.dtype) / 4)


def _sample(maps: Sequence[Tensor], xy_PN2: Tensor, stride: int) -> list[Tensor]:
    """Of maps (B, c, H, W) of one size what is in the cells of the points, (P, N, c) each."""
    batch, _, height, width = maps[0].shape
    x, y = (xy_PN2 / stride).floor().long().unbind(-1)
    row, column = y.clamp(0, height - 1), x.clamp(0, width - 1)
    prompts = len(xy_PN2)
    picture = torch.arange(prompts, device=row.device)[:, None] // max(1, prompts // batch)
    return [map_.permute(0, 2, 3, 1)[picture, row, column] for map_ in maps]


def _largest_products(at_click_PNc: Tensor, map_BcHW: Tensor, labels_PN: Tensor) -> Tensor:
    """The largest product of a pixel's features with any click's, for each label (P, 2, H, W)."""
    found = []
    # Picture by picture: torch copies transposed batches before it multiplies them.
    pictures = len(map_BcHW)
    for clicks, labels, pixels in zip(
        at_click_PNc.chunk(pictures), labels_PN.chunk(pictures), rows(map_BcHW), strict=True
    ):
        numbers = _NUMBERS.get(pixels.device.type, _NUMBERS_ELSEWHERE)
        step = max(1, numbers // max(labels.numel(), pixels.shape[1]))
        parts = []
        for some in pixels.split(step):
            products = (clicks.flatten(0, 1) @ wide(some).t()).unflatten(0, labels.shape)
            largest = [
                (products + (labels != label)[..., None] * NOTHING).amax(1) for label in (1, 0)
            ]
            parts.append(torch.stack(largest, 1))
        found.append(torch.cat(parts, 2))
    maps: Tensor = torch.cat(found).unflatten(2, map_BcHW.shape[2:])
    return maps


def _exp(x: Tensor) -> Tensor:
    """The exponential; at most 2e-35 counts as nothing: denormal numbers take CPUs long."""
    return x.clamp_min(-80).exp()
