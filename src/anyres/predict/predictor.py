"""The predictor: set a picture once, then ask for masks as often as wanted.

A drop-in for Segment Anything's ``SamPredictor`` (Kirillov et al. 2023): methods, attributes,
argument names and shapes are the same. Frames: *picture* is the picture as given, *model input*
is the picture after resizing, both XY in pixels. Axes: P prompts, C masks of one prompt, (H, W)
picture, (h, w) logits, which are four times the token grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from anyres.data.images import read_image
from anyres.data.transforms import ResizeLongestSide
from anyres.errors import InputError, StateError
from anyres.geometry import Frame
from anyres.models.config import Pad
from anyres.models.segmenter import Prepared, Segmenter
from anyres.predict import arguments, embeddings, memory
from anyres.predict.postprocess import mask_to_logits, upscale
from anyres.predict.resolution import Resolution, fit, known_pad, known_resolution, long_side
from anyres.types import Masks, Prompt

_Arrays = tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.float32]]

# Tokens times prompts that one decoder call of predict_batch handles: bounds its memory.
_BATCH_TOKENS = 2**17


@dataclass(frozen=True)
class _Picture:
    """Everything known about the picture that is set."""

    frame: Frame
    pad: Pad
    prepared: Prepared


class Predictor:
    """Masks of one picture at a time, from points, a box or an earlier mask.

    ``resolution`` is the long side fed to the model, in pixels:

    - an int: every picture is brought to it.
    - ``"train"``: the model's own, ``config.image_size``.
    - ``"native"``: the picture's own size.
    - None: ``"train"`` for models of one size (SAM), else native from that to ``native_limit``.

    Pictures smaller than one attention window are enlarged to it. ``pad`` is ``"square"`` (SAM's:
    masks are upsampled in SAM's two steps) or ``"patch"`` (only to a multiple of the patch: faster
    for pictures that are not square; masks are upsampled once); None takes ``config.pad``. A model
    that was trained in squares is always padded to one at ``"train"``, where its answers are the
    official ones. ``memory_limit`` is what encoding may take beside the weights: bytes, or text
    such as ``"8GB"``; None is what is available when it begins.

    ``transform`` brings coordinates from the picture that is set to the model input; where the
    resolution is native it is another after each ``set_image``.
    The model is put into evaluation mode. It is only read, so predictors may share one. Gradients
    are not recorded, but embeddings and answers are ordinary tensors.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        resolution: Resolution | None = None,
        pad: Pad | None = None,
        memory_limit: int | str | None = None,
    ) -> None:
        self.model, config = model.eval(), model.config
        self.resolution = known_resolution(resolution, config)
        self.pad = known_pad(pad, resolution, config)
        self.memory_limit = memory.known_limit(memory_limit)
        self._limit = config.native_limit if resolution is None else 0
        start = config.image_size if self.resolution == "native" else self.resolution
        self.transform = ResizeLongestSide(start)
        self.reset_image()

    def set_image(
        self,
        image: npt.NDArray[Any] | Image.Image | str | Path | bytes,
        image_format: str = "RGB",
    ) -> None:
        """Compute the embedding of a picture.

        If this fails, no picture is set: a former one is forgotten in any case.

        Args:
            image: (H, W, 3) uint8 array with values 0..255; or anything that
                ``anyres.data.images.read_image`` takes: a path, the bytes of a file, a PIL image,
                arrays that are grey, 16-bit or have an alpha channel.
            image_format: ``"RGB"`` or ``"BGR"``: the order of an array's channels.

        Raises:
            ImageError: the picture is missing, broken, empty or too large.
            InputError: a wrong ``image_format`` or shape.
        """
        self.reset_image()
        arguments.check_image_format(image_format, image)
        pixels = read_image(image)
        pixels = pixels[..., ::-1] if image_format == "BGR" else pixels
        picture_hw = (pixels.shape[0], pixels.shape[1])
        side = long_side(picture_hw, self.resolution, self._limit, self.model.config)
        transform = ResizeLongestSide(side)
        resized = np.ascontiguousarray(transform.apply_image(pixels))
        tensor = torch.as_tensor(resized, device=self.device)
        self.set_torch_image(tensor.permute(2, 0, 1).contiguous()[None], picture_hw)

    @torch.no_grad()
    def set_torch_image(
        self, transformed_image: Tensor, original_image_size: tuple[int, ...]
    ) -> None:
        """Compute the embedding of a picture that is already resized.

        Args:
            transformed_image: (1, 3, h, w) RGB, 0..255, uint8 or float, resized by ``transform``.
            original_image_size: (H, W) of the picture before.

        Raises:
            InputError: a wrong shape, or not the size that ``transform`` gives.
            MemoryLimitError: encoding would take more memory than there is, or than the limit.
        """
        self.reset_image()
        shape = tuple(transformed_image.shape)
        if len(shape) != 4 or shape[:2] != (1, 3) or 0 in shape:
            raise InputError(f"transformed_image is {shape}; it must be (1, 3, h, w), RGB")
        height, width = (int(side) for side in original_image_size[:2])
        if height < 1 or width < 1:
            raise InputError(f"original_image_size is {(height, width)}; both must be at least 1")
        if self.resolution != "native" and max(shape[2:]) != self.resolution:
            raise InputError(
                f"transformed_image has a long side of {max(shape[2:])}; this predictor works at "
                f"{self.resolution}: resize with predictor.transform, or use set_image"
            )
        frame = fit((height, width), max(shape[2:]), self.pad, self.model.config)
        if shape[2:] != tuple(frame.resized_hw):
            raise InputError(
                f"transformed_image is {shape[2:]}, but a picture of {(height, width)} becomes "
                f"{frame.resized_hw}: resize with predictor.transform, which keeps the proportions"
            )
        memory.check(self.model, frame, self.pad, self.memory_limit)
        pixels = self.model.preprocess(transformed_image, frame.input_hw)
        prepared = self.model.prepare(self.model.encode(pixels))
        self._set(_Picture(frame, self.pad, prepared))

    def reset_image(self) -> None:
        """Forget the picture."""
        self._picture: _Picture | None = None

    def _set(self, picture: _Picture) -> None:
        self.transform = ResizeLongestSide(max(picture.frame.resized_hw))
        self._picture = picture

    def predict(
        self,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        mask_input: npt.ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> _Arrays:
        """Predict masks for one prompt. Without any, the model answers for the whole picture.

        Args:
            point_coords: (N, 2) XY in pixels of the picture.
            point_labels: (N,) 1 for the object, 0 for what is not.
            box: (4,) XYXY in pixels of the picture.
            mask_input: (1, h, w) logits of an earlier answer.
            multimask_output: three masks, for prompts that may mean several things, or one.
            return_logits: give logits instead of bool masks.

        Returns:
            Masks (C, H, W), bool, or float32 with ``return_logits``; scores (C,), the predicted
            IoU; logits (C, h, w), to be passed as ``mask_input``.

        Raises:
            StateError: no picture is set.
            PromptError: a prompt is malformed or outside the picture.
        """
        frame = self._current().frame
        points, labels, corners = arguments.numpy_prompt(
            point_coords, point_labels, box, frame.picture_hw
        )
        previous = None
        if mask_input is not None:
            previous = arguments.numpy_mask_input(mask_input, frame)
        prompts = arguments.stack([(points, labels, corners, previous)], frame, self.device)
        answer = self.predict_torch(
            *prompts, multimask_output=multimask_output, return_logits=return_logits
        )
        masks, scores, logits = (part[0].cpu().numpy() for part in answer)
        return masks, scores, logits

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict masks for a batch of prompts in the frame of the model input.

        Args:
            point_coords: (P, N, 2) XY, brought there by ``transform.apply_coords_torch``.
            point_labels: (P, N): 1 object, 0 not, -1 padding.
            boxes: (P, 4) XYXY, brought there by ``transform.apply_boxes_torch``.
            mask_input: (P, 1, h, w) logits of an earlier answer.
            multimask_output: three masks a prompt instead of one.
            return_logits: give logits instead of bool masks.

        Returns:
            Masks (P, C, H, W), scores (P, C), logits (P, C, h, w).

        Raises:
            StateError: no picture is set.
            PromptError: shapes that do not fit, NaN, or unknown labels.
        """
        picture = self._current()
        frame = picture.frame
        coords, labels, boxes, mask_input = (
            None if value is None else value.to(self.device)
            for value in (point_coords, point_labels, boxes, mask_input)
        )
        count = arguments.torch_prompts(coords, labels, boxes, mask_input, frame)
        if count == 0:
            # A detector that found nothing hands on no boxes: no masks.
            c = self.model.config.decoder.multimask_outputs if multimask_output else 1
            logits = torch.zeros(0, c, *frame.logits_hw, device=self.device)
            scores = logits.new_zeros(0, c)
        else:
            logits, scores = self.model.decode(
                picture.prepared,
                points=None if coords is None or labels is None else (coords, labels),
                boxes=None if boxes is None else boxes.reshape(-1, 4),
                masks=mask_input,
                multimask=multimask_output,
            )
            logits, scores = logits.float(), scores.float()
        threshold = None if return_logits else float(self.model.mask_threshold)
        masks = upscale(logits, frame, two_step=picture.pad == "square", threshold=threshold)
        return masks, scores, logits

    def predict_batch(
        self, prompts: Sequence[Prompt], *, multimask_output: bool = True
    ) -> list[Masks]:
        """Predict masks for many prompts: those of the same structure together.

        Args:
            prompts: each with any of points, box and mask, in pixels of the picture.
            multimask_output: three masks a prompt instead of one.

        Returns:
            One ``Masks`` for each prompt, in their order.

        Raises:
            StateError: no picture is set.
            PromptError: a prompt lies outside the picture.
        """
        frame = self._current().frame
        groups: dict[tuple[int, bool, bool], list[int]] = {}
        for index, prompt in enumerate(prompts):
            prompt.check_inside(frame.picture_hw)
            points = 0 if prompt.points is None else len(prompt.points)
            structure = (points, prompt.box is not None, prompt.mask is not None)
            groups.setdefault(structure, []).append(index)
        answers: dict[int, Masks] = {}
        step = max(1, _BATCH_TOKENS // (frame.grid_hw[0] * frame.grid_hw[1]))
        for members in groups.values():
            for start in range(0, len(members), step):
                part = members[start : start + step]
                given = [arguments.parts(prompts[i], frame) for i in part]
                batch = arguments.stack(given, frame, self.device)
                answer = self.predict_torch(*batch, multimask_output=multimask_output)
                for i, *each in zip(part, *(x.cpu().numpy() for x in answer), strict=True):
                    answers[i] = Masks(*each)
        return [answers[index] for index in range(len(prompts))]

    def refine(
        self,
        mask: npt.ArrayLike,
        *,
        point_coords: npt.ArrayLike | None = None,
        point_labels: npt.ArrayLike | None = None,
        box: npt.ArrayLike | None = None,
        return_logits: bool = False,
    ) -> _Arrays:
        """Improve a mask from anywhere: another model, an annotation, an earlier answer.

        A click or a box beside the mask helps: in training, masks come with clicks.

        Args:
            mask: (H, W) or (1, H, W) bool, or integers with one value that is not 0, at the size
                of the picture; or float logits (h, w) or (1, h, w) of this picture's grid.
            point_coords: (N, 2) XY in pixels of the picture: corrections.
            point_labels: (N,) 1 or 0.
            box: (4,) XYXY in pixels of the picture.
            return_logits: give logits instead of a bool mask.

        Returns:
            As ``predict``, with one mask.

        Raises:
            StateError: no picture is set.
            PromptError: the mask is neither, or a prompt makes no sense here.
        """
        frame = self._current().frame
        array, binary = arguments.known_mask(mask, frame)
        logits = mask_to_logits(array, frame) if binary else array
        return self.predict(
            point_coords, point_labels, box, logits, multimask_output=False,
            return_logits=return_logits,
        )  # fmt: skip

    def get_image_embedding(self) -> Tensor:
        """The embedding of the picture, (1, C, h / 4, w / 4), float32.

        Raises:
            StateError: no picture is set.
        """
        # As Segment Anything gives it: numpy knows no bfloat16.
        return self._current("generate an embedding").prepared.features.embedding.float()

    def save_embedding(self, path: str | Path) -> None:
        """Write what is known about the picture to a ``.safetensors`` file, atomically.

        It holds the embedding, not the picture, and fits only this model's weights.

        Raises:
            StateError: no picture is set.
        """
        picture = self._current("save an embedding")
        features = picture.prepared.features
        embeddings.save(Path(path), self.model, picture.frame, picture.pad, features)

    @torch.no_grad()
    def load_embedding(self, path: str | Path) -> None:
        """Set the picture from a file of ``save_embedding``, whatever resolution it was made at.

        Raises:
            InputError: the file is missing, damaged, or was made by another model.
        """
        self.reset_image()
        frame, pad, features = embeddings.load(Path(path), self.model)
        self._set(_Picture(frame, pad, self.model.prepare(features)))

    def _current(self, purpose: str = "predict masks") -> _Picture:
        if self._picture is None:
            raise StateError(f"no picture is set: call set_image(...) before you {purpose}")
        return self._picture

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def is_image_set(self) -> bool:
        """Whether a picture is set."""
        return self._picture is not None

    @property
    def features(self) -> Tensor | None:
        """The embedding (1, C, h / 4, w / 4), float32, or None."""
        return None if self._picture is None else self._picture.prepared.features.embedding.float()

    @property
    def frame(self) -> Frame | None:
        """How the picture lies in the model input, or None."""
        return None if self._picture is None else self._picture.frame

    @property
    def original_size(self) -> tuple[int, int] | None:
        """(H, W) of the picture, or None."""
        return None if self._picture is None else self._picture.frame.picture_hw

    @property
    def input_size(self) -> tuple[int, int] | None:
        """(h, w) of the resized picture in the model input, without padding, or None."""
        return None if self._picture is None else self._picture.frame.resized_hw

    @property
    def orig_h(self) -> int | None:
        """Height of the picture, or None."""
        return None if self._picture is None else self._picture.frame.picture_hw[0]

    @property
    def orig_w(self) -> int | None:
        """Width of the picture, or None."""
        return None if self._picture is None else self._picture.frame.picture_hw[1]
