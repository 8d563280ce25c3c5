"""PEPITA: a second forward pass, its input modulated by the projected error; see the reference.

The second pass is carried as differences to the clean one, h_l - h~_l, and z~_l is formed from them where it is needed.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Literal, TypeAlias

import torch

from ._arrays import Array, Labels, check_count, check_option, check_positive, check_shape
from .foton import differences
from .layers import Layer, Pass, Update, activity, forward
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["OutputError", "Presynaptic", "error_projection", "update_factors", "updates"]

OutputError: TypeAlias = Literal["clean", "modulated"]
"""Which pass e' comes from."""

Presynaptic: TypeAlias = Literal["clean", "modulated"]
"""Which pass the presynaptic factor comes from."""


def error_projection(
    sample: tuple[int, ...],
    num_classes: int,
    generator: torch.Generator | None = None,
    scale: float = 0.05,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Array:
    """F^T for samples of that shape, n_0 numbers each, uniform on +-scale * sqrt(6 / n_0): (num_classes, *sample).

    0.05 is the authors' scale.
    """
    for n in sample:
        check_count("sample", n)
    check_count("num_classes", num_classes)
    check_positive("scale", scale)
    bound = scale * (6 / prod(sample)) ** 0.5
    drawn = torch.empty(prod(sample), num_classes, device=device, dtype=dtype)
    return drawn.uniform_(-bound, bound, generator=generator).T.contiguous().view(num_classes, *sample)


def update_factors(
    layers: Sequence[Layer],
    clean: Pass,
    error: Array,
    projection: Array,
    output_gradient: Callable[[Array], Array] | None = None,
    presynaptic: Presynaptic = "modulated",
) -> Iterator[tuple[Array, Array]]:
    """h_l - h~_l (e' at the output) and z~_l of every layer, first layer first.

    e' is e, or output_gradient(modulated scores) where that function is given.
    """
    check_option("presynaptic", presynaptic, Presynaptic)
    check_shape("error", error, clean.scores.shape)
    check_shape("projection", projection, (error.shape[1], *clean.inputs[0].shape[1:]))
    z = clean.inputs[0] + torch.tensordot(error, projection, dims=1)
    found = differences(layers, clean, -error, projection)
    for index in range(len(layers) - 1):
        difference = next(found)
        yield difference, z if presynaptic == "modulated" else clean.inputs[index]
        z = activity(layers[index].outlet, clean.activities[index] - difference)
        del difference  # not held while the next one is computed
    if output_gradient is not None:
        error = output_gradient(activity(layers[-1].steps, layers[-1].value(z)))
    yield error, z if presynaptic == "modulated" else clean.inputs[-1]


def updates(
    layers: Sequence[Layer],
    projection: Array,
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    output_error: OutputError = "clean",
    presynaptic: Presynaptic = "modulated",
) -> tuple[Update, ...]:
    """The updates of all layers. Both passes share the dropout masks."""
    check_option("output_error", output_error, OutputError)
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)

    def gradient(scores: Array) -> Array:
        return output_gradient(scores, labels)

    modulated_gradient = None if output_error == "clean" else gradient
    return layer_updates(layers, update_factors(layers, clean, error, projection, modulated_gradient, presynaptic))
