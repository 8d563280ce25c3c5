"""PEPITA: a second forward pass whose input is modulated by the error through a fixed random projection.

Dellaferrera and Kreiman, "Error-driven input modulation", ICML 2022.

    (1)  clean pass:      h_0 = x,             h_l = m_l * sigma_l(W_l h_(l-1) + b_l),    e = dLoss/dscores
    (2)  modulated pass:  h~_0 = x + F e,      h~_l = m_l * sigma_l(W_l h~_(l-1) + b_l)
    (3)  hidden layers:   G_l = 1/B sum_samples (h_l - h~_l) h~_(l-1)^T
    (4)  output layer:    G_L = 1/B sum_samples e' h~_(L-1)^T

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| F | projection | (n_0, K) | error projection, random and fixed |
| e, e' | error | (batch, K) | output error of the clean pass; the one that trains the output layer |
| h_l, h~_l | clean, modulated | (batch, n_l) | activations of the two passes |

The sources differ in three places. The sign of F e is a convention, F being symmetric about 0: ours is the paper's +.
e' is the error of the clean pass in one public code and of the modulated pass in another: `output_error` chooses.
The presynaptic factor h~_(l-1) may be the clean h_(l-1) with the same accuracy (Srinivasan et al., ICLR 2024):
`presynaptic` chooses. The paper's networks have no biases; ours, where there are any, get the update without h.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

from ._arrays import Array, Labels, check_count, check_option, check_positive, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["OutputError", "Presynaptic", "error_projection", "update_factors", "updates"]

OutputError: TypeAlias = Literal["clean", "modulated"]
"""Which pass e' comes from."""

Presynaptic: TypeAlias = Literal["clean", "modulated"]
"""Which pass the presynaptic factor comes from."""


def error_projection(n_in: int, num_classes: int, rng: np.random.Generator, scale: float = 0.05) -> Array:
    """F uniform on +-scale * sqrt(6 / n_in), shape (n_in, num_classes); 0.05 is the authors' scale."""
    check_count("n_in", n_in)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    bound = scale * np.sqrt(6 / n_in)
    return rng.uniform(-bound, bound, (n_in, num_classes))


def update_factors(
    network: Network,
    clean: ForwardPass,
    error: Array,
    projection: Array,
    masks: Masks = None,
    output_gradient: Callable[[Array], Array] | None = None,
    presynaptic: Presynaptic = "modulated",
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e' at the output) and h~_(l-1) of every layer, the factors in equations (3) and (4).

    e' is e, or output_gradient(modulated scores) where that function is given.
    """
    check_option("presynaptic", presynaptic, Presynaptic)
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (clean.inputs[0].shape[1], error.shape[1]))
    modulated = forward(network, clean.inputs[0] + error @ projection.T, masks)
    inputs = modulated.inputs if presynaptic == "modulated" else clean.inputs
    for layer in range(len(network.weights) - 1):
        yield clean.inputs[layer + 1] - modulated.inputs[layer + 1], inputs[layer]
    yield error if output_gradient is None else output_gradient(modulated.scores), inputs[-1]


def updates(
    network: Network,
    projection: Array,
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    output_error: OutputError = "clean",
    presynaptic: Presynaptic = "modulated",
) -> Updates:
    """The updates of equations (3) and (4). Both passes share the dropout masks."""
    check_option("output_error", output_error, OutputError)
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)

    def gradient(scores: Array) -> Array:
        return output_gradient(scores, labels)

    modulated_gradient = None if output_error == "clean" else gradient
    factors = update_factors(network, clean, error, projection, masks, modulated_gradient, presynaptic)
    return batch_mean_updates(network, factors)
