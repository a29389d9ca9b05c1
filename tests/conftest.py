"""Fixtures for all tests: golden numbers, real pictures, and how many threads run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from anyres.models.segmenter import Segmenter

# Read by torch and OpenBLAS when they are first imported, so a test that needs neither pays for
# neither. The tensors of the tests are small: more than two threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("MPLBACKEND", "agg")

# A busy machine is no bug: no deadline. The same examples every time: a failure can be repeated.
settings.register_profile("anyres", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("anyres")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
GOLDEN_FOLDERS = (SHARED / "golden", REPOSITORY / "tests" / "data" / "golden")


class _Part(dict[str, "torch.Tensor"]):
    """Tensors of a golden that is here in part: asking for the rest skips the test."""

    def __missing__(self, key: str) -> "torch.Tensor":
        pytest.skip(f"the golden's copy in this repository is without {key}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ``shared`` beside the repository: whole goldens and real pictures."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder 'shared' beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """Real pictures: ``train/<set>`` and ``val/<set>``, each with ``images`` and ``masks``."""
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip("the folder 'shared' beside the repository has no 'data' with real pictures")
    return folder


@pytest.fixture(scope="module")
def sam() -> "Segmenter":
    """A small SAM with random weights, trained, as it were, at 128 pixels."""
    from tiny import random_model

    return random_model("sam_ti", 128)


@pytest.fixture(scope="module")
def hrsam() -> "Segmenter":
    """A small HRSAM with random weights."""
    from tiny import random_model

    return random_model("hrsam_xs")


@pytest.fixture(scope="session")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one data set of eight pictures of 80 x 80 with one bright disc each."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("sets")
    for name in ("images", "masks"):
        (root / "discs" / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:80, :80]
    for i in range(8):
        cy, cx, r = rng.integers(25, 55), rng.integers(25, 55), rng.integers(12, 24)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < r**2
        image = rng.integers(0, 80, (80, 80, 3)) + disc[..., None] * 150
        Image.fromarray(image.astype(np.uint8)).save(root / "discs" / "images" / f"{i}.png")
        Image.fromarray((disc * 255).astype(np.uint8)).save(root / "discs" / "masks" / f"{i}.png")
    return root


@pytest.fixture
def image() -> "NDArray[np.uint8]":
    """Noise, (90, 140, 3)."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, Any], dict[str, "torch.Tensor"]]]:
    """Loader of what official code computed: name -> (facts from the JSON, tensors).

    The whole file in ``shared`` is preferred to the copy in ``tests/data/golden``, which may be a
    part of it. ``tests/data/README.md`` says what the names of the tensors mean.
    """

    def load(name: str) -> tuple[dict[str, Any], dict[str, "torch.Tensor"]]:
        for folder in GOLDEN_FOLDERS:
            if (folder / f"{name}.json").is_file():
                break
        else:
            pytest.skip(f"golden {name!r} is neither in tests/data/golden nor in ../shared/golden")
        from safetensors.torch import load_file

        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / f"{name}.safetensors")
        return facts, _Part(tensors) if facts.get("part") else tensors

    return load
