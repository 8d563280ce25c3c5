"""Direct random target projection: every hidden layer is sent the label alone; see the reference."""

from collections.abc import Callable, Sequence

from . import direct_feedback_alignment
from ._arrays import Array, Labels
from .layers import Layer, Update, forward
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient, one_hot

__all__ = ["updates"]


def without_mean(targets: Array) -> Array:
    """The targets less the mean of each label's entries, equation (a)."""
    return targets - targets.mean(dim=-1, keepdim=True)


def updates(
    layers: Sequence[Layer],
    feedback: Sequence[Array],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    centred: bool = False,
) -> tuple[Update, ...]:
    """The updates of all layers from labels or targets; `direct_feedback_alignment.random_feedback` draws feedback."""
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    targets = labels if labels.dim() == 2 else one_hot(labels, error.shape[1], dtype=error.dtype)
    targets = without_mean(targets) if centred else targets
    return layer_updates(layers, direct_feedback_alignment.update_factors(layers, clean, error, feedback, targets))
