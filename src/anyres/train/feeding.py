"""How large pictures of one kind are best fed to a model that takes them at any size.

More pixels show thin things, fewer show a large thing as a whole: which counts for more is another
matter for every kind of picture, and is tried out on those that the model is to be trained on.
"""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from anyres.evaluate.protocols import Target, try_clicks
from anyres.models.segmenter import Segmenter
from anyres.predict.assets import EMBEDDED
from anyres.predict.load import choose_dtype, put
from anyres.predict.predictor import Predictor
from anyres.predict.resolution import long_side
from anyres.train import checkpoint
from anyres.train.config import TrainConfig
from anyres.train.samples import SampleStream, stream_of
from anyres.train.start import read_named

Report = Callable[[int, int], None]

OBJECTS = 16
CLICKS = 8
MARGIN = 0.05  # a lead in IoU that is worth giving pixels up, which clicks after the eighth need


def settled(
    config: TrainConfig,
    data: Path,
    out: Path,
    device: torch.device,
    report: Report | None = None,
) -> TrainConfig:
    """The settings of a run with the long side that is found best among their ``limits``.

    A run that goes on keeps what it found at first. A model that is fed one size only keeps that.

    Args:
        config: the settings.
        data: folder of training sets.
        out: folder of the run.
        device: as in ``choose_limit``.
        report: as in ``choose_limit``.

    Raises:
        InputError: no data, or a picture or mask that cannot be read.
        WeightsError: weights or checkpoint are missing or damaged.
    """
    if not config.limits or config.native_limit:
        return config
    saved = checkpoint.load(out)
    if saved is not None:
        known = json.loads(saved.get("config", "{}")).get("native_limit", 0)
        return replace(config, native_limit=known)
    model = read_named(config.start, config.model or EMBEDDED)
    if not model.config.native_limit:
        return config
    limit = choose_limit(model, stream_of(config, data), config.limits, device, report)
    return replace(config, native_limit=limit)


def choose_limit(
    model: Segmenter,
    stream: SampleStream,
    limits: Sequence[int],
    device: torch.device,
    report: Report | None = None,
) -> int:
    """Find the long side to which larger pictures are best shrunk.

    Each size is tried with clicks on the same objects. The largest wins of those that the best is
    not ahead of by more than ``MARGIN``, or the standard error of the difference if that is more.

    Args:
        model: as it is before it is trained on them; left as it was.
        stream: of the pictures.
        limits: in pixels; the model's own is tried, too.
        device: where it is tried.
        report: is told (objects tried, of how many).

    Returns:
        One of ``limits``, or the model's own; its own if no picture is larger than a smaller one.

    Raises:
        InputError: a picture or mask cannot be read.
    """
    own = model.config.native_limit
    sizes = sorted({own, *(limit for limit in limits if limit < own)}, reverse=True)
    used = put(copy.deepcopy(model), device, choose_dtype("auto", device, model.config))
    scores = []
    for number in range(OBJECTS):
        example = stream.example(number, OBJECTS)
        if example is not None:
            scores.append(_scores(used, *example, sizes))
        if report is not None:
            report(number + 1, OBJECTS)
    return sizes[largest_good(np.array(scores).reshape(-1, len(sizes)))]


def largest_good(scores: NDArray[np.float64]) -> int:
    """Choose a column of (objects, sizes), sizes descending, as ``choose_limit`` describes it."""
    if len(scores) < 2:
        return 0
    lead = scores[:, [scores.mean(0).argmax()]] - scores
    error = lead.std(0, ddof=1) / len(scores) ** 0.5
    return int(np.argmax(lead.mean(0) <= np.maximum(error, MARGIN)))


def _scores(
    model: Segmenter, image: NDArray[np.uint8], target: NDArray[np.uint8], sizes: Sequence[int]
) -> list[float]:
    """The mean IoU over the clicks on one object, for each size."""
    picture_hw = (image.shape[0], image.shape[1])
    sides = [long_side(picture_hw, "native", size, model.config) for size in sizes]
    if len(set(sides)) == 1:
        return [0.0] * len(sizes)  # whatever it is, it is the same
    truth = Target(target)
    known: dict[int, float] = {}
    for side in set(sides):
        predictor = Predictor(model, resolution=side)
        predictor.set_image(image)
        ious = try_clicks(predictor, truth, CLICKS).ious
        known[side] = float(np.mean(ious + ious[-1:] * (CLICKS - len(ious))))
    return [known[side] for side in sides]
