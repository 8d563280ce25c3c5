"""Difference target propagation: targets that run backward through learned inverses of the layers.

Lee, Zhang, Fischer and Bengio, "Difference Target Propagation", ECML 2015. Equations of the paper, our numbers:

    (1)  clean pass:       h_0 = x,    a_l = W_l h_(l-1) + b_l,    h_l = s_l(a_l),    e = dLoss/dscores
    (2)  last hidden one:  tau_(L-1) = h_(L-1) - eta W_L^T e
    (3)  its way back:     tau_(l-1) = h_(l-1) + g_l(tau_l) - g_l(h_l),    g_l(h) = r_l(Q_l h + c_l),    1 < l < L
    (4)  hidden layers:    d_l = s_l'(a_l)^T (h_l - tau_l),    G_l = 1/B sum_samples d_l h_(l-1)^T
    (5)  output layer:     G_L = 1/B sum_samples e h_(L-1)^T
    (6)  inverses:         the gradient by Q_l and c_l of 1/B sum_samples 1/2 |g_l(f_l(z)) - z|^2,
                           z = h_(l-1) + eps_l,    f_l(z) = s_l(W_l z + b_l)

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| e | error | (batch, K) | dLoss/dscores |
| Q_l, c_l, r_l | inverses[l-2] | (n_(l-1), n_l), (n_(l-1),) | g_l, a dense layer |
| eta | step | | how far the last hidden layer's target lies down the gradient |
| eps_l | noise[l-2] | (batch, n_(l-1)) | around which the inverses are learned |
| h_l - tau_l | differences[l-1] | (batch, n_l) | how far a layer's activation lies from its target |

Every layer is dense: an inverse of a layer that pools or strides would be a network of its own. There is no dropout.
The factors 1/2 of the losses of (4) and (6) are ours. With exact inverses of linear layers, (4) is a step towards the
same output for every layer; with orthogonal weights besides, it is eta times backpropagation. It is not a forward-only
rule; it stands here as a relative that others are compared with.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ._arrays import Array, Labels, check_count, check_finite, check_positive, check_shape
from .activations import Activation, tanh
from .layers import Dense, Layer, Pass, Update, activity, dense_chain, forward, pulled_back
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
    widths: tuple[int, ...], rng: np.random.Generator, activation: Activation = tanh
) -> tuple[Dense, ...]:
    """g_2..g_(L-1) for hidden widths, n_1 first: orthogonal weights, shaped (n_(l-1), n_l), and offsets of 0.

    Raises ValueError unless all are positive.

    >>> (inverse,) = random_inverses((3, 2), np.random.default_rng(0))  # from 2 units back to 3
    >>> np.shape(inverse.weight), inverse.bias.tolist()
    ((3, 2), [0.0, 0.0, 0.0])
    """
    for n in widths:
        check_count("widths", n)
    shapes = list(pairwise(widths))
    weights = tuple(orthogonal(shape, rng) for shape in shapes)
    return dense_chain(weights, [np.zeros(n) for n, _ in shapes], (activation,) * len(shapes))


def inverse_noise(
    widths: tuple[int, ...], batch: int, rng: np.random.Generator, scale: float = 0.1
) -> tuple[Array, ...]:
    """eps_2..eps_(L-1), (batch, n) each, normal with deviation `scale`. Raises ValueError unless all are positive.

    >>> [np.shape(eps) for eps in inverse_noise((3, 2), 4, np.random.default_rng(0))]  # an inverse gives h_1 alone
    [(4, 3)]
    """
    for n in (*widths, batch):
        check_count("widths, batch", n)
    check_positive("scale", scale)
    return tuple(scale * rng.standard_normal((batch, n)) for n in widths[:-1])


def _invert(inverse: Dense, h: Array) -> Array:
    """g_l(h)."""
    return activity(inverse.steps, inverse.value(h))


def differences(
    layers: Sequence[Layer], inverses: Sequence[Dense], clean: Pass, error: Array, step: float = 1.0
) -> tuple[Array, ...]:
    """h_l - tau_l for l = 1..L-1, (2) and (3): (batch, n_l) each. Raises ValueError where shapes do not fit.

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (2.0, 2.0, 3.0)]
    >>> inverse = Dense(np.array([[0.5]]), None)
    >>> clean = forward(layers, np.array([[1.0]]))
    >>> [d.item() for d in differences(layers, (inverse,), clean, np.array([[1.0]]))]  # 3 / 2; the gradient is 3 * 2
    [1.5, 3.0]
    """
    check_shape("error", error, clean.scores.shape)
    check_finite("step", step)
    for index, inverse in enumerate(inverses):
        widths = (clean.inputs[index + 1].shape[1], clean.inputs[index + 2].shape[1])
        check_shape(f"inverses[{index}].weight", inverse.weight, widths)
    found = [step * layers[-1].adjoint(clean.inputs[-1], error)]
    for inverse, h in zip(reversed(inverses), reversed(clean.activities[:-1]), strict=False):
        found.append(_invert(inverse, h) - _invert(inverse, h - found[-1]))
    return tuple(reversed(found))


def update_factors(
    layers: Sequence[Layer], inverses: Sequence[Dense], clean: Pass, error: Array, step: float = 1.0
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output), shaped as a_l, and h_(l-1) of every layer in turn, the factors in (4) and (5).

    Raises ValueError as `differences`.

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (2.0, 2.0, 3.0)]
    >>> inverse = Dense(np.array([[0.5]]), None)
    >>> found = update_factors(layers, (inverse,), forward(layers, np.array([[1.0]])), np.array([[1.0]]))
    >>> [(d.item(), z.item()) for d, z in found]
    [(1.5, 1.0), (3.0, 2.0), (1.0, 4.0)]
    """
    found = differences(layers, inverses, clean, error, step)
    for layer, z, a, difference in zip(layers, clean.inputs, clean.preactivations, found, strict=False):
        yield pulled_back(layer.steps, a, difference), z
    yield error, clean.inputs[-1]


def inverse_factors(
    layers: Sequence[Layer], inverses: Sequence[Dense], clean: Pass, noise: tuple[Array, ...]
) -> Iterator[tuple[Array, Array]]:
    """The derivative of (6)'s loss by Q_l h + c_l, (batch, n_(l-1)), and f_l(z), (batch, n_l), of every inverse.

    Raises ValueError where noise does not fit.

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (2.0, 2.0, 3.0)]
    >>> clean, noise = forward(layers, np.array([[1.0]])), (np.array([[1.0]]),)  # h_1 + eps = 3
    >>> (found,) = inverse_factors(layers, (Dense(np.array([[0.5]]), None),), clean, noise)
    >>> [factor.item() for factor in found]  # an exact inverse has nothing to learn
    [0.0, 6.0]
    """
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
    """G_l of every layer, (4) and (5), and of every inverse, (6): tuples shaped as their parameters.

    x is (batch, n_0), labels are (batch,). Raises ValueError unless there is an inverse and noise for each hidden layer
    but the first.

    >>> layers = [Dense(np.array([[weight]]), None) for weight in (2.0, 2.0, 3.0)]
    >>> inverse, noise, target = Dense(np.array([[0.5]]), None), np.zeros((1, 1)), np.array([[11.0]])
    >>> found = updates(layers, (inverse,), (noise,), np.array([[1.0]]), target, losses.squared_error_gradient)  # e = 1
    >>> [g.item() for (g,) in found.network], [g.item() for (g,) in found.inverses]
    ([1.5, 6.0, 4.0], [0.0])
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
