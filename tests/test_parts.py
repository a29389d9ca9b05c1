"""Files that hold only what was trained: written, found and put together with their base."""

import json

import numpy as np
import pytest
import torch

import anyres
from anyres.errors import InputError, WeightsError
from anyres.models import parts, weights
from anyres.models.basam import adapt
from anyres.ops.length import LengthConfig
from anyres.predict.load import read_model
from tiny import random_model


@pytest.fixture(scope="module")
def embedded():
    return read_model()


def trained(model, *names):
    """Change what is named, as training would; returns the state's names that it changed."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(names))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape) * 0.01
    return parts.trained_names(model)


def same(a, b):
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[n], other[n]) for n in mine)


def test_a_part_finds_the_embedded_base(embedded, tmp_path):
    model = read_model()
    base = parts.Base("default", parts.checksum(model))
    model.trained_on = {"mine": ["0123456789abcdef"]}
    names = trained(model, "mask_decoder.")
    assert names == {n for n in model.state_dict() if n.startswith("mask_decoder.")}
    path = tmp_path / "mine.safetensors"
    parts.save_part(model, names, base, path)
    found = read_model(weights=path)
    assert same(found, model)
    assert not same(found, embedded)
    assert found.trained_on == model.trained_on
    assert not found.training
    assert path.stat().st_size < sum(t.nbytes for t in model.state_dict().values()) / 2
    predictor = anyres.load(weights=path, dtype="float32")
    predictor.set_image(np.full((64, 64, 3), 90, np.uint8))
    masks, _, _ = predictor.predict(point_coords=[[9, 9]], point_labels=[1])
    assert masks.shape == (3, 64, 64)
    with pytest.raises(WeightsError, match="holds the model 'default' and not 'sam_ti'"):
        anyres.load("sam_ti", weights=path)
    with pytest.raises(WeightsError, match="only what was trained"):
        weights.load(path)


def test_norms_bring_their_statistics(embedded):
    model = read_model()
    names = trained(model, "image_encoder.")
    counts = {n for n in model.state_dict() if n.endswith("running_mean")}
    assert counts
    assert counts <= names
    assert not any(n.startswith("prompt_encoder.") for n in names)


def test_a_part_finds_its_base_beside_it(tmp_path, monkeypatch):
    base, model = random_model("sam_ti", 64), random_model("sam_ti", 64)
    file, elsewhere = tmp_path / "base.safetensors", tmp_path / "other"
    weights.save(base, file, dtype=torch.bfloat16)
    model = weights.load(file)
    known = parts.Base("base.safetensors", parts.checksum(model))
    # The adaptation to lengths has parameters that the base has not.
    adapt(model, LengthConfig(bias="distance", learnable=True))
    names = trained(model, *(f"image_encoder.blocks.{i}.attn.distance" for i in (2, 5)))
    assert len(names) == 2
    names |= {n for n in model.state_dict() if n.endswith("attn.distance")}
    parts.save_part(model, names, known, tmp_path / "part.safetensors")
    assert same(read_model(weights=tmp_path / "part.safetensors"), model)
    elsewhere.mkdir()
    moved = (tmp_path / "part.safetensors").rename(elsewhere / "part.safetensors")
    with pytest.raises(WeightsError, match=r"on top of base.safetensors .*not beside it"):
        read_model(weights=moved)
    assert same(read_model("sam_ti", moved, base=file), model)
    monkeypatch.chdir(tmp_path)
    assert same(read_model(weights=moved), model)
    # A part of a part.
    again = read_model(weights=moved)
    second = parts.Base("part.safetensors", parts.checksum(again))
    names = trained(again, "mask_decoder.iou_token")
    parts.save_part(again, names, second, elsewhere / "second.safetensors")
    assert same(read_model(weights=elsewhere / "second.safetensors"), again)


def test_another_base_is_refused_by_its_checksum(tmp_path):
    base, other = random_model("sam_ti", 64), random_model("sam_ti", 64, seed=1)
    mine, theirs = parts.checksum(base), parts.checksum(other)
    path = tmp_path / "part.safetensors"
    parts.save_part(base, trained(base, "mask_decoder."), parts.Base("a.safetensors", mine), path)
    weights.save(other, tmp_path / "a.safetensors")
    for given in (None, tmp_path / "a.safetensors"):
        with pytest.raises(WeightsError, match=f"checksum {mine}.* has {theirs}"):
            read_model(weights=path, base=given)
    with pytest.raises(WeightsError, match=mine):
        read_model(weights=path, base="default")
    with pytest.raises(InputError, match="leave base out"):
        read_model(weights=tmp_path / "a.safetensors", base="default")
    with pytest.raises(InputError, match="leave base out"):
        anyres.load(base="default")


def test_damaged_parts(embedded, tmp_path):
    model = read_model()
    path = tmp_path / "part.safetensors"
    base = parts.Base("default", parts.checksum(model))
    parts.save_part(model, {"mask_decoder.iou_token.weight"}, base, path)
    assert parts.base_of(path) == base
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(WeightsError, match="damaged"):
        read_model(weights=path)
    path.write_bytes(whole.replace(b"mask_decoder.iou_token", b"mask_decoder.iou_tokem"))
    with pytest.raises(WeightsError, match=r"1 unexpected: mask_decoder\.iou_tokem\.weight"):
        read_model(weights=path)
    state, metadata = weights.read_safetensors(path)
    weights.write(state, metadata | {weights.BASE_KEY: json.dumps({"name": 3})}, path)
    with pytest.raises(WeightsError, match="its base is"):
        read_model(weights=path)
    with pytest.raises(WeightsError, match="not finite"):
        parts.save_part(_broken(model), {"mask_decoder.iou_token.weight"}, base, path)


def _broken(model):
    with torch.no_grad():
        model.mask_decoder.iou_token.weight.fill_(float("nan"))
    return model
