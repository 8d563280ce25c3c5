"""Activation functions and their derivatives; see the reference for their definitions.

`difference` is computed without subtracting two nearly equal activations, so that it keeps its relative precision for
small u in low precision.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch.nn import functional

from ._arrays import Array, check_finite

__all__ = ["ACTIVATIONS", "Activation", "identity", "leaky_relu", "maxmin", "relu", "tanh"]


class Activation(NamedTuple):
    """An activation function with its derivatives; see the reference's table."""

    value: Callable[[Array], Array]
    jvp: Callable[[Array, Array], Array]
    vjp: Callable[[Array, Array], Array]
    difference: Callable[[Array, Array], Array]


def _relu_multiply(a: Array, direction: Array) -> Array:
    multiplied: Array = torch.ops.aten.threshold_backward(direction, a, 0)  # ten times as fast as torch.where
    return multiplied


def _relu_difference(a: Array, u: Array) -> Array:
    # a > 0: min(u, a); a <= 0: min(u - a, 0).
    return torch.minimum(u - a.clamp(max=0), a.clamp(min=0))


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """a where a > 0, negative_slope * a elsewhere; the derivative at 0 is negative_slope."""
    check_finite("negative_slope", negative_slope)
    return _leaky_relu(negative_slope)


@cache  # so that activations of one slope are equal
def _leaky_relu(negative_slope: float) -> Activation:
    multiply = partial(_leaky_multiply, negative_slope)
    return Activation(
        value=partial(_leaky_value, negative_slope),
        jvp=multiply,
        vjp=multiply,
        difference=partial(_leaky_difference, negative_slope),
    )


# Functions of modules, not of functions, so that an activation can be pickled.
def _leaky_multiply(negative_slope: float, a: Array, direction: Array) -> Array:
    multiplied: Array = torch.ops.aten.leaky_relu_backward(direction, a, negative_slope, False)
    return multiplied


def _leaky_value(negative_slope: float, a: Array) -> Array:
    return functional.leaky_relu(a, negative_slope)


def _leaky_difference(negative_slope: float, a: Array, u: Array) -> Array:
    return negative_slope * u + (1 - negative_slope) * _relu_difference(a, u)


def _identity_value(a: Array) -> Array:
    return a


def _identity_multiply(a: Array, direction: Array) -> Array:
    return direction


# With s(a) = 1 / (1 + exp(-2a)): tanh'(a) = 4 s(a) s(-a) = 4 (1 - s(-|a|)) s(-|a|), where s(-|a|) <= 1/2 keeps its
# digits, which s(a) near 1 does not.
def _tanh_multiply(a: Array, direction: Array) -> Array:
    s = a.abs().mul_(-2).sigmoid_()
    multiplied: Array = torch.ops.aten.sigmoid_backward.grad_input(direction, s, grad_input=s)  # in its own memory
    return multiplied.mul_(4)


# tanh(a) - tanh(a - u) = tanh(u) (1 - tanh(a) tanh(a - u)): nothing is lost where u is small.
def _tanh_difference(a: Array, u: Array) -> Array:
    return (u - a).tanh_().mul_(torch.tanh(a)).add_(1).mul_(torch.tanh(u))


identity = Activation(_identity_value, _identity_multiply, _identity_multiply, _identity_multiply)
relu = Activation(torch.relu, _relu_multiply, _relu_multiply, _relu_difference)
tanh = Activation(torch.tanh, _tanh_multiply, _tanh_multiply, _tanh_difference)


def _pairs(a: Array) -> tuple[Array, Array]:
    if a.shape[1] % 2:
        raise ValueError(f"maxmin: a has {a.shape[1]} units, expected an even number")
    return a[:, 0::2], a[:, 1::2]


def _interleave(first: Array, second: Array) -> Array:
    return torch.stack([first, second], dim=2).flatten(1, 2)


def _maxmin(a: Array) -> Array:
    first, second = _pairs(a)
    return _interleave(torch.maximum(first, second), torch.minimum(first, second))


def _maxmin_permute(a: Array, direction: Array) -> Array:
    first, second = _pairs(a)
    u_first, u_second = _pairs(direction)
    keep = first >= second
    return _interleave(torch.where(keep, u_first, u_second), torch.where(keep, u_second, u_first))


def _maxmin_difference(a: Array, u: Array) -> Array:
    # max(a, b) = b + relu(a - b) and min(a, b) = a - relu(a - b).
    first, second = _pairs(a)
    u_first, u_second = _pairs(u)
    gap = _relu_difference(first - second, u_first - u_second)
    return _interleave(u_second + gap, u_first - gap)


maxmin = Activation(_maxmin, _maxmin_permute, _maxmin_permute, _maxmin_difference)
"""GroupSort with groups of two: units 2i and 2i+1 become their maximum and minimum (Anil et al., 2019).

Piecewise a permutation, hence norm-preserving. Raises ValueError for an odd number of units.
"""

ACTIVATIONS = {"identity": identity, "relu": relu, "leaky_relu": leaky_relu(), "tanh": tanh, "maxmin": maxmin}
"""The activations by the names that the command line uses."""
