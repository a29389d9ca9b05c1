"""Reading checkpoint files without running what is in them.

Files are told apart by how they begin, not by their names. Whatever is wrong with one becomes a
``WeightsError`` that says what it is and what to do.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anyres.errors import WeightsError

# Larger headers are refused by safetensors, too.
_LONGEST_HEADER = 100_000_000

# How pickles begin: what torch.save wrote before it wrote zip archives.
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))

_FOREIGN = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<", "a web page: the download failed, or wants you to log in"),
    (b"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull`"),
)

_AGAIN = "download or copy it again"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, on the CPU.

    Args:
        path: a ``.safetensors`` file or one written by ``torch.save`` (``.pth``, ``.pt``). The
            latter is read with ``weights_only=True``: code in it is refused. A state dict nested
            under one key, such as ``model`` or ``state_dict``, is found.

    Returns:
        Name to tensor, as in the file.

    Raises:
        WeightsError: the file is missing, damaged, no checkpoint, or holds code.
    """
    path = Path(path)
    if _kind(path) == "safetensors":
        return read_safetensors(path)[0]
    return _unwrap(_read_pickle(path), path)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is a ``.safetensors`` file, whatever its name.

    Raises:
        WeightsError: the file is missing or no checkpoint of any kind.
    """
    return _kind(Path(path)) == "safetensors"


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a ``.safetensors`` file.

    Raises:
        WeightsError: the file is missing, damaged, or of another kind.
    """
    path = Path(path)
    if _kind(path) != "safetensors":
        raise WeightsError(f"{path} is no .safetensors file but one of PyTorch's own format")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{path} is damaged or not complete ({_first_line(error)}): {_AGAIN}"
        ) from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """Metadata of a ``.safetensors`` file; the tensors are not read.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is damaged or not complete ({_first_line(error)}): {_AGAIN}"
        ) from None


def _kind(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    """What a file is, from its first bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise WeightsError(f"there are no weights at {path}; check the path") from error
    except IsADirectoryError as error:
        raise WeightsError(f"{path} is a folder; give a file in it") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if size == 0:
        raise WeightsError(f"{path} is empty: {_AGAIN}")
    if start[:4] == b"PK\x03\x04":
        return "zip"
    if start[:2] in _PICKLES:
        return "pickle"
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and 2 <= header <= _LONGEST_HEADER:
        return "safetensors"
    for magic, what in _FOREIGN:
        if start.startswith(magic):
            raise WeightsError(f"{path} is no checkpoint but {what}")
    if not any(start):
        raise WeightsError(f"{path} begins with zeros, it was never written in full: {_AGAIN}")
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path} is no .safetensors file, or its header is damaged: {_AGAIN}")
    raise WeightsError(
        f"{path} is no checkpoint, or its first bytes are damaged: anyres reads .safetensors "
        "files and those of torch.save (.pth, .pt)"
    )


def _read_pickle(path: Path) -> Any:
    try:
        # Opened here, because torch goes by the name where it opens a file itself.
        with path.open("rb") as file, warnings.catch_warnings():
            # Torch warns about TorchScript archives, and then refuses them.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Damage can break the reader anywhere, so every kind of error means the same here.
        # Without torch's own, whose advice is to switch the safety off.
        raise WeightsError(f"{path} {_why_not(path, str(error))}") from None


def _why_not(path: Path, message: str) -> str:
    """What is wrong with a file that torch does not read, and what to do."""
    message = message.rpartition("WeightsUnpickler error:")[2]
    code = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", message)
    if code:
        return (
            f"holds more than tensors ({code[1]}), and anyres runs no code from files. If you "
            "trust it, load it where it was made and save its state dict alone"
        )
    if _kind(path) == "zip":
        if not zipfile.is_zipfile(path):
            return f"is not complete, its end is missing: {_AGAIN}"
        if not _has_pickle(path):
            return "is a zip archive but no PyTorch checkpoint: unpack it, or give another file"
    return f"is damaged or no PyTorch checkpoint ({_first_line(message)}): {_AGAIN}"


def _has_pickle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return True  # An archive that is damaged, and not of another kind.


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what ``torch.save`` wrote: itself, or the only one under a key."""
    if _is_state(loaded):
        return dict(loaded)
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"{path} holds a {type(loaded).__name__} and no state dict: save model.state_dict()"
        )
    inside = [key for key, value in loaded.items() if _is_state(value)]
    if len(inside) == 1:
        return dict(loaded[inside[0]])
    if inside:
        raise WeightsError(
            f"{path} holds {len(inside)} state dicts ({', '.join(map(repr, inside))}): save the "
            "one you want alone"
        )
    strange = [key for key, value in loaded.items() if not isinstance(value, Tensor)]
    raise WeightsError(
        f"{path} holds no state dict: {named(map(str, strange)) or 'it is empty'}"
        f"{' are no tensors' if strange else ''}; save model.state_dict() alone"
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
    )


def named(names: Any, most: int = 20) -> str:
    """Names in a row for a message; of very many the first ``most`` and how many more."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:200].rstrip(".: ")
