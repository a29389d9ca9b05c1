"""Simulated clicks during training (HRSAM, arXiv 2407.02109, section 4).

Clicks are drawn on maps at half the input's resolution, where the loss is computed too.

Shapes: P objects, (H, W) model input in pixels, maps (H/2, W/2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from anyres.clicks import EVALUATION_K, TRAINING_K, Click, next_click
from anyres.predict.postprocess import MASK_LOGIT
from anyres.train.losses import mask_iou

STRIDE = 2


@dataclass(frozen=True, eq=False)
class Targets:
    """Masks at stride 2, (P, H/2, W/2) float32: what is wanted, and where it counts."""

    mask: Tensor
    valid: Tensor

    @classmethod
    def from_full(cls, masks: Tensor, valid: Tensor) -> "Targets":
        """From uint8 maps (B, K, H, W) and (B, H, W), P = B * K."""
        half = F.avg_pool2d(masks.flatten(0, 1).float()[:, None], STRIDE)[:, 0]
        counts = F.avg_pool2d(valid.float()[:, None], STRIDE)[:, 0]
        valid_half = (counts == 1).float().repeat_interleave(masks.shape[1], 0)
        return cls((half >= 0.5).float() * valid_half, valid_half)

    def ious(self, logits: Tensor) -> Tensor:
        """IoU of each mask, (P, M), of logits (P, M, H/2, W/2); no gradient."""
        return mask_iou(logits, self.mask[:, None], self.valid[:, None])


def upsample(logits: Tensor) -> Tensor:
    """Logits (P, M, H/4, W/4) to stride 2, (P, M, H/2, W/2), float32."""
    return F.interpolate(logits.float(), scale_factor=2.0, mode="bilinear", align_corners=False)


class Annotator:
    """Clicks for many objects at once; points are padded with label -1 where one has fewer.

    Each object has a generator of its own, and a round of clicks adds one to every object or
    padding: what an object gets does not depend on what else is in its batch.

    Attributes:
        rounds: how many times ``click`` was called.
    """

    def __init__(self, targets: Targets, generators: Sequence[Generator]) -> None:
        self.target = targets.mask.bool().cpu().numpy()
        self.void = ~targets.valid.bool().cpu().numpy()
        self.device = targets.mask.device
        self.generators = generators
        self.rounds = 0
        self.clicks: list[list[Click]] = [[] for _ in self.target]
        self.xy: list[list[tuple[float, float]]] = [[] for _ in self.target]

    def click(self, logits: Tensor | None) -> None:
        """One more click on every object that still has an error.

        Args:
            logits: predictions (P, 1, H/4, W/4); None before the first click, which goes to the
                middle of the object.
        """
        self.rounds += 1
        k, found = EVALUATION_K, np.zeros_like(self.target)
        if logits is not None:
            k, found = TRAINING_K, (upsample(logits)[:, 0] > 0).cpu().numpy()
        for i, (target, rng) in enumerate(zip(self.target, self.generators, strict=True)):
            click = next_click(found[i], target, self.clicks[i], k=k, rng=rng, ignore=self.void[i])
            if click is not None:
                self.clicks[i].append(click)
                # A pixel of the map is four of the input: any of them may have been meant.
                jitter = rng.integers(0, STRIDE, 2)
                self.xy[i].append((click.x * STRIDE + jitter[0], click.y * STRIDE + jitter[1]))

    def all_clicked(self) -> bool:
        """Whether every object has been clicked on."""
        return all(self.clicks)

    def points(self) -> tuple[Tensor, Tensor]:
        """Coordinates (P, N, 2), XY in input pixels, and labels (P, N), -1 for none; N is not 0."""
        most = max(1, self.rounds)
        xy = torch.zeros(len(self.clicks), most, 2)
        labels = torch.full((len(self.clicks), most), -1)
        for i, (places, clicks) in enumerate(zip(self.xy, self.clicks, strict=True)):
            if places:
                xy[i, : len(places)] = torch.tensor(places, dtype=torch.float32)
                labels[i, : len(clicks)] = torch.tensor([int(c.positive) for c in clicks])
        return xy.to(self.device), labels.to(self.device)

    def boxes(self, jitter: float = 0.1) -> Tensor:
        """Boxes of the objects, (P, 4) XYXY in input pixels, sides moved by up to a tenth."""
        boxes = np.zeros((len(self.target), 4), np.float32)
        for i, (target, rng) in enumerate(zip(self.target, self.generators, strict=True)):
            rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
            if not len(rows):
                rows, columns = (
                    np.array([0, target.shape[0] - 1]),
                    np.array([0, target.shape[1] - 1]),
                )
            box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) * STRIDE
            sides = np.tile(box[2:] - box[:2], 2)
            moved = box + rng.uniform(-jitter, jitter, 4) * sides
            limits = np.array(target.shape[::-1] * 2) * STRIDE
            boxes[i] = np.clip(moved, 0, limits)
        return torch.from_numpy(boxes).to(self.device)


def rough_masks(targets: Targets, generators: Sequence[Generator], rng: Generator) -> Tensor:
    """Masks as people bring them: blocky, too large or too small, with bits missing or added.

    Args:
        targets: the true masks.
        generators: one an object.
        rng: of what all of them share.

    Returns:
        Logits (P, 1, H/4, W/4), all of them plus or minus `MASK_LOGIT`.
    """
    height, width = targets.mask.shape[1:]
    block = min(int(rng.choice([2, 4, 8, 16])), height, width)
    size = (height // 2, width // 2)
    coarse = F.avg_pool2d(targets.mask[:, None], block, ceil_mode=True)
    grid = (1, 1 + height // 32, 1 + width // 32)
    drawn = np.stack([own.standard_normal(grid, np.float32) for own in generators])
    noise = torch.from_numpy(drawn).to(coarse.device)
    share, disturbance = (
        F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (coarse, noise)
    )
    limit = rng.uniform(0.25, 0.75)
    inside = share + 0.12 * disturbance > limit
    return torch.where(inside, MASK_LOGIT, -MASK_LOGIT)
