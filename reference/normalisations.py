"""Normalisations of what a layer passes on: what they take away, the next layer has to find anew.

    (1)  y = (h - mu) / sqrt(v + eps),    mu, v: mean and mean squared deviation over a set of numbers S

             group_norm       the units of each group of channels, at all positions, of a sample
             instance_norm    the positions of each channel of a sample
             channel_norm     the channels at each position of a sample
             layer_norm       all of a sample
             batch_norm       the samples and positions of each channel; or mu and v are given

    (2)  of (1):              dL/dh = (g - mean_S g - y mean_S (g y)) / sqrt(v + eps),    g = dL/dy
    (3)  rms_norm:            y = h / r,  r = sqrt(mean h^2) + eps, over all of a sample; the mean stays
                              dL/dh = (g - y mean (g y) r / (r - eps)) / r
    (4)  direction:           u = v / |v|, and 0 for |v| <= eps;    dL/dv = (g - (g . u) u) / |v|, and 0
    (5)  unit_sphere:         (4) of all of a sample, times sqrt(n) if scaled

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| h, y | h | (batch, C, H, W) or (batch, n) | activities, and what is passed on |
| v | v | (..., d) | vectors |

Sources: batch_norm of Ioffe and Szegedy (2015), layer_norm of Ba, Kiros and Hinton (2016), instance_norm of Ulyanov,
Vedaldi and Lempitsky (2016), group_norm of Wu and He (2018); rms_norm of Forward-Forward, channel_norm of DTG-FF.

After group_norm by classes the mean of every group is 0: no linear read-out of group means, score (1) of `scores`, has
anything left to read. Their trace stays: a ReLU's zeros become -mu / sqrt(v), which can be read by other means. No
normalisation here has learned parameters. All derivatives are symmetric, so that each is its own transpose. A set S of
one number has no deviation, whatever it is: it is refused. A vector of length eps or less has no direction: 0 is chosen
for it and for its derivative, which would be 1 / eps.
"""

import math
from typing import NamedTuple

import numpy as np

from ._arrays import Array, Derivative, Map, check_count, check_not_negative, check_positive, check_shape

__all__ = [
    "Normalisation",
    "batch_norm",
    "batch_norm_vjp",
    "channel_norm",
    "channel_norm_vjp",
    "direction",
    "direction_vjp",
    "group_norm",
    "group_norm_vjp",
    "instance_norm",
    "instance_norm_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
    "unit_sphere",
    "unit_sphere_vjp",
]


class Normalisation(NamedTuple):
    """A step of `layers`, for one: Normalisation(layer_norm, layer_norm_vjp). What it gives is shaped as h.

    >>> norm = Normalisation(layer_norm, layer_norm_vjp)
    >>> np.round(norm.difference(np.array([[0.0, 2.0]]), np.array([[5.0, 5.0]])), 6).tolist()  # a shift changes nothing
    [[0.0, 0.0]]
    """

    value: Map
    vjp: Derivative

    def jvp(self, h: Array, u: Array) -> Array:
        """As `vjp`, since the derivative is symmetric: as h."""
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        """The difference of the values at h and at h - u: as h."""
        return self.value(h) - self.value(h - u)


def _check_input(h: Array, eps: float) -> None:
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, C, ...), at least one of each")
    check_not_negative("eps", eps)


def _check(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(f"h: {name} has {count} number, whose deviation from its mean is always 0; expected 2 or more")


def _standardised(h: Array, axes: tuple[int, ...], eps: float) -> Array:
    """y of equation (1) over the axes."""
    centred = h - h.mean(axis=axes, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axis=axes, keepdims=True) + eps)


def _standardised_vjp(h: Array, gradient: Array, axes: tuple[int, ...], eps: float) -> Array:
    """dL/dh of equation (2) over the axes."""
    check_shape("gradient", gradient, h.shape)
    y = _standardised(h, axes, eps)
    across = gradient.mean(axis=axes, keepdims=True) + y * np.mean(gradient * y, axis=axes, keepdims=True)
    return (gradient - across) / np.sqrt(h.var(axis=axes, keepdims=True) + eps)


