"""Forward Target Propagation: targets that run forward; see the reference.

Targets are carried as differences to the clean activations, as in `network.propagated_differences`. Multiplications of
a step: those of backpropagation without the product that takes e to the last hidden layer, and two products with G.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch

from ._arrays import Array, Labels, check_batch, check_count, check_finite, check_option, check_positive, check_shape
from .activations import Activation, identity
from .losses import cross_entropy_gradient, one_hot
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward
from .orthogonality import orthogonal

__all__ = [
    "Feedback",
    "FeedbackLaw",
    "differences",
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


def project(feedback: Feedback, v: Array) -> Array:
    """G v for every sample of v, (batch, K): (batch, n)."""
    if isinstance(feedback, tuple):
        left, right = feedback
        return v @ right.T @ left.T
    return v @ feedback.T


def first_difference(
    feedback: Feedback, targets: Array, error: Array, phi: Activation = identity, gain: float = 1.0
) -> Array:
    """h_j - tau_j, but for the mask, from y and p - y, both (batch, K): (batch, n_j)."""
    check_batch("error", error, "K")
    check_shape("targets", targets, error.shape)
    check_finite("gain", gain)
    if phi == identity:  # by value: a copy of a rule has a copy of it
        return project(feedback, gain * error)
    return gain * phi.difference(project(feedback, targets + error), project(feedback, error))


def output_error(
    scores: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """y and e, (batch, K) each: the targets that e is taken to, smoothed if asked.

    `output_gradient` takes `label_smoothing` and `temperature` where these are not 0 and 1, as for cross-entropy.
    """
    asked = {"label_smoothing": label_smoothing} if label_smoothing else {}
    if temperature != 1:
        asked["temperature"] = temperature
    error = output_gradient(scores, labels, **asked)
    return one_hot(labels, error.shape[1], label_smoothing, dtype=error.dtype), error


def differences(
    network: Network, clean: ForwardPass, first: Array, masks: Masks = None, inject: int = 1
) -> Iterator[Array]:
    """h_l - tau_l of the layers l = j..L-1 in turn, from h_j - tau_j but for the mask: (batch, n_l) each."""
    check_shape("first", first, clean.inputs[inject].shape)
    mask = masks[inject - 1] if masks is not None and inject > 0 else None
    difference = first if mask is None else (mask > 0) * first
    yield difference
    for layer in range(inject, len(network.weights) - 1):
        u = difference @ network.weights[layer].T
        difference = network.activations[layer].difference(clean.preactivations[layer], u)
        mask = masks[layer] if masks is not None else None
        if mask is not None:
            difference = mask * difference
        yield difference


def local_factors(
    network: Network, clean: ForwardPass, error: Array, found: Iterator[Array], masks: Masks = None, inject: int = 1
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output) and h_(l-1) of every layer, first layer first. `found` are the `differences`."""
    if inject == 0:
        next(found)
    for layer, (activation, a) in enumerate(zip(network.activations[:-1], clean.preactivations[:-1], strict=True)):
        difference = next(found) if layer >= inject - 1 else torch.zeros_like(a)
        mask = masks[layer] if masks is not None else None
        yield activation.vjp(a, difference if mask is None else mask * difference), clean.inputs[layer]
    yield error, clean.inputs[-1]


def update_factors(
    network: Network,
    clean: ForwardPass,
    error: Array,
    first: Array,
    masks: Masks = None,
    inject: int = 1,
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output) and h_(l-1) of every layer, first layer first.

    `first` is the `first_difference`. Raises ValueError where `inject` is no layer before the output.
    """
    check_count("inject", inject, 0, len(network.weights) - 1)
    check_shape("error", error, clean.scores.shape)
    found = differences(network, clean, first, masks, inject)
    return local_factors(network, clean, error, found, masks, inject)


def updates(
    network: Network,
    feedback: Feedback,
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    phi: Activation = identity,
    gain: float = 1.0,
    inject: int = 1,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> Updates:
    """The updates of all layers. Raises ValueError where `inject` is no layer before the output."""
    clean = forward(network, x, masks)
    targets, error = output_error(clean.scores, labels, output_gradient, label_smoothing, temperature)
    first = first_difference(feedback, targets, temperature * error, phi, gain)
    return batch_mean_updates(network, update_factors(network, clean, error, first, masks, inject))
