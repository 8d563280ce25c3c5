"""Maps of images that change their size, and the adjoints, by PyTorch's own; see the reference."""

from math import inf

import torch
from torch.nn import functional

from ._arrays import Array, check_count, check_images, check_shape, widened

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


def _check_squares(g: Array, size: int, stride: int | None, padding: int) -> None:
    check_images("g", g)
    check_count("size", size, 1, min(g.shape[2:]) + 2 * padding)
    check_count("padding", padding, 0, size // 2)
    check_count("stride", size if stride is None else stride)


def max_pool(g: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """Largest of each size x size pixels, side by side unless a stride is given: (batch, c, rows, columns)."""
    return g if size == 1 and stride is None else max_pool_and_places(g, size, stride, padding)[0]


def max_pool_and_places(g: Array, size: int, stride: int | None = None, padding: int = 0) -> tuple[Array, Array]:
    """`max_pool`, and the place of each maximum in its map, the first of equal ones."""
    _check_squares(g, size, stride, padding)
    pooled, places = functional.max_pool2d(g, size, stride, padding, return_indices=True)
    return pooled, places


def at_maxima(g: Array, values: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """Of each size x size pixels the value where g is largest, the first of equal ones: shaped as `max_pool(g)`."""
    return at_places(g, values, max_pool_and_places(g, size, stride, padding)[1])


def at_places(g: Array, values: Array, places: Array) -> Array:
    """`at_maxima`, where the places of the maxima of g are known."""
    check_shape("values", values, g.shape)
    return values.flatten(2).gather(2, places.flatten(2)).reshape(places.shape)


def max_pool_vjp(g: Array, d: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The adjoint of `at_maxima`, d put where g is largest: as g."""
    return spread_to_places(g, d, max_pool_and_places(g, size, stride, padding)[1], size, stride, padding)


def spread_to_places(
    g: Array, d: Array, places: Array, size: int, stride: int | None = None, padding: int = 0
) -> Array:
    """`max_pool_vjp`, where the places of the maxima of g are known."""
    check_shape("d", d, places.shape)
    square, step, around = ([n, n] for n in (size, size if stride is None else stride, padding))
    spread: Array = torch.ops.aten.max_pool2d_with_indices_backward(d, g, square, step, around, [1, 1], False, places)
    return spread


def average_pool(g: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """Means of size x size pixels, zeros around the map among them: shaped as `max_pool(g)`."""
    _check_squares(g, size, stride, padding)
    return functional.avg_pool2d(g, size, stride, padding)


def average_pool_adjoint(g: Array, d: Array, size: int, stride: int | None = None, padding: int = 0) -> Array:
    """The adjoint of `average_pool`; of g only the shape of a sample matters: (batch, c, height, width)."""
    _check_squares(g, size, stride, padding)
    channels, height, width = g.shape[1:]
    step = size if stride is None else stride
    rows, columns = ((n + 2 * padding - size) // step + 1 for n in (height, width))
    check_shape("d", d, (len(d), channels, rows, columns))
    if step != size or padding:
        like = d.new_empty((len(d), channels, height, width))
        square, steps, around = ([n, n] for n in (size, step, padding))
        spread: Array = torch.ops.aten.avg_pool2d_backward(d, like, square, steps, around, False, True, None)
        return spread
    spread = functional.interpolate(d / size**2, scale_factor=size, mode="nearest")
    return functional.pad(spread, (0, width - columns * size, 0, height - rows * size))


def _lp_pool(g: Array, power: float, size: int) -> Array:
    """`lp_pool` in float32 at least."""
    check_images("g", g)
    check_count("size", size, 1, min(g.shape[2:]))
    if not 1 <= power < inf:
        raise ValueError(f"power: {power}, expected 1 or more, a finite number")
    means = functional.avg_pool2d(widened(g).abs().pow(power), size)
    return means.mul_(size**2).pow_(1 / power)


def _lp_slopes(g: Array, power: float, size: int) -> Array:
    """The derivative by each pixel of the whole squares."""
    h = functional.interpolate(_lp_pool(g, power, size), scale_factor=size, mode="nearest")
    inside = g[:, :, : h.shape[2], : h.shape[3]]
    return inside.sign() * (inside.abs() / torch.where(h == 0, 1, h)).pow(power - 1)


def lp_pool(g: Array, power: float, size: int) -> Array:
    """Norms of size x size pixels, torch.nn.LPPool2d's where the power is even or g is not negative."""
    return _lp_pool(g, power, size).to(g.dtype)


def lp_pool_jvp(g: Array, u: Array, power: float, size: int) -> Array:
    """The derivative of `lp_pool` along u."""
    check_shape("u", u, g.shape)
    slopes = _lp_slopes(g, power, size)
    along = functional.avg_pool2d(slopes * u[:, :, : slopes.shape[2], : slopes.shape[3]], size)
    return (along * size**2).to(g.dtype)


def lp_pool_vjp(g: Array, d: Array, power: float, size: int) -> Array:
    """Its adjoint: as g."""
    slopes = _lp_slopes(g, power, size)
    rows, columns = slopes.shape[2:]
    check_shape("d", d, (*g.shape[:2], rows // size, columns // size))
    spread = slopes * functional.interpolate(widened(d), scale_factor=size, mode="nearest")
    return functional.pad(spread, (0, g.shape[3] - columns, 0, g.shape[2] - rows)).to(g.dtype)


def _check_divides(x: Array, size: int) -> None:
    height, width = x.shape[2:]
    if height % size or width % size:
        raise ValueError(f"x: {height} x {width} pixels, expected multiples of {size}")


def scaled_average_pool(x: Array, size: int) -> Array:
    """Means of size x size pixels, times size."""
    check_images("x", x)
    check_count("size", size)
    _check_divides(x, size)
    return size * functional.avg_pool2d(x, size)


def scaled_average_pool_adjoint(y: Array, size: int) -> Array:
    """The adjoint of `scaled_average_pool`: each pixel spread over its size x size block, divided by size."""
    check_images("y", y)
    check_count("size", size)
    return functional.interpolate(y / size, scale_factor=size, mode="nearest")


def unshuffle(x: Array, factor: int) -> Array:
    """Blocks of factor x factor pixels become channels, (batch, c factor^2, height / factor, width / factor)."""
    check_images("x", x)
    check_count("factor", factor)
    _check_divides(x, factor)
    return functional.pixel_unshuffle(x, factor)


def shuffle(y: Array, factor: int) -> Array:
    """The inverse of `unshuffle`, which is its adjoint too."""
    check_images("y", y)
    check_count("factor", factor)
    if y.shape[1] % factor**2:
        raise ValueError(f"y: {y.shape[1]} channels, expected a multiple of {factor**2}, the pixels of a block")
    return functional.pixel_shuffle(y, factor)
