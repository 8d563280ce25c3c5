"""FOTON: two forward passes through orthogonal weights; see the reference.

Multiplications of a step: those of backpropagation, but for the K-row chain of the projection. The modulated pass skips
the first layer's product (K rows instead) and the output layer, as backpropagation skips the gradient of the input.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from ._arrays import Array, Labels, check_batch, check_positive, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, affine, batch_mean_updates, forward, propagated_differences

__all__ = [
    "credit_operators",
    "depth_correction",
    "error_projection",
    "linear_errors",
    "recomputed_factors",
    "update_factors",
    "updates",
]


def error_projection(weights: tuple[Array, ...]) -> Array:
    """F = W_1^T ... W_L^T, shape (n_0, K), built from the output as its transpose: products of K rows."""
    transposed = weights[-1]  # (K, n_(L-1))
    for weight in reversed(weights[:-1]):
        transposed = transposed @ weight  # (K, n_(l-1))
    return transposed.T


def credit_operators(weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """M_l = W_l M_(l-1) W_l^T, M_0 = I, for the hidden layers: (n_l, n_l) each."""
    operators: list[Array] = []
    for weight in weights[:-1]:
        through = weight if not operators else weight @ operators[-1]
        operators.append(through @ weight.T)
    return tuple(operators)


def depth_correction(activation_gain: float, depth: int, linear: bool = False) -> list[float]:
    """lambda^(L-2l), lambda the gain, or lambda^(L-1-l) with `linear`, for hidden layers; 1 for the output layer."""
    check_positive("activation_gain", activation_gain)
    if linear:
        return [activation_gain ** (depth - 1 - layer) for layer in range(1, depth)] + [1.0]
    return [activation_gain ** (depth - 2 * layer) for layer in range(1, depth)] + [1.0]


def linear_errors(network: Network, clean: ForwardPass, u: Array, masks: Masks = None) -> Iterator[Array]:
    """m_l sigma_l'(a_l) u_l, u_l = W_l u_(l-1), for the hidden layers l = 1..L-1 in turn: (batch, n_l) each.

    `u` is u_1 = W_1 F e, (batch, n_1).
    """
    for layer, (activation, a) in enumerate(zip(network.activations[:-1], clean.preactivations[:-1], strict=True)):
        if layer > 0:
            u = u @ network.weights[layer].T
        mask = masks[layer] if masks is not None else None
        yield activation.vjp(a, u if mask is None else mask * u)


def update_factors(
    network: Network,
    clean: ForwardPass,
    error: Array,
    projection: Array,
    masks: Masks = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l, or with `linear` `linear_errors`, corrected by the gain (e at the output); and h_(l-1)."""
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (clean.inputs[0].shape[1], error.shape[1]))
    u = error @ (projection.T @ network.weights[0].T)  # rows for columns: thin products are fast with few rows
    differences = (linear_errors if linear else propagated_differences)(network, clean, u, masks)
    correction = depth_correction(activation_gain, len(network.weights), linear)
    for factor, delta, h in zip(correction, chain(differences, [error]), clean.inputs, strict=True):
        yield (delta if factor == 1 else factor * delta), h


def recomputed_factors(
    network: Network,
    x: Array,
    error: Array,
    projection: Array,
    masks: Iterable[Array | None] | None = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """`update_factors` from x in place of the clean pass: one layer's activations and differences alive at a time.

    The clean pass that gave the error is made once more: a product more for each layer but the output's, none of it
    held. `masks` has one entry a layer, taken when its turn comes.
    """
    check_batch("x", x, "n_0")
    check_shape("error", error, (len(x), len(network.weights[-1])))
    check_shape("projection", projection, (x.shape[1], error.shape[1]))
    h, depth = x, len(network.weights)
    masks = iter(masks if masks is not None else [None] * depth)
    u = error @ (projection.T @ network.weights[0].T)
    for layer, factor in enumerate(depth_correction(activation_gain, depth, linear)[:-1]):
        activation, mask = network.activations[layer], next(masks)
        z, a = h, affine(network.weights[layer], network.biases[layer], h)
        h = activation.value(a)
        if linear:
            delta = activation.vjp(a, u if mask is None else mask * u)
        else:
            delta = u = activation.difference(a, u)
            if mask is not None:
                delta = u = mask * u
        if mask is not None:
            h = mask * h
        yield (delta if factor == 1 else factor * delta), z
        if layer < depth - 2:
            u = u @ network.weights[layer + 1].T
    yield error, h


def updates(
    network: Network,
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Updates:
    """The updates of all layers, with `linear` by `linear_errors`, corrected by the gain.

    Both passes share the dropout masks. `projection` is F where it is not built from the present weights: every few
    steps, say.
    """
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    if projection is None:
        projection = error_projection(network.weights)
    return batch_mean_updates(
        network, update_factors(network, clean, error, projection, masks, activation_gain, linear)
    )
