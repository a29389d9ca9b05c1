"""Checkpoints: writing and reading our own, and reading those of the official code.

Our own are ``.safetensors`` files that carry the model's configuration as JSON in their metadata,
so that a file is all that it takes; nothing in them is pickled.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from anyres.errors import InputError, WeightsError
from anyres.files import atomic_write
from anyres.models import basam, official
from anyres.models.build import build, build_encoder
from anyres.models.config import ModelConfig, ViTConfig
from anyres.models.filling import check_finite, fill
from anyres.models.presets import DEFAULT, preset
from anyres.models.reading import is_safetensors, named, read_safetensors, read_state_dict
from anyres.models.segmenter import Segmenter

__all__ = [
    "from_official",
    "load",
    "load_weights",
    "read_state_dict",
    "save",
    "segmenter_from_official",
]

# Raise when older versions would read new files wrongly.
FORMAT = 1
_CONFIG_KEY = "anyres.config"
_FORMAT_KEY = "anyres.format"
_TRAINED_KEY = "trained_on"
BASE_KEY = "anyres.base"  # only in files that hold a part of a model (``models.parts``)

# Official kinds that are read.
KINDS = ("sam", "mobile_sam", "hrsam", "hrsam++")
_HRSAM = ("hrsam", "hrsam++")

# Beginnings of names that are only in a whole model.
_NOT_ENCODER = dict.fromkeys(("sam", "mobile_sam"), ("prompt_encoder.", "mask_decoder."))
_NOT_ENCODER |= dict.fromkeys(_HRSAM, ("neck.", "decode_head."))


def save(model: Segmenter, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model, its configuration and what it was trained on to a ``.safetensors`` file.

    The file is whole or not there. The same weights and configuration make the same bytes.

    Args:
        model: any segmenter, on any device.
        path: the file; its folder must exist.
        dtype: precision to store floating-point weights in; None keeps theirs.

    Raises:
        WeightsError: a weight is not finite (or not in this precision); nothing is written.
        OutputError: the file cannot be written.
    """
    state = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else None)
        for name, tensor in model.state_dict().items()
    }
    write(state, metadata_of(model), path)


def metadata_of(model: Segmenter) -> dict[str, str]:
    """What a file says of the model whose weights it holds."""
    metadata = {_FORMAT_KEY: str(FORMAT), _CONFIG_KEY: model.config.to_json()}
    if model.trained_on:
        trained_on = {name: sorted(pictures) for name, pictures in model.trained_on.items()}
        metadata[_TRAINED_KEY] = json.dumps(trained_on, sort_keys=True, separators=(",", ":"))
    return metadata


