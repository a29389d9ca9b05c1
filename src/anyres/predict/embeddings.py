"""Embeddings of pictures in files, so that a picture is encoded once and asked again later."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from anyres.errors import InputError
from anyres.files import write_bytes
from anyres.geometry import Frame
from anyres.models.config import Pad
from anyres.models.segmenter import Features, Segmenter
from anyres.ops.precision import wide

_FORMAT = "anyres embedding 1"


def weights_checksum(model: Segmenter) -> str:
    """SHA-256 of a model's weights, the same in every precision it may run in.

    All values are taken as bfloat16, so that what a GPU wrote in bfloat16 is read in float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.bfloat16).flatten().contiguous()
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def save(path: Path, model: Segmenter, frame: Frame, pad: Pad, features: Features) -> None:
    """Write features and their frame, atomically.

    Raises:
        InputError: the name does not end in ``.safetensors``, or the folder is missing.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"an embedding is written to a .safetensors file, not to {path.name!r}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} to")
    tensors = {"embedding": features.embedding}
    tensors |= {f"details.{i}": detail for i, detail in enumerate(features.details)}
    if features.pixels_s4 is not None:
        tensors["pixels_s4"] = features.pixels_s4
    facts = {
        "picture_hw": frame.picture_hw,
        "resized_hw": frame.resized_hw,
        "input_hw": frame.input_hw,
        "patch": frame.patch,
        "pad": pad,
        "model": model.config.name,
        "weights": weights_checksum(model),
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = to_bytes(contiguous, {"format": _FORMAT, "picture": json.dumps(facts)})
    write_bytes(path, content)


def load(path: Path, model: Segmenter) -> tuple[Frame, Pad, Features]:
    """Read what ``save`` wrote, on the model's device and in its precision.

    Raises:
        InputError: the file is missing, damaged, no embedding, or another model's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"the embedding {path} cannot be read: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise InputError(f"{path} is no embedding written by save_embedding")
    try:
        facts = json.loads(metadata["picture"])
        made_by, weights, pad = facts["model"], facts["weights"], facts["pad"]
        frame = Frame(
            facts["picture_hw"], facts["resized_hw"], facts["input_hw"], patch=facts["patch"]
        )
        embedding = tensors.pop("embedding")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the embedding {path} is damaged ({error!r}): make it again") from error
    if weights != weights_checksum(model):
        raise InputError(
            f"{path} was made by the model {made_by!r} with other weights "
            f"than this {model.config.name!r}: load that model, or set the picture again"
        )
    if tuple(embedding.shape[2:]) != tuple(frame.grid_hw):
        raise InputError(
            f"the embedding {path} is damaged: its grid is {tuple(embedding.shape[2:])}, "
            f"its picture needs {tuple(frame.grid_hw)}; make it again"
        )

    def put(tensor: Tensor) -> Tensor:
        return tensor.to(model.device, model.dtype)

    pixels_s4 = tensors.pop("pixels_s4", None)
    if pixels_s4 is not None:
        pixels_s4 = wide(pixels_s4.to(model.device))
    details = tuple(put(tensors[f"details.{i}"]) for i in range(len(tensors)))
    return frame, pad, Features(put(embedding), details, pixels_s4)
