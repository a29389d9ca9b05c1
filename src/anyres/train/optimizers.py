"""Which optimiser moves which weights, and how far at each step."""

import math
import re
from collections import defaultdict
from typing import Any

import torch

from anyres.models.segmenter import Segmenter
from anyres.train.config import TrainConfig
from anyres.train.muon import Muon, split_parameters

_BLOCK = re.compile(r"image_encoder\.(?:blocks|layers)\.(\d+)\.")
# Beside a block of HRSAM's: number j belongs to block out_blocks[j].
_BESIDE = re.compile(
    r"image_encoder\.(?:(?:ss_|ms_)?mamba_blocks|multi_scale_fusion|lateral_convs)\.(\d+)\."
)
_AFTER = re.compile(r"image_encoder\.(?:neck|out_conv)\.")


class Optimizers:
    """Muon for matrices, AdamW for the rest, each with the rates of its parameters' depths."""

    def __init__(self, model: Segmenter, config: TrainConfig) -> None:
        self.all: list[torch.optim.Optimizer] = []
        self._peaks: list[list[float]] = []
        shares = _shares(model, config.layer_decay)
        matrices, others = split_parameters(model)
        adam = {"betas": (0.9, 0.98)}
        kinds: list[tuple[Any, Any, float, dict[str, Any]]] = [
            (Muon, matrices, config.matrix_lr, {}),
            (torch.optim.AdamW, others, config.other_lr, adam),
        ]
        for kind, parameters, peak, settings in kinds:
            groups = defaultdict(list)
            for p in parameters:
                groups[shares[id(p)]].append(p)
            if groups:
                some = [{"params": groups[share]} for share in sorted(groups)]
                self.all.append(kind(some, lr=peak, **settings))
                self._peaks.append([peak * share for share in sorted(groups)])

    def step(self, factor: float, weight_decay: float) -> None:
        """Move the weights along their gradients, at a share of the peak rates."""
        for optimizer, peaks in zip(self.all, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                # Both from the settings: a resumed run may have changed them.
                group.update(lr=peak * factor, weight_decay=weight_decay)
            optimizer.step()


def rate(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate, 0 to 1.

    After the warm-up ``linear`` is constant, so that a run can be made longer after it has begun,
    and falls to zero over the last part; ``cosine`` falls along half a wave all the way.
    """
    warm = (step + 1) / max(1, config.warmup)
    if config.schedule == "cosine":
        after = max(0, step - config.warmup) / max(1, config.steps - config.warmup)
        return min(1.0, warm, (1 + math.cos(math.pi * min(1.0, after))) / 2)
    left = (config.steps - step) / max(1.0, config.steps * config.decay)
    return max(0.0, min(1.0, warm, left))


def _shares(model: Segmenter, layer_decay: float) -> dict[int, float]:
    """Share of the rate that each parameter gets, by its identity."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    blocks = [m.group(1) for name, _ in model.named_parameters() if (m := _BLOCK.match(name))]
    last = 1 + max(map(int, blocks), default=-1)
    outs = getattr(model.config.encoder, "out_blocks", ())
    return {id(p): layer_decay ** (last + 1 - _depth(name, last, outs)) for name, p in named}


def _depth(name: str, last: int, outs: tuple[int, ...]) -> int:
    """0 for what comes before the encoder's blocks, the blocks from 1, and last + 1 after them."""
    if found := _BLOCK.match(name):
        return 1 + int(found.group(1))
    if found := _BESIDE.match(name):
        return 1 + outs[int(found.group(1))]
    return 0 if name.startswith("image_encoder.") and not _AFTER.match(name) else last + 1
