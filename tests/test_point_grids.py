"""Grids of points are Segment Anything's."""

from typing import Any

import numpy as np
import pytest

from anyres.data.point_grids import build_all_layer_point_grids, build_point_grid
from anyres.errors import InputError


def test_a_small_grid() -> None:
    np.testing.assert_allclose(
        build_point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    )
    np.testing.assert_array_equal(build_point_grid(1), [[0.5, 0.5]])


def test_grids_are_the_official_ones(golden: Any) -> None:
    facts, tensors = golden("sam_amg_utils")
    for count in facts["arguments"]["build_point_grid"]:
        official = tensors[f"out::amg::point_grid_{count}"].numpy()
        np.testing.assert_allclose(build_point_grid(count), official, rtol=0, atol=1e-15)
    layered = facts["arguments"][
        "build_all_layer_point_grids(n_per_side, n_layers, scale_per_layer)"
    ]
    for count, layers, scale in layered:
        grids = build_all_layer_point_grids(count, layers, scale)
        assert len(grids) == layers + 1
        for layer, grid in enumerate(grids):
            name = f"out::amg::layer_grid_{count}_{layers}_{scale}_layer{layer}"
            assert grid.dtype == np.float64
            np.testing.assert_allclose(grid, tensors[name].numpy(), rtol=0, atol=1e-15)


def test_the_smallest_crops_keep_a_point() -> None:
    assert [len(grid) for grid in build_all_layer_point_grids(2, 3, 2)] == [4, 1, 1, 1]


@pytest.mark.parametrize("arguments", [(0, 1, 1), (4, -1, 1), (4, 1, 0)])
def test_layers_that_make_no_sense_are_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        build_all_layer_point_grids(*arguments)


def test_an_empty_grid_is_refused() -> None:
    with pytest.raises(InputError, match="a grid of 0 points"):
        build_point_grid(0)
