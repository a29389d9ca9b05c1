"""How much memory encoding a picture takes, and how much there is.

The estimate counts the largest tensors that live at the same time in the step of an encoder that
has most of them, so it changes with the encoders' code; a test compares it with what really lives.
All encoders are linear in the number of tokens. Decoding one prompt takes less.
"""

import re
from pathlib import Path
from typing import assert_never

import torch

from anyres.errors import InputError, MemoryLimitError
from anyres.geometry import Frame
from anyres.models.config import (
    EncoderConfig,
    HRSAMConfig,
    ModelConfig,
    Pad,
    TinyViTConfig,
    ViTConfig,
)
from anyres.models.hrsam_blocks import LEAST, MOST
from anyres.models.segmenter import Segmenter
from anyres.ops import block, kernels
from anyres.ops.buffers import SIDE, TOKENS
from anyres.ops.windows import window_plan
from anyres.predict.resolution import fit

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

# Allocators hold more than what lives, and half precision computes in more than its own: measured
# on a CPU under Linux, see docs/decisions/0008. The last is for pictures in parts.
_OVERHEAD, _OVERHEAD_HALF, _OVERHEAD_PARTS, _FIXED = 1.1, 1.4, 1.3, 32e6
# Values in the blocks of attention (ops.grid_attention), whatever the size of the picture.
_BLOCKS, _BLOCKS_ELSEWHERE = 3 * 2**20, 3 * 2**27


def known_limit(limit: int | str | None) -> int | None:
    """A memory limit in bytes.

    Args:
        limit: bytes, or text such as ``"8GB"``, ``"500 MB"`` or ``"1.5GiB"``; None stays None.

    Raises:
        InputError: it is no positive amount.
    """
    if limit is None:
        return None
    amount = float("nan")
    if isinstance(limit, str):
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", limit.lower())
        if found and (found[2] or not found[3]):
            amount = float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]
    elif not isinstance(limit, bool) and hasattr(limit, "__index__"):
        amount = float(limit)
    if not amount >= 1:
        raise InputError(f"memory_limit is {limit!r}; give bytes, or text such as '8GB' or '6GiB'")
    return int(amount)


