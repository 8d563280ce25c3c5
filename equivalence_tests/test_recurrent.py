"""Steps of recurrent networks as layers, and backpropagation through them: twin against reference, and autograd."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import BATCHES, seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""

CELLS = ("identity", "tanh", "gru", "lstm")
"""A cell with gates, or Elman's by its activation."""

KINDS: dict[str, tuple[str, ...]] = {"elman": ("identity", "tanh"), "gru": ("gru",), "lstm": ("lstm",)}
LIBRARY: dict[str, tuple[str, ...]] = {"elman": ("tanh",), "gru": ("gru",), "lstm": ("lstm",)}
"""What PyTorch has, too."""

GATES = {"gru": 3, "lstm": 4}
"""How many a cell has, if not 1."""

PARTS = {"lstm": 2}
"""How many times n numbers its state has, if not 1."""


class Weights(NamedTuple):
    """A recurrent network as plain operands."""

    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any
    weight_out: Any
    bias_out: Any


class Sequences(NamedTuple):
    """A network with a batch of sequences: x (batch, T, n_0), labels (batch,), targets (batch, K)."""

    cell: str
    weights: Weights
    x: Any
    labels: Any
    targets: Any

    @property
    def length(self) -> int:
        return int(self.x.shape[1])

    @property
    def operands(self) -> tuple[Any, Any, Any]:
        return self.weights, self.x, self.labels


def random_weights(
    cell: str, n_in: int, n: int, outputs: int, rng: np.random.Generator, biases: bool = True
) -> Weights:
    rows = GATES.get(cell, 1) * n
    offsets = [0.3 * rng.standard_normal(size) if biases else None for size in (rows, rows, outputs)]
    return Weights(
        rng.standard_normal((rows, n_in)) / np.sqrt(n_in),
        rng.standard_normal((rows, n)) / np.sqrt(n),
        offsets[0],
        offsets[1],
        rng.standard_normal((outputs, n)) / np.sqrt(n),
        offsets[2],
    )


@st.composite
def sequences(draw: st.DrawFn, cells: tuple[str, ...] = CELLS, lengths: tuple[int, ...] = (1, 2, 3, 7)) -> Sequences:
    cell = draw(st.sampled_from(cells), label="cell")
    n_in, n = (draw(st.sampled_from([2, 3, 5, 8, 13, 17]), label=label) for label in ("n_in", "n"))
    outputs = draw(st.integers(2, 6), label="outputs")
    length = draw(st.sampled_from(lengths), label="length")
    batch = draw(st.sampled_from(BATCHES), label="batch")
    biases = draw(st.booleans(), label="biases")
    rng = draw(seeds())
    weights = random_weights(cell, n_in, n, outputs, rng, biases)
    x = rng.standard_normal((batch, length, n_in))
    return Sequences(cell, weights, x, rng.integers(0, outputs, batch), rng.standard_normal((batch, outputs)))


def make_cell(side: Side, cell: str) -> Any:
    gated = {"gru": side.recurrent.gru, "lstm": side.recurrent.lstm}
    return gated[cell] if cell in gated else side.recurrent.elman(side.activations.ACTIVATIONS[cell])


def chain(side: Side, cell: str, weights: Any, x: Any) -> tuple[Any, Any]:
    """The layers of a network of this side on x, and the state that they begin with."""
    dense = side.layers.Dense
    of_input, of_state = dense(weights.weight_ih, weights.bias_ih), dense(weights.weight_hh, weights.bias_hh)
    steps = side.recurrent.unrolled([side.recurrent.RecurrentLayer(make_cell(side, cell), of_input, of_state)], x)
    start = 0 * x[:, 0, :1] * weights.weight_hh[: PARTS.get(cell, 1)].reshape(1, -1)
    return (*steps, dense(weights.weight_out, weights.bias_out)), start


def named(weights: Any, found: Any) -> Weights:
    """The updates of the steps and of the output by the names of their parameters."""
    of_steps, of_output = found
    parts = iter((*of_steps, *of_output))
    return Weights(*(None if part is None else next(parts) for part in weights))


