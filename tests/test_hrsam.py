"""HRSAM's encoder against the official code's numbers, and what its windows must keep."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyres.errors import InputError
from anyres.models.build import build
from anyres.models.config import DEFAULT, resized
from anyres.models.hrsam import HRSAMEncoder
from anyres.models.hrsam_blocks import WindowAttention
from anyres.ops.rope import frequencies, window_table
from anyres.ops.windows import merge, partition, window_plan
from tiny import OFFICIAL_HRSAM

SMALL = replace(OFFICIAL_HRSAM, positions="crop")


@pytest.fixture(scope="module")
def official(golden):
    facts, tensors = golden("hrsam_encoder")
    encoder = HRSAMEncoder(OFFICIAL_HRSAM).eval()
    encoder.load_state_dict({k: v for k, v in tensors.items() if "::" not in k}, strict=True)
    return facts, tensors, encoder


@pytest.mark.parametrize("case", ["64x64_b1", "64x64_b2", "96x80_b1", "96x80_b2", "128x192_b2"])
def test_golden(official, case):
    _, tensors, encoder = official
    image = tensors[f"in::{case}::image_i8"].float() / 32
    with torch.no_grad():
        single = encoder.float()(image)
        double = encoder.double()(image.double())
    wanted, wanted_f64 = tensors[f"out::{case}::embed"], tensors[f"out::{case}::embed_f64"]
    assert (single - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max())
    assert (double - wanted_f64).abs().max() <= 1e-9


def test_golden_windows(official):
    """The rows of the official window table, shifted and plain, for a grid that needs padding."""
    _, tensors, _ = official
    tokens = torch.arange(2 * 30, dtype=torch.float32).reshape(2, 6, 5, 1)
    for kind, shifted in (("plain", False), ("shift", True)):
        wanted = tensors[f"mid::96x80_b2::{kind}_window_indices"].float()
        plan = window_plan((6, 5), 4, shifted=shifted)
        ours = partition(tokens, plan, torch.tensor([60.0]))  # 60 = B * L means padding
        assert torch.equal(ours.flatten(), wanted)


@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    window=st.integers(1, 9),
    shifted=st.booleans(),
)
def test_partition_round_trip(grid, window, shifted):
    plan = window_plan(grid, window, shifted=shifted)
    tokens = torch.randn(2, *grid, 3)
    windows = partition(tokens, plan, torch.full((3,), 7.0))
    assert windows.shape[1] == window**2
    assert torch.equal(merge(windows, plan), tokens)
    pads = (windows == 7).all(-1).sum()
    assert pads == 2 * (plan.padded_hw[0] * plan.padded_hw[1] - grid[0] * grid[1])


def test_attention_is_local_and_sees_its_padding():
    torch.manual_seed(0)
    attention = WindowAttention(12, 3)
    torch.nn.init.normal_(attention.padding)
    plan = window_plan((4, 6), 4, shifted=False)
    rope = window_table(frequencies(4), 4)
    tokens = torch.randn(1, 4, 6, 12)
    before = attention(tokens, plan, rope)
    tokens[0, 0, 5] += 1  # in the second window
    after = attention(tokens, plan, rope)
    changed = (before - after).abs().amax(-1)[0] > 1e-7
    assert changed[:, 4:].all()
    assert not changed[:, :4].any()
    attention.padding.data += 1
    padded = attention(tokens, plan, rope)
    assert (padded - after).abs().amax(-1)[0, :, 4:].min() > 1e-7
    assert torch.equal(padded[:, :, :4], after[:, :, :4])


def test_batch_equals_singles():
    torch.manual_seed(0)
    encoder = HRSAMEncoder(SMALL).double().eval()
    torch.nn.init.normal_(encoder.pos_embed)
    images = torch.randn(8, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    assert (together - alone).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(64, 256), (256, 64), (16, 16), (16, 320)])
def test_any_shape(size):
    encoder = HRSAMEncoder(SMALL).eval()
    with torch.no_grad():
        out = encoder(torch.randn(1, 3, *size))
    assert out.shape == (1, 16, size[0] // 16, size[1] // 16)
    assert out.isfinite().all()


def test_rectangle_has_the_positions_of_its_square():
    """A wide picture's table is the top of the square's, not a squeezed one."""
    encoder = HRSAMEncoder(replace(SMALL, table=14)).eval()
    square, wide = (encoder._positions(grid_hw) for grid_hw in ((20, 20), (7, 20)))
    assert torch.equal(wide, square[:, :7])


def test_gradients_reach_every_parameter():
    torch.manual_seed(0)
    model = build(DEFAULT).train()
    features = model.encode(torch.randn(2, 3, 64, 96))
    points = (torch.rand(4, 2, 2) * 64, torch.tensor([[1, 0]] * 4))
    boxes = torch.tensor([[4.0, 4, 40, 40]] * 4)
    masks = torch.randn(4, 1, 16, 24)
    loss = torch.zeros(())
    for prompt in ({"points": points}, {"points": points, "boxes": boxes, "masks": masks}):
        logits, iou = model.decode_all(features, **prompt)
        loss = loss + logits.square().mean() + iou.square().mean()
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The softmax cancels what a bias adds to every key alike, but for padding keys.
    assert [n for n in missing if not n.endswith("k_proj.bias")] == []


def test_default_model_decodes_prompts_for_each_picture():
    """Prompts of several pictures at once equal those of each alone."""
    torch.manual_seed(0)
    model = build(DEFAULT).double()
    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    points = (torch.rand(4, 3, 2).double() * 64, torch.tensor([[1, 0, -1], [1, 1, 0]] * 2))
    with torch.no_grad():
        both, iou = model.decode(model.encode(pixels), points=points, multimask=True)
        for i in range(2):
            own = slice(2 * i, 2 * i + 2)
            alone, alone_iou = model.decode(
                model.encode(pixels[i : i + 1]),
                points=(points[0][own], points[1][own]),
                multimask=True,
            )
            assert torch.allclose(both[own], alone, atol=1e-10)
            assert torch.allclose(iou[own], alone_iou, atol=1e-10)
    assert both.shape == (4, 3, 16, 24)


def test_clicks_change_the_answer_where_they_are():
    """A negative click and a positive one at the same place are not the same prompt."""
    torch.manual_seed(0)
    model = build(DEFAULT)
    features = model.encode(torch.randn(1, 3, 64, 64))
    xy = torch.tensor([[[20.0, 30.0]]])
    with torch.no_grad():
        answers = [
            model.decode(features, points=(xy, torch.tensor([[label]])), multimask=False)[0]
            for label in (1, 0)
        ]
        moved = model.decode(features, points=(xy + 20, torch.tensor([[1]])), multimask=False)[0]
    assert (answers[0] - answers[1]).abs().max() > 1e-4
    assert (answers[0] - moved).abs().max() > 1e-4


def test_wrong_sizes_are_named():
    model = build(DEFAULT)
    with pytest.raises(InputError, match="multiples of 16"):
        model.encode(torch.zeros(1, 3, 64, 65))
    with pytest.raises(InputError, match="multiples of 16"):
        model.image_encoder(torch.zeros(1, 3, 72, 64))
    with pytest.raises(InputError, match="image_size 100"):
        resized(DEFAULT, 100)
    features = model.encode(torch.zeros(2, 3, 32, 32))
    boxes = torch.tensor([[1.0, 1.0, 9.0, 9.0]] * 3)
    with pytest.raises(InputError, match="3 prompts are no multiple of 2 pictures"):
        model.decode(features, boxes=boxes, multimask=False)
    with pytest.raises(InputError, match="1 prompts are no multiple"):
        model.decode(features, multimask=False)


def test_contradicting_configurations():
    with pytest.raises(InputError, match=r"set encoder\.stem"):
        build(replace(DEFAULT, encoder=replace(DEFAULT.encoder, stem=None)))
    with pytest.raises(InputError, match="set both"):
        build(replace(DEFAULT, decoder=replace(DEFAULT.decoder, details=False)))
    with pytest.raises(InputError, match=r"decoder\.dim alike"):
        build(replace(DEFAULT, decoder=replace(DEFAULT.decoder, dim=64)))
