"""What a run leaves for people to read: the log, and the batch that broke a step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from anyres.data.images import write_png
from anyres.errors import MissingExtraError, OutputError
from anyres.files import write_bytes, write_text
from anyres.predict.draw import overlay

LOG = "log.jsonl"


class Log:
    """``log.jsonl``, one line a step, and the same for TensorBoard if that is wanted."""

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        """Go on after a step: what a run that was killed wrote after its last checkpoint goes.

        Raises:
            OutputError: it cannot be written.
            MissingExtraError: TensorBoard is not installed.
        """
        self._path = folder / LOG
        self._board: Any = _board(folder, step) if tensorboard else None
        _cut(self._path, step)
        # Unbuffered: what is written has left the process, and an error comes where it happens.
        self._file = self._path.open("ab", buffering=0)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Add a line, and bring it to the system.

        Raises:
            OutputError: the disk is full.
        """
        line = (json.dumps({"step": step, **record}) + "\n").encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError("a part of the line was left over")
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written: {error.strerror or error}; make room, and the "
                "same command goes on from the last checkpoint"
            ) from error
        if self._board is not None:
            for name, value in _flat(record):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


@contextmanager
def open_log(folder: Path, step: int, tensorboard: bool) -> Iterator[Log]:
    """A `Log` that is closed at the end."""
    log = Log(folder, step, tensorboard)
    try:
        yield log
    finally:
        log.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "tensorboard = true needs TensorBoard; install it with: "
            'pip install "anyres[tensorboard]"; log.jsonl is written in any case'
        ) from error
    # What a killed run wrote after its last checkpoint is hidden from there on.
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        elif isinstance(value, int | float):
            yield before + name, value


def _cut(path: Path, step: int) -> None:
    """Drop the lines after a step: those steps come again."""
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


def keep_broken(folder: Path, name: str, batches: Sequence[Any]) -> list[Path]:
    """Save what a step broke on.

    Args:
        folder: of the run.
        name: of the files, without an ending.
        batches: of one kind and size; all that they hold as tensors is saved.

    Returns:
        A ``.safetensors`` file with the tensors of all batches, one after the other; and where they
        have pictures and masks a PNG to look at.

    Raises:
        OutputError: they cannot be written.
    """
    names = [key for key, value in vars(batches[0]).items() if isinstance(value, Tensor)]
    tensors = {key: torch.cat([getattr(b, key).cpu() for b in batches]) for key in names}
    paths = [folder / f"{name}.safetensors"]
    write_bytes(paths[0], save(tensors))
    if {"images", "masks"} <= set(tensors):
        paths.append(folder / f"{name}.png")
        images, masks = tensors["images"].numpy(), tensors["masks"].numpy().astype(bool)
        rows = [
            np.concatenate([image, *(overlay(image, mask) for mask in own)], 1)
            for image, own in zip(images, masks, strict=True)
        ]
        write_png(paths[1], np.concatenate(rows))
    return paths
