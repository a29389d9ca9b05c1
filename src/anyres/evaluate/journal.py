"""What a run has found so far, on the disk: it survives a kill at any moment."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyres.errors import InputError, OutputError
from anyres.files import Records

if sys.platform != "win32":
    import fcntl

Result = dict[str, Any]


class Journal:
    """The results of a run, one record an object, after a first one with the run's settings.

    Attributes:
        done: key of the object -> its result, of this session and earlier ones.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Take up the run in a file, or begin one.

        Args:
            path: the file; None keeps all in memory.
            settings: what decides the results, JSON; an earlier session's must be the same.

        Raises:
            InputError: the file is of a run with other settings.
            RecordError: the file is damaged.
            OutputError: the file cannot be written.
        """
        self.done: dict[str, Result] = {}
        self._records = None if path is None else Records(path)
        if self._records is None:
            return
        records = self._records.read()
        first = next(records, None)
        if first is None:
            self._records.append({"settings": settings})
            return
        _compare(self._records.path, first.get("settings"), settings)
        for record in records:
            if record["key"] in self.done:
                raise InputError(
                    f"{path} holds two results for {record['key']}; remove it to start anew"
                )
            self.done[record["key"]] = record

    def add(self, result: Result) -> None:
        """Keep a result; it is on the disk when this returns.

        Raises:
            OutputError: the file cannot be written.
        """
        if self._records is not None:
            self._records.append(result)
        self.done[result["key"]] = result

    def remove(self) -> None:
        """Remove the file: the report has it all."""
        if self._records is not None:
            self._records.path.unlink(missing_ok=True)


def _compare(path: Path, former: Any, settings: Mapping[str, Any]) -> None:
    """Find out whether a file is of a run with these settings."""
    if not isinstance(former, dict):
        raise InputError(f"{path} is no file of an evaluation; give --json another name")
    before, now = _flat(former), _flat(settings)
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise InputError(
            f"{path} is of an unfinished run with other settings: {'; '.join(changed)}. Give the "
            "former settings to finish it, another --json to keep it, or remove it to start anew"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of groups by their full name, ``model.resolution``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            flat[name] = value
    return flat


@contextmanager
def sole(path: Path | None) -> Iterator[None]:
    """Hold a run's lock, so that no two processes write one report; a kill releases it.

    Args:
        path: the lock's file, removed at the end; None locks nothing.

    Raises:
        OutputError: another process has it, or the file cannot be written.
    """
    if path is None or sys.platform == "win32":
        yield
        return
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another process is at work on this report ({path} is locked): wait for it, or "
                "give another --json"
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
