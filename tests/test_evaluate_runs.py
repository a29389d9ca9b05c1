"""`anyres evaluate` and `compare` as commands: reports, errors, and runs that are killed."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")

import anyres
from anyres.cli.main import main
from anyres.data.datasets import leaks, open_dataset, picture_checksum
from anyres.data.images import write_png
from anyres.evaluate.session import lock_file, records_file
from anyres.models.weights import save
from tiny import random_model

KEYS = {"objects", "iou1", "iou3", "iou5", "iou20", "spc"}
KEYS |= {"noc80", "noc85", "noc90", "noc95", "nof95"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small model with random weights."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(random_model("sam_ti", 64), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two sets, five pictures of three squares each, one a picture too small to count."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name, count in (("one", 3), ("two", 2)):
        for folder in ("images", "masks"):
            (root / name / folder).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((48, 64), np.uint8)
            mask[4:20, 4:24], mask[24:40, 10:50], mask[1, 60] = 1, 2, 3
            image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            image[mask == 2] = 255
            write_png(root / name / "images" / f"p{number}.png", image)
            write_png(root / name / "masks" / f"p{number}.png", mask)
    return root


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anyres", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def timeless(report):
    """A report without times, dates, and what tells how it was run."""
    report = {
        name: value
        for name, value in report.items()
        if name not in ("date", "seconds", "command", "machine")
    }
    figures = [report["overall"], *report["sets"].values()]
    for row in [*figures, *report["results"]]:
        for name in [name for name in row if "seconds" in name or name == "spc"]:
            del row[name]
    return report


def test_a_run_leaves_a_report_a_table_and_pictures(run, tmp_path, data, weights):
    code, out, err = run(
        "evaluate", "--data", data, "--weights", weights, "--json", "r.json", "--csv", "r.csv",
        "--plots", "plots",
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert "10/10" in err
    assert "NoC90" in err
    report = json.loads(Path("r.json").read_text())
    assert set(report["overall"]) >= KEYS
    assert set(report["sets"]) == {"one", "two"}
    assert set(report["sets"]["one"]) >= KEYS
    assert report["overall"]["objects"] == 10
    assert report["sets"]["one"]["objects"] == 6
    assert report["command"].startswith("anyres evaluate --data")
    assert report["versions"]["anyres"] == anyres.__version__
    assert len(report["model"]["sha256"]) == 64
    assert report["model"]["resolution"] == 64
    assert report["problems"] == []
    assert report["machine"]["workers"] == 1
    assert len(report["results"]) == 10
    assert report["overall"]["iou3"] == pytest.approx(
        np.mean([row["ious"][2] for row in report["results"]])
    )
    with Path("r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [row["key"] for row in report["results"]]
    assert float(rows[3]["iou20"]) == report["results"][3]["ious"][19]
    assert rows[0]["width"] == "64"
    for name in ("iou", "worst", "best"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "r.csv", "r.json"]


@pytest.mark.parametrize("protocol", ["box", "point"])
def test_other_protocols(run, data, weights, protocol):
    code, out, _ = run(
        "evaluate", "--data", data / "one", "--weights", weights, "--protocol", protocol,
        "--limit", 2, "--json", "-", "--plots", "plots", "--csv", "r.csv",
    )  # fmt: skip
    assert code == 0
    report = json.loads(out)
    assert report["overall"]["objects"] == 2
    assert report["overall"]["iou"] == pytest.approx(
        np.mean([row["iou"] for row in report["results"]])
    )
    prompt = report["results"][0]["prompt"]
    assert prompt == ([4, 4, 24, 20] if protocol == "box" else [11, 11, 1])
    assert {"mae", "s", "f_max", "boundary_iou"} <= set(report["overall"])
    assert "iou" in Path("r.csv").read_text().splitlines()[0].split(",")


def test_workers_change_nothing(run, data, weights):
    for workers in (1, 2):
        assert run(
            "evaluate", "--data", data, "--weights", weights, "--clicks", 6,
            "--workers", workers, "--json", f"{workers}.json",
        )[0] == 0  # fmt: skip
    one, two = (json.loads(Path(f"{n}.json").read_text()) for n in (1, 2))
    assert two["machine"]["workers"] == 2
    assert timeless(one) == timeless(two)
    code, out, err = run("compare", "1.json", "2.json", "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert found["objects"] == 10
    assert found["overall"]["iou5"]["difference"] == 0
    assert not found["overall"]["iou5"]["clear"]
    assert "iou5" in err


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed_is_as_if_nothing_had_happened(run, tmp_path, data, weights, workers):
    """``ANYRES_TEST_KILLS=10`` makes it thorough."""
    out = tmp_path / "r.json"
    arguments = ["evaluate", "--data", data, "--weights", weights, "--json"]
    command = [sys.executable, "-m", "anyres", *map(str, arguments), str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(anyres.__file__).parents[1])}
    records = records_file(out)
    rng = np.random.default_rng(workers)
    for _ in range(int(os.environ.get("ANYRES_TEST_KILLS", "1"))):
        before = records.stat().st_size if records.exists() else 0
        process = subprocess.Popen(
            [*command, "--workers", str(workers)], env=environment, stderr=subprocess.DEVNULL
        )
        # At a random moment after its first result, or any time if there is none left to find.
        while process.poll() is None and (
            not records.exists() or records.stat().st_size <= max(before, 600)
        ):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.wait()
    interrupted = not out.exists()
    code, _, err = run(*arguments, out)
    assert code == 0
    assert ("going on" in err) == interrupted
    assert not records.exists()
    assert not lock_file(out).exists()
    assert run(*arguments, "whole.json")[0] == 0
    resumed, whole = (json.loads(path.read_text()) for path in (out, Path("whole.json")))
    assert timeless(resumed) == timeless(whole)


def test_other_settings_do_not_go_on_in_an_unfinished_run(run, data, weights, monkeypatch):
    from anyres.evaluate.journal import Journal

    def full(self, result):
        raise KeyboardInterrupt

    arguments = ["evaluate", "--data", data, "--weights", weights, "--json", "r.json"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        code, _, err = run(*arguments)
    assert code == 1
    assert "the same command goes on" in err
    code, _, err = run(*arguments, "--resolution", 128)
    assert code == 2
    assert "model.resolution was 64 and is 128" in err
    assert "remove it to start anew" in err
    assert run(*arguments)[0] == 0


def test_what_a_model_was_trained_on_is_not_scored(run, data, tmp_path):
    model = random_model("sam_ti", 64)
    picture = data / "two" / "images" / "p1.png"
    model.trained_on = {"one": ["0123456789abcdef"], "other": [picture_checksum(picture)]}
    path = tmp_path / "seen.safetensors"
    save(model, path)
    arguments = ["evaluate", "--data", data, "--weights", path, "--json", "r.json", "--clicks", 1]
    code, _, err = run(*arguments)
    assert code == 2
    assert "was trained on two" in err
    assert run(*arguments, "--allow-leak")[0] == 0
    assert json.loads(Path("r.json").read_text())["model"]["leaks"] == ["two"]
    assert run(*arguments, "--part", "one")[0] == 0


@pytest.mark.parametrize("name", ["cwfid", "coco128seg"])
def test_the_embedded_model_knows_its_training_pictures(name, shared_data):
    model = anyres.load(device="cpu").model
    assert sum(map(len, model.trained_on.values())) == 2156  # two lie there twice
    # Sets of one name, but other photos.
    assert leaks(open_dataset(shared_data / "train" / name), model.trained_on) == (name,)
    assert leaks(open_dataset(shared_data / "val" / name), model.trained_on) == ()


def test_plots_of_a_name_that_the_font_lacks(run, data, tmp_path, weights):
    shutil.copytree(data / "one", tmp_path / "空 ö")
    arguments = ["evaluate", "--data", "空 ö", "--weights", weights]
    code, _, err = run(*arguments, "--limit", 1, "--clicks", 1, "--json", "r.json", "--plots", "p")
    assert code == 0, err
    assert sorted(path.name for path in Path("p").iterdir()) == ["best.png", "iou.png", "worst.png"]


def test_a_damaged_picture_is_reported_or_stops(run, tmp_path, weights):
    for folder in ("images", "masks"):
        (tmp_path / "d" / folder).mkdir(parents=True)
    mask = np.zeros((40, 40), np.uint8)
    mask[10:20, 10:20] = 255
    for stem in "ab":
        write_png(tmp_path / "d" / "images" / f"{stem}.png", np.zeros((40, 40, 3), np.uint8))
        write_png(tmp_path / "d" / "masks" / f"{stem}.png", mask)
    (tmp_path / "d" / "masks" / "b.png").write_bytes(b"torn")
    arguments = ["evaluate", "--data", "d", "--weights", weights, "--json", "r.json", "--clicks", 1]
    code, _, err = run(*arguments)
    assert code == 0
    report = json.loads(Path("r.json").read_text())
    assert len(report["problems"]) == 1
    assert "b.png" in report["problems"][0]
    assert report["overall"]["objects"] == 1
    assert "1 problem" in err
    code, _, err = run(*arguments, "--strict")
    assert code != 0
    assert "b.png" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--layout", "magic"], "hqseg44k"),
        (["--model", "sam_xxl"], "sam_xxl"),
        (["--smallest", "0.9"], "0.9 to 0.95 of its picture: 15 are smaller"),
        (["--json", "no/r.json"], "no folder no"),
        (["--csv", "r.txt"], r"\.csv"),
        (["--plots", "file"], "is a file"),
        (["--protocol", "lasso"], "clicks, box, point"),
        (["--jitter", "0.1"], "no box"),
        (["--model", "grabcut", "--weights", "w"], "--weights would change nothing"),
    ],
)
def test_wrong_usage_is_told_before_any_work(run, tmp_path, data, arguments, said):
    (tmp_path / "file").touch()
    code, out, err = run("evaluate", "--data", data, "--json", "r.json", *arguments)
    assert code == 2
    assert out == ""
    assert said.replace("\\", "") in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_report_of_something_else_is_not_compared(run):
    Path("a.json").write_text("{}")
    code, _, err = run("compare", "a.json", "a.json")
    assert code == 2
    assert "no report" in err
