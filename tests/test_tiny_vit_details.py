"""TinyViT beside the light decoder: maps for it, another's weights to begin with, precision."""

import copy
from dataclasses import replace

import pytest
import torch

from anyres.errors import InputError, WeightsError
from anyres.models.build import build
from anyres.models.config import TinyViTConfig
from anyres.models.presets import PRESETS, preset
from anyres.models.tiny_vit import ConvNorm, TinyViT
from anyres.models.weights import save
from anyres.predict.load import put
from anyres.train.config import TrainConfig
from anyres.train.start import find_start

SMALL = TinyViTConfig(
    dims=(8, 12, 16, 20), depths=(1, 1, 1, 1), heads=(3, 2, 4), windows=(3, 4, 2), neck=16
)


@pytest.fixture
def small(monkeypatch):
    """The embedded model's preset, but small: that one, a neck apart, and its MobileSAM."""
    light = replace(preset("default").decoder, dim=16, heads=2, mlp=32, iou_hidden=16)
    own = replace(preset("default"), encoder=SMALL, decoder=light)
    sam = replace(
        preset("mobile_sam"),
        encoder=replace(SMALL, neck=32),
        decoder=replace(preset("mobile_sam").decoder, dim=32, heads=2, mlp=32, iou_hidden=16),
    )
    monkeypatch.setitem(PRESETS, "default", own)
    monkeypatch.setitem(PRESETS, "mobile_sam", sam)
    return own, sam


def test_the_decoder_gets_what_the_first_two_stages_made():
    torch.manual_seed(0)
    encoder = TinyViT(SMALL).eval()
    made = []
    for stage in encoder.layers[:2]:
        stage.blocks[-1].register_forward_hook(lambda _module, _given, out: made.append(out))
    x = torch.randn(2, 3, 48, 80)
    embedding, details = encoder.forward_features(x)
    assert [tuple(d.shape) for d in details] == [(2, 8, 12, 20), (2, 12, 6, 10)]
    assert all(torch.equal(a, b) for a, b in zip(details, made, strict=True))
    assert torch.equal(embedding, encoder(x))


def test_encoders_without_maps_have_no_details():
    two = replace(SMALL, dims=(6, 10), depths=(1, 1), heads=(5,), windows=(2,))
    assert two.detail_channels is None
    assert preset("sam_ti").encoder.detail_channels is None
    with pytest.raises(InputError, match="needs an encoder with maps at strides 4 and 8"):
        replace(preset("default"), encoder=replace(two, neck=128))


def test_weights_fold_their_norms_before_they_are_rounded(small):
    torch.manual_seed(1)
    exact = build(small[0])
    model = put(copy.deepcopy(exact), torch.device("cpu"), torch.bfloat16)
    convs = [m for m in model.modules() if isinstance(m, ConvNorm)]
    assert convs
    assert {conv.c.weight.dtype for conv in convs} == {torch.float32}
    assert model.image_encoder.layers[1].blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    pixels = torch.randn(1, 3, 64, 96)
    points = (torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1]]))
    expected = exact.decode(exact.encode(pixels), points=points, multimask=True)[0]
    found = model.decode(model.encode(pixels), points=points, multimask=True)[0]
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_new_model_begins_with_anothers_encoder(small, tmp_path):
    torch.manual_seed(2)
    lender = build(small[1])
    lender.trained_on = {"somewhere": ["0123456789abcdef"]}
    save(lender, tmp_path / "lender.safetensors")
    config = TrainConfig(model="default", encoder=str(tmp_path / "lender.safetensors"))
    model = find_start(config).model
    theirs, own = lender.image_encoder.state_dict(), model.image_encoder.state_dict()
    lent = [name for name in own if not name.startswith("neck.")]
    assert all(torch.equal(own[name], theirs[name]) for name in lent)
    assert own["neck.0.weight"].shape != theirs["neck.0.weight"].shape
    assert model.trained_on == {"somewhere": ["0123456789abcdef"]}


def test_published_weights_are_known_by_their_name(small, tmp_path):
    path = tmp_path / "lender.pth"
    torch.save(build(small[1]).state_dict(), path)
    config = TrainConfig(model="default", encoder=str(path))
    assert find_start(config).model.trained_on == {"lender.pth": []}


def test_an_encoder_of_another_kind_is_no_beginning(small, tmp_path):
    save(build(preset("hrsam_xs")), tmp_path / "xs.safetensors")
    config = TrainConfig(model="default", encoder=str(tmp_path / "xs.safetensors"))
    with pytest.raises(WeightsError, match=r"xs\.safetensors is another: .* of the .* numbers"):
        find_start(config)


def test_an_encoder_is_for_new_weights():
    with pytest.raises(InputError, match="encoder is for new weights: leave out start"):
        TrainConfig(encoder="a.pth", start="default")
