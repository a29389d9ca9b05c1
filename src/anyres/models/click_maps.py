"""Dense maps of the clicks and of what resembles them, as part of the dense prompt (our design).

A click says more than where it is: the pixels that look like it are likely to belong with it.
For every click, features of the picture are read at the click and compared with all pixels, at
strides 4, 8 and 16 and for plain colour. Together with the clicks' own places, the box and the
previous mask these maps pass three convolutions and join the picture's features at strides 4, 8
and 16. What this is worth against tokens alone is in docs/decisions.

Shapes: B pictures, P prompts (prompt p belongs to picture p // (P // B)), N points, c channels of a
map, (h, w) token grid; maps at stride 4 are (4h, 4w). Coordinates are XY in input pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.models.layers import StridedConv2d

MAP_CHANNELS = 15
# Scales of the squared colour difference, in units of the normalised input (std 1).
COLOUR_SCALES = (0.1, 1.0)
# Width of the bump at a click, in pixels of stride 4.
CLICK_SIGMA = 1.5


class ClickMaps(nn.Module):
    """Dense prompts at strides 4, 8 and 16, and what to add to the click tokens."""

    def __init__(self, details: tuple[int, int], dim: int) -> None:
        super().__init__()
        widths = (*details, dim)
        self.sharpness = nn.Parameter(torch.full((3,), 2.0))  # log of t in exp(t (cos - 1))
        self.to_s4 = nn.Sequential(nn.Conv2d(MAP_CHANNELS, 24, 3, padding=1), nn.SiLU())
        self.to_s8 = nn.Sequential(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.SiLU())
        self.to_s16 = nn.Sequential(StridedConv2d(48, dim, 3, stride=2, padding=1), nn.SiLU())
        self.out_s4 = nn.Conv2d(24, dim // 8, 1)
        self.out_s8 = nn.Conv2d(48, dim // 4, 1)
        self.out_s16 = nn.Conv2d(dim, dim, 1)
        self.to_token = nn.Linear(sum(widths), dim)

    def forward(
        self,
        maps: tuple[Tensor, Tensor, Tensor],
        pixels_s4: Tensor,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        prompts: int,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """Compute the dense prompts.

        Args:
            maps: features of the picture at strides 4, 8 and 16, (B, c, ., .) each.
            pixels_s4: normalised colours at stride 4, (B, 3, 4h, 4w).
            points: coordinates (P, N, 2) and labels (P, N): 1, 0, or -1 for none.
            boxes: (P, 4) XYXY.
            masks: previous logits (P, 1, 4h, 4w).
            prompts: P.

        Returns:
            Dense prompts at strides 4, 8 and 16, (P, dim/8, 4h, 4w), (P, dim/4, 2h, 2w) and
            (P, dim, h, w); and additions to the tokens of the points, (P, N, dim).
        """
        size_hw = (pixels_s4.shape[2], pixels_s4.shape[3])
        places = _Places(size_hw, pixels_s4.device)
        dtype = maps[0].dtype
        channels, tokens = [], None
        if points is None:
            channels.append(pixels_s4.new_zeros(prompts, 12, *size_hw, dtype=dtype))
        else:
            similar, features = self._affinity(maps, pixels_s4, *points)
            bumps = _extreme(places.bumps(points[0]), points[1])
            channels += [similar.to(dtype), bumps.to(dtype)]
            known = (points[1] >= 0).to(dtype)[..., None]
            tokens = self.to_token(features) * known
        channels.append(places.inside(boxes, prompts).to(dtype))
        channels += _previous(masks, prompts, size_hw, channels[-1])
        s4 = self.to_s4(torch.cat(channels, 1))
        s8 = self.to_s8(s4)
        s16 = self.to_s16(s8)
        return (self.out_s4(s4), self.out_s8(s8), self.out_s16(s16)), tokens

    def _affinity(
        self, maps: tuple[Tensor, ...], pixels_s4: Tensor, xy: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Likeness to the clicks, (P, 10, 4h, 4w), and the features at the clicks (P, N, sum c)."""
        size_hw = pixels_s4.shape[2:]
        likeness, features = [], []
        for i, features_map in enumerate(maps):
            normal = F.normalize(features_map, dim=1)
            at_click = _sample(normal, xy, stride=4 * 2**i)
            cosine = _compare(at_click, normal)
            similar = torch.exp(self.sharpness[i].exp() * (cosine - 1))
            similar = _extreme(similar, labels)
            if i:
                similar = F.interpolate(similar, size=size_hw, mode="bilinear", align_corners=False)
            likeness.append(similar)
            features.append(at_click)
        colour = _sample(pixels_s4, xy, stride=4)
        # |a - b|² = |a|² - 2 ab + |b|², so that no (P, N, 3, 4h, 4w) is built.
        norm_map = pixels_s4.square().sum(1)[:, None]
        norm_click = colour.square().sum(-1)[..., None, None]
        product = _compare(colour, pixels_s4)
        repeat = product.shape[0] // norm_map.shape[0]
        squared = (norm_click - 2 * product + norm_map.repeat_interleave(repeat, 0)).clamp_min(0)
        likeness += [_extreme(torch.exp(-squared / scale), labels) for scale in COLOUR_SCALES]
        return torch.cat(likeness, 1), torch.cat(features, -1)


