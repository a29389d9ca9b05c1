"""Peak memory of one encoding, above weights and input, in a process of its own.

Run as ``python -m anyres.benchmark.memory MODEL HEIGHT WIDTH DTYPE``; prints bytes.
"""

import subprocess
import sys
from pathlib import Path

import torch

from anyres.benchmark.subjects import Subject, encode_call, make_model

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def can_measure() -> bool:
    """Whether this system tells a process's peak memory and lets it be set back."""
    return _CLEAR.exists()


def measure(subject: Subject, size_hw: tuple[int, int]) -> int | None:
    """Peak in bytes; None if the process was killed, as it is where memory runs out."""
    words = [subject.name, *map(str, size_hw), subject.dtype_name]
    command = [sys.executable, "-m", "anyres.benchmark.memory", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode < 0:
        return None
    if result.returncode:
        raise RuntimeError(f"{' '.join(words)}: {result.stderr.strip()[-500:]}")
    return int(result.stdout)


def _status(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {name}")


@torch.no_grad()
def peak(subject: Subject, size_hw: tuple[int, int]) -> int:
    """Bytes that encoding adds at its highest, in this process."""
    model = make_model(subject)
    encode, kind = encode_call(subject, model), model.dtype
    # Kernels are compiled and libraries set up with a picture of a few tokens.
    encode(torch.zeros(1, 3, 256, 256, dtype=kind))
    pixels = torch.randn(1, 3, *size_hw).to(kind)
    _CLEAR.write_text("5", encoding="ascii")
    before = _status("VmRSS")
    encode(pixels)
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    name, height, width, precision = sys.argv[1:]
    print(peak(Subject.named(name, precision), (int(height), int(width))))  # noqa: T201
