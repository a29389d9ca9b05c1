"""BA-SAM (CVPR 2024, arXiv 2401.02317): adapting a SAM that exists, and reading official ones.

What the adaptation does is in ``ops.length``; the encoder that does it is ``models.vit``.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from anyres.errors import InputError
from anyres.models.config import EncoderConfig, ModelConfig, ViTConfig
from anyres.models.segmenter import Segmenter
from anyres.models.tiny_vit import TinyViT
from anyres.models.vit import ImageEncoderViT
from anyres.ops.attention import resize_relative_table
from anyres.ops.length import LengthConfig


def adapt(model: Segmenter, length: LengthConfig) -> Segmenter:
    """Let a SAM or MobileSAM adapt to other lengths in another way, in place.

    Parameters that this needs start as ``length`` says, on the model's device and in its
    precision: give the model to an optimiser after this. Nothing changes where the way is the
    same.

    Args:
        model: with SAM's or MobileSAM's image encoder.
        length: the way.

    Returns:
        The model.

    Raises:
        InputError: the model has another encoder or no use for this way, or was trained with
            parameters for its own way, which would be lost.
    """
    encoder = model.image_encoder
    if not isinstance(encoder, ImageEncoderViT | TinyViT):
        raise InputError(
            f"{model.config.name} has no global attention whose length could change; "
            "length is for SAM's image encoder and MobileSAM's: leave it out"
        )
    own = encoder.config.length
    if own == length:
        return model
    if own.learned:
        raise InputError(
            f"these weights of {model.config.name} were trained with {own}: leave length out"
        )
    encoder.adapt(length)
    model.config = replace(model.config, encoder=encoder.config)
    return model


def model_config(
    config: ModelConfig, state: Mapping[str, Tensor], prefix: str, published: bool
) -> ModelConfig:
    """As ``encoder_config``, for a whole model."""
    if not isinstance(config.encoder, ViTConfig):
        return config
    encoder = encoder_config(config.encoder, state, prefix, published)
    size = encoder.image_size if published else config.image_size
    return replace(config, encoder=encoder, image_size=size)


def encoder_config(
    config: ViTConfig, state: Mapping[str, Tensor], prefix: str, published: bool
) -> ViTConfig:
    """Official BA-SAM's encoder if most blocks have its coefficient, else SAM's as it is.

    Args:
        config: SAM's encoder of the same constructor arguments.
        state: a state dict.
        prefix: what the names of the encoder's parameters begin with.
        published: whether ``config`` is that of a published SAM and not of the caller. Then the
            size, and whether there are absolute positions (BA-SAM is built without), are seen in
            the state dict.

    Raises:
        InputError: it was built for a size below 1024, where the official code crashes.
    """
    blocks = range(config.blocks)
    found = sum(f"{prefix}blocks.{i}.attn.coefficient" in state for i in blocks)
    # Not of just any: then what is wrong with a damaged file is said of the likelier model.
    if 2 * found <= config.blocks:
        return config
    built_for = config.image_size
    # The scale is that of the size the model was built for, the tables may be those of another.
    # Absolute positions are not: the official code can add them at the size it was built for only.
    positions = state.get(f"{prefix}pos_embed")
    if positions is None:
        tables = (state.get(f"{prefix}blocks.{i}.attn.rel_pos_h") for i in config.global_blocks)
        sides = {(table.shape[0] + 1) // 2 for table in tables if table is not None and table.ndim}
        if len(sides) == 1:
            config = replace(config, image_size=sides.pop() * config.patch)
    elif published and positions.ndim == 4:
        config = replace(config, image_size=positions.shape[1] * config.patch)
    if published:
        built_for = config.image_size
        config = replace(config, absolute_positions=positions is not None)
    length = LengthConfig(scale="official", bias="coefficient", official_size=built_for)
    return replace(config, length=length)


def fitted(config: EncoderConfig, state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """A state dict whose relative positions are for the size of the absolute ones.

    Official BA-SAM resizes tables of another size in each call. With absolute positions all its
    calls are at one size, so that this is the same.

    Args:
        config: what ``encoder_config`` made of the state dict.
        state: the state dict.
        prefix: what the names of the encoder's parameters begin with.
    """
    if not isinstance(config, ViTConfig) or config.length.bias != "coefficient":
        return state
    if not config.absolute_positions:
        return state
    side = config.image_size // config.patch
    tables = {
        name: resize_relative_table(state[name], side)
        for i in config.global_blocks
        for axis in "hw"
        if (name := f"{prefix}blocks.{i}.attn.rel_pos_{axis}") in state and state[name].ndim == 2
    }
    return {**state, **tables}
