"""What is odd, broken, too large or no picture at all: a picture, or plain words."""

import importlib.util
import io
import os
import random
import sys
import threading
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import odd_pictures as odd
from anyres.data import pixels
from anyres.data.images import read_image, read_mask
from anyres.errors import ImageError, MissingExtraError
from odd_pictures import DEEP, GREY, RGB, deep_files
from odd_pictures import encoded as save

# --- what cannot be read


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    return odd.fill(tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize("name", odd.readable())
def test_odd_pictures(name: str, folder: tuple[list[Path], list[Path]]) -> None:
    (path,) = (path for path in folder[0] if path.name == name)
    seen = read_image(path)
    shape = {"one_pixel.png": (1, 1), "one_row.png": (1, 32), "exif_rotated.jpg": (32, 24)}
    assert seen.shape == (*shape.get(name, (24, 32)), 3)
    assert np.array_equal(read_image(path.read_bytes()), seen)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.jpg", "is empty"),
        ("truncated.jpg", "damaged or incomplete.*truncated"),
        ("truncated.png", "damaged or incomplete.*truncated"),
        ("truncated.tif", "damaged or incomplete.*truncated"),
        ("only_a_header.png", "damaged or incomplete.*ends too early"),
        ("magic_only.tif", "damaged or incomplete.*ends too early"),
        ("text.png", "not a picture that can be read; those are .*JPEG.*PNG"),
        ("page.jpg", "web page"),
        ("lfs.png", "git lfs pull"),
        ("photo.heic", "HEIC photo; convert"),
        ("camera.dng", "camera raw"),
        ("no_pixels.png", "no pixels: it is 0x5"),
        ("forged_line.png", "no side can be over 1000000"),
        ("forged_square.png", "30000x30000 pixels, which its .* bytes cannot hold"),
        ("forged.bmp", "30000x30000 pixels, which its .* bytes cannot hold"),
        ("too_large.png", "100000x100000 = 10000000000 pixels, over the limit of 1000000000"),
        ("missing.png", "does not exist"),
        ("a_folder.png", "is a folder"),
    ],
)
def test_unreadable_pictures(name: str, words: str, folder: tuple[list[Path], list[Path]]) -> None:
    (path,) = (path for path in folder[1] if path.name == name)
    with pytest.raises(ImageError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is None  # no trace of how Pillow puts it
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    with pytest.raises(ImageError, match=words):
        read_mask(path)


def test_every_unreadable_picture_is_tested(folder: tuple[list[Path], list[Path]]) -> None:
    (marker,) = (m for m in test_unreadable_pictures.pytestmark if m.name == "parametrize")
    assert {case[0] for case in marker.args[1]} == {path.name for path in folder[1]}


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="pipe or device"):
        read_image(tmp_path / "pipe")
    with pytest.raises(ImageError, match="pipe or device"):
        read_image("/dev/zero")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("x" * 5000)
    with pytest.raises(ImageError, match="only local files"):
        read_image("https://example.org/cat.jpg")
    with pytest.raises(ImageError, match=r"Is a folder|is a folder"):
        read_image("")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(save(Image.fromarray(RGB), "PNG"))

    def refuse(self: Path, *args: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, who may read all
    with pytest.raises(ImageError, match=r"secret\.png may not be read: permission denied"):
        read_image(path)


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match="does not fit into memory"):
        read_image(save(Image.fromarray(GREY), "PNG"))


def test_limit_on_pixels() -> None:
    size = RGB.shape[0] * RGB.shape[1]
    image = Image.fromarray(RGB)
    forms = ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"]
    for source in [image, RGB, *(save(image, form) for form in forms)]:
        assert read_image(source, max_pixels=size).shape == RGB.shape
        with pytest.raises(
            ImageError, match=rf"32x24 = {size} pixels, over the limit of {size - 1}"
        ):
            read_image(source, max_pixels=size - 1)
    with pytest.raises(ImageError, match="over the limit of 10"):
        read_mask(save(image, "PNG"), max_pixels=10)


def test_limit_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("decoded")

    data = [save(Image.fromarray(RGB), form) for form in ("PNG", "JPEG", "TIFF", "WEBP", "GIF")]
    monkeypatch.setattr(Image.Image, "load", fail)
    for content in data:
        with pytest.raises(ImageError, match="over the limit"):
            read_image(content, max_pixels=100)


