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

from ._arrays import Array, check_shape
from .activations import Activation
from .convolution import convolve, kernel_update
from .network import ForwardPass, LayerUpdate, Network, Updates
from .network import forward as dense_forward
from .pooling import max_pool

__all__ = [
    "Convolution",
    "ConvolutionalNetwork",
    "ConvolutionalPass",
    "ConvolutionalUpdates",
    "activate",
    "forward",
    "layer_update",
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


def activate(layer: Convolution, z: Array) -> Array:
    """a of equation (1): (batch, c_out, height, width)."""
    if layer.bias is not None:
        check_shape("bias", layer.bias, layer.kernel.shape[:1])
    a = convolve(layer.kernel, z, layer.stride, layer.padding, layer.groups)
    return a if layer.bias is None else a + layer.bias[:, None, None]


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


def layer_update(delta: Array, z: Array, layer: Convolution) -> LayerUpdate:
    """G of equation (3) for one convolution, and its bias's where it has one."""
    kernel = kernel_update(delta, z, layer.kernel.shape[2:], layer.stride, layer.padding, layer.groups)
    return LayerUpdate(kernel, None if layer.bias is None else delta.sum(axis=(2, 3)).mean(axis=0))
