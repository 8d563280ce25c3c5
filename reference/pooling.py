"""Maps of images that change their size, and the adjoints: pooling, and pixels that become channels.

    (1)  max:             h[c, i] = max_(0 <= p < n) g[c, t i + p - q]
    (2)  at maxima:       v[c, t i + p* - q], p* the first p, row by row, where g is largest: the derivative of (1)
    (3)  average:         h[c, i] = 1/n^2 sum_(0 <= p < n) g[c, t i + p - q]
    (4)  scaled average:  n times (3), for which A A^T = I
    (5)  unshuffling:     h[c n^2 + p, i] = g[c, n i + p], a permutation, hence orthogonal
    (6)  of power r:      h[c, i] = (sum_(0 <= p < n) |g[c, n i + p]|^r)^(1/r),
                          dh[c, i]/dg[c, n i + p] = sign(g) (|g| / h)^(r - 1), and 0 where h is 0

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| g | g, x | (batch, c, height, width) | images; i and p are pairs of row and column |
| h | y; d for an adjoint | (batch, c, height // n, width // n) | what becomes of them, with c n^2 channels in (5) |
| n | size, factor | | side of the squares |
| t, q | stride, padding | | from square to square, n unless given; rows and columns around g, least in (1), 0 in (3) |
| r | power | | 1 or more |
| v | values | as g | what is taken where g is largest |

(1) to (3) and (6) lose the rows and columns at the border that fill no square; (4) and (5) refuse them.
"""

import numpy as np

from ._arrays import Array, check_count, check_images, check_shape

__all__ = [
    "at_maxima",
    "average_pool",
    "average_pool_adjoint",
    "lp_pool",
    "lp_pool_jvp",
    "lp_pool_vjp",
    "max_pool",
    "max_pool_vjp",
    "scaled_average_pool",
    "scaled_average_pool_adjoint",
    "shuffle",
    "unshuffle",
]


