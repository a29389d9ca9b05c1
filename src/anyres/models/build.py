"""Configuration to model: the one place where parts are put together."""

from torch import nn

from anyres.models.click_maps import ClickMaps
from anyres.models.config import EncoderConfig, HRSAMConfig, ModelConfig, ViTConfig
from anyres.models.hrsam import HRSAMEncoder
from anyres.models.mask_decoder import MaskDecoder
from anyres.models.prompt_encoder import PromptEncoder
from anyres.models.segmenter import Segmenter
from anyres.models.tiny_vit import TinyViT
from anyres.models.vit import ImageEncoderViT


def build_encoder(config: EncoderConfig) -> nn.Module:
    """An image encoder with random weights."""
    if isinstance(config, ViTConfig):
        return ImageEncoderViT(config)
    return HRSAMEncoder(config) if isinstance(config, HRSAMConfig) else TinyViT(config)


def build(config: ModelConfig) -> Segmenter:
    """A whole model with random weights, in eval mode."""
    encoder, decoder = config.encoder, config.decoder
    details = encoder.detail_channels if decoder.details else None
    click_maps = ClickMaps(details, decoder.dim) if details and decoder.click_maps else None
    model = Segmenter(
        config,
        build_encoder(encoder),
        PromptEncoder(decoder, config.image_size, encoder.patch),
        MaskDecoder(decoder, details),
        click_maps,
    )
    return model.eval()
