"""Recurrent networks: a cell, its steps as layers of a chain, and updates of what they share; see the reference.

What no step waits for is one product for all of them: W_x x_t before the first step, and each update as one product
over the rows of all steps, since a sum over steps is one more axis to sum over. q_t is computed once, with the value.
A cell's difference is made of differences of its gates, with no two nearly equal states subtracted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch.nn import functional

from ._arrays import Array, check_option, check_shape
from .activations import Activation, tanh
from .layers import Dense, Layer, Step, Update

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


def _gru_gates(p: Array, q: Array) -> tuple[Array, Array, Array, Array, Array]:
    """The pre-activations of r and z side by side, r, z, the pre-activation of n, and q_n."""
    size = 2 * p.shape[1] // 3
    a = p[:, :size] + q[:, :size]
    r, z = torch.sigmoid(a).chunk(2, dim=1)
    q_n = q[:, size:]
    return a, r, z, p[:, size:] + r * q_n, q_n


def _gru_value(p: Array, q: Array, h: Array) -> Array:
    _, _, z, a_n, _ = _gru_gates(p, q)
    n = torch.tanh(a_n)
    return n + z * (h - n)


def _gru_vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    a, r, z, a_n, q_n = _gru_gates(p, q)
    a_r, a_z = a.chunk(2, dim=1)
    d_z = _sigmoid_multiply(a_z, d * (h - torch.tanh(a_n)))
    d_n = tanh.vjp(a_n, d * torch.sigmoid(-a_z))  # 1 - z = s(-a_z), with all its digits
    d_r = _sigmoid_multiply(a_r, d_n * q_n)
    return torch.cat([d_r, d_z, d_n], dim=1), torch.cat([d_r, d_z, d_n * r], dim=1), d * z


def _sigmoid_multiply(a: Array, direction: Array) -> Array:
    """s'(a) direction, s' = s (1 - s) being even in a; see `activations.tanh`."""
    multiplied: Array = torch.ops.aten.sigmoid_backward(direction, a.abs().neg_().sigmoid_())
    return multiplied


def _gru_difference(p: Array, q: Array, h: Array, u: Array, v: Array) -> Array:
    # With s(a) = (1 + tanh(a / 2)) / 2 and primes for what belongs to q - u and h - v:
    # r q_n - r' q_n' = (r - r') q_n + r' u_n,    h_t - h_t' = (1 - z') (n - n') + (z - z') (h - n) + z' v.
    a, r, z, a_n, q_n = _gru_gates(p, q)
    size = a.shape[1]
    gates = 0.5 * tanh.difference(0.5 * a, 0.5 * u[:, :size])
    r_difference, z_difference = gates.chunk(2, dim=1)
    lost = r_difference * q_n + (r - r_difference) * u[:, size:]
    n_difference = tanh.difference(a_n, lost)
    return n_difference + z_difference * (h - torch.tanh(a_n)) + (z - z_difference) * (v - n_difference)


gru = Cell(3, _gru_value, _gru_vjp, _gru_difference)
"""The gated recurrent unit, as PyTorch has it."""

CELLS = {"elman": elman(), "gru": gru}
"""The cells by their names."""


@dataclass(eq=False)
class CellStep:
    """A step as a layer of the state, (batch, n), with x_t and p_t; all steps share both dense layers."""

    cell: Cell
    of_input: Dense
    of_state: Dense
    x: Array
    p: Array
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    _place: tuple[int, Array, Array] | None = None
    """Its number among all steps, and x and p of all of them."""
    _seen: list[Array] = field(default_factory=list, init=False, repr=False)

    def _q(self, z: Array) -> Array:
        """W_h z + b_h: found with the value, where that of z was the last."""
        if not self._seen or self._seen[0] is not z:
            self._seen[:] = z, functional.linear(z, self.of_state.weight, self.of_state.bias)
        return self._seen[1]

    def value(self, z: Array) -> Array:
        """h_t. Raises ValueError where z is no state of as many samples as x."""
        check_shape("z", z, (len(self.x), self.of_state.weight.shape[1]))
        return self.cell.value(self.p, self._q(z), z)

    def difference(self, z: Array, u: Array) -> Array:
        """h_t less what it is at z - u."""
        return self.cell.difference(self.p, self._q(z), z, self.of_state.difference(z, u), u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The derivative's transpose: to the state, through W_h and past it."""
        _, eta, kept = self.cell.vjp(self.p, self._q(z), z, d)
        return torch.addmm(kept, eta, self.of_state.weight)

    def update(self, z: Array, delta: Array) -> Update:
        """Of W_x, W_h, b_x and b_h, but for a bias that is None, from the cotangent delta of h_t."""
        check_shape("delta", delta, z.shape)
        scaled = delta / len(delta)  # the batch mean of what is linear in delta, and wider
        for_p, for_q, _ = self.cell.vjp(self.p, self._q(z), z, scaled)
        biased = ((self.of_input, for_p), (self.of_state, for_q))
        return (for_p.T @ self.x, for_q.T @ z, *(d.sum(dim=0) for layer, d in biased if layer.bias is not None))


