"""What a folder of composed scenes says of itself: ``scenes.json`` beside ``images/``.

It makes a data set's figures carry the label `LABEL`, and names the pictures that the scenes are
made of, so that a model which was trained on one of them is found out (``datasets.leaks``).
"""

import json
from pathlib import Path
from typing import Any

from anyres.errors import InputError

NOTES = "scenes.json"
LABEL = " (semi-synthetic)"


def is_composed(folder: Path) -> bool:
    """Tell whether a data set (the folder above ``images/``) holds composed scenes."""
    return (folder / NOTES).exists()


def read_notes(folder: Path) -> dict[str, Any]:
    """Read what a folder of scenes says of itself.

    Raises:
        InputError: it cannot be read, or is damaged.
    """
    path = folder / NOTES
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); make the scenes anew") from error
    sources = notes.get("sources") if isinstance(notes, dict) else None
    if not isinstance(sources, dict) or not all(isinstance(name, str) for name in sources):
        raise InputError(f"{path} does not name the sources of the scenes; make them anew")
    return dict(notes)


def source_checksums(folder: Path) -> frozenset[str]:
    """The checksums of the pictures that scenes are made of; none for other data sets.

    Raises:
        InputError: as ``read_notes``.
    """
    return frozenset(read_notes(folder)["sources"]) if is_composed(folder) else frozenset()
