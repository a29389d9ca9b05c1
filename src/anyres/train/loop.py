"""The training loop: simulated clicks on a stream of samples, on one machine.

A run lives in a folder: ``checkpoint.pt`` (to go on), ``model.safetensors`` (averaged weights, what
`anyres.load` takes) and ``log.jsonl`` (one line a step). Started again with the same folder it goes
on where it stopped.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anyres.data.datasets import picture_checksum
from anyres.errors import AnyresError, InputError, WeightsError
from anyres.files import write_text
from anyres.models import weights
from anyres.models.build import build
from anyres.models.config import preset
from anyres.models.segmenter import Segmenter
from anyres.ops.precision import resolve_dtype
from anyres.train import checkpoint
from anyres.train.config import TrainConfig
from anyres.train.interaction import Annotator, Targets, rough_masks, upsample
from anyres.train.losses import cross_entropy, dice, mask_iou, normalized_focal
from anyres.train.muon import Muon, split_parameters
from anyres.train.samples import Batch, SampleStream, batches

Report = Callable[[int, dict[str, float]], None]


class Trainer:
    """A model, its optimisers and its average, at some step of a run."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.step = 0
        torch.manual_seed(config.seed)
        self.model = (
            weights.load_weights(config.model, config.start)
            if config.start
            else build(preset(config.model))
        )
        matrices, others = split_parameters(self.model)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=config.matrix_lr, weight_decay=config.weight_decay),
            torch.optim.AdamW(
                others, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=config.weight_decay
            ),
        ]
        self.peaks = [config.matrix_lr, config.other_lr]
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

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step on one batch; gives what the log records."""
        config = self.config
        factor = rate(self.step, config)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            # Both from the settings: a resumed run may have changed them.
            optimizer.param_groups[0].update(lr=peak * factor, weight_decay=config.weight_decay)
        self.model.train()
        rng = np.random.default_rng((config.seed, self.step))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss, record = interactive_loss(self.model, batch, config, rng)
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


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a question: has someone asked to stop?

    A second SIGINT stops at once: the run may be waiting for something that never comes. Files are
    written whole or not at all, so that costs the steps since the last checkpoint and no more.
    """
    asked = False

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    former = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def train(config: TrainConfig, data: Path, out: Path, report: Report) -> bool:
    """Run to the end, or until asked to stop; goes on if the folder holds a checkpoint.

    Args:
        config: the settings.
        data: folder of training sets.
        out: folder of the run; made if need be.
        report: called after each step with the steps done and what the log records.

    Returns:
        Whether the run is finished.

    Raises:
        InputError: the folder holds a run of another model.
        WeightsError: its checkpoint, or the one to start from, is damaged or does not fit.
        AnyresError: the loss is not finite, or a process that makes samples died.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config)
    saved = checkpoint.load(out)
    if saved is not None:
        _resume(trainer, saved, out)
    stream = SampleStream(
        data,
        size=config.rounds[0][0],
        objects=config.objects,
        seed=config.seed,
        weights=config.sampling or None,
    )
    trainer.learns_from(
        {name: map(picture_checksum, paths) for name, paths in stream.pictures().items()}
    )
    log_file = out / "log.jsonl"
    _cut_log(log_file, trainer.step)
    with _stoppable() as stop, _naming_dead_workers(), log_file.open("a", encoding="utf-8") as log:
        for batch in batches(stream, config.rounds, start=trainer.step, workers=config.workers):
            if trainer.step >= config.steps or stop():
                break
            begin = time.perf_counter()
            record = trainer.train_step(batch)
            record["seconds"] = time.perf_counter() - begin
            log.write(json.dumps({"step": trainer.step, **record}) + "\n")
            report(trainer.step, record)
            if trainer.step % config.checkpoint_every == 0:
                _save(trainer, out)
                log.flush()
        _save(trainer, out)
    return trainer.step >= config.steps


def _resume(trainer: Trainer, saved: dict[str, Any], out: Path) -> None:
    try:
        before = json.loads(saved["config"])["model"]
        if before != trainer.config.model:
            raise InputError(f"{out} holds a run of the model {before!r}; choose another folder")
        trainer.load_state(saved)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"the checkpoint in {out} does not fit this version's model ({reason}); "
            "start in another folder"
        ) from error


def _cut_log(path: Path, step: int) -> None:
    """Drop what a run that was killed wrote after its last checkpoint: those steps come again."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if 0 < _logged_step(line) <= step]
    if len(kept) < len(lines):
        write_text(path, "".join(kept))


def _logged_step(line: str) -> int:
    """The step of a line of the log, 0 for one that a crash has torn."""
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else 0
    except (ValueError, KeyError, TypeError):
        return 0


@contextmanager
def _naming_dead_workers() -> Iterator[None]:
    """Say what to do where torch only says that a process is gone, in the midst of any line."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise AnyresError(
            f"a process that makes samples died, perhaps for want of memory ({error}); the same "
            "command goes on from the last checkpoint, with workers=0 in one process"
        ) from error


def _save(trainer: Trainer, out: Path) -> None:
    checkpoint.save(out, trainer.state())
    weights.save(trainer.average.model, out / "model.safetensors")
