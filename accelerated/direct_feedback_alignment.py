"""Direct feedback alignment: the error reaches every layer through a fixed random matrix of its own; see the reference.

Multiplications of a step: those of the forward pass and the updates, and K for each unit; the backward products of
backpropagation are gone.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch

from ._arrays import Array, Labels, check_count, check_positive, check_shape
from .layers import Layer, Pass, Update, forward, pulled_back
from .layers import updates as layer_updates
from .losses import cross_entropy_gradient

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(
    widths: tuple[int, ...],
    num_classes: int,
    generator: torch.Generator | None = None,
    scale: float = 1.0,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Array, ...]:
    """B_l for hidden layers of these widths, uniform on +-scale sqrt(6 / num_classes): (n_l, num_classes) each."""
    for n in (*widths, num_classes):
        check_count("widths, num_classes", n)
    check_positive("scale", scale)
    bound = scale * (6 / num_classes) ** 0.5
    empty = (torch.empty(n, num_classes, device=device, dtype=dtype) for n in widths)
    return tuple(matrix.uniform_(-bound, bound, generator=generator) for matrix in empty)


def _projected(signal: Array, matrix: Array, h: Array, name: str) -> Array:
    """B_l of the signal, shaped as h_l: a row a number of it, or a row a channel that all positions share.

    Where positions have labels, the signal is (batch, positions, K), each has its own.
    """
    channels = h.shape[1] if h.ndim == 4 else h.shape[-1]
    by_channel = h.ndim > 2 and (signal.ndim > 2 or len(matrix) == channels)
    rows = channels if by_channel else prod(h.shape[1:])
    check_shape(name, matrix, (rows, signal.shape[-1]))
    delta = signal @ matrix.T
    if by_channel and signal.ndim == 2:
        return (delta[:, :, None, None] if h.ndim == 4 else delta[:, None]).expand(h.shape)
    return delta.reshape(h.shape)


def update_factors(
    layers: Sequence[Layer], clean: Pass, error: Array, feedback: Sequence[Array], signal: Array | None = None
) -> Iterator[tuple[Array, Array]]:
    """s_l'(a_l)^T delta_l and z_l of every layer, first layer first.

    `signal` (batch, K) is what the hidden layers are sent in place of the error.
    """
    check_shape("error", error, clean.scores.shape)
    signal = error if signal is None else signal
    check_shape("signal", signal, error.shape)
    if len(feedback) != len(layers) - 1:
        raise ValueError(f"feedback: {len(feedback)} matrices, expected {len(layers) - 1}, one a hidden layer")
    for index, matrix in enumerate(feedback):
        delta = _projected(signal, matrix, clean.activities[index], f"feedback[{index}]")
        yield pulled_back(layers[index].steps, clean.preactivations[index], delta), clean.inputs[index]
    yield error, clean.inputs[-1]


def updates(
    layers: Sequence[Layer],
    feedback: Sequence[Array],
    x: Array,
    labels: Labels,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    signs: bool = False,
) -> tuple[Update, ...]:
    """The updates of all layers; with `signs` the hidden layers are sent the error's signs alone."""
    clean = forward(layers, x)
    error = output_gradient(clean.scores, labels)
    signal = torch.sign(error) if signs else error
    return layer_updates(layers, update_factors(layers, clean, error, feedback, signal))
