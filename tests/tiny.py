"""Models with random weights, small enough for tests."""

import torch

from anyres.models.build import build
from anyres.models.config import preset, resized
from anyres.models.segmenter import Segmenter


def random_model(name: str, size: int | None = None, seed: int = 0) -> Segmenter:
    """A preset with random weights, for another training size if one is given."""
    torch.manual_seed(seed)
    config = preset(name)
    return build(config if size is None else resized(config, size))
