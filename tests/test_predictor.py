"""What the predictor adds to SAM's: any resolution, checks, batches, masks, embedding files."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.errors import ImageError, InputError, PromptError, StateError
from anyres.predict.predictor import Predictor
from anyres.types import Masks, Prompt


@pytest.fixture
def predictor(hrsam, image):
    predictor = Predictor(hrsam)
    predictor.set_image(image)
    return predictor


# Resolution and padding


def test_defaults_are_the_models_own(sam, hrsam):
    assert (Predictor(sam).resolution, Predictor(sam).pad) == (128, "square")
    assert (Predictor(hrsam).resolution, Predictor(hrsam).pad) == ("native", "patch")


@pytest.mark.parametrize(
    ("resolution", "picture_hw", "long_side"),
    [
        (None, (90, 140), 512),
        (None, (600, 90), 600),
        (None, (70, 3000), 2048),
        ("native", (90, 140), 140),
        ("native", (16, 2100), 2100),
        ("train", (90, 140), 512),
        (200, (90, 140), 200),
        (np.int64(200), (900, 14), 200),
        # One window of 8 tokens of 16 pixels: smaller pictures would be padding for the most part.
        (None, (1, 1), 512),
        ("native", (20, 90), 128),
    ],
)
def test_the_long_side_fed_to_the_model(hrsam, resolution, picture_hw, long_side):
    predictor = Predictor(hrsam, resolution=resolution)
    predictor.set_image(np.zeros((*picture_hw, 3), np.uint8))
    assert max(predictor.input_size) == long_side
    assert predictor.transform.target_length == long_side
    masks, _, logits = predictor.predict([[0, 0]], [1])
    assert masks.shape == (3, *picture_hw)
    assert logits.shape[1:] == tuple(-(-side // 16) * 4 for side in predictor.input_size)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("pad", ["square", "patch"])
def test_sam_runs_at_other_resolutions_with_either_padding(sam, image, pad):
    predictor = Predictor(sam, resolution=200, pad=pad)
    predictor.set_image(image)
    masks, _, logits = predictor.predict(box=[20, 10, 100, 80])
    assert masks.shape == (3, 90, 140)
    assert logits.shape == ((3, 52, 52) if pad == "square" else (3, 36, 52))


@pytest.mark.parametrize("resolution", [15, 0, -3, "big", 3.5, True])
def test_a_resolution_that_is_none(sam, resolution):
    with pytest.raises(InputError, match="resolution"):
        Predictor(sam, resolution=resolution)


def test_padding_that_is_none_or_would_change_official_answers(sam, hrsam):
    with pytest.raises(InputError, match="'square' or 'patch'"):
        Predictor(sam, pad="edge")
    for resolution in (None, "train"):
        with pytest.raises(InputError, match="resolution=128"):
            Predictor(sam, resolution=resolution, pad="patch")
    assert Predictor(hrsam, resolution="train").pad == "patch"


# The picture


def test_what_a_picture_can_be(hrsam, image, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(image).save(path)
    predictor = Predictor(hrsam)
    embeddings = []
    for given in (image, Image.fromarray(image), path, str(path), path.read_bytes()):
        predictor.set_image(given)
        embeddings.append(predictor.get_image_embedding())
    assert all(torch.equal(each, embeddings[0]) for each in embeddings)
    predictor.set_image(image[..., 0])
    grey = predictor.get_image_embedding()
    predictor.set_image(np.repeat(image[..., :1], 3, axis=2))
    assert torch.equal(predictor.get_image_embedding(), grey)


@pytest.mark.parametrize(
    ("bad", "image_format", "error", "message"),
    [
        (np.zeros((3, 90, 140), np.uint8), "RGB", ImageError, "channels first"),
        (np.zeros((90, 0, 3), np.uint8), "RGB", ImageError, "no pixels"),
        ("no_such_file.png", "RGB", ImageError, "no_such_file"),
        (b"not a picture", "RGB", ImageError, "can be read"),
        (np.zeros((9, 9, 3), np.uint8), "rgb", InputError, "'RGB' or 'BGR'"),
        (Image.new("RGB", (9, 9)), "BGR", InputError, "arrays"),
    ],
)
def test_a_picture_that_fails_leaves_none_set(predictor, bad, image_format, error, message):
    with pytest.raises(error, match=message):
        predictor.set_image(bad, image_format)
    assert not predictor.is_image_set
    assert predictor.features is None
    with pytest.raises(StateError):
        predictor.predict([[1, 1]], [1])


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((3, 82, 128), (90, 140), r"\(1, 3, h, w\)"),
        ((1, 82, 128, 3), (90, 140), r"\(1, 3, h, w\)"),
        ((2, 3, 82, 128), (90, 140), r"\(1, 3, h, w\)"),
        ((1, 3, 82, 120), (90, 140), "works at 128"),
        ((1, 3, 128, 128), (90, 140), "keeps the proportions"),
        ((1, 3, 82, 128), (0, 140), "at least 1"),
    ],
)
def test_a_tensor_that_is_not_resized_as_it_should(sam, shape, size, message):
    predictor = Predictor(sam)
    with pytest.raises(InputError, match=message):
        predictor.set_torch_image(torch.zeros(shape), size)
    assert not predictor.is_image_set


# Prompts


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"point_coords": [[1, 1]]}, "point_labels"),
        ({"point_labels": [1]}, "point_coords"),
        ({"point_coords": [1, 1], "point_labels": [1]}, r"\(N, 2\)"),
        ({"point_coords": [[1, 1, 1]], "point_labels": [1]}, r"\(N, 2\)"),
        ({"point_coords": [[1, 1]], "point_labels": [1, 0]}, "1 points"),
        ({"point_coords": [[1, 1]], "point_labels": [2]}, "is 2"),
        ({"point_coords": [[1, 1]], "point_labels": [-1]}, "is -1"),
        ({"point_coords": [[np.nan, 1]], "point_labels": [1]}, "nan"),
        ({"point_coords": [["a", 1]], "point_labels": [1]}, "array of numbers"),
        ({"point_coords": [[5, 5], [141, 1]], "point_labels": [1, 1]}, "141.*140"),
        ({"point_coords": [[5, -1]], "point_labels": [1]}, "-1"),
        ({"box": [1, 2, 3]}, r"\(4,\)"),
        ({"box": [[1, 2, 3, 4], [1, 2, 3, 4]]}, r"\(2, 4\)"),
        ({"box": [50, 2, 40, 9]}, "no area"),
        ({"box": [5, 2, 400, 9]}, "400"),
        ({"box": [5, np.inf, 40, 9]}, "not finite"),
    ],
)
def test_prompts_that_make_no_sense(predictor, prompt, message):
    with pytest.raises(PromptError, match=message):
        predictor.predict(**prompt)
    assert predictor.is_image_set


def test_previous_logits_of_another_grid_name_both(predictor):
    h, w = predictor.frame.logits_hw
    with pytest.raises(PromptError, match=rf"256x256.*{h}x{w}"):
        predictor.predict(mask_input=np.zeros((1, 256, 256), np.float32))
    with pytest.raises(PromptError, match=r"\(1, h, w\)"):
        predictor.predict(mask_input=np.zeros((h, w), np.float32))
    with pytest.raises(PromptError, match="refine"):
        predictor.predict(mask_input=np.zeros((1, h, w), bool))
    with pytest.raises(PromptError, match="NaN"):
        predictor.predict(mask_input=np.full((1, h, w), np.nan))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 2), torch.zeros(1)), r"\(P, N, 2\)"),
        ((torch.zeros(1, 1, 2), None), "point_labels"),
        ((None, torch.zeros(1, 1)), "point_coords"),
        ((torch.zeros(2, 3, 2), torch.zeros(2, 2)), r"\(2, 3\)"),
        ((torch.zeros(1, 1, 2), torch.full((1, 1), 7)), "7"),
        ((torch.full((1, 1, 2), torch.nan), torch.ones(1, 1)), "NaN"),
        ((None, None, torch.zeros(3, 5)), r"\(P, 4\)"),
        ((None, None, torch.zeros(3, 2, 4)), "at most one box"),
        ((torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.zeros(3, 4)), "point_coords 2, boxes 3"),
        ((None, None, None, torch.zeros(1, 64, 64)), r"\(P, 1, h, w\)"),
        ((None, None, None, torch.zeros(1, 1, 256, 256)), "256x256"),
    ],
)
def test_torch_prompts_that_make_no_sense(predictor, arguments, message):
    with pytest.raises(PromptError, match=message):
        predictor.predict_torch(*arguments)


def test_prompts_at_the_far_edge_are_inside(predictor):
    masks, _, _ = predictor.predict([[140, 90]], [1], box=[0, 0, 140, 90])
    assert masks.shape == (3, 90, 140)


def test_no_boxes_no_masks(predictor):
    masks, scores, logits = predictor.predict_torch(None, None, torch.zeros(0, 4))
    h, w = predictor.frame.logits_hw
    assert masks.shape == (0, 3, 90, 140)
    assert scores.shape == (0, 3)
    assert logits.shape == (0, 3, h, w)


def test_no_points_but_a_box_is_the_box(predictor):
    empty = predictor.predict(np.zeros((0, 2)), np.zeros(0), box=[5, 5, 60, 60])
    assert np.array_equal(empty[2], predictor.predict(box=[5, 5, 60, 60])[2])


def test_arguments_are_not_changed(predictor):
    points, labels, box = np.array([[70.5, 40]]), np.array([1]), np.array([5.0, 5, 99, 80])
    before = [copy.deepcopy(x) for x in (points, labels, box)]
    first = predictor.predict(points, labels, box)
    second = predictor.predict(points, labels, box)
    for now, then in zip((points, labels, box), before, strict=True):
        assert np.array_equal(now, then)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)


# Batches


def test_a_batch_answers_as_one_by_one(predictor, monkeypatch):
    mask = np.zeros((90, 140), bool)
    mask[20:60, 30:90] = True
    prompts = [
        Prompt(points=[[70, 40]], labels=[1]),
        Prompt(box=[20, 10, 100, 80]),
        Prompt(points=[[10, 80]], labels=[1]),
        Prompt(points=[[10, 80], [70, 40]], labels=[1, 0]),
        Prompt(points=[[10, 80]], labels=[1], mask=mask),
        Prompt(box=[2, 1, 60, 80]),
        Prompt(mask=mask),
    ]
    calls = []
    plain = predictor.predict_torch

    def counted(*prompt, **options):
        calls.append(prompt)
        return plain(*prompt, **options)

    monkeypatch.setattr(predictor, "predict_torch", counted)
    answers = predictor.predict_batch(prompts, multimask_output=False)
    assert len(calls) == 5
    assert all(isinstance(answer, Masks) for answer in answers)
    for prompt, answer in zip(prompts, answers, strict=True):
        if prompt.mask is None:
            alone = predictor.predict(
                prompt.points, prompt.labels, prompt.box, multimask_output=False
            )
        else:
            alone = predictor.refine(
                prompt.mask, point_coords=prompt.points, point_labels=prompt.labels
            )
        np.testing.assert_allclose(answer.logits, alone[2], atol=1e-3)
        np.testing.assert_allclose(answer.scores, alone[1], atol=1e-4)
        assert answer.masks.shape == (1, 90, 140)
    assert predictor.predict_batch([]) == []
    outside = Prompt(points=[[500, 40]], labels=[1])
    with pytest.raises(PromptError, match="500"):
        predictor.predict_batch([prompts[0], outside])


def test_a_large_batch_is_cut(predictor, monkeypatch):
    from anyres.predict import predictor as module

    prompts = [Prompt(points=[[x, 40]], labels=[1]) for x in range(0, 140, 20)]
    whole = predictor.predict_batch(prompts)
    tokens = predictor.frame.grid_hw[0] * predictor.frame.grid_hw[1]
    monkeypatch.setattr(module, "_BATCH_TOKENS", 3 * tokens)
    for a, b in zip(predictor.predict_batch(prompts), whole, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-3)


# Masks in


def test_refine_takes_a_mask_of_any_plain_kind(predictor):
    mask = np.zeros((90, 140), bool)
    mask[20:60, 30:90] = True
    masks, scores, logits = predictor.refine(mask)
    assert masks.shape == (1, 90, 140)
    assert scores.shape == (1,)
    assert logits.shape == (1, *predictor.frame.logits_hw)
    for same in (mask[None], mask.astype(np.uint8) * 255, mask * 7, torch.from_numpy(mask)):
        assert np.array_equal(predictor.refine(same)[2], logits)
    assert not np.array_equal(predictor.refine(~mask)[2], logits)
    clicked = predictor.refine(mask, point_coords=[[5, 5]], point_labels=[1])
    assert not np.array_equal(clicked[2], logits)


def test_refine_takes_logits_as_predict_does(predictor):
    logits = predictor.predict([[70, 40]], [1])[2]
    expected = predictor.predict(mask_input=logits[:1], multimask_output=False)[2]
    assert np.array_equal(predictor.refine(logits[:1])[2], expected)
    assert np.array_equal(predictor.refine(logits[0])[2], expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((90, 140)), "mask > 0"),
        (np.zeros((9, 14), bool), r"\(9, 14\).*\(90, 140\)"),
        (np.zeros((9, 14), np.float32), "9x14"),
        (np.arange(90 * 140).reshape(90, 140), "several values"),
        (np.zeros((90, 140), complex), "complex"),
    ],
)
def test_masks_that_cannot_be_refined(predictor, mask, message):
    with pytest.raises(PromptError, match=message):
        predictor.refine(mask)
