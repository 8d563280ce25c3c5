"""Forward Target Propagation: targets that run forward through the network's own weights.

As-Saquib, Abeer, Chien, Yoon, Kumar and Yi, "Forward Target Propagation: A Forward-Only Approach to Global Error Credit
Assignment via Local Losses", arXiv 2506.11030.

    (1)  clean pass:       h_0 = x,    a_l = W_l h_(l-1) + b_l,    h_l = m_l * sigma_l(a_l),    e = dLoss/dscores
    (2)  first target:     tau_j = h_j + gamma [m_j > 0] * (phi(G y) - phi(G p)),    p = y + T e
    (3)  its way forward:  tau_l = m_l * sigma_l(W_l tau_(l-1) + b_l),    j < l < L
    (4)  hidden layers:    d_l = sigma_l'(a_l)^T (m_l * (h_l - tau_l)),    G_l = 1/B sum_samples d_l h_(l-1)^T
    (5)  output layer:     G_L = 1/B sum_samples e h_(L-1)^T

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| y | targets | (batch, K) | the label, one-hot, smoothed if asked |
| p | outputs | (batch, K) | softmax(scores / T), so that e = (p - y) / T |
| T | temperature | | of the scores; 1 for squared error, where p are the scores |
| G | feedback | (n_j, K), or its factors | random and fixed |
| phi | phi | | what the projections go through |
| gamma | gain | | of the correction |
| j | inject | | the layer that is given the first target: 1 in the paper, 0 is the input |
| h_l - tau_l | differences[l-j] | (batch, n_l) | how far a layer's activation lies from its target |

The paper's body and code are not public, and this is put together from what is. Seen in reviews of it: the form of (2),
one random frozen G, two projections through a nonlinearity, targets carried forward by the ordinary weights, a local
loss for each layer. Deduced from its published counts of multiplications: G has n_1 rows, there are two products with
it, the second pass leaves the first layer out. Inferred: the local losses are 1/2 |h_l - tau_l|^2, so that sigma_l' is
in (4); its other factor is the clean h_(l-1); the output layer follows its own loss; gamma (a number of that name is
called crucial, not what it multiplies), phi, and the law of G. Ours: a dropped unit has no target, and layers before
the j-th have none and are not trained; with label smoothing y in (2) is the smoothed label, with a temperature p is the
softmax of the divided scores, so that (2) is 0 where the loss is smallest.

With phi = identity and one hidden layer, (4) is direct feedback alignment. No layer's target needs a weight that an
earlier layer's update changes, tau_l being made of W_l and tau_(l-1): whether a layer is updated as soon as its target
is there or all are after the pass is one and the same.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

from ._arrays import Array, Labels, check_batch, check_count, check_finite, check_option, check_positive, check_shape
from .activations import Activation, identity
from .losses import cross_entropy_gradient, one_hot
from .network import ForwardPass, Masks, Network, Updates, affine, batch_mean_updates, forward
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
    n: int, num_classes: int, rng: np.random.Generator, scale: float = 0.5, law: FeedbackLaw = "uniform"
) -> Array:
    """G, shape (n, num_classes): uniform on +-scale sqrt(6 / num_classes), or another law of its mean square."""
    check_count("n", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    check_option("law", law, FeedbackLaw)
    bound = scale * np.sqrt(6 / num_classes)
    match law:
        case "uniform":
            return rng.uniform(-bound, bound, (n, num_classes))
        case "normal":
            return rng.normal(0, bound / np.sqrt(3), (n, num_classes))
        case _:
            return orthogonal((n, num_classes), rng, gain=bound / np.sqrt(3) * np.sqrt(max(n, num_classes)))


def low_rank_feedback(
    n: int, num_classes: int, rank: int, rng: np.random.Generator, scale: float = 0.5
) -> tuple[Array, Array]:
    """Factors (n, rank) and (rank, num_classes) of a G whose entries have the mean square of `random_feedback`'s.

    Ours: r (n + K) numbers in place of n K. Raises ValueError unless 1 <= rank <= num_classes.
    """
    check_count("n", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    check_count("rank", rank, 1, num_classes)
    left = rng.normal(0, scale * np.sqrt(2 / num_classes), (n, rank))
    return left, rng.normal(0, 1 / np.sqrt(rank), (rank, num_classes))


def project(feedback: Feedback, v: Array) -> Array:
    """G v for every sample of v, (batch, K): (batch, n)."""
    if isinstance(feedback, tuple):
        left, right = feedback
        return v @ right.T @ left.T
    return v @ feedback.T


def first_difference(
    feedback: Feedback, targets: Array, error: Array, phi: Activation = identity, gain: float = 1.0
) -> Array:
    """h_j - tau_j of equation (2), but for the mask, from y and p - y, both (batch, K): (batch, n_j)."""
    check_batch("error", error, "K")
    check_shape("targets", targets, error.shape)
    check_finite("gain", gain)
    outputs = targets + error
    return gain * (phi.value(project(feedback, outputs)) - phi.value(project(feedback, targets)))


def output_error(
    scores: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Array, Array]:
    """y and e of equations (1) and (2), (batch, K) each: the targets that e is taken to, smoothed if asked.

    `output_gradient` takes `label_smoothing` and `temperature` where these are not 0 and 1, as for cross-entropy.
    """
    asked = {"label_smoothing": label_smoothing} if label_smoothing else {}
    if temperature != 1:
        asked["temperature"] = temperature
    error = output_gradient(scores, labels, **asked)
    return one_hot(labels, error.shape[1], label_smoothing).astype(error.dtype), error


def differences(
    network: Network, clean: ForwardPass, first: Array, masks: Masks = None, inject: int = 1
) -> Iterator[Array]:
    """h_l - tau_l of the layers l = j..L-1 in turn, equation (3), from h_j - tau_j but for the mask: (batch, n_l)."""
    check_shape("first", first, clean.inputs[inject].shape)
    mask = masks[inject - 1] if masks is not None and inject > 0 else None
    if mask is not None:
        first = (mask > 0) * first
    yield first
    target = clean.inputs[inject] - first
    for layer in range(inject, len(network.weights) - 1):
        target = network.activations[layer].value(affine(network.weights[layer], network.biases[layer], target))
        mask = masks[layer] if masks is not None else None
        if mask is not None:
            target = mask * target
        yield clean.inputs[layer + 1] - target


def local_factors(
    network: Network, clean: ForwardPass, error: Array, found: Iterator[Array], masks: Masks = None, inject: int = 1
) -> Iterator[tuple[Array, Array]]:
    """d_l (e at the output) and h_(l-1) of every layer, first layer first: the factors of (4) and (5).

    `found` are the `differences`.
    """
    if inject == 0:
        next(found)  # the input has a target, and nothing to be trained
    for layer, (activation, a) in enumerate(zip(network.activations[:-1], clean.preactivations[:-1], strict=True)):
        difference = next(found) if layer >= inject - 1 else np.zeros_like(a)
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
    """d_l (e at the output) and h_(l-1) of every layer, first layer first: the factors of (4) and (5).

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
    """The updates of equations (4) and (5). Raises ValueError where `inject` is no layer before the output."""
    clean = forward(network, x, masks)
    targets, error = output_error(clean.scores, labels, output_gradient, label_smoothing, temperature)
    first = first_difference(feedback, targets, temperature * error, phi, gain)
    return batch_mean_updates(network, update_factors(network, clean, error, first, masks, inject))
