"""FOTON: two forward passes through orthogonal weights, the second with the error taken off the input.

Caillon, Colagrande, Fagnou, Delattre and Allauzen, "Forward Only Learning for Orthogonal Neural Networks of any Depth",
arXiv 2512.20668.

    (1)  clean pass:      h_0 = x,             h_l = m_l * sigma_l(W_l h_(l-1) + b_l),    e = dLoss/dscores
    (2)  projection:      F = W_1^T W_2^T ... W_L^T
    (3)  modulated pass:  h~_0 = x - F e,      h~_l = m_l * sigma_l(W_l h~_(l-1) + b_l)
    (4)  hidden layers:   G_l = 1/B sum_samples (h_l - h~_l) h_(l-1)^T        (the paper's equations 8 and 9)
    (5)  output layer:    G_L = 1/B sum_samples e h_(L-1)^T

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| F | projection | (n_0, K) | error projection, rebuilt from the weights |
| e | error | (batch, K) | output error |
| h_l - h~_l | differences[l-1] | (batch, n_l) | stands for dLoss/dh_l |

What holds, for a linear network with P_l = W_l ... W_1: h_l - h~_l = P_l P_l^T dLoss/dh_l. So FOTON is
backpropagation where W_k W_k^T = I for every k <= l (orthonormal rows: widths that do not grow from the input on),
whatever W_L is; never an ascent direction otherwise. The summary of the paper that was to be had asks for W^T W = I:
for a layer that grows this is not sufficient, and a test shows it. For other networks the derivatives of the
activations stand on the wrong side of the weights, and FOTON approximates. Biases, which the paper does not treat,
get the update without h; the output layer may be left unconstrained.
"""

from collections.abc import Callable, Iterator
from itertools import chain

from ._arrays import Array, Labels
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, activation_differences, batch_mean_updates, forward

__all__ = ["error_projection", "update_factors", "updates"]


def error_projection(weights: tuple[Array, ...]) -> Array:
    """F of equation (2), shape (n_0, K): biases, masks and activations do not enter."""
    projection = weights[-1].T  # (n_(L-1), K)
    for weight in reversed(weights[:-1]):
        projection = weight.T @ projection  # (n_(l-1), K)
    return projection


def update_factors(
    network: Network, clean: ForwardPass, error: Array, projection: Array, masks: Masks = None
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e at the output) and h_(l-1) of every layer, first layer first: the factors of (4) and (5)."""
    differences = activation_differences(network, clean, error, projection, masks)
    yield from zip(chain(differences, [error]), clean.inputs, strict=True)


def updates(
    network: Network,
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
) -> Updates:
    """The updates of equations (4) and (5). Both passes share the dropout masks.

    `projection` is F where it is not to be rebuilt from the present weights (refreshed every few steps, say).
    """
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    if projection is None:
        projection = error_projection(network.weights)
    return batch_mean_updates(network, update_factors(network, clean, error, projection, masks))
