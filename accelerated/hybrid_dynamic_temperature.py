"""DTG-FF's dense network: Forward-Forward at learned temperatures, and a classifier by backpropagation; see the
reference.

Streams with labels go through the layers as one batch. `losses` have PyTorch's graph, in which no layer's own loss
reaches another layer.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

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
    return LOWEST + (HIGHEST - LOWEST) * torch.sigmoid(alpha)


def _softplus(u: Array) -> Array:
    return -functional.logsigmoid(-u)  # exact where functional.softplus drops what lies below 2e-9


def _passes(layers: Sequence[Layer], x: Array) -> Iterator[tuple[Array, Array, Array]]:
    """z_l, a_l and h_l of samples with labels, each run when it is asked for."""
    z = x
    for layer in layers:
        a = layer.value(z)
        h = activity(layer.steps, a)
        yield z, a, h
        z = layer_norm(h.detach())


def _goodness(layers: Sequence[Layer], parameters: Parameters, x: Array) -> Array:
    found = torch.stack([h.square().mean(dim=1) for _, _, h in _passes(layers, x)])
    return found / _temperatures(parameters.alpha)[:, None]


def goodness(
    layers: Sequence[Layer], parameters: Parameters, x: Array, labels: Labels, amplitude: float = 1.0
) -> Array:
    """g_l / T_l of every layer for x with these labels: (L, batch)."""
    _check(layers, parameters)
    return _goodness(layers, parameters, overlay(x, labels, len(parameters.bias), amplitude))


def warm_start(positive: Array, negative: Array) -> Array:
    """theta0 from g_l / T_l of the first batch, (L, batch) each: (L,). softplus being above 0, a mean of 0 is not."""
    check_shape("negative", negative, positive.shape)
    mean = ((positive.mean(dim=1) + negative.mean(dim=1)) / 2).clamp(min=1e-6)
    return torch.where(mean > LARGE, mean, mean.clamp(max=LARGE).expm1().log())


def _read(layers: Sequence[Layer], parameters: Parameters, x: Array, norms: Sequence[Step]) -> ReadPass:
    inputs, preactivations, normalised = [], [], []
    z = x
    for layer, norm in zip(layers[:-1], norms, strict=True):
        inputs.append(z)
        preactivations.append(layer.value(z))
        normalised.append(norm.value(preactivations[-1]))
        z = activity(layer.steps, preactivations[-1])
    parts = zip(parameters.scales, normalised, parameters.offsets, strict=True)
    return ReadPass(inputs, preactivations, normalised, torch.cat([g * y + b for g, y, b in parts], dim=1))


def scores(
    layers: Sequence[Layer],
    parameters: Parameters,
    x: Array,
    amplitude: float = 1.0,
    norms: Sequence[Step] | None = None,
) -> Array:
    """The classifier's scores for x without a label: (batch, K). `norms` has BN for each layer, the batch's if None."""
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
    """Every layer's own loss, (L,), and the mean cross-entropy; `wrong` has a wrong label for each sample.

    Raises ValueError for fewer than two layers and for parameters that do not fit.
    """
    _check(layers, parameters)
    both = torch.cat([overlay(x, k, len(parameters.bias), amplitude) for k in (labels, wrong)])
    positive, negative = _goodness(layers, parameters, both).split(len(x), dim=1)
    threshold = _softplus(parameters.theta)[:, None]
    local = (_softplus(threshold - positive) + _softplus(negative - threshold)).mean(dim=1)
    return local, cross_entropy(scores(layers, parameters, x, amplitude, norms), labels).mean()


def _of_goodness(
    layers: Sequence[Layer], parameters: Parameters, both: Array
) -> tuple[list[Update], Array, Array, Array]:
    """The gradients of the layers' own losses by layers, alpha and theta0; and these losses. `both` are two streams."""
    temperatures, thresholds = _temperatures(parameters.alpha), _softplus(parameters.theta)
    batch = len(both) // 2
    sign = torch.ones_like(both[:, 0])
    sign[:batch] = -1
    found, parts = [], []
    for layer, t, threshold, (z, a, h) in zip(layers, temperatures, thresholds, _passes(layers, both), strict=True):
        g = h.square().mean(dim=1)
        psi = sign * (g / t - threshold)
        slope = sign * torch.sigmoid(psi)
        parts.append((-(slope * g).sum() / t.square(), -slope.sum(), _softplus(psi).sum()))
        delta = pulled_back(layer.steps, a, (4 / h.shape[1] * slope / t)[:, None] * h)  # 4: of two streams a mean
        found.append(layer.update(z, delta))
    by_temperature, by_threshold, losses = (torch.stack(column) / batch for column in zip(*parts, strict=True))
    s = torch.sigmoid(parameters.alpha)
    alpha, theta = by_temperature * (HIGHEST - LOWEST) * s * (1 - s), by_threshold * torch.sigmoid(parameters.theta)
    return found, alpha, theta, losses


def _of_classifier(
    layers: Sequence[Layer], parameters: Parameters, x: Array, labels: Labels, norms: Sequence[Step]
) -> tuple[list[Update], Parameters, Array]:
    """The gradients of the cross-entropy by the layers but for the last and by the classifier; and its mean."""
    inputs, preactivations, normalised, r = _read(layers, parameters, x, norms)
    classifier = Dense(parameters.weight, parameters.bias)
    found = classifier.value(r)
    e = cross_entropy_gradient(found, labels)
    weight, bias = classifier.update(r, e)
    by_read = classifier.adjoint(r, e).split([y.shape[1] for y in normalised], dim=1)
    above = torch.zeros_like(preactivations[-1])  # of the loss by h_l
    backward: list[Update] = []
    for index in reversed(range(len(by_read))):
        layer, z, a = layers[index], inputs[index], preactivations[index]
        delta = norms[index].vjp(a, parameters.scales[index] * by_read[index]) + pulled_back(layer.steps, a, above)
        backward.insert(0, layer.update(z, delta))
        above = layer.adjoint(z, delta)
    scales = tuple((d * y).mean(dim=0) for d, y in zip(by_read, normalised, strict=True))
    offsets = tuple(d.mean(dim=0) for d in by_read)
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
    """The gradients of share times the layers' own losses and of the cross-entropy; arguments as those of `losses`."""
    _check(layers, parameters)
    check_not_negative("share", share)
    norms = [BATCH_NORM] * (len(layers) - 1) if norms is None else norms
    num_classes = len(parameters.bias)
    both = torch.cat([overlay(x, k, num_classes, amplitude) for k in (labels, wrong)])
    own, alpha, theta, local = _of_goodness(layers, parameters, both)
    neutral = overlay_neutral(x, num_classes, amplitude)
    backward, learned, classifier = _of_classifier(layers, parameters, neutral, labels, norms)
    found = [tuple(share * g for g in update) for update in own]
    for index, update in enumerate(backward):
        found[index] = tuple(one + other for one, other in zip(found[index], update, strict=True))
    learned = learned._replace(alpha=share * alpha, theta=share * theta)
    return HybridUpdates(tuple(found), learned, local, classifier)
