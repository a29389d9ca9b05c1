"""Makers of pictures that Pillow cannot write, and of a folder of broken and odd ones.

Run as a script with a folder's name, it fills that folder, to try a command on.
"""

import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photo(height: int = 24, width: int = 32) -> np.ndarray:
    """A smooth RGB picture in which no two corners, rows or columns are alike."""
    y, x = np.mgrid[0:height, 0:width]
    planes = (x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), (x + 2 * y) % 256)
    return np.ascontiguousarray(np.stack(planes, axis=2), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    array: np.ndarray, bits: int, colour: int, *extra: bytes, size: tuple[int, int] | None = None
) -> bytes:
    """A PNG file from its samples (H, W, C), of 8 or 16 bits, or rows of packed bytes (H, N).

    colour: 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA. extra: chunks before the pixels.
    size: width and height for the header, where they are not the array's.
    """
    width, height = size or (array.shape[1], array.shape[0])
    rows = array.astype(">u2" if bits == 16 else np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(
    array: np.ndarray,
    tags: dict[int, int | tuple[int, ...]] | None = None,
    content: bytes | None = None,
) -> bytes:
    """A TIFF file of one strip without compression, in the array's byte order.

    array: (H, W) or (H, W, C), or (C, H, W) with tags[284] = 2. tags: added to the usual ones.
    content: the strip itself, where it is not just the array.
    """
    tags = tags or {}
    order = ">" if array.dtype.byteorder == ">" else "<"
    planar = tags.get(284) == 2
    shape = (*array.shape[1:], array.shape[0]) if planar else (*array.shape, 1)[:3]
    form = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    bits = array.dtype.itemsize * 8
    entries = {256: shape[1], 257: shape[0], 258: (bits,) * shape[2], 259: 1, 273: 8}
    entries |= {262: 2 if shape[2] >= 3 else 1, 277: shape[2], 278: shape[0]}
    size = array.nbytes // (shape[2] if planar else 1)
    entries |= {279: size, 339: (form,) * shape[2]}
    if planar:
        entries[273] = tuple(8 + plane * size for plane in range(shape[2]))
        entries[279] = (size,) * shape[2]
    entries |= tags
    data = array.tobytes() if content is None else content
    data += b"\0" * (len(data) % 2)
    directory = struct.pack(order + "H", len(entries))
    outside = 8 + len(data) + 2 + 12 * len(entries) + 4
    more = b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        kind, letter = (3, "H") if max(values) < 65536 else (4, "I")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        directory += struct.pack(order + "HHI", tag, kind, len(values))
        if len(packed) <= 4:
            directory += packed.ljust(4, b"\0")
        else:
            directory += struct.pack(order + "I", outside + len(more))
            more += packed
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8 + len(data))
    return head + data + directory + b"\0\0\0\0" + more


def tiff_deflated(array: np.ndarray) -> bytes:
    content = zlib.compress(array.tobytes())
    return tiff(array, {259: 8, 279: len(content)}, content)


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


_ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
_SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def profile(kind: str) -> bytes:
    """An ICC version 2 profile: ``adobe``, ``p3``, ``srgb``, ``grey`` (gamma 1) or ``cmyk``.

    The last one is made up: any cyan ink comes out as green, so that its use can be told.
    """
    if kind == "cmyk":
        return _icc(b"CMYK", b"Lab ", b"prtr", {b"A2B0": _ink_table()})
    if kind == "grey":
        return _icc(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": _curve([1 << 8])})
    if kind == "adobe":
        curve = _curve([563])  # 2.19921875 in 1/256
    else:
        ramp = np.linspace(0, 1, 1024)
        linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
        curve = _curve([round(value * 65535) for value in linear])
    primaries = {"adobe": _ADOBE, "p3": _P3, "srgb": _SRGB}[kind]
    tags = {b"%cTRC" % name: curve for name in b"rgb"}
    tags |= {b"%cXYZ" % name: _xyz(*xyz) for name, xyz in zip(b"rgb", primaries, strict=True)}
    return _icc(b"RGB ", b"XYZ ", b"mntr", tags)


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def _curve(values: list[int]) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(f">I{len(values)}H", len(values), *values)


def _ink_table() -> bytes:
    """lut8 with two grid points an ink: Lab of each mixture (ICC.1:2001-04, 6.5.8)."""
    identity = struct.pack(">9i", *(65536 if at % 4 == 0 else 0 for at in range(9)))
    ramp = bytes(range(256))
    grid = bytearray()
    for mixture in range(16):
        c, m, y, k = (mixture >> bit & 1 for bit in (3, 2, 1, 0))
        light = 255 if mixture == 0 else 0 if k else 150 - 30 * (m + y)
        grid += bytes((light, 128 - 60 * c + 20 * m, 128 + 60 * c + 20 * y))
    head = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity
    return head + ramp * 4 + bytes(grid) + ramp * 3


def _icc(space: bytes, connection: bytes, device: bytes, tags: dict[bytes, bytes]) -> bytes:
    text = b"made by hand\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 79
    tags = tags | {b"desc": described, b"cprt": b"text\0\0\0\0none\0"}
    tags[b"wtpt"] = _xyz(0.9642, 1, 0.82491)
    table, data = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(body))
        data += body + b"\0" * (-len(body) % 4)
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, device, space, connection)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    head = head.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data


