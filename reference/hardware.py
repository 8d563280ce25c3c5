"""Low precision and noisy hardware: what becomes of weights and of products with them.

    (1)  q_b(v) = D round(v / D),    D = max|v| / (2^(b-1) - 1);    q_b(0) = 0;    halves are rounded to even
    (2)  a read of W:        R(W) = q_w(W) + nu_r max|W| N
    (3)  a product:          W x becomes q_p(R(W) q_a(x)),    and W^T d becomes q_p(R(W)^T q_a(d))
    (4)  a write of W_new:   W = clip(V + nu_p max|V| N),    V = clip(W_new),    clip to -r..r
    (5)  a convolution:      (k * z)_i is (3) of W[o, (c, p)] = k[o, c, p] and the window at position i,
                             x_i[(c, p)] = z[c, t i + p - q],    z = 0 outside of the image
    (6)  its adjoint at y:   pixel j of channel c is the sum of entry (c, p) of W^T y_i, which is (3), over all p and i
                             with t i + p - q = j

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| v | v | any | a tensor: a weight matrix, what drives a product, or its result |
| b | bits | | bits of a number, sign included: 2^b - 1 levels, symmetric about 0 |
| q_w, q_a, q_p | Crossbar | | (1) with the bits of weights, of what drives a product (DAC), of its result (ADC) |
| W | weight | (n_out, n_in) | weights, or a fixed feedback matrix |
| k | kernel | (c_out, c_in, rows, columns) | a kernel, or a fixed feedback kernel |
| x, d | x | (batch, n_in) | what drives the product |
| z | z | (batch, c_in, height, width) | images or feature maps |
| y | y | (batch, c_out, height_out, width_out) | what drives an adjoint |
| t, q | stride, padding | (2,) | steps between outputs; rows and columns of zeros put around the image |
| N | noise | as W or k | standard normal numbers, drawn afresh for every read and every write |
| nu_r, nu_p | read_noise, deviation | | noise of a read, and of a write |
| r | weight_range | | what a conductance can hold: -r..r |

The write's noise in (4) is the programming error of the memristor model in the public code of As-Saquib, an author of
Forward Target Propagation (arXiv 2506.11030), who tests that algorithm on such hardware without its model being public.
There it is scaled by max(W); by max|W| here, so that a matrix and its negative err alike. It strikes every parameter,
biases included. (1) is the usual symmetric uniform quantiser. (2), (3), (5), (6) and the clipping in (4) are ours.

D is that of a whole tensor: one for a matrix, one for a batch of vectors, one for the batch of their products. The
largest number is then a level, and there is nothing to clip; a tensor of zeros has no D and stays as it is. Biases are
added behind the ADC, and are not quantised. Weights are kept in full and quantised when they are read, so that small
updates add up; where levels alone are stored, those of less than half a D would be lost. A transposed product, which
backpropagation asks for, goes through the same crossbar from its other side: `weight.T` takes the place of `weight`.
Noise is drawn apart from what it is added to, so that the functions have no randomness of their own.

A kernel stands on a crossbar once, and the windows of a batch drive it one after another, as samples do a matrix. So
the windows of a batch are one batch of vectors, with one D, and one read with its noise serves all positions of all
samples, as it serves all samples of a dense product. The sums of (6) over windows that overlap are exact.
"""

from typing import NamedTuple

import numpy as np

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
    """q_b(v) of equation (1), shaped as v; v itself for None.

    Raises ValueError for less than 2 bits: no level but 0 is left.

    >>> quantise(np.array([0.5, 1.0, -1.0]), 2).tolist()  # levels -1, 0 and 1; the half is rounded to even
    [0.0, 1.0, -1.0]
    """
    if bits is None:
        return v
    check_count("bits", bits, 2)
    steps = 2 ** (bits - 1) - 1
    largest = np.max(np.abs(v))
    if largest == 0:
        return v
    return np.round(v / largest * steps) / steps * largest


def read(crossbar: Crossbar, weight: Array, noise: Array | None = None) -> Array:
    """R(W) of equation (2), shape as weight; without its noise for None.

    Raises ValueError for noise of another shape, and unless the read noise is 0 or more.

    >>> read(Crossbar(read_noise=0.5), np.array([[1.0, 2.0]]), np.array([[1.0, -1.0]])).tolist()  # half of max|W| = 2
    [[2.0, 1.0]]
    """
    check_not_negative("read_noise", crossbar.read_noise)
    if noise is not None:
        check_shape("noise", noise, weight.shape)
    weight = quantise(weight, crossbar.weight_bits)
    return weight if noise is None else weight + crossbar.read_noise * np.max(np.abs(weight)) * noise


def product(crossbar: Crossbar, x: Array, weight: Array, noise: Array | None = None) -> Array:
    """Equation (3) for every sample of x, (batch, n_in): (batch, n_out). `noise` is shaped as the weight.

    Raises ValueError where x, weight and noise do not fit.

    >>> product(Crossbar(product_bits=2), np.array([[1.0], [4.0]]), np.array([[1.0]])).tolist()  # one D for the batch
    [[0.0], [4.0]]
    """
    check_batch("x", x, "n_in")
    driven = quantise(x, crossbar.activation_bits)
    return quantise(driven @ read(crossbar, weight, noise).T, crossbar.product_bits)


