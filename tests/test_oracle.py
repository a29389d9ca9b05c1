"""SAM against the independent implementation in Hugging Face's transformers, in float64.

The golden numbers fix a few sizes and prompts; here both are ours to choose.
"""

import re

import pytest
import torch

from anyres.models.build import build
from anyres.models.config import DecoderConfig, ModelConfig, ViTConfig
from anyres.models.presets import preset

pytestmark = pytest.mark.oracle

# From official names to those of transformers, in this order.
RENAMES = [
    (r"^image_encoder", "vision_encoder"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"encoder\.blocks", "encoder.layers"),
    (r"neck\.0", "neck.conv1"),
    (r"neck\.1", "neck.layer_norm1"),
    (r"neck\.2", "neck.conv2"),
    (r"neck\.3", "neck.layer_norm2"),
    (r"\.norm", ".layer_norm"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"point_embeddings", "point_embed"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"(mlps\.\d|prediction_head)\.layers\.0", r"\1.proj_in"),
    (r"(mlps\.\d|prediction_head)\.layers\.2", r"\1.proj_out"),
    (r"(mlps\.\d|prediction_head)\.layers\.1", r"\1.layers.0"),
]

CONFIG = ModelConfig(
    name="small",
    encoder=ViTConfig(
        dim=24, blocks=3, heads=2, global_blocks=(1,), window=5, image_size=192, neck=16
    ),
    decoder=DecoderConfig(dim=16, heads=2, mlp=24, iou_hidden=20),
    image_size=192,
)


@pytest.fixture(scope="module")
def ours():
    model = build(CONFIG).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.2)
    return model


@pytest.fixture(scope="module")
def theirs(ours):
    return transformers_twin(ours)


def transformers_twin(ours):
    """The model of transformers with the same weights."""
    from transformers import SamConfig, SamModel

    encoder, decoder = ours.config.encoder, ours.config.decoder
    config = SamConfig(
        vision_config={
            "hidden_size": encoder.dim,
            "output_channels": encoder.neck,
            "num_hidden_layers": encoder.blocks,
            "num_attention_heads": encoder.heads,
            "image_size": encoder.image_size,
            "mlp_dim": int(encoder.dim * encoder.mlp_ratio),
            "window_size": encoder.window,
            "global_attn_indexes": list(encoder.global_blocks),
            "num_pos_feats": decoder.dim // 2,
        },
        prompt_encoder_config={
            "hidden_size": decoder.dim,
            "image_size": encoder.image_size,
            "mask_input_channels": decoder.mask_channels,
        },
        mask_decoder_config={
            "hidden_size": decoder.dim,
            "mlp_dim": decoder.mlp,
            "num_attention_heads": decoder.heads,
            "iou_head_hidden_dim": decoder.iou_hidden,
            "layer_norm_eps": 1e-5,  # SAM's; the default there is another
        },
    )
    state = {}
    for name, tensor in ours.state_dict().items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    positions = "shared_embedding.positional_embedding"
    state[f"shared_image_{positions.partition('_')[2]}"] = state[f"prompt_encoder.{positions}"]
    model = SamModel(config).eval()
    # In the precision of the weights, which could not be exact otherwise.
    model.to(ours.dtype).load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, 192, 192, generator=torch.Generator().manual_seed(8)).double()


PROMPTS = {
    "one point": {"points": 1},
    "four points": {"points": 4},
    "box": {"box": True},
    "points and box": {"points": 2, "box": True},
    "point and mask": {"points": 1, "mask": True},
}


@torch.no_grad()
def test_embedding(ours, theirs, pixels):
    expected = theirs.get_image_embeddings(pixels)
    torch.testing.assert_close(ours.encode(pixels).embedding, expected, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", PROMPTS)
def test_masks(ours, theirs, pixels, kind, multimask):
    generator = torch.Generator().manual_seed(9)
    wanted, prompts = PROMPTS[kind], 3
    pixels = pixels[:1]
    points = boxes = masks = None
    if count := wanted.get("points"):
        places = torch.rand(prompts, count, 2, generator=generator, dtype=torch.float64) * 192
        points = (places, torch.randint(0, 2, (prompts, count), generator=generator))
    if wanted.get("box"):
        corners = torch.rand(prompts, 2, 2, generator=generator, dtype=torch.float64) * 96
        boxes = torch.cat([corners[:, 0], corners[:, 1] + 96], 1)
    if wanted.get("mask"):
        masks = torch.randn(1, 1, 48, 48, generator=generator, dtype=torch.float64)
    expected = theirs(
        pixel_values=pixels,
        input_points=None if points is None else points[0][None],
        input_labels=None if points is None else points[1][None],
        input_boxes=None if boxes is None else boxes[None],
        input_masks=masks,
        multimask_output=multimask,
    )
    logits, iou = ours.decode(
        ours.encode(pixels),
        points=points,
        boxes=boxes,
        masks=None if masks is None else masks.expand(prompts, -1, -1, -1),
        multimask=multimask,
    )
    torch.testing.assert_close(logits, expected.pred_masks[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(iou, expected.iou_scores[0], rtol=0, atol=1e-9)


def lively(model):
    """Weights that keep every layer's output near the size of its input, and every part in play."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1 and name.endswith("weight"):  # norms
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.ndim == 1:
                tensor.copy_(0.2 * noise)
            elif re.search(r"embed|token|rel_pos|matrix", name) and "proj" not in name:
                tensor.copy_(0.5 * noise)
            else:
                fan_in = tensor[0].numel() if "upscaling" not in name else tensor.shape[0]
                tensor.copy_(1.5 * noise / fan_in**0.5)
    return model


@torch.no_grad()
def test_vit_b_at_full_size():
    model = lively(build(preset("sam_vit_b")))
    twin = transformers_twin(model)
    generator = torch.Generator().manual_seed(12)
    pixels = torch.randn(1, 3, 1024, 1024, generator=generator)
    features = model.encode(pixels)
    embedding = twin.get_image_embeddings(pixels)
    assert embedding.abs().max() > 1
    near(features.embedding, embedding)

    points = (torch.rand(2, 3, 2, generator=generator) * 1024, torch.tensor([[1, 0, 1]] * 2))
    boxes = torch.tensor([[100.0, 200, 500, 900], [0, 30, 1024, 400]])
    for multimask in (True, False):
        expected = twin(
            image_embeddings=embedding,
            input_points=points[0][None],
            input_labels=points[1][None],
            input_boxes=boxes[None],
            multimask_output=multimask,
        )
        logits, iou = model.decode(features, points=points, boxes=boxes, multimask=multimask)
        assert logits.std() > 0.1
        near(logits, expected.pred_masks[0])
        near(iou, expected.iou_scores[0])


def near(actual, expected):
    limit = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)
