"""Grids of cells: twin against reference, cells by hand and by PyTorch, and the adjoint as an adjoint."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

GRIDS = ((1, 1), (2, 2), (2, 3), (3, 5), (7, 1))
poolings = pytest.mark.parametrize("pooling", ["mean", "sum"])


@st.composite
def maps(draw: st.DrawFn) -> tuple[Any, tuple[int, int], Any]:
    """Maps (batch, c, H, W), a grid that divides them, or not, or is finer than they are, and cells for the adjoint."""
    size = draw(st.sampled_from(((4, 6), (6, 4), (3, 5), (7, 2), (1, 1))), label="size")
    grid = draw(st.sampled_from(GRIDS), label="grid")
    batch = draw(st.sampled_from((1, 3)), label="batch")
    rng = draw(seeds())
    return rng.standard_normal((batch, 2, *size)), grid, rng.standard_normal((batch, 2, *grid))


@poolings
@given(case=maps())
def test_twin(twin: Side, compare: Comparison, pooling: str, case: Any) -> None:
    h, grid, y = case
    compare(twin, "grid_pool", lambda side, h: side.adaptive_pooling.grid_pool(h, grid, pooling), h)
    compare(
        twin, "grid_pool_adjoint", lambda side, y: side.adaptive_pooling.grid_pool_adjoint(y, h.shape[2:], pooling), y
    )


@given(case=maps())
def test_cells_are_those_of_pytorch(side: Side, case: Any) -> None:
    """And a sum is the mean times the number of a cell's pixels, which the sum of ones counts."""
    h, grid, _ = case
    h = side.results(side.operands(h))
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(h), grid).cpu().numpy()
    means = side.results(side.adaptive_pooling.grid_pool(side.operands(h), grid))
    limit = 8 * side.eps * np.abs(h).max()
    assert np.abs(means - expected).max() <= limit, "means of the cells"
    count = side.results(side.adaptive_pooling.grid_pool(side.operands(np.ones_like(h)), grid, "sum"))
    assert np.array_equal(count, np.round(count)), "pixels of a cell"
    sums = side.results(side.adaptive_pooling.grid_pool(side.operands(h), grid, "sum"))
    assert np.all(np.abs(sums - expected * count) <= limit * count), "sums of the cells"


def test_cells_by_hand(side: Side) -> None:
    """Five rows in two: 0 to 2 and 2 to 4, the middle one in both; one row in two: twice."""
    h = side.operands(np.arange(5.0)[None, None, :, None])
    near = pytest.approx  # a third is no number of the binary system
    assert side.results(side.adaptive_pooling.grid_pool(h, (2, 1))).ravel() == near([1, 3], rel=side.eps)
    assert side.results(side.adaptive_pooling.grid_pool(h, (2, 1), "sum")).ravel().tolist() == [3, 9]
    assert side.results(side.adaptive_pooling.grid_pool(h[:, :, 1:2], (2, 1))).ravel().tolist() == [1, 1]
    cells = side.operands(np.array([3.0, 6.0]).reshape(1, 1, 2, 1))
    assert side.results(side.adaptive_pooling.grid_pool_adjoint(cells, (5, 1))).ravel().tolist() == [1, 1, 3, 2, 2]
    assert side.results(side.adaptive_pooling.grid_pool_adjoint(cells, (5, 1), "sum")).ravel().tolist() == [
        3,
        3,
        9,
        6,
        6,
    ]


@poolings
@given(case=maps())
def test_the_adjoint_is_the_adjoint(side: Side, pooling: str, case: Any) -> None:
    """<A h, y> = <h, A* y>."""
    h, grid, y = side.results(side.operands(case[0])), case[1], side.results(side.operands(case[2]))
    pooled = side.results(side.adaptive_pooling.grid_pool(side.operands(h), grid, pooling))
    spread = side.results(side.adaptive_pooling.grid_pool_adjoint(side.operands(y), h.shape[2:], pooling))
    size = np.abs(h).max() * np.abs(y).sum() * (1 if pooling == "mean" else h[0, 0].size)
    assert abs((pooled * y).sum() - (h * spread).sum()) <= 8 * side.eps * size, "adjoint"


def test_a_grid_of_dense_activities_is_refused(side: Side) -> None:
    with side.refuses(r"h: shape \(2, 6\), expected \(batch, channels, height, width\)"):
        side.adaptive_pooling.grid_pool(side.operands(np.zeros((2, 6))), (1, 1))
