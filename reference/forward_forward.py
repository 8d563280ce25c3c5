"""Forward-Forward: every layer separates positive from negative data by its own goodness.

Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345:

    (1)  Prob_l(positive) = 1 / (1 + exp(theta_l - g_l)),    g_l = sum_j h_lj^2

What the paper has in words, numbered by us; A_l, s_l and p_l are those of `layers`:

    (2)  input:      x^+ = x with v onehot(label) over the first K numbers of a sample, x^- with that of a wrong label
    (3)  layer l:    z_l = n(p_(l-1)(h_(l-1))),    z_1 = n(x^+) or n(x^-),    a_l = A_l(z_l),    h_l = s_l(a_l);
                     n(u) = u / (sqrt(mean u^2) + eps), the mean over all of a sample: `normalisations.rms_norm`
    (4)  goodness:   g_l of h_l, that of (1) or another of `goodness`
    (5)  loss:       L_l = -log Prob_l^+ - log(1 - Prob_l^-) = softplus(theta_l - g_l^+) + softplus(g_l^- - theta_l), or
                     another of `pair_losses`;    theta_l = threshold * goodness.scale(n_l)
    (6)  update:     G_l = 1/B sum_samples of the gradient of <d_l^+, A_l(z_l^+)> + <d_l^-, A_l(z_l^-)> by A_l's
                     parameters,    d_l = s_l'(a_l)^T (dL_l/dg_l * dg_l/dh_l) of either stream
    (7)  scores:     over candidate labels k: sum of g_l over the layers from first_layer on, with label k at the input
    (8)  read-out:   a linear map of n(p_l(h_l)) of the layers from first_layer on, v/K at the input for every label,
                     trained by its own cross-entropy

Ours.

    (a)  "planes":   v onehot(label) as K channels more behind a sample's own, each constant; (2) is "pixels"
    (b)  any layer:  goodness is that of all its units, before an outlet; n takes all that it passes on as one vector
    (c)  "tokens":   v onehot(label) over the first K numbers of every position of a sequence, (batch, T, n), such as an
                     embedding gives. That is no layer: without a label its goodness is the same in both streams

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x | x | (batch, n_0), (batch, c_0, height, width) or (batch, T, n_0) | samples without labels |
| v | amplitude | | brightness of the label |
| z_l, a_l, h_l | z, a, h | (batch, ...) | a layer's input, pre-activation and activity in one stream |
| n_l | | | a layer's units, those of all channels and positions |
| g_l | goodness.value(h) | (batch,) | goodness |
| P_l | prior_positive, prior_negative | (batch,) | goodness of other layers that the loss of layer l includes |
| dL_l/dg_l | positive, negative | (batch,) | the loss's derivatives by the layer's own goodness, P_l held constant |

P_l is 0 (`prior="none"`), the sum of g_t over the layers before l ("before"), or over all layers but l ("others");
losses of one layer alone ignore P_l. The input of a layer and P_l are constants of its loss; no gradient crosses it.

Normalised, z_l has the direction of what the layer below passes on; its goodness is hidden. Of a vector a channel is
one number, so that planes are K numbers more. Positive and negative data need not be labelled: `stream_updates` takes
any two streams, and `normalised` ones as they are, so that their length can separate them.

The paper has local receptive fields without shared weights, and no max pooling: under (b) a unit that is not the
largest of its square counts as any other. Sources differ in the normalisation (root mean square, here; or Euclidean
norm) and in which layers score (all, or all but the first). A sum over streams and a mean over samples is taken, as in
the paper's description; averaging over the 2B samples of both streams halves every update. Dropout masks are not part
of the method.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ._arrays import (
    Array,
    Labels,
    check_batch,
    check_count,
    check_labels,
    check_option,
    check_positive,
    check_shape,
)
from .goodness import Goodness, sum_of_squares
from .layers import Layer, Update, activity, pulled_back
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


def _check_place(x: Array, num_classes: int, amplitude: float, place: Place) -> None:
    """Raises ValueError unless samples have room for the labels at such a place."""
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...), at least one of each")
    check_option("place", place, Place)
    if place == "tokens":
        check_batch("x", x, "T, n", 2)
    room = {"pixels": math.prod(x.shape[1:]), "planes": None, "tokens": x.shape[-1]}
    check_count("num_classes", num_classes, 2, room[place])
    check_positive("amplitude", amplitude)


def _with_code(x: Array, code: Array, place: Place) -> Array:
    """x with the numbers of code, (batch, K), over its first pixels, each as a plane, or over each token's first."""
    if place == "tokens":
        code = np.broadcast_to(code[:, None], (*x.shape[:2], code.shape[1]))
        return np.concatenate([code, x[:, :, code.shape[2] :]], axis=2)
    if place == "planes":
        code = code.reshape(*code.shape, *[1] * (x.ndim - 2))
        return np.concatenate([x, np.broadcast_to(code, (*code.shape[:2], *x.shape[2:]))], axis=1)
    flat = x.reshape(len(x), -1)
    return np.concatenate([code, flat[:, code.shape[1] :]], axis=1).reshape(x.shape)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with labels, equation (2): amplitude at the label and 0 at the other of K = num_classes.

    Shaped as x; with planes K channels more. Raises ValueError where there are more labels than pixels, or than numbers
    of a token, and for labels that do not fit.

    >>> overlay(np.array([[9.0, 9.0, 9.0]]), np.array([1]), 2).tolist()  # K numbers of the sample are lost
    [[0.0, 1.0, 9.0]]
    >>> overlay(np.array([[[[9.0]]]]), np.array([1]), 2, place="planes").tolist()
    [[[[9.0]], [[0.0]], [[1.0]]]]
    """
    _check_place(x, num_classes, amplitude, place)
    check_labels(labels, num_classes, len(x))
    return _with_code(x, amplitude * one_hot(labels, num_classes).astype(x.dtype), place)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0, place: Place = "pixels") -> Array:
    """x with amplitude / K for every label, equation (8): shapes and errors as for `overlay`.

    >>> overlay_neutral(np.array([[9.0, 9.0, 9.0]]), 2).tolist()
    [[0.5, 0.5, 9.0]]
    """
    _check_place(x, num_classes, amplitude, place)
    return _with_code(x, np.full((len(x), num_classes), amplitude / num_classes, x.dtype), place)


def wrong_labels(labels: Labels, num_classes: int, rng: np.random.Generator) -> Labels:
    """For each label one of the K - 1 others, all equally likely: (batch,). Raises ValueError for one class.

    >>> wrong_labels(np.array([0, 1]), 2, np.random.default_rng(0)).tolist()  # of two classes always the other
    [1, 0]
    """
    check_count("num_classes", num_classes, 2)
    check_labels(labels, num_classes)
    return (labels + rng.integers(1, num_classes, labels.shape)) % num_classes


class LayerPass(NamedTuple):
    """What one stream leaves in a layer; see the module's table."""

    z: Array
    a: Array
    h: Array


