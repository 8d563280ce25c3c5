"""Backpropagation through time, whole or through the last steps only: the yardstick of rules for recurrent networks.

Werbos, "Backpropagation Through Time: What It Does and How to Do It", Proceedings of the IEEE 78, 1990. Williams and
Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories", Neural Computation
2, 1990, for the truncated form.

    (1)  g_T = W_o^T e
    (2)  delta_t = (dh_t/dp_t)^T g_t,    eta_t = (dh_t/dq_t)^T g_t
    (3)  g_(t-1) = W_h^T eta_t + (dh_t/dh_(t-1) at fixed q_t)^T g_t,    t > T-k+1
    (4)  updates from delta_t and eta_t of the steps t > T-k: equation (5) of `recurrent`

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| e | error | (batch, K) | dLoss/do |
| g_t | gradients[t-T+k-1] | (batch, n) | dLoss/dh_t |
| delta_t, eta_t | factors | (batch, gates n) | dLoss/dp_t, dLoss/dq_t; see `recurrent` |
| k | truncation | | how many steps, counted from the last, the error flows through; None for all T |

The loss stands at the last step, so that the truncated form is exact for what the last k steps do and blind to what
those before them kept. Elman's cell has no path past q_t; the GRU has one, z.
"""

from collections.abc import Callable

import numpy as np

from ._arrays import Array, check_shape
from .losses import cross_entropy_gradient
from .recurrent import Factors, RecurrentParameters, RecurrentPass, RecurrentUpdates, forward, time_summed_updates

__all__ = ["state_gradients", "updates"]


def state_gradients(
    network: RecurrentParameters, clean: RecurrentPass, error: Array, truncation: int | None = None
) -> tuple[Array, Factors]:
    """g_t, (k, batch, n), and the factors of the last k steps, equations (1) to (3).

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
        gradient = eta @ network.weight_hh + past
    return np.stack(gradients[::-1]), (np.stack(deltas[::-1]), np.stack(etas[::-1]))


def updates(
    network: RecurrentParameters,
    x: Array,
    y: Array,
    output_gradient: Callable[[Array, Array], Array] = cross_entropy_gradient,
    truncation: int | None = None,
) -> RecurrentUpdates:
    """The gradient of the batch-mean loss, equation (4): y has what `output_gradient` takes beside the outputs."""
    clean = forward(network, x)
    error = output_gradient(clean.outputs, y)
    _, factors = state_gradients(network, clean, error, truncation)
    return time_summed_updates(network, clean, factors, error)
