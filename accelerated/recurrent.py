"""Recurrent networks: cells, their steps as layers of a chain, and updates of what they share; see the reference.

What no step waits for is one product for all of them: the lowest cell's W_x x_t before the first step, and each update
as one product over the rows of all steps, since a sum over steps is one more axis to sum over. q_t, and p_t of the
cells above, are computed once, with the value.
A cell's difference is made of differences of its gates, with no two nearly equal states subtracted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch.nn import functional

from ._arrays import Array, Labels, check_option, check_range, check_shape
from ._autocast import product
from .activations import Activation, relu, tanh
from .backprop import update_factors
from .embedding import Embedding
from .ftp import differences
from .layers import Dense, Layer, Pass, Step, Update, forward

__all__ = [
    "CELLS",
    "Cell",
    "CellStep",
    "Part",
    "Recurrent",
    "RecurrentLayer",
    "Reduction",
    "TokenStep",
    "at_steps",
    "differences_per_step",
    "elman",
    "factors_per_step",
    "forward_per_step",
    "gru",
    "lstm",
    "state_size",
    "unrolled",
    "updates",
]

Reduction: TypeAlias = Literal["sum", "mean"]
"""Of the steps' updates."""


class Cell(NamedTuple):
    """What a step does: gates, and functions of p_t, q_t and h_(t-1).

    value(p, q, h) is h_t. vjp(p, q, h, d) pulls the cotangent d of h_t back to p, to q, and to h where q is held fixed.
    difference(p, q, h, s, u, v) is value(p, q, h) - value(p - s, q - u, h - v). `parts` is 2 where the state is (h, c).
    """

    gates: int
    value: Callable[[Array, Array, Array], Array]
    vjp: Callable[[Array, Array, Array, Array], tuple[Array, Array, Array]]
    difference: Callable[[Array, Array, Array, Array, Array, Array], Array]
    parts: int = 1


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


def _elman_difference(activation: Activation, p: Array, q: Array, h: Array, s: Array, u: Array, v: Array) -> Array:
    return activation.difference(p + q, s + u)


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


def _sigmoid_difference(a: Array, u: Array) -> Array:
    """s(a) - s(a - u), by s(a) = (1 + tanh(a / 2)) / 2."""
    return 0.5 * tanh.difference(0.5 * a, 0.5 * u)


def _gru_difference(p: Array, q: Array, h: Array, s: Array, u: Array, v: Array) -> Array:
    # With primes for what belongs to p - s, q - u and h - v:
    # r q_n - r' q_n' = (r - r') q_n + r' u_n,    h_t - h_t' = (1 - z') (n - n') + (z - z') (h - n) + z' v.
    a, r, z, a_n, q_n = _gru_gates(p, q)
    size = a.shape[1]
    r_difference, z_difference = _sigmoid_difference(a, s[:, :size] + u[:, :size]).chunk(2, dim=1)
    lost = s[:, size:] + r_difference * q_n + (r - r_difference) * u[:, size:]
    n_difference = tanh.difference(a_n, lost)
    return n_difference + z_difference * (h - torch.tanh(a_n)) + (z - z_difference) * (v - n_difference)


gru: Cell = Cell(3, _gru_value, _gru_vjp, _gru_difference)
"""The gated recurrent unit, as PyTorch has it."""


def _lstm_gates(a: Array, h: Array) -> tuple[Array, Array, Array, Array]:
    """Of the gates' pre-activations side by side: i and f side by side, g, o, and c_(t-1)."""
    n = a.shape[1] // 4
    return torch.sigmoid(a[:, : 2 * n]), torch.tanh(a[:, 2 * n : 3 * n]), torch.sigmoid(a[:, 3 * n :]), h[:, n:]


def _lstm_value(p: Array, q: Array, h: Array) -> Array:
    i_f, g, o, c = _lstm_gates(p + q, h)
    i, f = i_f.chunk(2, dim=1)
    c = f * c + i * g
    return torch.cat([o * torch.tanh(c), c], dim=1)


def _lstm_vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    a = p + q
    i_f, g, o, old = _lstm_gates(a, h)
    i, f = i_f.chunk(2, dim=1)
    a_i, a_f, a_g, a_o = a.chunk(4, dim=1)
    d_h, d_c = d.chunk(2, dim=1)
    c = f * old + i * g
    d_c = d_c + tanh.vjp(c, d_h * o)
    d_i, d_f = _sigmoid_multiply(a_i, d_c * g), _sigmoid_multiply(a_f, d_c * old)
    d_o = _sigmoid_multiply(a_o, d_h * torch.tanh(c))
    delta = torch.cat([d_i, d_f, tanh.vjp(a_g, d_c * i), d_o], dim=1)
    return delta, delta, torch.cat([torch.zeros_like(old), d_c * f], dim=1)


