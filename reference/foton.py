"""FOTON: two forward passes through orthogonal weights, the second with the error taken off the input.

Caillon, Colagrande, Fagnou, Delattre and Allauzen, "Forward Only Learning for Orthogonal Neural Networks of any Depth",
arXiv 2512.20668.

    (1)  clean pass:      h_0 = x,             h_l = m_l * sigma_l(W_l h_(l-1) + b_l),    e = dLoss/dscores
    (2)  projection:      F = W_1^T W_2^T ... W_L^T
    (3)  modulated pass:  h~_0 = x - F e,      h~_l = m_l * sigma_l(W_l h~_(l-1) + b_l)
    (4)  hidden layers:   G_l = 1/B sum_samples (h_l - h~_l) h_(l-1)^T        (the paper's equations 8 and 9)
    (5)  output layer:    G_L = 1/B sum_samples e h_(L-1)^T

    (6)  a linear network:             h_l - h~_l = M_l dLoss/dh_l,    M_l = W_l M_(l-1) W_l^T,    M_0 = I
    (7)  sigma_l(a) = lambda a, W W^T = I:    G_l = lambda^(2l-L) G_l of backpropagation,    l < L
    (8)  not in the paper:  u_0 = F e,  u_l = W_l u_(l-1),  and m_l sigma_l'(a_l) u_l in place of h_l - h~_l in (4)
    (9)  of (8), for the networks of (7):    G_l = lambda^(l+1-L) G_l of backpropagation,    l < L

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| F | projection | (n_0, K) | error projection, rebuilt from the weights |
| e | error | (batch, K) | output error |
| h_l - h~_l | differences[l-1] | (batch, n_l) | stands for dLoss/dh_l |
| M_l | operators[l-1] | (n_l, n_l) | what stands between a linear network's FOTON and backpropagation |
| lambda | activation_gain | | by what activations multiply norms: about 1 for tanh, 0.7 for relu, 1 for maxmin |

In a linear network FOTON is backpropagation for layer l where M_l = I, for any W_L: where W_k W_k^T = I for every
k <= l. These are orthonormal rows, in widths that do not grow from the input on. M_l is positive semidefinite, so the
update of a hidden layer of a linear network never has a negative inner product with its gradient. The available summary
of the paper asks for W^T W = I, which is not sufficient for a layer that widens; a test shows it.

In other networks FOTON approximates: it applies the derivatives of the layers below a layer, and backpropagation those
of the layers above. (7) describes the norms of the updates that follow from this; `activation_gain` corrects them, the
paper does not. Equal norms are not enough. Maxmin permutes units and keeps every norm, but the permutation depends on
the sample, and F has the weights alone. The equivalence does not extend to maxmin, which the summary claims: a test
shows an error of more than half the gradient. With the transposed Jacobian of each sample in the place of F the test
finds the gradient, for a small step. The paper has no biases: here they get the update without h. The output layer need
not be orthogonal.

(8) is a modulated pass without the activations (`linear`). For W W^T = I, u_l = W_(l+1)^T ... W_L^T e. The layer's own
derivative is then where backpropagation has it, and only those of the layers above are missing. The update of the last
hidden layer is exact for any activation.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from ._arrays import Array, Labels, check_batch, check_positive, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, activation_differences, affine, batch_mean_updates, forward

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
    """F of equation (2), shape (n_0, K): biases, masks and activations do not enter."""
    projection = weights[-1].T  # (n_(L-1), K)
    for weight in reversed(weights[:-1]):
        projection = weight.T @ projection  # (n_(l-1), K)
    return projection


def credit_operators(weights: tuple[Array, ...]) -> tuple[Array, ...]:
    """M_l of equation (6) for the hidden layers l = 1..L-1: (n_l, n_l) each."""
    operators: list[Array] = []
    for weight in weights[:-1]:
        through = weight if not operators else weight @ operators[-1]
        operators.append(through @ weight.T)
    return tuple(operators)


def depth_correction(activation_gain: float, depth: int, linear: bool = False) -> list[float]:
    """What undoes equation (7), or (9) with `linear`, for l = 1..L-1; then 1 for the output layer, which is exact."""
    check_positive("activation_gain", activation_gain)
    if linear:
        return [activation_gain ** (depth - 1 - layer) for layer in range(1, depth)] + [1.0]
    return [activation_gain ** (depth - 2 * layer) for layer in range(1, depth)] + [1.0]


def linear_errors(network: Network, clean: ForwardPass, u: Array, masks: Masks = None) -> Iterator[Array]:
    """m_l sigma_l'(a_l) u_l of equation (8) for the hidden layers l = 1..L-1 in turn: (batch, n_l) each.

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
    """h_l - h~_l (e at the output) and h_(l-1) of every layer, first layer first: the factors of (4) and (5).

    With `linear` the first of them is that of equation (8). With `activation_gain`, the lambda of (7), it is multiplied
    by its `depth_correction`.
    """
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (clean.inputs[0].shape[1], error.shape[1]))
    if linear:
        differences = linear_errors(network, clean, error @ projection.T @ network.weights[0].T, masks)
    else:
        differences = activation_differences(network, clean, error, projection, masks)
    correction = depth_correction(activation_gain, len(network.weights), linear)
    for factor, delta, h in zip(correction, chain(differences, [error]), clean.inputs, strict=True):
        yield factor * delta, h


def recomputed_factors(
    network: Network,
    x: Array,
    error: Array,
    projection: Array,
    masks: Iterable[Array | None] | None = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """`update_factors` from x in place of the clean pass: both passes side by side, one layer alive at a time.

    `masks` has one entry a layer, taken when its turn comes.
    """
    check_batch("x", x, "n_0")
    check_shape("error", error, (len(x), len(network.weights[-1])))
    check_shape("projection", projection, (x.shape[1], error.shape[1]))
    u = error @ projection.T
    h, h_modulated = x, x - u
    depth = len(network.weights)
    masks = iter(masks if masks is not None else [None] * depth)
    for factor, weight, bias, activation in zip(
        depth_correction(activation_gain, depth, linear)[:-1], *network, strict=False
    ):
        mask = next(masks)
        keep = 1 if mask is None else mask
        a = affine(weight, bias, h)
        z, h = h, keep * activation.value(a)
        if linear:
            u = u @ weight.T
            delta = activation.vjp(a, keep * u)
        else:
            h_modulated = keep * activation.value(affine(weight, bias, h_modulated))
            delta = h - h_modulated
        yield factor * delta, z
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
    """The updates of equations (4) and (5), or with `linear` of (8), divided by the factor of (7) or (9) for a gain.

    Both passes share the masks. `projection` is F where it is not built from the present weights: every few steps,
    say.
    """
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    if projection is None:
        projection = error_projection(network.weights)
    return batch_mean_updates(
        network, update_factors(network, clean, error, projection, masks, activation_gain, linear)
    )
