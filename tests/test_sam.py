"""SAM as a whole, and the prompt encoder and mask decoder that HRSAM took from it."""

import pytest
import torch
import torch.nn.functional as F

from anyres.geometry import Frame
from anyres.models.build import build
from anyres.models.config import DecoderConfig
from anyres.models.mask_decoder import MaskDecoder
from anyres.models.official import HRSAM_NAMES, hrsam_model_config
from anyres.models.prompt_encoder import PromptEncoder
from anyres.models.segmenter import Features
from anyres.models.weights import from_official, segmenter_from_official
from anyres.predict.postprocess import upscale
from tiny import SAM_CASES

HRSAM_CASES = [
    "e8x8_points3",
    "e8x8_points2_prev",
    "e8x8_box",
    "e8x8_point1_box_prev",
    "e16x16_points3_prev",
    "e16x16_points1",
    "e6x10_points2",
    "e6x10_points2_prev",
]


def close(actual, expected):
    assert actual.shape == expected.shape
    limit = 1e-4 * max(1.0, expected.abs().max().item()) if expected.numel() else 0.0
    if expected.dtype == torch.float64:
        assert actual.dtype == torch.float64
        limit = 1e-9
    torch.testing.assert_close(actual, expected, rtol=0, atol=limit)


def weights_of(tensors):
    return {name: tensor for name, tensor in tensors.items() if "::" not in name}


@pytest.fixture(scope="module")
def sam(golden):
    facts, tensors = golden("sam_tiny")
    return from_official("sam", weights_of(tensors), facts["constructor_args"])


@pytest.fixture(scope="module")
def exact_sam(golden):
    facts, tensors = golden("sam_tiny")
    return from_official("sam", weights_of(tensors), facts["constructor_args"]).double()


def sam_prompts(tensors, case, dtype):
    found = {
        name: tensors[key].to(dtype)
        for name in ("point_coords", "point_labels", "boxes", "mask_inputs")
        if (key := f"in::{case}::{name}") in tensors
    }
    points = (found["point_coords"], found["point_labels"]) if "point_coords" in found else None
    return {"points": points, "boxes": found.get("boxes"), "masks": found.get("mask_inputs")}


def sam_features(model, tensors, case):
    image = tensors[f"in::{case}::image_u8"][None]
    return model.encode(model.preprocess(image, (128, 128)))


def test_all_cases_are_tested(golden):
    facts, _ = golden("sam_tiny")
    cases = set(facts["cases"])
    assert cases <= set(SAM_CASES) if facts.get("part") else cases == set(SAM_CASES)
    assert set(golden("hrsam_prompt_decoder")[0]["cases"]) == set(HRSAM_CASES)


@torch.no_grad()
@pytest.mark.parametrize("case", SAM_CASES)
def test_parts_of_sam(sam, golden, case):
    tensors = golden("sam_tiny")[1]
    prompts = sam_prompts(tensors, case, torch.float32)
    sparse, dense = sam.prompt_encoder((8, 8), **prompts)
    close(sparse, tensors[f"out::{case}::sparse_embeddings"])
    close(dense, tensors[f"out::{case}::dense_embeddings"])
    embedding = sam_features(sam, tensors, case).embedding
    close(embedding, tensors[f"out::{case}::image_embedding"])


@torch.no_grad()
def test_inner_parts_of_sam(sam, golden):
    tensors = golden("sam_tiny")[1]
    close(sam.prompt_encoder.dense_positions((8, 8)), tensors["mid::points::dense_pe"])
    encoder = sam.image_encoder
    tokens = encoder.patch_embed(sam.preprocess(tensors["in::points::image_u8"][None], (128, 128)))
    x = encoder._add_positions(tokens)
    close(x, tensors["mid::points::tokens"])
    for i, block in enumerate(encoder.blocks):
        x = block(x)
        close(x, tensors[f"mid::points::block{i}"])


