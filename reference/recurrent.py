"""Recurrent networks: a cell, its steps as layers of a chain, and updates of parameters that layers share.

Elman, "Finding Structure in Time", Cognitive Science 14, 1990. Cho et al., "Learning Phrase Representations using RNN
Encoder-Decoder for Statistical Machine Translation", EMNLP 2014, arXiv 1406.1078.

    (1)  h_0 = 0,    p_t = W_x x_t + b_x,    q_t = W_h h_(t-1) + b_h,    h_t = cell(p_t, q_t, h_(t-1))
    (2)  Elman:  h_t = sigma(p_t + q_t)
    (3)  GRU:    r = sigmoid(p_r + q_r),    z = sigmoid(p_z + q_z),    n = tanh(p_n + r * q_n),
                 h_t = (1 - z) * n + z * h_(t-1)
    (4)  step t as a layer of h_(t-1), with delta_t = (dh_t/dp_t)^T d and eta_t = (dh_t/dq_t)^T d of a cotangent d:
         value        h_t
         difference   h_t - cell(p_t, q_t - W_h u, h_(t-1) - u)
         adjoint      W_h^T eta_t + (dh_t/dh_(t-1) at fixed q_t)^T d
         update       of W_x and W_h, 1/B sum_samples delta_t x_t^T and eta_t h_(t-1)^T; of b_x and b_h, the means
                      of delta_t and eta_t
    (5)  G = sum_t G_t, or 1/T of it, for the parameters that all steps share

The network is the chain of its T steps on x and of a dense layer, W_o h_T + c; its input is h_0. Every algorithm
of this package that runs on `layers` runs on it: `backprop` is then backpropagation through time, `ftp` carries targets
through time. A chain of its last k steps alone, from h_(T-k), is truncated backpropagation through time.

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x_t | x[:, t-1] | (batch, n_0) | input of step t = 1..T |
| W_x, b_x | of_input | (gates n, n_0), (gates n,) or None | a dense layer of x_t; 1 gate in Elman's cell, 3 in GRU |
| W_h, b_h | of_state | (gates n, n), (gates n,) or None | a dense layer of h_(t-1) |
| p_t, q_t | p, q | (batch, gates n) | from input and state; r, z, n in this order |
| h_t | activities[t-1] | (batch, n) | the state, h_0 = inputs[0]; in `Pass` of `layers` |

Names, shapes and the order of the gates are those of torch.nn.RNN and torch.nn.GRU, whose parameters these are. The GRU
is PyTorch's: r multiplies W_h h + b_h after the product, where Cho et al. multiply h before it, and z keeps the old
state. p_t and q_t have biases of their own since r comes between them.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit

from ._arrays import Array, check_option, check_shape
from .activations import Activation, tanh
from .layers import Dense, Layer, Step, Update
from .layers import updates as layer_updates

__all__ = ["CELLS", "Cell", "CellStep", "Recurrent", "Reduction", "elman", "gru", "unrolled", "updates"]

Reduction: TypeAlias = Literal["sum", "mean"]
"""Of the steps' updates."""


class Cell(NamedTuple):
    """What a step does: gates, and functions of p_t, q_t and h_(t-1).

    value(p, q, h) is h_t. vjp(p, q, h, d) pulls the cotangent d of h_t back to p, to q, and to h where q is held fixed.
    difference(p, q, h, u, v) is value(p, q, h) - value(p, q - u, h - v).
    """

    gates: int
    value: Callable[[Array, Array, Array], Array]
    vjp: Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]
    difference: Callable[[Array, Array, Array, Array, Array], Array]


def elman(activation: Activation = tanh) -> Cell:
    """The cell of equation (2)."""

    def vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
        delta = activation.vjp(p + q, d)
        return delta, delta, np.zeros_like(h)

    return Cell(
        1,
        lambda p, q, h: activation.value(p + q),
        vjp,
        lambda p, q, h, u, v: activation.value(p + q) - activation.value(p + q - u),
    )


def _gru_preactivations(p: Array, q: Array) -> tuple[Array, Array, Array, Array]:
    """Of r, z and n in equation (3), and q_n."""
    p_r, p_z, p_n = np.split(p, 3, axis=1)
    q_r, q_z, q_n = np.split(q, 3, axis=1)
    a_r = p_r + q_r
    return a_r, p_z + q_z, p_n + expit(a_r) * q_n, q_n