class _Places:
    """Where things are, on the grid of stride 4."""

    def __init__(self, size_hw: tuple[int, int], device: torch.device) -> None:
        height, width = size_hw
        # Centres of the pixels of stride 4, in input pixels.
        self.y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * 4
        self.x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * 4

    def bumps(self, xy: Tensor) -> Tensor:
        """A Gaussian bump at each point, (P, N, 4h, 4w)."""
        xy = xy.float() + 0.5  # a click means the centre of its pixel
        scale = -0.5 / (4 * CLICK_SIGMA) ** 2
        bump_x = torch.exp(scale * (self.x - xy[..., :1]).square())
        bump_y = torch.exp(scale * (self.y - xy[..., 1:]).square())
        return bump_y[..., :, None] * bump_x[..., None, :]

    def inside(self, boxes: Tensor | None, prompts: int) -> Tensor:
        """1 inside the box, 0 elsewhere, (P, 1, 4h, 4w)."""
        if boxes is None:
            return self.x.new_zeros(prompts, 1, len(self.y), len(self.x))
        x0, y0, x1, y1 = boxes.float()[..., None].unbind(1)
        columns = (self.x >= x0) & (self.x <= x1)
        rows = (self.y >= y0) & (self.y <= y1)
        return (rows[:, None, :, None] & columns[:, None, None, :]).float()


def _previous(
    masks: Tensor | None, prompts: int, size_hw: tuple[int, int], like: Tensor
) -> list[Tensor]:
    """The previous mask in -1 .. 1, and whether there is one."""
    if masks is None:
        return [like.new_zeros(prompts, 2, *size_hw)]
    squashed = torch.tanh(masks.float() / 4).to(like.dtype)
    return [squashed, torch.ones_like(squashed)]


def _sample(map_BcHW: Tensor, xy_PN2: Tensor, stride: int) -> Tensor:
    """Features of the cells that the points lie in, (P, N, c)."""
    batch, channels, height, width = map_BcHW.shape
    prompts, points, _ = xy_PN2.shape
    column = (xy_PN2[..., 0] / stride).floor().long().clamp(0, width - 1)
    row = (xy_PN2[..., 1] / stride).floor().long().clamp(0, height - 1)
    index = (row * width + column).reshape(batch, 1, -1).expand(-1, channels, -1)
    return map_BcHW.flatten(2).gather(2, index).transpose(1, 2).reshape(prompts, points, channels)


def _compare(at_click_PNc: Tensor, map_BcHW: Tensor) -> Tensor:
    """Dot products of the clicks' features with every pixel's, (P, N, H, W)."""
    batch, channels, height, width = map_BcHW.shape
    prompts, points, _ = at_click_PNc.shape
    product = at_click_PNc.reshape(batch, -1, channels) @ map_BcHW.flatten(2)
    return product.reshape(prompts, points, height, width)


def _extreme(maps_PNHW: Tensor, labels_PN: Tensor) -> Tensor:
    """Maxima over the positive and over the negative points, (P, 2, H, W); 0 where none is."""
    return torch.stack(
        [(maps_PNHW * (labels_PN == label)[..., None, None]).amax(1) for label in (1, 0)],
        dim=1,
    )
