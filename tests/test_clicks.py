"""The simulated annotator against the official one, and against plain definitions of it."""

import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyres import clicks
from anyres.clicks import Click, as_points, error_regions, next_click
from anyres.errors import InputError, MissingExtraError

pytest.importorskip("cv2")


def _case(facts, tensors, name):
    pred = tensors[f"in::{name}::pre_label"].numpy()
    target = tensors[f"in::{name}::seg_label"].numpy()
    earlier = [(y, x, mode == "positive") for y, x, mode in facts["points_yx_mode"] or []]
    ignore = tensors.get(f"in::{name}::ignore_mask")
    return pred, target, earlier, None if ignore is None else ignore.numpy().astype(bool)


def test_clicks_are_the_official_ones(golden):
    facts, tensors = golden("clicks_metrics_losses")
    assert len(facts["clicks"]) == 40
    for name, case in facts["clicks"].items():
        pred, target, earlier, ignore = _case(case, tensors, name)
        regions = error_regions(pred, target, earlier, ignore=ignore)
        largest = [case["max_dist_false_negative"], case["max_dist_false_positive"]]
        assert [region.largest for region in regions] == largest, name
        for key, result in case["results"].items():
            k = float(key[1:])
            click = next_click(pred, target, earlier, k=k, ignore=ignore)
            if result["mode"] is None:
                assert click is None, name
                continue
            positive = result["mode"] == "positive"
            expected = tensors[f"out::{name}::{key}_candidates_yx"].numpy()
            found = regions[0 if positive else 1].candidates(k)
            np.testing.assert_array_equal(found, expected, err_msg=f"{name} {key}")
            assert len(found) == result["n_candidates"]
            assert click == Click(*expected[0].tolist(), positive), name


def test_distances_are_the_official_ones(golden):
    facts, tensors = golden("clicks_metrics_losses")
    names = [key.split("::")[1] for key in tensors if key.endswith("::dist_false_negative")]
    assert names
    for name in names:
        pred, target, earlier, ignore = _case(facts["clicks"][name], tensors, name)
        regions = error_regions(pred, target, earlier, ignore=ignore)
        for region, kind in zip(regions, ("negative", "positive"), strict=True):
            expected = tensors[f"out::{name}::dist_false_{kind}"].numpy()
            height, width = region.distance.shape
            whole = np.zeros_like(expected)
            box = whole[region.top : region.top + height, region.left : region.left + width]
            box[:] = region.distance
            np.testing.assert_array_equal(whole, expected, err_msg=name)


def _plain(pred, target, earlier):
    """Every pixel's distance by trying every other: the two largest, and who has them."""
    found = []
    for error in (target & ~pred, pred & ~target):
        for y, x, _ in earlier:
            error[y, x] = False
        outside = np.argwhere(~np.pad(error, 1)) - 1
        distances = {
            (y, x): ((outside - (y, x)) ** 2).sum(axis=1).min() for y, x in np.argwhere(error)
        }
        found.append(distances)
    most = [max(distances.values(), default=0) for distances in found]
    if not any(most):
        return None
    kind = 0 if most[0] > most[1] else 1
    first = min(place for place, distance in found[kind].items() if distance == most[kind])
    return Click(int(first[0]), int(first[1]), kind == 0)


@given(
    arrays(np.bool_, (2, 7, 9)),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8), st.booleans()), max_size=4),
)
def test_click_is_the_farthest_pixel_whatever_is_skipped(maps, earlier):
    assert next_click(maps[0], maps[1], earlier) == _plain(maps[0], maps[1], earlier)


def _uncropped(pred, target, earlier, k, rng, ignore):
    """The click from the distances of both whole regions."""
    missed, false = error_regions(pred, target, earlier, ignore=ignore)
    if not missed.largest and not false.largest:
        return None
    positive = missed.largest > false.largest
    places = (missed if positive else false).candidates(k)
    place = places[0 if rng is None else rng.integers(len(places))]
    return Click(int(place[0]), int(place[1]), positive)


