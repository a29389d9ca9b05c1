"""Protocols and figures: what is asked of a model, and what is made of its answers."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cv2")

import cv2

from anyres.clicks import Click
from anyres.data.datasets import open_dataset
from anyres.data.images import read_image, read_mask, write_png
from anyres.errors import InputError, OutputError
from anyres.evaluate import report as reports
from anyres.evaluate.choice import Choice
from anyres.evaluate.compare import compare
from anyres.evaluate.figures import Running, measure, summarise
from anyres.evaluate.grabcut import GrabCut
from anyres.evaluate.journal import Journal, sole
from anyres.evaluate.protocols import Rules, Target, jittered, try_clicks
from anyres.evaluate.run import Task, ahead, work
from anyres.metrics.overlap import iou


class Scripted:
    """Answers with given masks, whatever the prompts, and notes what it is asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def set_image(self, image):
        self.image = image

    def predict(self, point_coords=None, point_labels=None, box=None, mask_input=None,
                multimask_output=True):  # fmt: skip
        self.asked.append((point_coords, point_labels, box, mask_input, multimask_output))
        place = min(len(self.asked), len(self.answers)) - 1
        logits = np.full((1, 4, 4), len(self.asked), np.float32)
        return self.answers[place][None], np.ones(1, np.float32), logits


@pytest.fixture
def square():
    values = np.zeros((8, 8), np.uint8)
    values[2:6, 2:6] = 1
    return Target(values)


def disc(folder, stems="ab"):
    """Pictures of 90 x 120 with a red disc on blue."""
    yy, xx = np.mgrid[:90, :120]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    noise = np.random.default_rng(0)
    for place, stem in enumerate(stems):
        inside = (yy - 45) ** 2 + (xx - 40 - 3 * place) ** 2 < (15 + place) ** 2
        image = np.where(inside[..., None], (200, 30, 30), (20, 30, 180)).astype(np.uint8)
        image += noise.integers(0, 20, image.shape, dtype=np.uint8)
        write_png(folder / "images" / f"{stem}.png", image)
        mask = inside.astype(np.uint8)
        write_png(folder / "masks" / f"{stem}.png", mask)
    return folder


# clicks


def test_iou_follows_the_clicks_and_ends_when_all_is_right(square):
    half = square.wanted.copy()
    half[:, 4:] = False
    model = Scripted([half, square.wanted])
    trial = try_clicks(model, square, 5)
    assert trial.ious == [0.5, 1]
    # The first click is in the middle of the object, the second in the half that is missing.
    assert trial.clicks == [Click(3, 3, True), Click(2, 4, True)]
    assert model.asked[1][0].tolist() == [[3, 3], [4, 2]]
    assert model.asked[1][1].tolist() == [1, 1]


def test_the_model_is_fed_its_own_logits_and_asked_for_one_mask(square):
    model = Scripted([np.ones((8, 8), bool)])
    try_clicks(model, square, 3)
    assert model.asked[0][3] is None
    assert (model.asked[1][3] == 1).all()
    assert (model.asked[2][3] == 2).all()
    assert model.asked[2][1].tolist() == [1, 0, 0]
    assert not any(asked[4] for asked in model.asked)
    try_clicks(model, square, 1)
    assert model.asked[3][3] is None


def test_void_is_neither_clicked_nor_counted(square):
    values = square.values.copy()
    values[:, 6:] = 255
    trial = try_clicks(Scripted([values > 0]), Target(values), 3)
    assert trial.ious == [1]


def test_iou_is_that_of_the_metrics():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.choice(np.array([0, 1, 255], np.uint8), (9, 7))
        mask = rng.random((9, 7)) < 0.5
        target = Target(values)
        assert target.iou(mask) == iou(mask, values == 1, void=values == 255)
        assert target.area == (values == 1).sum()
    assert Target(np.zeros((3, 3), np.uint8)).iou(np.zeros((3, 3), bool)) == 1


