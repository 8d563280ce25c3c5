"""Pooling of maps to a grid of a few cells, with its adjoint; see the reference.

Where cells tile the map, as they do for almost every network, the adjoint repeats each of them and multiplies nothing.
"""

from typing import Literal, TypeAlias

import torch
from torch.nn import functional

from ._arrays import Array, wide

__all__ = ["Pooling", "grid_pool", "grid_pool_adjoint"]

Pooling: TypeAlias = Literal["mean", "sum"]
"""What a cell has of its pixels."""


def _tiles(size: tuple[int, int], grid: tuple[int, int]) -> bool:
    return size[0] % grid[0] == 0 and size[1] % grid[1] == 0


def _members(size: int, count: int, like: Array) -> Array:
    """1 where a pixel of `size` belongs to a cell of `count`: (count, size), in float32 at least."""
    cell, pixel = (torch.arange(n, device=like.device) for n in (count, size))
    first, end = cell * size // count, -((cell + 1) * size // -count)
    inside = (pixel >= first[:, None]) & (pixel < end[:, None])
    return inside.to(wide(like.dtype))


def pixels_of(size: tuple[int, int], grid: tuple[int, int], like: Array) -> float | Array:
    """How many pixels each cell has: a number where cells tile the map, else (*grid) in float32 at least."""
    if _tiles(size, grid):
        return (size[0] // grid[0]) * (size[1] // grid[1])
    rows, columns = (_members(pixels, count, like).sum(dim=1) for pixels, count in zip(size, grid, strict=True))
    return rows[:, None] * columns


def grid_pool(h: Array, grid: tuple[int, int], pooling: Pooling = "mean") -> Array:
    """Means or sums of the cells: (batch, c, *grid). Raises ValueError for anything but maps."""
    if h.dim() != 4:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, channels, height, width) for a grid of cells")
    means = functional.adaptive_avg_pool2d(h, grid)
    return means if pooling == "mean" else (means * pixels_of((h.shape[2], h.shape[3]), grid, h)).to(h.dtype)


def grid_pool_adjoint(y: Array, size: tuple[int, int], pooling: Pooling = "mean") -> Array:
    """The adjoint for maps of that height and width: (batch, c, *size)."""
    grid = y.shape[2], y.shape[3]
    if pooling == "mean":
        y = (y / pixels_of(size, grid, y)).to(y.dtype)
    if _tiles(size, grid):
        blocks = y[:, :, :, None, :, None].expand(-1, -1, -1, size[0] // grid[0], -1, size[1] // grid[1])
        return blocks.reshape(*y.shape[:2], *size)
    rows, columns = (_members(pixels, count, y).to(y.dtype) for pixels, count in zip(size, grid, strict=True))
    return rows.mT @ y @ columns
