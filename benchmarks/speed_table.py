"""Print what ``anyres benchmark --json`` wrote as the Markdown tables of docs/results.md.

``python benchmarks/speed_table.py out/benchmark.json``
"""

import json
import sys
from pathlib import Path
from typing import Any


def number(value: float | None, scale: float = 1.0, digits: int = 0) -> str:
    """A number for a cell, empty where there is none."""
    return "" if value is None else f"{value * scale:,.{digits}f}"


def cell_row(cell: dict[str, Any]) -> list[str]:
    """One model at one size."""
    first = [f"{cell['model']}", cell["dtype"], f"{cell['height']}²"]
    if cell["encoder"] is None:
        return [*first, cell["note"], *[""] * 7]
    seconds, clicks = cell["encoder"]["median"], cell["clicks"] or {}
    scan = cell["scan"]["median"] / seconds if cell["scan"] else None
    return [
        *first,
        number(seconds, 1e3),
        f"{number(cell['encoder']['least'], 1e3)} – {number(cell['encoder']['most'], 1e3)}",
        number(seconds / cell["gemm"] if cell["gemm"] else None, 1, 2),
        number(scan, 100),
        number(clicks["set_image"]["median"] if clicks else None, 1e3),
        number(clicks["click"]["median"] if clicks else None, 1e3, 1),
        number(clicks["spc"] if clicks else None, 1e3, 1),
        number(cell["peak_memory"], 1e-6),
    ]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Print the cells and the figures."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    heads = "model, dtype, size, encoder ms, range, × GEMM, scan %, set_image ms, click ms, "
    heads += "SPC ms, peak MB"
    print(table(heads.split(", "), [cell_row(cell) for cell in report["cells"]]))
    print()
    rows = [
        [f["name"], f"{f['value']:.3g}{f['unit']}", f"{f['limit']:g}{f['unit']}",
         "yes" if f["holds"] else "**no**"]
        for f in report["figures"] if f["value"] is not None
    ]  # fmt: skip
    print(table(["ratio in one run", "value", "wanted, at most", "reached"], rows))
    print()
    print(json.dumps(report["machine"]))


if __name__ == "__main__":
    main()
