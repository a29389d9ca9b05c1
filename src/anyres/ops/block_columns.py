"""What the kernels of ``block_tiles`` work on; arrays are flat but for a layout's.

Shapes: T columns, C channels, N windows, H heads, D channels of a head, K slots.
"""

from typing import Any, NamedTuple


class Memory(NamedTuple):
    """Where a thread puts what is in between; sums are float32."""

    summed: Any  # (T / 16, C, 16) as pairs: the tokens, then with what was added
    x: Any  # the same: what the next product takes
    q: Any  # the same
    k: Any  # (N, H, D / 32, K, 32)
    v: Any  # (N, H, K / 32, D, 32)
    inner: Any  # (panel / 16, hidden, 16) as pairs
    powers: Any  # (2, K, 16) as pairs
    rows: Any  # (16, 32): tokens on their way to columns and back
    sums: Any  # (max(K, 32), 32)
    scales: Any  # (32,)
    cos: Any  # (parts, D / 2, K), in the order of their keys
    sin: Any


class Sizes(NamedTuple):
    """Of a block."""

    width: int
    hidden: int
    heads: int
    slots: int


class Linear(NamedTuple):
    """A layer's weight (outer, inner), flat, and its bias."""

    weight: Any
    bias: Any


class Norm(NamedTuple):
    """A layer norm's parameters."""

    gain: Any
    shift: Any
    eps: Any  # float32


class Parameters(NamedTuple):
    """A block's parameters and what its windows share."""

    pads: Any  # (3 * C,): the projection of padding, bias included
    padding: Any  # the same in float32
    cos: Any  # (K, D / 2), as from rope.window_table
    sin: Any
    first: Norm
    second: Norm
    qkv: Linear
    proj: Linear
    fc1: Linear
    fc2: Linear


class Layout(NamedTuple):
    """Where a group's tokens are."""

    places: Any  # (T,): in the picture; of repeated ones -1 - the place
    windows: Any  # (N, 4): first column, end, real tokens, part
    blocks: Any  # (T / 32, 3): window, first key in it, part
    slots: Any  # (parts, K): places in a window of its keys, those of padding last
