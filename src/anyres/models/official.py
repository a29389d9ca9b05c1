"""Constructor arguments and parameter names of the official code, in terms of ours."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from anyres.errors import InputError, WeightsError
from anyres.models.arguments import Taken
from anyres.models.config import (
    DecoderConfig,
    EncoderConfig,
    HRSAMConfig,
    ModelConfig,
    TinyViTConfig,
    ViTConfig,
)
from anyres.models.presets import PRESETS, preset

Arguments = Mapping[str, Any]

# Official HRSAM names to ours, by what they begin with.
HRSAM_NAMES = (
    ("backbone.", "image_encoder."),
    ("neck.point_embeds.", "prompt_encoder.point_embeddings."),
    ("neck.pos_embed_layer.", "prompt_encoder.pe_layer."),
    ("neck.", "prompt_encoder."),
    ("decode_head.", "mask_decoder."),
)


# Classes whose arguments make a whole model: the image encoder, and the others.
_SAM_ENCODERS = {"sam": "ImageEncoderViT", "mobile_sam": "TinyViT"}
_SAM_PARTS = ("PromptEncoder", "TwoWayTransformer", "MaskDecoder", "Sam")
_HRSAM_ENCODERS = {"hrsam": "HRSAMViT", "hrsam++": "HRSAMPlusPlusViT"}
_HRSAM_PARTS = ("SAMPromptEncoder", "SAMDecoder")


def vit_config(arguments: Arguments) -> ViTConfig:
    """SAM's ``ImageEncoderViT``; what is not given has the official constructor's default.

    Except ``norm_layer``: its default is never used, SAM always passes LayerNorm with eps 1e-6.

    Raises:
        InputError: an argument is unknown or has a value that anyres does not support.
    """
    take = Taken("ImageEncoderViT", arguments)
    take.same("in_chans", 3)
    take.same("qkv_bias", True)
    take.norm("norm_layer", 1e-6)
    take.layer("act_layer", "GELU")
    take.ignore("rel_pos_zero_init")
    config = ViTConfig(
        image_size=take.integer("img_size", 1024),
        patch=take.integer("patch_size", 16),
        dim=take.integer("embed_dim", 768),
        blocks=take.integer("depth", 12),
        heads=take.integer("num_heads", 12),
        mlp_ratio=take.number("mlp_ratio", 4.0),
        neck=take.integer("out_chans", 256),
        absolute_positions=take.flag("use_abs_pos", True),
        relative_positions=take.flag("use_rel_pos", False),
        window=take.integer("window_size", 0, least=0),
        global_blocks=take.integers("global_attn_indexes", ()),
    )
    take.finish()
    return config


def hrsam_config(arguments: Arguments, kind: str = "hrsam") -> HRSAMConfig:
    """``HRSAMViT`` or ``HRSAMPlusPlusViT``; what is not given is as in the published model.

    Args:
        arguments: of the constructor.
        kind: ``"hrsam"`` or ``"hrsam++"``. The latter has the paper's first version of the anchor:
            shifted, of the one size in ``downsample_sizes``.

    Raises:
        InputError: an argument is unknown or has a value that anyres does not support.
    """
    take = Taken(_HRSAM_ENCODERS[kind], arguments)
    take.same("in_dim", 3)
    take.ignore("drop_rate", "attn_drop_rate", "drop_path_rate")
    size, patch = take.integer("img_size", 224), take.integer("patch_size", 16)
    anchor = take.side("downsample_sizes", 512) if kind == "hrsam++" else 0
    config = HRSAMConfig(
        anchor=anchor,
        shift_anchor=anchor > 0,
        table=size // patch,
        patch=patch,
        window=take.integer("window_size", 16),
        dim=take.integer("embed_dim", 768),
        blocks=take.integer("depth", 12),
        heads=take.integer("num_heads", 12),
        mlp_ratio=take.number("mlp_ratio", 4.0),
        out_blocks=take.integers("out_indices", (2, 5, 8, 11)),
        neck=take.integer("final_embed_dim", 256),
        state=take.integer("state_dim", 32),
        cycles=take.integer("extend_ratio", 3),
        positions="stretch",
    )
    take.finish()
    return config


def tiny_vit_config(arguments: Arguments) -> TinyViTConfig:
    """MobileSAM's ``TinyViT``; what is not given is as in the published model.

    Raises:
        InputError: an argument is unknown or has a value that anyres does not support.
    """
    take = Taken("TinyViT", arguments)
    take.same("in_chans", 3)
    take.ignore("num_classes", "drop_rate", "drop_path_rate", "use_checkpoint", "layer_lr_decay")
    known = TinyViTConfig()
    config = TinyViTConfig(
        image_size=take.integer("img_size", known.image_size),
        dims=take.integers("embed_dims", known.dims),
        depths=take.integers("depths", known.depths),
        # The first stage is given them too, and makes nothing of them.
        heads=take.integers("num_heads", (0, *known.heads))[1:],
        windows=take.integers("window_sizes", (0, *known.windows))[1:],
        mlp_ratio=take.number("mlp_ratio", known.mlp_ratio),
        expand=take.number("mbconv_expand_ratio", known.expand),
        local_conv=take.integer("local_conv_size", known.local_conv),
    )
    take.finish()
    return config


def sam_config(arguments: Arguments, kind: str = "sam") -> ModelConfig:
    """A whole SAM: dicts of arguments by class name, or the image encoder's arguments alone.

    The classes are ``ImageEncoderViT`` (``TinyViT`` of MobileSAM), ``PromptEncoder``,
    ``TwoWayTransformer``, ``MaskDecoder`` and ``Sam`` (for ``pixel_mean`` and ``pixel_std``, which
    are in no official file). What is not given of the last four is as in the published models.

    Args:
        arguments: of the constructors.
        kind: ``"sam"`` or ``"mobile_sam"``.

    Raises:
        InputError: an argument is unknown, not supported, or contradicts another.
    """
    name = _SAM_ENCODERS[kind]
    parts = _parts(arguments, (name, *_SAM_PARTS))
    read = tiny_vit_config if kind == "mobile_sam" else vit_config
    encoder = read(parts.take(name))
    size, side = encoder.image_size, encoder.image_size // encoder.patch
    prompts = Taken("PromptEncoder", parts.take("PromptEncoder"))
    dim = prompts.integer("embed_dim", encoder.neck)
    prompts.same("image_embedding_size", (side, side))
    prompts.same("input_image_size", (size, size))
    prompts.layer("activation", "GELU")
    transformer = Taken("TwoWayTransformer", parts.take("TwoWayTransformer"))
    transformer.same("embedding_dim", dim)
    transformer.layer("activation", "ReLU")
    transformer.same("attention_downsample_rate", 2)
    masks = Taken("MaskDecoder", parts.take("MaskDecoder"))
    masks.same("transformer_dim", dim)
    masks.layer("activation", "GELU")
    channels = prompts.integer("mask_in_chans", 16, least=4)
    decoder = _decoder(dim, channels, transformer, masks)
    colours = Taken("Sam", parts.take("Sam"))
    mean, std = (
        colours.triple(name, getattr(ModelConfig, name)) for name in ("pixel_mean", "pixel_std")
    )
    for part in (prompts, transformer, masks, colours, parts):
        part.finish()
    config = ModelConfig(
        name=kind,
        encoder=encoder,
        decoder=decoder,
        image_size=size,
        pixel_mean=mean,
        pixel_std=std,
    )
    return _preset_alike(config)


def hrsam_model_config(arguments: Arguments, kind: str = "hrsam") -> ModelConfig:
    """A whole HRSAM or HRSAM++: dicts of arguments by class name.

    The classes are ``HRSAMViT`` (``HRSAMPlusPlusViT``), ``SAMPromptEncoder`` and ``SAMDecoder``;
    what is not given is as in the published model. As official HRSAM works: channels in the order
    blue, green, red, pictures padded to squares, dense positions interpolated.

    Raises:
        InputError: an argument is unknown, not supported, or contradicts another.
    """
    name = _HRSAM_ENCODERS[kind]
    parts = _parts(arguments, (name, *_HRSAM_PARTS))
    encoder = hrsam_config(parts.take(name), kind)
    prompts = Taken("SAMPromptEncoder", parts.take("SAMPromptEncoder"))
    dim = prompts.integer("embed_dim", encoder.neck)
    size = prompts.integers("input_image_size", (1024, 1024))
    if len(size) != 2 or size[0] != size[1] or size[0] < encoder.patch or size[0] % encoder.patch:
        raise InputError(
            f"SAMPromptEncoder: input_image_size is {size}; anyres reads squares of whole patches"
        )
    side = size[0] // encoder.patch
    prompts.same("image_embed_size", (side, side))
    masks = Taken("SAMDecoder", parts.take("SAMDecoder"))
    masks.same("in_dim", dim)
    masks.ignore("num_classes", "align_corners", "loss_decode")
    transformer = Taken("SAMDecoder attn_cfg", masks.take("attn_cfg"))
    channels = prompts.integer("mask_in_dim", 16, least=4)
    decoder = _decoder(dim, channels, transformer, masks)
    for part in (prompts, transformer, masks, parts):
        part.finish()
    alike = replace(encoder, positions=HRSAMConfig.positions)
    names = [name for name, known in PRESETS.items() if known.encoder == alike]
    return ModelConfig(
        name=names[0] if names else kind,
        encoder=encoder,
        decoder=replace(decoder, positions="stretch"),
        image_size=size[0],
        native_limit=max(2048, size[0]),
        bgr=True,
    )


def encoder_config(kind: str, arguments: Arguments) -> EncoderConfig:
    """An image encoder: its own arguments, or those by class name.

    Raises:
        InputError: one of the encoder's arguments is unknown or not supported.
    """
    name = (_SAM_ENCODERS | _HRSAM_ENCODERS)[kind]
    names = (name, *(_SAM_PARTS if kind in _SAM_ENCODERS else _HRSAM_PARTS))
    parts = _parts(arguments, names)
    own = parts.take(name)
    parts.ignore(*names)
    parts.finish()
    if kind in _HRSAM_ENCODERS:
        return hrsam_config(own, kind)
    return tiny_vit_config(own) if kind == "mobile_sam" else vit_config(own)


def _parts(arguments: Arguments, names: tuple[str, ...]) -> Taken:
    """Arguments by class name; those that are not by class are the first one's."""
    parts = Taken("the configuration", arguments)
    if not any(name in parts.left for name in names):
        parts.left = {names[0]: parts.left}
    return parts


