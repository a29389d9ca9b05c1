"""anyres: segment anything at any resolution.

``anyres.load()`` gives a ``Predictor``, which answers points, boxes and masks with masks. The
names below are the whole public surface; each is imported on first use, so that ``import anyres``
costs neither torch nor Pillow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyres import errors
    from anyres.ops.length import LengthConfig
    from anyres.predict.load import load
    from anyres.predict.predictor import Predictor
    from anyres.types import Masks, Prompt

__version__ = "0.1.0.dev0"

__all__ = ["LengthConfig", "Masks", "Predictor", "Prompt", "__version__", "errors", "load"]

_HOMES = {
    "LengthConfig": "anyres.ops.length",
    "Masks": "anyres.types",
    "Predictor": "anyres.predict.predictor",
    "Prompt": "anyres.types",
    "load": "anyres.predict.load",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("anyres.errors")
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
