"""Recurrent networks and backpropagation through time: twin against reference, and both against autograd."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import BATCHES, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""

CELLS = ("identity", "tanh", "gru")
"""The GRU, or Elman's cell by its activation."""

KINDS: dict[str, tuple[str, ...]] = {"elman": ("identity", "tanh"), "gru": ("gru",)}
LIBRARY: dict[str, tuple[str, ...]] = {"elman": ("tanh",), "gru": ("gru",)}
"""What PyTorch has, too."""


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
    rows = 3 * n if cell == "gru" else n
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
    return side.recurrent.gru if cell == "gru" else side.recurrent.elman(side.activations.ACTIVATIONS[cell])


def recurrent(side: Side, cell: str, weights: Any) -> Any:
    """A network of this side, for its functions."""
    return side.recurrent.RecurrentParameters(*weights, make_cell(side, cell))


def library(cell: str, weights: Weights, dtype: torch.dtype = torch.float64) -> tuple[Any, nn.Linear]:
    """The operands as PyTorch's own modules."""
    n_in, n, biases = weights.weight_ih.shape[1], weights.weight_hh.shape[1], weights.bias_ih is not None
    kind = nn.GRU if cell == "gru" else nn.RNN
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
def test_forward(twin: Side, compare: Comparison, kind: str, data: st.DataObject):
    case = data.draw(sequences(KINDS[kind], lengths=(2, 3, 7)), label="case")

    def forward(side: Side, weights: Any, x: Any) -> Any:
        return side.recurrent.forward(recurrent(side, case.cell, weights), x)[1:]

    compare(twin, "forward", forward, case.weights, case.x)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds())
def test_cell(twin: Side, compare: Comparison, kind: str, data: st.DataObject, rng: np.random.Generator):
    """Its value, its derivative and its difference for a step of any size."""
    case = data.draw(sequences(KINDS[kind], lengths=(3,)), label="case")
    n, rows = case.weights.weight_hh.shape[1], len(case.weights.weight_hh)
    batch = len(case.x)
    p, q, u = (rng.standard_normal((batch, rows)) for _ in range(3))
    h, d, v = (rng.standard_normal((batch, n)) for _ in range(3))

    def step(side: Side, p: Any, q: Any, h: Any, d: Any, u: Any, v: Any) -> Any:
        cell = make_cell(side, case.cell)
        pulled = cell.vjp(p, q, h, d)
        return cell.value(p, q, h), pulled if case.cell == "gru" else pulled[:2], cell.difference(p, q, h, u, v)

    compare(twin, f"{case.cell} step", step, p, q, h, d, u, v)


@pytest.mark.parametrize("gate", [0, 1, 2])
def test_derivatives_of_saturated_gates_keep_their_digits(side: Side, gate: int):
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
def test_a_cells_derivative_is_that_of_its_value(side: Side, kind: str, data: st.DataObject, rng: np.random.Generator):
    """<d, difference of a small step> / size = <vjp(d), step>, to first order."""
    case = data.draw(sequences(KINDS[kind], lengths=(3,)), label="case")
    if side.eps > 1e-8:
        pytest.skip("a finite difference needs float64")
    n, rows = case.weights.weight_hh.shape[1], len(case.weights.weight_hh)
    batch, size = len(case.x), 1e-6
    p, q, s, u = (rng.standard_normal((batch, rows)) for _ in range(4))
    h, d, v = (rng.standard_normal((batch, n)) for _ in range(3))
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
):
    """value(p, q, h) - value(p, q - u, h - v)."""
    case = data.draw(sequences(KINDS[kind], lengths=(3,)), label="case")
    n, rows = case.weights.weight_hh.shape[1], len(case.weights.weight_hh)
    p, q, u = (rng.standard_normal((len(case.x), rows)) for _ in range(3))
    h, v = (rng.standard_normal((len(case.x), n)) for _ in range(2))
    cell = make_cell(side, case.cell)
    found = side.results(cell.difference(*side.operands((p, q, h, u, v))))
    expected = side.results(cell.value(*side.operands((p, q, h)))) - side.results(
        cell.value(*side.operands((p, q - u, h - v)))
    )
    assert np.max(np.abs(found - expected)) <= 64 * side.eps, "difference of two steps"


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_pass_is_that_of_pytorch(side: Side, kind: str, data: st.DataObject):
    """States and outputs of nn.RNN and nn.GRU with the same parameters."""
    case = data.draw(sequences(LIBRARY[kind]), label="case")
    weights, x = side.operands((case.weights, case.x))
    found = side.recurrent.forward(recurrent(side, case.cell, weights), x)
    layer, output = library(case.cell, case.weights)
    states, _ = layer(torch.tensor(case.x))
    expected = states.detach().cpu().numpy().swapaxes(0, 1)
    bound = 64 * case.length * side.eps
    assert np.max(np.abs(side.results(found.states)[1:] - expected)) <= bound, "states"
    scores = output(states[:, -1]).detach().cpu().numpy()
    assert np.max(np.abs(side.results(found.outputs) - scores)) <= bound, "outputs"
    assert not side.results(found.states)[0].any(), "the first state is zero"


