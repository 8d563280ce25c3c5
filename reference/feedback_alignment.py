"""Feedback alignment: backpropagation through fixed random matrices in place of the weights' transposes.

Lillicrap, Cownden, Tweed and Akerman, "Random synaptic feedback weights support error backpropagation for deep
learning", Nature Communications 2016.

    (1)  delta_L = e
    (2)  delta_(l-1) = B_l^T sigma_l'(a_l)^T (m_l * delta_l)
    (3)  G_l = 1/B sum_samples [sigma_l'(a_l)^T (m_l * delta_l)] h_(l-1)^T,  and the same without h for biases

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| B_l | feedback[l-1] | (n_l, n_(l-1)) | random and fixed, shaped like W_l; B_1 is not used |
| e | error | (batch, K) | dLoss/dscores |
| delta_l | gradients[l-1] | (batch, n_l) | stands for dLoss/dh_l |

It is not a forward-only rule; it stands here as a relative that others are compared with.
"""

from collections.abc import Callable, Iterator

import numpy as np

from . import backprop
from ._arrays import Array, Labels, check_count, check_shape
from .layers import Pass, dense_chain, he_uniform
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(widths: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, ...]:
    """B_1..B_L for layers of these widths, n_0 first, drawn as He draws weights."""
    for n in widths:
        check_count("widths", n)
    return tuple(he_uniform(shape, rng) for shape in zip(widths[1:], widths[:-1], strict=True))


def update_factors(
    network: Network, clean: ForwardPass, error: Array, feedback: tuple[Array, ...], masks: Masks = None
) -> Iterator[tuple[Array, Array]]:
    """sigma_l'(a_l)^T (m_l * delta_l) and h_(l-1) of every layer, first layer first, the factors in equation (3)."""
    for layer, (matrix, weight) in enumerate(zip(feedback[1:], network.weights[1:], strict=True), start=1):
        check_shape(f"feedback[{layer}]", matrix, weight.shape)
    mirrored = dense_chain(feedback, network.biases, network.activations, masks)
    return backprop.update_factors(mirrored, Pass(*clean[:2], (*clean.inputs[1:], clean.scores)), error)


def updates(
    network: Network,
    feedback: tuple[Array, ...],
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> Updates:
    """The updates of equation (3)."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    return batch_mean_updates(network, update_factors(network, clean, error, feedback, masks))
