"""FOTON through convolutional layers.

Caillon, Colagrande, Fagnou, Delattre and Allauzen, "Forward Only Learning for Orthogonal Neural Networks of any Depth",
arXiv 2512.20668, which treats convolutions in words: orthogonal kernels, average pooling, updates by the adjoint
convolution. The rest follows from the dense case, since every part is a linear map but for the activations.

    (1)  clean pass:      z_l = unshuffle(h_(l-1)),    a_l = k_l z_l + b_l,    g_l = sigma_l(a_l),    h_l = pool(g_l)
    (2)  then, of the last h_l flattened, the dense network of `foton`, from which e
    (3)  projection:      F^T = F_dense^T, one row a class, through the adjoints of pool, k_l and unshuffle, last first
    (4)  modulated pass:  (1) and (2) for x - F e
    (5)  kernels:         G_l = 1/B sum_(samples, positions) (g_l - g~_l) z_l^T, a correlation;    of b_l: without z_l
    (6)  not in the paper, as (8) of `foton`:  v_l = k_l unshuffle(pool(v_(l-1))) from F e on, without activations, and
         sigma_l'(a_l) v_l in place of g_l - g~_l

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x | x | (batch, c_0, height, width) | images |
| k_l | layers[l-1].kernel | (c_l, c_z, size, size) | kernel; c_z = c_(l-1) factor^2 |
| F^T | projection | (K, c_0, height, width) | error projection, rebuilt from the weights |
| g_l - g~_l | differences[l-1] | (batch, c_l, height_l, width_l) | stands for dLoss/dg_l |

For a linear network this is backpropagation where every map up to k_l has orthonormal rows: kernels of
`convolution.orthogonal_kernel` with c_l <= c_z, the unshuffling, which is a permutation, and the pooling, which is
scaled for it. A first convolution with c_1 > c_z breaks the equality. Max pooling and zero padding are excluded: a
maximum is not linear, and a convolution with zero padding is not orthogonal.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from . import foton
from ._arrays import Array, Labels, check_shape
from .activations import Activation
from .convolution import circular_convolve, circular_convolve_adjoint, circular_kernel_update
from .convolutional_network import ConvolutionalPass, ConvolutionalUpdates
from .losses import cross_entropy_gradient
from .network import LayerUpdate, Network, batch_mean_updates
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


def _affine(layer: ConvolutionalLayer, z: Array) -> Array:
    if layer.bias is not None:
        check_shape("bias", layer.bias, layer.kernel.shape[:1])
    a = circular_convolve(layer.kernel, z)
    return a if layer.bias is None else a + layer.bias[:, None, None]


def forward(network: ConvolutionalNetwork, x: Array) -> ConvolutionalPass:
    """The clean pass, equations (1) and (2). Raises ValueError where sizes or channels do not fit."""
    inputs, preactivations = [], []
    h = x
    for layer in network.layers:
        z = unshuffle(h, layer.factor)
        a = _affine(layer, z)
        inputs.append(z)
        preactivations.append(a)
        h = scaled_average_pool(layer.activation.value(a), layer.pool)
    return ConvolutionalPass(tuple(inputs), tuple(preactivations), dense_forward(network.dense, h.reshape(len(h), -1)))


def error_projection(network: ConvolutionalNetwork, clean: ConvolutionalPass) -> Array:
    """F^T of equation (3): (K, c_0, height, width). Of the clean pass only the shapes are used."""
    rows = foton.error_projection(network.dense.weights).T  # (K, n)
    for layer, a in zip(reversed(network.layers), reversed(clean.preactivations), strict=True):
        _, channels, height, width = a.shape
        rows = rows.reshape(len(rows), channels, height // layer.pool, width // layer.pool)
        rows = shuffle(
            circular_convolve_adjoint(layer.kernel, scaled_average_pool_adjoint(rows, layer.pool)), layer.factor
        )
    return rows


def differences(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, projection: Array
) -> Iterator[Array]:
    """g_l - g~_l of the convolutional layers, then h_l - h~_l of the dense hidden layers, by a second pass (4)."""
    x = shuffle(clean.inputs[0], network.layers[0].factor)
    modulated = forward(network, x - np.einsum("bk,kchw->bchw", error, projection))
    for layer, a, a_modulated in zip(network.layers, clean.preactivations, modulated.preactivations, strict=True):
        value = layer.activation.value
        yield value(a) - value(a_modulated)
    for h, h_modulated in zip(clean.dense.inputs[1:], modulated.dense.inputs[1:], strict=True):
        yield h - h_modulated


def linear_errors(
    network: ConvolutionalNetwork, clean: ConvolutionalPass, error: Array, projection: Array
) -> Iterator[Array]:
    """As `differences`, by equation (6): every layer's own derivative times what the linear maps carry to it."""
    u = np.einsum("bk,kchw->bchw", error, projection)
    for layer, a in zip(network.layers, clean.preactivations, strict=True):
        u = circular_convolve(layer.kernel, unshuffle(u, layer.factor))
        yield layer.activation.vjp(a, u)
        u = scaled_average_pool(u, layer.pool)
    yield from foton.linear_errors(network.dense, clean.dense, u.reshape(len(u), -1) @ network.dense.weights[0].T)


def update_factors(
    network: ConvolutionalNetwork,
    clean: ConvolutionalPass,
    error: Array,
    projection: Array,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """g_l - g~_l, then h_l - h~_l, and e; and z_l, then h_(l-1): the factors of the updates.

    `activation_gain` and `linear` as in `foton.update_factors`, the convolutional layers counted as layers.
    """
    check_shape("error", error, clean.dense.scores.shape)
    check_shape("projection", projection, (error.shape[1], *projection.shape[1:]))
    found = (linear_errors if linear else differences)(network, clean, error, projection)
    inputs = (*clean.inputs, *clean.dense.inputs)
    correction = foton.depth_correction(activation_gain, len(inputs), linear)
    for factor, delta, z in zip(correction, chain(found, [error]), inputs, strict=True):
        yield factor * delta, z


def layer_update(delta: Array, z: Array, layer: ConvolutionalLayer) -> LayerUpdate:
    """G_l of equation (5) for one convolutional layer, and its bias's where it has one."""
    bias = None if layer.bias is None else delta.sum(axis=(2, 3)).mean(axis=0)
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
    """The updates of equation (5), and those of the dense layers. `projection` is F^T where it is not to be rebuilt."""
    clean = forward(network, x)
    error = output_gradient(clean.dense.scores, labels)
    if projection is None:
        projection = error_projection(network, clean)
    factors = update_factors(network, clean, error, projection, activation_gain, linear)
    layers = tuple(layer_update(*next(factors), layer) for layer in network.layers)
    return ConvolutionalUpdates(layers, batch_mean_updates(network.dense, factors))