def _lstm_difference(p: Array, q: Array, h: Array, s: Array, u: Array, v: Array) -> Array:
    # With primes for what belongs to p - s, q - u and h - v, x y - x' y' = (x - x') y + x' (y - y') of each product.
    a = p + q
    i_f, g, o, old = _lstm_gates(a, h)
    i, f = i_f.chunk(2, dim=1)
    lost, n = s + u, old.shape[1]
    i_difference, f_difference = _sigmoid_difference(a[:, : 2 * n], lost[:, : 2 * n]).chunk(2, dim=1)
    g_difference = tanh.difference(a[:, 2 * n : 3 * n], lost[:, 2 * n : 3 * n])
    o_difference = _sigmoid_difference(a[:, 3 * n :], lost[:, 3 * n :])
    c_difference = f_difference * old + (f - f_difference) * v[:, n:]
    c_difference = c_difference + i_difference * g + (i - i_difference) * g_difference
    c = f * old + i * g
    h_difference = o_difference * torch.tanh(c) + (o - o_difference) * tanh.difference(c, c_difference)
    return torch.cat([h_difference, c_difference], dim=1)


lstm: Cell = Cell(4, _lstm_value, _lstm_vjp, _lstm_difference, parts=2)
"""The long short-term memory, as PyTorch has it."""

CELLS = {"elman": elman(), "relu": elman(relu), "gru": gru, "lstm": lstm}
"""The cells by their names; "relu" is Elman's of that activation."""


class RecurrentLayer(NamedTuple):
    """A cell with its parameters, which all of its steps share."""

    cell: Cell
    of_input: Dense
    of_state: Dense

    @property
    def n(self) -> int:
        """Units of h."""
        return self.of_state.weight.shape[1]


Stack: TypeAlias = Sequence[RecurrentLayer | Embedding]
"""Recurrent layers, lowest first; below them there may be an embedding."""


def _sizes(stack: Stack) -> list[int]:
    """Numbers in the state of each layer."""
    return [layer.table.shape[1] if isinstance(layer, Embedding) else layer.cell.parts * layer.n for layer in stack]


def state_size(stack: Stack) -> int:
    """Numbers in the state of a stack: of what is embedded, h and the LSTM's c."""
    return sum(_sizes(stack))


class Part(NamedTuple):
    """The columns from `start` to `stop` of a state that has `width`: a step of the kind of outlets."""

    start: int
    stop: int
    width: int

    def value(self, h: Array) -> Array:
        """These columns: h itself where they are all. Raises ValueError where h has another width."""
        if h.shape[-1] != self.width:
            check_shape("state", h, (len(h), self.width))
        return h if self.stop - self.start == self.width else h[:, self.start : self.stop]

    def jvp(self, h: Array, u: Array) -> Array:
        return self.value(u)

    def vjp(self, h: Array, d: Array) -> Array:
        return self.placed(torch.zeros_like(h), d)

    def difference(self, h: Array, u: Array) -> Array:
        return self.value(u)

    def placed(self, h: Array, part: Array) -> Array:
        """h with other numbers in these columns: `part` itself where they are all."""
        if self.stop - self.start == self.width:
            return part
        return torch.cat([h[:, : self.start], part, h[:, self.stop :]], dim=1)


def _if_running(running: Array | None, now: Array, otherwise: Array) -> Array:
    """What is now of the samples that have a step, otherwise of the others."""
    return now if running is None else torch.where(running, now, otherwise)


