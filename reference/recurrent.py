"""Recurrent networks: the pass through time, one step of a cell and its derivative, and updates from factors of steps.

Elman, "Finding Structure in Time", Cognitive Science 14, 1990. Cho et al., "Learning Phrase Representations using RNN
Encoder-Decoder for Statistical Machine Translation", EMNLP 2014, arXiv 1406.1078.

    (1)  h_0 = 0,    p_t = W_x x_t + b_x,    q_t = W_h h_(t-1) + b_h,    h_t = cell(p_t, q_t, h_(t-1))
    (2)  Elman:  h_t = sigma(p_t + q_t)
    (3)  GRU:    r = sigmoid(p_r + q_r),    z = sigmoid(p_z + q_z),    n = tanh(p_n + r * q_n),
                 h_t = (1 - z) * n + z * h_(t-1)
    (4)  output: o = W_o h_T + c
    (5)  updates from the factors delta_t, for p_t, and eta_t, for q_t, of the last k steps:
         G_x = 1/B sum_samples sum_(t>T-k) delta_t x_t^T,    G_h = 1/B sum_samples sum_(t>T-k) eta_t h_(t-1)^T,
         G_o = 1/B sum_samples e h_T^T,    and the same without the second factor for the biases

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x_t | x[:, t-1] | (batch, n_0) | input of step t = 1..T |
| W_x, b_x | weight_ih, bias_ih | (gates n, n_0), (gates n,) or None | of the input; 1 gate in Elman's cell, 3 in GRU |
| W_h, b_h | weight_hh, bias_hh | (gates n, n), (gates n,) or None | of the state |
| W_o, c | weight_out, bias_out | (K, n), (K,) or None | of the output |
| p_t, q_t | from_input[t-1], from_state[t-1] | (batch, gates n) | from input and state; r, z, n in this order |
| h_t | states[t] | (batch, n) | the state |
| o | outputs | (batch, K) | class scores, or the numbers of a regression |
| delta_t, eta_t | factors[0][t-T+k-1], factors[1][t-T+k-1] | (batch, gates n) | a rule's errors of p_t and q_t |

Names, shapes and the order of the gates are those of torch.nn.RNN and torch.nn.GRU, whose parameters these are. The GRU
is PyTorch's: r multiplies W_h h + b_h after the product, where Cho et al. multiply h before it, and z keeps the old
state. p_t and q_t have biases of their own since r comes between them.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit

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


def forward(network: RecurrentParameters, x: Array) -> RecurrentPass:
    """Equations (1) and (4) for x (batch, T, n_0). Raises ValueError where x or the weights do not fit."""
    n = network.weight_hh.shape[1]
    if x.ndim != 3 or 0 in x.shape[:2] or x.shape[2] != network.weight_ih.shape[1]:
        raise ValueError(
            f"x: shape {x.shape}, expected (batch, steps, {network.weight_ih.shape[1]}), at least one of each"
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
    from_input, from_state = [], []
    h = np.zeros((len(x), n), x.dtype)
    states = [h]
    for x_t in np.moveaxis(x, 1, 0):
        p, q = affine(network.weight_ih, network.bias_ih, x_t), affine(network.weight_hh, network.bias_hh, h)
        h = network.cell.value(p, q, h)
        from_input.append(p)
        from_state.append(q)
        states.append(h)
    outputs = affine(network.weight_out, network.bias_out, h)
    return RecurrentPass(x, np.stack(from_input), np.stack(from_state), np.stack(states), outputs)


def residuals(outputs: Array, targets: Array) -> Array:
    """e = o - y of a regression, the gradient of half the sum of squares, for targets (batch, K): (batch, K)."""
    check_batch("outputs", outputs, "K")
    check_shape("targets", targets, outputs.shape)
    return outputs - targets


def time_summed_updates(
    network: RecurrentParameters, clean: RecurrentPass, factors: Factors, error: Array
) -> RecurrentUpdates:
    """Equation (5)."""
    check_shape("error", error, clean.outputs.shape)
    count = len(factors[0])
    inputs, previous = np.moveaxis(clean.x, 1, 0)[-count:], clean.states[-count - 1 : -1]
    weight_ih, weight_hh = np.zeros_like(network.weight_ih), np.zeros_like(network.weight_hh)
    bias_ih = None if network.bias_ih is None else np.zeros_like(network.bias_ih)
    bias_hh = None if network.bias_hh is None else np.zeros_like(network.bias_hh)
    for delta, eta, x_t, h in zip(*factors, inputs, previous, strict=True):
        of_input, of_state = layer_update(delta, x_t, bias_ih), layer_update(eta, h, bias_hh)
        weight_ih = weight_ih + of_input.weight
        weight_hh = weight_hh + of_state.weight
        bias_ih = None if bias_ih is None else bias_ih + of_input.bias
        bias_hh = None if bias_hh is None else bias_hh + of_state.bias
    output = layer_update(error, clean.states[-1], network.bias_out)
    return RecurrentUpdates(weight_ih, weight_hh, bias_ih, bias_hh, *output)
