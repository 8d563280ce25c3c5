"""Backpropagation, written out by hand: the baseline of every other rule; see the reference."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ._arrays import Array, Labels, check_shape
from .layers import Layer, Pass, dense_chain, forward, pulled_back
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient
from .network import Network, Updates

__all__ = ["activity_gradients", "update_factors", "updates"]


def activity_gradients(
    layers: Sequence[Layer], clean: Pass, error: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """dLoss/dh_l and dLoss/da_l of every layer."""
    check_shape("error", error, clean.scores.shape)
    activities, preactivations = [error], []
    for index in reversed(range(len(layers))):
        layer = layers[index]
        delta = pulled_back(layer.steps, clean.preactivations[index], activities[-1])
        preactivations.append(delta)
        if index > 0:
            d = layer.adjoint(clean.inputs[index], delta)
            activities.append(pulled_back(layers[index - 1].outlet, clean.activities[index - 1], d))
    return tuple(reversed(activities)), tuple(reversed(preactivations))


def update_factors(layers: Sequence[Layer], clean: Pass, error: Array) -> Iterator[tuple[Array, Array]]:
    """dLoss/da_l and z_l of every layer, first layer first."""
    _, deltas = activity_gradients(layers, clean, error)
    return zip(deltas, clean.inputs, strict=True)


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> Any:
    """The gradient of the batch-mean loss."""
    if isinstance(layers, Network):
        return _of_network(layers, x, labels, output_gradient)
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    return layer_updates(layers, update_factors(layers, clean, error))


def _of_network(network: Network, x: Array, labels: Labels, masks: Any) -> Updates:
    """The old form, for what is still written over `network`."""
    masks, gradient = (None, masks) if callable(masks) else (masks, cross_entropy_gradient)
    found = updates(dense_chain(*network, masks), x, labels, gradient)
    return Updates(tuple(u[0] for u in found), tuple(u[1] if len(u) == 2 else None for u in found))


def activation_gradients(network: Network, clean: Any, error: Array, masks: Any = None) -> Any:
    """The old form, for what is still written over `network`."""
    layers = dense_chain(*network, masks)
    return activity_gradients(layers, forward(layers, clean.inputs[0]), error)
