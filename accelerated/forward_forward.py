"""Forward-Forward: every layer separates positive from negative data by its own goodness; see the reference.

Multiplications of a step: both streams go through one product of twice the batch. At the first layer labelled streams
share the product but for the K label columns, since they differ in those pixels only and have the same norm: one
forward and one update product for both. So a step takes four products a layer (two at the first) to backpropagation's
three. Candidate labels share the first product in the same way.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from math import prod
from typing import Literal, NamedTuple, TypeAlias

import torch

from ._arrays import (
    Array,
    Labels,
    check_batch,
    check_count,
    check_labels,
    check_not_negative,
    check_option,
    check_positive,
    check_shape,
)
from .activations import Activation
from .goodness import Goodness, sum_of_squares
from .losses import cross_entropy_gradient, one_hot
from .network import LayerUpdate, Network, Updates, affine, collect
from .pair_losses import LayerGoodness, LayerLoss, threshold

__all__ = [
    "Prior",
    "features",
    "label_scores",
    "local_updates",
    "neutral_features",
    "normalise",
    "overlay",
    "overlay_neutral",
    "readout_update",
    "stream_goodness",
    "stream_updates",
    "updates",
    "wrong_labels",
]

Prior: TypeAlias = Literal["none", "before", "others"]
"""Which other layers' goodness the loss of a layer includes."""

UNIT_THRESHOLD = threshold(1.0)
"""The loss unless another is given: theta_l is 1 for each unit."""

CANDIDATES = 4096
"""Samples with a candidate label that pass through the layers at one time, where a batch is no larger."""


def normalise(h: Array, eps: float = 1e-8) -> Array:
    """Samples divided by their root mean square: (batch, ...). The mean square becomes 1; 0 stays 0."""
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, ...), at least one of each")
    check_not_negative("eps", eps)
    size = norm(h.flatten(1)) / prod(h.shape[1:]) ** 0.5  # one pass over h
    return divided(h, per_sample(size + eps, h))


def norm(h: Array) -> Array:
    """Euclidean norms of samples, (batch,), of half precision in float32: rounding would scale a whole sample."""
    return torch.linalg.vector_norm(h, dim=1, dtype=torch.float32 if h.element_size() < 4 else None)


def divided(h: Array, size: Array) -> Array:
    """h / size in h's precision, whatever that of the size is."""
    return (h / size).to(h.dtype)


def per_sample(values: Array, like: Array) -> Array:
    """(batch,) as (batch, 1, ...), to be multiplied with an array of samples."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _check_pixels(x: Array, num_classes: int, amplitude: float) -> None:
    check_batch("x", x, "n_0")
    check_count("num_classes", num_classes, 2, x.shape[1])
    check_positive("amplitude", amplitude)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with its first K = num_classes pixels replaced by amplitude at the label and 0 elsewhere."""
    _check_pixels(x, num_classes, amplitude)
    check_labels(labels, num_classes, len(x))
    return torch.cat([amplitude * one_hot(labels, num_classes, dtype=x.dtype), x[:, num_classes:]], dim=1)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with each of its first K = num_classes pixels replaced by amplitude / K."""
    _check_pixels(x, num_classes, amplitude)
    return torch.cat([torch.full_like(x[:, :num_classes], amplitude / num_classes), x[:, num_classes:]], dim=1)


def wrong_labels(labels: Labels, num_classes: int, generator: torch.Generator | None = None) -> Labels:
    """For each label one of the K - 1 others, all equally likely: (batch,)."""
    check_count("num_classes", num_classes, 2)
    check_labels(labels, num_classes)
    offsets = torch.randint(1, num_classes, labels.shape, generator=generator, device=labels.device)
    return (labels + offsets) % num_classes


class PlainInput(NamedTuple):
    """The normalised input of a layer: (samples, n_in)."""

    z: Array

    def affine(self, weight: Array, bias: Array | None) -> Array:
        """The layer's pre-activations: (samples, n_out)."""
        return affine(weight, bias, self.z)

    def correlate(self, d: Array) -> Array:
        """sum_samples d z^T: (n_out, n_in)."""
        return d.T @ self.z


