"""Layers: what every algorithm asks of a part of a network, and networks as chains of them.

    (1)  z_1 = x,    a_l = A_l(z_l),    h_l = s_l(a_l),    z_(l+1) = p_l(h_l),    scores = h_L
    (2)  G_l = 1/B sum_samples of the gradient of <delta_l, A_l(z_l)> by A_l's parameters

| of a layer | meaning | dense | convolution |
| --- | --- | --- | --- |
| value(z) | A(z) | W z + b | k * z + b |
| difference(z, u) | A(z) - A(z - u) | W u | k * u |
| adjoint(z, d) | A'(z)^T d, shaped as z | W^T d | the adjoint convolution |
| update(z, delta) | equation (2), in the order of the parameters | 1/B delta z^T, 1/B delta | a correlation |

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x | x | (batch, ...) | input |
| z_l | inputs[l-1] | (batch, ...) | input of layer l = 1..L |
| a_l | preactivations[l-1] | (batch, ...) | pre-activation |
| s_l | layers[l-1].steps | | what keeps the shape: an activation, a dropout mask |
| h_l | activities[l-1] | (batch, ...) | activity, shaped as a_l |
| p_l | layers[l-1].outlet | | what does not: pooling, flattening, unshuffling, on the way to the next layer |
| delta_l | delta | (batch, ...) | an algorithm's error factor, shaped as a_l |

An algorithm never asks what a layer is, and a layer never asks which algorithm is at work: every algorithm is written
once, for dense layers and convolutions, and for those of `normalisation_layers`, `blocks`, `attention` and `embedding`.
Steps and outlets are of one type, `Step`. In `adjoint` only the
shape of a sample of z matters where A is affine, so that it takes any number of rows d.

Dropout's mask follows the activation, as torch.nn.Dropout does. FOTON's authors mask before it, which is the same for
activations with s(m a) = m s(a) for m >= 0: identity, relu and leaky relu.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import cos, prod, sin
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from . import adaptive_pooling, convolution, pooling
from ._arrays import Array, check_batch, check_count, check_rate, check_rows, check_shape

__all__ = [
    "AdaptiveAveragePool",
    "AveragePool",
    "CircularConvolution",
    "Convolution",
    "Dense",
    "Flatten",
    "LPPool",
    "Layer",
    "Mask",
    "MaxPool",
    "Maxima",
    "MeanOverPositions",
    "Pass",
    "Rotation",
    "ScaledAveragePool",
    "Step",
    "Unshuffle",
    "Update",
    "activity",
    "changed",
    "dense_chain",
    "dropout_masks",
    "forward",
    "he_uniform",
    "linear_part",
    "per_label",
    "pulled_back",
    "pushed",
    "scores",
    "updates",
    "without_dropped",
]

Update: TypeAlias = tuple[Array, ...]
"""What an optimizer is to subtract from the parameters of a layer: shaped like them, scaled like a batch mean."""


class Step(Protocol):
    """A map s of activities, as an activation is one; a linear map defines the first and the third alone.

    a is (batch, ...) and u shaped as a, d shaped as s(a).
    """

    def value(self, a: Array, /) -> Array:
        """s(a): (batch, ...)."""
        ...

    def jvp(self, a: Array, u: Array, /) -> Array:
        """s'(a) u: as s(a)."""
        ...

    def vjp(self, a: Array, d: Array, /) -> Array:
        """s'(a)^T d: as a."""
        ...

    def difference(self, a: Array, u: Array, /) -> Array:
        """s(a) - s(a - u): as s(a)."""
        ...


class _Linear:
    """A linear map: its derivative and its difference are its value."""

    def value(self, h: Array) -> Array:
        raise NotImplementedError

    def jvp(self, h: Array, u: Array) -> Array:
        return self.value(u)

    def difference(self, h: Array, u: Array) -> Array:
        return self.value(u)


