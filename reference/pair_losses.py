"""Losses of a layer on its goodness for a positive and a negative stream.

With softplus(u) = log(1 + e^u), and theta a threshold times the layer's scale:

    (1)  threshold:         softplus(theta - g^+) + softplus(g^- - theta)
    (2)  SymBa:             softplus(-alpha (g^+ - g^-))
    (3)  two thresholds:    softplus(theta^+ - g^+) + softplus(g^- - theta^-) + lambda |g^+|
    (4)  collaboration:     (1) with g^+ + P^+ and g^- + P^- for g^+ and g^-

Ours.

    (a)  smoothed triplet:  1/beta softplus(beta (g^- - g^+ + margin))

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| | layer, depth | | index of the layer, from 0, and number of layers |
| | scale | | what the layer's units amount to at activity 1: `Goodness.scale` of their number |
| g^+, g^- | positive, negative | (batch,) | the layer's own goodness for paired samples |
| P^+, P^- | prior_positive, prior_negative | (batch,) | the sum of the goodness of other layers that counts |

The sums P are constants: zeros, those of the layers before, or those of all others, as the rule has it. Only (4) and
the losses of `cumulative_goodness` ask for them.

(1) is Hinton's (arXiv 2212.13345). (2) is SymBa (arXiv 2303.08418), alpha = 4 for a mean of squares. Its two
derivatives are opposite; those of (1) are independent. (3) is SCFF (arXiv 2409.11593), whose theta^+ is 0, 5, 6 and
theta^- 1, 9, 10 in layers 1 to 3; there lambda weighs a norm of g^+, which is taken of every sample alone here.
(4) is layer collaboration (arXiv 2305.12393). Its theta counts the scale of one layer: multiply the threshold by the
number of layers that are added up. (a) is named, without the margin, by a public comparison of losses on MNIST, beside
max(0, g^- - g^+ + 0.5), its limit for a large beta; what that comparison runs is (2) with alpha = 5.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit

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
    """What a layer's loss is computed from; see the module's table."""

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
"""A loss of one layer. Raises ValueError unless all goodness is of the same samples, (batch,)."""


def check_layer(layer: LayerGoodness) -> None:
    """Raises ValueError unless all goodness is of the same samples: (batch,), at least one."""
    check_batch("positive", layer.positive, axes=0)
    for name in ("negative", "prior_positive", "prior_negative"):
        check_shape(name, getattr(layer, name), layer.positive.shape)


def _two_sided(positive: Array, negative: Array, theta_positive: float, theta_negative: float) -> LayerCredit:
    return LayerCredit(
        np.logaddexp(0, theta_positive - positive) + np.logaddexp(0, negative - theta_negative),
        -expit(theta_positive - positive),
        expit(negative - theta_negative),
    )


def threshold(threshold: float = 1.0) -> LayerLoss:
    """softplus(theta - g^+) + softplus(g^- - theta), equation (1): a loss of (batch,).

    Raises ValueError unless the threshold is finite.

    >>> layer = LayerGoodness(0, 1, 2.0, np.array([2.0]), np.array([2.0]), np.zeros(1), np.zeros(1))
    >>> [round(found.item(), 3) for found in threshold()(layer)]  # theta = 1 * 2: log 2 + log 2, slopes 1/2
    [1.386, -0.5, 0.5]
    """
    check_finite("threshold", threshold)

    def loss(layer: LayerGoodness) -> LayerCredit:
        check_layer(layer)
        theta = threshold * layer.scale
        return _two_sided(layer.positive, layer.negative, theta, theta)

    return loss


def symba(alpha: float = 4.0) -> LayerLoss:
    """softplus(-alpha (g^+ - g^-)), equation (2): a loss of (batch,). Raises ValueError unless alpha > 0.

    >>> layer = LayerGoodness(0, 1, 1.0, np.array([9.0]), np.array([9.0]), np.zeros(1), np.zeros(1))
    >>> [round(found.item(), 3) for found in symba(4.0)(layer)]  # the difference alone counts
    [0.693, -2.0, 2.0]
    """
    check_positive("alpha", alpha)

    def loss(layer: LayerGoodness) -> LayerCredit:
        check_layer(layer)
        u = alpha * (layer.negative - layer.positive)
        return LayerCredit(np.logaddexp(0, u), -alpha * expit(u), alpha * expit(u))

    return loss


def two_thresholds(positive: float, negative: float, penalty: float = 0.0) -> LayerLoss:
    """A threshold a stream, both times the scale; lambda = penalty, (3): a loss of (batch,).

    Raises ValueError for a penalty below 0.

    >>> layer = LayerGoodness(0, 1, 1.0, np.array([0.0]), np.array([1.0]), np.zeros(1), np.zeros(1))
    >>> [round(found.item(), 3) for found in two_thresholds(0.0, 1.0, penalty=9.0)(layer)]  # |g^+| has slope 0 at 0
    [1.386, -0.5, 0.5]
    """
    check_finite("positive", positive)
    check_finite("negative", negative)
    check_not_negative("penalty", penalty)

    def loss(layer: LayerGoodness) -> LayerCredit:
        check_layer(layer)
        credit = _two_sided(layer.positive, layer.negative, positive * layer.scale, negative * layer.scale)
        return credit._replace(
            loss=credit.loss + penalty * np.abs(layer.positive),
            positive=credit.positive + penalty * np.sign(layer.positive),
        )

    return loss


def collaboration(threshold: float = 1.0) -> LayerLoss:
    """The threshold loss of the layer's goodness and that of others, equation (4): a loss of (batch,).

    Raises ValueError unless the threshold is finite.

    >>> layer = LayerGoodness(1, 2, 2.0, np.array([0.0]), np.array([1.0]), np.array([2.0]), np.array([1.0]))
    >>> [round(found.item(), 3) for found in collaboration()(layer)]  # theta = 2 = 0 + 2 = 1 + 1
    [1.386, -0.5, 0.5]
    """
    check_finite("threshold", threshold)

    def loss(layer: LayerGoodness) -> LayerCredit:
        check_layer(layer)
        theta = threshold * layer.scale
        return _two_sided(layer.positive + layer.prior_positive, layer.negative + layer.prior_negative, theta, theta)

    return loss


def smoothed_triplet(beta: float = 5.0, margin: float = 0.5) -> LayerLoss:
    """1/beta softplus(beta (g^- - g^+ + margin)), equation (a): a loss of (batch,). Raises ValueError unless beta > 0.

    >>> layer = LayerGoodness(0, 1, 1.0, np.array([0.5]), np.array([0.0]), np.zeros(1), np.zeros(1))
    >>> [round(found.item(), 3) for found in smoothed_triplet(margin=0.5)(layer)]  # 1/5 log 2
    [0.139, -0.5, 0.5]
    """
    check_positive("beta", beta)
    check_finite("margin", margin)

    def loss(layer: LayerGoodness) -> LayerCredit:
        check_layer(layer)
        u = beta * (layer.negative - layer.positive + margin)
        return LayerCredit(np.logaddexp(0, u) / beta, -expit(u), expit(u))

    return loss
