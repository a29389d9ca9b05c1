"""What a run will cost, found out before it begins."""

import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from anyres.errors import OutputError
from anyres.train import checkpoint
from anyres.train.objectives import Task
from anyres.train.trainer import Trainer


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        rounds: (crop side, pictures a process, seconds a step), by turns.
        seconds: of all steps that are left, without validation.
        checkpoint_seconds: to write one.
        memory: bytes at most, of this process, or of its GPU.
        disk: bytes that the run's folder will take, one unfinished write included.
        free: bytes that are free there.
    """

    rounds: tuple[tuple[int, int, float], ...]
    seconds: float
    checkpoint_seconds: float
    memory: int
    disk: int
    free: int


def try_out(trainer: Trainer, task: Task, out: Path) -> Estimate:
    """Take a step of every kind and write a checkpoint beside the run's folder.

    The trainer has moved on afterwards, and is of no more use.

    Args:
        trainer: of the run.
        task: of the run.
        out: folder of the run; need not exist.

    Raises:
        OutputError: there is no room for the run.
        AnyresError: as in training.
    """
    config = trainer.config
    kinds = dict.fromkeys(config.rounds)
    feed, begun, left = task.batches(trainer.step), trainer.step, config.steps - trainer.step
    seconds: dict[tuple[int, int], float] = {}
    for number in range(len(config.rounds)):
        kind = config.rounds[(begun + number) % len(config.rounds)]
        batches = list(islice(feed, config.accumulate))
        if kind in seconds:
            continue
        trainer.train_step(batches)  # the first of a size is slower
        seconds[kind] = _timed(trainer, batches)
    turns = [(*kind, seconds[kind]) for kind in kinds]
    mean = sum(seconds[kind] for kind in config.rounds) / len(config.rounds)
    with tempfile.TemporaryDirectory(dir=_existing(out), prefix=".anyres-") as name:
        start = time.perf_counter()
        checkpoint.save(Path(name), trainer.state())
        writing = time.perf_counter() - start
        trainer.write_weights(Path(name) / "model.safetensors")
        large, small = (
            (Path(name) / n).stat().st_size for n in (checkpoint.NAME, "model.safetensors")
        )
    disk = (config.keep + 1) * large + 3 * small
    check_room(out, disk)
    total = mean * left + writing * left / config.checkpoint_every
    free = shutil.disk_usage(_existing(out)).free
    return Estimate(tuple(turns), total, writing, _peak(trainer.group.device), disk, free)


def check_start(trainer: Trainer, out: Path) -> None:
    """Make sure that the next checkpoint has room beside the one before it.

    Raises:
        OutputError: it has not.
    """
    sizes = [t.numel() * t.element_size() for t in trainer.model.state_dict().values()]
    moments = [2 * p.numel() * p.element_size() for p in trainer.trained]
    # Weights and their average, moments, and the weights once more for use.
    check_room(out, 3 * sum(sizes) + sum(moments))


def check_room(out: Path, needed: int) -> None:
    """Make sure that so many bytes are free.

    Raises:
        OutputError: they are not.
    """
    free = shutil.disk_usage(_existing(out)).free
    if free < needed:
        raise OutputError(
            f"{out}: {free / 1e6:.0f} MB are free there and the run needs {needed / 1e6:.0f} MB; "
            "make room, choose another folder, or keep fewer checkpoints (keep)"
        )


def _timed(trainer: Trainer, batches: list[object]) -> float:
    start = time.perf_counter()
    trainer.train_step(batches)
    return time.perf_counter() - start


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


def _peak(device: torch.device) -> int:
    """Bytes that were in use at most."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
