"""Convolutional networks of the usual kind, by PyTorch's own convolutions and pooling; see the reference."""

from typing import NamedTuple

from torch.nn import functional

from ._arrays import Array, check_shape
from .activations import Activation
from .convolution import check_fit, kernel_update
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
    """a, the convolution with its bias: (batch, c_out, height, width)."""
    if layer.bias is not None:
        check_shape("bias", layer.bias, layer.kernel.shape[:1])
    check_fit(layer.kernel, z, layer.stride, layer.padding, layer.groups)
    return functional.conv2d(z, layer.kernel, layer.bias, layer.stride, layer.padding, groups=layer.groups)


def forward(network: ConvolutionalNetwork, x: Array) -> ConvolutionalPass:
    """The clean pass. Raises ValueError where sizes or channels do not fit."""
    inputs, preactivations = [], []
    h = x
    for layer in network.layers:
        a = activate(layer, h)
        inputs.append(h)
        preactivations.append(a)
        h = max_pool(layer.activation.value(a), layer.pool)
    return ConvolutionalPass(tuple(inputs), tuple(preactivations), dense_forward(network.dense, h.flatten(1)))


def layer_update(delta: Array, z: Array, layer: Convolution) -> LayerUpdate:
    """The update of one convolution, and its bias's where it has one."""
    rows, columns = layer.kernel.shape[2:]
    kernel = kernel_update(delta, z, (rows, columns), layer.stride, layer.padding, layer.groups)
    return LayerUpdate(kernel, None if layer.bias is None else delta.sum(dim=(2, 3)).mean(dim=0))
