"""BA-SAM: what the official code computed, and SAM at other lengths."""

import json
import math
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import anyres
from anyres.errors import InputError, WeightsError
from anyres.models import weights
from anyres.models.basam import adapt
from anyres.models.build import build
from anyres.models.config import ModelConfig, ViTConfig
from anyres.models.presets import PRESETS, preset
from anyres.models.vit import ImageEncoderViT
from anyres.models.weights import from_official, load_weights
from anyres.ops import grid_attention
from anyres.ops.attention import add_relative, get_rel_pos, global_attention
from anyres.ops.length import LengthConfig, attention_scale, mobile_scale, slopes
from anyres.predict.predictor import Predictor
from tiny import random_encoder

OFF = LengthConfig(scale="none")
DISTANCE = LengthConfig(bias="distance", coefficient=0.7)
LEARNED = LengthConfig(bias="distance", learnable=True)


def with_length(encoder, length):
    """The same weights with another adaptation; what is learned of it starts anew."""
    other = ImageEncoderViT(replace(encoder.config, length=length)).eval()
    missing, unexpected = other.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith((".distance", ".coefficient")) for name in missing)
    return other.to(next(encoder.parameters()).dtype)


# The official code.


def pixels_of(size):
    i, j = torch.arange(size)[:, None], torch.arange(size)[None, :]
    plane = 7 * i + 13 * j + i * j % 1009
    return torch.stack([((plane + 29 * c) % 251 - 125) / 64 for c in range(3)])[None]


def official(golden, name, case):
    """The encoder of a case, its input, and what came of it."""
    facts, tensors = golden(name)
    facts_of_case = facts["cases"][case]
    state = {n: t for n, t in tensors.items() if "::" not in n}
    for n, t in tensors.items():
        if n.startswith(f"alt::{facts_of_case.get('load')}::"):
            state[n.split("::")[2]] = t
    arguments = facts["constructor_args"]["ImageEncoderViT"]
    arguments = arguments | facts_of_case.get("constructor_args_changed", {})
    found = {n.split("::")[2]: t for n, t in tensors.items() if n.startswith(f"out::{case}::")}
    middle = {n.split("::")[2]: t for n, t in tensors.items() if n.startswith(f"mid::{case}::")}
    return state, arguments, facts_of_case["input_size"], found, middle


CASES = [
    ("basam_encoder", "train1024_run1024"),
    ("basam_encoder", "train1024_run2048_same_module"),
    ("basam_encoder", "img2048_own_tables"),
    ("basam_encoder", "img2048_tables_of_1024"),
    ("basam_encoder", "train1024_abs_pos"),
    ("basam_encoder_patch16", "p16_1024"),
]


