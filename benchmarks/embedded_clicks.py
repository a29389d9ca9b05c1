"""The embedded model, and OpenCV's GrabCut, under the same simulated clicks.

    python benchmarks/embedded_clicks.py --data ../shared/data/val/davis2016val \
        --resolution 512 --grabcut --json out/davis.json

The papers' protocol: each click goes to the pixel farthest from the border of the larger error
region, a single mask is asked for, its logits are fed back with the next click, up to 20 clicks.
Pictures come to the model at the long side of --resolution; the annotator clicks, and masks are
compared, at the picture's own full size. "IoU@n" is the mean IoU after n clicks, "NoC85" the mean
number of clicks to reach an IoU of 0.85, where never counts as all of them.

GrabCut sees pictures of at most 640 pixels. All starts as probable background, with a disc of
probable foreground, a sixth of the long side in radius, about the first click; each step paints
every click so far as a certain disc of radius 5 and runs 2 iterations on the labels of the last.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from anyres.clicks import Click, as_points, next_click
from anyres.data.layouts.folder import FolderDataset
from anyres.data.maps import VOID, Kind
from anyres.metrics.overlap import iou

GRABCUT_LONG_SIDE = 640
GRABCUT_DISC = 5
GRABCUT_ITERATIONS = 2
IOU_AT = (1, 3, 5, 20)
NOC_AT = (0.85, 0.90)

Target = NDArray[np.uint8]


class Method(Protocol):
    """Something that answers clicks with masks."""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Take the (H, W, 3) uint8 RGB picture that the next objects are in."""

    def new_object(self) -> None:
        """Forget the object so far."""

    def segment(self, clicks: Sequence[Click]) -> NDArray[np.bool_]:
        """Answer all clicks on this object with an (H, W) mask; the last of them is new."""


class Model:
    """A predictor, fed its own logits."""

    def __init__(self, predictor: Any) -> None:
        self.predictor = predictor
        self.logits: NDArray[np.float32] | None = None

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Compute the embedding."""
        self.predictor.set_image(image)

    def new_object(self) -> None:
        """Forget the logits."""
        self.logits = None

    def segment(self, clicks: Sequence[Click]) -> NDArray[np.bool_]:
        """Ask for the single mask."""
        coords, labels = as_points(clicks)
        masks, _, self.logits = self.predictor.predict(
            point_coords=coords,
            point_labels=labels,
            mask_input=self.logits,
            multimask_output=False,
        )
        mask: NDArray[np.bool_] = np.asarray(masks[0]).astype(np.bool_)
        return mask


class GrabCut:
    """OpenCV's GrabCut (Rother et al. 2004) on a picture of at most 640 pixels."""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Scale the picture down."""
        self.size_hw = image.shape[:2]
        self.scale = min(1.0, GRABCUT_LONG_SIDE / max(self.size_hw))
        height, width = (max(1, round(side * self.scale)) for side in self.size_hw)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        self.image = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)

    def new_object(self) -> None:
        """Start with nothing known."""
        cv2.setRNGSeed(0)
        self.labels = np.full(self.image.shape[:2], cv2.GC_PR_BGD, np.uint8)
        self.models = np.zeros((1, 65)), np.zeros((1, 65))

    def segment(self, clicks: Sequence[Click]) -> NDArray[np.bool_]:
        """Paint the clicks and cut again."""
        places = [
            (
                min(int((click.x + 0.5) * self.scale), self.labels.shape[1] - 1),
                min(int((click.y + 0.5) * self.scale), self.labels.shape[0] - 1),
            )
            for click in clicks
        ]
        if len(clicks) == 1:
            radius = max(self.labels.shape) // 6
            cv2.circle(self.labels, places[0], radius, cv2.GC_PR_FGD, -1)
        for place, click in zip(places, clicks, strict=True):
            known = cv2.GC_FGD if click.positive else cv2.GC_BGD
            cv2.circle(self.labels, place, GRABCUT_DISC, known, -1)
        mode, unused, before = cv2.GC_INIT_WITH_MASK, (0, 0, 1, 1), self.labels.copy()
        try:
            cv2.grabCut(self.image, self.labels, unused, *self.models, GRABCUT_ITERATIONS, mode)
        except cv2.error:
            # Nothing is left that may be background (or object): no colours to learn from.
            self.labels = before
        found = ((self.labels == cv2.GC_FGD) | (self.labels == cv2.GC_PR_FGD)).astype(np.uint8)
        height, width = self.size_hw
        full = cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST)
        mask: NDArray[np.bool_] = full > 0
        return mask