def library(cell: str, weights: Weights, dtype: torch.dtype = torch.float64) -> tuple[Any, nn.Linear]:
    """The operands as PyTorch's own modules."""
    n_in, n, biases = weights.weight_ih.shape[1], weights.weight_hh.shape[1], weights.bias_ih is not None
    kind: Any = {"gru": nn.GRU, "lstm": nn.LSTM}.get(cell, nn.RNN)
    layer: Any = kind(n_in, n, bias=biases, batch_first=True, dtype=dtype)
    output = nn.Linear(n, len(weights.weight_out), bias=biases, dtype=dtype)
    with torch.no_grad():
        for parameter, value in zip([*layer.parameters(), *output.parameters()], present(weights), strict=True):
            parameter.copy_(torch.as_tensor(value))
    return layer, output


def present(parts: Any) -> list[Any]:
    return [part for part in parts if part is not None]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_forward(twin: Side, compare: Comparison, kind: str, data: st.DataObject) -> None:
    case = data.draw(sequences(KINDS[kind], lengths=(2, 3, 7)), label="case")

    def states(side: Side, weights: Any, x: Any) -> Any:
        return side.layers.forward(*chain(side, case.cell, weights, x)).activities

    compare(twin, "states", states, case.weights, case.x)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds())
def test_cell(twin: Side, compare: Comparison, kind: str, data: st.DataObject, rng: np.random.Generator) -> None:
    """Its value, its derivative and its difference for a step of any size."""
    case = data.draw(sequences(KINDS[kind], lengths=(3,)), label="case")
    n, rows = case.weights.weight_hh.shape[1], len(case.weights.weight_hh)
    batch = len(case.x)
    p, q, s, u = (rng.standard_normal((batch, rows)) for _ in range(4))
    h, d, v = (rng.standard_normal((batch, PARTS.get(case.cell, 1) * n)) for _ in range(3))

    def step(side: Side, p: Any, q: Any, h: Any, d: Any, s: Any, u: Any, v: Any) -> Any:
        cell = make_cell(side, case.cell)
        pulled = cell.vjp(p, q, h, d)
        if case.cell == "lstm":
            pulled = (*pulled[:2], pulled[2][:, n:])  # past q only c has a way
        elif case.cell != "gru":
            pulled = pulled[:2]
        return cell.value(p, q, h), pulled, cell.difference(p, q, h, s, u, v)

    compare(twin, f"{case.cell} step", step, p, q, h, d, s, u, v)


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_derivatives_of_saturated_gates_keep_their_digits(side: Side, gate: int) -> None:
    """Those of the GRU are even in r's, z's and n's pre-activation but for the kept part: no digit goes in 1 - s(a)."""
    cell = side.recurrent.gru
    sizes = np.linspace(4, 30, 50)
    found = {}
    for sign in (1, -1):
        p = np.zeros((3, 50, 1))
        p[gate] = sign * sizes[:, None]
        q_n, h, d = np.full((50, 1), 0.5), np.full((50, 1), 2.0), np.ones((50, 1))
        p, q = np.concatenate(p, axis=1), np.concatenate([0 * q_n, 0 * q_n, q_n], axis=1)
        found[sign] = side.results(cell.vjp(*side.operands((p, q, h, d))))[0]  # by p
    a = side.results(side.operands(sizes))
    s = 1 / (1 + np.exp(a))  # 1 - s(a)
    inner = 0.25 if gate < 2 else a + 0.25  # the new state's pre-activation, of r = 1/2
    if gate == 0:  # d_r = (1 - z) n'(r q_n) q_n r'
        for sign in (1, -1):
            r = 1 - s if sign > 0 else s
            truth = 0.5 / np.cosh(0.5 * r) ** 2 * 0.5 * s * (1 - s)
            check_relative(found[sign][:, 0], truth, side.eps, a, "reset gate")
    elif gate == 1:  # d_z = (h - n) z'
        for sign in (1, -1):
            check_relative(found[sign][:, 1], (2 - np.tanh(0.25)) * s * (1 - s), side.eps, a, "update gate")
        check_relative(found[1][:, 2], s / np.cosh(0.25) ** 2, side.eps, a, "new state behind a closed gate")
    else:
        check_relative(found[1][:, 2], 0.5 / np.cosh(inner) ** 2, side.eps, 2 * inner, "new state")


