"""Forward Target Propagation through convolutional layers.

As-Saquib et al., arXiv 2506.11030; see `ftp` for what is known of the paper. That G reaches the whole feature map of
the first convolution, before it is pooled, and that the second pass leaves this convolution out, is deduced from its
counts of multiplications. The local losses are inferred.

    (1)  clean pass:        g_l = sigma_l(k_l z_l + b_l),  z_(l+1) = pool(g_l), at last flattened;  e = dLoss/dscores
    (2)  first target:      tau_1 = g_1 + gamma (phi(G y) - phi(G p)),    p = y + T e
    (3)  its way forward:   tau_l = sigma_l(k_l at_maxima(tau_(l-1)) + b_l), then through the dense layers as in `ftp`
    (4)  convolutions:      d_l = sigma_l'(a_l)^T (g_l - tau_l),    G_l = 1/B sum_(samples, positions) d_l z_l^T
    (5)  dense layers:      those of `ftp`

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| G | feedback | (c_1 height_1 width_1, K), or its factors | random and fixed; see `feedback_by_channel` too |
| g_l - tau_l | differences[l-1] | (batch, c_l, height_l, width_l) | how far a feature map lies from its target |

A full G outgrows the network: for 25,088 units and 100 classes it has four times the numbers of the paper's network.
`ftp.low_rank_feedback` has fewer, and so has a G that is the same at all positions of a channel (ours).

With one convolution and phi = identity, (4) is direct feedback alignment for the feature map. Pooled units have no loss
of their own, and a unit that is not the largest of its square has one: it is drawn to a target as well.

Ours: G is drawn as in `ftp` at scale / P with one row a channel, or scale / sqrt(P) with one a position, of the P
positions of the first feature map. A kernel's update sums over them. Where patches are alike the sum of P corrections
is P times as large as one if they are equal, and sqrt(P) times if they are independent; divided by that, a kernel's
update is as large as that of a dense layer at the same scale.

Ours: at_maxima takes of each square of tau the unit that is largest in the clean map g, the first of equal ones. That
is the derivative of pooling: where activations are linear, <dLoss/dg_l, g_l - tau_l> is the same for every layer, as in
`ftp`. Maxima of tau itself lie above those of g by about the size of the correction wherever pixels of g are alike,
whatever the label is: the next kernel then grows without end.
"""

from collections.abc import Callable, Iterator

import numpy as np

from . import ftp
from ._arrays import Array, Labels, check_batch, check_count, check_shape
from .activations import Activation, identity
from .convolutional_network import (
    ConvolutionalNetwork,
    ConvolutionalPass,
    ConvolutionalUpdates,
    activate,
    forward,
    layer_update,
)
from .ftp import Feedback
from .losses import cross_entropy_gradient
from .network import batch_mean_updates

__all__ = ["at_maxima", "differences", "feedback_by_channel", "first_difference", "update_factors", "updates"]


def feedback_by_channel(feedback: Array, positions: int) -> Array:
    """G, (channels positions, K), from one row for each channel: (channels, K)."""
    check_batch("feedback", feedback, "K")
    check_count("positions", positions)
    return feedback.repeat(positions, axis=0)


def first_difference(
    feedback: Feedback,
    targets: Array,
    error: Array,
    shape: tuple[int, ...],
    phi: Activation = identity,
    gain: float = 1.0,
) -> Array:
    """g_1 - tau_1 of equation (2): (batch, *shape)."""
    return ftp.first_difference(feedback, targets, error, phi, gain).reshape(len(error), *shape)


def at_maxima(g: Array, values: Array, size: int) -> Array:
    """Of each size x size pixels the value where g is largest, the first of equal ones: as `max_pool(g)`."""
    check_count("size", size, 1, min(g.shape[2:]))
    check_shape("values", values, g.shape)
    batch, channels, height, width = g.shape
    rows, columns = height // size, width // size

    def squares(array: Array) -> Array:
        array = array[:, :, : rows * size, : columns * size].reshape(batch, channels, rows, size, columns, size)
        return array.swapaxes(3, 4).reshape(batch, channels, rows, columns, size * size)

    places = squares(g).argmax(axis=-1)[..., None]
    return np.take_along_axis(squares(values), places, axis=-1)[..., 0]


def differences(network: ConvolutionalNetwork, clean: ConvolutionalPass, first: Array) -> Iterator[Array]:
    """g_l - tau_l of the convolutional layers, equation (3), then h_l - tau_l of the dense hidden layers."""
    check_shape("first", first, clean.preactivations[0].shape)
    z = clean.inputs[0]
    for i, (layer, a) in enumerate(zip(network.layers, clean.preactivations, strict=True)):
        g = layer.activation.value(a)
        target = layer.activation.value(activate(layer, z)) if i > 0 else g - first
        yield g - target if i > 0 else first
        z = at_maxima(g, target, layer.pool)  # what the next layer's target is made of
    h = clean.dense.inputs[0]
    dense = ftp.differences(network.dense, clean.dense, h - z.reshape(h.shape), inject=0)
    next(dense)  # of what enters the dense layers, which is no layer's own
    yield from dense


def update_factors(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, first: Array
) -> Iterator[tuple[Array, Array]]:
    """d_l and z_l of the convolutional layers, then d_l and h_(l-1) of the dense ones, e last."""
    found = differences(network, clean, first)
    for layer, a, z in zip(network.layers, clean.preactivations, clean.inputs, strict=True):
        yield layer.activation.vjp(a, next(found)), z
    yield from ftp.local_factors(network.dense, clean.dense, error, found)


def updates(
    network: ConvolutionalNetwork,
    feedback: Feedback,
    x: Array,
    labels: Labels,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    phi: Activation = identity,
    gain: float = 1.0,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> ConvolutionalUpdates:
    """The updates of equations (4) and (5)."""
    clean = forward(network, x)
    targets, error = ftp.output_error(clean.dense.scores, labels, output_gradient, label_smoothing, temperature)
    first = first_difference(feedback, targets, temperature * error, clean.preactivations[0].shape[1:], phi, gain)
    factors = update_factors(network, clean, error, first)
    layers = tuple(layer_update(*next(factors), layer) for layer in network.layers)
    return ConvolutionalUpdates(layers, batch_mean_updates(network.dense, factors))