class LabelledInput(NamedTuple):
    """The same for samples that differ in their labels alone, never formed: they share all but K columns.

    `labels` may have several for each sample, all samples of one set after another. `product` is the part of the
    pre-activations that all sets share, where it is known already.
    """

    pixels: Array  # (batch, n_0 - K), normalised
    brightness: Array  # (batch, 1), of the label's pixel, normalised
    labels: Labels  # (sets * batch,)
    num_classes: int
    product: Array | None = None

    def shared(self, weight: Array, bias: Array | None) -> Array:
        """The pixels' part of the pre-activations: (batch, n_1)."""
        return affine(weight[:, self.num_classes :], bias, self.pixels)

    def affine(self, weight: Array, bias: Array | None) -> Array:
        """The layer's pre-activations: (sets * batch, n_1)."""
        shared = self.shared(weight, bias) if self.product is None else self.product
        of_labels = weight[:, : self.num_classes].T[self.labels].unflatten(0, (-1, len(shared)))  # (sets, batch, n_1)
        return torch.addcmul(shared, of_labels, self.brightness).flatten(0, 1)

    def correlate(self, d: Array) -> Array:
        """sum_samples d z^T over all label sets: (n_1, n_0)."""
        sets = len(self.labels) // len(self.pixels)
        targets = one_hot(self.labels, self.num_classes, dtype=d.dtype) * self.brightness.repeat(sets, 1)
        return torch.cat([d.T @ targets, d.unflatten(0, (sets, -1)).sum(dim=0).T @ self.pixels], dim=1)


def labelled(x: Array, labels: Labels, num_classes: int, amplitude: float) -> LabelledInput:
    """x with one or more sets of labels over its first pixels."""
    _check_pixels(x, num_classes, amplitude)
    pixels = x[:, num_classes:]
    size = ((norm(pixels).square() + amplitude**2) / x.shape[1]).sqrt()[:, None] + 1e-8  # of x with any one label
    return LabelledInput(divided(pixels, size), (amplitude / size).to(x.dtype), labels, num_classes)


def first_inputs(positive: Array, negative: Array, normalised: bool) -> Array:
    """Both streams as the first layer takes them."""
    check_shape("negative", negative, positive.shape)
    both = torch.cat([positive, negative])
    return both if normalised else normalise(both)


class LayerPass(NamedTuple):
    """The activity of a layer for both streams, and its update from the loss's gradient by that activity."""

    h: Array
    update: Callable[[Array], LayerUpdate]


def _update(source: PlainInput | LabelledInput, activation: Activation, a: Array, bias: bool, g: Array) -> LayerUpdate:
    d = activation.vjp(a, g)
    return LayerUpdate(source.correlate(d), d.sum(dim=0) if bias else None)


def layer_passes(network: Network, first: PlainInput | LabelledInput) -> Iterator[LayerPass]:
    """Of every layer in turn, each run when it is asked for."""
    source = first
    for weight, bias, activation in zip(*network, strict=True):
        a = source.affine(weight, bias)
        h = activation.value(a)
        yield LayerPass(h, partial(_update, source, activation, a, bias is not None))
        source = PlainInput(normalise(h))


def credited(
    passes: Iterable[LayerPass], depth: int, goodness: Goodness, prior: Prior
) -> Iterator[tuple[LayerPass, LayerGoodness]]:
    """Each layer's pass with what its loss is computed from, in turn. For prior "others" all layers are run first.

    Raises ValueError for another prior than there is.
    """
    check_option("prior", prior, Prior)
    held = list(passes) if prior == "others" else []
    values = [goodness.value(found.h) for found in held]
    before: Array | None = None
    for layer, found in enumerate(held or passes):
        own = values[layer] if held else goodness.value(found.h)
        others = sum(values[layer + 1 :], torch.zeros_like(own) if before is None else before)
        scale = goodness.scale(prod(found.h.shape[1:]))
        yield found, LayerGoodness(layer, depth, scale, *own.chunk(2), *others.chunk(2))
        if prior != "none":
            before = own if before is None else before + own