def jpeg_without_adobe(cmyk: np.ndarray) -> bytes:
    """A CMYK JPEG of the old kind: no marker of Adobe's, 0 is no ink."""
    data = encoded(Image.fromarray(255 - cmyk, "CMYK"), "JPEG", quality=100, subsampling=0)
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def jpeg_ycck(ycc: tuple[int, int, int], k: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A JPEG of one colour that stores Y, Cb, Cr and K, as Photoshop's CMYK JPEGs do."""
    stored = Image.new("CMYK", size, tuple(255 - value for value in (*ycc, k)))
    data = bytearray(encoded(stored, "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = 2  # the transform: YCCK
    return bytes(data)


def readable() -> dict[str, bytes]:
    """File name -> content of pictures that are odd and nevertheless fine."""
    rgb = photo()
    image = Image.fromarray(rgb)
    deep = rgb.astype(np.uint16) * 257
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"a" * (8 << 20)))
    return {
        "exif_rotated.jpg": encoded(image, "JPEG", exif=exif(6)),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "cmyk_without_adobe.jpg": jpeg_without_adobe(np.asarray(image.convert("CMYK"))),
        "adobe_rgb.jpg": encoded(image, "JPEG", icc_profile=profile("adobe")),
        "broken_profile.jpg": encoded(image, "JPEG", icc_profile=b"nonsense" * 40),
        "broken_exif.jpg": encoded(image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\0\x12\x01"),
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "one_bit.png": encoded(image.convert("1"), "PNG"),
        "palette_transparent.png": encoded(image.quantize(8), "PNG", transparency=0),
        "rgba.png": encoded(image.convert("RGBA"), "PNG"),
        "rgb16.png": png(deep, 16, 2),
        "grey16.png": png(deep[:, :, :1], 16, 0),
        "text_bomb.png": png(rgb, 8, 2, text),
        "one_pixel.png": png(rgb[:1, :1], 8, 2),
        "one_row.png": png(rgb[:1], 8, 2),
        "grey16.tif": tiff(deep[:, :, 0]),
        "rgb16.tif": tiff(deep),
        "float.tif": tiff((rgb[:, :, 0] / 255).astype(np.float32)),
        "two_pages.tif": encoded(image, "TIFF", save_all=True, append_images=[image.rotate(180)]),
        "animated.webp": encoded(image, "WEBP", save_all=True, append_images=[image.rotate(180)]),
        "animated.gif": encoded(image, "GIF", save_all=True, append_images=[image.rotate(180)]),
        "alpha.webp": encoded(image.convert("RGBA"), "WEBP", lossless=True),
        "no_suffix": encoded(image, "BMP"),
        "really_a_png.jpg": encoded(image, "PNG"),
        "with space and ü.png": encoded(image, "PNG"),
    }


def unreadable() -> dict[str, bytes]:
    """File name -> content of files from which no picture can come."""
    image = Image.fromarray(photo(64, 64))
    jpeg, plain = encoded(image, "JPEG"), encoded(image, "PNG")
    bitmap = encoded(image, "BMP")
    raw = tiff(photo(8, 8), {254: 1, 50706: (1, 4, 0, 0)})
    return {
        "empty.jpg": b"",
        "truncated.jpg": jpeg[:-200],
        "truncated.png": plain[: len(plain) // 2],
        "truncated.tif": encoded(image, "TIFF")[:-500],
        "only_a_header.png": plain[:33],
        "magic_only.tif": b"II*\0",
        "text.png": b"this is not a picture\n",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "camera.dng": raw,
        "no_pixels.png": png(photo(1, 1), 8, 2, size=(0, 5)),
        "forged_line.png": png(photo(1, 1), 8, 0, size=(1, 1_000_000_000)),
        "forged_square.png": png(photo(1, 1), 8, 2, size=(30_000, 30_000)),
        "forged.bmp": bitmap[:18] + struct.pack("<ii", 30_000, 30_000) + bitmap[26:],
        "too_large.png": png(photo(1, 1), 8, 2, size=(100_000, 100_000)),
    }


def fill(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write all of them; return the paths of those that can and that cannot be read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (readable() | unreadable()).items():
        (folder / name).write_bytes(content)
    missing, directory = folder / "missing.png", folder / "a_folder.png"
    directory.mkdir(exist_ok=True)
    good = [folder / name for name in readable()]
    return good, [*(folder / name for name in unreadable()), missing, directory]


RGB = photo()
GREY = RGB[:, :, 2]
DEEP = (np.arange(24 * 32 * 3, dtype=np.uint32) * 65535 // (24 * 32 * 3 - 1)).astype(np.uint16)
DEEP = DEEP.reshape(24, 32, 3)


def deep_files(array: np.ndarray) -> dict[str, bytes]:
    """The same 16-bit colour picture in each way it can come."""
    files = {
        "png": png(array, 16, 2),
        "png with alpha": png(np.dstack([array, array[:, :, 0] | 0xFFFF]), 16, 6),
        "tiff": tiff(array),
        "tiff, big-endian": tiff(array.astype(">u2")),
    }
    extra = np.dstack([array, array[:, :, 0]])
    files["tiff with a fourth band"] = tiff(extra, {338: 0})
    return files


if __name__ == "__main__":
    fill(Path(sys.argv[1]))
