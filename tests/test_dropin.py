"""Code written for Segment Anything's SamPredictor runs as it is."""

import copy
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anyres.data.transforms import ResizeLongestSide
from anyres.models.build import build
from anyres.models.presets import preset
from anyres.models.weights import from_official
from anyres.predict.load import put
from anyres.predict.predictor import Predictor
from tiny import SAM_CASES


@pytest.fixture
def predictor(sam, image):
    predictor = Predictor(sam)
    predictor.set_image(image)
    return predictor


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("set_image", ["image", "image_format"]),
        ("set_torch_image", ["transformed_image", "original_image_size"]),
        (
            "predict",
            [
                "point_coords",
                "point_labels",
                "box",
                "mask_input",
                "multimask_output",
                "return_logits",
            ],
        ),
        (
            "predict_torch",
            [
                "point_coords",
                "point_labels",
                "boxes",
                "mask_input",
                "multimask_output",
                "return_logits",
            ],
        ),
        ("get_image_embedding", []),
        ("reset_image", []),
    ],
)
def test_methods_take_the_same_arguments_in_the_same_order(method, arguments):
    parameters = inspect.signature(getattr(Predictor, method)).parameters
    assert list(parameters) == ["self", *arguments]
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())


def test_one_click_gives_three_masks(predictor):
    input_point = np.array([[70, 40]])
    input_label = np.array([1])
    masks, scores, logits = predictor.predict(
        point_coords=input_point,
        point_labels=input_label,
        multimask_output=True,
    )
    assert masks.shape == (3, 90, 140)
    assert masks.dtype == bool
    assert scores.shape == (3,)
    assert logits.shape == (3, 32, 32)
    assert logits.dtype == np.float32


def test_the_best_logits_go_back_in_with_a_second_click(predictor):
    _, scores, logits = predictor.predict(np.array([[70, 40]]), np.array([1]))
    mask_input = logits[np.argmax(scores), :, :]
    again, _, low = predictor.predict(
        point_coords=np.array([[70, 40], [20, 30]]),
        point_labels=np.array([1, 0]),
        mask_input=mask_input[None, :, :],
        multimask_output=False,
    )
    assert again.shape == (1, 90, 140)
    assert not np.array_equal(low[0], logits[np.argmax(scores)])


@pytest.mark.parametrize("axis", [None, 0])
def test_a_box_with_or_without_a_leading_axis(predictor, axis):
    box = np.array([20, 10, 100, 80])
    given = box if axis is None else box[None, :]
    masks, _, low = predictor.predict(
        point_coords=None, point_labels=None, box=given, multimask_output=False
    )
    assert masks.shape == (1, 90, 140)
    expected = predictor.predict(box=box.astype(float), multimask_output=False)[2]
    assert np.array_equal(low, expected)


def test_batched_boxes_as_in_the_notebook(predictor, image):
    input_boxes = torch.tensor(
        [[10, 5, 70, 60], [30, 20, 120, 80], [0, 0, 139, 89]], device=predictor.device
    )
    transformed_boxes = predictor.transform.apply_boxes_torch(input_boxes, image.shape[:2])
    masks, scores, low = predictor.predict_torch(
        point_coords=None,
        point_labels=None,
        boxes=transformed_boxes,
        multimask_output=False,
    )
    assert masks.shape == (3, 1, 90, 140)
    assert masks.dtype == torch.bool
    assert scores.shape == (3, 1)
    assert low.shape == (3, 1, 32, 32)
    for box, expected in zip(input_boxes, low, strict=True):
        alone = predictor.predict(box=box.numpy(), multimask_output=False)[2]
        np.testing.assert_allclose(alone, expected.numpy(), atol=2e-4)


def test_batched_points_with_padding_labels(predictor, image):
    points = torch.tensor([[[70.0, 40.0], [0.0, 0.0]], [[20.0, 30.0], [90.0, 60.0]]])
    labels = torch.tensor([[1, -1], [1, 0]])
    coords = predictor.transform.apply_coords_torch(points, image.shape[:2])
    masks, scores, low = predictor.predict_torch(coords, labels)
    assert masks.shape == (2, 3, 90, 140)
    assert scores.shape == (2, 3)
    # Moving a padding point changes nothing.
    coords[0, 1] += 50
    np.testing.assert_allclose(predictor.predict_torch(coords, labels)[2][0], low[0], atol=1e-5)


def test_no_prompt_at_all_gives_an_answer(predictor):
    masks, scores, _ = predictor.predict()
    assert masks.shape == (3, 90, 140)
    assert predictor.predict_torch(None, None)[0].shape == (1, 3, 90, 140)
    assert np.isfinite(scores).all()


def test_logits_at_the_size_of_the_picture(predictor):
    point, label = np.array([[70, 40]]), np.array([1])
    logits = predictor.predict(point, label, return_logits=True)[0]
    assert logits.dtype == np.float32
    masks = predictor.predict(point, label)[0]
    assert np.array_equal(logits > predictor.model.mask_threshold, masks)


def test_embedding_and_attributes(predictor, sam):
    assert predictor.is_image_set is True
    assert predictor.model is sam
    assert predictor.device == torch.device("cpu")
    assert predictor.original_size == (90, 140)
    assert predictor.input_size == (82, 128)
    assert (predictor.orig_h, predictor.orig_w) == (90, 140)
    assert predictor.get_image_embedding().shape == (1, 128, 8, 8)
    assert predictor.features is predictor.get_image_embedding()
    assert predictor.transform.target_length == predictor.model.image_encoder.img_size == 128


def test_reset_forgets_the_picture(predictor):
    predictor.reset_image()
    assert predictor.is_image_set is False
    for name in ("features", "original_size", "input_size", "orig_h", "orig_w"):
        assert getattr(predictor, name) is None
    for call in (predictor.predict, predictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="set_image"):
            call()


