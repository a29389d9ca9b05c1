"""Plain validated data that Python, command line and HTTP share: prompts and answers.

Coordinates are XY, in pixels of the picture, measured from its top left corner; boxes are XYXY.
Sizes are (height, width).
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from anyres.errors import InputError, PromptError

_KEYS = ("points", "labels", "box", "mask")
_A_POINT = "X,Y or X,Y,LABEL with label 1 (object) or 0 (background), such as 420,310,1"
_A_BOX = "X0,Y0,X1,Y1 (left, top, right, bottom), such as 100,80,540,400"


# How far, in pixels, a box may reach outside the picture.
BOX_SLACK = 0.5


@dataclass(frozen=True, eq=False)
class Prompt:
    """What says which object is meant: any of points, a box and a rough mask, at least one.

    The arguments may be anything that numpy makes arrays of. Points, labels and box are copied; a
    bool mask is not.

    Attributes:
        points: (N, 2) float64 XY in pixels of the picture, or None.
        labels: (N,) int64, 1 for object and 0 for background; left out: all 1. None without points.
        box: (4,) float64 XYXY in pixels of the picture, x0 < x1 and y0 < y1, or None.
        mask: (H, W) bool at the size of the picture, or None. Integers with one value besides 0
            are taken, too.

    Raises:
        PromptError: a wrong shape or type, NaN or infinite numbers, another label, labels without
            points, a box without area, or nothing given.
    """

    points: npt.NDArray[np.float64] | None = None
    labels: npt.NDArray[np.int64] | None = None
    box: npt.NDArray[np.float64] | None = None
    mask: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        points, labels = _checked_points(self.points, self.labels)
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "box", None if self.box is None else _checked_box(self.box))
        object.__setattr__(self, "mask", None if self.mask is None else _checked_mask(self.mask))
        if self.points is None and self.box is None and self.mask is None:
            raise PromptError("the prompt is empty: give at least a point, a box or a mask")

    @classmethod
    def from_text(
        cls,
        points: Sequence[str] = (),
        box: str | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> Self:
        """Read a prompt as written on the command line.

        Args:
            points: each ``"X,Y"`` (an object's point) or ``"X,Y,LABEL"``.
            box: ``"X0,Y0,X1,Y1"``.
            mask: as in the class.

        Raises:
            PromptError: a text is not of that form, or the prompt makes no sense.
        """
        if isinstance(points, str):
            raise PromptError(f"points is the text {points!r}; it must be a list of texts")
        rows = [_numbers(text, "--point", (2, 3), _A_POINT) for text in points]
        for text, row in zip(points, rows, strict=True):
            if len(row) == 3 and row[2] not in (0, 1):
                raise PromptError(
                    f"--point {text!r}: the label is {row[2]:g}; it must be {_A_POINT}"
                )
        corners = None if box is None else _numbers(box, "--box", (4,), _A_BOX)
        return cls(
            points=np.array([row[:2] for row in rows]) if rows else None,
            labels=np.array([int(row[2]) if len(row) == 3 else 1 for row in rows])
            if rows
            else None,
            box=None if corners is None else np.array(corners),
            mask=mask,
        )

    @classmethod
    def from_json(
        cls, source: str | Mapping[str, Any], size_hw: tuple[int, ...] | None = None
    ) -> Self:
        """Read a prompt from a JSON object, as text or already parsed.

        Its keys are those of the class, each of which may be absent or null::

            {"points": [[420, 310], [50, 60]], "labels": [1, 0], "box": [100, 80, 540, 400]}

        A ``mask`` is COCO's uncompressed run lengths ``{"size": [H, W], "counts": [...]}``, which
        ``to_json`` writes, or a list of H rows of W zeros and ones.

        Args:
            source: the object.
            size_hw: (height, width) of the picture, if known. ``check_inside`` is then called, and
                run lengths of another size are refused before they take any memory: a few bytes
                can stand for any number of pixels.

        Raises:
            PromptError: no JSON object, an unknown key, or values that make no prompt.
        """
        if isinstance(source, str):
            try:
                source = json.loads(source)
            except (ValueError, RecursionError) as error:
                raise PromptError(f"the prompt is no valid JSON: {error}") from error
        if not isinstance(source, Mapping):
            kind = type(source).__name__
            raise PromptError(f'the prompt is a {kind}; it must be an object: {{"points": ...}}')
        for key in source:
            if key not in _KEYS:
                near = difflib.get_close_matches(str(key).lower(), _KEYS, 1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_KEYS)}"
                raise PromptError(f"the prompt has an unknown key {key!r}; {hint}")
        fields = dict(source)
        if isinstance(fields.get("mask"), Mapping):
            fields["mask"] = rle_to_mask(fields["mask"], size_hw)
        prompt = cls(**fields)
        if size_hw is not None:
            prompt.check_inside(size_hw)
        return prompt

    def to_json(self) -> dict[str, Any]:
        """The prompt as a JSON object without null values; ``from_json`` takes it back exactly."""
        result: dict[str, Any] = {}
        if self.points is not None and self.labels is not None:
            result |= {"points": self.points.tolist(), "labels": self.labels.tolist()}
        if self.box is not None:
            result["box"] = self.box.tolist()
        if self.mask is not None:
            result["mask"] = mask_to_rle(self.mask)
        return result

    def check_inside(self, size_hw: tuple[int, ...]) -> None:
        """Check that the prompt lies in a picture; its right and lower border belong to it.

        A box may reach out by `BOX_SLACK`: detectors round outwards.

        Args:
            size_hw: (height, width) of the picture.

        Raises:
            PromptError: something lies outside, or the mask has another size.
        """
        height, width = size_hw
        picture = f"the picture, which is {width}x{height} (width x height)"
        if self.points is not None:
            outside = ((self.points < 0) | (self.points > (width, height))).any(axis=1)
            if outside.any():
                first = int(outside.argmax())
                x, y = self.points[first]
                raise PromptError(
                    f"point {first + 1} of {len(self.points)}, x={x:.15g} y={y:.15g}, lies outside "
                    f"{picture}; coordinates are XY in its pixels"
                )
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            slack = BOX_SLACK
            if x0 < -slack or y0 < -slack or x1 > width + slack or y1 > height + slack:
                raise PromptError(
                    f"the box {_listed(self.box)} (x0, y0, x1, y1) reaches outside {picture}"
                )
        if self.mask is not None and self.mask.shape != (height, width):
            rows, columns = self.mask.shape
            raise PromptError(
                f"the mask is {columns}x{rows} and does not fit {picture}; they must be the same"
            )


@dataclass(frozen=True, eq=False)
class Masks:
    """What a model answered to one prompt; ``masks, scores, logits = answer`` takes it apart.

    Attributes:
        masks: (C, H, W) bool at the size of the picture, C at least 1.
        scores: (C,) float32, the overlap (IoU) with the object that the model expects of each.
        logits: (C, h, w) float32, before upscaling: the ``mask_input`` of a next prediction.

    Raises:
        InputError: shapes or types that do not fit.
    """

    masks: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        for name, kind in (("masks", np.bool_), ("scores", np.float32), ("logits", np.float32)):
            array = np.asarray(getattr(self, name))
            if (array.dtype.kind == "b") is not (kind is np.bool_) or array.dtype.kind not in "bf":
                raise InputError(f"{name} holds {array.dtype}; it must be {np.dtype(kind)}")
            object.__setattr__(self, name, array.astype(kind, copy=False))
        shapes = self.masks.shape, self.scores.shape, self.logits.shape
        ndims = self.masks.ndim, self.scores.ndim, self.logits.ndim
        if ndims != (3, 1, 3) or len({shape[0] for shape in shapes}) != 1:
            raise InputError(
                "masks, scores and logits are {}, {} and {}; they must be (C, H, W), (C,) and "
                "(C, h, w)".format(*shapes)
            )
        if 0 in shapes[0] or 0 in shapes[2]:
            raise InputError(f"masks are {shapes[0]} and logits {shapes[2]}; neither may be empty")

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        yield self.masks
        yield self.scores
        yield self.logits

    @property
    def best(self) -> int:
        """The index of the highest score, the first of equal ones."""
        return int(self.scores.argmax())


def mask_to_rle(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask as COCO's uncompressed run lengths.

    Args:
        mask: (H, W) bool.

    Returns:
        ``{"size": [H, W], "counts": [...]}``: lengths of runs down the columns, from the left, in
        turn of zeros and of ones; the first may be 0.
    """
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0] if flat.size and flat[0] else [], [0], borders, [flat.size]))
    return {"size": list(mask.shape), "counts": np.diff(edges).astype(np.int64).tolist()}


