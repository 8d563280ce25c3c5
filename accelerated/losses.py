"""Losses on class scores, and the output error e that the learning rules start from; see the reference.

Labels are not checked against K here, which would wait for the device: the data layer checks them on the host.
"""

import torch
from torch.nn import functional

from ._arrays import Array, Labels, check_batch, check_count, check_labels, check_positive, check_rate, check_shape

__all__ = ["cross_entropy", "cross_entropy_gradient", "one_hot", "squared_error", "squared_error_gradient"]


def one_hot(
    labels: Labels, num_classes: int, label_smoothing: float = 0.0, *, dtype: torch.dtype | None = None
) -> Array:
    """Rows with 1 at the label and 0 elsewhere, mixed with the uniform distribution: (batch, num_classes)."""
    check_count("num_classes", num_classes)
    check_rate("label_smoothing", label_smoothing)
    check_labels(labels, num_classes)
    targets = torch.full((len(labels), num_classes), label_smoothing / num_classes, dtype=dtype, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - label_smoothing + label_smoothing / num_classes)


def check_scores(scores: Array, labels: Labels) -> None:
    """Raises ValueError unless scores are (batch, K), at least one of each, with a label for each sample."""
    check_batch("scores", scores, "K")
    check_labels(labels, scores.shape[1], len(scores))


def cross_entropy(scores: Array, labels: Labels, temperature: float = 1.0, label_smoothing: float = 0.0) -> Array:
    """-sum_k t_k log softmax(s / T)_k, shape (batch,), in nats."""
    check_scores(scores, labels)
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)
    return entropies(scores, labels, temperature, label_smoothing)


def entropies(scores: Array, labels: Labels, temperature: float, label_smoothing: float) -> Array:
    """`cross_entropy` of arguments that are checked: twice a step for each layer, the checks would cost a tenth."""
    logits = scores if temperature == 1 else scores / temperature
    return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def cross_entropy_gradient(
    scores: Array, labels: Labels, temperature: float = 1.0, label_smoothing: float = 0.0
) -> Array:
    """e = (softmax(s / T) - t) / T, shape (batch, K)."""
    check_scores(scores, labels)
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)
    return errors(scores, labels, temperature, label_smoothing)


def errors(scores: Array, labels: Labels, temperature: float, label_smoothing: float) -> Array:
    """`cross_entropy_gradient` of arguments that are checked.

    At the label, softmax - 1 is taken as minus the sum of the others, so that the error of a confident, correct sample
    does not cancel in low precision.
    """
    probabilities = torch.softmax(scores if temperature == 1 else scores / temperature, dim=1)
    others = probabilities.scatter(1, labels[:, None], 0)
    error = others.scatter(1, labels[:, None], -others.sum(dim=1, keepdim=True))
    if label_smoothing:
        uniform = probabilities - 1 / scores.shape[1]
        error = (1 - label_smoothing) * error + label_smoothing * uniform
    return error if temperature == 1 else error / temperature


def squared_error(scores: Array, labels: Labels) -> Array:
    """1/2 sum_k (s_k - t_k)^2, shape (batch,); targets may stand in place of labels, as in its gradient."""
    return 0.5 * squared_error_gradient(scores, labels).square().sum(dim=1)


def squared_error_gradient(scores: Array, labels: Labels) -> Array:
    """e = s - t, shape (batch, K), to labels (batch,) or real targets (batch, K), the numbers of a regression."""
    if labels.is_floating_point() and labels.dim() == 2:
        check_batch("scores", scores, "K")
        check_shape("targets", labels, scores.shape)
        return scores - labels
    check_scores(scores, labels)
    return scores - one_hot(labels, scores.shape[1], dtype=scores.dtype)
