"""Convolutions padded with zeros or circularly, their adjoints, and orthogonal kernels; see the reference.

Circular padding is laid out in memory, for PyTorch's own convolutions to run on.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import TypeGuard

import torch
from torch.nn import functional, grad

from ._arrays import Array, check_count, check_images, check_shape, readable, wide
from ._autocast import product
from .orthogonality import quarter_turns

__all__ = [
    "circular_convolve",
    "circular_convolve_adjoint",
    "circular_kernel_update",
    "convolve",
    "convolve_adjoint",
    "kernel_update",
    "orthogonal_kernel",
    "orthogonal_kernel_vjp",
    "skew_kernel",
    "skew_kernel_vjp",
]

conv2d_input: Callable[..., Array] = grad.conv2d_input  # which PyTorch gives no types
conv2d_weight: Callable[..., Array] = grad.conv2d_weight

MANY = 128
"""From how many channels each way a kernel's gradient is a product of matrices: to copy a number costs little beside
as many products with it."""

PART = 2**23
"""Of how many numbers the windows are at once: a few parts, after each of which threads wait for one another."""


def convolve(
    kernel: Array, z: Array, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Array:
    """The convolution without bias. Raises ValueError for another number of channels, or too small an image."""
    check_fit(kernel, z, stride, padding, groups)
    return product(partial(functional.conv2d, stride=stride, padding=padding, groups=groups), z, kernel)


def check_fit(kernel: Array, z: Array, stride: tuple[int, int], padding: tuple[int, int], groups: int) -> None:
    """Raises ValueError where a kernel and images padded with zeros do not fit."""
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


def check_adjoint_fit(
    kernel: Array, y: Array, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    """Raises ValueError where y is not shaped as what a kernel gives for images of `size`."""
    check_images("y", y)
    sides = zip(size, kernel.shape[2:], stride, padding, strict=True)
    expected = tuple((n + 2 * around - k) // step + 1 for n, k, step, around in sides)
    check_shape("y", y, (len(y), len(kernel), *expected))


def convolve_adjoint(
    kernel: Array,
    y: Array,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Array:
    """The adjoint for images of `size`, height and width: (batch, c_in, *size)."""
    check_adjoint_fit(kernel, y, size, stride, padding)
    shape = (len(y), kernel.shape[1] * groups, *size)
    return product(partial(conv2d_input, shape, stride=stride, padding=padding, groups=groups), kernel, y)


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
    return weight_gradient(z, shape, delta, stride, padding, groups=groups) / len(z)


def weight_gradient(
    z: Array,
    shape: Sequence[int],
    delta: Array,
    stride: tuple[int, ...] = (1, 1),
    padding: str | tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
) -> Array:
    """The sum over samples and positions of delta z^T for a kernel of that shape, of arguments that are checked."""
    if tuple(shape[2:]) == (1, 1) and padding == (0, 0):
        # PyTorch 2.13's own, with strides, few channels last in memory and two threads, is wrong or crashes
        z, stride = z[:, :, :: stride[0], :: stride[1]], (1, 1)

    def gradient(z: Array, delta: Array) -> Array:
        if multiplies_windows(padding, z, shape, dilation, groups):
            return _by_windows(z, shape, delta, stride, padding)
        return conv2d_weight(z, shape, delta, stride, padding, dilation, groups)

    return product(gradient, z, delta)


def multiplies_windows(
    padding: str | tuple[int, ...], z: Array, shape: Sequence[int], dilation: tuple[int, ...], groups: int
) -> TypeGuard[tuple[int, ...]]:
    """Whether `weight_gradient` is a product with the windows of z: never with padding by a name."""
    is_plain = min(shape[:2]) >= MANY and groups == 1 and set(dilation) == {1} and not isinstance(padding, str)
    return is_plain and z.dim() == 4 and z.stride(1) == 1 and z.dtype == wide(z.dtype) and readable(z)


def _by_windows(
    z: Array, shape: Sequence[int], delta: Array, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Array:
    """`weight_gradient` of channels last, as delta^T times the windows that the kernel sees, a part of them at a time.

    PyTorch's own takes 1.6 times as long, with channels last and AVX2.
    """
    c_out, c_in, height, width = shape
    top, left = padding
    around = functional.pad(z.movedim(1, -1), (0, 0, left, left, top, top)) if any(padding) else z.movedim(1, -1)
    windows = around.unfold(1, height, stride[0]).unfold(2, width, stride[1]).movedim(3, -1)
    found = z.new_zeros(c_out, height * width * c_in)
    rows = PART // windows[0, 0].numel() + 1
    for of_z, of_delta in zip(_parts(windows, rows), _parts(delta.movedim(1, -1), rows), strict=True):
        found.addmm_(of_delta.reshape(-1, c_out).T, of_z.reshape(-1, found.shape[1]))
    return found.view(c_out, height, width, c_in).movedim(-1, 1)


def _parts(maps: Array, rows: int) -> Iterator[Array]:
    """Maps (batch, height, ...) by up to so many rows at a time: of several samples, or as many of one each time."""
    height = maps.shape[1]
    for samples in maps.split(max(1, rows // height)):
        yield from samples.split(ceil(height / ceil(height / rows)), dim=1)


def _padded(x: Array, before: int, after: int) -> Array:
    """x with its own other end before and after each row and column, however many times around."""
    height, width = x.shape[2:]
    if max(before, after) <= min(height, width):
        return functional.pad(x, (before, after, before, after), mode="circular") if before or after else x
    rows = torch.arange(-before, height + after, device=x.device) % height
    columns = torch.arange(-before, width + after, device=x.device) % width
    return x[:, :, rows][:, :, :, columns]


def _check_kernel(kernel: Array) -> None:
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or 0 in kernel.shape:
        raise ValueError(f"kernel: shape {tuple(kernel.shape)}, expected (c_out, c_in, size, size), all positive")


def circular_convolve(kernel: Array, x: Array) -> Array:
    """(batch, c_out, height, width). Raises ValueError for another number of channels."""
    _check_kernel(kernel)
    check_images("x", x)
    size = kernel.shape[2]
    if x.shape[1] != kernel.shape[1]:
        raise ValueError(f"x: {x.shape[1]} channels, but the kernel takes {kernel.shape[1]}")
    return product(functional.conv2d, _padded(x, size // 2, size - 1 - size // 2), kernel)


def circular_convolve_adjoint(kernel: Array, y: Array) -> Array:
    """(batch, c_in, height, width): the convolution with the kernel mirrored and its channels exchanged."""
    _check_kernel(kernel)
    check_images("y", y)
    if y.shape[1] != len(kernel):
        raise ValueError(f"y: {y.shape[1]} channels, but the kernel gives {len(kernel)}")
    size = kernel.shape[2]
    turned = kernel.flip(2, 3).transpose(0, 1)
    return product(functional.conv2d, _padded(y, size - 1 - size // 2, size // 2), turned)


def circular_kernel_update(delta: Array, z: Array, size: int) -> Array:
    """(c_out, c_in, size, size): the gradient of PyTorch's convolution for the output gradient delta / batch."""
    check_images("delta", delta)
    check_count("size", size)
    check_shape("z", z, (len(delta), z.shape[1], *delta.shape[2:]))
    shape = (delta.shape[1], z.shape[1], size, size)
    padded = _padded(z, size // 2, size - 1 - size // 2)
    return weight_gradient(padded, shape, delta / len(z))


def _step(q: Array, s: Array) -> Array:
    """Coefficients of t(u, v) for bases q and s: (2, 2, c, c)."""
    p, r = q @ q.T, s @ s.T
    p_r = p @ r
    rest = torch.eye(len(p), device=p.device, dtype=p.dtype) - p - r + p_r
    return torch.stack([torch.stack([p_r, p - p_r]), torch.stack([r - p_r, rest])])


def _products(bases: Sequence[Array]) -> list[Array]:
    """1, t_1, t_1 t_2, ..., T: (j + 1, j + 1, c, c) after j steps."""
    first, *_ = bases
    channels = len(first)
    products = [torch.eye(channels, device=first.device, dtype=first.dtype)[None, None]]
    for q, s in zip(bases[::2], bases[1::2], strict=True):
        before, t = products[-1], _step(q, s)
        n = len(before)
        taps = before.new_zeros(n + 1, n + 1, channels, channels)
        for i in range(2):
            for j in range(2):
                taps[i : i + n, j : j + n] += before @ t[i, j]
        products.append(taps)
    return products


def _check_bases(mixing: Array, bases: Sequence[Array]) -> None:
    if len(bases) % 2:
        raise ValueError(f"bases: {len(bases)}, expected two for each step from a kernel of size 1")
    for index, basis in enumerate(bases):
        check_shape(f"bases[{index}]", basis, (max(mixing.shape), max(mixing.shape) // 2))


def orthogonal_kernel(mixing: Array, bases: Sequence[Array]) -> Array:
    """The kernel, (c_out, c_in, size, size), from H and 2 (size - 1) bases; without any, H as 1 x 1 kernel."""
    _check_bases(mixing, bases)
    if not bases:
        return mixing[:, :, None, None]
    c_out, c_in = mixing.shape
    taps = _products(bases)[-1]
    taps = mixing @ taps if c_out <= c_in else taps @ mixing  # (size, size, c_out, c_in)
    return taps.permute(2, 3, 0, 1).contiguous()


def orthogonal_kernel_vjp(mixing: Array, bases: Sequence[Array], gradient: Array) -> tuple[Array, list[Array]]:
    """What an update of the kernel, `gradient` in its shape, means for H and the bases: shaped like them."""
    _check_bases(mixing, bases)
    size = len(bases) // 2 + 1
    check_shape("gradient", gradient, (*mixing.shape, size, size))
    gradient = gradient.permute(2, 3, 0, 1)  # (size, size, c_out, c_in)
    if not bases:
        return gradient[0, 0], []
    products = _products(bases)
    taps = products[-1]
    if mixing.shape[0] <= mixing.shape[1]:
        of_mixing = _correlate(gradient.mT, taps.mT)
        of_taps = mixing.T @ gradient
    else:
        of_mixing = _correlate(taps, gradient)
        of_taps = gradient @ mixing.T
    of_bases: list[Array] = []
    for step in reversed(range(len(bases) // 2)):
        q, s = bases[2 * step], bases[2 * step + 1]
        before, t = products[step], _step(q, s)
        n = len(before)
        windows = [[of_taps[i : i + n, j : j + n] for j in range(2)] for i in range(2)]
        of_t = [[_correlate(before, windows[i][j]) for j in range(2)] for i in range(2)]
        if step:
            of_taps = torch.stack([windows[i][j] @ t[i, j].T for i in range(2) for j in range(2)]).sum(dim=0)
        p, r = q @ q.T, s @ s.T
        of_p_r = of_t[0][0] - of_t[0][1] - of_t[1][0] + of_t[1][1]
        of_p = of_p_r @ r + of_t[0][1] - of_t[1][1]
        of_r = p @ of_p_r + of_t[1][0] - of_t[1][1]
        of_bases[:0] = [(of_p + of_p.T) @ q, (of_r + of_r.T) @ s]
    return of_mixing, of_bases


def _correlate(a: Array, b: Array) -> Array:
    """sum over taps of a^T b: (n, m) for a (size, size, k, n) and b (size, size, k, m)."""
    return a.flatten(0, 2).T @ b.flatten(0, 2)


def skew_kernel(kernel: Array) -> Array:
    """Q^T J Q of the convolution Q: (c, c, 2 size - 1, 2 size - 1). It convolves J k, as c images, with k."""
    _check_kernel(kernel)
    check_shape("kernel", kernel, (len(kernel), len(kernel), *kernel.shape[2:]))
    turned = quarter_turns(kernel)
    found = functional.conv2d(turned.transpose(0, 1), kernel.transpose(0, 1), padding=kernel.shape[2] - 1)
    return found.transpose(0, 1)


def skew_kernel_vjp(kernel: Array, gradient: Array) -> Array:
    """What an update of Q^T J Q, `gradient` in its shape, means for the kernel: shaped as the kernel."""
    _check_kernel(kernel)
    check_shape("kernel", kernel, (len(kernel), len(kernel), *kernel.shape[2:]))
    size, turned = kernel.shape[2], quarter_turns(kernel)
    check_shape("gradient", gradient, (*kernel.shape[:2], 2 * size - 1, 2 * size - 1))
    return functional.conv2d(turned, gradient - gradient.transpose(0, 1).flip(2, 3), padding=size - 1)
