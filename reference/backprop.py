"""Backpropagation, written out by hand: the baseline of every other rule.

    (1)  delta_L = e
    (2)  delta_(l-1) = W_l^T sigma_l'(a_l)^T (m_l * delta_l)
    (3)  G_l = 1/B sum_samples [sigma_l'(a_l)^T (m_l * delta_l)] h_(l-1)^T,  and the same without h for biases

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| e | error | (batch, K) | dLoss/dscores |
| delta_l | gradients[l-1] | (batch, n_l) | dLoss/dh_l, h_l after activation and dropout |
| G_l | updates.weights[l-1] | (n_l, n_(l-1)) | weight update |
"""

from collections.abc import Callable, Iterator

from ._arrays import Array, Labels, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["activation_gradients", "update_factors", "updates"]


def activation_gradients(
    network: Network, clean: ForwardPass, error: Array, masks: Masks = None
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """dLoss/dh_l and dLoss/da_l of every layer, equations (1) and (2): two tuples of (batch, n_l)."""
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
        gradient = gradient @ network.weights[layer]
    return tuple(reversed(gradients)), tuple(reversed(preactivation_gradients))


def update_factors(
    network: Network, clean: ForwardPass, error: Array, masks: Masks = None
) -> Iterator[tuple[Array, Array]]:
    """dLoss/da_l and h_(l-1) of every layer, first layer first, the factors in equation (3)."""
    _, deltas = activation_gradients(network, clean, error, masks)
    return zip(deltas, clean.inputs, strict=True)


def updates(
    network: Network,
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> Updates:
    """The gradient of the batch-mean loss, equation (3)."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    return batch_mean_updates(network, update_factors(network, clean, error, masks))