def updates(side: Side, weights: Any, x: Any, y: Any, cell: str, loss: str = "", **options: Any) -> Any:
    gradient = side.recurrent.residuals if loss == "squared_error" else side.losses.cross_entropy_gradient
    return side.backprop_through_time.updates(recurrent(side, cell, weights), x, y, gradient, **options)


truncations = st.sampled_from([None, 1, 2, 5, 9])


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), truncation=truncations, regression=st.booleans())
def test_updates(
    twin: Side, compare: Comparison, kind: str, data: st.DataObject, truncation: int | None, regression: bool
):
    case = data.draw(sequences(KINDS[kind]), label="case")

    def ours(side: Side, *operands: Any) -> Any:
        loss = "squared_error" if regression else ""
        found = updates(side, *operands, cell=case.cell, loss=loss, truncation=truncation)
        return without_silent(found, case.length, truncation)

    operands = (case.weights, case.x, case.targets if regression else case.labels)
    compare(twin, "backprop_through_time.updates", ours, *operands)


def without_silent(found: Any, length: int, truncation: int | None = None) -> Any:
    """Without weight_hh where only the first step learns, whose state before is zero."""
    return found._replace(weight_hh=None) if length == 1 else found


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), truncation=truncations)
def test_state_gradients(twin: Side, compare: Comparison, kind: str, data: st.DataObject, truncation: int | None):
    case = data.draw(sequences(KINDS[kind]), label="case")

    def ours(side: Side, weights: Any, x: Any, y: Any) -> Any:
        network = recurrent(side, case.cell, weights)
        clean = side.recurrent.forward(network, x)
        error = side.losses.cross_entropy_gradient(clean.outputs, y)
        return side.backprop_through_time.state_gradients(network, clean, error, truncation)

    compare(twin, "state_gradients", ours, *case.operands)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), truncation=truncations, regression=st.booleans())
def test_backprop_through_time_is_autograd(
    side: Side, kind: str, data: st.DataObject, truncation: int | None, regression: bool
):
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


@given(case=sequences(lengths=(3, 7)))
def test_a_truncation_of_all_steps_is_none(side: Side, case: Sequences):
    operands = side.operands(case.operands)
    whole = updates(side, *operands, cell=case.cell)
    for truncation in (case.length, case.length + 4):
        found = updates(side, *operands, cell=case.cell, truncation=truncation)
        for name, a, b in zip(whole._fields, side.results(whole), side.results(found), strict=True):
            assert (a is None) == (b is None), name
            assert a is None or np.array_equal(a, b), f"{name} at truncation {truncation}"


@given(case=sequences(lengths=(7,)), truncation=st.integers(1, 6), rng=seeds())
def test_inputs_before_the_truncation_are_not_learnt_from(
    side: Side, case: Sequences, truncation: int, rng: np.random.Generator
):
    """Input k steps before the end, alone in its feature, moves that feature's weights only if k <= truncation."""
    x = case.x.copy()
    x[:, :, 0] = 0
    for step in (case.length - truncation, case.length - truncation - 1):
        given_ = x.copy()
        given_[:, step, 0] = rng.uniform(0.5, 1, len(x))
        operands = side.operands((case.weights, given_, case.labels))
        moved = rms(side.results(updates(side, *operands, cell=case.cell, truncation=truncation)).weight_ih[:, 0])
        assert (moved > 0) == (step >= case.length - truncation), f"step {step + 1} at truncation {truncation}"


def test_what_does_not_fit_is_refused(side: Side):
    rng = np.random.default_rng(0)
    weights = random_weights("gru", 3, 4, 2, rng)
    operands = side.operands((weights, rng.standard_normal((5, 6, 3)), np.zeros(5, dtype=np.int64)))
    with pytest.raises(ValueError, match="truncation: 0, expected at least one step, a whole number, or None"):
        updates(side, *operands, cell="gru", truncation=0)
    with pytest.raises(ValueError, match=r"weight_ih, weight_hh: 12 and 12 rows, expected 4, 1 for each of the 4"):
        updates(side, *operands, cell="tanh")
    for shape in ((5, 6), (5, 0, 3), (5, 6, 2)):
        x = side.operands(rng.standard_normal(shape))
        with pytest.raises(ValueError, match=r"x: shape \(5, .*expected \(batch, steps, 3\)"):
            updates(side, operands[0], x, operands[2], cell="gru")
    narrow = operands[0]._replace(weight_out=operands[0].weight_out[:, :3])
    with pytest.raises(ValueError, match="weight_out: 3 columns, but the state has 4 units"):
        updates(side, narrow, *operands[1:], cell="gru")
