"""The loss of interactive segmentation: the first and the last pass of simulated clicks."""

import numpy as np
import torch
from torch import Tensor

from anyres.models.segmenter import Segmenter
from anyres.train.config import TrainConfig
from anyres.train.interaction import Annotator, Targets, rough_masks, upsample
from anyres.train.losses import cross_entropy, dice, mask_iou, normalized_focal
from anyres.train.samples import Batch


def interactive_loss(
    model: Segmenter, batch: Batch, config: TrainConfig, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss of the first and of the last pass of a simulated interaction.

    The passes between, which only place clicks, have no gradient.
    """
    pixels = batch.images.permute(0, 3, 1, 2)
    size_hw = (pixels.shape[2], pixels.shape[3])
    features = model.encode(model.preprocess(pixels, size_hw))
    targets = Targets.from_full(batch.masks, batch.valid)
    annotator = Annotator(targets, rng)
    start = rng.random()
    from_box = start < config.box_share
    from_mask = not from_box and start < config.box_share + config.mask_share
    boxes = annotator.boxes() if from_box else None
    previous = rough_masks(targets, rng) if from_mask else None
    if previous is not None and rng.random() < 0.5:  # a rough mask, alone or with a correction
        annotator.click(upsample(previous)[:, 0])
    elif not from_box and not from_mask:
        annotator.click(None)

    def decode(previous: Tensor | None) -> tuple[Tensor, Tensor]:
        points = annotator.points()
        clicked = bool((points[1] >= 0).any())
        # Where no object is left to click on, and there is nothing else, padding asks alone.
        nothing = not clicked and boxes is None and previous is None
        return model.decode_all(
            features,
            points=points if clicked or nothing else None,
            boxes=boxes,
            masks=previous,
        )

    logits, quality = decode(previous)
    loss, first_iou = _pass_loss(logits, quality, targets, config, multimask=not from_mask)
    for _ in range(_draw_clicks(config, rng) - 1):
        previous = logits[:, :1].detach()
        annotator.click(upsample(previous)[:, 0])
        with torch.no_grad():
            logits, quality = decode(previous)
    previous = logits[:, :1].detach()
    annotator.click(upsample(previous)[:, 0])
    # People also give several clicks at once, without an answer to go on from.
    forget = rng.random() < config.forget_share and annotator.has_clicks()
    logits, quality = decode(None if forget else previous)
    last, last_iou = _pass_loss(logits, quality, targets, config, multimask=False)
    return loss + last, {"iou_first": first_iou, "iou_last": last_iou}


def _draw_clicks(config: TrainConfig, rng: np.random.Generator) -> int:
    """How many clicks follow the first prompt, p(n) ∝ decay^n."""
    numbers = np.arange(1, config.max_clicks)
    share = config.click_decay**numbers
    return int(rng.choice(numbers, p=share / share.sum()))


def _pass_loss(
    logits: Tensor, quality: Tensor, targets: Targets, config: TrainConfig, multimask: bool
) -> tuple[Tensor, float]:
    """Loss of one decoder pass, and the mean IoU of its single mask."""
    masks = upsample(logits)
    single = _mask_loss(masks[:, 0], targets, config).mean()
    ious = torch.stack([mask_iou(m, targets.mask, targets.valid) for m in masks.unbind(1)], 1)
    loss = single
    known = slice(0, 1)
    if multimask:
        # Only the best of the three is trained: each may then mean another thing.
        losses = [_mask_loss(m, targets, config) for m in masks.unbind(1)[1:]]
        best = torch.stack(losses, 1).min(1).values.mean()
        loss = loss + config.multimask_weight * best
        known = slice(None)
    error = (quality.float() - ious)[:, known].square().mean()
    return loss + config.iou_weight * error, float(ious[:, 0].mean())


def _mask_loss(logits: Tensor, targets: Targets, config: TrainConfig) -> Tensor:
    arguments = (logits, targets.mask, targets.valid)
    focal = normalized_focal(*arguments)
    return cross_entropy(*arguments) + dice(*arguments) + config.focal_weight * focal
