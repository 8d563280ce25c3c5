"""Backpropagation through time, whole or through the last steps only; see the reference."""

from collections.abc import Callable

import torch

from ._arrays import Array, check_shape
from .losses import cross_entropy_gradient
from .recurrent import Factors, RecurrentParameters, RecurrentPass, RecurrentUpdates, forward, time_summed_updates

__all__ = ["state_gradients", "updates"]


def state_gradients(
    network: RecurrentParameters, clean: RecurrentPass, error: Array, truncation: int | None = None
) -> tuple[Array, Factors]:
    """dLoss/dh_t, (k, batch, n), and the factors of the last k steps.

    k is T where truncation is None or larger. Raises ValueError where it is less than 1.
    """
    check_shape("error", error, clean.outputs.shape)
    if truncation is not None and (isinstance(truncation, float) or not truncation >= 1):
        raise ValueError(f"truncation: {truncation}, expected at least one step, a whole number, or None for all")
    length = len(clean.from_input)
    first = 0 if truncation is None else max(length - truncation, 0)
    gradients, deltas, etas = [], [], []
    gradient = error @ network.weight_out
    for t in reversed(range(first, length)):
        gradients.append(gradient)
        delta, eta, past = network.cell.vjp(clean.from_input[t], clean.from_state[t], clean.states[t], gradient)
        deltas.append(delta)
        etas.append(eta)
        if t > first:
            gradient = torch.addmm(past, eta, network.weight_hh)
    return torch.stack(gradients[::-1]), (torch.stack(deltas[::-1]), torch.stack(etas[::-1]))


def updates(
    network: RecurrentParameters,
    x: Array,
    y: Array,
    output_gradient: Callable[[Array, Array], Array] = cross_entropy_gradient,
    truncation: int | None = None,
) -> RecurrentUpdates:
    """The gradient of the batch-mean loss: y has what `output_gradient` takes beside the outputs."""
    clean = forward(network, x)
    error = output_gradient(clean.outputs, y)
    _, factors = state_gradients(network, clean, error, truncation)
    return time_summed_updates(network, clean, factors, error)
