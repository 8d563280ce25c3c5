"""Backpropagation, written out by hand: the baseline of every other rule; see the reference."""

from collections.abc import Callable, Iterator, Sequence

from ._arrays import Array, Labels, check_shape
from .layers import Layer, Pass, Update, forward, pulled_back
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["activity_gradients", "update_factors", "updates"]


def activity_gradients(
    layers: Sequence[Layer], clean: Pass, error: Array, besides: Sequence[Array | None] = ()
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """dLoss/dh_l and dLoss/da_l of every layer."""
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
    """dLoss/da_l and z_l of every layer, first layer first."""
    _, deltas = activity_gradients(layers, clean, error, besides)
    return zip(deltas, clean.inputs, strict=True)


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> tuple[Update, ...]:
    """The gradient of the batch-mean loss."""
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    return layer_updates(layers, update_factors(layers, clean, error))
