"""BA-SAM: what the official code computed, and SAM at other lengths."""

import json
import math
from dataclasses import replace

import pytest
import torch

from anyres.errors import InputError, WeightsError
from anyres.models import weights
from anyres.models.basam import adapt
from anyres.models.build import build
from anyres.models.config import ModelConfig, ViTConfig, preset
from anyres.models.vit import ImageEncoderViT
from anyres.models.weights import from_official, load_weights
from anyres.ops import attention
from anyres.ops.attention import add_relative, get_rel_pos, global_attention
from anyres.ops.length import LengthConfig, attention_scale, mobile_scale, slopes

OFF = LengthConfig(scale="none")
DISTANCE = LengthConfig(bias="distance", coefficient=0.7)
LEARNED = LengthConfig(bias="distance", learnable=True)
SMALL = ViTConfig(
    dim=32, blocks=3, heads=2, global_blocks=(1,), window=3, patch=16, image_size=128, neck=16
)


def random_encoder(config=SMALL, seed=0):
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return encoder


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
    for q, k, rows in cases:
        found = get_rel_pos(q, k, tensors[f"in::rel::table_rows{rows}_{q}_{k}"])
        assert torch.equal(found, tensors[f"out::rel::rel_q{q}_k{k}_rows{rows}"])
    height, width = facts["rel"]["attn_hw"]
    coefficient = tensors["in::rel::coefficient"]
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
