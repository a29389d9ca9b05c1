"""The protocols: how a model is asked for one object, and what is noted of its answers.

All ask for a single mask (``multimask_output=False``) from the first prompt on, and compare it
with the truth at the picture's own size. Coordinates are pixels of the picture, XY in prompts and
(row, column) in clicks; a box's right and lower edges lie after its last pixel.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anyres.clicks import Click, as_points, next_click
from anyres.data.maps import VOID
from anyres.errors import InputError
from anyres.metrics.interactive import CLICKS
from anyres.metrics.maps import opencv

ProtocolName = Literal["clicks", "box", "point"]

Mask = NDArray[np.bool_]
Window = tuple[slice, slice]


class Promptable(Protocol):
    """What a protocol drives: Segment Anything's ``SamPredictor``, as far as it is needed."""

    def set_image(self, image: NDArray[np.uint8]) -> None:
        """Take the (H, W, 3) uint8 RGB picture that the next prompts are about."""

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Answer one prompt: masks (C, H, W), scores (C,), and logits (C, h, w) to feed back."""


class Target:
    """The truth of one object.

    Attributes:
        values: (H, W) uint8: 1 object, 0 not, 255 void.
        wanted: (H, W) bool, the object.
        void: (H, W) bool, pixels that count for nothing, or None when there are none.
        area: pixels of the object.
    """

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.values = values
        self.wanted: Mask = values == 1
        void: Mask = values == VOID
        self.void = void if void.any() else None
        self.area = int(np.count_nonzero(self.wanted))
        left, top, width, height = opencv().boundingRect(self.wanted.view(np.uint8))
        self._window: Window = slice(top, top + height), slice(left, left + width)

    def near(self, mask: Mask) -> Window:
        """Rows and columns that hold all of the object and of a mask: elsewhere nothing is wrong.

        Looking there alone is what keeps small objects of large pictures cheap.
        """
        left, top, width, height = opencv().boundingRect(mask.view(np.uint8))
        if not width:
            return self._window
        rows, columns = self._window
        return (
            slice(min(rows.start, top), max(rows.stop, top + height)),
            slice(min(columns.start, left), max(columns.stop, left + width)),
        )

    def iou(self, mask: Mask, near: Window | None = None) -> float:
        """Intersection over union with a mask, void left out; 1.0 where both are empty.

        The same as `anyres.metrics.overlap.iou`, with what only the truth decides counted once.

        Args:
            mask: (H, W) bool.
            near: what ``near`` said of it, if it was asked.
        """
        near = self.near(mask) if near is None else near
        found = mask[near]
        if self.void is not None:
            found = found & ~self.void[near]
        common = int(np.count_nonzero(found & self.wanted[near]))
        union = self.area + int(np.count_nonzero(found)) - common
        return common / union if union else 1.0

    def next_click(self, mask: Mask, clicks: Sequence[Click], near: Window) -> Click | None:
        """Where the annotator clicks next, as `anyres.clicks.next_click`; None if all is right.

        Args:
            mask: (H, W) bool, the answer so far.
            clicks: those so far.
            near: what ``near`` said of the mask.
        """
        top, left = near[0].start, near[1].start
        before = [
            (y - top, x - left, positive)
            for y, x, positive in clicks
            if top <= y < near[0].stop and left <= x < near[1].stop
        ]
        void = None if self.void is None else self.void[near]
        click = next_click(mask[near], self.wanted[near], before, ignore=void)
        return None if click is None else Click(click.y + top, click.x + left, click.positive)

    def box(self) -> tuple[int, int, int, int]:
        """The object's box, XYXY.

        Raises:
            InputError: there is no object.
        """
        if not self.area:
            raise InputError("the target is empty: there is no box around it")
        rows, columns = self._window
        return columns.start, rows.start, columns.stop, rows.stop


@dataclass
class Trial:
    """What came of one object.

    Attributes:
        mask: (H, W) bool, the last answer.
        score: the last predicted IoU.
        ious: IoU after each answer.
        seconds: time that each answer took.
        clicks: where was clicked.
        box: the prompt's box, XYXY, or None.
    """

    mask: Mask
    score: float = 0.0
    ious: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    clicks: list[Click] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Rules:
    """A protocol with its settings.

    Attributes:
        protocol: ``"clicks"``: up to ``clicks`` of them, each at the pixel farthest from the border
            of the larger error region, the logits of each answer fed back with the next.
            ``"box"``: the true box, the zero-shot setting of BA-SAM. ``"point"``: one click at the
            pixel of the object farthest from its border.
        clicks: how many clicks an object gets, 1 to 20.
        jitter: how far each edge of a box is moved at most, as a part of the box's side;
            drawn evenly, from 0 (not at all) to 0.5.
        seed: of the jitter.
    """

    protocol: ProtocolName = "clicks"
    clicks: int = CLICKS
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.protocol not in get_args(ProtocolName):
            known = ", ".join(get_args(ProtocolName))
            raise InputError(f"protocol {self.protocol!r} is unknown; there are {known}")
        if not 1 <= self.clicks <= CLICKS:
            raise InputError(f"{self.clicks} clicks; an object gets 1 to {CLICKS}")
        if not 0 <= self.jitter <= 0.5:
            raise InputError(f"a jitter of {self.jitter}; give 0 to 0.5 of the box's side")
        if self.jitter and self.protocol != "box":
            raise InputError(f"protocol {self.protocol!r} has no box to jitter")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}; give 0 or more")

    def run(self, model: Promptable, target: Target, key: str) -> Trial:
        """Ask a model, whose picture is set, for one object.

        Args:
            model: what is tried.
            target: the truth.
            key: the object's name; with the seed it decides the jitter, whatever came before.
        """
        if self.protocol == "box":
            digest = sha256(key.encode()).digest()
            rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "little")])
            return try_box(model, target, jittered(target, self.jitter, rng))
        return try_clicks(model, target, self.clicks if self.protocol == "clicks" else 1)


def try_clicks(model: Promptable, target: Target, clicks: int) -> Trial:
    """Click ``clicks`` times on what is wrong; fewer when nothing is (HRSAM, section 4)."""
    trial = Trial(np.zeros(target.wanted.shape, np.bool_))
    logits = None
    near = target.near(trial.mask)
    while len(trial.ious) < clicks:
        click = target.next_click(trial.mask, trial.clicks, near)
        if click is None:
            break
        trial.clicks.append(click)
        coords, labels = as_points(trial.clicks)
        logits = _ask(
            trial, partial(model.predict, coords, labels, mask_input=logits, multimask_output=False)
        )
        near = target.near(trial.mask)
        trial.ious.append(target.iou(trial.mask, near))
    return trial


def try_box(
    model: Promptable, target: Target, box_xyxy: tuple[float, float, float, float]
) -> Trial:
    """Ask once, with a box (BA-SAM, section 4)."""
    trial = Trial(np.zeros(target.wanted.shape, np.bool_), box=box_xyxy)
    _ask(trial, partial(model.predict, box=np.array(box_xyxy), multimask_output=False))
    trial.ious.append(target.iou(trial.mask))
    return trial


def _ask(trial: Trial, predict: Callable[[], tuple[Any, Any, Any]]) -> NDArray[np.float32]:
    """Note mask, score and time of an answer; return its logits."""
    start = time.perf_counter()
    masks, scores, logits = predict()
    trial.seconds.append(time.perf_counter() - start)
    trial.mask = np.asarray(masks[0], np.bool_)
    trial.score = float(scores[0])
    return np.asarray(logits, np.float32)


def jittered(
    target: Target, jitter: float, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """The target's box with each edge moved by up to ``jitter`` of the box's side.

    It stays in the picture and at least one pixel wide and high.
    """
    x0, y0, x1, y1 = target.box()
    if not jitter:
        return x0, y0, x1, y1
    height, width = target.wanted.shape
    moves = rng.uniform(-jitter, jitter, 4) * (x1 - x0, y1 - y0, x1 - x0, y1 - y0)
    left, right = _apart(x0 + moves[0], x1 + moves[2], width)
    top, bottom = _apart(y0 + moves[1], y1 + moves[3], height)
    return left, top, right, bottom


def _apart(low: float, high: float, size: int) -> tuple[float, float]:
    low = min(max(low, 0.0), size - 1.0)
    return low, min(max(high, low + 1), float(size))
