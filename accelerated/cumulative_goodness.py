"""Cumulative goodness: how it attenuates a layer's gradient, and remedies; see the reference.

log R is computed without subtracting two nearly equal numbers: it keeps its digits for small priors and large margins.
Nothing waits for the device: tau and kappa may be tensors.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import logsigmoid

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
    """log R: (batch,). Finite, where R itself leaves the range of numbers."""
    _check_pair(margin, prior)
    check_positive("beta", beta)
    check_finite("gamma", gamma)
    return _log_ratio(beta * margin, beta * gamma * prior)


def _log_ratio(x: Array, d: Array) -> Array:
    """softplus(x) - softplus(x + d): -log(1 + sigmoid(x) (e^d - 1)) for small d.

    For large d the difference of max(0, .), and that of what softplus adds to it.
    """
    near = -(torch.sigmoid(x) * torch.expm1(d.clamp(-1, 1))).log1p()
    whole = torch.where(x > 0, torch.minimum(-d, x), -(x + d).clamp(min=0))
    far = whole + ((-x.abs()).exp().log1p() - (-(x + d).abs()).exp().log1p())
    return torch.where(d.abs() <= 1, near, far)


def attenuation(margin: Array, prior: Array, beta: float, gamma: float) -> Array:
    """R, what is left of a layer's gradient behind those before it: (batch,); infinite above the largest number."""
    return log_attenuation(margin, prior, beta, gamma).exp()


def attenuation_bounds(prior: Array, beta: float, gamma: float) -> tuple[Array, Array]:
    """What R is between for this prior, whatever the margin: (batch,) each."""
    check_positive("beta", beta)
    check_finite("gamma", gamma)
    limit = (-beta * gamma * prior).exp()
    return limit.clamp(max=1), limit.clamp(min=1)


def decay_bound(prior: Array, beta: float, gamma: float) -> Array:
    """What R is at most where neither the margin nor the prior is negative: (batch,)."""
    check_positive("beta", beta)
    check_finite("gamma", gamma)
    return 2 * (-beta * gamma * prior.clamp(min=0)).exp()


def gradient_bound(cumulative_margin: Array, beta: float) -> Array:
    """What the derivative of the cumulative loss is at most in magnitude: (batch,)."""
    check_positive("beta", beta)
    return beta * (-beta * cumulative_margin.clamp(min=0)).exp()


def free_riding_fraction(attenuation: Array) -> tuple[Array, Array]:
    """Mean of max(0, 1 - R), and half its 95 % confidence interval. Raises ValueError for less than 2 samples."""
    if len(attenuation) < 2:
        raise ValueError(f"attenuation: {len(attenuation)} samples, expected 2 or more")
    lost = 1 - attenuation.clamp(max=1)
    return lost.mean(), lost.std() * (1.96 / math.sqrt(len(lost)))


def starved_fraction(attenuation: Array, limit: float = 1e-2) -> Array:
    """Share of samples whose R is at most the limit."""
    check_not_negative("limit", limit)
    return (attenuation <= limit).to(attenuation.dtype).mean()


def coverage(margin: Array, prior: Array) -> Array:
    """Share of samples to which the decay bound applies."""
    _check_pair(margin, prior)
    return ((margin >= 0) & (prior >= 0)).to(margin.dtype).mean()


def layer_separation(positive: Array, negative: Array) -> Array:
    """Mean margin of a layer's own goodness."""
    check_shape("negative", negative, positive.shape)
    return (positive - negative).mean()


def _margins(layer: LayerGoodness) -> tuple[Array, Array]:
    check_layer(layer)
    return layer.positive - layer.negative, layer.prior_positive - layer.prior_negative


def _ranked(margin: Array, beta: float) -> LayerCredit:
    u = beta * margin
    slope = beta * torch.sigmoid(-u)
    return LayerCredit(-logsigmoid(u), -slope, slope)


def _plus(first: LayerCredit, weight: Array | float, second: LayerCredit) -> LayerCredit:
    # The weight is a constant to autograd too, where a rule's objective is differentiated.
    return LayerCredit(*(a + weight * b for a, b in zip(first, second, strict=True)))


# Functions of the module, not of functions, so that a loss can be pickled.
def _cumulative(gamma: float, beta: float, layer: LayerGoodness) -> LayerCredit:
    margin, prior = _margins(layer)
    return _ranked(margin + gamma * prior, beta)


def cumulative(gamma: float = 1.0, beta: float = 4.0) -> LayerLoss:
    """softplus(-beta M) of the margin with gamma times that of the layers before."""
    check_finite("gamma", gamma)
    check_positive("beta", beta)
    return partial(_cumulative, gamma, beta)


def per_block(beta: float = 4.0) -> LayerLoss:
    """softplus(-beta mu) of the margin alone: SymBa with alpha = beta."""
    return symba(beta)


def _gate(prior: Array, tau: float | Array, kappa: float | Array) -> Array:
    return torch.sigmoid(tau * (kappa - prior))


