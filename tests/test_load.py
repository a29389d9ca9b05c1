"""``anyres.load``: from a name or a file to a predictor."""

import numpy as np
import pytest
import torch

import anyres
from anyres.errors import InputError, WeightsError
from anyres.models.build import build
from anyres.models.presets import preset, resized
from anyres.models.weights import save
from anyres.ops.precision import resolve_dtype
from anyres.predict import assets
from anyres.predict.load import put, resolve_device

EMBEDDED = assets.has_embedded("default")
needs_embedded = pytest.mark.skipif(
    not EMBEDDED, reason="the package is without its embedded model so far"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small SAM as our file and as an official one, and a default model."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    sam = build(resized(preset("sam_ti"), 64))
    save(sam, folder / "sam.safetensors")
    save(build(preset("default")), folder / "default.safetensors")
    torch.save(build(preset("sam_ti")).state_dict(), folder / "sam.pth")
    return folder


def test_our_files_know_their_model(files):
    predictor = anyres.load(weights=files / "sam.safetensors", device="cpu")
    assert isinstance(predictor, anyres.Predictor)
    assert predictor.model.config.name == "sam_ti"
    assert predictor.resolution == 64
    assert not predictor.model.training
    assert anyres.load("sam_ti", weights=str(files / "sam.safetensors")).resolution == 64


def test_official_files_are_read_by_name(files):
    predictor = anyres.load("sam_ti", weights=files / "sam.pth", resolution="native", pad="patch")
    assert (predictor.resolution, predictor.pad) == ("native", "patch")


def test_auto_keeps_sam_in_float32_and_asks_the_policy_for_others(files):
    sam = anyres.load(weights=files / "sam.safetensors", device="cpu")
    default = anyres.load(weights=files / "default.safetensors", device="cpu")
    assert sam.model.dtype == torch.float32
    assert default.model.dtype == resolve_dtype("auto", "cpu")
    for name in ("float32", "bfloat16"):
        given = anyres.load(weights=files / "sam.safetensors", device="cpu", dtype=name)
        assert given.model.dtype == getattr(torch, name)


def test_bfloat16_answers_nearly_the_same(files):
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    answers = []
    for dtype in ("float32", "bfloat16"):
        predictor = anyres.load(weights=files / "default.safetensors", device="cpu", dtype=dtype)
        predictor.set_image(image)
        masks, scores, logits = predictor.predict([[70, 40]], [1])
        assert (masks.dtype, scores.dtype, logits.dtype) == (bool, np.float32, np.float32)
        answers.append(logits)
    spread = float(np.abs(answers[0]).max())
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.1 * spread


def test_colours_are_not_rounded_with_the_weights():
    model = put(build(resized(preset("sam_ti"), 64)), torch.device("cpu"), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "sam_vit_x"}, InputError, "sam_vit_x"),
        ({"model": "sam_vit_b"}, WeightsError, "facebookresearch/segment-anything"),
        ({"model": "mobile_sam"}, WeightsError, "ChaoningZhang/MobileSAM"),
        ({"model": "hrsam_b"}, WeightsError, "anyres train"),
        ({"weights": "nowhere.pth"}, WeightsError, "nowhere.pth"),
        ({"device": "abacus"}, InputError, "abacus"),
        ({"device": "cpu:1"}, InputError, "cpu:1"),
        ({"device": "cuda:99"}, InputError, "cuda:99"),
        ({"dtype": "int8"}, InputError, "int8"),
        ({"device": "cpu", "dtype": "float16"}, InputError, "float16"),
    ],
)
def test_what_cannot_be_loaded(arguments, error, message):
    with pytest.raises(error, match=message):
        anyres.load(**arguments)


def test_a_file_of_another_model_is_named(files):
    with pytest.raises(WeightsError, match=r"default\.safetensors holds the model 'default'"):
        anyres.load("sam_vit_b", weights=files / "default.safetensors")


def test_resolution_is_checked_by_load(files):
    with pytest.raises(InputError, match="resolution"):
        anyres.load(weights=files / "sam.safetensors", resolution="huge")


def test_devices():
    assert resolve_device("cpu") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@needs_embedded
def test_the_embedded_model_loads_and_answers():
    predictor = anyres.load()
    assert predictor.model.config.name == "default"
    predictor.set_image(np.zeros((30, 40, 3), np.uint8))
    assert predictor.predict([[5, 5]], [1])[0].shape == (3, 30, 40)
