"""Files that hold a part of a model: what was trained, and on which base.

Light fine-tuning changes little of a model. The file holds that alone, the configuration of the
whole, and the checksum of the weights that it belongs to; on others it would make nonsense, so it
is not loaded on them.
"""

import hashlib
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from anyres.errors import WeightsError
from anyres.models import weights
from anyres.models.reading import is_safetensors, read_metadata, read_safetensors
from anyres.models.segmenter import Segmenter
from anyres.models.typed import build_typed

_DIGITS = 16


@dataclass(frozen=True)
class Base:
    """The model that a part was trained on.

    Attributes:
        name: ``default`` for the embedded model, else the name of its file, without a folder.
        checksum: of its weights, see ``checksum``.
    """

    name: str
    checksum: str


def checksum(model: Segmenter) -> str:
    """What a model's weights are known by, in whatever file and precision they were kept.

    Returns:
        16 hexadecimal digits of a SHA-256 over names, shapes and values in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(memoryview(values.numpy()).cast("B"))
    return digest.hexdigest()[:_DIGITS]


def trained_names(model: Segmenter) -> set[str]:
    """Names of the weights that training changes: those with gradients, and their norms' counts."""
    names = {name for name, each in model.named_parameters() if each.requires_grad}
    for prefix, module in model.named_modules():
        if any(each.requires_grad for each in module.parameters(recurse=False)):
            names |= {
                f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)
            }
    return names & set(model.state_dict())


def save_part(model: Segmenter, names: Collection[str], base: Base, path: str | Path) -> None:
    """Write the named weights of a model, its configuration and its base.

    Args:
        model: the whole of it.
        names: of its state dict, at least one.
        base: what the other weights are.
        path: the ``.safetensors`` file; its folder must exist.

    Raises:
        WeightsError: a weight is not finite; nothing is written.
        OutputError: the file cannot be written.
    """
    state = {name: each for name, each in model.state_dict().items() if name in names}
    metadata = weights.metadata_of(model) | {weights.BASE_KEY: json.dumps(asdict(base))}
    weights.write(state, metadata, path)


def base_of(path: str | Path) -> Base | None:
    """The base of the part that a file holds, or None for any other checkpoint.

    Raises:
        WeightsError: the file is missing, damaged, or no checkpoint.
    """
    text = read_metadata(path).get(weights.BASE_KEY) if is_safetensors(path) else None
    if text is None:
        return None
    try:
        base: Base = build_typed(Base, json.loads(text))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: its base is {text:.80} ({error}): copy it again") from error
    return base


def load_part(path: str | Path, base: Segmenter) -> Segmenter:
    """Put a part and its base together.

    Args:
        path: a file written by ``save_part``.
        base: the whole model that it was trained on; it is left as it was.

    Returns:
        The whole model in eval mode, on the CPU, in float32.

    Raises:
        WeightsError: the file is damaged or holds no part, or ``base`` is another model; the
            message names both checksums.
    """
    wanted = base_of(path)
    if wanted is None:
        raise WeightsError(f"{path} is no part of a model: load it without a base")
    found = checksum(base)
    if found != wanted.checksum:
        raise WeightsError(
            f"{path} was trained on {wanted.name} with the checksum {wanted.checksum}; the base "
            f"given has {found} and is another model: give the one that it was trained on"
        )
    state, metadata = read_safetensors(path)
    return weights.own(path, {**base.state_dict(), **state}, metadata)
