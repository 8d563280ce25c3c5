"""Losses of a layer on its own class scores.

With softplus(u) = log(1 + e^u), and s^- a sample's scores but for its label's:

    (1)  cross entropy:               that of `losses`, of s / T with smoothed labels
    (2)  positive versus negative:    1/2 softplus(theta - s_y) + 1/2 softplus(mean s^- - theta)
    (3)  mixed:                       share (1) + (1 - share) (2)

Ours, a reading of what is known of HFF (arXiv 2605.00082), whose text was not to be had:

    (a)  cosine margin:               (1) of S (s - delta onehot(y))
    (b)  smooth margin:               1/beta softplus(beta (delta + log sum exp s^- - s_y))

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| s | scores | (batch, K) | class scores of one layer |
| y | labels | (batch,) | integers 0..K-1 |
| theta | threshold | | what the label's score has to exceed, and the others' mean to stay below |
| S, delta | scale, margin | | factor of cosines, and by how much the label's has to be the best |

(2) and (3) are those of CwComp (arXiv 2312.12668), which calls them PvN and CWG; it adds 1e-9 to the exponentials and
clamps scores at 50, which (1) has no need of. Cosines differ by 2 at most: of them (1) stays above log(1 + (K - 1)
e^-2), which is what S is for, and (b) above 1/beta softplus(beta (delta + log(K - 1) - 2)). (b) at beta = 1 is (a) at
S = 1.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit, logsumexp, softmax

from . import losses
from ._arrays import Array, Labels, check_finite, check_positive, check_rate

__all__ = [
    "ScoreLoss",
    "ScoreLossCredit",
    "cosine_margin",
    "cross_entropy",
    "mixed",
    "positive_versus_negative",
    "smooth_margin",
]


class ScoreLossCredit(NamedTuple):
    """The loss of each sample, (batch,), in nats, and its derivative by the scores, (batch, K), not divided by B."""

    loss: Array
    scores: Array


ScoreLoss: TypeAlias = Callable[[Array, Labels], ScoreLossCredit]
"""A loss of one layer, of its scores and the labels. Raises ValueError where they do not fit."""


def cross_entropy(label_smoothing: float = 0.0, temperature: float = 1.0) -> ScoreLoss:
    """That of `losses`, equation (1), of (batch, K). Raises ValueError unless T > 0 and 0 <= label_smoothing < 1.

    >>> cross_entropy()(np.zeros((1, 2)), np.array([0])).scores.tolist()
    [[-0.5, 0.5]]
    """
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)

    def loss(scores: Array, labels: Labels) -> ScoreLossCredit:
        return ScoreLossCredit(
            losses.cross_entropy(scores, labels, temperature, label_smoothing),
            losses.cross_entropy_gradient(scores, labels, temperature, label_smoothing),
        )

    return loss


def _hot(scores: Array, labels: Labels) -> Array:
    """1 at the label, (batch, K). Raises ValueError for one class, which has no others."""
    losses.check_scores(scores, labels)
    if scores.shape[1] < 2:
        raise ValueError(f"scores: {scores.shape[1]} class, expected 2 or more")
    return losses.one_hot(labels, scores.shape[1]).astype(scores.dtype)


def positive_versus_negative(threshold: float = 2.0) -> ScoreLoss:
    """The label's score above theta, the mean of the others below, (2), of (batch, K).

    Raises ValueError unless theta is finite.

    >>> positive_versus_negative(2.0)(np.array([[2.0, 2.0, 2.0]]), np.array([0])).scores.tolist()  # 1/4 shared
    [[-0.25, 0.125, 0.125]]
    """
    check_finite("threshold", threshold)

    def loss(scores: Array, labels: Labels) -> ScoreLossCredit:
        hot = _hot(scores, labels)
        others = (1 - hot) / np.asarray(scores.shape[1] - 1, scores.dtype)  # the weights of a mean over them
        short = threshold - np.sum(hot * scores, axis=1)
        above = np.sum(others * scores, axis=1) - threshold
        slope = others * expit(above)[:, None] - hot * expit(short)[:, None]
        return ScoreLossCredit((np.logaddexp(0, short) + np.logaddexp(0, above)) / 2, slope / 2)

    return loss


def mixed(share: float = 0.28, threshold: float = 2.0) -> ScoreLoss:
    """share (1) + (1 - share) (2), equation (3), of (batch, K).

    Raises ValueError unless 0 <= share <= 1 and theta is finite.

    >>> mixed(share=0.5)(np.array([[2.0, 2.0]]), np.array([0])).scores.tolist()  # half of 1/2 and 1/4
    [[-0.375, 0.375]]
    """
    check_finite("threshold", threshold)
    if not 0 <= share <= 1:
        raise ValueError(f"share: {share}, expected 0..1")
    one, other = cross_entropy(), positive_versus_negative(threshold)

    def loss(scores: Array, labels: Labels) -> ScoreLossCredit:
        a, b = one(scores, labels), other(scores, labels)
        return ScoreLossCredit(
            share * a.loss + (1 - share) * b.loss,
            share * a.scores + (1 - share) * b.scores,
        )

    return loss


def cosine_margin(scale: float = 20.0, margin: float = 0.0) -> ScoreLoss:
    """(1) of S (s - delta onehot(y)), equation (a), of (batch, K). Raises ValueError unless S > 0 and delta is finite.

    >>> cosine_margin(20.0, margin=1.0)(np.array([[1.0, 0.0]]), np.array([0])).scores.tolist()  # 1 - 1 = 0
    [[-10.0, 10.0]]
    """
    check_finite("margin", margin)
    check_positive("scale", scale)
    scaled = cross_entropy(temperature=1 / scale)
    return lambda scores, labels: scaled(scores - margin * _hot(scores, labels), labels)


def smooth_margin(beta: float = 5.0, margin: float = 0.5) -> ScoreLoss:
    """The label's score delta above all others' log sum exp, (b), of (batch, K).

    Raises ValueError unless beta > 0 and delta is finite.

    >>> smooth_margin(margin=0.5)(np.array([[0.5, 0.0]]), np.array([0])).scores.tolist()
    [[-0.5, 0.5]]
    """
    check_finite("margin", margin)
    check_positive("beta", beta)

    def loss(scores: Array, labels: Labels) -> ScoreLossCredit:
        hot = _hot(scores, labels)
        rest = np.where(hot == 1, -np.inf, scores)
        u = beta * (margin + logsumexp(rest, axis=1) - np.sum(hot * scores, axis=1))
        slope = expit(u)[:, None] * (softmax(rest, axis=1) - hot)
        return ScoreLossCredit(np.logaddexp(0, u) / beta, slope)

    return loss
