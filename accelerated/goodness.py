"""Goodness: how active a layer is, the number that separates positive from negative data; see the reference.

Half precision has too few digits for sums over a layer: of it, values are computed and given in float32, gradients in
the activities' own precision.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from ._arrays import Array, check_not_negative, widened

__all__ = [
    "GOODNESS",
    "Goodness",
    "entmax_weighted",
    "excess_kurtosis",
    "maximum",
    "mean_activation",
    "mean_square",
    "negated",
    "sum_of_squares",
    "top_k",
]


class Goodness(NamedTuple):
    """A goodness with its gradient; see the reference's table."""

    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    scale: Callable[[int], float]


def _rows(h: Array) -> Array:
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, ...), at least one of each")
    return h.flatten(1)


def _wide(h: Array) -> Array:
    """Activities as rows of float32 at least: (batch, n)."""
    return widened(_rows(h))


# Functions of the module, not of functions, so that a goodness can be pickled.
def _one(n: int) -> float:
    return 1.0


def _sum_of_squares(h: Array) -> Array:
    return _wide(h).square().sum(dim=1)


def _twice(h: Array) -> Array:
    return 2 * h


def _mean_square(h: Array) -> Array:
    return _wide(h).square().mean(dim=1)


def _twice_by_width(h: Array) -> Array:
    return h * (2 / math.prod(h.shape[1:]))


def _mean(h: Array) -> Array:
    return _wide(h).mean(dim=1)


def _one_by_width(h: Array) -> Array:
    return torch.full_like(h, 1 / math.prod(h.shape[1:]))


sum_of_squares: Goodness = Goodness(_sum_of_squares, _twice, float)
mean_square: Goodness = Goodness(_mean_square, _twice_by_width, _one)
mean_activation: Goodness = Goodness(_mean, _one_by_width, _one)


# Magnitudes are compared, which are exact in every precision: squares of half precision are equal, 0 or infinite for
# units that are not, and value and gradient would be of different ones.
def _largest(count: Callable[[int], int]) -> Goodness:
    return Goodness(partial(_largest_value, count), partial(_largest_gradient, count), partial(_largest_scale, count))


def _largest_value(count: Callable[[int], int], h: Array) -> Array:
    magnitudes = _rows(h).abs()
    return _wide(magnitudes.topk(count(magnitudes.shape[1]), dim=1, sorted=False).values).square().sum(dim=1)


def _largest_gradient(count: Callable[[int], int], h: Array) -> Array:
    rows = _rows(h)
    largest = rows.abs().topk(count(rows.shape[1]), dim=1, sorted=False).indices
    return torch.zeros_like(rows).scatter_(1, largest, 2 * rows.gather(1, largest)).view_as(h)


def _largest_scale(count: Callable[[int], int], n: int) -> float:
    return float(count(n))


def _share_of(share: float, n: int) -> int:
    return math.ceil(share * n * (1 - 1e-12))  # 0.07 of 100 is 7, not 7.000000000000001


def top_k(share: float = 0.02) -> Goodness:
    """The sum of the ceil(share n) largest squares. Raises ValueError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise ValueError(f"share: {share}, expected more than 0 and at most 1")
    return _largest(partial(_share_of, share))


def _first(n: int) -> int:
    return 1


maximum: Goodness = _largest(_first)
"""The largest square."""


def _entmax_root(z: Array) -> Array:
    """The square root of the 1.5-entmax of every row: (batch, n); the reference says how."""
    x = ((z - z.amax(dim=1, keepdim=True)) / 2).clamp(min=-1)
    descending = x.sort(dim=1, descending=True).values
    above = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    gap = -descending.diff(dim=1, prepend=descending[:, :1])
    sums = (above * gap).cumsum(dim=1)
    squares = (gap * (2 * sums - above * gap)).cumsum(dim=1)
    support = (squares < 1).sum(dim=1, keepdim=True).clamp(min=1)  # none where activities are not finite
    least, total, missing = (a.gather(1, support - 1) for a in (descending, sums, 1 - squares))
    root = missing / (total + (total.square() + support * missing).sqrt())
    return (x - least + root).clamp(min=0)


def _entmax_value(stop_gradient: bool, h: Array) -> Array:
    z = _wide(h).square()
    weights = _entmax_root(z).square()
    return ((weights.detach() if stop_gradient else weights) * z).sum(dim=1)


def _entmax_gradient(stop_gradient: bool, h: Array) -> Array:
    z = _wide(h).square()
    s = _entmax_root(z)
    by_z = s.square()
    if not stop_gradient:
        by_z = by_z + s * (z - (s * z).sum(dim=1, keepdim=True) / s.sum(dim=1, keepdim=True))
    return (2 * h * by_z.view(h.shape)).to(h.dtype)


def entmax_weighted(stop_gradient: bool = True) -> Goodness:
    """The squares' mean weighted by their 1.5-entmax; with stop_gradient, weights are constants to the gradient."""
    return Goodness(partial(_entmax_value, stop_gradient), partial(_entmax_gradient, stop_gradient), _one)


def _centred(h: Array) -> Array:
    rows = _wide(h)
    return rows - rows.mean(dim=1, keepdim=True)


def _kurtosis_value(eps: float, h: Array) -> Array:
    squares = _centred(h).square()
    # (h - mean)^2 / v, squared: a fourth power would have the root's rounding error four times.
    return (squares / (squares.mean(dim=1, keepdim=True) + eps)).square().mean(dim=1) - 3


def _kurtosis_gradient(eps: float, h: Array) -> Array:
    centred = _centred(h)
    deviation = (centred.square().mean(dim=1, keepdim=True) + eps).sqrt()
    u = centred / deviation
    cubes = u.pow(3)
    slope = cubes - cubes.mean(dim=1, keepdim=True) - u * (cubes * u).mean(dim=1, keepdim=True)
    return (slope / deviation * (4 / u.shape[1])).to(h.dtype).view_as(h)


def excess_kurtosis(eps: float = 1e-6) -> Goodness:
    """Fourth moment of the standardised activities, less 3, the variance raised by eps."""
    check_not_negative("eps", eps)
    return Goodness(partial(_kurtosis_value, eps), partial(_kurtosis_gradient, eps), _one)


def negated(goodness: Goodness) -> Goodness:
    """The goodness of a layer trained to be less active on positive data: -g, with a theta of -threshold * scale."""
    return Goodness(
        partial(_negative, goodness.value), partial(_negative, goodness.gradient), partial(_minus, goodness.scale)
    )


def _negative(function: Callable[[Array], Array], h: Array) -> Array:
    return -function(h)


def _minus(scale: Callable[[int], float], n: int) -> float:
    return -scale(n)


GOODNESS = {
    "sum-of-squares": sum_of_squares,
    "mean-square": mean_square,
    "mean": mean_activation,
    "top-k": top_k(),
    "max": maximum,
    "entmax": entmax_weighted(),
    "kurtosis": excess_kurtosis(),
}
"""Every goodness by the name that rules take."""
