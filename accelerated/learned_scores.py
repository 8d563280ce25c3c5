"""Scores with learned anchors: channels that are assigned to classes, and prototypes on a sphere; see the reference.

Of half precision, what is computed from the parameters alone and from (batch, C) numbers is computed in float32.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional

from ._arrays import Array, check_count, check_finite, check_not_negative, check_positive, few_columns, widened
from .normalisations import direction, direction_vjp
from .scores import Grid, Pullback, Score, ScoreCredit, Sharing, features, features_adjoint

__all__ = ["assignment", "channel_class", "prototype_cosine", "random_logits", "random_prototypes"]

SHORTEST = 1e-12
"""Of what has a direction, as in `normalisations.direction`."""

COLDEST, HOTTEST = 0.1, 100.0
"""Bounds of e^tau, in the paper's code."""


def random_logits(
    channels: int,
    num_classes: int,
    generator: torch.Generator | None = None,
    deviation: float = 0.5,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Array:
    """Omega, (C, K), from N(0, deviation^2)."""
    check_count("channels", channels)
    check_count("num_classes", num_classes)
    check_positive("deviation", deviation)
    return deviation * torch.randn(channels, num_classes, generator=generator, dtype=dtype, device=device)


def _temperature(log_temperature: Array, cooling: float) -> Array:
    return cooling * widened(log_temperature).exp().clamp(COLDEST, HOTTEST)


def assignment(logits: Array, log_temperature: Array, cooling: float = 1.0) -> Array:
    """Every channel's distribution over the classes: (C, K)."""
    check_positive("cooling", cooling)
    return (logits / _temperature(log_temperature, cooling)).softmax(dim=1).to(logits.dtype)


def _log_softmax(x: Array) -> Array:
    """Along the classes, with the digits of what is nearly 0: of a channel that is almost of one class."""
    largest, at = x.max(dim=1, keepdim=True)
    x = x - largest
    return x - x.exp().scatter(1, at, 0).sum(dim=1, keepdim=True).log1p()


def _by_logits(m: Array, gradient: Array) -> Array:
    """The derivative by Omega / T of what has this one by M."""
    return m * (gradient - (m * gradient).sum(dim=1, keepdim=True))


def _by_parameters(parameters: tuple[Array, ...], gradient: Array, cooling: float) -> tuple[Array, ...]:
    """The derivatives by Omega and tau of what has this one by Omega / T."""
    logits, log_temperature = parameters
    temperature = _temperature(log_temperature, cooling)
    hot = widened(log_temperature).exp()
    by_tau = (gradient * logits).sum() * ((hot >= COLDEST) & (hot <= HOTTEST)) / -temperature
    return (gradient / temperature).to(logits.dtype), by_tau.to(log_temperature.dtype)


# Functions of the module, not of functions, so that a score can be pickled.
class _Assignment(NamedTuple):
    """The settings of a channel-class score, and its functions."""

    pooling: tuple[float, float, float]
    entropy: float
    orthogonality: float
    scaled: bool
    cooling: float

    def assigned(self, parameters: tuple[Array, ...]) -> Array:
        """M, in float32 at least."""
        return assignment(widened(parameters[0]), parameters[1], self.cooling)

    def extremes(self, h: Array) -> tuple[Array, ...]:
        """The maximum and minimum of every channel, shaped to stand beside h; none of units, which have one value."""
        if h.dim() == 2:
            return ()
        return tuple(extreme(h, dim=tuple(range(2, h.dim())), keepdim=True) for extreme in (torch.amax, torch.amin))

    def pooled(self, h: Array, extremes: tuple[Array, ...]) -> Array:
        """(batch, C), in float32 at least."""
        if h.dim() == 2:
            return widened(h) * sum(self.pooling)
        parts = h.mean(dim=tuple(range(2, h.dim()))), *(extreme.flatten(1) for extreme in extremes)
        mean, largest, smallest = (weight * widened(part) for weight, part in zip(self.pooling, parts, strict=True))
        return mean + largest + smallest

    def pooled_credit(self, h: Array, gradient: Array, extremes: tuple[Array, ...]) -> Array:
        """The derivative by h of what has this one by the pooled activities."""
        if h.dim() == 2:
            return (gradient * sum(self.pooling)).to(h.dtype)
        positions = tuple(range(2, h.dim()))
        gradient = gradient.view(*h.shape[:2], *[1] * len(positions))
        found = (self.pooling[0] / math.prod(h.shape[2:]) * gradient).to(h.dtype)
        for weight, extreme in zip(self.pooling[1:], extremes, strict=True):
            # Ones and zeros of h's dtype: those of bool take several times as long to add and to multiply.
            equal = torch.eq(h, extreme, out=torch.empty_like(h))
            share = gradient / equal.sum(dim=positions, keepdim=True, dtype=gradient.dtype)
            found = equal.mul_((weight * share).to(h.dtype)).add_(found)
        return found

    def pullback(self, h: Array, parameters: tuple[Array, ...]) -> tuple[Array, Pullback]:
        m, extremes = self.assigned(parameters), self.extremes(h)
        u = self.pooled(h, extremes)

        def credit(gradient: Array) -> ScoreCredit:
            gradient = widened(gradient)
            by_activities = self.pooled_credit(h, gradient @ m.T, extremes)
            return ScoreCredit(by_activities, _by_parameters(parameters, _by_logits(m, u.T @ gradient), self.cooling))

        return (u @ m).to(h.dtype), credit

    def penalty(self, parameters: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        logits, log_temperature = parameters
        channels, num_classes = logits.shape
        m = self.assigned(parameters)
        log_m = _log_softmax(logits / _temperature(log_temperature, self.cooling))
        entropies = -(m * log_m).sum(dim=1, keepdim=True)  # (C, 1)
        columns = direction(m.T)  # (K, C)
        off = columns @ columns.T - torch.eye(num_classes, dtype=m.dtype, device=m.device)
        weight = self.orthogonality * (1 if self.scaled else 1 / (num_classes**2 * channels)) / num_classes**2
        cost = self.entropy / num_classes * entropies.sum() + weight * off.square().sum()
        by_logits = -self.entropy / num_classes * m * (log_m + entropies)
        by_logits = by_logits + _by_logits(m, direction_vjp(m.T, 4 * weight * off @ columns).T)
        return cost.to(logits.dtype), _by_parameters(parameters, by_logits, self.cooling)


def channel_class(
    pooling: tuple[float, float, float] = (0.94, 0.06, -0.05),
    entropy: float = 1e-2,
    orthogonality: float = 1e-3,
    scaled: bool = False,
    cooling: float = 1.0,
) -> Score:
    """Channels assigned to classes, of parameters (Omega, tau)."""
    if len(pooling) != 3:
        raise ValueError(f"pooling: {pooling}, expected the weights of mean, maximum and minimum")
    for weight in pooling:
        check_finite("pooling", weight)
    check_not_negative("entropy", entropy)
    check_not_negative("orthogonality", orthogonality)
    check_positive("cooling", cooling)
    made = _Assignment(pooling, entropy, orthogonality, scaled, cooling)
    return Sharing(made.pullback).score(made.penalty)


def random_prototypes(
    num_classes: int,
    per_class: int,
    size: int,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Array:
    """Prototypes, (K, per_class, size), from N(0, 1 / size): lengths near 1."""
    for name, value in (("num_classes", num_classes), ("per_class", per_class), ("size", size)):
        check_count(name, value)
    return torch.randn(num_classes, per_class, size, generator=generator, dtype=dtype, device=device) / math.sqrt(size)


def _rate(rows: Array) -> Array:
    """1 / |v| of each row, 0 where it has no direction: (rows, 1)."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return functional.threshold(length, SHORTEST, math.inf).reciprocal()


def _prototype_cosine(sharpness: float, grid: Grid, h: Array, parameters: tuple[Array, ...]) -> tuple[Array, Pullback]:
    """z is never divided by its length, which cosines, (batch, K m) numbers, are instead."""
    (prototypes,) = parameters
    # In float32 at least, products too: float16 has no number for 1 / |z|^2 of a quiet layer, |z| = 1e-3.
    z, v = widened(features(h, grid)), widened(prototypes.flatten(0, 1))
    rate, rate_of_p = _rate(z), _rate(v)
    p = rate_of_p * v
    c = few_columns(z, p.T) * rate
    of_class = c.unflatten(1, prototypes.shape[:2])
    several = of_class.shape[2] > 1

    def credit(gradient: Array) -> ScoreCredit:
        by_cosine = widened(gradient)
        if several:
            by_cosine = (by_cosine[:, :, None] * (sharpness * of_class).softmax(dim=2)).flatten(1)
        by_product, along = by_cosine * rate, by_cosine * c  # each derivative is orthogonal to what has the direction
        by_features = (along.sum(dim=1, keepdim=True) * -rate.square() * z).addmm_(by_product, p).to(h.dtype)
        by_prototypes = rate_of_p * torch.addcmul(by_product.T @ z, along.sum(dim=0)[:, None], p, value=-1)
        found = by_prototypes.view_as(prototypes).to(prototypes.dtype)
        return ScoreCredit(features_adjoint(by_features, h, grid), (found,))

    if not several:
        return of_class.squeeze(2).to(h.dtype), credit
    return (((sharpness * of_class).logsumexp(dim=2) - math.log(of_class.shape[2])) / sharpness).to(h.dtype), credit


def prototype_cosine(sharpness: float = 10.0, grid: Grid = None) -> Score:
    """Cosines to prototypes on the sphere, of parameters (v,). Raises ValueError unless the sharpness is positive."""
    check_positive("sharpness", sharpness)
    return Sharing(partial(_prototype_cosine, sharpness, grid)).score()
