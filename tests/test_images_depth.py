"""Reading pictures of other depths than 8 bits, arrays and PIL images."""

import io

import numpy as np
import pytest
from PIL import Image

import odd_pictures as odd
from anyres.data.images import read_image, read_mask
from anyres.errors import ImageError, InputError
from odd_pictures import DEEP, GREY, RGB, deep_files
from odd_pictures import encoded as save

# --- more than 8 bits


@pytest.mark.parametrize("name", deep_files(DEEP))
def test_deep_colour(name: str) -> None:
    data = deep_files(DEEP)[name]
    assert np.array_equal(read_image(data), DEEP >> 8)
    assert np.array_equal(read_image(data, stretch="none"), DEEP >> 8)
    # The low bytes count too: 16-bit values from 1000 to 1255 have all one high byte or two.
    dim = deep_files(1000 + (DEEP >> 8))[name]
    seen = read_image(dim, stretch="minmax")
    assert np.array_equal(seen, DEEP >> 8)
    assert len(np.unique(read_image(dim, stretch="none"))) <= 2
    assert len(np.unique(read_image(dim))) > 200  # "auto" sees that there are 12 bits at most


def test_deep_colour_of_a_photo_is_the_8_bit_photo() -> None:
    for name, data in deep_files(RGB.astype(np.uint16) * 257).items():
        assert np.array_equal(read_image(data), RGB), name


@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_grey_tiff(order: str) -> None:
    deep = DEEP[:, :, 0].astype(f"{order}u2")
    for data in (odd.tiff(deep), odd.tiff_deflated(deep)):
        assert data[:2] == (b"MM" if order == ">" else b"II")
        assert np.array_equal(read_image(data)[:, :, 0], deep >> 8)
        assert np.array_equal(read_mask(data), deep)


def test_16_bit_grey_png_and_pgm() -> None:
    deep = DEEP[:, :, 1]
    png = odd.png(deep[:, :, None], 16, 0)
    pgm = b"P5 32 24 65535\n" + deep.astype(">u2").tobytes()
    for data in (png, pgm):
        assert np.array_equal(read_image(data)[:, :, 2], deep >> 8)
        assert np.array_equal(read_mask(data), deep)
        assert read_mask(data).dtype == np.uint16


def test_16_bit_grey_with_alpha_png() -> None:
    two = np.array([[[5140, 65535], [5140, 0], [5140, 32896]]])
    assert read_image(odd.png(two, 16, 4), stretch="none")[0, :, 0].tolist() == [20, 255, 137]


def test_white_is_zero() -> None:
    assert np.array_equal(read_image(odd.tiff(GREY, {262: 0}))[:, :, 0], 255 - GREY)
    deep = DEEP[:, :, 0]
    assert np.array_equal(read_image(odd.tiff(deep, {262: 0}))[:, :, 0], (65535 - deep) >> 8)


def test_12_bit_tiff_counts_as_full_range() -> None:
    values = np.array([0, 1000, 2000, 4095])
    bits = np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(4, 16)[:, 4:]
    packed = np.packbits(bits.ravel())[None]
    data = odd.tiff(packed, {256: 4, 257: 1, 258: 12})
    assert read_image(data)[0, :, 0].tolist() == [0, 62, 125, 255]


def test_signed_and_32_bit_tiff() -> None:
    ramp = np.linspace(-1000, 3000, 24 * 32).reshape(24, 32)
    for kind in ("<i2", ">i2", "<i4", ">i4"):
        data = odd.tiff(ramp.astype(kind))
        seen = read_image(data, stretch="minmax")[:, :, 0]
        assert np.abs(seen - (ramp + 1000) * 255 / 4000).max() <= 1
        with pytest.raises(ImageError, match="from -1000 to 3000"):
            read_image(data, stretch="none")
        assert np.array_equal(read_mask(data), ramp.astype(np.int32))


