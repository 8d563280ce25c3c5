"""PEPITA: a second forward pass whose input is modulated by the error through a fixed random projection.

Dellaferrera and Kreiman, "Error-driven Input Modulation: Solving the Credit Assignment Problem without a Backward
Pass", ICML 2022. The equations of the paper for dense layers; the numbers are ours:

    (1)  clean pass:      h_0 = x,             h_l = s_l(W_l h_(l-1)),    e = dLoss/dscores
    (2)  modulated pass:  h~_0 = x + F e,      h~_l by the same layers and masks
    (3)  hidden layers:   G_l = 1/B sum_samples (h_l - h~_l) h~_(l-1)^T
    (4)  output layer:    G_L = 1/B sum_samples e' h~_(L-1)^T

Ours.

    (a)  any layers:      G_l = 1/B sum_samples of the gradient of <h_l - h~_l, A_l(z~_l)> by A_l's parameters, and
                          of <e', A_L(z~_L)>;    A_l, s_l and z_l those of `layers`

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| F | projection, its transpose | (K, ...) | error projection, random and fixed, a row shaped as a sample each class |
| e, e' | error | (batch, K) | output error of the clean pass; the one that trains the output layer |
| h_l, h~_l | clean, modulated | (batch, ...) | activities of the two passes |
| z~_l | | (batch, ...) | what layer l takes in the modulated pass: of dense layers h~_(l-1) |

The sources differ in three places. The sign of F e is a convention, F being symmetric about 0: ours is the paper's +.
e' is the error of the clean pass in one public code and of the modulated pass in another: `output_error` chooses.
The presynaptic factor z~_l may be the clean z_l with the same accuracy (Srinivasan et al., ICLR 2024): `presynaptic`
chooses. No derivative of the activation enters. The authors' code divides a convolution's update by the number of its
positions; (a) is their sum. The paper's networks have no biases; ours, where there are any, get the update without z.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Literal, TypeAlias

import numpy as np

from ._arrays import Array, Labels, check_count, check_option, check_positive, check_shape
from .layers import Layer, Pass, Update, forward
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["OutputError", "Presynaptic", "error_projection", "update_factors", "updates"]

OutputError: TypeAlias = Literal["clean", "modulated"]
"""Which pass e' comes from."""

Presynaptic: TypeAlias = Literal["clean", "modulated"]
"""Which pass the presynaptic factor comes from."""


def error_projection(sample: tuple[int, ...], num_classes: int, rng: np.random.Generator, scale: float = 0.05) -> Array:
    """F^T for samples of that shape, n_0 numbers each, uniform on +-scale * sqrt(6 / n_0): (num_classes, *sample).

    0.05 is the authors' scale. Raises ValueError unless all sizes and the scale are positive.

    >>> np.shape(error_projection((1, 4, 4), 3, np.random.default_rng(0)))
    (3, 1, 4, 4)
    """
    for n in sample:
        check_count("sample", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    bound = scale * np.sqrt(6 / prod(sample))
    return rng.uniform(-bound, bound, (prod(sample), num_classes)).T.reshape(num_classes, *sample)


def update_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Array,
    projection: Array,
    output_gradient: Callable[[Array], Array] | None = None,
    presynaptic: Presynaptic = "modulated",
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e' at the output), shaped as a_l, and z~_l of every layer, first layer first, the factors of (a).

    e' is e, or output_gradient(modulated scores) where that function is given. Raises ValueError for an error or a
    projection of another shape.

    >>> layers = Dense(np.array([[1.0]]), None), Dense(np.array([[1.0]]), None)
    >>> clean = forward(layers, np.array([[1.0]]))  # x~ = 1 + 2 * 1 = 3
    >>> found = update_factors(layers, clean, np.array([[1.0]]), np.array([[2.0]]))
    >>> [(delta.item(), z.item()) for delta, z in found]
    [(-2.0, 3.0), (1.0, 3.0)]
    """
    check_option("presynaptic", presynaptic, Presynaptic)
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (error.shape[1], *clean.inputs[0].shape[1:]))
    modulated = forward(layers, clean.inputs[0] + np.tensordot(error, projection, axes=1))
    inputs = modulated.inputs if presynaptic == "modulated" else clean.inputs
    for z, h, h_modulated in zip(inputs[:-1], clean.activities, modulated.activities, strict=False):
        yield h - h_modulated, z
    yield error if output_gradient is None else output_gradient(modulated.scores), inputs[-1]


def updates(
    layers: Sequence[Layer],
    projection: Array,
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    output_error: OutputError = "clean",
    presynaptic: Presynaptic = "modulated",
) -> tuple[Update, ...]:
    """G_l of every layer, equations (3) and (4), by (a): a tuple in the order of its parameters, shaped as they are.

    Both passes share the dropout masks. Raises ValueError where layers, x and labels do not fit, and as
    `update_factors`.

    >>> layers, one = (Dense(np.array([[1.0]]), None), Dense(np.array([[1.0]]), None)), np.array([[1.0]])
    >>> found = updates(layers, 2 * one, one, 0 * one, losses.squared_error_gradient)  # e = 1 - 0, x~ = 1 + 2 e
    >>> [g.item() for (g,) in found]
    [-6.0, 3.0]
    """
    check_option("output_error", output_error, OutputError)
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)

    def gradient(scores: Array) -> Array:
        return output_gradient(scores, labels)

    modulated_gradient = None if output_error == "clean" else gradient
    return layer_updates(layers, update_factors(layers, clean, error, projection, modulated_gradient, presynaptic))
