"""Local classifiers: every layer has class scores and a loss of its own, and waits for no other layer.

    (1)  layer l:     a_l = k_l * z_l + b_l  or  W_l z_l + b_l,    h_l = sigma_l(a_l),    z_1 = x
    (2)  features:    u_l = f_l(h_l), what the score sees: f_l has a gradient
    (3)  local loss:  s_l = score_l(u_l, omega_l),    L_l = 1/B sum_samples loss(s_l, y) + penalty_l(omega_l)
    (4)  passed on:   x_l = g_l(u_l): g_l has none.  With shortcuts x_l + p(x_j), or x_l and p(x_j) as channels, j < l;
                      z_(l+1) = x_l, flattened before a dense layer
    (5)  update:      G_l = dL_l / d(k_l, b_l, omega_l) for constant z_l:    e_l = dloss/ds_l,
                      delta_l = sigma_l'(a_l)^T f_l'(h_l)^T (ds_l/du_l)^T e_l,    G_l = 1/B sum_samples delta_l z_l^T

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| z_l | z | (batch, c, height, width) or (batch, n) | a layer's input |
| a_l | a | (batch, c_l, height_l, width_l) or (batch, n_l) | its pre-activation |
| h_l, u_l | inside | the latter shaped as f_l has it | its activity, and what f_l makes of that step by step |
| f_l | inside | | dropout, or normalisation and pooling where the score comes after them |
| g_l | outside | | normalisation and pooling on the way to the next layer |
| omega_l | parameters | | what the score has learned |
| s_l | scores | (batch, K) | class scores: all layers' come from one pass |

A loss reaches its own layer and its own score, no others. This is what these methods have in common; what they put in
for score, loss, f and g is theirs:

| method | score | f | g |
| --- | --- | --- | --- |
| Mono-Forward (arXiv 2501.09238) | `linear_map` | – | – |
| CwComp (arXiv 2312.12668) | `group_mean_square` | max pooling, batch norm | – |
| DeeperForward (Sun et al., ICLR 2025) | `group_mean` | dropout | group norm, average pooling, shortcuts |
| CAW-Conv (arXiv 2606.09928) | `channel_class` | dropout | instance norm, shortcuts |
| ASGE (arXiv 2509.12394) | `patch_energy` | – | pooling, layer norm over channels |
| DTG-FF (arXiv 2606.06539) | `random_readout` | – | layer norm over channels, average pooling, dropout |
| HFF (arXiv 2605.00082) | `prototype_cosine` | – | unit sphere |

The loss is cross-entropy, that of HFF with a margin, and CwComp's may be one of its own.
A shortcut carries what its source passes on, the source's own shortcuts included, by the wiring of DeeperForward's
ResNet-17. For DTG-FF, whose text does not say, scores come before pooling.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from ._arrays import Array, Labels, check_count, check_images
from .activations import Activation
from .convolutional_network import Convolution, activate
from .convolutional_network import layer_update as convolution_update
from .network import LayerUpdate, affine, layer_update
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
    """A step of f_l: its value, and vjp(h, gradient), a gradient by the value pulled back to h."""

    value: Callable[[Array], Array]
    vjp: Callable[[Array, Array], Array]


class LocalLayer(NamedTuple):
    """A layer with the score that it is trained by; `outside` are the functions of g_l in turn. See the table.

    The layer has no pooling of its own: that is a step inside or outside.
    """

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
    """What a layer computes: z_l, a_l, and inside = h_l, ..., u_l."""

    z: Array
    a: Array
    inside: tuple[Array, ...]


class LocalUpdate(NamedTuple):
    """What an optimizer is to subtract from a layer and from its score's parameters, and L_l, a scalar in nats."""

    layer: LayerUpdate
    parameters: tuple[Array, ...]
    loss: Array


def average_pool(h: Array, size: int) -> Array:
    """Means of squares: (batch, c, height // size, width // size). What is left at the border is lost."""
    check_images("h", h)
    check_count("size", size, 1, min(h.shape[2:]))
    batch, channels, height, width = h.shape
    rows, columns = height // size, width // size
    h = h[:, :, : rows * size, : columns * size]
    return h.reshape(batch, channels, rows, size, columns, size).mean(axis=(3, 5))


