"""Normalisations with a gain and a bias, as layers; see the reference for their equations.

With the sizes r = sqrt(mean c^2 + eps) of h, r' of h - u, and centred c, c', v = c - c' (of RMSNorm without a centre)

    c / r - c' / r' = v / r' - c mean(v (c + c')) / (r r' (r + r')),

where nothing is lost where u is small.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch.nn import functional

from ._arrays import Array, check_count, check_not_negative, check_rows, check_shape, widened
from .layers import Step, Update
from .normalisations import batch_norm, batch_norm_vjp, group_norm, group_norm_vjp, layer_norm, layer_norm_vjp

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "NormalisationLayer", "NormalisationStep", "RMSNorm"]


class NormalisationStep(Step, Protocol):
    """A normalisation without parameters."""

    def shared(self, h: Array) -> tuple[int, ...]:
        """The axes along which gain and bias are the same."""
        ...


def _difference(h: Array, u: Array, axes: tuple[int, ...], eps: float, centred: bool = True) -> Array:
    """n(h) - n(h - u) over the axes, by the equation of the module."""
    c, v = widened(h), widened(u)
    if centred:
        c, v = c - c.mean(dim=axes, keepdim=True), v - v.mean(dim=axes, keepdim=True)
    other = c - v
    size, other_size = ((x.square().mean(dim=axes, keepdim=True) + eps).sqrt() for x in (c, other))
    growth = (v * (c + other)).mean(dim=axes, keepdim=True) / (size * other_size * (size + other_size))
    return (v / other_size).addcmul_(c, growth, value=-1).to(h.dtype)


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """`batch_norm`, with statistics (C,) that are given or with the batch's own."""

    mean: Array | None = None
    variance: Array | None = None
    eps: float = 1e-5

    def value(self, h: Array) -> Array:
        return batch_norm(h, self.mean, self.variance, self.eps)

    def vjp(self, h: Array, d: Array) -> Array:
        return batch_norm_vjp(h, d, self.mean, self.variance, self.eps)

    def jvp(self, h: Array, u: Array) -> Array:
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        return _difference(h, u, self.shared(h), self.eps) if self.mean is None else self.vjp(h, u)

    def shared(self, h: Array) -> tuple[int, ...]:
        return (0, *range(2, h.dim()))


@dataclass(frozen=True)
class GroupNorm:
    """`group_norm`."""

    groups: int
    eps: float = 1e-5

    def value(self, h: Array) -> Array:
        return group_norm(h, self.groups, self.eps)

    def vjp(self, h: Array, d: Array) -> Array:
        return group_norm_vjp(h, d, self.groups, self.eps)

    def jvp(self, h: Array, u: Array) -> Array:
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        rows, u = (x.reshape(len(h), self.groups, -1) for x in (h, u))
        return _difference(rows, u, (2,), self.eps).view_as(h)

    def shared(self, h: Array) -> tuple[int, ...]:
        return (0, *range(2, h.dim()))


def _rows(h: Array, axes: int) -> Array:
    """The last axes at every position: (batch ..., *h.shape[-axes:])."""
    check_rows("h", h)
    check_count("axes", axes, 1, h.dim() - 1)
    return h.reshape(-1, *h.shape[-axes:])


@dataclass(frozen=True)
class LayerNorm:
    """`layer_norm` of the last axes."""

    axes: int = 1
    eps: float = 1e-5

    def value(self, h: Array) -> Array:
        return layer_norm(_rows(h, self.axes), self.eps).view(h.shape)

    def vjp(self, h: Array, d: Array) -> Array:
        check_shape("d", d, h.shape)
        return layer_norm_vjp(_rows(h, self.axes), _rows(d, self.axes), self.eps).view(h.shape)

    def jvp(self, h: Array, u: Array) -> Array:
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        return _difference(h, u, tuple(range(-self.axes, 0)), self.eps)

    def shared(self, h: Array) -> tuple[int, ...]:
        return tuple(range(h.dim() - self.axes))


@dataclass(frozen=True)
class RMSNorm:
    """The last axes over their root mean square."""

    axes: int = 1
    eps: float = 1e-6

    def value(self, h: Array) -> Array:
        self._check(h)
        return functional.rms_norm(h, h.shape[-self.axes :], eps=self.eps)

    def vjp(self, h: Array, d: Array) -> Array:
        self._check(h)
        check_shape("d", d, h.shape)
        last, wide_h, wide_d = tuple(range(-self.axes, 0)), widened(h), widened(d)
        rate = (wide_h.square().mean(dim=last, keepdim=True) + self.eps).rsqrt()
        y = wide_h * rate
        return ((wide_d - y * (y * wide_d).mean(dim=last, keepdim=True)) * rate).to(h.dtype)

    def jvp(self, h: Array, u: Array) -> Array:
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        return _difference(h, u, tuple(range(-self.axes, 0)), self.eps, centred=False)

    def shared(self, h: Array) -> tuple[int, ...]:
        return tuple(range(h.dim() - self.axes))

    def _check(self, h: Array) -> None:
        check_not_negative("eps", self.eps)
        check_rows("h", h)
        check_count("axes", self.axes, 1, h.dim() - 1)


class NormalisationLayer(NamedTuple):
    """g n(z) + b, each None where there is none."""

    normalisation: NormalisationStep
    gain: Array | None
    bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """g n(z) + b: as z. Raises ValueError where sizes do not fit."""
        a = self._scaled(z, self.normalisation.value(z))
        return a if self.bias is None else a + self._aligned("bias", self.bias, z)

    def difference(self, z: Array, u: Array) -> Array:
        """g (n(z) - n(z - u))."""
        return self._scaled(z, self.normalisation.difference(z, u))

    def adjoint(self, z: Array, d: Array) -> Array:
        """n'(z)^T (g d)."""
        return self.normalisation.vjp(z, self._scaled(z, d))

    def update(self, z: Array, delta: Array) -> Update:
        """1/B sum delta n(z) and 1/B sum delta over the axes that share them."""
        check_shape("delta", delta, z.shape)
        shared = self.normalisation.shared(z)
        found = []
        if self.gain is not None:
            found.append((delta * self.normalisation.value(z)).sum(dim=shared) / len(z))
        if self.bias is not None:
            found.append(delta.sum(dim=shared) / len(z))
        return tuple(found)

    def _scaled(self, z: Array, y: Array) -> Array:
        return y if self.gain is None else self._aligned("gain", self.gain, z) * y

    def _aligned(self, name: str, p: Array, z: Array) -> Array:
        """The parameter with axes of length 1 where it is shared."""
        shared = self.normalisation.shared(z)
        check_shape(name, p, tuple(n for axis, n in enumerate(z.shape) if axis not in shared))
        return p.view([1 if axis in shared else n for axis, n in enumerate(z.shape)])
