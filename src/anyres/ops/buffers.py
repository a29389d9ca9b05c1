"""Memory that a thread keeps from call to call: fresh memory costs more than what is put there."""

from math import prod
from threading import local

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
    """

    def __init__(self, kept: int) -> None:
        self.kept = kept
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

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
