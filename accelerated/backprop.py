"""Backpropagation, written out by hand: the baseline of every other rule; see the reference."""

from collections.abc import Callable, Iterator

from ._arrays import Array, Labels, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["activation_gradients", "update_factors", "updates"]


def activation_gradients(
    network: Network, clean: ForwardPass, error: Array, masks: Masks = None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """dLoss/dh_l and dLoss/da_l of every layer: two tuples of (batch, n_l)."""
    check_shape("error", error, clean.scores.shape)
    gradients, preactivation_gradients = [], []
    gradient = error
    for layer in reversed(range(len(network.weights))):
        gradients.append(gradient)
        mask = masks[layer] if masks is not None else None
        if mask is not None:
            gradient = mask * gradient
        gradient = network.activations[layer].vjp(clean.preactivations[layer], gradient)
        preactivation_gradients.append(gradient)
        if layer > 0:
            gradient = gradient @ network.weights[layer]
    return tuple(reversed(gradients)), tuple(reversed(preactivation_gradients))


def update_factors(
    network: Network, clean: ForwardPass, error: Array, masks: Masks = None
) -> Iterator[tuple[Array, Array]]:
    """dLoss/da_l and h_(l-1) of every layer, first layer first."""
    _, deltas = activation_gradients(network, clean, error, masks)
    return zip(deltas, clean.inputs, strict=True)


def updates(
    network: Network,
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> Updates:
    """The gradient of the batch-mean loss."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    return batch_mean_updates(network, update_factors(network, clean, error, masks))
