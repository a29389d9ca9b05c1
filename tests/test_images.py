"""Reading pictures: formats, modes, orientation and transparency, with exact values."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import odd_pictures as odd
from anyres.data import pixels
from anyres.data.images import read_image, read_mask
from odd_pictures import GREY, RGB
from odd_pictures import encoded as save

# --- formats and modes


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
    ],
)
def test_lossless_formats_give_exact_values(tmp_path: Path, form: str, options: dict) -> None:
    path = tmp_path / "picture"  # no suffix: the content tells
    path.write_bytes(save(Image.fromarray(RGB), form, **options))
    seen = read_image(path)
    assert np.array_equal(seen, RGB)
    assert seen.dtype == np.uint8
    assert seen.flags.c_contiguous
    assert seen.flags.writeable
    assert np.array_equal(read_image(path.read_bytes()), RGB)
    assert np.array_equal(read_image(str(path)), RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_jpeg_is_what_pillow_decodes(options: dict) -> None:
    data = save(Image.fromarray(RGB), "JPEG", quality=95, **options)
    assert np.array_equal(read_image(data), np.asarray(Image.open(io.BytesIO(data))))


def test_avif() -> None:
    data = save(Image.fromarray(RGB), "AVIF", quality=100)
    assert np.abs(read_image(data).astype(int) - RGB).mean() < 6


def test_grey_formats_are_repeated_in_three_channels() -> None:
    grey = np.repeat(GREY[:, :, None], 3, axis=2)
    for form in ("PNG", "TIFF", "BMP", "PPM"):
        assert np.array_equal(read_image(save(Image.fromarray(GREY), form)), grey)
    data = save(Image.fromarray(GREY), "JPEG", quality=100)
    assert np.abs(read_image(data).astype(int) - grey).max() <= 3


def test_one_bit_is_black_and_white() -> None:
    bits = GREY > 40
    for form in ("PNG", "TIFF", "BMP", "PPM"):
        seen = read_image(save(Image.fromarray(bits), form))
        assert np.array_equal(seen[:, :, 1], bits * np.uint8(255))
    fax = save(Image.fromarray(bits), "TIFF", compression="group4")
    assert np.array_equal(read_image(fax)[:, :, 0], bits * np.uint8(255))


def test_palette() -> None:
    image = Image.fromarray(GREY % 5).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150])
    colours = np.arange(10, 151, 10).reshape(5, 3)[GREY % 5]
    for form in ("PNG", "GIF", "BMP", "TIFF"):
        assert np.array_equal(read_image(save(image, form)), colours)


def test_first_frame() -> None:
    frames = [Image.fromarray(frame) for frame in (RGB, RGB[::-1].copy(), RGB[:, ::-1].copy())]
    for form in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        data = save(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(read_image(data), RGB)
    greys = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    data = save(greys[0], "GIF", save_all=True, append_images=greys[1:])
    assert np.array_equal(read_image(data)[:, :, 0], GREY)


def test_further_pages_of_a_tiff_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    page = Image.fromarray(RGB)
    read_image(save(page, "TIFF"))
    assert caplog.messages == []
    read_image(save(page, "TIFF", save_all=True, append_images=[page]))
    assert caplog.messages == ["the picture has several pages; the first is read"]
    caplog.clear()
    overview = page.resize((16, 12))
    overview.encoderinfo = {"tiffinfo": {254: 1}}
    assert np.array_equal(
        read_image(save(page, "TIFF", save_all=True, append_images=[overview])), RGB
    )
    assert caplog.messages == []


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "LZW"])
def test_orientation(form: str, orientation: int) -> None:
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    options = {"LZW": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}}.get(form, {})
    form = "TIFF" if form == "LZW" else form
    plain = read_image(save(Image.fromarray(RGB), form, **options))
    marked = save(Image.fromarray(RGB), form, exif=odd.exif(orientation), **options)
    assert np.array_equal(read_image(marked), turn(plain))
    with Image.open(io.BytesIO(marked)) as image:
        assert np.array_equal(read_image(image), turn(plain))
    assert np.array_equal(pixels.turned(RGB, orientation), turn(RGB))
    assert pixels.turned(RGB, orientation).flags.c_contiguous


def test_orientation_of_deep_pictures_and_masks() -> None:
    exif = odd.chunk(b"eXIf", odd.exif(6)[6:])
    deep = odd.png(GREY.astype(np.uint16)[:, :, None] * 257, 16, 0, exif)
    assert np.array_equal(read_image(deep)[:, :, 0], np.rot90(GREY, -1))
    assert np.array_equal(read_mask(deep), np.rot90(GREY, -1).astype(np.uint16) * 257)
    assert np.array_equal(read_image(odd.tiff(RGB, {274: 6})), np.rot90(RGB, -1))
    assert np.array_equal(read_mask(odd.tiff(GREY, {274: 6})), np.rot90(GREY, -1))


def test_orientation_that_makes_no_sense_is_none() -> None:
    assert np.array_equal(read_image(save(Image.fromarray(RGB), "PNG", exif=odd.exif(9))), RGB)


# --- transparency


def test_alpha_is_over_white() -> None:
    alpha = np.array([[0, 64, 128, 255]], np.uint8)
    colour = np.array([[[10, 20, 30]] * 4], np.uint8)
    share = alpha[:, :, None] / 255
    expected = np.rint(colour * share + 255 * (1 - share))
    rgba = np.dstack([colour, alpha])
    for form, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        seen = read_image(save(Image.fromarray(rgba), form, **options))
        assert np.array_equal(seen, expected)
    grey = np.dstack([colour[:, :, 0], alpha])
    assert np.array_equal(
        read_image(save(Image.fromarray(grey), "PNG"))[:, :, 1], expected[:, :, 0]
    )
    assert np.array_equal(read_image(rgba), expected)
    assert np.array_equal(read_image(grey)[:, :, 2], expected[:, :, 0])
    premultiplied = Image.fromarray(rgba).convert("RGBa")
    assert np.abs(read_image(premultiplied) - expected).max() <= 2


@pytest.mark.parametrize("key", [b"\0\1", b"\0\2"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_value(bits: int, key: bytes) -> None:
    if bits == 1 and key == b"\0\2":
        key = b"\0\0"
    values = np.arange(min(2**bits, 8))
    if bits == 16:
        row = values[None, :, None]
    else:
        packed = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - bits :]
        row = np.packbits(packed.ravel())[None]
    data = odd.png(row, bits, 0, odd.chunk(b"tRNS", key), size=(len(values), 1))
    expected = values * 255 // (2**bits - 1)
    expected[key[1]] = 255
    assert np.array_equal(read_image(data, stretch="none")[0, :, 0], expected)


def test_transparent_colour_and_palette() -> None:
    data = odd.png(RGB, 8, 2, odd.chunk(b"tRNS", struct.pack(">3H", *RGB[3, 4])))
    expected = RGB.copy()
    expected[(RGB[3, 4] == RGB).all(axis=2)] = 255
    assert np.array_equal(read_image(data), expected)
    # A colour that differs from the key in its low byte only is opaque.
    deep = np.array([[[256, 512, 768], [257, 512, 768]]], np.uint16)
    data = odd.png(deep, 16, 2, odd.chunk(b"tRNS", struct.pack(">3H", 256, 512, 768)))
    assert read_image(data, stretch="none").tolist() == [[[255] * 3, [1, 2, 3]]]
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("L")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    data = save(image, "PNG", transparency=bytes([0, 128, 255]))
    half = [round(value * 128 / 255 + 127) for value in (40, 50, 60)]
    assert read_image(data).tolist() == [[[255] * 3, half, [70, 80, 90]]]
    assert read_image(save(image, "GIF", transparency=2)).tolist()[0][2] == [255] * 3
