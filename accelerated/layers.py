"""Layers: what every algorithm asks of a part of a network, and networks as chains of them; see the reference.

`difference` of a layer and `changed` carry u = z - z~ in place of z~: equal to a second pass in exact arithmetic, with
no cancellation in the products.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import cos, prod, sin
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeGuard

import torch
from torch.nn import functional

from . import adaptive_pooling, convolution, pooling
from ._arrays import Array, check_batch, check_count, check_rate, check_rows, check_shape, few_rows, wide, widened
from ._autocast import product

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
    """A map s of activities, as an activation is one; `Linear` maps have the first and the third alone to say."""

    def value(self, a: Array, /) -> Array:
        """s(a)."""
        ...

    def jvp(self, a: Array, u: Array, /) -> Array:
        """s'(a) u."""
        ...

    def vjp(self, a: Array, d: Array, /) -> Array:
        """s'(a)^T d."""
        ...

    def difference(self, a: Array, u: Array, /) -> Array:
        """s(a) - s(a - u)."""
        ...


def _last(memory: list[tuple[Array, Any]], array: Array, compute: Callable[[Array], Any]) -> Any:
    """What was computed of an array last, found again by that array itself."""
    if not memory or memory[0][0] is not array:
        memory[:] = [(array, compute(array))]
    return memory[0][1]


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
    """The product with a mask shaped as the activities, dropout's for one."""

    mask: Array

    def value(self, h: Array) -> Array:
        check_shape("mask", self.mask, h.shape)
        return self.mask * h

    def vjp(self, h: Array, d: Array) -> Array:
        return self.mask * d


@dataclass(frozen=True)
class Flatten(_Linear):
    """A sample as one row."""

    def value(self, h: Array) -> Array:
        return h.flatten(1)

    def vjp(self, h: Array, d: Array) -> Array:
        return d.reshape(len(d), *h.shape[1:])


@dataclass(frozen=True)
class Unshuffle(_Linear):
    """Squares of pixels that become channels, `pooling.unshuffle`."""

    factor: int

    def value(self, h: Array) -> Array:
        return pooling.unshuffle(h, self.factor)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.shuffle(d, self.factor)


@dataclass(frozen=True)
class AveragePool(_Linear):
    """Averages of squares, `pooling.average_pool`; side by side unless a stride is given."""

    size: int
    stride: int | None = None
    padding: int = 0

    def value(self, h: Array) -> Array:
        return pooling.average_pool(h, self.size, self.stride, self.padding)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.average_pool_adjoint(h, d, self.size, self.stride, self.padding)


@dataclass(frozen=True)
class ScaledAveragePool(_Linear):
    """Averages of squares, scaled so that A A^T = I: `pooling.scaled_average_pool`."""

    size: int

    def value(self, h: Array) -> Array:
        return pooling.scaled_average_pool(h, self.size)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.scaled_average_pool_adjoint(d, self.size)


@dataclass(frozen=True)
class MaxPool:
    """Maxima of squares, `pooling.max_pool`; the derivative is that of the largest, the first of equal ones.

    They lie side by side unless a stride is given.
    """

    size: int
    stride: int | None = None
    padding: int = 0
    _seen: list[tuple[Array, Any]] = field(default_factory=list, init=False, repr=False, compare=False)

    def _pooled_and_places(self, h: Array) -> tuple[Array, Array]:
        found: tuple[Array, Array] = _last(self._seen, h, self._found)
        return found

    def _found(self, h: Array) -> tuple[Array, Array]:
        return pooling.max_pool_and_places(h, self.size, self.stride, self.padding)

    def value(self, h: Array) -> Array:
        return self._pooled_and_places(h)[0]

    def jvp(self, h: Array, u: Array) -> Array:
        return pooling.at_places(h, u, self._pooled_and_places(h)[1])

    def vjp(self, h: Array, d: Array) -> Array:
        places = self._pooled_and_places(h)[1]
        return pooling.spread_to_places(h, d, places, self.size, self.stride, self.padding)

    def difference(self, h: Array, u: Array) -> Array:
        after = pooling.max_pool(widened(h) - widened(u), self.size, self.stride, self.padding)
        return (self._pooled_and_places(h)[0] - after).to(h.dtype)


