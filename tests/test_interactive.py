import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyres.errors import InputError, StateError
from anyres.metrics.interactive import CLICKS, Interactive, clicks_to_reach

CURVES = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=CLICKS), min_size=1, max_size=8)


def scored(curves, **times):
    metric = Interactive()
    for curve in curves:
        metric.update(curve, **times)
    return metric


def test_noc_is_the_official_one(golden):
    facts, tensors = golden("clicks_metrics_losses")
    found = scored(tensors["in::noc::ious"].tolist()).result()
    assert len(facts["noc"]) == 4
    for threshold, expected in facts["noc"].items():
        assert found[f"noc{round(float(threshold) * 100)}"] == expected


def test_clicks_to_reach():
    assert clicks_to_reach([0.9, 0.1], 0.9) == 1
    assert clicks_to_reach([0.1, 0.9, 0.2], 0.9) == 2
    assert clicks_to_reach([0.1] * 20 + [0.9], 0.9) == 20
    assert clicks_to_reach([0.1, 0.2], 0.9) == 20
    assert clicks_to_reach([0.1, 0.2, 0.9], 0.9, limit=2) == 2
    with pytest.raises(InputError, match="limit is 0"):
        clicks_to_reach([0.5], 0.5, limit=0)


def test_figures_of_two_objects():
    late = [0.1] * 4 + [0.82] * 15 + [0.97]
    found = scored([[0.5, 0.9, 1.0], late]).result()
    assert found == {
        "objects": 2,
        "noc80": (2 + 5) / 2,
        "noc85": (2 + 20) / 2,
        "noc90": (2 + 20) / 2,
        "noc95": (3 + 20) / 2,
        "nof80": 0,
        "nof85": 0,
        "nof90": 0,
        "nof95": 0,
        "iou1": pytest.approx(0.3),
        "iou3": pytest.approx(0.55),
        "iou5": pytest.approx(0.91),
        "iou20": pytest.approx(0.985),
    }


def test_reaching_it_with_the_last_click_is_no_failure():
    found = scored([[0.1] * 19 + [0.9], [0.1] * 20]).result()
    assert found["noc90"] == 20
    assert found["nof90"] == 1
    assert found["nof95"] == 2


@given(CURVES)
def test_streaming_is_as_if_all_were_kept(curves):
    whole = np.array([curve + curve[-1:] * (CLICKS - len(curve)) for curve in curves])
    metric = scored(curves)
    np.testing.assert_allclose(metric.curve().mean, whole.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(metric.curve().spread, whole.std(axis=0), atol=1e-7)
    found = metric.result()
    assert found["iou5"] == pytest.approx(whole[:, 4].mean(), abs=1e-12)
    assert found["nof85"] == (whole < 0.85).all(axis=1).sum()
    assert found["noc85"] == np.mean([clicks_to_reach(curve, 0.85) for curve in whole])


def test_seconds():
    metric = scored([[0.5, 0.6]], encoder_seconds=2.0, click_seconds=[0.1, 0.3])
    metric.update([0.5], encoder_seconds=0.0, click_seconds=[0.4])
    found = metric.result()
    assert found["spc"] == pytest.approx(((0.2 + 0.1) + 0.4) / 2)
    assert found["online_seconds"] == pytest.approx(0.3)
    assert "spc" not in scored([[0.5]]).result()


@pytest.mark.parametrize(
    ("ious", "times", "message"),
    [
        ([], {}, "1 to 20 values, got 0"),
        ([0.5] * 21, {}, "got 21"),
        ([0.5, 1.5], {}, "0 to 1"),
        ([float("nan")], {}, "0 to 1"),
        ([0.5], {"encoder_seconds": 1.0}, "go together"),
        ([0.5], {"click_seconds": [1.0]}, "go together"),
        ([0.5], {"encoder_seconds": 1.0, "click_seconds": []}, "go together"),
        ([0.5], {"encoder_seconds": -1.0, "click_seconds": [1.0]}, "negative"),
        ([0.5], {"encoder_seconds": 1.0, "click_seconds": [float("nan")]}, "negative"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(ious, times, message):
    metric = scored([[0.5]])
    before = metric.result()
    with pytest.raises(InputError, match=message):
        metric.update(ious, **times)
    assert metric.result() == before


def test_nothing_yet():
    with pytest.raises(StateError, match="no object"):
        Interactive().result()
    with pytest.raises(StateError, match="no object"):
        Interactive().curve()
