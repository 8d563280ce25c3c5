"""Forward-Forward: every layer separates positive from negative data by its own goodness.

Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.

    (1)  input:      x^+ = x with its first K pixels replaced by v onehot(label); x^- the same with a wrong label
    (2)  layer l:    x^_l = h_(l-1) / (sqrt(mean h_(l-1)^2) + eps), h_0 = x^+ or x^-;   h_l = sigma_l(W_l x^_l + b_l)
    (3)  goodness:   g_l = sum_j h_lj^2, or another of `goodness`
    (4)  loss:       softplus(theta_l - g_l^+) + softplus(g_l^- - theta_l), or another of `pair_losses`;
                     theta_l = threshold * goodness.scale(n_l)
    (5)  update:     G_l = 1/B sum_samples [ s_l^+ d_l^+ x^_l^+T + s_l^- d_l^- x^_l^-T ],  and without x^ for biases;
                     d_l = sigma_l'(a_l)^T dg_l/dh_l,  s_l^+ = dloss_l/dg_l^+,  s_l^- = dloss_l/dg_l^-
    (6)  scores:     over candidate labels k: sum of g_l over the layers from first_layer on, with label k at the input;
                     or a linear read-out of the neutral pass (each label pixel v/K), trained by its own cross-entropy

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| v | amplitude | | brightness of a label pixel |
| x^_l | normalise(h) | (batch, n_(l-1)) | the direction of the activity below: its goodness is hidden |
| g_l | goodness.value(h) | (batch,) | goodness |
| P_l | prior_positive, prior_negative | (batch,) | goodness of other layers that the loss of layer l includes |
| s_l | positive, negative | (batch,) | the loss's derivatives by the layer's own goodness, P_l held constant |

P_l is 0 (`prior="none"`), the sum of g_t over the layers before l ("before"), or over all layers but l ("others");
losses of one layer alone ignore P_l. The input of a layer and P_l are constants of its loss; no gradient crosses it.

Positive and negative data need not be labelled images: `stream_updates` takes any two streams, and `normalised` ones as
they are, so that their length can separate them. Sources differ in the normalisation (root mean square, here; or
Euclidean norm) and in which layers score (all, or all but the first). A sum over streams and a mean over samples is
taken, as in the paper's description; averaging over the 2B samples of both streams halves every update. Masks are not
part of the method.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

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
from .goodness import Goodness, sum_of_squares
from .losses import cross_entropy_gradient, one_hot
from .network import LayerUpdate, Network, Updates, affine, collect, layer_update
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


def normalise(h: Array, eps: float = 1e-8) -> Array:
    """Samples divided by their root mean square, equation (2): (batch, ...). The mean square becomes 1; 0 stays 0."""
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, ...), at least one of each")
    check_not_negative("eps", eps)
    axes = tuple(range(1, h.ndim))
    return h / (np.sqrt(np.mean(h**2, axis=axes, keepdims=True)) + eps)


def _check_pixels(x: Array, num_classes: int, amplitude: float) -> None:
    check_batch("x", x, "n_0")
    check_count("num_classes", num_classes, 2, x.shape[1])
    check_positive("amplitude", amplitude)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with its first K = num_classes pixels replaced by amplitude at the label and 0 elsewhere, equation (1)."""
    _check_pixels(x, num_classes, amplitude)
    check_labels(labels, num_classes, len(x))
    return np.concatenate([amplitude * one_hot(labels, num_classes).astype(x.dtype), x[:, num_classes:]], axis=1)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with each of its first K = num_classes pixels replaced by amplitude / K."""
    _check_pixels(x, num_classes, amplitude)
    return np.concatenate([np.full_like(x[:, :num_classes], amplitude / num_classes), x[:, num_classes:]], axis=1)


def wrong_labels(labels: Labels, num_classes: int, rng: np.random.Generator) -> Labels:
    """For each label one of the K - 1 others, all equally likely: (batch,)."""
    check_count("num_classes", num_classes, 2)
    check_labels(labels, num_classes)
    return (labels + rng.integers(1, num_classes, labels.shape)) % num_classes


class LayerPass(NamedTuple):
    """What one stream leaves in a layer: its normalised input x^, pre-activation a and activity h."""

    z: Array
    a: Array
    h: Array


def layer_passes(network: Network, x: Array, normalised: bool = False) -> Iterator[LayerPass]:
    """Of every layer in turn, equation (2); x^_1 is x where that is normalised."""
    check_batch("x", x, "n_0")
    z = x if normalised else normalise(x)
    for weight, bias, activation in zip(*network, strict=True):
        a = affine(weight, bias, z)
        h = activation.value(a)
        yield LayerPass(z, a, h)
        z = normalise(h)


Streams: TypeAlias = tuple[Sequence[LayerPass], Sequence[LayerPass]]
"""All layers' passes of the positive and of the negative stream."""


