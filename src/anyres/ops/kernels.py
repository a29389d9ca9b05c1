"""Whether compiled kernels run: asked for in the environment, or found."""

import os
from functools import lru_cache
from importlib.util import find_spec

from anyres.errors import InputError, MissingExtraError


def forced(variable: str) -> str:
    """The implementation that an environment variable asks for, ``numba`` or ``torch``, or "".

    Raises:
        InputError: it asks for something else.
        MissingExtraError: it asks for numba, which is not installed.
    """
    asked = os.environ.get(variable, "")
    if asked not in ("", "auto", "numba", "torch"):
        raise InputError(f"{variable} is {asked!r}; set it to 'auto', 'numba' or 'torch'")
    if asked == "numba" and not has_numba():
        raise MissingExtraError(
            f"{variable}=numba, but numba is not installed; pip install 'anyres[fast]'"
        )
    return asked.removeprefix("auto")


def name(variable: str, kinds: str, otherwise: str) -> str:
    """Which implementation runs on a CPU, and why; for ``anyres doctor``.

    Args:
        variable: what forces one, as in ``forced``.
        kinds: where the kernels run.
        otherwise: what runs elsewhere.

    Raises:
        InputError, MissingExtraError: as ``forced``.
    """
    asked = forced(variable)
    why = f" ({variable}={asked})" if asked else ""
    if asked == "numba" or (not asked and has_numba()):
        return f"numba, compiled for this CPU, {kinds}{why}; {otherwise} elsewhere"
    if not asked:
        why = " (numba is not installed: pip install 'anyres[fast]' for faster encoders on CPUs)"
    return f"{otherwise}{why}"


@lru_cache(maxsize=1)
def has_numba() -> bool:
    """Whether numba is installed (extra ``fast``)."""
    return find_spec("numba") is not None
