import sys

import numpy as np
import pytest

from anyres.data import augment
from anyres.data.augment import CutOut, paste, photometric
from anyres.errors import MissingExtraError

cv2 = pytest.importorskip("cv2")

GREEN = (10, 200, 30)


@pytest.fixture
def cut():
    mask = np.zeros((40, 60), np.uint8)
    mask[6:34, 6:54] = 1
    return CutOut(np.full((40, 60, 3), GREEN, np.uint8), mask, (False, False, False, False))


def _picture(height=96, width=128):
    return np.full((height, width, 3), 120, np.uint8)


def test_photometric_keeps_form_and_leaves_its_input_alone():
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)
    before = image.copy()
    changed = 0
    for seed in range(40):
        found = photometric(image, np.random.default_rng(seed))
        assert found.shape == image.shape
        assert found.dtype == np.uint8
        changed += int((found != image).any())
        np.testing.assert_array_equal(image, before)
        again = photometric(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, again)
    assert changed >= 38


def test_colour_keeps_greys_grey():
    grey = np.repeat(np.arange(0, 240, dtype=np.uint8)[:, None, None], 3, axis=2)
    for seed in range(20):
        found = augment._colour(grey, np.random.default_rng(seed))
        np.testing.assert_allclose(found.astype(int), grey.astype(int), atol=1)


def test_pasted_pixels_are_those_of_the_mask(cut):
    for seed in range(30):
        image, rng = _picture(), np.random.default_rng(seed)
        found = paste(image, cut, 50, rng, rotate=False)
        assert found is not None
        assert found.shape == image.shape[:2]
        assert set(np.unique(found)) <= {0, 1}
        # What was pasted is greener than the grey around it, shadow or not; its rim is mixed.
        green = image[..., 1].astype(int) - image[..., 0]
        solid = green > green.max() / 2
        kernel = np.ones((3, 3), np.uint8)
        assert solid[cv2.erode(found, kernel) > 0].all(), seed
        assert not solid[cv2.dilate(found, kernel) == 0].any(), seed


def test_extent_is_the_long_side_of_what_is_pasted(cut):
    for extent in (20, 40, 80):
        image = _picture(200, 200)
        found = paste(image, cut, extent, np.random.default_rng(3), rotate=False)
        rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
        long_side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        # The box of the cut-out has a margin: the object takes 48 of its 60 pixels.
        assert long_side == pytest.approx(extent * 48 / 60, rel=0.3)


def test_a_side_that_was_cut_off_goes_beyond_the_same_side(cut):
    below = CutOut(cut.image, np.ones((40, 60), np.uint8), (False, False, False, True))
    for seed in range(20):
        found = paste(_picture(), below, 50, np.random.default_rng(seed))
        assert found is not None
        assert found[-1].any(), seed
    across = CutOut(cut.image, cut.mask, (True, False, True, False))
    image = _picture()
    assert paste(image, across, 50, np.random.default_rng(0)) is None
    assert (image == 120).all()


def test_a_flipped_cut_out_swaps_left_and_right(cut):
    left = CutOut(cut.image, np.ones((40, 60), np.uint8), (True, False, False, False))
    sides = set()
    for seed in range(20):
        found = paste(_picture(), left, 50, np.random.default_rng(seed))
        assert found is not None
        assert found[:, 0].any() != found[:, -1].any()
        sides.add(bool(found[:, 0].any()))
    assert sides == {True, False}


def test_missing_opencv_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    augment.opencv.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r'pip install "anyres\[train\]"'):
            photometric(_picture(), np.random.default_rng(1))
    finally:
        augment.opencv.cache_clear()
