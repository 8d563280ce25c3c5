"""Recurrent networks: cells, their steps as layers of a chain, and updates of parameters that layers share.

Elman, "Finding Structure in Time", Cognitive Science 14, 1990. Hochreiter and Schmidhuber, "Long Short-Term Memory",
Neural Computation 9, 1997; with the gate f of Gers, Schmidhuber and Cummins, Neural Computation 12, 2000. Cho et al.,
"Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation", EMNLP 2014, arXiv
1406.1078.

    (1)  h_0 = 0,    p_t = W_x x_t + b_x,    q_t = W_h h_(t-1) + b_h,    h_t = cell(p_t, q_t, h_(t-1))
    (2)  Elman:  h_t = sigma(p_t + q_t)
    (3)  GRU:    r = sigmoid(p_r + q_r),    z = sigmoid(p_z + q_z),    n = tanh(p_n + r * q_n),
                 h_t = (1 - z) * n + z * h_(t-1)
    (4)  LSTM:   i, f, o = sigmoid(p + q) and g = tanh(p_g + q_g), a part of p and q each,
                 c_t = f * c_(t-1) + i * g,    h_t = o * tanh(c_t);    its state is (h_t, c_t), its q_t that of h_(t-1)
    (5)  step t as a layer of h_(t-1), with delta_t = (dh_t/dp_t)^T d and eta_t = (dh_t/dq_t)^T d of a cotangent d:
         value        h_t
         difference   h_t - cell(p_t, q_t - W_h u, h_(t-1) - u)
         adjoint      W_h^T eta_t + (dh_t/dh_(t-1) at fixed q_t)^T d
         update       of W_x and W_h, 1/B sum_samples delta_t x_t^T and eta_t h_(t-1)^T; of b_x and b_h, the means
                      of delta_t and eta_t
    (6)  G = sum_t G_t, or 1/T of it, for the parameters that all steps share

The network is the chain of its T steps on x and of a dense layer, W_o h_T + c; its input is h_0. Every algorithm
of this package that runs on `layers` runs on it: `backprop` is then backpropagation through time, `ftp` carries targets
through time. A chain of its last k steps alone, from h_(T-k), is truncated backpropagation through time.

Several cells: the state of a stack is one row, a part for each of its recurrent layers. A step of the stack is as many
layers of the chain as it has cells, lowest first; each writes its own part and leaves the others as they are. The
lowest takes x_t, each other one the h that stands in the part of the cell below. In (5) that part of u makes p_t
p_t - W_x u, and the adjoint adds W_x^T delta_t to that part.

An embedding below the stack has a part of the state, too; its step t writes E[x_t] there, of a token x_t.

Labels per step: the output is of every h_t, s_t = W_o h_t + c, and N labels are known of all steps and samples. With
e_t, dLoss/ds_t of each label, 0 where there is none, the output's update is 1/N sum e_t h_t^T, those of the others

    (7)  backpropagation's, with dLoss/dh_t = W_o^T e_t + what comes back from step t + 1,

with 1/N for 1/B (`per_label` of `layers`). For `ftp`, every step is then a chain of its own, of the stack's cells from
the state before it, whose first hidden layer is the lowest: its target runs up, and not on in time.

Sequences of several lengths: a step behind the end of a sample leaves its state as it is, and its update is 0. In (6) T
is each sample's own.

| symbol | variable | shape | meaning |
| --- | --- | --- | --- |
| x_t | x[:, t-1] | (batch, n_0) | input of step t = 1..T |
| W_x, b_x | of_input | (gates n, n_0), (gates n,) or None | a dense layer of x_t; gates: 1, GRU 3, LSTM 4 |
| W_h, b_h | of_state | (gates n, n), (gates n,) or None | a dense layer of h_(t-1) |
| p_t, q_t | p, q | (batch, gates n) | from input and state; r, z, n or i, f, g, o in this order |
| h_t | activities | (batch, n), the LSTM's (batch, 2 n) | the state, h_0 = inputs[0]; in `Pass` of `layers` |

Names, shapes and the order of the gates are those of torch.nn.RNN, GRU and LSTM, whose parameters these are. The GRU
is PyTorch's: r multiplies W_h h + b_h after the product, where Cho et al. multiply h before it, and z keeps the old
state. p_t and q_t have biases of their own since r comes between them.

>>> gru.value(np.zeros((1, 3)), np.zeros((1, 3)), np.array([[4.0]])).tolist()  # gates of 1/2: half is kept, n is 0
[[2.0]]
>>> np.round(lstm.value(np.zeros((1, 4)), np.zeros((1, 4)), np.array([[9.0, 2.0]])), 3).tolist()  # 1/2 tanh(1), 1
[[0.381, 1.0]]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy.special import expit

from ._arrays import Array, Labels, check_option, check_range, check_shape
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


def _of_values(value: Callable[[Array, Array, Array], Array]) -> Callable[..., Array]:
    """A cell's difference, from its value."""
    return lambda p, q, h, s, u, v: value(p, q, h) - value(p - s, q - u, h - v)


