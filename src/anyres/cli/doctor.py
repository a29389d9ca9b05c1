"""``anyres doctor``: is the installation in order, and what will run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anyres.cli import common

if TYPE_CHECKING:
    from anyres.doctor import Finding

_COLOURS = {"ok": "green", "note": "yellow", "broken": "bold red"}


def doctor(
    json: Annotated[
        Path | None,
        typer.Option(metavar="PATH|-", help="The findings for programs; '-' is stdout."),
    ] = None,
) -> None:
    """Check the installation: versions, devices, precision, kernels, the embedded model.

    Ends with exit code 1 if something is broken.
    """
    from anyres.doctor import as_tree, examine, is_broken

    common.check_outputs({"--json": common.json_file(json)}, {})
    findings = examine()
    if json is None:
        _print(findings)
    else:
        common.write_json(as_tree(findings), json)
    if is_broken(findings):
        raise typer.Exit(1)


def _print(findings: "list[Finding]") -> None:
    from rich.console import Console
    from rich.text import Text

    # Lines are never broken: checksums and paths are there to be copied.
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.name) for finding in findings) + 2
    for section in dict.fromkeys(finding.section for finding in findings):
        console.print(f"[bold]{section}[/bold]")
        for finding in findings:
            if finding.section == section:
                line = Text("  ")
                line.append(finding.name.ljust(width), style=_COLOURS[finding.status])
                line.append(finding.value)
                if finding.hint:
                    line.append(f"  ({finding.hint})", style="dim")
                console.print(line)