@pytest.mark.parametrize("name", ["davis2016val", "coco128seg"])
def test_an_independent_harness_gives_the_same(shared_data, hrsam, name):
    """The loop written out, with distances of scipy's kind: brute force within the error."""
    from anyres.predict.predictor import Predictor

    predictor = Predictor(hrsam, resolution=128)
    root = shared_data / "val" / name
    dataset = open_dataset(root)
    for ref in dataset.objects[:: max(1, len(dataset.objects) // 3)][:3]:
        picture, values = dataset.picture(ref), dataset.target(ref)
        predictor.set_image(picture)
        ours = try_clicks(predictor, Target(values), 4)
        assert ours.ious == pytest.approx(plain_harness(predictor, values == 1, 4), abs=1e-12)


def plain_harness(predictor, wanted, clicks):
    """The protocol in a loop of its own: no code of `anyres.clicks` or `anyres.metrics`."""
    mask, logits, coords, labels, ious = np.zeros_like(wanted), None, [], [], []
    for _ in range(clicks):
        wrong = {1: wanted & ~mask, 0: mask & ~wanted}
        best = (0.0, None, None)
        for label in (0, 1):  # a tie clicks negative
            region = wrong[label].copy()
            for x, y in coords:
                region[y, x] = False
            padded = np.pad(region, 1).astype(np.uint8)
            distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
            if distance.max() > best[0]:
                y, x = np.unravel_index(distance.argmax(), distance.shape)
                best = (distance.max(), (int(x), int(y)), label)
        if best[1] is None:
            break
        coords.append(best[1])
        labels.append(best[2])
        masks, _, logits = predictor.predict(
            point_coords=np.array(coords, float), point_labels=np.array(labels),
            mask_input=logits, multimask_output=False,
        )  # fmt: skip
        mask = masks[0]
        ious.append((mask & wanted).sum() / (mask | wanted).sum())
    return ious


# box and point


def test_box_is_the_edges_of_the_object(square):
    assert square.box() == (2, 2, 6, 6)
    model = Scripted([square.wanted])
    trial = Rules("box").run(model, square, "a")
    assert model.asked[0][2].tolist() == [2, 2, 6, 6]
    assert model.asked[0][0] is None
    assert trial.ious == [1]


def test_point_is_the_first_click(square):
    model = Scripted([square.wanted])
    trial = Rules("point").run(model, square, "a")
    assert trial.clicks == [Click(3, 3, True)]
    assert len(model.asked) == 1


def test_jitter_stays_in_bounds_and_depends_on_seed_and_object_alone():
    values = np.zeros((40, 60), np.uint8)
    values[10:30, 0:20] = 1
    target = Target(values)
    boxes = []
    for number in range(200):
        box = jittered(target, 0.2, np.random.default_rng(number))
        boxes.append(box)
        assert 0 <= box[0] < box[2] <= 60
        assert 0 <= box[1] < box[3] <= 40
    moved = np.array(boxes) - target.box()
    assert (np.abs(moved) <= 4).all()
    assert (np.abs(moved).max(axis=0) > 3.5).all()
    model = Scripted([target.wanted])
    asked = [
        Rules("box", jitter=0.2, seed=seed).run(model, target, key).box
        for seed, key in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    ]
    assert asked[0] == asked[1]
    assert len(set(asked)) == 3


def test_a_speck_keeps_a_box_of_a_pixel():
    values = np.zeros((5, 5), np.uint8)
    values[4, 4] = 1
    for seed in range(20):
        x0, y0, x1, y1 = jittered(Target(values), 0.5, np.random.default_rng(seed))
        assert x1 - x0 >= 1
        assert y1 - y0 >= 1
        assert max(x1, y1) <= 5


def test_no_box_around_nothing():
    with pytest.raises(InputError, match="empty"):
        Target(np.zeros((3, 3), np.uint8)).box()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"protocol": "lasso"}, "clicks, box, point"),
        ({"clicks": 0}, "1 to 20"),
        ({"clicks": 21}, "1 to 20"),
        ({"protocol": "box", "jitter": 0.6}, "0 to 0.5"),
        ({"jitter": 0.1}, "no box"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_rules(arguments, said):
    with pytest.raises(InputError, match=said):
        Rules(**arguments)


# GrabCut


def test_grabcut_finds_a_red_disc_and_repeats_itself(tmp_path):
    dataset = open_dataset(disc(tmp_path / "d"), kind="instance")
    model = GrabCut()
    model.set_image(dataset.picture(dataset.objects[0]))
    target = Target(dataset.target(dataset.objects[0]))
    first = try_clicks(model, target, 4)
    assert first.ious[-1] > 0.95
    assert try_clicks(model, target, 4).ious == first.ious
    assert Rules("box").run(model, target, "a").ious[0] > 0.95


def test_grabcut_paints_and_scales():
    model = GrabCut()
    model.set_image(np.random.default_rng(0).integers(0, 255, (40, 1280, 3), np.uint8))
    mask, score, labels = model.predict([[1279, 39]], [1])
    assert mask.shape == (1, 40, 1280)
    assert labels.shape == (1, 20, 640)
    assert score.tolist() == [1]
    assert labels[0, 19, 639] == cv2.GC_FGD
    mask, _, later = model.predict([[1279, 39], [0, 0]], [1, 0], mask_input=labels)
    assert later[0, 0, 0] == cv2.GC_BGD
    assert later[0, 19, 639] == cv2.GC_FGD
    assert not mask[0, 0, 0]


def test_grabcut_without_any_background_keeps_its_labels():
    model = GrabCut()
    model.set_image(np.zeros((6, 6, 3), np.uint8))
    _, _, labels = model.predict([[3, 3]], [1])
    assert (labels == cv2.GC_FGD).all()


# figures


@dataclass(frozen=True)
class Ref:
    key: str
    set: str = "s"
    category: str | None = None
    image: Path = Path("a.png")
    size_hw: tuple[int, int] = (8, 8)


def curve(key, ious):
    return {"key": key, "ious": ious, "encoder_seconds": 0.2, "prompt_seconds": [0.1, 0.3]}


def test_figures_of_clicks():
    rows = {"a": curve("a", [0.5, 0.86, *[0.95] * 18]), "b": curve("b", [0.1, 0.2, *[0.88] * 18])}
    rows["c"] = {"key": "c", "problem": "torn"}
    found = summarise(Rules(), [Ref("a"), Ref("b", "t"), Ref("c")], rows)
    overall = found["overall"]
    assert overall["objects"] == 2
    assert (overall["noc80"], overall["noc85"], overall["noc90"]) == (2.5, 2.5, 11.5)
    assert overall["noc95"] == 11.5
    assert overall["nof95"] == 1
    assert overall["iou1"] == pytest.approx(0.3)
    assert overall["iou20"] == pytest.approx(0.915)
    assert overall["spc"] == pytest.approx(0.2 + 0.2 / 20)
    assert found["sets"]["s"]["noc90"] == 3
    assert found["sets"]["t"]["noc90"] == 20


def test_figures_that_need_twenty_clicks_are_left_open():
    found = summarise(Rules(clicks=3), [Ref("a")], {"a": curve("a", [0.5, 0.6, 0.7])})["overall"]
    assert found["iou3"] == pytest.approx(0.7)
    assert [found[name] for name in ("noc90", "nof95", "iou5", "iou20")] == [None] * 4


def test_a_curve_that_is_done_keeps_its_last_value(square):
    trial = try_clicks(Scripted([square.wanted]), square, 20)
    result = measure(Rules(), trial, square, Ref("a"))
    assert result["ious"] == [1.0] * 20
    assert result["clicks"] == [[3, 3, 1]]


def test_figures_of_a_mask_are_those_of_the_metrics(square):
    half = square.wanted.copy()
    half[:, 4:] = False
    refs = [Ref("a", category="cat"), Ref("b", category="dog")]
    results = {}
    for ref, answer in zip(refs, (half, square.wanted), strict=True):
        trial = Rules("box").run(Scripted([answer]), square, ref.key)
        result = measure(Rules("box"), trial, square, ref)
        results[ref.key] = {**result, "encoder_seconds": 0.0, "prompt_seconds": [0.0]}
    found = summarise(Rules("box"), refs, json.loads(json.dumps(results)))["overall"]
    assert found["iou"] == 0.75
    assert found["dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["mae"] == pytest.approx(8 / 64 / 2)
    assert found["objects_large"] == 2
    # The half mask counts at IoU 0.50 alone, the whole one at all ten thresholds.
    assert found["ap50"] == pytest.approx(1.0)
    assert found["ap"] == pytest.approx((0.1 + 1) / 2)
    assert found["f_max"] == pytest.approx(found["f_adaptive"])


def test_running_figure():
    running = Running(Rules())
    assert running.add({"key": "x", "problem": "torn"}) == ""
    assert running.add(curve("a", [0.95] * 20)) == "NoC90 1.00"
    assert running.add(curve("b", [0.5] * 20)) == "NoC90 10.50"
    assert Running(Rules(clicks=2)).add(curve("a", [0.2, 0.4])) == "IoU@2 0.400"
    assert Running(Rules("box")).add({"iou": 0.25}) == "IoU 0.250"


# reading ahead, and what cannot be read


def test_ahead_keeps_the_order_and_stays_near():
    taken = []

    def items():
        for number in range(6):
            taken.append(number)
            yield number

    answers = ahead(items(), lambda number: number * 10)
    assert next(answers) == 0
    assert len(taken) <= 3
    assert list(answers) == [10, 20, 30, 40, 50]


def test_a_picture_that_broke_is_a_problem_or_an_error(tmp_path):
    dataset = open_dataset(disc(tmp_path / "d", "abc"), kind="instance")
    (tmp_path / "d" / "images" / "b.png").write_bytes(b"no picture")
    model = Scripted([np.zeros((90, 120), bool)])
    task = Task(dataset, Rules(clicks=1))
    results = list(work(task, model, dataset.objects))
    assert ["problem" in result for result in results] == [False, True, False]
    assert "b.png" in results[1]["problem"]
    with pytest.raises(InputError, match=r"b\.png"):
        list(work(Task(dataset, Rules(), strict=True), model, dataset.objects))


# the journal


def test_journal_goes_on_and_refuses_other_settings(tmp_path):
    path = tmp_path / "r.jsonl"
    settings = {"model": {"resolution": 512}, "limit": None}
    Journal(path, settings).add({"key": "a", "ious": [0.5]})
    again = Journal(path, settings)
    assert again.done == {"a": {"key": "a", "ious": [0.5]}}
    with pytest.raises(InputError, match=r"model\.resolution was 512 and is 1024.*to start anew"):
        Journal(path, {"model": {"resolution": 1024}, "limit": None})
    again.add({"key": "b"})
    again.remove()
    assert not path.exists()
    assert Journal(None, settings).done == {}


def test_journal_with_two_results_of_an_object_is_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    journal = Journal(path, {})
    journal.add({"key": "a"})
    journal.add({"key": "a"})
    with pytest.raises(InputError, match="two results for a"):
        Journal(path, {})


def test_one_process_at_a_time(tmp_path):
    with (
        sole(tmp_path / "x.lock"),
        pytest.raises(OutputError, match="another process"),
        sole(tmp_path / "x.lock"),
    ):
        pass
    assert not (tmp_path / "x.lock").exists()


# compare


def made_report(values, shift=0.0, area=5, fingerprint="f"):
    results = [
        {"key": key, "set": "s" if place % 2 else "t", "area": area, "size_hw": [4, 4],
         "encoder_seconds": 0.1, "prompt_seconds": [0.1], "ious": [min(1, v + shift)] * 20}
        for place, (key, v) in enumerate(values.items())
    ]  # fmt: skip
    return {
        "protocol": {"protocol": "clicks"},
        "data": {"fingerprint": fingerprint, "name": "n"},
        "results": results,
    }


VALUES = {f"o{n}": v for n, v in enumerate(np.random.default_rng(3).uniform(0.3, 0.9, 60))}


def test_a_shift_is_found_exactly_and_its_interval_is_narrow():
    found = compare(made_report(VALUES), made_report(VALUES, 0.05))
    row = found["overall"]["iou5"]
    assert row["difference"] == pytest.approx(0.05)
    assert row["low"] == pytest.approx(0.05)
    assert row["high"] == pytest.approx(0.05)
    assert row["clear"]
    assert row["b"] - row["a"] == pytest.approx(0.05)
    assert found["overall"]["noc90"]["difference"] <= 0
    assert set(found["sets"]) == {"s", "t"}
    assert found["same_data"]


def test_interval_is_that_of_the_mean_of_pairs():
    rng = np.random.default_rng(0)
    other = {key: float(np.clip(v + rng.normal(0, 0.05), 0, 1)) for key, v in VALUES.items()}
    row = compare(made_report(VALUES), made_report(other))["overall"]["iou1"]
    moves = np.array(list(other.values())) - np.array(list(VALUES.values()))
    error = moves.std() / np.sqrt(len(moves))
    assert row["difference"] == pytest.approx(moves.mean())
    assert row["low"] == pytest.approx(moves.mean() - 1.96 * error, abs=0.15 * error)
    assert row["high"] == pytest.approx(moves.mean() + 1.96 * error, abs=0.15 * error)
    again = compare(made_report(VALUES), made_report(other))["overall"]["iou1"]
    assert again == row


def test_common_objects_alone_are_compared_and_none_is_an_error():
    fewer = dict(list(VALUES.items())[:20])
    found = compare(made_report(VALUES), made_report(fewer, fingerprint="g"))
    assert (found["objects"], found["only_a"], found["only_b"]) == (20, 40, 0)
    assert not found["same_data"]
    with pytest.raises(InputError, match="no object in common"):
        compare(made_report(VALUES), made_report({"other": 0.5}))
    with pytest.raises(InputError, match="not the same in both"):
        compare(made_report(VALUES), made_report(VALUES, area=6))
    changed = made_report(VALUES) | {"protocol": {"protocol": "box"}}
    with pytest.raises(InputError, match="protocols differ"):
        compare(made_report(VALUES), changed)


# reports and models


def test_reports_that_are_none(tmp_path):
    path = tmp_path / "x.json"
    for text, said in (("{", "no JSON"), ("{}", "no report"), (None, "cannot be read")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(InputError, match=said):
            reports.read(path)
    path.write_text(json.dumps({"results": [], "overall": {}, "format": 99}))
    with pytest.raises(InputError, match="format 99"):
        reports.read(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": Path("m.safetensors")}, "--weights would"),
        ({"resolution": 512, "device": "cpu"}, "--resolution, --device would"),
        ({"dtype": "bfloat16"}, "--dtype would"),
    ],
)
def test_grabcut_takes_no_options_of_networks(options, said):
    with pytest.raises(InputError, match=said):
        Choice("grabcut", **options)


def test_the_masks_of_a_set_are_what_is_read(shared_data):
    """The door to a folder gives the pixels that lie in it."""
    root = shared_data / "val" / "davis2016val"
    dataset = open_dataset(root)
    ref = dataset.objects[0]
    stored = read_mask(next((root / "masks").glob(f"{ref.image.stem}*.png")))
    assert np.array_equal(dataset.target(ref) == 1, stored > 0)
    assert np.array_equal(dataset.picture(ref), read_image(ref.image))
