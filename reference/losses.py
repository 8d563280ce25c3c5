"""Losses on the scores of a network, and the output error e that the learning rules start from.

Of one label, which is a class, or the targets of all K scores:

    (1)  targets:              t = (1 - r) onehot(y) + r / K,    r the label smoothing
    (2)  cross-entropy:        l = -sum_k c_k t_k log softmax(s / T)_k
                               dl/ds = ((sum_k c_k t_k) softmax(s / T) - c t) / T
    (3)  squared error:        l = 1/2 sum_k (s_k - t_k)^2,    dl/ds = s - t
    (4)  binary cross-entropy: l = sum_k c_k (q_k t_k softplus(-s_k) + (1 - t_k) softplus(s_k))
                               dl/ds = c ((1 - t) sigmoid(s) - q t sigmoid(-s))
    (5)  Huber:                l = sum_k (u_k^2 / 2 where |u_k| <= delta, else delta (|u_k| - delta / 2)),    u = s - t
                               dl/ds = u, cut to -delta..delta
    (6)  absolute error:       l = sum_k |s_k - t_k|,    dl/ds = sign(s - t), 0 at 0

Of a batch of labels, N of which are not ignored:

    (7)  weights:              v_i = N w_i / sum_j w_j c_(y_j),    so that v_i c_(y_i) is 1 in the mean; 0 if ignored
    (8)  losses:               v_i l_i,    e_i = v_i dl_i/ds_i;    the batch's is 1/N sum_i v_i l_i

With labels that are not one for each sample (one for each token, or ignored) N takes the place of B in equation (2) of
`layers`, in `updates` its `count`. Then the updates of backpropagation are the gradients of (8), which is the mean of
torch.nn.CrossEntropyLoss. Class weights stand in (7) where labels are classes; with targets c_(y_j) is 1 there.

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| s | scores | (batch, K), (batch, ..., K) | output of the last layer; K scores for each label |
| y | labels | (batch,), (batch, ...) | integers 0..K-1, or `ignore_index` |
| t | targets | as the scores | one-hot labels, smoothed if asked; given: probabilities, several labels, numbers |
| T | temperature | | the scores are divided by it |
| c, q | class_weight, positive_weight | (K,) | of each score; of its targets of 1; 1 unless given |
| w | sample_weight | as the labels | of each label; 1 unless given |
| e | (returned) | as the scores | dLoss/ds of each label, not divided by their number |

FOTON's authors multiply the scores by their T, which is 1/temperature here, and leave that factor out of e; then FOTON
differs from backpropagation by it. We take the gradient, as the paper says: equality holds at any temperature.
"""

import numpy as np
from scipy.special import expit, log_softmax, softmax

from ._arrays import Array, Labels, check_batch, check_count, check_labels, check_positive, check_rate, check_shape

__all__ = [
    "absolute_error",
    "absolute_error_gradient",
    "binary_cross_entropy",
    "binary_cross_entropy_gradient",
    "counted",
    "cross_entropy",
    "cross_entropy_gradient",
    "huber",
    "huber_gradient",
    "one_hot",
    "squared_error",
    "squared_error_gradient",
]


def one_hot(labels: Labels, num_classes: int, label_smoothing: float = 0.0) -> Array:
    """t of equation (1), 1 at the label, mixed with the uniform distribution: (batch, num_classes) float64.

    Raises ValueError unless every label lies in 0..num_classes-1 and 0 <= label_smoothing < 1.

    >>> one_hot(np.array([1]), 2).tolist(), one_hot(np.array([1]), 2, label_smoothing=0.5).tolist()
    ([[0.0, 1.0]], [[0.25, 0.75]])
    """
    check_count("num_classes", num_classes)
    check_rate("label_smoothing", label_smoothing)
    check_labels(labels, num_classes)
    return _smoothed(np.eye(num_classes)[labels], label_smoothing)


def _smoothed(targets: Array, label_smoothing: float) -> Array:
    return (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]


def _check_numbers(scores: Array) -> None:
    check_batch("scores", scores, "K" if scores.ndim < 3 else "..., K", max(scores.ndim - 1, 1))


def check_scores(scores: Array, labels: Labels) -> None:
    """Raises ValueError unless scores are (batch, ..., K), at least one of each, with a label for each K of them."""
    _check_numbers(scores)
    if scores.ndim > 2:
        check_shape("labels", labels, scores.shape[:-1])
        labels = labels.ravel()
    check_labels(labels, scores.shape[-1], scores[..., 0].size)


