"""FOTON through convolutional layers; see the reference.

As in dense layers the modulated pass carries the difference to the clean one, and starts from K images instead of the
batch.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from . import foton
from ._arrays import Array, Labels
from .activations import Activation
from .convolution import (
    average_pool,
    average_pool_adjoint,
    convolve,
    convolve_adjoint,
    kernel_update,
    shuffle,
    unshuffle,
)
from .losses import cross_entropy_gradient
from .network import ForwardPass, LayerUpdate, Network, Updates, batch_mean_updates, propagated_differences
from .network import forward as dense_forward

__all__ = [
    "ConvolutionalLayer",
    "ConvolutionalNetwork",
    "ConvolutionalPass",
    "ConvolutionalUpdates",
    "differences",
    "error_projection",
    "forward",
    "updates",
]


class ConvolutionalLayer(NamedTuple):
    """A circular convolution, bias (c_out,) or None, and activation; unshuffled by `factor` before, pooled after."""

    kernel: Array
    bias: Array | None
    activation: Activation
    factor: int = 1
    pool: int = 1


class ConvolutionalNetwork(NamedTuple):
    """Convolutional layers, and the dense network that takes their flattened output."""

    layers: tuple[ConvolutionalLayer, ...]
    dense: Network


class ConvolutionalPass(NamedTuple):
    """What a forward pass computes: z_l and a_l of the convolutional layers, and the dense network's pass."""

    inputs: tuple[Array, ...]
    preactivations: tuple[Array, ...]
    dense: ForwardPass


class ConvolutionalUpdates(NamedTuple):
    """What an optimizer is to subtract: from the kernels and biases of the convolutional layers, and the dense ones."""

    layers: tuple[LayerUpdate, ...]
    dense: Updates


def forward(network: ConvolutionalNetwork, x: Array) -> ConvolutionalPass:
    """The clean pass. Raises ValueError where sizes or channels do not fit."""
    inputs, preactivations = [], []
    h = x
    for layer in network.layers:
        z = unshuffle(h, layer.factor)
        a = convolve(layer.kernel, z)
        if layer.bias is not None:
            a = a + layer.bias[:, None, None]
        inputs.append(z)
        preactivations.append(a)
        h = average_pool(layer.activation.value(a), layer.pool)
    return ConvolutionalPass(tuple(inputs), tuple(preactivations), dense_forward(network.dense, h.flatten(1)))


def error_projection(network: ConvolutionalNetwork, clean: ConvolutionalPass) -> Array:
    """F^T, (K, c_0, height, width). Of the clean pass only the shapes are used."""
    rows = foton.error_projection(network.dense.weights).T  # (K, n)
    for layer, a in zip(reversed(network.layers), reversed(clean.preactivations), strict=True):
        _, channels, height, width = a.shape
        rows = rows.reshape(len(rows), channels, height // layer.pool, width // layer.pool)
        rows = shuffle(convolve_adjoint(layer.kernel, average_pool_adjoint(rows, layer.pool)), layer.factor)
    return rows


def differences(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, projection: Array
) -> Iterator[Array]:
    """g_l - g~_l of the convolutional layers, then h_l - h~_l of the dense hidden layers, by difference propagation.

    The first convolution acts on the K rows of the projection in place of the batch.
    """
    difference = projection  # (K, c_0, height, width), then (batch, ...)
    for layer, a in zip(network.layers, clean.preactivations, strict=True):
        u = convolve(layer.kernel, unshuffle(difference, layer.factor))
        if difference is projection:
            u = torch.tensordot(error, u, dims=1)
        difference = layer.activation.difference(a, u)
        yield difference
        difference = average_pool(difference, layer.pool)
    yield from propagated_differences(network.dense, clean.dense, difference.flatten(1) @ network.dense.weights[0].T)


def updates(
    network: ConvolutionalNetwork,
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
) -> ConvolutionalUpdates:
    """The updates of all layers. `projection` is F^T where it is not to be rebuilt."""
    clean = forward(network, x)
    error = output_gradient(clean.dense.scores, labels)
    if projection is None:
        projection = error_projection(network, clean)
    found = differences(network, clean, error, projection)
    layers = []
    for layer, z in zip(network.layers, clean.inputs, strict=True):
        delta = next(found)
        bias = None if layer.bias is None else delta.sum(dim=(2, 3)).mean(dim=0)
        layers.append(LayerUpdate(kernel_update(delta, z, layer.kernel.shape[2]), bias))
    factors = zip([*found, error], clean.dense.inputs, strict=True)
    return ConvolutionalUpdates(tuple(layers), batch_mean_updates(network.dense, factors))
