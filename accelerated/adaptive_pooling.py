"""Pooling of maps to a grid of a few cells, with its adjoint; see the reference.

Both are products with one matrix of few rows, (cells, pixels), in whatever memory format the maps are. On a CPU this is
nearly twice as fast as PyTorch's adaptive pooling of contiguous maps, or faster; of channels last it is half as fast,
a percent or two of a step, but means, sums and their adjoints all go this one way.
"""

from functools import lru_cache
from typing import Any, Literal, TypeAlias

import torch

from ._arrays import Array, check_count, check_images, check_option, wide

__all__ = ["Pooling", "grid_pool", "grid_pool_adjoint"]

Pooling: TypeAlias = Literal["mean", "sum"]
"""What a cell has of its pixels."""


def channels_last(h: Array) -> bool:
    """Whether a position's channels are neighbours in memory, which convolutions and pooling of a CPU prefer."""
    return h.is_contiguous(memory_format=torch.channels_last) and not h.is_contiguous()


def _by_channel(h: Array) -> Array:
    """A view of channels last: (batch, height width, c)."""
    return h.movedim(1, 3).flatten(1, 2)


def _members(size: int, count: int, dtype: torch.dtype, device: torch.device) -> Array:
    """1 where a pixel of `size` belongs to a cell of `count`: (count, size), in float32 at least."""
    cell, pixel = (torch.arange(n, device=device) for n in (count, size))
    first, end = cell * size // count, -((cell + 1) * size // -count)
    inside = (pixel >= first[:, None]) & (pixel < end[:, None])
    return inside.to(wide(dtype))


def _weights(
    size: tuple[int, int], grid: tuple[int, int], pooling: Pooling, dtype: torch.dtype, device: torch.device
) -> Array:
    """The weights of all pixels in all cells: (rows columns, height width)."""
    rows, columns = (_members(pixels, count, dtype, device) for pixels, count in zip(size, grid, strict=True))
    if pooling == "mean":
        rows, columns = (members / members.sum(dim=1, keepdim=True) for members in (rows, columns))
    return (rows[:, None, :, None] * columns[:, None, :]).flatten(2).flatten(0, 1).to(dtype)


@lru_cache(maxsize=128)
def _kept_weights(*settings: Any) -> Array:
    """The same, made once: they cost a dozen small steps."""
    with torch.inference_mode(False), torch.no_grad():
        return _weights(*settings)


def _cells(size: tuple[int, int], grid: tuple[int, int], pooling: Pooling, like: Array) -> Array:
    if torch.compiler.is_compiling():
        return _weights(size, grid, pooling, like.dtype, like.device)
    cells = _kept_weights(size, grid, pooling, like.dtype, like.device)
    if type(cells) is not torch.Tensor:  # made under a mode that computes nothing, after which it would stay
        _kept_weights.cache_clear()
    return cells


def grid_pool(h: Array, grid: tuple[int, int], pooling: Pooling = "mean") -> Array:
    """Means or sums of the cells: (batch, c, *grid). Raises ValueError for anything but maps."""
    check_option("pooling", pooling, Pooling)
    for count in grid:
        check_count("grid", count)
    if h.dim() != 4:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, channels, height, width) for a grid of cells")
    cells = _cells((h.shape[2], h.shape[3]), grid, pooling, h)
    if channels_last(h):
        return (cells @ _by_channel(h)).unflatten(1, grid).movedim(3, 1)
    return (h.flatten(2) @ cells.T).unflatten(2, grid)


def grid_pool_adjoint(y: Array, size: tuple[int, int], pooling: Pooling = "mean") -> Array:
    """The adjoint for maps of that height and width: (batch, c, *size), in the memory format of y."""
    check_images("y", y)
    check_option("pooling", pooling, Pooling)
    for pixels in size:
        check_count("size", pixels)
    return spread(y, size, pooling, channels_last(y))


def spread(y: Array, size: tuple[int, int], pooling: Pooling, last: bool) -> Array:
    """The same with channels last in memory, or not: a single cell does not tell."""
    cells = _cells(size, (y.shape[2], y.shape[3]), pooling, y)
    if last:
        return (cells.T @ _by_channel(y)).unflatten(1, size).movedim(3, 1)
    return (y.flatten(2) @ cells).unflatten(2, size)
