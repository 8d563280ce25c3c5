"""FOTON through convolutional layers; see the reference.

As in dense layers the modulated pass carries the difference to the clean one, and starts from K images instead of the
batch.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch

from . import foton
from ._arrays import Array, Labels, check_shape
from .activations import Activation
from .convolution import circular_convolve, circular_convolve_adjoint, circular_kernel_update
from .convolutional_network import ConvolutionalPass, ConvolutionalUpdates
from .losses import cross_entropy_gradient
from .network import LayerUpdate, Network, batch_mean_updates, propagated_differences
from .network import forward as dense_forward
from .pooling import scaled_average_pool, scaled_average_pool_adjoint, shuffle, unshuffle

__all__ = [
    "ConvolutionalLayer",
    "ConvolutionalNetwork",
    "differences",
    "error_projection",
    "forward",
    "layer_update",
    "linear_errors",
    "update_factors",
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


def forward(network: ConvolutionalNetwork, x: Array) -> ConvolutionalPass:
    """The clean pass. Raises ValueError where sizes or channels do not fit."""
    inputs, preactivations = [], []
    h = x
    for layer in network.layers:
        z = unshuffle(h, layer.factor)
        a = circular_convolve(layer.kernel, z)
        if layer.bias is not None:
            check_shape("bias", layer.bias, layer.kernel.shape[:1])
            a = a + layer.bias[:, None, None]
        inputs.append(z)
        preactivations.append(a)
        h = scaled_average_pool(layer.activation.value(a), layer.pool)
    return ConvolutionalPass(tuple(inputs), tuple(preactivations), dense_forward(network.dense, h.flatten(1)))


def error_projection(network: ConvolutionalNetwork, clean: ConvolutionalPass) -> Array:
    """F^T, (K, c_0, height, width). Of the clean pass only the shapes are used."""
    rows = foton.error_projection(network.dense.weights).T  # (K, n)
    for layer, a in zip(reversed(network.layers), reversed(clean.preactivations), strict=True):
        _, channels, height, width = a.shape
        rows = rows.reshape(len(rows), channels, height // layer.pool, width // layer.pool)
        rows = shuffle(
            circular_convolve_adjoint(layer.kernel, scaled_average_pool_adjoint(rows, layer.pool)), layer.factor
        )
    return rows


def _first_error(first: ConvolutionalLayer, error: Array, projection: Array) -> Array:
    """k_1 unshuffle(F e): the convolution acts on the K rows of the projection in place of the batch."""
    return torch.tensordot(error, circular_convolve(first.kernel, unshuffle(projection, first.factor)), dims=1)


def _carried(network: ConvolutionalNetwork, index: int, difference: Array) -> Array:
    """What the linear map after that convolutional layer makes of a difference: another convolution's, or the dense."""
    pooled = scaled_average_pool(difference, network.layers[index].pool)
    if index + 1 == len(network.layers):
        return pooled.flatten(1) @ network.dense.weights[0].T
    following = network.layers[index + 1]
    return circular_convolve(following.kernel, unshuffle(pooled, following.factor))


def differences(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, projection: Array
) -> Iterator[Array]:
    """g_l - g~_l of the convolutional layers, then h_l - h~_l of the dense hidden layers, by difference propagation."""
    u = _first_error(network.layers[0], error, projection)
    for i, (layer, a) in enumerate(zip(network.layers, clean.preactivations, strict=True)):
        difference = layer.activation.difference(a, u)
        yield difference
        u = _carried(network, i, difference)
    yield from propagated_differences(network.dense, clean.dense, u)


def linear_errors(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, projection: Array
) -> Iterator[Array]:
    """sigma_l'(a_l) u_l of the convolutional layers, then of the dense hidden layers."""
    u = _first_error(network.layers[0], error, projection)
    for i, (layer, a) in enumerate(zip(network.layers, clean.preactivations, strict=True)):
        yield layer.activation.vjp(a, u)
        u = _carried(network, i, u)
    yield from foton.linear_errors(network.dense, clean.dense, u)


def update_factors(
    network: ConvolutionalNetwork,
    clean: ConvolutionalPass,
    error: Array,
    projection: Array,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """The differences of all layers, e last, and the layers' inputs: the factors of the updates.

    `activation_gain` and `linear` as in `foton.update_factors`, the convolutional layers counted as layers.
    """
    check_shape("error", error, clean.dense.scores.shape)
    check_shape("projection", projection, (error.shape[1], *projection.shape[1:]))
    found = (linear_errors if linear else differences)(network, clean, error, projection)
    inputs = (*clean.inputs, *clean.dense.inputs)
    correction = foton.depth_correction(activation_gain, len(inputs), linear)
    for factor, delta, z in zip(correction, chain(found, [error]), inputs, strict=True):
        yield (delta if factor == 1 else factor * delta), z


def layer_update(delta: Array, z: Array, layer: ConvolutionalLayer) -> LayerUpdate:
    """1/B sum over samples and positions of delta z^T for one convolutional layer, and its bias's where it has one."""
    bias = None if layer.bias is None else delta.sum(dim=(2, 3)).mean(dim=0)
    return LayerUpdate(circular_kernel_update(delta, z, layer.kernel.shape[2]), bias)


def updates(
    network: ConvolutionalNetwork,
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> ConvolutionalUpdates:
    """The updates of all layers. `projection` is F^T where it is not to be rebuilt."""
    clean = forward(network, x)
    error = output_gradient(clean.dense.scores, labels)
    if projection is None:
        projection = error_projection(network, clean)
    factors = update_factors(network, clean, error, projection, activation_gain, linear)
    layers = tuple(layer_update(*next(factors), layer) for layer in network.layers)
    return ConvolutionalUpdates(layers, batch_mean_updates(network.dense, factors))
