"""Losses on the scores of a network, and the output error e that the learning rules start from; see the reference.

Labels are not checked against K on a device, which would wait for it: the data layer checks them on the host. Nor is
their number N waited for: it stays a tensor where some may be ignored.
"""

import torch
from torch.nn import functional

from ._arrays import (
    Array,
    Labels,
    check_batch,
    check_count,
    check_labels,
    check_positive,
    check_rate,
    check_shape,
    readable,
    widened,
)

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


def one_hot(
    labels: Labels, num_classes: int, label_smoothing: float = 0.0, *, dtype: torch.dtype | None = None
) -> Array:
    """Rows with 1 at the label and 0 elsewhere, mixed with the uniform distribution: (batch, num_classes)."""
    check_count("num_classes", num_classes)
    check_rate("label_smoothing", label_smoothing)
    check_labels(labels, num_classes)
    return hot(labels, num_classes, label_smoothing, dtype)


def hot(labels: Labels, num_classes: int, label_smoothing: float = 0.0, dtype: torch.dtype | None = None) -> Array:
    """`one_hot` of labels that are checked, of any shape."""
    shape = (*labels.shape, num_classes)
    targets = torch.full(shape, label_smoothing / num_classes, dtype=dtype, device=labels.device)
    return targets.scatter_(-1, labels[..., None], 1 - label_smoothing + label_smoothing / num_classes)


def smoothed(targets: Array, label_smoothing: float) -> Array:
    """Mixed with the uniform distribution."""
    return (1 - label_smoothing) * targets + label_smoothing / targets.shape[-1]


def _check_numbers(scores: Array) -> None:
    check_batch("scores", scores, "K" if scores.ndim < 3 else "..., K", max(scores.ndim - 1, 1))


def check_scores(scores: Array, labels: Labels) -> None:
    """Raises ValueError unless scores are (batch, ..., K), at least one of each, with a label for each K of them."""
    _check_numbers(scores)
    if scores.ndim > 2:
        check_shape("labels", labels, scores.shape[:-1])
        labels = labels.flatten()
    check_labels(labels, scores.shape[-1], scores[..., 0].numel())


def check_weights(name: str, weights: Array | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless there are none, or 0 or more each, of that shape; numbers are looked at on a CPU."""
    if weights is not None:
        check_shape(name, weights, shape)
        if readable(weights) and not bool((weights >= 0).all()):
            raise ValueError(f"{name}: {weights.min()} among them, expected 0 or more")


def _as_scores(scores: Array, targets: Array) -> Array:
    """Targets of one score may be shaped as labels. Raises ValueError for another shape than the scores', or dtype."""
    _check_numbers(scores)
    if not targets.is_floating_point():
        raise ValueError(f"targets: dtype {targets.dtype}, expected real numbers")
    targets = shaped(scores, targets)
    check_shape("targets", targets, scores.shape)
    return targets


def shaped(scores: Array, targets: Array) -> Array:
    """Targets, which of one score may be shaped as labels."""
    return targets[..., None] if (*targets.shape, 1) == scores.shape else targets


def are_targets(scores: Array, labels: Array) -> bool:
    """Whether these are numbers for each score, in place of classes."""
    return labels.is_floating_point() and labels.ndim == max(scores.ndim, 2)


def _check_labels(scores: Array, labels: Array, ignore_index: int | None) -> None:
    """Raises ValueError where labels, or targets, do not fit the scores."""
    if are_targets(scores, labels):
        _as_scores(scores, labels)
    else:
        check_scores(scores, labels if ignore_index is None else labels.masked_fill(labels == ignore_index, 0))


def counted(scores: Array, labels: Array, ignore_index: int | None = None) -> int | Array:
    """N: how many labels, or rows of targets, there are, of which none may be ignored; else a tensor, int64."""
    _check_labels(scores, labels, ignore_index)
    return number(scores, labels, ignore_index)


def number(scores: Array, labels: Array, ignore_index: int | None) -> int | Array:
    """`counted` of arguments that are checked."""
    if ignore_index is None or are_targets(scores, labels):
        return scores.numel() // scores.shape[-1]
    return (labels != ignore_index).sum()


def label_weights(
    scores: Array, labels: Array, class_weight: Array | None, sample_weight: Array | None, ignore_index: int | None
) -> Array | None:
    """v, as labels, in float32 at least; None where all are 1, but those of labels that are ignored."""
    if sample_weight is None and class_weight is None:
        return None
    if are_targets(scores, labels):
        class_weight = ignore_index = None
    w, known = widened(scores.new_ones(scores.shape[:-1]) if sample_weight is None else sample_weight), labels
    if ignore_index is not None:
        ignored = labels == ignore_index
        w, known = w.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
    of_classes = w if class_weight is None else w * widened(class_weight)[known]
    total = of_classes.sum()
    return w * torch.where(total > 0, number(scores, labels, ignore_index) / total, 0)


def _check_entropy(
    scores: Array,
    labels: Array,
    temperature: float,
    label_smoothing: float,
    class_weight: Array | None,
    sample_weight: Array | None,
    ignore_index: int | None,
) -> None:
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)
    check_weights("class_weight", class_weight, scores.shape[-1:])
    _check_labels(scores, labels, ignore_index)
    check_weights("sample_weight", sample_weight, scores.shape[:-1])


