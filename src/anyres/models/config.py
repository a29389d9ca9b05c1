"""Configurations of the models: frozen dataclasses, named presets, JSON in and out.

A configuration holds everything needed to build a model (``models.build``) and travels inside
its checkpoint as JSON. It holds no class paths and no code.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from anyres.errors import InputError, WeightsError

Pad = Literal["square", "patch"]
Positions = Literal["crop", "stretch"]


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """SAM's image encoder (Kirillov et al. 2023; ViTDet backbone)."""

    dim: int = 768
    blocks: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    patch: int = 16
    image_size: int = 1024
    mlp_ratio: float = 4.0
    neck: int = 256
    absolute_positions: bool = True
    relative_positions: bool = True


@dataclass(frozen=True, kw_only=True)
class HRSAMConfig:
    """HRSAM's image encoder (arXiv 2407.02109).

    ``positions`` says how the absolute table meets a rectangle: ``crop`` resizes it by the long
    side's factor on both axes and crops, ``stretch`` resizes each axis by itself (official code).
    ``table`` is the side of the absolute table; 0 means none.
    ``stem`` replaces the patch embedding by convolutions with these widths at strides 2, 4 and 8;
    their stride-4 and stride-8 maps are then handed to the decoder as detail features.
    """

    dim: int = 768
    blocks: int = 12
    heads: int = 12
    window: int = 16
    patch: int = 16
    state: int = 32
    cycles: int = 3
    out_blocks: tuple[int, ...] = (2, 5, 8, 11)
    neck: int = 256
    mlp_ratio: float = 4.0
    table: int = 14
    positions: Positions = "crop"
    stem: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """SAM's prompt encoder and two-way mask decoder.

    ``positions``: ``crop`` normalises coordinates by the long side of the model input, so that a
    rectangle's positions are those inside the padded square; ``stretch`` normalises each axis by
    itself and interpolates the dense positions from the training grid (official HRSAM).
    ``click_maps``: dense maps of the clicks and of what resembles them join the dense prompt
    (``models.click_maps``); needs an encoder with a stem.
    """

    dim: int = 256
    depth: int = 2
    heads: int = 8
    mlp: int = 2048
    mask_channels: int = 16
    multimask_outputs: int = 3
    iou_depth: int = 3
    iou_hidden: int = 256
    positions: Positions = "crop"
    details: bool = False
    click_maps: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole promptable segmentation model.

    ``image_size`` is the long side it was trained at, in pixels. ``native_limit`` is the largest
    long side of ``native``, the default resolution; 0 makes the training size the default.
    ``pixel_mean`` and ``pixel_std`` are in the channel order that the network is fed.
    """

    name: str
    encoder: ViTConfig | HRSAMConfig
    decoder: DecoderConfig
    image_size: int = 1024
    pad: Pad = "square"
    native_limit: int = 0
    bgr: bool = False
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def to_json(self) -> str:
        """The configuration as one line of JSON, readable by ``from_json``."""
        tree = asdict(self)
        tree["encoder"]["type"] = "vit" if isinstance(self.encoder, ViTConfig) else "hrsam"
        return json.dumps(tree)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what ``to_json`` wrote.

        Raises:
            WeightsError: the text is no such configuration.
        """
        try:
            tree = json.loads(text)
            encoder = dict(tree["encoder"])
            kinds: dict[str, type[ViTConfig] | type[HRSAMConfig]] = {
                "vit": ViTConfig,
                "hrsam": HRSAMConfig,
            }
            kind = kinds[encoder.pop("type")]
            tree["encoder"] = _build(kind, encoder)
            tree["decoder"] = _build(DecoderConfig, tree["decoder"])
            model: ModelConfig = _build(cls, tree)
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"the model configuration cannot be read ({error!r}); "
                "it was written by another version or program: save the model again with this one"
            ) from error
        return model


def _build(kind: type[Any], values: dict[str, Any]) -> Any:
    """A dataclass from JSON values; lists become tuples, unknown names are errors."""
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"unknown {kind.__name__} fields: {', '.join(unknown)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _sam(name: str, **encoder: Any) -> ModelConfig:
    return ModelConfig(name=name, encoder=ViTConfig(**encoder), decoder=DecoderConfig())


def _hrsam(name: str, dim: int, heads: int) -> ModelConfig:
    return ModelConfig(
        name=name,
        encoder=HRSAMConfig(dim=dim, heads=heads),
        decoder=DecoderConfig(),
        pad="patch",
        native_limit=2048,
    )


# The embedded model: see docs/decisions for what was tried.
DEFAULT = ModelConfig(
    name="default",
    encoder=HRSAMConfig(
        dim=192,
        blocks=6,
        heads=3,
        window=8,
        state=16,
        cycles=2,
        out_blocks=(2, 5),
        neck=128,
        mlp_ratio=3.0,
        table=0,
        stem=(24, 48, 96),
    ),
    decoder=DecoderConfig(
        dim=128,
        heads=4,
        mlp=512,
        iou_hidden=128,
        details=True,
        click_maps=True,
    ),
    image_size=512,
    pad="patch",
    native_limit=2048,
)

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        DEFAULT,
        _hrsam("hrsam_ti", 192, 3),
        _hrsam("hrsam_s", 384, 6),
        _hrsam("hrsam_b", 768, 12),
        ModelConfig(
            name="sam_ti",
            encoder=ViTConfig(
                dim=192, heads=3, neck=128, window=8, image_size=512, global_blocks=(2, 5, 8, 11)
            ),
            decoder=DecoderConfig(dim=128, heads=4, mlp=512, iou_hidden=128),
            image_size=512,
        ),
        _sam("sam_vit_b"),
        _sam("sam_vit_l", dim=1024, blocks=24, heads=16, global_blocks=(5, 11, 17, 23)),
        _sam("sam_vit_h", dim=1280, blocks=32, heads=16, global_blocks=(7, 15, 23, 31)),
    )
}


def preset(name: str) -> ModelConfig:
    """The preset of this name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(PRESETS)
        raise InputError(f"no model is called {name!r}; choose one of: {known}") from None


def resized(config: ModelConfig, image_size: int) -> ModelConfig:
    """The same model built for another training size (``sam_ti`` at 256, for one).

    Args:
        config: the model to start from.
        image_size: long side of the training input in pixels, a multiple of the patch.
    """
    encoder = config.encoder
    if image_size < encoder.patch or image_size % encoder.patch:
        raise InputError(f"image_size {image_size} is not a multiple of the patch {encoder.patch}")
    if isinstance(encoder, ViTConfig):
        encoder = replace(encoder, image_size=image_size)
    return replace(config, encoder=encoder, image_size=image_size)
