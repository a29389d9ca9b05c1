"""From stored numbers to 8-bit RGB: depth, transparency and orientation, in numpy alone.

``stretch`` says how numbers of more than 8 bits become 8-bit ones:

============== =====================================================================
``auto``       the default: 8-bit values, 16-bit values and floats within [0, 1] as
               under ``none``, what ``none`` would lose or refuse as under
               ``percentile``. The latter are: 16-bit pictures without a value above
               4095 (12-bit cameras; they would keep 16 of 256 levels), floats
               beyond [0, 1], and integers that are negative or above 65535.
``none``       8 bits as they are; 16 bits lose their low byte (``value >> 8``, so that
               257 * v gives v); floats within [0, 1] times 255, rounded; else an error.
``minmax``     smallest value to 0, largest to 255, straight between, 8-bit pictures too.
``percentile`` the same with the 0.5th and 99.5th percentile; what lies beyond is clipped.
============== =====================================================================

Limits are taken over the colour channels together, so that hues stay, and never from alpha,
whose range is its type's (or [0, 1]). Integers of other types (int16, int32, int64, ...) count as
8-bit where all values are in 0..255 and as 16-bit where they are in 0..65535. NaN (no data)
becomes black; infinities go to the ends of a stretched range.
A picture of one value throughout cannot be stretched: 8 and 16 bits are then read as under
``none``, others come out black.
"""

import math
from collections.abc import Iterator
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from anyres.errors import ImageError, InputError

Stretch = Literal["auto", "none", "minmax", "percentile"]

PERCENTILES: Final = (0.5, 99.5)
FEW_BITS: Final = 4096  # a 16-bit picture below this is taken for one of 12 bits or fewer
_BAND: Final = 1 << 22  # values worked on at a time, so that temporaries stay small
_SAMPLE: Final = 1 << 22  # at least a quarter of so many floats give the percentiles

Array = NDArray[Any]
Bytes = NDArray[np.uint8]


def check_stretch(stretch: str) -> Stretch:
    """``stretch`` if it is a known one, else InputError."""
    for known in get_args(Stretch):
        if stretch == known:
            return cast(Stretch, known)
    raise InputError(f"stretch is {stretch!r}; it can be one of {', '.join(get_args(Stretch))}")


def with_channels(array: Array, name: str) -> Array:
    """A picture array as (H, W, C) with C in 1..4: grey, grey + alpha, RGB or RGBA.

    Raises:
        ImageError: wrong number of axes or channels, channels first, no pixels, or not numbers.
    """
    if array.dtype.kind not in "buif":
        raise ImageError(f"{name} has dtype {array.dtype}; a picture is made of real numbers")
    shape = "x".join(map(str, array.shape))
    if array.ndim not in (2, 3):
        raise ImageError(
            f"{name} has shape {shape or '()'}; a picture is (height, width) or "
            "(height, width, channels): pass one picture at a time"
        )
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels: its shape is {shape}")
    if array.ndim == 2:
        return array[:, :, None]
    if array.shape[2] > 4:
        if array.shape[0] <= 4:
            raise ImageError(
                f"{name} has shape {shape}, which looks like channels first; pass "
                "array.transpose(1, 2, 0), that is (height, width, channels)"
            )
        raise ImageError(
            f"{name} has {array.shape[2]} channels (shape {shape}); "
            "choose three to be red, green and blue, as in array[:, :, [3, 2, 1]]"
        )
    return array


def to_eight_bit(array: Array, stretch: Stretch, name: str) -> Bytes:
    """A picture of any number type as uint8.

    Args:
        array: (H, W, C), C in 1..4 (``with_channels``).
        stretch: how to map values, see above.
        name: what to call the picture in errors.

    Returns:
        (H, W, C) uint8; ``array`` itself where nothing had to change.

    Raises:
        ImageError: values that ``stretch="none"`` does not cover, or no finite value at all.
    """
    if array.shape[2] in (1, 3):
        return _eight_bit_colour(array, stretch, name)
    colour = _eight_bit_colour(array[:, :, :-1], stretch, name)
    alpha = _eight_bit_colour(array[:, :, -1:], "none", f"the transparency of {name}")
    return np.concatenate([colour, alpha], axis=2)


def _eight_bit_colour(values: Array, stretch: Stretch, name: str) -> Bytes:
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind in "ui":
        values = _narrowed(values)
    if values.dtype in (np.uint8, np.uint16):
        return _by_table(values, stretch)
    if stretch in ("auto", "none"):
        low, high = _ends(values, name)
        if values.dtype.kind == "f" and low >= 0 and high <= 1:
            return _by_line(values, 0.0, 1.0)
        if stretch == "none":
            raise ImageError(
                f"{name} holds {values.dtype} values from {low:g} to {high:g}, which do not say "
                "what is black and what is white: scale floats to [0, 1], or use "
                "stretch='percentile' or stretch='minmax'"
            )
        stretch = "percentile"
    return _by_line(values, *_limits(values, stretch, name))


