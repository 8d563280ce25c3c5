"""Recurrent networks: the pass through time, one step of a cell and its derivative; see the reference.

What no step waits for is one product for all of them: W_x x_t before the first step, and each update as one product
over the rows of all steps, since a sum over steps is one more axis to sum over. A cell's difference is made of
differences of its gates, with no two nearly equal states subtracted.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import torch

from ._arrays import Array, check_batch, check_shape
from .activations import Activation, tanh
from .network import affine, layer_update

__all__ = [
    "CELLS",
    "Cell",
    "Factors",
    "RecurrentParameters",
    "RecurrentPass",
    "RecurrentUpdates",
    "elman",
    "forward",
    "gru",
    "residuals",
    "time_summed_updates",
]

Factors: TypeAlias = tuple[Array, Array]
"""delta_t and eta_t of the last k steps, (k, batch, gates n) each."""


class Cell(NamedTuple):
    """What a step does: gates, and functions of p_t, q_t and h_(t-1).

    value(p, q, h) is h_t. vjp(p, q, h, d) pulls the cotangent d of h_t back to p, to q, and to h where q is held fixed.
    difference(p, q, h, u, v) is value(p, q, h) - value(p, q - u, h - v).
    """

    gates: int
    value: Callable[[Array, Array, Array], Array]
    vjp: Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]
    difference: Callable[[Array, Array, Array, Array, Array], Array]


class RecurrentParameters(NamedTuple):
    """A recurrent network: one layer of a cell, and a linear output."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    weight_out: Array
    bias_out: Array | None
    cell: Cell


class RecurrentPass(NamedTuple):
    """What the pass through time computes: steps first, (T, batch, ...), but for x and the outputs."""

    x: Array
    from_input: Array
    from_state: Array
    states: Array
    outputs: Array


class RecurrentUpdates(NamedTuple):
    """What an optimizer is to subtract: shaped like the parameters, scaled like a batch-mean gradient."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array | None
    bias_hh: Array | None
    weight_out: Array
    bias_out: Array | None


def elman(activation: Activation = tanh) -> Cell:
    """Elman's cell, of any activation."""
    return Cell(
        1, partial(_elman_value, activation), partial(_elman_vjp, activation), partial(_elman_difference, activation)
    )


# Functions of modules, not of functions, so that a cell can be pickled.
def _elman_value(activation: Activation, p: Array, q: Array, h: Array) -> Array:
    return activation.value(p + q)