def layer_passes(layers: Sequence[Layer], x: Array, normalised: bool = False) -> Iterator[LayerPass]:
    """z_l, a_l and h_l of every layer in turn, equation (3); z_1 is x where that is normalised."""
    z = x if normalised else rms_norm(x)
    for layer in layers:
        a = layer.value(z)
        h = activity(layer.steps, a)
        yield LayerPass(z, a, h)
        z = rms_norm(activity(layer.outlet, h))


Streams: TypeAlias = tuple[list[LayerPass], list[LayerPass]]
"""All layers' passes of the positive and of the negative stream."""


def both_streams(layers: Sequence[Layer], positive: Array, negative: Array, normalised: bool) -> Streams:
    """Raises ValueError for streams of different shapes."""
    check_shape("negative", negative, positive.shape)
    return list(layer_passes(layers, positive, normalised)), list(layer_passes(layers, negative, normalised))


def prior_layers(layer: int, depth: int, prior: Prior) -> list[int]:
    """The layers whose goodness P_l is made of. Raises ValueError for another prior than there is."""
    check_option("prior", prior, Prior)
    return {"none": [], "before": list(range(layer)), "others": [t for t in range(depth) if t != layer]}[prior]


def layer_goodness(streams: Streams, goodness: Goodness, prior: Prior) -> list[LayerGoodness]:
    """g_l and P_l of every layer, equation (4)."""
    positive, negative = ([goodness.value(found.h) for found in stream] for stream in streams)
    depth = len(positive)
    found = []
    for layer, own in enumerate(zip(positive, negative, strict=True)):
        chosen = prior_layers(layer, depth, prior)
        others = (sum((g[t] for t in chosen), np.zeros_like(g[layer])) for g in (positive, negative))
        scale = goodness.scale(streams[0][layer].h[0].size)
        found.append(LayerGoodness(layer, depth, scale, *own, *others))
    return found


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

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[1.0]]), None)  # the second does not see h_1's length
    >>> first, second = stream_goodness(layers, np.array([[2.0]]), np.array([[1.0]]), normalised=True)
    >>> first.positive.tolist(), second.prior_positive.tolist(), np.round(second.positive, 6).tolist()
    ([4.0], [4.0], [1.0])
    """
    return layer_goodness(both_streams(layers, positive, negative, normalised), goodness, prior)


def stream_updates(
    layers: Sequence[Layer],
    positive: Array,
    negative: Array,
    goodness: Goodness = sum_of_squares,
    loss: LayerLoss = UNIT_THRESHOLD,
    prior: Prior = "before",
    normalised: bool = False,
) -> Iterator[tuple[Update, Array]]:
    """G_l, equation (6), and L_l, the batch mean, of every layer in forward order: arguments as `stream_goodness`.

    G_l is a tuple shaped as the layer's parameters, L_l a scalar array. All that is needed is computed before the first
    update is handed over, so that each may be applied at once. Raises ValueError as `stream_goodness` does.

    >>> layers = (Dense(np.array([[1.0]]), None),)
    >>> (((g,), loss),) = stream_updates(layers, np.array([[1.0]]), np.array([[0.0]]), normalised=True)
    >>> g.tolist(), round(float(loss), 3)  # g^+ = theta: -1/2 times 2 h z; of h^- = 0 there is no gradient
    ([[-1.0]], 1.006)
    """
    streams = both_streams(layers, positive, negative, normalised)
    told = layer_goodness(streams, goodness, prior)
    for layer, found, *both in zip(layers, told, *streams, strict=True):
        credit = loss(found)
        parts = []
        for (z, a, h), slope in zip(both, (credit.positive, credit.negative), strict=True):
            gradient = slope.reshape(-1, *[1] * (h.ndim - 1)) * goodness.gradient(h)
            parts.append(layer.update(z, pulled_back(layer.steps, a, gradient)))
        yield tuple(p + n for p, n in zip(*parts, strict=True)), np.asarray(np.mean(credit.loss))


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
    """`stream_updates` for x with right labels and with wrong ones, equation (2): shapes as it gives them.

    labels and negative_labels are (batch,) each. Raises ValueError as `overlay`, too.

    >>> layers = (Dense(np.eye(2), None),)  # x^+ becomes (sqrt 2, 0), x^- (0, sqrt 2): both g = theta = 2
    >>> (((g,), _),) = local_updates(layers, np.array([[9.0, 9.0]]), np.array([0]), np.array([1]), 2)
    >>> np.round(g, 6).tolist()
    [[-2.0, 0.0], [0.0, 2.0]]
    """
    positive, negative = (overlay(x, of, num_classes, amplitude, place) for of in (labels, negative_labels))
    return stream_updates(layers, positive, negative, goodness, loss, prior)


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
    """G_l of every layer, (6), each hidden and with its own loss: a tuple shaped as its parameters.

    Arguments and errors as for `local_updates`: labels and negative_labels are (batch,) each.

    >>> ((g,),) = updates((Dense(np.eye(2), None),), np.array([[9.0, 9.0]]), np.array([0]), np.array([1]), 2)
    >>> np.round(g, 6).tolist()  # the weight from label 0 grows, since it is right here
    [[-2.0, 0.0], [0.0, 2.0]]
    """
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
    """Accumulated goodness of every candidate label, equation (7): (batch, K).

    Raises ValueError where there is no first_layer, and where x has no room for the labels.

    >>> layers = (Dense(np.array([[1.0, 0.0]]), None),)  # reads label 0 alone
    >>> np.round(label_scores(layers, np.array([[9.0, 9.0]]), 2), 6).tolist()
    [[2.0, 0.0]]
    """
    check_first_layer(len(layers), first_layer)
    _check_place(x, num_classes, amplitude, place)
    scores = []
    for k in range(num_classes):
        candidate = overlay(x, np.full(len(x), k), num_classes, amplitude, place)
        found = list(layer_passes(layers, candidate))[first_layer:]
        scores.append(sum(goodness.value(layer.h) for layer in found))
    return np.stack(scores, axis=1)


def features(layers: Sequence[Layer], x: Array, first_layer: int = 1) -> Array:
    """What the layers from first_layer on pass on, normalised and flattened: (batch, sum of their sizes).

    Raises ValueError where there is no first_layer.

    >>> layers = Dense(np.eye(2), None), Dense(np.array([[3.0, 0.0]]), None)
    >>> np.round(features(layers, np.array([[2.0, -2.0]])), 6).tolist()  # the first layer is left out
    [[1.0]]
    >>> np.round(features(layers, np.array([[2.0, -2.0]]), first_layer=0), 6).tolist()
    [[1.0, -1.0, 1.0]]
    """
    check_first_layer(len(layers), first_layer)
    z, found = rms_norm(x), []
    for layer in layers:
        z = rms_norm(activity(layer.outlet, activity(layer.steps, layer.value(z))))
        found.append(z.reshape(len(z), -1))
    return np.concatenate(found[first_layer:], axis=1)


def neutral_features(
    layers: Sequence[Layer],
    x: Array,
    num_classes: int,
    amplitude: float = 1.0,
    first_layer: int = 1,
    place: Place = "pixels",
) -> Array:
    """Those of the neutral pass, equation (8): (batch, sum of their sizes), as `features`.

    Raises ValueError as `features` and `overlay_neutral`.

    >>> layers = (Dense(np.array([[1.0, 0.0], [0.0, 1.0]]), None),)
    >>> np.round(neutral_features(layers, np.array([[9.0, 7.0]]), 2, first_layer=0), 6).tolist()
    [[1.0, 1.0]]
    """
    return features(layers, overlay_neutral(x, num_classes, amplitude, place), first_layer)


def readout_update(readout: Array, features: Array, labels: Labels) -> Array:
    """Batch-mean cross-entropy gradient of a linear read-out without bias, equation (8): (K, width), as the readout.

    Raises ValueError where features, (batch, width), or labels, (batch,), do not fit.

    >>> readout_update(np.zeros((2, 1)), np.array([[2.0]]), np.array([0])).tolist()  # e = -1/2, 1/2
    [[-1.0], [1.0]]
    """
    check_batch("features", features, "width")
    check_shape("readout", readout, (len(readout), features.shape[1]))
    error = cross_entropy_gradient(features @ readout.T, labels)
    return error.T @ features / len(features)
