"""Losses of masks and of predicted quality.

Shapes: (..., H, W) maps, of which targets may be broadcast; all give one value a map, (...).
A probability is the sigmoid of a logit: losses that are summed share it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = torch.finfo(torch.float32).eps


def normalized_focal(
    probability: Tensor, target: Tensor, valid: Tensor, alpha: float = 0.5, gamma: float = 2.0
) -> Tensor:
    """Normalised focal loss (Sofiiuk et al. 2019; RITM's interactive segmentation loss).

    The focal weights are rescaled, without gradient, to sum to the number of valid pixels, so that
    the loss does not vanish as the mask gets better.

    Args:
        probability: (..., H, W).
        target: 0 or 1, (..., H, W).
        valid: 1 where the pixel counts, (..., H, W).
        alpha: weight of the object's pixels; the others have 1 - alpha.
        gamma: exponent of the focal weight.
    """
    right = 1 - (target - probability).abs()
    right = torch.where(valid > 0, right, torch.ones_like(right))
    focal = (1 - right) ** gamma
    count = valid.sum((-2, -1))
    scale = (count / (focal.sum((-2, -1)) + EPS)).detach()
    side = torch.where(target > 0.5, alpha, 1 - alpha)
    loss = -side * (scale[..., None, None] * focal) * (right + EPS).clamp(max=1).log()
    return (loss * valid).sum((-2, -1)) / (count + EPS)


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of logits (..., H, W), the mean over valid pixels."""
    loss = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    return (loss * valid).sum((-2, -1)) / valid.sum((-2, -1)).clamp_min(1)


def dice(probability: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Dice loss, 1 - 2 |A B| / (|A| + |B|) with one pixel of smoothing; arguments as above."""
    probability = probability * valid
    target = target * valid
    overlap = (probability * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + target.sum((-2, -1)) + 1)


def mask_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU of thresholded logits with the target over valid pixels; no gradient."""
    predicted = (logits > 0) & (valid > 0)
    wanted = (target > 0.5) & (valid > 0)
    intersection = (predicted & wanted).sum((-2, -1))
    union = (predicted | wanted).sum((-2, -1))
    return intersection / union.clamp_min(1)