def prior_layers(layer: int, depth: int, prior: Prior) -> list[int]:
    """The layers whose goodness P_l is made of. Raises ValueError for another prior than there is."""
    check_option("prior", prior, Prior)
    return {"none": [], "before": list(range(layer)), "others": [t for t in range(depth) if t != layer]}[prior]


def layer_goodness(streams: Streams, goodness: Goodness, prior: Prior) -> list[LayerGoodness]:
    """g_l and P_l of every layer, equation (3)."""
    positive, negative = ([goodness.value(found.h) for found in stream] for stream in streams)
    depth = len(positive)
    found = []
    for layer, own in enumerate(zip(positive, negative, strict=True)):
        chosen = prior_layers(layer, depth, prior)
        other_positive, other_negative = (
            sum((g[t] for t in chosen), np.zeros_like(g[layer])) for g in (positive, negative)
        )
        scale = goodness.scale(streams[0][layer].h[0].size)
        found.append(LayerGoodness(layer, depth, scale, *own, other_positive, other_negative))
    return found


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
    check_shape("negative", negative, positive.shape)
    streams = list(layer_passes(network, positive, normalised)), list(layer_passes(network, negative, normalised))
    return layer_goodness(streams, goodness, prior)


def per_sample(values: Array, like: Array) -> Array:
    """(batch,) as (batch, 1, ...), to be multiplied with an array of samples."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def credited(
    streams: Streams, goodness: Goodness, loss: LayerLoss, prior: Prior
) -> Iterator[tuple[list[tuple[LayerPass, Array]], Array]]:
    """Of every layer: both streams' passes, each with s_l dg_l/dh_l, and the batch-mean loss, equation (4)."""
    for found, *both in zip(layer_goodness(streams, goodness, prior), *streams, strict=True):
        credit = loss(found)
        slopes = (credit.positive, credit.negative)
        gradients = [per_sample(s, p.h) * goodness.gradient(p.h) for s, p in zip(slopes, both, strict=True)]
        yield list(zip(both, gradients, strict=True)), np.asarray(np.mean(credit.loss))


def added(positive: LayerUpdate, negative: LayerUpdate) -> LayerUpdate:
    """The sum over both streams of equation (5)."""
    bias = None if positive.bias is None or negative.bias is None else positive.bias + negative.bias
    return LayerUpdate(positive.weight + negative.weight, bias)


def dense_updates(
    network: Network, layers: Iterable[tuple[list[tuple[LayerPass, Array]], Array]]
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update, equation (5), and its loss."""
    for bias, activation, (both, loss) in zip(network.biases, network.activations, layers, strict=True):
        parts = [layer_update(activation.vjp(a, gradient), z, bias) for (z, a, _), gradient in both]
        yield added(*parts), loss


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

    positive and negative are (batch, n_0); the first layer takes `normalised` ones as they are. All that is needed is
    computed before the first update is handed over, so that each may be applied at once.
    """
    check_shape("negative", negative, positive.shape)
    streams = list(layer_passes(network, positive, normalised)), list(layer_passes(network, negative, normalised))
    return dense_updates(network, credited(streams, goodness, loss, prior))


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
    """`stream_updates` for x with right and with wrong labels, equation (1)."""
    check_labels(negative_labels, num_classes, len(x))
    positive, negative = (overlay(x, of, num_classes, amplitude) for of in (labels, negative_labels))
    return stream_updates(network, positive, negative, goodness, loss, prior)


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
    """Accumulated goodness of every candidate label, equation (6): (batch, K).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(network.weights), first_layer)
    _check_pixels(x, num_classes, amplitude)
    scores = []
    for k in range(num_classes):
        candidate = overlay(x, np.full(len(x), k), num_classes, amplitude)
        found = list(layer_passes(network, candidate))[first_layer:]
        scores.append(sum(goodness.value(layer.h) for layer in found))
    return np.stack(scores, axis=1)


def features(network: Network, x: Array, first_layer: int = 1) -> Array:
    """Normalised activities of the layers from first_layer on: (batch, sum of their widths).

    Raises ValueError where there is no first_layer.
    """
    check_first_layer(len(network.weights), first_layer)
    check_batch("x", x, "n_0")
    return np.concatenate([normalise(layer.h) for layer in list(layer_passes(network, x))[first_layer:]], axis=1)


def neutral_features(
    network: Network, x: Array, num_classes: int, amplitude: float = 1.0, first_layer: int = 1
) -> Array:
    """Those of the neutral pass, equation (6)."""
    return features(network, overlay_neutral(x, num_classes, amplitude), first_layer)


def readout_update(readout: Array, features: Array, labels: Labels) -> Array:
    """Batch-mean cross-entropy gradient of a linear read-out without bias: (K, width), as is the read-out."""
    check_batch("features", features, "width")
    check_shape("readout", readout, (len(readout), features.shape[1]))
    error = cross_entropy_gradient(features @ readout.T, labels)
    return error.T @ features / len(features)