def check_weights(name: str, weights: Array | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless there are none, or 0 or more each, of that shape."""
    if weights is not None:
        check_shape(name, weights, shape)
        if not np.all(weights >= 0):
            raise ValueError(f"{name}: {weights.min()} among them, expected 0 or more")


def _as_scores(scores: Array, targets: Array) -> Array:
    """Targets of one score may be shaped as labels. Raises ValueError for another shape than the scores', or dtype."""
    _check_numbers(scores)
    if targets.dtype.kind != "f":
        raise ValueError(f"targets: dtype {targets.dtype}, expected real numbers")
    if (*targets.shape, 1) == scores.shape:
        targets = targets[..., None]
    check_shape("targets", targets, scores.shape)
    return targets


def _are_targets(scores: Array, labels: Array) -> bool:
    """Whether these are numbers for each score, in place of classes."""
    return labels.dtype.kind == "f" and labels.ndim == max(scores.ndim, 2)


def _kept(scores: Array, labels: Array, ignore_index: int | None) -> Array:
    """Which labels are not ignored, shaped as they are. Raises ValueError where labels do not fit the scores."""
    if _are_targets(scores, labels):
        return np.ones(_as_scores(scores, labels).shape[:-1], bool)
    kept = np.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    check_scores(scores, np.where(kept, labels, 0))
    return kept


def counted(scores: Array, labels: Array, ignore_index: int | None = None) -> int:
    """N of equation (7), an integer, of scores (batch, ..., K) and labels (batch, ...).

    Raises ValueError where labels, or targets, do not fit the scores.

    >>> int(counted(np.zeros((3, 2)), np.array([0, 1, -100]), ignore_index=-100))
    2
    """
    return int(np.count_nonzero(_kept(scores, labels, ignore_index)))


def _weights(kept: Array, sample_weight: Array | None, of_classes: Array | float = 1.0) -> Array:
    """v of equation (7) from w and c_y, shaped as labels; 0 where all of them are 0."""
    check_weights("sample_weight", sample_weight, kept.shape)
    w = np.where(kept, 1.0 if sample_weight is None else sample_weight, 0)
    total = np.sum(w * of_classes)
    return w * (np.count_nonzero(kept) / total if total > 0 else 0.0)


def _weighted(v: Array, found: Array) -> Array:
    """v times one number, or K, of each label; 0 where v is, whatever the scores are."""
    v = (v if v.ndim == found.ndim else v[..., None]).astype(found.dtype)
    return np.where(v == 0, 0, v * found)


def _weighted_targets(
    scores: Array,
    labels: Array,
    label_smoothing: float,
    class_weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int | None,
) -> tuple[Array, Array]:
    """c t of equation (2), as the scores, and v of (7), as labels."""
    check_rate("label_smoothing", label_smoothing)
    check_weights("class_weight", class_weight, scores.shape[-1:])
    kept = _kept(scores, labels, ignore_index)
    c = np.ones(scores.shape[-1]) if class_weight is None else class_weight
    if _are_targets(scores, labels):
        targets, v = labels, _weights(kept, sample_weight)
    else:
        known = np.where(kept, labels, 0)
        targets, v = np.eye(len(c))[known], _weights(kept, sample_weight, c[known])
    return (c * _smoothed(targets, label_smoothing)).astype(scores.dtype), v


def cross_entropy(
    scores: Array,
    labels: Array,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """v_i l_i of equations (2) and (8), in nats, shaped as labels. Of probabilities in place of labels, too.

    Raises ValueError unless labels and weights fit, T > 0 and 0 <= label_smoothing < 1.

    >>> np.round(cross_entropy(np.zeros((2, 2)), np.array([0, -100]), ignore_index=-100), 3).tolist()  # log 2
    [0.693, 0.0]
    """
    check_positive("temperature", temperature)
    targets, v = _weighted_targets(scores, labels, label_smoothing, class_weight, sample_weight, ignore_index)
    return _weighted(v, -np.sum(targets * log_softmax(scores / temperature, axis=-1), axis=-1))


def cross_entropy_gradient(
    scores: Array,
    labels: Array,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """e of equations (2) and (8), as the scores. Raises ValueError as `cross_entropy` does.

    >>> [cross_entropy_gradient(np.zeros((1, 2)), np.array([0]), temperature).tolist() for temperature in (1.0, 2.0)]
    [[[-0.5, 0.5]], [[-0.25, 0.25]]]
    """
    check_positive("temperature", temperature)
    targets, v = _weighted_targets(scores, labels, label_smoothing, class_weight, sample_weight, ignore_index)
    total = np.sum(targets, axis=-1, keepdims=True)
    return _weighted(v, (total * softmax(scores / temperature, axis=-1) - targets) / temperature)


def _difference(scores: Array, targets: Array) -> Array:
    """s - t, of labels, or of targets."""
    if _are_targets(scores, targets) or (*targets.shape, 1) == scores.shape:
        return scores - _as_scores(scores, targets)
    check_scores(scores, targets)
    return scores - np.eye(scores.shape[-1], dtype=scores.dtype)[targets]


def _of_targets(scores: Array, sample_weight: Array | None) -> Array:
    """v of labels none of which is ignored."""
    return _weights(np.ones(scores.shape[:-1], bool), sample_weight)


def squared_error(scores: Array, labels: Array, sample_weight: Array | None = None) -> Array:
    """v_i l_i of equations (3) and (8), shaped as labels. Raises ValueError as its gradient.

    >>> squared_error(np.array([[1.0, 2.0]]), np.array([0])).tolist()  # of 1, 0, half of 2^2
    [2.0]
    """
    u = _difference(scores, labels)
    return _weighted(_of_targets(scores, sample_weight), np.sum(u**2, axis=-1) / 2)


def squared_error_gradient(scores: Array, labels: Array, sample_weight: Array | None = None) -> Array:
    """e of equations (3) and (8), as the scores, to labels or to targets, the numbers of a regression.

    Raises ValueError where labels or targets, or weights, do not fit the scores.

    >>> squared_error_gradient(np.array([[1.0, 2.0]]), np.array([0])).tolist()
    [[0.0, 2.0]]
    """
    u = _difference(scores, labels)
    return _weighted(_of_targets(scores, sample_weight), u)


def absolute_error(scores: Array, targets: Array, sample_weight: Array | None = None) -> Array:
    """v_i l_i of equations (6) and (8), shaped as labels. Raises ValueError as its gradient.

    >>> absolute_error(np.array([[1.0, -2.0]]), np.zeros((1, 2))).tolist()
    [3.0]
    """
    u = scores - _as_scores(scores, targets)
    return _weighted(_of_targets(scores, sample_weight), np.sum(np.abs(u), axis=-1))


def absolute_error_gradient(scores: Array, targets: Array, sample_weight: Array | None = None) -> Array:
    """e of equations (6) and (8), as the scores. Raises ValueError unless targets and weights fit.

    >>> absolute_error_gradient(np.array([[5.0, 0.0]]), np.zeros((1, 2))).tolist()  # 0 at 0
    [[1.0, 0.0]]
    """
    return _weighted(_of_targets(scores, sample_weight), np.sign(scores - _as_scores(scores, targets)))


def huber(scores: Array, targets: Array, delta: float = 1.0, sample_weight: Array | None = None) -> Array:
    """v_i l_i of equations (5) and (8), shaped as labels. Raises ValueError as its gradient.

    >>> huber(np.array([[1.0], [3.0]]), np.zeros((2, 1))).tolist()  # 1/2, and 3 - 1/2
    [0.5, 2.5]
    """
    check_positive("delta", delta)
    size = np.abs(scores - _as_scores(scores, targets))
    found = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    return _weighted(_of_targets(scores, sample_weight), np.sum(found, axis=-1))


def huber_gradient(scores: Array, targets: Array, delta: float = 1.0, sample_weight: Array | None = None) -> Array:
    """e of equations (5) and (8), as the scores. Raises ValueError unless targets and weights fit, and delta > 0.

    >>> huber_gradient(np.array([[0.5], [3.0]]), np.zeros((2, 1))).tolist()
    [[0.5], [1.0]]
    """
    check_positive("delta", delta)
    u = scores - _as_scores(scores, targets)
    return _weighted(_of_targets(scores, sample_weight), np.clip(u, -delta, delta))


def _binary(
    scores: Array, targets: Array, class_weight: Array | None, positive_weight: Array | None
) -> tuple[Array, Array]:
    """c q t and c (1 - t) of equation (4), as the scores."""
    t = _as_scores(scores, targets)
    check_weights("class_weight", class_weight, scores.shape[-1:])
    check_weights("positive_weight", positive_weight, scores.shape[-1:])
    present, absent = t if positive_weight is None else positive_weight * t, 1 - t
    return (present, absent) if class_weight is None else (class_weight * present, class_weight * absent)


def binary_cross_entropy(
    scores: Array,
    targets: Array,
    class_weight: Array | None = None,
    positive_weight: Array | None = None,
    sample_weight: Array | None = None,
) -> Array:
    """v_i l_i of equations (4) and (8), in nats, shaped as labels. Raises ValueError as its gradient.

    >>> np.round(binary_cross_entropy(np.zeros((1, 2)), np.array([[1.0, 0.0]])), 3).tolist()  # log 2 of each score
    [1.386]
    """
    present, absent = _binary(scores, targets, class_weight, positive_weight)
    found = np.sum(present * np.logaddexp(0, -scores) + absent * np.logaddexp(0, scores), axis=-1)
    return _weighted(_of_targets(scores, sample_weight), found)


def binary_cross_entropy_gradient(
    scores: Array,
    targets: Array,
    class_weight: Array | None = None,
    positive_weight: Array | None = None,
    sample_weight: Array | None = None,
) -> Array:
    """e of equations (4) and (8), as the scores. Raises ValueError unless targets and weights fit.

    >>> targets, weight = np.array([[1.0, 0.0]]), np.array([3.0, 3.0])  # of a target of 1 alone
    >>> binary_cross_entropy_gradient(np.zeros((1, 2)), targets, positive_weight=weight).tolist()
    [[-1.5, 0.5]]
    """
    present, absent = _binary(scores, targets, class_weight, positive_weight)
    return _weighted(_of_targets(scores, sample_weight), absent * expit(scores) - present * expit(-scores))
