"""Memory that a thread keeps from call to call: fresh memory costs more than what is put there."""

from math import prod
from threading import local
from typing import Any

import torch
from torch import Tensor

# Of a picture's pieces (``conv_cpu``, ``bias_cpu``), which decide how large buffers are.
SIDE = 32  # of a tile of pixels
ROWS = 8  # of the first convolutions' answer
TOKENS = 512  # that go through attention or an MLP


class Buffers(local):
    """Named buffers of the thread that asks; they grow and stay, unless they are large.

    Attributes:
        kept: bytes of a buffer that stays; larger ones are given back when they are let go.
        buffers: those that stay.
        arrays: those of ``flat``.
    """

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.arrays: dict[tuple[str, torch.dtype], Any] = {}

    def take(self, name: str, kind: torch.dtype, *shape: int) -> Tensor:
        """The beginning of a buffer, with whatever is in it."""
        size = prod(shape)
        buffer = self.buffers.get((name, kind))
        if buffer is None or len(buffer) < size:
            with torch.inference_mode(False):  # else only inference may write into it
                buffer = torch.empty(size, dtype=kind)
            if buffer.nbytes <= self.kept:
                self.buffers[name, kind] = buffer
        return buffer[:size].view(shape)

    def flat(self, name: str, kind: torch.dtype, size: int) -> Any:
        """The same as a flat array, bfloat16 as uint16, as kernels want it."""
        array = self.arrays.get((name, kind))
        if array is None or len(array) < size:
            with torch.inference_mode(False):
                buffer = torch.empty(size, dtype=kind)
            array = (buffer.view(torch.uint16) if kind == torch.bfloat16 else buffer).numpy()
            if array.nbytes <= self.kept:
                self.arrays[name, kind] = array
        return array[:size]
