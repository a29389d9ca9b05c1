"""Configuration to model: the one place where parts are put together."""

from torch import nn

from anyres.models.click_maps import ClickMaps
from anyres.models.config import HRSAMConfig, ModelConfig, ViTConfig
from anyres.models.hrsam import HRSAMEncoder
from anyres.models.mask_decoder import MaskDecoder
from anyres.models.prompt_encoder import PromptEncoder
from anyres.models.segmenter import Segmenter
from anyres.models.vit import ImageEncoderViT


def build_encoder(config: ViTConfig | HRSAMConfig) -> nn.Module:
    """An image encoder with random weights."""
    return ImageEncoderViT(config) if isinstance(config, ViTConfig) else HRSAMEncoder(config)


def build(config: ModelConfig) -> Segmenter:
    """A whole model with random weights, in eval mode."""
    encoder, decoder = config.encoder, config.decoder
    stem = encoder.stem if isinstance(encoder, HRSAMConfig) else None
    details = (stem[1], stem[2]) if stem is not None and decoder.details else None
    click_maps = ClickMaps(details, decoder.dim) if details and decoder.click_maps else None
    model = Segmenter(
        config,
        build_encoder(encoder),
        PromptEncoder(decoder, config.image_size, encoder.patch),
        MaskDecoder(decoder, details),
        click_maps,
    )
    return model.eval()