@dataclass(frozen=True, eq=False)
class Mask(_Linear):
    """The product with a mask, dropout's for one: shaped as the activities, (batch, ...).

    `value` raises ValueError unless the mask is shaped as they are.

    >>> Mask(np.array([[2.0, 0.0]])).value(np.array([[3.0, 5.0]])).tolist()
    [[6.0, 0.0]]
    """

    mask: Array

    def value(self, h: Array) -> Array:
        check_shape("mask", self.mask, h.shape)
        return self.mask * h

    def vjp(self, h: Array, d: Array) -> Array:
        return self.mask * d


@dataclass(frozen=True)
class Flatten(_Linear):
    """A sample as one row: (batch, ...) becomes (batch, n).

    >>> np.shape(Flatten().value(np.zeros((2, 3, 4, 5))))
    (2, 60)
    """

    def value(self, h: Array) -> Array:
        return h.reshape(len(h), -1)

    def vjp(self, h: Array, d: Array) -> Array:
        return d.reshape(len(d), *h.shape[1:])


@dataclass(frozen=True)
class Unshuffle(_Linear):
    """Squares of pixels that become channels: `pooling.unshuffle`, which gives the shape.

    >>> np.shape(Unshuffle(2).value(np.zeros((1, 3, 4, 6))))
    (1, 12, 2, 3)
    """

    factor: int

    def value(self, h: Array) -> Array:
        return pooling.unshuffle(h, self.factor)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.shuffle(d, self.factor)


@dataclass(frozen=True)
class AveragePool(_Linear):
    """Averages of squares, `pooling.average_pool`, (batch, c, rows, columns); side by side unless a stride is given.

    >>> AveragePool(2, stride=1).value(np.array([[[[1.0, 3.0, 5.0], [1.0, 3.0, 5.0]]]])).tolist()
    [[[[2.0, 4.0]]]]
    """

    size: int
    stride: int | None = None
    padding: int = 0

    def value(self, h: Array) -> Array:
        return pooling.average_pool(h, self.size, self.stride, self.padding)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.average_pool_adjoint(h, d, self.size, self.stride, self.padding)


@dataclass(frozen=True)
class ScaledAveragePool(_Linear):
    """Averages of squares, scaled so that A A^T = I: `pooling.scaled_average_pool`, which gives the shape.

    >>> pool, d = ScaledAveragePool(2), np.array([[[[7.0]]]])
    >>> pool.value(pool.vjp(np.zeros((1, 1, 2, 2)), d)).tolist()  # A A^T d = d
    [[[[7.0]]]]
    """

    size: int

    def value(self, h: Array) -> Array:
        return pooling.scaled_average_pool(h, self.size)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.scaled_average_pool_adjoint(d, self.size)


@dataclass(frozen=True)
class MaxPool:
    """Maxima of squares, `pooling.max_pool`; the derivative is that of the largest, the first of equal ones.

    (batch, c, rows, columns), as many as squares, which lie side by side unless a stride is given.

    >>> image = np.array([[[[5.0, 5.0], [0.0, 1.0]]]])
    >>> MaxPool(2).vjp(image, np.array([[[[7.0]]]])).tolist()  # all of it to the first of equal ones
    [[[[7.0, 0.0], [0.0, 0.0]]]]
    """

    size: int
    stride: int | None = None
    padding: int = 0

    def value(self, h: Array) -> Array:
        return pooling.max_pool(h, self.size, self.stride, self.padding)

    def jvp(self, h: Array, u: Array) -> Array:
        return pooling.at_maxima(h, u, self.size, self.stride, self.padding)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.max_pool_vjp(h, d, self.size, self.stride, self.padding)

    def difference(self, h: Array, u: Array) -> Array:
        before = pooling.max_pool(h - u, self.size, self.stride, self.padding)
        return pooling.max_pool(h, self.size, self.stride, self.padding) - before