def _check_groups(h: Array, groups: int, eps: float) -> None:
    check_count("groups", groups)
    _check_input(h, eps)
    if h.shape[1] % groups:
        raise ValueError(f"h: {h.shape[1]} channels, expected a multiple of {groups} groups")
    _check("a group", math.prod(h.shape[1:]) // groups)


def group_norm(h: Array, groups: int, eps: float = 1e-5) -> Array:
    """y of (1) over contiguous groups of channels: as h.

    Raises ValueError unless groups divide them, for groups of one.

    >>> group_norm(np.array([[0.0, 2.0, 10.0, 30.0]]), 2, eps=0.0).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """
    _check_groups(h, groups, eps)
    return _standardised(h.reshape(len(h), groups, -1), (2,), eps).reshape(h.shape)


def group_norm_vjp(h: Array, gradient: Array, groups: int, eps: float = 1e-5) -> Array:
    """dL/dh of (2) over contiguous groups of channels: as h. Raises ValueError as `group_norm` does.

    >>> h, gradient = np.array([[0.0, 2.0, 10.0, 30.0]]), np.array([[1.0, 0.0, 0.0, 0.0]])
    >>> group_norm_vjp(h, gradient, 2, eps=0.0).tolist()  # two numbers become -1 and 1, whatever they are
    [[0.0, 0.0, 0.0, 0.0]]
    """
    _check_groups(h, groups, eps)
    check_shape("gradient", gradient, h.shape)
    rows = h.reshape(len(h), groups, -1)
    return _standardised_vjp(rows, gradient.reshape(rows.shape), (2,), eps).reshape(h.shape)


def instance_norm(h: Array, eps: float = 1e-5) -> Array:
    """y of equation (1) over each channel of a sample: as h. Raises ValueError where a channel has one position.

    >>> instance_norm(np.array([[[0.0, 2.0], [10.0, 30.0]]]), eps=0.0).tolist()
    [[[-1.0, 1.0], [-1.0, 1.0]]]
    """
    _check_input(h, eps)
    _check("a channel", math.prod(h.shape[2:]))
    return _standardised(h, tuple(range(2, h.ndim)), eps)


def instance_norm_vjp(h: Array, gradient: Array, eps: float = 1e-5) -> Array:
    """dL/dh of equation (2) over each channel of a sample: as h. Raises ValueError as `instance_norm` does.

    >>> h, gradient = np.array([[[-1.0, -1.0, 1.0, 1.0]]]), np.array([[[1.0, 0.0, 0.0, 0.0]]])
    >>> instance_norm_vjp(h, gradient, eps=0.0).tolist()  # less the mean, 1/4, and y times the mean with y, -1/4
    [[[0.5, -0.5, 0.0, 0.0]]]
    """
    _check_input(h, eps)
    _check("a channel", math.prod(h.shape[2:]))
    return _standardised_vjp(h, gradient, tuple(range(2, h.ndim)), eps)


def channel_norm(h: Array, eps: float = 1e-5) -> Array:
    """y of equation (1) over the channels at each position: as h. Raises ValueError for one channel.

    >>> channel_norm(np.array([[[0.0, 10.0], [2.0, 30.0]]]), eps=0.0).tolist()  # down each column, a position
    [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    _check_input(h, eps)
    _check("a position", h.shape[1])
    return _standardised(h, (1,), eps)


def channel_norm_vjp(h: Array, gradient: Array, eps: float = 1e-5) -> Array:
    """dL/dh of equation (2) over the channels at each position: as h. Raises ValueError as `channel_norm` does.

    >>> h, gradient = np.array([[[-1.0], [-1.0], [1.0], [1.0]]]), np.array([[[1.0], [0.0], [0.0], [0.0]]])
    >>> channel_norm_vjp(h, gradient, eps=0.0).tolist()
    [[[0.5], [-0.5], [0.0], [0.0]]]
    """
    _check_input(h, eps)
    _check("a position", h.shape[1])
    return _standardised_vjp(h, gradient, (1,), eps)


def layer_norm(h: Array, eps: float = 1e-5) -> Array:
    """y of equation (1) over each sample: as h. Raises ValueError where it has one number.

    >>> layer_norm(np.array([[0.0, 2.0], [10.0, 30.0]]), eps=0.0).tolist()
    [[-1.0, 1.0], [-1.0, 1.0]]
    """
    _check_input(h, eps)
    _check("a sample", math.prod(h.shape[1:]))
    return _standardised(h, tuple(range(1, h.ndim)), eps)


def layer_norm_vjp(h: Array, gradient: Array, eps: float = 1e-5) -> Array:
    """dL/dh of equation (2) over each sample: as h. Raises ValueError as `layer_norm` does.

    >>> layer_norm_vjp(np.array([[-1.0, -1.0, 1.0, 1.0]]), np.array([[1.0, 0.0, 0.0, 0.0]]), eps=0.0).tolist()
    [[0.5, -0.5, 0.0, 0.0]]
    """
    _check_input(h, eps)
    _check("a sample", math.prod(h.shape[1:]))
    return _standardised_vjp(h, gradient, tuple(range(1, h.ndim)), eps)


def _batch_axes(h: Array) -> tuple[int, ...]:
    """The axes that a channel's statistics are taken over."""
    _check("a channel of the batch", h.size // h.shape[1])
    return (0, *range(2, h.ndim))


def _check_statistics(h: Array, mean: Array | None, variance: Array | None) -> None:
    if mean is not None and variance is not None:
        check_shape("mean", mean, h.shape[1:2])
        check_shape("variance", variance, h.shape[1:2])
    elif mean is not variance:
        raise ValueError("mean, variance: one without the other, expected both or neither")


def batch_norm(h: Array, mean: Array | None = None, variance: Array | None = None, eps: float = 1e-5) -> Array:
    """y of equation (1) over each channel of the batch, or with the mean mu and variance v given, (C,) each: as h.

    Raises ValueError where one of the two is given alone, and for a batch with one number a channel.

    >>> batch_norm(np.array([[0.0], [2.0]]), eps=0.0).tolist()
    [[-1.0], [1.0]]
    >>> batch_norm(np.array([[0.0], [2.0]]), np.array([0.0]), np.array([4.0]), eps=0.0).tolist()  # given statistics
    [[0.0], [1.0]]
    """
    _check_input(h, eps)
    _check_statistics(h, mean, variance)
    if mean is None or variance is None:
        return _standardised(h, _batch_axes(h), eps)
    shape = (-1, *[1] * (h.ndim - 2))
    return (h - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + eps)


def batch_norm_vjp(
    h: Array, gradient: Array, mean: Array | None = None, variance: Array | None = None, eps: float = 1e-5
) -> Array:
    """dL/dh of equation (2); with mean and variance given g / sqrt(v + eps), of any number of rows: as the gradient.

    Raises ValueError as `batch_norm` does, and where the gradient does not fit.

    >>> h, gradient = np.array([[-1.0], [-1.0], [1.0], [1.0]]), np.array([[1.0], [0.0], [0.0], [0.0]])
    >>> batch_norm_vjp(h, gradient, eps=0.0).tolist()  # a sample's gradient reaches the others
    [[0.5], [-0.5], [0.0], [0.0]]
    >>> batch_norm_vjp(h, gradient, np.array([0.0]), np.array([4.0]), eps=0.0).tolist()
    [[0.5], [0.0], [0.0], [0.0]]
    """
    _check_input(h, eps)
    _check_statistics(h, mean, variance)
    if variance is None:
        return _standardised_vjp(h, gradient, _batch_axes(h), eps)
    check_shape("gradient", gradient, (len(gradient), *h.shape[1:]))
    return gradient / np.sqrt(variance.reshape(-1, *[1] * (h.ndim - 2)) + eps)


def rms_norm(h: Array, eps: float = 1e-8) -> Array:
    """h over its root mean square, (3): as h. That of a sample becomes 1; 0 stays 0. Raises ValueError unless eps >= 0.

    >>> np.round(rms_norm(np.array([[2.0, -2.0], [3.0, 3.0], [0.0, 0.0]])), 6).tolist()
    [[1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
    """
    _check_input(h, eps)
    return h / (np.sqrt(np.mean(h**2, axis=tuple(range(1, h.ndim)), keepdims=True)) + eps)


def rms_norm_vjp(h: Array, gradient: Array, eps: float = 1e-8) -> Array:
    """dL/dh of equation (3): as h; at 0 that of h / eps. Raises ValueError as `rms_norm` does.

    >>> np.round(rms_norm_vjp(np.array([[2.0, -2.0]]), np.array([[1.0, 1.0]])), 6).tolist()  # orthogonal to h
    [[0.5, 0.5]]
    """
    _check_input(h, eps)
    check_shape("gradient", gradient, h.shape)
    axes = tuple(range(1, h.ndim))
    size = np.sqrt(np.mean(h**2, axis=axes, keepdims=True))
    u = h / np.where(size == 0, 1, size)
    return (gradient - u * np.mean(gradient * u, axis=axes, keepdims=True) * size / (size + eps)) / (size + eps)


def direction(v: Array, eps: float = 1e-12) -> Array:
    """v / |v| along the last axis, equation (4): as v. Raises ValueError unless eps > 0.

    >>> np.round(direction(np.array([[3.0, 4.0], [0.0, 0.0]])), 6).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    check_positive("eps", eps)
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return np.where(length <= eps, 0, v / np.maximum(length, eps))


def direction_vjp(v: Array, gradient: Array, eps: float = 1e-12) -> Array:
    """dL/dv of (4), orthogonal to v: as v. Raises ValueError unless eps > 0 and the gradient is shaped as v.

    >>> direction_vjp(np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([[5.0, 6.0], [5.0, 6.0]])).tolist()
    [[0.0, 3.0], [0.0, 0.0]]
    """
    check_positive("eps", eps)
    check_shape("gradient", gradient, v.shape)
    length, u = np.linalg.norm(v, axis=-1, keepdims=True), direction(v, eps)
    tangential = gradient - np.sum(gradient * u, axis=-1, keepdims=True) * u
    return np.where(length <= eps, 0, tangential / np.maximum(length, eps))


def unit_sphere(h: Array, scaled: bool = False, eps: float = 1e-12) -> Array:
    """Samples of length 1, or of mean square 1 if scaled, equation (5): as h. Raises ValueError unless eps > 0.

    >>> np.round(unit_sphere(np.array([[3.0, 4.0]])), 6).tolist()
    [[0.6, 0.8]]
    >>> np.round(unit_sphere(np.array([[3.0, 3.0, 3.0, 3.0]]), scaled=True), 6).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    _check_input(h, eps)
    rows = direction(h.reshape(len(h), -1), eps)
    return (math.sqrt(rows.shape[1]) * rows if scaled else rows).reshape(h.shape)


def unit_sphere_vjp(h: Array, gradient: Array, scaled: bool = False, eps: float = 1e-12) -> Array:
    """dL/dh of equation (5): as h. Raises ValueError as `unit_sphere` does.

    >>> unit_sphere_vjp(np.array([[2.0, 0.0]]), np.array([[5.0, 6.0]])).tolist()  # what is along h is lost
    [[0.0, 3.0]]
    """
    _check_input(h, eps)
    check_shape("gradient", gradient, h.shape)
    v = h.reshape(len(h), -1)
    rows = direction_vjp(v, gradient.reshape(v.shape), eps)
    return (math.sqrt(v.shape[1]) * rows if scaled else rows).reshape(h.shape)
