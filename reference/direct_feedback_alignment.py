"""Direct feedback alignment: the error reaches every layer through a fixed random matrix of its own.

Nokland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", NeurIPS 2016.

    (1)  delta_l = B_l e,    l < L;    delta_L = e
    (2)  G_l = 1/B sum_samples [sigma_l'(a_l)^T (m_l * delta_l)] h_(l-1)^T,  and the same without h for biases

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| B_l | feedback[l-1] | (n_l, K) | random and fixed, for the hidden layers l = 1..L-1 |
| e | error | (batch, K) | dLoss/dscores |
| delta_l | | (batch, n_l) | stands for dLoss/dh_l |

`signal` replaces e in the hidden layers: by its signs, or, in direct random target projection, by the label.
"""

from collections.abc import Callable, Iterator

import numpy as np

from ._arrays import Array, Labels, check_count, check_positive, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(
    widths: tuple[int, ...], num_classes: int, rng: np.random.Generator, scale: float = 1.0
) -> tuple[Array, ...]:
    """B_l for hidden layers of these widths, uniform on +-scale sqrt(6 / num_classes): (n_l, num_classes) each."""
    for n in (*widths, num_classes):
        check_count("widths, num_classes", n)
    check_positive("scale", scale)
    bound = scale * np.sqrt(6 / num_classes)
    return tuple(rng.uniform(-bound, bound, (n, num_classes)) for n in widths)


def update_factors(
    network: Network,
    clean: ForwardPass,
    error: Array,
    feedback: tuple[Array, ...],
    masks: Masks = None,
    signal: Array | None = None,
) -> Iterator[tuple[Array, Array]]:
    """sigma_l'(a_l)^T (m_l * delta_l) and h_(l-1) of every layer, first layer first, the factors in equation (2).

    `signal` (batch, K) is what the hidden layers are sent in place of the error.
    """
    check_shape("error", error, clean.scores.shape)
    signal = error if signal is None else signal
    check_shape("signal", signal, error.shape)
    if len(feedback) != len(network.weights) - 1:
        raise ValueError(f"feedback: {len(feedback)} matrices, expected {len(network.weights) - 1}, one a hidden layer")
    for layer, matrix in enumerate(feedback):
        check_shape(f"feedback[{layer}]", matrix, (clean.preactivations[layer].shape[1], error.shape[1]))
        delta = signal @ matrix.T
        mask = masks[layer] if masks is not None else None
        if mask is not None:
            delta = mask * delta
        yield network.activations[layer].vjp(clean.preactivations[layer], delta), clean.inputs[layer]
    yield error, clean.inputs[-1]


def updates(
    network: Network,
    feedback: tuple[Array, ...],
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    signs: bool = False,
) -> Updates:
    """The updates of equation (2); with `signs` the hidden layers are sent the error's signs alone."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    signal = np.sign(error) if signs else error
    return batch_mean_updates(network, update_factors(network, clean, error, feedback, masks, signal))