@dataclass(frozen=True)
class Maxima:
    """`size` times the largest of each square, in its place, and 0 elsewhere; of equal ones the first.

    It keeps the shape, as an activation does, and `ScaledAveragePool` behind it makes `MaxPool` of it.

    >>> Maxima(2).value(np.array([[[[5.0, 5.0], [0.0, 1.0]]]])).tolist()
    [[[[10.0, 0.0], [0.0, 0.0]]]]
    """

    size: int

    def value(self, h: Array) -> Array:
        return self.size * pooling.max_pool_vjp(h, pooling.max_pool(h, self.size), self.size)

    def jvp(self, h: Array, u: Array) -> Array:
        return self.size * pooling.max_pool_vjp(h, pooling.at_maxima(h, u, self.size), self.size)

    def vjp(self, h: Array, d: Array) -> Array:
        return self.jvp(h, d)

    def difference(self, h: Array, u: Array) -> Array:
        return self.value(h) - self.value(h - u)


@dataclass(frozen=True)
class LPPool:
    """Norms of squares, (batch, c, rows, columns), `pooling.lp_pool`; the derivative of a square of zeros is 0.

    >>> LPPool(2.0, 2).value(np.array([[[[3.0, 4.0], [0.0, 0.0]]]])).tolist()
    [[[[5.0]]]]
    """

    power: float
    size: int

    def value(self, h: Array) -> Array:
        return pooling.lp_pool(h, self.power, self.size)

    def jvp(self, h: Array, u: Array) -> Array:
        return pooling.lp_pool_jvp(h, u, self.power, self.size)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.lp_pool_vjp(h, d, self.power, self.size)

    def difference(self, h: Array, u: Array) -> Array:
        return pooling.lp_pool(h, self.power, self.size) - pooling.lp_pool(h - u, self.power, self.size)


@dataclass(frozen=True)
class AdaptiveAveragePool(_Linear):
    """Means of a grid's cells, `adaptive_pooling.grid_pool`: (batch, c, *grid).

    >>> AdaptiveAveragePool().value(np.array([[[[1.0, 3.0], [5.0, 7.0]]]])).tolist()  # one cell: the mean of the map
    [[[[4.0]]]]
    """

    grid: tuple[int, int] = (1, 1)

    def value(self, h: Array) -> Array:
        return adaptive_pooling.grid_pool(h, self.grid)

    def vjp(self, h: Array, d: Array) -> Array:
        rows, columns = h.shape[2:]
        return adaptive_pooling.grid_pool_adjoint(d, (rows, columns))


@dataclass(frozen=True)
class MeanOverPositions(_Linear):
    """The mean over the positions of a sequence: (batch, T, n) becomes (batch, n).

    >>> MeanOverPositions().value(np.array([[[1.0, 2.0], [3.0, 6.0]]])).tolist()
    [[2.0, 4.0]]
    """

    def value(self, h: Array) -> Array:
        check_batch("h", h, "T, n", 2)
        return h.mean(axis=1)

    def vjp(self, h: Array, d: Array) -> Array:
        return np.repeat(d[:, None] / h.shape[1], h.shape[1], axis=1)