def cross_entropy(
    scores: Array,
    labels: Array,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """v_i l_i, -v sum_k c_k t_k log softmax(s / T)_k, in nats, shaped as labels."""
    options = temperature, label_smoothing, class_weight, sample_weight, ignore_index
    _check_entropy(scores, labels, *options)
    return entropies(scores, labels, *options)


def entropies(
    scores: Array,
    labels: Array,
    temperature: float,
    label_smoothing: float,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """`cross_entropy` of arguments that are checked: twice a step for each layer, the checks would cost a tenth."""
    logits = scores if temperature == 1 else scores / temperature
    targets = labels.to(scores.dtype) if are_targets(scores, labels) else labels
    found = functional.cross_entropy(
        logits.flatten(0, -2),
        targets.flatten(0, scores.ndim - 2),
        None if class_weight is None else class_weight.to(scores.dtype),
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    found = found.view(scores.shape[:-1])
    v = label_weights(scores, labels, class_weight, sample_weight, ignore_index)
    return found if v is None else times(v, found)


def cross_entropy_gradient(
    scores: Array,
    labels: Array,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """e, v ((sum_k c_k t_k) softmax(s / T) - c t) / T, as the scores."""
    options = temperature, label_smoothing, class_weight, sample_weight, ignore_index
    _check_entropy(scores, labels, *options)
    return errors(scores, labels, *options)


def errors(
    scores: Array,
    labels: Array,
    temperature: float,
    label_smoothing: float,
    class_weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: int | None = None,
) -> Array:
    """`cross_entropy_gradient` of arguments that are checked.

    At the label, or the largest target, where softmax - 1 would cancel in low precision if a sample is confident and
    correct, it is minus the sum of the others: e sums to 0.
    """
    e = torch.softmax(scores if temperature == 1 else scores / temperature, dim=-1)
    ignored, targets, at = None, None, labels
    if are_targets(scores, labels):
        targets, at = labels.to(e.dtype), labels.argmax(dim=-1)
    elif ignore_index is not None:
        ignored = labels == ignore_index
        at = labels.masked_fill(ignored, 0)
    if targets is not None or label_smoothing or class_weight is not None:
        targets = hot(at, e.shape[-1], dtype=e.dtype) if targets is None else targets
        targets = smoothed(targets, label_smoothing)
        targets = targets if class_weight is None else class_weight.to(e.dtype) * targets
        e = targets.sum(dim=-1, keepdim=True) * e - targets
    at = at[..., None]
    others = e.scatter(-1, at, 0)
    e = others.scatter_(-1, at, -others.sum(dim=-1, keepdim=True))
    e = e if temperature == 1 else e / temperature
    v = label_weights(scores, labels, class_weight, sample_weight, ignore_index)
    if v is not None:
        return times(v, e)
    return e if ignored is None else e.masked_fill(ignored[..., None], 0)


def times(v: Array, found: Array) -> Array:
    """v times one number, or K, of each label; 0 where v is, whatever the scores are."""
    v = v if v.ndim == found.ndim else v[..., None]
    return (v.to(found.dtype) * found).masked_fill(v == 0, 0)


def _weighted(found: Array, sample_weight: Array | None, scores: Array) -> Array:
    """v times what is found of each label, where none is ignored."""
    check_weights("sample_weight", sample_weight, scores.shape[:-1])
    v = label_weights(scores, scores, None, sample_weight, None)
    return found if v is None else times(v, found)


def _difference(scores: Array, targets: Array) -> Array:
    """s - t, of labels, or of targets."""
    if are_targets(scores, targets) or (*targets.shape, 1) == scores.shape:
        return scores - _as_scores(scores, targets)
    check_scores(scores, targets)
    return scores - hot(targets, scores.shape[-1], dtype=scores.dtype)


def squared_error(scores: Array, labels: Array, sample_weight: Array | None = None) -> Array:
    """v_i l_i, v/2 sum_k (s_k - t_k)^2, shaped as labels; targets may stand in place of labels, as in its gradient."""
    return _weighted(0.5 * _difference(scores, labels).square().sum(dim=-1), sample_weight, scores)


def squared_error_gradient(scores: Array, labels: Array, sample_weight: Array | None = None) -> Array:
    """e, v (s - t), as the scores, to labels or to targets, the numbers of a regression."""
    return _weighted(_difference(scores, labels), sample_weight, scores)


def absolute_error(scores: Array, targets: Array, sample_weight: Array | None = None) -> Array:
    """v_i l_i, v sum_k |s_k - t_k|, shaped as labels."""
    return _weighted((scores - _as_scores(scores, targets)).abs().sum(dim=-1), sample_weight, scores)


def absolute_error_gradient(scores: Array, targets: Array, sample_weight: Array | None = None) -> Array:
    """e, v sign(s - t), as the scores: 0 at 0."""
    return _weighted((scores - _as_scores(scores, targets)).sign(), sample_weight, scores)


def huber(scores: Array, targets: Array, delta: float = 1.0, sample_weight: Array | None = None) -> Array:
    """v_i l_i, shaped as labels; l is sum_k u_k^2 / 2, of u = s - t, linear beyond delta."""
    check_positive("delta", delta)
    size = (scores - _as_scores(scores, targets)).abs()
    found = torch.where(size <= delta, size.square() / 2, delta * (size - delta / 2))
    return _weighted(found.sum(dim=-1), sample_weight, scores)


def huber_gradient(scores: Array, targets: Array, delta: float = 1.0, sample_weight: Array | None = None) -> Array:
    """e, v u cut to -delta..delta, as the scores."""
    check_positive("delta", delta)
    return _weighted((scores - _as_scores(scores, targets)).clamp(-delta, delta), sample_weight, scores)


def _binary(
    scores: Array, targets: Array, class_weight: Array | None, positive_weight: Array | None
) -> tuple[Array, Array]:
    """c q t and c (1 - t), as the scores."""
    t = _as_scores(scores, targets)
    check_weights("class_weight", class_weight, scores.shape[-1:])
    check_weights("positive_weight", positive_weight, scores.shape[-1:])
    present, absent = t if positive_weight is None else positive_weight.to(t.dtype) * t, 1 - t
    if class_weight is None:
        return present, absent
    return class_weight.to(t.dtype) * present, class_weight.to(t.dtype) * absent


def binary_cross_entropy(
    scores: Array,
    targets: Array,
    class_weight: Array | None = None,
    positive_weight: Array | None = None,
    sample_weight: Array | None = None,
) -> Array:
    """v_i l_i, v sum_k c_k (q_k t_k softplus(-s_k) + (1 - t_k) softplus(s_k)), in nats, shaped as labels."""
    present, absent = _binary(scores, targets, class_weight, positive_weight)
    found = -present * functional.logsigmoid(scores) - absent * functional.logsigmoid(-scores)
    return _weighted(found.sum(dim=-1), sample_weight, scores)


def binary_cross_entropy_gradient(
    scores: Array,
    targets: Array,
    class_weight: Array | None = None,
    positive_weight: Array | None = None,
    sample_weight: Array | None = None,
) -> Array:
    """e, v c ((1 - t) sigmoid(s) - q t sigmoid(-s)), as the scores: small errors do not cancel."""
    present, absent = _binary(scores, targets, class_weight, positive_weight)
    return _weighted(absent * torch.sigmoid(scores) - present * torch.sigmoid(-scores), sample_weight, scores)