def elman(activation: Activation = tanh) -> Cell:
    """The cell of equation (2), of p, q and h, (batch, n) each: its h_t is (batch, n), too.

    >>> elman(relu).value(np.array([[1.0]]), np.array([[2.0]]), np.array([[9.0]])).tolist()  # h_(t-1) enters by q alone
    [[3.0]]
    """

    def value(p: Array, q: Array, h: Array) -> Array:
        return activation.value(p + q)

    def vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
        delta = activation.vjp(p + q, d)
        return delta, delta, np.zeros_like(h)

    return Cell(1, value, vjp, _of_values(value))


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


gru: Cell = Cell(3, _gru_value, _gru_vjp, _of_values(_gru_value))
"""The cell of equation (3)."""


def _lstm_value(p: Array, q: Array, h: Array) -> Array:
    a_i, a_f, a_g, a_o = np.split(p + q, 4, axis=1)
    _, c = np.split(h, 2, axis=1)
    c = expit(a_f) * c + expit(a_i) * np.tanh(a_g)
    return np.concatenate([expit(a_o) * np.tanh(c), c], axis=1)


def _lstm_vjp(p: Array, q: Array, h: Array, d: Array) -> tuple[Array, Array, Array]:
    a_i, a_f, a_g, a_o = np.split(p + q, 4, axis=1)
    _, old = np.split(h, 2, axis=1)
    d_h, d_c = np.split(d, 2, axis=1)
    i, f, g, o = expit(a_i), expit(a_f), np.tanh(a_g), expit(a_o)
    c = f * old + i * g
    d_c = d_c + tanh.vjp(c, d_h * o)
    d_i = d_c * g * i * expit(-a_i)  # 1 - i without cancellation, and so on
    d_f = d_c * old * f * expit(-a_f)
    d_o = d_h * np.tanh(c) * o * expit(-a_o)
    delta = np.concatenate([d_i, d_f, tanh.vjp(a_g, d_c * i), d_o], axis=1)
    return delta, delta, np.concatenate([np.zeros_like(old), d_c * f], axis=1)


lstm: Cell = Cell(4, _lstm_value, _lstm_vjp, _of_values(_lstm_value), parts=2)
"""The cell of equation (4)."""

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
        return int(self.of_state.weight.shape[1])


Stack: TypeAlias = Sequence[RecurrentLayer | Embedding]
"""Recurrent layers, lowest first; below them there may be an embedding."""


def _sizes(stack: Stack) -> list[int]:
    """Numbers in the state of each layer."""
    return [layer.table.shape[1] if isinstance(layer, Embedding) else layer.cell.parts * layer.n for layer in stack]


