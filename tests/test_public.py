"""The public surface: what `import anyres` offers, and what it costs."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anyres
from anyres import errors

SURFACE = {
    "LengthConfig": "anyres.ops.length",
    "Masks": "anyres.types",
    "Predictor": "anyres.predict.predictor",
    "Prompt": "anyres.types",
    "load": "anyres.predict.load",
}


def test_surface_is_exactly_this() -> None:
    names = ["LengthConfig", "Masks", "Predictor", "Prompt", "__version__", "errors", "load"]
    assert names == anyres.__all__
    assert set(anyres.__all__) <= set(dir(anyres))


@pytest.mark.parametrize(("name", "home"), SURFACE.items())
def test_names_come_from_their_rooms(name: str, home: str) -> None:
    value = getattr(anyres, name)
    assert value.__module__ == home
    assert value.__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'anyres' has no attribute 'Segmentor'"):
        _ = anyres.Segmentor


def test_errors_are_one_tree() -> None:
    assert anyres.errors is errors
    raised = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(raised) > 1
    assert [kind for kind in raised if not issubclass(kind, errors.AnyresError)] == []


def test_import_is_light() -> None:
    code = "import json, sys, anyres; print(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(Path(anyres.__file__).parents[1])}
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(json.loads(answer.stdout))
    assert "anyres" in loaded
    assert loaded & {"torch", "PIL", "cv2", "matplotlib", "typer", "rich"} == set()
