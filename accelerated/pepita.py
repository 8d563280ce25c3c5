"""PEPITA: a second forward pass, its input modulated by the projected error; see the reference.

The second pass is carried as differences to the clean one, h_l - h~_l, and h~_l is formed from them where it is needed.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import torch

from ._arrays import Array, Labels, check_count, check_option, check_positive, check_shape
from .losses import cross_entropy_gradient
from .network import (
    ForwardPass,
    Masks,
    Network,
    Updates,
    activation_differences,
    affine,
    batch_mean_updates,
    forward,
)

__all__ = ["OutputError", "Presynaptic", "error_projection", "update_factors", "updates"]

OutputError: TypeAlias = Literal["clean", "modulated"]
"""Which pass e' comes from."""

Presynaptic: TypeAlias = Literal["clean", "modulated"]
"""Which pass the presynaptic factor comes from."""


def error_projection(
    n_in: int,
    num_classes: int,
    generator: torch.Generator | None = None,
    scale: float = 0.05,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """F uniform on +-scale * sqrt(6 / n_in), shape (n_in, num_classes); 0.05 is the authors' scale."""
    check_count("n_in", n_in)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    bound = scale * (6 / n_in) ** 0.5
    return torch.empty(n_in, num_classes, device=device, dtype=dtype).uniform_(-bound, bound, generator=generator)


def update_factors(
    network: Network,
    clean: ForwardPass,
    error: Array,
    projection: Array,
    masks: Masks = None,
    output_gradient: Callable[[Array], Array] | None = None,
    presynaptic: Presynaptic = "modulated",
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e' at the output) and h~_(l-1) of every layer, first layer first.

    e' is e, or output_gradient(modulated scores) where that function is given.
    """
    check_option("presynaptic", presynaptic, Presynaptic)
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (clean.inputs[0].shape[1], error.shape[1]))
    z = clean.inputs[0] + error @ projection.T
    differences = activation_differences(network, clean, -error, projection, masks)
    for h, h_next, difference in zip(clean.inputs[:-1], clean.inputs[1:], differences, strict=True):
        yield difference, z if presynaptic == "modulated" else h
        z = h_next - difference
    if output_gradient is not None:
        error = output_gradient(affine(network.weights[-1], network.biases[-1], z))
    yield error, z if presynaptic == "modulated" else clean.inputs[-1]


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
    """The updates of all layers. Both passes share the dropout masks."""
    check_option("output_error", output_error, OutputError)
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)

    def gradient(scores: Array) -> Array:
        return output_gradient(scores, labels)

    modulated_gradient = None if output_error == "clean" else gradient
    factors = update_factors(network, clean, error, projection, masks, modulated_gradient, presynaptic)
    return batch_mean_updates(network, factors)
