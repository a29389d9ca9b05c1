"""Activation checkpointing: less memory for a longer step."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from anyres.errors import InputError


def recompute_blocks(model: nn.Module) -> None:
    """Let the encoder's blocks keep only what they are given, and compute the rest once more.

    Memory for time: gradients are the same.
    """
    encoder = model.get_submodule("image_encoder")
    blocks = getattr(encoder, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise InputError(
            f"checkpoint_activations: {type(encoder).__name__} has no blocks; set it to false"
        )
    for block in blocks:
        block.forward = _Recomputed(block.forward)


class _Recomputed:
    """A function whose insides are not kept for the gradient."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.function(*arguments)
        return checkpoint(self.function, *arguments, use_reentrant=False, preserve_rng_state=False)
