"""Forward-Forward: every layer tells positive from negative data by its own goodness; see the reference.

Multiplications of a step: both streams go through one product of twice the batch. At the first layer they share the
product but for the K label columns, since they differ in those pixels only and have the same norm: one forward and one
update product for both. So a step takes four products a layer (two at the first) to backpropagation's three.
"""

from collections.abc import Iterator

import torch

from ._arrays import Array, Labels
from .losses import cross_entropy_gradient, one_hot
from .network import LayerUpdate, Network, Updates, affine, collect

__all__ = [
    "goodness",
    "label_scores",
    "local_updates",
    "neutral_features",
    "normalise",
    "overlay",
    "overlay_neutral",
    "readout_update",
    "threshold_loss",
    "threshold_loss_gradient",
    "updates",
    "wrong_labels",
]


def normalise(h: Array, eps: float = 1e-8) -> Array:
    """Samples divided by their root mean square: (batch, n). The mean square becomes 1; 0 stays 0."""
    return h / (_root_mean_square(h.square().mean(dim=1, keepdim=True), eps))


def _root_mean_square(mean_square: Array, eps: float = 1e-8) -> Array:
    """Its root plus eps, or plus the smallest number where half precision has no eps that small."""
    return mean_square.sqrt() + max(eps, torch.finfo(mean_square.dtype).tiny)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with its first K = num_classes pixels replaced by amplitude at the label and 0 elsewhere."""
    return torch.cat([amplitude * one_hot(labels, num_classes, dtype=x.dtype), x[:, num_classes:]], dim=1)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with each of its first K = num_classes pixels replaced by amplitude / K."""
    return torch.cat([torch.full_like(x[:, :num_classes], amplitude / num_classes), x[:, num_classes:]], dim=1)


def wrong_labels(labels: Labels, num_classes: int, generator: torch.Generator | None = None) -> Labels:
    """For each label one of the K - 1 others, all equally likely: (batch,)."""
    offsets = torch.randint(1, num_classes, labels.shape, generator=generator, device=labels.device)
    return (labels + offsets) % num_classes


def goodness(h: Array) -> Array:
    """Sum of squares: (batch,)."""
    return h.square().sum(dim=1)


def threshold_loss(positive: Array, negative: Array, theta: float) -> Array:
    """softplus(theta - g^+) + softplus(g^- - theta): (batch,), in nats. Finite for any finite goodness."""
    zero = torch.zeros_like(positive)  # functional.softplus drops what lies below 2e-9
    return torch.logaddexp(theta - positive, zero) + torch.logaddexp(negative - theta, zero)


def threshold_loss_gradient(positive: Array, negative: Array, theta: float) -> tuple[Array, Array]:
    """Derivatives of the threshold loss by the two goodnesses: -sigmoid(theta - g^+), sigmoid(g^- - theta)."""
    return -torch.sigmoid(theta - positive), torch.sigmoid(negative - theta)