@dataclass(frozen=True)
class Maxima:
    """`size` times the largest of each square, in its place, and 0 elsewhere: h times a mask that h gives."""

    size: int
    _seen: list[tuple[Array, Any]] = field(default_factory=list, init=False, repr=False, compare=False)

    def _mask(self, h: Array) -> Array:
        mask: Array = _last(self._seen, h, self._mask_of)
        return mask

    def _mask_of(self, h: Array) -> Array:
        pooled, places = pooling.max_pool_and_places(h, self.size)
        return pooling.spread_to_places(h, torch.full_like(pooled, self.size), places, self.size)

    def value(self, h: Array) -> Array:
        return self._mask(h) * h

    def jvp(self, h: Array, u: Array) -> Array:
        return self._mask(h) * u

    def vjp(self, h: Array, d: Array) -> Array:
        return self._mask(h) * d

    def difference(self, h: Array, u: Array) -> Array:
        mask, other = self._mask(h), self._mask_of(h - u)
        return other * u + (mask - other) * h  # nothing cancels where both have the same maxima


@dataclass(frozen=True)
class LPPool:
    """Norms of squares, `pooling.lp_pool`; the derivative of a square of zeros is 0."""

    power: float
    size: int

    def value(self, h: Array) -> Array:
        return pooling.lp_pool(h, self.power, self.size)

    def jvp(self, h: Array, u: Array) -> Array:
        return pooling.lp_pool_jvp(h, u, self.power, self.size)

    def vjp(self, h: Array, d: Array) -> Array:
        return pooling.lp_pool_vjp(h, d, self.power, self.size)

    def difference(self, h: Array, u: Array) -> Array:
        wide = widened(h)
        after = pooling.lp_pool(wide - widened(u), self.power, self.size)
        return (pooling.lp_pool(wide, self.power, self.size) - after).to(h.dtype)


@dataclass(frozen=True)
class AdaptiveAveragePool(_Linear):
    """Means of a grid's cells, `adaptive_pooling.grid_pool`."""

    grid: tuple[int, int] = (1, 1)

    def value(self, h: Array) -> Array:
        return adaptive_pooling.grid_pool(h, self.grid)

    def vjp(self, h: Array, d: Array) -> Array:
        rows, columns = h.shape[2:]
        return adaptive_pooling.grid_pool_adjoint(d, (rows, columns))


@dataclass(frozen=True)
class MeanOverPositions(_Linear):
    """The mean over the positions of a sequence: (batch, T, n) becomes (batch, n)."""

    def value(self, h: Array) -> Array:
        check_batch("h", h, "T, n", 2)
        return h.mean(dim=1)

    def vjp(self, h: Array, d: Array) -> Array:
        return (d / h.shape[1])[:, None].expand(-1, h.shape[1], -1)


class Layer(Protocol):
    """A layer; see the first table of the reference."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """s, first step first."""
        ...

    @property
    def outlet(self) -> tuple[Step, ...]:
        """p, first step first."""
        ...

    def value(self, z: Array) -> Array:
        """A(z). Raises ValueError where z does not fit."""
        ...

    def difference(self, z: Array, u: Array) -> Array:
        """A(z) - A(z - u)."""
        ...

    def adjoint(self, z: Array, d: Array) -> Array:
        """A'(z)^T d, a sample shaped as z's."""
        ...

    def update(self, z: Array, delta: Array) -> Update:
        """G, in the order of the parameters."""
        ...


class ByChannel(Layer, Protocol):
    """A layer that is a sum over input channels: some inputs share what they have in common; see `forward_forward`."""

    @property
    def channel_weight(self) -> Array:
        """(n_out, n_in, ...); n_in is less than the input has in a layer of groups, which is no such sum."""
        ...

    def of_channels(self, weight: Array, biased: bool) -> Layer:
        """The same with that weight, for other channels, with its bias or without."""
        ...


def is_by_channel(layer: Layer) -> TypeGuard[ByChannel]:
    """Whether it is such a layer; of named tuples the compiler can't ask for a protocol."""
    return hasattr(layer, "of_channels")


class Dense(NamedTuple):
    """W z + b at every position: weight (n_out, n_in), bias (n_out,) or None, z (batch, ..., n_in)."""

    weight: Array
    bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """W z + b: (batch, ..., n_out). Raises ValueError where sizes do not fit."""
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise ValueError(f"weight: shape {tuple(self.weight.shape)}, expected (n_out, n_in), at least one of each")
        check_rows("z", z)
        if z.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"z: {z.shape[-1]} units, but the weight has {self.weight.shape[1]} columns")
        if self.bias is not None:
            check_shape("bias", self.bias, self.weight.shape[:1])
        return product(functional.linear, z, self.weight, self.bias)

    def difference(self, z: Array, u: Array) -> Array:
        """W u: (batch, ..., n_out)."""
        return product(few_rows, u, self.weight.T)

    def adjoint(self, z: Array, d: Array) -> Array:
        """W^T d: (batch, ..., n_in)."""
        return product(few_rows, d, self.weight)

    def update(self, z: Array, delta: Array) -> Update:
        """1/B delta z^T, (n_out, n_in), and 1/B delta where there is a bias: sums over samples and positions."""
        check_rows("delta", delta)
        check_shape("z", z, (*delta.shape[:-1], z.shape[-1]))
        # A row for each position; to divide it here costs n_out, not n_out n_in, divisions.
        scaled = (delta / len(delta)).flatten(0, -2)
        weight = product(torch.matmul, scaled.T, z.flatten(0, -2))
        return (weight,) if self.bias is None else (weight, scaled.sum(dim=0))

    @property
    def channel_weight(self) -> Array:
        return self.weight

    def of_channels(self, weight: Array, biased: bool) -> "Dense":
        return self._replace(weight=weight, bias=self.bias if biased else None)


