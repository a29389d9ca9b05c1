"""Average precision of instances: COCO's, computed by its own code (pycocotools)."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyres.errors import InputError, MissingExtraError, StateError
from anyres.metrics.maps import binary

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # in COCOeval's order

Rle = dict[str, Any]
Masks = Sequence[NDArray[Any] | Rle]


@dataclass(frozen=True)
class Instances:
    """The instances in one picture, as predicted or as they are.

    Attributes:
        masks: (H, W) bool or 0 and 1, or COCO's compressed run lengths (``size``, ``counts``).
        classes: category of each, any integers.
        scores: of predictions, the greater the surer.
        crowds: of the truth: True for a mask of many, which may be found any number of times.
        areas: of the truth, in pixels: COCO's annotated ones, which sort into small, medium and
            large; None counts the masks' pixels.
    """

    masks: Masks
    classes: Sequence[int]
    scores: Sequence[float] | None = None
    crowds: Sequence[bool] | None = None
    areas: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check that all have one entry a mask.

        Raises:
            InputError: they have not.
        """
        for name in ("classes", "scores", "crowds", "areas"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self.masks):
                raise InputError(f"there are {len(self.masks)} masks, and {len(given)} {name}")


class AveragePrecision:
    """COCO's average precision of masks; keeps them as run lengths."""

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] = []
        self._found: list[dict[str, Any]] = []
        self._wanted: list[dict[str, Any]] = []

    def update(self, prediction: Instances, target: Instances) -> None:
        """Add one picture.

        Raises:
            InputError: predictions without scores, or masks that are not of one size.
            MissingExtraError: pycocotools is not installed.
        """
        if prediction.scores is None:
            raise InputError("predictions need scores; give 1.0 to all if there are none")
        found, wanted = _encode(prediction, "prediction"), _encode(target, "target")
        sizes = {tuple(rle["size"]) for rle in found + wanted}
        if len(sizes) > 1:
            raise InputError(f"the masks of a picture are of several sizes: {sorted(sizes)}")
        height, width = next(iter(sizes), (0, 0))
        self._sizes.append((height, width))
        picture = len(self._sizes)
        scores = prediction.scores
        for place, rle in enumerate(found):
            self._found.append(
                {
                    "image_id": picture,
                    "category_id": int(prediction.classes[place]),
                    "segmentation": rle,
                    "score": float(scores[place]),
                }
            )
        coco_mask = _pycocotools().mask
        for place, rle in enumerate(wanted):
            area = target.areas[place] if target.areas else coco_mask.area(rle)
            self._wanted.append(
                {
                    "id": len(self._wanted) + 1,
                    "image_id": picture,
                    "category_id": int(target.classes[place]),
                    "segmentation": rle,
                    "area": float(area),
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "iscrowd": int(bool(target.crowds and target.crowds[place])),
                }
            )

    def result(self) -> dict[str, float]:
        """Return COCO's six figures over all pictures.

        Returns:
            ``pictures``; ``ap``: mean over the IoU thresholds 0.50, 0.55, ... 0.95 and the
            classes; ``ap50, ap75``: at one; ``ap_small, ap_medium, ap_large``: of objects up to
            32², up to 96², and above, in pixels. -1 where there is no such object, as in COCO's
            tables.

        Raises:
            StateError: no picture yet.
            MissingExtraError: pycocotools is not installed.
        """
        if not self._sizes:
            raise StateError("there is no picture yet; call update() first")
        tools = _pycocotools()
        classes = {entry["category_id"] for entry in self._wanted + self._found}
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of each step
            truth = tools.coco.COCO()
            truth.dataset = {
                "info": {},
                "images": [
                    {"id": number, "height": height, "width": width}
                    for number, (height, width) in enumerate(self._sizes, start=1)
                ],
                "categories": [{"id": number} for number in sorted(classes)],
                "annotations": self._wanted,
            }
            truth.createIndex()
            # It adds entries to what it is given.
            found = [dict(entry) for entry in self._found]
            answers = truth.loadRes(found) if found else tools.coco.COCO()
            scoring = tools.cocoeval.COCOeval(truth, answers, "segm")
            scoring.evaluate()
            scoring.accumulate()
            scoring.summarize()
        figures = dict(zip(NAMES, map(float, scoring.stats), strict=False))
        return {"pictures": len(self._sizes), **figures}


def _encode(instances: Instances, name: str) -> list[Rle]:
    """Return the masks as COCO's compressed run lengths."""
    encode = _pycocotools().mask.encode
    return [
        mask
        if isinstance(mask, dict)
        else encode(np.asfortranarray(binary(mask, name).view(np.uint8)))
        for mask in instances.masks
    ]


def _pycocotools() -> Any:
    """Import pycocotools and the parts of it that are used."""
    try:
        import pycocotools
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise MissingExtraError(
            'average precision needs pycocotools; install it with: pip install "anyres[eval]"'
        ) from error
    return pycocotools
