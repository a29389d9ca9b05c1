"""Saliency measures against PySODMetrics, the field's code in Python."""

import warnings

import numpy as np
import pytest

from anyres.metrics.effort import CorrectionEffort
from anyres.metrics.saliency import Saliency
from anyres.metrics.thinning import skeleton

pytestmark = pytest.mark.oracle

CLOSE = 1e-6


def theirs(pairs, normalize):
    import py_sod_metrics as sod

    with warnings.catch_warnings():
        # It warns that Fmeasure has a successor, and divides by zero where a quadrant is empty.
        warnings.simplefilter("ignore")
        mae, s, e, f = sod.MAE(), sod.Smeasure(), sod.Emeasure(), sod.Fmeasure()
        weighted, effort = sod.WeightedFmeasure(), sod.HumanCorrectionEffortMeasure()
        for prediction, target in pairs:
            for metric in (mae, s, e, f, weighted, effort):
                metric.step(prediction, target, normalize=normalize)
        alignment, measure = e.get_results()["em"], f.get_results()["fm"]
        return {
            "mae": mae.get_results()["mae"],
            "s": s.get_results()["sm"],
            "e_adaptive": alignment["adp"],
            "e_mean": alignment["curve"].mean(),
            "e_max": alignment["curve"].max(),
            "f_adaptive": measure["adp"],
            "f_mean": measure["curve"].mean(),
            "f_max": measure["curve"].max(),
            "f_weighted": weighted.get_results()["wfm"],
            "hce": effort.get_results()["hce"],
        }


def ours(pairs):
    metrics = Saliency(), CorrectionEffort()
    for prediction, target in pairs:
        for metric in metrics:
            metric.update(prediction, target)
    return metrics[0].result() | metrics[1].result()


def compare(pairs, about, *, within=CLOSE):
    """8-bit predictions with bool targets: read from a file, and as numbers from 0 to 1."""
    files = [(prediction, target.astype(np.uint8) * 255) for prediction, target in pairs]
    numbers = [(prediction / 255, target) for prediction, target in pairs]
    for found, expected in (
        (ours(pairs), theirs(files, normalize=True)),
        (ours(numbers), theirs(numbers, normalize=False)),
    ):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=within), f"{name}: {about}"


def blurred(noise, deviation):
    import cv2

    return cv2.GaussianBlur(noise, (0, 0), deviation)


def random_pair(rng, kind):
    height, width = rng.integers(2, 60, 2)
    noise, other = rng.random((2, height, width))
    if rng.random() < 0.6:
        noise, other = blurred(noise, 3), blurred(other, 2)
    target = noise > np.quantile(noise, rng.random())
    target[:, -1] = False  # without an empty quadrant, whose S-measure is not a number there
    target[-1] = False
    prediction = {
        "noise": other * 255,
        "noisy truth": np.clip(0.7 * target + 0.4 * other - 0.1, 0, 1) * 255,
        "constant": np.full(target.shape, rng.integers(256)),
        "binary": (other > 0.5) * rng.integers(1, 256),
        "truth": target * 255,
        "four levels": rng.choice([0, 51, 102, 204], target.shape),
    }[kind]
    return prediction.astype(np.uint8), target


KINDS = ["noise", "noisy truth", "constant", "binary", "truth", "four levels"]


@pytest.mark.parametrize("kind", KINDS)
def test_random_maps(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for number in range(40):
        compare([random_pair(rng, kind)], f"{kind} {number}")


def test_a_set():
    rng = np.random.default_rng(7)
    compare([random_pair(rng, kind) for kind in KINDS * 5], "set")


LEVELS = {"all 0": 0, "all 1": 255, "grey": 100, "half": 128}
EMPTY, FULL = np.zeros((13, 17), bool), np.ones((13, 17), bool)
SPECK = EMPTY.copy()
SPECK[6, 8] = True
TARGETS = {"empty": EMPTY, "full": FULL, "speck": SPECK, "hole": ~SPECK}


@pytest.mark.parametrize("target", TARGETS)
def test_degenerate_maps(target):
    truth = TARGETS[target]
    for level, value in LEVELS.items():
        compare([(np.full(truth.shape, value, np.uint8), truth)], f"{level}, {target}")
    noise = np.random.default_rng(3).integers(0, 256, truth.shape).astype(np.uint8)
    compare([(noise, truth)], f"noise, {target}")


@pytest.mark.parametrize("value", [0, 90, 255])
@pytest.mark.parametrize("truth", [False, True])
def test_one_pixel(value, truth):
    pair = np.full((1, 1), value, np.uint8), np.full((1, 1), truth)
    found, expected = ours([pair]), theirs([(pair[0], pair[1].astype(np.uint8) * 255)], True)
    for name in ("mae", "s", "f_adaptive", "f_max", "f_weighted", "hce"):
        assert found[name] == pytest.approx(expected[name], abs=CLOSE), name
    # It divides by n - 1 + epsilon, here epsilon; we by 1.
    assert found["e_max"] == pytest.approx(expected["e_max"] * np.spacing(1))


def test_single_precision():
    rng = np.random.default_rng(5)
    pairs = [random_pair(rng, "noisy truth") for _ in range(20)]
    pairs = [((prediction / 255).astype(np.float32), target) for prediction, target in pairs]
    expected = theirs(pairs, normalize=False)
    found = ours(pairs)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5), name


def test_skeletons():
    from skimage.morphology import skeletonize

    rng = np.random.default_rng(1)
    for _ in range(200):
        noise = rng.random(rng.integers(1, 70, 2))
        mask = blurred(noise, rng.uniform(0.3, 4)) > 0.5
        np.testing.assert_array_equal(skeleton(mask), skeletonize(mask))


@pytest.mark.parametrize("name", ["davis2016val", "carrotweed", "alphamatting27"])
def test_real_masks(shared_data, name):
    import cv2

    rng = np.random.default_rng(2)
    masks = sorted((shared_data / "val" / name / "masks").glob("*.png"))[::9][:4]
    assert masks
    pairs = []
    for path in masks:
        target = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 128
        target = target[: min(target.shape[0], 800), : min(target.shape[1], 800)]
        noise = blurred(rng.standard_normal(target.shape), 4) * 4
        prediction = 1 / (1 + np.exp(-4 * (blurred(target - 0.5, 2) * 2 + noise)))
        pairs.append(((prediction * 255).astype(np.uint8), target))
        compare(pairs[-1:], path.name)
    compare(pairs, name)
