"""FOTON: two forward passes through orthogonal weights; see the reference.

Multiplications of a step: those of backpropagation, but for the K-row chain of the projection. The modulated pass skips
the first layer's product (K rows instead) and the output layer, as backpropagation skips the gradient of the input.
"""

from collections.abc import Callable, Iterator
from itertools import chain

from ._arrays import Array, Labels
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, activation_differences, batch_mean_updates, forward

__all__ = ["error_projection", "update_factors", "updates"]


def error_projection(weights: tuple[Array, ...]) -> Array:
    """F = W_1^T ... W_L^T, shape (n_0, K), built from the output as its transpose: products of K rows."""
    transposed = weights[-1]  # (K, n_(L-1))
    for weight in reversed(weights[:-1]):
        transposed = transposed @ weight  # (K, n_(l-1))
    return transposed.T


def update_factors(
    network: Network, clean: ForwardPass, error: Array, projection: Array, masks: Masks = None
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e at the output) and h_(l-1) of every layer, first layer first."""
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
    """The updates of all layers. Both passes share the dropout masks.

    `projection` is F where it is not to be rebuilt from the present weights (refreshed every few steps, say).
    """
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    if projection is None:
        projection = error_projection(network.weights)
    return batch_mean_updates(network, update_factors(network, clean, error, projection, masks))