def max_pooling(size: int) -> Differentiable:
    """Maxima of squares, as `convolutional_network.max_pool`; of equal ones the first, row by row, has the gradient."""
    check_count("size", size)

    def vjp(h: Array, gradient: Array) -> Array:
        batch, channels, height, width = h.shape
        rows, columns = height // size, width // size
        squares = h[:, :, : rows * size, : columns * size].reshape(batch, channels, rows, size, columns, size)
        squares = squares.swapaxes(3, 4).reshape(batch, channels, rows, columns, size**2)
        chosen = np.arange(size**2) == squares.argmax(axis=4)[..., None]
        spread = np.where(chosen, gradient[..., None], np.zeros((), h.dtype))
        spread = spread.reshape(batch, channels, rows, columns, size, size).swapaxes(3, 4)
        out = np.zeros_like(h)
        out[:, :, : rows * size, : columns * size] = spread.reshape(batch, channels, rows * size, columns * size)
        return out

    return Differentiable(lambda h: max_pool(h, size), vjp)


def masked(mask: Array) -> Differentiable:
    """The product with a mask, of dropout for one."""
    return Differentiable(lambda h: mask * h, lambda h, gradient: mask * gradient)


def joined(x: Array, saved: Array, shortcut: Shortcut) -> Array:
    """x_l with a shortcut from x_j = saved, equation (4). Raises ValueError where their sizes do not fit."""
    pooled = average_pool(saved, shortcut.pool) if shortcut.pool > 1 else saved
    axes = slice(None) if shortcut.join == "add" else slice(2, None)
    if x.shape[axes] != pooled.shape[axes]:
        raise ValueError(f"{shortcut}: brings {pooled.shape}, but layer {shortcut.target} has {x.shape}")
    return x + pooled if shortcut.join == "add" else np.concatenate([x, pooled], axis=1)


def layer_passes(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Iterator[LayerPass]:
    """Of every layer in turn, equations (1), (2) and (4).

    Raises ValueError where sizes do not fit, and for a shortcut that does not lead from a layer to a later one.
    """
    shortcuts = tuple(shortcuts)
    for shortcut in shortcuts:
        if not 0 <= shortcut.source < shortcut.target < len(layers):
            raise ValueError(f"{shortcut}: expected 0 <= source < target < {len(layers)}")
        if shortcut.join not in get_args(Join) or shortcut.pool < 1:
            raise ValueError(f"{shortcut}: expected a join of {' or '.join(get_args(Join))}, and a pool of 1 or more")
    passed: list[Array] = []
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...), at least one of each")
    z = x
    for index, (layer, _, _, inside, outside) in enumerate(layers):
        if isinstance(layer, DenseLayer):
            z = z.reshape(len(z), -1)
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
        for shortcut in shortcuts:
            if shortcut.target == index:
                z = joined(z, passed[shortcut.source], shortcut)
        passed.append(z)


def local_updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> Iterator[LocalUpdate]:
    """Equation (5) of every layer in forward order. Raises ValueError as `layer_passes` does."""
    for local, (z, a, inside) in zip(layers, layer_passes(layers, x, shortcuts), strict=True):
        losses, e = loss(local.score.value(inside[-1], local.parameters), labels)
        gradient, of_parameters = local.score.credit(inside[-1], local.parameters, e)
        for step, h in zip(reversed(local.inside), reversed(inside[:-1]), strict=True):
            gradient = step.vjp(h, gradient)
        delta = local.layer.activation.vjp(a, gradient)
        if isinstance(local.layer, DenseLayer):
            update = layer_update(delta, z, local.layer.bias)
        else:
            update = convolution_update(delta, z, local.layer)
        penalty, of_penalty = local.score.penalty(local.parameters)
        batch = np.asarray(len(z), z.dtype)
        own = tuple(g / batch + p for g, p in zip(of_parameters, of_penalty, strict=True))
        yield LocalUpdate(update, own, losses.mean() + penalty)


def updates(
    layers: Sequence[LocalLayer], x: Array, labels: Labels, loss: ScoreLoss, shortcuts: Iterable[Shortcut] = ()
) -> tuple[LocalUpdate, ...]:
    """The updates of all layers."""
    return tuple(local_updates(layers, x, labels, loss, shortcuts))


def layer_scores(layers: Sequence[LocalLayer], x: Array, shortcuts: Iterable[Shortcut] = ()) -> Array:
    """s_l of every layer from one pass: (layers, batch, K)."""
    passes = layer_passes(layers, x, shortcuts)
    scores = [local.score.value(p.inside[-1], local.parameters) for local, p in zip(layers, passes, strict=True)]
    return np.stack(scores)


def concatenated(features: Iterable[Array]) -> Array:
    """u_l of several layers side by side, maps averaged over their positions: (batch, sum of channels and units)."""
    return np.concatenate([u.mean(axis=(2, 3)) if u.ndim == 4 else u for u in features], axis=1)
