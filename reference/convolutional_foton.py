"""FOTON through convolutional layers.

Caillon, Colagrande, Fagnou, Delattre and Allauzen, "Forward Only Learning for Orthogonal Neural Networks of any Depth",
arXiv 2512.20668, which treats convolutions in words: orthogonal kernels, average pooling, updates by the adjoint
convolution. The rest follows from the dense case, since every part is a linear map but for the activations.

    (1)  clean pass:      z_l = unshuffle(h_(l-1)),    a_l = k_l z_l + b_l,    g_l = sigma_l(a_l),    h_l = pool(g_l)
    (2)  then, of the last h_l flattened, the dense network of `foton`, from which e
    (3)  projection:      F^T = F_dense^T, one row a class, through the adjoints of pool, k_l and unshuffle, last first
    (4)  modulated pass:  (1) and (2) for x - F e
    (5)  kernels:         G_l = 1/B sum_(samples, positions) (g_l - g~_l) z_l^T, a correlation;    of b_l: without z_l

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x | x | (batch, c_0, height, width) | images |
| k_l | layers[l-1].kernel | (c_l, c_z, size, size) | kernel; c_z = c_(l-1) factor^2 |
| F^T | projection | (K, c_0, height, width) | error projection, rebuilt from the weights |
| g_l - g~_l | differences[l-1] | (batch, c_l, height_l, width_l) | stands for dLoss/dg_l |

For a linear network this is backpropagation where every map up to k_l has orthonormal rows: kernels of
`convolution.orthogonal_kernel` with c_l <= c_z, the unshuffling, which is a permutation, and the pooling, which is
scaled for it. A stem that widens breaks it. Max pooling and zero padding have no place here: a maximum is no linear
map, and a padded convolution no orthogonal one.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

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
from .network import ForwardPass, LayerUpdate, Network, Updates, batch_mean_updates
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


def _affine(layer: ConvolutionalLayer, z: Array) -> Array:
    a = convolve(layer.kernel, z)
    return a if layer.bias is None else a + layer.bias[:, None, None]


def _by_channel(function: Callable[..., Array], *arrays: Array) -> Array:
    """An activation of images: its units are the channels, which stand last in (samples, units)."""
    batch, channels, height, width = arrays[0].shape
    rows = function(*(array.transpose(0, 2, 3, 1).reshape(-1, channels) for array in arrays))
    return rows.reshape(batch, height, width, channels).transpose(0, 3, 1, 2)


def forward(network: ConvolutionalNetwork, x: Array) -> ConvolutionalPass:
    """The clean pass, equations (1) and (2). Raises ValueError where sizes or channels do not fit."""
    inputs, preactivations = [], []
    h = x
    for layer in network.layers:
        z = unshuffle(h, layer.factor)
        a = _affine(layer, z)
        inputs.append(z)
        preactivations.append(a)
        h = average_pool(_by_channel(layer.activation.value, a), layer.pool)
    return ConvolutionalPass(tuple(inputs), tuple(preactivations), dense_forward(network.dense, h.reshape(len(h), -1)))


def error_projection(network: ConvolutionalNetwork, clean: ConvolutionalPass) -> Array:
    """F^T of equation (3): (K, c_0, height, width). Of the clean pass only the shapes are used."""
    rows = foton.error_projection(network.dense.weights).T  # (K, n)
    for layer, a in zip(reversed(network.layers), reversed(clean.preactivations), strict=True):
        _, channels, height, width = a.shape
        rows = rows.reshape(len(rows), channels, height // layer.pool, width // layer.pool)
        rows = shuffle(convolve_adjoint(layer.kernel, average_pool_adjoint(rows, layer.pool)), layer.factor)
    return rows


def differences(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, projection: Array
) -> Iterator[Array]:
    """g_l - g~_l of the convolutional layers, then h_l - h~_l of the dense hidden layers, by a second pass (4)."""
    x = shuffle(clean.inputs[0], network.layers[0].factor)
    modulated = forward(network, x - np.einsum("bk,kchw->bchw", error, projection))
    for layer, a, a_modulated in zip(network.layers, clean.preactivations, modulated.preactivations, strict=True):
        value = layer.activation.value
        yield _by_channel(value, a) - _by_channel(value, a_modulated)
    for h, h_modulated in zip(clean.dense.inputs[1:], modulated.dense.inputs[1:], strict=True):
        yield h - h_modulated


def updates(
    network: ConvolutionalNetwork,
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
) -> ConvolutionalUpdates:
    """The updates of equation (5), and those of the dense layers. `projection` is F^T where it is not to be rebuilt."""
    clean = forward(network, x)
    error = output_gradient(clean.dense.scores, labels)
    if projection is None:
        projection = error_projection(network, clean)
    found = differences(network, clean, error, projection)
    layers = []
    for layer, z in zip(network.layers, clean.inputs, strict=True):
        delta = next(found)
        bias = None if layer.bias is None else delta.sum(axis=(2, 3)).mean(axis=0)
        layers.append(LayerUpdate(kernel_update(delta, z, layer.kernel.shape[2]), bias))
    factors = zip([*found, error], clean.dense.inputs, strict=True)
    return ConvolutionalUpdates(tuple(layers), batch_mean_updates(network.dense, factors))
