"""Several processes that train one model: what they tell each other.

Each makes its own share of a step's samples; gradients are averaged before the weights move, so all
of them hold the same weights at all times. There is no wrapper around the model: a step asks it for
several things (encode, then decode many times), and the gradients are summed once at its end.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anyres.errors import InputError
from anyres.predict.load import resolve_device


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: which one this is.
        size: how many there are.
        device: what this one computes on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean of each value over the processes."""
        if self.size == 1:
            return list(values)
        # What numbers go through must be where the backend is: nccl knows GPUs alone.
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        summed = torch.tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(summed)
        return [value / self.size for value in summed.tolist()]

    def any(self, asked: bool) -> bool:
        """Whether any process says so."""
        return self.mean([float(asked)])[0] > 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their mean; one that no process has stays None."""
        if self.size == 1:
            return
        sizes = [p.numel() for p in parameters]
        present = torch.tensor([p.grad is not None for p in parameters], device=self.device)
        zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.reshape(-1).float() for grad in zeros] + [present.float()])
        dist.all_reduce(flat)
        flat /= self.size
        known = flat[-len(sizes) :].tolist()
        parts = flat[: -len(sizes)].split(sizes)
        for p, part, share in zip(parameters, parts, known, strict=True):
            p.grad = part.view(p.shape).to(p.dtype) if share else None

    def share_weights(self, model: nn.Module) -> None:
        """Give all processes the weights of the first."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """Join the processes that ``torchrun`` started; without it there is one.

    Args:
        device: name of a torch device, or ``auto``; each process takes a GPU of its own.

    Raises:
        InputError: there is no such device, or there are fewer GPUs than processes here.
    """
    place = resolve_device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(device=place)
        return
    if place.type == "cuda":
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise InputError(
                f"{local + 1} processes on a machine with {gpus} GPUs; give torchrun "
                f"--nproc-per-node {gpus}, or train on CPUs with --set device=cpu"
            )
        place = torch.device("cuda", local)
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), size, place)
    finally:
        dist.destroy_process_group()


class _Gathered(torch.autograd.Function):
    """The tensors of all processes, stacked; gradients go back to whose they are."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[dist.get_rank()]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of all processes' samples, on CPUs too.

    With them several processes take the step that one would take with all samples. torch's own
    ``SyncBatchNorm`` is for GPUs alone. All processes must have samples of one size.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shape kept."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # Gradients come back from what others made of these numbers.
        stacked: Tensor = _Gathered.apply(torch.stack([mean, var]))  # type: ignore[no-untyped-call]
        means, variances = stacked.unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        if self.running_mean is not None and self.running_var is not None:
            count = len(stacked) * x.numel() / x.shape[1]
            momentum = self.momentum or 0.0
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach(), momentum)
                self.running_var.lerp_(var.detach() * (count / (count - 1)), momentum)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        # The rest is a scale and a shift of each channel.
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        out: Tensor = x * scale[:, None, None] + shift[:, None, None]
        return out.to(input.dtype)


def share_statistics(model: nn.Module, group: Group) -> None:
    """Let the norms of a model use the statistics of all processes; names stay as they are."""
    if group.size == 1:
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
