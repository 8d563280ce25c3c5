"""Backpropagation, written out by hand: the baseline of every other rule.

    (1)  delta_L = e
    (2)  delta_(l-1) = p_(l-1)'(h_(l-1))^T A_l'(z_l)^T s_l'(a_l)^T delta_l,    plus d_(l-1) where there is one
    (3)  G_l = 1/B sum_samples of the gradient of <s_l'(a_l)^T delta_l, A_l(z_l)> by A_l's parameters

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| e | error | (batch, K) | dLoss/dscores |
| delta_l | activities[l-1] | shaped as h_l | dLoss/dh_l, h_l after activation and dropout |
| d_l | besides[l-1] | shaped as h_l | what a loss on h_l itself adds; None in a chain with its loss at the end |
| s_l'(a_l)^T delta_l | preactivations[l-1] | shaped as a_l | dLoss/da_l |

Through the steps of `recurrent` this is backpropagation through time (Werbos, "Backpropagation Through Time: What It
Does and How to Do It", Proceedings of the IEEE 78, 1990); through the last k of them, from the state before them, its
truncated form (Williams and Peng, Neural Computation 2, 1990), exact for what these steps do and blind to what those
before them kept. Elman's cell has no path past q_t; the GRU has one, z.

Of a dense layer, (2) is W_l^T s_l'(a_l)^T delta_l and (3) is 1/B sum [s_l'(a_l)^T delta_l] h_(l-1)^T. The other symbols
are those of `layers`.
"""

from collections.abc import Callable, Iterator, Sequence

from ._arrays import Array, Labels, check_shape
from .layers import Layer, Pass, Update, forward, pulled_back
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["activity_gradients", "update_factors", "updates"]


def activity_gradients(
    layers: Sequence[Layer], clean: Pass, error: Array, besides: Sequence[Array | None] = ()
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """dLoss/dh_l, shaped as h_l, and dLoss/da_l, as a_l, of every layer, equations (1) and (2).

    Raises ValueError for an error of another shape than the scores.

    >>> layers = Dense(np.array([[2.0]]), None, (relu,)), Dense(np.array([[3.0]]), None)
    >>> clean = forward(layers, np.array([[-1.0]]))  # a_1 = -2: the unit is off
    >>> [[d.item() for d in found] for found in activity_gradients(layers, clean, np.array([[1.0]]))]
    [[3.0, 1.0], [0.0, 1.0]]
    """
    check_shape("error", error, clean.scores.shape)
    activities, preactivations = [error], []
    for index in reversed(range(len(layers))):
        layer = layers[index]
        delta = pulled_back(layer.steps, clean.preactivations[index], activities[-1])
        preactivations.append(delta)
        if index > 0:
            d = layer.adjoint(clean.inputs[index], delta)
            d = pulled_back(layers[index - 1].outlet, clean.activities[index - 1], d)
            own = besides[index - 1] if besides else None
            activities.append(d if own is None else d + own)
    return tuple(reversed(activities)), tuple(reversed(preactivations))


def update_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, besides: Sequence[Array | None] = ()
) -> Iterator[tuple[Array, Array]]:
    """dLoss/da_l, shaped as a_l, and z_l of every layer, first layer first, the factors in equation (3).

    Raises ValueError for an error of another shape than the scores.

    >>> layers = Dense(np.array([[2.0]]), None), Dense(np.array([[3.0]]), None)
    >>> clean = forward(layers, np.array([[1.0]]))  # z_1 = 1, z_2 = 2
    >>> [(delta.item(), z.item()) for delta, z in update_factors(layers, clean, np.array([[1.0]]))]
    [(3.0, 1.0), (1.0, 2.0)]
    """
    _, deltas = activity_gradients(layers, clean, error, besides)
    return zip(deltas, clean.inputs, strict=True)


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> tuple[Update, ...]:
    """The gradient of the batch-mean loss, equation (3): for every layer a tuple, shaped as its parameters.

    Raises ValueError where layers, x and labels do not fit.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[0.0], [0.0]]), None)  # scores 0: e = -1/2, 1/2
    >>> [g.tolist() for (g,) in updates(layers, np.array([[2.0]]), np.array([0]))]  # W_2 = 0 lets no error through
    [[[0.0]], [[-1.0], [1.0]]]
    """
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    return layer_updates(layers, update_factors(layers, clean, error))