Recurrent: TypeAlias = tuple[*tuple[CellStep, ...], Layer]
"""A recurrent network on an input: its steps, and what makes the output of the last state."""


def unrolled(cell: Cell, of_input: Dense, of_state: Dense, x: Array) -> tuple[CellStep, ...]:
    """The steps on x, (batch, T, n_0). Raises ValueError where x or the weights do not fit."""
    n_0, n = of_input.weight.shape[1], of_state.weight.shape[1]
    if x.ndim != 3 or 0 in x.shape[:2] or x.shape[2] != n_0:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, steps, {n_0}), at least one of each")
    rows = len(of_input.weight), len(of_state.weight)
    if rows != (cell.gates * n, cell.gates * n):
        raise ValueError(
            f"of_input, of_state: {rows[0]} and {rows[1]} rows, expected {cell.gates * n}, {cell.gates} for each of "
            f"the {n} units"
        )
    for layer in (of_input, of_state):
        if layer.bias is not None:
            check_shape("bias", layer.bias, layer.weight.shape[:1])
    each = x.transpose(0, 1)  # (T, batch, n_0)
    p = functional.linear(each.flatten(0, 1), of_input.weight, of_input.bias).unflatten(0, each.shape[:2])
    return tuple(
        CellStep(cell, of_input, of_state, x_t, p_t, _place=(t, each, p))
        for t, (x_t, p_t) in enumerate(zip(each, p, strict=True))
    )


def _rows(steps: list[CellStep], which: Literal[1, 2]) -> Array:
    """x or p of consecutive steps, of which p need not be copied: the rows of each below those before."""
    first, last = steps[0]._place, steps[-1]._place
    if first is None or last is None or last[0] - first[0] != len(steps) - 1:
        raise ValueError("layers: expected consecutive steps of `unrolled`")
    return first[which][first[0] : last[0] + 1].flatten(0, 1)


def updates(
    layers: Recurrent, factors: Iterable[tuple[Array, Array]], reduction: Reduction = "sum"
) -> tuple[Update, Update]:
    """The steps' update, one product each over the rows of all steps of `unrolled`, and the output's.

    Raises ValueError for an unknown `reduction`, and for steps that do not follow each other in one `unrolled`.
    """
    check_option("reduction", reduction, Reduction)
    *steps, output = layers
    *of_steps, (error, h) = factors
    deltas, states = (torch.cat(parts) for parts in zip(*of_steps, strict=True))
    whole = replace(steps[0], x=_rows(steps, 1), p=_rows(steps, 2))
    whole._seen[:] = states, torch.cat([step._q(z) for step, (_, z) in zip(steps, of_steps, strict=True)])
    mean = whole.update(states, deltas)
    return mean if reduction == "mean" else tuple(len(steps) * part for part in mean), output.update(h, error)
