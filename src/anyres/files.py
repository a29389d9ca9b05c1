"""Files that are whole or not there: atomic writes, append-only records, checksums, the cache."""

import contextlib
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from anyres.errors import InputError, OutputError, RecordError

if sys.platform != "win32":
    import fcntl

_TEMPORARY = ".anyres-"

# Each line is {"sha256":"<16 hex digits of the record's bytes>","record":{...}}
_HEAD, _MIDDLE, _END = b'{"sha256":"', b'","record":', b"}\n"
_DIGITS = 16
_RECORD_AT = len(_HEAD) + _DIGITS + len(_MIDDLE)


@overload
@contextmanager
def atomic_write(path: Path | str, mode: Literal["wb"] = "wb") -> Iterator[BinaryIO]: ...
@overload
@contextmanager
def atomic_write(path: Path | str, mode: Literal["w"]) -> Iterator[TextIO]: ...
@contextmanager
def atomic_write(path: Path | str, mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes its place only when all of it is written.

    What is written goes to a temporary file ``.anyres-*.tmp`` in the same folder, which at the end
    of the ``with`` block is brought to the disk and renamed. On any error, ``KeyboardInterrupt``
    included, it is removed, and a former file stays as it was. A link stays one: the file that it
    points to is replaced. A former file's permissions are kept. What is no file, such as
    ``/dev/null``, is written to directly.

    Args:
        path: the file. Its folder must exist.
        mode: ``"wb"`` for bytes, ``"w"`` for text (UTF-8, line ends as they are).

    Raises:
        OutputError: the folder is missing, closed or full, or the path is a folder.
    """
    with _output_errors(path):
        former = _status(path)
        if former is not None and stat.S_ISDIR(former.st_mode):
            raise OutputError(f"{path} is a folder; give the name of a file in it")
        if former is not None and not stat.S_ISREG(former.st_mode):
            with _open(path, mode) as file:
                yield file
            return
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise OutputError(
                f"{path} cannot be written: there is no folder {target.parent}; make it first"
            )
        if former is not None and not os.access(target, os.W_OK):
            raise OutputError(f"{path} cannot be written: the file is write-protected")
        temporary = target.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}.tmp")
        try:
            with _open(temporary, mode.replace("w", "x")) as file:
                yield file
                if not file.closed:
                    file.flush()
                    os.fsync(file.fileno())
            if former is not None:
                temporary.chmod(stat.S_IMODE(former.st_mode))
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a whole file atomically; errors as in ``atomic_write``."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path | str, content: str) -> None:
    """Write a whole file of UTF-8 atomically; errors as in ``atomic_write``."""
    write_bytes(path, content.encode())


def write_json(path: Path | str, content: Any) -> None:
    """Write indented JSON with a final newline atomically.

    Raises:
        InputError: the content is not JSON, or holds NaN or infinite numbers.
        OutputError: as in ``atomic_write``.
    """
    write_text(path, _to_json(content, indent=2) + "\n")


class Records:
    """An append-only file of JSON objects that survives a crash at any moment.

    One object a line, with a checksum of it: ``{"sha256":"<16 digits>","record":{...}}``. When
    ``append`` returns, the record is on the disk. A crash while appending can leave a torn last
    line, without line end; ``read`` ignores it and the next ``append`` removes it. Any other damage
    is an error. Appending from several processes is safe where the file system has locks.

    Args:
        path: the file; it comes into being with the first record.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; all of it is on the disk when this returns, or none of it.

        Raises:
            InputError: the record is not JSON, or holds NaN or infinite numbers.
            OutputError: the file cannot be written.
            RecordError: the file is no record file. It is left as it was.
        """
        content = _to_json(dict(record)).encode()
        line = _HEAD + _checksum(content) + _MIDDLE + content + _END
        with _output_errors(self.path):
            if not self.path.parent.is_dir():
                raise OutputError(
                    f"{self.path} cannot be written: there is no folder {self.path.parent}"
                )
            new = not self.path.exists()
            with self.path.open("a+b", buffering=0) as file:
                _lock(file)
                end = file.seek(0, os.SEEK_END)
                size = self._whole_lines(file, end)
                try:
                    if size < end:
                        file.truncate(size)
                    rest = memoryview(line)
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(size)
                    raise
            if new:
                _sync_folder(self.path.parent)

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the records, oldest first; none if there is no file.

        Raises:
            RecordError: the file is damaged, no record file, or cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        self._check_torn(line)
                        return
                    yield self._record(line, number)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RecordError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        if not _is_whole(line):
            raise RecordError(
                f"{self.path}, line {number}: the record is damaged, its checksum does not fit; "
                "take the file from a backup, remove that line, or start a new file"
            )
        record: dict[str, Any] = json.loads(line[_RECORD_AT : -len(_END)])
        return record

    def _check_torn(self, tail: bytes) -> None:
        """Make sure that an unfinished last line is the beginning of a record and no more.

        Some file systems fill what a crash left unwritten with zeros.
        """
        written = tail.rstrip(b"\0")
        if not _HEAD.startswith(written[: len(_HEAD)]):
            raise RecordError(f"{self.path} is no file of records, or its last line is damaged")
        if _is_whole(written[:-1] + b"\n"):
            raise RecordError(
                f"{self.path}: the line end of its last line is damaged; put it right, remove that "
                "line, or start a new file"
            )

    def _whole_lines(self, file: IO[bytes], end: int) -> int:
        """The size in bytes of all lines that are finished, in a file of ``end`` bytes."""
        file.seek(0)
        self._check_torn(file.read(len(_HEAD)))
        start, tail = end, b""
        while start > 0 and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        finished = tail.rfind(b"\n") + 1
        self._check_torn(tail[finished:])
        return start + finished


def sha256_file(path: Path | str) -> str:
    """The SHA-256 of a file's content as 64 hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def cache_folder() -> Path:
    """Where anyres keeps what it can make again. The folder need not exist yet.

    ``$ANYRES_CACHE`` if that is set; else ``anyres`` in ``$XDG_CACHE_HOME`` (ignored where it is
    no absolute path, as its specification says) or in ``~/.cache``.

    Raises:
        InputError: the home folder is needed and unknown.
    """
    try:
        if own := os.environ.get("ANYRES_CACHE"):
            return Path(own).expanduser()
        shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "anyres"
    except RuntimeError as error:
        raise InputError(f"there is no cache folder ({error}): set ANYRES_CACHE") from error


def _to_json(content: Any, indent: int | None = None) -> str:
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(content, indent=indent, separators=separators, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"this cannot be written as JSON: {error}") from error


def _is_whole(line: bytes) -> bool:
    content = line[_RECORD_AT : -len(_END)]
    return line == _HEAD + _checksum(content) + _MIDDLE + content + _END


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:_DIGITS].encode()


def _open(path: Path | str, mode: str) -> IO[Any]:
    if "b" in mode:
        return Path(path).open(mode)
    return Path(path).open(mode, encoding="utf-8", newline="")


def _status(path: Path | str) -> os.stat_result | None:
    """What is at a path, links followed; None for nothing."""
    try:
        return Path(path).stat()
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _output_errors(path: Path | str) -> Iterator[None]:
    """Turn what the system says about a path that cannot be written into an OutputError.

    What comes from the caller's own ``with`` block passes if it names another file, or if it is no
    answer of the system at all (Pillow's errors are OSErrors, too).
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        name = None if error.filename is None else Path(str(error.filename))
        ours = name is None or name in (Path(path), Path(os.path.realpath(path)))
        if error.errno is None or not (ours or (name is not None and _TEMPORARY in name.name)):
            raise
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _lock(file: IO[bytes]) -> None:
    """Wait until no other process appends, where the file system can tell. Closing unlocks."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
