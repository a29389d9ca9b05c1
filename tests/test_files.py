"""Files are whole or not there, whatever happens while they are written."""

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyres.errors import AnyresError, InputError, OutputError, RecordError
from anyres.files import (
    Records,
    atomic_write,
    cache_folder,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)

posix = pytest.mark.skipif(sys.platform == "win32", reason="permissions, links and devices")
SOURCE = Path(__file__).resolve().parents[1] / "src"


class TroubleError(Exception):
    """Not an error of anyres."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Atomic writes -----------------------------------------------------------------------------


def test_a_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b" two")
    assert path.read_bytes() == b"one two"
    with atomic_write(str(path)) as file:
        file.write(b"three")
        assert path.read_bytes() == b"one two"
    assert path.read_bytes() == b"three"
    assert names(tmp_path) == ["a.bin"]


def test_text_is_utf8_as_it_is(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write("größer\nλ\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer\nλ\r\n".encode()


def test_whole_contents(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\0\1")
    write_text(tmp_path / "b", "λ\n")
    write_json(tmp_path / "c", {"x": [1, 2.5]})
    assert (tmp_path / "a").read_bytes() == b"\0\1"
    assert (tmp_path / "b").read_bytes() == "λ\n".encode()
    assert (tmp_path / "c").read_text() == '{\n  "x": [\n    1,\n    2.5\n  ]\n}\n'
    for content in ({"x": float("nan")}, {"x": {1, 2}}):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            write_json(tmp_path / "c", content)
    assert json.loads((tmp_path / "c").read_text()) == {"x": [1, 2.5]}
    assert names(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [TroubleError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("existing", [False, True])
def test_an_error_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "a"
    if existing:
        path.write_bytes(b"former")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"x" * 100_000)
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == (["a"] if existing else [])
    assert not existing or path.read_bytes() == b"former"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_what_the_system_refuses_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"former")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number), *map(str, arguments[:1] * (step == "replace")))

    monkeypatch.setattr(*((os, step) if step == "fsync" else (Path, step)), refuse)
    with pytest.raises(OutputError) as caught:
        write_bytes(path, b"new")
    assert str(caught.value) == f"{path} cannot be written: {os.strerror(number)}"
    assert isinstance(caught.value, AnyresError)
    assert caught.value.exit_code == 1
    assert names(tmp_path) == ["a"]
    assert path.read_bytes() == b"former"


def test_a_full_disk_in_the_middle(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_write(tmp_path / "a") as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="a cannot be written: No space"):
        fill()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "elsewhere/picture.png"),
        OSError("cannot identify image file"),
        OutputError("another file cannot be written"),
    ],
)
def test_errors_about_other_things_pass(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(OSError) as caught, atomic_write(tmp_path / "a"):  # noqa: PT011
        raise error
    assert caught.value is error
    assert names(tmp_path) == []


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, reason in {
        tmp_path / "none" / "a": f"there is no folder {tmp_path / 'none'}",
        tmp_path / "file" / "a": "Not a directory",
        tmp_path / ("a" * 300): "File name too long",
    }.items():
        with pytest.raises(OutputError) as caught:
            write_bytes(path, b"")
        assert str(caught.value).startswith(f"{path} cannot be written: {reason}")
    with pytest.raises(OutputError, match="is a folder; give the name of a file in it"):
        write_bytes(tmp_path, b"")
    assert names(tmp_path) == ["file"]


def test_the_longest_names_are_possible(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("a" * 255), b"x")
    assert names(tmp_path) == ["a" * 255]


def test_the_callers_block_may_close_the_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as file:
        file.write(b"x")
        file.close()
    assert (tmp_path / "a").read_bytes() == b"x"


@posix
def test_permissions_are_those_of_any_new_file_or_of_the_former(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "new", b"")
        (tmp_path / "former").touch()
        (tmp_path / "former").chmod(0o764)
        write_bytes(tmp_path / "former", b"x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "former")]
    assert modes == [0o640, 0o764]


@posix
def test_a_write_protected_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"former")
    # The tests may run as root, for whom nothing is protected.
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(OutputError, match="the file is write-protected"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"former"


@posix
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(Path("folder") / "target")
    for content in (b"1", b"2"):
        write_bytes(link, content)
        assert link.is_symlink()
        assert (tmp_path / "folder" / "target").read_bytes() == content
    assert names(tmp_path / "folder") == ["target"]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OutputError, match="loop cannot be written"):
        write_bytes(loop, b"")


@posix
def test_a_device_is_not_replaced() -> None:
    write_bytes("/dev/null", b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
def test_a_full_device() -> None:
    with pytest.raises(OutputError, match="/dev/full cannot be written: No space left"):
        write_bytes("/dev/full", b"x")


def run_and_kill(code: str, *arguments: Path) -> None:
    """Run code that prints a line when it is where it shall be killed."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)


