"""Low precision and noisy hardware: what becomes of weights and of products with them; see the reference.

Nothing waits for the device: a tensor of zeros is divided by 1 in place of its maximum.
"""

from typing import NamedTuple

import torch

from ._arrays import Array, check_batch, check_count, check_not_negative, check_positive, check_shape

__all__ = ["Crossbar", "clipped", "product", "programmed", "quantise", "random_noise", "read"]


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
