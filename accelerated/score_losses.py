"""Losses of a layer on its own class scores; see the reference.

Half precision is computed in float32 where exponentials are summed: scores are small, (batch, K).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch.nn.functional import logsigmoid

from . import losses
from ._arrays import Array, Labels, check_finite, check_positive, check_rate, widened

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
"""A loss of one layer, of its scores and the labels."""


# Functions of the module, not of functions, so that a loss can be pickled.
def _cross_entropy(label_smoothing: float, temperature: float, scores: Array, labels: Labels) -> ScoreLossCredit:
    losses.check_scores(scores, labels)
    return ScoreLossCredit(
        losses.entropies(scores, labels, temperature, label_smoothing),
        losses.errors(scores, labels, temperature, label_smoothing),
    )


def cross_entropy(label_smoothing: float = 0.0, temperature: float = 1.0) -> ScoreLoss:
    """That of s / T with smoothed labels. Raises ValueError unless T > 0 and 0 <= label_smoothing < 1."""
    check_positive("temperature", temperature)
    check_rate("label_smoothing", label_smoothing)
    return partial(_cross_entropy, label_smoothing, temperature)


def _column(scores: Array, labels: Labels) -> Labels:
    """The labels as indices of scores: (batch, 1). Raises ValueError for one class, which has no others."""
    losses.check_scores(scores, labels)
    if scores.shape[1] < 2:
        raise ValueError(f"scores: {scores.shape[1]} class, expected 2 or more")
    return labels[:, None]


def _positive_versus_negative(threshold: float, scores: Array, labels: Labels) -> ScoreLossCredit:
    label, wide = _column(scores, labels), widened(scores)
    # The sum without the label's score, not one less it: the two may be far apart.
    above = threshold - wide.scatter(1, label, 0).sum(dim=1, keepdim=True) / (scores.shape[1] - 1)
    over = wide.gather(1, label) - threshold
    slope = (torch.sigmoid(-above) / (2 * (scores.shape[1] - 1))).expand_as(scores)
    slope = slope.scatter(1, label, torch.sigmoid(-over) / -2)
    loss = (logsigmoid(above) + logsigmoid(over)).squeeze(1) / -2
    return ScoreLossCredit(loss.to(scores.dtype), slope.to(scores.dtype))


def positive_versus_negative(threshold: float = 2.0) -> ScoreLoss:
    """1/2 softplus(theta - s_y) + 1/2 softplus(mean of the others - theta)."""
    check_finite("threshold", threshold)
    return partial(_positive_versus_negative, threshold)


def _mixed(share: float, threshold: float, scores: Array, labels: Labels) -> ScoreLossCredit:
    a, b = _cross_entropy(0.0, 1.0, scores, labels), _positive_versus_negative(threshold, scores, labels)
    return ScoreLossCredit(
        share * a.loss + (1 - share) * b.loss,
        share * a.scores + (1 - share) * b.scores,
    )


def mixed(share: float = 0.28, threshold: float = 2.0) -> ScoreLoss:
    """share times cross entropy, 1 - share times positive versus negative."""
    check_finite("threshold", threshold)
    if not 0 <= share <= 1:
        raise ValueError(f"share: {share}, expected 0..1")
    return partial(_mixed, share, threshold)


def _margin(scale: float, beta: float, margin: float, scores: Array, labels: Labels) -> ScoreLossCredit:
    """1/beta softplus(beta u), u = log sum exp of S s^- - S (s_y - delta), which keeps the digits of a small loss."""
    label, wide = _column(scores, labels), scale * widened(scores)
    rest = wide.scatter(1, label, -torch.inf)
    u = beta * (rest.logsumexp(dim=1, keepdim=True) - wide.gather(1, label) + scale * margin)
    weight = scale * torch.sigmoid(u)
    slope = (weight * rest.softmax(dim=1)).scatter(1, label, -weight)
    return ScoreLossCredit((logsigmoid(-u).squeeze(1) / -beta).to(scores.dtype), slope.to(scores.dtype))


def cosine_margin(scale: float = 20.0, margin: float = 0.0) -> ScoreLoss:
    """Cross entropy of S (s - delta onehot(y)). Raises ValueError unless S > 0."""
    check_finite("margin", margin)
    check_positive("scale", scale)
    return partial(_margin, scale, 1.0, margin)


def smooth_margin(beta: float = 5.0, margin: float = 0.5) -> ScoreLoss:
    """1/beta softplus(beta (delta + log sum exp of the others - s_y)). Raises ValueError unless beta > 0."""
    check_finite("margin", margin)
    check_positive("beta", beta)
    return partial(_margin, 1.0, beta, margin)
