"""Reading pictures in other colours than sRGB: CMYK, Lab and ICC profiles."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import odd_pictures as odd
from anyres.data.images import read_image
from odd_pictures import RGB
from odd_pictures import encoded as save


def test_cmyk_white_is_white_and_black_is_black() -> None:
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, 16:, 3] = 255
    files = {
        "Adobe's JPEG": save(Image.fromarray(ink, "CMYK"), "JPEG", quality=100),
        "plain JPEG": odd.jpeg_without_adobe(ink),
        "TIFF": save(Image.fromarray(ink, "CMYK"), "TIFF"),
        "LZW": save(Image.fromarray(ink, "CMYK"), "TIFF", compression="tiff_lzw"),
    }
    for name, data in files.items():
        seen = read_image(data)
        assert seen[:, :15].min() >= 253, name
        assert seen[:, 17:].max() <= 2, name


def test_ycck_jpeg() -> None:
    # Inverted twice: Adobe stores 255 - ink, so that paper is Y = 0 and K = 255.
    assert read_image(odd.jpeg_ycck((0, 128, 128), 255)).min() >= 253
    assert read_image(odd.jpeg_ycck((255, 128, 128), 0)).max() <= 2
    red = read_image(odd.jpeg_ycck((179, 171, 0), 255)).mean(axis=(0, 1))  # C 0, M and Y full
    assert red[0] > 240
    assert red[1:].max() < 15


def test_cmyk_inks() -> None:
    inks = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 128]]], np.uint8)
    seen = read_image(save(Image.fromarray(inks, "CMYK"), "TIFF"))
    assert seen.tolist() == [[[0, 255, 255], [255, 0, 255], [255, 255, 0], [127] * 3]]


def test_cmyk_profile_is_used() -> None:
    inks = np.zeros((8, 16, 4), np.uint8)
    inks[:, 8:, 0] = 255
    image = Image.fromarray(inks, "CMYK")
    for form, options in (("TIFF", {}), ("JPEG", {"quality": 100})):
        seen = read_image(save(image, form, icc_profile=odd.profile("cmyk"), **options))
        assert seen[:, :7].min() >= 250
        red, green, blue = seen[4, 14].astype(int)
        assert green > red + 60  # the made-up profile says green where the formula says cyan
        assert green > blue + 60


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("kind", ["adobe", "p3"])
def test_wide_profiles_make_colours_stronger(kind: str, form: str) -> None:
    # (100, 160, 100) of a wider space is a stronger green in sRGB; greys hardly move.
    flat = np.full((16, 16, 3), (100, 160, 100), np.uint8)
    flat[:, 8:] = 128
    options = {"quality": 100} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    seen = read_image(save(Image.fromarray(flat), form, icc_profile=odd.profile(kind), **options))
    red, green, blue = seen[8, 2].astype(int)
    assert red < 92
    assert 155 <= green <= 168
    assert blue <= 101
    assert np.abs(seen[8, 13].astype(int) - 128).max() <= 2


def test_profile_numbers() -> None:
    # By hand: v^2.19921875 in Adobe RGB (1998), to XYZ, to linear sRGB, to sRGB.
    colour = np.array([200, 100, 50])
    linear = (colour / 255) ** (563 / 256)
    to_xyz = np.array(odd._ADOBE).T
    from_xyz = np.linalg.inv(np.array(odd._SRGB).T)
    srgb = from_xyz @ to_xyz @ linear
    expected = 255 * np.where(
        srgb <= 0.0031308, 12.92 * srgb, 1.055 * srgb.clip(0) ** (1 / 2.4) - 0.055
    )
    data = odd.png(np.array([[colour]]), 8, 2, odd.chunk(b"iCCP", _iccp("adobe")))
    assert np.abs(read_image(data)[0, 0] - expected.clip(0, 255)).max() <= 1.5
    deep = odd.png(np.array([[colour]]) * 257, 16, 2, odd.chunk(b"iCCP", _iccp("adobe")))
    assert np.array_equal(read_image(deep), read_image(data))
    rgba = odd.png(
        np.array([[[*colour, 0], [*colour, 255]]]), 8, 6, odd.chunk(b"iCCP", _iccp("adobe"))
    )
    assert read_image(rgba)[0].tolist() == [[255] * 3, read_image(data)[0, 0].tolist()]


def _iccp(kind: str) -> bytes:
    import zlib

    return b"name\0\0" + zlib.compress(odd.profile(kind))


def test_srgb_profiles_leave_values_alone() -> None:
    from PIL import ImageCms

    built_in = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (odd.profile("srgb"), built_in):
        seen = read_image(save(Image.fromarray(RGB), "PNG", icc_profile=profile))
        assert np.array_equal(seen, RGB)


def test_grey_profile() -> None:
    # Linear grey: half the light is 188 in sRGB.
    ramp = np.array([[0, 128, 255]], np.uint8)
    data = save(Image.fromarray(ramp), "PNG", icc_profile=odd.profile("grey"))
    assert np.abs(read_image(data)[0].astype(int) - [[0] * 3, [188] * 3, [255] * 3]).max() <= 1
    deep = odd.png(ramp[:, :, None].astype(int) * 257, 16, 0, odd.chunk(b"iCCP", _iccp("grey")))
    assert np.array_equal(read_image(deep), read_image(data))


def test_rgb_profile_on_grey_and_palette() -> None:
    grey = np.full((4, 4), 90, np.uint8)
    data = save(Image.fromarray(grey), "PNG", icc_profile=odd.profile("adobe"))
    assert np.abs(read_image(data).astype(int) - 90).max() <= 2
    image = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("L")
    image.putpalette([100, 160, 100])
    data = save(image, "PNG", icc_profile=odd.profile("adobe"))
    assert read_image(data)[0, 0, 0] < 92


@pytest.mark.parametrize(
    "profile", [b"nonsense" * 40, odd.profile("adobe")[:200], odd.profile("cmyk")]
)
def test_useless_profile_is_ignored_and_told_of(
    profile: bytes, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(save(Image.fromarray(RGB), "PNG", icc_profile=profile))
    assert np.array_equal(read_image(path), RGB)
    (record,) = caplog.records
    assert record.name == "anyres.data.images"
    assert record.levelno == logging.WARNING
    assert "picture.png" in record.getMessage()
    assert "profile is ignored" in record.getMessage()


def test_lab_tiff() -> None:
    from PIL import ImageCms

    colours = Image.new("RGB", (4, 4), (200, 60, 90))
    lab = ImageCms.profileToProfile(
        colours, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert np.abs(read_image(save(lab, "TIFF")).astype(int) - (200, 60, 90)).max() <= 4
