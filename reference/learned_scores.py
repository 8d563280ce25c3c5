"""Scores with learned anchors: channels that are assigned to classes, and prototypes on a sphere. See `scores`.

Channels assigned to classes: CAW-Conv, "Forward-Only Convolutional Neural Networks with Learnable Channel-Class
Assignment", arXiv 2606.09928, by its public code. Of the paper's own numbers 7, that of (3), is known to us.

    (1)  u_c = w_1 mean_(i, j) h + w_2 max_(i, j) h + w_3 min_(i, j) h
    (2)  M = softmax(Omega / T) along the classes,    T = cooling clip(e^tau, 0.1, 100)
    (3)  s = M^T u
    (4)  penalty = lambda_e / K sum_c H(M_c) + lambda_o q / K^2 sum_(k, j) (M~_k . M~_j - [k = j])^2,
         H(M_c) = -sum_k M_ck log M_ck,    M~_k: the columns of M at length 1

Ours, prototypes on the sphere: a reading of what is known of HFF, "Hyperspherical Forward-Forward with Prototypical
Representations", arXiv 2605.00082, whose text was not to be had.

    (a)  c_(k, i) = u / |u| . v_(k, i) / |v_(k, i)|
    (b)  s_k = 1/t log (mean_i e^(t c_(k, i))),    the cosine itself for one prototype a class

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| h | h | (batch, C, H, W) or (batch, n) | activities; a dense unit is a channel of one position |
| w | pooling | (3,) | weights of mean, maximum and minimum |
| Omega, tau | parameters | (C, K), () | assignment logits and log temperature; the paper's begin at 0.5 and log 10 |
| M | | (C, K) | assignment: every channel a distribution over classes |
| lambda_e, lambda_o | entropy, orthogonality | | weights, in the paper 1e-2, and 1e-3 times min(1, epoch / 50) |
| q | scaled | | 1 if scaled, else 1 / (K^2 C) |
| | cooling | | in the paper 0.995^epoch |
| u | | (batch, C); (batch, d) | features: of (1); or h, or the means of its cells in a grid, flattened |
| v | parameters[0] | (K, per class, d) | prototypes, of any length but 0 |
| t | sharpness | | how nearly (b) is the largest cosine |

The code of (4) adds 1e-10 to M within the logarithm, which the entropy of a softmax has no need of. Positions that are
the maximum alike, or the minimum, share its derivative evenly. Begin with noise, `random_logits`: of constant logits,
as in the paper, M is 1 / K everywhere, a cross entropy's derivatives sum to 0 over the classes, and no activity has a
gradient. The entropy is a sum over channels, not a mean, and grows with their number. With its q the published
orthogonality is at most 9e-8 for C = 100 and K = 10: `scaled` leaves q out.

An h of 0 has no direction: 0 is chosen for it (`normalisations.direction`), hence scores of 0 and no derivative.
Otherwise h and v count by their directions alone, so that derivatives by them are orthogonal to them.
"""

import math

import numpy as np
from scipy.special import log_softmax, logsumexp, softmax

from ._arrays import Array, check_count, check_finite, check_not_negative, check_positive
from .normalisations import direction, direction_vjp
from .scores import Grid, Score, ScoreCredit, features, features_adjoint

__all__ = ["assignment", "channel_class", "prototype_cosine", "random_logits", "random_prototypes"]

COLDEST, HOTTEST = 0.1, 100.0
"""Bounds of e^tau in equation (2), in the paper's code."""


def random_logits(channels: int, num_classes: int, rng: np.random.Generator, deviation: float = 0.5) -> Array:
    """Omega, (C, K), from N(0, deviation^2). Raises ValueError unless C, K and the deviation are positive.

    >>> np.shape(random_logits(4, 3, np.random.default_rng(0)))
    (4, 3)
    """
    check_count("channels", channels)
    check_count("num_classes", num_classes)
    check_positive("deviation", deviation)
    return deviation * rng.standard_normal((channels, num_classes))


def _temperature(log_temperature: Array, cooling: float) -> Array:
    return cooling * np.clip(np.exp(log_temperature), COLDEST, HOTTEST)


def assignment(logits: Array, log_temperature: Array, cooling: float = 1.0) -> Array:
    """M of equation (2): (C, K), as the logits; log_temperature is tau, a scalar array.

    Raises ValueError unless the cooling is positive.

    >>> np.round(assignment(np.log(np.array([[3.0, 1.0]])), np.array(0.0)), 6).tolist()  # T = 1
    [[0.75, 0.25]]
    """
    check_positive("cooling", cooling)
    return softmax(logits / _temperature(log_temperature, cooling), axis=1)


def _by_logits(m: Array, gradient: Array) -> Array:
    """The derivative by Omega / T of what has this one by M."""
    return m * (gradient - np.sum(m * gradient, axis=1, keepdims=True))


def _by_parameters(parameters: tuple[Array, ...], gradient: Array, cooling: float) -> tuple[Array, ...]:
    """The derivatives by Omega and tau of what has this one by Omega / T."""
    logits, log_temperature = parameters
    temperature = _temperature(log_temperature, cooling)
    moves = COLDEST <= np.exp(log_temperature) <= HOTTEST
    by_tau = -np.sum(gradient * logits) / temperature if moves else 0
    return gradient / temperature, np.asarray(by_tau, log_temperature.dtype)


def _pooled(h: Array, pooling: tuple[float, float, float]) -> Array:
    """u of equation (1): (batch, C)."""
    positions = h.reshape(*h.shape[:2], -1)
    return pooling[0] * positions.mean(axis=2) + pooling[1] * positions.max(axis=2) + pooling[2] * positions.min(axis=2)