def _narrowed(values: Array) -> Array:
    """Integers as uint8 or uint16 where their values (for these two: their type) fit."""
    if values.dtype.itemsize == 1 and values.dtype.kind == "u":
        return values
    if values.dtype == np.uint16:
        return values.astype(np.uint16, copy=False)  # in this machine's byte order
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        return values
    return values.astype(np.uint8 if high <= 255 else np.uint16)


def _by_table(values: Array, stretch: Stretch) -> Bytes:
    """uint8 or uint16 through a table with an entry a value."""
    deep = values.dtype == np.uint16
    if stretch == "auto":
        stretch = "percentile" if deep and values.max() < FEW_BITS else "none"
    limits = _table_limits(values, stretch) if stretch != "none" else None
    if limits is None:
        return (values >> 8).astype(np.uint8) if deep else values
    low, high = limits
    steps = np.arange(65536 if deep else 256, dtype=np.float64)
    table = np.clip((steps - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)
    out: Bytes = np.take(table, values)
    return out


def _table_limits(values: Array, stretch: Stretch) -> tuple[int, int] | None:
    """The values that become 0 and 255; None where all are the same."""
    counts = np.zeros(65536, np.int64)
    for rows in bands(values.shape):
        counts += np.bincount(values[rows].ravel(), minlength=65536)
    used = np.flatnonzero(counts)
    ends = int(used[0]), int(used[-1])
    if stretch == "percentile":
        shares = np.cumsum(counts) * (100 / values.size)
        low, high = (int(np.searchsorted(shares, share)) for share in PERCENTILES)
        if low < high:  # else nearly all pixels are the same: keep the few others
            return low, high
    return ends if ends[0] < ends[1] else None


def _ends(values: Array, name: str) -> tuple[float, float]:
    """Smallest and largest value, NaN left out, infinities not."""
    low, high = np.inf, -np.inf
    for rows in bands(values.shape):
        band = values[rows]
        if not np.isnan(band).all():
            low = min(low, float(np.fmin.reduce(band, axis=None)))
            high = max(high, float(np.fmax.reduce(band, axis=None)))
    if low > high:
        raise ImageError(f"{name} holds no finite value: there is nothing to see in it")
    return low, high


def _limits(values: Array, stretch: Stretch, name: str) -> tuple[float, float]:
    """The values that become 0 and 255, from the finite ones."""
    low, high = np.inf, -np.inf
    for rows in bands(values.shape):
        finite = values[rows][np.isfinite(values[rows])]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise ImageError(f"{name} holds no finite value: there is nothing to see in it")
    if stretch == "percentile":
        step = math.isqrt(values.size // _SAMPLE) + 1
        sample = values[::step, ::step]
        sample = sample[np.isfinite(sample)].astype(np.float64)
        if sample.size:
            inner = np.percentile(sample, PERCENTILES)
            if inner[0] < inner[1]:
                return float(inner[0]), float(inner[1])
    return low, high


def _by_line(values: Array, low: float, high: float) -> Bytes:
    """``low`` to 0, ``high`` to 255, straight between and clipped beyond; NaN to 0."""
    out = np.zeros(values.shape, np.uint8)
    half = high * 0.5 - low * 0.5  # halves: the difference of two huge doubles stays finite
    if not half > 0:
        return out
    for rows in bands(values.shape):
        band = values[rows]
        if band.dtype == np.float16:
            band = band.astype(np.float32)
        with np.errstate(all="ignore"):
            scaled = (band * 0.5 - low * 0.5) * (255 / half) + 0.5
        out[rows] = np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255).astype(np.uint8)
    return out


def bands(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of an array, some at a time."""
    rows = max(1, _BAND // max(1, math.prod(shape[1:])))
    for top in range(0, shape[0], rows):
        yield slice(top, top + rows)


def over_white(array: Bytes) -> Bytes:
    """Three opaque channels from one to four.

    Args:
        array: (H, W, C) uint8, C in 1..4: grey, grey + alpha, RGB, RGBA (alpha not premultiplied).

    Returns:
        (H, W, 3) uint8, contiguous; ``array`` itself where it is that already.
    """
    height, width, channels = array.shape
    if channels == 3:
        return np.ascontiguousarray(array)
    if channels == 1:
        return np.repeat(array, 3, axis=2)
    out = np.empty((height, width, 3), np.uint8)
    for rows in bands(out.shape):
        out[rows] = blend_white(array[rows, :, :-1], array[rows, :, -1:])
    return out


def blend_white(colour: Bytes, alpha: Bytes) -> Bytes:
    """``colour`` (H, W, C) with ``alpha`` (H, W, 1), 255 opaque, seen over white: uint8."""
    if alpha.min() == 255:
        return colour
    veil = (255 - alpha).astype(np.uint16) * np.uint16(255) + np.uint16(127)
    return ((colour.astype(np.uint16) * alpha + veil) // 255).astype(np.uint8)


def turned(array: Array, orientation: int) -> Array:
    """A picture as it is meant to be seen.

    Args:
        array: (H, W, ...) as stored.
        orientation: the EXIF (TIFF 6.0) tag 274, 1..8; others count as 1.

    Returns:
        The contiguous array, (W, H, ...) for 5..8; ``array`` itself for 1 if contiguous.
    """
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)