def check_relative(found: Any, truth: Any, eps: float, a: Any, name: str) -> None:
    """Equal but for rounding, of a in e^a too."""
    assert np.all(np.abs(found - truth) <= 8 * (1 + np.abs(a)) * eps * truth), name


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds())
def test_a_cells_derivative_is_that_of_its_value(
    side: Side, kind: str, data: st.DataObject, rng: np.random.Generator
) -> None:
    """<d, difference of a small step> / size = <vjp(d), step>, to first order."""
    case = data.draw(sequences(KINDS[kind], lengths=(3,)), label="case")
    if side.eps > 1e-8:
        pytest.skip("a finite difference needs float64")
    n, rows = case.weights.weight_hh.shape[1], len(case.weights.weight_hh)
    batch, size = len(case.x), 1e-6
    p, q, s, u = (rng.standard_normal((batch, rows)) for _ in range(4))
    h, d, v = (rng.standard_normal((batch, PARTS.get(case.cell, 1) * n)) for _ in range(3))
    cell = make_cell(side, case.cell)

    def value(factor: float) -> Any:
        return side.results(cell.value(*side.operands((p + factor * s, q + factor * u, h + factor * v))))

    slope = np.sum(d * (value(size) - value(-size))) / (2 * size)
    pulled = side.results(cell.vjp(*side.operands((p, q, h, d))))
    expected = sum(np.sum(a * b) for a, b in zip(pulled, (s, u, v), strict=True))
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6), "vjp is no slope"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds())
def test_a_cells_difference_is_exact_for_steps_of_any_size(
    side: Side, kind: str, data: st.DataObject, rng: np.random.Generator
) -> None:
    """value(p, q, h) - value(p - s, q - u, h - v)."""
    case = data.draw(sequences(KINDS[kind], lengths=(3,)), label="case")
    n, rows = case.weights.weight_hh.shape[1], len(case.weights.weight_hh)
    p, q, s, u = (rng.standard_normal((len(case.x), rows)) for _ in range(4))
    h, v = (rng.standard_normal((len(case.x), PARTS.get(case.cell, 1) * n)) for _ in range(2))
    cell = make_cell(side, case.cell)
    found = side.results(cell.difference(*side.operands((p, q, h, s, u, v))))
    expected = side.results(cell.value(*side.operands((p, q, h)))) - side.results(
        cell.value(*side.operands((p - s, q - u, h - v)))
    )
    assert np.max(np.abs(found - expected)) <= 64 * side.eps, "difference of two steps"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_pass_is_that_of_pytorch(side: Side, kind: str, data: st.DataObject) -> None:
    """States and outputs of nn.RNN and nn.GRU with the same parameters."""
    case = data.draw(sequences(LIBRARY[kind]), label="case")
    weights, x = side.operands((case.weights, case.x))
    *found, scores = side.results(side.layers.forward(*chain(side, case.cell, weights, x)).activities)
    layer, output = library(case.cell, case.weights)
    states, _ = layer(torch.tensor(case.x))
    expected = states.detach().cpu().numpy().swapaxes(0, 1)
    bound = 64 * case.length * side.eps
    n = expected.shape[2]
    assert np.max(np.abs(np.stack(found)[:, :, :n] - expected)) <= bound, "states"
    if case.cell == "lstm":
        _, (_, c) = layer(torch.tensor(case.x))
        assert np.max(np.abs(found[-1][:, n:] - c[0].detach().cpu().numpy())) <= bound, "the LSTM's c"
    assert np.max(np.abs(scores - output(states[:, -1]).detach().cpu().numpy())) <= bound, "outputs"


class StepCase(NamedTuple):
    """A step: the network's weights, x_t (batch, n_0), and z, u, d (batch, n) of its methods."""

    cell: str
    weights: Weights
    x: Any
    z: Any
    u: Any
    d: Any


@st.composite
def step_cases(draw: st.DrawFn, kind: str) -> StepCase:
    case, rng = draw(sequences(KINDS[kind], lengths=(1,))), draw(seeds())
    shape = len(case.x), PARTS.get(case.cell, 1) * case.weights.weight_hh.shape[1]
    return StepCase(case.cell, case.weights, case.x[:, 0], *(rng.standard_normal(shape) for _ in range(3)))


