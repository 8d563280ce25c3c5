"""Losses on class scores, and the output error e that the learning rules start from.

    (1)  targets:        t = (1 - r) onehot(y) + r / K,    r the label smoothing
    (2)  cross-entropy:  -sum_k t_k log softmax(s / T)_k,    e = (softmax(s / T) - t) / T
    (3)  squared error:  1/2 sum_k (s_k - t_k)^2,    e = s - t,    r = 0

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| s | scores | (batch, K) | class scores, the output of the last layer |
| y | labels | (batch,) | integers 0..K-1 |
| t | targets | (batch, K) | one-hot labels, smoothed if asked |
| T | temperature | | the scores are divided by it |
| e | (returned) | (batch, K) | dLoss/ds of each sample, not divided by the batch size |

FOTON's authors multiply the scores by their T, which is 1/temperature here, and leave that factor out of e; then FOTON
differs from backpropagation by it. We take the gradient, as the paper says: equality holds at any temperature.
"""

import numpy as np
from scipy.special import log_softmax, softmax

from ._arrays import Array, Labels, check_batch, check_count, check_labels, check_positive, check_rate, check_shape

__all__ = ["cross_entropy", "cross_entropy_gradient", "one_hot", "squared_error", "squared_error_gradient"]


def one_hot(labels: Labels, num_classes: int, label_smoothing: float = 0.0) -> Array:
    """t of equation (1), 1 at the label, mixed with the uniform distribution: (batch, num_classes) float64.

    Raises ValueError unless every label lies in 0..num_classes-1 and 0 <= label_smoothing < 1.
    """
    check_count("num_classes", num_classes)
    check_rate("label_smoothing", label_smoothing)
    check_labels(labels, num_classes)
    if labels.size and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"labels: found {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}")
    hard = np.eye(num_classes)[labels]
    return (1 - label_smoothing) * hard + label_smoothing / num_classes


def check_scores(scores: Array, labels: Labels) -> None:
    """Raises ValueError unless scores are (batch, K), at least one of each, with a label for each sample."""
    check_batch("scores", scores, "K")
    check_labels(labels, scores.shape[1], len(scores))


def cross_entropy(scores: Array, labels: Labels, temperature: float = 1.0, label_smoothing: float = 0.0) -> Array:
    """-sum_k t_k log softmax(s / T)_k, (2): (batch,), in nats. Raises ValueError unless labels fit and T > 0."""
    check_scores(scores, labels)
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)
    targets = one_hot(labels, scores.shape[1], label_smoothing).astype(scores.dtype)
    return -np.sum(targets * log_softmax(scores / temperature, axis=1), axis=1)


def cross_entropy_gradient(
    scores: Array, labels: Labels, temperature: float = 1.0, label_smoothing: float = 0.0
) -> Array:
    """e = (softmax(s / T) - t) / T of equation (2): (batch, K). Raises ValueError as `cross_entropy` does."""
    check_scores(scores, labels)
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)
    targets = one_hot(labels, scores.shape[1], label_smoothing).astype(scores.dtype)
    return (softmax(scores / temperature, axis=1) - targets) / temperature


def squared_error(scores: Array, labels: Labels) -> Array:
    """1/2 sum_k (s_k - t_k)^2, equation (3): (batch,), to labels or targets. Raises ValueError as its gradient."""
    return 0.5 * np.sum(squared_error_gradient(scores, labels) ** 2, axis=1)


def squared_error_gradient(scores: Array, labels: Labels) -> Array:
    """e = s - t of equation (3), (batch, K), to labels (batch,) or real targets (batch, K), those of a regression.

    Raises ValueError where labels or targets do not fit the scores.
    """
    if labels.dtype.kind == "f" and labels.ndim == 2:
        check_batch("scores", scores, "K")
        check_shape("targets", labels, scores.shape)
        return scores - labels
    check_scores(scores, labels)
    return scores - one_hot(labels, scores.shape[1]).astype(scores.dtype)
