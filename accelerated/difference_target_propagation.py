"""Difference target propagation: targets that run backward through learned inverses; see the reference.

Targets are carried as differences to the clean activations, free of cancellation.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from ._arrays import Array, Labels, check_count, check_finite, check_positive, check_shape
from .activations import Activation, tanh
from .layers import Dense, Layer, Pass, Update, activity, changed, dense_chain, forward, pulled_back
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient
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

    network: tuple[Update, ...]
    inverses: tuple[Update, ...]


def random_inverses(
    widths: tuple[int, ...],
    generator: torch.Generator | None = None,
    activation: Activation = tanh,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Dense, ...]:
    """g_2..g_(L-1) for hidden layers of these widths, n_1 first: orthogonal weights, no offsets."""
    for n in widths:
        check_count("widths", n)
    shapes = list(pairwise(widths))
    weights = tuple(orthogonal(shape, generator, device=device, dtype=dtype) for shape in shapes)
    offsets = [torch.zeros(n, device=device, dtype=dtype) for n, _ in shapes]
    return dense_chain(weights, offsets, (activation,) * len(shapes))


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
    layers: Sequence[Layer], inverses: Sequence[Dense], clean: Pass, error: Array, step: float = 1.0
) -> tuple[Array, ...]:
    """h_l - tau_l of the hidden layers l = 1..L-1: (batch, n_l) each."""
    check_shape("error", error, clean.scores.shape)
    check_finite("step", step)
    for index, inverse in enumerate(inverses):
        widths = (clean.inputs[index + 1].shape[1], clean.inputs[index + 2].shape[1])
        check_shape(f"inverses[{index}].weight", inverse.weight, widths)
    found = [step * layers[-1].adjoint(clean.inputs[-1], error)]
    for inverse, h in zip(reversed(inverses), reversed(clean.activities[:-1]), strict=False):
        found.append(changed(inverse.steps, inverse.value(h), inverse.difference(h, found[-1])))
    return tuple(reversed(found))


def update_factors(
    layers: Sequence[Layer], inverses: Sequence[Dense], clean: Pass, error: Array, step: float = 1.0
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output) and h_(l-1) of every layer, first layer first."""
    found = differences(layers, inverses, clean, error, step)
    for layer, z, a, difference in zip(layers, clean.inputs, clean.preactivations, found, strict=False):
        yield pulled_back(layer.steps, a, difference), z
    yield error, clean.inputs[-1]


def inverse_factors(
    layers: Sequence[Layer], inverses: Sequence[Dense], clean: Pass, noise: tuple[Array, ...]
) -> Iterator[tuple[Array, Array]]:
    """dLoss/d(Q_l h + c_l) and f_l(z) of the inverses in turn."""
    for index, eps in enumerate(noise):
        check_shape(f"noise[{index}]", eps, clean.inputs[index + 1].shape)
    for layer, inverse, clean_z, eps in zip(layers[1:], inverses, clean.inputs[1:], noise, strict=False):
        z = clean_z + eps
        h = activity(layer.steps, layer.value(z))
        a = inverse.value(h)
        yield pulled_back(inverse.steps, a, activity(inverse.steps, a) - z), h


def updates(
    layers: Sequence[Layer],
    inverses: Sequence[Dense],
    noise: tuple[Array, ...],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    step: float = 1.0,
) -> DifferenceTargetUpdates:
    """The updates of the network and of its inverses.

    Raises ValueError unless there is an inverse and noise for each hidden layer but the first.
    """
    expected = max(0, len(layers) - 2)
    if not len(inverses) == len(noise) == expected:
        raise ValueError(
            f"inverses, noise: {len(inverses)} and {len(noise)}, expected {expected}, "
            "one for every hidden layer but the first"
        )
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    return DifferenceTargetUpdates(
        layer_updates(layers, update_factors(layers, inverses, clean, error, step)),
        layer_updates(inverses, inverse_factors(layers, inverses, clean, noise)),
    )
