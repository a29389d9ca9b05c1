"""One frame over another: sizes, conversions, and the way back."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyres.errors import InputError
from anyres.geometry import Frame, longest_side_hw

# From a pixel to the largest scans, at any proportion: 1:50 and far beyond.
SIZES = st.tuples(st.integers(1, 60_000), st.integers(1, 60_000))
PADS = st.sampled_from(["square", "patch"])
EXTREMES = [(1, 1), (40_000, 60_000), (60_000, 40_000), (800, 40_000), (40_000, 800), (1, 60_000)]


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    patch = draw(st.sampled_from([4, 8, 14, 16, 32]))
    return Frame.fit(
        draw(SIZES), long_side=draw(st.integers(patch, 8192)), patch=patch, pad=draw(PADS)
    )


def frame_of(picture_hw: tuple[int, int], **options: Any) -> Frame:
    return Frame.fit(picture_hw, **({"long_side": 1024, "pad": "square"} | options))


@pytest.mark.parametrize(
    ("picture_hw", "options", "resized_hw", "input_hw", "grid_hw"),
    [
        ((480, 640), {}, (768, 1024), (1024, 1024), (64, 64)),
        ((480, 640), {"pad": "patch"}, (768, 1024), (768, 1024), (48, 64)),
        ((640, 480), {"pad": "patch"}, (1024, 768), (1024, 768), (64, 48)),
        ((301, 400), {"pad": "patch"}, (771, 1024), (784, 1024), (49, 64)),
        ((301, 400), {"long_side": 1000}, (753, 1000), (1008, 1008), (63, 63)),
        ((301, 400), {"long_side": 1000, "pad": "patch"}, (753, 1000), (768, 1008), (48, 63)),
        ((1, 3000), {"pad": "patch"}, (1, 1024), (16, 1024), (1, 64)),
        ((1, 1), {}, (1024, 1024), (1024, 1024), (64, 64)),
        ((7, 5), {"long_side": 8, "patch": 8}, (8, 6), (8, 8), (1, 1)),
    ],
)
def test_sizes(
    picture_hw: tuple[int, int],
    options: dict[str, Any],
    resized_hw: tuple[int, int],
    input_hw: tuple[int, int],
    grid_hw: tuple[int, int],
) -> None:
    frame = frame_of(picture_hw, **options)
    assert frame.picture_hw == picture_hw
    assert frame.resized_hw == resized_hw
    assert frame.input_hw == input_hw
    assert frame.grid_hw == grid_hw
    assert frame.logits_hw == (4 * grid_hw[0], 4 * grid_hw[1])
    assert frame.long_side == max(input_hw)


def test_sizes_are_segment_anythings(golden: Any) -> None:
    facts, _ = golden("sam_amg_utils")
    assert facts["get_preprocess_shape"]
    for (height, width, long_side), official in facts["get_preprocess_shape"]:
        ours = longest_side_hw((height, width), long_side)
        # A side of 0 pixels is the one official answer that is of no use.
        assert ours == tuple(max(1, side) for side in official)


@given(frames())
def test_the_picture_fits_with_as_little_padding_as_possible(frame: Frame) -> None:
    square = frame.input_hw[0] == frame.input_hw[1]
    for axis, (resized, side) in enumerate(zip(frame.resized_hw, frame.input_hw, strict=True)):
        assert 1 <= resized <= side
        assert side % frame.patch == 0
        exact = frame.picture_hw[axis] * max(frame.resized_hw) / max(frame.picture_hw)
        assert abs(resized - exact) <= 0.5 + 1e-9 or (resized == 1 and exact < 0.5)
        if not square:
            assert side - resized < frame.patch
    assert frame.long_side - max(frame.resized_hw) < frame.patch


@given(frames(), st.data())
def test_every_conversion_has_its_inverse(frame: Frame, data: st.DataObject) -> None:
    height, width = frame.picture_hw
    # Half a picture beyond the borders, too: crops and boxes may reach outside.
    fractions = data.draw(st.lists(st.tuples(*[st.floats(-0.5, 1.5)] * 4), min_size=1, max_size=8))
    xyxy = np.array(fractions) * (width, height, width, height)
    xy = xyxy[:, :2]
    there = frame.to_input(xy)
    assert np.abs(frame.to_picture(there) - xy).max() <= 1e-6
    assert np.abs(frame.grid_to_input(frame.input_to_grid(there)) - there).max() <= 1e-6
    assert np.abs(frame.logits_to_input(frame.input_to_logits(there)) - there).max() <= 1e-6
    assert np.abs(frame.box_to_picture(frame.box_to_input(xyxy)) - xyxy).max() <= 1e-6
    whole = frame.input_to_logits(there)
    back = frame.to_picture(frame.logits_to_input(whole))
    assert np.abs(back - xy).max() <= 1e-6


@pytest.mark.parametrize("picture_hw", EXTREMES)
@pytest.mark.parametrize("pad", ["square", "patch"])
@pytest.mark.parametrize("long_side", [16, 1000, 1024, 8192])
def test_no_pixel_is_lost_at_the_extremes(
    picture_hw: tuple[int, int], pad: str, long_side: int
) -> None:
    frame = frame_of(picture_hw, pad=pad, long_side=long_side)
    for axis, (picture, resized) in enumerate(zip(picture_hw, frame.resized_hw, strict=True)):
        xy = np.zeros((picture, 2))
        xy[:, 1 - axis] = np.arange(picture) + 0.5
        there = frame.to_input(xy)
        assert there[:, 1 - axis].min() > 0
        assert there[:, 1 - axis].max() < resized
        assert np.abs(frame.to_picture(there) - xy).max() <= 1e-6


@given(frames())
@example(frame_of((1, 60_000)))
def test_borders_go_to_borders(frame: Frame) -> None:
    np.testing.assert_array_equal(frame.to_input([0, 0]), [0, 0])
    np.testing.assert_allclose(frame.to_input(frame.picture_hw[::-1]), frame.resized_hw[::-1])
    model_wh = frame.input_hw[::-1]
    np.testing.assert_allclose(frame.input_to_grid(model_wh), frame.grid_hw[::-1])
    np.testing.assert_allclose(frame.input_to_logits(model_wh), frame.logits_hw[::-1])
    np.testing.assert_array_equal(frame.grid_to_input([1, 1]), [frame.patch, frame.patch])
    np.testing.assert_allclose(frame.logits_to_input([4, 4]), [frame.patch, frame.patch])


def test_x_goes_with_the_width_and_y_with_the_height() -> None:
    # 683 of 682.67 rows: the two axes have different scales.
    frame = frame_of((1365, 2048))
    assert frame.resized_hw == (683, 1024)
    np.testing.assert_allclose(frame.to_input([100, 100]), [50, 100 * 683 / 1365], rtol=1e-15)
    np.testing.assert_allclose(
        frame.box_to_input([0, 100, 100, 200]), [0, 100 * 683 / 1365, 50, 200 * 683 / 1365]
    )
    np.testing.assert_array_equal(frame.input_to_grid([50, 24]), [3.125, 1.5])
    np.testing.assert_array_equal(frame.input_to_logits([50, 24]), [12.5, 6])


@given(frames(), st.data())
def test_boxes_are_converted_like_their_corners(frame: Frame, data: st.DataObject) -> None:
    number = st.floats(-1e5, 1e5)
    box = np.array(data.draw(st.tuples(number, number, number, number)))
    corners = box.reshape(2, 2)
    np.testing.assert_array_equal(frame.box_to_input(box), frame.to_input(corners).ravel())
    np.testing.assert_array_equal(frame.box_to_picture(box), frame.to_picture(corners).ravel())


CONVERSIONS = {
    "to_input": 2,
    "to_picture": 2,
    "input_to_grid": 2,
    "grid_to_input": 2,
    "input_to_logits": 2,
    "logits_to_input": 2,
    "box_to_input": 4,
    "box_to_picture": 4,
}


@pytest.mark.parametrize(("name", "axis"), CONVERSIONS.items())
def test_any_shape_and_type_is_taken_and_nothing_is_changed(name: str, axis: int) -> None:
    convert = getattr(frame_of((300, 400)), name)
    for shape in [(axis,), (0, axis), (5, axis), (2, 3, axis)]:
        for kind in (np.int32, np.float32, np.uint8, np.float64):
            given_array = np.ones(shape, kind)
            result = convert(given_array)
            assert result.shape == shape
            assert result.dtype == np.float64
            assert not np.shares_memory(result, given_array)
            assert (given_array == 1).all()
    np.testing.assert_array_equal(convert([1] * axis), convert(np.ones(axis)))


@pytest.mark.parametrize(("name", "axis"), CONVERSIONS.items())
def test_coordinates_that_make_no_sense_are_refused(name: str, axis: int) -> None:
    convert = getattr(frame_of((300, 400)), name)
    for wrong in (1.0, [1.0] * (axis + 1), np.ones((axis, 3)), [[]]):
        with pytest.raises(InputError, match=rf"must be \(\.\.\., {axis}\)"):
            convert(wrong)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="NaN or infinite"):
            convert([1.0] * (axis - 1) + [value])
    for wrong in ([True] * axis, ["1"] * axis, [None] * axis, [1j] * axis):
        with pytest.raises(InputError, match="real numbers"):
            convert(wrong)
    with pytest.raises(InputError, match="one array"):
        convert([[1.0] * axis, [1.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"picture_hw": (0, 640)}, "height of picture_hw is 0"),
        ({"picture_hw": (480, -1)}, "width of picture_hw is -1"),
        ({"picture_hw": (480.5, 640)}, "height of picture_hw is 480.5"),
        ({"picture_hw": (True, 640)}, "height of picture_hw is True"),
        ({"picture_hw": (float("nan"), 640)}, "height of picture_hw is nan"),
        ({"picture_hw": (480, 640, 3)}, r"picture_hw is \(480, 640, 3\); it must be \(height, wi"),
        ({"picture_hw": 480}, r"picture_hw is 480; it must be \(height, width\)"),
        ({"long_side": 0}, "long_side is 0"),
        ({"long_side": 512.0}, "long_side is 512.0"),
        ({"long_side": "native"}, "long_side is 'native'"),
        ({"long_side": 15}, "15 pixels is smaller than one patch of 16"),
        ({"patch": 0}, "patch is 0"),
        ({"pad": "Square"}, "pad is 'Square'; it must be 'square' or 'patch'"),
    ],
)
def test_a_fit_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    plain = {"picture_hw": (480, 640), "long_side": 512, "patch": 16, "pad": "patch"}
    Frame.fit(**plain)
    with pytest.raises(InputError, match=message):
        Frame.fit(**(plain | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resized_hw": (65, 64)}, r"picture \(65, 64\) is larger than the model input \(64, 64\)"),
        ({"input_hw": (64, 70)}, r"\(64, 70\) .* no multiple of the patch 16"),
        ({"input_hw": (64, 0)}, "width of input_hw is 0"),
        ({"resized_hw": None}, "resized_hw is None"),
        ({"patch": 1.5}, "patch is 1.5"),
    ],
)
def test_a_frame_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    plain = {"picture_hw": (48, 64), "resized_hw": (48, 64), "input_hw": (64, 64), "patch": 16}
    Frame(**plain)
    with pytest.raises(InputError, match=message):
        Frame(**(plain | arguments))


def test_a_frame_is_a_value() -> None:
    frame = frame_of((480, 640))
    # As read from a JSON file, or from numpy.
    again = Frame([480, 640], np.array([768, 1024]), (np.int64(1024), 1024), np.int32(16))  # type: ignore[arg-type]
    assert frame == again
    assert hash(frame) == hash(again)
    assert type(again.input_hw[0]) is int
    assert frame != frame_of((480, 641))
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.patch = 8  # type: ignore[misc]
