"""DTG-FF's dense network: Forward-Forward at learned temperatures, and a classifier by backpropagation. Not local.

"Synthetic Benchmarks Overstate Forward-Forward Scaling: Real-Data Limits of Layer-Local Training", arXiv 2606.06539,
whose numbers these are; its networks of convolutions are `local_classifiers` with `random_readout`.

    (1)  goodness:      g_l = 1/n_l |h_l|^2
    (2)  temperature:   T_l = low + (high - low) sigmoid(alpha_l)
    (3)  local loss:    psi_l = g_l / T_l - theta_l,    softplus(-psi_l) of x^+ and softplus(psi_l) of x^-;    again (6)
    (8)  of a layer:    L_l = 1/B sum_samples [ softplus(theta_l - g_l^+ / T_l) + softplus(g_l^- / T_l - theta_l) ],
                        theta_l = softplus(theta0_l)
         warm start:    theta0_l = softplus^-1(mean g_l / T_l) of the first batch, above 20 the mean itself
    (9)  all:           L = share sum_l L_l + 1/B sum_samples cross_entropy(V r + b, y)
                        r: gamma_l BN(A_l(z_l)) + beta_l of the layers l < L side by side, for x^0, not detached

Ours: streams and derivatives.

    (a)  x^+, x^-, x^0: x with its first K entries amplitude onehot(label), the same of a wrong label, amplitude / K
    (b)  of x^+ and x^-:  z_(l+1) = layer_norm(h_l), a constant;     of x^0:  z_(l+1) = h_l
    (c)  dL_l/dg_l^+ = -sigmoid(theta_l - g_l^+ / T_l) / T_l,    dL_l/dg_l^- = sigmoid(g_l^- / T_l - theta_l) / T_l
         delta_l = 2/n_l dL_l/dg_l s_l'(a_l)^T h_l
    (d)  of x^0:  delta_l = BN'(a_l)^T gamma_l (V^T e)_l + s_l'(a_l)^T A_(l+1)'^T delta_(l+1),    delta_L = 0
    (e)  G_l = share (update(z_l^+, delta_l^+) + update(z_l^-, delta_l^-)) + update(z_l^0, delta_l^0)

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| A_l, s_l | layers | | the hidden layers l = 1..L, dense |
| alpha, theta0 | alpha, theta | (L,) | of temperatures, from low = 0.1 to high = 2, and of thresholds |
| | share, amplitude | | in the paper 0.1 and 1 |
| gamma_l, beta_l | scales, offsets | (n_l,) | of the normalisations that the classifier reads through, l < L |
| V, b | weight, bias | (K, sum n_l), (K,) | the classifier |
| BN | norms | | batch normalisation: of the batch, or at inference of given statistics |

The text does not say how layers are normalised (here over all units), what stands in the label's place for the
classifier (here a little of every label), nor whether the warm start's goodness is divided by T_l (here it is, as
theta_l is compared with that). The classifier reads the layers but for the last, which (8) alone trains.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ._arrays import Array, Labels, check_not_negative, check_shape
from .forward_forward import overlay, overlay_neutral
from .layers import Dense, Layer, Step, Update, activity, pulled_back
from .losses import cross_entropy, cross_entropy_gradient
from .normalisations import Normalisation, batch_norm, batch_norm_vjp, layer_norm

__all__ = ["HybridUpdates", "Parameters", "goodness", "losses", "scores", "updates", "warm_start"]

LOWEST, HIGHEST = 0.1, 2.0
"""Temperatures of dense layers, in the paper."""
LARGE = 20.0
"""A goodness from which on softplus is taken for the identity, in the paper."""
BATCH_NORM = Normalisation(batch_norm, batch_norm_vjp)


class Parameters(NamedTuple):
    """What is learned beside the layers, or what an optimizer is to subtract from it; see the module's table."""

    alpha: Array
    theta: Array
    scales: tuple[Array, ...]
    offsets: tuple[Array, ...]
    weight: Array
    bias: Array


class HybridUpdates(NamedTuple):
    """What an optimizer is to subtract, and the batch-mean losses in nats: (L,) of (8), and the cross-entropy."""

    layers: tuple[Update, ...]
    parameters: Parameters
    local: Array
    classifier: Array


class ReadPass(NamedTuple):
    """Of the layers that the classifier reads: z_l, a_l and BN(a_l) for x^0; and r."""

    inputs: list[Array]
    preactivations: list[Array]
    normalised: list[Array]
    read: Array


def _check(layers: Sequence[Layer], parameters: Parameters) -> None:
    if len(layers) < 2:
        raise ValueError(f"layers: {len(layers)}, expected two or more: the classifier reads all but the last")
    for name in ("alpha", "theta"):
        check_shape(name, getattr(parameters, name), (len(layers),))
    for name in ("scales", "offsets"):
        if len(getattr(parameters, name)) != len(layers) - 1:
            raise ValueError(f"{name}: {len(getattr(parameters, name))}, expected {len(layers) - 1}, one for each read")


def _temperatures(alpha: Array) -> Array:
    return LOWEST + (HIGHEST - LOWEST) * expit(alpha)


