"""Embeddings in files: they come back whole, and only to the model that made them."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from anyres.errors import InputError, StateError
from anyres.predict.predictor import Predictor
from tiny import random_model


@pytest.mark.parametrize("name", ["sam", "hrsam"])
def test_an_embedding_comes_back_whole(name, request, image, tmp_path):
    model = request.getfixturevalue(name)
    predictor = Predictor(model, resolution=200)
    predictor.set_image(image)
    expected = predictor.predict([[70, 40]], [1], box=[5, 5, 100, 80])
    path = tmp_path / "picture.safetensors"
    predictor.save_embedding(path)
    assert [p.name for p in tmp_path.iterdir()] == ["picture.safetensors"]
    # Another predictor, whose own resolution does not matter.
    other = Predictor(model)
    other.load_embedding(path)
    assert other.frame == predictor.frame
    assert other.transform.target_length == 200
    masks, scores, logits = other.predict([[70, 40]], [1], box=[5, 5, 100, 80])
    # The memory layout of the features may differ, and with it the last bit.
    np.testing.assert_allclose(logits, expected[2], atol=1e-4)
    np.testing.assert_allclose(scores, expected[1], atol=1e-5)
    assert (masks == expected[0]).mean() > 0.999


def test_an_embedding_of_another_model_is_refused(sam, image, tmp_path):
    predictor = Predictor(sam)
    predictor.set_image(image)
    predictor.save_embedding(tmp_path / "a.safetensors")
    other = Predictor(random_model("sam_ti", 128, seed=1))
    other.set_image(image)
    with pytest.raises(InputError, match="other weights"):
        other.load_embedding(tmp_path / "a.safetensors")
    assert not other.is_image_set


def test_an_embedding_fits_the_same_model_in_another_precision(sam, image, tmp_path):
    predictor = Predictor(copy.deepcopy(sam).bfloat16())
    predictor.set_image(image)
    predictor.save_embedding(tmp_path / "a.safetensors")
    other = Predictor(sam)
    other.load_embedding(tmp_path / "a.safetensors")
    assert other.features.dtype == torch.float32
    assert np.isfinite(other.predict([[7, 4]], [1])[1]).all()


def test_embedding_files_that_are_none(hrsam, image, tmp_path):
    predictor = Predictor(hrsam)
    predictor.set_image(image)
    with pytest.raises(InputError, match=r"\.safetensors"):
        predictor.save_embedding(tmp_path / "a.npy")
    with pytest.raises(InputError, match="no folder"):
        predictor.save_embedding(tmp_path / "none" / "a.safetensors")
    path = tmp_path / "a.safetensors"
    predictor.save_embedding(path)
    whole = path.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    path.write_bytes(whole[: len(whole) // 2])
    for bad, message in (
        (path, "cannot be read"),
        (tmp_path / "gone.safetensors", "cannot be read"),
        (foreign, "no embedding"),
    ):
        with pytest.raises(InputError, match=message):
            predictor.load_embedding(bad)
        assert not predictor.is_image_set
    with pytest.raises(StateError, match="save an embedding"):
        predictor.save_embedding(tmp_path / "b.safetensors")