def rle_to_mask(
    rle: Mapping[str, Any], size_hw: tuple[int, ...] | None = None
) -> npt.NDArray[np.bool_]:
    """Decode what ``mask_to_rle`` encodes, to (H, W) bool.

    Args:
        rle: ``{"size": [H, W], "counts": [...]}``.
        size_hw: the size that it must have, if known; checked before anything is decoded.

    Raises:
        PromptError: keys or values of another form, counts that do not add up to the size, another
            size than ``size_hw``, or one that no memory can hold.
    """
    if set(rle) != {"size", "counts"}:
        raise PromptError(
            f'a mask has the keys "size" and "counts", not {", ".join(map(str, rle))}'
        )
    size, counts = _array(rle["size"], "size"), _array(rle["counts"], "counts")
    for name, array in (("size", size), ("counts", counts)):
        if array.ndim != 1 or array.dtype.kind not in "iu" or (array < 0).any():
            raise PromptError(f"{name} of the mask must be a list of whole numbers from 0")
    if size.shape != (2,) or not size.all():
        raise PromptError(f"size of the mask is {size.tolist()}; it must be [height, width]")
    height, width = map(int, size)
    # Python's integers: nothing overflows, and nothing large is made before this has been checked.
    if sum(counts.tolist()) != height * width:
        raise PromptError(
            f"counts of the mask add up to {sum(counts.tolist())}, "
            f"its size {height}x{width} needs {height * width}"
        )
    if size_hw is not None and (height, width) != tuple(size_hw):
        raise PromptError(
            f"the mask is {width}x{height}, not the {size_hw[1]}x{size_hw[0]} of the picture "
            "(width x height)"
        )
    try:
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    except (MemoryError, ValueError, OverflowError) as error:
        raise PromptError(f"a mask of {width}x{height} is too large: {error}") from error
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _numbers(text: str, option: str, counts: tuple[int, ...], form: str) -> list[float]:
    parts = text.split(",")
    if len(parts) not in counts:
        wanted = " or ".join(map(str, counts))
        raise PromptError(
            f"{option} {text!r}: it has {len(parts)} parts, not {wanted}; it must be {form}"
        )
    numbers = []
    for part in parts:
        try:
            # Python reads 1_000 as a number, too; on a command line it is a slip of the finger.
            number = float(part.replace("_", "?"))
        except ValueError:
            raise PromptError(
                f"{option} {text!r}: {part.strip()!r} is no number; it must be {form}"
            ) from None
        if not math.isfinite(number):
            raise PromptError(
                f"{option} {text!r}: {part.strip()!r} is not finite; it must be {form}"
            )
        numbers.append(number)
    return numbers