@posix
def test_a_killed_process_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"former")
    run_and_kill(
        "import sys, time; from anyres.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'x' * 100000); print('now', flush=True); time.sleep(60)\n",
        path,
    )
    assert path.read_bytes() == b"former"
    (left,) = set(names(tmp_path)) - {"a"}
    assert left.startswith(".anyres-")


# Records -----------------------------------------------------------------------------------

SOME: list[dict[str, Any]] = [
    {"path": "a.png", "box": [1, 3.5], "error": None},
    {},
    {"name": "λ\n\r\u2028 \ud800", "nested": {"sha256": "record", "end": '"}\n'}},
]
JSON = st.dictionaries(
    st.text(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)  # fmt: skip


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path / "run.jsonl")
    for record in SOME:
        records.append(record)
    return records


def damaged(records: Records, content: bytes) -> Records:
    other = Records(records.path.with_name("damaged.jsonl"))
    other.path.write_bytes(content)
    return other


def prefixes(records: Records) -> Iterator[tuple[bytes, int]]:
    """The file cut off at every byte, and how many records are whole then."""
    content = records.path.read_bytes()
    for size in range(len(content) + 1):
        yield content[:size], content[:size].count(b"\n")


def test_no_file_has_no_records(tmp_path: Path) -> None:
    records = Records(str(tmp_path / "none.jsonl"))
    assert list(records.read()) == []
    assert names(tmp_path) == []


def test_records_come_back_in_their_order(records: Records) -> None:
    assert list(records.read()) == SOME
    assert list(Records(records.path).read()) == SOME


def test_each_line_is_json_with_a_checksum(records: Records) -> None:
    lines = records.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == len(SOME)
    for line, record in zip(lines, SOME, strict=True):
        content = json.dumps(record, separators=(",", ":")).encode()
        digest = hashlib.sha256(content).hexdigest()[:16].encode()
        assert line == b'{"sha256":"' + digest + b'","record":' + content + b"}\n"


