"""Pooling of maps to a grid of a few cells, with its adjoint.

    (1)  y[c, i, j] = w sum_(p in I_i, q in J_j) h[c, p, q],    w = 1 / (|I_i| |J_j|) for means, 1 for sums
    (2)  I_i = floor(i H / R) .. ceil((i + 1) H / R) - 1,    J_j likewise of W and the columns
    (3)  its adjoint:  h[c, p, q] = sum_(i, j) w y[c, i, j] [p in I_i, q in J_j]

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| h | h | (batch, c, H, W) | maps |
| y | y | (batch, c, R, columns) | cells |
| R, columns | grid | (2,) | rows and columns of the grid |

Cells tile a map whose height and width are multiples of the grid's. Else neighbours share the rows between them, and
where the grid is the finer one pixels are repeated: the cells are those of torch.nn.AdaptiveAvgPool2d.
"""

from typing import Literal, TypeAlias

import numpy as np

from ._arrays import Array, check_count, check_images, check_option

__all__ = ["Pooling", "grid_pool", "grid_pool_adjoint"]

Pooling: TypeAlias = Literal["mean", "sum"]
"""What a cell has of its pixels."""


def _cells(size: int, count: int, pooling: Pooling) -> Array:
    """The weights w of `size` pixels in `count` cells along one axis, equation (2): (count, size) float64."""
    weights = np.zeros((count, size))
    for i in range(count):
        first, end = i * size // count, -((i + 1) * size // -count)
        weights[i, first:end] = 1 / (end - first) if pooling == "mean" else 1
    return weights


def grid_pool(h: Array, grid: tuple[int, int], pooling: Pooling = "mean") -> Array:
    """Means or sums of each cell's pixels, equation (1): (batch, c, *grid). Raises ValueError unless h are maps.

    >>> grid_pool(np.array([[[[0.0, 6.0, 12.0]]]]), (1, 2)).tolist()  # two cells share the middle pixel
    [[[[3.0, 9.0]]]]
    >>> grid_pool(np.array([[[[0.0, 6.0, 12.0]]]]), (1, 2), "sum").tolist()
    [[[[6.0, 18.0]]]]
    """
    check_option("pooling", pooling, Pooling)
    for count in grid:
        check_count("grid", count)
    if h.ndim != 4:
        raise ValueError(f"h: shape {h.shape}, expected (batch, channels, height, width) for a grid of cells")
    rows, columns = (_cells(size, count, pooling) for size, count in zip(h.shape[2:], grid, strict=True))
    return np.einsum("ip,jq,bcpq->bcij", rows.astype(h.dtype), columns.astype(h.dtype), h)


def grid_pool_adjoint(y: Array, size: tuple[int, int], pooling: Pooling = "mean") -> Array:
    """The adjoint for maps of that size, equation (3): (batch, c, *size). Raises ValueError unless y are maps.

    >>> grid_pool_adjoint(np.array([[[[2.0, 4.0]]]]), (1, 3)).tolist()  # half of each cell to each of its pixels
    [[[[1.0, 3.0, 2.0]]]]
    """
    check_images("y", y)
    check_option("pooling", pooling, Pooling)
    for pixels in size:
        check_count("size", pixels)
    rows, columns = (_cells(pixels, count, pooling) for pixels, count in zip(size, y.shape[2:], strict=True))
    return np.einsum("ip,jq,bcij->bcpq", rows.astype(y.dtype), columns.astype(y.dtype), y)