class Layer(Protocol):
    """Equation (1) for one layer; see the module's first table."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """s, first step first."""
        ...

    @property
    def outlet(self) -> tuple[Step, ...]:
        """p, first step first."""
        ...

    def value(self, z: Array) -> Array:
        """A(z): (batch, ...). Raises ValueError where z does not fit."""
        ...

    def difference(self, z: Array, u: Array) -> Array:
        """A(z) - A(z - u): as A(z)."""
        ...

    def adjoint(self, z: Array, d: Array) -> Array:
        """A'(z)^T d, a sample shaped as z's."""
        ...

    def update(self, z: Array, delta: Array) -> Update:
        """1/B sum_samples of the gradient of <delta, A(z)> by each parameter, equation (2): shaped like them."""
        ...


class Dense(NamedTuple):
    """W z + b at every position: weight (n_out, n_in), bias (n_out,) or None, z (batch, ..., n_in).

    >>> layer = Dense(np.array([[1.0, 2.0]]), np.array([5.0]))
    >>> z = np.array([[3.0, 4.0]])
    >>> layer.value(z).tolist(), layer.difference(z, z).tolist()  # a difference has no bias
    ([[16.0]], [[11.0]])
    """

    weight: Array
    bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """W z + b: (batch, ..., n_out). Raises ValueError where sizes do not fit."""
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise ValueError(f"weight: shape {self.weight.shape}, expected (n_out, n_in), at least one of each")
        check_rows("z", z)
        if z.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"z: {z.shape[-1]} units, but the weight has {self.weight.shape[1]} columns")
        if self.bias is None:
            return z @ self.weight.T
        check_shape("bias", self.bias, self.weight.shape[:1])
        return z @ self.weight.T + self.bias

    def difference(self, z: Array, u: Array) -> Array:
        """W u: (batch, ..., n_out)."""
        return u @ self.weight.T

    def adjoint(self, z: Array, d: Array) -> Array:
        """W^T d: (batch, ..., n_in)."""
        return d @ self.weight

    def update(self, z: Array, delta: Array) -> Update:
        """1/B sum delta z^T over samples and positions, (n_out, n_in), and 1/B sum delta for a bias.

        Raises ValueError where they do not fit.
        """
        check_rows("delta", delta)
        check_shape("z", z, (*delta.shape[:-1], z.shape[-1]))
        rows = delta.reshape(-1, delta.shape[-1])  # one for each position of each sample
        weight = rows.T @ z.reshape(-1, z.shape[-1]) / len(delta)
        return (weight,) if self.bias is None else (weight, rows.sum(axis=0) / len(delta))


def _of_channels(delta: Array) -> Array:
    """The update of a convolution's bias: delta summed over positions, averaged over samples."""
    return delta.sum(axis=(2, 3)).mean(axis=0)


class Convolution(NamedTuple):
    """A convolution padded with zeros, torch.nn.Conv2d: kernel (c_out, c_in / groups, rows, columns).

    >>> layer = Convolution(np.array([[[[1.0, 10.0]]]]), np.array([100.0]), padding=(0, 1))
    >>> layer.value(np.array([[[[1.0, 2.0]]]])).tolist()  # of 0, 1, 2, 0
    [[[[110.0, 121.0, 102.0]]]]
    """

    kernel: Array
    bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def value(self, z: Array) -> Array:
        """k * z + b: (batch, c_out, height, width). Raises ValueError where sizes do not fit."""
        a = convolution.convolve(self.kernel, z, self.stride, self.padding, self.groups)
        if self.bias is None:
            return a
        check_shape("bias", self.bias, self.kernel.shape[:1])
        return a + self.bias[:, None, None]

    def difference(self, z: Array, u: Array) -> Array:
        """k * u: (batch, c_out, height, width)."""
        return convolution.convolve(self.kernel, u, self.stride, self.padding, self.groups)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The adjoint convolution: (batch, c_in, height, width) of z."""
        return convolution.convolve_adjoint(self.kernel, d, z.shape[2:], self.stride, self.padding, self.groups)

    def update(self, z: Array, delta: Array) -> Update:
        """The correlation of delta with z, shaped as the kernel, and of the bias where there is one."""
        size = self.kernel.shape[2:]
        kernel = convolution.kernel_update(delta, z, size, self.stride, self.padding, self.groups)
        return (kernel,) if self.bias is None else (kernel, _of_channels(delta))


class CircularConvolution(NamedTuple):
    """A convolution with circular padding, whose kernel can be orthogonal: (c_out, c_in, size, size).

    >>> layer = CircularConvolution(np.array([[[[0.0, 0.0], [1.0, 0.0]]]]), None)  # each pixel's left neighbour
    >>> layer.value(np.array([[[[1.0, 2.0, 3.0]]]])).tolist()
    [[[[3.0, 1.0, 2.0]]]]
    """

    kernel: Array
    bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """k * z + b: (batch, c_out, height, width). Raises ValueError where sizes do not fit."""
        a = convolution.circular_convolve(self.kernel, z)
        if self.bias is None:
            return a
        check_shape("bias", self.bias, self.kernel.shape[:1])
        return a + self.bias[:, None, None]

    def difference(self, z: Array, u: Array) -> Array:
        """k * u: (batch, c_out, height, width)."""
        return convolution.circular_convolve(self.kernel, u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The adjoint convolution: (batch, c_in, height, width)."""
        return convolution.circular_convolve_adjoint(self.kernel, d)

    def update(self, z: Array, delta: Array) -> Update:
        """The correlation of delta with z, shaped as the kernel, and of the bias where there is one."""
        kernel = convolution.circular_kernel_update(delta, z, self.kernel.shape[2])
        return (kernel,) if self.bias is None else (kernel, _of_channels(delta))


