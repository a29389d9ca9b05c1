"""The training loop: a run from its first step, or from its last checkpoint, to the end.

A run lives in a folder: ``checkpoint.pt`` (to go on), ``model.safetensors`` (averaged weights, what
`anyres.load` takes) and ``log.jsonl`` (one line a step); with validation ``best.safetensors`` and
``validation.png``. Started again with the same folder it goes on where it stopped.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from anyres.errors import AnyresError, InputError, OutputError, WeightsError
from anyres.train import checkpoint, preflight
from anyres.train.config import NEW, TrainConfig
from anyres.train.feeding import settled
from anyres.train.loading import Share
from anyres.train.objectives import Prepared, Task, find_task
from anyres.train.processes import Group, joined
from anyres.train.records import Log, keep_broken, open_log
from anyres.train.trainer import BrokenStepError, Trainer
from anyres.train.validation import Validation, score

Report = Callable[[int, Mapping[str, Any]], None]


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


def train(
    config: TrainConfig, data: Path, out: Path, report: Report, prepared: Prepared | None = None
) -> bool:
    """Run to the end, or until asked to stop; goes on if the folder holds a checkpoint.

    In several processes at once where ``torchrun`` started them; the first writes the files.

    Args:
        config: the settings.
        data: folder of training sets.
        out: folder of the run; made if need be.
        report: called by the first process after each step, with the steps done and what the log
            records.
        prepared: called while a teacher looks at the pictures, or the model that is started from,
            with how many it has seen of how many.

    Returns:
        Whether the run is finished.

    Raises:
        InputError: the folder holds a run of another model; the validation set is trained on.
        WeightsError: its checkpoint, or the one to start from, is damaged or does not fit.
        OutputError: the disk is full; the last checkpoint is whole.
        AnyresError: the loss is not finite (the batch is saved), or a process that makes samples
            died.
    """
    with joined(config.device) as group:
        if group.leads:
            config = settled(config, data, out, group.device, prepared)
        task, trainer = prepare(config, data, out, group, prepared)
        out.mkdir(parents=True, exist_ok=True)
        preflight.check_start(trainer, out)
        validation = None
        if config.validate_every and group.leads:
            validation = Validation(config, group.device)
            validation.check(trainer.average.model)
        opened = open_log(out, trainer.step, config.tensorboard) if group.leads else nullcontext()
        with _stoppable() as stop, _naming_dead_workers(), opened as log:
            run = _Run(trainer, task, validation, out, log, report)
            run.steps(stop)
        return trainer.step >= config.steps


def estimate(config: TrainConfig, data: Path, out: Path) -> preflight.Estimate:
    """Find out what a run will cost; nothing is left of it.

    Args:
        config: the settings.
        data: folder of training sets.
        out: folder of the run, from whose checkpoint it would go on.

    Raises:
        AnyresError: as ``train``; or there is no room for the run.
    """
    with joined(config.device) as group:
        task, trainer = prepare(config, data, out, group)
        if config.validate_every and group.leads:
            Validation(config, group.device).check(trainer.average.model)
        with _naming_dead_workers():
            return preflight.try_out(trainer, task, out)


def prepare(
    config: TrainConfig, data: Path, out: Path, group: Group, prepared: Prepared | None = None
) -> tuple[Task, Trainer]:
    """Make what a run consists of, at the step where it goes on.

    Args:
        config: the settings.
        data: folder of training sets.
        out: folder of the run; need not exist.
        group: the processes.
        prepared: as in ``train``.

    Raises:
        InputError: no data, or the folder holds a run of another model.
        WeightsError: a checkpoint is damaged or does not fit.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    task = find_task(config, data, Share(group.rank, group.size, config.accumulate), prepared)
    trainer = Trainer(config, task.objective, group)
    saved = checkpoint.load(out)
    if saved is not None:
        _resume(trainer, saved, out)
    trainer.learns_from(task.pictures)
    return task, trainer


class _Run:
    """A run at work; of several processes only the first has a log."""

    def __init__(
        self,
        trainer: Trainer,
        task: Task,
        validation: Validation | None,
        out: Path,
        log: Log | None,
        report: Report,
    ) -> None:
        self.trainer = trainer
        self.task = task
        self.validation = validation
        self.out = out
        self.log = log
        self.report = report

    def steps(self, stop: Callable[[], bool]) -> None:
        """Take steps to the end, or until asked to stop."""
        trainer, config = self.trainer, self.trainer.config
        feed = self.task.batches(trainer.step)
        while trainer.step < config.steps and not trainer.group.any(stop()):
            batches = list(islice(feed, config.accumulate))
            begin = time.perf_counter()
            record: dict[str, Any] = self._step(batches)
            record["seconds"] = time.perf_counter() - begin
            last = trainer.step == config.steps
            if self.validation and (trainer.step % config.validate_every == 0 or last):
                record["validation"] = self._validate(self.validation)
            if self.log is not None:
                # Before the checkpoint, which must never be ahead of the log.
                self.log.write(trainer.step, record)
                self.report(trainer.step, record)
            if trainer.step % config.checkpoint_every == 0 and not last:
                self._save()
        self._save()

    def _step(self, batches: list[Any]) -> dict[str, float]:
        try:
            return self.trainer.train_step(batches)
        except BrokenStepError as error:
            rank = f"-process-{self.trainer.group.rank}" if self.trainer.group.size > 1 else ""
            name = f"broken-step-{self.trainer.step}{rank}"
            try:
                paths = keep_broken(self.out, name, error.batches)
            except OutputError as other:
                raise AnyresError(f"{error}. Its batch could not be saved: {other}") from error
            look = f"; look at {paths[1]}, its pictures and masks" if len(paths) > 1 else ""
            raise AnyresError(
                f"{error}. What it was computed on is in {paths[0]} "
                f"(safetensors.torch.load_file){look}"
            ) from error

    def _validate(self, validation: Validation) -> Mapping[str, float]:
        trainer = self.trainer
        figures = validation(trainer.result(), self.out / "validation.png")
        if score(figures) > trainer.best:
            trainer.best = score(figures)
            trainer.write_weights(self.out / "best.safetensors")
        return figures

    def _save(self) -> None:
        if self.log is None:
            return
        checkpoint.save(self.out, self.trainer.state(), self.trainer.config.keep)
        self.trainer.write_weights(self.out / "model.safetensors")


def _resume(trainer: Trainer, saved: dict[str, Any], out: Path) -> None:
    try:
        before = json.loads(saved["config"])["model"]
        if before == trainer.config.model:
            trainer.load_state(saved)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"the checkpoint in {out} does not fit this version's model, or other parts of it "
            f"were trained (train, layer_decay): {reason}; start in another folder"
        ) from error
    if before != trainer.config.model:
        raise InputError(
            f"{out} holds a run of another model ({before or NEW}): choose another folder"
        )


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