def made(side: Side, cell: str, weights: Any, x: Any) -> Any:
    """The step as a layer of this side."""
    return chain(side, cell, weights, x[:, None])[0][0]


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_step(twin: Side, compare: Comparison, kind: str, data: st.DataObject) -> None:
    case = data.draw(step_cases(kind), label="case")

    def four(side: Side, weights: Any, x: Any, z: Any, u: Any, d: Any) -> Any:
        step = made(side, case.cell, weights, x)
        return step.value(z), step.difference(z, u), step.adjoint(z, d), step.update(z, d)

    compare(twin, "step", four, *case[1:])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_steps_difference_is_that_of_two_values(
    side: Side, compare: Comparison, kind: str, data: st.DataObject
) -> None:
    """Also after its value at another state."""
    case = data.draw(step_cases(kind), label="case")

    def difference(side: Side, weights: Any, x: Any, z: Any, u: Any) -> Any:
        step = made(side, case.cell, weights, x)
        step.value(z - u)
        return step.difference(z, u)

    def of_values(reference: Side, weights: Any, x: Any, z: Any, u: Any) -> Any:
        step = made(reference, case.cell, weights, x)
        return step.value(z) - step.value(z - u)

    compare(side, "difference", difference, *case[1:5], expected=of_values)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds())
def test_a_steps_adjoint_and_update_are_its_derivatives(
    side: Side, kind: str, data: st.DataObject, rng: np.random.Generator
) -> None:
    """<d, h_t> changes with the state by <adjoint(d), v>, its batch mean with the parameters by <update(d), xi>."""
    case = data.draw(step_cases(kind), label="case")
    if side.eps > 1e-8:
        pytest.skip("a finite difference needs float64")
    size, cell_weights = 1e-6, [*present(case.weights[:4])]
    along = [rng.standard_normal(part.shape) for part in cell_weights]

    def value(of_state: float, of_parameters: float) -> Any:
        moved = iter([part + of_parameters * xi for part, xi in zip(cell_weights, along, strict=True)])
        weights = Weights(*(None if w is None else next(moved) for w in case.weights[:4]), *case.weights[4:])
        weights, x, z = side.operands((weights, case.x, case.z + of_state * case.u))
        return side.results(made(side, case.cell, weights, x).value(z))

    weights, x, z, d = side.operands((case.weights, case.x, case.z, case.d))
    step = made(side, case.cell, weights, x)
    slope = np.sum(case.d * (value(size, 0) - value(-size, 0))) / (2 * size)
    expected = np.sum(side.results(step.adjoint(z, d)) * case.u)
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6), "adjoint"
    slope = np.sum(case.d * (value(0, size) - value(0, -size))) / (2 * size) / len(case.x)
    found = side.results(step.update(z, d))
    assert [part.shape for part in found] == [part.shape for part in cell_weights]
    expected = sum(np.sum(g * xi) for g, xi in zip(found, along, strict=True))
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6), "update"


def output_gradient(side: Side, loss: str) -> Any:
    return side.losses.squared_error_gradient if loss == "squared_error" else side.losses.cross_entropy_gradient


def updates(
    side: Side, weights: Any, x: Any, y: Any, cell: str, loss: str = "", truncation: int | None = None
) -> Weights:
    """Backpropagation's, through all steps or through the last ones from the state before them."""
    layers, h = chain(side, cell, weights, x)
    clean = side.layers.forward(layers, h)
    if truncation is not None and truncation < x.shape[1]:
        layers = layers[-truncation - 1 :]
        clean = side.layers.forward(layers, clean.inputs[-truncation - 1])
    error = output_gradient(side, loss)(clean.scores, y)
    factors = side.backprop.update_factors(layers, clean, error)
    return named(weights, side.recurrent.updates(layers, factors))


truncations = st.sampled_from([None, 1, 2, 5, 9])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), truncation=truncations, regression=st.booleans())
def test_updates(
    twin: Side, compare: Comparison, kind: str, data: st.DataObject, truncation: int | None, regression: bool
) -> None:
    case = data.draw(sequences(KINDS[kind]), label="case")

    def ours(side: Side, *operands: Any) -> Any:
        loss = "squared_error" if regression else ""
        found = updates(side, *operands, cell=case.cell, loss=loss, truncation=truncation)
        return without_silent(found, case.length)

    operands = (case.weights, case.x, case.targets if regression else case.labels)
    compare(twin, "backprop", ours, *operands)


def without_silent(found: Any, length: int) -> Any:
    """Without weight_hh where only the first step learns, whose state before is zero."""
    return found._replace(weight_hh=None) if length == 1 else found


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_state_gradients(twin: Side, compare: Comparison, kind: str, data: st.DataObject) -> None:
    case = data.draw(sequences(KINDS[kind]), label="case")

    def ours(side: Side, weights: Any, x: Any, y: Any) -> Any:
        layers, h = chain(side, case.cell, weights, x)
        clean = side.layers.forward(layers, h)
        error = side.losses.cross_entropy_gradient(clean.scores, y)
        return side.backprop.activity_gradients(layers, clean, error)[0]

    compare(twin, "state gradients", ours, *case.operands)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), truncation=truncations, regression=st.booleans())
