"""Settings of a training run: a frozen dataclass, read from a TOML recipe with overrides."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from anyres.errors import InputError

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run; ``recipes/scratch.toml`` explains each.

    Sizes are in pixels, times in steps unless the name says otherwise.
    """

    model: str = "default"
    start: str = ""
    seed: int = 0
    steps: int = 4000
    rounds: tuple[tuple[int, int], ...] = ((256, 6), (256, 6), (256, 6), (384, 3))
    objects: int = 4
    max_clicks: int = 8
    click_decay: float = 0.6
    box_share: float = 0.15
    mask_share: float = 0.1
    matrix_lr: float = 2e-3
    other_lr: float = 1e-3
    weight_decay: float = 0.03
    clip: float = 1.0
    warmup: int = 60
    decay: float = 0.3
    ema: float = 0.998
    multimask_weight: float = 0.5
    iou_weight: float = 0.2
    focal_weight: float = 0.6
    checkpoint_every: int = 250
    threads: int = 0
    workers: int = 1
    sampling: Mapping[str, float] = field(default_factory=dict)


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
    for text in overrides:
        name, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"--set takes name=value, such as steps=100, not {text!r}")
        values[name.strip()] = _parse(value.strip())
    return _check(values, str(path))


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _check(values: dict[str, Any], source: str) -> TrainConfig:
    known = {f.name: f for f in fields(TrainConfig)}
    defaults = TrainConfig()
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{source}: there is no setting {name!r}{hint}")
        if isinstance(value, list):
            value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        wanted = type(getattr(defaults, name))
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InputError(
                f"{source}: {name} is {value!r}, which is not of type {wanted.__name__}"
            )
        checked[name] = value
    return TrainConfig(**checked)
