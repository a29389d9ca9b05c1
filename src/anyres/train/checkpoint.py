"""Checkpoints of a run: everything needed to go on as if nothing had happened."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyres.errors import WeightsError
from anyres.files import atomic_write
from anyres.models.segmenter import Segmenter

NAME = "checkpoint.pt"


class Average:
    """An exponential moving average of a model's weights; buffers are copied."""

    def __init__(self, model: Segmenter, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Segmenter) -> None:
        """Move the average towards the model; young averages move faster."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(mine, list(model.parameters()), 1 - decay)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint; an interrupted write leaves the former one."""
    with atomic_write(folder / NAME) as file:
        torch.save(state, file)


def load(folder: Path) -> dict[str, Any] | None:
    """Read the folder's checkpoint, or None where there is none.

    Raises:
        WeightsError: it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly anything on damaged files
        raise WeightsError(
            f"the checkpoint {path} cannot be read ({error}); "
            "start in another folder, or delete it to begin again"
        ) from error
    return state