def write(state: Mapping[str, Tensor], metadata: Mapping[str, str], path: str | Path) -> None:
    """Write tensors and metadata; arguments and errors as in ``save``."""
    check_finite(state, "the model")
    # Cloned, because safetensors refuses tensors that share memory.
    tensors = {name: each.detach().cpu().clone().contiguous() for name, each in state.items()}
    content = to_bytes(tensors, dict(metadata))
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    # Safetensors writes metadata in any order; so that the same model makes the same file:
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    with atomic_write(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(memoryview(content)[start:])


def load(path: str | Path) -> Segmenter:
    """Read a file written by ``save``.

    Returns:
        The model in eval mode, on the CPU, in float32 whatever precision the file has.

    Raises:
        WeightsError: the file is missing, damaged, no file of anyres, or of a later version.
    """
    if is_safetensors(path):
        state, metadata = read_safetensors(path)
        if _CONFIG_KEY in metadata:
            return _whole(path, state, metadata)
    raise WeightsError(
        f"{path} is no file of anyres, it has no configuration: official checkpoints are read by "
        "anyres.load(model, weights=...) and models.weights.from_official"
    )


def _whole(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Segmenter:
    if BASE_KEY in metadata:
        raise WeightsError(
            f"{path} holds only what was trained on top of another model: anyres.load and "
            "models.parts.load_part put the two together"
        )
    return own(path, state, metadata)


def own(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Segmenter:
    """Make the model that metadata of our own describe; ``path`` is for what errors say."""
    version = metadata.get(_FORMAT_KEY, "")
    if version != str(FORMAT):
        raise WeightsError(
            f"{path} has format {version or 'unknown'}, this version of anyres reads {FORMAT}: "
            "install the version of anyres that wrote it, or a later one"
        )
    with _naming(path):
        config = ModelConfig.from_json(metadata[_CONFIG_KEY])
        found = fill(lambda: _build_own(config), state)
        found.trained_on = _trained_on(metadata)
        return found


def _trained_on(metadata: Mapping[str, str]) -> dict[str, list[str]]:
    text = metadata.get(_TRAINED_KEY, "{}")
    try:
        sets = json.loads(text)
    except json.JSONDecodeError:
        sets = None
    if not isinstance(sets, dict) or not all(
        isinstance(pictures, list) and all(isinstance(each, str) for each in pictures)
        for pictures in sets.values()
    ):
        raise WeightsError(
            f"its {_TRAINED_KEY} is {text:.80} and not a JSON object of names of data sets, each "
            "with a list of pictures' checksums: copy it again, or write it anew"
        )
    return sets


def _build_own(config: ModelConfig) -> Segmenter:
    try:
        return build(config)
    except InputError:
        raise
    except Exception as error:
        # Any number or text may be in the configuration of a damaged file.
        raise WeightsError(
            f"its configuration makes no model ({error!r}): copy it again"
        ) from error


def load_weights(model: str, path: str | Path) -> Segmenter:
    """Read a checkpoint for a model, be it ours or an official one.

    Args:
        model: name of a preset. ``default`` takes whatever whole model is in the file.
        path: a file written by ``save``, or an official ``.pth`` or ``.safetensors`` file.

    Returns:
        The model in eval mode, on the CPU, in float32.

    Raises:
        InputError: there is no such preset.
        WeightsError: the file is missing, damaged, no checkpoint, or that of another model.
    """
    wanted = None if model == DEFAULT.name else preset(model)
    if is_safetensors(path):
        state, metadata = read_safetensors(path)
        if _CONFIG_KEY in metadata:
            found = _whole(path, state, metadata)
            check_wanted(found.config, model, path)
            return found
    else:
        state, metadata = read_state_dict(path), {}
    with _naming(path):
        state = _without_wrapper(state)
        if any(name.startswith("backbone.") for name in state):
            joint = any(".ms_mamba_blocks." in name for name in state)
            found = segmenter_from_official("hrsam++" if joint else "hrsam", state)
            check_wanted(found.config, model, path)
        else:
            found = _whole_sam(state, wanted)
        found.trained_on = _trained_on(metadata)
        return found


def _whole_sam(state: Mapping[str, Tensor], wanted: ModelConfig | None) -> Segmenter:
    prefix = "image_encoder."
    if not any(name.startswith(prefix) for name in state):
        raise WeightsError(
            "this is no whole model: no name begins with image_encoder. (or backbone., for HRSAM). "
            f"There are {named(state, most=5)}. An image encoder alone is read by "
            "models.weights.from_official"
        )
    mobile = official.is_tiny_vit(state, prefix)
    if wanted is None:
        wanted = official.recognise("mobile_sam" if mobile else "sam", state, prefix)
    # Said first and by itself: the names alone would be hundreds.
    width, depth = official.encoder_size(state, prefix)
    if (width, depth) != (wanted.encoder.dim, wanted.encoder.blocks):
        raise WeightsError(
            f"the image encoder has {depth} blocks with {width} channels, that of {wanted.name} "
            f"has {wanted.encoder.blocks} with {wanted.encoder.dim}: ask for the model that the "
            f"file is of, or give weights of {wanted.name}"
        )
    if mobile:
        state = official.without_leftovers(state, prefix)
    found = basam.model_config(wanted, state, prefix, published=True)
    return fill(lambda: build(found), basam.fitted(found.encoder, state, prefix))


def check_wanted(found: ModelConfig, model: str, path: str | Path) -> None:
    """Check that a file holds the model asked for; ``default`` asks for none.

    Raises:
        InputError: there is no such preset.
        WeightsError: it holds another.
    """
    if model in (DEFAULT.name, found.name):
        return
    wanted = preset(model)
    if (found.encoder, found.decoder) != (wanted.encoder, wanted.decoder):
        raise WeightsError(
            f"{path} holds the model {found.name!r} and not {wanted.name!r}: leave out the model's "
            "name, the file knows it, or give other weights"
        )


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Say in which file it was that something is wrong."""
    try:
        yield
    except (WeightsError, InputError) as error:
        raise WeightsError(f"{path}: {error}") from error


def from_official(
    kind: str, state_dict: Mapping[str, Tensor], config: official.Arguments | None = None
) -> nn.Module:
    """Make a model of a state dict of the official code.

    Args:
        kind: ``"sam"``, ``"mobile_sam"``, ``"hrsam"`` or ``"hrsam++"``.
        state_dict: the image encoder's own (with or without a common ``image_encoder.``, or
            ``backbone.`` for HRSAM), or a whole SAM's or MobileSAM's (``image_encoder.*
            prompt_encoder.* mask_decoder.*``). BA-SAM's, known by their coefficients, are read as
            SAM's. The tensors are copied.
        config: arguments of the official constructors, names and values, of the image encoder or
            by class (``{"ImageEncoderViT": {...}, "MaskDecoder": {...}}``); what is not given has
            the official default. None recognises the published models.

    Returns:
        In eval mode, float32: the encoder, from pixels (B, 3, H, W) normalised as the official
        model wants them to (B, C, H/patch, W/patch); or a ``Segmenter``.

    Raises:
        InputError: the kind or an argument is unknown or not supported.
        WeightsError: names are missing or unexpected, or tensors have another shape than the
            configuration makes them or are not finite; the message names each.
    """
    _check_kind(kind)
    state = _without_wrapper(state_dict)
    whole = any(name.startswith(_NOT_ENCODER[kind]) for name in state)
    if whole and kind in _HRSAM:
        raise InputError(f"this is a whole HRSAM: segmenter_from_official({kind!r}, ...) reads it")
    prefix = "backbone." if kind in _HRSAM else "image_encoder."
    if not any(name.startswith(prefix) for name in state):
        prefix = ""
    if kind == "mobile_sam":
        state = official.without_leftovers(state, prefix)
    published = official.recognise(kind, state, prefix) if config is None else None
    if whole:
        model = published or official.sam_config(config or {}, kind)
        model = basam.model_config(model, state, prefix, published is not None)
        return fill(lambda: build(model), basam.fitted(model.encoder, state, prefix))
    encoder = published.encoder if published else official.encoder_config(kind, config or {})
    if isinstance(encoder, ViTConfig):
        encoder = basam.encoder_config(encoder, state, prefix, published is not None)
    state = dict(basam.fitted(encoder, state, prefix))
    return fill(lambda: build_encoder(encoder), state, [(prefix, "")])


def segmenter_from_official(
    kind: str, state_dict: Mapping[str, Tensor], config: official.Arguments | None = None
) -> Segmenter:
    """Make a whole model of an official HRSAM checkpoint (``backbone.* neck.* decode_head.*``).

    As the official network it is fed blue, green, red, pads to squares, and interpolates its dense
    positions.

    Args:
        kind: ``"hrsam"`` or ``"hrsam++"``.
        state_dict: all names of the checkpoint. The tensors are copied.
        config: arguments of the official constructors by class: ``HRSAMViT`` or
            ``HRSAMPlusPlusViT``, ``SAMPromptEncoder``, ``SAMDecoder``. None is the published model.

    Returns:
        In eval mode, float32.

    Raises:
        InputError: as in ``from_official``.
        WeightsError: as in ``from_official``.
    """
    _check_kind(kind)
    if kind not in _HRSAM:
        known = " and ".join(map(repr, _HRSAM))
        raise InputError(f"kind {kind!r} is read by from_official; this function reads {known}")
    state = _without_wrapper(state_dict)
    if config is None:
        model = official.recognise(kind, state, "backbone.")
    else:
        model = official.hrsam_model_config(config, kind)
    return fill(lambda: build(model), state, official.HRSAM_NAMES)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        known = ", ".join(map(repr, KINDS))
        raise InputError(f"kind {kind!r} is unknown; there are: {known}")


def _without_wrapper(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """A state dict without the ``module.`` that parallel training puts before every name."""
    strange = [
        name
        for name, value in state.items()
        if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange or not state:
        raise WeightsError(
            f"this is no state dict: {named(map(str, strange))} are no tensors"
            if strange
            else "the state dict is empty"
        )
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)
