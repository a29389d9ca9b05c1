"""SAM's image encoder and its attention."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from anyres.errors import InputError
from anyres.models.vit import ImageEncoderViT
from anyres.models.weights import from_official
from anyres.ops import grid_attention
from anyres.ops.attention import (
    add_relative,
    fit_relative_table,
    get_rel_pos,
    global_attention,
    window_attention,
)
from tiny import SMALL_VIT, random_encoder


def close(actual, expected, limit=1e-4):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    largest = max(1.0, expected.abs().max().item()) if limit == 1e-4 else 1.0
    assert (actual - expected).abs().max().item() <= limit * largest


# The plain twins of ops.attention, one query at a time and with every score in view.


def plain_attention(qkv_BhwC3, heads, tables):
    batch, height, width, _ = qkv_BhwC3.shape
    tokens = height * width
    q, k, v = (
        x.reshape(batch, tokens, heads, -1).transpose(1, 2) for x in qkv_BhwC3.chunk(3, dim=-1)
    )
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if tables is not None:
        for i in range(tokens):
            for j in range(tokens):
                down = i // width - j // width + (len(tables[0]) - 1) // 2
                right = i % width - j % width + (len(tables[1]) - 1) // 2
                scores[:, :, i, j] += q[:, :, i] @ tables[0][down]
                scores[:, :, i, j] += q[:, :, i] @ tables[1][right]
    out = scores.softmax(-1) @ v
    return out.transpose(1, 2).reshape(batch, height, width, -1)


def plain_windows(qkv_BhwC3, heads, window, padding, tables):
    out = torch.empty_like(qkv_BhwC3[..., : qkv_BhwC3.shape[-1] // 3])
    for top in range(0, qkv_BhwC3.shape[1], window):
        for left in range(0, qkv_BhwC3.shape[2], window):
            part = qkv_BhwC3[:, top : top + window, left : left + window]
            full = padding.repeat(len(part), window, window, 1)
            full[:, : part.shape[1], : part.shape[2]] = part
            attended = plain_attention(full, heads, tables)
            out[:, top : top + window, left : left + window] = attended[
                :, : part.shape[1], : part.shape[2]
            ]
    return out


@pytest.mark.parametrize("budget", [1, 40, 600, 2**19])
@pytest.mark.parametrize("grid_hw", [(5, 5), (3, 5), (6, 2)])
@pytest.mark.parametrize("relative", [True, False])
def test_global_attention_is_the_plain_one(monkeypatch, budget, grid_hw, relative):
    monkeypatch.setitem(grid_attention._SCORES, "cpu", budget)
    torch.manual_seed(1)
    qkv = torch.randn(2, *grid_hw, 24, dtype=torch.float64)
    side = max(grid_hw)
    tables = tuple(torch.randn(2, 2 * side - 1, 4, dtype=torch.float64)) if relative else None
    close(global_attention(qkv, 2, tables), plain_attention(qkv, 2, tables), 1e-12)


@pytest.mark.parametrize("budget", [1, 300, 2**19])
@pytest.mark.parametrize("grid_hw", [(6, 6), (7, 5), (2, 2), (1, 9)])
def test_window_attention_is_the_plain_one(monkeypatch, budget, grid_hw):
    monkeypatch.setitem(grid_attention._SCORES, "cpu", budget)
    torch.manual_seed(2)
    qkv = torch.randn(2, *grid_hw, 24, dtype=torch.float64)
    padding = torch.randn(24, dtype=torch.float64)
    tables = tuple(torch.randn(2, 5, 4, dtype=torch.float64))
    expected = plain_windows(qkv, 2, 3, padding, tables)
    close(window_attention(qkv, 2, 3, padding, tables), expected, 1e-12)


def test_attention_has_gradients():
    torch.manual_seed(3)
    qkv = torch.randn(1, 2, 3, 12, dtype=torch.float64, requires_grad=True)
    tables = tuple(torch.randn(2, 5, 2, dtype=torch.float64).requires_grad_().unbind())
    assert torch.autograd.gradcheck(lambda x, *t: global_attention(x, 2, t), (qkv, *tables))


def test_relative_positions_are_the_official_ones(golden):
    facts, tensors = golden("sam_rel_pos")
    cases = facts["cases"]["rel"]["get_rel_pos"]
    assert len(cases) == 6
    for q, k, rows in cases:
        found = get_rel_pos(q, k, tensors[f"in::rel::table_rows{rows}_{q}_{k}"])
        assert torch.equal(found, tensors[f"out::rel::rel_q{q}_k{k}_rows{rows}"])


def test_adding_relative_positions_is_official(golden):
    facts, tensors = golden("sam_rel_pos")
    height, width = facts["cases"]["rel"]["attn_hw"]
    q, scores = tensors["in::rel::q"], tensors["in::rel::attn"].clone()
    rows = get_rel_pos(height, height, tensors["in::rel::rel_h"])
    columns = get_rel_pos(width, width, tensors["in::rel::rel_w"])
    found = add_relative(scores, q.unflatten(1, (height, width)), rows, columns)
    close(found, tensors["out::rel::attn_plus_rel"])


def test_encoder_with_padded_windows_is_official(golden):
    facts, tensors = golden("sam_encoder_padded_windows")
    state = {name: t for name, t in tensors.items() if "::" not in name}
    encoder = from_official("sam", state, facts["constructor_args"])
    pixels = tensors["in::w3::x"] / 32
    seen = {}
    for i, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _m, _a, out, i=i: seen.update({f"block{i}": out}))
    with torch.no_grad():
        close(encoder(pixels), tensors["out::w3::image_embedding"])
        for name, out in seen.items():
            close(out, tensors[f"mid::w3::{name}"])
        assert len(seen) == 3
        exact = encoder.double()(pixels.double())
    close(exact, tensors["out::w3::image_embedding_f64"], 1e-9)


@pytest.mark.parametrize("size_hw", [(128, 128), (64, 128), (128, 48), (192, 80), (48, 32)])
def test_a_rectangle_has_the_positions_inside_its_square(size_hw):
    encoder = random_encoder(SMALL_VIT).double()
    height, width = (n // 16 for n in size_hw)
    side = max(height, width)
    zeros = torch.zeros(1, height, width, 32, dtype=torch.float64)
    square = torch.zeros(1, side, side, 32, dtype=torch.float64)
    whole = encoder._add_positions(square)
    assert torch.equal(encoder._add_positions(zeros), whole[:, :height, :width])
    table = encoder.blocks[1].attn.rel_pos_h
    whole = get_rel_pos(side, side, table)
    found = get_rel_pos(height, height, fit_relative_table(table, height, side))
    assert torch.equal(found, whole[:height, :height])


def test_at_the_training_length_tables_are_only_cropped():
    encoder = random_encoder(SMALL_VIT)
    table = encoder.blocks[1].attn.rel_pos_w
    assert table.shape == (15, 16)
    assert torch.equal(fit_relative_table(table, 8, 8), table)
    assert torch.equal(fit_relative_table(table, 3, 8), table[5:10])
    zeros = torch.zeros(1, 8, 3, 32)
    assert torch.equal(encoder._add_positions(zeros), encoder.pos_embed[:, :, :3])


def test_larger_grids_resize_by_the_long_side():
    encoder = random_encoder(SMALL_VIT)
    found = encoder._add_positions(torch.zeros(1, 4, 16, 32))
    table = encoder.pos_embed.permute(0, 3, 1, 2)
    whole = F.interpolate(table, size=(16, 16), mode="bicubic", align_corners=False)
    assert torch.equal(found, whole[:, :, :4].permute(0, 2, 3, 1))


@pytest.mark.parametrize("size_hw", [(128, 128), (80, 112), (256, 144), (16, 16)])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_batch_is_its_pictures_one_by_one(size_hw, absolute):
    config = replace(SMALL_VIT, absolute_positions=absolute, relative_positions=not absolute)
    encoder = random_encoder(config)
    pixels = torch.randn(3, 3, *size_hw)
    with torch.no_grad():
        together = encoder(pixels)
        alone = torch.cat([encoder(one[None]) for one in pixels])
    assert together.shape == (3, 16, size_hw[0] // 16, size_hw[1] // 16)
    close(together, alone, 1e-5)
    assert not torch.allclose(together[0], together[1])


def test_precision_is_the_modules():
    encoder = random_encoder(SMALL_VIT)
    pixels = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        single = encoder(pixels)
        half = encoder.bfloat16()(pixels.bfloat16())
        double = random_encoder(SMALL_VIT).double()(pixels.double())
    assert (single.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    close(single.double(), double, 1e-4)
    assert (half.float() - single).abs().mean() < 0.1 * single.abs().mean()


def test_sides_that_are_no_multiple_of_the_patch():
    with pytest.raises(InputError, match=r"multiples of 16, not \(1, 3, 128, 100\)"):
        ImageEncoderViT(SMALL_VIT)(torch.zeros(1, 3, 128, 100))
