"""Normalisations of what a layer passes on, by PyTorch's own kernels where it has them; see the reference.

Statistics of half precision are those of float32, as the kernels have them.
"""

from math import prod, sqrt
from typing import NamedTuple

import torch
from torch.nn import functional

from ._arrays import Array, Derivative, Map, check_count, check_not_negative, check_positive, check_shape, wide, widened
from .adaptive_pooling import channels_last

__all__ = [
    "Normalisation",
    "batch_norm",
    "batch_norm_vjp",
    "channel_norm",
    "channel_norm_vjp",
    "direction",
    "direction_vjp",
    "group_norm",
    "group_norm_vjp",
    "instance_norm",
    "instance_norm_vjp",
    "layer_norm",
    "layer_norm_vjp",
    "rms_norm",
    "rms_norm_vjp",
    "unit_sphere",
    "unit_sphere_vjp",
]


class Normalisation(NamedTuple):
    """A step of `layers`, for one: Normalisation(layer_norm, layer_norm_vjp)."""

    value: Map
    vjp: Derivative

    def jvp(self, h: Array, u: Array) -> Array:
        """As `vjp`, since the derivative is symmetric."""
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        """The difference of two values."""
        return self.value(h) - self.value(h - u)


_aten = torch.ops.aten
_INPUT = [True, False, False]
"""Of PyTorch's kernels for gradients by input, gain and bias, the first is asked for."""


def _first(gradients: tuple[Array, ...]) -> Array:
    return gradients[0]


def _check_input(h: Array, eps: float) -> None:
    if h.ndim < 2 or 0 in h.shape:
        raise ValueError(f"h: shape {tuple(h.shape)}, expected (batch, C, ...), at least one of each")
    check_not_negative("eps", eps)


def _check(name: str, count: int) -> None:
    if count < 2:
        raise ValueError(f"h: {name} has {count} number, whose deviation from its mean is always 0; expected 2 or more")


def _standardised_vjp(h: Array, gradient: Array, axes: tuple[int, ...], eps: float) -> Array:
    """The gradient through mean and deviation over the axes."""
    check_shape("gradient", gradient, h.shape)
    variance, mean = torch.var_mean(widened(h), dim=axes, correction=0, keepdim=True)
    rate = (variance + eps).rsqrt()
    y, g = (h - mean) * rate, widened(gradient)
    across = g.mean(dim=axes, keepdim=True) + y * (g * y).mean(dim=axes, keepdim=True)
    return ((g - across) * rate).to(h.dtype)