def _array(value: Any, name: str, kinds: str = "iuf") -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} is no array of numbers: {error}") from error
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in kinds:
        raise PromptError(f"{name} must hold real numbers, not {array.dtype}")
    return array


def _checked_points(
    points: Any, labels: Any
) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.int64] | None]:
    if points is None:
        if labels is not None and np.size(labels):
            raise PromptError("labels without points: there is nothing to label")
        return None, None
    xy = _array(points, "points").astype(np.float64)
    if xy.shape in ((0,), (0, 2)):
        return _checked_points(None, labels)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise PromptError(f"points are {xy.shape}; they must be (N, 2), such as [[420, 310]]")
    finite = np.isfinite(xy).all(axis=1)
    if not finite.all():
        first = int(finite.argmin())
        raise PromptError(f"point {first + 1} of {len(xy)} is {_listed(xy[first])}: not finite")
    if labels is None:
        return xy, np.ones(len(xy), np.int64)
    given = _array(labels, "labels", "biuf")
    if given.shape != (len(xy),):
        raise PromptError(f"labels are {given.shape}; {len(xy)} points need ({len(xy)},)")
    known = (given == 0) | (given == 1)
    if not known.all():
        first = int(known.argmin())
        raise PromptError(
            f"label {first + 1} of {len(given)} is {given[first]}; "
            "it must be 1 (object) or 0 (background)"
        )
    return xy, given.astype(np.int64)


def _checked_box(box: Any) -> npt.NDArray[np.float64]:
    xyxy = _array(box, "box").astype(np.float64)
    if xyxy.shape != (4,):
        raise PromptError(f"the box is {xyxy.shape}; it must be (4,): x0, y0, x1, y1")
    if not np.isfinite(xyxy).all():
        raise PromptError(f"the box {_listed(xyxy)} is not finite")
    if not (xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3]):
        raise PromptError(
            f"the box {_listed(xyxy)} has no area: it must be x0, y0, x1, y1 (left, top, right, "
            "bottom) with x0 < x1 and y0 < y1"
        )
    return xyxy


def _checked_mask(mask: Any) -> npt.NDArray[np.bool_]:
    array = _array(mask, "mask", "biuf")
    if array.ndim != 2 or not array.size:
        raise PromptError(f"the mask is {array.shape}; it must be (H, W), the picture's size")
    if array.dtype.kind == "f":
        raise PromptError(f"the mask holds {array.dtype}; it must be bool: pass `mask > 0`")
    if array.dtype.kind != "b":
        values = array[array != 0]
        if values.size and values.min() != values.max():
            raise PromptError(
                f"the mask holds several values, {values.min()} and {values.max()} among them; "
                f"pick one object: `mask == {values.max()}`"
            )
        array = array != 0
    return array


def _listed(values: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.15g}" for value in values)
