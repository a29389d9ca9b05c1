"""Opening pictures: which format it is, how large it is, and plain words for all that can fail.

The header is read and judged before anything is decoded. Formats are told by their first bytes,
and Pillow's reader of that format is called directly, for three reasons: the reader of another
format never runs on it (``PIL.Image.open`` would try them all, one of which starts other
programs), the limit on pixels is the caller's and not ``PIL.Image.MAX_IMAGE_PIXELS``, and no
global setting of Pillow's has to change.
"""

import contextlib
import io
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    WebPImagePlugin,
)

from anyres.data.tiff import Decoded, Refused, Tiff, Unsupported, decode_with_tifffile
from anyres.errors import AnyresError, ImageError, MissingExtraError

MAX_SIDE: Final = 1_000_000  # Pillow keeps a pointer a row: 1 x 1e9 pixels would take 8 GB
_HEAD: Final = 64
# Deflate cannot do better than 1032 to 1, so a smaller file cannot hold what its header says.
_DEFLATE: Final = 1032
_PNG_NEEDED: Final = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_pillow_limit = threading.Lock()

Again = Callable[[], ImageFile.ImageFile] | None


class _Png(PngImagePlugin.PngImageFile):
    def load_end(self) -> None:
        # All pixels are there. Text behind them is of no use here and may be anything.
        with contextlib.suppress(Exception):
            super().load_end()


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Nobody asks for it here, and damaged EXIF must not stop the picture."""


_READERS: Final[dict[str, Callable[[IO[bytes]], ImageFile.ImageFile]]] = {
    "AVIF": AvifImagePlugin.AvifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "JPEG": _Jpeg,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PNG": _Png,
    "PNM": PpmImagePlugin.PpmImageFile,
    "TIFF": Tiff,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_READABLE: Final = ", ".join(_READERS)

# What a file begins with -> a key of _READERS; or what else people have in their folders, and what
# can be done about it. The first that fits counts.
_FIRST_BYTES: Final = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"CR\x02\0", "a camera raw file; develop it to a TIFF or JPEG first"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (8, b"WEBP", "WebP"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    *((0, b"P" + bytes([kind]), "PNM") for kind in b"123456f"),
    (4, b"ftyphei", "a HEIC photo; convert it to JPEG"),
    (4, b"ftypmif1", "a HEIF photo; convert it to JPEG"),
    (4, b"ftypcrx", "a camera raw file; develop it to a TIFF or JPEG first"),
    (4, b"ftyp", "a video; extract its frames first"),
    (0, b"version https://git-lfs", "the pointer to a file in Git LFS; run 'git lfs pull'"),
    (0, b"<", "a web page or SVG drawing, not a picture of pixels; look into it"),
    (0, b"8BPS", "a Photoshop document; export it as TIFF or PNG"),
    (0, b"%PDF", "a PDF document; render its page to PNG first"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture; convert it to a float TIFF"),
    (0, b"\xff\x0a", "a JPEG XL picture; convert it to PNG"),
    (4, b"JXL ", "a JPEG XL picture; convert it to PNG"),
    (0, b"\x93NUMPY", "a numpy array; load it with numpy.load and pass the array"),
    (0, b"\x89HDF", "an HDF5 file; read the array in it and pass that"),
    (0, b"SIMPLE", "a FITS file; read the array in it and pass that"),
    (0, b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it first"),
)


@dataclass(frozen=True, eq=False)
class Opened:
    """A picture whose header is read and within the limits.

    Attributes:
        name: what to call it in messages.
        picture: Pillow's view of it, not decoded yet; or what tifffile has decoded.
        again: opens the same picture once more; None for one that came as a PIL image.
    """

    name: str
    picture: Image.Image | Decoded
    again: Again = None


@contextlib.contextmanager
def plain_errors(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError that names the picture."""
    try:
        yield
    except Refused as word:
        raise ImageError(f"{name} {word}") from None
    except MissingExtraError as error:
        raise MissingExtraError(f"{name} {error}") from None
    except (AnyresError, Unsupported):
        raise
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory; cut it up or make it smaller") from None
    except Exception as error:  # Pillow's readers raise nearly anything on damaged files
        reason = str(error).rstrip(".") or type(error).__name__
        if "unpack" in reason:  # struct's words about buffers
            reason = "it ends too early"
        raise ImageError(
            f"{name} is damaged or incomplete ({reason}); copy or download it again, or save it "
            "anew from the program that made it"
        ) from None


@contextlib.contextmanager
def open_picture(source: Any, max_pixels: int) -> Iterator[Opened]:
    """Open a path, the bytes of a file, or a PIL image; files are closed at the end.

    Raises:
        ImageError: it cannot be opened, is no picture, or is larger than allowed.
        MissingExtraError: a kind of TIFF that needs packages which are not installed.
    """
    if isinstance(source, Image.Image):
        check_size("the PIL image", source.size, max_pixels)
        yield Opened("the PIL image", source)
        return
    with contextlib.ExitStack() as stack:
        if isinstance(source, (bytes, bytearray, memoryview)):
            name, file = "the picture", stack.enter_context(io.BytesIO(source))
            size = len(source)
        else:
            name = str(source)
            file, size = _open_file(Path(source), name)
            stack.enter_context(file)
        yield _open(stack, file, size, name, max_pixels)


