"""Constructor arguments and parameter names of the official code, in terms of ours."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from anyres.errors import InputError, WeightsError
from anyres.models.config import (
    PRESETS,
    DecoderConfig,
    HRSAMConfig,
    ModelConfig,
    ViTConfig,
)

Arguments = Mapping[str, Any]

# Official HRSAM names to ours, by what they begin with.
HRSAM_NAMES = (
    ("backbone.", "image_encoder."),
    ("neck.point_embeds.", "prompt_encoder.point_embeddings."),
    ("neck.pos_embed_layer.", "prompt_encoder.pe_layer."),
    ("neck.", "prompt_encoder."),
    ("decode_head.", "mask_decoder."),
)


# Classes whose arguments make a whole model; the image encoder first.
_SAM_PARTS = ("ImageEncoderViT", "PromptEncoder", "TwoWayTransformer", "MaskDecoder", "Sam")
_HRSAM_ENCODERS = {"hrsam": "HRSAMViT", "hrsam++": "HRSAMPlusPlusViT"}
_HRSAM_PARTS = ("SAMPromptEncoder", "SAMDecoder")


class _Arguments:
    """Official constructor arguments, taken one by one; what is left at the end is unknown."""

    def __init__(self, owner: str, arguments: Any) -> None:
        if not isinstance(arguments, Mapping):
            raise InputError(
                f"the arguments of {owner} are a dict of names and values, not {arguments!r}"
            )
        self.owner = owner
        self.left = dict(arguments)

    def integer(self, name: str, default: int, least: int = 1) -> int:
        """A whole number."""
        value = self.left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(name, value, f"a whole number from {least} on")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def take(self, name: str) -> Any:
        """Arguments of another class that are nested here; none if they are not given."""
        return self.left.pop(name, {})

    def triple(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """A number for each colour."""
        value = self.left.pop(name, default)
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise self._wrong(name, value, "three numbers")
        first, second, third = (float(v) for v in value)
        return first, second, third

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self.left.pop(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "True or False")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A sequence of whole numbers."""
        value = self.left.pop(name, default)
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            raise self._wrong(name, value, "a sequence of whole numbers")
        return tuple(value)

    def side(self, name: str, default: int) -> int:
        """The one whole number of a sequence."""
        value = self.integers(name, (default,))
        if len(value) != 1 or value[0] < 1:
            raise self._wrong(name, value, "a sequence of one size in pixels")
        return value[0]

    def same(self, name: str, supported: Any) -> None:
        """An argument for which there is only one choice here."""
        value = self.left.pop(name, supported)
        if (tuple(value) if isinstance(value, list) else value) != supported:
            raise self._wrong(name, value, repr(supported))

    def layer(self, name: str, wanted: str) -> None:
        """A class of layers, as itself or by name; only one is supported."""
        value = self.left.pop(name, wanted)
        text = value if isinstance(value, str) else getattr(value, "__name__", repr(value))
        if wanted not in text:
            raise self._wrong(name, value, wanted)

    def norm(self, name: str, eps: float) -> None:
        """A LayerNorm with this eps: a constructor, or text such as ``LayerNorm(eps=1e-6)``."""
        value = self.left.pop(name, None)
        if value is None:
            return
        text = value if isinstance(value, str) else repr(value(1) if callable(value) else value)
        found = re.search(r"eps\s*=\s*([0-9.e+-]+)", text)
        if "LayerNorm" not in text or float(found[1].rstrip(".") if found else 1e-5) != eps:
            raise self._wrong(name, value, f"a LayerNorm with eps {eps}")

    def ignore(self, *names: str) -> None:
        """Arguments that change neither weights nor answers."""
        for name in names:
            self.left.pop(name, None)

    def finish(self) -> None:
        """Make sure that nothing is left."""
        if self.left:
            raise InputError(
                f"{self.owner} has no argument {', '.join(map(repr, self.left))}; give those of "
                "the official constructor"
            )

    def _wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.owner}: {name} is {value!r}; anyres reads {wanted}")


def vit_config(arguments: Arguments) -> ViTConfig:
    """SAM's ``ImageEncoderViT``; what is not given has the official constructor's default.

    Except ``norm_layer``: its default is never used, SAM always passes LayerNorm with eps 1e-6.

    Raises:
        InputError: an argument is unknown or has a value that anyres does not support.
    """
    take = _Arguments("ImageEncoderViT", arguments)
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
    take = _Arguments(_HRSAM_ENCODERS[kind], arguments)
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


