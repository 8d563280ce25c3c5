"""Low precision and noisy hardware: what becomes of weights and of products with them; see the reference.

Nothing waits for the device: a tensor of zeros is divided by 1 in place of its maximum.
"""

from typing import NamedTuple

import torch
from torch.nn import functional

from . import convolution
from ._arrays import Array, check_batch, check_count, check_not_negative, check_positive, check_shape

__all__ = [
    "Crossbar",
    "clipped",
    "convolve",
    "convolve_adjoint",
    "product",
    "programmed",
    "quantise",
    "random_noise",
    "read",
]


class Crossbar(NamedTuple):
    """How exact products are: the bits of q_w, q_a and q_p (None: not quantised), and nu_r."""

    weight_bits: int | None = None
    activation_bits: int | None = None
    product_bits: int | None = None
    read_noise: float = 0.0


def quantise(v: Array, bits: int | None) -> Array:
    """q_b(v), v itself for None. Raises ValueError for less than 2 bits: no level but 0 is left."""
    if bits is None:
        return v
    check_count("bits", bits, 2)
    steps = 2 ** (bits - 1) - 1
    largest = v.abs().amax()
    largest = torch.where(largest == 0, 1, largest)
    return (v / largest).mul_(steps).round_().div_(steps).mul_(largest)


def read(crossbar: Crossbar, weight: Array, noise: Array | None = None) -> Array:
    """R(W), shape as weight; without its noise for None."""
    check_not_negative("read_noise", crossbar.read_noise)
    if noise is not None:
        check_shape("noise", noise, weight.shape)
    weight = quantise(weight, crossbar.weight_bits)
    return weight if noise is None else weight + crossbar.read_noise * weight.abs().amax() * noise


def product(crossbar: Crossbar, x: Array, weight: Array, noise: Array | None = None) -> Array:
    """W x for every sample, as the crossbar gives it: (batch, n_out). `noise` is shaped as the weight."""
    check_batch("x", x, "n_in")
    driven = quantise(x, crossbar.activation_bits)
    return quantise(driven @ read(crossbar, weight, noise).T, crossbar.product_bits)


def convolve(
    crossbar: Crossbar,
    z: Array,
    kernel: Array,
    noise: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Array:
    """k * z, as the crossbar gives it: (batch, c_out, height_out, width_out). `noise` is shaped as the kernel.

    Raises ValueError where sizes do not fit.
    """
    convolution.check_fit(kernel, z, stride, padding, 1)
    if noise is not None:
        check_shape("noise", noise, kernel.shape)
        noise = noise.flatten(1)
    windows = functional.unfold(z, kernel.shape[2:], stride=stride, padding=padding)  # (batch, n_in, positions)
    found = product(crossbar, windows.mT.flatten(0, 1), kernel.flatten(1), noise)
    rows = (z.shape[2] + 2 * padding[0] - kernel.shape[2]) // stride[0] + 1
    return found.view(len(z), rows, -1, len(kernel)).permute(0, 3, 1, 2)


def convolve_adjoint(
    crossbar: Crossbar,
    y: Array,
    kernel: Array,
    size: tuple[int, int],
    noise: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Array:
    """The adjoint for images of `size`, height and width: (batch, c_in, *size). `noise` is shaped as the kernel.

    Raises ValueError where sizes do not fit.
    """
    convolution.check_adjoint_fit(kernel, y, size, stride, padding)
    if noise is not None:
        check_shape("noise", noise, kernel.shape)
        noise = noise.flatten(1).T
    found = product(crossbar, y.permute(0, 2, 3, 1).flatten(0, 2), kernel.flatten(1).T, noise)
    columns = found.view(len(y), -1, found.shape[1]).mT  # (batch, n_in, positions)
    return functional.fold(columns, size, kernel.shape[2:], stride=stride, padding=padding)


def clipped(weight: Array, weight_range: float | None) -> Array:
    """The weight within -r..r, or as it is for None."""
    if weight_range is not None:
        check_positive("weight_range", weight_range)
    return weight if weight_range is None else weight.clamp(-weight_range, weight_range)


def programmed(
    weight: Array, noise: Array | None = None, deviation: float = 0.0, weight_range: float | None = None
) -> Array:
    """What is left in the place of a new weight, or of any parameter: shape as weight."""
    check_not_negative("deviation", deviation)
    if noise is not None:
        check_shape("noise", noise, weight.shape)
    target = clipped(weight, weight_range)
    if noise is None:
        return target
    return clipped(target + deviation * target.abs().amax() * noise, weight_range)


def random_noise(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """N, of that shape."""
    return torch.empty(shape, device=device, dtype=dtype).normal_(generator=generator)