def _gru_value(p: Array, q: Array, h: Array) -> Array:
    _, a_z, a_n, _ = _gru_preactivations(p, q)
    z, n = expit(a_z), np.tanh(a_n)
    return (1 - z) * n + z * h


def _gru_vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    a_r, a_z, a_n, q_n = _gru_preactivations(p, q)
    r, z, n = expit(a_r), expit(a_z), np.tanh(a_n)
    new = expit(-a_z)  # 1 - z, without cancellation where z is near 1; 1 - r and 1 - n^2 likewise
    d_z = d * (h - n) * z * new
    d_n = tanh.vjp(a_n, d * new)
    d_r = d_n * q_n * r * expit(-a_r)
    return np.concatenate([d_r, d_z, d_n], axis=1), np.concatenate([d_r, d_z, d_n * r], axis=1), d * z


gru = Cell(3, _gru_value, _gru_vjp, lambda p, q, h, u, v: _gru_value(p, q, h) - _gru_value(p, q - u, h - v))
"""The cell of equation (3)."""

CELLS = {"elman": elman(), "gru": gru}
"""The cells by their names."""


class CellStep(NamedTuple):
    """Equation (4): a step as a layer of the state, (batch, n), with x_t and p_t; all steps share both dense layers."""

    cell: Cell
    of_input: Dense
    of_state: Dense
    x: Array
    p: Array
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    def value(self, z: Array) -> Array:
        """h_t. Raises ValueError where z is no state of as many samples as x."""
        check_shape("z", z, (len(self.x), self.of_state.weight.shape[1]))
        return self.cell.value(self.p, self.of_state.value(z), z)

    def difference(self, z: Array, u: Array) -> Array:
        """h_t less what it is at z - u."""
        return self.cell.difference(self.p, self.of_state.value(z), z, self.of_state.difference(z, u), u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The derivative's transpose: to the state, through W_h and past it."""
        _, eta, kept = self.cell.vjp(self.p, self.of_state.value(z), z, d)
        return self.of_state.adjoint(z, eta) + kept

    def update(self, z: Array, delta: Array) -> Update:
        """Of W_x, W_h, b_x and b_h, but for a bias that is None, from the cotangent delta of h_t."""
        check_shape("delta", delta, z.shape)
        for_p, for_q, _ = self.cell.vjp(self.p, self.of_state.value(z), z, delta)
        weight_ih, *bias_ih = self.of_input.update(self.x, for_p)
        weight_hh, *bias_hh = self.of_state.update(z, for_q)
        return (weight_ih, weight_hh, *bias_ih, *bias_hh)


Recurrent: TypeAlias = tuple[*tuple[CellStep, ...], Layer]
"""A recurrent network on an input: its steps, and what makes the output of the last state."""


def unrolled(cell: Cell, of_input: Dense, of_state: Dense, x: Array) -> tuple[CellStep, ...]:
    """The steps on x, (batch, T, n_0). Raises ValueError where x or the weights do not fit."""
    n_0, n = of_input.weight.shape[1], of_state.weight.shape[1]
    if x.ndim != 3 or 0 in x.shape[:2] or x.shape[2] != n_0:
        raise ValueError(f"x: shape {x.shape}, expected (batch, steps, {n_0}), at least one of each")
    rows = len(of_input.weight), len(of_state.weight)
    if rows != (cell.gates * n, cell.gates * n):
        raise ValueError(
            f"of_input, of_state: {rows[0]} and {rows[1]} rows, expected {cell.gates * n}, {cell.gates} for each of "
            f"the {n} units"
        )
    return tuple(CellStep(cell, of_input, of_state, x_t, of_input.value(x_t)) for x_t in np.moveaxis(x, 1, 0))


def updates(
    layers: Recurrent, factors: Iterable[tuple[Array, Array]], reduction: Reduction = "sum"
) -> tuple[Update, Update]:
    """Equation (5) for the steps of `unrolled`, and the output's update, from the factors of all of these layers.

    Raises ValueError for an unknown `reduction`.
    """
    check_option("reduction", reduction, Reduction)
    *of_steps, of_output = layer_updates(layers, factors)
    share = len(of_steps) if reduction == "mean" else 1
    return tuple(sum(parts[1:], parts[0]) / share for parts in zip(*of_steps, strict=True)), of_output
