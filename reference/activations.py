"""Activation functions and their derivatives.

Each activation is given with what the learning rules ask of it. J(a) is its Jacobian at the pre-activation a,
diagonal for element-wise functions, a permutation for maxmin.

| field | meaning | used by |
| --- | --- | --- |
| value | sigma(a) | every forward pass |
| jvp | J(a) u, the derivative along the tangent u | forward-mode comparisons |
| vjp | J(a)^T d, the cotangent d pulled back | backpropagation, local gradients |
| difference | sigma(a) - sigma(a - u), exact for any size of u | FOTON, PEPITA |

Shapes: a, u and d are (batch, n, ...); axis 1 counts units or channels.

At a kink the derivative is that of the left side: 0 for relu at 0, the negative slope for leaky_relu; maxmin leaves a
pair of equal units in its order.

>>> zero, one = np.zeros((1, 1)), np.ones((1, 1))
>>> [activation.vjp(zero, one).item() for activation in (identity, relu, tanh, gelu, silu)]
[1.0, 0.0, 1.0, 0.5, 0.5]
>>> maxmin.value(np.array([[1.0, 3.0, 2.0, 2.0]])).tolist()
[[3.0, 1.0, 2.0, 2.0]]
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import erf, expit

from ._arrays import Array, Derivative, Map, check_finite

__all__ = ["ACTIVATIONS", "Activation", "gelu", "identity", "leaky_relu", "maxmin", "relu", "silu", "tanh"]


class Activation(NamedTuple):
    """An activation function with its derivatives; see the module's table."""

    value: Map
    jvp: Derivative
    vjp: Derivative
    difference: Derivative


def _elementwise(value: Callable[[Array], Array], derivative: Callable[[Array], Array]) -> Activation:
    def multiply(a: Array, direction: Array) -> Array:
        return derivative(a) * direction

    return Activation(value, jvp=multiply, vjp=multiply, difference=lambda a, u: value(a) - value(a - u))


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """a where a > 0, negative_slope a elsewhere; so is the derivative at 0. Of (batch, n, ...), shaped as a.

    Raises ValueError unless negative_slope is finite.

    >>> leaky_relu(0.5).value(np.array([[-2.0, 0.0, 2.0]])).tolist()
    [[-1.0, 0.0, 2.0]]
    >>> leaky_relu(0.5).vjp(np.array([[-2.0, 0.0, 2.0]]), np.ones((1, 3))).tolist()
    [[0.5, 0.5, 1.0]]
    """
    check_finite("negative_slope", negative_slope)

    def derivative(a: Array) -> Array:
        return np.where(a > 0, 1.0, negative_slope).astype(a.dtype)

    return _elementwise(lambda a: a * derivative(a), derivative)


identity: Activation = _elementwise(lambda a: a, np.ones_like)
relu: Activation = leaky_relu(0.0)
# 1 - tanh(a)^2 = 4 s(2a) s(-2a), s(a) = 1 / (1 + exp(-a)): nothing is subtracted from 1, so that no a is too large.
tanh: Activation = _elementwise(np.tanh, lambda a: 4 * expit(2 * a) * expit(-2 * a))


def _normal(a: Array) -> Array:
    """P(a), the probability of a standard normal number below a."""
    return (1 + erf(a / math.sqrt(2))) / 2


# a P(a) (Hendrycks and Gimpel, 2016), and P(a) + a p(a) with the normal density p.
gelu: Activation = _elementwise(
    lambda a: a * _normal(a), lambda a: _normal(a) + a * np.exp(-(a**2) / 2) / math.sqrt(2 * math.pi)
)
# a s(a), s(a) = 1 / (1 + exp(-a)), whose derivative is s(a) s(-a) (Elfwing, Uchibe and Doya, 2018).
silu: Activation = _elementwise(lambda a: a * expit(a), lambda a: expit(a) * (1 + a * expit(-a)))


def _pairs(a: Array) -> tuple[Array, Array]:
    if a.shape[1] % 2:
        raise ValueError(f"maxmin: a has {a.shape[1]} units, expected an even number")
    return a[:, 0::2], a[:, 1::2]


def _interleave(first: Array, second: Array) -> Array:
    out = np.empty((first.shape[0], 2 * first.shape[1], *first.shape[2:]), first.dtype)
    out[:, 0::2], out[:, 1::2] = first, second
    return out


def _maxmin(a: Array) -> Array:
    first, second = _pairs(a)
    return _interleave(np.maximum(first, second), np.minimum(first, second))


def _maxmin_permute(a: Array, direction: Array) -> Array:
    first, second = _pairs(a)
    u_first, u_second = _pairs(direction)
    keep = first >= second
    return _interleave(np.where(keep, u_first, u_second), np.where(keep, u_second, u_first))


# A swap of two units is its own transpose, so jvp and vjp are one function.
maxmin: Activation = Activation(_maxmin, _maxmin_permute, _maxmin_permute, lambda a, u: _maxmin(a) - _maxmin(a - u))
"""GroupSort with groups of two: units 2i and 2i+1 become their maximum and minimum (Anil et al., 2019).

Piecewise a permutation, hence norm-preserving. Raises ValueError for an odd number of units.
"""

ACTIVATIONS = {
    "identity": identity,
    "relu": relu,
    "leaky_relu": leaky_relu(),
    "tanh": tanh,
    "gelu": gelu,
    "silu": silu,
    "maxmin": maxmin,
}
"""The activations by the names that the command line uses."""
