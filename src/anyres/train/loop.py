"""The training loop: a run from its first step, or from its last checkpoint, to the end.

A run lives in a folder: ``checkpoint.pt`` (to go on), ``model.safetensors`` (averaged weights, what
`anyres.load` takes) and ``log.jsonl`` (one line a step). Started again with the same folder it goes
on where it stopped.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from anyres.data.datasets import picture_checksum
from anyres.errors import AnyresError, InputError, WeightsError
from anyres.files import write_text
from anyres.train import checkpoint
from anyres.train.config import TrainConfig
from anyres.train.objectives import Prepared, find_task
from anyres.train.trainer import Trainer

Report = Callable[[int, dict[str, float]], None]


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

    Args:
        config: the settings.
        data: folder of training sets.
        out: folder of the run; made if need be.
        report: called after each step with the steps done and what the log records.
        prepared: called while a teacher looks at the pictures, with how many it has seen of how
            many.

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
    task = find_task(config, data, prepared)
    trainer = Trainer(config, task.objective)
    saved = checkpoint.load(out)
    if saved is not None:
        _resume(trainer, saved, out)
    trainer.learns_from(
        {name: map(picture_checksum, paths) for name, paths in task.pictures.items()}
    )
    log_file = out / "log.jsonl"
    _cut_log(log_file, trainer.step)
    with _stoppable() as stop, _naming_dead_workers(), log_file.open("a", encoding="utf-8") as log:
        for batch in task.batches(trainer.step):
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
    trainer.write_weights(out / "model.safetensors")