def test_backprop_through_time_is_autograd(
    side: Side, kind: str, data: st.DataObject, truncation: int | None, regression: bool
) -> None:
    """Of PyTorch's own modules: whole, or through the last steps from a state that is held fixed."""
    case = data.draw(sequences(LIBRARY[kind]), label="case")
    layer, output = library(case.cell, case.weights)
    x = torch.tensor(case.x)
    start = 0 if truncation is None else max(case.length - truncation, 0)
    state = None
    if start:
        with torch.no_grad():
            _, state = layer(x[:, :start])
    states, _ = layer(x[:, start:], state)
    outputs = output(states[:, -1])
    if regression:
        loss = 0.5 * ((outputs - torch.tensor(case.targets)) ** 2).sum(dim=1).mean()
    else:
        loss = nn.functional.cross_entropy(outputs, torch.tensor(case.labels))
    loss.backward()
    expected = [parameter.grad.cpu().numpy() for parameter in [*layer.parameters(), *output.parameters()]]
    operands = side.operands((case.weights, case.x, case.targets if regression else case.labels))
    kind = "squared_error" if regression else ""
    found = side.results(updates(side, *operands, cell=case.cell, loss=kind, truncation=truncation))
    names = [name for name, part in zip(found._fields, found, strict=True) if part is not None]
    for name, a, b in zip(names, present(found), expected, strict=True):
        assert a.shape == b.shape, name
        assert np.max(np.abs(a - b)) <= 256 * case.length * side.eps * max(1.0, np.max(np.abs(b))), name


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@given(case=sequences(lengths=(3, 7)))
def test_shared_parameters_take_the_sum_or_the_mean_of_the_steps(
    side: Side, compare: Comparison, reduction: str, case: Sequences
) -> None:
    """The output's update is its own."""

    def ours(side: Side, weights: Any, x: Any, y: Any) -> Any:
        layers, h = chain(side, case.cell, weights, x)
        clean = side.layers.forward(layers, h)
        factors = side.backprop.update_factors(layers, clean, side.losses.cross_entropy_gradient(clean.scores, y))
        return named(weights, side.recurrent.updates(layers, factors, reduction))

    def each(side: Side, weights: Any, x: Any, y: Any) -> Any:
        *of_steps, of_output = side.backprop.updates(*chain(side, case.cell, weights, x), y)
        share = case.length if reduction == "mean" else 1
        return named(weights, ([sum(parts) / share for parts in zip(*of_steps, strict=True)], of_output))

    compare(side, reduction, ours, *case.operands, expected=each)


def test_what_does_not_fit_is_refused(side: Side) -> None:
    rng = np.random.default_rng(0)
    weights = random_weights("gru", 3, 4, 2, rng)
    operands = side.operands((weights, rng.standard_normal((5, 6, 3)), np.zeros(5, dtype=np.int64)))
    with side.refuses(r"of_input, of_state: 12 and 12 rows, expected 4, 1 for each of the 4"):
        updates(side, *operands, cell="tanh")
    for shape in ((5, 6), (5, 0, 3), (5, 6, 2)):
        x, step = side.operands(rng.standard_normal(shape)), chain(side, "gru", *operands[:2])[0][0]
        with side.refuses(r"x: shape \(5, .*expected \(batch, steps, 3\)"):
            side.recurrent.unrolled([step.layer], x)
    narrow = operands[0]._replace(weight_out=operands[0].weight_out[:, :3])
    with side.refuses(r"layers\[6\]: z: 4 units, but the weight has 3 columns"):
        updates(side, narrow, *operands[1:], cell="gru")


def test_steps_that_do_not_follow_each_other_share_no_products() -> None:
    from prograde.accelerated import recurrent
    from prograde.accelerated.layers import Dense, forward

    dense = Dense(torch.eye(3), None)
    steps = recurrent.unrolled([recurrent.RecurrentLayer(recurrent.elman(), dense, dense)], torch.ones(2, 4, 3))
    layers = (*steps[::2], dense)
    clean = forward(layers, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="layers: expected consecutive steps of `unrolled`"):
        recurrent.updates(layers, zip(clean.activities, clean.inputs, strict=True))