@pytest.mark.parametrize("order", ["<", ">"])
def test_float_tiff(order: str) -> None:
    unit = np.linspace(0, 1, 24 * 32, dtype=np.float32).reshape(24, 32)
    assert np.array_equal(
        read_image(odd.tiff(unit.astype(f"{order}f4")))[:, :, 0], np.rint(unit * 255)
    )
    heights = (unit * 2000 - 500).astype(f"{order}f4")
    seen = read_image(odd.tiff(heights))[:, :, 0]
    assert seen[0, 0] == 0
    assert seen[-1, -1] == 255
    assert np.abs(seen - ((unit - 0.005) * 255 / 0.99).clip(0, 255)).max() <= 1
    with pytest.raises(ImageError, match=r"-500 to 1500.*stretch='percentile'"):
        read_image(odd.tiff(heights), stretch="none")
    with pytest.raises(ImageError, match="floats"):
        read_mask(odd.tiff(heights))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<i2", ">i2", "<i4", ">i4"])
def test_tiff_with_a_codec_in_either_byte_order(kind: str) -> None:
    # Pillow 13.0.0 by itself swaps the bytes of the big-endian ones once too often.
    values = np.arange(24 * 32).reshape(24, 32)
    seen = read_image(odd.tiff_deflated(values.astype(kind)), stretch="minmax")[:, :, 0]
    assert np.array_equal(seen, np.floor(values * 255 / 767 + 0.5))


# --- stretch


def test_auto_stretch_knows_12_bits() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    seen = read_image(ramp)[:, :, 0]
    assert np.array_equal(seen, read_image(ramp, stretch="percentile")[:, :, 0])
    assert seen.min() == 0
    assert seen.max() == 255
    ramp[0, 0] = 4096  # one value of 13 bits, and all is as it is
    assert np.array_equal(read_image(ramp)[:, :, 0], ramp >> 8)


def test_percentile_clips_half_a_percent_at_either_end() -> None:
    values = np.arange(10_000, dtype=np.uint16).reshape(100, 100) + 20_000
    for array in (values, values.astype(np.float32), values.astype(np.int64) - 30_000):
        seen = read_image(array, stretch="percentile")[:, :, 0]
        assert 45 <= (seen == 0).sum() - 19 <= 70  # 19 or 20 values of the slope round to 0
        assert 45 <= (seen == 255).sum() - 19 <= 70
        assert np.abs(seen - ((values - 20_050.0) * 255 / 9900).clip(0, 255)).max() <= 1


def test_minmax_goes_over_the_channels_together() -> None:
    colour = np.array([[[100, 120, 140], [110, 130, 150]]], np.uint8)
    assert np.array_equal(read_image(colour), colour)
    assert read_image(colour, stretch="minmax").tolist() == [[[0, 102, 204], [51, 153, 255]]]
    with_alpha = np.dstack([colour, np.array([[255, 0]], np.uint8)])
    assert read_image(with_alpha, stretch="minmax").tolist() == [[[0, 102, 204], [255] * 3]]
    file = save(Image.fromarray(colour), "PNG")
    assert np.array_equal(read_image(file, stretch="minmax"), read_image(colour, stretch="minmax"))


def test_a_few_bright_spots_are_not_lost() -> None:
    dark = np.zeros((100, 100), np.uint16)
    dark[50, 50] = 3000
    seen = read_image(dark)
    assert seen[50, 50].tolist() == [255] * 3
    assert seen.sum() == 765


@pytest.mark.parametrize("stretch", ["auto", "minmax", "percentile"])
def test_one_value_throughout(stretch: str) -> None:
    shape = (4, 5)
    assert (read_image(np.full(shape, 2570, np.uint16), stretch=stretch) == 10).all()
    assert (read_image(np.full(shape, 7, np.uint8), stretch=stretch) == 7).all()
    assert (read_image(np.full(shape, 1e6), stretch=stretch) == 0).all()


def test_unknown_stretch() -> None:
    with pytest.raises(InputError, match=r"'best'.*percentile"):
        read_image(RGB, stretch="best")


# --- arrays and PIL images


def test_array_types() -> None:
    assert read_image(RGB) is RGB
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    same = [
        GREY,
        GREY[:, :, None],
        GREY.astype(np.int64),
        GREY.astype(np.uint16) * 257,
        (GREY.astype(np.uint16) * 257).astype(">u2"),
        GREY.astype(np.int32) * 257,
        (GREY / 255).astype(np.float32),
        GREY / 255,
        np.dstack([GREY, np.full_like(GREY, 255)]),
        np.asfortranarray(GREY),
    ]
    for array in same:
        seen = read_image(array)
        assert np.array_equal(seen, expected), array.dtype
        assert seen.flags.c_contiguous
        assert seen.flags.writeable
    half = read_image((GREY / 255).astype(np.float16))
    assert np.abs(half.astype(int) - expected).max() <= 1
    assert np.array_equal(read_image(GREY > 9)[:, :, 0], (GREY > 9) * np.uint8(255))