def run_object(method: Method, target: Target, clicks: int) -> list[float]:
    """Click ``clicks`` times and return the IoU after each.

    Once no error is left there is nothing to click on: the last IoU then stands for the rest.
    """
    method.new_object()
    void = target == VOID
    wanted = target == 1
    mask = np.zeros(target.shape, np.bool_)
    done: list[Click] = []
    ious: list[float] = []
    while len(ious) < clicks:
        click = next_click(mask, wanted, done, ignore=void)
        if click is None:
            ious += [ious[-1] if ious else 1.0] * (clicks - len(ious))
            break
        done.append(click)
        mask = method.segment(done)
        ious.append(iou(mask, wanted, void=void))
    return ious


def clicks_to_reach(ious: Sequence[float], threshold: float) -> int:
    """Return the number of clicks after which the IoU first is at least a threshold."""
    return next((i for i, value in enumerate(ious, start=1) if value >= threshold), len(ious))


def summarise(ious: Sequence[Sequence[float]]) -> dict[str, float]:
    """Average the curves of all objects into the numbers of the tables."""
    found = {
        f"IoU@{n}": float(np.mean([curve[n - 1] for curve in ious]))
        for n in IOU_AT
        if n <= len(ious[0])
    }
    for threshold in NOC_AT:
        reached = [clicks_to_reach(curve, threshold) for curve in ious]
        found[f"NoC{threshold * 100:.0f}"] = float(np.mean(reached))
    return found


def objects_in(data: FolderDataset, index: int, smallest: int) -> Iterator[tuple[str, Target]]:
    """Yield name and target of every object of a picture with at least so many pixels."""
    for number, path in enumerate(data[index].maps):
        objects = data.objects(index, number)
        for place, value in enumerate(objects.ids):
            target = objects.target(place)
            if np.count_nonzero(target == 1) >= smallest:
                yield f"{path.name}#{value}.{place}", target


def run_method(
    method: Method,
    data: FolderDataset,
    pictures: Sequence[int],
    options: argparse.Namespace,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Run one method over the pictures."""
    curves: dict[str, list[float]] = {}
    setting = clicking = 0.0
    for index in pictures:
        image = data.picture(index)
        start = time.perf_counter()
        method.set_image(image)
        setting += time.perf_counter() - start
        for name, target in objects_in(data, index, options.smallest):
            start = time.perf_counter()
            curves[name] = run_object(method, target, options.clicks)
            clicking += time.perf_counter() - start
        advance()
    if not curves:
        sys.exit(f"{options.data} has no object of {options.smallest} pixels")
    seconds = {
        "picture": setting / len(pictures),
        "click": clicking / (len(curves) * options.clicks),  # the annotator's time included
    }
    return {
        "objects": len(curves),
        **summarise(list(curves.values())),
        "seconds": seconds,
        "ious": curves,
    }


def build_methods(options: argparse.Namespace) -> dict[str, Method]:
    """Load what was asked for."""
    methods: dict[str, Method] = {}
    if options.model != "none":
        import anyres

        predictor = anyres.load(
            options.model, weights=options.weights, resolution=options.resolution
        )
        methods[options.model] = Model(predictor)
    if options.grabcut:
        methods["grabcut"] = GrabCut()
    return methods


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of images/ and masks/")
    parser.add_argument("--map", default="auto", choices=["auto", "binary", "instance", "class"])
    parser.add_argument("--resolution", type=int, default=512, help="long side fed to the model")
    parser.add_argument("--model", default="default", help="'none' for GrabCut alone")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--grabcut", action="store_true", help="run GrabCut too")
    parser.add_argument("--clicks", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="take every n-th picture")
    parser.add_argument("--limit", type=int, default=None, help="take at most so many pictures")
    parser.add_argument("--smallest", type=int, default=64, help="pixels an object must have")
    parser.add_argument("--json", default=None, help="where to write the results; - for stdout")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison and print its table."""
    options = parse(arguments)
    kind: Kind = options.map
    data = FolderDataset(options.data, kind=kind)
    pictures = list(range(len(data)))[:: options.every][: options.limit]
    console = Console(stderr=True)
    methods = build_methods(options)
    if not methods:
        sys.exit("nothing to run: --model none without --grabcut")
    results: dict[str, Any] = {}
    with Progress(console=console) as progress:
        for name, method in methods.items():
            task = progress.add_task(name, total=len(pictures))
            results[name] = run_method(
                method, data, pictures, options, partial(progress.advance, task)
            )
    numbers = [key for key in next(iter(results.values())) if key.startswith(("IoU", "NoC"))]
    table = Table("method", "objects", *numbers, title=str(options.data.name))
    for name, result in results.items():
        table.add_row(name, str(result["objects"]), *(f"{result[key]:.3f}" for key in numbers))
    Console(stderr=options.json == "-").print(table)
    report = {
        "data": options.data.name,
        "pictures": len(pictures),
        "resolution": options.resolution,
        "clicks": options.clicks,
        "compared_at": "the picture's own size",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "methods": results,
    }
    if options.json == "-":
        print(json.dumps(report, indent=1))
    elif options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
