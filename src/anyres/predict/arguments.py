"""Checks of what callers hand to the predictor, each with a message that says what to do.

Axes: P prompts, N points. Coordinates are XY; boxes XYXY.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anyres.errors import InputError, PromptError
from anyres.geometry import Frame
from anyres.predict.postprocess import mask_to_logits
from anyres.types import Prompt

# One prompt: points (N, 2), labels (N,), box (4,) in picture pixels; mask logits (1, h, w).
_Floats = npt.NDArray[np.float64]
Parts = tuple[npt.NDArray[Any] | None, ...]


def parts(prompt: Prompt, frame: Frame) -> Parts:
    """A prompt's arrays, its mask as logits."""
    mask = None if prompt.mask is None else mask_to_logits(prompt.mask, frame)
    return prompt.points, prompt.labels, prompt.box, mask


def numpy_prompt(
    point_coords: Any, point_labels: Any, box: Any, picture_hw: tuple[int, int]
) -> tuple[_Floats | None, npt.NDArray[np.int64] | None, _Floats | None]:
    """Check the arguments of ``Predictor.predict``, in pixels of the picture.

    Returns:
        Points (N, 2), labels (N,) and box (4,), each None where it was.

    Raises:
        PromptError: a wrong shape, not finite, a label that is not 0 or 1, points without labels,
            labels without points, or outside the picture.
    """
    if (point_coords is None) != (point_labels is None):
        names = ["point_coords", "point_labels"]
        absent, given = names if point_coords is None else reversed(names)
        raise PromptError(f"{given} without {absent}: each point needs one label, 1 or 0")
    if point_coords is None and box is None:
        return None, None, None
    if box is not None:
        box = _array(box, "box")
        if box.shape == (1, 4):
            # Segment Anything's own examples pass box[None, :].
            box = box[0]
    if point_coords is not None:
        point_coords = _array(point_coords, "point_coords")
        point_labels = _array(point_labels, "point_labels")
        if point_coords.shape == (0, 2) and point_labels.shape == (0,):
            point_coords = point_labels = None
            if box is None:
                return None, None, None
    prompt = Prompt(points=point_coords, labels=point_labels, box=box)
    prompt.check_inside(picture_hw)
    return prompt.points, prompt.labels, prompt.box


def _array(value: Any, name: str) -> npt.NDArray[np.float64]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PromptError(f"{name} is no array of numbers: {error}") from error


def numpy_mask_input(mask_input: Any, frame: Frame) -> npt.NDArray[np.float32]:
    """Check logits (1, h, w) given back to ``Predictor.predict``.

    Raises:
        PromptError: a wrong shape or grid, or a binary mask.
    """
    if isinstance(mask_input, Tensor):
        mask_input = mask_input.detach().float().cpu()
    array = np.asarray(mask_input)
    if array.dtype == np.bool_:
        raise PromptError(
            "mask_input holds the low-resolution logits of an earlier answer; "
            "pass a binary mask to refine() instead"
        )
    if array.ndim != 3 or array.shape[0] != 1:
        raise PromptError(
            f"mask_input is {array.shape}; it must be (1, h, w), one low-resolution answer "
            "such as logits[best][None]"
        )
    _check_grid(array.shape[1:], frame)
    return array.astype(np.float32)