def _of_channels(delta: Array) -> Array:
    """The update of a convolution's bias: delta summed over positions, averaged over samples."""
    return delta.sum(dim=(2, 3)).mean(dim=0)


class Convolution(NamedTuple):
    """A convolution padded with zeros, torch.nn.Conv2d: kernel (c_out, c_in / groups, rows, columns)."""

    kernel: Array
    bias: Array | None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def value(self, z: Array) -> Array:
        """k * z + b: (batch, c_out, height, width). Raises ValueError where sizes do not fit."""
        if self.bias is not None:
            check_shape("bias", self.bias, self.kernel.shape[:1])
        convolution.check_fit(self.kernel, z, self.stride, self.padding, self.groups)
        place = {"stride": self.stride, "padding": self.padding, "groups": self.groups}
        return product(partial(functional.conv2d, **place), z, self.kernel, self.bias)

    def difference(self, z: Array, u: Array) -> Array:
        """k * u."""
        return convolution.convolve(self.kernel, u, self.stride, self.padding, self.groups)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The adjoint convolution: (batch, c_in, height, width) of z."""
        size = (z.shape[2], z.shape[3])
        return convolution.convolve_adjoint(self.kernel, d, size, self.stride, self.padding, self.groups)

    def update(self, z: Array, delta: Array) -> Update:
        """The correlation of delta with z, shaped as the kernel, and of the bias where there is one."""
        size = (self.kernel.shape[2], self.kernel.shape[3])
        kernel = convolution.kernel_update(delta, z, size, self.stride, self.padding, self.groups)
        return (kernel,) if self.bias is None else (kernel, _of_channels(delta))

    @property
    def channel_weight(self) -> Array:
        return self.kernel

    def of_channels(self, weight: Array, biased: bool) -> "Convolution":
        return self._replace(kernel=weight, bias=self.bias if biased else None)


class CircularConvolution(NamedTuple):
    """A convolution with circular padding, whose kernel can be orthogonal: (c_out, c_in, size, size)."""

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
        """k * u."""
        return convolution.circular_convolve(self.kernel, u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The adjoint convolution: (batch, c_in, height, width)."""
        return convolution.circular_convolve_adjoint(self.kernel, d)

    def update(self, z: Array, delta: Array) -> Update:
        """The correlation of delta with z, shaped as the kernel, and of the bias where there is one."""
        kernel = convolution.circular_kernel_update(delta, z, self.kernel.shape[2])
        return (kernel,) if self.bias is None else (kernel, _of_channels(delta))

    @property
    def channel_weight(self) -> Array:
        return self.kernel

    def of_channels(self, weight: Array, biased: bool) -> "CircularConvolution":
        return self._replace(kernel=weight, bias=self.bias if biased else None)


@dataclass(frozen=True, eq=False)
class Rotation:
    """z cos(angle) + s(A(z)) sin(angle), A the branch, a layer whose outputs are shaped as z, and s its steps."""

    branch: Dense | CircularConvolution
    angle: float
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    _seen: list[tuple[Array, Any]] = field(default_factory=list, init=False, repr=False)

    def _preactivation(self, z: Array) -> Array:
        """The branch's value."""
        a: Array = _last(self._seen, z, self.branch.value)
        return a

    def value(self, z: Array) -> Array:
        """Shaped as z. Raises ValueError where the branch does, and where it changes the shape."""
        a = self._preactivation(z)
        check_shape("branch", a, z.shape)
        return cos(self.angle) * z + sin(self.angle) * activity(self.branch.steps, a)

    def difference(self, z: Array, u: Array) -> Array:
        """The sum of both parts' differences. The branch's value is used where it has steps."""
        of_branch = self.branch.difference(z, u)
        if self.branch.steps:
            of_branch = changed(self.branch.steps, self._preactivation(z), of_branch)
        return cos(self.angle) * u + sin(self.angle) * of_branch

    def adjoint(self, z: Array, d: Array) -> Array:
        """A row of d for each sample of z, but in a branch without steps."""
        return cos(self.angle) * d + self.branch.adjoint(z, self._of_branch(z, d))

    def update(self, z: Array, delta: Array) -> Update:
        """The branch's, for the cotangent of its output."""
        return self.branch.update(z, self._of_branch(z, delta))

    def _of_branch(self, z: Array, d: Array) -> Array:
        """The cotangent d of what the layer gives, pulled back to the branch's value."""
        d = sin(self.angle) * d
        return pulled_back(self.branch.steps, self._preactivation(z), d) if self.branch.steps else d


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
    """s(a), or p(h)."""
    for step in steps:
        a = step.value(a)
    return a


