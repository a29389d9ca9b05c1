"""TIFF: what Pillow reads, what it misreads, and what tifffile (an optional package) must do.

TIFF is a frame for nearly any array of numbers. Pillow covers the common kinds; ``Tiff`` mends
those that it would decode to wrong values without a word, and sorts out camera raw files, whose
first page is a thumbnail. What remains goes to tifffile: floats in colour, 64-bit floats, 16-bit
grey with alpha, 16-bit colour in separate planes, bands beyond four.
"""

import importlib
import logging
import sys
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from anyres.errors import MissingExtraError

logger = logging.getLogger("anyres.data.images")

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_SAMPLES, _PLANAR, _FORMAT, _DNG = 277, 284, 339, 50706
_WHITE_IS_ZERO = 0
# With a codec, libtiff hands numbers over in this machine's byte order, not in the file's.
_NATIVE = {
    "F;32BF": "F;32NF",
    "F;32F": "F;32NF",
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
}


class Refused(Exception):  # noqa: N818 - word to the caller, who knows the name of the file
    """Not to be read: ``str()`` says why, to follow the name of the file."""


class Unsupported(Exception):  # noqa: N818 - word to the caller, who tries tifffile
    """A TIFF with a sound directory, of a kind Pillow does not decode."""

    def __init__(self, kind: str, size: tuple[int, int]):
        super().__init__(kind)
        self.kind = kind
        self.size = size


class Tiff(TiffImagePlugin.TiffImageFile):
    """Pillow's TIFF reader without its misreadings and without its limit on the number of pixels.

    Attributes:
        inverted: 0 is white, and Pillow has not turned that round (it does for 8 bits).
        shift: left shift that makes the values 16-bit ones.
    """

    inverted = False
    shift = 0

    def _setup(self) -> None:
        if self.tell() == 0:
            self._refuse_thumbnails()
        planes = self.tag_v2.get(_PLANAR, 1) == 2
        bits = self.tag_v2.get(_BITS, (1,))
        raw = self.tag_v2.get(_COMPRESSION, 1) == 1
        if planes and raw and isinstance(bits, tuple) and max(bits) > 8:
            raise self._unsupported()  # Pillow would take halves of numbers for pixels
        try:
            super()._setup()
        except (SyntaxError, KeyError):
            raise self._unsupported() from None
        explicit = self.tag_v2.get(_PHOTOMETRIC)
        self.inverted = explicit == _WHITE_IS_ZERO and self.mode.startswith("I;16")
        tile = self.tile[0]
        if isinstance(tile.args, tuple):
            self.shift = 4 if tile.args[0] == "I;12" else 0
            if tile.codec_name == "libtiff" and tile.args[0] in _NATIVE:
                self.tile = [tile._replace(args=(_NATIVE[tile.args[0]], *tile.args[1:]))]

    def load_prepare(self) -> None:
        """Provide the memory for the pixels, which Pillow would refuse beyond its own limit."""
        if self._im is None:
            self.im = Image.new(self.mode, self._tile_size, None).im
        super().load_prepare()

    def _refuse_thumbnails(self) -> None:
        reduced = self.tag_v2.get(_SUBFILE, 0)
        if _DNG in self.tag_v2 or (isinstance(reduced, int) and reduced & 1):
            raise Refused(
                "is a camera raw file (or only the thumbnail of a picture); develop it to a TIFF "
                "or JPEG first"
            )

    def _unsupported(self) -> Exception:
        width, height = self.tag_v2.get(_WIDTH), self.tag_v2.get(_HEIGHT)
        samples = self.tag_v2.get(_SAMPLES, 1)
        bits, form = self.tag_v2.get(_BITS, (1,)), self.tag_v2.get(_FORMAT, (1,))
        numbers = isinstance(width, int) and isinstance(height, int) and isinstance(samples, int)
        if not numbers or not isinstance(bits, tuple) or not 0 < max(bits) <= 64:
            return SyntaxError("its directory makes no sense")
        words = {(2,): "signed ", (3,): "float "}.get(form[:1], "")
        planes = " in separate planes" if self.tag_v2.get(_PLANAR, 1) == 2 else ""
        kind = f"{samples} x {max(bits)} {words}bits{planes}"
        return Unsupported(kind, (int(width or 0), int(height or 0)))


def tell_of_pages(image: Image.Image, name: str) -> None:
    """Log a warning where the file has a second page that is no overview, mask or thumbnail."""
    if not isinstance(image, Tiff) or not getattr(image, "is_animated", False):
        return
    try:
        image.seek(1)
        whole = not image.tag_v2.get(_SUBFILE, 0)
    except Exception:  # a damaged second page is no reason to lose the first
        whole = True
    if whole:
        logger.warning("%s has several pages; the first is read", name)


@dataclass(frozen=True, eq=False)
class Decoded:
    """Pixels (H, W, C), C in 1..4, with what is needed to show them."""

    array: NDArray[Any]
    profile: bytes | None
    orientation: int


def decode_with_tifffile(file: IO[bytes], kind: str) -> Decoded:
    """The first page of a TIFF that Pillow does not read; the caller has checked its size.

    Args:
        file: the open file.
        kind: what is in it, for the errors.

    Raises:
        MissingExtraError: tifffile, or the codec package it wants, is not installed.
        Refused: a kind of picture that has no one way to be shown.
    """
    missing = MissingExtraError(
        f"is a TIFF of {kind}, which needs further packages: pip install 'anyres[bigimage]'"
    )
    try:
        tifffile: Any = importlib.import_module("tifffile")  # may be absent where types are checked
    except ImportError:
        raise missing from None
    file.seek(0)
    with tifffile.TiffFile(file) as tif:
        page = tif.pages[0]
        if page.axes not in ("YX", "YXS", "SYX") or int(page.photometric) not in (0, 1, 2):
            raise Refused(f"is a TIFF of {kind} that is neither grey nor RGB; convert it first")
        try:
            array = np.asarray(page.asarray())
        except ValueError as error:
            raise missing if "imagecodecs" in str(error) else error from None
        if page.axes == "SYX":
            array = np.moveaxis(array, 0, 2)
        array = array.reshape(*array.shape[:2], -1)
        if int(page.photometric) == _WHITE_IS_ZERO and array.dtype.kind == "u":
            array = np.iinfo(array.dtype).max - array
        tag = page.tags.get(274)
        orientation = 1 if tag is None else int(tag.value)
        return Decoded(_shown(array, page, kind), page.iccprofile, orientation)


def _shown(array: NDArray[Any], page: Any, kind: str) -> NDArray[Any]:
    """The colour channels, and alpha where the file says that an extra sample is that."""
    colours = 3 if int(page.photometric) == 2 else 1
    if array.shape[2] > colours + 1:
        raise Refused(
            f"is a TIFF of {kind}: {array.shape[2]} bands; choose three of them to be red, green "
            "and blue, and pass these as an array (height, width, 3)"
        )
    alpha = [int(sample) in (1, 2) for sample in page.extrasamples[:1]]
    return array[:, :, : colours + sum(alpha)]


def low_bytes(rawmode: str) -> str | None:
    """The raw mode that unpacks the low bytes where ``rawmode`` unpacks the high ones.

    Pillow keeps the high byte of each 16-bit colour value; unpacked as if the file had the other
    byte order, the same data give the low bytes.
    """
    base, _, order = rawmode.partition(";16")
    if base not in ("RGB", "RGBX", "RGBA") or order not in ("L", "B", "N"):
        return None
    big = order == "B" or (order == "N" and sys.byteorder == "big")
    return f"{base};16{'L' if big else 'B'}"