@settings(max_examples=40)
@given(st.lists(JSON, max_size=3))
def test_any_json_comes_back(content: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records = Records(Path(folder) / "a.jsonl")
        for record in content:
            records.append(record)
        assert list(records.read()) == content


def test_a_file_cut_off_anywhere_gives_the_records_before(records: Records) -> None:
    for content, whole in prefixes(records):
        assert list(damaged(records, content).read()) == SOME[:whole]


@pytest.mark.parametrize("zeros", [0, 1, 5000, 200_000])
def test_appending_to_a_torn_file_repairs_it(records: Records, zeros: int) -> None:
    lines = records.path.read_bytes().splitlines(keepends=True)
    for content, whole in list(prefixes(records))[:: 19 if zeros else 1]:
        torn = damaged(records, content + b"\0" * zeros)
        assert list(torn.read()) == SOME[:whole]
        torn.append(SOME[0])
        assert torn.path.read_bytes() == b"".join([*lines[:whole], lines[0]])


def test_any_other_byte_is_noticed_wherever_it_is(records: Records) -> None:
    content = records.path.read_bytes()
    for at, byte in enumerate(content):
        line = content[:at].count(b"\n") + 1
        for other in {byte ^ 1, ord("\n")} - {byte}:
            broken = damaged(records, content[:at] + bytes([other]) + content[at + 1 :])
            found = []
            with pytest.raises(RecordError, match="damaged") as caught:
                found.extend(broken.read())
            assert found == SOME[: line - 1]
            if at < len(content) - 1:
                assert f"{broken.path}, line {line}:" in str(caught.value)
            else:
                assert str(broken.path) in str(caught.value)


def test_lost_and_inserted_bytes_are_noticed(records: Records) -> None:
    content = records.path.read_bytes()
    for at in range(0, len(content) - 1, 3):
        for changed in (content[:at] + content[at + 1 :], content[:at] + b"7" + content[at:]):
            with pytest.raises(RecordError, match="damaged"):
                list(damaged(records, changed).read())


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    for content in (b"a,b\n1,2\n", b"a,b", b"\x89PNG\r\n\x1a\n\0\0", b"\n", b'{"a": 1}\n' * 9999):
        records = Records(tmp_path / "other")
        records.path.write_bytes(content)
        with pytest.raises(RecordError, match="damaged"):
            list(records.read())
        with pytest.raises(RecordError, match="is no file of records"):
            records.append({})
        assert records.path.read_bytes() == content


def test_what_is_no_json_is_refused_before_anything_is_written(records: Records) -> None:
    before = records.path.read_bytes()
    for record in ({"x": float("inf")}, {"x": Path()}, {(1, 2): 3}):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            records.append(record)
    assert records.path.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_record_that_did_not_reach_the_disk_is_taken_back(
    records: Records, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def refuse(handle: int) -> None:
        raise error

    before = records.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected):
            records.append({"x": 1})
    assert records.path.read_bytes() == before
    records.append({"x": 2})
    assert list(records.read()) == [*SOME, {"x": 2}]


def test_records_need_a_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"there is no folder {tmp_path / 'none'}"):
        Records(tmp_path / "none" / "a.jsonl").append({})
    with pytest.raises(OutputError, match="Is a directory"):
        Records(tmp_path).append({})
    with pytest.raises(RecordError, match="cannot be read"):
        list(Records(tmp_path).read())


@posix
def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    records = Records(tmp_path / "a.jsonl")
    run_and_kill(
        "import sys, itertools; from anyres.files import Records\n"
        "for i in itertools.count():\n"
        "    Records(sys.argv[1]).append({'i': i, 'x': 'x' * 50000})\n"
        "    if i == 9: print('now', flush=True)\n",
        records.path,
    )
    found = [record["i"] for record in records.read()]
    assert len(found) >= 10
    assert found == list(range(len(found)))
    records.append({"i": -1})
    assert [record["i"] for record in records.read()] == [*found, -1]


@posix
def test_processes_may_append_together(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    code = (
        "import sys; from anyres.files import Records\n"
        "path, who = sys.argv[1:]\n"
        "for i in range(40): Records(path).append({'who': who, 'i': i, 'x': 'x' * i * 99})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), who], env=environment)
        for who in "ab"
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = list(Records(path).read())
    for who in "ab":
        assert [record["i"] for record in found if record["who"] == who] == list(range(40))


@posix
def test_appending_waits_for_another_process(records: Records) -> None:
    fcntl = pytest.importorskip("fcntl")
    before = records.path.read_bytes()
    waiting = threading.Thread(target=records.append, args=({"x": 1},), daemon=True)
    with records.path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        assert records.path.read_bytes() == before
    waiting.join(60)
    assert list(records.read()) == [*SOME, {"x": 1}]


# Checksums and the cache -------------------------------------------------------------------


def test_checksum(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=f"{path} cannot be read: "):
            sha256_file(path)


@posix
@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "/home/me/.cache/anyres"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/anyres"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/anyres"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/anyres"),
        ({"XDG_CACHE_HOME": "/c", "ANYRES_CACHE": "/d"}, "/d"),
        ({"ANYRES_CACHE": "~/d"}, "/home/me/d"),
        ({"ANYRES_CACHE": ""}, "/home/me/.cache/anyres"),
    ],
)
def test_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str
) -> None:
    for name in ("XDG_CACHE_HOME", "ANYRES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_no_home_no_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ANYRES_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(InputError, match="set ANYRES_CACHE"):
        cache_folder()
