"""What was read from JSON or TOML, as annotations want it."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def typed(value: Any, kind: Any) -> Any:
    """A value read from JSON or TOML, as an annotation wants it.

    Lists become tuples and whole numbers floats where such are wanted; nothing else is converted.

    Args:
        value: what was read.
        kind: a class, ``Literal``, ``Mapping``, ``tuple`` with or without ``...``, or a union.

    Raises:
        TypeError: the value is none of that kind.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        known = [one for one in inner if one is not NoneType]
        if value is None and len(known) < len(inner):
            return None
        if type(value) in known:
            return value
        return typed(value, known[0])
    if origin is Literal and value in inner:
        return value
    if origin is Mapping and isinstance(value, dict):
        return {typed(key, inner[0]): typed(one, inner[1]) for key, one in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            return tuple(map(typed, value, kinds))
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return build_typed(kind, value)
    if type(value) is kind:
        return value
    raise TypeError(f"{value!r} is not of type {kind.__name__ if isinstance(kind, type) else kind}")


def build_typed(kind: type[Any], values: Any) -> Any:
    """A dataclass from what was read.

    Raises:
        TypeError: no object, or a value of another type than its field.
        ValueError: it has no such field.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is no object of {kind.__name__} fields")
    kinds = get_type_hints(kind)
    checked = {}
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{kind.__name__} has no field {name}")
        try:
            checked[name] = typed(value, kinds[name])
        except TypeError as error:
            raise TypeError(f"{kind.__name__}.{name}: {error}") from error
    return kind(**checked)
