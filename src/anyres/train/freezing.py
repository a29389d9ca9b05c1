"""Which parts of a model are trained; the rest stays as it is."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from anyres.errors import InputError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def freeze(model: nn.Module, trained: Sequence[str]) -> None:
    """Leave only what is named to be trained.

    Args:
        model: changed in place.
        trained: names of parts or parameters, such as ``mask_decoder``, or glob patterns of them,
            such as ``image_encoder.blocks.*.norm1``; a part is all that is in it. None is all.

    Raises:
        InputError: a name that is no part of the model.
    """
    if not trained:
        return
    found = set()
    for name, parameter in model.named_parameters():
        above = list(accumulate(name.split("."), "{}.{}".format))
        fits = {wanted for wanted in trained if any(fnmatchcase(part, wanted) for part in above)}
        parameter.requires_grad_(bool(fits))
        found |= fits
    unknown = [wanted for wanted in trained if wanted not in found]
    if unknown:
        parts = {".".join(name.split(".")[:2]) for name, _ in model.named_parameters()}
        parts |= {name for name, _ in model.named_children()}
        raise InputError(
            f"train names {unknown[0]!r}, which is no part of the model; there are: "
            f"{', '.join(sorted(parts))}, and what is in them"
        )


def train_mode(model: nn.Module) -> None:
    """Set training mode; a frozen norm keeps the statistics that it has."""
    model.train()
    for module in model.modules():
        if isinstance(module, _NORMS) and not any(p.requires_grad for p in module.parameters()):
            module.eval()
