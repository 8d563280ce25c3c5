"""Normalisations with a gain and a bias, as layers.

    (1)  a = g n(z) + b
    (2)  BatchNorm    n of each channel over samples and positions, or with statistics that are given
         GroupNorm    n of each group of channels of a sample
         LayerNorm    n of the last axes, at every position of a sample for itself
    (3)  RMSNorm      z / sqrt(mean z^2 + eps) over the last axes
                      n'(z)^T d = (d - n mean (n d)) / sqrt(mean z^2 + eps)
    (4)  A(z) - A(z - u) = g (n(z) - n(z - u)),    A'(z)^T d = n'(z)^T (g d)
         1/B sum d n(z),    1/B sum d,             over samples, and positions that share a gain

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z | z, h | (batch, C, ...) or (batch, ..., n) | input |
| n | normalisation | | what has no parameters: a `Step`, (1) of `normalisations` but for (3) |
| g, b | gain, bias | (C,), or the last axes of z | learned |

They are torch.nn.BatchNorm1d and 2d, GroupNorm, LayerNorm and RMSNorm. With statistics that are given, as at inference
or where those of another pass are lent, BatchNorm is affine; else every sample's output depends on all samples, and so
does the adjoint.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from ._arrays import Array, check_count, check_not_negative, check_rows, check_shape
from .layers import Step, Update
from .normalisations import batch_norm, batch_norm_vjp, group_norm, group_norm_vjp, layer_norm, layer_norm_vjp

__all__ = ["BatchNorm", "GroupNorm", "LayerNorm", "NormalisationLayer", "NormalisationStep", "RMSNorm"]


class NormalisationStep(Step, Protocol):
    """A normalisation without parameters."""

    def shared(self, h: Array) -> tuple[int, ...]:
        """The axes of h along which gain and bias are the same: integers."""
        ...


class _Nonlinear:
    """A normalisation whose derivative is symmetric, and whose difference is that of two values."""

    def value(self, h: Array) -> Array:
        raise NotImplementedError

    def vjp(self, h: Array, d: Array) -> Array:
        raise NotImplementedError

    def jvp(self, h: Array, u: Array) -> Array:
        return self.vjp(h, u)

    def difference(self, h: Array, u: Array) -> Array:
        return self.value(h) - self.value(h - u)


@dataclass(frozen=True, eq=False)
class BatchNorm(_Nonlinear):
    """`batch_norm`, with statistics (C,) that are given or with the batch's own; h and u are (batch, C, ...).

    >>> BatchNorm(eps=0.0).difference(np.array([[0.0], [2.0]]), np.array([[5.0], [5.0]])).tolist()  # no change
    [[0.0], [0.0]]
    >>> BatchNorm(np.zeros(1), np.ones(1), 0.0).difference(np.zeros((2, 1)), np.array([[5.0], [5.0]])).tolist()
    [[5.0], [5.0]]
    """

    mean: Array | None = None
    variance: Array | None = None
    eps: float = 1e-5

    def value(self, h: Array) -> Array:
        return batch_norm(h, self.mean, self.variance, self.eps)

    def vjp(self, h: Array, d: Array) -> Array:
        return batch_norm_vjp(h, d, self.mean, self.variance, self.eps)

    def difference(self, h: Array, u: Array) -> Array:
        return super().difference(h, u) if self.mean is None else self.vjp(h, u)

    def shared(self, h: Array) -> tuple[int, ...]:
        return (0, *range(2, h.ndim))


@dataclass(frozen=True)
class GroupNorm(_Nonlinear):
    """`group_norm`: as h, (batch, C, ...).

    >>> GroupNorm(2, eps=0.0).value(np.array([[0.0, 2.0, 10.0, 30.0]])).tolist()
    [[-1.0, 1.0, -1.0, 1.0]]
    """

    groups: int
    eps: float = 1e-5

    def value(self, h: Array) -> Array:
        return group_norm(h, self.groups, self.eps)

    def vjp(self, h: Array, d: Array) -> Array:
        return group_norm_vjp(h, d, self.groups, self.eps)

    def shared(self, h: Array) -> tuple[int, ...]:
        return (0, *range(2, h.ndim))


def _rows(h: Array, axes: int) -> Array:
    """The last axes at every position: (batch ..., *h.shape[-axes:])."""
    check_rows("h", h)
    check_count("axes", axes, 1, h.ndim - 1)
    return h.reshape(-1, *h.shape[-axes:])


@dataclass(frozen=True)
class LayerNorm(_Nonlinear):
    """`layer_norm` of the last axes: as h, (batch, ..., n).

    >>> LayerNorm(eps=0.0).value(np.array([[[0.0, 2.0], [10.0, 30.0]]])).tolist()  # each position for itself
    [[[-1.0, 1.0], [-1.0, 1.0]]]
    """

    axes: int = 1
    eps: float = 1e-5

    def value(self, h: Array) -> Array:
        return layer_norm(_rows(h, self.axes), self.eps).reshape(h.shape)

    def vjp(self, h: Array, d: Array) -> Array:
        check_shape("d", d, h.shape)
        return layer_norm_vjp(_rows(h, self.axes), _rows(d, self.axes), self.eps).reshape(h.shape)

    def shared(self, h: Array) -> tuple[int, ...]:
        return tuple(range(h.ndim - self.axes))


@dataclass(frozen=True)
class RMSNorm(_Nonlinear):
    """The last axes over their root mean square, equation (3): as h, (batch, ..., n).

    >>> np.round(RMSNorm().value(np.array([[2.0, 2.0]])), 6).tolist()  # the mean stays
    [[1.0, 1.0]]
    """

    axes: int = 1
    eps: float = 1e-6

    def value(self, h: Array) -> Array:
        return h / self._size(h)

    def vjp(self, h: Array, d: Array) -> Array:
        check_shape("d", d, h.shape)
        size = self._size(h)
        y = h / size
        return (d - y * np.mean(y * d, axis=self._last, keepdims=True)) / size

    def shared(self, h: Array) -> tuple[int, ...]:
        return tuple(range(h.ndim - self.axes))

    @property
    def _last(self) -> tuple[int, ...]:
        return tuple(range(-self.axes, 0))

    def _size(self, h: Array) -> Array:
        check_not_negative("eps", self.eps)
        check_rows("h", h)
        check_count("axes", self.axes, 1, h.ndim - 1)
        return np.sqrt(np.mean(h**2, axis=self._last, keepdims=True) + self.eps)


class NormalisationLayer(NamedTuple):
    """Equation (1): g n(z) + b, each None where there is none.

    >>> layer = NormalisationLayer(LayerNorm(eps=0.0), np.array([5.0, 5.0]), np.array([1.0, 1.0]))
    >>> layer.value(np.array([[0.0, 2.0]])).tolist()  # 5 times -1 and 1, plus 1
    [[-4.0, 6.0]]
    """

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
        """g (n(z) - n(z - u)): as z."""
        return self._scaled(z, self.normalisation.difference(z, u))

    def adjoint(self, z: Array, d: Array) -> Array:
        """n'(z)^T (g d): as z."""
        return self.normalisation.vjp(z, self._scaled(z, d))

    def update(self, z: Array, delta: Array) -> Update:
        """1/B sum delta n(z) and 1/B sum delta over the axes that share them: as gain and bias.

        Raises ValueError unless these fit.
        """
        check_shape("delta", delta, z.shape)
        shared = self.normalisation.shared(z)
        gain = np.sum(delta * self.normalisation.value(z), axis=shared) / len(z)
        bias = np.sum(delta, axis=shared) / len(z)
        return tuple(g for p, g in ((self.gain, gain), (self.bias, bias)) if p is not None)

    def _scaled(self, z: Array, y: Array) -> Array:
        return y if self.gain is None else self._aligned("gain", self.gain, z) * y

    def _aligned(self, name: str, p: Array, z: Array) -> Array:
        """The parameter with axes of length 1 where it is shared."""
        shared = self.normalisation.shared(z)
        check_shape(name, p, tuple(n for axis, n in enumerate(z.shape) if axis not in shared))
        return np.expand_dims(p, shared)
