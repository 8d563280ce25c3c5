"""Cumulative goodness: how it attenuates a layer's gradient, and remedies.

Yousefiramandi, "Cumulative-Goodness Free-Riding in Forward-Forward Networks: Real, Repairable, but Not
Accuracy-Dominant", arXiv 2605.06240. The equations are those of its public code; the numbers and the bounds
(3) are ours. With l(u) = softplus(-beta u), s(u) = sigmoid(-beta u), and all of P constant:

    (1)  loss of layer d:   l(M),   M = mu + gamma P;          its derivative by mu is -beta s(M)
    (2)  attenuation:       R = s(M) / s(mu) = (1 + e^(beta mu)) / (1 + e^(beta M))
    (3)  bounds:            min(1, e^(-beta gamma P)) <= R <= max(1, e^(-beta gamma P))
                            R <= 2 e^(-beta gamma P)   for mu >= 0 and P >= 0
                            beta s(M) <= beta min(1, e^(-beta M))
    (4)  free riding:       F = mean max(0, 1 - R); starved: share of R <= 0.01; covered: share of mu >= 0 and P >= 0
    (5)  separation:        mean (g^+ - g^-)

Remedies, in the place of (1):

    (6)  per block:         l(mu): gamma = 0, hence R = 1
    (7)  hardness-gated:    l(mu + gamma^+ P^+ - gamma^- P^-),   gamma^(+-) = gamma sigmoid(tau (kappa - P^(+-)))
    (8)  depth-scaled:      l(M) + weight (1 + growth d / (L - 1)) w l(mu),   w = s(P) / mean s(P), and 1 for d = 0
    (9)  compensated:       l(M) + lambda l(mu),   lambda = [c_d - s(M) / (s(mu) + eps)]_+ constant,
                            c_d = c (1 + rho d / (L - 1)); for d = 0, where M = mu, lambda = [c - 1]_+
    (10) squared hinge:     max(0, target - M)^2

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| d, L | layer, depth | | index of the layer, number of layers |
| mu | margin | (batch,) | g^+ - g^-, the layer's own |
| P | prior | (batch,) | P^+ - P^-, the margin of the layers before: the sum of theirs |
| M | cumulative margin | (batch,) | the argument of the loss |

Proof of (3): R is monotone in mu, from 1 for mu to -infinity to e^(-beta gamma P) for mu to infinity; 1 + e^t <= 2 e^t
for t >= 0, and 1 + e^t >= e^t; s(M) <= e^(-beta M). A layer thus learns next to nothing where the layers before it
separate the streams, and more where they err; the mean over a batch hides it.

(9), the paper's MGC, leaves -beta (c_d s(mu) + s(M) eps / (s(mu) + eps)) where the bracket is positive: the local
gradient for c = 1 and eps = 0, but up to twice that for the eps of 1e-6 where mu > 3.5 and P is small. At d = 0 the
published code has the limit without eps; so has this. It divides w by mean s(P) + 1e-6, which starves samples that the
layers below all separate; the mean of w is 1 here. It replaces softplus by (10) to show that free riding is not
softplus's alone; that is no remedy. Its (7) and (10) keep the second term of (8) beside them; here each stands alone.

beta = 4 is the paper's, for margins of about 1; gamma is 1 (cumulative), 0.7 (its default) or 0.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import expit, log_expit, log_softmax

from ._arrays import Array, check_finite, check_not_negative, check_positive, check_shape
from .pair_losses import LayerCredit, LayerGoodness, LayerLoss, check_layer, symba

__all__ = [
    "REMEDIES",
    "attenuation",
    "attenuation_bounds",
    "compensated",
    "coverage",
    "cumulative",
    "decay_bound",
    "depth_scaled_auxiliary",
    "free_riding_fraction",
    "gate_gradient",
    "gradient_bound",
    "hardness_gated",
    "layer_separation",
    "log_attenuation",
    "per_block",
    "squared_hinge",
    "starved_fraction",
]


def _check_pair(margin: Array, prior: Array) -> None:
    check_shape("margin", margin, (len(margin),))
    check_shape("prior", prior, margin.shape)


def log_attenuation(margin: Array, prior: Array, beta: float, gamma: float) -> Array:
    """log R of (2): (batch,), finite where R leaves the range of numbers. Raises ValueError unless beta > 0.

    >>> np.round(log_attenuation(np.zeros(1), np.array([1000.0]), 1.0, 1.0), 3).tolist()  # -1000 + log 2: R itself is 0
    [-999.307]
    """
    _check_pair(margin, prior)
    check_positive("beta", beta)
    check_finite("gamma", gamma)
    return log_expit(-beta * (margin + gamma * prior)) - log_expit(-beta * margin)


def attenuation(margin: Array, prior: Array, beta: float, gamma: float) -> Array:
    """R of equation (2): (batch,); infinite above the largest number. Raises ValueError as `log_attenuation` does.

    >>> np.round(attenuation(np.zeros(2), np.log(np.array([1.0, 3.0])), 1.0, 1.0), 6).tolist()  # (1 + 1) / (1 + 3)
    [1.0, 0.5]
    """
    with np.errstate(over="ignore"):
        return np.exp(log_attenuation(margin, prior, beta, gamma))


def attenuation_bounds(prior: Array, beta: float, gamma: float) -> tuple[Array, Array]:
    """What R is between for this prior, for any margin, (3): (batch,) each. Raises ValueError unless beta > 0.

    >>> prior = np.log(np.array([2.0, 0.5]))  # the layers before are right, or err
    >>> [np.round(bound, 6).tolist() for bound in attenuation_bounds(prior, 1.0, 1.0)]
    [[0.5, 1.0], [1.0, 2.0]]
    """
    check_positive("beta", beta)
    check_finite("gamma", gamma)
    with np.errstate(over="ignore"):
        limit = np.exp(-beta * gamma * prior)
    return np.minimum(1, limit), np.maximum(1, limit)


def decay_bound(prior: Array, beta: float, gamma: float) -> Array:
    """What R is at most for margins and priors of 0 or more, (3): (batch,). Raises ValueError unless beta > 0.

    >>> decay_bound(np.zeros(1), 1.0, 1.0).tolist()  # R is 1 here
    [2.0]
    """
    check_positive("beta", beta)
    check_finite("gamma", gamma)
    return 2 * np.exp(-beta * gamma * np.maximum(prior, 0))


def gradient_bound(cumulative_margin: Array, beta: float) -> Array:
    """What the derivative of (1) is at most in magnitude, (3): shaped as the cumulative_margin, (batch,).

    Raises ValueError unless beta > 0.

    >>> gradient_bound(np.array([-1.0, 0.0]), 4.0).tolist()
    [4.0, 4.0]
    """
    check_positive("beta", beta)
    return beta * np.exp(-beta * np.maximum(cumulative_margin, 0))


def free_riding_fraction(attenuation: Array) -> tuple[Array, Array]:
    """F of equation (4), and half its 95 % confidence interval, scalar arrays, of the attenuation R, (batch,).

    Raises ValueError for less than 2 samples.

    >>> [round(float(found), 3) for found in free_riding_fraction(np.array([0.0, 3.0]))]  # R > 1 counts as 1
    [0.5, 0.98]
    """
    if len(attenuation) < 2:
        raise ValueError(f"attenuation: {len(attenuation)} samples, expected 2 or more")
    lost = 1 - np.minimum(1, attenuation)
    return lost.mean(), 1.96 * np.std(lost, ddof=1) / np.sqrt(lost.dtype.type(len(lost)))


def starved_fraction(attenuation: Array, limit: float = 1e-2) -> Array:
    """Share of samples whose attenuation R, (batch,), is at most the limit, equation (4): a scalar array.

    Raises ValueError for a limit below 0.

    >>> float(starved_fraction(np.array([0.01, 0.5])))
    0.5
    """
    check_not_negative("limit", limit)
    return (attenuation <= limit).astype(attenuation.dtype).mean()


def coverage(margin: Array, prior: Array) -> Array:
    """Share of samples to which the decay bound applies, (4): a scalar array.

    Raises ValueError unless both arguments are (batch,).

    >>> float(coverage(np.array([0.0, -1.0]), np.array([0.0, 1.0])))
    0.5
    """
    _check_pair(margin, prior)
    return ((margin >= 0) & (prior >= 0)).astype(margin.dtype).mean()


def layer_separation(positive: Array, negative: Array) -> Array:
    """Mean margin of a layer's own goodness, positive and negative, (batch,) each, equation (5): a scalar array.

    Raises ValueError unless both have one shape.

    >>> float(layer_separation(np.array([2.0, 5.0]), np.array([1.0, 0.0])))
    3.0
    """
    check_shape("negative", negative, positive.shape)
    return (positive - negative).mean()


def _margins(layer: LayerGoodness) -> tuple[Array, Array]:
    check_layer(layer)
    return layer.positive - layer.negative, layer.prior_positive - layer.prior_negative


def _ranked(margin: Array, beta: float) -> LayerCredit:
    """l of a margin that rises by 1 with g^+ and falls by 1 with g^-."""
    slope = beta * expit(-beta * margin)
    return LayerCredit(np.logaddexp(0, -beta * margin), -slope, slope)


def _plus(first: LayerCredit, weight: Array | float, second: LayerCredit) -> LayerCredit:
    """The sum of two losses; the weight of the second is a constant to the derivatives."""
    return LayerCredit(*(a + weight * b for a, b in zip(first, second, strict=True)))


def cumulative(gamma: float = 1.0, beta: float = 4.0) -> LayerLoss:
    """l(mu + gamma P), equation (1): a loss of (batch,). Raises ValueError unless gamma is finite and beta > 0.

    >>> layer = LayerGoodness(1, 2, 1.0, np.array([0.0]), np.array([1.0]), np.array([1.0]), np.array([0.0]))
    >>> cumulative()(layer).positive.tolist()  # mu = -1 and P = 1: the gradient of a margin of 0
    [-2.0]
    """
    check_finite("gamma", gamma)
    check_positive("beta", beta)

    def loss(layer: LayerGoodness) -> LayerCredit:
        margin, prior = _margins(layer)
        return _ranked(margin + gamma * prior, beta)

    return loss


def per_block(beta: float = 4.0) -> LayerLoss:
    """l(mu), the layer's own margin alone, equation (6): SymBa with alpha = beta, of (batch,).

    Raises ValueError unless beta > 0.

    >>> layer = LayerGoodness(1, 2, 1.0, np.zeros(1), np.zeros(1), np.array([9.0]), np.zeros(1))
    >>> per_block()(layer).positive.tolist()  # P = 9 does not count
    [-2.0]
    """
    return symba(beta)


def _gate(prior: Array, tau: float | Array, kappa: float | Array) -> Array:
    return expit(tau * (kappa - prior))


def hardness_gated(
    gamma: float = 0.7, tau: float | Array = 1.0, kappa: float | Array = 0.0, beta: float = 4.0
) -> LayerLoss:
    """l with P gated, (7): kept where the layers before find a sample hard; a loss of (batch,).

    tau and kappa are numbers or scalar arrays. Raises ValueError unless beta > 0.

    >>> layer = LayerGoodness(1, 2, 1.0, np.array([-1.0]), np.zeros(1), np.array([2.0]), np.zeros(1))
    >>> hardness_gated(gamma=1.0, tau=0.0)(layer).positive.tolist()  # half of P = 2 makes up for mu = -1
    [-2.0]
    """
    for name, value in (("gamma", gamma), ("tau", tau), ("kappa", kappa)):
        check_finite(name, value)
    check_positive("beta", beta)

    def loss(layer: LayerGoodness) -> LayerCredit:
        check_layer(layer)
        positive = layer.positive + gamma * _gate(layer.prior_positive, tau, kappa) * layer.prior_positive
        negative = layer.negative + gamma * _gate(layer.prior_negative, tau, kappa) * layer.prior_negative
        return _ranked(positive - negative, beta)

    return loss


def gate_gradient(
    layer: LayerGoodness, raw_tau: Array, kappa: Array, gamma: float = 0.7, beta: float = 4.0
) -> tuple[Array, Array]:
    """Derivatives of (7) by raw_tau and kappa, scalar arrays, both learnt, tau = softplus(raw_tau): (batch,) each.

    Raises ValueError unless beta > 0.

    >>> layer = LayerGoodness(1, 2, 1.0, np.array([-0.5]), np.zeros(1), np.ones(1), np.zeros(1))
    >>> _, by_kappa = gate_gradient(layer, np.array(0.0), np.array(1.0), gamma=1.0)
    >>> np.round(by_kappa, 3).tolist()  # -2 by the margin of 0, half times half by the gate, tau = log 2
    [-0.347]
    """
    check_finite("gamma", gamma)
    check_positive("beta", beta)
    tau = np.logaddexp(0, raw_tau)
    by_margin = hardness_gated(gamma, tau, kappa, beta)(layer).positive
    by_tau, by_kappa = np.zeros_like(by_margin), np.zeros_like(by_margin)
    for sign, prior in ((1, layer.prior_positive), (-1, layer.prior_negative)):
        slope = sign * gamma * prior * _gate(prior, tau, kappa) * _gate(prior, -tau, kappa)
        by_tau = by_tau + slope * (kappa - prior)
        by_kappa = by_kappa + slope * tau
    return by_margin * by_tau * expit(raw_tau), by_margin * by_kappa


def _grown(base: float, growth: float, layer: LayerGoodness) -> float:
    return base * (1 + growth * layer.layer / max(layer.depth - 1, 1))


def depth_scaled_auxiliary(
    gamma: float = 0.7, beta: float = 4.0, weight: float = 0.25, growth: float = 3.0
) -> LayerLoss:
    """l(M) and a weighted l(mu) on what the layers before leave over, (8): a loss of (batch,).

    Raises ValueError unless beta > 0.

    >>> both = [LayerGoodness(layer, 2, 1.0, *[np.zeros(1)] * 4) for layer in (0, 1)]
    >>> [depth_scaled_auxiliary()(layer).positive.tolist() for layer in both]  # the weight grows from 1/4 to 1
    [[-2.5], [-4.0]]
    """
    for name, value in (("gamma", gamma), ("weight", weight), ("growth", growth)):
        check_finite(name, value)
    check_positive("beta", beta)

    def loss(layer: LayerGoodness) -> LayerCredit:
        margin, prior = _margins(layer)
        residual = len(prior) * np.exp(log_softmax(log_expit(-beta * prior)))  # s(P) / mean s(P), of any size
        scale = _grown(weight, growth, layer) * (residual if layer.layer else 1)
        return _plus(_ranked(margin + gamma * prior, beta), scale, _ranked(margin, beta))

    return loss


def compensated(
    gamma: float = 0.7, beta: float = 4.0, c: float = 1.0, rho: float = 0.0, eps: float = 1e-6
) -> LayerLoss:
    """l(M) and lambda l(mu), what its gradient lacks, (9): a loss of (batch,).

    Raises ValueError unless beta > 0, c > 0 and eps >= 0.

    >>> layer = LayerGoodness(1, 2, 1.0, np.zeros(1), np.zeros(1), np.array([1000.0]), np.zeros(1))
    >>> compensated()(layer).positive.tolist()  # as if there were no layers before
    [-2.0]
    """
    for name, value in (("gamma", gamma), ("rho", rho)):
        check_finite(name, value)
    check_positive("beta", beta)
    check_positive("c", c)
    check_not_negative("eps", eps)

    def loss(layer: LayerGoodness) -> LayerCredit:
        margin, prior = _margins(layer)
        target = _grown(c, rho, layer)
        log_own = log_expit(-beta * margin)
        floor = np.full_like(margin, math.log(eps) if eps and layer.layer else -math.inf)
        log_ratio = log_expit(-beta * (margin + gamma * prior)) - np.logaddexp(log_own, floor)
        missing = -target * np.expm1(np.minimum(log_ratio - math.log(target), 0))  # target - ratio, not below 0
        return _plus(_ranked(margin + gamma * prior, beta), missing, _ranked(margin, beta))

    return loss


def squared_hinge(target: float = 2.0, gamma: float = 0.7) -> LayerLoss:
    """max(0, target - M)^2 of each sample, equation (10): a loss of (batch,).

    Raises ValueError unless both numbers are finite.

    >>> layer = LayerGoodness(0, 1, 1.0, np.array([1.0, 5.0]), np.zeros(2), np.zeros(2), np.zeros(2))
    >>> squared_hinge(target=2.0)(layer).loss.tolist()
    [1.0, 0.0]
    """
    check_finite("target", target)
    check_finite("gamma", gamma)

    def loss(layer: LayerGoodness) -> LayerCredit:
        margin, prior = _margins(layer)
        short = np.maximum(target - (margin + gamma * prior), 0)
        return LayerCredit(short**2, -2 * short, 2 * short)

    return loss


REMEDIES: dict[str, Callable[..., LayerLoss]] = {
    "cumulative": cumulative,
    "per-block": per_block,
    "hardness-gated": hardness_gated,
    "depth-scaled": depth_scaled_auxiliary,
    "compensated": compensated,
    "squared-hinge": squared_hinge,
}
"""The cumulative loss and what may take its place, by the names that the rule takes."""
