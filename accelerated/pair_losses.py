"""Losses of a layer on its goodness for a positive and a negative stream; see the reference.

softplus(u) is -logsigmoid(-u): one kernel, and exact where functional.softplus drops what lies below 2e-9.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch.nn.functional import logsigmoid

from ._arrays import Array, check_batch, check_finite, check_not_negative, check_positive, check_shape

__all__ = [
    "LayerCredit",
    "LayerGoodness",
    "LayerLoss",
    "collaboration",
    "smoothed_triplet",
    "symba",
    "threshold",
    "two_thresholds",
]


class LayerGoodness(NamedTuple):
    """What a layer's loss is computed from; see the reference's table."""

    layer: int
    depth: int
    scale: float
    positive: Array
    negative: Array
    prior_positive: Array
    prior_negative: Array


class LayerCredit(NamedTuple):
    """The loss of each sample, in nats, and its derivatives by the layer's own two goodnesses: (batch,) each."""

    loss: Array
    positive: Array
    negative: Array


LayerLoss: TypeAlias = Callable[[LayerGoodness], LayerCredit]
"""A loss of one layer."""


def check_layer(layer: LayerGoodness) -> None:
    """Raises ValueError unless all goodness is of the same samples: (batch,), at least one."""
    check_batch("positive", layer.positive, axes=0)
    for name in ("negative", "prior_positive", "prior_negative"):
        check_shape(name, getattr(layer, name), layer.positive.shape)


def _two_sided(positive: Array, negative: Array, theta_positive: float, theta_negative: float) -> LayerCredit:
    above, below = positive - theta_positive, theta_negative - negative
    return LayerCredit(-logsigmoid(above) - logsigmoid(below), -torch.sigmoid(-above), torch.sigmoid(-below))


# Functions of the module, not of functions, so that a loss can be pickled.
def _threshold(threshold: float, layer: LayerGoodness) -> LayerCredit:
    check_layer(layer)
    theta = threshold * layer.scale
    return _two_sided(layer.positive, layer.negative, theta, theta)


def threshold(threshold: float = 1.0) -> LayerLoss:
    """softplus(theta - g^+) + softplus(g^- - theta)."""
    check_finite("threshold", threshold)
    return partial(_threshold, threshold)


def _symba(alpha: float, layer: LayerGoodness) -> LayerCredit:
    check_layer(layer)
    u = alpha * (layer.negative - layer.positive)
    slope = alpha * torch.sigmoid(u)
    return LayerCredit(-logsigmoid(-u), -slope, slope)


def symba(alpha: float = 4.0) -> LayerLoss:
    """softplus(-alpha (g^+ - g^-))."""
    check_positive("alpha", alpha)
    return partial(_symba, alpha)


def _two_thresholds(positive: float, negative: float, penalty: float, layer: LayerGoodness) -> LayerCredit:
    check_layer(layer)
    credit = _two_sided(layer.positive, layer.negative, positive * layer.scale, negative * layer.scale)
    return credit._replace(
        loss=credit.loss + penalty * layer.positive.abs(),
        positive=credit.positive + penalty * layer.positive.sign(),
    )


def two_thresholds(positive: float, negative: float, penalty: float = 0.0) -> LayerLoss:
    """softplus(theta^+ - g^+) + softplus(g^- - theta^-) + penalty |g^+|; both thresholds are times the scale."""
    check_finite("positive", positive)
    check_finite("negative", negative)
    check_not_negative("penalty", penalty)
    return partial(_two_thresholds, positive, negative, penalty)


def _collaboration(threshold: float, layer: LayerGoodness) -> LayerCredit:
    check_layer(layer)
    theta = threshold * layer.scale
    return _two_sided(layer.positive + layer.prior_positive, layer.negative + layer.prior_negative, theta, theta)


def collaboration(threshold: float = 1.0) -> LayerLoss:
    """The threshold loss at the goodness of the layer and of those that count beside it."""
    check_finite("threshold", threshold)
    return partial(_collaboration, threshold)


def _smoothed_triplet(beta: float, margin: float, layer: LayerGoodness) -> LayerCredit:
    check_layer(layer)
    u = beta * (layer.negative - layer.positive + margin)
    slope = torch.sigmoid(u)
    return LayerCredit(-logsigmoid(-u) / beta, -slope, slope)


def smoothed_triplet(beta: float = 5.0, margin: float = 0.5) -> LayerLoss:
    """1/beta softplus(beta (g^- - g^+ + margin))."""
    check_positive("beta", beta)
    check_finite("margin", margin)
    return partial(_smoothed_triplet, beta, margin)
