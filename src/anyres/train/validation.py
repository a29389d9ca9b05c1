"""Trying the averaged weights on pictures that are not trained on, while a run lasts."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from anyres.data.datasets import leaks, open_dataset
from anyres.errors import InputError
from anyres.evaluate.protocols import Rules
from anyres.evaluate.run import Task, work
from anyres.evaluate.sheets import draw_sheet
from anyres.metrics.interactive import clicks_to_reach
from anyres.models.segmenter import Segmenter
from anyres.predict.load import choose_dtype, put
from anyres.predict.predictor import Predictor
from anyres.train.config import TrainConfig

T = TypeVar("T")

_SHOWN = 12  # objects on a sheet


class Validation:
    """Some objects of a data set, clicked on by the protocol of `anyres.evaluate`.

    Args:
        config: names the folder, how many objects and how many clicks.
        device: where the model is tried.

    Raises:
        InputError: no such data set, or nothing in it.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._clicks = config.validation_clicks
        self._dtype = config.dtype
        self._device = device
        dataset = open_dataset(config.validation, layout=config.validation_layout)
        self._task = Task(dataset, Rules(clicks=self._clicks))
        self.refs = _spread(dataset.objects, config.validation_objects)

    def check(self, model: Segmenter) -> None:
        """Make sure that the model learns from none of the pictures.

        Raises:
            InputError: it does.
        """
        if found := leaks(self._task.dataset, model.trained_on):
            raise InputError(
                f"validation: {', '.join(found)} is among what the model is trained on, so its "
                "figures would say nothing; choose another folder"
            )

    def __call__(self, model: Segmenter, sheet: Path) -> Mapping[str, float]:
        """Try a model, which stays as it is, and draw what comes of some objects.

        Args:
            model: the averaged weights.
            sheet: the PNG to draw.

        Returns:
            ``iou1`` and ``iou5``, mean IoU after so many clicks (the last, where there are fewer);
            ``noc85`` and ``noc90``, mean number of clicks to that IoU, at most those given.

        Raises:
            InputError: none of the objects can be read.
        """
        with torch.random.fork_rng(devices=[]):
            own = copy.deepcopy(model)
            dtype = choose_dtype(self._dtype, self._device, own.config)
            predictor = Predictor(put(own.eval(), self._device, dtype))
            found = [row for row in work(self._task, predictor, self.refs) if "ious" in row]
            if not found:
                raise InputError(f"{self._task.dataset.name}: no object could be read")
            shown = _spread(tuple(row["key"] for row in found), _SHOWN)
            draw_sheet(sheet, self._task, predictor, shown)
        ious = [row["ious"] for row in found]
        last = self._clicks - 1
        return {
            **{f"iou{n}": float(np.mean([i[min(n - 1, last)] for i in ious])) for n in (1, 5)},
            **{
                f"noc{round(100 * limit)}": float(
                    np.mean([clicks_to_reach(i, limit, self._clicks) for i in ious])
                )
                for limit in (0.85, 0.9)
            },
        }


def score(figures: Mapping[str, float]) -> float:
    """What the best weights are best at: IoU after the first and after the fifth click."""
    return (figures["iou1"] + figures["iou5"]) / 2


def _spread(items: tuple[T, ...], number: int) -> list[T]:
    """So many items, evenly spread."""
    places = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
    return [items[i] for i in places]
