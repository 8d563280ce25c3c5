"""Scores: what a layer by itself says of the K classes, made from its activities.

    (1)  group mean:          s_k = 1/n sum_(j in group k) h_j                         n units in each group
    (2)  group mean square:   s_k = 1/n sum_(j in group k) h_j^2
    (3)  linear map:          s = M u                                      u: the cells' means of h
    (4)  random read-out:     s = R^T u / T + b,  T = low + (high - low) sigmoid(alpha),     u: the cells' means of h^2
    (5)  patch energy:        s = W^T u + b                                u: the cells' sums of h^2

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| h | h, activities | (batch, C, H, W) or (batch, n) | a layer's activities |
| s | | (batch, K) | its class scores |
| e | gradient | (batch, K) | derivative of a loss by them |
| | num_classes | | K, of (1) and (2): group k has the channels k C / K to (k + 1) C / K - 1, at all positions |
| u | | (batch, d) | features, d = C rows columns; without a grid all of h or h^2, flattened |
| | grid | (rows, columns) or None | cells, as in `adaptive_pooling` |
| M | parameters[0] of (3) | (K, d) | learned |
| R, W; b | projection; offset | (d, K); (K,) | drawn once, `random_projection` |
| alpha | parameters[0] of (4) | () | learned, from 0 on |
| T | | () | temperature, between lowest and highest |

(1) is DeeperForward's (Sun et al., ICLR 2025), for activities that are not negative: after ReLU, before the
normalisation. (2) is CwComp's (arXiv 2312.12668), there after batch normalisation. (3) is Mono-Forward's (arXiv
2501.09238), whose activities are not pooled. (4) is that of DTG-FF (arXiv 2606.06539), where it is (1), (2) and (4);
its dense layers have one number u = mean h^2 each, which would leave (4) rank one (see the tests), so that without a
grid u is all of h^2 here, as in its synthetic experiment. (5) is ASGE's (arXiv 2509.12394), from its text; the
distribution of its W is not known to us. For learned assignments and prototypes see `learned_scores`.

Gradients by the parameters are sums over the batch: give e of a batch mean for that of a batch mean.
"""

from collections.abc import Callable
from math import inf
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit

from ._arrays import Array, check_count, check_shape
from .adaptive_pooling import Pooling, grid_pool, grid_pool_adjoint

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
    """The penalty of a score without one: 0, a scalar array, and zeros for gradients, shaped as the parameters.

    >>> penalty, gradients = no_penalty((np.ones(2),))
    >>> float(penalty), [gradient.tolist() for gradient in gradients]
    (0.0, [[0.0, 0.0]])
    """
    return np.zeros((), parameters[0].dtype if parameters else float), tuple(np.zeros_like(p) for p in parameters)


class Score(NamedTuple):
    """A score by its three functions; `parameters` are its learned arrays, as its maker names them.

    value(h, parameters) is s; credit(h, parameters, e) its derivatives times e; penalty(parameters) what the parameters
    themselves cost, a scalar in nats to be added to the layer's mean loss, with its gradient by each of them.
    """

    value: Callable[[Array, tuple[Array, ...]], Array]
    credit: Callable[[Array, tuple[Array, ...], Array], ScoreCredit]
    penalty: Callable[[tuple[Array, ...]], tuple[Array, tuple[Array, ...]]] = no_penalty


def _groups(h: Array, num_classes: int) -> Array:
    """The activities of each group: (batch, K, n)."""
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, C, ...), at least one of each")
    if h.shape[1] % num_classes:
        raise ValueError(f"h: {h.shape[1]} channels, expected a multiple of the {num_classes} classes")
    return h.reshape(len(h), num_classes, -1)


def group_mean(num_classes: int) -> Score:
    """The mean of each group, (1), without parameters: (batch, K).

    Its functions raise ValueError unless K divides the channels.

    >>> group_mean(2).value(np.array([[1.0, 3.0, 5.0, 7.0]]), ()).tolist()
    [[2.0, 6.0]]
    """
    check_count("num_classes", num_classes)

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        groups = _groups(h, num_classes)
        spread = np.broadcast_to(gradient[:, :, None] / np.asarray(groups.shape[2], h.dtype), groups.shape)
        return ScoreCredit(spread.reshape(h.shape), ())

    return Score(lambda h, parameters: _groups(h, num_classes).mean(axis=2), credit)


def group_mean_square(num_classes: int) -> Score:
    """The mean square of each group, (2), without parameters: (batch, K).

    Its functions raise ValueError as those of (1).

    >>> np.round(group_mean_square(2).value(np.array([[1.0, -1.0, 0.0, 2.0]]), ()), 6).tolist()
    [[1.0, 2.0]]
    """
    check_count("num_classes", num_classes)

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        groups = _groups(h, num_classes)
        return ScoreCredit((2 / groups.shape[2] * gradient[:, :, None] * groups).reshape(h.shape), ())

    return Score(lambda h, parameters: (_groups(h, num_classes) ** 2).mean(axis=2), credit)


