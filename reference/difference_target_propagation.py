"""Difference target propagation: targets that run backward through learned inverses of the layers.

Lee, Zhang, Fischer and Bengio, "Difference Target Propagation", ECML 2015.

    (1)  clean pass:       h_0 = x,    a_l = W_l h_(l-1) + b_l,    h_l = sigma_l(a_l),    e = dLoss/dscores
    (2)  last hidden one:  tau_(L-1) = h_(L-1) - eta W_L^T e
    (3)  its way back:     tau_(l-1) = h_(l-1) + g_l(tau_l) - g_l(h_l),    g_l(h) = s_l(Q_l h + c_l),    1 < l < L
    (4)  hidden layers:    d_l = sigma_l'(a_l)^T (h_l - tau_l),    G_l = 1/B sum_samples d_l h_(l-1)^T
    (5)  output layer:     G_L = 1/B sum_samples e h_(L-1)^T
    (6)  inverses:         the gradient by Q_l and c_l of 1/B sum_samples 1/2 |g_l(f_l(z)) - z|^2,
                           z = h_(l-1) + eps_l,    f_l(z) = sigma_l(W_l z + b_l)

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| e | error | (batch, K) | dLoss/dscores |
| Q_l, c_l, s_l | inverses | (n_(l-1), n_l), (n_(l-1),) | a dense network of its own, layer l-2 for g_l |
| eta | step | | how far the last hidden layer's target lies down the gradient |
| eps_l | noise[l-2] | (batch, n_(l-1)) | around which the inverses are learned |
| h_l - tau_l | differences[l-1] | (batch, n_l) | how far a layer's activation lies from its target |

The losses of (4) and (6) are taken with the factor 1/2. With exact inverses of linear layers, (4) is a step towards the
same output for every layer; with orthogonal weights besides, it is eta times backpropagation. It is not a forward-only
rule; it stands here as a relative that others are compared with. It has no dropout.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ._arrays import Array, Labels, check_count, check_finite, check_positive, check_shape
from .activations import Activation, tanh
from .losses import cross_entropy_gradient
from .network import ForwardPass, Network, Updates, affine, batch_mean_updates, forward
from .orthogonality import orthogonal

__all__ = [
    "DifferenceTargetUpdates",
    "differences",
    "inverse_factors",
    "inverse_noise",
    "random_inverses",
    "update_factors",
    "updates",
]


class DifferenceTargetUpdates(NamedTuple):
    """What an optimizer is to subtract: from the network, and from its inverses."""

    network: Updates
    inverses: Updates


def random_inverses(widths: tuple[int, ...], rng: np.random.Generator, activation: Activation = tanh) -> Network:
    """g_2..g_(L-1) for hidden layers of these widths, n_1 first: orthogonal weights, no offsets."""
    for n in widths:
        check_count("widths", n)
    shapes = list(pairwise(widths))
    weights = tuple(orthogonal(shape, rng) for shape in shapes)
    return Network(weights, tuple(np.zeros(n) for n, _ in shapes), (activation,) * len(shapes))


def inverse_noise(
    widths: tuple[int, ...], batch: int, rng: np.random.Generator, scale: float = 0.1
) -> tuple[Array, ...]:
    """eps_2..eps_(L-1) for hidden layers of these widths, n_1 first: normal with that deviation."""
    for n in (*widths, batch):
        check_count("widths, batch", n)
    check_positive("scale", scale)
    return tuple(scale * rng.standard_normal((batch, n)) for n in widths[:-1])


def _invert(inverses: Network, index: int, h: Array) -> Array:
    """g_l(h) for l = index + 2."""
    return inverses.activations[index].value(affine(inverses.weights[index], inverses.biases[index], h))


def differences(
    network: Network, inverses: Network, clean: ForwardPass, error: Array, step: float = 1.0
) -> tuple[Array, ...]:
    """h_l - tau_l of the hidden layers l = 1..L-1, equations (2) and (3): (batch, n_l) each."""
    check_shape("error", error, clean.scores.shape)
    check_finite("step", step)
    for index, weight in enumerate(inverses.weights):
        widths = (clean.inputs[index + 1].shape[1], clean.inputs[index + 2].shape[1])
        check_shape(f"inverses.weights[{index}]", weight, widths)
    difference = step * (error @ network.weights[-1])
    found = [difference]
    for index in reversed(range(len(inverses.weights))):
        h = clean.inputs[index + 2]
        difference = _invert(inverses, index, h) - _invert(inverses, index, h - difference)
        found.append(difference)
    return tuple(reversed(found))


def update_factors(
    network: Network, inverses: Network, clean: ForwardPass, error: Array, step: float = 1.0
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output) and h_(l-1) of every layer, first layer first, the factors in (4) and (5)."""
    found = differences(network, inverses, clean, error, step)
    for layer, difference in enumerate(found):
        yield network.activations[layer].vjp(clean.preactivations[layer], difference), clean.inputs[layer]
    yield error, clean.inputs[-1]


def inverse_factors(
    network: Network, inverses: Network, clean: ForwardPass, noise: tuple[Array, ...]
) -> Iterator[tuple[Array, Array]]:
    """dLoss/d(Q_l h + c_l) and f_l(z) of the inverses in turn, the factors in (6)."""
    for index, eps in enumerate(noise):
        check_shape(f"noise[{index}]", eps, clean.inputs[index + 1].shape)
    for index, eps in enumerate(noise):
        layer = index + 1
        z = clean.inputs[layer] + eps
        h = network.activations[layer].value(affine(network.weights[layer], network.biases[layer], z))
        a = affine(inverses.weights[index], inverses.biases[index], h)
        activation = inverses.activations[index]
        yield activation.vjp(a, activation.value(a) - z), h


def updates(
    network: Network,
    inverses: Network,
    noise: tuple[Array, ...],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    step: float = 1.0,
) -> DifferenceTargetUpdates:
    """The updates of equations (4) to (6).

    Raises ValueError unless there is an inverse and noise for each hidden layer but the first.
    """
    if not len(inverses.weights) == len(noise) == max(0, len(network.weights) - 2):
        raise ValueError(
            f"inverses, noise: {len(inverses.weights)} and {len(noise)}, expected {max(0, len(network.weights) - 2)}, "
            "one for every hidden layer but the first"
        )
    clean = forward(network, x)
    error = output_gradient(clean.scores, labels)
    of_network = batch_mean_updates(network, update_factors(network, inverses, clean, error, step))
    if not noise:
        return DifferenceTargetUpdates(of_network, Updates((), ()))
    of_inverses = batch_mean_updates(inverses, inverse_factors(network, inverses, clean, noise))
    return DifferenceTargetUpdates(of_network, of_inverses)
