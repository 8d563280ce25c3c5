"""Convolutions padded with zeros or circularly, their adjoints, and kernels that are orthogonal.

Padded with zeros: torch.nn.Conv2d without its bias.

    (1)  y[o, i] = sum_(c, p) k[o, c, p] z[c, t i + p - q],    z = 0 outside of the image;
         with groups, the n-th part of the outputs o sees the n-th part of the inputs c alone
    (2)  its adjoint:  z[c, j] = sum_(o, p, i: t i + p - q = j) k[o, c, p] y[o, i]
    (3)  G[o, c, p] = 1/B sum_(samples, i) delta[o, i] z[c, t i + p - q]        the update of a kernel from its factors

Circular, of square kernels: positions are taken modulo the height and the width.

    (4)  y[o, i] = sum_(c, p) k[o, c, p] x[c, i + p - s]
    (5)  its adjoint:  x[c, i] = sum_(o, p) k[o, c, p] y[o, i - p + s]
    (6)  G[o, c, p] = 1/B sum_(samples, i) delta[o, i] z[c, i + p - s]

Orthogonal kernels of (4): BCOP. Li, Haque, Anil, Lucas, Grosse and Jacobsen, "Preventing Gradient Attenuation in
Lipschitz Constrained Convolutional Networks", NeurIPS 2019.

    (7)  t_j(u, v) = (P + (I - P) u) (R + (I - R) v),    P = Q Q^T, R = S S^T of the bases Q, S of step j
    (8)  T = t_1 t_2 ... t_(size-1);    kernel = H T where it narrows, T H where it widens

(7) and (8) are polynomials in the shifts u down and v to the right. Their coefficients are the taps of the kernel, and
their products are block convolutions. Each t_j is orthogonal as an operator, since P and R are symmetric projectors; so
the kernel has orthonormal rows where c_out <= c_in, orthonormal columns where c_out >= c_in, if H has. Padding with
zeros loses norm at the border. Li et al. take Q as the first half of the columns of a full orthogonal matrix, and H as
a corner of one; here, these parts are the parameters.

Ours, of an orthogonal kernel k with c_out = c_in; J is that of `orthogonality`, on the first channels.

    (9)  Q^T J Q of Q = (4) with k:  w[o, c, size - 1 + p - q] = sum_(a, p, q) k[a, o, q] (J k)[a, c, p]

(9) is skew, w[o, c, r] = -w[c, o, -r] about its middle, for any k, and orthogonal where k is.

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x, z | x, z | (batch, c_in, height, width) | input |
| y, delta | y, delta | (batch, c_out, height, width) | output; error factor |
| k | kernel | (c_out, c_in / groups, rows, columns) | kernel; i, j and p are pairs of row and column |
| t, q | stride, padding | (2,) | steps between outputs; rows and columns of zeros put around the image |
| s | size // 2 | | of a circular kernel, (c_out, c_in, size, size) |
| H | mixing | (c_out, c_in) | what changes the number of channels, orthonormal rows or columns |
| Q, S | bases[2j-2], bases[2j-1] | (c, c // 2) | orthonormal columns, c = max(c_in, c_out), j = 1..size-1 |
| T | taps | (size, size, c, c) | coefficients by shift |
"""

from collections.abc import Sequence

import numpy as np

from ._arrays import Array, check_count, check_images, check_shape
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


def _windows(z: Array, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Array:
    """z[c, t i + p - q] for all i and p: (batch, c, height_out, width_out, *size)."""
    around = [(0, 0), (0, 0), *((q, q) for q in padding)]
    found = np.lib.stride_tricks.sliding_window_view(np.pad(z, around), size, axis=(2, 3))
    return found[:, :, :: stride[0], :: stride[1]]


def convolve(
    kernel: Array, z: Array, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0), groups: int = 1
) -> Array:
    """k * z, equation (1): (batch, c_out, height_out, width_out). Raises ValueError where sizes do not fit.

    >>> kernel, z = np.array([[[[1.0, 10.0]]]]), np.array([[[[1.0, 2.0, 3.0]]]])
    >>> convolve(kernel, z).tolist()  # the kernel is not flipped
    [[[[21.0, 32.0]]]]
    >>> convolve(kernel, z, padding=(0, 1)).tolist()
    [[[[10.0, 21.0, 32.0, 3.0]]]]
    """
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


