"""Scores: what a layer by itself says of the K classes, made from its activities; see the reference.

Maps are reduced over positions first and over a group's channels then, with channels last many times as fast, where
squares are written out for it. The derivative of a mean is a view that repeats one number for each group. Nothing
builds a graph of its own; call them without one.
"""

from collections.abc import Callable
from functools import partial
from math import inf, prod
from typing import NamedTuple, TypeAlias

import torch

from ._arrays import Array, check_count, check_shape, few_columns, wide, widened
from .adaptive_pooling import Pooling, channels_last, grid_pool, spread

__all__ = [
    "Grid",
    "Score",
    "ScoreCredit",
    "features",
    "features_adjoint",
    "group_mean",
    "group_mean_square",
    "linear_map",
    "no_penalty",
    "patch_energy",
    "random_projection",
    "random_readout",
]

Grid: TypeAlias = tuple[int, int] | None
"""Rows and columns of cells that maps are pooled to; None for activities as they are."""


class ScoreCredit(NamedTuple):
    """A loss's derivatives by the activities, shaped like them, and by learned parameters, summed over the batch."""

    activities: Array
    parameters: tuple[Array, ...]


def no_penalty(parameters: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    """The penalty of a score without one: 0, and zeros for gradients."""
    zero = parameters[0].new_zeros(()) if parameters else torch.zeros(())
    return zero, tuple(torch.zeros_like(p) for p in parameters)


Pullback: TypeAlias = Callable[[Array], ScoreCredit]
"""From a loss's derivative by the scores to those by what they are made of."""

Penalty: TypeAlias = Callable[[tuple[Array, ...]], tuple[Array, tuple[Array, ...]]]


class Score(NamedTuple):
    """A score by its three functions; see the reference."""

    value: Callable[[Array, tuple[Array, ...]], Array]
    credit: Callable[[Array, tuple[Array, ...], Array], ScoreCredit]
    penalty: Penalty = no_penalty

    def pullback(self, h: Array, parameters: tuple[Array, ...]) -> tuple[Array, Pullback]:
        """`value`, and `credit` of its gradient alone; of a `Sharing` what both need is made once."""
        both = getattr(self.value, "__self__", None)
        if isinstance(both, Sharing) and self.credit == both.credit:
            return both.pullback(h, parameters)
        return self.value(h, parameters), partial(self.credit, h, parameters)


class Sharing(NamedTuple):
    """The functions of a score by its pullback."""

    pullback: Callable[[Array, tuple[Array, ...]], tuple[Array, Pullback]]

    def value(self, h: Array, parameters: tuple[Array, ...]) -> Array:
        return self.pullback(h, parameters)[0]

    def credit(self, h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        return self.pullback(h, parameters)[1](gradient)

    def score(self, penalty: Penalty = no_penalty) -> Score:
        return Score(self.value, self.credit, penalty)


# Functions of the module, not of functions, so that a score can be pickled.
def _groups(h: Array, num_classes: int) -> Array:
    """The activities of each group, a view: (batch, K, C / K, ...)."""
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, C, ...), at least one of each")
    if h.shape[1] % num_classes:
        raise ValueError(f"h: {h.shape[1]} channels, expected a multiple of the {num_classes} classes")
    return h.unflatten(1, (num_classes, -1))


def _of_channels(values: Array, h: Array) -> Array:
    """Those of each class, (batch, K), for all its channels: (batch, C, 1, ...), with as many axes as h.

    A product with h is nearly three times as fast by four axes as by the five of `_groups`.
    """
    channels = _groups(h, values.shape[1]).shape[2]
    return values.repeat_interleave(channels, dim=1).view(*h.shape[:2], *[1] * (h.dim() - 2))


def _units(groups: Array) -> tuple[int, ...]:
    """The axes of a group's units."""
    return tuple(range(2, groups.dim()))


def _group_mean(num_classes: int, h: Array, parameters: tuple[Array, ...]) -> Array:
    means = h.mean(dim=tuple(range(2, h.dim()))) if h.dim() > 2 else h
    return _groups(means, num_classes).mean(dim=2)


def _group_mean_credit(num_classes: int, h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
    size = prod(_groups(h, num_classes).shape[2:])
    return ScoreCredit(_of_channels(gradient / size, h).expand_as(h), ())


def group_mean(num_classes: int) -> Score:
    """Means of a class's channels, without parameters. Its functions raise ValueError unless K divides the channels."""
    check_count("num_classes", num_classes)
    return Score(partial(_group_mean, num_classes), partial(_group_mean_credit, num_classes))


def _group_mean_square(num_classes: int, h: Array, parameters: tuple[Array, ...]) -> Array:
    if h.dtype == wide(h.dtype) and channels_last(h):
        return _groups(h.square().mean(dim=(2, 3)), num_classes).mean(dim=2)
    groups = _groups(h, num_classes)
    norm = torch.linalg.vector_norm(groups, dim=_units(groups), dtype=wide(h.dtype))
    return (norm.square() / prod(groups.shape[2:])).to(h.dtype)


def _group_mean_square_credit(
    num_classes: int, h: Array, parameters: tuple[Array, ...], gradient: Array
) -> ScoreCredit:
    size = prod(_groups(h, num_classes).shape[2:])
    return ScoreCredit(_of_channels(gradient * (2 / size), h) * h, ())


def group_mean_square(num_classes: int) -> Score:
    """Means of the squares. Its functions raise ValueError unless K divides the channels."""
    check_count("num_classes", num_classes)
    return Score(partial(_group_mean_square, num_classes), partial(_group_mean_square_credit, num_classes))


def features(h: Array, grid: Grid = None, pooling: Pooling = "mean") -> Array:
    """Activities pooled to the grid and flattened: (batch, d). Raises ValueError for a grid of anything but maps."""
    return (h if grid is None else grid_pool(h, grid, pooling)).flatten(1)


def features_adjoint(gradient: Array, h: Array, grid: Grid = None, pooling: Pooling = "mean") -> Array:
    """The adjoint of `features`, shaped like h, and in its memory format where there is a grid."""
    if grid is None:
        return gradient.view(h.shape)
    cells = gradient.view(*h.shape[:2], *grid)
    return spread(cells, (h.shape[2], h.shape[3]), pooling, channels_last(h))


def _linear_map(grid: Grid, h: Array, parameters: tuple[Array, ...]) -> tuple[Array, Pullback]:
    (matrix,) = parameters
    u = features(h, grid)

    def credit(gradient: Array) -> ScoreCredit:
        return ScoreCredit(features_adjoint(gradient @ matrix, h, grid), (gradient.T @ u,))

    return few_columns(u, matrix.T), credit


def linear_map(grid: Grid = None) -> Score:
    """A learned linear map of activities, of parameters (M,)."""
    return Sharing(partial(_linear_map, grid)).score()


def random_projection(
    num_features: int,
    num_classes: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Array, Array]:
    """R, (num_features, K), and b, (K,), from N(0, 1 / K)."""
    check_count("num_features", num_features)
    check_count("num_classes", num_classes)
    deviation = num_classes**-0.5
    projection = deviation * torch.randn(num_features, num_classes, generator=generator, dtype=dtype, device=device)
    return projection, deviation * torch.randn(num_classes, generator=generator, dtype=dtype, device=device)


class _Readout(NamedTuple):
    """What a fixed read-out is made of."""

    projection: Array
    offset: Array
    grid: Grid
    lowest: float = 1.0
    highest: float = 1.0

    def of_squares(self, h: Array, gradient: Array, pooling: Pooling) -> Array:
        """h times what twice the gradient by a cell, (batch, d), is to its pixels."""
        return features_adjoint(gradient, h, self.grid, pooling).mul_(h)


def _inner(a: Array, b: Array) -> Array:
    """sum a b of two arrays in the same memory format, without their product."""
    if channels_last(a):
        a, b = a.movedim(1, 3), b.movedim(1, 3)
    return a.flatten() @ b.flatten()


def _random_readout(readout: _Readout, h: Array, parameters: tuple[Array, ...]) -> tuple[Array, Pullback]:
    (alpha,) = parameters
    alpha_wide, span = widened(alpha), readout.highest - readout.lowest
    share = torch.sigmoid(alpha_wide)
    temperature = readout.lowest + span * share
    product = few_columns(features(h.square(), readout.grid), readout.projection)

    def credit(gradient: Array) -> ScoreCredit:
        slope = span * share * torch.sigmoid(-alpha_wide)
        cells = (2 * gradient / temperature).to(h.dtype) @ readout.projection.T
        activities = readout.of_squares(h, cells, "mean")
        # Of degree 2 in h and -1 in T: the gradient gives the sum of e times u R, without another product.
        of_temperature = widened(_inner(h, activities)) / (-2 * temperature)
        return ScoreCredit(activities, ((of_temperature * slope).to(alpha.dtype),))

    return (product / temperature).to(h.dtype) + readout.offset, credit


def random_readout(
    projection: Array, offset: Array, grid: Grid = None, lowest: float = 0.5, highest: float = 2.0
) -> Score:
    """A fixed read-out of pooled squares at a learned temperature, of parameters (alpha,)."""
    check_shape("offset", offset, projection.shape[1:])
    if not 0 < lowest <= highest < inf:
        raise ValueError(f"lowest, highest: {lowest}, {highest}, expected 0 < lowest <= highest")
    return Sharing(partial(_random_readout, _Readout(projection, offset, grid, lowest, highest))).score()


def _patch_energy(readout: _Readout, h: Array, parameters: tuple[Array, ...]) -> Array:
    return torch.addmm(readout.offset, features(h.square(), readout.grid, "sum"), readout.projection)


def _patch_energy_credit(readout: _Readout, h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
    return ScoreCredit(readout.of_squares(h, 2 * gradient @ readout.projection.T, "sum"), ())


def patch_energy(projection: Array, offset: Array, grid: Grid = None) -> Score:
    """A fixed read-out of the cells' sums of squares, without parameters."""
    check_shape("offset", offset, projection.shape[1:])
    readout = _Readout(projection, offset, grid)
    return Score(partial(_patch_energy, readout), partial(_patch_energy_credit, readout))
