"""Forward-Forward through convolutional layers.

Hinton, arXiv 2212.13345; see `forward_forward`. The paper has local receptive fields without shared weights and no
max pooling; that goodness is that of all units of a layer, before they are pooled, and that what is passed on is
normalised over all of them at once, is ours: sources differ in both.

    (1)  input:      x^+ = x with its label, x^- the same with a wrong label: either v onehot(label) over the first K
                     pixels, row by row and channel by channel ("pixels"), or K more channels behind those of the image,
                     v all over the label's and 0 all over the others ("planes")
    (2)  layer l:    x^_l = z / (sqrt(mean z^2) + eps), the mean over a sample's channels and positions, z = p_(l-1);
                     y_l = sigma_l(k_l x^_l + b_l),    p_l = pool(y_l), at last flattened,    p_0 = x^+ or x^-
    (3)  goodness:   of y_l, all its channels and positions
    (4)  update:     G_l = 1/B sum_(samples, positions) [ d_l^+ x^_l^+T + d_l^- x^_l^-T ],
                     d_l = s_l sigma_l'(a_l)^T dg_l/dy_l
    (5)  dense layers, s_l and scores: those of `forward_forward`

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x | x | (batch, c_0, height, width) | images; the first kernel takes c_0 channels, or c_0 + K with planes |
| y_l | h | (batch, c_l, height_l, width_l) | a convolution's activity |
| p_l | features | (batch, c_l, height_l // n, width_l // n) | what is passed on |

A unit that is not the largest of its square counts for the goodness as any other.
"""

import math
from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np

from . import forward_forward
from ._arrays import Array, Labels, check_count, check_images, check_labels, check_option, check_positive, check_shape
from .convolutional_network import ConvolutionalNetwork, ConvolutionalUpdates, activate, layer_update
from .forward_forward import (
    UNIT_THRESHOLD,
    LayerPass,
    Prior,
    added,
    check_first_layer,
    credited,
    layer_goodness,
    normalise,
)
from .goodness import Goodness, sum_of_squares
from .losses import one_hot
from .network import LayerUpdate, Updates
from .pair_losses import LayerGoodness, LayerLoss
from .pooling import max_pool

__all__ = [
    "Place",
    "features",
    "label_scores",
    "local_updates",
    "neutral_features",
    "overlay",
    "overlay_neutral",
    "stream_goodness",
    "stream_updates",
    "updates",
]

Place: TypeAlias = Literal["pixels", "planes"]
"""Where the label is."""


def _place(x: Array, code: Array, place: Place) -> Array:
    """x with the numbers of code, (batch, K), over its first pixels or as planes."""
    if place == "planes":
        planes = np.broadcast_to(code[:, :, None, None], (*code.shape, *x.shape[2:]))
        return np.concatenate([x, planes], axis=1)
    flat = x.reshape(len(x), -1)
    return np.concatenate([code, flat[:, code.shape[1] :]], axis=1).reshape(x.shape)


def check_place(x: Array, num_classes: int, amplitude: float, place: Place) -> None:
    """Raises ValueError unless images have room for the labels at such a place."""
    check_images("x", x)
    check_option("place", place, Place)
    check_count("num_classes", num_classes, 2, math.prod(x.shape[1:]) if place == "pixels" else None)
    check_positive("amplitude", amplitude)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with labels, equation (1): (batch, c_0, height, width), or K channels more."""
    check_place(x, num_classes, amplitude, place)
    check_labels(labels, num_classes, len(x))
    return _place(x, amplitude * one_hot(labels, num_classes).astype(x.dtype), place)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with amplitude / K for every label."""
    check_place(x, num_classes, amplitude, place)
    return _place(x, np.full((len(x), num_classes), amplitude / num_classes, x.dtype), place)


def layer_passes(network: ConvolutionalNetwork, x: Array, normalised: bool = False) -> Iterator[LayerPass]:
    """Of every convolution and then of every dense layer, equation (2); x^_1 is x where that is normalised."""
    check_images("x", x)
    z = x if normalised else normalise(x)
    for layer in network.layers:
        a = activate(layer, z)
        y = layer.activation.value(a)
        yield LayerPass(z, a, y)
        z = normalise(max_pool(y, layer.pool))
    yield from forward_forward.layer_passes(network.dense, z.reshape(len(z), -1), normalised=True)


