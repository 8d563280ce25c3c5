"""Forward-Forward: every layer separates positive from negative data by its own goodness; see the reference.

Both streams go through one product of twice the batch. Samples that differ in their labels alone share the first
layer's product but for the K channels of the labels, the first numbers of a vector or the planes of an image: a sum
over input channels is that of the shared ones and that of the label's, one vector or map for each label. Their norms
are the same. So a step takes four products a layer (two at the first) to backpropagation's three, and candidate labels
share the first product in the same way. K planes convolved once take the place of K more channels for every sample,
K / c_0 times the image's own products.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from math import prod
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch

from ._arrays import (
    Array,
    Labels,
    check_batch,
    check_count,
    check_labels,
    check_option,
    check_positive,
    check_shape,
    wide,
)
from .goodness import Goodness, sum_of_squares
from .layers import Layer, Update, activity, is_by_channel, pulled_back
from .losses import cross_entropy_gradient, one_hot
from .normalisations import rms_norm
from .pair_losses import LayerGoodness, LayerLoss, threshold

__all__ = [
    "Place",
    "Prior",
    "features",
    "label_scores",
    "local_updates",
    "neutral_features",
    "overlay",
    "overlay_neutral",
    "readout_update",
    "stream_goodness",
    "stream_updates",
    "updates",
    "wrong_labels",
]

Place: TypeAlias = Literal["pixels", "planes", "tokens"]
"""Where the label is."""

Prior: TypeAlias = Literal["none", "before", "others"]
"""Which other layers' goodness the loss of a layer includes."""

UNIT_THRESHOLD = threshold(1.0)
"""The loss unless another is given: theta_l is 1 for each unit."""

CANDIDATES = 4096
"""Vectors with a candidate label that pass through the layers at one time, where a batch is no larger.

Of images a fourth, since feature maps are larger.
"""


def _check_place(x: Array, num_classes: int, amplitude: float, place: Place) -> None:
    """Raises ValueError unless samples have room for the labels at such a place."""
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...), at least one of each")
    check_option("place", place, Place)
    if place == "tokens":
        check_batch("x", x, "T, n", 2)
    room = {"pixels": prod(x.shape[1:]), "planes": None, "tokens": x.shape[-1]}
    check_count("num_classes", num_classes, 2, room[place])
    check_positive("amplitude", amplitude)


def _with_code(x: Array, code: Array, place: Place) -> Array:
    """x with the numbers of code, (batch, K), over its first pixels, each as a plane, or over each token's first."""
    if place == "tokens":
        return torch.cat([code[:, None].expand(-1, x.shape[1], -1), x[:, :, code.shape[1] :]], dim=2)
    if place == "planes":
        return torch.cat([x, per_sample(code, x).expand(-1, -1, *x.shape[2:])], dim=1)
    return torch.cat([code, x.flatten(1)[:, code.shape[1] :]], dim=1).view_as(x)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with labels: shaped as x, with planes K channels more.

    Raises ValueError where there are more labels than pixels, or than numbers of a token, and for labels that do not
    fit.
    """
    _check_place(x, num_classes, amplitude, place)
    check_labels(labels, num_classes, x.shape[0])
    return _with_code(x, amplitude * one_hot(labels, num_classes, dtype=x.dtype), place)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with amplitude / K for every label: shapes and errors as for `overlay`."""
    _check_place(x, num_classes, amplitude, place)
    return _with_code(x, x.new_full((x.shape[0], num_classes), amplitude / num_classes), place)


def wrong_labels(labels: Labels, num_classes: int, generator: torch.Generator | None = None) -> Labels:
    """For each label one of the K - 1 others, all equally likely: (batch,). Raises ValueError for one class."""
    check_count("num_classes", num_classes, 2)
    check_labels(labels, num_classes)
    offsets = torch.randint(1, num_classes, labels.shape, generator=generator, device=labels.device)
    return (labels + offsets) % num_classes


def per_sample(values: Array, like: Array) -> Array:
    """(batch, ...) with axes of 1 behind, to be multiplied with an array of samples."""
    return values.view(*values.shape, *[1] * (like.dim() - values.dim()))


EPS = 1e-8
"""That of `rms_norm`."""


class Input(Protocol):
    """What goes into a layer."""

    def value(self, layer: Layer) -> Array:
        """The layer's pre-activations: (samples, ...)."""
        ...

    def update(self, layer: Layer, d: Array) -> Update:
        """The layer's update by d, shaped as its pre-activations."""
        ...


class PlainInput(NamedTuple):
    """Samples as they are, normalised."""

    z: Array

    def value(self, layer: Layer) -> Array:
        return layer.value(self.z)

    def update(self, layer: Layer, d: Array) -> Update:
        return layer.update(self.z, d)


