"""From an opened picture to its pixels: full depth, transparency, colour profiles."""

import io
import logging
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from anyres.data import pixels
from anyres.data.opening import Again, Opened, plain_errors
from anyres.data.tiff import Decoded, Tiff, low_bytes, tell_of_pages
from anyres.errors import ImageError

logger = logging.getLogger("anyres.data.images")

_ORIENTATION: Final = 274
_BAND: Final = 1 << 24  # pixels turned into RGB at a time
_SAME: Final = 2  # of 255: a profile that moves no colour further than this is left alone
_GREY_STEPS: Final = {"L;2": 85, "L;4": 17}
_SPACES: Final = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}

_Array = NDArray[Any]
_Colours = Callable[[Image.Image], Image.Image]


def as_seen(opened: Opened, stretch: pixels.Stretch) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 sRGB, contiguous and writable: see ``anyres.data.images.read_image``."""
    name, picture = opened.name, opened.picture
    if isinstance(picture, Decoded):
        return _array_as_seen(picture, stretch, name)
    with plain_errors(name):
        full = stretch in ("minmax", "percentile")
        deep = _decode(picture, opened.again, full=full, dark=stretch == "auto")
        orientation = _orientation(picture)
        profile = picture.info.get("icc_profile")
        if deep is not None:
            deep = _with_key(deep, picture.info.get("transparency"))
        elif full:
            plain = _plain(picture)
            if plain.mode in ("CMYK", "LAB"):
                plain, profile = _to_rgb(plain, _srgb_maker(profile, plain.mode, name)), None
            deep = np.asarray(plain)
    if deep is not None:
        seen = _array_as_seen(Decoded(deep, profile, orientation), stretch, name)
    else:
        with plain_errors(name):
            seen = _image_as_seen(_plain(picture), profile, name)
        seen = pixels.turned(seen, orientation)
    tell_of_pages(picture, name)
    return seen


def as_stored(
    opened: Opened, size_hw: tuple[int, int] | None, *, brightest: bool = False
) -> _Array:
    """(H, W) of integers, see ``anyres.data.images.read_mask``."""
    name, picture = opened.name, opened.picture
    if isinstance(picture, Decoded):
        array, orientation = picture.array, picture.orientation
    else:
        if size_hw is not None and sorted(picture.size) != sorted(size_hw):
            _refuse_size(name, (picture.height, picture.width), size_hw)  # before it is decoded
        with plain_errors(name):
            array = _stored(opened, picture, palette=not brightest)
            orientation = _orientation(picture)
        tell_of_pages(picture, name)
    if array.dtype.kind == "f":
        raise ImageError(f"{name} holds floats; a map holds integers: save it as 8 or 16 bits")
    flat = _brightest(array) if brightest else _one_channel(array, name)
    array = _own(pixels.turned(flat, orientation))
    if size_hw is not None and array.shape != tuple(size_hw):
        _refuse_size(name, array.shape, size_hw)
    return array


def _refuse_size(name: str, found_hw: tuple[int, ...], size_hw: tuple[int, int]) -> None:
    raise ImageError(
        f"{name} is {found_hw[1]}x{found_hw[0]} pixels and should be {size_hw[1]}x{size_hw[0]}, "
        "as its picture is (width x height): resize it without smoothing, or make it anew"
    )


def _stored(opened: Opened, picture: Image.Image, *, palette: bool) -> _Array:
    deep = _decode(picture, opened.again, full=True)
    if deep is not None:
        return deep
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8) * np.uint8(255)
    if picture.mode == "P" and not palette:
        colours = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        table = np.zeros((256, 3), np.uint8)
        table[: len(colours)] = colours
        seen: _Array = table[np.asarray(picture)]
        return seen
    if picture.mode in ("L", "P", "LA", "RGB", "RGBA"):
        return np.asarray(picture)
    raise ImageError(
        f"{opened.name} is a {picture.mode} picture; a map is grey or has a palette: save it so"
    )


def _brightest(array: _Array) -> _Array:
    """The largest of the colours, (H, W), alpha left out."""
    if array.ndim == 2:
        return array
    largest: _Array = array[:, :, : 3 if array.shape[2] >= 3 else 1].max(axis=2)
    return largest


def _one_channel(array: _Array, name: str) -> _Array:
    if array.ndim == 2:
        return array
    colours = 3 if array.shape[2] >= 3 else 1
    alpha = array[:, :, colours:]
    if alpha.size and alpha.min() < np.iinfo(alpha.dtype).max:
        raise ImageError(
            f"{name} is partly transparent, so it is unclear where its objects are; save it "
            "without alpha channel, as grey values or with a palette"
        )
    first = array[:, :, 0]
    if any((array[:, :, at] != first).any() for at in range(1, colours)):
        raise ImageError(
            f"{name} is in colour; a map has one number a pixel: turn each colour into a number "
            "and save it as grey values or with a palette"
        )
    return first


def _decode(image: Image.Image, again: Again, *, full: bool, dark: bool = False) -> _Array | None:
    """Decode the pixels; return those of more than 8 bits, as an array.

    Args:
        image: what to decode; it is loaded after this.
        again: opens it once more, see ``Opened``.
        full: wanted at full depth, in any case.
        dark: wanted at full depth if no value is above 12 bits.

    Returns:
        (H, W) or (H, W, C) of uint16, int32 or float32; None if 8-bit values are all there is,
        or all that is wanted: those are in the image.
    """
    raw = _prepare(image) if again is not None else ""
    image.load()
    if raw == "LA;16B":
        both: _Array = np.asarray(image).view(">u2")
        return both.astype(np.uint16)
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint16)
        if isinstance(image, Tiff):
            deep <<= np.uint16(image.shift)
            if image.inverted:
                np.invert(deep, out=deep)
        return deep
    if image.mode in ("I", "F"):
        array: _Array = np.asarray(image)
        return array.astype(np.uint16) if image.format == "PPM" and image.mode == "I" else array
    low = low_bytes(raw)
    if low is None or again is None:
        return None
    extrema: Any = image.getextrema()
    few = dark and max(high for _, high in extrema[:3]) < pixels.FEW_BITS >> 8
    if not (full or few or "transparency" in image.info):
        return None
    second = again()
    second.tile = [tile._replace(args=_with_mode(tile.args, low)) for tile in second.tile]
    colours: _Array = np.asarray(image).astype(np.uint16) << 8
    colours |= np.asarray(second)
    return colours


def _prepare(image: Any) -> str:
    """Mend how Pillow would unpack a file it has just opened; return the raw mode."""
    if not getattr(image, "tile", None):
        return ""
    args = image.tile[0].args
    raw = args[0] if isinstance(args, tuple) else args
    wanted = raw
    if raw == "LA;16B":  # for which Pillow has only high bytes; as RGBA, they all come through
        wanted = "RGBA"
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        wanted = "CMYK"  # Pillow takes every CMYK JPEG for one of Adobe's, which are inverted
    if wanted != raw:
        image.tile = [tile._replace(args=_with_mode(tile.args, wanted)) for tile in image.tile]
    key = image.info.get("transparency")
    if raw in _GREY_STEPS and isinstance(key, int):  # values are scaled up, the key is not
        image.info["transparency"] = key * _GREY_STEPS[raw]
    return str(raw)


def _with_mode(args: Any, raw: str) -> Any:
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; of a TIFF, Pillow has applied and removed it when it loaded the image."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to lose the picture
        return 1


def _with_key(array: _Array, key: Any) -> _Array:
    """Add alpha where one value or colour of a 16-bit PNG stands for transparent."""
    channels = array[:, :, None] if array.ndim == 2 else array
    if key is None or array.dtype != np.uint16 or channels.shape[2] not in (1, 3):
        return array
    opaque = (channels != np.asarray(key, np.uint16)).any(axis=2, keepdims=True)
    return np.concatenate([channels, opaque * np.uint16(65535)], axis=2)


def _array_as_seen(decoded: Decoded, stretch: pixels.Stretch, name: str) -> NDArray[np.uint8]:
    array = pixels.with_channels(decoded.array, name)
    eight = pixels.to_eight_bit(array, stretch, name)
    colours = 1 if eight.shape[2] < 3 else 3
    maker = _srgb_maker(decoded.profile, "L" if colours == 1 else "RGB", name)
    if maker is not None:
        with plain_errors(name):
            colour = eight[:, :, 0] if colours == 1 else eight[:, :, :3]
            rgb = np.asarray(maker(Image.fromarray(np.ascontiguousarray(colour))))
        eight = np.concatenate([rgb, eight[:, :, colours:]], axis=2)
    return _own(pixels.turned(pixels.over_white(eight), decoded.orientation))


def _own(array: _Array) -> _Array:
    return array if array.flags.writeable else array.copy()


def _image_as_seen(image: Image.Image, profile: bytes | None, name: str) -> NDArray[np.uint8]:
    """Colours over white from an L, LA, RGB, RGBA, CMYK or LAB image as sRGB."""
    width, height = image.size
    alpha = image.mode in ("LA", "RGBA")
    maker = _srgb_maker(profile, image.mode[:-1] if alpha else image.mode, name)
    out = np.empty((height, width, 3), np.uint8)
    step = max(1, _BAND // width)
    for top in range(0, height, step):
        part = image
        if step < height:  # not by crop(), which has Pillow's limit on pixels
            part = Image.new(image.mode, (width, min(step, height - top)))
            part.paste(image, (0, -top))
        rows = slice(top, top + part.height)
        colour = part.convert(image.mode[:-1]) if alpha else part
        out[rows] = np.asarray(_to_rgb(colour, maker))
        if alpha:
            out[rows] = pixels.blend_white(out[rows], np.asarray(part.getchannel("A"))[:, :, None])
    return out


def _plain(image: Image.Image) -> Image.Image:
    """The loaded image in mode L, LA, RGB, RGBA, CMYK or LAB."""
    if image.mode in ("CMYK", "LAB"):
        return image
    key = image.info.get("transparency")
    if isinstance(key, tuple) and max(key) > 255:  # a 16-bit key with 8-bit values
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        mode += "A"
    return image if image.mode == mode else image.convert(mode)


def _to_rgb(colour: Image.Image, maker: _Colours | None) -> Image.Image:
    if maker is not None:
        return maker(colour)
    return colour if colour.mode == "RGB" else colour.convert("RGB")


def _srgb_maker(profile: bytes | None, mode: str, name: str) -> _Colours | None:
    """What turns an L, RGB, CMYK or LAB image into sRGB, or None if plain conversion does."""
    if not profile and mode != "LAB":
        return None
    try:
        if mode == "LAB":
            source: Any = ImageCms.createProfile("LAB")
            space = "LAB"
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
            space = _SPACES.get(source.profile.xcolor_space.strip(), "another kind")
        via = "RGB" if (mode, space) == ("L", "RGB") else mode
        if space != via:
            raise ValueError(f"it is for {space} pictures and this is {mode}")
        target = ImageCms.createProfile("sRGB")
        profiles = (source, target, via, "RGB", ImageCms.Intent.PERCEPTUAL)
        # Without lcms's tables: quick to make, slow to apply, so right for a small chart.
        if _changes_nothing(ImageCms.buildTransform(*profiles, ImageCms.Flags.NOOPTIMIZE), via):
            return None
        transform = ImageCms.buildTransform(*profiles)
    except Exception as error:  # lcms's own types, or anything from damaged bytes
        logger.warning("%s: its colour profile is ignored: %s", name, error)
        return None
    return lambda image: transform.apply(image if image.mode == via else image.convert(via))


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode not in ("L", "RGB"):
        return False
    steps = np.arange(0, 256, 51).astype(np.uint8)
    chart = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    image = Image.fromarray(chart if mode == "RGB" else chart[:, :, 0])
    seen = np.asarray(transform.apply(image)).astype(int)
    return bool(np.abs(seen - np.asarray(image.convert("RGB"))).max() <= _SAME)
