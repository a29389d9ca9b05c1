"""From the name of a model, or a checkpoint, to a predictor that is ready."""

from pathlib import Path

import torch

from anyres.errors import InputError, WeightsError
from anyres.models import parts
from anyres.models.basam import adapt
from anyres.models.config import ModelConfig, Pad, TinyViTConfig, ViTConfig
from anyres.models.mask_decoder import MaskDecoder
from anyres.models.presets import preset
from anyres.models.segmenter import Segmenter
from anyres.models.stem import ConvStem
from anyres.models.tiny_vit import ConvNorm
from anyres.models.weights import check_wanted, load_weights
from anyres.models.weights import load as read_checkpoint
from anyres.ops.length import LengthConfig
from anyres.ops.precision import resolve_dtype
from anyres.predict.assets import EMBEDDED, embedded_weights
from anyres.predict.memory import known_limit
from anyres.predict.predictor import Predictor
from anyres.predict.resolution import Resolution


def load(
    model: str = EMBEDDED,
    *,
    weights: str | Path | None = None,
    base: str | Path | None = None,
    resolution: Resolution | None = None,
    pad: Pad | None = None,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    length: LengthConfig | None = None,
    memory_limit: int | str | None = None,
) -> Predictor:
    """Load a model and make a predictor of it.

    Args:
        model: name of a preset; ``default`` is the embedded one and needs no weights.
        weights: a ``.safetensors`` checkpoint of anyres, whose configuration it carries, or an
            official ``.pth`` checkpoint of ``model``.
        base: for weights that hold only what was trained on top of others (``anyres train adapt``):
            those others, a file or ``"default"`` for the embedded ones. None finds them by name:
            embedded, beside ``weights``, or in the current folder.
        resolution: long side fed to the model: pixels, ``"train"``, ``"native"``, or None for the
            model's own rule (see ``Predictor``).
        pad: ``"square"``, ``"patch"``, or None for the model's own.
        device: ``"auto"`` is CUDA where there is a GPU, else the CPU; or any of torch's names.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"`` (not on CPUs), or ``"auto"``: for SAM
            and MobileSAM float32, so that their answers are the official ones; for others bfloat16
            where the hardware multiplies it (CUDA, AVX512-BF16, AMX), else float32.
        length: how SAM's global attention adapts to another number of tokens than in training.
            None is the model's own way: that of its checkpoint, or BA-SAM's for official weights
            (``anyres.LengthConfig()``), which changes nothing at the training length.
            ``anyres.LengthConfig(scale="none")`` turns it off.
            MobileSAM, whose windows never change, does not adapt unless asked.
        memory_limit: what encoding a picture may take beside the weights: bytes or text such as
            ``"8GB"``. None is what is available when it begins.

    Returns:
        A predictor without a picture.

    Raises:
        InputError: an unknown model, device, dtype, resolution, padding or memory limit; a
            ``length`` that the model has no use for, or that needs training.
        WeightsError: the weights or their base are missing, damaged, or another model's.
    """
    place = resolve_device(device)
    # Asked before the weights are read, which may take long.
    preset(model)
    resolve_dtype(dtype, place)
    known_limit(memory_limit)
    segmenter = read_model(model, weights, base)
    if length is not None:
        _set_length(segmenter, length)
    precision = choose_dtype(dtype, place, segmenter.config)
    return Predictor(
        put(segmenter, place, precision),
        resolution=resolution,
        pad=pad,
        memory_limit=memory_limit,
    )


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device of this name; ``auto`` is CUDA where there is a GPU, else the CPU.

    Raises:
        InputError: there is no such device, or not here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown; try auto, cpu, cuda or mps") from error
    available = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    count = available.get(place.type, 0)
    if (place.index or 0) >= count:
        raise InputError(
            f"device {str(device)!r} is not available here ({place.type}: {count} found); "
            "'auto' takes the best there is"
        )
    return place


def choose_dtype(dtype: str, device: torch.device, config: ModelConfig) -> torch.dtype:
    """The precision a model runs in, with ``auto`` as ``load`` describes it."""
    if dtype == "auto" and not config.native_limit:
        return torch.float32
    return resolve_dtype(dtype, device)


def put(model: Segmenter, device: torch.device, dtype: torch.dtype) -> Segmenter:
    """Bring a model to a device and a precision, in place.

    In float32 stay the constants, which are colours and frequencies of positions (bfloat16 would
    make 123.675 of the mean colour 123.5), and the weights of convolutions that fold their norms
    into themselves and round what comes of it.
    """
    exact = {id(buffer) for buffer in model.buffers()}
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # Running statistics go along with the weights they belong to.
            exact -= {id(buffer) for buffer in module.buffers()}
    for module in model.modules():
        if isinstance(module, ConvStem | ConvNorm):
            exact |= {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        elif isinstance(module, MaskDecoder):
            exact |= {id(tensor) for tensor in module.of_tokens()}

    def move(tensor: torch.Tensor) -> torch.Tensor:
        same = id(tensor) in exact or not tensor.is_floating_point()
        return tensor.to(device, tensor.dtype if same else dtype)

    model._apply(move)  # type: ignore[no-untyped-call]
    return model


def _set_length(model: Segmenter, length: LengthConfig) -> None:
    before = set(model.state_dict())
    adapt(model, length)
    new = set(model.state_dict()) - before
    if new:
        raise InputError(
            f"{length} has parameters that these weights of {model.config.name} lack: train them "
            "(models.basam.adapt), or use learnable=False"
        )


def read_model(
    model: str = EMBEDDED, weights: str | Path | None = None, base: str | Path | None = None
) -> Segmenter:
    """The model with its weights, on the CPU in float32; arguments and errors as in ``load``."""
    if weights is not None:
        needed = parts.base_of(weights)
        if needed is not None:
            whole = parts.load_part(weights, _find_base(needed, Path(weights), base))
            check_wanted(whole.config, model, weights)
            return whole
    if base is not None:
        raise InputError("base is for weights that hold only what was trained: leave base out")
    if weights is not None:
        return load_weights(model, weights)
    if model == EMBEDDED:
        with embedded_weights() as path:
            return read_checkpoint(path)
    source = "train them with `anyres train`, or take an official HRSAM checkpoint"
    if isinstance(preset(model).encoder, ViTConfig):
        source = (
            "official SAM checkpoints are listed in the README of "
            "https://github.com/facebookresearch/segment-anything"
        )
    elif isinstance(preset(model).encoder, TinyViTConfig):
        source = (
            "the official checkpoint is weights/mobile_sam.pt of "
            "https://github.com/ChaoningZhang/MobileSAM"
        )
    raise WeightsError(f"{model} comes without weights; {source}: pass the file as weights=")


def _find_base(needed: parts.Base, part: Path, given: str | Path | None) -> Segmenter:
    """The base of a part: what is given, the embedded model, or the file of its name."""
    if given is not None:
        return read_model() if str(given) == EMBEDDED else read_model(weights=given)
    if needed.name == EMBEDDED:
        return read_model()
    for file in (part.with_name(needed.name), Path(needed.name)):
        if file.is_file():
            return read_model(weights=file)
    raise WeightsError(
        f"{part} holds only what was trained on top of {needed.name} (checksum {needed.checksum}), "
        f"which is not beside it: put it there, or pass its path as base="
    )
