"""How the repository is laid out. Which room may import which is `lint-imports`' business."""

import ast
import hashlib
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "anyres"
GOLDEN = ROOT / "tests" / "data" / "golden"
LONGEST = 400


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_source_file_is_too_long() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCE.rglob("*.py")
    }
    assert lengths
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_every_room_is_on_the_ladder() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    ladder = {room.strip(" ()") for rung in layers for room in rung.split("|")}
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    assert rooms - ladder == set()


@pytest.mark.parametrize(
    "init", sorted(SOURCE.glob("*/**/__init__.py")), ids=lambda path: path.parent.name
)
def test_rooms_only_hand_names_on(init: Path) -> None:
    docstring, *rest = ast.parse(init.read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    for statement in rest:
        hands_on = isinstance(statement, ast.Import | ast.ImportFrom)
        lists = isinstance(statement, ast.Assign) and ast.unparse(statement.targets) == "__all__"
        assert hands_on or lists, f"{relative(init)}, line {statement.lineno}"


@pytest.mark.parametrize("facts", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_numbers_are_those_recorded(facts: Path) -> None:
    recorded = json.loads(facts.read_text(encoding="utf-8"))
    tensors = facts.with_suffix(".safetensors").read_bytes()
    assert hashlib.sha256(tensors).hexdigest() == recorded["sha256"]


def test_golden_copies_stay_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 3_000_000