def _pooled_credit(h: Array, pooling: tuple[float, float, float], gradient: Array) -> Array:
    """The derivative by h of what has this one by u."""
    positions = h.reshape(*h.shape[:2], -1)
    largest = (positions == positions.max(axis=2, keepdims=True)).astype(h.dtype)
    smallest = (positions == positions.min(axis=2, keepdims=True)).astype(h.dtype)
    share = pooling[0] / positions.shape[2] + sum(
        weight * chosen / np.sum(chosen, axis=2, keepdims=True)
        for weight, chosen in ((pooling[1], largest), (pooling[2], smallest))
    )
    return (gradient[:, :, None] * share).reshape(h.shape)


def channel_class(
    pooling: tuple[float, float, float] = (0.94, 0.06, -0.05),
    entropy: float = 1e-2,
    orthogonality: float = 1e-3,
    scaled: bool = False,
    cooling: float = 1.0,
) -> Score:
    """The score s = M^T u, equations (1) to (4), of parameters (Omega, tau): (batch, K).

    Raises ValueError unless pooling has three finite weights, cooling > 0 and the penalty's weights are 0 or more.

    >>> parameters = 1000 * np.eye(2), np.array(0.0)  # each channel is a class's own
    >>> channel_class((0.0, 1.0, 0.0)).value(np.array([[[[3.0, 1.0]], [[5.0, 0.0]]]]), parameters).tolist()  # maxima
    [[3.0, 5.0]]
    """
    if len(pooling) != 3:
        raise ValueError(f"pooling: {pooling}, expected the weights of mean, maximum and minimum")
    for weight in pooling:
        check_finite("pooling", weight)
    check_not_negative("entropy", entropy)
    check_not_negative("orthogonality", orthogonality)
    check_positive("cooling", cooling)

    def value(h: Array, parameters: tuple[Array, ...]) -> Array:
        logits, log_temperature = parameters
        return _pooled(h, pooling) @ assignment(logits, log_temperature, cooling)

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        logits, log_temperature = parameters
        m = assignment(logits, log_temperature, cooling)
        by_logits = _by_logits(m, _pooled(h, pooling).T @ gradient)
        by_activities = _pooled_credit(h, pooling, gradient @ m.T)
        return ScoreCredit(by_activities, _by_parameters(parameters, by_logits, cooling))

    def penalty(parameters: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        logits, log_temperature = parameters
        channels, num_classes = logits.shape
        m = assignment(logits, log_temperature, cooling)
        log_m = log_softmax(logits / _temperature(log_temperature, cooling), axis=1)
        entropies = -np.sum(m * log_m, axis=1, keepdims=True)  # (C, 1)
        columns = direction(m.T)  # (K, C)
        off = columns @ columns.T - np.eye(num_classes, dtype=m.dtype)
        weight = orthogonality * (1 if scaled else 1 / (num_classes**2 * channels)) / num_classes**2
        cost = entropy / num_classes * entropies.sum() + weight * np.sum(off**2)
        by_logits = -entropy / num_classes * m * (log_m + entropies)
        by_logits += _by_logits(m, direction_vjp(m.T, 4 * weight * off @ columns).T)
        return np.asarray(cost, m.dtype), _by_parameters(parameters, by_logits, cooling)

    return Score(value, credit, penalty)


def random_prototypes(num_classes: int, per_class: int, size: int, rng: np.random.Generator) -> Array:
    """v of (a), (K, per_class, size), from N(0, 1 / size). Raises ValueError unless all sizes are positive.

    >>> np.shape(random_prototypes(3, 2, 5, np.random.default_rng(0)))
    (3, 2, 5)
    """
    for name, value in (("num_classes", num_classes), ("per_class", per_class), ("size", size)):
        check_count(name, value)
    return rng.standard_normal((num_classes, per_class, size)) / math.sqrt(size)


def prototype_cosine(sharpness: float = 10.0, grid: Grid = None) -> Score:
    """The score by (a) and (b), of parameters (v,): (batch, K). Raises ValueError unless the sharpness is positive.

    >>> score, prototypes = prototype_cosine(), np.eye(2)[:, None]
    >>> np.round(score.value(np.array([[9.0, 0.0], [0.0, 0.0]]), (prototypes,)), 6).tolist()  # 0 has no direction
    [[1.0, 0.0], [0.0, 0.0]]
    """
    check_positive("sharpness", sharpness)

    def cosines(h: Array, prototypes: Array) -> tuple[Array, Array, Array]:
        """c, (batch, K, per class), and the two directions that it is made of."""
        u, p = direction(features(h, grid)), direction(prototypes)
        return np.einsum("bd,kmd->bkm", u, p), u, p

    def value(h: Array, parameters: tuple[Array, ...]) -> Array:
        (prototypes,) = parameters
        c, _, _ = cosines(h, prototypes)
        return (logsumexp(sharpness * c, axis=2) - math.log(c.shape[2])) / sharpness

    def credit(h: Array, parameters: tuple[Array, ...], gradient: Array) -> ScoreCredit:
        (prototypes,) = parameters
        c, u, p = cosines(h, prototypes)
        by_cosine = gradient[:, :, None] * softmax(sharpness * c, axis=2)
        by_features = direction_vjp(features(h, grid), np.einsum("bkm,kmd->bd", by_cosine, p))
        by_prototypes = direction_vjp(prototypes, np.einsum("bkm,bd->kmd", by_cosine, u))
        return ScoreCredit(features_adjoint(by_features, h, grid), (by_prototypes,))

    return Score(value, credit)