def _check_groups(h: Array, groups: int, eps: float) -> None:
    check_count("groups", groups)
    _check_input(h, eps)
    if h.shape[1] % groups:
        raise ValueError(f"h: {h.shape[1]} channels, expected a multiple of {groups} groups")
    _check("a group", prod(h.shape[1:]) // groups)


def group_norm(h: Array, groups: int, eps: float = 1e-5) -> Array:
    """Over each group of channels of a sample. Raises ValueError unless groups divide them, and for groups of one."""
    _check_groups(h, groups, eps)
    return functional.group_norm(h, groups, eps=eps)


def group_norm_vjp(h: Array, gradient: Array, groups: int, eps: float = 1e-5) -> Array:
    """The gradient through it. Raises ValueError as `group_norm` does."""
    _check_groups(h, groups, eps)
    check_shape("gradient", gradient, h.shape)
    h, size = h.contiguous(), (h.shape[0], h.shape[1], prod(h.shape[2:]), groups)
    _, mean, rate = _aten.native_group_norm(h, None, None, *size, eps)
    gradients = _aten.native_group_norm_backward(gradient.contiguous(), h, mean, rate, None, *size, _INPUT)
    return _first(gradients)


def instance_norm(h: Array, eps: float = 1e-5) -> Array:
    """Over each channel of a sample. Raises ValueError where a channel has one position."""
    _check_input(h, eps)
    _check("a channel", prod(h.shape[2:]))
    if h.device.type == "cpu" and h.dtype == wide(h.dtype) and channels_last(h):
        # PyTorch's kernels take twice as long for so many groups, and give another format back.
        centred = h - h.mean(dim=(2, 3), keepdim=True)
        return centred * (centred.square().mean(dim=(2, 3), keepdim=True) + eps).rsqrt()
    return functional.group_norm(h.contiguous(), h.shape[1], eps=eps)


def instance_norm_vjp(h: Array, gradient: Array, eps: float = 1e-5) -> Array:
    """The gradient through it. Raises ValueError where a channel has one position."""
    _check_input(h, eps)
    _check("a channel", prod(h.shape[2:]))
    return _standardised_vjp(h, gradient, tuple(range(2, h.dim())), eps)


def channel_norm(h: Array, eps: float = 1e-5) -> Array:
    """Over the channels at each position; maps come out with channels last. Raises ValueError for one channel."""
    _check_input(h, eps)
    _check("a position", h.shape[1])
    return functional.layer_norm(h.movedim(1, -1), h.shape[1:2], eps=eps).movedim(-1, 1)


def channel_norm_vjp(h: Array, gradient: Array, eps: float = 1e-5) -> Array:
    """The gradient through it. Raises ValueError for one channel."""
    _check_input(h, eps)
    _check("a position", h.shape[1])
    return _standardised_vjp(h, gradient, (1,), eps)


def layer_norm(h: Array, eps: float = 1e-5) -> Array:
    """Over each sample. Raises ValueError where it has one number."""
    _check_input(h, eps)
    _check("a sample", prod(h.shape[1:]))
    return functional.layer_norm(h, h.shape[1:], eps=eps)


def layer_norm_vjp(h: Array, gradient: Array, eps: float = 1e-5) -> Array:
    """The gradient through it. Raises ValueError where a sample has one number."""
    _check_input(h, eps)
    _check("a sample", prod(h.shape[1:]))
    check_shape("gradient", gradient, h.shape)
    sample = h.shape[1:]
    _, mean, rate = _aten.native_layer_norm(h, sample, None, None, eps)
    return _first(_aten.native_layer_norm_backward(gradient, h, sample, mean, rate, None, None, _INPUT))


def _batch_axes(h: Array) -> tuple[int, ...]:
    """The axes that a channel's statistics are taken over."""
    _check("a channel of the batch", h.numel() // h.shape[1])
    return (0, *range(2, h.dim()))


def _check_statistics(h: Array, mean: Array | None, variance: Array | None) -> None:
    if mean is not None and variance is not None:
        check_shape("mean", mean, h.shape[1:2])
        check_shape("variance", variance, h.shape[1:2])
    elif mean is not variance:
        raise ValueError("mean, variance: one without the other, expected both or neither")


def batch_norm(h: Array, mean: Array | None = None, variance: Array | None = None, eps: float = 1e-5) -> Array:
    """Over each channel of the batch, or with the statistics given, (C,) each.

    Raises ValueError where one of the two is given alone, and for a batch with one number a channel.
    """
    _check_input(h, eps)
    _check_statistics(h, mean, variance)
    if mean is None:
        _batch_axes(h)
    # Not functional.batch_norm, which refuses an eps of 0.
    return torch.batch_norm(h, None, None, mean, variance, mean is None, 0.0, eps, torch.backends.cudnn.enabled)


def batch_norm_vjp(
    h: Array, gradient: Array, mean: Array | None = None, variance: Array | None = None, eps: float = 1e-5
) -> Array:
    """The gradient through it and the batch's statistics; of given ones, of any number of rows.

    Raises ValueError as `batch_norm` does, and where the gradient does not fit.
    """
    _check_input(h, eps)
    _check_statistics(h, mean, variance)
    if variance is None:
        _batch_axes(h)
        check_shape("gradient", gradient, h.shape)
        _, mean, rate = _aten.native_batch_norm(h, None, None, None, None, True, 0.0, eps)
        unused = (None, None, None)
        return _first(_aten.native_batch_norm_backward(gradient, h, *unused, mean, rate, True, eps, _INPUT))
    check_shape("gradient", gradient, (len(gradient), *h.shape[1:]))
    rate = (widened(variance) + eps).rsqrt().view(-1, *[1] * (h.dim() - 2))
    return (gradient * rate).to(h.dtype)


def rms_norm(h: Array, eps: float = 1e-8) -> Array:
    """Samples divided by their root mean square: it becomes 1; 0 stays 0."""
    _check_input(h, eps)
    axes = tuple(range(1, h.dim()))  # channels last in memory, flattened samples would be a copy
    size = torch.linalg.vector_norm(h, dim=axes, keepdim=True, dtype=wide(h.dtype)) / sqrt(prod(h.shape[1:]))
    return (h / (size + eps)).to(h.dtype)


def rms_norm_vjp(h: Array, gradient: Array, eps: float = 1e-8) -> Array:
    """The gradient through it; at 0 that of h / eps."""
    _check_input(h, eps)
    check_shape("gradient", gradient, h.shape)
    v, g = widened(h).flatten(1), widened(gradient).flatten(1)
    size = _length(v) / sqrt(v.shape[1])
    u = v / torch.where(size == 0, 1, size)
    found = (g - u * (g * u).mean(dim=1, keepdim=True) * size / (size + eps)) / (size + eps)
    return found.to(h.dtype).view_as(h)


def _length(v: Array) -> Array:
    return torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=wide(v.dtype))


def direction(v: Array, eps: float = 1e-12) -> Array:
    """v / |v| along the last axis, and 0 where |v| <= eps."""
    check_positive("eps", eps)
    length = _length(v)
    return torch.where(length <= eps, 0, v / length.clamp(min=eps)).to(v.dtype)


def direction_vjp(v: Array, gradient: Array, eps: float = 1e-12) -> Array:
    """Its derivative: orthogonal to v."""
    check_positive("eps", eps)
    check_shape("gradient", gradient, v.shape)
    length, g = _length(v), widened(gradient)
    u = v / length.clamp(min=eps)
    tangential = g - (g * u).sum(dim=-1, keepdim=True) * u
    return torch.where(length <= eps, 0, tangential / length.clamp(min=eps)).to(v.dtype)


def unit_sphere(h: Array, scaled: bool = False, eps: float = 1e-12) -> Array:
    """Samples of length 1, or of mean square 1 if scaled."""
    _check_input(h, eps)
    rows = h.flatten(1)
    length = _length(rows)
    factor = torch.where(length <= eps, 0, (sqrt(rows.shape[1]) if scaled else 1.0) / length.clamp(min=eps))
    return (rows * factor).to(h.dtype).view_as(h)


def unit_sphere_vjp(h: Array, gradient: Array, scaled: bool = False, eps: float = 1e-12) -> Array:
    """The gradient through it."""
    _check_input(h, eps)
    check_shape("gradient", gradient, h.shape)
    v = h.flatten(1)
    rows = direction_vjp(v, gradient.flatten(1), eps)
    return (sqrt(v.shape[1]) * rows if scaled else rows).view_as(h)