def state_size(stack: Stack) -> int:
    """Numbers in the state of a stack, its width: of what is embedded, h and the LSTM's c.

    >>> state_size([RecurrentLayer(lstm, Dense(np.zeros((12, 2)), None), Dense(np.zeros((12, 3)), None))])  # 3 units
    6
    """
    return sum(_sizes(stack))


class Part(NamedTuple):
    """The columns from `start` to `stop` of a state h, (batch, width), or of a change u of one: a step as outlets are.

    >>> Part(1, 3, 4).value(np.array([[5.0, 6.0, 7.0, 8.0]])).tolist()
    [[6.0, 7.0]]
    >>> Part(1, 3, 4).vjp(np.zeros((1, 4)), np.array([[6.0, 7.0]])).tolist()
    [[0.0, 6.0, 7.0, 0.0]]
    """

    start: int
    stop: int
    width: int

    def value(self, h: Array) -> Array:
        """These columns, (batch, stop - start), h itself where they are all. Raises ValueError for another width."""
        check_shape("state", h, (len(h), self.width))
        return h if self.stop - self.start == self.width else h[:, self.start : self.stop]

    def jvp(self, h: Array, u: Array) -> Array:
        return self.value(u)

    def vjp(self, h: Array, d: Array) -> Array:
        return self.placed(np.zeros_like(h), d)

    def difference(self, h: Array, u: Array) -> Array:
        return self.value(u)

    def placed(self, h: Array, part: Array) -> Array:
        """h with other numbers in these columns: as h, part as the value."""
        return np.concatenate([h[:, : self.start], part, h[:, self.stop :]], axis=1)


def _if_running(running: Array | None, now: Array, otherwise: Array) -> Array:
    """What is now of the samples that have a step, otherwise of the others."""
    return now if running is None else np.where(running, now, otherwise)


