"""What is measured: presets, and two variants that figures need."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from anyres.benchmark import stock
from anyres.errors import InputError
from anyres.models.build import build
from anyres.models.config import HRSAMConfig, ModelConfig, ViTConfig
from anyres.models.presets import preset
from anyres.models.segmenter import Segmenter
from anyres.models.vit import ImageEncoderViT
from anyres.models.weights import load as read_checkpoint
from anyres.ops.precision import resolve_dtype
from anyres.predict.assets import EMBEDDED, embedded_weights
from anyres.predict.load import put

STOCK = "stock"  # SAM ViT-B, eager, float32, whole score matrices
ONE_CYCLE = "/cycles=1"
FLOAT32 = "/float32"


@dataclass(frozen=True)
class Subject:
    """A model to measure in a precision: a preset, a variant of one, or ``stock``."""

    name: str
    config: ModelConfig
    dtype: torch.dtype

    @classmethod
    def named(cls, text: str, dtype: str) -> "Subject":
        """Read ``PRESET``, ``PRESET/cycles=1``, either with ``/float32``, or ``stock``.

        Args:
            text: what to read; ``stock`` is float32 without saying so.
            dtype: precision of what names none: ``auto``, ``float32`` or ``bfloat16``.

        Raises:
            InputError: there is no such preset, it has no cycles, or the precision is unknown.
        """
        name = text.removesuffix(FLOAT32)
        is_float32 = name != text or name == STOCK
        kind = resolve_dtype("float32" if is_float32 else dtype, "cpu")
        if name == STOCK:
            return cls(name, preset("sam_vit_b"), kind)
        config = preset(name.removesuffix(ONE_CYCLE))
        if name.endswith(ONE_CYCLE):
            encoder = config.encoder
            if not isinstance(encoder, HRSAMConfig):
                raise InputError(f"{config.name} has no cycle-scan: {name} cannot be made")
            config = replace(config, encoder=replace(encoder, cycles=1))
        return cls(name, config, kind)

    @property
    def is_baseline(self) -> bool:
        """Whether it is there to compare with."""
        return self.name == STOCK

    @property
    def dtype_name(self) -> str:
        """The precision in a word."""
        return str(self.dtype).removeprefix("torch.")


def make_model(subject: Subject) -> Segmenter:
    """A model ready to run.

    Presets that ship no weights get random ones: how long they take does not depend on them.
    """
    if subject.name == EMBEDDED:
        with embedded_weights() as path:
            return put(read_checkpoint(path), torch.device("cpu"), subject.dtype).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(subject.config)
    return put(model, torch.device("cpu"), subject.dtype).eval()


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
