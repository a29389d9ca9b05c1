"""The models that have names."""

from dataclasses import replace
from typing import Any

from anyres.errors import InputError
from anyres.models.config import (
    DecoderConfig,
    HRSAMConfig,
    ModelConfig,
    TinyViTConfig,
    ViTConfig,
)

# A decoder for one person's clicks, and what a small encoder beside it gives.
_LIGHT = DecoderConfig(dim=128, heads=4, mlp=512, iou_hidden=128, details=True, click_maps=True)


def _sam(name: str, **encoder: Any) -> ModelConfig:
    return ModelConfig(name=name, encoder=ViTConfig(**encoder), decoder=DecoderConfig())


def _hrsam(name: str, dim: int, heads: int, anchor: int = 0) -> ModelConfig:
    return ModelConfig(
        name=name,
        encoder=HRSAMConfig(dim=dim, heads=heads, anchor=anchor),
        decoder=DecoderConfig(),
        pad="patch",
        native_limit=2048,
    )


def _small_hrsam(name: str, anchor: int = 0) -> ModelConfig:
    encoder = HRSAMConfig(
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
        anchor=anchor,
    )
    return ModelConfig(
        name=name,
        encoder=encoder,
        decoder=_LIGHT,
        image_size=512,
        pad="patch",
        native_limit=2048,
    )


# The embedded model: see docs/decisions for what was tried.
DEFAULT = ModelConfig(
    name="default",
    encoder=TinyViTConfig(neck=128),
    decoder=_LIGHT,
    pad="patch",
    native_limit=2048,
)

PRESETS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        DEFAULT,
        _small_hrsam("hrsam_xs"),
        _small_hrsam("hrsam_pp_xs", anchor=128),
        _hrsam("hrsam_ti", 192, 3),
        _hrsam("hrsam_s", 384, 6),
        _hrsam("hrsam_b", 768, 12),
        _hrsam("hrsam_pp_ti", 192, 3, anchor=256),
        _hrsam("hrsam_pp_s", 384, 6, anchor=256),
        _hrsam("hrsam_pp_b", 768, 12, anchor=256),
        ModelConfig(
            name="sam_ti",
            encoder=ViTConfig(dim=192, heads=3, neck=128, window=8, image_size=512),
            decoder=DecoderConfig(dim=128, heads=4, mlp=512, iou_hidden=128),
            image_size=512,
        ),
        # As wide and as deep as hrsam_xs, with global attention where that has scans.
        ModelConfig(
            name="sam_xs",
            encoder=ViTConfig(
                dim=192,
                blocks=6,
                heads=3,
                global_blocks=(2, 5),
                window=8,
                neck=128,
                mlp_ratio=3.0,
                stem=(24, 48, 96),
                image_size=512,
            ),
            decoder=_LIGHT,
            image_size=512,
        ),
        _sam("sam_vit_b"),
        _sam("sam_vit_l", dim=1024, blocks=24, heads=16, global_blocks=(5, 11, 17, 23)),
        _sam("sam_vit_h", dim=1280, blocks=32, heads=16, global_blocks=(7, 15, 23, 31)),
        ModelConfig(name="mobile_sam", encoder=TinyViTConfig(), decoder=DecoderConfig()),
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

    Raises:
        InputError: it is none.
    """
    encoder = config.encoder
    if isinstance(encoder, ViTConfig | TinyViTConfig):
        encoder = replace(encoder, image_size=image_size)
    return replace(config, encoder=encoder, image_size=image_size)
