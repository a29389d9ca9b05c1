"""Which implementation of HRSAM's window blocks runs on a CPU.

For float32 and bfloat16 without gradients, with numba installed (extra ``fast``), torch does the
matrix products and kernels compiled at the first call the rest: ``block_cpu``. In bfloat16 on a CPU
with AMX the kernels do everything: ``block_amx``. Otherwise torch does.

``ANYRES_BLOCK=torch`` or ``numba`` in the environment forces one. A kernel that does not compile is
an error: nothing changes over to the slow path unasked.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from anyres.errors import InputError
from anyres.ops import kernels

_LANES = 16


def kernel_name() -> str:
    """Which implementation runs on a CPU, and why; for ``anyres doctor``."""
    kinds = "float32 and bfloat16"
    if kernels.has_numba():
        from anyres.ops import simd_tiles

        kinds += " in AMX tiles" if simd_tiles.has_tiles() else ""
    return kernels.name("ANYRES_BLOCK", kinds, "torch")


def runs_compiled(x_BhwC: Tensor, heads: int, window: int, hidden: int) -> bool:
    """Whether the compiled kernels run, for tokens that ``threads.runs_in_parts``.

    They want heads of a multiple of 32 channels, and multiples of 16 of an MLP's and of slots.

    Args:
        x_BhwC: the tokens.
        heads: of the attention.
        window: side in tokens.
        hidden: channels inside the MLP.

    Raises:
        InputError: ``ANYRES_BLOCK`` is no implementation, or is ``numba`` and cannot run.
        MissingExtraError: ``ANYRES_BLOCK`` is ``numba``, which is not installed.
    """
    forced = kernels.forced("ANYRES_BLOCK")
    if forced == "torch":
        return False
    depth = x_BhwC.shape[-1] // heads
    sizes = depth % (2 * _LANES) == 0 and hidden % _LANES == 0 and window**2 % _LANES == 0
    fits = sizes and x_BhwC.dtype in (torch.float32, torch.bfloat16)
    if forced and not fits:
        raise InputError(
            "ANYRES_BLOCK=numba, which runs float32 and bfloat16, heads of a multiple of 32 "
            "channels, windows whose side is a multiple of 4 and an MLP of a multiple of 16; "
            f"here are {x_BhwC.dtype}, {depth} channels, side {window} and {hidden}; "
            "unset ANYRES_BLOCK"
        )
    return fits and kernels.has_numba()


def runs_in_tiles(x_BhwC: Tensor, window: int, hidden: int) -> bool:
    """Whether what ``runs_compiled`` runs in one call, multiplied by the processor's tiles (AMX).

    Slots and channels of an MLP must be multiples of 32 then.
    """
    if x_BhwC.dtype != torch.bfloat16 or window**2 % (2 * _LANES) or hidden % (2 * _LANES):
        return False
    from anyres.ops import simd_tiles

    return simd_tiles.has_tiles()


def scan_runs_compiled(x: Tensor) -> bool:
    """Whether kernels do what lies between a cycle-scan and its products; as ``runs_compiled``.

    They want a multiple of 16 channels.

    Args:
        x: tokens (.., C).

    Raises:
        InputError: ``ANYRES_BLOCK`` is no implementation, or is ``numba`` and cannot run.
        MissingExtraError: ``ANYRES_BLOCK`` is ``numba``, which is not installed.
    """
    return runs_in_lanes(x.dtype, x.shape[-1:])


def runs_in_lanes(kind: torch.dtype, channels: Iterable[int], kernel: int = 3) -> bool:
    """Whether kernels run that want multiples of 16 channels; as ``runs_compiled``.

    Args:
        kind: precision of model and maps.
        channels: all that must be.
        kernel: side of convolutions; they want 3.

    Raises:
        InputError: ``ANYRES_BLOCK`` is no implementation, or is ``numba`` and cannot run.
        MissingExtraError: ``ANYRES_BLOCK`` is ``numba``, which is not installed.
    """
    forced = kernels.forced("ANYRES_BLOCK")
    if forced == "torch":
        return False
    known = kind in (torch.float32, torch.bfloat16)
    fits = known and kernel == 3 and not any(count % _LANES for count in channels)
    if forced and not fits:
        raise InputError(
            "ANYRES_BLOCK=numba, which runs float32 and bfloat16, multiples of 16 channels and "
            f"convolutions of side 3; here are {kind}, {sorted(set(channels))} and {kernel}; "
            "unset ANYRES_BLOCK"
        )
    return fits and kernels.has_numba()


def scan_runs_in_tiles(x: Tensor, states: int) -> bool:
    """Whether what ``scan_runs_compiled`` runs is multiplied by the processor's tiles (AMX).

    Channels and all weights of a token must be multiples of 32 then.
    """
    if x.dtype != torch.bfloat16 or x.shape[-1] % (2 * _LANES) or states % _LANES:
        return False
    from anyres.ops import simd_tiles

    return simd_tiles.has_tiles()


def enlarging_runs_compiled() -> bool:
    """Whether a kernel brings masks to the size of the picture; errors as ``runs_compiled``."""
    forced = kernels.forced("ANYRES_BLOCK")
    return forced != "torch" and kernels.has_numba()


def decoder_runs_in_tiles(kind: torch.dtype, channels: int) -> bool:
    """Whether kernels do what a mask decoder does with an image, in the processor's tiles (AMX).

    Otherwise torch does it: there is no kernel for float32.

    Args:
        kind: precision of image tokens that ``threads.runs_in_parts``.
        channels: of these tokens; kernels want a multiple of 128.

    Raises:
        InputError: ``ANYRES_BLOCK`` is no implementation.
        MissingExtraError: ``ANYRES_BLOCK`` is ``numba``, which is not installed.
    """
    return not channels % (8 * _LANES) and _in_tiles(kind)


def clicks_run_in_tiles(kind: torch.dtype, features: Iterable[int], finest: int) -> bool:
    """The same for click maps: multiples of 32 channels of features, 16 of the finest answer."""
    fits = not finest % _LANES and not any(count % (2 * _LANES) for count in features)
    return fits and _in_tiles(kind)


def masks_run_in_tiles(kind: torch.dtype, channels: int, inner: int) -> bool:
    """The same for embeddings of masks: multiples of 32 channels, and 16 within."""
    return not channels % (2 * _LANES) and inner == _LANES and _in_tiles(kind)


def _in_tiles(kind: torch.dtype) -> bool:
    forced = kernels.forced("ANYRES_BLOCK")
    if forced == "torch" or kind != torch.bfloat16 or not kernels.has_numba():
        return False
    from anyres.ops import simd_tiles

    return simd_tiles.has_tiles()