@torch.no_grad()
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("case", SAM_CASES)
def test_answers_of_sam(sam, golden, case, multimask):
    facts, tensors = golden("sam_tiny")
    kind = "multi" if multimask else "single"
    features = sam_features(sam, tensors, case)
    prompts = sam_prompts(tensors, case, torch.float32)
    logits, iou = sam.decode(features, **prompts, multimask=multimask)
    close(logits, tensors[f"out::{case}::{kind}_low_res_logits"])
    close(iou, tensors[f"out::{case}::{kind}_iou_predictions"])
    if multimask:
        return
    sizes = facts["cases"][case]
    frame = Frame(tuple(sizes["original_size"]), tuple(sizes["input_size"]), (128, 128))
    full = upscale(logits, frame, two_step=True)
    close(full, tensors[f"out::{case}::single_postprocessed_logits"])
    masks = upscale(logits, frame, two_step=True, threshold=sam.mask_threshold)
    assert torch.equal(masks, tensors[f"out::{case}::single_masks"])


@torch.no_grad()
@pytest.mark.parametrize("case", SAM_CASES)
def test_answers_of_sam_in_float64(exact_sam, golden, case):
    tensors = golden("sam_tiny")[1]
    # The model's own mean and deviation are float32, whose rounding alone is 3e-7 here.
    mean, std = (
        torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1)
        for values in (exact_sam.config.pixel_mean, exact_sam.config.pixel_std)
    )
    pixels = (tensors[f"in::{case}::image_u8"].double() - mean) / std
    height, width = pixels.shape[1:]
    features = exact_sam.encode(F.pad(pixels, (0, 128 - width, 0, 128 - height))[None])
    close(features.embedding, tensors[f"out::{case}::image_embedding_f64"])
    prompts = sam_prompts(tensors, case, torch.float64)
    logits, iou = exact_sam.decode(features, **prompts, multimask=True)
    close(logits, tensors[f"out::{case}::multi_low_res_logits_f64"])
    close(iou, tensors[f"out::{case}::multi_iou_predictions_f64"])


def hrsam_parts(golden):
    """HRSAM's prompt encoder and mask decoder, by the names of a whole official checkpoint."""
    facts, tensors = golden("hrsam_prompt_decoder")
    arguments = facts["constructor_args"] | {"HRSAMViT": {"final_embed_dim": 16}}
    config = hrsam_model_config(arguments)
    assert (config.image_size, config.decoder.positions, config.bgr) == (128, "stretch", True)
    parts = {
        "prompt_encoder.": PromptEncoder(config.decoder, config.image_size, 16),
        "mask_decoder.": MaskDecoder(config.decoder),
    }
    renamed = {}
    for name, tensor in weights_of(tensors).items():
        theirs, ours = next(pair for pair in HRSAM_NAMES if name.startswith(pair[0]))
        renamed[ours + name.removeprefix(theirs)] = tensor
    for prefix, part in parts.items():
        own = {n.removeprefix(prefix): t for n, t in renamed.items() if n.startswith(prefix)}
        part.load_state_dict(own, strict=True)
    return parts["prompt_encoder."], parts["mask_decoder."], tensors


def hrsam_answers(prompt_encoder, mask_decoder, tensors, case, dtype):
    def given(name):
        key = f"in::{case}::{name}"
        return tensors[key].to(dtype) if key in tensors else None

    embeds = given("image_embeds")
    grid_hw = tuple(embeds.shape[2:])
    points = None if given("points") is None else (given("points"), given("labels"))
    sparse, dense = prompt_encoder(grid_hw, points, given("boxes"), given("prev_logits"))
    positions = prompt_encoder.dense_positions(grid_hw)
    logits, iou = mask_decoder(embeds + dense, positions, sparse)
    return sparse, dense, positions, logits, iou


