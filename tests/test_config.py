"""Configurations: what they refuse, and what becomes of them as JSON."""

import json
from dataclasses import replace

import pytest

from anyres.errors import InputError, WeightsError
from anyres.models.config import ModelConfig
from anyres.models.presets import PRESETS, preset

XS = preset("hrsam_xs")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back_from_json(name):
    config = preset(name)
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("encoder", "dim", 192.0, r"HRSAMConfig\.dim: 192\.0 is not of type int"),
        ("encoder", "state", True, r"HRSAMConfig\.state: True is not of type int"),
        ("encoder", "positions", 3, r"HRSAMConfig\.positions: 3"),
        ("encoder", "stem", [24, 48], r"HRSAMConfig\.stem: \[24, 48\]"),
        ("encoder", "out_blocks", [2, "5"], r"HRSAMConfig\.out_blocks: '5'"),
        ("encoder", "type", "swin", "swin"),
        ("encoder", "thd", 1, "HRSAMConfig has no field thd"),
        ("decoder", "details", 1, r"DecoderConfig\.details: 1 is not of type bool"),
        ("decoder", "dim", None, r"DecoderConfig\.dim: None"),
        (None, "pad", "circle", r"ModelConfig\.pad: 'circle'"),
        (None, "pixel_mean", [1, 2], r"ModelConfig\.pixel_mean: \[1, 2\]"),
        (None, "name", None, r"ModelConfig\.name: None is not of type str"),
        (None, "decoder", [], "no object of DecoderConfig fields"),
        (None, "image_size", 500, "image_size 500 is not a multiple of the patch 16"),
    ],
)
def test_json_that_is_no_configuration(part, field, value, message):
    tree = json.loads(XS.to_json())
    (tree if part is None else tree[part])[field] = value
    with pytest.raises(WeightsError, match=message):
        ModelConfig.from_json(json.dumps(tree))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 100_000])
def test_text_that_is_no_object(text):
    with pytest.raises(WeightsError, match="cannot be read"):
        ModelConfig.from_json(text)


def test_whole_numbers_may_stand_for_floats():
    found = ModelConfig.from_json(XS.to_json().replace('"mlp_ratio": 3.0', '"mlp_ratio": 3'))
    assert found == XS
    assert isinstance(found.encoder.mlp_ratio, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "192 channels do not divide by its 5 heads"),
        ({"heads": 32}, "times 4"),
        ({"dim": 0}, r"HRSAMConfig\.dim is 0; it must be at least 1"),
        ({"out_blocks": ()}, "out_blocks"),
        ({"out_blocks": (2, 6)}, r"out_blocks \(2, 6\)"),
        ({"out_blocks": (2, 2)}, "each once"),
        ({"patch": 8}, "patch 16"),
    ],
)
def test_encoders_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        replace(XS.encoder, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 48}, "twice its 48 heads"),
        ({"dim": 132, "heads": 3}, "divide by 8"),
        ({"mask_channels": 3}, "at least 4"),
        ({"depth": 0}, r"DecoderConfig\.depth is 0"),
        ({"details": False}, "set both"),
    ],
)
def test_decoders_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=message):
        replace(XS.decoder, **changes)


def test_models_that_cannot_be():
    with pytest.raises(InputError, match=r"pixel_std is \(1\.0, 0\.0, 1\.0\)"):
        replace(XS, pixel_std=(1.0, 0.0, 1.0))
    with pytest.raises(InputError, match="needs an encoder with maps at strides 4 and 8"):
        replace(XS, encoder=replace(XS.encoder, stem=None))
    with pytest.raises(InputError, match="a stem has positive widths and patch 16"):
        replace(preset("sam_xs").encoder, patch=8)
