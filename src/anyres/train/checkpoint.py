"""Checkpoints of a run: everything needed to go on as if nothing had happened."""

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyres.errors import OutputError, WeightsError
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


def save(folder: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write a checkpoint; an interrupted write leaves the former one.

    Args:
        folder: of the run.
        state: what to keep.
        keep: how many of the last ones stay. Above 1 each also has a name of its own,
            ``checkpoint-STEP.pt``.

    Raises:
        OutputError: the disk is full, or the folder closed.
    """
    path = folder / NAME
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except RuntimeError as error:  # what torch makes of an error of the system
        raise OutputError(
            f"{path} cannot be written ({_first_line(error)}); is the disk full? The checkpoint "
            "before it is whole: the same command goes on from there"
        ) from error
    if keep > 1:
        own = folder / f"{Path(NAME).stem}-{state['step']:06}{Path(NAME).suffix}"
        own.unlink(missing_ok=True)
        try:
            own.hardlink_to(path)  # takes no room until the next one replaces it
        except OSError:
            shutil.copyfile(path, own)
    for old in numbered(folder)[: -keep if keep > 1 else None]:
        old.unlink()


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a run that have a name of their own, the oldest first."""
    return sorted(folder.glob(f"{Path(NAME).stem}-*{Path(NAME).suffix}"))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def load(folder: Path) -> dict[str, Any] | None:
    """Read the folder's checkpoint, or None where there is none.

    Raises:
        WeightsError: it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly anything on damaged files
        raise WeightsError(
            f"the checkpoint {path} cannot be read ({error}); start in another folder, delete it "
            "to begin again, or put an older one (checkpoint-STEP.pt) in its place"
        ) from error
    return state