def credit(
    passes: Iterable[LayerPass], depth: int, goodness: Goodness, loss: LayerLoss, prior: Prior
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update and batch-mean loss."""
    for layer, found in credited(passes, depth, goodness, prior):
        credit = loss(found)
        slope = (torch.cat([credit.positive, credit.negative]) / len(credit.loss)).to(layer.h.dtype)
        yield layer.update(goodness.gradient(layer.h) * per_sample(slope, layer.h)), credit.loss.mean()


def stream_goodness(
    network: Network,
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    prior: Prior = "before",
    normalised: bool = False,
) -> list[LayerGoodness]:
    """What the loss of every layer is computed from, for positive and negative inputs: (batch, n_0) each.

    The first layer takes `normalised` inputs as they are.
    """
    passes = layer_passes(network, PlainInput(first_inputs(positive, negative, normalised)))
    return [found for _, found in credited(passes, len(network.weights), goodness, prior)]


def stream_updates(
    network: Network,
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    normalised: bool = False,
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update and its batch-mean loss, in forward order.

    positive and negative are (batch, n_0); the first layer takes `normalised` ones as they are. A layer's outputs are
    computed before its update is handed over, so that it may be applied at once.
    """
    passes = layer_passes(network, PlainInput(first_inputs(positive, negative, normalised)))
    return credit(passes, len(network.weights), goodness, loss, prior)


def local_updates(
    network: Network,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    amplitude: float = 1.0,
) -> Iterator[tuple[LayerUpdate, Array]]:
    """`stream_updates` for x with right and with wrong labels."""
    check_labels(labels, num_classes, len(x))
    check_labels(negative_labels, num_classes, len(x))
    first = labelled(x, torch.cat([labels, negative_labels]), num_classes, amplitude)
    return credit(layer_passes(network, first), len(network.weights), goodness, loss, prior)


def updates(
    network: Network,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    amplitude: float = 1.0,
) -> Updates:
    """The updates of all layers; every layer of the network is hidden and has its own loss."""
    layers = local_updates(network, x, labels, negative_labels, num_classes, goodness, loss, prior, amplitude)
    return collect(update for update, _ in layers)


def check_first_layer(depth: int, first_layer: int) -> None:
    """Raises ValueError where there is no first_layer."""
    check_count("first_layer", first_layer, 0, depth - 1)


def label_scores(
    network: Network,
    x: Array,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    amplitude: float = 1.0,
    first_layer: int = 0,
) -> Array:
    """Accumulated goodness of every candidate label, as many labels in one pass as CANDIDATES allows: (batch, K).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(network.weights), first_layer)
    first = labelled(x, torch.arange(num_classes, device=x.device), num_classes, amplitude)
    first = first._replace(product=first.shared(network.weights[0], network.biases[0]))
    scores = []
    for labels in first.labels.split(max(1, CANDIDATES // len(x))):
        source = first._replace(labels=labels.repeat_interleave(len(x)))
        found = [goodness.value(layer.h) for layer in islice(layer_passes(network, source), first_layer, None)]
        scores.append(torch.stack(found).sum(dim=0).unflatten(0, (len(labels), -1)))
    return torch.cat(scores).T


def features(network: Network, x: Array, first_layer: int = 1) -> Array:
    """Normalised activities of the layers from first_layer on: (batch, sum of their widths).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(network.weights), first_layer)
    check_batch("x", x, "n_0")
    passes = layer_passes(network, PlainInput(normalise(x)))
    return torch.cat([normalise(layer.h) for layer in islice(passes, first_layer, None)], dim=1)


def neutral_features(
    network: Network, x: Array, num_classes: int, amplitude: float = 1.0, first_layer: int = 1
) -> Array:
    """Those of the neutral pass."""
    return features(network, overlay_neutral(x, num_classes, amplitude), first_layer)


def readout_update(readout: Array, features: Array, labels: Labels) -> Array:
    """Batch-mean cross-entropy gradient of a linear read-out without bias: (K, width), as is the read-out."""
    check_batch("features", features, "width")
    check_shape("readout", readout, (len(readout), features.shape[1]))
    error = cross_entropy_gradient(features @ readout.T, labels)
    return error.T @ features / len(features)
