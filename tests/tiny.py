"""What several tests share: small models with random weights, the cases of SAM's golden."""

import torch

from anyres.models.build import build
from anyres.models.config import preset, resized
from anyres.models.segmenter import Segmenter

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


def random_model(name: str, size: int | None = None, seed: int = 0) -> Segmenter:
    """A preset with random weights, for another training size if one is given."""
    torch.manual_seed(seed)
    config = preset(name)
    return build(config if size is None else resized(config, size))
