"""Local classifiers: every layer has class scores and a loss of its own; see the reference.

A layer's update costs two products, forward and of the update, to backpropagation's three. No layer is held for longer
than the next one needs it, but for the sources of shortcuts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from ._arrays import Array, Labels, check_count, check_images
from .activations import Activation
from .convolutional_network import Convolution, activate
from .network import LayerUpdate, affine
from .pooling import max_pool
from .score_losses import ScoreLoss
from .scores import Score

__all__ = [
    "DenseLayer",
    "Differentiable",
    "Join",
    "LayerPass",
    "LocalLayer",
    "LocalUpdate",
    "Shortcut",
    "average_pool",
    "concatenated",
    "joined",
    "layer_passes",
    "layer_scores",
    "local_updates",
    "masked",
    "max_pooling",
    "updates",
]

Join: TypeAlias = Literal["add", "concatenate"]
"""What a shortcut does: add to the layer's output, or put more channels behind those that it has."""


class DenseLayer(NamedTuple):
    """A dense layer, its bias (n_out,) or None, and its activation."""

    weight: Array
    bias: Array | None
    activation: Activation


class Differentiable(NamedTuple):
    """A step between activity and score: its value, and vjp(h, gradient), a gradient by it pulled back to h."""

    value: Callable[[Array], Array]
    vjp: Callable[[Array, Array], Array]


class LocalLayer(NamedTuple):
    """A layer with the score that it is trained by; see the reference. Pooling is a step inside or outside."""

    layer: Convolution | DenseLayer
    score: Score
    parameters: tuple[Array, ...] = ()
    inside: tuple[Differentiable, ...] = ()
    outside: tuple[Callable[[Array], Array], ...] = ()


class Shortcut(NamedTuple):
    """From what layer `source` passes on, average-pooled by `pool`, to what layer `target` does; both from 0."""

    source: int
    target: int
    join: Join
    pool: int = 1


class LayerPass(NamedTuple):
    """What a layer computes: input, pre-activation, and inside: activity, ..., features."""

    z: Array
    a: Array
    inside: tuple[Array, ...]


class LocalUpdate(NamedTuple):
    """What an optimizer is to subtract from a layer and from its score's parameters, and the layer's mean loss."""

    layer: LayerUpdate
    parameters: tuple[Array, ...]
    loss: Array


def average_pool(h: Array, size: int) -> Array:
    """Means of squares: (batch, c, height // size, width // size)."""
    check_images("h", h)
    check_count("size", size, 1, min(h.shape[2:]))
    return functional.avg_pool2d(h, size)


# Functions of the module, not of functions, so that a step can be pickled.
def _max_pool_vjp(size: int, h: Array, gradient: Array) -> Array:
    _, places = functional.max_pool2d(h, size, return_indices=True)
    square = [size, size]
    spread: Array = torch.ops.aten.max_pool2d_with_indices_backward(
        gradient, h, square, square, [0, 0], [1, 1], False, places
    )
    return spread


def _pooled(size: int, h: Array) -> Array:
    return max_pool(h, size)


def max_pooling(size: int) -> Differentiable:
    """Maxima of squares; of equal ones the first, row by row, has the gradient."""
    check_count("size", size)
    return Differentiable(partial(_pooled, size), partial(_max_pool_vjp, size))


def masked(mask: Array) -> Differentiable:
    """The product with a mask, of dropout for one."""
    return Differentiable(partial(torch.mul, mask), partial(_masked_vjp, mask))


def _masked_vjp(mask: Array, h: Array, gradient: Array) -> Array:
    return mask * gradient


def joined(x: Array, saved: Array, shortcut: Shortcut) -> Array:
    """What a layer passes on, with a shortcut from what an earlier one did.

    Raises ValueError where their sizes do not fit.
    """
    pooled = average_pool(saved, shortcut.pool) if shortcut.pool > 1 else saved
    axes = slice(None) if shortcut.join == "add" else slice(2, None)
    if x.shape[axes] != pooled.shape[axes]:
        raise ValueError(
            f"{shortcut}: brings {tuple(pooled.shape)}, but layer {shortcut.target} has {tuple(x.shape)}"
            + ("" if x.shape[2:] == pooled.shape[2:] else "; images halved n times have sides that 2^n divides")
        )
    return x + pooled if shortcut.join == "add" else torch.cat([x, pooled], dim=1)