def local_updates(
    network: Network,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    threshold: float = 1.0,
    amplitude: float = 1.0,
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update and its batch-mean loss, in forward order.

    A layer's outputs are computed before its update is handed over, so it may be applied at once.
    """
    batch = len(x)
    both = torch.cat([labels, negative_labels])
    first_input = _LabelledInput(x, num_classes, amplitude)
    h = None
    for weight, bias, activation in zip(*network, strict=True):
        z = None if h is None else normalise(h)  # (2 batch, n_(l-1)), positive samples first
        a = first_input.affine(weight, bias, both) if z is None else affine(weight, bias, z)
        h = activation.value(a)
        theta = threshold * len(weight)
        g_positive, g_negative = goodness(h).chunk(2)
        slope = torch.cat(threshold_loss_gradient(g_positive, g_negative, theta))
        d = activation.vjp(a, h * (slope * (2 / batch))[:, None])
        update = LayerUpdate(
            first_input.correlate(d, both) if z is None else d.T @ z,
            None if bias is None else d.sum(dim=0),
        )
        yield update, threshold_loss(g_positive, g_negative, theta).mean()


class _LabelledInput:
    """The normalised, label-overlaid input of the first layer, never formed: its samples share all but K columns."""

    def __init__(self, x: Array, num_classes: int, amplitude: float) -> None:
        self.pixels = x[:, num_classes:]
        self.num_classes = num_classes
        self.amplitude = amplitude
        # overlay() of any one label has this square sum.
        mean_square = (self.pixels.square().sum(dim=1) + amplitude**2) / x.shape[1]
        self.scale = (1 / _root_mean_square(mean_square))[:, None]

    def affine(self, weight: Array, bias: Array | None, labels: Labels) -> Array:
        """Pre-activations for one or more sets of labels, all samples of a set after another: (len(labels), n_1)."""
        label_columns = self.amplitude * weight[:, : self.num_classes].T  # (K, n_1)
        shared = self.pixels @ weight[:, self.num_classes :].T  # (batch, n_1)
        a = shared + label_columns[labels].unflatten(0, (-1, len(shared)))  # (sets, batch, n_1)
        a = a * self.scale
        return (a if bias is None else a + bias).flatten(0, 1)

    def correlate(self, d: Array, labels: Labels) -> Array:
        """sum_samples d z^T over all label sets: (n_1, n_0)."""
        d = d.unflatten(0, (-1, len(self.pixels))) * self.scale
        targets = one_hot(labels, self.num_classes, dtype=d.dtype)
        return torch.cat([self.amplitude * (d.flatten(0, 1).T @ targets), d.sum(dim=0).T @ self.pixels], dim=1)


def updates(
    network: Network,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    threshold: float = 1.0,
    amplitude: float = 1.0,
) -> Updates:
    """The updates of all layers; every layer of the network is hidden and has its own loss."""
    layers = local_updates(network, x, labels, negative_labels, num_classes, threshold, amplitude)
    return collect(update for update, _ in layers)


def _check_first_layer(network: Network, first_layer: int) -> None:
    if not 0 <= first_layer < len(network.weights):
        raise ValueError(f"first_layer: {first_layer}, expected 0..{len(network.weights) - 1}")


def label_scores(network: Network, x: Array, num_classes: int, amplitude: float = 1.0, first_layer: int = 0) -> Array:
    """Accumulated goodness of every candidate label, all labels in one pass: (batch, K).

    Raises ValueError where there is no first_layer.
    """
    _check_first_layer(network, first_layer)
    labels = torch.arange(num_classes, device=x.device).repeat_interleave(len(x))
    first_input = _LabelledInput(x, num_classes, amplitude)
    scores = torch.zeros(len(labels), device=x.device, dtype=x.dtype)
    h = None
    for layer, (weight, bias, activation) in enumerate(zip(*network, strict=True)):
        h = activation.value(
            first_input.affine(weight, bias, labels) if h is None else affine(weight, bias, normalise(h))
        )
        if layer >= first_layer:
            scores = scores + goodness(h)
    return scores.unflatten(0, (num_classes, -1)).T


def neutral_features(
    network: Network, x: Array, num_classes: int, amplitude: float = 1.0, first_layer: int = 1
) -> Array:
    """Normalised activities of the layers from first_layer on, of the neutral pass: (batch, sum of their widths)."""
    _check_first_layer(network, first_layer)
    features = []
    h = normalise(overlay_neutral(x, num_classes, amplitude))
    for layer, (weight, bias, activation) in enumerate(zip(*network, strict=True)):
        h = normalise(activation.value(affine(weight, bias, h)))
        if layer >= first_layer:
            features.append(h)
    return torch.cat(features, dim=1)


def readout_update(readout: Array, features: Array, labels: Labels) -> Array:
    """Batch-mean cross-entropy gradient of a linear read-out without bias: (K, width), as is the read-out."""
    error = cross_entropy_gradient(features @ readout.T, labels)
    return error.T @ features / len(features)