def _softplus(u: Array) -> Array:
    return np.logaddexp(u, np.zeros((), u.dtype))


def _passes(layers: Sequence[Layer], x: Array) -> Iterator[tuple[Array, Array, Array]]:
    """z_l, a_l and h_l of x^+ or x^-, equation (b)."""
    z = x
    for layer in layers:
        a = layer.value(z)
        h = activity(layer.steps, a)
        yield z, a, h
        z = layer_norm(h)


def goodness(
    layers: Sequence[Layer], parameters: Parameters, x: Array, labels: Labels, amplitude: float = 1.0
) -> Array:
    """g_l / T_l of every layer for x with these labels, (1) and (2): (L, batch). Raises ValueError as `losses`.

    >>> layers = (Dense(np.eye(2), None),) * 2
    >>> zeros = Parameters(np.zeros(2), np.zeros(2), (np.ones(2),), (np.zeros(2),), np.zeros((2, 2)), np.zeros(2))
    >>> found = goodness(layers, zeros, np.array([[9.0, 9.0]]), np.array([0]))  # x^+ = 1, 0, and normalised 1, -1
    >>> np.round(found, 2).tolist()  # 1/2 and 1 at a temperature of 1.05
    [[0.48], [0.95]]
    """
    _check(layers, parameters)
    passes = _passes(layers, overlay(x, labels, len(parameters.bias), amplitude))
    return np.stack([np.mean(h**2, axis=1) for _, _, h in passes]) / _temperatures(parameters.alpha)[:, None]


def warm_start(positive: Array, negative: Array) -> Array:
    """theta0 of (8), (L,), from g_l / T_l of the first batch, positive and negative, (L, batch) each.

    softplus being above 0, a mean of 0 is not. Raises ValueError unless both have one shape.

    >>> np.round(warm_start(np.array([[30.0], [0.0]]), np.array([[30.0], [0.0]])), 3).tolist()  # log(e^(1e-6) - 1)
    [30.0, -13.816]
    """
    check_shape("negative", negative, positive.shape)
    mean = np.maximum((positive.mean(axis=1) + negative.mean(axis=1)) / 2, 1e-6)
    return np.where(mean > LARGE, mean, np.log(np.expm1(np.minimum(mean, LARGE))))


def _read(layers: Sequence[Layer], parameters: Parameters, x: Array, norms: Sequence[Step]) -> ReadPass:
    inputs, preactivations, normalised = [], [], []
    z = x
    for layer, norm in zip(layers[:-1], norms, strict=True):
        inputs.append(z)
        preactivations.append(layer.value(z))
        normalised.append(norm.value(preactivations[-1]))
        z = activity(layer.steps, preactivations[-1])
    parts = zip(parameters.scales, normalised, parameters.offsets, strict=True)
    return ReadPass(inputs, preactivations, normalised, np.concatenate([g * y + b for g, y, b in parts], axis=1))


def scores(
    layers: Sequence[Layer],
    parameters: Parameters,
    x: Array,
    amplitude: float = 1.0,
    norms: Sequence[Step] | None = None,
) -> Array:
    """V r + b of (9) for x without a label: (batch, K). `norms` has BN for each layer, the batch's own if None.

    Raises ValueError as `losses` does.

    >>> layers = (Dense(np.eye(2), None),) * 2
    >>> found = Parameters(np.zeros(2), np.zeros(2), (np.ones(2),), (np.array([1.0, 2.0]),), np.eye(2), np.zeros(2))
    >>> scores(layers, found, np.array([[9.0, 9.0], [7.0, 7.0]])).tolist()  # alike without a label: the offsets alone
    [[1.0, 2.0], [1.0, 2.0]]
    """
    _check(layers, parameters)
    norms = [BATCH_NORM] * (len(layers) - 1) if norms is None else norms
    found = _read(layers, parameters, overlay_neutral(x, len(parameters.bias), amplitude), norms)
    return Dense(parameters.weight, parameters.bias).value(found.read)


def losses(
    layers: Sequence[Layer],
    parameters: Parameters,
    x: Array,
    labels: Labels,
    wrong: Labels,
    amplitude: float = 1.0,
    norms: Sequence[Step] | None = None,
) -> tuple[Array, Array]:
    """L_l of every layer, (8), (L,), and the mean cross-entropy of (9), a scalar array.

    x is (batch, n_0), labels (batch,), and `wrong` has a wrong label for each sample. Raises ValueError for fewer than
    two layers and for parameters that do not fit.

    >>> layers, x, labels = (Dense(np.eye(2), None),) * 2, np.array([[9.0, 9.0], [7.0, 7.0]]), np.array([0, 0])
    >>> zeros = Parameters(np.zeros(2), np.zeros(2), (np.ones(2),), (np.zeros(2),), np.zeros((2, 2)), np.zeros(2))
    >>> local, classifier = losses(layers, zeros, x, labels, 1 - labels)
    >>> np.shape(local), round(float(classifier), 3)  # of two equal scores log 2
    ((2,), 0.693)
    """
    positive, negative = (goodness(layers, parameters, x, k, amplitude) for k in (labels, wrong))
    threshold = _softplus(parameters.theta)[:, None]
    local = np.mean(_softplus(threshold - positive) + _softplus(negative - threshold), axis=1)
    return local, cross_entropy(scores(layers, parameters, x, amplitude, norms), labels).mean()


