"""Configurations of the models: frozen dataclasses, JSON in and out.

A configuration holds everything needed to build a model (``models.build``) and travels inside
its checkpoint as JSON. It holds no class paths and no code. One that makes no model cannot be
constructed: ``InputError`` says what contradicts what.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from anyres.errors import InputError, WeightsError
from anyres.models.typed import build_typed
from anyres.ops.length import LengthConfig, mobile_scale

Pad = Literal["square", "patch"]
Positions = Literal["crop", "stretch"]

# The stem's four convolutions of stride 2 reach this, whatever the patch.
STEM_STRIDE = 16


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """SAM's image encoder (Kirillov et al. 2023; ViTDet backbone).

    ``image_size`` is the side in pixels of the square that the tables of positions are learned on.
    ``length`` says how global attention adapts to other sizes (BA-SAM).
    ``stem`` replaces the patch embedding by convolutions, as in ``HRSAMConfig``.
    """

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
    length: LengthConfig = field(default_factory=LengthConfig)
    stem: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        _check_sizes(self, zero=("window",))
        _check_stem(self)
        _check(
            self.relative_positions or self.length.bias != "coefficient",
            "length.bias 'coefficient' multiplies relative positions, which this encoder has not",
        )
        _check(
            self.dim % self.heads == 0,
            f"the encoder's {self.dim} channels do not divide by its {self.heads} heads",
        )

    @property
    def detail_channels(self) -> tuple[int, int] | None:
        """Channels of the maps at strides 4 and 8 beside the embedding; None without a stem."""
        return None if self.stem is None else self.stem[1:]


@dataclass(frozen=True, kw_only=True)
class HRSAMConfig:
    """The image encoder of HRSAM or HRSAM++ (arXiv 2407.02109).

    ``positions`` says how the absolute table meets a rectangle: ``crop`` resizes it by the long
    side's factor on both axes and crops, ``stretch`` resizes each axis by itself (official code).
    ``table`` is the side of the absolute table; 0 means none.
    ``stem`` replaces the patch embedding by convolutions with these widths at strides 2, 4 and 8;
    their stride-4 and stride-8 maps are then handed to the decoder as detail features.
    ``anchor`` makes it HRSAM++: the side in pixels of the square that the picture is shrunk to and
    seen beside itself; 0 means none. ``shift_anchor``: the anchor's windows are shifted in odd
    blocks like the picture's, and it is shrunk without smoothing (the paper's first version, at
    512, and the official weights). Otherwise they never are (its second version: 256, one window).
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
    anchor: int = 0
    shift_anchor: bool = False

    def __post_init__(self) -> None:
        _check_sizes(self, zero=("table", "anchor"))
        _check(
            self.anchor % self.patch == 0,
            f"anchor {self.anchor} is not a multiple of the patch {self.patch}",
        )
        _check(
            self.anchor > 0 or not self.shift_anchor,
            "shift_anchor needs an anchor; set anchor, 512 in the paper's first version",
        )
        # Rotary positions turn pairs of channels, half of them by the row, half by the column.
        _check(
            self.dim % (4 * self.heads) == 0,
            f"the encoder's {self.dim} channels do not divide by its {self.heads} heads times 4",
        )
        outs = self.out_blocks
        _check(
            bool(outs) and set(outs) <= set(range(self.blocks)) and len(set(outs)) == len(outs),
            f"out_blocks {outs} are not one or more of its {self.blocks} blocks, each once",
        )
        _check_stem(self)

    @property
    def detail_channels(self) -> tuple[int, int] | None:
        """Channels of the maps at strides 4 and 8 beside the embedding; None without a stem."""
        return None if self.stem is None else self.stem[1:]


