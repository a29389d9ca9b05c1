"""A model, its optimisers and its average: one step of training, and what it takes to go on."""

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyres.errors import AnyresError
from anyres.models import parts, weights
from anyres.models.segmenter import Segmenter
from anyres.ops.precision import resolve_dtype
from anyres.train import checkpoint
from anyres.train.config import TrainConfig
from anyres.train.freezing import freeze, train_mode
from anyres.train.objectives import Objective
from anyres.train.optimizers import Optimizers, rate
from anyres.train.processes import Group, share_statistics
from anyres.train.recompute import recompute_blocks
from anyres.train.start import find_start


class BrokenStepError(AnyresError):
    """A loss or gradient that is no finite number; the weights have not moved.

    Attributes:
        batches: what this process computed it on.
    """

    def __init__(self, message: str, batches: Sequence[Any]) -> None:
        super().__init__(message)
        self.batches = batches


class Trainer:
    """A model, its optimisers and its average, at some step of a run.

    Attributes:
        step: how many are done.
        best: the best validation so far, see `anyres.train.validation`.
    """

    def __init__(
        self, config: TrainConfig, objective: Objective, group: Group | None = None
    ) -> None:
        self.config = config
        self.objective = objective
        self.group = group or Group()
        self.step = 0
        self.best = -math.inf
        torch.manual_seed(config.seed)
        start = find_start(config)
        self.model, self.base = start.model.to(self.group.device), start.base
        self.group.share_weights(self.model)
        freeze(self.model, config.train)
        self._first = {
            name: each.detach().clone()
            for name, each in self.model.named_parameters()
            if each.requires_grad and config.blend < 1
        }
        self.average = checkpoint.Average(self.model, config.ema)
        share_statistics(self.model, self.group)
        if config.checkpoint_activations:
            recompute_blocks(self.model)
        self.optimizers = Optimizers(self.model, config)
        self.trained: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        self.dtype = resolve_dtype(config.dtype, self.group.device)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "step": self.step,
            "best": self.best,
            "config": json.dumps(asdict(self.config)),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "updates": self.average.updates,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers.all],
            "trained_on": dict(self.average.model.trained_on),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.updates = state["updates"]
        # Checkpoints of former versions lack these; the data of this session is added in any case.
        self.best = state.get("best", -math.inf)
        self.learns_from(state.get("trained_on", {}))
        for optimizer, saved in zip(self.optimizers.all, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def learns_from(self, sets: Mapping[str, Iterable[str]]) -> None:
        """Note pictures, as in `Segmenter.trained_on`, beside those noted before."""
        model = self.average.model
        model.trained_on = {
            name: sorted({*model.trained_on.get(name, ()), *sets.get(name, ())})
            for name in {*model.trained_on, *sets}
        }

    def result(self) -> Segmenter:
        """The averaged weights, with their share of those before the first step (``blend``)."""
        if not self._first:
            return self.average.model
        model = copy.deepcopy(self.average.model)
        own = dict(model.named_parameters())
        for name, first in self._first.items():
            own[name].lerp_(first, 1 - self.config.blend)
        return model

    def write_weights(self, path: Path) -> None:
        """Write the result: all, or what was trained where the run names it."""
        model = self.result()
        if self.base is None:
            weights.save(model, path)
        else:
            parts.save_part(model, parts.trained_names(self.model), self.base, path)

    def train_step(self, batches: Sequence[Any]) -> dict[str, float]:
        """One step on the mean loss of some batches, as many in every process.

        Returns:
            What the log records, the means over all processes.

        Raises:
            BrokenStepError: the loss or its gradient is not finite.
        """
        config, device = self.config, self.group.device
        train_mode(self.model)
        records: list[dict[str, float]] = []
        for batch in batches:
            # The same for all batches of a step: they are parts of one.
            rng = np.random.default_rng((config.seed, self.step))
            with torch.autocast(device.type, torch.bfloat16, self.dtype == torch.bfloat16):
                loss, record = self.objective(self.model, batch.to(device), config, rng)
            (loss / len(batches)).backward()
            records.append({**record, "loss": loss.item()})
        self.group.average_gradients(self.trained)
        norm = float(nn.utils.clip_grad_norm_(self.trained, config.clip))
        means = [float(np.mean([record[name] for record in records])) for name in records[0]]
        record = dict(zip(records[0], self.group.mean(means), strict=True))
        # Found before the weights take it in, and a checkpoint the weights.
        if not (math.isfinite(record["loss"]) and math.isfinite(norm)):
            raise BrokenStepError(
                f"the loss is {record['loss']} and its gradient {norm} at step {self.step}; "
                "lower matrix_lr and other_lr and go on from the last checkpoint",
                batches,
            )
        factor = rate(self.step, config)
        self.optimizers.step(factor, config.weight_decay)
        for p in self.trained:
            p.grad = None
        self.average.update(self.model)
        self.step += 1
        return {**record, "norm": norm, "rate": factor}
