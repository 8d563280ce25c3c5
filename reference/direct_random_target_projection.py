"""Direct random target projection: every hidden layer is sent the label alone, through a fixed random matrix.

Frenkel, Lefebvre and Bol, "Learning Without Feedback: Fixed Random Learning Signals Allow for Feedforward Training of
Deep Neural Networks", Frontiers in Neuroscience 2021. The equations of the paper; the numbers are ours:

    (1)  delta_l = B_l y,    l < L;    delta_L = e
    (2)  G_l = 1/B sum_samples [s_l'(a_l)^T delta_l] h_(l-1)^T;    of other layers as in `direct_feedback_alignment`

Ours.

    (a)  delta_l = B_l (y - m 1),    m the mean of y's K entries: 1/K of one label

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| B_l | feedback[l-1] | (n_l, K) | random and fixed, for the hidden layers l = 1..L-1; n_l units, or channels |
| y | targets | (batch, K) | one-hot labels; probabilities or several labels; weighted as in the loss |

y stands for the error since it tells its sign, where outputs lie between 0 and 1: the numbers of a regression do not.
The sign of y is a convention, B_l being symmetric about 0. A hidden layer needs no output for its update: it can be
made while the pass is still on its way.

Why (a). The part m 1 of y, the same in all samples of one label each, draws all of their h_l to the one direction
B_l 1, at every step, and tells no class from another. tanh ends that drift, and batch normalisation takes it out again.
Elsewhere it has no end and grows from layer to layer, each of which sees the common part of the one before it, and a
layer normalisation divides what tells classes apart by it. Errors of a cross-entropy have no such part: their entries
sum to 0. y - 1/K is minus the error where all scores are equal, and has the sign of minus the error everywhere.
"""

from collections.abc import Callable, Sequence

import numpy as np

from . import direct_feedback_alignment
from ._arrays import Array, Labels
from .layers import Layer, Update, forward
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient, one_hot

__all__ = ["updates"]


def updates(
    layers: Sequence[Layer],
    feedback: Sequence[Array],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    centred: bool = False,
) -> tuple[Update, ...]:
    """G_l of every layer, equation (2), with feedback drawn by `direct_feedback_alignment.random_feedback`.

    `labels` are (batch,), or targets (batch, K). `centred` targets are those of (a). For every layer a tuple, shaped as
    its parameters. Raises ValueError where layers, feedback, x and labels do not fit.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)
    >>> given = layers, (np.array([[1.0, 1.0]]),), np.array([[2.0]]), np.array([0])
    >>> [updates(*given, centred=centred)[0][0].item() for centred in (False, True)]  # B (1, 0), and B (1/2, -1/2)
    [2.0, 0.0]
    """
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    targets = labels if labels.ndim == 2 else one_hot(labels, error.shape[1]).astype(error.dtype)
    if centred:
        targets = targets - np.mean(targets, axis=1, keepdims=True)
    return layer_updates(layers, direct_feedback_alignment.update_factors(layers, clean, error, feedback, targets))
