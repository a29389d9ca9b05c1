"""A promptable segmentation model: image encoder, prompt encoder, mask decoder (SAM's three parts).

Shapes: B pictures, P prompts, N points, M masks, C channels, (H, W) model input in pixels,
(h, w) token grid. Coordinates are XY in pixels of the model input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.errors import InputError
from anyres.models.click_maps import ClickMaps, Landmarks
from anyres.models.config import ModelConfig
from anyres.models.hrsam import HRSAMEncoder
from anyres.models.mask_decoder import MaskDecoder
from anyres.models.prompt_encoder import PromptEncoder
from anyres.ops import block
from anyres.ops.threads import alone, runs_in_parts


@dataclass(frozen=True, eq=False)
class Features:
    """What the decoder needs of a picture.

    Attributes:
        embedding: (B, C, h, w).
        details: its maps at strides 4 and 8, (B, c, 4h, 4w) and (B, c', 2h, 2w), or nothing.
        pixels_s4: normalised colours at stride 4, (B, 3, 4h, 4w), where click maps want them;
            float32 or wider, since differences of colours are taken.
    """

    embedding: Tensor
    details: tuple[Tensor, ...] = ()
    pixels_s4: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """Features, and all that depends on the picture alone, computed once for all its prompts.

    Beside the features this is little: for the embedded model in bfloat16 at 2048 x 2048 some 25 MB
    to their 46, of which the projected details are 13 MB and the positions 4 MB.

    Attributes:
        features: of B pictures.
        positions: of the image tokens, (1, C, h, w).
        details: the features' details as the decoder adds them, or nothing.
        landmarks: what clicks are compared with, where the model has click maps.
    """

    features: Features
    positions: Tensor
    details: tuple[Tensor, ...] = ()
    landmarks: Landmarks | None = None


class Segmenter(nn.Module):
    """Encode a picture once, then decode masks for any number of prompts.

    Attributes:
        trained_on: name of a data set -> its pictures that the weights were trained on, each as the
            first 16 digits of its file's SHA-256; none for a set known by its name alone.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    image_format = "RGB"
    mask_threshold = 0.0

    def __init__(
        self,
        config: ModelConfig,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        click_maps: ClickMaps | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.trained_on: Mapping[str, Sequence[str]] = {}
        self.image_encoder = image_encoder
        if isinstance(image_encoder, HRSAMEncoder):
            # Code for Segment Anything resizes by it. Only the whole model knows it.
            image_encoder.img_size = config.image_size
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.click_maps = click_maps
        for name, values in (("pixel_mean", config.pixel_mean), ("pixel_std", config.pixel_std)):
            buffer = torch.tensor(values).reshape(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.pixel_mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.mask_decoder.mask_tokens.weight.dtype

    def preprocess(self, pixels: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Normalise, order channels as the network is fed, and pad at the bottom and right.

        Args:
            pixels: RGB in 0 .. 255, (B, 3, h, w), already resized.
            input_hw: size of the model input, at least (h, w).

        Returns:
            (B, 3, H, W); the padding is zero, which is the mean colour.
        """
        # Normalised in float32 even for a bf16 model: bf16 has 8 bits, as many as the pixels.
        wide = torch.promote_types(self.dtype, torch.float32)
        if self.config.bgr:
            pixels = pixels.flip(1)
        # From the configuration: a double of the float32 buffer is not the double.
        mean, std = (
            torch.tensor(values, dtype=wide, device=self.device)[:, None, None]
            for values in (self.config.pixel_mean, self.config.pixel_std)
        )
        normal = (pixels.to(self.device, wide) - mean).div_(std)
        height, width = pixels.shape[-2:]
        return F.pad(normal, (0, input_hw[1] - width, 0, input_hw[0] - height))

    def encode(self, pixels: Tensor) -> Features:
        """Encode normalised pixels (B, 3, H, W).

        Raises:
            InputError: another shape, or H or W is no multiple of the patch.
        """
        encoder = self.image_encoder
        if not self.config.decoder.details:
            return Features(encoder(pixels.to(self.dtype)))
        embedding, details = cast(Any, encoder).forward_features(pixels.to(self.dtype))
        return Features(embedding, details, F.avg_pool2d(pixels, 4))

    def prepare(self, features: Features) -> Prepared:
        """Compute once what every ``decode`` of these pictures needs."""
        last = torch.channels_last
        embedding = features.embedding.contiguous(memory_format=last)
        details = tuple(detail.contiguous(memory_format=last) for detail in features.details)
        features = Features(embedding, details, features.pixels_s4)
        grid_hw = (embedding.shape[2], embedding.shape[3])
        positions = self.prompt_encoder.dense_positions(grid_hw).contiguous(memory_format=last)
        landmarks = None
        if self.click_maps is not None and features.pixels_s4 is not None:
            landmarks = Landmarks.of((*details, embedding), features.pixels_s4)
        return Prepared(features, positions, self.mask_decoder.project(details), landmarks)

    def decode(
        self,
        features: Features | Prepared,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks for prompts.

        Args:
            features: of B pictures; prepared if they are asked several times. P is a multiple of
                B: prompt p is for picture p // (P // B).
            points: coordinates (P, N, 2) and labels (P, N): 1 foreground, 0 background, -1 none.
            boxes: (P, 4) XYXY.
            masks: logits of an earlier answer, (P, 1, 4h, 4w).
            multimask: three masks for an ambiguous prompt, or the single one. The others are not
                computed.

        Returns:
            Logits (P, M, 4h, 4w) and predicted IoU (P, M), float32 (float64 if the model is).

        Raises:
            InputError: P is no multiple of B. Without any prompt, P is 1.
        """
        logits, iou = self._decode(features, points, boxes, masks, multimask)
        wide = torch.promote_types(self.dtype, torch.float32)
        return logits.to(wide), iou.to(wide)

    def decode_all(
        self,
        features: Features | Prepared,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All masks of ``decode``, the single one first; the predicted IoU in model precision."""
        return self._decode(features, points, boxes, masks, None)

    def _decode(
        self,
        features: Features | Prepared,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        multimask: bool | None,
    ) -> tuple[Tensor, Tensor]:
        embedding = (features.features if isinstance(features, Prepared) else features).embedding
        work = partial(self._masks, features, points, boxes, masks, multimask)
        kernels = block.decoder_runs_in_tiles(embedding.dtype, embedding.shape[1])
        return alone(work) if runs_in_parts(embedding) and kernels else work()

    def _masks(
        self,
        features: Features | Prepared,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        multimask: bool | None,
    ) -> tuple[Tensor, Tensor]:
        ready = features if isinstance(features, Prepared) else self.prepare(features)
        embedding = ready.features.embedding
        grid_hw = (embedding.shape[2], embedding.shape[3])
        sparse, dense = self.prompt_encoder(grid_hw, points, boxes, masks)
        prompts, pictures = dense.shape[0], embedding.shape[0]
        if prompts % pictures:
            raise InputError(
                f"{prompts} prompts are no multiple of {pictures} pictures; give each picture as "
                "many prompts as the others"
            )
        details = ready.details
        if self.click_maps is not None and ready.landmarks is not None:
            own = (*details, embedding)
            (*details, embedding), tokens = self.click_maps(
                ready.landmarks, points, boxes, masks, own, prompts
            )
            if tokens is not None:
                count = tokens.shape[1]
                sparse = torch.cat([sparse[:, :count] + tokens, sparse[:, count:]], 1)
        logits: Tensor
        iou: Tensor
        logits, iou = self.mask_decoder(
            embedding, ready.positions, sparse, dense, multimask, tuple(details)
        )
        return logits, iou