def sam_config(arguments: Arguments) -> ModelConfig:
    """A whole SAM: dicts of arguments by class name, or the image encoder's arguments alone.

    The classes are ``ImageEncoderViT``, ``PromptEncoder``, ``TwoWayTransformer``, ``MaskDecoder``
    and ``Sam`` (for ``pixel_mean`` and ``pixel_std``, which are in no official file). What is not
    given of the last four is as in the published models.

    Raises:
        InputError: an argument is unknown, not supported, or contradicts another.
    """
    parts = _parts(arguments, _SAM_PARTS)
    encoder = vit_config(parts.take("ImageEncoderViT"))
    size, side = encoder.image_size, encoder.image_size // encoder.patch
    prompts = _Arguments("PromptEncoder", parts.take("PromptEncoder"))
    dim = prompts.integer("embed_dim", encoder.neck)
    prompts.same("image_embedding_size", (side, side))
    prompts.same("input_image_size", (size, size))
    prompts.layer("activation", "GELU")
    transformer = _Arguments("TwoWayTransformer", parts.take("TwoWayTransformer"))
    transformer.same("embedding_dim", dim)
    transformer.layer("activation", "ReLU")
    transformer.same("attention_downsample_rate", 2)
    masks = _Arguments("MaskDecoder", parts.take("MaskDecoder"))
    masks.same("transformer_dim", dim)
    masks.layer("activation", "GELU")
    channels = prompts.integer("mask_in_chans", 16, least=4)
    decoder = _decoder(dim, channels, transformer, masks)
    colours = _Arguments("Sam", parts.take("Sam"))
    mean, std = (
        colours.triple(name, getattr(ModelConfig, name)) for name in ("pixel_mean", "pixel_std")
    )
    for part in (prompts, transformer, masks, colours, parts):
        part.finish()
    config = ModelConfig(
        name="sam",
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
    prompts = _Arguments("SAMPromptEncoder", parts.take("SAMPromptEncoder"))
    dim = prompts.integer("embed_dim", encoder.neck)
    size = prompts.integers("input_image_size", (1024, 1024))
    if len(size) != 2 or size[0] != size[1] or size[0] < encoder.patch or size[0] % encoder.patch:
        raise InputError(
            f"SAMPromptEncoder: input_image_size is {size}; anyres reads squares of whole patches"
        )
    side = size[0] // encoder.patch
    prompts.same("image_embed_size", (side, side))
    masks = _Arguments("SAMDecoder", parts.take("SAMDecoder"))
    masks.same("in_dim", dim)
    masks.ignore("num_classes", "align_corners", "loss_decode")
    transformer = _Arguments("SAMDecoder attn_cfg", masks.take("attn_cfg"))
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


def encoder_config(kind: str, arguments: Arguments) -> ViTConfig | HRSAMConfig:
    """An image encoder: its own arguments, or those by class name.

    Raises:
        InputError: one of the encoder's arguments is unknown or not supported.
    """
    names = _SAM_PARTS if kind == "sam" else (_HRSAM_ENCODERS[kind], *_HRSAM_PARTS)
    parts = _parts(arguments, names)
    own = parts.take(names[0])
    parts.ignore(*names)
    parts.finish()
    return vit_config(own) if kind == "sam" else hrsam_config(own, kind)


def _parts(arguments: Arguments, names: tuple[str, ...]) -> _Arguments:
    """Arguments by class name; those that are not by class are the first one's."""
    parts = _Arguments("the configuration", arguments)
    if not any(name in parts.left for name in names):
        parts.left = {names[0]: parts.left}
    return parts


def _decoder(dim: int, channels: int, transformer: _Arguments, masks: _Arguments) -> DecoderConfig:
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
        kind: ``"sam"``, ``"hrsam"`` or ``"hrsam++"``.
        state: a state dict.
        prefix: what the names of the encoder's parameters begin with.

    Raises:
        WeightsError: there is none; the message says what was seen.
    """
    if kind == "sam":
        published = [c for name, c in PRESETS.items() if name.startswith("sam_vit_")]
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
    """Channels and number of blocks of an image encoder; 0 where they cannot be seen."""
    projection = state.get(f"{prefix}patch_embed.proj.weight")
    width = projection.shape[0] if projection is not None and projection.ndim else 0
    pattern = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    found = {int(match[1]) for name in state if (match := pattern.match(name))}
    return width, len(found)
