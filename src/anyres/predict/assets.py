"""The model that comes with the package: where it is, and whether it is whole. No torch here."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

from anyres.errors import WeightsError
from anyres.files import sha256_file

EMBEDDED = "default"
WEIGHTS_FILE = "default.safetensors"
# Written by `sha256sum default.safetensors > default.sha256` in the folder of both.
CHECKSUM_FILE = "default.sha256"


def has_embedded(name: str) -> bool:
    """Whether the weights of this model are in the package."""
    return name == EMBEDDED and (_folder() / WEIGHTS_FILE).is_file()


@contextmanager
def embedded_weights() -> Iterator[Path]:
    """The file with the embedded weights, once its checksum is known to be right.

    Raises:
        WeightsError: the file or its checksum is missing, or they do not agree.
    """
    file = _folder() / WEIGHTS_FILE
    if not file.is_file():
        raise WeightsError(
            f"this installation of anyres lacks its embedded model ({WEIGHTS_FILE}): install the "
            "package again, or pass weights="
        )
    with as_file(file) as path:
        found, wanted = sha256_file(path), recorded_checksum()
        if found != wanted:
            raise WeightsError(
                f"the embedded model {path} is damaged: its SHA-256 is {found}, "
                f"recorded is {wanted}; install the package again"
            )
        yield path


def recorded_checksum() -> str:
    """The SHA-256 that the embedded weights should have.

    Raises:
        WeightsError: it is not recorded.
    """
    try:
        words = (_folder() / CHECKSUM_FILE).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        words = []
    if not words or len(words[0]) != 64:
        raise WeightsError(
            f"the checksum of the embedded model ({CHECKSUM_FILE}) is missing or unreadable; "
            "install the package again"
        )
    return words[0].lower()


def _folder() -> Traversable:
    return files("anyres") / "assets"
