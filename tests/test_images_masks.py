"""Reading maps as they are stored, and writing PNG files whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import odd_pictures as odd
from anyres.data import pixels
from anyres.data.images import read_mask, write_png
from anyres.errors import ImageError, InputError, OutputError
from odd_pictures import DEEP, GREY, RGB
from odd_pictures import encoded as save

# --- masks


def test_masks_as_stored(tmp_path: Path) -> None:
    ids = (GREY // 10).astype(np.uint8)
    palette = Image.fromarray(ids).convert("L")
    palette.putpalette([at * 7 % 256 for at in range(768)])
    cases = {
        "grey": (save(Image.fromarray(ids), "PNG"), ids),
        "palette": (save(palette, "PNG"), ids),
        "palette, transparent": (save(palette, "PNG", transparency=0), ids),
        "palette GIF": (save(palette, "GIF", optimize=False), ids),
        "bits": (save(Image.fromarray(ids > 3), "PNG"), (ids > 3) * np.uint8(255)),
        "16 bits": (odd.png(ids[:, :, None] * np.uint16(300), 16, 0), ids * np.uint16(300)),
        "16-bit TIFF": (odd.tiff(ids * np.uint16(300)), ids * np.uint16(300)),
        "colour": (save(Image.fromarray(np.dstack([ids] * 3)), "PNG"), ids),
        "colour, opaque": (save(Image.fromarray(np.dstack([ids] * 3)).convert("RGBA"), "PNG"), ids),
        "16-bit colour": (
            odd.png(np.dstack([ids * np.uint16(300)] * 3), 16, 2),
            ids * np.uint16(300),
        ),
        "grey, opaque": (save(Image.fromarray(ids).convert("LA"), "PNG"), ids),
        "profile": (save(Image.fromarray(ids), "PNG", icc_profile=odd.profile("grey")), ids),
    }
    for name, (data, expected) in cases.items():
        path = tmp_path / "mask.png"
        path.write_bytes(data)
        mask = read_mask(path, size_hw=ids.shape)
        assert np.array_equal(mask, expected), name
        assert mask.dtype == expected.dtype, name
        assert mask.flags.c_contiguous, name
        assert mask.flags.writeable, name


def test_masks_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(ImageError, match="the picture is in colour"):
        read_mask(save(Image.fromarray(RGB), "PNG"))
    with pytest.raises(ImageError, match="partly transparent"):
        read_mask(save(Image.fromarray(np.dstack([GREY, GREY])), "PNG"))
    with pytest.raises(ImageError, match="CMYK picture"):
        read_mask(save(Image.fromarray(RGB).convert("CMYK"), "TIFF"))
    path.write_bytes(save(Image.fromarray(GREY), "PNG"))
    with pytest.raises(ImageError, match=r"mask\.png is 32x24 pixels and should be 32x25"):
        read_mask(path, size_hw=(25, 32))
    with pytest.raises(ImageError, match=r"mask\.png is 32x24 pixels and should be 24x32"):
        read_mask(path, size_hw=(32, 24))


def test_mask_size_is_checked_before_decoding() -> None:
    data = save(Image.fromarray(GREY), "PNG")
    with pytest.raises(ImageError, match="should be 10x10"):
        read_mask(data[:60], size_hw=(10, 10))
    with pytest.raises(ImageError, match="damaged or incomplete"):
        read_mask(data[:60], size_hw=(24, 32))
    turned = save(Image.fromarray(GREY), "PNG", exif=odd.exif(6))
    assert read_mask(turned, size_hw=(32, 24)).shape == (32, 24)
    with pytest.raises(ImageError, match="is 24x32 pixels and should be 32x24"):
        read_mask(turned, size_hw=(24, 32))


# --- writing


@pytest.mark.parametrize(
    "array",
    [
        GREY,
        GREY[:, :, None],
        RGB,
        np.dstack([RGB, GREY]),
        DEEP[:, :, 0],
        DEEP[:, :, 0].astype(">u2"),
    ],
    ids=["grey", "one channel", "RGB", "RGBA", "16 bits", "big-endian"],
)
def test_written_png_holds_the_values(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "out.png"
    write_png(path, array)
    write_png(str(path), array[::-1])  # strides of any kind, over an existing file
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), np.squeeze(array)[::-1])
    if array.ndim == 2:
        assert np.array_equal(read_mask(path), array[::-1])
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_written_bool_is_0_and_255(tmp_path: Path) -> None:
    write_png(tmp_path / "out.png", GREY > 50)
    assert np.array_equal(read_mask(tmp_path / "out.png"), (GREY > 50) * np.uint8(255))
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "L"


@pytest.mark.parametrize(
    "array",
    [
        GREY.astype(np.int64),
        GREY / 255,
        DEEP,
        RGB[:, :, :2],
        RGB[None],
        RGB[:0],
        np.zeros((3, 4, 5), np.uint8),
        np.dstack([GREY > 3] * 3),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_what_cannot_be_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"out\.png.*cannot be written as PNG"):
        write_png(tmp_path / "out.png", array)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "out.png", GREY)
    before = (tmp_path / "out.png").read_bytes()

    def fail(self: object, file: Any, **options: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_png(tmp_path / "out.png", RGB)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes() == before


def test_pillow_is_not_imported_before_a_picture_is_read() -> None:
    code = "import sys, anyres.data.images as m; print('PIL' in sys.modules, m.MAX_PIXELS)"
    source = Path(pixels.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "1000000000"]