def _decoder(dim: int, channels: int, transformer: Taken, masks: Taken) -> DecoderConfig:
    return DecoderConfig(
        dim=dim,
        mask_channels=channels,
        depth=transformer.integer("depth", 2),
        heads=transformer.integer("num_heads", 8),
        mlp=transformer.integer("mlp_dim", 2048),
        multimask_outputs=masks.integer("num_multimask_outputs", 3),
        iou_depth=masks.integer("iou_head_depth", 3),
        iou_hidden=masks.integer("iou_head_hidden_dim", 256),
    )


def _preset_alike(config: ModelConfig) -> ModelConfig:
    """The preset that differs by its name only, or else the configuration itself."""
    for known in PRESETS.values():
        if replace(config, name=known.name) == known:
            return known
    return config


def recognise(kind: str, state: Mapping[str, Tensor], prefix: str) -> ModelConfig:
    """The published model whose image encoder has the width and depth of this state dict.

    Args:
        kind: ``"sam"``, ``"mobile_sam"``, ``"hrsam"`` or ``"hrsam++"``.
        state: a state dict.
        prefix: what the names of the encoder's parameters begin with.

    Raises:
        WeightsError: there is none; the message says what was seen.
    """
    if kind == "sam":
        published = [c for name, c in PRESETS.items() if name.startswith("sam_vit_")]
    elif kind == "mobile_sam":
        published = [preset("mobile_sam")]
    else:
        published = [hrsam_model_config({}, kind)]
    width, depth = encoder_size(state, prefix)
    for config in published:
        if (config.encoder.dim, config.encoder.blocks) == (width, depth):
            return config
    seen = f"it has {depth} blocks with {width} channels" if depth else "it has no image encoder"
    known = (f"{c.name}: {c.encoder.blocks} with {c.encoder.dim}" for c in published)
    raise WeightsError(
        f"this is no published model ({'; '.join(known)}), {seen}; give the official constructor's "
        "arguments as config"
    )