def _of_goodness(
    layers: Sequence[Layer], parameters: Parameters, positive: Array, negative: Array
) -> tuple[list[Update], Array, Array]:
    """The gradients of the losses (8) by layers, alpha and theta0, equation (c)."""
    temperatures, thresholds = _temperatures(parameters.alpha), _softplus(parameters.theta)
    found: list[Update] = []
    by_temperature, by_threshold = np.zeros_like(temperatures), np.zeros_like(thresholds)
    streams = zip(_passes(layers, positive), _passes(layers, negative), strict=True)
    for index, (layer, pair) in enumerate(zip(layers, streams, strict=True)):
        parts = []
        for sign, (z, a, h) in zip((-1, 1), pair, strict=True):
            g, t = np.mean(h**2, axis=1), temperatures[index]
            slope = sign * expit(sign * (g / t - thresholds[index]))  # of the loss by g / T
            by_threshold[index] -= slope.mean()
            by_temperature[index] -= np.mean(slope * g) / t**2
            delta = pulled_back(layer.steps, a, (2 * slope / t)[:, None] * h / np.asarray(h.shape[1], h.dtype))
            parts.append(layer.update(z, delta))
        found.append(tuple(one + other for one, other in zip(*parts, strict=True)))
    s = expit(parameters.alpha)
    return found, by_temperature * (HIGHEST - LOWEST) * s * (1 - s), by_threshold * expit(parameters.theta)


def _of_classifier(
    layers: Sequence[Layer], parameters: Parameters, x: Array, labels: Labels, norms: Sequence[Step]
) -> tuple[list[Update], Parameters, Array]:
    """The gradients of the cross-entropy of (9) by the layers l < L and the classifier, equation (d); and its mean."""
    inputs, preactivations, normalised, r = _read(layers, parameters, x, norms)
    classifier = Dense(parameters.weight, parameters.bias)
    found = classifier.value(r)
    e = cross_entropy_gradient(found, labels)
    weight, bias = classifier.update(r, e)
    by_read = np.split(classifier.adjoint(r, e), np.cumsum([y.shape[1] for y in normalised])[:-1], axis=1)
    above = np.zeros_like(preactivations[-1])  # of the loss by h_l
    backward: list[Update] = []
    for index in reversed(range(len(by_read))):
        layer, z, a = layers[index], inputs[index], preactivations[index]
        delta = norms[index].vjp(a, parameters.scales[index] * by_read[index]) + pulled_back(layer.steps, a, above)
        backward.insert(0, layer.update(z, delta))
        above = layer.adjoint(z, delta)
    scales = tuple(np.mean(d * y, axis=0) for d, y in zip(by_read, normalised, strict=True))
    offsets = tuple(d.mean(axis=0) for d in by_read)
    learned = parameters._replace(scales=scales, offsets=offsets, weight=weight, bias=bias)
    return backward, learned, cross_entropy(found, labels).mean()


def updates(
    layers: Sequence[Layer],
    parameters: Parameters,
    x: Array,
    labels: Labels,
    wrong: Labels,
    share: float = 0.1,
    amplitude: float = 1.0,
    norms: Sequence[Step] | None = None,
) -> HybridUpdates:
    """The gradients of (9), (e), shaped as what they are of.

    x, labels, wrong and the errors are those of `losses`. Raises ValueError unless share >= 0.

    >>> layers, x, labels = (Dense(np.eye(2), None),) * 2, np.array([[9.0, 9.0], [7.0, 7.0]]), np.array([0, 0])
    >>> zeros = Parameters(np.zeros(2), np.zeros(2), (np.ones(2),), (np.zeros(2),), np.zeros((2, 2)), np.zeros(2))
    >>> updates(layers, zeros, x, labels, 1 - labels).parameters.bias.tolist()  # e = -1/2, 1/2 of both samples
    [-0.5, 0.5]
    """
    check_not_negative("share", share)
    local, _ = losses(layers, parameters, x, labels, wrong, amplitude, norms)
    norms = [BATCH_NORM] * (len(layers) - 1) if norms is None else norms
    num_classes = len(parameters.bias)
    positive, negative = (overlay(x, k, num_classes, amplitude) for k in (labels, wrong))
    own, alpha, theta = _of_goodness(layers, parameters, positive, negative)
    neutral = overlay_neutral(x, num_classes, amplitude)
    backward, learned, classifier = _of_classifier(layers, parameters, neutral, labels, norms)
    found = [tuple(share * g for g in update) for update in own]
    for index, update in enumerate(backward):
        found[index] = tuple(one + other for one, other in zip(found[index], update, strict=True))
    learned = learned._replace(alpha=share * alpha, theta=share * theta)
    return HybridUpdates(tuple(found), learned, local, classifier)