def _squares(g: Array, size: int, stride: int | None = None, padding: int = 0, around: float = 0.0) -> Array:
    """The whole squares: (batch, c, rows, columns, size^2), pixels row by row, of g padded with the number around."""
    check_images("g", g)
    check_count("size", size, 1, min(g.shape[2:]) + 2 * padding)
    check_count("padding", padding, 0, size // 2)
    stride = size if stride is None else stride
    check_count("stride", stride)
    padded = np.pad(g, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=around)
    found = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    return found.reshape(*found.shape[:4], size * size)


def _placed(squares: Array, size: int, shape: tuple[int, ...], stride: int | None = None, padding: int = 0) -> Array:
    """The adjoint of `_squares`: (batch, *shape), the sum of all squares that a pixel is in, 0 for none."""
    stride = size if stride is None else stride
    batch, _, rows, columns, _ = squares.shape
    channels, height, width = shape
    g = np.zeros((batch, channels, height + 2 * padding, width + 2 * padding), squares.dtype)
    for p in range(size):
        for q in range(size):
            g[:, :, p : p + stride * rows : stride, q : q + stride * columns : stride] += squares[..., size * p + q]
    return g[:, :, padding : padding + height, padding : padding + width]


def max_pool(g: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The largest of each square, (1): (batch, c, rows, columns), as many as squares in each direction.

    Raises ValueError for no square, and for padding of more than half a square.

    >>> max_pool(np.array([[[[1.0, 3.0, 9.0], [2.0, 0.0, 9.0]]]]), 2).tolist()  # the third column fills no square
    [[[[3.0]]]]
    """
    return _squares(g, size, stride, padding, -np.inf).max(axis=-1)


def at_maxima(g: Array, values: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The value of each square where g is largest, the first of equal ones, equation (2): shaped as `max_pool(g)`.

    Raises ValueError as `max_pool`, and unless the values are shaped as g.

    >>> g, values = np.array([[[[0.0, 5.0], [5.0, 0.0]]]]), np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    >>> at_maxima(g, values, 2).tolist()  # the first of equal ones, row by row
    [[[[2.0]]]]
    """
    check_shape("values", values, g.shape)
    places = _squares(g, size, stride, padding, -np.inf).argmax(axis=-1)[..., None]
    return np.take_along_axis(_squares(values, size, stride, padding), places, axis=-1)[..., 0]


def max_pool_vjp(g: Array, d: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The adjoint of (2), d put where g is largest: as g. Raises ValueError unless d is shaped as `max_pool(g)`.

    >>> max_pool_vjp(np.array([[[[0.0, 5.0], [5.0, 0.0]]]]), np.array([[[[7.0]]]]), 2).tolist()
    [[[[0.0, 7.0], [0.0, 0.0]]]]
    """
    squares = _squares(g, size, stride, padding, -np.inf)
    check_shape("d", d, squares.shape[:-1])
    largest = np.arange(size**2) == squares.argmax(axis=-1)[..., None]
    return _placed(largest * d[..., None], size, g.shape[1:], stride, padding)


def average_pool(g: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The mean of each square, (3): shaped as `max_pool(g)`. Raises ValueError as `max_pool`.

    >>> average_pool(np.array([[[[1.0, 3.0], [2.0, 2.0]]]]), 2).tolist()
    [[[[2.0]]]]
    >>> average_pool(np.array([[[[4.0]]]]), 2, padding=1).tolist()  # the zeros around it count
    [[[[1.0]]]]
    """
    return _squares(g, size, stride, padding).mean(axis=-1)


def average_pool_adjoint(g: Array, d: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The adjoint of (3), d / n^2 all over its square: shaped as g, but of as many samples as d.

    Raises ValueError where d does not fit.

    >>> average_pool_adjoint(np.zeros((1, 1, 2, 3)), np.array([[[[8.0]]]]), 2).tolist()  # 0 in the column that is lost
    [[[[2.0, 2.0, 0.0], [2.0, 2.0, 0.0]]]]
    """
    check_shape("d", d, (len(d), *_squares(g, size, stride, padding).shape[1:-1]))
    return _placed(np.repeat(d[..., None] / size**2, size**2, axis=-1), size, g.shape[1:], stride, padding)


def _lp_pool(squares: Array, power: float) -> Array:
    if not 1 <= power < np.inf:
        raise ValueError(f"power: {power}, expected 1 or more, a finite number")
    return np.sum(np.abs(squares) ** power, axis=-1) ** (1 / power)


def _lp_slopes(squares: Array, power: float) -> Array:
    """The derivative by each pixel of a square, equation (6)."""
    h = _lp_pool(squares, power)[..., None]
    return np.sign(squares) * (np.abs(squares) / np.where(h == 0, 1, h)) ** (power - 1)


def lp_pool(g: Array, power: float, size: int) -> Array:
    """The norm of each square, (6): (batch, c, height // size, width // size).

    It is torch.nn.LPPool2d's where the power is even or g is not negative. Raises ValueError as `max_pool`, and unless
    the power is 1 or more.

    >>> lp_pool(np.array([[[[3.0, -4.0], [0.0, 0.0]]]]), 2.0, 2).tolist()
    [[[[5.0]]]]
    """
    return _lp_pool(_squares(g, size), power)


def lp_pool_jvp(g: Array, u: Array, power: float, size: int) -> Array:
    """The derivative of (6) along u: shaped as `lp_pool(g)`. Raises ValueError unless u is shaped as g.

    >>> g, u = np.array([[[[3.0, 4.0], [0.0, 0.0]]]]), np.array([[[[1.0, 0.0], [9.0, 9.0]]]])
    >>> lp_pool_jvp(g, u, 2.0, 2).tolist()  # 3/5 of 1; of the zeros nothing
    [[[[0.6]]]]
    """
    check_shape("u", u, g.shape)
    return np.sum(_lp_slopes(_squares(g, size), power) * _squares(u, size), axis=-1)


def lp_pool_vjp(g: Array, d: Array, power: float, size: int) -> Array:
    """Its adjoint: as g. Raises ValueError unless d is shaped as `lp_pool(g)`.

    >>> lp_pool_vjp(np.array([[[[3.0, 4.0], [0.0, 0.0]]]]), np.array([[[[10.0]]]]), 2.0, 2).tolist()
    [[[[6.0, 8.0], [0.0, 0.0]]]]
    >>> lp_pool_vjp(np.zeros((1, 1, 1, 1)), np.array([[[[10.0]]]]), 2.0, 1).tolist()
    [[[[0.0]]]]
    """
    squares = _squares(g, size)
    check_shape("d", d, squares.shape[:-1])
    return _placed(_lp_slopes(squares, power) * d[..., None], size, g.shape[1:])


def scaled_average_pool(x: Array, size: int) -> Array:
    """n times the mean of each square, equation (4): A A^T = I, where the mean alone has A A^T = I / n^2.

    (batch, c, height / size, width / size). Raises ValueError unless squares fill the image.

    >>> scaled_average_pool(np.array([[[[1.0, 3.0], [2.0, 2.0]]]]), 2).tolist()  # twice the mean
    [[[[4.0]]]]
    """
    check_images("x", x)
    check_count("size", size)
    batch, channels, height, width = x.shape
    if height % size or width % size:
        raise ValueError(f"x: {height} x {width} pixels, expected multiples of {size}")
    return x.reshape(batch, channels, height // size, size, width // size, size).sum(axis=(3, 5)) / size


def scaled_average_pool_adjoint(y: Array, size: int) -> Array:
    """The adjoint of (4), y / n all over its square: (batch, c, size height, size width).

    Raises ValueError unless y are images.

    >>> scaled_average_pool_adjoint(np.array([[[[4.0]]]]), 2).tolist()
    [[[[2.0, 2.0], [2.0, 2.0]]]]
    """
    check_images("y", y)
    check_count("size", size)
    return y.repeat(size, axis=2).repeat(size, axis=3) / size


def unshuffle(x: Array, factor: int) -> Array:
    """Squares of pixels become channels, equation (5): (batch, c factor^2, height / factor, width / factor).

    The order is that of torch.nn.PixelUnshuffle. Raises ValueError unless squares fill the image.

    >>> unshuffle(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), 2).tolist()
    [[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]]
    """
    check_images("x", x)
    check_count("factor", factor)
    batch, channels, height, width = x.shape
    if height % factor or width % factor:
        raise ValueError(f"x: {height} x {width} pixels, expected multiples of {factor}")
    blocks = x.reshape(batch, channels, height // factor, factor, width // factor, factor)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // factor, width // factor)


def shuffle(y: Array, factor: int) -> Array:
    """The inverse of (5), which is its adjoint too: (batch, c, factor height, factor width).

    Raises ValueError unless the channels of y are a multiple of factor^2.

    >>> shuffle(np.array([[[[1.0]], [[2.0]], [[3.0]], [[4.0]]]]), 2).tolist()
    [[[[1.0, 2.0], [3.0, 4.0]]]]
    """
    check_images("y", y)
    check_count("factor", factor)
    if y.shape[1] % factor**2:
        raise ValueError(f"y: {y.shape[1]} channels, expected a multiple of {factor**2}, the pixels of a block")
    batch, channels, height, width = y.shape
    blocks = y.reshape(batch, channels // factor**2, factor, factor, height, width)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(batch, -1, height * factor, width * factor)
