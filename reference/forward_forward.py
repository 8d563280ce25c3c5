"""Forward-Forward: every layer tells positive from negative data by its own goodness.

Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.

    (1)  input:      x^+ = x with its first K pixels replaced by v onehot(label); x^- the same with a wrong label
    (2)  layer l:    x^_l = z / (sqrt(mean z^2) + eps) with z = h_(l-1), h_0 = x^+ or x^-;   h_l = sigma(W_l x^_l + b_l)
    (3)  goodness:   g_l = sum_j h_lj^2
    (4)  loss:       softplus(theta_l - g_l^+) + softplus(g_l^- - theta_l),   theta_l = threshold * n_l
    (5)  update:     G_l = 1/B sum_samples [ s_l^+ d_l^+ x^_l^+T + s_l^- d_l^- x^_l^-T ],  d_l = 2 sigma'(a_l)^T h_l,
                     s_l^+ = -sigmoid(theta_l - g_l^+),  s_l^- = sigmoid(g_l^- - theta_l);  without x^ for biases
    (6)  scores:     over candidate labels k: sum of g_l over the layers from first_layer on, with label k at the input;
                     or a linear read-out of the neutral pass (each label pixel v/K), trained by its own cross-entropy

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| v | amplitude | | brightness of a label pixel |
| theta_l | threshold * n_l | | goodness at which a sample is as likely positive as negative |
| x^_l | normalise(h) | (batch, n_(l-1)) | the direction of the activity below: its goodness is hidden |
| g_l | goodness(h) | (batch,) | goodness |

The input of a layer is a constant to it: no gradient crosses layers. Sources differ in the normalisation (root mean
square, here; or Euclidean norm), in the goodness (sum, here; or mean) and in which layers score (all, or all but
the first). A sum over streams and a mean over samples is taken, as in the paper's description; averaging over the 2B
samples of both streams halves every update. Masks are not part of the method.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import expit

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
    """Samples divided by their root mean square, equation (2): (batch, n). The mean square becomes 1; 0 stays 0."""
    return h / (np.sqrt(np.mean(h**2, axis=1, keepdims=True)) + eps)


def overlay(x: Array, labels: Labels, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with its first K = num_classes pixels replaced by amplitude at the label and 0 elsewhere, equation (1)."""
    return np.concatenate([amplitude * one_hot(labels, num_classes).astype(x.dtype), x[:, num_classes:]], axis=1)


def overlay_neutral(x: Array, num_classes: int, amplitude: float = 1.0) -> Array:
    """x with each of its first K = num_classes pixels replaced by amplitude / K."""
    return np.concatenate([np.full_like(x[:, :num_classes], amplitude / num_classes), x[:, num_classes:]], axis=1)


def wrong_labels(labels: Labels, num_classes: int, rng: np.random.Generator) -> Labels:
    """For each label one of the K - 1 others, all equally likely: (batch,)."""
    return (labels + rng.integers(1, num_classes, labels.shape)) % num_classes


def goodness(h: Array) -> Array:
    """Sum of squares, equation (3): (batch,)."""
    return np.sum(h**2, axis=1)


def threshold_loss(positive: Array, negative: Array, theta: float) -> Array:
    """Equation (4) for the goodness of paired samples: (batch,), in nats. Finite for any finite goodness."""
    return np.logaddexp(0, theta - positive) + np.logaddexp(0, negative - theta)


def threshold_loss_gradient(positive: Array, negative: Array, theta: float) -> tuple[Array, Array]:
    """Derivatives of the threshold loss by the two goodnesses: -sigmoid(theta - g^+), sigmoid(g^- - theta)."""
    return -expit(theta - positive), expit(negative - theta)


def local_updates(
    network: Network,
    x: Array,
    labels: Labels,
    negative_labels: Labels,
    num_classes: int,
    threshold: float = 1.0,
    amplitude: float = 1.0,
) -> Iterator[tuple[LayerUpdate, Array]]:
    """Each layer's update, equation (5), and its batch-mean loss, equation (4), in forward order.

    A layer's outputs are computed before its update is handed over, so it may be applied at once.
    """
    h_positive = overlay(x, labels, num_classes, amplitude)
    h_negative = overlay(x, negative_labels, num_classes, amplitude)
    for weight, bias, activation in zip(*network, strict=True):
        z_positive, z_negative = normalise(h_positive), normalise(h_negative)
        a_positive, a_negative = affine(weight, bias, z_positive), affine(weight, bias, z_negative)
        h_positive, h_negative = activation.value(a_positive), activation.value(a_negative)

        theta = threshold * len(weight)
        g_positive, g_negative = goodness(h_positive), goodness(h_negative)
        slope_positive, slope_negative = threshold_loss_gradient(g_positive, g_negative, theta)
        d_positive = slope_positive[:, None] * activation.vjp(a_positive, 2 * h_positive)  # (batch, n_l)
        d_negative = slope_negative[:, None] * activation.vjp(a_negative, 2 * h_negative)
        update = LayerUpdate(
            (d_positive.T @ z_positive + d_negative.T @ z_negative) / len(x),
            None if bias is None else d_positive.mean(axis=0) + d_negative.mean(axis=0),
        )
        yield update, np.asarray(np.mean(threshold_loss(g_positive, g_negative, theta)))


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


def _hidden(network: Network, x: Array) -> list[Array]:
    hidden = []
    for weight, bias, activation in zip(*network, strict=True):
        x = activation.value(affine(weight, bias, normalise(x)))
        hidden.append(x)
    return hidden


def _check_first_layer(network: Network, first_layer: int) -> None:
    if not 0 <= first_layer < len(network.weights):
        raise ValueError(f"first_layer: {first_layer}, expected 0..{len(network.weights) - 1}")


def label_scores(network: Network, x: Array, num_classes: int, amplitude: float = 1.0, first_layer: int = 0) -> Array:
    """Accumulated goodness of every candidate label, equation (6): (batch, K).

    Raises ValueError where there is no first_layer.
    """
    _check_first_layer(network, first_layer)
    scores = []
    for k in range(num_classes):
        candidate = overlay(x, np.full(len(x), k), num_classes, amplitude)
        scores.append(sum(goodness(h) for h in _hidden(network, candidate)[first_layer:]))
    return np.stack(scores, axis=1)


def neutral_features(
    network: Network, x: Array, num_classes: int, amplitude: float = 1.0, first_layer: int = 1
) -> Array:
    """Normalised activities of the layers from first_layer on, of the neutral pass: (batch, sum of their widths)."""
    _check_first_layer(network, first_layer)
    hidden = _hidden(network, overlay_neutral(x, num_classes, amplitude))[first_layer:]
    return np.concatenate([normalise(h) for h in hidden], axis=1)


def readout_update(readout: Array, features: Array, labels: Labels) -> Array:
    """Batch-mean cross-entropy gradient of a linear read-out without bias: (K, width), as is the read-out."""
    error = cross_entropy_gradient(features @ readout.T, labels)
    return error.T @ features / len(features)
