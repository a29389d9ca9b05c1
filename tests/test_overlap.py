import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyres.errors import InputError
from anyres.metrics.overlap import dice, iou

PAIRS = arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 6)))


def test_iou_is_the_official_one_where_that_has_an_answer(golden):
    facts, tensors = golden("clicks_metrics_losses")
    compared = 0
    for name, case in facts["iou"].items():
        pred = tensors[f"in::iou_{name}::pre_label"].numpy() == 1
        label = tensors[f"in::iou_{name}::seg_label"].numpy()
        void = label == 255 if case["ignore_index"] == 255 else None
        if isinstance(case["result"], str):  # the official code fails there
            continue
        found = iou(pred, label == 1, void=void, empty=0.0)
        assert found == pytest.approx(case["result"], abs=1e-12), name
        compared += 1
    assert compared == 21


@given(PAIRS)
def test_dice_follows_from_iou(pair):
    value = iou(*pair)
    assert dice(*pair) == pytest.approx(2 * value / (1 + value))
    assert iou(pair[1], pair[0]) == value
    assert 0 <= value <= 1


@given(PAIRS)
def test_void_is_as_if_it_were_not_there(pair):
    void = np.zeros(pair.shape[1:], bool)
    void[:, -1] = True
    cut = pair[:, :, :-1]
    assert iou(*pair, void=void) == iou(*cut)
    assert dice(*pair, void=void) == dice(*cut)


def test_empty_masks_agree_unless_told_otherwise():
    none, some = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert iou(none, none) == dice(none, none) == 1.0
    assert iou(none, none, empty=0.0) == dice(none, none, empty=0.0) == 0.0
    assert iou(some, some, void=some) == 1.0
    assert iou(none, some) == iou(some, none) == dice(none, some) == 0.0


def test_zeros_and_ones_are_masks_too():
    pred, target = np.array([[0, 1, 1]], np.uint8), np.array([[1, 1, 0]], np.int64)
    assert iou(pred, target) == pytest.approx(1 / 3)
    assert dice(pred, target) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("pred", "target", "void", "message"),
    [
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), None, "target .* 0 and 1"),
        (np.full((2, 2), -1), np.zeros((2, 2), bool), None, "prediction .* 0 and 1"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), None, "float64"),
        (np.zeros((2, 2), bool), np.zeros((2, 3), bool), None, r"\(2, 2\) .* \(2, 3\)"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), np.zeros((3, 3), bool), "void"),
    ],
)
def test_bad_input_is_named(pred, target, void, message):
    with pytest.raises(InputError, match=message):
        iou(pred, target, void=void)