class LabelledInput(NamedTuple):
    """Samples that differ in their labels alone, never formed: they share all input channels but those of the labels.

    `learning` is the layer of the shared channels, and of those that labels replace: their columns of its update are
    written over, which takes less than to put two parts together. `apart` takes one channel, where every label's has
    outputs of its own. `labels` may have several for each sample, all samples of one set after another.
    """

    learning: Layer
    apart: Layer
    replaced: bool  # whether labels replace the first channels, or are more behind them
    shared: Array  # (batch, n_in or n_in - K, ...), normalised
    brightness: Array  # (batch, 1, ...), of the label's channel, normalised
    product: Array  # (batch, n_1, ...), the part of the pre-activations that all sets share
    num_classes: int
    labels: Labels  # (sets * batch,)

    def value(self, layer: Layer) -> Array:
        maps = self.apart.value(self._ones()).unflatten(1, (self.num_classes, -1))[0]  # (K, n_1, ...)
        of_labels = maps[self.labels].unflatten(0, (-1, self.shared.shape[0]))  # (sets, batch, n_1, ...)
        return torch.addcmul(self.product, of_labels, self.brightness).flatten(0, 1)

    def update(self, layer: Layer, d: Array) -> Update:
        sets = len(d) // len(self.shared)
        code = one_hot(self.labels, self.num_classes, dtype=d.dtype) * self.brightness.flatten(1).repeat(sets, 1)
        by_label = (code.T @ d.flatten(1) / len(d)).view(1, -1, *d.shape[2:])  # (1, K n_1, ...)
        of_labels = self.apart.update(self._ones(), by_label)[0].unflatten(0, (self.num_classes, -1))
        of_labels = of_labels[:, :, 0].transpose(0, 1)  # (n_1, K, ...)
        weight, *bias = self.learning.update(self.shared, d.unflatten(0, (sets, -1)).mean(dim=0))
        if self.replaced:
            weight[:, : self.num_classes] = of_labels
        else:
            weight = torch.cat([weight, of_labels], dim=1)
        return (weight, *bias)

    def _ones(self) -> Array:
        return torch.ones_like(self.shared[:1, :1])


def labelled(
    layer: Layer, x: Array, num_classes: int, amplitude: float, place: Place
) -> Callable[[Labels], PlainInput | LabelledInput]:
    """What gives the first layer's input for one or more sets of labels. Raises ValueError as `overlay`."""
    _check_place(x, num_classes, amplitude, place)
    replaced, positions = place == "pixels", x[0].numel() // x.shape[1]
    start, channels = (0, x.shape[1]) if replaced else (x.shape[1], x.shape[1] + num_classes)
    whole = replaced and (positions > 1 or num_classes == channels)  # no channels of the labels', or none else
    whole = whole or place == "tokens"  # whose numbers are the last axis
    if not is_by_channel(layer) or layer.channel_weight.shape[1] != channels or whole:

        def formed(labels: Labels) -> PlainInput:
            repeated = x.repeat(labels.shape[0] // x.shape[0], *[1] * (x.dim() - 1))
            return PlainInput(rms_norm(overlay(repeated, labels, num_classes, amplitude, place)))

        return formed
    own, rest = slice(start, start + num_classes), slice(num_classes, None) if replaced else slice(start)
    axes = tuple(range(1, x.dim()))
    length = torch.linalg.vector_norm(x[:, rest], dim=axes, keepdim=True, dtype=wide(x.dtype))
    size = ((length.square() + positions * amplitude**2) / (channels * positions)).sqrt() + EPS
    shared, brightness = (x / size).to(x.dtype), (amplitude / size).to(x.dtype)
    others = layer.of_channels(layer.channel_weight[:, rest], biased=True)
    one_by_one = layer.channel_weight[:, own].transpose(0, 1).flatten(0, 1)[:, None]  # (K n_1, 1, ...)
    apart, learning = layer.of_channels(one_by_one, biased=False), layer if replaced else others
    product = others.value(shared[:, rest])
    return lambda labels: LabelledInput(learning, apart, replaced, shared, brightness, product, num_classes, labels)


def first_inputs(positive: Array, negative: Array, normalised: bool) -> PlainInput:
    """Both streams as the first layer takes them. Raises ValueError for streams of different shapes."""
    check_shape("negative", negative, positive.shape)
    both = torch.cat([positive, negative])
    return PlainInput(both if normalised else rms_norm(both))


class LayerPass(NamedTuple):
    """The activity of a layer for both streams, and its update from the loss's gradient by that activity."""

    h: Array
    update: Callable[[Array], Update]


def _update(source: Input, layer: Layer, a: Array, gradient: Array) -> Update:
    return source.update(layer, pulled_back(layer.steps, a, gradient))


def layer_passes(layers: Sequence[Layer], first: Input) -> Iterator[LayerPass]:
    """Of every layer in turn, each run when it is asked for."""
    source = first
    del first  # not held with later layers
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        a = source.value(layer)
        h = activity(layer.steps, a)
        yield LayerPass(h, partial(_update, source, layer, a))
        if following is not None:
            source = PlainInput(rms_norm(activity(layer.outlet, h)))


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
    layers: Sequence[Layer], first: Input, goodness: Goodness, loss: LayerLoss, prior: Prior
) -> Iterator[tuple[Update, Array]]:
    """Each layer's update and batch-mean loss. The sum over both streams is twice the mean over their 2B samples."""
    passes = credited(layer_passes(layers, first), len(layers), goodness, prior)
    del first
    for layer, found in passes:
        credit = loss(found)
        slope = per_sample(2 * torch.cat([credit.positive, credit.negative]), layer.h).to(layer.h.dtype)
        update = layer.update(goodness.gradient(layer.h) * slope)
        del layer  # not held with the next one
        yield update, credit.loss.mean()


