"""Masks between the logits' grid and the picture."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from anyres.geometry import Frame
from anyres.predict import postprocess
from anyres.predict.postprocess import MASK_LOGIT, mask_to_logits, upscale

SIZES = [(1, 1), (7, 5), (64, 48), (33, 100), (100, 3), (250, 199)]


def _logits(frame: Frame, *lead: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(frame.picture_hw))
    return torch.randn(*lead, *frame.logits_hw, generator=generator) * 5


def _sam_postprocess(logits: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Segment Anything's published steps, all masks at once."""
    x = F.interpolate(logits, frame.input_hw, mode="bilinear", align_corners=False)
    x = x[..., : frame.resized_hw[0], : frame.resized_hw[1]]
    return F.interpolate(x, frame.picture_hw, mode="bilinear", align_corners=False)


def _sample(logits: np.ndarray, frame: Frame) -> np.ndarray:
    """Slow twin of the single interpolation: pixel centres to cell centres, in float64."""
    weights = []
    for picture, resized, cells in zip(
        frame.picture_hw, frame.resized_hw, frame.logits_hw, strict=True
    ):
        matrix = np.zeros((picture, cells))
        last = -(-resized // 4) - 1
        for pixel in range(picture):
            at = (pixel + 0.5) * resized / picture / 4 - 0.5
            at = min(max(at, 0.0), last)
            low = int(at)
            matrix[pixel, low] += 1 - (at - low)
            matrix[pixel, min(low + 1, last)] += at - low
        weights.append(matrix)
    return weights[0] @ logits @ weights[1].T


@pytest.mark.parametrize("picture_hw", SIZES)
def test_two_steps_are_those_of_sam_bit_for_bit(picture_hw):
    frame = Frame.fit(picture_hw, long_side=128, pad="square")
    logits = _logits(frame, 2, 3)
    expected = _sam_postprocess(logits, frame)
    assert torch.equal(upscale(logits, frame, two_step=True), expected)
    assert torch.equal(upscale(logits, frame, two_step=True, threshold=0.5), expected > 0.5)


@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.integers(16, 130),
    st.sampled_from(["patch", "square"]),
)
def test_one_step_samples_at_the_pixel_centres(picture_hw, long_side, pad):
    frame = Frame.fit(picture_hw, long_side=long_side, pad=pad)
    logits = _logits(frame, 1, 1)
    expected = _sample(logits[0, 0].double().numpy(), frame)
    out = upscale(logits, frame, two_step=False)
    assert out.shape == (1, 1, *picture_hw)
    np.testing.assert_allclose(out[0, 0].numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("long_side", [250, 251, 333])
def test_a_ramp_stays_where_it_is_although_the_crop_is_not_whole_cells(long_side):
    frame = Frame.fit((400, 301), long_side=long_side, pad="patch")
    h, w = frame.logits_hw
    y, x = np.mgrid[:h, :w] * 4.0 + 2.0  # cell centres in pixels of the model input
    ramp = torch.from_numpy(3 * x - 2 * y).float()[None, None]
    out = upscale(ramp, frame, two_step=False)[0, 0].numpy()
    py, px = np.mgrid[:400, :301] + 0.5
    scale_y, scale_x = frame.resized_hw[0] / 400, frame.resized_hw[1] / 301
    expected = 3 * px * scale_x - 2 * py * scale_y
    inner = np.s_[8:-8, 8:-8]
    np.testing.assert_allclose(out[inner], expected[inner], atol=2e-3)


def test_padding_never_reaches_the_picture():
    frame = Frame.fit((90, 40), long_side=96, pad="square")
    logits = torch.zeros(1, 1, *frame.logits_hw)
    valid_w = -(-frame.resized_hw[1] // 4)
    logits[..., valid_w:] = 1e6
    assert float(upscale(logits, frame, two_step=False).abs().max()) == 0


@pytest.mark.parametrize("block", [1, 64, 1000, 10**9])
def test_blocks_of_rows_do_not_show(monkeypatch, block):
    frame = Frame.fit((61, 47), long_side=64, pad="patch")
    logits = _logits(frame, 1, 2)
    whole = upscale(logits, frame, two_step=False)
    monkeypatch.setattr(postprocess, "_BLOCK", {"cpu": block})
    assert torch.equal(upscale(logits, frame, two_step=False), whole)
    assert torch.equal(upscale(logits, frame, two_step=False, threshold=1.0), whole > 1.0)


def test_no_masks_in_no_masks_out():
    frame = Frame.fit((30, 40), long_side=64, pad="patch")
    out = upscale(torch.zeros(0, 3, *frame.logits_hw), frame, two_step=False, threshold=0.0)
    assert out.shape == (0, 3, 30, 40)
    assert out.dtype == torch.bool


@pytest.mark.parametrize("picture_hw", SIZES)
@pytest.mark.parametrize("pad", ["patch", "square"])
def test_a_mask_becomes_the_area_in_each_cell(picture_hw, pad):
    frame = Frame.fit(picture_hw, long_side=64, pad=pad)
    mask = np.random.default_rng(0).random(picture_hw) < 0.5
    # Every picture pixel cut into 16 x 16, each given to the cell in which it lies.
    fine = 16
    total, hits = np.zeros(frame.logits_hw), np.zeros(frame.logits_hw)
    rows, columns = (
        ((np.arange(n * fine) + 0.5) / fine * resized / n / 4).astype(int)
        for n, resized in zip(picture_hw, frame.resized_hw, strict=True)
    )
    pixels = np.repeat(np.repeat(mask, fine, 0), fine, 1)
    np.add.at(total, (rows[:, None], columns[None]), 1.0)
    np.add.at(hits, (rows[:, None], columns[None]), pixels)
    share = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    logits = mask_to_logits(mask, frame)
    assert logits.shape == (1, *frame.logits_hw)
    assert logits.dtype == np.float32
    # What is left is how finely the comparison cuts.
    np.testing.assert_allclose(logits[0] / MASK_LOGIT, 2 * share - 1, atol=0.16)
    assert np.all(logits[0][total == 0] == -MASK_LOGIT)


def test_a_mask_of_large_objects_survives_the_way_to_logits_and_back():
    y, x = np.mgrid[:300, :200]
    mask = (y - 140) ** 2 + (x - 90) ** 2 < 60**2
    frame = Frame.fit(mask.shape, long_side=256, pad="patch")
    logits = torch.from_numpy(mask_to_logits(mask, frame))[None]
    back = upscale(logits, frame, two_step=False, threshold=0.0)[0, 0].numpy()
    assert (back & mask).sum() / (back | mask).sum() > 0.98


def test_full_and_empty_masks_are_sure_everywhere_in_the_picture():
    frame = Frame.fit((301, 77), long_side=250, pad="patch")
    full = mask_to_logits(np.ones((301, 77), bool), frame)[0]
    valid_h, valid_w = (-(-side // 4) for side in frame.resized_hw)
    np.testing.assert_allclose(full[:valid_h, :valid_w], MASK_LOGIT, rtol=1e-6)
    assert np.all(full[valid_h:] == -MASK_LOGIT)
    assert np.all(mask_to_logits(np.zeros((301, 77), bool), frame) == -MASK_LOGIT)
