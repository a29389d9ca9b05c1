import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyres.errors import InputError, StateError
from anyres.metrics.overlap import Overlap, boundary_iou, dice, iou

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


def plain_rim(mask, reach):
    """The pixels of a mask that a square of the given reach about them shows to be near its end."""
    padded = np.pad(mask, reach)
    size = 2 * reach + 1
    inner = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).all(axis=(2, 3))
    return mask & ~inner


BLOBS = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))


@given(BLOBS, st.sampled_from([0.02, 0.05, 0.3]))
def test_boundary_iou_is_that_of_the_rims(blob, ratio):
    pytest.importorskip("cv2")
    height, width, seed = blob
    rng = np.random.default_rng(seed)
    small = rng.random((2, 8, 8)) > 0.4
    pair = small.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    reach = max(1, round(ratio * (height**2 + width**2) ** 0.5))
    rims = [plain_rim(mask, reach) for mask in pair]
    assert boundary_iou(*pair, ratio=ratio) == iou(*rims)


def test_boundary_iou_sees_only_the_border():
    pytest.importorskip("cv2")
    target = np.zeros((200, 200), bool)
    target[20:180, 20:180] = True
    hole = target.copy()
    hole[95:105, 95:105] = False
    assert boundary_iou(target, target) == 1
    assert boundary_iou(hole, target) < iou(hole, target)
    # The reach is 6 pixels: the moved border shares half its width.
    moved = np.roll(target, 3, axis=1)
    assert iou(moved, target) > 0.95
    assert 0.5 < boundary_iou(moved, target) < 0.7
    none = np.zeros((5, 5), bool)
    assert boundary_iou(none, none) == 1
    assert boundary_iou(none, none, empty=0.0) == 0


def test_overlap_of_a_set():
    pytest.importorskip("cv2")
    metric = Overlap()
    for share, right in ((0.5, 25), (0.04, 2), (0.05, 0)):
        target = np.zeros((50, 20), np.uint8)
        target[: int(50 * share)] = 1
        prediction = np.zeros((50, 20), bool)
        prediction[:right] = True
        metric.update(prediction, target)
    found = metric.result()
    assert found["objects"] == 3
    assert found["iou"] == found["dice"] == pytest.approx(2 / 3)
    assert found["boundary_iou"] == pytest.approx(2 / 3)
    assert [found[f"objects_{size}"] for size in ("small", "medium", "large")] == [0, 2, 1]
    assert "iou_small" not in found
    assert found["iou_medium"] == 0.5
    assert found["iou_large"] == 1


def test_overlap_spares_void():
    pytest.importorskip("cv2")
    target = np.zeros((20, 20), np.uint8)
    target[5:15, 5:15] = 1
    wrong = np.ones((20, 20), bool)
    target[target == 0] = 255
    metric = Overlap()
    metric.update(wrong, target)
    found = metric.result()
    assert found["iou"] == found["dice"] == found["boundary_iou"] == 1
    metric.update(wrong, target == 1)
    assert metric.result()["iou"] == pytest.approx((1 + 0.25) / 2)
    with pytest.raises(InputError, match=r"\(3, 3\) .* \(20, 20\)"):
        metric.update(np.ones((3, 3), bool), target)
    with pytest.raises(StateError, match="no object"):
        Overlap().result()
