"""What a run leaves behind: the JSON with every figure and result, and the CSV."""

import csv
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from anyres import __version__
from anyres.data.datasets import ObjectRef
from anyres.errors import InputError
from anyres.evaluate.figures import RUN_LENGTHS
from anyres.evaluate.journal import Result

FORMAT = 1
_PACKAGES = ("torch", "numpy", "opencv-python-headless")


def rows(refs: Sequence[ObjectRef], results: Mapping[str, Result]) -> list[Result]:
    """The objects with what was found of them, in the order of the data set."""
    return [
        {
            "key": ref.key,
            "set": ref.set,
            "image": ref.image.name,
            "number": ref.number,
            "area": ref.area,
            "size_hw": list(ref.size_hw),
            "category": ref.category,
            **{name: value for name, value in results[ref.key].items() if name not in RUN_LENGTHS},
        }
        for ref in refs
        if ref.key in results
    ]


def surroundings(command: str, workers: int, threads: int) -> dict[str, Any]:
    """When, how and where a run was made."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"anyres": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": cores(),
            "gpu": _gpu(),
            "workers": workers,
            "threads": threads,
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def to_json(report: Mapping[str, Any]) -> str:
    """The text of a report: one line a result, the rest indented."""
    head = {name: value for name, value in report.items() if name != "results"}
    results = [json.dumps(row, separators=(",", ":"), allow_nan=False) for row in report["results"]]
    text = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    return text + ',\n  "results": [\n    ' + ",\n    ".join(results) + "\n  ]\n}\n"


def read(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        InputError: the file cannot be read, or is no report of this version.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(report, dict) or "results" not in report or "overall" not in report:
        raise InputError(f"{path} is no report of `anyres evaluate`")
    if report.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {report.get('format')}, this version of anyres reads {FORMAT}: "
            "evaluate again"
        )
    return report


def to_csv(report: Mapping[str, Any]) -> str:
    """The results as a table, one row an object; lists of IoUs become columns ``iou1``, ..."""
    table = [_flat(row) for row in report["results"]]
    columns = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if name == "size_hw":
            flat |= {"height": value[0], "width": value[1]}
        elif name == "ious":
            flat |= {f"iou{after}": iou for after, iou in enumerate(value, start=1)}
        elif name == "prompt_seconds":
            flat[name] = round(sum(value), 6)
        elif not isinstance(value, list):
            flat[name] = value
    return flat