@torch.no_grad()
@pytest.mark.parametrize("case", HRSAM_CASES)
def test_hrsam_prompts_and_decoder(golden, case):
    *parts, tensors = hrsam_parts(golden)
    sparse, dense, positions, logits, iou = hrsam_answers(*parts, tensors, case, torch.float32)
    close(sparse, tensors[f"mid::{case}::sparse_embeds"])
    close(dense, tensors[f"mid::{case}::dense_embeds"])
    close(positions, tensors[f"mid::{case}::image_pos_embeds"])
    close(logits, tensors[f"out::{case}::masks"])
    close(iou, tensors[f"out::{case}::ious"])
    close(logits[:, :1], tensors[f"out::{case}::single_mask"])
    best = iou.argmax(1)
    close(logits[torch.arange(len(best)), best, None], tensors[f"out::{case}::best_mask"])

    double = [part.double() for part in parts]
    logits, iou = hrsam_answers(*double, tensors, case, torch.float64)[3:]
    close(logits, tensors[f"out::{case}::masks_f64"])
    close(iou, tensors[f"out::{case}::ious_f64"])


@torch.no_grad()
def test_a_whole_hrsam_is_its_parts(golden):
    encoder_facts, encoder = golden("hrsam_encoder")
    facts, tensors = golden("hrsam_prompt_decoder")
    state = {f"backbone.{name}": t for name, t in weights_of(encoder).items()}
    state |= weights_of(tensors)
    arguments = facts["constructor_args"] | {"HRSAMViT": encoder_facts["constructor_args"]}
    model = segmenter_from_official("hrsam", state, arguments)
    assert (model.config.bgr, model.config.pad, model.config.image_size) == (True, "square", 128)

    # The red channel of the picture is the last that the network sees, with the mean of the first.
    red = torch.tensor([200.0, 0, 0]).reshape(1, 3, 1, 1)
    fed = model.preprocess(red, (1, 1)).flatten()
    mean, std = torch.tensor(model.config.pixel_mean), torch.tensor(model.config.pixel_std)
    torch.testing.assert_close(fed, (torch.tensor([0, 0, 200.0]) - mean) / std)

    pixels = encoder["in::96x80_b1::image_i8"] / 32
    features = model.encode(pixels)
    close(features.embedding, encoder["out::96x80_b1::embed"])
    embeds = tensors["in::e6x10_points2::image_embeds"]
    points = (tensors["in::e6x10_points2::points"], tensors["in::e6x10_points2::labels"])
    logits, iou = model.decode(Features(embeds), points=points, multimask=False)
    close(logits, tensors["out::e6x10_points2::single_mask"])
    close(iou, tensors["out::e6x10_points2::ious"][:, :1])


@torch.no_grad()
def test_prompts_of_several_pictures_go_to_their_own(sam):
    torch.manual_seed(5)
    pixels = torch.randn(3, 3, 128, 96)
    points = (torch.rand(6, 2, 2) * 96, torch.randint(0, 2, (6, 2)))
    logits, iou = sam.decode(sam.encode(pixels), points=points, multimask=True)
    assert logits.shape == (6, 3, 32, 24)
    for p in range(6):
        alone = sam.encode(pixels[p // 2 : p // 2 + 1])
        one = sam.decode(alone, points=(points[0][p : p + 1], points[1][p : p + 1]), multimask=True)
        torch.testing.assert_close(logits[p : p + 1], one[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(iou[p : p + 1], one[1], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_rectangle_has_the_dense_positions_inside_its_square():
    config = DecoderConfig(dim=16, heads=2, mlp=16, iou_hidden=16)
    encoder = PromptEncoder(config, image_size=128, patch=16)
    square = encoder.dense_positions((12, 12))
    torch.testing.assert_close(encoder.dense_positions((12, 5)), square[..., :5])
    torch.testing.assert_close(encoder.dense_positions((3, 12)), square[:, :, :3])
    points = (torch.tensor([[[30.0, 40.0]]]), torch.ones(1, 1))
    in_square = encoder((12, 12), points, None, None)[0]
    torch.testing.assert_close(encoder((12, 5), points, None, None)[0], in_square)


def test_the_published_sizes():
    from anyres.models.presets import preset

    counts = {}
    for name in ("sam_vit_b", "sam_ti"):
        model = build(preset(name))
        counts[name] = sum(p.numel() for p in model.parameters())
    # 93.7 million, as published.
    assert counts["sam_vit_b"] == 93_735_472
    assert counts["sam_ti"] < 10_000_000