def features(h: Array, grid: Grid = None, pooling: Pooling = "mean") -> Array:
    """Activities pooled to the grid and flattened: (batch, d). Raises ValueError for a grid of anything but maps.

    >>> h = np.array([[[[1.0, 3.0]]]])
    >>> features(h).tolist(), features(h, (1, 1)).tolist()
    ([[1.0, 3.0]], [[2.0]])
    """
    return (h if grid is None else grid_pool(h, grid, pooling)).reshape(len(h), -1)


def features_adjoint(gradient: Array, h: Array, grid: Grid = None, pooling: Pooling = "mean") -> Array:
    """The adjoint of `features`, shaped like h.

    >>> features_adjoint(np.array([[2.0]]), np.zeros((1, 1, 1, 2)), (1, 1)).tolist()
    [[[[1.0, 1.0]]]]
    """
    if grid is None:
        return gradient.reshape(h.shape)
    return grid_pool_adjoint(gradient.reshape(*h.shape[:2], *grid), (h.shape[2], h.shape[3]), pooling)


def linear_map(grid: Grid = None) -> Score:
    """s = M u, equation (3), of parameters (M,): (batch, K).

    Its functions raise ValueError for a grid of anything but maps.

    >>> linear_map().value(np.array([[1.0, 2.0]]), (np.array([[1.0, 0.0], [1.0, 1.0]]),)).tolist()
    [[1.0, 3.0]]
    """

    def value(h: Array, parameters: tuple[Array, ...]) -> Array:
        (matrix,) = parameters
        return features(h, grid) @ matrix.T

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        (matrix,) = parameters
        return ScoreCredit(features_adjoint(gradient @ matrix, h, grid), (gradient.T @ features(h, grid),))

    return Score(value, credit)


def random_projection(num_features: int, num_classes: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """R, (num_features, K), and b, (K,), of equation (4) from N(0, 1 / K): DTG-FF's variance is 1 / K.

    Raises ValueError unless both sizes are positive.

    >>> [np.shape(found) for found in random_projection(4, 3, np.random.default_rng(0))]
    [(4, 3), (3,)]
    """
    check_count("num_features", num_features)
    check_count("num_classes", num_classes)
    deviation = num_classes**-0.5
    return deviation * rng.standard_normal((num_features, num_classes)), deviation * rng.standard_normal(num_classes)


def random_readout(
    projection: Array, offset: Array, grid: Grid = None, lowest: float = 0.5, highest: float = 2.0
) -> Score:
    """s = R^T u / T + b, equation (4), of parameters (alpha,): (batch, K).

    Raises ValueError unless offset is (K,) and 0 < lowest <= highest < infinity.

    >>> score = random_readout(np.eye(2), np.zeros(2))
    >>> np.round(score.value(np.array([[1.0, -2.0]]), (np.array(0.0),)), 6).tolist()  # 1 and 4 at a temperature of 1.25
    [[0.8, 3.2]]
    """
    check_shape("offset", offset, projection.shape[1:])
    if not 0 < lowest <= highest < inf:
        raise ValueError(f"lowest, highest: {lowest}, {highest}, expected 0 < lowest <= highest")

    def value(h: Array, parameters: tuple[Array, ...]) -> Array:
        (alpha,) = parameters
        temperature = lowest + (highest - lowest) * expit(alpha)
        return features(h**2, grid) @ projection / temperature + offset

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        (alpha,) = parameters
        temperature = lowest + (highest - lowest) * expit(alpha)
        slope = (highest - lowest) * expit(alpha) * expit(-alpha)
        of_squares = features_adjoint(gradient @ projection.T / temperature, h, grid)
        of_temperature = -np.sum(gradient * (features(h**2, grid) @ projection)) / temperature**2
        return ScoreCredit(2 * h * of_squares, (np.asarray(of_temperature * slope, alpha.dtype),))

    return Score(value, credit)


def patch_energy(projection: Array, offset: Array, grid: Grid = None) -> Score:
    """s = W^T u + b, equation (5), W being the projection, without parameters: (batch, K).

    Raises ValueError unless offset is (K,).

    >>> patch_energy(np.eye(2), np.array([0.0, 1.0])).value(np.array([[1.0, -2.0]]), ()).tolist()
    [[1.0, 5.0]]
    """
    check_shape("offset", offset, projection.shape[1:])

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        return ScoreCredit(2 * h * features_adjoint(gradient @ projection.T, h, grid, "sum"), ())

    return Score(lambda h, parameters: features(h**2, grid, "sum") @ projection + offset, credit)
