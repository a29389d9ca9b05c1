"""ResizeLongestSide is Segment Anything's, with a short side of at least one pixel."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyres.data.transforms import ResizeLongestSide
from anyres.errors import InputError
from anyres.geometry import Frame

CASES = [
    ((60, 80), 128),
    ((80, 60), 128),
    ((97, 53), 64),
    ((64, 64), 64),
    ((33, 47), 100),
    ((120, 50), 31),
    ((5, 200), 64),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0][0]}x{case[0][1]}_{case[1]}")
def case(request: pytest.FixtureRequest, golden: Any) -> Any:
    """The transform, the picture's size, and the golden's inputs and outputs for both."""
    size_hw, target_length = request.param
    facts, tensors = golden("sam_amg_utils")
    listed = facts["arguments"]["ResizeLongestSide (image hw, target_length)"]
    assert listed == [[list(size), length] for size, length in CASES]
    ending = f"_{size_hw[0]}x{size_hw[1]}_{target_length}"

    def find(name: str) -> torch.Tensor:
        found = tensors.get(f"{name}{ending}")
        return tensors[name] if found is None else found

    return ResizeLongestSide(target_length), size_hw, find


def test_pictures(case: Any) -> None:
    transform, _, find = case
    image = find("in::amg::image").numpy()
    resized = transform.apply_image(image)
    assert resized.dtype == np.uint8
    assert resized.flags.writeable
    np.testing.assert_array_equal(resized, find("out::amg::apply_image").numpy())


def test_pictures_in_torch(case: Any) -> None:
    transform, _, find = case
    image = find("in::amg::image").permute(2, 0, 1)[None].float()
    resized = transform.apply_image_torch(image)
    official = find("out::amg::apply_image_torch")
    assert resized.shape == official.shape
    assert (resized - official).abs().max() <= 1e-4 * official.abs().max()
    pillow = torch.from_numpy(transform.apply_image(find("in::amg::image").numpy()))
    assert (resized[0].permute(1, 2, 0) - pillow).abs().max() <= 1.01


@pytest.mark.parametrize(
    ("given_name", "answer"), [("coords", "apply_coords"), ("int_coords", "apply_coords_int")]
)
def test_coordinates(case: Any, given_name: str, answer: str) -> None:
    transform, size_hw, find = case
    coords = find(f"in::amg::{given_name}").numpy()
    before = coords.copy()
    result = transform.apply_coords(coords, size_hw)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, find(f"out::amg::{answer}").numpy(), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(coords, before)


def test_coordinates_in_torch(case: Any) -> None:
    transform, size_hw, find = case
    coords = find("in::amg::coords")
    before = coords.clone()
    result = transform.apply_coords_torch(coords, size_hw)
    official = find("out::amg::apply_coords_torch")
    assert result.dtype == official.dtype == torch.float32
    assert (result - official).abs().max() <= 1e-4 * max(1, official.abs().max())
    assert torch.equal(coords, before)


def test_boxes(case: Any) -> None:
    transform, size_hw, find = case
    boxes = find("in::amg::boxes")
    official = find("out::amg::apply_boxes")
    result = transform.apply_boxes(boxes.numpy(), size_hw)
    np.testing.assert_allclose(result, official.numpy(), rtol=0, atol=1e-9)
    in_torch = transform.apply_boxes_torch(boxes, size_hw)
    assert in_torch.dtype == torch.float32
    assert (in_torch - official).abs().max() <= 1e-4 * max(1, official.abs().max())
    one = transform.apply_boxes(boxes[0].numpy(), size_hw)
    np.testing.assert_array_equal(one, result[:1])
    assert torch.equal(transform.apply_boxes_torch(boxes[0], size_hw), in_torch[:1])


def test_sizes(golden: Any) -> None:
    facts, _ = golden("sam_amg_utils")
    for arguments, official in facts["get_preprocess_shape"]:
        ours = ResizeLongestSide.get_preprocess_shape(*arguments)
        assert ours == tuple(max(1, side) for side in official)


def test_a_thin_picture_keeps_a_row() -> None:
    transform = ResizeLongestSide(64)
    assert transform.apply_image(np.full((1, 3000, 3), 7, np.uint8)).shape == (1, 64, 3)
    assert transform.apply_image_torch(torch.ones(2, 3, 1, 3000)).shape == (2, 3, 1, 64)


def test_a_picture_with_swapped_channels_is_read_as_it_looks() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    transform = ResizeLongestSide(50)
    swapped = transform.apply_image(image[..., ::-1])
    np.testing.assert_array_equal(swapped, transform.apply_image(image)[..., ::-1])


@given(
    st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)),
    st.integers(16, 8192),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_coordinates_are_those_of_the_frame(
    size_hw: tuple[int, int], long_side: int, fraction: tuple[float, float]
) -> None:
    transform = ResizeLongestSide(long_side)
    xy = np.array([fraction]) * size_hw[::-1]
    frame = Frame.fit(size_hw, long_side=long_side, pad="square")
    numbers = transform.apply_coords(xy, size_hw)
    np.testing.assert_array_equal(numbers, frame.to_input(xy))
    in_torch = transform.apply_coords_torch(torch.from_numpy(xy), size_hw)
    np.testing.assert_allclose(in_torch.numpy(), numbers, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((3, 4, 4), np.uint8),
    ],
)
def test_other_pictures_are_refused(image: Any) -> None:
    with pytest.raises(InputError, match="read_image converts others"):
        ResizeLongestSide(64).apply_image(image)


def test_what_makes_no_sense_is_refused() -> None:
    transform = ResizeLongestSide(64)
    with pytest.raises(InputError, match="height of picture_hw is 0"):
        transform.apply_image(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"must be \(B, C, H, W\)"):
        transform.apply_image_torch(torch.zeros(3, 4, 4))
    with pytest.raises(InputError, match=r"must be \(\.\.\., 2\)"):
        transform.apply_coords(np.zeros((2, 3)), (4, 4))
    with pytest.raises(InputError, match=r"must be \(\.\.\., 2\)"):
        transform.apply_coords_torch(torch.zeros(2, 3), (4, 4))
    with pytest.raises(InputError, match=r"must be \(\.\.\., 4\)"):
        transform.apply_boxes(np.zeros((2, 6)), (4, 4))
    with pytest.raises(InputError, match=r"must be \(\.\.\., 4\)"):
        transform.apply_boxes_torch(torch.zeros(2, 6), (4, 4))
    with pytest.raises(InputError, match="width of picture_hw is 0"):
        transform.apply_coords_torch(torch.zeros(2, 2), (4, 0))
    for length in (0, -1, 64.0, "64"):
        with pytest.raises(InputError, match="long_side is"):
            ResizeLongestSide(length)  # type: ignore[arg-type]