def _grain(rng, shape, size):
    """A random map whose patches are about ``size`` pixels."""
    cells = rng.random((shape[0] // size + 1, shape[1] // size + 1)) < rng.uniform(0.1, 0.9)
    return cells.repeat(size, axis=0).repeat(size, axis=1)[: shape[0], : shape[1]]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([1, 2, 3, 7, 16, 40]),
    st.sampled_from([1.0, 1.05, 1.7, 4.0, -1.0]),
    st.booleans(),
)
@example(3419484745, 165, 125, 7, 1.05, True)  # a tie but for OpenCV's last bit
def test_shortcuts_change_nothing(seed, height, width, size, k, drawn):
    rng = np.random.default_rng(seed)
    pred = _grain(rng, (height, width), size)
    target = _grain(rng, (height, width), int(rng.choice([1, size, 2 * size])))
    if rng.random() < 0.3:
        pred ^= rng.random(pred.shape) < 0.01
    if rng.random() < 0.3:  # two kinds of error that are alike
        pred[: height // 2] = target[: height // 2] = False
        pred[height // 2 :], target[: height // 2] = True, True
    ignore = _grain(rng, (height, width), 9) if rng.random() < 0.2 else None
    earlier = [
        (int(rng.integers(height)), int(rng.integers(width)), True)
        for _ in range(rng.integers(0, 4))
    ]
    generators = [np.random.default_rng(1) if drawn else None for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clicks, "_LARGE", 0)
        patch.setattr(clicks, "_TILE", 8)
        found = next_click(pred, target, earlier, k=k, rng=generators[0], ignore=ignore)
    assert found == _uncropped(pred, target, earlier, k, generators[1], ignore)


def test_clicking_on_ends_with_the_truth():
    rng = np.random.default_rng(0)
    target = rng.random((12, 17)) > 0.5
    pred = np.zeros_like(target)
    done: list[Click] = []
    while (click := next_click(pred, target, done, k=1.7, rng=rng)) is not None:
        assert target[click.y, click.x] == click.positive
        pred[click.y, click.x] = click.positive
        done.append(click)
    np.testing.assert_array_equal(pred, target)
    assert len(done) == target.sum()


def test_random_clicks_reach_every_candidate_and_repeat_with_the_seed():
    pred, target = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    target[2:7, 2:7] = True
    candidates = {tuple(place) for place in error_regions(pred, target)[0].candidates(1.7)}
    drawn = [next_click(pred, target, k=1.7, rng=np.random.default_rng(i)) for i in range(99)]
    assert {(click.y, click.x) for click in drawn if click} == candidates
    assert len(candidates) == 9
    again = [next_click(pred, target, k=1.7, rng=np.random.default_rng(i)) for i in range(99)]
    assert drawn == again


def test_ignored_pixels_are_no_errors():
    pred = np.zeros((6, 6), bool)
    target = np.ones((6, 6), np.uint8)
    target[:, 3:] = 255
    assert next_click(np.ones((6, 6), bool), target) == Click(1, 4, False)
    assert next_click(np.ones((6, 6), bool), target, ignore=target == 255) is None
    assert next_click(pred, target, ignore=target == 255) == Click(1, 1, True)


def test_arguments_are_left_as_they_are():
    pred = np.zeros((5, 5), bool)
    target = np.ones((5, 5), bool)
    next_click(pred, target, [(2, 2, True)])
    assert not pred.any()
    assert target.all()


def test_as_points_is_xy():
    coords, labels = as_points([Click(3, 7, True), Click(5, 1, False)])
    assert coords.tolist() == [[7, 3], [1, 5]]
    assert labels.tolist() == [1, 0]
    assert as_points([])[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("pred", "target", "options", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5)), {}, r"\(4, 4\) and \(4, 5\)"),
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 4)), {}, r"\(H, W\)"),
        (np.zeros((4, 4)), np.zeros((4, 4)), {"k": 0}, "k is 0"),
        (np.zeros((4, 4)), np.zeros((4, 4)), {"k": 0.5}, "k is 0.5"),
        (np.zeros((4, 4)), np.zeros((4, 4)), {"ignore": np.zeros((2, 2), bool)}, "ignore"),
    ],
)
def test_bad_input_is_named(pred, target, options, message):
    with pytest.raises(InputError, match=message):
        next_click(pred, target, **options)


def test_missing_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    clicks._opencv.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r'pip install "anyres\[eval\]"'):
            next_click(np.zeros((4, 4), bool), np.ones((4, 4), bool))
    finally:
        clicks._opencv.cache_clear()
