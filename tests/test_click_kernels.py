"""The kernels of a click against the layers that they stand for, in the same weights."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyres.geometry import Frame
from anyres.models import click_maps
from anyres.models.build import build
from anyres.models.presets import preset
from anyres.ops import block
from anyres.ops.threads import alone, share
from anyres.predict.load import put
from anyres.predict.postprocess import upscale

pytest.importorskip("numba")
tiles = pytest.mark.skipif(
    not block.decoder_runs_in_tiles(torch.bfloat16, 128), reason="no tiles (AMX) here"
)
# (B, P, h, w, clicks): narrower than a vector, odd, more clicks than tiles take, several pictures.
SHAPES = [(1, 1, 16, 16, 1), (1, 3, 8, 4, 2), (2, 4, 5, 9, 20), (2, 2, 33, 17, 3), (1, 1, 2, 3, 1)]


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    exact = build(preset("hrsam_xs")).eval()
    for parameter in exact.mask_decoder.parameters():
        if parameter.ndim == 1:  # biases and norms that do something
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return exact, put(copy.deepcopy(exact), torch.device("cpu"), torch.bfloat16)


def prompt(shape, *, box=False, mask=True):
    _, prompts, height, width, clicks = shape
    size = torch.tensor([16.0 * width, 16.0 * height])
    labels = torch.randint(-1, 2, (prompts, clicks))
    return {
        "points": (torch.rand(prompts, clicks, 2) * (size - 1), labels),
        "boxes": (torch.rand(prompts, 2).repeat(1, 2) * 8 + torch.tensor([0, 0, 20, 30]))
        if box
        else None,
        "masks": torch.randn(prompts, 1, 4 * height, 4 * width) * 4 if mask else None,
    }


@tiles
@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("box", [False, True])
def test_a_click_by_kernels_is_one_by_layers(models, shape, box, monkeypatch):
    torch.manual_seed(1)
    exact, model = models
    features = exact.encode(torch.randn(shape[0], 3, 16 * shape[2], 16 * shape[3]))
    asked = prompt(shape, box=box, mask=not box)
    expected = exact.decode_all(features, **asked)
    half = copy.copy(features)
    for name in ("embedding", "details"):
        value = getattr(features, name)
        value = value.bfloat16() if name == "embedding" else tuple(x.bfloat16() for x in value)
        object.__setattr__(half, name, value)
    found = model.decode_all(model.prepare(half), **asked)
    monkeypatch.setenv("ANYRES_BLOCK", "torch")
    layers = model.decode_all(model.prepare(half), **asked)
    for one, by_layers, wanted in zip(found, layers, expected, strict=True):
        assert one.shape == wanted.shape
        error, allowed = (x.float() - wanted for x in (one, by_layers))
        # No further from float32 than the layers in bfloat16 are.
        assert error.square().mean() <= 1.5 * allowed.square().mean() + 1e-5


@tiles
@torch.no_grad()
def test_kernels_give_the_same_whatever_the_number_of_threads(models):
    torch.manual_seed(2)
    _, model = models
    ready = model.prepare(model.encode(torch.randn(1, 3, 1024, 512)))
    asked = prompt((1, 1, 64, 32, 2))
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            answers.append(model.decode_all(ready, **asked)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 150), st.integers(1, 150)),
    st.integers(1, 3),
)
def test_masks_are_enlarged_as_by_torch(cells, picture_hw, masks):
    input_hw = (cells[0] * 4, cells[1] * 4)
    frame = Frame(picture_hw=picture_hw, resized_hw=input_hw, input_hw=input_hw, patch=4)
    logits = torch.randn(2, masks, *frame.logits_hw)
    with torch.no_grad():
        found = upscale(logits, frame, two_step=False)
        above = upscale(logits, frame, two_step=False, threshold=0.25)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANYRES_BLOCK", "torch")
            wanted = upscale(logits, frame, two_step=False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(above, found > 0.25)


def test_work_is_shared_from_within_alone():
    threads = torch.get_num_threads()
    done = np.zeros(50, int)
    try:
        torch.set_num_threads(3)

        def work(i):
            done[i] += 1
            assert torch.get_num_threads() == 1

        def all_of_it():
            share(work, range(50))
            return torch.get_num_threads()

        assert alone(all_of_it) == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert (done == 1).all()


@tiles
@torch.no_grad()
@pytest.mark.parametrize(
    "part", ["click_maps.to_s8.0", "mask_decoder.output_upscaling.0", "mask_decoder.direct.0",
             "prompt_encoder.mask_downscaling.6"]
)  # fmt: skip
def test_weights_kept_in_order_are_those_of_the_model(models, part):
    torch.manual_seed(3)
    model = copy.deepcopy(models[1])
    ready = model.prepare(model.encode(torch.randn(1, 3, 256, 128)))
    asked = prompt((1, 1, 16, 8, 2))
    before = model.decode_all(ready, **asked)[0]
    model.get_submodule(part).weight.data.mul_(-0.5)  # which torch does not count as a change
    after = model.decode_all(ready, **asked)[0]
    assert not torch.equal(after, before)
    assert torch.equal(after, copy.deepcopy(model).decode_all(ready, **asked)[0])


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.lists(
        st.tuples(st.floats(-3, 200, width=32), st.floats(-3, 200, width=32), st.integers(-1, 1)),
        min_size=1,
        max_size=40,
    ),
)
def test_what_is_read_at_clicks_is_what_lies_there(grid_hw, clicked):
    from anyres.ops import click_read

    height, width = 4 * grid_hw[0], 4 * grid_hw[1]
    xy = torch.tensor([click[:2] for click in clicked])[None]
    labels = torch.tensor([click[2] for click in clicked])[None]
    found = np.full(2 * height * width, np.nan, np.float32)
    flat = xy.flatten().numpy()
    click_read.bumps(
        flat,
        labels[0].numpy(),
        height,
        width,
        click_maps.CLICK_SIGMA,
        click_maps.CLICK_REACH,
        found,
    )
    expected = click_maps._bumps(xy, labels, (height, width))
    np.testing.assert_allclose(found, expected.flatten(), rtol=1e-4, atol=1e-7)

    x = torch.randn(1, 32, height, width)
    lengths = torch.rand(1, 1, height, width)
    values, scale = click_maps._sample([x, lengths], xy, 4)
    rows = x[0].permute(1, 2, 0).contiguous().flatten().numpy()
    source = click_read.Map(rows, 32, height, width, 4, lengths.flatten().numpy())
    groups = -(-len(clicked) // 16)
    memory, tiles = np.zeros(32 * 32, np.uint16), np.zeros(groups * 32 * 32, np.uint16)
    read = np.zeros((len(clicked), 40), np.float32)
    click_read.features(source, flat, read.ravel(), 8, 40, memory, tiles)
    np.testing.assert_array_equal(read[:, 8:], (values * scale)[0])
    assert not read[:, :8].any()

    planes = torch.randn(1, 4, height, width)
    nearest = np.zeros(4 * len(clicked), np.float32)
    click_read.colours(planes.flatten().numpy(), height, width, flat, nearest)
    at = click_maps._sample([planes], xy, 4)[0][0, :, :3]
    wanted = torch.cat([2 * at, -at.square().sum(-1, True)], -1)
    np.testing.assert_allclose(nearest.reshape(-1, 4), wanted, rtol=1e-5, atol=1e-6)
