"""One class score from those of all layers.

    (1)  last:     s_(L-1)
    (2)  total:    sum_l s_l
    (3)  range:    sum_(l = first..last) s_l;  the range with the highest accuracy on held-out data
    (4)  weights:  sum_l w_l s_l,  w = softmax(-loss)

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| s | scores | (L, batch, K) | class scores of all layers, of one pass |
| | losses | (L,) | mean loss of each layer, in nats |
| w | weights | (L,) | of the layers, sum 1 |

(2) is the logit sum of DTG-FF (arXiv 2606.06539), (3) the layer selection of DeeperForward (Sun et al., ICLR 2025), (4)
the layer contribution of CAW-Conv (arXiv 2606.09928), of losses on held-out data in its text, on training data in its
code. Of two equally accurate ranges (3) takes the one with the earlier first layer, and then the shorter one.
For a linear read-out of all layers' activities see `local_classifiers`.
"""

import numpy as np
from scipy.special import softmax

from ._arrays import Array, Labels, check_count, check_labels, check_numbers, check_shape

__all__ = ["best_range", "last", "loss_weights", "range_hits", "range_total", "total", "weighted"]


def _check(scores: Array) -> None:
    if scores.ndim != 3 or not len(scores):
        raise ValueError(f"scores: shape {tuple(scores.shape)}, expected (layers, batch, K), at least one layer")


def last(scores: Array) -> Array:
    """s_(L-1), equation (1): (batch, K). Raises ValueError, as all here, unless scores are (L, batch, K) with L > 0.

    >>> last(np.array([[[1.0, 2.0]], [[5.0, 3.0]]])).tolist()
    [[5.0, 3.0]]
    """
    _check(scores)
    return scores[-1]


def total(scores: Array) -> Array:
    """sum_l s_l, equation (2): (batch, K).

    Raises ValueError unless scores are (layers, batch, K).

    >>> total(np.array([[[1.0, 2.0]], [[5.0, 3.0]]])).tolist()
    [[6.0, 5.0]]
    """
    _check(scores)
    return scores.sum(axis=0)


def range_total(scores: Array, first: int, last: int) -> Array:
    """sum of s_first..s_last, equation (3): (batch, K). Raises ValueError unless 0 <= first <= last < L.

    >>> range_total(np.array([[[1.0, 2.0]], [[5.0, 3.0]], [[7.0, 7.0]]]), 0, 1).tolist()  # the last layer is in it
    [[6.0, 5.0]]
    """
    _check(scores)
    if not 0 <= first <= last < len(scores):
        raise ValueError(f"first, last: {first}, {last}, expected 0 <= first <= last < {len(scores)} layers")
    check_count("first", first, 0)
    check_count("last", last, 0)
    return scores[first : last + 1].sum(axis=0)


def range_hits(scores: Array, labels: Labels) -> Array:
    """How many samples every range has right: (L, L) integers by first and last layer, 0 for last before first.

    Counts of parts of the data add up. The best of equal scores is the first. Raises ValueError for labels that do not
    fit and for NaN.

    >>> scores = np.array([[[2.0, 2.0]], [[0.0, 1.0]]])  # layer 0 ties, and class 0 is taken; layer 1 says class 1
    >>> range_hits(scores, np.array([0])).tolist()
    [[1, 0], [0, 0]]
    """
    _check(scores)
    check_labels(labels, scores.shape[2], scores.shape[1])
    check_numbers("scores", scores)
    depth = len(scores)
    hits = np.zeros((depth, depth), np.int64)
    for first in range(depth):
        for end in range(first, depth):
            hits[first, end] = np.sum(range_total(scores, first, end).argmax(axis=1) == labels)
    return hits


def best_range(scores: Array, labels: Labels) -> tuple[int, int]:
    """The first and last layer of (3), two integers, from scores (L, batch, K) and labels (batch,).

    See the module's docstring for ties. Raises ValueError as `range_hits` does.

    >>> best_range(np.array([[[0.0, 1.0]], [[0.0, 1.0]]]), np.array([1]))  # all ranges are right: early and short
    (0, 0)
    """
    found = range_hits(scores, labels)
    first, end = np.unravel_index(found.argmax(), found.shape)  # the first of equals, row by row
    return int(first), int(end)


def loss_weights(losses: Array) -> Array:
    """w = softmax(-loss) of equation (4): (L,). Raises ValueError unless losses are (L,).

    >>> np.round(loss_weights(np.log(np.array([1.0, 3.0]))), 6).tolist()  # e^(-log 3) is a third
    [0.75, 0.25]
    """
    check_shape("losses", losses, (len(losses),))
    return softmax(-losses)


def weighted(scores: Array, weights: Array) -> Array:
    """sum_l w_l s_l, equation (4): (batch, K). Raises ValueError unless weights are (L,).

    >>> weighted(np.array([[[1.0, 2.0]], [[5.0, 3.0]]]), np.array([0.75, 0.25])).tolist()
    [[2.0, 2.25]]
    """
    _check(scores)
    check_shape("weights", weights, scores.shape[:1])
    return np.einsum("l,lbk->bk", weights, scores)
