"""Direct feedback alignment: the error reaches every layer through a fixed random matrix of its own; see the reference.

Multiplications of a step: those of the forward pass and the updates, and K for each unit; the backward products of
backpropagation are gone.
"""

from collections.abc import Callable, Iterator

import torch

from ._arrays import Array, Labels, check_count, check_positive, check_shape
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

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


def update_factors(
    network: Network,
    clean: ForwardPass,
    error: Array,
    feedback: tuple[Array, ...],
    masks: Masks = None,
    signal: Array | None = None,
) -> Iterator[tuple[Array, Array]]:
    """sigma_l'(a_l)^T (m_l * delta_l) and h_(l-1) of every layer, first layer first.

    `signal` (batch, K) is what the hidden layers are sent in place of the error.
    """
    check_shape("error", error, clean.scores.shape)
    signal = error if signal is None else signal
    check_shape("signal", signal, error.shape)
    if len(feedback) != len(network.weights) - 1:
        raise ValueError(f"feedback: {len(feedback)} matrices, expected {len(network.weights) - 1}, one a hidden layer")
    for layer, matrix in enumerate(feedback):
        check_shape(f"feedback[{layer}]", matrix, (clean.preactivations[layer].shape[1], error.shape[1]))
        delta = signal @ matrix.T
        mask = masks[layer] if masks is not None else None
        if mask is not None:
            delta = mask * delta
        yield network.activations[layer].vjp(clean.preactivations[layer], delta), clean.inputs[layer]
    yield error, clean.inputs[-1]


def updates(
    network: Network,
    feedback: tuple[Array, ...],
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
    signs: bool = False,
) -> Updates:
    """The updates of all layers; with `signs` the hidden layers are sent the error's signs alone."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    signal = torch.sign(error) if signs else error
    return batch_mean_updates(network, update_factors(network, clean, error, feedback, masks, signal))
