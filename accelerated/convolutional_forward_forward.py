"""Forward-Forward through convolutional layers; see the reference.

Both streams go through one convolution of twice the batch. Planes of labels are constant: both streams, and all
candidate labels, share the convolution of the image, and what the K planes add is K images convolved once, where K
more channels for every sample would cost K / c_0 times the image's own products.
"""

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch.nn.grad import conv2d_weight

from . import forward_forward
from ._arrays import Array, Labels, check_count, check_images, check_labels, check_option, check_positive
from .convolution import convolve
from .convolutional_network import Convolution, ConvolutionalNetwork, ConvolutionalUpdates, activate
from .forward_forward import (
    UNIT_THRESHOLD,
    LayerPass,
    PlainInput,
    Prior,
    check_first_layer,
    credit,
    credited,
    divided,
    first_inputs,
    norm,
    normalise,
    per_sample,
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

CANDIDATES = 1024
"""As in `forward_forward`; feature maps are larger."""


def _place(x: Array, code: Array, place: Place) -> Array:
    """x with the numbers of code, (batch, K), over its first pixels or as planes."""
    if place == "planes":
        return torch.cat([x, code[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)
    return torch.cat([code, x.flatten(1)[:, code.shape[1] :]], dim=1).view_as(x)


def check_place(x: Array, num_classes: int, amplitude: float, place: Place) -> None:
    """Raises ValueError unless images have room for the labels at such a place."""
    check_images("x", x)
    check_option("place", place, Place)
    check_count("num_classes", num_classes, 2, math.prod(x.shape[1:]) if place == "pixels" else None)
    check_positive("amplitude", amplitude)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with labels: (batch, c_0, height, width), or K channels more."""
    check_place(x, num_classes, amplitude, place)
    check_labels(labels, num_classes, len(x))
    return _place(x, amplitude * one_hot(labels, num_classes, dtype=x.dtype), place)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with amplitude / K for every label."""
    check_place(x, num_classes, amplitude, place)
    return _place(x, torch.full_like(x[:, 0, 0, :1], amplitude / num_classes).expand(-1, num_classes), place)


class PlainImages(NamedTuple):
    """The normalised input of a convolution: (samples, c_in, height, width)."""

    z: Array

    def activate(self, layer: Convolution) -> Array:
        """Its pre-activations."""
        return activate(layer, self.z)

    def correlate(self, layer: Convolution, d: Array) -> Array:
        """sum over samples and positions of d z^T: shaped like the kernel."""
        return _correlate(layer, self.z, d)


def _correlate(layer: Convolution, z: Array, d: Array) -> Array:
    size = (d.shape[1], z.shape[1] // layer.groups, *layer.kernel.shape[2:])
    return conv2d_weight(z, size, d, stride=layer.stride, padding=layer.padding, groups=layer.groups)


class LabelledPlanes(NamedTuple):
    """The same for images with planes of labels, never formed: samples of all label sets share the image.

    `labels` may have several for each image, all images of one set after another. `product` is the part of the
    pre-activations that all sets share, where it is known already.
    """

    images: Array  # (batch, c_0, height, width), normalised
    brightness: Array  # (batch, 1, 1, 1), of the label's plane, normalised
    labels: Labels  # (sets * batch,)
    num_classes: int
    product: Array | None = None

    def shared(self, layer: Convolution) -> Array:
        """The images' part of the pre-activations: (batch, c_1, height_1, width_1)."""
        return activate(layer._replace(kernel=layer.kernel[:, : self.images.shape[1]]), self.images)

    def activate(self, layer: Convolution) -> Array:
        """The first convolution's pre-activations: (sets * batch, c_1, height_1, width_1)."""
        shared = self.shared(layer) if self.product is None else self.product
        of_planes = layer.kernel[:, self.images.shape[1] :].transpose(0, 1).flatten(0, 1)[:, None]  # (K c_1, 1, ...)
        maps = convolve(of_planes, self._ones(), layer.stride, layer.padding).unflatten(1, (self.num_classes, -1))[0]
        of_labels = maps[self.labels].unflatten(0, (-1, len(shared)))
        return torch.addcmul(shared, of_labels, self.brightness).flatten(0, 1)

    def correlate(self, layer: Convolution, d: Array) -> Array:
        """sum over samples and positions of d z^T: shaped like the first kernel."""
        sets = len(self.labels) // len(self.images)
        targets = one_hot(self.labels, self.num_classes, dtype=d.dtype) * self.brightness.flatten(1).repeat(sets, 1)
        by_label = (targets.T @ d.flatten(1)).view(1, -1, *d.shape[2:])  # (1, K c_1, height_1, width_1)
        of_planes = _correlate(layer, self._ones(), by_label).view(self.num_classes, -1, *layer.kernel.shape[2:])
        of_images = _correlate(layer, self.images, d.unflatten(0, (sets, -1)).sum(dim=0))
        return torch.cat([of_images, of_planes.transpose(0, 1)], dim=1)

    def _ones(self) -> Array:
        return torch.ones_like(self.images[:1, :1])


def labelled(
    x: Array, labels: Labels, num_classes: int, amplitude: float, place: Place, groups: int = 1
) -> PlainImages | LabelledPlanes:
    """x with one or more sets of labels, for a first convolution of so many groups, of which one may see no plane."""
    check_place(x, num_classes, amplitude, place)
    if place == "pixels" or groups > 1:
        sets = len(labels) // len(x)
        return PlainImages(normalise(overlay(x.repeat(sets, 1, 1, 1), labels, num_classes, amplitude, place)))
    channels, height, width = x.shape[1:]
    total = norm(x.flatten(1)).square() + amplitude**2 * height * width
    size = per_sample((total / ((channels + num_classes) * height * width)).sqrt() + 1e-8, x)
    return LabelledPlanes(divided(x, size), (amplitude / size).to(x.dtype), labels, num_classes)


def _update(source: PlainImages | LabelledPlanes, layer: Convolution, a: Array, gradient: Array) -> LayerUpdate:
    d = layer.activation.vjp(a, gradient)
    return LayerUpdate(source.correlate(layer, d), None if layer.bias is None else d.sum(dim=(0, 2, 3)))


def layer_passes(network: ConvolutionalNetwork, first: PlainImages | LabelledPlanes) -> Iterator[LayerPass]:
    """Of every convolution and then of every dense layer, each run when it is asked for."""
    source, passed = first, torch.empty(0)
    for layer in network.layers:
        a = source.activate(layer)
        h = layer.activation.value(a)
        yield LayerPass(h, partial(_update, source, layer, a))
        passed = max_pool(h, layer.pool)
        source = PlainImages(normalise(passed))
    yield from forward_forward.layer_passes(network.dense, PlainInput(normalise(passed.flatten(1))))


def _depth(network: ConvolutionalNetwork) -> int:
    return len(network.layers) + len(network.dense.weights)


def stream_goodness(
    network: ConvolutionalNetwork,
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    prior: Prior = "before",
    normalised: bool = False,
) -> list[LayerGoodness]:
    """What the loss of every layer is computed from, for positive and negative inputs.

    The first layer takes `normalised` inputs as they are.
    """
    passes = layer_passes(network, PlainImages(first_inputs(positive, negative, normalised)))
    return [found for _, found in credited(passes, _depth(network), goodness, prior)]


def stream_updates(
    network: ConvolutionalNetwork,
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    normalised: bool = False,
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update and its batch-mean loss, in forward order: convolutions, then dense layers.

    positive and negative are images with as many channels as the first kernel takes, which takes `normalised` ones as
    they are.
    """
    passes = layer_passes(network, PlainImages(first_inputs(positive, negative, normalised)))
    return credit(passes, _depth(network), goodness, loss, prior)


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
    """`stream_updates` for x with right and with wrong labels."""
    check_labels(labels, num_classes, len(x))
    check_labels(negative_labels, num_classes, len(x))
    groups = network.layers[0].groups
    first = labelled(x, torch.cat([labels, negative_labels]), num_classes, amplitude, place, groups)
    return credit(layer_passes(network, first), _depth(network), goodness, loss, prior)


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
    check_first_layer(_depth(network), first_layer)
    product: Array | None = None
    scores = []
    for labels in torch.arange(num_classes, device=x.device).split(max(1, CANDIDATES // len(x))):
        repeated, groups = labels.repeat_interleave(len(x)), network.layers[0].groups
        source = labelled(x, repeated, num_classes, amplitude, place, groups)
        if isinstance(source, LabelledPlanes):
            product = source.shared(network.layers[0]) if product is None else product
            source = source._replace(product=product)
        found = [goodness.value(layer.h) for layer in islice(layer_passes(network, source), first_layer, None)]
        scores.append(torch.stack(found).sum(dim=0).unflatten(0, (len(labels), -1)))
    return torch.cat(scores).T


def features(network: ConvolutionalNetwork, x: Array, first_layer: int = 1) -> Array:
    """What the layers from first_layer on pass on, normalised and flattened: (batch, sum of their sizes).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(_depth(network), first_layer)
    pools = [layer.pool for layer in network.layers]
    found = []
    for i, layer in enumerate(layer_passes(network, PlainImages(normalise(x)))):
        if i >= first_layer:
            h = max_pool(layer.h, pools[i]) if i < len(pools) else layer.h
            found.append(normalise(h.flatten(1)))
    return torch.cat(found, dim=1)


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
