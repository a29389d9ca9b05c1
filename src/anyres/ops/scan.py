"""The cycle-scan: a selective scan (S6, Gu & Dao 2023) over a sequence repeated R times.

HRSAM (arXiv 2407.02109) tiles the raster sequence of tokens R times, scans it once so that the
state carries over from one repetition to the next, and sums the R answers with weights gamma.
The recurrence h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t is linear in its initial state, so
the sum is the answer of ONE scan: with g the end state of a scan from zero and
P = exp(A sum_t delta_t), the repetitions start at s_1 = 0, s_{r+1} = g + P s_r; scanning inputs
scaled by sum_r gamma_r from the initial state sum_r gamma_r s_r gives it exactly, for any R.

There are two implementations. For float32 and bfloat16 on a CPU, with numba installed (extra
``fast``), kernels compiled at the first call: ``scan_cpu``. For the rest torch alone, here:
chunked, all chunks advance together, one token at a time, so the loop has about sqrt(L) turns and
every tensor in it is large. Chunk ends are found in a first pass (they also give g and P), outputs
in a second. For gradients, states are kept every few turns only, and the turns between run again.

``ANYRES_SCAN=torch`` or ``numba`` in the environment forces one. A kernel that does not compile is
an error: nothing changes over to the slow path unasked.

Shapes: B batch, L tokens, C channels, N states a channel, R cycles, K chunks of T tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyres.errors import InputError
from anyres.ops import kernels
from anyres.ops.threads import in_graph

T = TypeVar("T")


def kernel_name() -> str:
    """Which implementation runs on a CPU, and why; for ``anyres doctor``."""
    return kernels.name("ANYRES_SCAN", "float32 and bfloat16", "torch, chunked")


def cycle_scan(
    u_BLC: Tensor,
    delta_BLC: Tensor,
    a_CN: Tensor,
    b_BLN: Tensor,
    c_BLN: Tensor,
    d_C: Tensor,
    gamma_CR: Tensor,
    bias_C: Tensor | None = None,
    out_BLC: Tensor | None = None,
    lengths: Sequence[int] = (),
) -> Tensor:
    """Scan the sequence repeated R times and sum the answers.

    Everything is computed in float32, in float64 if the input is; where the compiled kernels read
    nothing but bfloat16, with decays of rates wrong by up to 4 parts in 10,000. Differentiable;
    twice only where torch alone runs.

    Args:
        u_BLC: input.
        delta_BLC: step sizes, not negative; any numbers if there is a bias.
        a_CN: decay rates, not positive.
        b_BLN: input weights.
        c_BLN: output weights.
        d_C: weight of the direct path; it counts once a repetition, like the rest.
        gamma_CR: weight of each repetition's answer.
        bias_C: where given, the steps are softplus(delta + bias).
        out_BLC: where given, and no gradient is wanted, the answer is put there; it may be u.
        lengths: where given, the L tokens are sequences of so many tokens, one after the other,
            and each is scanned by itself.

    Returns:
        (B, L, C), in the input's precision.

    Raises:
        InputError: the shapes or lengths do not fit together, or a size is 0; ``ANYRES_SCAN`` is no
            implementation, or is ``numba`` and the tensors are not float32 on a CPU.
        MissingExtraError: ``ANYRES_SCAN`` is ``numba``, which is not installed.
    """
    tensors: tuple[Tensor, ...] = (u_BLC, delta_BLC, a_CN, b_BLN, c_BLN, d_C, gamma_CR)
    if bias_C is not None:
        tensors = (*tensors, bias_C)
    _check_shapes(*tensors)
    _check_lengths(lengths, u_BLC.shape[1])
    exact = torch.promote_types(u_BLC.dtype, torch.float32)
    if _runs_compiled(tensors, exact):
        from anyres.ops import scan_cpu

        if len(lengths) < 2 or not scan_cpu.learned(tensors):
            return scan_cpu.cycle_scan(*tensors, out=out_BLC, lengths=lengths)
    if len(lengths) > 1:
        y = _scan_each(tensors, lengths)
        return y if out_BLC is None else out_BLC.copy_(y)
    u, delta, *others = (x.to(exact) for x in tensors)
    if bias_C is not None:
        delta = F.softplus(delta + others.pop())
    y = _torch_scan(u, delta, *others).to(u_BLC.dtype)
    return y if out_BLC is None else out_BLC.copy_(y)


def _scan_each(tensors: tuple[Tensor, ...], lengths: Sequence[int]) -> Tensor:
    u, delta, a, b, c, d, gamma, *bias = tensors
    parts = zip(*(x.split(list(lengths), 1) for x in (u, delta, b, c)), strict=True)
    scanned = [
        cycle_scan(u, delta, a, b, c, d, gamma, bias[0] if bias else None)
        for u, delta, b, c in parts
    ]
    return torch.cat(scanned, 1)


def _check_lengths(lengths: Sequence[int], tokens: int) -> None:
    if lengths and (sum(lengths) != tokens or min(lengths) < 1):
        raise InputError(
            f"cycle_scan got sequences of {tuple(lengths)} tokens; each must have one or more, "
            f"and together they must be the {tokens} of u"
        )


def _check_shapes(
    u: Tensor,
    delta: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    gamma: Tensor,
    bias: Tensor | None = None,
) -> None:
    """The compiled kernels trust shapes: a wrong one would read foreign memory."""
    batch, length, channels = u.shape
    states, cycles = a.shape[-1], gamma.shape[-1]
    wanted = {
        "delta": (delta, (batch, length, channels)),
        "a": (a, (channels, states)),
        "b": (b, (batch, length, states)),
        "c": (c, (batch, length, states)),
        "d": (d, (channels,)),
        "gamma": (gamma, (channels, cycles)),
    }
    if bias is not None:
        wanted["bias"] = (bias, (channels,))
    for name, (tensor, shape) in wanted.items():
        if tensor.shape != shape:
            raise InputError(
                f"cycle_scan got {name} of shape {tuple(tensor.shape)}; with u of shape "
                f"{tuple(u.shape)} and {states} states it must be {shape}"
            )
    if 0 in (batch, length, channels, states, cycles):
        raise InputError(
            f"cycle_scan needs something to scan; got u of shape {tuple(u.shape)}, {states} "
            f"states a channel and {cycles} cycles"
        )


def _runs_compiled(tensors: tuple[Tensor, ...], exact: torch.dtype) -> bool:
    """Whether the compiled kernels run."""
    forced = kernels.forced("ANYRES_SCAN")
    if forced == "torch":
        return False
    fits = exact == torch.float32 and all(x.device.type == "cpu" for x in tensors)
    fits = fits and not in_graph()  # they cannot become part of one
    if forced and not fits:
        raise InputError(
            f"ANYRES_SCAN=numba, which runs float32 on a CPU outside of torch.compile and export; "
            f"the tensors are {exact} on {tensors[0].device}; unset ANYRES_SCAN"
        )
    return fits and kernels.has_numba()


def _torch_scan(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, gamma: Tensor
) -> Tensor:
    total_C = gamma.sum(1)
    steps = _Steps(u, delta, a, b, chunk=math.ceil(math.sqrt(u.shape[1])))
    ends_BKNC, decays_BKNC = steps.chunk_ends()
    ends, decays = ends_BKNC.unbind(1), decays_BKNC.unbind(1)
    start_BNC = _initial_state(ends, decays, gamma)
    starts = _carry([end * total_C for end in ends], decays, start_BNC)
    y_BLC = steps.outputs(torch.stack(starts[:-1], 1), total_C, c)
    return y_BLC + u * (d * total_C)


def _carry(
    ends: list[Tensor] | tuple[Tensor, ...], decays: tuple[Tensor, ...], start: Tensor
) -> list[Tensor]:
    """States at the start of each chunk and at the end of the last."""
    states = [start]
    for end, decay in zip(ends, decays, strict=True):
        states.append(end + decay * states[-1])
    return states


def _initial_state(
    ends: tuple[Tensor, ...], decays: tuple[Tensor, ...], gamma_CR: Tensor
) -> Tensor:
    """The weighted sum of the states at the start of the repetitions, (B, N, C)."""
    state = weighted = torch.zeros_like(ends[0])
    if gamma_CR.shape[1] == 1:
        return weighted
    whole = _carry(ends, decays, state)[-1]
    decay = torch.stack(decays).prod(0)
    for weight_C in gamma_CR.unbind(1)[1:]:
        state = whole + decay * state
        weighted = weighted + weight_C * state
    return weighted


class _Steps:
    """The recurrence's coefficients, cut into chunks that advance together."""

    def __init__(self, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, chunk: int) -> None:
        self.length = u.shape[1]
        self.chunk = chunk
        # A padded token has delta 0: the state passes it unchanged.
        self.delta = self._cut(delta)
        self.input = self._cut(delta * u)
        self.b = self._cut(b)
        self.a_NC = a.t()
        some = math.isqrt(chunk)
        self.turns = [range(t, min(t + some, chunk)) for t in range(0, chunk, some)]
        self.recompute = torch.is_grad_enabled() and not in_graph()

    def _cut(self, x_BLX: Tensor) -> Tensor:
        """(B, L, X) to (B, K, T, X)."""
        pad = -self.length % self.chunk
        cut: Tensor = F.pad(x_BLX, (0, 0, 0, pad)).unflatten(1, (-1, self.chunk))
        return cut

    def _step(self, t: int) -> tuple[Tensor, Tensor]:
        """Decay and input of the t-th token of every chunk, (B, K, N, C) each."""
        decay = torch.exp(self.delta[:, :, t, None, :] * self.a_NC)
        return decay, self.input[:, :, t, None, :] * self.b[:, :, t, :, None]

    def _run(self, turns: Callable[..., T], *args: object) -> T:
        """Call; if there may be a backward pass, keep nothing of it but the arguments."""
        if not self.recompute:
            return turns(*args)
        result: T = checkpoint(turns, *args, use_reentrant=False, preserve_rng_state=False)
        return result

    def chunk_ends(self) -> tuple[Tensor, Tensor]:
        """End states of the chunks, each from zero, and their decays; (B, K, N, C) both."""
        state = torch.zeros_like(self._step(0)[1])
        for turns in self.turns:
            state = self._run(self._ends, state, turns)
        return state, torch.exp(self.delta.sum(2)[:, :, None] * self.a_NC)

    def _ends(self, state_BKNC: Tensor, turns: range) -> Tensor:
        for t in turns:
            decay, inputs = self._step(t)
            state_BKNC = torch.addcmul(inputs, decay, state_BKNC)
        return state_BKNC

    def outputs(self, state_BKNC: Tensor, scale_C: Tensor, c_BLN: Tensor) -> Tensor:
        """Outputs (B, L, C) of inputs scaled by ``scale_C`` from the given chunk starts."""
        weights = self._cut(c_BLN)
        outputs = []
        for turns in self.turns:
            state_BKNC, some = self._run(self._outputs, state_BKNC, turns, scale_C, weights)
            outputs.append(some)
        return torch.cat(outputs, 2).flatten(1, 2)[:, : self.length]

    def _outputs(
        self, state_BKNC: Tensor, turns: range, scale_C: Tensor, weights_BKTN: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = []
        for t in turns:
            decay, inputs = self._step(t)
            state_BKNC = torch.addcmul(inputs * scale_C, decay, state_BKNC)
            outputs.append(weights_BKTN[:, :, t, None, :] @ state_BKNC)
        return state_BKNC, torch.cat(outputs, 2)
