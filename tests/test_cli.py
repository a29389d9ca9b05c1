"""The command: results, messages, exit codes, and that nothing half done is left behind."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyres.cli.main import main
from anyres.errors import OutputError
from anyres.models.build import build
from anyres.models.presets import preset, resized
from anyres.models.weights import save
from anyres.predict import assets

EMBEDDED = assets.has_embedded("default")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A small model with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save(build(resized(preset("sam_ti"), 64)), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a picture of 60 x 40 in it."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.png")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anyres", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call


def _left(folder):
    return sorted(path.name for path in folder.iterdir())


# predict


def test_a_click_gives_a_mask_an_overlay_and_an_account(run, folder, weights):
    code, out, err = run(
        "predict", "cat.png", "--point", "30,20", "--weights", weights,
        "-o", "m.png", "--overlay", "o.png", "--json", "r.json",
    )  # fmt: skip
    assert (code, out) == (0, "")
    mask = np.array(Image.open("m.png"))
    assert mask.shape == (40, 60)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255}
    overlay = np.array(Image.open("o.png"))
    assert overlay.shape == (40, 60, 3)
    assert not np.array_equal(overlay, np.array(Image.open("cat.png")))
    result = json.loads((folder / "r.json").read_text())
    assert result["image"] == "cat.png"
    assert result["size_hw"] == [40, 60]
    assert result["prompt"]["points"] == [[30, 20]]
    assert result["prompt"]["labels"] == [1]
    assert result["candidates"] == 3
    assert result["area"] == int((mask > 0).sum())
    assert result["share"] == pytest.approx((mask > 0).mean())
    assert result["model"] == "sam_ti"
    assert result["resolution"] == 64
    assert result["dtype"] == "float32"
    assert (result["output"], result["overlay"]) == ("m.png", "o.png")
    assert set(result["seconds"]) == {"load", "picture", "answer"}
    rows, columns = (mask > 0).any(1).nonzero()[0], (mask > 0).any(0).nonzero()[0]
    assert result["box_xyxy"] == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    for text in ("60 x 40", "30,20", "predicted IoU, best of 3", "m.png, o.png"):
        assert text in err
    assert _left(folder) == ["cat.png", "m.png", "o.png", "r.json"]


def test_the_mask_is_named_after_the_picture_and_put_here(run, folder, weights):
    elsewhere = folder / "pictures"
    elsewhere.mkdir()
    (folder / "cat.png").rename(elsewhere / "cat.png")
    assert run("predict", elsewhere / "cat.png", "--box", "5,5,30,30", "--weights", weights)[0] == 0
    assert _left(folder) == ["cat_mask.png", "pictures"]
    assert _left(elsewhere) == ["cat.png"]


def test_json_on_stdout_is_nothing_but_json(run, folder, weights):
    code, out, err = run(
        "predict", "cat.png", "--box", "5,5,30,30", "--point", "8,8,0", "--weights", weights,
        "--json", "-",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert result["candidates"] == 1
    assert result["prompt"]["box"] == [5, 5, 30, 30]
    assert result["prompt"]["labels"] == [0]
    assert "click off the object at 8,8; box 5,5,30,30" in err


def test_a_mask_as_prompt_at_another_resolution(run, folder, weights):
    rough = np.zeros((40, 60), np.uint8)
    rough[10:30, 10:40] = 255
    Image.fromarray(rough).save("rough.png")
    code, out, err = run(
        "predict", "cat.png", "--mask", "rough.png", "--weights", weights, "--resolution", "100",
        "--json", "-",
    )  # fmt: skip
    assert code == 0
    assert json.loads(out)["resolution"] == 100
    assert json.loads(out)["prompt"] == {"mask": True}
    assert "rough mask" in err


def test_the_answer_is_that_of_the_library(run, folder, weights):
    import anyres

    run("predict", "cat.png", "--point", "30,20", "--point", "2,3,0", "--weights", weights)
    predictor = anyres.load(weights=weights)
    predictor.set_image("cat.png")
    masks = predictor.predict([[30, 20], [2, 3]], [1, 0], multimask_output=False)[0]
    assert np.array_equal(np.array(Image.open("cat_mask.png")) > 0, masks[0])


@pytest.mark.parametrize("name", ["coco", "labelme", "geojson", "yolo", "sa1b"])
def test_the_mask_in_other_formats(run, folder, weights, name):
    from anyres.data.formats import coco, geojson, labelme, yolo

    readers = {
        "coco": lambda path: coco.read_coco(path)[0],
        "labelme": labelme.read_labelme,
        "geojson": geojson.read_geojson,
        "sa1b": coco.read_sa1b,
        "yolo": lambda path: yolo.read_yolo(
            path, image="cat.png", size_hw=(40, 60), classes=["object"]
        ),
    }
    pytest.importorskip("cv2")
    pytest.importorskip("pycocotools")
    prompt = ("predict", "cat.png", "--point", "30,20", "--weights", weights)
    assert run(*prompt)[0] == 0
    mask = np.array(Image.open("cat_mask.png")) > 0
    assert mask.any()
    code, out, err = run(*prompt, "--format", name, "--json", "-")
    assert (code, json.loads(out)["format"]) == (0, name)
    written = folder / json.loads(out)["output"]
    assert written.name in err
    read = readers[name](written)
    (found,) = read.annotations
    np.testing.assert_array_equal(found.mask, mask)
    assert read.image == "cat.png"
    if name != "yolo":
        assert found.score == json.loads(out)["score"]


def test_the_format_follows_the_ending_and_labelme_finds_the_picture(run, folder, weights):
    pytest.importorskip("cv2")
    (folder / "out").mkdir()
    prompt = ("predict", "cat.png", "--point", "30,20", "--weights", weights)
    assert run(*prompt, "-o", "out/a.geojson")[0] == 0
    assert json.loads((folder / "out" / "a.geojson").read_text())["image"] == "cat.png"
    assert run(*prompt, "-o", "out/a.json", "--format", "labelme")[0] == 0
    stored = json.loads((folder / "out" / "a.json").read_text())
    assert (folder / "out" / stored["imagePath"]).resolve() == (folder / "cat.png").resolve()


def test_a_format_without_its_package_is_told_before_the_model_is_loaded(run, folder, monkeypatch):
    monkeypatch.setattr("anyres.predict.load.load", lambda *a, **k: pytest.fail("too late"))
    for package, name in (("pycocotools", "coco"), ("cv2", "geojson")):
        monkeypatch.setitem(sys.modules, package, None)
        code, _, err = run("predict", "cat.png", *CLICK, "--format", name)
        assert (code, "anyres[eval]" in err) == (1, True)
    assert _left(folder) == ["cat.png"]


@pytest.fixture
def odd_files(folder):
    """Files that are no pictures, and pictures that do not fit."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    whole = (folder / "cat.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "junk.safetensors").write_bytes(b"\x00" * 100)
    (folder / "junk.pth").write_bytes(b"PK\x03\x04junk")
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save("small.png")
    Image.fromarray(np.zeros((40, 60), np.uint8)).save("blank.png")
    Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(40, 60)).save("many.png")
    (folder / "sub").mkdir()
    return folder