def test_all_cases_are_tested(golden):
    found = {
        (n, c) for n in ("basam_encoder", "basam_encoder_patch16") for c in golden(n)[0]["cases"]
    }
    assert found == set(CASES)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_official_encoders(golden, name, case):
    state, arguments, size, expected, middle = official(golden, name, case)
    encoder = from_official("sam", state, {"ImageEncoderViT": arguments})
    assert set(encoder.state_dict()) == set(state)
    seen = {}
    for i, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: out}))
    pixels = pixels_of(size)
    with torch.no_grad():
        found = encoder(pixels)
        for key, values in middle.items():
            block = seen[int(key.removeprefix("block").removesuffix("_stride4"))]
            assert (block[:, ::4, ::4] - values).abs().max() <= 1e-4 * values.abs().max()
        exact = encoder.double()(pixels.double())
    step = {16: 1, 32: 2, 64: 4}[found.shape[-1]]
    limit = 1e-4 * max(1.0, expected["embedding"].abs().max().item())
    assert (found[..., ::step, ::step] - expected["embedding"]).abs().max() <= limit
    assert (exact[..., ::step, ::step] - expected["embedding_f64"]).abs().max() <= 1e-9
    wide = found.double()
    sums = torch.stack([wide.sum(), wide.abs().sum(), wide.square().sum()])
    assert torch.allclose(sums, expected["embedding_sums"], rtol=1e-4)
    for i, scale in enumerate(expected["global_scale"].tolist()):
        attn = encoder.blocks[i].attn
        factor = 1.0
        if not attn.window:
            factor = attention_scale(attn.length, (size // arguments["patch_size"]) ** 2, 7)
        assert factor * 8**-0.5 == pytest.approx(scale, rel=1e-12)


def test_absolute_positions_beside_tables_of_another_size(golden):
    """The official code resizes such tables in each call; adding positions, at one size only."""
    state, arguments, size, expected, _ = official(
        golden, "basam_encoder", "img2048_tables_of_1024"
    )
    side, dim = size // arguments["patch_size"], arguments["embed_dim"]
    torch.manual_seed(0)
    positions = torch.randn(1, side, side, dim)
    arguments = arguments | {"use_abs_pos": True}
    encoder = from_official("sam", state | {"pos_embed": positions}, arguments)
    assert encoder.config.image_size == size
    assert torch.equal(encoder.pos_embed, positions)
    tokens = torch.zeros_like(positions)
    assert torch.equal(encoder._add_positions(tokens), positions)
    with torch.no_grad():
        encoder.pos_embed.zero_()
        found = encoder(pixels_of(size))[..., ::2, ::2]
    wanted = expected["embedding"]
    assert (found - wanted).abs().max() <= 1e-4 * max(1.0, wanted.abs().max().item())
    with pytest.raises(WeightsError, match="pos_embed is 1x32x31x16 and not 1x32x32x16"):
        from_official("sam", state | {"pos_embed": positions[:, :, 1:]}, arguments)


def test_official_scales(golden):
    table = golden("basam_encoder")[0]["attention_scale_by_img_size"]
    assert len(table) >= 16
    for case, scales in table.items():
        size, channels = (int(part.split("=")[1]) for part in case.split(","))
        if "ValueError" in str(scales["global"]):
            with pytest.raises(InputError, match="at least 1024"):
                LengthConfig(scale="official", official_size=size)
            continue
        length = LengthConfig(scale="official", official_size=size)
        # Whatever the tokens: it is fixed at construction.
        for tokens in (1, 4096, 10**6):
            found = attention_scale(length, tokens, 4096) * channels**-0.5
            assert found == pytest.approx(scales["global"], rel=1e-12)


def test_official_relative_positions(golden):
    facts, tensors = golden("basam_encoder")
    cases = facts["rel"]["get_rel_pos"]
    assert len(cases) == 4
    coefficient = tensors["in::rel::coefficient"]
    for q, k, rows in cases:
        found = get_rel_pos(q, k, tensors[f"in::rel::table_rows{rows}_{q}_{k}"] * coefficient)
        expected = tensors[f"out::rel::rel_q{q}_k{k}_rows{rows}"]
        assert (found - expected).abs().max() <= 1e-6
    height, width = facts["rel"]["attn_hw"]
    found = add_relative(
        tensors["in::rel::attn"].clone(),
        tensors["in::rel::q"].unflatten(1, (height, width)),
        get_rel_pos(height, height, tensors["in::rel::rel_h"] * coefficient),
        get_rel_pos(width, width, tensors["in::rel::rel_w"] * coefficient),
    )
    expected = tensors["out::rel::attn_plus_rel"]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_official_names_are_all_accounted_for(golden):
    state, arguments, *_ = official(golden, "basam_encoder", "train1024_run1024")
    less = {n: t for n, t in state.items() if n != "blocks.2.attn.coefficient"}
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.2\.attn\.coefficient"):
        from_official("sam", less, arguments)
    more = state | {"blocks.2.attn.coefficients": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected: blocks\.2\.attn\.coefficients"):
        from_official("sam", more, arguments)
    with pytest.raises(InputError, match="at least 1024"):
        from_official("sam", state, arguments | {"img_size": 512})


# The factor and the bias.


def test_the_factor_at_known_sizes():
    for size, factor in ((512, 0.8333), (1024, 1), (1536, 1.0975), (2048, 1.1667), (4096, 1.3333)):
        found = attention_scale(LengthConfig(), (size // 16) ** 2, 4096)
        assert found == pytest.approx(factor, abs=5e-5)
        assert attention_scale(OFF, (size // 16) ** 2, 4096) == 1
    assert attention_scale(LengthConfig(), 4096, 4096) == 1.0  # not only nearly
    assert attention_scale(LengthConfig(base=100.0), 4096, 4096) == 1.0
    assert attention_scale(LengthConfig(base=256.0), 16384, 4096) == pytest.approx(1.25)
    steps = [attention_scale(LengthConfig(), n, 4096) for n in range(2, 20000)]
    assert all(0 < b - a < 0.1 for a, b in pairwise(steps))
    assert attention_scale(LengthConfig(), 1, 4096) == 1


def test_a_rectangle_counts_its_own_tokens():
    assert attention_scale(LengthConfig(), 128 * 32, 64 * 64) == 1
    assert attention_scale(LengthConfig(), 64 * 48, 64 * 64) < 1


def test_a_base_that_would_turn_attention_around():
    with pytest.raises(InputError, match=r"base 2 is too small for 1024 tokens .* above 4,? or"):
        attention_scale(LengthConfig(base=2.0), 1024, 4096)


def test_the_factor_of_mobile_sam():
    length = LengthConfig()
    assert mobile_scale(length, 1024) == 1
    for size in (512, 1536, 2048, 3000):
        expected = math.log(1444 * (size / 1024) ** 2) / math.log(1444)
        assert mobile_scale(length, size) == pytest.approx(expected)
    assert mobile_scale(OFF, 2048) == 1
    fixed = LengthConfig(scale="official", official_size=3071)
    assert mobile_scale(fixed, 777) == pytest.approx(math.log(1444 * 4) / math.log(1444))
    with pytest.raises(InputError, match="26 pixels"):
        mobile_scale(length, 26)
    for strange in (DISTANCE, LengthConfig(base=9.0)):
        with pytest.raises(InputError, match="MobileSAM has neither"):
            mobile_scale(strange, 1024)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": "linear"}, "scale is 'linear'"),
        ({"bias": "alibi"}, "bias is 'alibi'"),
        ({"base": 1.0}, "above 1"),
        ({"base": 9.0, "scale": "none"}, "for scale='log'"),
        ({"coefficient": -1.0}, "coefficient is -1"),
        ({"coefficient": float("nan")}, "coefficient is nan"),
        ({"learnable": True}, "for bias='distance'"),
        ({"scale": "official"}, "at least 1024"),
        ({"official_size": 2048}, "for scale='official'"),
    ],
)
def test_what_makes_no_length(values, message):
    with pytest.raises(InputError, match=message):
        LengthConfig(**values)


def test_slopes_are_geometric():
    assert slopes(8) == [2.0**-k for k in range(1, 9)]
    assert len(slopes(12)) == 12
    assert slopes(12)[-1] == 2**-8


def test_a_coefficient_needs_tables():
    with pytest.raises(InputError, match="multiplies relative positions"):
        ViTConfig(relative_positions=False, length=LengthConfig(bias="coefficient"))


# Attention, against every score in view.


def plain(qkv_BhwC3, heads, tables, scale, penalty_N):
    batch, height, width, _ = qkv_BhwC3.shape
    q, k, v = (
        x.reshape(batch, height * width, heads, -1).transpose(1, 2)
        for x in qkv_BhwC3.chunk(3, dim=-1)
    )
    scores = q @ k.transpose(-2, -1) * (scale / q.shape[-1] ** 0.5)
    at = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    down, right = (at[:, None] - at[None]).unbind(-1)
    if tables is not None:
        rows = tables[0][down + len(tables[0]) // 2]
        columns = tables[1][right + len(tables[1]) // 2]
        scores = scores + torch.einsum("bnqd,qkd->bnqk", q, rows + columns)
    if penalty_N is not None:
        scores = scores - penalty_N[:, None, None] * (down.abs() + right.abs())
    out = scores.softmax(-1) @ v
    return out.transpose(1, 2).reshape(batch, height, width, -1)


def inputs(grid_hw, heads, channels, dtype, relative=True):
    torch.manual_seed(0)
    qkv = torch.randn(2, *grid_hw, 3 * heads * channels, dtype=dtype)
    side = max(grid_hw)
    tables = None
    if relative:
        tables = tuple(torch.randn(2, 2 * side - 1, channels, dtype=dtype).unbind())
    return qkv, tables, torch.rand(heads, dtype=dtype)


@pytest.fixture(params=["folded", "blocks", "rows"])
def path(request, monkeypatch):
    """Each way of computing it, whatever the grid."""
    fold = 999 if request.param == "folded" else 0
    for name in ("_FOLDED", "_FOLDED_TRAINING"):
        monkeypatch.setattr(grid_attention, name, fold)
    monkeypatch.setattr(grid_attention, "_FOLDED_HALF", {"cpu": fold})
    if request.param == "rows":
        monkeypatch.setitem(grid_attention._SCORES, "cpu", 1)
    return request.param


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("grid_hw", [(5, 5), (3, 6), (7, 2)])
def test_attention_is_the_plain_formula(path, grid_hw, relative):
    qkv, tables, penalty = inputs(grid_hw, 3, 4, torch.float64, relative)
    for scale, penalty_N in ((1.0, None), (1.2, None), (1.2, penalty), (0.7, penalty)):
        found = global_attention(qkv, 3, tables, scale, penalty_N)
        expected = plain(qkv, 3, tables, scale, penalty_N)
        assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("path", ["folded", "blocks"], indirect=True)
@pytest.mark.parametrize("grid_hw", [(40, 29), (20, 52)])
def test_attention_in_float32(path, grid_hw):
    qkv, tables, penalty = inputs(grid_hw, 2, 16, torch.float32)
    found = global_attention(qkv, 2, tables, 1.1, penalty)
    assert (found - plain(qkv, 2, tables, 1.1, penalty)).abs().max() <= 1e-5


def test_attention_in_bfloat16(path):
    qkv, tables, penalty = inputs((9, 12), 2, 16, torch.bfloat16)
    found = global_attention(qkv, 2, tables, 1.1, penalty)
    expected = plain(qkv.float(), 2, tuple(t.float() for t in tables), 1.1, penalty.float())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() <= 0.01 * expected.abs().mean()


@pytest.mark.parametrize("relative", [True, False])
def test_gradients(path, relative):
    qkv, tables, penalty = inputs((2, 3), 2, 2, torch.float64, relative)
    tables = tables or ()
    leaves = [t.requires_grad_() for t in (qkv, penalty, *tables)]
    assert torch.autograd.gradcheck(
        lambda x, p, *t: global_attention(x, 2, t or None, 1.3, p), leaves
    )


def test_gradients_with_autocast_are_those_without(path):
    qkv, tables, penalty = inputs((4, 6), 2, 8, torch.float32)
    grads = []
    for enabled in (False, True):
        leaves = [t.clone().requires_grad_() for t in (qkv, penalty, *tables)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            cast = leaves[0].bfloat16() if enabled else leaves[0]
            out = global_attention(cast, 2, (leaves[2], leaves[3]), 1.1, leaves[1])
        assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
        grads.append(torch.autograd.grad(out.float().square().sum(), leaves))
    for exact, found in zip(*grads, strict=True):
        assert (found - exact).abs().mean() <= 0.05 * exact.abs().mean()


def test_training_keeps_no_score(path):
    grid_hw, heads, channels = (30, 31), 2, 4
    qkv, tables, penalty = inputs(grid_hw, heads, channels, torch.float32)
    leaves = [t.requires_grad_() for t in (qkv, penalty, *tables)]
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        global_attention(qkv, heads, (leaves[2], leaves[3]), 1.1, penalty).sum()
    tokens = grid_hw[0] * grid_hw[1]
    assert 0 < max(kept.values()) < tokens**2
    assert sum(kept.values()) < heads * tokens**2  # of 2 * heads * n * n scores


# The encoder.


@pytest.mark.parametrize("length", [LengthConfig(), DISTANCE, LengthConfig(base=50.0)])
def test_nothing_changes_at_the_training_length(length):
    encoder = random_encoder()
    plain_sam, adapted = with_length(encoder, OFF), with_length(encoder, length)
    assert list(adapted.state_dict()) == list(plain_sam.state_dict())
    with torch.no_grad():
        for size_hw in ((128, 128), (64, 256)):  # as many tokens
            pixels = torch.randn(1, 3, *size_hw)
            assert torch.equal(adapted(pixels), plain_sam(pixels))
        for size_hw in ((160, 160), (256, 128)):
            pixels = torch.randn(1, 3, *size_hw)
            difference = (adapted(pixels) - plain_sam(pixels)).abs().max()
            assert 1e-4 < difference < 10


def test_nothing_changes_for_a_whole_sam(golden):
    facts, tensors = golden("sam_tiny")
    state = {name: t for name, t in tensors.items() if "::" not in name}
    sam = from_official("sam", state, facts["constructor_args"])
    assert sam.config.encoder.length == LengthConfig()
    pixels = sam.preprocess(tensors["in::points::image_u8"][None], (128, 128))
    with torch.no_grad():
        found = sam.encode(pixels).embedding
        for length in (OFF, DISTANCE):
            assert torch.equal(adapt(sam, length).encode(pixels).embedding, found)


def test_a_zero_shot_distance_is_none_below_the_training_length():
    encoder = random_encoder()
    near, far = with_length(encoder, LengthConfig()), with_length(encoder, DISTANCE)
    pixels = torch.randn(1, 3, 96, 112)
    with torch.no_grad():
        assert torch.equal(near(pixels), far(pixels))


def test_the_distance_is_in_sides_of_the_training_grid():
    encoder = with_length(random_encoder(), DISTANCE)
    attn = encoder.blocks[1].attn
    assert attn._penalty(64) is None
    expected = torch.tensor(slopes(2)) * 0.7 * math.log(4) / 8
    assert torch.allclose(attn._penalty(256), expected)


def test_windows_keep_their_length():
    encoder = random_encoder()
    x = torch.randn(1, 17, 12, 32)
    with torch.no_grad():
        expected = with_length(encoder, OFF).blocks[0](x)
        for length in (LengthConfig(), DISTANCE, LEARNED):
            assert torch.equal(with_length(encoder, length).blocks[0](x), expected)


def test_a_learned_distance_acts_and_learns_at_the_training_length():
    encoder = with_length(random_encoder(), LEARNED)
    names = [name for name in encoder.state_dict() if name.endswith(".distance")]
    assert names == ["blocks.1.attn.distance"]
    assert encoder.blocks[1].attn.distance.item() == pytest.approx(0.1)
    pixels = torch.randn(1, 3, 128, 128)
    out = encoder(pixels)
    out.square().sum().backward()
    assert encoder.blocks[1].attn.distance.grad.abs().item() > 0
    with torch.no_grad():
        assert not torch.equal(out, with_length(encoder_without(encoder), OFF)(pixels))


def encoder_without(encoder):
    """SAM's part of an encoder."""
    other = ImageEncoderViT(replace(encoder.config, length=OFF)).eval()
    other.load_state_dict({n: t for n, t in encoder.state_dict().items() if "distance" not in n})
    return other


def symmetric(encoder):
    """Make rows and columns alike."""
    state = encoder.state_dict()
    for name, tensor in state.items():
        if name.endswith(("proj.weight", "neck.2.weight")) and tensor.ndim == 4:
            state[name] = (tensor + tensor.transpose(2, 3)) / 2
        elif name == "pos_embed":
            state[name] = (tensor + tensor.transpose(1, 2)) / 2
        elif name.endswith("rel_pos_w"):
            state[name] = state[name.replace("_w", "_h")]
    encoder.load_state_dict(state)
    return encoder


@pytest.mark.parametrize("length", [LengthConfig(), DISTANCE, LEARNED])
@pytest.mark.parametrize("size_hw", [(128, 128), (96, 208), (272, 160)])
def test_a_transposed_rectangle_gives_the_transposed(length, size_hw):
    encoder = with_length(symmetric(random_encoder()).double(), length)
    pixels = torch.randn(1, 3, *size_hw, dtype=torch.float64)
    with torch.no_grad():
        found = encoder(pixels.transpose(2, 3)).transpose(2, 3)
        assert (found - encoder(pixels)).abs().max() <= 1e-10


# Tables of positions are fitted once for pictures of one size.


def test_fitted_tables_are_kept_and_never_stale(monkeypatch):
    encoder = random_encoder()
    pixels = torch.randn(1, 3, 192, 160)
    with torch.no_grad():
        first = encoder(pixels)
        calls = []
        monkeypatch.setattr("anyres.models.vit._resized", lambda *a: calls.append(a))
        monkeypatch.setattr("anyres.models.vit.resize_relative_table", lambda *a: calls.append(a))
        assert torch.equal(encoder(pixels), first)
        assert torch.equal(encoder(pixels[..., :96])[0, 0, 0, :1].isfinite(), torch.tensor([True]))
        assert calls == []
        monkeypatch.undo()
        for parameter in (encoder.pos_embed, encoder.blocks[1].attn.rel_pos_h):
            parameter.data.mul_(-1)  # what torch's own versions do not count
            again = encoder(pixels)
            assert not torch.equal(again, first)
            assert torch.equal(again, with_length(encoder, LengthConfig())(pixels))
            first = again
        wide = with_length(encoder, LengthConfig()).double()(pixels.double())
        assert torch.equal(encoder.double()(pixels.double()), wide)


def test_fitted_tables_are_no_part_of_the_weights():
    encoder = random_encoder()
    names = list(encoder.state_dict())
    pixels = torch.randn(1, 3, 144, 160)
    with torch.inference_mode():
        inferred = encoder(pixels)
    assert list(encoder.state_dict()) == names
    copy = deepcopy(encoder)
    assert copy._fit._last is None
    assert encoder._fit._last is not None
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter is encoder.blocks[0].mlp.lin1.bias)
    # A later call with gradients for other weights may use what inference has made.
    out = encoder(pixels)
    out.sum().backward()
    assert torch.allclose(out, inferred, atol=1e-5)


def test_gradients_reach_fitted_tables():
    encoder = random_encoder()
    pixels = torch.randn(1, 3, 144, 160)
    with torch.no_grad():
        encoder(pixels)
    encoder(pixels).sum().backward()
    for table in (encoder.pos_embed, encoder.blocks[1].attn.rel_pos_h):
        assert table.grad.abs().sum() > 0


# Whole models and checkpoints.

TINY = replace(
    preset("sam_ti"),
    name="tiny",
    image_size=1024,
    encoder=ViTConfig(
        dim=16, blocks=2, heads=2, global_blocks=(1,), window=5, patch=64, image_size=1024, neck=128
    ),
)
OFFICIAL = LengthConfig(scale="official", bias="coefficient", official_size=1024)


def test_checkpoints_know_how_they_adapt(tmp_path):
    for length in (OFF, DISTANCE, LEARNED, OFFICIAL, LengthConfig(base=77.0)):
        config = replace(TINY, encoder=replace(TINY.encoder, length=length))
        weights.save(build(config), tmp_path / "model.safetensors")
        assert weights.load(tmp_path / "model.safetensors").config == config
        predictor = anyres.load(weights=tmp_path / "model.safetensors", device="cpu")
        assert predictor.model.image_encoder.blocks[1].attn.length == length


def test_a_configuration_from_before(tmp_path):
    tree = json.loads(TINY.to_json())
    del tree["encoder"]["length"]
    assert ModelConfig.from_json(json.dumps(tree)) == TINY
    tree["encoder"]["length"] = {"scale": "cubic"}
    with pytest.raises(WeightsError, match=r"LengthConfig\.scale.*cubic"):
        ModelConfig.from_json(json.dumps(tree))


@pytest.fixture
def sam_file(tmp_path, monkeypatch):
    """An official SAM's file, of a preset that is small."""
    monkeypatch.setitem(PRESETS, "sam_vit_b", replace(TINY, name="sam_vit_b"))
    torch.save(build(TINY).state_dict(), tmp_path / "sam.pth")
    return tmp_path / "sam.pth"


def test_a_sam_checkpoint_adapts_by_itself_or_as_told(sam_file):
    predictor = anyres.load("sam_vit_b", weights=sam_file, resolution=1536, device="cpu")
    assert predictor.model.config.encoder.length == LengthConfig()
    for length in (OFF, DISTANCE):
        told = anyres.load("sam_vit_b", weights=sam_file, length=length, device="cpu")
        assert told.model.config.encoder.length == length
        assert told.model.image_encoder.config.length == length
    for length in (LEARNED, LengthConfig(bias="coefficient")):
        with pytest.raises(InputError, match="parameters that these weights of sam_vit_b lack"):
            anyres.load("sam_vit_b", weights=sam_file, length=length)


def test_models_that_cannot_be_adapted(tmp_path, hrsam):
    with pytest.raises(InputError, match="hrsam_xs has no global attention"):
        adapt(hrsam, OFF)
    trained = build(replace(TINY, encoder=replace(TINY.encoder, length=LEARNED)))
    assert adapt(trained, LEARNED) is trained
    with pytest.raises(InputError, match="tiny were trained with LengthConfig"):
        adapt(trained, OFF)


def test_adapting_for_training():
    model = adapt(build(TINY).bfloat16(), LEARNED)
    parameter = model.image_encoder.blocks[1].attn.distance
    assert (parameter.dtype, parameter.requires_grad) == (torch.bfloat16, True)
    assert model.config.encoder.length == LEARNED


def test_whole_official_models_are_read(sam_file, tmp_path):
    built = build(
        replace(TINY, encoder=replace(TINY.encoder, length=OFFICIAL, absolute_positions=False))
    )
    arguments = {
        "ImageEncoderViT": {
            "embed_dim": 16, "depth": 2, "num_heads": 2, "out_chans": 128, "patch_size": 64,
            "use_abs_pos": False, "use_rel_pos": True, "window_size": 5,
            "global_attn_indexes": [1],
        },
        "TwoWayTransformer": {"num_heads": 4, "mlp_dim": 512},
        "MaskDecoder": {"iou_head_hidden_dim": 128},
    }  # fmt: skip
    state = built.state_dict()
    found = from_official("sam", state, arguments)
    assert found.config.encoder == built.config.encoder
    # Built for another size than that of its tables.
    arguments["ImageEncoderViT"]["img_size"] = 2048
    found = from_official("sam", state, arguments)
    assert (found.config.image_size, found.config.encoder.image_size) == (2048, 1024)
    assert found.config.encoder.length.official_size == 2048
    # By the name of the published model, and by itself.
    torch.save(state, tmp_path / "basam.pth")
    for name in ("sam_vit_b", "default"):
        found = load_weights(name, tmp_path / "basam.pth")
        assert found.config.encoder == built.config.encoder
        for key, tensor in found.state_dict().items():
            assert torch.equal(tensor, state[key])
    # With absolute positions their size is the model's, whatever that of its tables.
    positions = torch.randn(1, 32, 32, 16)
    torch.save(state | {"image_encoder.pos_embed": positions}, tmp_path / "larger.pth")
    found = load_weights("sam_vit_b", tmp_path / "larger.pth")
    assert (found.config.image_size, found.config.encoder.length.official_size) == (2048, 2048)
    assert torch.equal(found.image_encoder.pos_embed, positions)


@pytest.mark.parametrize("pad", ["square", "patch"])
def test_pictures_larger_than_in_training(sam, pad):
    predictor = Predictor(sam, resolution=300, pad=pad)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    masks, scores, logits = predictor.predict([[150, 100]], [1])
    assert masks.shape == (3, 200, 300)
    assert np.isfinite(scores).all()
    assert np.isfinite(logits).all()