def _windows(z: Array, size: tuple[int, int], stride: tuple[int, int]) -> Array:
    """A view of z, padded already, with the windows of equation (5): (batch, c_in, height_out, width_out, *size)."""
    found = np.lib.stride_tricks.sliding_window_view(z, size, axis=(2, 3), writeable=True)
    return found[:, :, :: stride[0], :: stride[1]]


def _product_of_columns(crossbar: Crossbar, columns: Array, weight: Array, noise: Array | None) -> Array:
    """Equation (3) for every column of a batch, (batch, n_in, positions): (batch, n_out, positions)."""
    batch, n_in, positions = columns.shape
    x = columns.transpose(0, 2, 1).reshape(-1, n_in)
    return product(crossbar, x, weight, noise).reshape(batch, positions, -1).transpose(0, 2, 1)


def convolve(
    crossbar: Crossbar,
    z: Array,
    kernel: Array,
    noise: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Array:
    """Equation (5): (batch, c_out, height_out, width_out). `noise` is shaped as the kernel.

    Raises ValueError where sizes do not fit.

    >>> convolve(Crossbar(product_bits=2), np.array([[[[1.0, 4.0]]]]), np.array([[[[1.0]]]])).tolist()  # D = 4
    [[[[0.0, 4.0]]]]
    """
    shape = convolution.convolve(kernel, z, stride, padding).shape
    if noise is not None:
        check_shape("noise", noise, kernel.shape)
        noise = noise.reshape(len(kernel), -1)
    padded = np.pad(z, [(0, 0), (0, 0), *((q, q) for q in padding)])
    windows = _windows(padded, kernel.shape[2:], stride).transpose(0, 1, 4, 5, 2, 3)
    windows = windows.reshape(len(z), kernel[0].size, -1)  # (batch, (c, p), positions)
    return _product_of_columns(crossbar, windows, kernel.reshape(len(kernel), -1), noise).reshape(shape)


def convolve_adjoint(
    crossbar: Crossbar,
    y: Array,
    kernel: Array,
    size: tuple[int, int],
    noise: Array | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Array:
    """Equation (6) for images of `size`, height and width: (batch, c_in, *size). `noise` is shaped as the kernel.

    Raises ValueError where sizes do not fit.

    >>> y, kernel = np.array([[[[1.0, 4.0]]]]), np.array([[[[1.0, 1.0]]]])
    >>> convolve_adjoint(Crossbar(product_bits=2), y, kernel, (1, 3)).tolist()  # 1, 1 become 0, 0; the sum is exact
    [[[[0.0, 4.0, 4.0]]]]
    """
    convolution.convolve_adjoint(kernel, y, size, stride, padding)
    if noise is not None:
        check_shape("noise", noise, kernel.shape)
        noise = noise.reshape(len(kernel), -1).T
    columns = y.reshape(*y.shape[:2], -1)
    found = _product_of_columns(crossbar, columns, kernel.reshape(len(kernel), -1).T, noise)
    found = found.reshape(len(y), *kernel.shape[1:], *y.shape[2:])
    z = np.zeros((len(y), kernel.shape[1], size[0] + 2 * padding[0], size[1] + 2 * padding[1]), y.dtype)
    windows = _windows(z, kernel.shape[2:], stride)
    for p, q in np.ndindex(*kernel.shape[2:]):
        windows[..., p, q] += found[:, :, p, q]
    return z[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def clipped(weight: Array, weight_range: float | None) -> Array:
    """The weight within -r..r, or as it is for None: shaped as the weight.

    Raises ValueError unless r is positive.

    >>> clipped(np.array([-3.0, 0.5]), 1.0).tolist()
    [-1.0, 0.5]
    """
    if weight_range is not None:
        check_positive("weight_range", weight_range)
    return weight if weight_range is None else np.clip(weight, -weight_range, weight_range)


def programmed(
    weight: Array, noise: Array | None = None, deviation: float = 0.0, weight_range: float | None = None
) -> Array:
    """What equation (4) leaves in the place of a new weight, or of any parameter: shape as weight.

    Raises ValueError for noise of another shape, and unless the deviation is 0 or more.

    >>> weight, noise = np.array([1.0, 2.0]), np.array([1.0, -1.0])
    >>> programmed(weight, noise, deviation=0.5, weight_range=1.5).tolist()  # 1 + 0.75 is clipped, 1.5 - 0.75 is not
    [1.5, 0.75]
    """
    check_not_negative("deviation", deviation)
    if noise is not None:
        check_shape("noise", noise, weight.shape)
    target = clipped(weight, weight_range)
    if noise is None:
        return target
    return clipped(target + deviation * np.max(np.abs(target)) * noise, weight_range)


def random_noise(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """N, of that shape.

    >>> np.shape(random_noise((2, 3), np.random.default_rng(0)))
    (2, 3)
    """
    return rng.standard_normal(shape)
