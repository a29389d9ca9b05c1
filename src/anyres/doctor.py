"""Look at an installation: what is there, what will run and why, and what is broken."""

import os
import platform
import re
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, Literal

from anyres.errors import AnyresError

Status = Literal["ok", "note", "broken"]

_NOT_FOR_USERS = ("dev", "oracle")


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``hint`` says what to do or why it is so."""

    section: str
    name: str
    value: str
    status: Status = "ok"
    hint: str = ""


def examine() -> list[Finding]:
    """Examine the installation; never raises for what it finds."""
    findings: list[Finding] = []
    parts = (_software, _processor, _devices, _computing, _extras, _embedded_model)
    for part in parts:
        try:
            findings += part()
        except Exception as error:  # a broken installation can fail anywhere: that is the finding
            name = part.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "examination", f"{error!r}", "broken"))
    return findings


def _software() -> list[Finding]:
    from anyres import __version__

    python = f"{platform.python_version()} ({sys.executable})"
    found = [
        Finding("software", "anyres", __version__),
        Finding("software", "python", python),
        Finding("software", "system", f"{platform.system()} {platform.machine()}"),
    ]
    needed = ("torch", "numpy", "pillow", "safetensors")
    return found + [_version("software", name, "broken", f"pip install {name}") for name in needed]


def _version(section: str, package: str, absent: Status, hint: str) -> Finding:
    try:
        return Finding(section, package, metadata.version(package))
    except metadata.PackageNotFoundError:
        return Finding(section, package, "not installed", absent, hint)


def _processor() -> list[Finding]:
    import torch

    from anyres.ops.precision import cpu_features

    return [
        Finding("processor", "cores", str(os.cpu_count())),
        Finding("processor", "torch threads", str(torch.get_num_threads())),
        Finding("processor", "vectors", torch.backends.cpu.get_cpu_capability()),
        Finding("processor", "bfloat16", ", ".join(cpu_features()) or "not in hardware"),
    ]


def _devices() -> list[Finding]:
    import torch

    found = [Finding("devices", "cpu", "available")]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            value = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
            found.append(Finding("devices", f"cuda:{index}", value))
    else:
        why = "this torch is built without CUDA" if torch.version.cuda is None else "none found"
        found.append(Finding("devices", "cuda", "none", "note", why))
    if torch.backends.mps.is_available():
        found.append(Finding("devices", "mps", "available"))
    return found


def _computing() -> list[Finding]:
    from anyres.ops import block, scan
    from anyres.ops.precision import cpu_features, resolve_dtype
    from anyres.predict.load import resolve_device

    device = resolve_device("auto")
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    if device.type != "cpu":
        why = "a GPU multiplies it fastest"
    elif dtype == "bfloat16":
        why = f"the processor multiplies it in hardware: {', '.join(cpu_features())}"
    else:
        why = "the processor has neither AVX512-BF16 nor AMX"
    return [
        Finding("computing", "device", str(device)),
        Finding("computing", "dtype", dtype, hint=f"{why}; SAM models run in float32"),
        Finding("computing", "attention", "torch, products in blocks; on CUDA fused in windows"),
        Finding("computing", "cycle-scan", scan.kernel_name()),
        Finding("computing", "window blocks", block.kernel_name()),
    ]


def _extras() -> list[Finding]:
    """Optional packages, as the package's own metadata lists them."""
    try:
        requires = metadata.requires("anyres") or []
    except metadata.PackageNotFoundError:
        value = "unknown: anyres is run from its source folder, not installed"
        return [Finding("extras", "all", value, "note", "pip install -e .")]
    found = []
    for line in requires:
        named = re.match(r"([\w.-]+).*;.*extra\s*==\s*['\"]([\w-]+)['\"]", line)
        if named and named[2] not in _NOT_FOR_USERS:
            version = _version("extras", named[1], "note", f"pip install 'anyres[{named[2]}]'")
            found.append(replace(version, name=f"{named[2]}: {named[1]}"))
    return found


def _embedded_model() -> list[Finding]:
    from anyres.predict.assets import embedded_weights

    section = "embedded model"
    try:
        with embedded_weights() as path:
            from anyres.files import sha256_file
            from anyres.models.weights import load

            found = [
                Finding(section, "file", f"{path}, {path.stat().st_size / 1e6:.1f} MB"),
                Finding(section, "sha256", sha256_file(path), hint="as recorded"),
            ]
            model = load(path)
    except AnyresError as error:
        return [Finding(section, "weights", str(error), "broken")]
    count = sum(parameter.numel() for parameter in model.parameters())
    found.append(Finding(section, "parameters", f"{count / 1e6:.2f} M"))
    found.append(Finding(section, "configuration", model.config.to_json()))
    return found


def is_broken(findings: list[Finding]) -> bool:
    """Whether anything found keeps anyres from working."""
    return any(finding.status == "broken" for finding in findings)


def as_tree(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON: section -> name -> value, status and hint."""
    tree: dict[str, Any] = {"broken": is_broken(findings)}
    for finding in findings:
        entry = {"value": finding.value, "status": finding.status, "hint": finding.hint}
        tree.setdefault(finding.section, {})[finding.name] = entry
    return tree