def encoding_bytes(
    config: ModelConfig, input_hw: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> int:
    """Estimate what encoding takes at its peak, on top of the model's weights.

    Args:
        config: of the model.
        input_hw: (height, width) of the model input in pixels, padding included.
        dtype: that the model runs in.
        device: that it runs on.
    """
    overhead = _OVERHEAD if dtype.itemsize >= 4 else _OVERHEAD_HALF
    if _in_parts(config.encoder, dtype, device):
        overhead = _OVERHEAD_PARTS
    return int(overhead * living_bytes(config, input_hw, dtype, device) + _FIXED)


def living_bytes(
    config: ModelConfig, input_hw: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> float:
    """The tensors in it."""
    encoder, pixels = config.encoder, input_hw[0] * input_hw[1]
    grid_hw = (input_hw[0] // encoder.patch, input_hw[1] // encoder.patch)
    # Three colours in float32, and in the model's precision.
    picture = 3.0 * pixels * (4 if dtype.itemsize >= 4 else 4 + dtype.itemsize)
    if isinstance(encoder, ViTConfig):
        values = _vit(encoder, grid_hw)
        values += _BLOCKS if device.type == "cpu" else _BLOCKS_ELSEWHERE
    elif isinstance(encoder, HRSAMConfig):
        in_parts = _in_parts(encoder, dtype, device)
        values = (_hrsam_in_parts if in_parts else _hrsam)(encoder, grid_hw)
    elif isinstance(encoder, TinyViTConfig):
        values = _tiny_vit(encoder, pixels)
        if _in_parts(encoder, dtype, device):
            values = _tiny_vit_in_parts(encoder, pixels, dtype)
    else:
        assert_never(encoder)
    # Normalising comes first: bytes, and two copies in float32.
    return max(picture + values * dtype.itemsize, 3 * 9 * pixels)


def _vit(config: ViTConfig, grid_hw: tuple[int, int]) -> float:
    """Values in the widest step."""
    tokens = grid_hw[0] * grid_hw[1]
    # In the MLP: input, sum, norm, hidden before and after its activation.
    most = 3 + 2 * config.mlp_ratio
    if config.window and len(config.global_blocks) < config.blocks:
        # In a windowed layer: input, sum, norm, projection (3) of the tokens; of the padded ones
        # the projection in windows and by heads (3 each), and outputs twice.
        most = max(most, 6 + 8 * _padded(grid_hw, config.window, shifted=False))
    side = config.image_size // config.patch
    resized = config.absolute_positions and max(grid_hw) != side
    table = tokens + side**2 if resized else 0  # kept, with what it was made of
    blocks = config.dim * (most * tokens + table)
    if config.stem is None:
        return blocks
    half, quarter, eighth = config.stem
    return max(blocks + tokens * (16 * quarter + 4 * eighth), 2 * 64 * tokens * half)


def _in_parts(config: EncoderConfig, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a picture goes through blocks and scans in parts."""
    if isinstance(config, TinyViTConfig):
        return device.type == "cpu"
    if not isinstance(config, HRSAMConfig) or device.type != "cpu":
        return False
    like = torch.empty(0, config.dim, dtype=dtype)
    hidden = int(config.dim * config.mlp_ratio)
    return (
        block.runs_compiled(like, config.heads, config.window, hidden)
        and block.scan_runs_compiled(like)
        and kernels.forced("ANYRES_SCAN") != "torch"
    )


def _hrsam_in_parts(config: HRSAMConfig, grid_hw: tuple[int, int]) -> float:
    """Values in the widest step, where windows go through a block a few at a time."""
    dim, neck = config.dim, config.neck
    tokens = grid_hw[0] * grid_hw[1]
    both = tokens + (config.anchor // config.patch) ** 2
    # Around a scan, and kept for the next: its input, gate, steps and weights.
    sequence = both * (3 * dim + 2 * config.state)
    kept = tokens * dim if config.table else 0
    half, quarter, eighth = config.stem or (0, 0, 0)
    kept += tokens * (16 * quarter + 4 * eighth)
    group = min(max(tokens // 4, LEAST), MOST)
    working = min(torch.get_num_threads(), -(-tokens // group))
    outs, side = len(config.out_blocks), config.anchor // config.patch
    # What out blocks made, and some rows' lateral products, twice; the sum, and the embedding.
    joined = outs * (both * dim + 2 * working * group * neck) + 2 * tokens * neck
    if config.anchor:
        # The anchors as wide as the picture, float32; some rows of both scales, side by side.
        joined += outs * dim * (2 * side * grid_hw[1] + 2 * working * group)
    steps = [
        sequence + joined,
        tokens * 64 * half + 3 * tokens * config.patch**2,  # stem: and the picture's channels last
    ]
    # Tokens, their sums and norms; queries, keys and values, or an MLP's inside. And its weights,
    # as libraries put them in order to multiply.
    buffers = dim * (group * (3 + max(3, config.mlp_ratio)) + 2 * dim * config.mlp_ratio)
    return kept + max(steps) + working * buffers


def _hrsam(config: HRSAMConfig, grid_hw: tuple[int, int]) -> float:
    """Values in the widest step, where a block has the whole picture at once."""
    padded = _padded(grid_hw, config.window, shifted=True)
    # Both scales live at once where they are scanned together.
    tokens = grid_hw[0] * grid_hw[1] + (config.anchor // config.patch) ** 2
    scores = 2 * config.heads * config.window**2 * padded
    laterals = len(config.out_blocks) * config.neck
    # Input, norm, projection (3) of the tokens; windows (3), turned (2) and scaled padded ones.
    blocks = config.dim * (5 + 6 * padded) + scores + laterals
    if config.stem is None:
        return tokens * blocks
    half, quarter, eighth = config.stem
    return tokens * max(blocks + 16 * quarter + 4 * eighth, 2 * 64 * half)


def _tiny_vit(config: TinyViTConfig, pixels: int) -> float:
    """Values in the widest step."""
    # In the first stage: its input, a block's input, hidden before and after its activation.
    return config.dims[0] * (2 + 2 * config.expand) * pixels / 16


def _tiny_vit_in_parts(config: TinyViTConfig, pixels: int, dtype: torch.dtype) -> float:
    """Values in the widest step, where pieces go through it a few at a time."""
    first, *others = config.dims
    kept = first * pixels / 16
    steps = [2 * kept]  # a block's input and output
    for i, dim in enumerate(others):
        # And what comes between attention and the convolution.
        tokens = pixels / (64 if i == 0 else 256)
        steps.append(kept + 3 * dim * tokens)
        kept += dim * tokens if i == 0 else 0
    # Weights as tiles multiply them.
    layers = zip(others, config.depths[1:], strict=True)
    weights = sum((4 + 2 * config.mlp_ratio) * dim**2 * depth for dim, depth in layers)
    # A tile before a stride of 2 and inside; tokens and an MLP's inside; scores and their biases.
    tile = (2 * SIDE + 2) ** 2 * (first + others[min(1, len(others) - 1)])
    buffers = tile + SIDE**2 * max(first * config.expand, *others)
    buffers += TOKENS * (4 + config.mlp_ratio) * others[-1]
    buffers += max(
        heads * window**2 * (TOKENS + window**2)
        for heads, window in zip(config.heads, config.windows, strict=True)
    )
    in_tiles = dtype == torch.bfloat16
    return max(steps) + in_tiles * weights + torch.get_num_threads() * buffers


def _padded(grid_hw: tuple[int, int], window: int, *, shifted: bool) -> float:
    """Tokens with the padding to whole windows, in proportion."""
    rows, columns = window_plan(grid_hw, window, shifted=shifted).padded_hw
    return rows * columns / (grid_hw[0] * grid_hw[1])


def check(model: Segmenter, frame: Frame, pad: Pad, limit: int | None) -> None:
    """Make sure that encoding a picture will fit.

    Args:
        model: that is to encode it.
        frame: how the picture lies in the model input.
        pad: how it was padded.
        limit: bytes that encoding may take; None is what is available now, if that is known.

    Raises:
        MemoryLimitError: it will not; the message names the largest size that does.
    """
    room = available(model.device) if limit is None else limit
    if room is None:
        return

    def needed(input_hw: tuple[int, int]) -> int:
        return encoding_bytes(model.config, input_hw, model.dtype, model.device)

    if needed(frame.input_hw) <= room:
        return
    fits = 0
    for side in range(frame.patch, max(frame.resized_hw), frame.patch):
        if needed(fit(frame.picture_hw, side, pad, model.config).input_hw) <= room:
            fits = side
    height, width = frame.input_hw
    advice = f"pass resolution={fits}, the largest that fits" if fits else "no resolution fits"
    source = "available" if limit is None else "allowed by memory_limit"
    raise MemoryLimitError(
        f"{model.config.name} needs about {_text(needed(frame.input_hw))} for an input of "
        f"{width} x {height} pixels, and {_text(room)} are {source}: {advice}, or a higher "
        "memory_limit"
    )


def _text(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB"


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can be taken on a device now; None where the system does not say.

    Args:
        device: CPUs are asked through Linux' ``/proc`` and its control groups, CUDA by itself.
        root: where ``proc`` and ``sys`` are.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    rooms = [int(found[1]) * 1024] if found else []
    groups = re.search(r"^0::/(.*)$", _read(root / "proc/self/cgroup"), re.MULTILINE)
    folder = root / "sys/fs/cgroup"
    # A group is bounded by those around it. A container may see its own as the root.
    path = folder / groups[1] if groups else folder
    for group in (path, *path.parents):
        if group == folder.parent:
            break
        limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
        if limit.isdigit() and used.isdigit():
            cache = re.search(r"^inactive_file (\d+)", _read(group / "memory.stat"), re.MULTILINE)
            rooms.append(int(limit) - int(used) + (int(cache[1]) if cache else 0))
    limit = _read(folder / "memory/memory.limit_in_bytes").strip()  # version 1
    used = _read(folder / "memory/memory.usage_in_bytes").strip()
    if limit.isdigit() and used.isdigit():
        rooms.append(int(limit) - int(used))
    return max(0, min(rooms)) if rooms else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
