"""What several tests share: small models with random weights, the cases of SAM's golden."""

import torch

from anyres.models.build import build
from anyres.models.config import HRSAMConfig, ViTConfig
from anyres.models.presets import preset, resized
from anyres.models.segmenter import Segmenter
from anyres.models.vit import ImageEncoderViT

# Of the golden `sam_tiny`: mixes of prompts.
SAM_CASES = [
    "points",
    "points_with_label_minus1",
    "boxes",
    "points_boxes",
    "mask_only",
    "points_mask",
    "points_boxes_mask",
    "no_prompt",
]


SMALL_VIT = ViTConfig(
    dim=32, blocks=3, heads=2, global_blocks=(1,), window=3, patch=16, image_size=128, neck=16
)


# What the official HRSAM's goldens were made with.
OFFICIAL_HRSAM = HRSAMConfig(
    dim=48,
    blocks=4,
    heads=3,
    window=4,
    state=4,
    out_blocks=(1, 3),
    neck=16,
    mlp_ratio=2.0,
    table=4,
    positions="stretch",
)


def random_encoder(config: ViTConfig = SMALL_VIT, seed: int = 0) -> ImageEncoderViT:
    """SAM's image encoder with random weights, tables of positions among them."""
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return encoder


def random_model(name: str, size: int | None = None, seed: int = 0) -> Segmenter:
    """A preset with random weights, for another training size if one is given."""
    torch.manual_seed(seed)
    config = preset(name)
    return build(config if size is None else resized(config, size))
