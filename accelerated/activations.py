"""Activation functions and their derivatives; see the reference for their definitions.

`difference` is computed without subtracting two nearly equal activations, so that it keeps its relative precision for
small u in low precision.
"""

from functools import cache, partial
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch.nn import functional

from ._arrays import Array, Derivative, Map, check_finite, widened

__all__ = ["ACTIVATIONS", "Activation", "gelu", "identity", "leaky_relu", "maxmin", "relu", "silu", "tanh"]


class Activation(NamedTuple):
    """An activation function with its derivatives; see the reference's table."""

    value: Map
    jvp: Derivative
    vjp: Derivative
    difference: Derivative


def _relu_multiply(a: Array, direction: Array) -> Array:
    multiplied: Array = torch.ops.aten.threshold_backward(direction, a, 0)  # ten times as fast as torch.where
    return multiplied


def _relu_difference(a: Array, u: Array) -> Array:
    # a > 0: min(u, a); a <= 0: min(u, a) - a, 0 for u >= a.
    return torch.minimum(u, a).sub_(a.clamp(max=0))


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


def _gelu_multiply(a: Array, direction: Array) -> Array:
    multiplied: Array = torch.ops.aten.gelu_backward(direction, a)
    return multiplied


# Around m = a - u/2, with the normal density p: u gelu'(m) + u^3 p(m) m (m^2 - 4) / 24, off by 2e-3 |u|^5. Up to
# |u| = 4 eps^(1/4) this is less than eps |u|; beyond, two values lose no more than |a| eps^(3/4) / 4 of |u|.
def _gelu_difference(a: Array, u: Array) -> Array:
    dtype, a, u = a.dtype, widened(a), widened(u)
    two = functional.gelu(a) - functional.gelu(a - u)
    small = (u.abs() < 4 * torch.finfo(u.dtype).eps ** 0.25).to(u.dtype)
    u = u * small
    m = torch.sub(a, u, alpha=0.5).clamp_(-12, 12)  # beyond it is linear
    x = m.square()
    near = _gelu_multiply(m, u)
    curved = (x - 4).mul_(x.mul_(-0.5).exp_()).mul_(m).mul_(u).mul_(u.square())
    near.add_(curved, alpha=1 / (24 * sqrt(2 * pi)))
    return two.lerp_(near, small).to(dtype)  # by 0 or 1 it selects as torch.where does, in a tenth of the time


def _silu_multiply(a: Array, direction: Array) -> Array:
    multiplied: Array = torch.ops.aten.silu_backward(direction, a)
    return multiplied


# With b = a - u and s(a) = 1 / (1 + exp(-a)): a s(a) - b s(b) = u s(b) + a (s(a) - s(b)) = u s(a) + b (s(a) - s(b)), of
# which the one with the smaller of a and b, where s(a) - s(b) = tanh(u/2) (s(a) + s(b) - 2 s(a) s(b)): nothing is lost
# where u is small.
def _silu_difference(a: Array, u: Array) -> Array:
    b = a - u
    s, t = torch.sigmoid(a), torch.sigmoid(b)
    change = (s + t).addcmul_(s, t, value=-2).mul_((u / 2).tanh_())
    of_a = (a.abs() < b.abs()).to(a.dtype)
    return s.lerp_(t, of_a).mul_(u).addcmul_(b.lerp_(a, of_a), change)


identity: Activation = Activation(_identity_value, _identity_multiply, _identity_multiply, _identity_multiply)
relu: Activation = Activation(torch.relu, _relu_multiply, _relu_multiply, _relu_difference)
tanh: Activation = Activation(torch.tanh, _tanh_multiply, _tanh_multiply, _tanh_difference)
gelu: Activation = Activation(functional.gelu, _gelu_multiply, _gelu_multiply, _gelu_difference)
silu: Activation = Activation(functional.silu, _silu_multiply, _silu_multiply, _silu_difference)


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


maxmin: Activation = Activation(_maxmin, _maxmin_permute, _maxmin_permute, _maxmin_difference)
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
