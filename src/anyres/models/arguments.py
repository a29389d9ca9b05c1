"""Reading arguments of official constructors, one by one."""

import re
from collections.abc import Mapping
from typing import Any

from anyres.errors import InputError


class Taken:
    """Official constructor arguments, taken one by one; what is left at the end is unknown."""

    def __init__(self, owner: str, arguments: Any) -> None:
        if not isinstance(arguments, Mapping):
            raise InputError(
                f"the arguments of {owner} are a dict of names and values, not {arguments!r}"
            )
        self.owner = owner
        self.left = dict(arguments)

    def integer(self, name: str, default: int, least: int = 1) -> int:
        """A whole number."""
        value = self.left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(name, value, f"a whole number from {least} on")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number."""
        value = self.left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def take(self, name: str) -> Any:
        """Arguments of another class that are nested here; none if they are not given."""
        return self.left.pop(name, {})

    def triple(self, name: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """A number for each colour."""
        value = self.left.pop(name, default)
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise self._wrong(name, value, "three numbers")
        first, second, third = (float(v) for v in value)
        return first, second, third

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self.left.pop(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "True or False")
        return value

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A sequence of whole numbers."""
        value = self.left.pop(name, default)
        if not isinstance(value, list | tuple) or not all(type(v) is int for v in value):
            raise self._wrong(name, value, "a sequence of whole numbers")
        return tuple(value)

    def side(self, name: str, default: int) -> int:
        """The one whole number of a sequence."""
        value = self.integers(name, (default,))
        if len(value) != 1 or value[0] < 1:
            raise self._wrong(name, value, "a sequence of one size in pixels")
        return value[0]

    def same(self, name: str, supported: Any) -> None:
        """An argument for which there is only one choice here."""
        value = self.left.pop(name, supported)
        if (tuple(value) if isinstance(value, list) else value) != supported:
            raise self._wrong(name, value, repr(supported))

    def layer(self, name: str, wanted: str) -> None:
        """A class of layers, as itself or by name; only one is supported."""
        value = self.left.pop(name, wanted)
        text = value if isinstance(value, str) else getattr(value, "__name__", repr(value))
        if wanted not in text:
            raise self._wrong(name, value, wanted)

    def norm(self, name: str, eps: float) -> None:
        """A LayerNorm with this eps: a constructor, or text such as ``LayerNorm(eps=1e-6)``."""
        value = self.left.pop(name, None)
        if value is None:
            return
        text = value if isinstance(value, str) else repr(value(1) if callable(value) else value)
        found = re.search(r"eps\s*=\s*([0-9.e+-]+)", text)
        if "LayerNorm" not in text or float(found[1].rstrip(".") if found else 1e-5) != eps:
            raise self._wrong(name, value, f"a LayerNorm with eps {eps}")

    def ignore(self, *names: str) -> None:
        """Arguments that change neither weights nor answers."""
        for name in names:
            self.left.pop(name, None)

    def finish(self) -> None:
        """Make sure that nothing is left."""
        if self.left:
            raise InputError(
                f"{self.owner} has no argument {', '.join(map(repr, self.left))}; give those of "
                "the official constructor"
            )

    def _wrong(self, name: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self.owner}: {name} is {value!r}; anyres reads {wanted}")
