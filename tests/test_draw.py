"""Overlays: what is painted where, at any size."""

import numpy as np
import pytest

from anyres.errors import InputError
from anyres.predict import draw
from anyres.predict.draw import overlay
from anyres.types import Prompt


def _grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def _is(out, colour):
    return (out == np.array(colour, np.uint8)).all(axis=2)


def test_tint_inside_and_a_line_of_two_tones_on_the_border():
    mask = np.zeros((200, 300), bool)
    mask[50:150, 100:250] = True
    image = _grey(200, 300)
    out = overlay(image, mask)
    assert np.array_equal(image, _grey(200, 300))
    light, dark = _is(out, draw.OUTLINE), _is(out, draw.OUTLINE_OUTSIDE)
    assert light.any()
    assert not light[~mask].any()
    assert dark.any()
    assert not dark[mask].any()
    inside = np.zeros_like(mask)
    inside[55:145, 105:245] = True
    assert len(np.unique(out[inside], axis=0)) == 1
    assert out[100, 150, 2] > 128 > out[100, 150, 0]
    far = np.zeros_like(mask)
    far[45:155, 95:255] = True
    assert np.array_equal(out[~far], image[~far])


@pytest.mark.parametrize(("side", "width"), [(300, 1), (1000, 2), (3000, 5)])
def test_lines_grow_with_the_picture(side, width):
    mask = np.zeros((side, side), bool)
    mask[side // 4 : side // 2, side // 4 : side // 2] = True
    row = _is(overlay(_grey(side, side), mask), draw.OUTLINE_OUTSIDE)[side // 3]
    assert row.sum() == 2 * width


def test_thin_things_and_the_border_of_the_picture_stay_visible():
    mask = np.zeros((400, 400), bool)
    mask[200] = True
    out = overlay(_grey(400, 400), mask)
    assert _is(out, draw.OUTLINE)[200].all()
    full = overlay(_grey(20, 30), np.ones((20, 30), bool))
    assert _is(full, draw.OUTLINE)[0].all()
    assert not _is(full, draw.OUTLINE)[10, 15]


def test_clicks_are_green_and_red_discs_at_their_place():
    prompt = Prompt(points=[[60, 40], [150, 100]], labels=[1, 0])
    out = overlay(_grey(200, 300), np.zeros((200, 300), bool), prompt)
    green, red = _is(out, draw.POSITIVE), _is(out, draw.NEGATIVE)
    for disc, (x, y) in ((green, (60, 40)), (red, (150, 100))):
        rows, columns = disc.nonzero()
        assert abs(rows.mean() - y) < 1
        assert abs(columns.mean() - x) < 1
        assert not disc[y, x]  # the sign
    assert _is(out, draw.OUTLINE)[38:43, 60].all()
    assert not _is(out, draw.OUTLINE)[97, 150]


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 50), (50, 1), (3, 200)])
def test_tiny_and_narrow_pictures(size_hw):
    height, width = size_hw
    prompt = Prompt(points=[[width, height], [0, 0]], labels=[1, 0], box=[0, 0, width, height])
    out = overlay(_grey(*size_hw), np.ones(size_hw, bool), prompt)
    assert out.shape == (*size_hw, 3)
    assert out.dtype == np.uint8


def test_a_box_is_drawn_on_its_border():
    prompt = Prompt(box=[50, 40, 250, 160])
    out = overlay(_grey(200, 300), np.zeros((200, 300), bool), prompt)
    rows, columns = _is(out, draw.BOX).nonzero()
    assert (rows.min(), rows.max() + 1) == (40, 160)
    assert (columns.min(), columns.max() + 1) == (50, 250)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (np.zeros((5, 5), np.uint8), np.zeros((5, 5), bool), "RGB"),
        (np.zeros((5, 5, 3)), np.zeros((5, 5), bool), "float64"),
        (np.zeros((5, 5, 3), np.uint8), np.zeros((5, 6), bool), r"\(5, 6\)"),
    ],
)
def test_shapes_that_do_not_fit(image, mask, message):
    with pytest.raises(InputError, match=message):
        overlay(image, mask)