CLICK = ["--point", "30,20"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        # Pictures that cannot be read: 1
        (["gone.png", *CLICK], 1, "gone.png"),
        (["empty.png", *CLICK], 1, "empty.png"),
        (["text.png", *CLICK], 1, "text.png"),
        (["cut.png", *CLICK], 1, "cut.png"),
        (["sub", *CLICK], 1, "sub"),
        (["cat.png", *CLICK, "--max-pixels", "100"], 1, "100"),
        (["cat.png", "--mask", "gone.png"], 1, "gone.png"),
        # Weights: 1
        (["cat.png", *CLICK, "--weights", "gone.pth"], 1, "gone.pth"),
        (["cat.png", *CLICK, "--weights", "junk.safetensors"], 1, "junk.safetensors"),
        (["cat.png", *CLICK, "--model", "sam_vit_b", "--weights", "junk.pth"], 1, "junk.pth"),
        (["cat.png", *CLICK, "--model", "sam_vit_b"], 1, "segment-anything"),
        # How it was called: 2
        ([], 2, "IMAGE"),
        (["cat.png"], 2, ""),
        (["cat.png", "--point", "30"], 2, "30"),
        (["cat.png", "--point", "30,20,2"], 2, "2"),
        (["cat.png", "--point", "a,b"], 2, "a,b"),
        (["cat.png", "--point", "nan,1"], 2, ""),
        (["cat.png", "--point", "61,20"], 2, "61"),
        (["cat.png", "--point", "-1,20"], 2, "-1"),
        (["cat.png", "--box", "1,2,3"], 2, "1,2,3"),
        (["cat.png", "--box", "30,20,10,25"], 2, ""),
        (["cat.png", "--box", "1,2,3,400"], 2, "400"),
        (["cat.png", "--mask", "small.png"], 2, "6x4"),
        (["cat.png", "--mask", "blank.png"], 2, "empty"),
        (["cat.png", "--mask", "many.png"], 2, "several values"),
        (["cat.png", *CLICK, "--resolution", "big"], 2, "big"),
        (["cat.png", *CLICK, "--resolution", "3"], 2, "3"),
        (["cat.png", *CLICK, "--model", "sam_vit_x"], 2, "sam_vit_x"),
        (["cat.png", *CLICK, "--device", "tpu"], 2, "tpu"),
        (["cat.png", *CLICK, "--dtype", "float8"], 2, "float8"),
        (["cat.png", *CLICK, "--dtype", "float16", "--device", "cpu"], 2, "float16"),
        (["cat.png", *CLICK, "--stretch", "wide"], 2, "wide"),
        (["cat.png", *CLICK, "--formats", "png"], 2, "--formats"),
        # Where outputs go: 2
        (["cat.png", *CLICK, "-o", "cat.png"], 2, "overwrite the picture"),
        (["cat.png", *CLICK, "-o", "sub/../cat.png"], 2, "overwrite the picture"),
        (["cat.png", *CLICK, "-o", "m.png", "--overlay", "m.png"], 2, "overwrite --output"),
        (["cat.png", *CLICK, "-o", "m.png", "--json", "m.png"], 2, "overwrite --output"),
        (["cat.png", "--mask", "blank.png", "-o", "blank.png"], 2, "overwrite --mask"),
        (["cat.png", *CLICK, "-o", "none/m.png"], 2, "no folder none"),
        (["cat.png", *CLICK, "-o", "m.jpg"], 2, ".png"),
        (["cat.png", *CLICK, "-o", "sub"], 2, ""),
        (["cat.png", *CLICK, "--overlay", "o"], 2, ".png"),
        (["cat.png", *CLICK, "--json", "none/r.json"], 2, "no folder none"),
        (["cat.png", *CLICK, "--json", "sub"], 2, "is a folder"),
    ],
)
def test_what_cannot_be_done(run, odd_files, weights, arguments, code, message):
    before = _left(odd_files)
    picture = (odd_files / "cat.png").read_bytes()
    if "--model" not in arguments and "--weights" not in arguments:
        arguments = [*arguments, "--weights", weights]
    got, out, err = run("predict", *arguments)
    assert got == code, err
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert _left(odd_files) == before
    assert (odd_files / "cat.png").read_bytes() == picture


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "none/m.png"],
        ["--overlay", "o.gif"],
        ["--json", "none/r.json"],
        ["--point", "99,99"],
        ["--resolution", "big"],
        ["-o", "m.json"],
        ["-o", "m.jpg"],
        ["-o", "m.png", "--format", "coco"],
        ["--format", "xml"],
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(run, folder, monkeypatch, arguments):
    monkeypatch.setattr("anyres.predict.load.load", lambda *a, **k: pytest.fail("too late"))
    assert run("predict", "cat.png", *CLICK, *arguments)[0] == 2


