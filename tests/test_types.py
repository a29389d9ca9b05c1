"""Prompts and answers: what is taken, what is refused and in which words."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anyres.errors import InputError, PromptError
from anyres.types import Masks, Prompt, mask_to_rle, rle_to_mask

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9))


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    points = draw(
        st.none() | hnp.arrays(float, st.tuples(st.integers(1, 5), st.just(2)), elements=NUMBERS)
    )
    labels = None
    if points is not None:
        labels = draw(hnp.arrays(int, len(points), elements=st.integers(0, 1)))
    x0, x1, y0, y1 = sorted(draw(st.lists(NUMBERS, min_size=2, max_size=2, unique=True))) + sorted(
        draw(st.lists(NUMBERS, min_size=2, max_size=2, unique=True))
    )
    box = draw(st.none() | st.just(np.array([x0, y0, x1, y1])))
    mask = draw(MASKS if points is None and box is None else st.none() | MASKS)
    return Prompt(points, labels, box, mask)


def same(a: Prompt, b: Prompt) -> bool:
    pairs = ((getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Prompt))
    return all(x is y if x is None else np.array_equal(x, y) for x, y in pairs)


# Prompt ------------------------------------------------------------------------------------


def test_a_prompt_has_plain_arrays() -> None:
    prompt = Prompt([[1, 2], [3, 4]], [True, 0.0], (0, 0, 5, 5), np.eye(3, 4, dtype=np.uint8) * 255)  # type: ignore[arg-type]
    assert prompt.points is not None
    assert (prompt.points.dtype, prompt.points.tolist()) == (np.float64, [[1, 2], [3, 4]])
    assert prompt.labels is not None
    assert (prompt.labels.dtype, prompt.labels.tolist()) == (np.int64, [1, 0])
    assert prompt.box is not None
    assert (prompt.box.dtype, prompt.box.tolist()) == (np.float64, [0, 0, 5, 5])
    assert prompt.mask is not None
    assert prompt.mask.dtype == np.bool_
    np.testing.assert_array_equal(prompt.mask, np.eye(3, 4, dtype=bool))


def test_points_without_labels_are_the_objects() -> None:
    prompt = Prompt(points=np.array([[1, 2], [3, 4]]))
    assert prompt.labels is not None
    assert prompt.labels.tolist() == [1, 1]


def test_no_points_are_none() -> None:
    for points in ([], np.zeros((0, 2))):
        prompt = Prompt(points, [], box=[0, 0, 1, 1])  # type: ignore[arg-type]
        assert prompt.points is None
        assert prompt.labels is None


def test_a_prompt_does_not_change_with_its_arguments() -> None:
    points, labels, box = np.array([[1.0, 2.0]]), np.array([1]), np.array([0.0, 0, 3, 3])
    prompt = Prompt(points, labels, box)
    points[:], labels[:], box[:] = 9, 0, 9
    assert prompt.to_json() == {"points": [[1, 2]], "labels": [1], "box": [0, 0, 3, 3]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt.box = None  # type: ignore[misc]


def test_a_bool_mask_is_not_copied() -> None:
    mask = np.ones((4, 5), bool)
    assert np.shares_memory(Prompt(mask=mask).mask, mask)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the prompt is empty"),
        ({"points": []}, "the prompt is empty"),
        ({"points": [1, 2]}, r"points are \(2,\); they must be \(N, 2\), such as"),
        ({"points": [[1, 2, 3]]}, r"points are \(1, 3\)"),
        ({"points": np.zeros((1, 1, 2))}, r"points are \(1, 1, 2\)"),
        ({"points": np.zeros((0, 3))}, r"points are \(0, 3\)"),
        ({"points": [[1, 2], [3]]}, "points is no array of numbers"),
        ({"points": [["1", "2"]]}, "points must hold real numbers"),
        ({"points": [[True, False]]}, "points must hold real numbers"),
        ({"points": [[1, None]]}, "points must hold real numbers"),
        ({"points": [[1, 2j]]}, "points must hold real numbers"),
        ({"points": [[1, 10**400]]}, "points must hold real numbers"),
        ({"points": [[1, 2], [3, np.nan]]}, "point 2 of 2 is 3, nan: not finite"),
        ({"points": [[-np.inf, 2]]}, "point 1 of 1 is -inf, 2: not finite"),
        ({"labels": [1]}, "labels without points"),
        ({"labels": [1], "points": [], "box": [0, 0, 1, 1]}, "labels without points"),
        ({"points": [[1, 2]], "labels": [1, 0]}, r"labels are \(2,\); 1 points need \(1,\)"),
        ({"points": [[1, 2]], "labels": 1}, r"labels are \(\); 1 points need \(1,\)"),
        ({"points": [[1, 2]], "labels": [[1]]}, r"labels are \(1, 1\)"),
        ({"points": [[1, 2]] * 2, "labels": [1, -1]}, "label 2 of 2 is -1; it must be 1"),
        ({"points": [[1, 2]], "labels": [0.5]}, "label 1 of 1 is 0.5"),
        ({"points": [[1, 2]], "labels": [np.nan]}, "label 1 of 1 is nan"),
        ({"points": [[1, 2]], "labels": ["1"]}, "labels must hold real numbers"),
        ({"box": [1, 2, 3]}, r"the box is \(3,\); it must be \(4,\)"),
        ({"box": [[1, 2, 3, 4]]}, r"the box is \(1, 4\)"),
        ({"box": []}, r"the box is \(0,\)"),
        ({"box": [3, 2, 1, 4]}, "the box 3, 2, 1, 4 has no area"),
        ({"box": [1, 4, 3, 4]}, "the box 1, 4, 3, 4 has no area"),
        ({"box": [1, 2, np.inf, 4]}, "the box 1, 2, inf, 4 is not finite"),
        ({"box": "1,2,3,4"}, "box must hold real numbers"),
        ({"mask": np.ones((2, 2, 1), bool)}, r"the mask is \(2, 2, 1\); it must be \(H, W\)"),
        ({"mask": np.ones((0, 4), bool)}, r"the mask is \(0, 4\)"),
        ({"mask": np.ones((2, 2))}, "the mask holds float64; it must be bool: pass `mask > 0`"),
        ({"mask": np.array([[0, 1, 3]])}, "several values, 1 and 3 among them; .* `mask == 3`"),
        ({"mask": [["a"]]}, "mask must hold real numbers"),
    ],
)
def test_what_makes_no_prompt_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt(**fields)


# As text -----------------------------------------------------------------------------------


def test_text() -> None:
    prompt = Prompt.from_text(["420,310", " 50 , 60.5 ,0", "1e2,-7,1"], "1,2,3.5,4")
    assert prompt.to_json() == {
        "points": [[420, 310], [50, 60.5], [100, -7]],
        "labels": [1, 0, 1],
        "box": [1, 2, 3.5, 4],
    }
    assert Prompt.from_text(box="1,2,3,4").points is None
    mask = np.eye(2, dtype=bool)
    assert Prompt.from_text(mask=mask).mask is mask


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("12,abc", "'abc' is no number"),
        ("12,", "'' is no number"),
        ("1_0,20", "'1_0' is no number"),
        ("12", "it has 1 parts, not 2 or 3"),
        ("1,2,1,1", "it has 4 parts, not 2 or 3"),
        ("", "it has 1 parts"),
        ("1;2", "it has 1 parts"),
        ("1,nan", "'nan' is not finite"),
        ("1e999,2", "'1e999' is not finite"),
        ("1,2,2", "the label is 2"),
        ("1,2,-1", "the label is -1"),
        ("1,2,0.5", "the label is 0.5"),
    ],
)
def test_text_that_is_no_point_is_explained(text: str, reason: str) -> None:
    with pytest.raises(PromptError) as caught:
        Prompt.from_text(["5,5", text])
    message = str(caught.value)
    assert message.startswith(f"--point {text!r}: {reason}")
    assert "it must be X,Y or X,Y,LABEL" in message
    assert message.endswith("such as 420,310,1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,2,3", "it has 3 parts, not 4"),
        ("1,2,3,x", "'x' is no number"),
        ("1,2,3,inf", "'inf' is not finite"),
    ],
)
def test_text_that_is_no_box_is_explained(text: str, reason: str) -> None:
    with pytest.raises(PromptError) as caught:
        Prompt.from_text(box=text)
    assert str(caught.value).startswith(f"--box {text!r}: {reason}; it must be X0,Y0,X1,Y1")


def test_one_text_is_no_list_of_texts() -> None:
    with pytest.raises(PromptError, match="a list of texts"):
        Prompt.from_text("1,2")


@given(prompts())
def test_numbers_survive_as_text(prompt: Prompt) -> None:
    points, labels = prompt.points, prompt.labels
    texts = []
    if points is not None and labels is not None:
        texts = [f"{x!r},{y!r},{n}" for (x, y), n in zip(points.tolist(), labels, strict=True)]
    box = None if prompt.box is None else ",".join(map(repr, prompt.box.tolist()))
    assert same(Prompt.from_text(texts, box, prompt.mask), prompt)


# As JSON -----------------------------------------------------------------------------------


@given(prompts())
def test_json_gives_the_prompt_back_exactly(prompt: Prompt) -> None:
    tree = prompt.to_json()
    assert None not in tree.values()
    assert same(Prompt.from_json(tree), prompt)
    assert same(Prompt.from_json(json.dumps(tree, allow_nan=False)), prompt)


def test_json_in_all_its_forms() -> None:
    text = '{"points": [[420, 310]], "labels": null, "mask": [[0, 1], [1, 1]]}'
    prompt = Prompt.from_json(text)
    assert prompt.labels is not None
    assert prompt.labels.tolist() == [1]
    np.testing.assert_array_equal(prompt.mask, [[False, True], [True, True]])  # type: ignore[arg-type]
    assert prompt.box is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{", "no valid JSON: .* line 1 column 2"),
        ("", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ("[[1, 2]]", "the prompt is a list; it must be an object"),
        (None, "the prompt is a NoneType"),
        ("{}", "the prompt is empty"),
        ('{"points": [[NaN, 1]]}', "point 1 of 1 is nan, 1"),
        ('{"point": [[1, 2]]}', "unknown key 'point'; did you mean 'points'"),
        ('{"Labels": [1]}', "unknown key 'Labels'; did you mean 'labels'"),
        ('{"boxes": [1, 2, 3, 4]}', "unknown key 'boxes'; did you mean 'box'"),
        ('{"threshold": 1}', "unknown key 'threshold'; known are points, labels, box, mask"),
        ({3: 4}, "unknown key 3"),
        ('{"points": {"x": 1}}', "points must hold real numbers"),
        ('{"mask": "m.png"}', "mask must hold real numbers"),
        ('{"mask": [[0, 2], [1, 0]]}', "the mask holds several values"),
        ('{"mask": {"size": [1, 2]}}', "a mask has the keys"),
    ],
)
def test_json_that_is_no_prompt_is_explained(source: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Prompt.from_json(source)


def test_json_is_held_against_the_picture() -> None:
    box = {"box": [0, 0, 10, 10]}
    assert Prompt.from_json(box, size_hw=(10, 10)).box is not None
    with pytest.raises(PromptError, match="reaches outside the picture, which is 10x9"):
        Prompt.from_json(box, size_hw=(9, 10))
    # A tiny text that stands for a mask of 10 GB must not be decoded first.
    huge = {"mask": {"size": [100_000, 100_000], "counts": [10**10]}}
    with pytest.raises(PromptError, match="the mask is 100000x100000, not the 10x9 of the picture"):
        Prompt.from_json(huge, size_hw=(9, 10))


# Inside the picture ------------------------------------------------------------------------


def test_a_box_may_be_rounded_outwards() -> None:
    Prompt(box=[-0.4, -0.5, 20.3, 10.5]).check_inside((10, 20))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            Prompt([[1, 2], [20.5, 3]]),
            "point 2 of 2, x=20.5 y=3, lies outside the picture, .* 20x10",
        ),  # type: ignore[arg-type]
        (Prompt([[3, 10.001]]), "x=3 y=10.001, lies outside"),  # type: ignore[arg-type]
        (Prompt([[-0.001, 3]]), "x=-0.001 y=3, lies outside"),  # type: ignore[arg-type]
        (Prompt([[3, -1]]), "x=3 y=-1, lies outside"),  # type: ignore[arg-type]
        (Prompt(box=[-1, 0, 5, 5]), "the box -1, 0, 5, 5 .* reaches outside"),  # type: ignore[arg-type]
        (Prompt(box=[0, -1, 5, 5]), "the box 0, -1, 5, 5"),  # type: ignore[arg-type]
        (Prompt(box=[0, 0, 20.75, 5]), "the box 0, 0, 20.75, 5"),  # type: ignore[arg-type]
        (Prompt(box=[0, 0, 5, 11]), "the box 0, 0, 5, 11"),  # type: ignore[arg-type]
        (Prompt(mask=np.ones((20, 10), bool)), "the mask is 10x20 and does not fit the picture"),
    ],
)
def test_what_lies_outside_is_named(prompt: Prompt, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        prompt.check_inside((10, 20))


def test_the_border_belongs_to_the_picture() -> None:
    corners = [[0, 0], [20, 0], [0, 10], [20, 10]]
    prompt = Prompt(corners, box=[0, 0, 20, 10], mask=np.ones((10, 20), bool))  # type: ignore[arg-type]
    prompt.check_inside((10, 20))
    with pytest.raises(PromptError):
        prompt.check_inside((20, 10))


# Run lengths -------------------------------------------------------------------------------


@given(MASKS)
def test_run_lengths_give_the_mask_back(mask: np.ndarray) -> None:
    rle = mask_to_rle(mask)
    assert sum(rle["counts"]) == mask.size
    assert 0 not in rle["counts"][1:]
    back = rle_to_mask(rle)
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, mask)


def test_run_lengths_are_the_official_ones(golden: Any) -> None:
    facts, tensors = golden("sam_amg_utils")
    masks = tensors["in::amg::masks"].numpy()
    assert len(masks) == len(facts["mask_to_rle_pytorch"]) > 0
    for mask, official in zip(masks, facts["mask_to_rle_pytorch"], strict=True):
        assert mask_to_rle(mask) == official
        np.testing.assert_array_equal(rle_to_mask(official), mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [2, 2], "counts": [4], "area": 4}, "has the keys"),
        ({"size": [2, 2], "counts": "PQ4"}, "counts must hold real numbers"),
        ({"size": [2, 2], "counts": [5, -1]}, "counts of the mask must be a list of whole numbers"),
        ({"size": [2, 2], "counts": [4.0]}, "counts of the mask must be a list of whole numbers"),
        ({"size": [2.0, 2], "counts": [4]}, "size of the mask must be a list of whole numbers"),
        ({"size": [2], "counts": [2]}, r"size of the mask is \[2\]; it must be \[height, width\]"),
        ({"size": [2, 0], "counts": []}, r"size of the mask is \[2, 0\]"),
        ({"size": [2, 2], "counts": [1, 2]}, "add up to 3, its size 2x2 needs 4"),
        ({"size": [2, 2], "counts": []}, "add up to 0, its size 2x2 needs 4"),
        ({"size": [2**40, 2**40], "counts": [2**62] * 4}, "add up to 18446744073709551616"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "is too large"),
    ],
)
def test_wrong_run_lengths_are_explained(rle: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        rle_to_mask(rle)


# Masks -------------------------------------------------------------------------------------


def answer(**changes: Any) -> Masks:
    plain = {
        "masks": np.zeros((3, 6, 8), bool),
        "scores": np.array([0.25, 0.5, 0.5], np.float32),
        "logits": np.zeros((3, 4, 4), np.float32),
    }
    return Masks(**(plain | changes))


def test_an_answer_comes_apart() -> None:
    whole = answer(scores=np.array([0.25, 0.5, 0.5]))
    masks, scores, logits = whole
    assert masks is whole.masks
    assert scores is whole.scores
    assert logits is whole.logits
    assert (masks.dtype, scores.dtype, logits.dtype) == (np.bool_, np.float32, np.float32)


def test_the_best_mask_is_the_first_of_the_highest_score() -> None:
    assert answer().best == 1
    assert type(answer().best) is int


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": np.zeros((3, 6, 8), np.uint8)}, "masks holds uint8; it must be bool"),
        ({"masks": np.zeros((3, 6, 8), np.float32)}, "masks holds float32; it must be bool"),
        ({"scores": np.zeros(3, bool)}, "scores holds bool; it must be float32"),
        ({"logits": np.zeros((3, 4, 4), int)}, "logits holds int64; it must be float32"),
        ({"masks": np.zeros((6, 8), bool)}, r"\(6, 8\), \(3,\) and \(3, 4, 4\); they must be"),
        ({"scores": np.zeros((1, 3))}, r"\(3, 6, 8\), \(1, 3\) and"),
        ({"scores": np.zeros(2)}, r"\(3, 6, 8\), \(2,\) and"),
        ({"logits": np.zeros((1, 4, 4))}, r"and \(1, 4, 4\)"),
        ({"masks": np.zeros((3, 0, 8), bool)}, "neither may be empty"),
        ({"logits": np.zeros((3, 4, 0))}, "neither may be empty"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        answer(**changes)
    with pytest.raises(InputError, match="neither may be empty"):
        Masks(np.zeros((0, 6, 8), bool), np.zeros(0, np.float32), np.zeros((0, 4, 4), np.float32))
