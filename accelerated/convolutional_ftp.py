"""Forward Target Propagation through convolutional layers; see the reference.

Targets are carried as differences to the clean activations. Pooling takes both where the clean maximum lies, and so
their difference.
"""

from collections.abc import Callable, Iterator

from torch.nn import functional

from . import ftp
from ._arrays import Array, Labels, check_batch, check_count, check_shape
from .activations import Activation, identity
from .convolution import convolve
from .convolutional_network import (
    ConvolutionalNetwork,
    ConvolutionalPass,
    ConvolutionalUpdates,
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
    return feedback.repeat_interleave(positions, dim=0)


def first_difference(
    feedback: Feedback,
    targets: Array,
    error: Array,
    shape: tuple[int, ...],
    phi: Activation = identity,
    gain: float = 1.0,
) -> Array:
    """g_1 - tau_1: (batch, *shape)."""
    return ftp.first_difference(feedback, targets, error, phi, gain).reshape(len(error), *shape)


def at_maxima(g: Array, values: Array, size: int) -> Array:
    """Of each size x size pixels the value where g is largest, the first of equal ones: as `max_pool(g)`."""
    check_count("size", size, 1, min(g.shape[2:]))
    check_shape("values", values, g.shape)
    if size == 1:
        return values
    _, places = functional.max_pool2d(g, size, return_indices=True)
    return values.flatten(2).gather(2, places.flatten(2)).reshape(places.shape)


def differences(network: ConvolutionalNetwork, clean: ConvolutionalPass, first: Array) -> Iterator[Array]:
    """g_l - tau_l of the convolutional layers, then h_l - tau_l of the dense hidden layers."""
    check_shape("first", first, clean.preactivations[0].shape)
    difference = first
    for i, (layer, a) in enumerate(zip(network.layers, clean.preactivations, strict=True)):
        if i > 0:
            u = convolve(layer.kernel, difference, layer.stride, layer.padding, layer.groups)
            difference = layer.activation.difference(a, u)
        yield difference
        if layer.pool > 1:
            difference = at_maxima(layer.activation.value(a), difference, layer.pool)
    dense = ftp.differences(network.dense, clean.dense, difference.flatten(1), inject=0)
    next(dense)
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
    """The updates of all layers."""
    clean = forward(network, x)
    targets, error = ftp.output_error(clean.dense.scores, labels, output_gradient, label_smoothing, temperature)
    first = first_difference(feedback, targets, temperature * error, clean.preactivations[0].shape[1:], phi, gain)
    factors = update_factors(network, clean, error, first)
    layers = tuple(layer_update(*next(factors), layer) for layer in network.layers)
    return ConvolutionalUpdates(layers, batch_mean_updates(network.dense, factors))
