"""Which model is evaluated: loading it, and what the report says of it."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.errors import InputError, WeightsError
from anyres.evaluate import grabcut
from anyres.files import sha256_file

if TYPE_CHECKING:
    from anyres.evaluate.protocols import Promptable
    from anyres.predict.resolution import Resolution

TRAINED_ON = "trained_on"


@dataclass(frozen=True)
class Choice:
    """A model and how it is to run; arguments as in `anyres.predict.load.load`.

    ``"grabcut"`` is OpenCV's, which has no weights and its own resolution.
    """

    name: str
    weights: Path | None = None
    resolution: "Resolution | None" = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Check what can be checked without loading."""
        if self.name == grabcut.NAME and self.weights is not None:
            raise InputError(f"--model {grabcut.NAME} has no weights; leave --weights out")

    def load(self, threads: int) -> "Promptable":
        """Load it, to compute with so many threads.

        Raises:
            InputError: there is no such model or device.
            WeightsError: the weights are missing, damaged, or another model's.
            MissingExtraError: OpenCV is not installed.
        """
        import cv2

        cv2.setNumThreads(threads)
        if self.name == grabcut.NAME:
            return grabcut.GrabCut()
        import torch

        from anyres.predict.load import load

        torch.set_num_threads(threads)
        return load(
            self.name,
            weights=self.weights,
            resolution=self.resolution,
            device=self.device,
            dtype=self.dtype,
        )

    def facts(self, loaded: "Promptable") -> dict[str, Any]:
        """What decides its answers, for the report and for taking a run up again.

        Args:
            loaded: what ``load`` gave.
        """
        if self.name == grabcut.NAME:
            return {"name": self.name, "sha256": None, "resolution": grabcut.LONG_SIDE}
        from anyres.predict.predictor import Predictor

        if not isinstance(loaded, Predictor):
            raise InputError(f"{type(loaded).__name__} is not what {self.name} is loaded as")
        config = loaded.model.config
        limited = self.resolution is None and loaded.resolution == "native"
        with self._file() as path:
            return {
                "name": config.name,
                "sha256": sha256_file(path),
                "resolution": loaded.resolution,
                "native_limit": config.native_limit if limited else None,
                "pad": loaded.pad,
                "device": loaded.device.type,
                "dtype": str(next(loaded.model.parameters()).dtype).removeprefix("torch."),
            }

    def trained_on(self) -> tuple[str, ...]:
        """Names of the sets that the model was trained on, as far as its file says.

        A ``.safetensors`` file says it as a JSON list under ``trained_on`` in its metadata.

        Raises:
            WeightsError: what the file says is no list of names.
        """
        if self.name == grabcut.NAME:
            return ()
        from safetensors import safe_open

        from anyres.models.reading import is_safetensors

        with self._file() as path:
            if not is_safetensors(path):
                return ()
            with safe_open(path, framework="np") as file:
                text = (file.metadata() or {}).get(TRAINED_ON, "[]")
        try:
            names = json.loads(text)
        except json.JSONDecodeError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise WeightsError(f"{self.weights}: its {TRAINED_ON} is no list of names: {text:.80}")
        return tuple(names)

    def _file(self) -> AbstractContextManager[Path]:
        """The file of the weights."""
        if self.weights is not None:
            return nullcontext(self.weights)
        from anyres.predict.assets import embedded_weights

        return embedded_weights()


def default_threads() -> int:
    """How many threads a process may keep busy: ``OMP_NUM_THREADS``, or the processor's cores."""
    import torch

    return torch.get_num_threads()
