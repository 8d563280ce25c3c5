"""Direct random target projection: every hidden layer is sent the label alone; see the reference."""

from collections.abc import Callable

from . import direct_feedback_alignment
from ._arrays import Array, Labels
from .losses import cross_entropy_gradient, one_hot
from .network import Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["updates"]


def updates(
    network: Network,
    feedback: tuple[Array, ...],
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> Updates:
    """The updates of all layers, feedback as `direct_feedback_alignment.random_feedback` draws it."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    targets = one_hot(labels, error.shape[1], dtype=error.dtype)
    factors = direct_feedback_alignment.update_factors(network, clean, error, feedback, masks, targets)
    return batch_mean_updates(network, factors)