def changed(steps: Sequence[Step], a: Array, u: Array) -> Array:
    """s(a) - s(a - u)."""
    for number, step in enumerate(steps, 1):
        u = step.difference(a, u)
        a = step.value(a) if number < len(steps) else a  # nobody needs the last one's
    return u


def pushed(steps: Sequence[Step], a: Array, u: Array) -> Array:
    """s'(a) u, the derivative along u."""
    for number, step in enumerate(steps, 1):
        u = step.jvp(a, u)
        a = step.value(a) if number < len(steps) else a
    return u


def pulled_back(steps: Sequence[Step], a: Array, d: Array) -> Array:
    """s'(a)^T d, the cotangent d of what the steps give, pulled back to a."""
    if not steps:
        return d
    values = [a]
    for step in steps[:-1]:
        values.append(step.value(values[-1]))
    for step, value in zip(reversed(steps), reversed(values), strict=True):
        d = step.vjp(value, d)
    return d


def linear_part(layer: Layer) -> Layer:
    """The layer without the steps inside it: its adjoint takes any number of rows."""
    if isinstance(layer, Rotation) and layer.branch.steps:
        return replace(layer, branch=layer.branch._replace(steps=()))
    return layer


def forward(layers: Sequence[Layer], x: Array) -> Pass:
    """The clean pass. Raises ValueError, with the layer's index, where sizes do not fit."""
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
    """The scores alone, (batch, K), no layer held for longer than the next one needs it."""
    z = h = x
    for layer in layers:
        h = activity(layer.steps, layer.value(z))
        z = activity(layer.outlet, h)
    return h


def updates(
    layers: Sequence[Layer], factors: Iterable[tuple[Array, Array]], count: int | Array | None = None
) -> tuple[Update, ...]:
    """G_l of every layer, from its factors delta_l and z_l; `count` is N of `per_label`, B unless given."""
    found = []
    for layer, (delta, z) in zip(layers, factors, strict=True):
        update = layer.update(z, delta)
        found.append(update if count is None else per_label(update, len(delta), count))
    return tuple(found)


def per_label(update: Update, batch: int, count: int | Array) -> Update:
    """The update with 1/N in place of 1/B; 0 where N is. N may be a tensor, which nothing waits for."""
    check_count("batch", batch)
    if not isinstance(count, Array):
        check_count("count", count, 0)
        return update if count == batch else tuple(batch / max(count, 1) * gradient for gradient in update)
    return tuple(batch / count.clamp(min=1).to(wide(gradient.dtype)) * gradient for gradient in update)


def without_dropped(steps: Iterable[Step], u: Array) -> Array:
    """u, shaped as a layer's activities, with 0 at the units that its steps drop."""
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
    """Dense layers, each with its activation and dropout mask, None for no mask."""
    if masks is None:
        masks = [None] * len(weights)
    if len(masks) != len(weights):
        raise ValueError(f"masks: {len(masks)}, expected {len(weights)}, a mask or None for each layer")
    return tuple(
        Dense(weight, bias, (activation,) if mask is None else (activation, Mask(mask)))
        for weight, bias, activation, mask in zip(weights, biases, activations, masks, strict=True)
    )


def he_uniform(
    shape: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """Weights uniform on +-sqrt(6 / n_in), shape (n_out, ...), n_in the product of the others (He et al., 2015)."""
    for n in shape:
        check_count("shape", n)
    bound = (6 / prod(shape[1:])) ** 0.5
    return torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound, generator=generator)


def dropout_masks(
    widths: Sequence[int],
    batch: int,
    rate: float,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Array | None, ...]:
    """Inverted-dropout masks for layers of these widths, None for the last: entries 0 (share: rate) or 1/(1-rate)."""
    for n in (*widths, batch):
        check_count("widths, batch", n)
    check_rate("rate", rate)
    hidden = tuple(
        torch.empty(batch, width, device=device, dtype=dtype).bernoulli_(1 - rate, generator=generator) / (1 - rate)
        for width in widths[:-1]
    )
    return (*hidden, None)
