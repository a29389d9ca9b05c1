"""Length adaptation: attention at another number of tokens than in training (BA-SAM).

BA-SAM (CVPR 2024, arXiv 2401.02317) lets SAM run at resolutions it was not trained at, by two
changes of its global attention. A *scaling factor* multiplies the scores, so that a softmax over
more keys stays as sharp as it was in training. A *bias* makes distant tokens count less. What
its official code does differs from the paper and is here too, to read its weights.

Everything is computed from the token grid of each forward call. Windowed layers keep their length
at every resolution and are left alone. No torch here: configurations are read where it is not.
"""

import math
from dataclasses import dataclass
from typing import Literal

from anyres.errors import InputError

Scale = Literal["none", "log", "official"]
Bias = Literal["none", "distance", "coefficient"]

# The official code has these numbers in it, whatever the model's own grid and windows.
_OFFICIAL_SIZE = 1024
_OFFICIAL_BASE = 4096.0
_MOBILE_BASE = 1444.0


@dataclass(frozen=True, kw_only=True)
class LengthConfig:
    """How global attention adapts to the number of tokens.

    The default is zero-shot: weights trained without it, no parameters, and at the training length
    exactly what it was without.

    Attributes:
        scale: what multiplies the scores beside 1 / sqrt(d). ``log`` is the paper's
            log(b n / n_train) / log(b); ``official`` is fixed at construction as in the official
            code: log(4096 s²) / log(4096) with s = ``official_size`` // 1024; ``none`` is 1.
        base: b of ``log``; None is n_train, the number of tokens in training.
        bias: ``distance`` subtracts slope_h * strength * d(i, j), with the geometric slopes of
            ALiBi (Press et al. 2022) and the city-block distance in sides of the training grid.
            ``coefficient`` multiplies all relative-position tables of a block, windowed or not,
            by one learned number (official code). ``none`` adds nothing.
        coefficient: strength of ``distance``, where ``coefficient`` and a learnable ``distance``
            start.
        learnable: make the strength of ``distance`` a parameter of each global block, for
            fine-tuning; it then acts at every length. If not, the strength is
            ``coefficient`` * log(n / n_train) above the training length and 0 up to it.
        official_size: the ``img_size`` that an official model was built with, in pixels; only for
            ``scale="official"``.

    Raises:
        InputError: a value that makes no sense, or one that the official code crashes on.
    """

    scale: Scale = "log"
    base: float | None = None
    bias: Bias = "none"
    coefficient: float = 0.1
    learnable: bool = False
    official_size: int = 0

    def __post_init__(self) -> None:
        if self.scale not in ("none", "log", "official"):
            raise InputError(f"scale is {self.scale!r}; it must be 'none', 'log' or 'official'")
        if self.bias not in ("none", "distance", "coefficient"):
            raise InputError(f"bias is {self.bias!r}; it must be 'none', 'distance', 'coefficient'")
        if self.base is not None and not (self.scale == "log" and 1 < self.base < math.inf):
            raise InputError(f"base is {self.base}; it must be above 1, and is for scale='log'")
        if not 0 <= self.coefficient < math.inf:
            raise InputError(f"coefficient is {self.coefficient}; it must be at least 0")
        if self.learnable and self.bias != "distance":
            raise InputError(f"learnable is for bias='distance', not {self.bias!r}")
        if self.scale == "official" and self.official_size < _OFFICIAL_SIZE:
            raise InputError(
                f"official_size is {self.official_size}: the official scale needs the img_size "
                f"that the model was built with, at least {_OFFICIAL_SIZE} (below, the official "
                "code takes the logarithm of 0); use scale='log'"
            )
        if self.scale != "official" and self.official_size:
            raise InputError(f"official_size is for scale='official', not {self.scale!r}")

    @property
    def learned(self) -> bool:
        """Whether blocks have parameters for it, which only training can set."""
        return self.learnable or self.bias == "coefficient"


def attention_scale(length: LengthConfig, tokens: int, train_tokens: int) -> float:
    """The factor of the scores beside 1 / sqrt(d), for SAM's global attention.

    Args:
        length: the configuration.
        tokens: keys that each query sees now: rows * columns of the token grid, padding included.
            The factor balances a softmax over so many terms, so a rectangle counts its own
            tokens, not those of the square around it.
        train_tokens: the same in training.

    Returns:
        With ``log`` exactly 1 at the training length, and continuous. On SAM's 64 x 64 grid:
        0.8333 at 512², 1.0975 at 1536², 1.1667 at 2048², 1.3333 at 4096².

    Raises:
        InputError: the base is so small that the factor is not positive.
    """
    if length.scale == "none":
        return 1.0
    if length.scale == "official":
        return _official(length, _OFFICIAL_BASE)
    # One token attends to itself, whatever the factor.
    if tokens == 1 or train_tokens == 1:
        return 1.0
    base = train_tokens if length.base is None else length.base
    return _log(tokens / train_tokens, base, f"{tokens} tokens after {train_tokens} in training")


def mobile_scale(length: LengthConfig, long_side: int) -> float:
    """The factor of the scores of MobileSAM, all of whose attention is in windows.

    The official variant multiplies every attention by log(1444 s²) / log(1444), s the size over
    1024. Here s is continuous and follows each forward call.

    Args:
        length: the configuration.
        long_side: of the model input in pixels, padding included.

    Raises:
        InputError: ``length`` has another base or a bias, which this variant has not; or the size
            is so small that the factor is not positive.
    """
    if length.base is not None or length.bias != "none":
        raise InputError("MobileSAM has neither a base nor a bias: use base=None and bias='none'")
    if length.scale == "none":
        return 1.0
    if length.scale == "official":
        return _official(length, _MOBILE_BASE)
    ratio = (long_side / _OFFICIAL_SIZE) ** 2
    return _log(ratio, _MOBILE_BASE, f"{long_side} pixels")


def distance_growth(length: LengthConfig, tokens: int, train_tokens: int) -> float:
    """What the strength of the distance bias is multiplied by; 0 is no bias.

    Args:
        length: the configuration.
        tokens: as in ``attention_scale``.
        train_tokens: the same in training.
    """
    if length.bias != "distance":
        return 0.0
    if length.learnable:
        return 1.0
    return max(0.0, math.log(tokens / train_tokens))


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes: a geometric series over the heads that ends at 2⁻⁸."""
    return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]


def _official(length: LengthConfig, base: float) -> float:
    ratio = length.official_size // _OFFICIAL_SIZE
    return math.log(base * ratio**2) / math.log(base)


def _log(ratio: float, base: float, what: str) -> float:
    if ratio * base <= 1:
        raise InputError(
            f"the base {base:g} is too small for {what}: the scores would be multiplied by "
            f"{math.log(base * ratio) / math.log(base):.3g}; set a base above {1 / ratio:.4g}, or "
            "run at a larger size"
        )
    return math.log(base * ratio) / math.log(base)