def _elman_vjp(activation: Activation, p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    delta = activation.vjp(p + q, d)
    return delta, delta, torch.zeros_like(h)


def _elman_difference(activation: Activation, p: Array, q: Array, h: Array, u: Array, v: Array) -> Array:
    return activation.difference(p + q, u)


def _gru_gates(p: Array, q: Array) -> tuple[Array, Array, Array, Array]:
    """r, the pre-activations of z and n, and q_n."""
    p_r, p_z, p_n = p.chunk(3, dim=1)
    q_r, q_z, q_n = q.chunk(3, dim=1)
    r = torch.sigmoid(p_r + q_r)
    return r, p_z + q_z, p_n + r * q_n, q_n


def _gru_value(p: Array, q: Array, h: Array) -> Array:
    _, a_z, a_n, _ = _gru_gates(p, q)
    n = torch.tanh(a_n)
    return n + torch.sigmoid(a_z) * (h - n)


def _gru_vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    r, a_z, a_n, q_n = _gru_gates(p, q)
    kept, replaced = d * torch.sigmoid(a_z), d * torch.sigmoid(-a_z)  # 1 - z = s(-a_z), with all its digits
    d_z = _sigmoid_multiply(a_z, d * (h - torch.tanh(a_n)))
    d_n = tanh.vjp(a_n, replaced)
    size = h.shape[1]
    d_r = _sigmoid_multiply(p[:, :size] + q[:, :size], d_n * q_n)
    return torch.cat([d_r, d_z, d_n], dim=1), torch.cat([d_r, d_z, d_n * r], dim=1), kept


def _sigmoid_multiply(a: Array, direction: Array) -> Array:
    """s'(a) direction, s' = s (1 - s) being even in a; see `activations.tanh`."""
    multiplied: Array = torch.ops.aten.sigmoid_backward(direction, a.abs().neg_().sigmoid_())
    return multiplied


def _gru_difference(p: Array, q: Array, h: Array, u: Array, v: Array) -> Array:
    # With s(a) = (1 + tanh(a / 2)) / 2 and primes for what belongs to q - u and h - v:
    # r q_n - r' q_n' = (r - r') q_n + r' u_n,    h_t - h_t' = (1 - z') (n - n') + (z - z') (h - n) + z' v.
    r, a_z, a_n, q_n = _gru_gates(p, q)
    z = torch.sigmoid(a_z)
    size = 2 * q_n.shape[1]
    gates = 0.5 * tanh.difference(0.5 * (p[:, :size] + q[:, :size]), 0.5 * u[:, :size])
    r_difference, z_difference = gates.chunk(2, dim=1)
    lost = r_difference * q_n + (r - r_difference) * u[:, size:]
    n_difference = tanh.difference(a_n, lost)
    return n_difference + z_difference * (h - torch.tanh(a_n)) + (z - z_difference) * (v - n_difference)


gru = Cell(3, _gru_value, _gru_vjp, _gru_difference)
"""The gated recurrent unit, as PyTorch has it."""

CELLS = {"elman": elman(), "gru": gru}
"""The cells by their names."""


def forward(network: RecurrentParameters, x: Array) -> RecurrentPass:
    """The clean pass for x (batch, T, n_0). Raises ValueError where x or the weights do not fit."""
    n = network.weight_hh.shape[1]
    if x.ndim != 3 or 0 in x.shape[:2] or x.shape[2] != network.weight_ih.shape[1]:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, expected (batch, steps, {network.weight_ih.shape[1]}), at least one of each"
        )
    if not len(network.weight_ih) == len(network.weight_hh) == network.cell.gates * n:
        raise ValueError(
            f"weight_ih, weight_hh: {len(network.weight_ih)} and {len(network.weight_hh)} rows, expected "
            f"{network.cell.gates * n}, {network.cell.gates} for each of the {n} units"
        )
    for name, bias, weight in (
        ("bias_ih", network.bias_ih, network.weight_ih),
        ("bias_hh", network.bias_hh, network.weight_hh),
        ("bias_out", network.bias_out, network.weight_out),
    ):
        if bias is not None:
            check_shape(name, bias, weight.shape[:1])
    if network.weight_out.shape[1] != n:
        raise ValueError(f"weight_out: {network.weight_out.shape[1]} columns, but the state has {n} units")
    from_input = affine(network.weight_ih, network.bias_ih, x.transpose(0, 1))  # (T, batch, gates n)
    from_state = []
    h = x.new_zeros(len(x), n)
    states = [h]
    for p in from_input:
        q = affine(network.weight_hh, network.bias_hh, h)
        h = network.cell.value(p, q, h)
        from_state.append(q)
        states.append(h)
    outputs = affine(network.weight_out, network.bias_out, h)
    return RecurrentPass(x, from_input, torch.stack(from_state), torch.stack(states), outputs)


def residuals(outputs: Array, targets: Array) -> Array:
    """e = o - y of a regression, the gradient of half the sum of squares, for targets (batch, K): (batch, K)."""
    check_batch("outputs", outputs, "K")
    check_shape("targets", targets, outputs.shape)
    return outputs - targets


def time_summed_updates(
    network: RecurrentParameters, clean: RecurrentPass, factors: Factors, error: Array
) -> RecurrentUpdates:
    """The updates from delta_t and eta_t of the last k steps, and e: one product each over k batch rows."""
    check_shape("error", error, clean.outputs.shape)
    count, batch = factors[0].shape[:2]
    deltas, etas = (factor.flatten(0, 1) / batch for factor in factors)  # (k batch, gates n)
    inputs = clean.x[:, clean.x.shape[1] - count :].transpose(0, 1).flatten(0, 1)
    previous = clean.states[-count - 1 : -1].flatten(0, 1)
    return RecurrentUpdates(
        deltas.T @ inputs,
        etas.T @ previous,
        None if network.bias_ih is None else deltas.sum(dim=0),
        None if network.bias_hh is None else etas.sum(dim=0),
        *layer_update(error, clean.states[-1], network.bias_out),
    )
