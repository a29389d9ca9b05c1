"""What is measured: presets, and two variants that figures need."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from anyres.benchmark import stock
from anyres.errors import InputError
from anyres.models.build import build
from anyres.models.config import HRSAMConfig, ModelConfig, ViTConfig, preset
from anyres.models.segmenter import Segmenter
from anyres.models.vit import ImageEncoderViT
from anyres.models.weights import load as read_checkpoint
from anyres.ops.precision import resolve_dtype
from anyres.predict.assets import EMBEDDED, embedded_weights
from anyres.predict.load import put

STOCK = "stock"  # SAM ViT-B, eager, float32, whole score matrices
ONE_CYCLE = "/cycles=1"


@dataclass(frozen=True)
class Subject:
    """A model to measure: a preset, one with another number of cycles, or ``stock``."""

    name: str
    config: ModelConfig

    @classmethod
    def named(cls, name: str) -> "Subject":
        """Read ``PRESET``, ``PRESET/cycles=1`` or ``stock``.

        Raises:
            InputError: there is no such preset, or it has no cycles.
        """
        if name == STOCK:
            return cls(name, preset("sam_vit_b"))
        config = preset(name.removesuffix(ONE_CYCLE))
        if name.endswith(ONE_CYCLE):
            encoder = config.encoder
            if not isinstance(encoder, HRSAMConfig):
                raise InputError(f"{config.name} has no cycle-scan: {name} cannot be made")
            config = replace(config, encoder=replace(encoder, cycles=1))
        return cls(name, config)

    @property
    def is_baseline(self) -> bool:
        """Whether it is there to compare with."""
        return self.name == STOCK


def make_model(subject: Subject, dtype: str) -> Segmenter:
    """A model ready to run, in the precision asked for; ``stock`` always in float32.

    Presets that ship no weights get random ones: how long they take does not depend on them.
    """
    kind = torch.float32 if subject.is_baseline else resolve_dtype(dtype, "cpu")
    if subject.name == EMBEDDED:
        with embedded_weights() as path:
            return put(read_checkpoint(path), torch.device("cpu"), kind).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(subject.config)
    return put(model, torch.device("cpu"), kind).eval()


def encode_call(subject: Subject, model: Segmenter) -> Callable[[Tensor], Tensor]:
    """What encodes pixels (B, 3, H, W)."""
    encoder = model.image_encoder
    if isinstance(encoder, ImageEncoderViT) and subject.is_baseline:
        return partial(stock.encode, encoder)
    return encoder


def needed_bytes(subject: Subject, size_hw: tuple[int, int]) -> int:
    """What must be free beside everything else; known only of ``stock``, 0 of others."""
    encoder = subject.config.encoder
    if not subject.is_baseline or not isinstance(encoder, ViTConfig):
        return 0
    return stock.bytes_needed(encoder, size_hw)