def _open_file(path: Path, name: str) -> tuple[Any, int]:
    try:
        facts = path.stat()
        regular = stat.S_ISREG(facts.st_mode)  # opening a pipe would wait for ever
        file = path.open("rb") if regular else None
    except FileNotFoundError:
        remote = "://" in name or ":/" in name[3:]
        hint = "only local files are read: download it first" if remote else "check the path"
        raise ImageError(f"{name} does not exist; {hint}") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read: permission denied; check its rights") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be opened: {reason}; check the path") from None
    if file is not None:
        return file, facts.st_size
    if stat.S_ISDIR(facts.st_mode):
        raise ImageError(f"{name} is a folder; name a picture in it")
    raise ImageError(f"{name} is a pipe or device; save the picture to a file first")


def _open(
    stack: contextlib.ExitStack, file: IO[bytes], size: int, name: str, max_pixels: int
) -> Opened:
    if size == 0:
        raise ImageError(f"{name} is empty (0 bytes); copy or download it again")
    with plain_errors(name):
        head = file.read(_HEAD)
        kind = _kind_of(head, name)
        early = _size_in_head(kind, head)
        if early is not None:
            check_size(name, early, max_pixels)

    def construct() -> ImageFile.ImageFile:
        file.seek(0)
        with plain_errors(name), _own_limit(early if kind != "PNG" else None, max_pixels):
            return stack.enter_context(_construct(kind, file))

    try:
        image = construct()
    except Unsupported as tiff:
        check_size(name, tiff.size, max_pixels)
        with plain_errors(name):
            return Opened(name, decode_with_tifffile(file, tiff.kind))
    check_size(name, image.size, max_pixels)
    _check_length(name, image, kind, size)
    return Opened(name, image, construct)


def _kind_of(head: bytes, name: str) -> str:
    for offset, start, kind in _FIRST_BYTES:
        if head.startswith(start, offset):
            if kind in _READERS:
                return kind
            raise ImageError(f"{name} is {kind}")
    raise ImageError(f"{name} is not a picture that can be read; those are {_READABLE}")


def _size_in_head(kind: str, head: bytes) -> tuple[int, int] | None:
    """Width and height, for formats whose reader takes memory when it opens a file."""
    head = head.ljust(_HEAD, b"\0")
    match kind, head[12:16]:
        case "PNG", _:
            width, height = struct.unpack(">II", head[16:24])
        case "GIF", _:
            width, height = struct.unpack("<HH", head[6:10])
            width, height = max(1, width), max(1, height)  # 0 is "see the frame"
        case "WebP", b"VP8X":
            width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        case "WebP", b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
        case "WebP", _:
            width, height = (side & 0x3FFF for side in struct.unpack("<HH", head[26:30]))
        case _:
            return None
    return width, height


def check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    """Raise ImageError for a picture (width, height) without pixels or with too many."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels: it is {width}x{height}; save it anew")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height} = {width * height} pixels, over the limit of "
            f"{max_pixels}; raise max_pixels if there is memory for it, or cut it up"
        )
    if max(size) > MAX_SIDE:
        raise ImageError(
            f"{name} is {width}x{height} pixels; no side can be over {MAX_SIDE}: cut it up"
        )


def _check_length(name: str, image: ImageFile.ImageFile, kind: str, size: int) -> None:
    """Refuse, before memory is taken for it, what a file of ``size`` bytes cannot hold."""
    codec = image.tile[0][0] if image.tile else None
    pixels = image.width * image.height
    if kind == "PNG":
        most = 8 * _DEFLATE * size
    elif codec == "raw" and kind in ("BMP", "PNM", "TIFF"):
        most = 8 * size
    else:
        return
    if pixels > most:
        raise ImageError(
            f"{name} is damaged or incomplete: its header says {image.width}x{image.height} "
            f"pixels, which its {size} bytes cannot hold; copy or download it again"
        )


@contextlib.contextmanager
def _own_limit(size: tuple[int, int] | None, max_pixels: int) -> Iterator[None]:
    """Where a reader applies Pillow's limit while it opens a file, lift that to the caller's.

    It is a global of Pillow's: hence the lock, and only for pictures that are over it.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if size is None or limit is None or size[0] * size[1] <= limit:
        yield
        return
    with _pillow_limit:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _construct(kind: str, file: IO[bytes]) -> ImageFile.ImageFile:
    try:
        return _READERS[kind](file)
    except (Refused, Unsupported, MemoryError):
        raise
    except Exception:
        if kind != "PNG":
            raise
        # Damaged or oversized text, times, profiles: nothing that the picture needs.
        with contextlib.suppress(Exception):
            file.seek(0)
            return _READERS[kind](_without_extras(file))
        raise


def _without_extras(file: IO[bytes]) -> IO[bytes]:
    """A PNG file without the chunks that pixels do not need."""
    parts = [file.read(8)]
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        body = file.read(length + 4)
        if head[4:] in _PNG_NEEDED:
            parts += [head, body]
    return io.BytesIO(b"".join(parts))