@dataclass(frozen=True, eq=False)
class Rotation:
    """z cos(angle) + s(A(z)) sin(angle), A the branch, a layer whose outputs are shaped as z, and s its steps.

    The parameters are the branch's. Where A is linear, skew and orthogonal and s the identity, the whole is orthogonal:
    (c I + s W)^T (c I + s W) = c^2 I + s^2 W^T W + c s (W + W^T) = I, with c and s cosine and sine.

    >>> rotation = Rotation(Dense(np.array([[0.0, -1.0], [1.0, 0.0]]), None), np.arccos(0.6))
    >>> np.round(rotation.value(np.array([[1.0, 0.0]])), 6).tolist()
    [[0.6, 0.8]]
    """

    branch: Dense | CircularConvolution
    angle: float
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """Shaped as z. Raises ValueError where the branch does, and where it changes the shape."""
        a = self.branch.value(z)
        check_shape("branch", a, z.shape)
        return cos(self.angle) * z + sin(self.angle) * activity(self.branch.steps, a)

    def difference(self, z: Array, u: Array) -> Array:
        """The sum of both parts' differences: shaped as z."""
        of_branch = changed(self.branch.steps, self.branch.value(z), self.branch.difference(z, u))
        return cos(self.angle) * u + sin(self.angle) * of_branch

    def adjoint(self, z: Array, d: Array) -> Array:
        """A row of d for each sample of z, but in a branch without steps: shaped as d."""
        of_branch = self.branch.adjoint(z, pulled_back(self.branch.steps, self.branch.value(z), d))
        return cos(self.angle) * d + sin(self.angle) * of_branch

    def update(self, z: Array, delta: Array) -> Update:
        """The branch's, for the cotangent of its output: shaped as its parameters."""
        of_branch = pulled_back(self.branch.steps, self.branch.value(z), sin(self.angle) * delta)
        return self.branch.update(z, of_branch)


class Pass(NamedTuple):
    """What a forward pass computes: z_l, a_l and h_l of every layer."""

    inputs: tuple[Array, ...]
    preactivations: tuple[Array, ...]
    activities: tuple[Array, ...]

    @property
    def scores(self) -> Array:
        """h_L: (batch, K)."""
        return self.activities[-1]


def activity(steps: Iterable[Step], a: Array) -> Array:
    """s(a), or p(h): shaped as the steps leave a, (batch, ...).

    >>> activity((maxmin, Mask(np.array([[2.0, 0.0]]))), np.array([[1.0, 3.0]])).tolist()  # first step first
    [[6.0, 0.0]]
    """
    for step in steps:
        a = step.value(a)
    return a


def changed(steps: Sequence[Step], a: Array, u: Array) -> Array:
    """s(a) - s(a - u), shaped as s(a); u is shaped as a, (batch, ...).

    >>> changed((relu,), np.array([[1.0]]), np.array([[3.0]])).tolist()  # relu(1) - relu(-2)
    [[1.0]]
    """
    for step in steps:
        a, u = step.value(a), step.difference(a, u)
    return u


