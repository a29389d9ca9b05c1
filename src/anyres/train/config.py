"""Settings of a training run: a frozen dataclass, read from a TOML recipe with overrides."""

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from anyres.errors import InputError
from anyres.models.typed import typed

RECIPES = Path(__file__).parent / "recipes"

# The least that makes sense; what is not here is at least 0.
_LEAST = {
    "steps": 1,
    "objects": 1,
    "views": 1,
    "long_side": 16,
    "max_clicks": 2,
    "checkpoint_every": 1,
    "keep": 1,
    "accumulate": 1,
    "validation_objects": 1,
    "validation_clicks": 1,
}
NEW = "hrsam_xs"
TASKS = ("interactive", "distil")
SCHEDULES = ("linear", "cosine")
DTYPES = ("auto", "float32", "bfloat16")
_CHOICES = {"task": TASKS, "schedule": SCHEDULES, "dtype": DTYPES}
_CLICKS = ("click_decay", "box_share", "mask_share", "forget_share")
_SHARES = (*_CLICKS, "pasted", "drawn", "detailed", "blend", "layer_decay", "decay", "ema")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run; ``recipes/scratch.toml`` explains each.

    Sizes are in pixels, times in steps unless the name says otherwise. No ``model`` is that of
    ``start``, or ``NEW`` where weights are new.

    Raises:
        InputError: a number out of its range.
    """

    task: str = "interactive"
    model: str = ""
    image_size: int = 0
    start: str = ""
    encoder: str = ""
    teacher: str = ""
    views: int = 1
    cache: str = ""
    native_limit: int = 0
    limits: tuple[int, ...] = ()
    distance: bool = False
    train: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 4300
    rounds: tuple[tuple[int, int], ...] = ((256, 6), (256, 6), (384, 3), (256, 6), (512, 2))
    accumulate: int = 1
    objects: int = 4
    max_clicks: int = 8
    click_decay: float = 0.6
    long_side: int = 1000
    pasted: float = 0.4
    drawn: float = 0.35
    detailed: float = 0.2
    box_share: float = 0.15
    mask_share: float = 0.1
    forget_share: float = 0.2
    matrix_lr: float = 2e-3
    other_lr: float = 1e-3
    weight_decay: float = 0.03
    clip: float = 1.0
    layer_decay: float = 1.0
    schedule: str = "linear"
    warmup: int = 60
    decay: float = 0.3
    ema: float = 0.998
    blend: float = 1.0
    multimask_weight: float = 0.5
    iou_weight: float = 0.2
    focal_weight: float = 0.6
    checkpoint_every: int = 250
    keep: int = 1
    validation: str = ""
    validation_layout: str = "folder"
    validate_every: int = 0
    validation_objects: int = 24
    validation_clicks: int = 10
    tensorboard: bool = False
    device: str = "auto"
    dtype: str = "auto"
    checkpoint_activations: bool = False
    threads: int = 0
    workers: int = 1
    sampling: Mapping[str, float] = field(default_factory=dict)
    layouts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                known = " or ".join(map(repr, choices))
                raise InputError(f"{name} is {getattr(self, name)!r}; it must be {known}")
        if self.validate_every and not self.validation:
            raise InputError("validate_every needs a folder: set validation to a data set")
        if self.blend < 1 and not self.start:
            raise InputError(
                f"blend is {self.blend}, a share of what is trained beside the weights that it "
                "started from: set start, or leave blend out"
            )
        if self.limits and not self.start:
            raise InputError(
                "limits are tried with the weights of start: set it, or leave them out"
            )
        if self.task == "distil" and not self.teacher:
            raise InputError("distil needs a teacher: set it to a file of weights")
        if self.encoder and (self.start or self.task == "distil"):
            raise InputError("encoder is for new weights: leave out start, and task distil")
        if not self.rounds:
            raise InputError("rounds is empty; it needs at least one [size, pictures]")
        for name, value in vars(self).items():
            least = _LEAST.get(name, 0)
            if isinstance(value, int | float) and not least <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be at least {least}")
            if name in _SHARES and value > 1:
                raise InputError(f"{name} is {value}; it must be at most 1")


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe and apply ``name=value`` overrides (values in TOML syntax).

    Args:
        recipe: path of a TOML file, or the name of one that ships with anyres.
        overrides: such as ``steps=100``.

    Raises:
        InputError: a missing or malformed file, an unknown name, a value of the wrong type.
    """
    path = Path(recipe)
    shipped = RECIPES / f"{recipe}.toml"
    if not path.is_file() and shipped.is_file():
        path = shipped
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise InputError(
            f"the recipe {str(recipe)!r} cannot be read ({error.strerror}); "
            f"give the path of a TOML file or one of: {known}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} is not TOML: {error}") from error
    settings = _checked(values, str(path))
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set takes name=value, such as steps=100, not {text!r}")
        settings |= _checked({name.strip(): _parse(value.strip())}, "--set")
    return TrainConfig(**settings)


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The values as their settings want them; ``source`` says in errors where they stand."""
    known = get_type_hints(TrainConfig)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{source}: there is no setting {name!r}{hint}")
        try:
            checked[name] = typed(value, known[name])
        except TypeError as error:
            raise InputError(f"{source}: {name}: {error}") from error
    return checked
