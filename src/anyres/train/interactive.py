"""The loss of interactive segmentation: the first and the last pass of simulated clicks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyres.models.segmenter import Segmenter
from anyres.train.batches import Batch
from anyres.train.config import TrainConfig
from anyres.train.interaction import Annotator, Targets, rough_masks, upsample
from anyres.train.losses import cross_entropy, dice, normalized_focal


def interactive_loss(
    model: Segmenter, batch: Batch, config: TrainConfig, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the first and of the last pass of a simulated interaction.

    The passes between, which only place clicks, have no gradient.
    """
    pixels = batch.images.permute(0, 3, 1, 2)
    size_hw = (pixels.shape[2], pixels.shape[3])
    ready = model.prepare(model.encode(model.preprocess(pixels, size_hw)))
    targets = Targets.from_full(batch.masks, batch.valid)
    annotator = Annotator(targets, _own_generators(batch, rng))
    start = rng.random()
    from_box = start < config.box_share
    from_mask = not from_box and start < config.box_share + config.mask_share
    boxes = annotator.boxes() if from_box else None
    previous = None
    if from_mask:
        previous = rough_masks(targets, annotator.generators, rng)
        if rng.random() < 0.5:  # a rough mask, alone or with a correction
            annotator.click(previous)
    elif not from_box:
        annotator.click(None)

    def prompts(previous: Tensor | None) -> dict[str, Any]:
        # Where there is nothing else, padding asks alone.
        nothing = boxes is None and previous is None
        points = annotator.points() if annotator.rounds or nothing else None
        return {"points": points, "boxes": boxes, "masks": previous}

    logits, quality = model.decode_all(ready, **prompts(previous))
    # A rough mask is not ambiguous: then the single mask alone is trained.
    told = slice(0, 1) if from_mask else slice(None)
    loss, first_iou = _pass_loss(logits[:, told], quality[:, told], targets, config)
    previous = logits[:, :1].detach()
    for _ in range(_draw_clicks(config, rng) - 1):
        annotator.click(previous)
        with torch.no_grad():
            previous, _ = model.decode(ready, **prompts(previous), multimask=False)
    annotator.click(previous)
    # People also give several clicks at once, without an answer to go on from.
    forget = rng.random() < config.forget_share and annotator.all_clicked()
    logits, quality = model.decode(ready, **prompts(None if forget else previous), multimask=False)
    last, last_iou = _pass_loss(logits, quality, targets, config)
    return loss + last, {"iou_first": first_iou, "iou_last": last_iou}


def _own_generators(batch: Batch, rng: np.random.Generator) -> list[np.random.Generator]:
    """A generator for each object, the same however a step's samples are shared out."""
    pictures, objects = batch.masks.shape[:2]
    return rng.spawn((batch.place + pictures) * objects)[batch.place * objects :]


def _draw_clicks(config: TrainConfig, rng: np.random.Generator) -> int:
    """How many clicks follow the first prompt, p(n) ∝ decay^n."""
    numbers = np.arange(1, config.max_clicks)
    share = config.click_decay**numbers
    return int(rng.choice(numbers, p=share / share.sum()))


def _pass_loss(
    logits: Tensor, quality: Tensor, targets: Targets, config: TrainConfig
) -> tuple[Tensor, float]:
    """Loss of one decoder pass, and the mean IoU of its single mask.

    Args:
        logits: (P, M, H/4, W/4), the single mask first and the masks for ambiguous prompts, if they
            are trained, after it.
        quality: the predicted IoU, (P, M).
        targets: what is wanted.
        config: weights of the parts.
    """
    single = upsample(logits[:, :1])
    loss = _mask_loss(single, targets, config).mean()
    ious = targets.ious(single)
    if logits.shape[1] > 1:
        # Only the best of the three is trained: each may then mean another thing.
        with torch.no_grad():
            others = upsample(logits[:, 1:])
            best = _mask_loss(others, targets, config).argmin(1)
            ious = torch.cat([ious, targets.ious(others)], 1)
        chosen = logits[torch.arange(len(best), device=best.device), 1 + best]
        ambiguous = _mask_loss(upsample(chosen[:, None]), targets, config).mean()
        loss = loss + config.multimask_weight * ambiguous
    error = (quality.float() - ious).square().mean()
    return loss + config.iou_weight * error, float(ious[:, 0].mean())


def _mask_loss(logits: Tensor, targets: Targets, config: TrainConfig) -> Tensor:
    """The loss of each mask, (P, M), of logits (P, M, H/2, W/2)."""
    wanted = (targets.mask[:, None], targets.valid[:, None])
    probability = logits.sigmoid()
    focal = normalized_focal(probability, *wanted)
    loss = cross_entropy(logits, *wanted) + dice(probability, *wanted)
    return loss + config.focal_weight * focal
