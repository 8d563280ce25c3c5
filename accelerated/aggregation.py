"""One class score from those of all layers; see the reference.

Ranges that begin at the same layer are one cumulative sum. Differences of a single one would save additions, but no
comparisons, and would carry rounding errors of layers outside of the range.
"""

import torch

from ._arrays import Array, Labels, check_count, check_labels, check_numbers, check_shape, wide

__all__ = ["best_range", "last", "loss_weights", "range_hits", "range_total", "total", "weighted"]


def _check(scores: Array) -> None:
    if scores.ndim != 3 or not len(scores):
        raise ValueError(f"scores: shape {tuple(scores.shape)}, expected (layers, batch, K), at least one layer")


def last(scores: Array) -> Array:
    """Of the last layer: (batch, K)."""
    _check(scores)
    return scores[-1]


def total(scores: Array) -> Array:
    """Of all layers: (batch, K)."""
    _check(scores)
    return scores.sum(dim=0)


def range_total(scores: Array, first: int, last: int) -> Array:
    """Of the layers first to last, both included: (batch, K). Raises ValueError unless 0 <= first <= last < L."""
    _check(scores)
    if not 0 <= first <= last < len(scores):
        raise ValueError(f"first, last: {first}, {last}, expected 0 <= first <= last < {len(scores)} layers")
    check_count("first", first, 0)
    check_count("last", last, 0)
    return scores[first : last + 1].sum(dim=0)


def range_hits(scores: Array, labels: Labels) -> Array:
    """How many samples every range has right: (L, L) integers by first and last layer, 0 for last before first.

    Counts of parts of the data add up. The best of equal scores is the first.
    """
    _check(scores)
    check_labels(labels, scores.shape[2], scores.shape[1])
    check_numbers("scores", scores)
    hits = labels.new_zeros(len(scores), len(scores))
    for first in range(len(scores)):
        sums = scores[first:].cumsum(dim=0, dtype=wide(scores.dtype))
        hits[first, first:] = (sums.argmax(dim=2) == labels).sum(dim=1)
    return hits


def best_range(scores: Array, labels: Labels) -> tuple[int, int]:
    """The first and the last layer of the most accurate range. Waits for the device."""
    first, end = divmod(int(range_hits(scores, labels).argmax()), len(scores))  # the first of equals, row by row
    return first, end


def loss_weights(losses: Array) -> Array:
    """softmax(-losses): (L,)."""
    check_shape("losses", losses, (len(losses),))
    return (-losses).softmax(dim=0)


def weighted(scores: Array, weights: Array) -> Array:
    """The sum of all layers by their weights: (batch, K)."""
    _check(scores)
    check_shape("weights", weights, scores.shape[:1])
    return torch.einsum("l,lbk->bk", weights, scores)