def pushed(steps: Sequence[Step], a: Array, u: Array) -> Array:
    """s'(a) u, the derivative along u, shaped as s(a); u is shaped as a, (batch, ...).

    >>> pushed((relu,), np.array([[1.0, 0.0]]), np.array([[3.0, 3.0]])).tolist()
    [[3.0, 0.0]]
    """
    for step in steps:
        a, u = step.value(a), step.jvp(a, u)
    return u


def pulled_back(steps: Sequence[Step], a: Array, d: Array) -> Array:
    """s'(a)^T d, the cotangent d of what the steps give, shaped as s(a), pulled back to a: (batch, ...), as a.

    >>> pulled_back((relu, Flatten()), np.array([[[[1.0, -1.0]]]]), np.array([[5.0, 7.0]])).tolist()
    [[[[5.0, 0.0]]]]
    >>> pulled_back((), np.array([[1.0]]), np.array([[5.0]])).tolist()
    [[5.0]]
    """
    values = [a]
    for step in steps[:-1]:
        values.append(step.value(values[-1]))
    for step, value in zip(reversed(steps), reversed(values), strict=False):  # without steps d is left as it is
        d = step.vjp(value, d)
    return d


def linear_part(layer: Layer) -> Layer:
    """The layer without the steps inside it: its adjoint takes any number of rows, (rows, ...).

    >>> linear_part(Rotation(Dense(np.array([[0.0]]), None, (tanh,)), 0.5)).branch.steps
    ()
    """
    if isinstance(layer, Rotation) and layer.branch.steps:
        return replace(layer, branch=layer.branch._replace(steps=()))
    return layer


def forward(layers: Sequence[Layer], x: Array) -> Pass:
    """z_l, a_l and h_l of all l, (1), (batch, ...) each; h_l is shaped as a_l.

    The last layer's outlet leads nowhere and is not applied. Raises ValueError, with the layer's index, where sizes do
    not fit.

    >>> layers = [Dense(np.array([[weight]]), None, (relu,)) for weight in (2.0, -3.0)]
    >>> clean = forward(layers, np.array([[1.0]]))
    >>> [z.item() for z in clean.inputs], [a.item() for a in clean.preactivations], abs(clean.scores).item()
    ([1.0, 2.0], [2.0, -6.0], 0.0)
    """
    inputs, preactivations, activities = [], [], []
    z = x
    for index, layer in enumerate(layers):
        try:
            a = layer.value(z)
            h = activity(layer.steps, a)
            inputs.append(z)
            preactivations.append(a)
            activities.append(h)
            if index + 1 < len(layers):
                z = activity(layer.outlet, h)
        except ValueError as error:
            raise ValueError(f"layers[{index}]: {error}") from error
    return Pass(tuple(inputs), tuple(preactivations), tuple(activities))


def scores(layers: Iterable[Layer], x: Array) -> Array:
    """h_L of (1) alone, each layer taken when its turn comes: (batch, K).

    Raises ValueError where z does not fit the layers.

    >>> scores([Dense(np.array([[weight]]), None) for weight in (2.0, 3.0)], np.array([[1.0]])).tolist()
    [[6.0]]
    """
    z = h = x
    for layer in layers:
        h = activity(layer.steps, layer.value(z))
        z = activity(layer.outlet, h)
    return h


def updates(
    layers: Sequence[Layer], factors: Iterable[tuple[Array, Array]], count: int | None = None
) -> tuple[Update, ...]:
    """G_l of every layer, equation (2), from delta_l and z_l; `count` is N of `per_label`, B unless given.

    For every layer a tuple, shaped as its parameters. Raises ValueError unless each layer has its factors.

    >>> delta, z = np.array([[1.0], [3.0]]), np.array([[1.0], [2.0]])
    >>> ((weight, bias),) = updates((Dense(np.eye(1), np.zeros(1)),), [(delta, z)])
    >>> weight.tolist(), bias.tolist()  # (1 * 1 + 3 * 2) / 2, (1 + 3) / 2
    ([[3.5]], [2.0])
    """
    found = []
    for layer, (delta, z) in zip(layers, factors, strict=True):
        update = layer.update(z, delta)
        found.append(update if count is None else per_label(update, len(delta), count))
    return tuple(found)


