"""Feedback alignment: backpropagation through fixed random matrices; see the reference."""

from collections.abc import Callable, Iterator

import torch

from . import backprop
from ._arrays import Array, Labels, check_count, check_shape
from .layers import Pass, dense_chain, he_uniform
from .losses import cross_entropy_gradient
from .network import ForwardPass, Masks, Network, Updates, batch_mean_updates, forward

__all__ = ["random_feedback", "update_factors", "updates"]


def random_feedback(
    widths: tuple[int, ...],
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Array, ...]:
    """B_1..B_L for layers of these widths, n_0 first, drawn as He draws weights."""
    for n in widths:
        check_count("widths", n)
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return tuple(he_uniform(shape, generator, device=device, dtype=dtype) for shape in shapes)


def update_factors(
    network: Network, clean: ForwardPass, error: Array, feedback: tuple[Array, ...], masks: Masks = None
) -> Iterator[tuple[Array, Array]]:
    """sigma_l'(a_l)^T (m_l * delta_l) and h_(l-1) of every layer, first layer first."""
    for layer, (matrix, weight) in enumerate(zip(feedback[1:], network.weights[1:], strict=True), start=1):
        check_shape(f"feedback[{layer}]", matrix, weight.shape)
    mirrored = dense_chain(feedback, network.biases, network.activations, masks)
    return backprop.update_factors(mirrored, Pass(*clean[:2], (*clean.inputs[1:], clean.scores)), error)


def updates(
    network: Network,
    feedback: tuple[Array, ...],
    x: Array,
    labels: Labels,
    masks: Masks = None,
    output_gradient: Callable[[Array, Labels], Array] = cross_entropy_gradient,
) -> Updates:
    """The updates of all layers."""
    clean = forward(network, x, masks)
    error = output_gradient(clean.scores, labels)
    return batch_mean_updates(network, update_factors(network, clean, error, feedback, masks))