def encoder_size(state: Mapping[str, Tensor], prefix: str) -> tuple[int, int]:
    """Channels (of the last stage) and number of blocks of an image encoder; 0 if not seen."""
    for name, axis in (("patch_embed.proj.weight", 0), ("neck.0.weight", 1)):
        weight = state.get(prefix + name)
        width = weight.shape[axis] if weight is not None and weight.ndim > axis else 0
        if width:
            break
    pattern = re.compile(re.escape(prefix) + r"((layers\.\d+\.)?blocks\.\d+)\.")
    return width, len({match[1] for name in state if (match := pattern.match(name))})


def is_tiny_vit(state: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether an image encoder has stages, as MobileSAM's has."""
    return any(name.startswith(f"{prefix}layers.") for name in state)


def without_leftovers(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A state dict of MobileSAM without what its answers do not depend on.

    That is: the classifier that TinyViT was trained with first (``norm_head``, ``head``), how many
    pictures each normalisation has seen (``num_batches_tracked``), and the tables that say which
    bias is that of which pair of tokens (``attention_bias_idxs``). Some files have them.

    Args:
        state: a state dict.
        prefix: what the names of the encoder's parameters begin with.
    """
    left = {
        f"{prefix}{part}.{kind}" for part in ("head", "norm_head") for kind in ("weight", "bias")
    }
    for name in state:
        stem, _, last = name.rpartition(".")
        counts = last == "num_batches_tracked" and f"{stem}.running_var" in state
        pairs = last == "attention_bias_idxs" and f"{stem}.attention_biases" in state
        if name.startswith(prefix) and (counts or pairs):
            left.add(name)
    return {name: tensor for name, tensor in state.items() if name not in left}