@dataclass(frozen=True, kw_only=True)
class TinyViTConfig:
    """MobileSAM's image encoder (Zhang et al. 2023; TinyViT, Wu et al. 2022).

    Two to four stages: convolutions first, then attention in windows. The second and third are
    each half as fine as the one before; a fourth is not, so that the grid is SAM's.

    ``dims`` and ``depths`` are the channels and blocks of each stage, ``heads`` and ``windows``
    (sides, in tokens) of those after the first. ``expand`` widens the first stage's blocks inside.
    ``local_conv`` is the side of the convolution between attention and MLP. ``image_size`` is the
    side in pixels of the square it is trained at. ``length`` says how attention adapts to others
    (``ops.length.mobile_scale``); by default it does not, no window ever changes its length.
    """

    dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 5, 10)
    windows: tuple[int, ...] = (7, 14, 7)
    mlp_ratio: float = 4.0
    expand: float = 4.0
    local_conv: int = 3
    image_size: int = 1024
    neck: int = 256
    length: LengthConfig = field(default_factory=lambda: LengthConfig(scale="none"))

    def __post_init__(self) -> None:
        _check_sizes(self)
        stages = len(self.dims)
        lengths = (len(self.depths), len(self.heads) + 1, len(self.windows) + 1)
        _check(
            2 <= stages <= 4 and set(lengths) == {stages},
            f"an encoder of {stages} stages has 2 to 4 dims, as many depths, and one less of heads "
            f"and of windows, not {self}",
        )
        _check(
            min(self.dims[0] // 2, *self.dims, *self.depths, *self.heads, *self.windows) > 0,
            f"all of dims, depths, heads and windows are at least 1, and dims[0] 2, not in {self}",
        )
        for dim, heads in zip(self.dims[1:], self.heads, strict=True):
            _check(dim % heads == 0, f"the stage's {dim} channels do not divide by {heads} heads")
        _check(self.local_conv % 2 == 1, f"local_conv is {self.local_conv}; it must be odd")
        mobile_scale(self.length, self.image_size)  # refuses what has no meaning here

    @property
    def detail_channels(self) -> tuple[int, int] | None:
        """Channels of the first two stages, at strides 4 and 8, if they are not the last."""
        return (self.dims[0], self.dims[1]) if len(self.dims) > 2 else None

    @property
    def patch(self) -> int:
        """Pixels of a token's side at the end."""
        return 4 << min(len(self.dims) - 1, 2)

    @property
    def dim(self) -> int:
        """Channels of the last stage."""
        return self.dims[-1]

    @property
    def blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def window(self) -> int:
        """Side of the largest window, in tokens."""
        return max(self.windows)


EncoderConfig = ViTConfig | HRSAMConfig | TinyViTConfig
# By the names that they have in checkpoints.
_ENCODERS = {"vit": ViTConfig, "hrsam": HRSAMConfig, "tiny_vit": TinyViTConfig}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """SAM's prompt encoder and two-way mask decoder.

    ``positions``: ``crop`` normalises coordinates by the long side of the model input, so that a
    rectangle's positions are those inside the padded square; ``stretch`` normalises each axis by
    itself and interpolates the dense positions from the training grid (official HRSAM).
    ``click_maps``: dense maps of the clicks and of what resembles them join the dense prompt
    (``models.click_maps``); needs details. ``details``: the encoder's finer maps join the
    upscaling; needs an encoder that has ``detail_channels``.
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

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check(
            self.dim % (2 * self.heads) == 0,
            f"the decoder's {self.dim} channels do not divide by twice its {self.heads} heads",
        )
        _check(self.dim % 8 == 0, f"the decoder's {self.dim} channels do not divide by 8")
        _check(
            self.mask_channels >= 4, f"mask_channels is {self.mask_channels}; it must be at least 4"
        )
        _check(
            self.details or not self.click_maps,
            "decoder.click_maps needs decoder.details; set both",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole promptable segmentation model.

    ``image_size`` is the long side it was trained at, in pixels. Where there is a ``native_limit``,
    pictures are fed by default at their own size, those outside of these two brought to the
    nearer one; 0 makes the training size the default.
    ``pixel_mean`` and ``pixel_std`` are in the channel order that the network is fed.
    """

    name: str
    encoder: EncoderConfig
    decoder: DecoderConfig
    image_size: int = 1024
    pad: Pad = "square"
    native_limit: int = 0
    bgr: bool = False
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        _check_sizes(self, zero=("native_limit",))
        encoder, decoder = self.encoder, self.decoder
        _check(
            encoder.neck == decoder.dim,
            f"the encoder gives {encoder.neck} channels and the decoder takes {decoder.dim}; "
            "set encoder.neck and decoder.dim alike",
        )
        _check(
            not decoder.details or encoder.detail_channels is not None,
            "decoder.details needs an encoder with maps at strides 4 and 8: set encoder.stem "
            "(ViT, HRSAM), or take a TinyViT of three or four stages",
        )
        _check(
            self.image_size % encoder.patch == 0,
            f"image_size {self.image_size} is not a multiple of the patch {encoder.patch}",
        )
        _check(min(self.pixel_std) > 0, f"pixel_std is {self.pixel_std}; all must be positive")

    def to_json(self) -> str:
        """The configuration as one line of JSON, readable by ``from_json``."""
        tree = asdict(self)
        kinds = (name for name, kind in _ENCODERS.items() if type(self.encoder) is kind)
        tree["encoder"]["type"] = next(kinds)
        return json.dumps(tree)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what ``to_json`` wrote.

        Raises:
            WeightsError: the text is no such configuration, or makes no model; the message names
                the field.
        """
        try:
            tree = json.loads(text)
            encoder = dict(tree["encoder"])
            kind = _ENCODERS[encoder.pop("type")]
            tree["encoder"] = build_typed(kind, encoder)
            tree["decoder"] = build_typed(DecoderConfig, tree["decoder"])
            model: ModelConfig = build_typed(cls, tree)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"the model configuration cannot be read ({type(error).__name__}: {error}); "
                "it was written by another version or program: save the model again with this one"
            ) from error
        return model


def _check_sizes(config: Any, zero: tuple[str, ...] = ()) -> None:
    """Whole numbers are at least 1, those named in ``zero`` at least 0."""
    for each in fields(config):
        value, least = getattr(config, each.name), 0 if each.name in zero else 1
        _check(
            not isinstance(value, int) or isinstance(value, bool) or value >= least,
            f"{type(config).__name__}.{each.name} is {value}; it must be at least {least}",
        )


def _check_stem(config: ViTConfig | HRSAMConfig) -> None:
    stem, patch = config.stem, config.patch
    _check(
        stem is None or (patch == STEM_STRIDE and min(stem) > 0),
        f"a stem has positive widths and patch {STEM_STRIDE}, not {stem} and {patch}",
    )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise InputError(message)