def stream_goodness(
    layers: Sequence[Layer],
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    prior: Prior = "before",
    normalised: bool = False,
) -> list[LayerGoodness]:
    """What the loss of every layer is computed from, for positive and negative inputs of one shape, (batch, ...).

    The first layer takes `normalised` inputs as they are. Raises ValueError for another prior, and where shapes do not
    fit.
    """
    passes = layer_passes(layers, first_inputs(positive, negative, normalised))
    return [found for _, found in credited(passes, len(layers), goodness, prior)]


def stream_updates(
    layers: Sequence[Layer],
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    normalised: bool = False,
) -> Iterator[tuple[Update, Array]]:
    """Each layer's update and its batch-mean loss, in forward order: arguments as `stream_goodness`.

    A layer's outputs are computed before its update is handed over, so that it may be applied at once.
    """
    return credit(layers, first_inputs(positive, negative, normalised), goodness, loss, prior)


def local_updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    amplitude: float = 1.0,
    place: Place = "pixels",
) -> Iterator[tuple[Update, Array]]:
    """`stream_updates` for x with right and with wrong labels. Raises ValueError as `overlay`, too."""
    check_labels(labels, num_classes, len(x))
    check_labels(negative_labels, num_classes, len(x))
    first = labelled(layers[0], x, num_classes, amplitude, place)
    return credit(layers, first(torch.cat([labels, negative_labels])), goodness, loss, prior)


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    amplitude: float = 1.0,
    place: Place = "pixels",
) -> tuple[Update, ...]:
    """The updates of all layers, each hidden and with its own loss: arguments and errors as for `local_updates`."""
    found = local_updates(layers, x, labels, negative_labels, num_classes, goodness, loss, prior, amplitude, place)
    return tuple(update for update, _ in found)


def check_first_layer(depth: int, first_layer: int) -> None:
    """Raises ValueError where there is no first_layer."""
    check_count("first_layer", first_layer, 0, depth - 1)


def label_scores(
    layers: Sequence[Layer],
    x: Array,
    num_classes: int,
    goodness: Goodness = sum_of_squares,
    amplitude: float = 1.0,
    first_layer: int = 0,
    place: Place = "pixels",
) -> Array:
    """Accumulated goodness of every candidate label, as many labels in one pass as CANDIDATES allows: (batch, K).

    Raises ValueError where there is no first_layer, and where x has no room for the labels.
    """
    check_first_layer(len(layers), first_layer)
    first = labelled(layers[0], x, num_classes, amplitude, place)
    candidates = CANDIDATES if x.dim() == 2 else CANDIDATES // 4
    at_once = num_classes  # in a graph for batches of any size
    if not torch.compiler.is_exporting():
        at_once = max(1, candidates // x.shape[0])
    scores = []
    for labels in torch.arange(num_classes, device=x.device).split(at_once):
        passes = layer_passes(layers, first(labels[:, None].expand(-1, x.shape[0]).flatten()))
        found = [goodness.value(layer.h) for layer in islice(passes, first_layer, None)]
        scores.append(torch.stack(found).sum(dim=0).unflatten(0, (len(labels), -1)))
    return torch.cat(scores).T


def features(layers: Sequence[Layer], x: Array, first_layer: int = 1) -> Array:
    """What the layers from first_layer on pass on, normalised and flattened: (batch, sum of their sizes).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(layers), first_layer)
    z, found = rms_norm(x), []
    for layer in layers:
        z = rms_norm(activity(layer.outlet, activity(layer.steps, layer.value(z))))
        found.append(z.flatten(1))
    return torch.cat(found[first_layer:], dim=1)


def neutral_features(
    layers: Sequence[Layer],
    x: Array,
    num_classes: int,
    amplitude: float = 1.0,
    first_layer: int = 1,
    place: Place = "pixels",
) -> Array:
    """Those of the neutral pass. Raises ValueError as `features` and `overlay_neutral`."""
    return features(layers, overlay_neutral(x, num_classes, amplitude, place), first_layer)


def readout_update(readout: Array, features: Array, labels: Labels) -> Array:
    """Batch-mean cross-entropy gradient of a linear read-out without bias: (K, width), as is the read-out.

    Raises ValueError where features, (batch, width), or labels, (batch,), do not fit.
    """
    check_batch("features", features, "width")
    check_shape("readout", readout, (len(readout), features.shape[1]))
    error = cross_entropy_gradient(features @ readout.T, labels)
    return error.T @ features / len(features)
