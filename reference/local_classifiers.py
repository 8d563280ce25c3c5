"""Local classifiers: every layer has class scores and a loss of its own, and waits for no other layer.

    (1)  layer l:     a_l = A_l(z_l),    h_l = s_l(a_l),    z_1 = x
    (2)  local loss:  c_l = score_l(h_l, omega_l),    L_l = 1/B sum_samples loss(c_l, y) + penalty_l(omega_l)
    (3)  passed on:   x_l = p_l(h_l), constant to every loss.  With shortcuts x_l + p(x_j), or x_l and p(x_j) as
                      channels, j < l;    z_(l+1) = x_l
    (4)  update:      G_l = dL_l / d(parameters of A_l, omega_l) for constant z_l:    e_l = dloss/dc_l,
                      delta_l = s_l'(a_l)^T (dc_l/dh_l)^T e_l, and then equation (2) of `layers`

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z_l | z | (batch, c, height, width) or (batch, n) | a layer's input |
| a_l | a | (batch, c_l, height_l, width_l) or (batch, n_l) | its pre-activation |
| s_l | layer.steps | | activation, dropout; normalisation and pooling where the score comes after them |
| h_l | h | shaped as s_l has it | its activity, what the score sees |
| p_l | layer.outlet | | normalisation, pooling and flattening on the way to the next layer |
| omega_l | parameters | | what the score has learned |
| c_l | scores | (batch, K) | class scores: all layers' come from one pass |

A loss reaches its own layer and its own score, no others. This is what these methods have in common; what they put in
for score, loss, steps beside the activation and outlet is theirs:

| method | score | steps | outlet |
| --- | --- | --- | --- |
| Mono-Forward (arXiv 2501.09238) | `linear_map` | – | – |
| CwComp (arXiv 2312.12668) | `group_mean_square` | max pooling, batch norm | – |
| DeeperForward (Sun et al., ICLR 2025) | `group_mean` | dropout | group norm, average pooling, shortcuts |
| CAW-Conv (arXiv 2606.09928) | `channel_class` | dropout | instance norm, shortcuts |
| ASGE (arXiv 2509.12394) | `patch_energy` | – | L2 pooling, layer norm over channels |
| DTG-FF (arXiv 2606.06539) | `random_readout` | – | layer norm over channels, average pooling, dropout |
| HFF (arXiv 2605.00082) | `prototype_cosine` | – | unit sphere |

The loss is cross-entropy, that of HFF with a margin, and CwComp's may be one of its own.
A shortcut carries what its source passes on, the source's own shortcuts included, by the wiring of DeeperForward's
ResNet-17. For DTG-FF, whose text does not say, scores come before pooling.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

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
    """What a layer computes: z_l, a_l and h_l."""

    z: Array
    a: Array
    h: Array


class LocalUpdate(NamedTuple):
    """What an optimizer is to subtract from a layer and from its score's parameters, and L_l, a scalar in nats."""

    layer: Update
    parameters: tuple[Array, ...]
    loss: Array


def joined(x: Array, saved: Array, shortcut: Shortcut) -> Array:
    """x_l with a shortcut from x_j = saved, equation (3). Raises ValueError where their sizes do not fit."""
    pooled = average_pool(saved, shortcut.pool) if shortcut.pool > 1 else saved
    axes = slice(None) if shortcut.join == "add" else slice(2, None)
    if x.shape[axes] != pooled.shape[axes]:
        raise ValueError(f"{shortcut}: brings {pooled.shape}, but layer {shortcut.target} has {x.shape}")
    return x + pooled if shortcut.join == "add" else np.concatenate([x, pooled], axis=1)


def layer_passes(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Iterator[LayerPass]:
    """z_l, a_l and h_l of every layer in turn, equations (1) and (3).

    Raises ValueError, with the layer's index, where sizes do not fit, and for a shortcut that does not lead from a
    layer to a later one.
    """
    shortcuts = tuple(shortcuts)
    for shortcut in shortcuts:
        if not 0 <= shortcut.source < shortcut.target < len(layers):
            raise ValueError(f"{shortcut}: expected 0 <= source < target < {len(layers)}")
        if shortcut.join not in get_args(Join) or shortcut.pool < 1:
            raise ValueError(f"{shortcut}: expected a join of {' or '.join(get_args(Join))}, and a pool of 1 or more")
    passed: list[Array] = []
    z = x
    for index, (layer, _, _) in enumerate(layers):
        try:
            a = layer.value(z)
            h = activity(layer.steps, a)
        except ValueError as error:
            raise ValueError(f"layers[{index}]: {error}") from error
        yield LayerPass(z, a, h)
        z = activity(layer.outlet, h)
        for shortcut in shortcuts:
            if shortcut.target == index:
                z = joined(z, passed[shortcut.source], shortcut)
        passed.append(z)


def local_updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> Iterator[LocalUpdate]:
    """G_l and L_l of every layer in forward order, equations (2) and (4). Raises ValueError as `layer_passes` does."""
    for (layer, score, parameters), (z, a, h) in zip(layers, layer_passes(layers, x, shortcuts), strict=True):
        losses, e = loss(score.value(h, parameters), labels)
        gradient, of_parameters = score.credit(h, parameters, e)
        delta = pulled_back(layer.steps, a, gradient)
        penalty, of_penalty = score.penalty(parameters)
        batch = np.asarray(len(z), z.dtype)
        own = tuple(g / batch + p for g, p in zip(of_parameters, of_penalty, strict=True))
        yield LocalUpdate(layer.update(z, delta), own, losses.mean() + penalty)


def updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> tuple[LocalUpdate, ...]:
    """`local_updates` of all layers, at once: arguments and errors as for that."""
    return tuple(local_updates(layers, x, labels, loss, shortcuts))


def layer_scores(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Array:
    """c_l of every layer from one pass: (layers, batch, K). Raises ValueError as `layer_passes` does."""
    passes = layer_passes(layers, x, shortcuts)
    scores = [local.score.value(p.h, local.parameters) for local, p in zip(layers, passes, strict=True)]
    return np.stack(scores)


def concatenated(activities: Iterable[Array]) -> Array:
    """h_l of several layers side by side, maps averaged over their positions: (batch, sum of channels and units)."""
    return np.concatenate([h.mean(axis=(2, 3)) if h.ndim == 4 else h for h in activities], axis=1)
