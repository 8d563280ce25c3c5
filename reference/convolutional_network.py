"""Convolutional networks of the usual kind: convolutions padded with zeros, max pooling, and a dense network.

    (1)  a[o, i] = sum_(c, p) k[o, c, p] z[c, s i + p - q] + b[o],    z = 0 outside of the image;
         with groups, the n-th part of the outputs o sees the n-th part of the inputs c alone
    (2)  g = sigma(a),    h[c, i] = max_(0 <= p < n) g[c, n i + p];    h is the next layer's z, at last flattened
    (3)  G[o, c, p] = 1/B sum_(samples, i) delta[o, i] z[c, s i + p - q],    and for the bias the same without z

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z_l | inputs[l-1] | (batch, c_(l-1), height, width) | a convolution's input |
| k_l, b_l | kernel, bias | (c_l, c_(l-1) / groups, rows, columns), (c_l,) | kernel and bias; i, p, q, s are pairs |
| s, q | stride, padding | (2,) | steps between outputs; rows and columns of zeros put around the image |
| n | pool | | side of the squares that max pooling takes one of, 1 for none; what is left at the border is lost |
| a_l | preactivations[l-1] | (batch, c_l, height_l, width_l) | pre-activation, before pooling |
| delta | delta | (batch, c_l, height_l, width_l) | a rule's error factor |

These are torch.nn.Conv2d and torch.nn.MaxPool2d. For circular padding and orthogonal kernels, see
`convolution`.
"""

from typing import NamedTuple

import numpy as np

from ._arrays import Array, check_count, check_images, check_shape
from .activations import Activation
from .network import ForwardPass, LayerUpdate, Network, Updates
from .network import forward as dense_forward

__all__ = [
    "Convolution",
    "ConvolutionalNetwork",
    "ConvolutionalPass",
    "ConvolutionalUpdates",
    "activate",
    "convolve",
    "forward",
    "kernel_update",
    "layer_update",
    "max_pool",
]


class Convolution(NamedTuple):
    """A convolution, its bias (c_out,) or None, its activation, the side of its max pooling, and its groups."""

    kernel: Array
    bias: Array | None
    activation: Activation
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    pool: int = 1
    groups: int = 1


class ConvolutionalNetwork(NamedTuple):
    """Convolutions, and the dense network that takes the last one's flattened output."""

    layers: tuple[Convolution, ...]
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


def _windows(z: Array, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """z[c, s i + p - q] for all i and p: (batch, c, height_out, width_out, *size)."""
    around = [(0, 0), (0, 0), *((q, q) for q in padding)]
    found = np.lib.stride_tricks.sliding_window_view(np.pad(z, around), size, axis=(2, 3))
    return found[:, :, :: stride[0], :: stride[1]]


def convolve(
    kernel: Array, z: Array, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Array:
    """Equation (1) without the bias. Raises ValueError for another number of channels, or too small an image."""
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise ValueError(f"kernel: shape {tuple(kernel.shape)}, expected (c_out, c_in, rows, columns), all positive")
    check_images("z", z)
    for step, around in zip(stride, padding, strict=True):
        check_count("stride", step)
        check_count("padding", around, 0)
    check_count("groups", groups)
    if len(kernel) % groups:
        raise ValueError(f"groups: {groups}, expected a divisor of the kernel's {len(kernel)} outputs")
    if z.shape[1] != kernel.shape[1] * groups:
        raise ValueError(f"z: {z.shape[1]} channels, but the kernel takes {kernel.shape[1] * groups}")
    for of_image, of_kernel, around in zip(z.shape[2:], kernel.shape[2:], padding, strict=True):
        if of_image + 2 * around < of_kernel:
            raise ValueError(f"z: {of_image} pixels a side, with {around} around, but the kernel has {of_kernel}")
    windows = np.split(_windows(z, kernel.shape[2:], stride, padding), groups, axis=1)
    found = [np.einsum("ocpq,bchwpq->bohw", k, seen) for k, seen in zip(np.split(kernel, groups), windows, strict=True)]
    return np.concatenate(found, axis=1)


def activate(layer: Convolution, z: Array) -> Array:
    """a of equation (1): (batch, c_out, height, width)."""
    if layer.bias is not None:
        check_shape("bias", layer.bias, layer.kernel.shape[:1])
    a = convolve(layer.kernel, z, layer.stride, layer.padding, layer.groups)
    return a if layer.bias is None else a + layer.bias[:, None, None]


def max_pool(g: Array, size: int) -> Array:
    """h of equation (2): (batch, c, height // size, width // size)."""
    check_images("g", g)
    check_count("size", size, 1, min(g.shape[2:]))
    batch, channels, height, width = g.shape
    rows, columns = height // size, width // size
    g = g[:, :, : rows * size, : columns * size]
    return g.reshape(batch, channels, rows, size, columns, size).max(axis=(3, 5))


def forward(network: ConvolutionalNetwork, x: Array) -> ConvolutionalPass:
    """The clean pass. Raises ValueError where sizes or channels do not fit."""
    inputs, preactivations = [], []
    h = x
    for layer in network.layers:
        a = activate(layer, h)
        inputs.append(h)
        preactivations.append(a)
        h = max_pool(layer.activation.value(a), layer.pool)
    return ConvolutionalPass(tuple(inputs), tuple(preactivations), dense_forward(network.dense, h.reshape(len(h), -1)))


def kernel_update(
    delta: Array,
    z: Array,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Array:
    """G of equation (3) for a kernel of that size: (c_out, c_in / groups, *size)."""
    check_images("delta", delta)
    check_shape("z", z, (len(delta), *z.shape[1:]))
    windows = np.split(_windows(z, size, stride, padding), groups, axis=1)
    deltas = np.split(delta, groups, axis=1)
    found = [np.einsum("bohw,bchwpq->ocpq", d, seen) for d, seen in zip(deltas, windows, strict=True)]
    return np.concatenate(found) / np.asarray(len(z), z.dtype)


def layer_update(delta: Array, z: Array, layer: Convolution) -> LayerUpdate:
    """G of equation (3) for one convolution, and its bias's where it has one."""
    kernel = kernel_update(delta, z, layer.kernel.shape[2:], layer.stride, layer.padding, layer.groups)
    return LayerUpdate(kernel, None if layer.bias is None else delta.sum(axis=(2, 3)).mean(axis=0))
