"""A model, its optimisers and its average: one step of training, and what it takes to go on."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anyres.errors import AnyresError
from anyres.models import parts, weights
from anyres.ops.precision import resolve_dtype
from anyres.train import checkpoint
from anyres.train.config import TrainConfig
from anyres.train.freezing import freeze, train_mode
from anyres.train.muon import Muon, split_parameters
from anyres.train.objectives import Objective
from anyres.train.start import find_start


class Trainer:
    """A model, its optimisers and its average, at some step of a run."""

    def __init__(self, config: TrainConfig, objective: Objective) -> None:
        self.config = config
        self.objective = objective
        self.step = 0
        torch.manual_seed(config.seed)
        start = find_start(config)
        self.model, self.base = start.model, start.base
        freeze(self.model, config.train)
        matrices, others = split_parameters(self.model)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.peaks: list[float] = []
        if matrices:
            self.optimizers.append(Muon(matrices, lr=config.matrix_lr))
            self.peaks.append(config.matrix_lr)
        if others:
            self.optimizers.append(torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.98)))
            self.peaks.append(config.other_lr)
        self.average = checkpoint.Average(self.model, config.ema)
        self.autocast = resolve_dtype("auto", "cpu") == torch.bfloat16

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "step": self.step,
            "config": json.dumps(asdict(self.config)),
            "model": self.model.state_dict(),
            "average": self.average.model.state_dict(),
            "updates": self.average.updates,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "trained_on": dict(self.average.model.trained_on),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.model.load_state_dict(state["average"])
        self.average.updates = state["updates"]
        # Checkpoints of former versions have none; the data of this session is added in any case.
        self.learns_from(state.get("trained_on", {}))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def learns_from(self, sets: Mapping[str, Iterable[str]]) -> None:
        """Note pictures, as in `Segmenter.trained_on`, beside those noted before."""
        model = self.average.model
        model.trained_on = {
            name: sorted({*model.trained_on.get(name, ()), *sets.get(name, ())})
            for name in {*model.trained_on, *sets}
        }

    def write_weights(self, path: Path) -> None:
        """Write the averaged weights: all, or those trained where the run names them."""
        model = self.average.model
        if self.base is None:
            weights.save(model, path)
        else:
            parts.save_part(model, parts.trained_names(self.model), self.base, path)

    def train_step(self, batch: Any) -> dict[str, float]:
        """One step on one batch; gives what the log records."""
        config = self.config
        factor = rate(self.step, config)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            # Both from the settings: a resumed run may have changed them.
            optimizer.param_groups[0].update(lr=peak * factor, weight_decay=config.weight_decay)
        train_mode(self.model)
        rng = np.random.default_rng((config.seed, self.step))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss, record = self.objective(self.model, batch, config, rng)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), config.clip))
        # Found before the weights take it in, and a checkpoint the weights.
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            raise AnyresError(
                f"the loss is {loss.item()} and its gradient {norm} at step {self.step}; "
                "lower matrix_lr and other_lr and go on from the last checkpoint"
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        self.step += 1
        return {**record, "loss": loss.item(), "norm": norm, "rate": factor}


def rate(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate: warm-up, constant, linear fall to zero.

    Constant in between, so that a run can be made longer after it has begun.
    """
    left = (config.steps - step) / max(1.0, config.steps * config.decay)
    return max(0.0, min(1.0, (step + 1) / max(1, config.warmup), left))