def _hardness_gated(
    gamma: float, tau: float | Array, kappa: float | Array, beta: float, layer: LayerGoodness
) -> LayerCredit:
    check_layer(layer)
    positive = layer.positive + gamma * _gate(layer.prior_positive, tau, kappa) * layer.prior_positive
    negative = layer.negative + gamma * _gate(layer.prior_negative, tau, kappa) * layer.prior_negative
    return _ranked(positive - negative, beta)


def hardness_gated(
    gamma: float = 0.7, tau: float | Array = 1.0, kappa: float | Array = 0.0, beta: float = 4.0
) -> LayerLoss:
    """gamma by stream and sample: samples that the layers before find hard keep the cumulative term."""
    for name, value in (("gamma", gamma), ("tau", tau), ("kappa", kappa)):
        check_finite(name, value)
    check_positive("beta", beta)
    return partial(_hardness_gated, gamma, tau, kappa, beta)


def gate_gradient(
    layer: LayerGoodness, raw_tau: Array, kappa: Array, gamma: float = 0.7, beta: float = 4.0
) -> tuple[Array, Array]:
    """Derivatives of the gated loss by raw_tau and kappa, both learnt, tau = softplus(raw_tau): (batch,) each."""
    check_finite("gamma", gamma)
    check_positive("beta", beta)
    tau = -logsigmoid(-raw_tau)
    by_margin = _hardness_gated(gamma, tau, kappa, beta, layer).positive
    priors = torch.stack([layer.prior_positive, layer.prior_negative])  # (2, batch)
    slope = gamma * priors * _gate(priors, tau, kappa) * _gate(priors, -tau, kappa)
    by_tau, by_kappa = slope * (kappa - priors), slope * tau
    return by_margin * (by_tau[0] - by_tau[1]) * torch.sigmoid(raw_tau), by_margin * (by_kappa[0] - by_kappa[1])


def _grown(base: float, growth: float, layer: LayerGoodness) -> float:
    return base * (1 + growth * layer.layer / max(layer.depth - 1, 1))


def _depth_scaled_auxiliary(
    gamma: float, beta: float, weight: float, growth: float, layer: LayerGoodness
) -> LayerCredit:
    margin, prior = _margins(layer)
    scale: float | Array = _grown(weight, growth, layer)
    if layer.layer:
        scale = scale * len(prior) * logsigmoid(-beta * prior).softmax(dim=0)
    return _plus(_ranked(margin + gamma * prior, beta), scale, _ranked(margin, beta))


def depth_scaled_auxiliary(
    gamma: float = 0.7, beta: float = 4.0, weight: float = 0.25, growth: float = 3.0
) -> LayerLoss:
    """The cumulative loss, and one of the layer's own on the samples that the layers before leave over."""
    for name, value in (("gamma", gamma), ("weight", weight), ("growth", growth)):
        check_finite(name, value)
    check_positive("beta", beta)
    return partial(_depth_scaled_auxiliary, gamma, beta, weight, growth)


def _compensated(gamma: float, beta: float, c: float, rho: float, eps: float, layer: LayerGoodness) -> LayerCredit:
    margin, prior = _margins(layer)
    target = _grown(c, rho, layer)
    log_ratio = _log_ratio(beta * margin, beta * gamma * prior)
    if eps and layer.layer:  # s(M) / (s(mu) + eps) is R / (1 + eps / s(mu))
        log_ratio = log_ratio + logsigmoid(logsigmoid(-beta * margin) - math.log(eps))
    missing = -target * torch.expm1((log_ratio - math.log(target)).clamp(max=0))
    return _plus(_ranked(margin + gamma * prior, beta), missing.detach(), _ranked(margin, beta))


def compensated(
    gamma: float = 0.7, beta: float = 4.0, c: float = 1.0, rho: float = 0.0, eps: float = 1e-6
) -> LayerLoss:
    """Missing-gradient compensation. Raises ValueError unless c > 0 and eps >= 0."""
    for name, value in (("gamma", gamma), ("rho", rho)):
        check_finite(name, value)
    check_positive("beta", beta)
    check_positive("c", c)
    check_not_negative("eps", eps)
    return partial(_compensated, gamma, beta, c, rho, eps)


def _squared_hinge(target: float, gamma: float, layer: LayerGoodness) -> LayerCredit:
    margin, prior = _margins(layer)
    short = (target - (margin + gamma * prior)).clamp(min=0)
    return LayerCredit(short.square(), -2 * short, 2 * short)


def squared_hinge(target: float = 2.0, gamma: float = 0.7) -> LayerLoss:
    """max(0, target - M)^2 of each sample's cumulative margin."""
    check_finite("target", target)
    check_finite("gamma", gamma)
    return partial(_squared_hinge, target, gamma)


REMEDIES: dict[str, Callable[..., LayerLoss]] = {
    "cumulative": cumulative,
    "per-block": per_block,
    "hardness-gated": hardness_gated,
    "depth-scaled": depth_scaled_auxiliary,
    "compensated": compensated,
    "squared-hinge": squared_hinge,
}
"""The cumulative loss and what may take its place, by the names that `CumulativeForwardForward` takes."""