def per_label(update: Update, batch: int, count: int) -> Update:
    """Equation (2) with 1/N in place of 1/B: N labels are known, of all positions of B samples; 0 where none is.

    Shaped as the update. Raises ValueError for no sample, and for less than no label.

    >>> [g.tolist() for g in per_label((np.array([3.0]),), batch=4, count=6)]
    [[2.0]]
    """
    check_count("batch", batch)
    check_count("count", count, 0)
    return tuple(batch / max(count, 1) * gradient for gradient in update)


def without_dropped(steps: Iterable[Step], u: Array) -> Array:
    """u, shaped as a layer's activities, with 0 at the units that its steps drop.

    >>> without_dropped((relu, Mask(np.array([[2.0, 0.0]]))), np.array([[5.0, 7.0]])).tolist()
    [[5.0, 0.0]]
    """
    for step in steps:
        if isinstance(step, Mask):
            u = (step.mask > 0) * u
    return u


def dense_chain(
    weights: Sequence[Array],
    biases: Sequence[Array | None],
    activations: Sequence[Step],
    masks: Sequence[Array | None] | None = None,
) -> tuple[Dense, ...]:
    """Dense layers, each with its activation and mask, None for no mask.

    The weights are (n_l, n_(l-1)), biases (n_l,) or None, masks (batch, n_l). Raises ValueError for another number of
    masks.

    >>> (layer,) = dense_chain([np.eye(2)], [None], [tanh], [np.array([[2.0, 0.0]])])
    >>> np.round(activity(layer.steps, np.array([[1e9, 1e9]])), 6).tolist()  # the mask comes after tanh
    [[2.0, 0.0]]
    """
    if masks is None:
        masks = [None] * len(weights)
    if len(masks) != len(weights):
        raise ValueError(f"masks: {len(masks)}, expected {len(weights)}, a mask or None for each layer")
    return tuple(
        Dense(weight, bias, (activation,) if mask is None else (activation, Mask(mask)))
        for weight, bias, activation, mask in zip(weights, biases, activations, masks, strict=True)
    )


def he_uniform(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Weights (n_out, ...) uniform on +-sqrt(6 / n_in) (He et al., 2015), n_in the product of the others.

    Raises ValueError unless all sizes are positive.

    >>> weight = he_uniform((4, 3, 1, 2), np.random.default_rng(0))  # n_in = 3 * 1 * 2: on -1..1
    >>> np.shape(weight), bool((abs(weight) <= 1).all())
    ((4, 3, 1, 2), True)
    """
    for n in shape:
        check_count("shape", n)
    bound = np.sqrt(6 / prod(shape[1:]))
    return rng.uniform(-bound, bound, shape)


def dropout_masks(widths: Sequence[int], batch: int, rate: float, rng: np.random.Generator) -> tuple[Array | None, ...]:
    """Inverted-dropout masks for layers of these widths, (batch, width) each, None for the last.

    Entries are 0 with probability `rate`, else 1 / (1 - rate). Raises ValueError unless 0 <= rate < 1.

    >>> hidden, last = dropout_masks((2, 1), 1, 0.0, np.random.default_rng(0))  # nothing is dropped at rate 0
    >>> hidden.tolist(), last
    ([[1.0, 1.0]], None)
    """
    for n in (*widths, batch):
        check_count("widths, batch", n)
    check_rate("rate", rate)
    hidden = tuple((rng.random((batch, width)) >= rate) / (1 - rate) for width in widths[:-1])
    return (*hidden, None)
