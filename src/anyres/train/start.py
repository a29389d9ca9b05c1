"""What a run starts from: a model with its first weights, and what it is saved as."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyres.errors import InputError, WeightsError
from anyres.models import parts
from anyres.models.basam import adapt
from anyres.models.build import build
from anyres.models.config import ModelConfig, TinyViTConfig, ViTConfig
from anyres.models.presets import PRESETS, preset, resized
from anyres.models.segmenter import Segmenter
from anyres.models.stem import ConvStem
from anyres.predict.assets import EMBEDDED
from anyres.predict.load import read_model
from anyres.train.config import NEW, TrainConfig


@dataclass(frozen=True, eq=False)
class Start:
    """The model of a run before its first step.

    Attributes:
        model: in eval mode.
        base: the weights it starts from, where only what is trained is saved; None where the
            whole model is.
    """

    model: Segmenter
    base: parts.Base | None = None


def find_start(config: TrainConfig) -> Start:
    """Make the model that a run begins with.

    New weights are drawn by torch's generator; seed it first.

    Args:
        config: the settings.

    Raises:
        InputError: settings that contradict each other, or an unknown model.
        WeightsError: the weights to start from are missing, damaged, or another model's.
    """
    if config.task == "distil":
        wanted = preset(config.model or NEW)
        return Start(student_of(wanted, read_named(config.teacher), config.image_size))
    if not config.start:
        model = build(_config(config))
        if config.encoder:
            lend_encoder(model, config.encoder)
        return Start(_adapted(model, config))
    if config.image_size:
        raise InputError("image_size is for new weights; those of start have theirs: leave it out")
    model = read_named(config.start, config.model or EMBEDDED)
    base = None
    if config.train:
        name = EMBEDDED if config.start == EMBEDDED else Path(config.start).name
        base = parts.Base(name, parts.checksum(model))
    return Start(_adapted(model, config), base)


def read_named(name: str, model: str = EMBEDDED) -> Segmenter:
    """Read the weights that a setting names.

    Args:
        name: a file, or ``default`` for the embedded weights.
        model: the preset that they must be of; ``default`` takes any.

    Raises:
        WeightsError: as ``read_model``.
    """
    return read_model(name) if name in PRESETS else read_model(model, name)


def lend_encoder(model: Segmenter, name: str) -> None:
    """Give a new model the weights of another's image encoder, wherever names and shapes agree.

    A neck of another width, for one, stays new.

    Args:
        model: changed in place.
        name: of the weights, as ``read_named``; those of any model.

    Raises:
        WeightsError: as ``read_model``; or less than half of the encoder finds its like.
    """
    lender = read_named(name)
    own = model.image_encoder.state_dict()
    theirs = lender.image_encoder.state_dict()
    common = {key: x for key, x in theirs.items() if key in own and own[key].shape == x.shape}
    fits, whole = (sum(x.numel() for x in state.values()) for state in (common, own))
    if 2 * fits < whole:
        raise WeightsError(
            f"the image encoder of {name} is another: {fits:,} of the {whole:,} numbers of "
            f"{model.config.name}'s have their like in it; choose weights of the same architecture"
        )
    model.image_encoder.load_state_dict(own | common)
    # Published weights do not tell what they were trained on: then their name stands for it.
    model.trained_on = lender.trained_on or {Path(name).name: []}


def student_of(config: ModelConfig, teacher: Segmenter, image_size: int = 0) -> Segmenter:
    """A new encoder beside a teacher's prompt encoder and decoder.

    Its embedding has the teacher's channels, so that they can read it. Where they also read finer
    maps of the encoder, the student has a stem that makes such maps: the teacher's stem if that has
    one. Otherwise (TinyViT) the stem is new, its maps mean nothing to the decoder before both are
    fine-tuned.

    Args:
        config: of the student; of it only the encoder and the padding count.
        teacher: left as it was.
        image_size: long side in pixels that the student is for; 0 is the teacher's.

    Raises:
        InputError: the decoder reads finer maps, and the student's encoder can have no stem.
    """
    theirs = teacher.config
    encoder = replace(config.encoder, neck=theirs.decoder.dim)
    details = theirs.encoder.detail_channels if theirs.decoder.details else None
    if details is not None and details != encoder.detail_channels:
        if isinstance(encoder, TinyViTConfig):
            raise InputError(
                f"the decoder of the teacher {theirs.name} reads finer maps of its encoder, and "
                f"{config.name} has no stem to make the like: take an HRSAM or a SAM as student, "
                "or a teacher without decoder.details, such as SAM"
            )
        stem = None if isinstance(theirs.encoder, TinyViTConfig) else theirs.encoder.stem
        encoder = replace(encoder, stem=stem or (details[0] // 2, *details))
    own = replace(
        config,
        encoder=encoder,
        decoder=theirs.decoder,
        bgr=theirs.bgr,
        pixel_mean=theirs.pixel_mean,
        pixel_std=theirs.pixel_std,
    )
    student = build(resized(own, image_size or theirs.image_size))
    for part in ("prompt_encoder", "mask_decoder", "click_maps"):
        if getattr(teacher, part) is not None:
            getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
    _lend_stem(student.image_encoder.patch_embed, teacher.image_encoder.patch_embed)
    return student


def _lend_stem(student: Any, teacher: Any) -> None:
    """Make the finer maps of one stem those of another; its last layer may be of another width."""
    if not isinstance(student, ConvStem) or not isinstance(teacher, ConvStem):
        return
    own = student.state_dict()
    same = {key: x for key, x in teacher.state_dict().items() if x.shape == own[key].shape}
    student.load_state_dict(own | same)


def _config(config: TrainConfig) -> ModelConfig:
    found = preset(config.model or NEW)
    return resized(found, config.image_size) if config.image_size else found


def _adapted(model: Segmenter, config: TrainConfig) -> Segmenter:
    """Change what the settings change of a model's own: its usual size, its length adaptation."""
    if config.native_limit:
        model.config = replace(model.config, native_limit=config.native_limit)
    if not config.distance:
        return model
    encoder = model.config.encoder
    if not isinstance(encoder, ViTConfig):
        raise InputError(
            f"distance is for SAM's image encoder, {model.config.name} has another: leave it out"
        )
    return adapt(model, replace(encoder.length, bias="distance", learnable=True))