def stream_goodness(
    network: ConvolutionalNetwork,
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    prior: Prior = "before",
    normalised: bool = False,
) -> list[LayerGoodness]:
    """What the loss of every layer is computed from, equation (3), for positive and negative inputs.

    The first layer takes `normalised` inputs as they are.
    """
    check_shape("negative", negative, positive.shape)
    streams = list(layer_passes(network, positive, normalised)), list(layer_passes(network, negative, normalised))
    return layer_goodness(streams, goodness, prior)


def stream_updates(
    network: ConvolutionalNetwork,
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    normalised: bool = False,
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update, equation (4), and its batch-mean loss, in forward order: convolutions, then dense layers.

    positive and negative are images with as many channels as the first kernel takes, which takes `normalised` ones as
    they are.
    """
    check_shape("negative", negative, positive.shape)
    streams = list(layer_passes(network, positive, normalised)), list(layer_passes(network, negative, normalised))
    layers = credited(streams, goodness, loss, prior)
    for layer, (both, mean_loss) in zip(network.layers, layers, strict=False):
        parts = [layer_update(layer.activation.vjp(a, gradient), z, layer) for (z, a, _), gradient in both]
        yield added(*parts), mean_loss
    yield from forward_forward.dense_updates(network.dense, layers)


def local_updates(
    network: ConvolutionalNetwork,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    amplitude: float = 1.0,
    place: Place = "pixels",
) -> Iterator[tuple[LayerUpdate, Array]]:
    """`stream_updates` for x with right and with wrong labels, equation (1)."""
    positive, negative = (overlay(x, of, num_classes, amplitude, place) for of in (labels, negative_labels))
    return stream_updates(network, positive, negative, goodness, loss, prior)


def updates(
    network: ConvolutionalNetwork,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    amplitude: float = 1.0,
    place: Place = "pixels",
) -> ConvolutionalUpdates:
    """The updates of all layers."""
    layers = local_updates(network, x, labels, negative_labels, num_classes, goodness, loss, prior, amplitude, place)
    found = [update for update, _ in layers]
    convolutions = len(network.layers)
    dense = Updates(tuple(u.weight for u in found[convolutions:]), tuple(u.bias for u in found[convolutions:]))
    return ConvolutionalUpdates(tuple(found[:convolutions]), dense)


def label_scores(
    network: ConvolutionalNetwork,
    x: Array,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    amplitude: float = 1.0,
    first_layer: int = 0,
    place: Place = "pixels",
) -> Array:
    """Accumulated goodness of every candidate label over the layers from first_layer on: (batch, K).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(network.layers) + len(network.dense.weights), first_layer)
    check_place(x, num_classes, amplitude, place)
    scores = []
    for k in range(num_classes):
        candidate = overlay(x, np.full(len(x), k), num_classes, amplitude, place)
        found = list(layer_passes(network, candidate))[first_layer:]
        scores.append(sum(goodness.value(layer.h) for layer in found))
    return np.stack(scores, axis=1)


def features(network: ConvolutionalNetwork, x: Array, first_layer: int = 1) -> Array:
    """What the layers from first_layer on pass on, normalised and flattened: (batch, sum of their sizes).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(network.layers) + len(network.dense.weights), first_layer)
    passed = [layer.h for layer in layer_passes(network, x)]
    for i, layer in enumerate(network.layers):
        passed[i] = max_pool(passed[i], layer.pool)
    return np.concatenate([normalise(p.reshape(len(p), -1)) for p in passed[first_layer:]], axis=1)


def neutral_features(
    network: ConvolutionalNetwork,
    x: Array,
    num_classes: int,
    amplitude: float = 1.0,
    first_layer: int = 1,
    place: Place = "pixels",
) -> Array:
    """Those of the neutral pass."""
    return features(network, overlay_neutral(x, num_classes, amplitude, place), first_layer)