def convolve_adjoint(
    kernel: Array,
    y: Array,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Array:
    """The adjoint, equation (2), for images of `size`, height and width: (batch, c_in, *size).

    Raises ValueError unless y is shaped as `convolve` gives it.

    >>> convolve_adjoint(np.array([[[[1.0, 10.0]]]]), np.array([[[[1.0, 2.0]]]]), (1, 3)).tolist()
    [[[[1.0, 12.0, 20.0]]]]
    """
    check_images("y", y)
    shape = (len(y), kernel.shape[1] * groups, *size)
    expected = convolve(kernel, np.zeros(shape, y.dtype), stride, padding, groups).shape
    check_shape("y", y, expected)
    z = np.zeros((*shape[:2], size[0] + 2 * padding[0], size[1] + 2 * padding[1]), y.dtype)
    parts = zip(np.split(kernel, groups), np.split(y, groups, axis=1), np.split(z, groups, axis=1), strict=True)
    for k, of_outputs, of_inputs in parts:
        windows = np.lib.stride_tricks.sliding_window_view(of_inputs, kernel.shape[2:], axis=(2, 3), writeable=True)
        windows = windows[:, :, :: stride[0], :: stride[1]]
        for p, q in np.ndindex(*kernel.shape[2:]):
            windows[..., p, q] += np.einsum("oc,bohw->bchw", k[:, :, p, q], of_outputs)
    return z[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def kernel_update(
    delta: Array,
    z: Array,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Array:
    """G of (3) for such a kernel: (c_out, c_in / groups, *size). Raises ValueError where sizes do not fit.

    >>> delta, z = np.array([[[[1.0, 0.0]]]]), np.array([[[[5.0, 7.0, 9.0]]]])
    >>> kernel_update(delta, z, (1, 2)).tolist()  # what the first window saw
    [[[[5.0, 7.0]]]]
    """
    check_images("delta", delta)
    check_shape("z", z, (len(delta), *z.shape[1:]))
    windows = np.split(_windows(z, size, stride, padding), groups, axis=1)
    deltas = np.split(delta, groups, axis=1)
    found = [np.einsum("bohw,bchwpq->ocpq", d, seen) for d, seen in zip(deltas, windows, strict=True)]
    return np.concatenate(found) / np.asarray(len(z), z.dtype)


def _shifted(x: Array, rows: int, columns: int) -> Array:
    """x[..., i + rows, j + columns] with circular padding."""
    return np.roll(x, (-rows, -columns), axis=(2, 3))


def _check_kernel(kernel: Array) -> None:
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or 0 in kernel.shape:
        raise ValueError(f"kernel: shape {tuple(kernel.shape)}, expected (c_out, c_in, size, size), all positive")


def circular_convolve(kernel: Array, x: Array) -> Array:
    """k * x, equation (4): (batch, c_out, height, width). Raises ValueError for another number of channels.

    >>> kernel = np.array([[[[0.0, 0.0], [1.0, 10.0]]]])  # the pixel to the left, and ten times the pixel itself
    >>> circular_convolve(kernel, np.array([[[[1.0, 2.0, 3.0]]]])).tolist()  # the last pixel is left of the first
    [[[[13.0, 21.0, 32.0]]]]
    """
    _check_kernel(kernel)
    check_images("x", x)
    c_out, c_in, size, _ = kernel.shape
    if x.shape[1] != c_in:
        raise ValueError(f"x: {x.shape[1]} channels, but the kernel takes {c_in}")
    y = np.zeros((len(x), c_out, *x.shape[2:]), x.dtype)
    for p in range(size):
        for q in range(size):
            y += np.einsum("oc,bchw->bohw", kernel[:, :, p, q], _shifted(x, p - size // 2, q - size // 2))
    return y


def circular_convolve_adjoint(kernel: Array, y: Array) -> Array:
    """The adjoint, equation (5): (batch, c_in, height, width). Raises ValueError for another number of channels.

    >>> kernel = np.array([[[[0.0, 0.0], [1.0, 10.0]]]])
    >>> circular_convolve_adjoint(kernel, np.array([[[[1.0, 0.0, 0.0]]]])).tolist()
    [[[[10.0, 0.0, 1.0]]]]
    """
    _check_kernel(kernel)
    check_images("y", y)
    if y.shape[1] != len(kernel):
        raise ValueError(f"y: {y.shape[1]} channels, but the kernel gives {len(kernel)}")
    _, c_in, size, _ = kernel.shape
    x = np.zeros((len(y), c_in, *y.shape[2:]), y.dtype)
    for p in range(size):
        for q in range(size):
            x += np.einsum("oc,bohw->bchw", kernel[:, :, p, q], _shifted(y, size // 2 - p, size // 2 - q))
    return x


def circular_kernel_update(delta: Array, z: Array, size: int) -> Array:
    """G of equation (6): (c_out, c_in, size, size). Raises ValueError unless delta and z are images of one size.

    >>> delta, z = np.array([[[[1.0, 0.0, 0.0]]]]), np.array([[[[1.0, 2.0, 3.0]]]])
    >>> circular_kernel_update(delta, z, 2).tolist()  # one row of pixels is its own neighbour above
    [[[[3.0, 1.0], [3.0, 1.0]]]]
    """
    check_images("delta", delta)
    check_count("size", size)
    check_shape("z", z, (len(delta), z.shape[1], *delta.shape[2:]))
    update = np.empty((delta.shape[1], z.shape[1], size, size), z.dtype)
    for p in range(size):
        for q in range(size):
            shifted = _shifted(z, p - size // 2, q - size // 2)
            update[:, :, p, q] = np.einsum("bohw,bchw->oc", delta, shifted) / len(z)
    return update


def _step(q: Array, s: Array) -> Array:
    """Coefficients of t(u, v), equation (7), for bases q and s: (2, 2, c, c)."""
    p, r = q @ q.T, s @ s.T
    identity = np.eye(len(p), dtype=p.dtype)
    return np.array([[p @ r, p @ (identity - r)], [(identity - p) @ r, (identity - p) @ (identity - r)]])


def _products(bases: Sequence[Array]) -> list[Array]:
    """1, t_1, t_1 t_2, ..., T: (j + 1, j + 1, c, c) after j steps."""
    first, *_ = bases
    channels = len(first)
    products = [np.eye(channels, dtype=first.dtype)[None, None]]
    for q, s in zip(bases[::2], bases[1::2], strict=True):
        before, t = products[-1], _step(q, s)
        taps = np.zeros((len(before) + 1, len(before) + 1, channels, channels), t.dtype)
        for i in range(2):
            for j in range(2):
                taps[i : i + len(before), j : j + len(before)] += before @ t[i, j]
        products.append(taps)
    return products


def _check_bases(mixing: Array, bases: Sequence[Array]) -> None:
    if len(bases) % 2:
        raise ValueError(f"bases: {len(bases)}, expected two for each step from a kernel of size 1")
    for index, basis in enumerate(bases):
        check_shape(f"bases[{index}]", basis, (max(mixing.shape), max(mixing.shape) // 2))


def orthogonal_kernel(mixing: Array, bases: Sequence[Array]) -> Array:
    """The kernel of equation (8) from 2 (size - 1) bases: (c_out, c_in, size, size).

    Without any, H itself as 1 x 1 kernel. Raises ValueError for an odd number of bases, or bases of another shape.

    >>> first = np.array([[1.0], [0.0]])
    >>> kernel = orthogonal_kernel(np.eye(2), [first, first])
    >>> kernel[0, 0].tolist(), kernel[1, 1].tolist()  # one channel stays, the other is shifted
    ([[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])
    """
    _check_bases(mixing, bases)
    if not bases:
        return mixing[:, :, None, None]
    c_out, c_in = mixing.shape
    taps = _products(bases)[-1]
    taps = mixing @ taps if c_out <= c_in else taps @ mixing  # (size, size, c_out, c_in)
    return taps.transpose(2, 3, 0, 1)


def orthogonal_kernel_vjp(mixing: Array, bases: Sequence[Array], gradient: Array) -> tuple[Array, list[Array]]:
    """What an update of the kernel means for H and the bases: its product with the transposed derivative of (8).

    `gradient` is shaped as the kernel, the results as H and the bases: nothing but this layer's own parameters enters.
    Raises ValueError as `orthogonal_kernel` does.

    >>> of_mixing, of_bases = orthogonal_kernel_vjp(np.array([[1.0]]), [], np.array([[[[5.0]]]]))  # H is the kernel
    >>> of_mixing.tolist(), of_bases
    ([[5.0]], [])
    """
    _check_bases(mixing, bases)
    size = len(bases) // 2 + 1
    check_shape("gradient", gradient, (*mixing.shape, size, size))
    gradient = gradient.transpose(2, 3, 0, 1)  # (size, size, c_out, c_in)
    if not bases:
        return gradient[0, 0], []
    products = _products(bases)
    taps = products[-1]
    if mixing.shape[0] <= mixing.shape[1]:
        of_mixing = np.einsum("pqoc,pqdc->od", gradient, taps)
        of_taps = mixing.T @ gradient
    else:
        of_mixing = np.einsum("pqdo,pqdc->oc", taps, gradient)
        of_taps = gradient @ mixing.T
    of_bases: list[Array] = []
    for step in reversed(range(len(bases) // 2)):
        q, s = bases[2 * step], bases[2 * step + 1]
        before, t = products[step], _step(q, s)
        n = len(before)
        # Arrays, but pyright takes the sum below for an int, which it is of nothing alone.
        windows = [[of_taps[i : i + n, j : j + n] for j in range(2)] for i in range(2)]  # pyright: ignore[reportIndexIssue]
        of_t = [[np.einsum("pqab,pqac->bc", before, windows[i][j]) for j in range(2)] for i in range(2)]
        of_taps = sum(windows[i][j] @ t[i, j].T for i in range(2) for j in range(2))
        p, r = q @ q.T, s @ s.T
        identity = np.eye(len(p), dtype=p.dtype)
        of_p = (of_t[0][0] - of_t[1][0]) @ r + (of_t[0][1] - of_t[1][1]) @ (identity - r)
        of_r = p @ (of_t[0][0] - of_t[0][1]) + (identity - p) @ (of_t[1][0] - of_t[1][1])
        of_bases[:0] = [(of_p + of_p.T) @ q, (of_r + of_r.T) @ s]
    return of_mixing, of_bases


def skew_kernel(kernel: Array) -> Array:
    """w of equation (9): (c, c, 2 size - 1, 2 size - 1) of a kernel (c, c, size, size), c even.

    Raises ValueError for another number of outputs than inputs, and for an odd number.

    >>> skew_kernel(np.eye(2).reshape(2, 2, 1, 1)).reshape(2, 2).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    _check_kernel(kernel)
    check_shape("kernel", kernel, (len(kernel), len(kernel), *kernel.shape[2:]))
    size, turned = kernel.shape[2], quarter_turns(kernel)
    skew = np.zeros((*kernel.shape[:2], 2 * size - 1, 2 * size - 1), kernel.dtype)
    for p in np.ndindex(size, size):
        for q in np.ndindex(size, size):
            i, j = size - 1 + p[0] - q[0], size - 1 + p[1] - q[1]
            skew[:, :, i, j] += kernel[:, :, *q].T @ turned[:, :, *p]
    return skew


def skew_kernel_vjp(kernel: Array, gradient: Array) -> Array:
    """What an update of w, equation (9), means for the kernel: shaped as the kernel.

    `gradient` is shaped as w. Raises ValueError as `skew_kernel` does.

    >>> gradient = np.array([[0.0, 2.0], [0.0, 0.0]]).reshape(2, 2, 1, 1)
    >>> skew_kernel_vjp(np.eye(2).reshape(2, 2, 1, 1), gradient).reshape(2, 2).tolist()
    [[-2.0, 0.0], [0.0, -2.0]]
    """
    _check_kernel(kernel)
    check_shape("kernel", kernel, (len(kernel), len(kernel), *kernel.shape[2:]))
    size, turned = kernel.shape[2], quarter_turns(kernel)
    check_shape("gradient", gradient, (*kernel.shape[:2], 2 * size - 1, 2 * size - 1))
    skew_part = gradient.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1] - gradient
    found = np.zeros_like(kernel)
    for p in np.ndindex(size, size):
        for q in np.ndindex(size, size):
            i, j = size - 1 + p[0] - q[0], size - 1 + p[1] - q[1]
            found[:, :, *p] += turned[:, :, *q] @ skew_part[:, :, i, j]
    return found
