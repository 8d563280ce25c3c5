"""Forward Target Propagation for recurrent networks: targets that run forward through time.

As-Saquib, Abeer, Chien, Yoon, Kumar and Yi, "Forward Target Propagation: A Forward-Only Approach to Global Error Credit
Assignment via Local Losses", arXiv 2506.11030; see `ftp`, whose first hidden layer is the first step here.

    (1)  clean pass:       h_t = cell(x_t, h_(t-1)),    o = W_o h_T + c,    e = dLoss/do
    (2)  the correction:   kappa = gamma (phi(G y) - phi(G p)),    p = y + e
    (3)  first target:     tau_1 = h_1 + kappa
    (4)  its way forward:  tau_t = cell(x_t, tau_(t-1)) + [inject = "every"] kappa,    t = 2..T
    (5)  steps:            E_t = 1/2 |h_t - tau_t|^2, tau_t and h_(t-1) held fixed:
                           delta_t = (dh_t/dp_t)^T (h_t - tau_t),    eta_t = (dh_t/dq_t)^T (h_t - tau_t)
    (6)  updates from delta_t and eta_t, or 1/T of them (reduction = "mean"), and e: equation (5) of `recurrent`

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| y, p | targets, outputs | (batch, K) | the label, one-hot, or the numbers of a regression, and the output |
| G | feedback | (n, K) | random and fixed; `ftp.random_feedback` |
| phi | phi | | what the projections go through |
| gamma | gain | | of the correction |
| -kappa | first | (batch, n) | h_1 - tau_1; `ftp.first_difference` |
| h_t - tau_t | differences[t-1] | (batch, n) | how far a step's state lies from its target |

Seen in reviews of the paper: the method extends to recurrent networks "with minimal changes", and was tried on
forecasting. Its cell, equations and sizes were not found. Inferred: (3) and (4) with "first", the most direct reading,
in which a step is a layer; a sum over steps, as the weights are shared; the output follows its own loss. Ours: the GRU,
whose target goes through its gates and its kept state alike; "every", since what a step displaces dies out or explodes
through many steps unless W_h is near orthogonal, and then early steps alone or late ones alone would learn; "mean".
Label smoothing and a temperature enter (2) as in `ftp`.

With one step and phi = identity, (5) is direct feedback alignment with B_1 = gamma G. In a linear Elman network with
"first", tau_t - h_t = W_h^(t-1) kappa, and its inner product with backpropagation's dLoss/dh_t is the same at every
step. Where W_h is orthogonal, too, and gamma G = (W_o W_h^(T-1))^T, h_t - tau_t is dLoss/dh_t, through any T.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

from ._arrays import Array, check_option, check_shape
from .activations import Activation, identity
from .ftp import first_difference, output_error
from .losses import cross_entropy_gradient
from .network import affine
from .recurrent import Factors, RecurrentParameters, RecurrentPass, RecurrentUpdates, forward, time_summed_updates

__all__ = ["Injection", "Reduction", "differences", "update_factors", "updates"]

Injection: TypeAlias = Literal["first", "every"]
"""The steps whose target is corrected."""

Reduction: TypeAlias = Literal["sum", "mean"]
"""Of the steps' updates."""


def differences(network: RecurrentParameters, clean: RecurrentPass, first: Array, inject: Injection = "first") -> Array:
    """h_t - tau_t of all steps, equations (3) and (4), from `first`, h_1 - tau_1: (T, batch, n).

    Raises ValueError for an unknown `inject`.
    """
    check_shape("first", first, clean.states[1].shape)
    check_option("inject", inject, Injection)
    target = clean.states[1] - first
    found = [first]
    for p, h in zip(clean.from_input[1:], clean.states[2:], strict=True):
        target = network.cell.value(p, affine(network.weight_hh, network.bias_hh, target), target)
        if inject == "every":
            target = target - first
        found.append(h - target)
    return np.stack(found)


def update_factors(
    network: RecurrentParameters,
    clean: RecurrentPass,
    first: Array,
    inject: Injection = "first",
    reduction: Reduction = "sum",
) -> Factors:
    """delta_t and eta_t of all steps, equation (5), T times smaller for a mean. Raises ValueError as `differences`."""
    check_option("reduction", reduction, Reduction)
    deltas, etas = [], []
    found = differences(network, clean, first, inject)
    for p, q, h, difference in zip(clean.from_input, clean.from_state, clean.states[:-1], found, strict=True):
        delta, eta, _ = network.cell.vjp(p, q, h, difference)
        deltas.append(delta)
        etas.append(eta)
    share = len(found) if reduction == "mean" else 1
    return np.stack(deltas) / share, np.stack(etas) / share


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
    """The updates of equation (6): y has labels (batch,), or targets (batch, K), as `output_gradient` takes them.

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
