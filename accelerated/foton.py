"""FOTON: two forward passes through orthogonal layers; see the reference.

Multiplications of a step: those of backpropagation, but for the K rows of the projection. The modulated pass is carried
as u_l = a_l - a~_l: equal in exact arithmetic, with no cancellation in the products. It starts from (W_1 F) e, in which
the first layer acts on K rows in place of the batch, and ends before the output layer, as backpropagation leaves out
the gradient of the input.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch

from . import layers as chains
from ._arrays import Array, Labels, check_count, check_positive, check_shape
from .layers import Layer, Pass, Update, activity, changed, forward, linear_part, pulled_back, pushed
from .losses import cross_entropy_gradient

__all__ = [
    "credit_operators",
    "depth_correction",
    "differences",
    "error_projection",
    "linear_errors",
    "recomputed_factors",
    "update_factors",
    "updates",
]


def error_projection(layers: Sequence[Layer], clean: Pass) -> Array:
    """F^T = W_L ... p_1 W_1, from the output on: K rows, each shaped as a sample of x. Of the pass, shapes alone enter.

    Raises ValueError for an outlet that is not linear.
    """
    rows = torch.eye(clean.scores.shape[1], dtype=clean.scores.dtype, device=clean.scores.device)
    for index in reversed(range(len(layers))):
        rows = linear_part(layers[index]).adjoint(clean.inputs[index], rows)
        if index > 0:
            rows = pulled_back(layers[index - 1].outlet, clean.activities[index - 1][:1], rows)
    return rows


def _first(layer: Layer, z: Array, error: Array, projection: Array) -> Array:
    """A_1(x) - A_1(x - F e): (batch, ...), as a_1; W_1 F e of an affine layer."""
    if linear_part(layer) is not layer:
        return layer.difference(z, (error @ projection.flatten(1)).reshape(z.shape))
    rows = layer.difference(z, projection)
    return (error @ rows.flatten(1)).reshape(len(error), *rows.shape[1:])


def differences(layers: Sequence[Layer], clean: Pass, error: Array, projection: Array) -> Iterator[Array]:
    """h_l - h~_l of the hidden layers l = 1..L-1 in turn: each shaped as a_l."""
    u = projection
    for index in range(len(layers) - 1):
        layer, z = layers[index], clean.inputs[index]
        u = layer.difference(z, u) if index > 0 else _first(layer, z, error, projection)
        u = changed(layer.steps, clean.preactivations[index], u)
        yield u
        u = changed(layer.outlet, clean.activities[index], u)


def linear_errors(layers: Sequence[Layer], clean: Pass, error: Array, projection: Array) -> Iterator[Array]:
    """s_l'(a_l)^T u_l, u_l = W_l p_(l-1) u_(l-1), for the hidden layers l = 1..L-1 in turn: each shaped as a_l."""
    u = projection
    for index, (layer, z, a, h) in enumerate(zip(layers[:-1], *clean, strict=False)):
        linear = linear_part(layer)
        u = linear.difference(z, u) if index > 0 else _first(linear, z, error, projection)
        yield pulled_back(layer.steps, a, u)
        u = pushed(layer.outlet, h, u)


def depth_correction(activation_gain: float, depth: int, linear: bool = False) -> list[float]:
    """lambda^(L-2l), lambda the gain, or lambda^(L-1-l) with `linear`, for hidden layers; 1 for the output layer."""
    check_positive("activation_gain", activation_gain)
    check_count("depth", depth)
    if linear:
        return [activation_gain ** (depth - 1 - layer) for layer in range(1, depth)] + [1.0]
    return [activation_gain ** (depth - 2 * layer) for layer in range(1, depth)] + [1.0]


def update_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Array,
    projection: Array,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l, or with `linear` `linear_errors`, corrected by the gain (e at the output); and z_l."""
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (error.shape[1], *clean.inputs[0].shape[1:]))
    found = (linear_errors if linear else differences)(layers, clean, error, projection)
    correction = depth_correction(activation_gain, len(layers), linear)
    for factor, delta, z in zip(correction, chain(found, [error]), clean.inputs, strict=True):
        yield (delta if factor == 1 else factor * delta), z


def recomputed_factors(
    layers: Iterable[Layer],
    depth: int,
    x: Array,
    error: Array,
    projection: Array,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> Iterator[tuple[Array, Array]]:
    """`update_factors` from x in place of the clean pass: one layer's activations and differences alive at a time.

    The clean pass that gave the error is made once more: a product more for each layer but the output's, none of it
    held. Each of the `depth` layers is taken when its turn comes.
    """
    check_shape("error", error, (len(x), len(projection)))
    check_shape("projection", projection, (len(projection), *x.shape[1:]))
    z, u = x, projection
    for factor, (index, layer) in zip(depth_correction(activation_gain, depth, linear), enumerate(layers), strict=True):
        if index == depth - 1:
            yield error, z
            continue
        a = layer.value(z)
        through = linear_part(layer) if linear else layer
        u = through.difference(z, u) if index > 0 else _first(through, z, error, projection)
        delta = pulled_back(layer.steps, a, u) if linear else changed(layer.steps, a, u)
        u = u if linear else delta
        yield (delta if factor == 1 else factor * delta), z
        h = activity(layer.steps, a)
        del a, delta  # not held with the next layer's
        u = changed(layer.outlet, h, u)
        z = activity(layer.outlet, h)
        del h


def updates(
    layers: Sequence[Layer],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    projection: Array | None = None,
    activation_gain: float = 1.0,
    linear: bool = False,
) -> tuple[Update, ...]:
    """The updates of all layers, with `linear` by `linear_errors`, corrected by the gain.

    For every layer a tuple in the order of its parameters. `projection` is F^T where it is not built from the present
    weights: every few steps, say.
    """
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    if projection is None:
        projection = error_projection(layers, clean)
    return chains.updates(layers, update_factors(layers, clean, error, projection, activation_gain, linear))


def credit_operators(weights: Sequence[Array]) -> tuple[Array, ...]:
    """M_l = W_l M_(l-1) W_l^T, M_0 = I, for the hidden layers of dense ones without outlets: (n_l, n_l) each."""
    operators: list[Array] = []
    for weight in weights[:-1]:
        through = weight if not operators else weight @ operators[-1]
        operators.append(through @ weight.T)
    return tuple(operators)
