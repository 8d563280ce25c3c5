"""Local classifiers: every layer has class scores and a loss of its own; see the reference.

A layer's update costs two products, forward and of the update, to backpropagation's three. No layer is held for longer
than the next one needs it, but for the sources of shortcuts.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch

from ._arrays import Array, Labels
from .layers import Layer, Update, activity, pulled_back
from .pooling import average_pool
from .score_losses import ScoreLoss
from .scores import Score

__all__ = [
    "Join",
    "LayerPass",
    "LocalLayer",
    "LocalUpdate",
    "Shortcut",
    "concatenated",
    "joined",
    "layer_passes",
    "layer_scores",
    "local_updates",
    "updates",
]

Join: TypeAlias = Literal["add", "concatenate"]
"""What a shortcut does: add to the layer's output, or put more channels behind those that it has."""


class LocalLayer(NamedTuple):
    """A layer with the score that it is trained by."""

    layer: Layer
    score: Score
    parameters: tuple[Array, ...] = ()


class Shortcut(NamedTuple):
    """From what layer `source` passes on, average-pooled by `pool`, to what layer `target` does; both from 0."""

    source: int
    target: int
    join: Join
    pool: int = 1


class LayerPass(NamedTuple):
    """What a layer computes: input, pre-activation and activity."""

    z: Array
    a: Array
    h: Array


class LocalUpdate(NamedTuple):
    """What an optimizer is to subtract from a layer and from its score's parameters, and the layer's mean loss."""

    layer: Update
    parameters: tuple[Array, ...]
    loss: Array


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

    Raises ValueError, with the layer's index, where sizes do not fit, and for a shortcut that does not lead from a
    layer to a later one.
    """
    shortcuts = check_shortcuts(shortcuts, len(layers))
    saved: dict[int, Array] = {}
    z = x
    for index, (layer, _, _) in enumerate(layers):
        try:
            a = layer.value(z)
            h = activity(layer.steps, a)
        except ValueError as error:
            raise ValueError(f"layers[{index}]: {error}") from error
        yield LayerPass(z, a, h)
        z = wired(activity(layer.outlet, h), index, shortcuts, saved)


def local_updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> Iterator[LocalUpdate]:
    """Every layer's update in forward order. Raises ValueError as `layer_passes` does."""
    for (layer, score, parameters), (z, a, h) in zip(layers, layer_passes(layers, x, shortcuts), strict=True):
        scores, credit = score.pullback(h, parameters)
        losses, e = loss(scores, labels)
        gradient, of_parameters = credit(e)
        delta = pulled_back(layer.steps, a, gradient)
        penalty, of_penalty = score.penalty(parameters)
        own = tuple(g / len(z) + p for g, p in zip(of_parameters, of_penalty, strict=True))
        yield LocalUpdate(layer.update(z, delta), own, losses.mean() + penalty)


def updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> tuple[LocalUpdate, ...]:
    """The updates of all layers."""
    return tuple(local_updates(layers, x, labels, loss, shortcuts))


def layer_scores(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Array:
    """c_l of every layer from one pass: (layers, batch, K)."""
    passes = layer_passes(layers, x, shortcuts)
    scores = [local.score.value(p.h, local.parameters) for local, p in zip(layers, passes, strict=True)]
    return torch.stack(scores)


def concatenated(activities: Iterable[Array]) -> Array:
    """h_l of several layers side by side, maps averaged over their positions: (batch, sum of channels and units)."""
    return torch.cat([h.mean(dim=(2, 3)) if h.dim() == 4 else h for h in activities], dim=1)
