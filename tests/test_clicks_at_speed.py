"""What makes a click fast changes no answer: each shortcut against its plain twin."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import anyres
from anyres.clicks import as_points, next_click
from anyres.data.layouts.folder import FolderDataset
from anyres.metrics.overlap import iou
from anyres.models.build import build
from anyres.models.click_maps import COLOUR_SCALES, ClickMaps, Landmarks
from anyres.models.layers import DoublingConv2d
from anyres.models.presets import preset
from anyres.models.stem import ConvStem
from anyres.models.two_way import Attention
from anyres.predict.load import put

XS = preset("hrsam_xs")

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def plain_attention(layer, q, k, v):
    """Attention as published: everything projected."""
    q, k, v = (
        F.linear(x, p.weight, p.bias).unflatten(2, (layer.heads, -1)).transpose(1, 2)
        for x, p in ((q, layer.q_proj), (k, layer.k_proj), (v, layer.v_proj))
    )
    out = F.scaled_dot_product_attention(q, k, v)
    return layer.out_proj(out.transpose(1, 2).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_of_tokens_and_image_is_the_published_one(dtype):
    torch.manual_seed(0)
    layer = Attention(64, 4, downsample=2)
    tokens, other, image, placed = (torch.randn(3, n, 64) for n in (7, 7, 60, 60))
    expected = (
        plain_attention(layer, tokens, other, other),
        plain_attention(layer, tokens, placed, image),
        image + plain_attention(layer, placed, tokens, other),
    )
    layer = layer.to(dtype)
    tokens, other, image, placed = (x.to(dtype) for x in (tokens, other, image, placed))
    found = (
        layer(tokens, other, other),
        layer.project_image(layer.attend_image(layer.fold_queries(tokens), placed, image)),
        layer.attend_tokens(image, placed, layer.fold_keys_values(tokens, other)),
    )
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), wanted, rtol=0, atol=TOLERANCE[dtype])


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size_hw", [(5, 9), (32, 1), (1, 1)])
def test_a_doubling_convolution_is_a_transposed_one(dtype, size_hw):
    torch.manual_seed(0)
    layer = DoublingConv2d(32, 16)
    x = torch.randn(2, 32, *size_hw)
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)
    found = layer(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=TOLERANCE[dtype])


def test_the_norms_of_the_stem_are_folded_in_evaluation_mode_only():
    torch.manual_seed(0)
    stem = ConvStem((8, 12, 16), 24).double()
    x = torch.randn(2, 3, 48, 32, dtype=torch.float64)
    names = list(stem.state_dict())
    stem.train()
    for _ in range(3):
        stem(x + 0.3)
    norms = [module for module in stem.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    seen = []
    hooks = [norm.register_forward_hook(lambda *_: seen.append(1)) for norm in norms]
    stem(x)
    assert len(seen) == len(norms) == 7

    def plain(conv, norm, x):
        return F.batch_norm(
            conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )

    def residual(block, x):
        y = F.silu(plain(block.conv1[0], block.conv1[1], x))
        return F.silu(x + plain(block.conv2, block.norm, y))

    stem.eval()
    with torch.no_grad():
        tokens, (s4, s8) = stem(x)
        s2 = F.silu(plain(stem.to_s2[0], stem.to_s2[1], x))
        expected4 = residual(stem.block_s4, F.silu(plain(stem.to_s4[0], stem.to_s4[1], s2)))
        expected8 = residual(stem.block_s8, F.silu(plain(stem.to_s8[0], stem.to_s8[1], expected4)))
        expected16 = F.conv2d(expected8, stem.to_s16.weight, stem.to_s16.bias, 2, 1)
    assert len(seen) == 7
    for found, expected in (
        (s4, expected4),
        (s8, expected8),
        (tokens.permute(0, 3, 1, 2), expected16),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert list(stem.state_dict()) == names
    for hook in hooks:
        hook.remove()


def plain_likeness(maps, sharpness, pixels_s4, xy, labels):
    """All pixels with all clicks, normalised first, the largest sought last; (P, 12, H, W)."""
    size_hw = pixels_s4.shape[2:]
    at = [(xy / (4 * 2**i)).floor().long() for i in range(3)]
    prompts = range(len(xy))
    channels = []
    for i, x in enumerate(maps):
        normal = F.normalize(x, dim=1).repeat_interleave(len(xy) // len(x), 0)
        clicks = torch.stack([normal[p][:, at[i][p, :, 1], at[i][p, :, 0]] for p in prompts])
        similar = torch.exp(
            sharpness[i].exp() * (torch.einsum("pcn,pchw->pnhw", clicks, normal) - 1)
        )
        best = extreme(similar, labels)
        channels.append(F.interpolate(best, size=size_hw, mode="bilinear", align_corners=False))
    colours = pixels_s4.repeat_interleave(len(xy) // len(pixels_s4), 0)
    clicks = torch.stack([colours[p][:, at[0][p, :, 1], at[0][p, :, 0]] for p in prompts])
    squared = (clicks[..., None, None] - colours[:, :, None]).square().sum(1)
    channels += [extreme(torch.exp(-squared / scale), labels) for scale in COLOUR_SCALES]
    y, x = (torch.arange(n) * 4.0 + 2 for n in size_hw)
    distance = (x - xy[..., :1] - 0.5).square()[:, :, None] + (y - xy[..., 1:] - 0.5).square()[
        ..., None
    ]
    channels.append(extreme(torch.exp(-distance / 72), labels))
    return torch.cat(channels, 1)


def extreme(maps, labels):
    return torch.stack([(maps * (labels == k)[..., None, None]).amax(1) for k in (1, 0)], 1)


@torch.no_grad()
@pytest.mark.parametrize("pictures", [1, 2])
def test_click_maps_see_what_all_pixels_with_all_clicks_give(pictures, monkeypatch):
    torch.manual_seed(0)
    layer = ClickMaps((6, 8), 16)
    maps = tuple(torch.randn(pictures, c, 48 // k, 32 // k) for c, k in ((6, 1), (8, 2), (16, 4)))
    pixels = torch.randn(pictures, 3, 48, 32)
    # At the border, twice the same, padding, and a prompt without negative clicks.
    xy = torch.rand(4, 3, 2) * torch.tensor([128.0, 192.0])
    xy[0, 0], xy[1, 1] = torch.tensor([0.0, 191.0]), xy[1, 0]
    labels = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 1, -1], [0, 0, 1]])
    seen = []
    layer.to_s4.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    landmarks = Landmarks.of(maps, pixels)
    own = tuple(torch.zeros(pictures, c, 48 // k, 32 // k) for c, k in ((2, 1), (4, 2), (16, 4)))
    layer(landmarks, (xy, labels), None, None, own, 4)
    monkeypatch.setattr("anyres.models.click_maps._NUMBERS", {"cpu": 1000})
    layer(landmarks, (xy, labels), None, None, own, 4)
    expected = plain_likeness(maps, layer.sharpness, pixels, xy, labels)
    for channels in seen:
        assert channels.shape == (4, 15, 48, 32)
        torch.testing.assert_close(channels[:, :12], expected, rtol=0, atol=1e-4)
        assert not channels[:, 12:].any()


@torch.no_grad()
def test_prepared_features_strips_and_single_masks_change_nothing(monkeypatch):
    torch.manual_seed(0)
    model = build(XS).double()
    features = model.encode(torch.randn(2, 3, 96, 64, dtype=torch.float64))
    prompt = {
        "points": (torch.rand(4, 2, 2).double() * 64, torch.tensor([[1, 0]] * 4)),
        "masks": torch.randn(4, 1, 24, 16).double(),
    }
    every, quality = model.decode_all(features, **prompt)
    prepared = model.prepare(features)
    before = [map_.clone() for map_ in prepared.details]
    monkeypatch.setattr("anyres.models.mask_decoder._PIXELS", {"cpu": 600})
    for multimask, part in ((True, slice(1, None)), (False, slice(0, 1))):
        logits, iou = model.decode(prepared, **prompt, multimask=multimask)
        torch.testing.assert_close(logits, every[:, part], rtol=0, atol=1e-10)
        torch.testing.assert_close(iou, quality[:, part], rtol=0, atol=1e-10)
    # The picture's own maps are as they were, whatever was added to them.
    for map_, kept in zip(prepared.details, before, strict=True):
        assert torch.equal(map_, kept)


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(64, 96), (128, 16), (16, 128), (16, 16)])
def test_every_shape_in_bfloat16(size_hw):
    """Some kernels of torch's CPUs answer garbage for narrow maps."""
    torch.manual_seed(0)
    exact = build(XS)
    model = put(copy.deepcopy(exact), torch.device("cpu"), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.image_encoder.patch_embed.to_s16.weight.dtype == torch.float32
    pixels = torch.randn(1, 3, *size_hw)
    xy = torch.tensor([[[7.0, 9.0], [12.0, 3.0]]])
    prompt = {
        "points": (xy, torch.tensor([[1, 0]])),
        "masks": torch.randn(1, 1, size_hw[0] // 4, size_hw[1] // 4),
    }
    expected = exact.decode(exact.encode(pixels), **prompt, multimask=True)[0]
    found = model.decode(model.encode(pixels), **prompt, multimask=True)[0]
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_masks_in_bfloat16_are_those_in_float32(shared_data):
    predictors = [anyres.load(dtype=name, resolution=512) for name in ("float32", "bfloat16")]
    agreement = []
    for name in ("alphamatting27", "davis2016val", "cables_real100"):
        data = FolderDataset(shared_data / "val" / name)
        for index in (0, 3):
            for predictor in predictors:
                predictor.set_image(data.picture(index))
            target = data.objects(index).target(0) == 1
            masks, logits, clicks = [np.zeros(target.shape, bool)], [None, None], []
            for _ in range(3):
                clicks.append(next_click(masks[0], target, clicks))
                xy, labels = as_points(clicks)
                masks = []
                for i, predictor in enumerate(predictors):
                    mask, _, logits[i] = predictor.predict(
                        xy, labels, mask_input=logits[i], multimask_output=False
                    )
                    masks.append(mask[0])
                agreement.append(iou(masks[1], masks[0]))
    assert np.mean(agreement) > 0.99
    assert min(agreement) > 0.97