def test_array_that_cannot_be_written_to_is_copied() -> None:
    frozen = RGB.copy()
    frozen.flags.writeable = False
    seen = read_image(frozen)
    assert seen.flags.writeable
    assert np.array_equal(seen, RGB)
    flipped = read_image(RGB[:, ::-1])
    assert flipped.flags.c_contiguous
    assert np.array_equal(flipped, RGB[:, ::-1])


def test_no_data_is_black() -> None:
    floats = np.array([[np.nan, 0.5, 1.0]], np.float32)
    assert read_image(floats)[0, :, 0].tolist() == [0, 128, 255]
    beyond = np.array([[np.nan, -np.inf, 10, 20, np.inf]])
    assert read_image(beyond, stretch="minmax")[0, :, 0].tolist() == [0, 0, 0, 255, 255]
    with pytest.raises(ImageError, match="inf"):
        read_image(beyond, stretch="none")
    with pytest.raises(ImageError, match="no finite value"):
        read_image(np.full((3, 3), np.nan))
    signalling = np.array([[0x7F800001, 0x7F900000, 0]], np.uint32).view(np.float32)
    assert (read_image(signalling, stretch="percentile") == 0).all()
    assert (read_image(signalling) == 0).all()
    huge = np.array([[-1.7e308, 0, 1.7e308]])
    assert read_image(huge, stretch="minmax")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), "channels first.*transpose"),
        (np.zeros((20, 30, 8), np.uint16), "8 channels.*choose three"),
        (np.zeros((1, 20, 30, 3), np.uint8), "shape 1x20x30x3"),
        (np.zeros(5), "shape 5"),
        (np.zeros((0, 30, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.array([["a"]]), "dtype <U1"),
        (np.full((2, 2, 2), 3.0), "transparency of the array"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_image(array)


def test_other_things_that_are_no_pictures() -> None:
    with pytest.raises(InputError, match=r"file\.read\(\)"):
        read_image(io.BytesIO(b""))
    with pytest.raises(InputError, match="type list"):
        read_image([[1, 2], [3, 4]])
    tensor = type("Tensor", (), {"__module__": "torch"})()
    with pytest.raises(InputError, match="numpy"):
        read_image(tensor)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_every_pil_mode(mode: str) -> None:
    source = Image.fromarray(RGB)
    middle = {"La": "LA", "RGBa": "RGBA"}.get(mode, "RGB")
    image = source.convert("P").convert("PA") if mode == "PA" else source.convert(middle)
    image = image.convert(mode)
    expected = source.convert("L").convert("RGB") if mode == "La" else image.convert("RGB")
    assert np.array_equal(read_image(image), np.asarray(expected))
    assert image.mode == mode


def test_deep_pil_modes() -> None:
    deep = DEEP[:, :, 0]
    for mode in ("I;16", "I;16B", "I;16L"):
        image = Image.frombytes(mode, (32, 24), deep.astype(f"{'>' if mode[-1] == 'B' else '<'}u2"))
        assert np.array_equal(read_image(image)[:, :, 0], deep >> 8)
    assert np.array_equal(read_image(Image.fromarray(deep.astype(np.int32)))[:, :, 0], deep >> 8)
    floats = Image.fromarray((GREY / 255).astype(np.float32))
    assert np.array_equal(read_image(floats)[:, :, 0], GREY)


def test_pil_image_stays_as_it_is() -> None:
    with Image.open(io.BytesIO(save(Image.fromarray(RGB), "PNG", exif=odd.exif(6)))) as image:
        before = dict(image.info)
        assert read_image(image).shape == (32, 24, 3)
        assert image.size == (32, 24)
        assert image.info == before
        assert np.array_equal(np.asarray(image), RGB)
    closed = Image.open(io.BytesIO(save(Image.fromarray(RGB), "PNG")))
    closed.close()
    with pytest.raises(ImageError, match="the PIL image"):
        read_image(closed)
