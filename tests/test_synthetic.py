"""Drawn objects: their masks are exact, they hide one another, and seeds repeat them."""

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from anyres.data import shapes  # noqa: E402
from anyres.data.synthetic import draw_shape, draw_wires  # noqa: E402


def noise(height=96, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("draw", shapes.SHAPES, ids=lambda draw: draw.__name__)
def test_shapes_are_there_and_not_everything(draw):
    shares = []
    for seed in range(30):
        alpha = draw((120, 160), np.random.default_rng(seed))
        assert alpha.shape == (120, 160)
        assert alpha.dtype == np.uint8
        shares.append(float((alpha > shapes.EDGE).mean()))
        again = draw((120, 160), np.random.default_rng(seed))
        np.testing.assert_array_equal(alpha, again)
    assert sum(share > 0.001 for share in shares) >= 27
    assert max(shares) < 0.8
    assert len(set(shares)) > 25


@pytest.mark.parametrize("draw", shapes.SHAPES, ids=lambda draw: draw.__name__)
def test_shapes_keep_their_form_at_another_size(draw):
    """The same seed at four times the size is the same shape, not another one."""
    ious = []
    for seed in range(12):
        small = draw((128, 128), np.random.default_rng(seed)) > shapes.EDGE
        large = draw((512, 512), np.random.default_rng(seed))
        shrunk = cv2.resize(large, (128, 128), interpolation=cv2.INTER_AREA) > shapes.EDGE
        if small.sum() > 200:
            ious.append((small & shrunk).sum() / (small | shrunk).sum())
    assert np.median(ious) > 0.6


def test_net_and_polygon_have_holes():
    for draw in (shapes.net, shapes.polygon, shapes.ring):
        holes = 0
        for seed in range(20):
            alpha = (draw((160, 160), np.random.default_rng(seed)) > shapes.EDGE).astype(np.uint8)
            _, hierarchy = cv2.findContours(alpha, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[:2]
            holes += hierarchy is not None and bool((hierarchy[0, :, 3] >= 0).any())
        assert holes > 5, draw.__name__


def test_wires_are_thin():
    shares = []
    for seed in range(30):
        made = shapes.wires((256, 256), np.random.default_rng(seed))
        assert 1 <= len(made) <= 10
        shares += [float((alpha > shapes.EDGE).mean()) for alpha, _ in made]
    assert np.median(shares) < 0.05
    assert max(shares) < 0.15


@pytest.mark.parametrize("kind", ["shape", "wires"])
def test_masks_are_exact(kind):
    """Pixels outside of what was covered keep their value but for shadows and soft borders."""
    texture = noise(80, 90, 1)
    drawn_over = 0
    for seed in range(40):
        image, rng = np.full((96, 128, 3), 120, np.uint8), np.random.default_rng(seed)
        drawn = draw_shape(image, rng, texture) if kind == "shape" else draw_wires(image, rng)
        if drawn is None:
            np.testing.assert_array_equal(image, 120)
            continue
        drawn_over += 1
        for mask in drawn.objects:
            assert set(np.unique(mask)) <= {0, 1}
            assert (mask & ~drawn.covered & 1).sum() == 0
        near = cv2.dilate(drawn.covered, np.ones((9, 9), np.uint8)) > 0
        # Beyond the border only shadows: never lighter than before.
        assert (image[~near] <= 120).mean() > 0.998
    assert drawn_over > 30


def test_parts_are_apart_and_make_the_whole():
    wholes = 0
    for seed in range(30):
        image = noise()
        drawn = draw_wires(image, np.random.default_rng(seed))
        if drawn is None or len(drawn.objects) == 1:
            continue
        wholes += 1
        whole, *parts = drawn.objects
        assert np.sum(parts, axis=0).max() == 1
        np.testing.assert_array_equal(np.bitwise_or.reduce(parts), whole)
    assert wholes > 10


def test_the_same_seed_draws_the_same():
    for seed in range(10):
        one, other = noise(), noise()
        first = draw_shape(one, np.random.default_rng(seed), noise(40, 50, 3))
        second = draw_shape(other, np.random.default_rng(seed), noise(40, 50, 3))
        np.testing.assert_array_equal(one, other)
        assert (first is None) == (second is None)
