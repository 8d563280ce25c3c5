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
    """What a layer computes: z_l, a_l and h_l, (batch, ...) each."""

    z: Array
    a: Array
    h: Array


class LocalUpdate(NamedTuple):
    """What an optimizer is to subtract from a layer and from its score's parameters, and L_l, a scalar in nats."""

    layer: Update
    parameters: tuple[Array, ...]
    loss: Array


def joined(x: Array, saved: Array, shortcut: Shortcut) -> Array:
    """x_l with a shortcut from x_j = saved, equation (3): as x, (batch, c, height, width) or (batch, n).

    With "concatenate" there are those of saved behind the channels of x. Raises ValueError where their sizes do not
    fit.

    >>> x, saved = np.array([[1.0, 2.0]]), np.array([[10.0, 20.0]])
    >>> [joined(x, saved, Shortcut(0, 1, join)).tolist() for join in ("add", "concatenate")]
    [[[11.0, 22.0]], [[1.0, 2.0, 10.0, 20.0]]]
    """
    pooled = average_pool(saved, shortcut.pool) if shortcut.pool > 1 else saved
    axes = slice(None) if shortcut.join == "add" else slice(2, None)
    if x.shape[axes] != pooled.shape[axes]:
        raise ValueError(f"{shortcut}: brings {pooled.shape}, but layer {shortcut.target} has {x.shape}")
    return x + pooled if shortcut.join == "add" else np.concatenate([x, pooled], axis=1)


def layer_passes(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Iterator[LayerPass]:
    """z_l, a_l and h_l, (batch, ...) each, of every layer in turn, equations (1) and (3).

    Raises ValueError, with the layer's index, where sizes do not fit, and for a shortcut that does not lead from a
    layer to a later one.

    >>> layers = [LocalLayer(Dense(2 * np.eye(1), None), scores.group_mean(1))] * 3
    >>> [found.z.item() for found in layer_passes(layers, np.array([[1.0]]), [Shortcut(0, 1, "add")])]  # 4 + 2
    [1.0, 2.0, 6.0]
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
    """G_l, as the layer's and the score's parameters, and L_l, a scalar array, of every layer in turn, (2) and (4).

    The labels are (batch,). Raises ValueError as `layer_passes` does.

    >>> layers = [LocalLayer(Dense(np.zeros((2, 1)), None), scores.group_mean(2))]  # scores 0: e = -1/2, 1/2
    >>> (found,) = local_updates(layers, np.array([[2.0]]), np.array([0]), score_losses.cross_entropy())
    >>> found.layer[0].tolist(), round(float(found.loss), 3)
    ([[-1.0], [1.0]], 0.693)
    """
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
    """`local_updates` of all layers, at once: x, labels, shapes and errors as for that.

    >>> layer = LocalLayer(Dense(np.zeros((2, 2)), None), scores.group_mean(2))
    >>> found = updates([layer, layer], np.array([[2.0, 0.0]]), np.array([0]), score_losses.cross_entropy())
    >>> [local.layer[0].tolist() for local in found]  # the second layer's input is 0
    [[[-1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]
    """
    return tuple(local_updates(layers, x, labels, loss, shortcuts))


def layer_scores(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Array:
    """c_l of every layer from one pass: (layers, batch, K). Raises ValueError as `layer_passes` does.

    >>> layer = LocalLayer(Dense(2 * np.eye(2), None), scores.group_mean(2))
    >>> layer_scores([layer, layer], np.array([[1.0, 3.0]])).tolist()
    [[[2.0, 6.0]], [[4.0, 12.0]]]
    """
    passes = layer_passes(layers, x, shortcuts)
    scores = [local.score.value(p.h, local.parameters) for local, p in zip(layers, passes, strict=True)]
    return np.stack(scores)


def concatenated(activities: Iterable[Array]) -> Array:
    """h_l of several layers side by side, maps averaged over their positions: (batch, sum of channels and units).

    >>> concatenated([np.array([[[[1.0, 3.0]]]]), np.array([[5.0, 6.0]])]).tolist()
    [[2.0, 5.0, 6.0]]
    """
    return np.concatenate([h.mean(axis=(2, 3)) if h.ndim == 4 else h for h in activities], axis=1)
