"""Regular grids of points to prompt with, as in Segment Anything's ``utils/amg.py``."""

import numpy as np
import numpy.typing as npt

from anyres.errors import InputError


def build_point_grid(n_per_side: int) -> npt.NDArray[np.float64]:
    """A grid of points over the unit square, half a step away from its border.

    Args:
        n_per_side: points along each axis.

    Returns:
        (n_per_side**2, 2) XY in [0, 1], rows from the top, each from the left. Multiply by (width,
        height) for pixels.

    Raises:
        InputError: fewer than one point.
    """
    if n_per_side < 1:
        raise InputError(f"a grid of {n_per_side} points a side is empty: give at least 1")
    offset = 1 / (2 * n_per_side)
    side = np.linspace(offset, 1 - offset, n_per_side)
    x, y = np.meshgrid(side, side)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def build_all_layer_point_grids(
    n_per_side: int, n_layers: int, scale_per_layer: int
) -> list[npt.NDArray[np.float64]]:
    """Grids for the whole picture and for each layer of ever smaller crops of it.

    Args:
        n_per_side: points along each axis for the whole picture.
        n_layers: layers of crops.
        scale_per_layer: by what the points a side are divided from layer to layer, rounded down.
            A crop has at least one point, where Segment Anything would have none and fail.

    Returns:
        ``n_layers`` + 1 arrays as of ``build_point_grid``.

    Raises:
        InputError: ``n_per_side`` or ``scale_per_layer`` is below 1, or ``n_layers`` below 0.
    """
    if n_per_side < 1 or scale_per_layer < 1 or n_layers < 0:
        raise InputError(
            f"n_per_side {n_per_side} and scale_per_layer {scale_per_layer} must be at least 1, "
            f"n_layers {n_layers} at least 0"
        )
    sides = [max(1, n_per_side // scale_per_layer**layer) for layer in range(n_layers + 1)]
    return [build_point_grid(side) for side in sides]
