"""The one place that decides in which precision a model runs.

A model runs in one precision, but for what would move the borders of masks. In a bfloat16 model
these are float32 (``wide``), each because masks fell below an IoU of 0.99 with float32's without:

- constants: colours of the input, frequencies of positions (``predict.load.put``);
- the stem's weights, until its norms are folded into them;
- the scan and its exponentials (``ops.scan``);
- likeness to clicks: 8 bits cannot tell a cosine of 0.99 from 0.995, its exponential can;
- the decoder from its first upscaling to the logits, where sums of large numbers cross zero.
"""

from pathlib import Path

import torch
from torch import Tensor

from anyres.errors import InputError

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def cpu_features() -> tuple[str, ...]:
    """Those of AVX512-BF16 and AMX-BF16 that this CPU has and the system lets it use."""
    names = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return tuple(name for flag, name in names.items() if flag in flags)


def resolve_dtype(dtype: str, device: torch.device | str) -> torch.dtype:
    """Precision for a model on a device.

    Args:
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 on CUDA and
            on CPUs that multiply it in hardware (AVX512-BF16 or AMX), float32 elsewhere.
        device: where the model will run.

    Raises:
        InputError: an unknown name, or float16 on a CPU, where it is slower than float32.
    """
    kind = torch.device(device).type
    if dtype == "auto":
        fast = kind == "cuda" or (kind == "cpu" and bool(cpu_features()))
        return torch.bfloat16 if fast else torch.float32
    if dtype not in _NAMES:
        known = ", ".join(["auto", *_NAMES])
        raise InputError(f"dtype {dtype!r} is unknown; choose one of: {known}")
    if dtype == "float16" and kind == "cpu":
        raise InputError("float16 is slower than float32 on CPUs; use bfloat16, float32 or auto")
    return _NAMES[dtype]


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
