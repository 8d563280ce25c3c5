"""Feedback alignment: backpropagation through fixed random weights in place of the network's own.

Lillicrap, Cownden, Tweed and Akerman, "Random synaptic feedback weights support error backpropagation for deep
learning", Nature Communications 2016. The equations of the paper, for dense layers; the numbers are ours:

    (1)  delta_L = e
    (2)  delta_(l-1) = B_l^T s_l'(a_l)^T delta_l
    (3)  G_l = 1/B sum_samples [s_l'(a_l)^T delta_l] h_(l-1)^T,  and the same without h for biases

Ours.

    (a)  any layers with a weight: (2) and (3) are equations (2) and (3) of `backprop` with B_l in the place of the
         weight, a kernel where that is one. Outlets have no weights and are gone back through as they are.

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| B_l | feedback[l-2] | as the weight of layer l | random and fixed, for the layers l = 2..L |
| e | error | (batch, K) | dLoss/dscores |
| delta_l | | as h_l | stands for dLoss/dh_l |

It is not a forward-only rule; it stands here as a relative that others are compared with.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from . import backprop
from ._arrays import Array, Labels, check_shape
from .layers import Layer, Pass, Update, forward, he_uniform
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(shapes: Sequence[tuple[int, ...]], rng: np.random.Generator) -> tuple[Array, ...]:
    """B_l for weights of these shapes, shaped as they are, `layers.he_uniform` each.

    Raises ValueError unless all sizes are positive.

    >>> [np.shape(matrix) for matrix in random_feedback([(2, 3)], np.random.default_rng(0))]
    [(2, 3)]
    """
    return tuple(he_uniform(shape, rng) for shape in shapes)


def _mirrored(layer: Any, matrix: Array, name: str) -> Layer:
    """The layer with another weight, which is the first of its fields."""
    weight, *others = layer
    check_shape(name, matrix, weight.shape)
    return type(layer)(matrix, *others)


def update_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, feedback: Sequence[Array]
) -> Iterator[tuple[Array, Array]]:
    """s_l'(a_l)^T delta_l, shaped as a_l, and z_l of every layer, the factors in (3), from the error, (batch, K).

    Raises ValueError where feedback does not fit.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)
    >>> clean, error = forward(layers, np.array([[2.0]])), np.array([[-0.5, 0.5]])
    >>> [delta.tolist() for delta, _ in update_factors(layers, clean, error, (np.array([[1.0], [-1.0]]),))]
    [[[-1.0]], [[-0.5, 0.5]]]
    """
    if len(feedback) != len(layers) - 1:
        raise ValueError(f"feedback: {len(feedback)} arrays, expected {len(layers) - 1}, one a layer but the first")
    later = [
        _mirrored(layer, matrix, f"feedback[{index}]")
        for index, (layer, matrix) in enumerate(zip(layers[1:], feedback, strict=True))
    ]
    return backprop.update_factors((layers[0], *later), clean, error)


def updates(
    layers: Sequence[Layer],
    feedback: Sequence[Array],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> tuple[Update, ...]:
    """G_l of every layer, equation (3), a tuple in the order of its parameters and shaped as they are.

    x is (batch, ...), labels are (batch,). Raises ValueError where shapes do not fit.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)  # scores 0: e = -1/2, 1/2
    >>> found = updates(layers, (np.array([[1.0], [-1.0]]),), np.array([[2.0]]), np.array([0]))
    >>> [g.tolist() for (g,) in found]  # B^T e = -1, where backpropagation's W_2^T e is 0
    [[[-2.0]], [[-1.0], [1.0]]]
    """
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    return layer_updates(layers, update_factors(layers, clean, error, feedback))
