"""A promptable segmentation model: image encoder, prompt encoder, mask decoder (SAM's three parts).

Shapes: B pictures, P prompts, N points, M masks, C channels, (H, W) model input in pixels,
(h, w) token grid. Coordinates are XY in pixels of the model input.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyres.errors import InputError
from anyres.models.click_maps import ClickMaps
from anyres.models.config import ModelConfig
from anyres.models.hrsam import HRSAMEncoder
from anyres.models.mask_decoder import MaskDecoder
from anyres.models.prompt_encoder import PromptEncoder


@dataclass(frozen=True, eq=False)
class Features:
    """What the decoder needs of a picture.

    Attributes:
        embedding: (B, C, h, w).
        details: the stem's maps at strides 4 and 8, (B, c, 4h, 4w) and (B, c', 2h, 2w), or nothing.
        pixels_s4: normalised colours at stride 4, (B, 3, 4h, 4w), where click maps want them.
    """

    embedding: Tensor
    details: tuple[Tensor, ...] = ()
    pixels_s4: Tensor | None = None


class Segmenter(nn.Module):
    """Encode a picture once, then decode masks for any number of prompts."""

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
        return next(self.mask_decoder.parameters()).dtype

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
        normal = (pixels.to(self.device, wide) - mean) / std
        height, width = pixels.shape[-2:]
        return F.pad(normal, (0, input_hw[1] - width, 0, input_hw[0] - height))

    def encode(self, pixels: Tensor) -> Features:
        """Encode normalised pixels (B, 3, H, W).

        Raises:
            InputError: another shape, or H or W is no multiple of the patch.
        """
        if not isinstance(self.image_encoder, HRSAMEncoder):
            return Features(self.image_encoder(pixels.to(self.dtype)))
        embedding, details = self.image_encoder.forward_features(pixels.to(self.dtype))
        if not self.config.decoder.details:
            return Features(embedding)
        return Features(embedding, details, F.avg_pool2d(pixels, 4).to(self.dtype))

    def decode(
        self,
        features: Features,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks for prompts.

        Args:
            features: of B pictures. P is a multiple of B: prompt p is for picture p // (P // B).
            points: coordinates (P, N, 2) and labels (P, N): 1 foreground, 0 background, -1 none.
            boxes: (P, 4) XYXY.
            masks: logits of an earlier answer, (P, 1, 4h, 4w).
            multimask: three masks for an ambiguous prompt, or the single one.

        Returns:
            Logits (P, M, 4h, 4w) and predicted IoU (P, M), float32 (float64 if the model is).

        Raises:
            InputError: P is no multiple of B. Without any prompt, P is 1.
        """
        logits, iou = self.decode_all(features, points=points, boxes=boxes, masks=masks)
        chosen = slice(1, None) if multimask else slice(0, 1)
        wide = torch.promote_types(self.dtype, torch.float32)
        return logits[:, chosen].to(wide), iou[:, chosen].to(wide)

    def decode_all(
        self,
        features: Features,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All masks of ``decode``, the single one first, in the model's precision."""
        embedding = features.embedding
        grid_hw = (embedding.shape[2], embedding.shape[3])
        sparse, dense = self.prompt_encoder(grid_hw, points, boxes, masks)
        prompts, pictures = dense.shape[0], embedding.shape[0]
        if prompts % pictures:
            raise InputError(
                f"{prompts} prompts are no multiple of {pictures} pictures; give each picture as "
                "many prompts as the others"
            )
        dense_details: tuple[Tensor, ...] = ()
        if self.click_maps is not None and features.pixels_s4 is not None:
            maps = (features.details[0], features.details[1], embedding)
            (d4, d8, d16), tokens = self.click_maps(
                maps, features.pixels_s4, points, boxes, masks, prompts
            )
            dense_details, dense = (d4, d8), dense + d16
            if tokens is not None:
                count = tokens.shape[1]
                sparse = torch.cat([sparse[:, :count] + tokens, sparse[:, count:]], 1)
        image = embedding.repeat_interleave(prompts // pictures, 0) + dense
        positions = self.prompt_encoder.dense_positions(grid_hw)
        logits: Tensor
        iou: Tensor
        logits, iou = self.mask_decoder(image, positions, sparse, features.details, dense_details)
        return logits, iou
