"""Filling a model with the weights of a state dict, every one of them; errors name each."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from anyres.errors import WeightsError
from anyres.models.reading import named

Renames = Iterable[tuple[str, str]]
_Model = TypeVar("_Model", bound=nn.Module)


def fill(make: Callable[[], _Model], state: Mapping[str, Tensor], renames: Renames = ()) -> _Model:
    """A model with the weights of a state dict, every one of them.

    Args:
        make: builds the model, with any weights.
        state: names as in the file.
        renames: beginnings of names in the file and in the model; the first that fits counts.
    """
    # The weights that building draws are thrown away; the caller's random numbers go on as before.
    with torch.random.fork_rng(devices=[]):
        model = make()
    own = model.state_dict()
    in_file = {name: _file_name(name, renames) for name in own}
    _check_names(state, {in_file[name]: tensor for name, tensor in own.items()})
    check_finite(state, "the file")
    model.load_state_dict({name: state[in_file[name]] for name in own})
    return model.eval()


def _file_name(name: str, renames: Renames) -> str:
    for theirs, ours in renames:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _check_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Say all that is wrong with names, shapes and kinds of numbers."""
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {_shape(state[name])} and not {_shape(tensor)}"
        for name, tensor in wanted.items()
        if name in state and _shape(state[name]) != _shape(tensor)
    ]
    wrong = [
        f"{what}: {named(names)}"
        for what, names in (
            (f"{len(missing)} missing", missing),
            (f"{len(unexpected)} unexpected", unexpected),
            (f"{len(shapes)} of another shape", shapes),
        )
        if names
    ]
    if wrong:
        raise WeightsError(
            f"the weights do not fit the model. {'; '.join(wrong)}. Give this model's weights, or "
            "the configuration that they were made with"
        )


def _shape(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{tensor.dtype} ".removeprefix("torch.")
    return kind + ("x".join(map(str, tensor.shape)) or "a single number")


def check_finite(state: Mapping[str, Tensor], where: str) -> None:
    """Raise a WeightsError if there is NaN or infinity; ``where`` is for what it says."""
    broken = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{where} has weights that are not finite (NaN or infinity): {named(broken)}; take a "
            "checkpoint from before they broke"
        )