class CellStep(NamedTuple):
    """Equation (5): a step of one cell as a layer of the state, (batch, width of the state).

    `own` is the cell's part of the state. x is x_t, with p = W_x x_t + b_x, or the part of the state that x_t is, with
    None. `running`, (batch, 1), says which samples have this step; None: all.

    >>> layer = RecurrentLayer(elman(identity), Dense(np.array([[10.0]]), None), Dense(np.array([[1.0]]), None))
    >>> (step,) = unrolled([layer], np.array([[[2.0]]]))
    >>> z = np.array([[5.0]])
    >>> step.value(z).tolist(), step.adjoint(z, np.array([[3.0]])).tolist()  # 10 * 2 + 5
    ([[25.0]], [[3.0]])
    """

    layer: RecurrentLayer
    x: Array | Part
    p: Array | None
    own: Part
    running: Array | None = None
    steps: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    @property
    def h(self) -> Part:
        """The cell's h: its part without the LSTM's c."""
        return self.own._replace(stop=self.own.start + self.layer.n)

    def _x_and_p(self, z: Array) -> tuple[Array, Array]:
        if isinstance(self.x, Part):
            x = self.x.value(z)
            return x, self.layer.of_input.value(x)
        assert self.p is not None
        return self.x, self.p

    def value(self, z: Array) -> Array:
        """The state with h_t in the cell's part: as z. Raises ValueError unless z is a state of x's samples."""
        x, p = self._x_and_p(z)
        check_shape("z", z, (len(x), self.own.width))
        h_t = self.layer.cell.value(p, self.layer.of_state.value(self.h.value(z)), self.own.value(z))
        return _if_running(self.running, self.own.placed(z, h_t), z)

    def difference(self, z: Array, u: Array) -> Array:
        """The value less what it is at z - u: as z."""
        x, p = self._x_and_p(z)
        h, lost = self.h.value(z), self.h.value(u)
        s = self.layer.of_input.difference(x, self.x.value(u)) if isinstance(self.x, Part) else np.zeros_like(p)
        q, of_q = self.layer.of_state.value(h), self.layer.of_state.difference(h, lost)
        found = self.layer.cell.difference(p, q, self.own.value(z), s, of_q, self.own.value(u))
        return _if_running(self.running, self.own.placed(u, found), u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """The transposed derivative, as z: to the state through W_h and past it, to the cell below through W_x."""
        x, p = self._x_and_p(z)
        h = self.h.value(z)
        q = self.layer.of_state.value(h)
        delta, eta, kept = self.layer.cell.vjp(p, q, self.own.value(z), self.own.value(d))
        found = self.own.placed(d, kept) + self.h.vjp(z, self.layer.of_state.adjoint(h, eta))
        if isinstance(self.x, Part):
            found = found + self.x.vjp(z, self.layer.of_input.adjoint(x, delta))
        return _if_running(self.running, found, d)

    def update(self, z: Array, delta: Array) -> Update:
        """Of W_x, W_h, b_x and b_h, shaped as they are, but for a bias that is None, from a cotangent of the value."""
        check_shape("delta", delta, z.shape)
        x, p = self._x_and_p(z)
        h = self.h.value(z)
        d = _if_running(self.running, self.own.value(delta), np.zeros_like(self.own.value(delta)))
        for_p, for_q, _ = self.layer.cell.vjp(p, self.layer.of_state.value(h), self.own.value(z), d)
        weight_ih, *bias_ih = self.layer.of_input.update(x, for_p)
        weight_hh, *bias_hh = self.layer.of_state.update(h, for_q)
        return (weight_ih, weight_hh, *bias_ih, *bias_hh)


class TokenStep(NamedTuple):
    """A step of an embedding as a layer of the state: its part becomes p = E[x], of the tokens x, (batch,).

    >>> step = TokenStep(Embedding(np.array([[4.0], [7.0]])), np.array([1]), np.array([[7.0]]), Part(0, 1, 2))
    >>> step.value(np.array([[1.0, 2.0]])).tolist(), step.difference(np.zeros((1, 2)), np.array([[1.0, 2.0]])).tolist()
    ([[7.0, 2.0]], [[0.0, 2.0]])
    """

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
        """The state with what x is embedded as: as z. Raises ValueError unless z is a state of x's samples."""
        check_shape("z", z, (len(self.x), self.own.width))
        return _if_running(self.running, self.own.placed(z, self.p), z)

    def difference(self, z: Array, u: Array) -> Array:
        """u but for its part, which no state moves: as z."""
        return _if_running(self.running, self.own.placed(u, np.zeros_like(self.p)), u)

    def adjoint(self, z: Array, d: Array) -> Array:
        """d but for its part, where it ends: as z."""
        return self.difference(z, d)

    def update(self, z: Array, delta: Array) -> Update:
        """Of E, (V, n), from a cotangent of the value."""
        check_shape("delta", delta, z.shape)
        d = self.own.value(delta)
        return self.layer.update(self.x[:, None], _if_running(self.running, d, np.zeros_like(d))[:, None])


Recurrent: TypeAlias = tuple[*tuple[CellStep | TokenStep, ...], Layer]
"""A recurrent network on an input: its steps, and what makes the output of the last state."""


def unrolled(stack: Stack, x: Array, lengths: Labels | None = None) -> tuple[CellStep | TokenStep, ...]:
    """The steps of a stack on x, (batch, T, n_0) or tokens (batch, T); `lengths`, (batch,), are 1..T, None: T.

    The last step's outlet is the uppermost h. Raises ValueError where x, lengths or weights do not fit.

    >>> stack = [RecurrentLayer(elman(identity), Dense(np.eye(1), None), Dense(np.eye(1), None))]  # h_t = x_t + h_(t-1)
    >>> steps = unrolled(stack, np.array([[[1.0], [2.0], [4.0]]]))
    >>> [h.item() for h in forward(steps, np.zeros((1, 1))).activities]
    [1.0, 3.0, 7.0]
    """
    embedded = isinstance(stack[0], Embedding) if stack else False
    cells = [layer for layer in stack[embedded:] if isinstance(layer, RecurrentLayer)]
    if not cells or len(cells) + embedded < len(stack):
        raise ValueError(f"stack: {len(cells)} of {len(stack)} are recurrent, expected all but an embedding at first")
    given = stack[0].value(x) if isinstance(stack[0], Embedding) else x  # (batch, T, n_0)
    n_0 = cells[0].of_input.weight.shape[1]
    if given.ndim != 3 or 0 in given.shape[:2] or given.shape[2] != n_0:
        raise ValueError(f"x: shape {given.shape}, expected (batch, steps, {n_0}), at least one of each")
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
    ends = list(accumulate(_sizes(stack)))
    owns = [Part(start, end, ends[-1]) for start, end in zip([0, *ends], ends, strict=False)]
    steps: list[CellStep | TokenStep] = []
    for t in range(x.shape[1]):
        running = None if lengths is None else (t < lengths)[:, None]
        for layer, own in zip(stack, owns, strict=True):
            if isinstance(layer, Embedding):
                steps.append(TokenStep(layer, x[:, t], given[:, t], own, running))
            elif own.start == 0:
                steps.append(CellStep(layer, x[:, t], layer.of_input.value(x[:, t]), own, running))
            else:
                steps.append(CellStep(layer, steps[-1].h, None, own, running))
    return (*steps[:-1], steps[-1]._replace(outlet=(steps[-1].h,)))


def at_steps(steps: Sequence[CellStep | TokenStep], parts: Sequence[Array | None]) -> tuple[Array | None, ...]:
    """What is said of h's, corrections or cotangents, for the state that each of the steps gives: (batch, width).

    `parts` has (batch, T, n) for each layer of the stack, or None, lowest first. Raises ValueError for another number
    of them.

    >>> stack = [RecurrentLayer(elman(), Dense(np.eye(1), None), Dense(np.eye(1), None))] * 2  # h of the lower first
    >>> of_steps = at_steps(unrolled(stack, np.zeros((1, 2, 1))), [np.array([[[5.0], [7.0]]]), None])
    >>> [None if part is None else part.tolist() for part in of_steps]
    [[[5.0, 0.0]], None, [[7.0, 0.0]], None]
    """
    owns = sorted({step.own for step in steps})
    if len(parts) != len(owns):
        raise ValueError(f"parts: {len(parts)}, expected {len(owns)}, one for each layer of the stack")
    found: list[Array | None] = []
    for number, step in enumerate(steps):
        t, place = divmod(number, len(owns))
        part = parts[place]
        if part is not None:
            check_shape(f"parts[{place}]", part, (len(part), len(steps) // len(owns), step.h.stop - step.h.start))
            part = step.h.placed(np.zeros((len(part), step.own.width), part.dtype), part[:, t])
        found.append(part)
    return tuple(found)


def forward_per_step(layers: Recurrent, state: Array) -> Pass:
    """The pass from that state, the output's of every step: its input is all h's, (batch, T, n), its scores likewise.

    Raises ValueError as `forward`.

    >>> stack = [RecurrentLayer(elman(identity), Dense(np.eye(1), None), Dense(np.eye(1), None))]
    >>> steps = unrolled(stack, np.array([[[1.0], [2.0]]]))
    >>> forward_per_step((*steps, Dense(10 * np.eye(1), None)), np.zeros((1, 1))).scores.tolist()
    [[[10.0], [30.0]]]
    """
    *steps, output = layers
    clean = forward(steps, state)
    upper = zip(steps, clean.activities, strict=True)
    h = np.stack([step.h.value(a) for step, a in upper if step.own.stop == step.own.width], axis=1)
    scores = output.value(h)
    return Pass((*clean.inputs, h), (*clean.preactivations, scores), (*clean.activities, scores))


def factors_per_step(layers: Recurrent, clean: Pass, error: Array) -> Iterator[tuple[Array, Array]]:
    """Backpropagation's factors of every layer, equation (7), from the pass per step and e, (batch, T, K).

    Of a step its cotangent and state, (batch, width) each; of the output e and all h's, (batch, T, n). Raises
    ValueError for an error of another shape than the scores.

    >>> stack = [RecurrentLayer(elman(identity), Dense(np.eye(1), None), Dense(np.eye(1), None))]
    >>> layers = *unrolled(stack, np.array([[[1.0], [2.0]]])), Dense(10 * np.eye(1), None)
    >>> found = factors_per_step(layers, forward_per_step(layers, np.zeros((1, 1))), np.ones((1, 2, 1)))
    >>> [(delta.tolist(), z.tolist()) for delta, z in found]  # h_1 has its own 10, and 10 of step 2
    [([[20.0]], [[0.0]]), ([[10.0]], [[1.0]]), ([[[1.0], [1.0]]], [[[1.0], [3.0]]])]
    """
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
    """Those of `ftp` for every step as a chain of its own, (batch, width) each, from the pass per step.

    The corrections are of the shape that `at_steps` gives them. Raises ValueError as `ftp.differences`, and where a
    step's lowest layer has no correction.

    >>> stack = [RecurrentLayer(elman(identity), Dense(np.eye(1), None), Dense(np.eye(1), None))]
    >>> layers = *unrolled(stack, np.array([[[1.0], [2.0]]])), Dense(10 * np.eye(1), None)
    >>> clean = forward_per_step(layers, np.zeros((1, 1)))  # what step 1 is corrected by does not reach step 2
    >>> [d.item() for d in differences_per_step(layers, clean, [np.array([[5.0]]), np.array([[7.0]])])]
    [5.0, 7.0]
    """
    *steps, output = layers
    count = len({step.own for step in steps})
    for begin in range(0, len(steps), count):
        first, *later = corrections[begin : begin + count]
        if first is None:
            raise ValueError(f"corrections: None for layers[{begin}], expected one for the lowest of every step")
        of_step = Pass(*((*part[begin : begin + count], part[-1]) for part in clean))
        yield from differences((*steps[begin : begin + count], output), of_step, first, later=later)


def updates(
    layers: Recurrent, factors: Iterable[tuple[Array, Array]], reduction: Reduction = "sum"
) -> tuple[Update, ...]:
    """Equation (6) for each layer of the stack, and the output's update, from the factors of all layers.

    For each a tuple, shaped as its parameters. Raises ValueError for an unknown `reduction`.

    >>> stack = [RecurrentLayer(elman(identity), Dense(np.eye(1), None), Dense(np.eye(1), None))]
    >>> layers = *unrolled(stack, np.array([[[1.0], [2.0]]])), Dense(10 * np.eye(1), None)
    >>> factors = [*factors_per_step(layers, forward_per_step(layers, np.zeros((1, 1))), np.ones((1, 2, 1)))]
    >>> [[g.item() for g in update] for update in updates(layers, factors)]  # 20 * 1 + 10 * 2, 20 * 0 + 10 * 1; 1 + 3
    [[40.0, 10.0], [4.0]]
    """
    check_option("reduction", reduction, Reduction)
    *steps, output = layers
    *of_steps, (error, h) = factors
    found = []
    for own in sorted({step.own for step in steps}):
        each = [(step, *pair) for step, pair in zip(steps, of_steps, strict=True) if step.own == own]
        running = [1.0 if step.running is None else step.running for step, _, _ in each]
        share = sum(running) if reduction == "mean" else 1.0
        parts = [step.update(z, (delta / share).astype(delta.dtype)) for step, delta, z in each]
        found.append(tuple(sum(part[1:], part[0]) for part in zip(*parts, strict=True)))
    return (*found, output.update(h, error))
