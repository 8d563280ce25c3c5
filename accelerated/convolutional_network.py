"""Convolutional networks of the usual kind, by PyTorch's own convolutions and pooling; see the reference."""

from typing import NamedTuple

from torch.nn import functional
from torch.nn.grad import conv2d_weight

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


def convolve(
    kernel: Array, z: Array, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Array:
    """The convolution without bias. Raises ValueError for another number of channels, or too small an image."""
    _check_fit(kernel, z, stride, padding, groups)
    return functional.conv2d(z, kernel, stride=stride, padding=padding, groups=groups)


def _check_fit(kernel: Array, z: Array, stride: tuple[int, int], padding: tuple[int, int], groups: int) -> None:
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


def activate(layer: Convolution, z: Array) -> Array:
    """a, the convolution with its bias: (batch, c_out, height, width)."""
    if layer.bias is not None:
        check_shape("bias", layer.bias, layer.kernel.shape[:1])
    _check_fit(layer.kernel, z, layer.stride, layer.padding, layer.groups)
    return functional.conv2d(z, layer.kernel, layer.bias, layer.stride, layer.padding, groups=layer.groups)


def max_pool(g: Array, size: int) -> Array:
    """Largest of each size x size pixels: (batch, c, height // size, width // size)."""
    check_images("g", g)
    check_count("size", size, 1, min(g.shape[2:]))
    return functional.max_pool2d(g, size) if size > 1 else g


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


def kernel_update(
    delta: Array,
    z: Array,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Array:
    """1/B sum over samples and positions of delta z^T for a kernel of that size: (c_out, c_in / groups, *size)."""
    check_images("delta", delta)
    check_shape("z", z, (len(delta), *z.shape[1:]))
    shape = (delta.shape[1], z.shape[1] // groups, *size)
    return conv2d_weight(z, shape, delta, stride=stride, padding=padding, groups=groups) / len(z)


def layer_update(delta: Array, z: Array, layer: Convolution) -> LayerUpdate:
    """The update of one convolution, and its bias's where it has one."""
    rows, columns = layer.kernel.shape[2:]
    kernel = kernel_update(delta, z, (rows, columns), layer.stride, layer.padding, layer.groups)
    return LayerUpdate(kernel, None if layer.bias is None else delta.sum(dim=(2, 3)).mean(dim=0))