def torch_prompts(
    point_coords: Tensor | None,
    point_labels: Tensor | None,
    boxes: Tensor | None,
    mask_input: Tensor | None,
    frame: Frame,
) -> int:
    """Check the arguments of ``Predictor.predict_torch``, in pixels of the model input.

    Returns:
        How many prompts there are: 1 if nothing is given.

    Raises:
        PromptError: wrong shapes, counts that differ, not finite, or unknown labels.
    """
    counts: dict[str, int] = {}
    if point_coords is not None:
        if point_coords.ndim != 3 or point_coords.shape[2] != 2:
            raise PromptError(f"point_coords is {_shape(point_coords)}; it must be (P, N, 2)")
        if point_labels is None:
            raise PromptError("point_coords without point_labels: each point needs a label")
        if point_labels.shape != point_coords.shape[:2]:
            raise PromptError(
                f"point_labels is {_shape(point_labels)}; point_coords {_shape(point_coords)} "
                f"needs {tuple(point_coords.shape[:2])}"
            )
        known = (point_labels == 1) | (point_labels == 0) | (point_labels == -1)
        if not bool(known.all()):
            wrong = point_labels[~known].flatten()[0].item()
            raise PromptError(f"a point label is {wrong}; labels are 1, 0, or -1 for padding")
        counts["point_coords"] = point_coords.shape[0]
    elif point_labels is not None:
        raise PromptError("point_labels without point_coords: there is nothing to label")
    if boxes is not None:
        if boxes.ndim not in (2, 3) or boxes.shape[-1] != 4:
            raise PromptError(f"boxes is {_shape(boxes)}; it must be (P, 4) XYXY")
        if boxes.ndim == 3 and boxes.shape[1] != 1:
            raise PromptError(f"boxes is {_shape(boxes)}; a prompt has at most one box: (P, 4)")
        counts["boxes"] = boxes.shape[0]
    if mask_input is not None:
        if mask_input.ndim != 4 or mask_input.shape[1] != 1:
            raise PromptError(f"mask_input is {_shape(mask_input)}; it must be (P, 1, h, w) logits")
        _check_grid(tuple(mask_input.shape[2:]), frame)
        counts["mask_input"] = mask_input.shape[0]
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise PromptError(f"the prompts differ in number: {listed}")
    for name, value in (
        ("point_coords", point_coords),
        ("boxes", boxes),
        ("mask_input", mask_input),
    ):
        # The sum first, which is quick, also for the logits of a large mask.
        if value is not None and not (value.sum().isfinite() or value.isfinite().all()):
            raise PromptError(f"{name} holds NaN or infinite numbers")
    return next(iter(counts.values()), 1)


def stack(
    prompts: Sequence[Parts], frame: Frame, device: torch.device
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Prompts of one structure as the arguments of ``Predictor.predict_torch``.

    Args:
        prompts: P prompts, of which each has the same parts.
        frame: brings them from the picture to the model input.
        device: where they go.

    Returns:
        Points (P, N, 2), labels (P, N), boxes (P, 4) and mask logits (P, 1, h, w).
    """

    def tensor(part: int, kind: torch.dtype) -> Tensor | None:
        values = [prompt[part] for prompt in prompts]
        arrays = [value for value in values if value is not None]
        if not arrays:
            return None
        stacked = np.stack(arrays)
        if part == 0:
            stacked = frame.to_input(stacked)
        elif part == 2:
            stacked = frame.box_to_input(stacked)
        return torch.as_tensor(stacked, dtype=kind, device=device)

    points, labels = tensor(0, torch.float32), tensor(1, torch.int64)
    return points, labels, tensor(2, torch.float32), tensor(3, torch.float32)


def known_mask(mask: Any, frame: Frame) -> tuple[npt.NDArray[Any], bool]:
    """Tell a binary mask of the picture from logits of the grid, for ``Predictor.refine``.

    Returns:
        Either (H, W) bool and True, or (1, h, w) float32 and False.

    Raises:
        PromptError: it is neither.
    """
    array = np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask)
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.dtype.kind == "f":
        if array.shape == frame.picture_hw and array.shape != frame.logits_hw:
            raise PromptError("a float mask of picture size is ambiguous: pass `mask > 0` instead")
        return numpy_mask_input(array[None], frame), False
    if array.dtype.kind not in "bui":
        raise PromptError(f"a mask of {array.dtype} cannot be used; pass bool or float logits")
    if array.shape != frame.picture_hw:
        raise PromptError(
            f"the mask is {array.shape}, the picture {frame.picture_hw} (rows, columns)"
        )
    if array.dtype != np.bool_ and len(np.unique(array[array != 0])) > 1:
        raise PromptError("the mask holds several values; pick one object, such as `mask == 3`")
    return array != 0, True


def check_image_format(image_format: str, image: Any) -> None:
    """Raise InputError unless the format is RGB, or BGR of an array."""
    if image_format not in ("RGB", "BGR"):
        raise InputError(f"image_format is {image_format!r}; it must be 'RGB' or 'BGR'")
    if image_format == "BGR" and not isinstance(image, np.ndarray):
        raise InputError(
            "image_format='BGR' is for arrays; files and PIL images know their own channels"
        )


def _check_grid(grid_hw: tuple[int, ...], frame: Frame) -> None:
    if tuple(grid_hw) != tuple(frame.logits_hw):
        raise PromptError(
            f"mask_input is {grid_hw[0]}x{grid_hw[1]} (rows x columns), but this picture's logits "
            f"are {frame.logits_hw[0]}x{frame.logits_hw[1]}: pass logits that this predictor gave "
            "for this picture and resolution, or a binary mask to refine()"
        )


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
