"""The script that makes the table of the embedded model, on a made-up data set."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyres.data.layouts.folder import FolderDataset

pytest.importorskip("cv2")

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "embedded_clicks.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("embedded_clicks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def folder(tmp_path):
    """Two pictures with a red disc on blue each, the second with a speck besides."""
    yy, xx = np.mgrid[:90, :120]
    disc = (yy - 45) ** 2 + (xx - 60) ** 2 < 25**2
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for stem in ("a", "b"):
        image = np.where(disc[..., None], (200, 30, 30), (20, 30, 180)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{stem}.png")
        mask = disc.astype(np.uint8)
        if stem == "b":
            mask[:3, :3] = 2
        Image.fromarray(mask).save(tmp_path / "masks" / f"{stem}.png")
    return tmp_path


class Scripted:
    """Answers with given masks, whatever the clicks, and notes what it is asked."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    def set_image(self, image):
        self.image = image

    def new_object(self):
        self.place = 0

    def segment(self, clicks):
        self.asked.append(list(clicks))
        self.place += 1
        return self.answers[self.place - 1]


def test_iou_follows_the_clicks_and_stays_when_all_is_right(script):
    target = np.zeros((8, 8), np.uint8)
    target[2:6, 2:6] = 1
    half = np.zeros((8, 8), bool)
    half[2:6, 2:4] = True
    method = Scripted([half, target == 1])
    assert script.run_object(method, target, 5) == [0.5, 1, 1, 1, 1]
    assert [len(clicks) for clicks in method.asked] == [1, 2]
    # The first click is in the middle of the object, the second in the half that is missing.
    assert method.asked[1] == [(3, 3, True), (2, 4, True)]


def test_void_is_neither_clicked_nor_counted(script):
    target = np.zeros((8, 8), np.uint8)
    target[2:6, 2:6] = 1
    target[:, 6:] = 255
    wrong = target > 0
    method = Scripted([wrong])
    assert script.run_object(method, target, 3) == [1, 1, 1]


def test_summary(script):
    found = script.summarise([[0.5, 0.86, 0.95], [0.1, 0.2, 0.88]])
    assert found == {
        "IoU@1": pytest.approx(0.3),
        "IoU@3": pytest.approx(0.915),
        "NoC85": 2.5,
        "NoC90": 3.0,
    }


def test_noc_is_the_official_one(script, golden):
    facts, tensors = golden("clicks_metrics_losses")
    curves = tensors["in::noc::ious"].numpy()
    for threshold, expected in facts["noc"].items():
        reached = [script.clicks_to_reach(curve, float(threshold)) for curve in curves]
        assert np.mean(reached) == pytest.approx(expected)


def test_the_model_is_fed_its_own_logits(script):
    class Predictor:
        def __init__(self):
            self.seen = []

        def predict(self, **arguments):
            self.seen.append(arguments)
            logits = np.full((1, 4, 4), len(self.seen), np.float32)
            return np.ones((1, 8, 8), bool), np.ones(1), logits

    model = script.Model(Predictor())
    target = np.zeros((8, 8), np.uint8)
    target[3, 5] = 1
    script.run_object(model, target, 3)
    seen = model.predictor.seen
    assert seen[0]["mask_input"] is None
    assert (seen[1]["mask_input"] == 1).all()
    assert seen[0]["point_coords"].tolist() == [[5, 3]]
    assert seen[2]["point_labels"].tolist() == [1, 0, 0]
    assert not any(arguments["multimask_output"] for arguments in seen)
    script.run_object(model, target, 1)
    assert seen[3]["mask_input"] is None


def test_grabcut_finds_a_red_disc(script, folder):
    data = FolderDataset(folder)
    method = script.GrabCut()
    method.set_image(data.picture(0))
    ious = script.run_object(method, data.objects(0).target(0), 4)
    assert ious[-1] > 0.95
    again = script.run_object(method, data.objects(0).target(0), 4)
    assert again == ious


def test_grabcut_answers_at_the_size_of_the_picture(script):
    method = script.GrabCut()
    method.set_image(np.random.default_rng(0).integers(0, 255, (40, 1280, 3), np.uint8))
    method.new_object()
    assert method.image.shape == (20, 640, 3)
    assert method.segment([script.Click(39, 1279, True)]).shape == (40, 1280)


def test_the_whole_run(script, folder, tmp_path, capsys):
    out = tmp_path / "new" / "out.json"
    shown = ["--data", str(folder), "--map", "instance", "--model", "none", "--grabcut"]
    script.main([*shown, "--clicks", "3", "--smallest", "5", "--json", str(out)])
    report = json.loads(out.read_text())
    assert report["pictures"] == 2
    assert report["methods"]["grabcut"]["objects"] == 3
    assert len(report["methods"]["grabcut"]["ious"]) == 3
    assert "grabcut" in capsys.readouterr().out
    script.main([*shown, "--clicks", "1", "--every", "2", "--json", "-"])
    assert json.loads(capsys.readouterr().out)["methods"]["grabcut"]["objects"] == 1
    with pytest.raises(SystemExit, match="nothing to run"):
        script.main(["--data", str(folder), "--model", "none"])