@dataclass(eq=False)
class CellStep:
    """A step of one cell as a layer of the state, (batch, width of the state).

    `own` is the cell's part of the state. x is x_t, with p = W_x x_t + b_x, or the part of the state that x_t is, with
    None. `running`, (batch, 1), says which samples have this step; None: all.
    """

    layer: RecurrentLayer
    x: Array | Part
    p: Array | None
    own: Part
    running: Array | None = None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()
    _place: tuple[int, Array, Array] | None = None
    """Its number among all steps, and x and p of all of them."""
    _seen: list[Array] = field(default_factory=list, init=False, repr=False)

    @property
    def h(self) -> Part:
        """The cell's h: its part without the LSTM's c."""
        return self.own._replace(stop=self.own.start + self.layer.n)

    def _operands(self, z: Array) -> tuple[Array, Array, Array]:
        """x_t, p_t and q_t: found with the value, where that of z was the last."""
        if not self._seen or self._seen[0] is not z:
            x, p = (self.x.value(z), None) if isinstance(self.x, Part) else (self.x, self.p)
            if p is None:
                p = product(functional.linear, x, self.layer.of_input.weight, self.layer.of_input.bias)
            of_state = self.layer.of_state
            self._seen[:] = z, x, p, product(functional.linear, self.h.value(z), of_state.weight, of_state.bias)
        _, x, p, q = self._seen
        return x, p, q

    def value(self, z: Array) -> Array:
        """The state with h_t in the cell's part. Raises ValueError where z is no state of as many samples as x."""
        check_shape("z", z, (len(z if self.p is None else self.p), self.own.width))
        _, p, q = self._operands(z)
        return _if_running(self.running, self.own.placed(z, self.layer.cell.value(p, q, self.own.value(z))), z)

    def difference(self, z: Array, u: Array) -> Array:
        """The value less what it is at z - u."""
        x, p, q = self._operands(z)
        # Zeros that take no memory, where x_t is given.
        s = (
            self.layer.of_input.difference(x, self.x.value(u))
            if isinstance(self.x, Part)
            else p.new_zeros(()).expand_as(p)
        )
        of_q = self.layer.of_state.difference(self.h.value(z), self.h.value(u))
        found = self.layer.cell.difference(p, q, self.own.value(z), s, of_q, self.own.value(u))
        return _if_running(self.running, self.own.placed(u, found), u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The derivative's transpose: to the state, through W_h and past it, and to the cell below, through W_x."""
        _, p, q = self._operands(z)
        delta, eta, kept = self.layer.cell.vjp(p, q, self.own.value(z), self.own.value(d))
        found = self.own.placed(d, kept)
        found = self.h.placed(found, product(torch.addmm, self.h.value(found), eta, self.layer.of_state.weight))
        if isinstance(self.x, Part):
            found = self.x.placed(found, product(torch.addmm, self.x.value(found), delta, self.layer.of_input.weight))
        return _if_running(self.running, found, d)

    def update(self, z: Array, delta: Array) -> Update:
        """Of W_x, W_h, b_x and b_h, but for a bias that is None, from the cotangent delta of the value."""
        check_shape("delta", delta, z.shape)
        x, p, q = self._operands(z)
        d = self.own.value(delta) / len(delta)  # the batch mean of what is linear in delta, and wider
        if self.running is not None:
            d = d.where(self.running, 0)
        for_p, for_q, _ = self.layer.cell.vjp(p, q, self.own.value(z), d)
        biased = ((self.layer.of_input, for_p), (self.layer.of_state, for_q))
        biases = (d.sum(dim=0) for layer, d in biased if layer.bias is not None)
        return (product(torch.matmul, for_p.T, x), product(torch.matmul, for_q.T, self.h.value(z)), *biases)


@dataclass(eq=False)
class TokenStep:
    """A step of an embedding as a layer of the state: its part becomes p = E[x], of the tokens x, (batch,)."""

    layer: Embedding
    x: Labels
    p: Array
    own: Part
    running: Array | None = None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    @property
    def h(self) -> Part:
        """Its part."""
        return self.own

    def value(self, z: Array) -> Array:
        """The state with what x is embedded as. Raises ValueError where z is no state of as many samples as x."""
        check_shape("z", z, (len(self.x), self.own.width))
        return _if_running(self.running, self.own.placed(z, self.p), z)

    def difference(self, z: Array, u: Array) -> Array:
        """u but for its part, which no state moves."""
        return _if_running(self.running, self.own.placed(u, torch.zeros_like(self.p)), u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """d but for its part, where it ends."""
        return self.difference(z, d)

    def update(self, z: Array, delta: Array) -> Update:
        """Of E, from the cotangent delta of the value."""
        check_shape("delta", delta, z.shape)
        d = self.own.value(delta)
        return self.layer.update(self.x[:, None], _if_running(self.running, d, torch.zeros_like(d))[:, None])


Recurrent: TypeAlias = tuple[*tuple[CellStep | TokenStep, ...], Layer]
"""A recurrent network on an input: its steps, and what makes the output of the last state."""


def unrolled(stack: Stack, x: Array, lengths: Labels | None = None) -> tuple[CellStep | TokenStep, ...]:
    """The steps of a stack on x, (batch, T, n_0) or tokens (batch, T); `lengths`, (batch,), are 1..T, None: T.

    The last step's outlet is the uppermost h. Raises ValueError where x, lengths or weights do not fit.
    """
    embedded = isinstance(stack[0], Embedding) if stack else False
    cells = [layer for layer in stack[embedded:] if isinstance(layer, RecurrentLayer)]
    if not cells or len(cells) + embedded < len(stack):
        raise ValueError(f"stack: {len(cells)} of {len(stack)} are recurrent, expected all but an embedding at first")
    given = stack[0].value(x) if isinstance(stack[0], Embedding) else x  # (batch, T, n_0)
    n_0 = cells[0].of_input.weight.shape[1]
    if given.ndim != 3 or 0 in given.shape[:2] or given.shape[2] != n_0:
        raise ValueError(f"x: shape {tuple(given.shape)}, expected (batch, steps, {n_0}), at least one of each")
    if lengths is not None:
        check_shape("lengths", lengths, x.shape[:1])
        check_range("lengths", lengths, x.shape[1] + 1, 1)
    for number, below in enumerate(cells[:-1], 1):
        columns = cells[number].of_input.weight.shape[1]
        if columns != below.n:
            raise ValueError(f"stack[{number + embedded}]: takes {columns} numbers, but gets {below.n}")
    for cell, of_input, of_state in cells:
        rows, n = (len(of_input.weight), len(of_state.weight)), of_state.weight.shape[1]
        if rows != (cell.gates * n, cell.gates * n):
            raise ValueError(
                f"of_input, of_state: {rows[0]} and {rows[1]} rows, expected {cell.gates * n}, {cell.gates} for each "
                f"of the {n} units"
            )
        for layer in (of_input, of_state):
            if layer.bias is not None:
                check_shape("bias", layer.bias, layer.weight.shape[:1])
    ends = list(accumulate(_sizes(stack)))
    owns = [Part(start, end, ends[-1]) for start, end in zip([0, *ends], ends, strict=False)]
    lowest, each = cells[0], given.transpose(0, 1)  # (T, batch, n_0)
    p = None
    if not embedded:
        p = product(functional.linear, each.flatten(0, 1), lowest.of_input.weight, lowest.of_input.bias)
        p = p.unflatten(0, each.shape[:2])
    steps: list[CellStep | TokenStep] = []
    for t in range(x.shape[1]):
        running = None if lengths is None else (t < lengths)[:, None]
        for part, own in zip(stack, owns, strict=True):
            if isinstance(part, Embedding):
                steps.append(TokenStep(part, x[:, t], each[t], own, running))
            elif p is not None and own.start == 0:
                steps.append(CellStep(part, each[t], p[t], own, running, _place=(t, each, p)))
            else:
                steps.append(CellStep(part, steps[-1].h, None, own, running))
    steps[-1].outlet = (steps[-1].h,)
    return tuple(steps)


def at_steps(steps: Sequence[CellStep | TokenStep], parts: Sequence[Array | None]) -> tuple[Array | None, ...]:
    """What is said of h's, corrections or cotangents, for the state that each of the steps gives: (batch, width).

    `parts` has (batch, T, n) for each layer of the stack, or None, lowest first. Raises ValueError for another number
    of them.
    """
    owns = sorted({step.own for step in steps})
    if len(parts) != len(owns):
        raise ValueError(f"parts: {len(parts)}, expected {len(owns)}, one for each layer of the stack")
    found: list[Array | None] = []
    blank = [part if part is None else part.new_zeros(len(part), owns[0].width) for part in parts]
    for number, step in enumerate(steps):
        t, place = divmod(number, len(owns))
        part, others = parts[place], blank[place]
        if part is not None and others is not None:
            check_shape(f"parts[{place}]", part, (len(part), len(steps) // len(owns), step.h.stop - step.h.start))
            part = step.h.placed(others, part[:, t])
        found.append(part)
    return tuple(found)


def forward_per_step(layers: Recurrent, state: Array) -> Pass:
    """The pass from that state, the output's of every step: its input is all h's, (batch, T, n), its scores likewise.

    Raises ValueError as `forward`.
    """
    *steps, output = layers
    clean = forward(steps, state)
    upper = zip(steps, clean.activities, strict=True)
    h = torch.stack([step.h.value(a) for step, a in upper if step.own.stop == step.own.width], dim=1)
    scores = output.value(h)
    return Pass((*clean.inputs, h), (*clean.preactivations, scores), (*clean.activities, scores))


def factors_per_step(layers: Recurrent, clean: Pass, error: Array) -> Iterator[tuple[Array, Array]]:
    """Backpropagation's factors of every layer, from the pass per step and e, (batch, T, K)."""
    check_shape("error", error, clean.scores.shape)
    *steps, output = layers
    h = clean.inputs[-1]
    above = [None] * (len({step.own for step in steps}) - 1)
    *before, last = at_steps(steps, [*above, output.adjoint(h, error)])
    assert last is not None
    of_steps = Pass(clean.inputs[:-1], clean.preactivations[:-1], clean.activities[:-1])
    yield from update_factors(steps, of_steps, last, before)
    yield error, h


def differences_per_step(layers: Recurrent, clean: Pass, corrections: Sequence[Array | None]) -> Iterator[Array]:
    """Those of `ftp` for every step as a chain of its own, from the pass per step and `at_steps`.

    Raises ValueError as `ftp.differences`, and where a step's lowest layer has no correction.
    """
    *steps, output = layers
    count = len({step.own for step in steps})
    for begin in range(0, len(steps), count):
        first, *later = corrections[begin : begin + count]
        if first is None:
            raise ValueError(f"corrections: None for layers[{begin}], expected one for the lowest of every step")
        of_step = Pass(*((*part[begin : begin + count], part[-1]) for part in clean))
        yield from differences((*steps[begin : begin + count], output), of_step, first, later=later)


def _rows(steps: list[CellStep], operands: list[tuple[Array, Array, Array]]) -> tuple[Array, Array]:
    """x and p of consecutive steps of a cell, those of each below those before: of the lowest they are not copied."""
    first, last = steps[0]._place, steps[-1]._place
    if first is None or last is None:
        return torch.cat([x for x, _, _ in operands]), torch.cat([p for _, p, _ in operands])
    if last[0] - first[0] != len(steps) - 1:
        raise ValueError("layers: expected consecutive steps of `unrolled`")
    of_steps = slice(first[0], last[0] + 1)
    return first[1][of_steps].flatten(0, 1), first[2][of_steps].flatten(0, 1)


def updates(
    layers: Recurrent, factors: Iterable[tuple[Array, Array]], reduction: Reduction = "sum"
) -> tuple[Update, ...]:
    """The update of each layer of the stack, one product each over the rows of all its steps, and the output's.

    Raises ValueError for an unknown `reduction`, and for steps that do not follow each other in one `unrolled`.
    """
    check_option("reduction", reduction, Reduction)
    *steps, output = layers
    *of_steps, (error, h) = factors
    found = []
    for own in sorted({step.own for step in steps}):
        each = [(step, *pair) for step, pair in zip(steps, of_steps, strict=True) if step.own == own]
        found.append(_joined(each, reduction))
    return (*found, output.update(h, error))


def _joined(each: list[tuple[CellStep | TokenStep, Array, Array]], reduction: Reduction) -> Update:
    """Of one layer of the stack, from its steps, each with its factors."""
    steps, length = [step for step, _, _ in each], len(each)
    own, running = steps[0].own, None
    deltas = torch.cat([own.value(delta) for _, delta, _ in each])
    if steps[0].running is not None:
        flags = torch.stack([step.running for step in steps if step.running is not None])  # (T, batch, 1)
        running = flags.flatten(0, 1)
        if reduction == "mean":
            deltas = deltas * (length / flags.sum(dim=0).to(deltas.dtype)).repeat(length, 1)
    whole: CellStep | TokenStep
    alone = Part(0, deltas.shape[1], deltas.shape[1])
    if isinstance(steps[0], TokenStep):
        states = torch.cat([step.p for step in steps if isinstance(step, TokenStep)])
        whole = TokenStep(
            steps[0].layer, torch.cat([step.x for step in steps if isinstance(step, TokenStep)]), states, alone, running
        )
    else:
        of_cells = [(step, z) for step, _, z in each if isinstance(step, CellStep)]
        states = torch.cat([own.value(z) for _, z in of_cells])
        operands = [step._operands(z) for step, z in of_cells]
        x, p = _rows([step for step, _ in of_cells], operands)
        whole = CellStep(steps[0].layer, x, p, alone, running)
        whole._seen[:] = states, x, p, torch.cat([q for _, _, q in operands])
    mean = whole.update(states, deltas)
    return mean if reduction == "mean" else tuple(length * part for part in mean)