def test_set_torch_image_after_the_transform_equals_set_image(predictor, sam, image):
    expected = predictor.get_image_embedding().clone()
    other = Predictor(sam)
    resized_image = other.transform.apply_image(image)
    tensor = torch.as_tensor(resized_image).permute(2, 0, 1).contiguous()[None]
    other.set_torch_image(tensor, image.shape[:2])
    assert torch.equal(other.features, expected)
    assert other.original_size == (90, 140)


def test_bgr_is_swapped(predictor, image):
    expected = predictor.get_image_embedding().clone()
    predictor.set_image(image[..., ::-1], image_format="BGR")
    assert torch.equal(predictor.features, expected)
    predictor.set_image(image[..., ::-1], "RGB")
    assert not torch.equal(predictor.features, expected)


def test_answers_are_ordinary_tensors(predictor):
    _, _, low = predictor.predict_torch(torch.tensor([[[5.0, 5.0]]]), torch.ones(1, 1))
    low[low < 0] = 0  # what is not allowed of tensors made in inference mode
    assert not low.requires_grad
    weight = torch.ones(1, requires_grad=True)
    (predictor.get_image_embedding() * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("case", SAM_CASES)
def test_the_official_code_gives_the_same(golden, case):
    facts, tensors = golden("sam_tiny")
    weights = {name: value for name, value in tensors.items() if "::" not in name}
    predictor = Predictor(from_official("sam", weights, facts["constructor_args"]))
    inputs = {
        name: tensors.get(f"in::{case}::{name}")
        for name in ("point_coords", "point_labels", "boxes", "mask_inputs")
    }
    image = tensors[f"in::{case}::image_u8"]
    size = tuple(facts["cases"][case]["original_size"])
    predictor.set_torch_image(image.reshape(1, 3, *image.shape[-2:]), size)
    assert predictor.input_size == tuple(facts["cases"][case]["input_size"])
    for kind, multimask in (("multi", True), ("single", False)):
        masks, scores, low = predictor.predict_torch(*inputs.values(), multimask_output=multimask)
        for name, value in (("low_res_logits", low), ("iou_predictions", scores)):
            expected = tensors[f"out::{case}::{kind}_{name}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=_tolerance(expected))
    expected = tensors[f"out::{case}::single_postprocessed_logits"]
    full = predictor.predict_torch(*inputs.values(), multimask_output=False, return_logits=True)[0]
    torch.testing.assert_close(full, expected, rtol=0, atol=_tolerance(expected))
    sure = expected.abs() > _tolerance(expected)
    assert torch.equal(masks[sure], tensors[f"out::{case}::single_masks"][sure])


def _tolerance(expected):
    return 1e-4 * max(1.0, float(expected.abs().max()))


def test_the_whole_path_of_a_uint8_picture_is_sams(sam, image):
    """Resize, normalise, pad, encode, decode, upsample, written out as Segment Anything does."""
    from PIL import Image

    predictor = Predictor(sam, resolution="train")
    predictor.set_image(image)
    box = np.array([20, 10, 100, 80])
    masks, scores, low = predictor.predict(box=box)

    resized_image = np.array(Image.fromarray(image).resize((128, 82), Image.Resampling.BILINEAR))
    x = torch.as_tensor(resized_image).permute(2, 0, 1)[None]
    x = (x - sam.pixel_mean) / sam.pixel_std
    x = F.pad(x, (0, 0, 0, 128 - 82))
    with torch.no_grad():
        features = sam.encode(x)
        boxes = torch.tensor([[20 * 128 / 140, 10 * 82 / 90, 100 * 128 / 140, 80 * 82 / 90]])
        expected_low, expected_scores = sam.decode(features, boxes=boxes, multimask=True)
    assert np.array_equal(low, expected_low[0].numpy())
    assert np.array_equal(scores, expected_scores[0].numpy())
    full = F.interpolate(expected_low, (128, 128), mode="bilinear", align_corners=False)
    full = full[..., :82, :128]
    full = F.interpolate(full, (90, 140), mode="bilinear", align_corners=False)
    assert np.array_equal(masks, (full[0] > 0).numpy())


@pytest.fixture(scope="module")
def narrow():
    """A model of the embedded one's kind in bfloat16, which is what people with new CPUs get."""
    torch.manual_seed(0)
    return put(build(preset("hrsam_xs")), torch.device("cpu"), torch.bfloat16)


def test_an_embedding_in_bfloat16_goes_to_numpy(narrow, image):
    predictor = Predictor(narrow)
    predictor.set_image(image)
    for embedding in (predictor.get_image_embedding(), predictor.features):
        assert embedding.cpu().numpy().dtype == np.float32


def test_every_encoder_says_its_size(narrow, image):
    assert narrow.image_encoder.img_size == narrow.config.image_size
    resize = ResizeLongestSide(narrow.image_encoder.img_size)
    tensor = torch.as_tensor(resize.apply_image(image)).permute(2, 0, 1).contiguous()[None]
    predictor = Predictor(narrow)
    predictor.set_torch_image(tensor, image.shape[:2])
    assert max(predictor.input_size) == narrow.config.image_size


def test_a_picture_one_token_wide_in_bfloat16(narrow):
    tall = np.random.default_rng(0).integers(0, 256, (400, 8, 3), dtype=np.uint8)
    wide = Predictor(put(copy.deepcopy(narrow), torch.device("cpu"), torch.float32))
    predictor = Predictor(narrow)
    for each in (predictor, wide):
        each.set_image(tall)
    answer, expected = (each.predict([[4, 200]], [1])[2] for each in (predictor, wide))
    np.testing.assert_allclose(answer, expected, atol=0.05 * np.abs(expected).max())