def check_shortcuts(shortcuts: Iterable[Shortcut], layers: int) -> tuple[Shortcut, ...]:
    """Them. Raises ValueError for one that does not lead from one of so many layers to a later one, or that joins by
    other means than `Join`.
    """
    found = tuple(shortcuts)
    for shortcut in found:
        if not 0 <= shortcut.source < shortcut.target < layers:
            raise ValueError(f"{shortcut}: expected 0 <= source < target < {layers}")
        if shortcut.join not in get_args(Join) or shortcut.pool < 1:
            raise ValueError(f"{shortcut}: expected a join of {' or '.join(get_args(Join))}, and a pool of 1 or more")
    return found


def wired(x: Array, layer: int, shortcuts: Sequence[Shortcut], saved: dict[int, Array]) -> Array:
    """What a layer passes on, with the shortcuts that end there; `saved` has what later ones begin with, no more."""
    for shortcut in shortcuts:
        if shortcut.target == layer:
            x = joined(x, saved[shortcut.source], shortcut)
    saved[layer] = x
    ahead = {shortcut.source for shortcut in shortcuts if shortcut.target > layer}
    for source in saved.keys() - ahead:
        del saved[source]
    return x


def layer_passes(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Iterator[LayerPass]:
    """Of every layer in turn, each run when it is asked for.

    Raises ValueError where sizes do not fit, and for a shortcut that does not lead from a layer to a later one.
    """
    shortcuts = check_shortcuts(shortcuts, len(layers))
    saved: dict[int, Array] = {}
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...), at least one of each")
    z = x
    for index, (layer, _, _, inside, outside) in enumerate(layers):
        if isinstance(layer, DenseLayer):
            z = z.flatten(1)
            if z.shape[1] != layer.weight.shape[1]:
                raise ValueError(f"layer {index}: takes {layer.weight.shape[1]} features, but gets {z.shape[1]}")
            a = affine(layer.weight, layer.bias, z)
        else:
            if layer.pool > 1:
                raise ValueError(f"layer {index}: pool {layer.pool}, expected 1, and pooling inside or outside")
            a = activate(layer, z)
        steps = [layer.activation.value(a)]
        for step in inside:
            steps.append(step.value(steps[-1]))
        yield LayerPass(z, a, tuple(steps))
        z = steps[-1]
        for function in outside:
            z = function(z)
        z = wired(z, index, shortcuts, saved)


def local_updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> Iterator[LocalUpdate]:
    """Every layer's update in forward order. Raises ValueError as `layer_passes` does."""
    for local, (z, a, inside) in zip(layers, layer_passes(layers, x, shortcuts), strict=True):
        losses, e = loss(local.score.value(inside[-1], local.parameters), labels)
        gradient, of_parameters = local.score.credit(
            inside[-1], local.parameters, e / len(z)
        )  # few numbers: (batch, K)
        for step, h in zip(reversed(local.inside), reversed(inside[:-1]), strict=True):
            gradient = step.vjp(h, gradient)
        delta = local.layer.activation.vjp(a, gradient)
        update = _update(local.layer, z, delta)
        penalty, of_penalty = local.score.penalty(local.parameters)
        own = tuple(g + p for g, p in zip(of_parameters, of_penalty, strict=True))
        yield LocalUpdate(update, own, losses.mean() + penalty)


def _update(layer: Convolution | DenseLayer, z: Array, delta: Array) -> LayerUpdate:
    """sum over samples of delta z^T."""
    if isinstance(layer, DenseLayer):
        return LayerUpdate(delta.T @ z, None if layer.bias is None else delta.sum(dim=0))
    kernel = conv2d_weight(
        z, layer.kernel.shape, delta, stride=layer.stride, padding=layer.padding, groups=layer.groups
    )
    return LayerUpdate(kernel, None if layer.bias is None else delta.sum(dim=(0, 2, 3)))


def updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> tuple[LocalUpdate, ...]:
    """The updates of all layers."""
    return tuple(local_updates(layers, x, labels, loss, shortcuts))


def layer_scores(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Array:
    """s_l of every layer from one pass: (layers, batch, K)."""
    passes = layer_passes(layers, x, shortcuts)
    scores = [local.score.value(p.inside[-1], local.parameters) for local, p in zip(layers, passes, strict=True)]
    return torch.stack(scores)


def concatenated(features: Iterable[Array]) -> Array:
    """u_l of several layers side by side, maps averaged over their positions: (batch, sum of channels and units)."""
    return torch.cat([u.mean(dim=(2, 3)) if u.dim() == 4 else u for u in features], dim=1)
