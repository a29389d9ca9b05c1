"""Which model is evaluated: loading it, and what the report says of it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyres.errors import InputError
from anyres.evaluate import grabcut
from anyres.files import sha256_file

if TYPE_CHECKING:
    from anyres.evaluate.protocols import Promptable
    from anyres.predict.predictor import Predictor
    from anyres.predict.resolution import Resolution


@dataclass(frozen=True)
class Choice:
    """A model and how it is to run; arguments as in `anyres.predict.load.load`.

    ``"grabcut"`` is OpenCV's, which has its own resolution, computes on the processor in its own
    precision, and has no weights.
    """

    name: str
    weights: Path | None = None
    resolution: "Resolution | None" = None
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Check what can be checked without loading."""
        if self.name != grabcut.NAME:
            return
        given = [
            f"--{field.name}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ][1:]
        if given:
            raise InputError(
                f"--model {grabcut.NAME} has no network: {', '.join(given)} would change nothing; "
                f"leave out what you gave (it works at a long side of at most {grabcut.LONG_SIDE})"
            )

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
        predictor = self._predictor(loaded)
        config = predictor.model.config
        limited = self.resolution is None and predictor.resolution == "native"
        with self._file() as path:
            return {
                "name": config.name,
                "sha256": sha256_file(path),
                "resolution": predictor.resolution,
                "native_limit": config.native_limit if limited else None,
                "pad": predictor.pad,
                "device": predictor.device.type,
                "dtype": str(predictor.model.dtype).removeprefix("torch."),
            }

    def trained_on(self, loaded: "Promptable") -> Mapping[str, Sequence[str]]:
        """What it was trained on, as far as its file says, see `Segmenter.trained_on`.

        Args:
            loaded: what ``load`` gave.
        """
        return {} if self.name == grabcut.NAME else self._predictor(loaded).model.trained_on

    def _predictor(self, loaded: "Promptable") -> "Predictor":
        from anyres.predict.predictor import Predictor

        if not isinstance(loaded, Predictor):
            raise InputError(f"{type(loaded).__name__} is not what {self.name} is loaded as")
        return loaded

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