def test_no_picture_is_decoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ("PNG", "JPEG", "TIFF", "BMP", "GIF")
    files = {form: save(Image.fromarray(RGB), form, exif=odd.exif(6)) for form in forms}
    files |= deep_files(DEEP)
    calls: list[str] = []
    original = Image._getdecoder

    def count(mode: str, decoder: str, *args: Any) -> Any:
        calls.append(decoder)
        return original(mode, decoder, *args)

    monkeypatch.setattr(Image, "_getdecoder", count)
    for form, data in files.items():
        calls.clear()
        read_image(data)
        assert len(calls) == 1, form


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "LZW", "WEBP", "GIF", "BMP", "AVIF"])
def test_pillows_own_limit_neither_counts_nor_changes(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"compression": "tiff_lzw"} if form == "LZW" else {}
    if form in ("GIF", "WEBP"):
        options = {"save_all": True, "append_images": [Image.fromarray(RGB[::-1].copy())]}
    data = save(Image.fromarray(RGB), "TIFF" if form == "LZW" else form, **options)
    expected = read_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # 2 * 10 pixels are an error to Pillow
    assert np.array_equal(read_image(data), expected)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(ImageError):
        read_image(data[: len(data) // 2], max_pixels=10**6)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data)).load()


def test_large_pictures_go_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyres.data import unpacking

    rgba = np.dstack([RGB, GREY])
    files = [save(Image.fromarray(array), "PNG") for array in (RGB, GREY, rgba)]
    files.append(save(Image.fromarray(RGB), "PNG", icc_profile=odd.profile("adobe")))
    files += [odd.png(DEEP, 16, 2), save(Image.fromarray(RGB).quantize(9), "PNG")]
    whole = [read_image(data, stretch=way) for data in files for way in ("auto", "percentile")]
    monkeypatch.setattr(unpacking, "_BAND", 32 * 5)
    monkeypatch.setattr(pixels, "_BAND", 32 * 7)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    parts = [read_image(data, stretch=way) for data in files for way in ("auto", "percentile")]
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    image = Image.fromarray(RGB)
    files = [save(image, form) for form in ("WEBP", "GIF", "PNG", "TIFF", "JPEG")]
    expected = [read_image(data) for data in files]
    failures: list[object] = []

    def work() -> None:
        for _ in range(10):
            for data, seen in zip(files, expected, strict=True):
                try:
                    if not np.array_equal(read_image(data), seen):
                        failures.append("differs")
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Image.MAX_IMAGE_PIXELS == 10


def test_damaged_text_does_not_cost_the_picture() -> None:
    damaged = odd.chunk(b"tEXt", b"name\0value")[:-1] + b"\0"
    assert np.array_equal(read_image(odd.png(RGB, 8, 2, damaged)), RGB)
    whole = odd.png(RGB, 8, 2)
    late = whole[:-12] + odd.chunk(b"iTXt", b"k\0\1\0\0\0\xff") + damaged + whole[-12:]
    assert np.array_equal(read_image(late), RGB)


# --- TIFF that Pillow does not read


COLOUR_FLOATS = (RGB / 255).astype(np.float32)
RARE = {
    "float colour": (odd.tiff(COLOUR_FLOATS), "3 x 32 float bits"),
    "64-bit floats": (odd.tiff(GREY / 255), "1 x 64 float bits"),
    "planes": (
        odd.tiff(np.moveaxis(DEEP, 2, 0).copy(), {284: 2}),
        "3 x 16 bits in separate planes",
    ),
    "grey and alpha": (odd.tiff(DEEP[:, :, :2].copy(), {262: 1, 338: 2}), "2 x 16 bits"),
    "bands": (odd.tiff(np.dstack([DEEP] * 3), {262: 1, 338: (0,) * 8}), "9 x 16 bits"),
}
TIFFFILE = importlib.util.find_spec("tifffile") is not None


@pytest.mark.parametrize("name", RARE)
def test_rare_tiff_without_tifffile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, kind = RARE[name]
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingExtraError, match=rf"{kind}, which needs .*anyres\[bigimage\]"):
        read_image(data)
    with pytest.raises(ImageError, match="over the limit"):
        read_image(data, max_pixels=100)


@pytest.mark.skipif(not TIFFFILE, reason="tifffile is not installed")
def test_rare_tiff_with_tifffile() -> None:
    assert np.array_equal(read_image(RARE["float colour"][0]), RGB)
    assert np.array_equal(read_image(RARE["64-bit floats"][0])[:, :, 0], GREY)
    assert np.array_equal(read_image(RARE["planes"][0]), DEEP >> 8)
    over = read_image(RARE["grey and alpha"][0])[:, :, 0] / 255
    grey, alpha = DEEP[:, :, 0] / 65535, DEEP[:, :, 1] / 65535
    assert np.abs(over - (grey * alpha + 1 - alpha)).max() < 0.01
    with pytest.raises(ImageError, match="9 bands; choose three"):
        read_image(RARE["bands"][0])


def test_glue_to_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    class File:
        def __init__(self, file: object):
            page = types.SimpleNamespace(axes="YXS", photometric=2, extrasamples=())
            page.asarray = lambda: COLOUR_FLOATS
            page.iccprofile, page.tags = None, {274: types.SimpleNamespace(value=6)}
            self.pages = [page]

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *args: object) -> None:
            pass

    monkeypatch.setitem(sys.modules, "tifffile", types.SimpleNamespace(TiffFile=File))
    assert np.array_equal(read_image(RARE["float colour"][0]), np.rot90(RGB, -1))
    with pytest.raises(ImageError, match="floats"):
        read_mask(RARE["float colour"][0])


