"""Direct feedback alignment: the error reaches every layer through a fixed random matrix of its own.

Nokland, "Direct Feedback Alignment Provides Learning in Deep Neural Networks", NeurIPS 2016. The equations of the
paper; the numbers are ours:

    (1)  delta_l = B_l e,    l < L;    delta_L = e
    (2)  G_l = 1/B sum_samples [s_l'(a_l)^T delta_l] h_(l-1)^T,  and the same without h for biases

Of a convolution, G_l is the update of its kernel by s_l'(a_l)^T delta_l.

Ours.

    (a)  B_l of a feature map may have one row a channel, which all its positions share as they share the kernel

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| B_l | feedback[l-1] | (n_l, K) | random and fixed, for the hidden layers l = 1..L-1; n_l units, or channels |
| e | error | (batch, K) | dLoss/dscores |
| delta_l | | as h_l | stands for dLoss/dh_l |

`signal` replaces e in the hidden layers: by its signs, or, in direct random target projection, by the label.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np

from ._arrays import Array, Labels, check_count, check_positive, check_shape
from .layers import Layer, Pass, Update, forward, pulled_back
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(
    widths: tuple[int, ...], num_classes: int, rng: np.random.Generator, scale: float = 1.0
) -> tuple[Array, ...]:
    """B_l, (n_l, num_classes), uniform on +-scale sqrt(6 / num_classes). Raises ValueError unless all are positive.

    >>> [np.shape(matrix) for matrix in random_feedback((4, 3), 2, np.random.default_rng(0))]
    [(4, 2), (3, 2)]
    """
    for n in (*widths, num_classes):
        check_count("widths, num_classes", n)
    check_positive("scale", scale)
    bound = scale * np.sqrt(6 / num_classes)
    return tuple(rng.uniform(-bound, bound, (n, num_classes)) for n in widths)


def _projected(signal: Array, matrix: Array, h: Array, name: str) -> Array:
    """B_l of the signal, shaped as h_l: a row a number of it, or a row a channel that all positions share.

    Where positions have labels, the signal is (batch, positions, K), each has its own.
    """
    channels = h.shape[1] if h.ndim == 4 else h.shape[-1]
    by_channel = h.ndim > 2 and (signal.ndim > 2 or len(matrix) == channels)
    rows = channels if by_channel else prod(h.shape[1:])
    check_shape(name, matrix, (rows, signal.shape[-1]))
    delta = signal @ matrix.T
    if by_channel and signal.ndim == 2:
        return np.broadcast_to(delta[:, :, None, None] if h.ndim == 4 else delta[:, None], h.shape)
    return delta.reshape(h.shape)


def update_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, feedback: Sequence[Array], signal: Array | None = None
) -> Iterator[tuple[Array, Array]]:
    """s_l'(a_l)^T delta_l, shaped as a_l, and z_l of every layer, first layer first, the factors in equation (2).

    The error is (batch, K), and so is `signal`, what the hidden layers are sent in place of the error. Raises
    ValueError where feedback, error and signal do not fit.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)
    >>> clean, error = forward(layers, np.array([[2.0]])), np.array([[-0.5, 0.5]])
    >>> [delta.tolist() for delta, _ in update_factors(layers, clean, error, (np.array([[1.0, -1.0]]),))]
    [[[-1.0]], [[-0.5, 0.5]]]
    """
    check_shape("error", error, clean.scores.shape)
    signal = error if signal is None else signal
    check_shape("signal", signal, error.shape)
    if len(feedback) != len(layers) - 1:
        raise ValueError(f"feedback: {len(feedback)} matrices, expected {len(layers) - 1}, one a hidden layer")
    for index, matrix in enumerate(feedback):
        delta = _projected(signal, matrix, clean.activities[index], f"feedback[{index}]")
        yield pulled_back(layers[index].steps, clean.preactivations[index], delta), clean.inputs[index]
    yield error, clean.inputs[-1]


def updates(
    layers: Sequence[Layer],
    feedback: Sequence[Array],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    signs: bool = False,
) -> tuple[Update, ...]:
    """G_l of every layer, equation (2); with `signs` the hidden layers are sent the error's signs alone.

    For every layer a tuple, shaped as its parameters. Raises ValueError where layers, feedback, x and labels do not
    fit.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)  # scores 0: e = -1/2, 1/2
    >>> found = updates(layers, (np.array([[1.0, -1.0]]),), np.array([[2.0]]), np.array([0]))
    >>> [g.tolist() for (g,) in found]  # B e = -1, where backpropagation's W_2^T e is 0
    [[[-2.0]], [[-1.0], [1.0]]]
    """
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    signal = np.sign(error) if signs else error
    return layer_updates(layers, update_factors(layers, clean, error, feedback, signal))
