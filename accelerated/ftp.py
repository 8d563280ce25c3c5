"""Forward Target Propagation: targets that run forward; see the reference.

Targets are carried as their differences to the clean activities, which layers pass on by `difference` and outlets by
their derivative. Multiplications of a step: those of backpropagation without the product that takes e to the last
hidden layer, and two products with G.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Literal, TypeAlias

import torch

from ._arrays import Array, Labels, check_batch, check_count, check_finite, check_option, check_positive, check_shape
from .activations import Activation, identity
from .layers import Layer, Pass, Update, changed, forward, pulled_back, pushed, without_dropped
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient, one_hot
from .orthogonality import orthogonal

__all__ = [
    "Feedback",
    "FeedbackLaw",
    "differences",
    "feedback_by_channel",
    "first_difference",
    "local_factors",
    "low_rank_feedback",
    "output_error",
    "project",
    "random_feedback",
    "update_factors",
    "updates",
]

Feedback: TypeAlias = Array | tuple[Array, Array]
"""G, shape (n, K), or the factors of one that has rank r: (n, r) and (r, K)."""

FeedbackLaw: TypeAlias = Literal["uniform", "normal", "orthogonal"]
"""How G is drawn; its entries have the same mean square under each."""


def random_feedback(
    n: int,
    num_classes: int,
    generator: torch.Generator | None = None,
    scale: float = 0.5,
    law: FeedbackLaw = "uniform",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """G, shape (n, num_classes): uniform on +-scale sqrt(6 / num_classes), or another law of its mean square."""
    check_count("n", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    check_option("law", law, FeedbackLaw)
    bound = scale * (6 / num_classes) ** 0.5
    match law:
        case "uniform":
            empty = torch.empty(n, num_classes, device=device, dtype=dtype)
            return empty.uniform_(-bound, bound, generator=generator)
        case "normal":
            empty = torch.empty(n, num_classes, device=device, dtype=dtype)
            return empty.normal_(0, bound / 3**0.5, generator=generator)
        case _:
            gain = bound / 3**0.5 * max(n, num_classes) ** 0.5
            return orthogonal((n, num_classes), generator, gain, device=device, dtype=dtype)


def low_rank_feedback(
    n: int,
    num_classes: int,
    rank: int,
    generator: torch.Generator | None = None,
    scale: float = 0.5,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Array, Array]:
    """Factors (n, rank) and (rank, num_classes) of a G whose entries have the mean square of `random_feedback`'s.

    Raises ValueError unless 1 <= rank <= num_classes.
    """
    check_count("n", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    check_count("rank", rank, 1, num_classes)
    left, right = (torch.empty(shape, device=device, dtype=dtype) for shape in ((n, rank), (rank, num_classes)))
    left.normal_(0, scale * (2 / num_classes) ** 0.5, generator=generator)
    return left, right.normal_(0, rank**-0.5, generator=generator)


def feedback_by_channel(feedback: Array, positions: int) -> Array:
    """G of a map with so many positions, (channels positions, K), from one row for each channel: (channels, K)."""
    check_batch("feedback", feedback, "K")
    check_count("positions", positions)
    return feedback.repeat_interleave(positions, dim=0)


def project(feedback: Feedback, v: Array) -> Array:
    """G v for every sample of v, (batch, K): (batch, n)."""
    if isinstance(feedback, tuple):
        left, right = feedback
        return v @ right.T @ left.T
    return v @ feedback.T


def first_difference(
    feedback: Feedback, targets: Array, error: Array, phi: Activation = identity, gain: float = 1.0
) -> Array:
    """h_j - tau_j, one row a sample, but for the mask, from y and p - y, both (batch, K): (batch, n_j)."""
    check_batch("error", error, "K")
    check_shape("targets", targets, error.shape)
    check_finite("gain", gain)
    if phi == identity:  # by value: a copy of a rule has a copy of it
        return project(feedback, gain * error)
    difference = phi.difference(project(feedback, targets + error), project(feedback, error))
    return difference if gain == 1 else gain * difference


def output_error(
    scores: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    outputs: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array]:
    """y and e, (batch, K) each: the targets that e is taken to, smoothed if asked.

    `labels` are (batch,), or targets (batch, K), as `output_gradient` takes them; it takes `label_smoothing` and
    `temperature` where these are not 0 and 1, as for cross-entropy. With `outputs`, p of the scores, y is p - e,
    whatever the loss: for labels that have weights, for several labels (the sigmoid), for Huber's loss (the scores).
    Raises ValueError for label smoothing or a temperature with targets or `outputs`.
    """
    if (labels.dim() == 2 or outputs is not None) and (label_smoothing or temperature != 1):
        raise ValueError(
            f"label_smoothing: {label_smoothing}, temperature: {temperature}, expected 0 and 1 without labels or with "
            "outputs"
        )
    asked = {"label_smoothing": label_smoothing} if label_smoothing else {}
    if temperature != 1:
        asked["temperature"] = temperature
    error = output_gradient(scores, labels, **asked)
    if outputs is not None:
        return outputs(scores) - error, error
    if labels.dim() == 2:
        return labels, error
    return one_hot(labels, error.shape[1], label_smoothing, dtype=error.dtype), error


def _first_reached(layers: Sequence[Layer], clean: Pass, inject: int) -> Array:
    """h_j, x for j = 0. Raises ValueError where `inject` is no layer before the output."""
    check_count("inject", inject, 0, len(layers) - 1)
    return clean.activities[inject - 1] if inject else clean.inputs[0]


def differences(
    layers: Sequence[Layer], clean: Pass, first: Array, inject: int = 1, later: Iterable[Array | None] = ()
) -> Iterator[Array]:
    """h_l - tau_l of the layers l = j..L-1 in turn, each as h_l, from h_j - tau_j but for the mask.

    `later` are the corrections of the layers behind the j-th, in turn: None, or h_l less what they make of it.
    Raises ValueError where `inject` is no layer before the output, and for a correction of another shape than h_l.
    """
    check_shape("first", first, _first_reached(layers, clean, inject).shape)
    difference = without_dropped(layers[inject - 1].steps if inject > 0 else (), first)
    del first  # not held with later ones
    yield difference
    corrections = iter(later)
    for index in range(inject, len(layers) - 1):
        if index > 0:
            difference = pushed(layers[index - 1].outlet, clean.activities[index - 1], difference)
        layer = layers[index]
        difference = layer.difference(clean.inputs[index], difference)
        difference = changed(layer.steps, clean.preactivations[index], difference)
        correction = next(corrections, None)
        if correction is not None:
            check_shape("later", correction, difference.shape)
            difference = difference + without_dropped(layer.steps, correction)
        yield difference


def _at_layer(layers: Sequence[Layer], clean: Pass, difference: Array, index: int) -> Array:
    """delta_l of h_l - tau_l."""
    return pulled_back(layers[index].steps, clean.preactivations[index], difference)


def local_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, found: Iterator[Array], inject: int = 1
) -> Iterator[tuple[Array, Array]]:
    """delta_l, as a_l, and z_l of every layer, first layer first; 0 before the j-th. `found` are the `differences`."""
    if inject == 0:
        next(found)
    for index in range(len(layers) - 1):  # no name for what is given: it would be held for a layer more
        if index + 1 >= inject:
            yield _at_layer(layers, clean, next(found), index), clean.inputs[index]
        else:
            yield torch.zeros_like(clean.preactivations[index]), clean.inputs[index]
    yield error, clean.inputs[-1]


def update_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Array,
    first: Array,
    inject: int = 1,
    later: Iterable[Array | None] = (),
) -> Iterator[tuple[Array, Array]]:
    """The factors delta_l and z_l of every layer, first layer first, from the `first_difference`, shaped as h_j.

    Raises ValueError as `differences`, and for an error of another shape than the scores.
    """
    check_shape("error", error, clean.scores.shape)
    return local_factors(layers, clean, error, differences(layers, clean, first, inject, later), inject)


def updates(
    layers: Sequence[Layer],
    feedback: Feedback,
    x: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    phi: Activation = identity,
    gain: float = 1.0,
    inject: int = 1,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    every: bool = False,
    outputs: Callable[[Array], Array] | None = None,
) -> tuple[Update, ...]:
    """The updates of all layers; `labels`, or targets, and what follows from the loss are `output_error`'s.

    Raises ValueError as `output_error` and `differences`, and for a G without a row for each unit of h_j.
    """
    clean = forward(layers, x)
    targets, error = output_error(clean.scores, labels, output_gradient, label_smoothing, temperature, outputs)
    h = _first_reached(layers, clean, inject)
    first = first_difference(feedback, targets, temperature * error, phi, gain)
    check_shape("first", first, (len(h), h[0].numel()))
    first = first.reshape(h.shape)
    later = repeat(first) if every else ()
    return layer_updates(layers, update_factors(layers, clean, error, first, inject, later))