def test_a_failing_second_output_leaves_the_first_complete(run, folder, weights, monkeypatch):
    from anyres.data import images

    plain = images.write_png

    def disk_full_at_the_overlay(path, array):
        if str(path) == "o.png":
            raise OutputError("o.png cannot be written: No space left on device")
        plain(path, array)

    monkeypatch.setattr(images, "write_png", disk_full_at_the_overlay)
    code, _, err = run(
        "predict", "cat.png", *CLICK, "--weights", weights, "--overlay", "o.png", "--json", "r.json"
    )
    assert code == 1
    assert "o.png cannot be written: No space left on device" in err
    assert _left(folder) == ["cat.png", "cat_mask.png"]
    assert np.array(Image.open("cat_mask.png")).shape == (40, 60)


def test_a_bug_shows_its_traceback(folder, weights, monkeypatch):
    def bug(*arguments, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("anyres.predict.load.load", bug)
    monkeypatch.setattr(sys, "argv", ["anyres", "predict", "cat.png", *CLICK])
    with pytest.raises(ZeroDivisionError):
        main()


def test_damaged_metadata_of_a_good_picture_is_not_talked_about(folder, weights):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01"
    Image.open("cat.png").save("cat.jpg", exif=exif)
    code = "from anyres.cli.main import main; main()"
    result = _python("-c", code, "predict", "cat.jpg", *CLICK, "--weights", weights)
    assert result.returncode == 0
    assert "Warning" not in result.stderr


@pytest.mark.skipif(not EMBEDDED, reason="the package is without its embedded model so far")
def test_the_embedded_model_is_the_default(run, folder):
    code, out, _ = run("predict", "cat.png", *CLICK, "--json", "-")
    assert code == 0
    assert json.loads(out)["model"] == "default"


# The command as such


def _python(*arguments):
    """Run Python with the package of this test, installed or not."""
    env = os.environ | {"PYTHONPATH": str(Path(assets.__file__).parents[2])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_help_and_wrong_usage_do_without_torch_numpy_and_pillow():
    code = """
import sys
from anyres.cli.main import main
sys.argv = ["anyres", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", sorted({"torch", "numpy", "PIL"} & set(sys.modules)), file=sys.stderr)
"""
    for arguments, end in ((["--help"], 0), (["predict", "--help"], 0), (["predict"], 2)):
        done = _python("-c", code, *arguments)
        assert done.returncode == end, done.stderr
        assert "loaded: []" in done.stderr


def test_help_shows_verbs_and_examples(run):
    code, out, _ = run("--help")
    assert code == 0
    for verb in ("predict", "models", "doctor"):
        assert verb in out
    code, out, _ = run("predict", "--help")
    assert code == 0
    for text in ("--point", "X,Y[,0|1]", "anyres predict cat.jpg", "Prompt", "Output"):
        assert text in out


def test_no_verb_is_wrong_usage_and_version_is_told(run):
    import anyres

    assert run()[0] == 2
    assert run("segment")[0] == 2
    assert run("--version")[:2] == (0, f"anyres {anyres.__version__}\n")


# models


def test_models_are_listed(run, folder):
    code, out, _ = run("models")
    assert code == 0
    assert "sam_vit_b" in out
    code, out, _ = run("models", "--json", "-")
    entries = {entry["name"]: entry for entry in json.loads(out)["models"]}
    assert code == 0
    assert entries["sam_vit_b"]["image_size"] == 1024
    assert entries["sam_vit_b"]["pad"] == "square"
    assert entries["mobile_sam"]["encoder"] == "TinyViT"
    assert (entries["mobile_sam"]["dim"], entries["mobile_sam"]["blocks"]) == (320, 12)
    assert entries["default"]["embedded"] is EMBEDDED
    assert not entries["hrsam_b"]["embedded"]
    assert run("models", "--json", "none/m.json")[0] == 2


# doctor


@pytest.fixture
def embedded(monkeypatch, tmp_path, weights):
    """A stand-in for the package's folder of embedded weights, in order."""
    content = weights.read_bytes()
    home = tmp_path / "assets"
    home.mkdir()
    (home / assets.WEIGHTS_FILE).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (home / assets.CHECKSUM_FILE).write_text(f"{digest}  {assets.WEIGHTS_FILE}\n")
    monkeypatch.setattr(assets, "_folder", lambda: home)
    return home


def test_doctor_finds_a_sound_installation_sound(run, embedded):
    code, out, _ = run("doctor", "--json", "-")
    tree = json.loads(out)
    assert code == 0, out
    assert tree["broken"] is False
    assert tree["software"]["torch"]["value"] == torch.__version__
    digest = hashlib.sha256((embedded / assets.WEIGHTS_FILE).read_bytes()).hexdigest()
    assert tree["embedded model"]["sha256"]["value"] == digest
    assert "sam_ti" in tree["embedded model"]["configuration"]["value"]
    assert tree["computing"]["dtype"]["hint"]
    assert tree["computing"]["cycle-scan"]["value"]
    code, out, _ = run("doctor")
    assert code == 0
    assert digest in out


@pytest.mark.parametrize("damage", ["flip", "cut", "no_weights", "no_checksum"])
def test_doctor_and_predict_notice_damage(run, folder, embedded, damage):
    file = embedded / assets.WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "no_weights":
        file.unlink()
    else:
        (embedded / assets.CHECKSUM_FILE).unlink()
    code, out, _ = run("doctor", "--json", "-")
    assert code == 1
    assert json.loads(out)["broken"] is True
    code, _, err = run("predict", "cat.png", *CLICK)
    assert code == 1
    assert "install the package again" in err
    assert not (folder / "cat_mask.png").exists()


@pytest.mark.skipif(not EMBEDDED, reason="the package is without its embedded model so far")
def test_doctor_is_content_with_this_installation(run):
    code, out, _ = run("doctor")
    assert code == 0, out