# --- anything at all


def valid_files() -> dict[str, bytes]:
    image = Image.fromarray(odd.photo(12, 16))
    animated = {"save_all": True, "append_images": [image.rotate(180)]}
    deep = odd.photo(12, 16).astype(np.uint16) * 257
    return {
        "jpeg": save(image, "JPEG", exif=odd.exif(6), icc_profile=odd.profile("adobe")),
        "progressive": save(image, "JPEG", progressive=True),
        "cmyk": save(image.convert("CMYK"), "JPEG"),
        "png": save(image, "PNG", exif=odd.exif(8), icc_profile=odd.profile("adobe")),
        "apng": save(image, "PNG", **animated),
        "png16": odd.png(deep, 16, 2, odd.chunk(b"tRNS", b"\0\1\0\2\0\3")),
        "palette": save(image.quantize(8), "PNG", transparency=3),
        "tiff": save(image, "TIFF", exif=odd.exif(5), **animated),
        "lzw": save(image, "TIFF", compression="tiff_lzw"),
        "tiff16": odd.tiff(deep),
        "float": odd.tiff(deep[:, :, 0].astype(np.float32)),
        "webp": save(image.convert("RGBA"), "WEBP", exif=odd.exif(3)),
        "animated webp": save(image, "WEBP", **animated),
        "gif": save(image, "GIF", transparency=2, **animated),
        "bmp": save(image, "BMP"),
        "jp2": save(image, "JPEG2000"),
        "avif": save(image, "AVIF"),
        "ppm": save(image, "PPM"),
        "plain ppm": b"P3 4 2 255 " + b"1 2 3 " * 8,
    }


VALID = valid_files()


def gives_picture_or_error(data: bytes) -> bool:
    try:
        seen = read_image(data, max_pixels=10**6)
    except (ImageError, MissingExtraError):
        return False
    assert seen.dtype == np.uint8
    assert seen.ndim == 3
    assert seen.shape[2] == 3
    return True


@pytest.mark.parametrize("name", VALID)
def test_damaged_files_give_a_picture_or_an_error(name: str) -> None:
    data = VALID[name]
    assert gives_picture_or_error(data)
    chance = random.Random(name)
    for _ in range(25):
        gives_picture_or_error(data[: chance.randrange(len(data))])
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 4, 16))):
            end = len(data) if chance.random() < 0.5 else min(len(data), 150)
            damaged[chance.randrange(end)] = chance.randrange(256)
        gives_picture_or_error(bytes(damaged))


@pytest.mark.parametrize(
    "name", ["jpeg", "png", "tiff", "lzw", "bmp", "ppm", "gif", "webp", "avif"]
)
def test_no_truncated_file_gives_a_picture(name: str) -> None:
    data = save(Image.fromarray(RGB), {"lzw": "TIFF", "ppm": "PPM"}.get(name, name.upper()))
    for share in (0.2, 0.5, 0.8):
        assert not gives_picture_or_error(data[: int(len(data) * share)]), share


@settings(max_examples=150)
@given(st.sampled_from(sorted(VALID)), st.binary(max_size=200), st.integers(2, 40))
def test_anything_behind_the_first_bytes(name: str, tail: bytes, keep: int) -> None:
    gives_picture_or_error(VALID[name][:keep] + tail)


@settings(max_examples=60)
@given(st.binary(max_size=100))
def test_any_bytes(data: bytes) -> None:
    gives_picture_or_error(data)
