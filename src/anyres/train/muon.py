"""Muon (Jordan et al. 2024): momentum whose update is made orthogonal, for matrices.

Scaled as in Liu et al. 2025 (arXiv 2502.16982): the update's root mean square is 0.2, whatever
the matrix, so that learning rates are those of AdamW. A convolution counts as a matrix
(out, in * height * width).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
UPDATE_RMS = 0.2


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest semi-orthogonal matrices, by a quintic Newton-Schulz iteration in bf16.

    Args:
        matrices: (N, m, n), no taller than wide.
        steps: of the iteration.

    Returns:
        (N, m, n) bfloat16.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16()
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum and orthogonalised updates."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every matrix that has a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            self._update([p for p in group["params"] if p.grad is not None], group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update the matrices of a group, those of one shape at once."""
        if not params:
            return
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in params if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        alike = defaultdict(list)
        for p, direction in zip(params, directions, strict=True):
            matrix = direction.flatten(1)
            tall = matrix.shape[0] > matrix.shape[1]
            wide = matrix.t() if tall else matrix
            alike[tuple(wide.shape)].append((p, wide.bfloat16(), tall))
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for shape, some in alike.items():
            updates = orthogonalize(torch.stack([matrix for _, matrix, _ in some]))
            scale = UPDATE_RMS * max(shape) ** 0.5
            for (p, _, tall), update in zip(some, updates.unbind(), strict=True):
                update = update.t() if tall else update
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def split_parameters(model: torch.nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters for Muon (weights of linear layers and convolutions), and the others."""
    matrices = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        and min(module.weight.flatten(1).shape) > 1
    }
    params = [p for p in model.parameters() if p.requires_grad]
    return [p for p in params if id(p) in matrices], [p for p in params if id(p) not in matrices]
