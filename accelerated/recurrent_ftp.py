"""Forward Target Propagation for recurrent networks: targets that run forward through time; see the reference.

Targets are carried as differences to the clean states: d_t = h_t - tau_t is the cell's difference for u = W_h d_(t-1)
and v = d_(t-1), since W_h tau_(t-1) + b_h = q_t - u. That equals subtracting two passes in exact arithmetic, and loses
nothing where the difference is small beside the state, as after many steps it is. No step's derivative waits for
another's: those of all steps are taken at once.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch

from ._arrays import Array, check_option, check_shape
from .activations import Activation, identity
from .ftp import first_difference, output_error
from .losses import cross_entropy_gradient
from .recurrent import Factors, RecurrentParameters, RecurrentPass, RecurrentUpdates, forward, time_summed_updates

__all__ = ["Injection", "Reduction", "differences", "update_factors", "updates"]

Injection: TypeAlias = Literal["first", "every"]
"""The steps whose target is corrected."""

Reduction: TypeAlias = Literal["sum", "mean"]
"""Of the steps' updates."""


def differences(network: RecurrentParameters, clean: RecurrentPass, first: Array, inject: Injection = "first") -> Array:
    """h_t - tau_t of all steps from `first`, h_1 - tau_1: (T, batch, n). Raises ValueError for an unknown `inject`."""
    check_shape("first", first, clean.states[1].shape)
    check_option("inject", inject, Injection)
    difference = first
    found = [first]
    for p, q, h in zip(clean.from_input[1:], clean.from_state[1:], clean.states[1:-1], strict=True):
        difference = network.cell.difference(p, q, h, difference @ network.weight_hh.T, difference)
        if inject == "every":
            difference = difference + first
        found.append(difference)
    return torch.stack(found)


def update_factors(
    network: RecurrentParameters,
    clean: RecurrentPass,
    first: Array,
    inject: Injection = "first",
    reduction: Reduction = "sum",
) -> Factors:
    """delta_t and eta_t of all steps, T times smaller for a mean. Raises ValueError as `differences`."""
    check_option("reduction", reduction, Reduction)
    found = differences(network, clean, first, inject)
    if reduction == "mean":
        found = found / len(found)
    steps = (clean.from_input, clean.from_state, clean.states[:-1], found)
    delta, eta, _ = network.cell.vjp(*(part.flatten(0, 1) for part in steps))  # (T batch, gates n)
    return delta.unflatten(0, found.shape[:2]), eta.unflatten(0, found.shape[:2])


def updates(
    network: RecurrentParameters,
    feedback: Array,
    x: Array,
    y: Array,
    output_gradient: Callable[..., Array] = cross_entropy_gradient,
    phi: Activation = identity,
    gain: float = 1.0,
    inject: Injection = "first",
    reduction: Reduction = "sum",
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> RecurrentUpdates:
    """The updates of all parameters: y has labels (batch,), or targets (batch, K), as `output_gradient` takes them.

    `label_smoothing` and `temperature` are `ftp.output_error`'s. Raises ValueError for an unknown `inject` or
    `reduction`, and for either of the two without labels.
    """
    clean = forward(network, x)
    if y.ndim == 1:
        targets, error = output_error(clean.outputs, y, output_gradient, label_smoothing, temperature)
    elif label_smoothing or temperature != 1:
        raise ValueError(
            f"label_smoothing: {label_smoothing}, temperature: {temperature}, expected 0 and 1 without labels"
        )
    else:
        targets, error = y, output_gradient(clean.outputs, y)
    first = first_difference(feedback, targets, temperature * error, phi, gain)
    factors = update_factors(network, clean, first, inject, reduction)
    return time_summed_updates(network, clean, factors, error)
