"""Difference target propagation: targets that run backward through learned inverses; see the reference.

Targets are carried as differences to the clean activations, free of cancellation.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

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


def random_inverses(
    widths: tuple[int, ...],
    generator: torch.Generator | None = None,
    activation: Activation = tanh,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Network:
    """g_2..g_(L-1) for hidden layers of these widths, n_1 first: orthogonal weights, no offsets."""
    for n in widths:
        check_count("widths", n)
    shapes = list(pairwise(widths))
    weights = tuple(orthogonal(shape, generator, device=device, dtype=dtype) for shape in shapes)
    offsets = tuple(torch.zeros(n, device=device, dtype=dtype) for n, _ in shapes)
    return Network(weights, offsets, (activation,) * len(shapes))


def inverse_noise(
    widths: tuple[int, ...],
    batch: int,
    generator: torch.Generator | None = None,
    scale: float = 0.1,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Array, ...]:
    """eps_2..eps_(L-1) for hidden layers of these widths, n_1 first: normal with that deviation."""
    for n in (*widths, batch):
        check_count("widths, batch", n)
    check_positive("scale", scale)
    empty = (torch.empty(batch, n, device=device, dtype=dtype) for n in widths[:-1])
    return tuple(noise.normal_(0, scale, generator=generator) for noise in empty)


def differences(
    network: Network, inverses: Network, clean: ForwardPass, error: Array, step: float = 1.0
) -> tuple[Array, ...]:
    """h_l - tau_l of the hidden layers l = 1..L-1: (batch, n_l) each."""
    check_shape("error", error, clean.scores.shape)
    check_finite("step", step)
    for index, weight in enumerate(inverses.weights):
        widths = (clean.inputs[index + 1].shape[1], clean.inputs[index + 2].shape[1])
        check_shape(f"inverses.weights[{index}]", weight, widths)
    difference = step * (error @ network.weights[-1])
    found = [difference]
    for index in reversed(range(len(inverses.weights))):
        a = affine(inverses.weights[index], inverses.biases[index], clean.inputs[index + 2])
        difference = inverses.activations[index].difference(a, difference @ inverses.weights[index].T)
        found.append(difference)
    return tuple(reversed(found))


def update_factors(
    network: Network, inverses: Network, clean: ForwardPass, error: Array, step: float = 1.0
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output) and h_(l-1) of every layer, first layer first."""
    found = differences(network, inverses, clean, error, step)
    for layer, difference in enumerate(found):
        yield network.activations[layer].vjp(clean.preactivations[layer], difference), clean.inputs[layer]
    yield error, clean.inputs[-1]


def inverse_factors(
    network: Network, inverses: Network, clean: ForwardPass, noise: tuple[Array, ...]
) -> Iterator[tuple[Array, Array]]:
    """dLoss/d(Q_l h + c_l) and f_l(z) of the inverses in turn."""
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
    """The updates of the network and of its inverses.

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
