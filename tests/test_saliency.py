"""Saliency measures against plain definitions; `test_oracle_metrics.py` has the field's code."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyres.errors import InputError, MissingExtraError, StateError
from anyres.metrics.effort import CorrectionEffort, correction_effort
from anyres.metrics.maps import grey, split_target
from anyres.metrics.saliency import Saliency
from anyres.metrics.thinning import skeleton

pytest.importorskip("cv2")

SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9))
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(arrays(np.uint8, shape), arrays(np.bool_, shape)))


def measured(prediction, target):
    metric = Saliency()
    metric.update(prediction, target)
    return metric.result()


def square(size=20, low=5, high=15):
    mask = np.zeros((size, size), bool)
    mask[low:high, low:high] = True
    return mask


def plain(pred, target):
    """MAE and both curves of a stretched map, threshold by threshold."""
    f_curve, e_curve = [], []
    levels = (pred * 255).astype(np.uint8)
    for threshold in range(255, -1, -1):
        found = levels >= threshold
        common = (found & target).sum()
        precision, recall = common / max(found.sum(), 1), common / max(target.sum(), 1)
        f_curve.append(1.3 * precision * recall / ((0.3 * precision + recall) or 1))
        if target.all() or not target.any():
            aligned = found == target
        else:
            one, other = found - found.mean(), target - target.mean()
            aligned = (2 * one * other / (one**2 + other**2) + 1) ** 2 / 4
        e_curve.append(aligned.sum() / (target.size - 1))
    return np.abs(pred - target).mean(), np.array(f_curve), np.array(e_curve)


@given(PAIRS)
def test_curves_are_those_of_each_threshold(pair):
    prediction, target = pair
    metric = Saliency()
    metric.update(prediction, target)
    mae, f_curve, e_curve = plain(grey(prediction), target)
    found = metric.curves()
    np.testing.assert_allclose(found[0], f_curve, atol=1e-9)
    np.testing.assert_allclose(found[1], e_curve, atol=1e-9)
    result = metric.result()
    assert result["mae"] == pytest.approx(mae, abs=1e-12)
    assert result["f_max"] == pytest.approx(f_curve.max())
    assert result["e_mean"] == pytest.approx(e_curve.mean())


def test_perfect_and_worst():
    best = measured(square(), square())
    assert best["mae"] == 0
    for name in ("s", "f_adaptive", "f_max", "f_weighted"):
        assert best[name] == pytest.approx(1, abs=1e-6), name
    assert best["e_max"] == pytest.approx(400 / 399)  # the definition divides by n - 1
    worst = measured(~square(), square())
    assert worst["mae"] == 1
    for name in ("s", "f_adaptive", "f_weighted"):
        assert worst[name] == pytest.approx(0, abs=1e-6), name


def test_a_set_is_the_mean_of_its_pictures():
    rng = np.random.default_rng(0)
    pairs = [(rng.random((9, 8)), rng.random((9, 8)) > 0.6) for _ in range(3)]
    metric = Saliency()
    for prediction, target in pairs:
        metric.update(prediction, target)
    found, single = metric.result(), [measured(*pair) for pair in pairs]
    assert found["pictures"] == 3
    for name in ("mae", "s", "e_adaptive", "e_mean", "f_adaptive", "f_mean", "f_weighted"):
        assert found[name] == pytest.approx(np.mean([one[name] for one in single])), name
    # The greatest of the mean curve, not the mean of the greatest.
    assert found["f_max"] < np.mean([one["f_max"] for one in single])


@given(PAIRS)
def test_void_is_as_if_it_were_not_there(pair):
    prediction, target = pair[0] / 255, pair[1].astype(np.uint8)
    target[0, 0] = 1
    wide = np.pad(target, ((0, 0), (0, 2)), constant_values=255)
    noise = np.random.default_rng(0).random(wide.shape)
    noise[:, : target.shape[1]] = prediction
    found, expected = measured(noise, wide), measured(prediction, target == 1)
    for name in ("mae", "e_adaptive", "e_mean", "f_adaptive", "f_max", "s"):
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name
    # Its window looks beyond: there are pixels where the picture used to end.
    changed = noise.copy()
    changed[wide == 255] = 0
    assert found["f_weighted"] == measured(changed, wide)["f_weighted"]


def test_eight_bits_are_stretched_and_floats_are_not():
    prediction = np.where(square(), 150, 50).astype(np.uint8)
    assert measured(prediction, square())["mae"] == 0
    assert measured(prediction / 255, square())["mae"] == pytest.approx(
        (100 * 105 + 300 * 50) / 400 / 255
    )
    assert grey(np.full((2, 2), 51, np.uint8)).tolist() == [[0.2, 0.2], [0.2, 0.2]]
    assert grey(prediction.astype(np.float32) / 255).dtype == np.float32


def test_object_in_the_last_column():
    target = np.zeros((6, 5), bool)
    target[:, -1] = True
    found = measured(target, target)
    assert found["s"] == pytest.approx(1)  # two of the four quadrants are empty
    assert measured(np.zeros((6, 5)), target)["s"] < 0.5


def test_one_pixel():
    found = measured(np.ones((1, 1)), np.ones((1, 1), bool))
    assert found["s"] == found["e_max"] == found["f_max"] == 1
    assert measured(np.ones((1, 1)), np.zeros((1, 1), bool))["s"] == 0


@pytest.mark.parametrize("metric", [Saliency, CorrectionEffort])
@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3), bool), r"\(2, 2\) .* \(2, 3\)"),
        (np.zeros((2, 2, 1)), np.zeros((2, 2, 1), bool), r"\(H, W\)"),
        (np.zeros((0, 2)), np.zeros((0, 2), bool), "pixels in it"),
        (np.full((2, 2), 1.5), np.zeros((2, 2), bool), "1.5"),
        (np.full((2, 2), np.nan), np.zeros((2, 2), bool), "nan"),
        (np.zeros((2, 2), np.int32), np.zeros((2, 2), bool), "int32"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "bool or integers"),
        (np.zeros((2, 2)), np.full((2, 2), 7), "0, 1 and"),
        (np.zeros((2, 2)), np.array([[0, 255], [0, 255]]), "no 1"),
    ],
)
def test_bad_input_is_named(metric, prediction, target, message):
    with pytest.raises(InputError, match=message):
        metric().update(prediction, target)


@pytest.mark.parametrize("metric", [Saliency, CorrectionEffort])
def test_nothing_yet_and_no_opencv(metric, monkeypatch):
    with pytest.raises(StateError, match="no picture"):
        metric().result()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "anyres\[eval\]"'):
        metric().update(np.zeros((4, 4)), square(4, 1, 3))


def test_targets_are_split():
    wanted, void = split_target(np.array([[0, 1, 255]], np.uint8))
    assert wanted.tolist() == [[False, True, False]]
    assert void is not None
    assert void.tolist() == [[False, False, True]]
    assert split_target(np.array([[0, 1]], np.int64))[1] is None


def test_effort():
    assert correction_effort(square(), square()) == 0
    # A square that is missing and touches nothing that is found: its four corners.
    assert correction_effort(np.zeros((40, 40), bool), square(40, 10, 30)) > 0
    near = np.roll(square(40, 10, 30), 3, axis=0)
    assert correction_effort(near, square(40, 10, 30)) < correction_effort(
        square(40, 2, 8), square(40, 10, 30)
    )
    metric = CorrectionEffort()
    metric.update(square(), square())
    metric.update(square(40, 2, 8), square(40, 10, 30))
    effort = correction_effort(square(40, 2, 8), square(40, 10, 30))
    assert metric.result() == {"pictures": 2, "hce": effort / 2}


def test_effort_spares_void():
    target = square(40, 10, 30).astype(np.uint8)
    target[:, 20:] = 255
    metric = CorrectionEffort()
    metric.update(square(40, 10, 30), target)
    assert metric.result()["hce"] == 0


@given(arrays(np.bool_, SHAPES))
def test_skeletons_are_thin_and_hold_together(mask):
    import cv2

    found = skeleton(mask)
    assert not (found & ~mask).any()
    count = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0]
    # A 2 x 2 block may vanish, as in the paper; nothing may fall apart.
    assert cv2.connectedComponents(found.view(np.uint8), connectivity=8)[0] <= count
    assert (skeleton(found) == found).all()


def test_skeleton_of_a_bar():
    bar = np.zeros((9, 30), bool)
    bar[2:7, 3:27] = True
    found = skeleton(bar)
    assert found.sum(axis=0).max() == 1
    assert found[4, 6:24].all()
