"""Several recurrent layers, and sequences of several lengths: twin against reference, autograd, and samples alone."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.test_recurrent import GATES, PARTS, make_cell, present
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

LIBRARY: dict[str, Any] = {"tanh": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
ALGORITHMS = ("backprop", "first", "every")
"""Backpropagation through time, and forward target propagation by its `inject`."""


class Stack(NamedTuple):
    """Recurrent layers by their cells, each with W_x, W_h, b_x and b_h, then the output; x, labels, lengths or None."""

    cells: tuple[str, ...]
    weights: tuple[Any, ...]
    x: Any
    labels: Any
    lengths: Any
    feedback: Any

    @property
    def operands(self) -> tuple[Any, ...]:
        return self[1:]

    @property
    def sizes(self) -> list[int]:
        """Units of each layer."""
        return [weight.shape[1] for _, weight, _, _ in self.weights[:-1]]


@st.composite
def stacks(draw: st.DrawFn, depths: tuple[int, ...] = (1, 2, 3), padded: bool | None = None) -> Stack:
    depth = draw(st.sampled_from(depths), label="depth")
    cells = tuple(draw(st.sampled_from([*LIBRARY]), label="cell") for _ in range(depth))
    sizes = [draw(st.sampled_from([2, 3, 5, 8]), label="size") for _ in range(depth + 1)]
    outputs, length = draw(st.integers(2, 4), label="outputs"), draw(st.sampled_from([2, 3, 5]), label="length")
    batch, biases = draw(st.sampled_from([1, 2, 3, 5]), label="batch"), draw(st.booleans(), label="biases")
    several = draw(st.booleans(), label="several lengths") if padded is None else padded
    rng = draw(seeds())

    def normal(rows: int, columns: int) -> Any:
        return rng.standard_normal((rows, columns)) / np.sqrt(columns)

    def bias(rows: int) -> Any:
        return 0.3 * rng.standard_normal(rows) if biases else None

    layers = []
    for cell, n_0, n in zip(cells, sizes, sizes[1:], strict=False):
        rows = GATES.get(cell, 1) * n
        layers.append((normal(rows, n_0), normal(rows, n), bias(rows), bias(rows)))
    output = normal(outputs, sizes[-1]), bias(outputs)
    lengths = rng.integers(1, length + 1, batch) if several else None
    x, labels = rng.standard_normal((batch, length, sizes[0])), rng.integers(0, outputs, batch)
    feedback = tuple(rng.standard_normal((n, outputs)) for n in sizes[1:])
    return Stack(cells, (*layers, output), x, labels, lengths, feedback)


def chain(side: Side, cells: tuple[str, ...], weights: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
    """The layers of a network of this side on x, and the state that they begin with."""
    module, dense = side.recurrent, side.layers.Dense
    *layers, output = weights
    stack = [
        module.RecurrentLayer(make_cell(side, cell), dense(w_x, b_x), dense(w_h, b_h))
        for cell, (w_x, w_h, b_x, b_h) in zip(cells, layers, strict=True)
    ]
    start = 0 * x[:, 0, :1] * weights[0][1][:1, :1].repeat(*counted(x, module.state_size(stack)))
    return (*module.unrolled(stack, x, lengths), dense(*output)), start


def counted(x: Any, width: int) -> tuple[int, ...]:
    """How often a tensor of one number, or an array, is repeated for so many columns."""
    return (1, width) if isinstance(x, torch.Tensor) else (width, 1)


def along(kappa: Any, length: int) -> Any:
    """(batch, n) at each of so many steps, (batch, length, n)."""
    shape = len(kappa), length, kappa.shape[1]
    return kappa[:, None].expand(shape) if isinstance(kappa, torch.Tensor) else np.broadcast_to(kappa[:, None], shape)


def corrections(side: Side, steps: Any, feedback: Any, error: Any, length: int, every: bool) -> tuple[Any, Any]:
    """kappa_1 of the lowest layer as that of the state, and those of later steps; phi = identity."""
    each = [along(side.ftp.first_difference(matrix, -error, error), length) for matrix in feedback]
    first, *later = side.recurrent.at_steps(steps, each)
    return first, later if every else ()


def updates(
    side: Side,
    weights: Any,
    x: Any,
    labels: Any,
    lengths: Any,
    feedback: Any,
    cells: tuple[str, ...],
    algorithm: str,
    reduction: str = "sum",
) -> Any:
    layers, start = chain(side, cells, weights, x, lengths)
    clean = side.layers.forward(layers, start)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    if algorithm == "backprop":
        factors = side.backprop.update_factors(layers, clean, error)
    else:
        first, later = corrections(side, layers[:-1], feedback, error, x.shape[1], algorithm == "every")
        factors = side.ftp.update_factors(layers, clean, error, first, later=later)
    return side.recurrent.updates(layers, factors, reduction)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=stacks(), reduction=st.sampled_from(["sum", "mean"]))
def test_updates(twin: Side, compare: Comparison, algorithm: str, case: Stack, reduction: str):
    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, case.cells, algorithm, reduction)

    compare(twin, "updates", ours, *case.operands)


def library(case: Stack) -> tuple[list[Any], nn.Linear]:
    """The operands as PyTorch's own modules, one for each layer."""
    *layers, (weight, bias) = case.weights
    modules: list[Any] = [
        LIBRARY[cell](w_x.shape[1], w_h.shape[1], bias=b_x is not None, batch_first=True, dtype=torch.float64)
        for cell, (w_x, w_h, b_x, _) in zip(case.cells, layers, strict=True)
    ]
    output = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=torch.float64)
    with torch.no_grad():
        for module, values in zip([*modules, output], case.weights, strict=True):
            for parameter, value in zip(module.parameters(), present(values), strict=True):
                parameter.copy_(torch.as_tensor(value))
    return modules, output


@given(case=stacks())
def test_backprop_through_time_is_autograd_of_packed_sequences(side: Side, case: Stack):
    """Of PyTorch's own modules, one on top of the other, from their last states."""
    modules, output = library(case)
    lengths = [case.x.shape[1]] * len(case.x) if case.lengths is None else case.lengths.tolist()
    h = nn.utils.rnn.pack_padded_sequence(torch.tensor(case.x), lengths, batch_first=True, enforce_sorted=False)
    for module in modules:
        h, last = module(h)
    last = last[0] if isinstance(last, tuple) else last
    nn.functional.cross_entropy(output(last[0]), torch.tensor(case.labels)).backward()
    found = side.results(updates(side, *side.operands(case.operands), case.cells, "backprop"))
    for number, (module, ours) in enumerate(zip([*modules, output], found, strict=True)):
        for (name, parameter), a in zip(module.named_parameters(), ours, strict=True):
            b, bound = parameter.grad.cpu().numpy(), 256 * case.x.shape[1] * len(modules) * side.eps
            assert np.max(np.abs(a - b)) <= bound * max(1.0, np.max(np.abs(b))), f"layer {number}: {name}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=stacks(padded=True), reduction=st.sampled_from(["sum", "mean"]))
def test_padded_samples_learn_as_alone(side: Side, compare: Comparison, algorithm: str, case: Stack, reduction: str):
    """The batch's updates are the mean of those of each sample without its padding."""

    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, case.cells, algorithm, reduction)

    def alone(side: Side, weights: Any, x: Any, labels: Any, lengths: Any, feedback: Any) -> Any:
        each = [
            updates(
                side, weights, x[i : i + 1, :n], labels[i : i + 1], None, feedback, case.cells, algorithm, reduction
            )
            for i, n in enumerate(lengths)
        ]
        return tuple(tuple(sum(u) / len(x) for u in zip(*layer, strict=True)) for layer in zip(*each, strict=True))

    compare(side, algorithm, ours, *case.operands, expected=alone)


def by_hand(case: Stack, kappas: list[Any], every: bool) -> tuple[list[Any], list[Any]]:
    """h and tau of each layer, (batch, T, n), from PyTorch's own modules run a step at a time, in float64."""
    modules, _ = library(case)
    first = torch.tensor(case.x)
    h, tau = first, first
    states, targets = [], []
    for place, (module, kappa) in enumerate(zip(modules, kappas, strict=True)):
        of_h, of_tau = None, None
        seen, aimed = [], []
        for t in range(case.x.shape[1]):
            _, of_h = module(h[:, t : t + 1], of_h)
            _, of_tau = module(tau[:, t : t + 1], of_tau)
            seen.append(of_h[0][0] if isinstance(of_h, tuple) else of_h[0])
            if every or (t, place) == (0, 0):
                if isinstance(of_tau, tuple):
                    of_tau = (of_tau[0] - torch.tensor(kappa), of_tau[1])
                else:
                    of_tau = of_tau - torch.tensor(kappa)
            aimed.append(of_tau[0][0] if isinstance(of_tau, tuple) else of_tau[0])
        h, tau = torch.stack(seen, dim=1), torch.stack(aimed, dim=1)
        states.append(h.detach().cpu().numpy())
        targets.append(tau.detach().cpu().numpy())
    return states, targets


@pytest.mark.parametrize("every", [False, True])
@given(case=stacks(padded=False))
def test_targets_are_the_networks_own_run_with_corrections(side: Side, every: bool, case: Stack):
    """A second run of PyTorch's modules, in which h of the lowest layer's first step, or every h, is corrected."""
    cells, length = case.cells, case.x.shape[1]
    weights, x, feedback, labels = side.operands((case.weights, case.x, case.feedback, case.labels))
    layers, start = chain(side, cells, weights, x, None)
    clean = side.layers.forward(layers, start)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    first, later = corrections(side, layers[:-1], feedback, error, length, every)
    found = side.results(tuple(side.ftp.differences(layers, clean, first, later=later)))
    kappas = [side.results(error).astype(float) @ matrix.T for matrix in case.feedback]
    states, targets = by_hand(case, kappas, every)
    for number, difference in enumerate(found):
        t, place = divmod(number, len(cells))
        start_of = sum(PARTS.get(cell, 1) * n for cell, n in zip(cells[:place], case.sizes, strict=False))
        expected = states[place][:, t] - targets[place][:, t]
        ours = difference[:, start_of : start_of + case.sizes[place]]
        bound = 256 * (number + 1) * side.eps * max(1.0, *(float(np.max(np.abs(kappa))) for kappa in kappas))
        assert np.max(np.abs(ours - expected)) <= bound, f"step {t + 1}, layer {place + 1}"


@given(case=stacks(depths=(2, 3), padded=False), every=st.booleans())
def test_the_local_losses_are_descended(side: Side, case: Stack, every: bool):
    """By autograd, of 1/2 |state - tau|^2 of every cell and step, whose inputs and targets are held fixed."""
    if side.eps > 1e-8:
        pytest.skip("rounding of targets is not what is looked at")
    cells, length = case.cells, case.x.shape[1]
    weights, x, labels, _, feedback = side.operands(case.operands)
    layers, start = chain(side, cells, weights, x, None)
    clean = side.layers.forward(layers, start)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    first, later = corrections(side, layers[:-1], feedback, error, length, every)
    differences = side.results(tuple(side.ftp.differences(layers, clean, first, later=later)))
    states = side.results((start, *clean.activities[:-1]))
    modules, _ = library(case)
    total: Any = 0
    for number, difference in enumerate(differences):
        t, place = divmod(number, len(cells))
        widths = [PARTS.get(cell, 1) * n for cell, n in zip(cells, case.sizes, strict=True)]
        own = slice(sum(widths[:place]), sum(widths[: place + 1]))
        n, before = case.sizes[place], torch.tensor(states[number][:, own])
        below = slice(sum(widths[: place - 1]), sum(widths[: place - 1]) + case.sizes[place - 1])
        given_x = torch.tensor(case.x[:, t] if place == 0 else states[number][:, below])
        if cells[place] == "lstm":
            old = (before[None, :, :n].contiguous(), before[None, :, n:].contiguous())
            _, (h, c) = modules[place](given_x[:, None], old)
            state = torch.cat([h[0], c[0]], dim=1)
        else:
            state = modules[place](given_x[:, None], before[None])[1][0]
        target = torch.tensor(states[number + 1][:, own] - difference[:, own])
        total = total + 0.5 * (state - target).square().sum() / len(case.x)
    total.backward()
    found = side.results(updates(side, *side.operands(case.operands), cells, "every" if every else "first"))
    for place, (module, ours) in enumerate(zip(modules, found[:-1], strict=True)):
        for (name, parameter), a in zip(module.named_parameters(), ours, strict=True):
            b = parameter.grad.cpu().numpy()
            assert np.max(np.abs(a - b)) <= 1e-10 * max(1.0, np.max(np.abs(b))), f"layer {place + 1}: {name}"


@given(case=stacks(), rng=seeds(), number=st.integers(0, 5))
def test_a_steps_difference_is_that_of_two_values(
    side: Side, compare: Comparison, case: Stack, rng: np.random.Generator, number: int
):
    """Whichever cell takes it, whether samples have ended or not."""
    u = rng.standard_normal(
        (2, len(case.x), sum(PARTS.get(c, 1) * n for c, n in zip(case.cells, case.sizes, strict=True)))
    )

    def step(side: Side, weights: Any, x: Any, lengths: Any) -> Any:
        *steps, _ = chain(side, case.cells, weights, x, lengths)[0]
        return steps[number % len(steps)]

    def difference(side: Side, weights: Any, x: Any, lengths: Any, both: Any) -> Any:
        return step(side, weights, x, lengths).difference(*both)

    def of_values(reference: Side, weights: Any, x: Any, lengths: Any, both: Any) -> Any:
        z, u = both
        found = step(reference, weights, x, lengths)
        return found.value(z) - found.value(z - u)

    compare(side, "difference", difference, case.weights, case.x, case.lengths, tuple(u), expected=of_values)


def test_a_part_of_a_state_is_a_step(side: Side):
    """Its value, derivatives and difference: linear, and each other's transpose."""
    rng = np.random.default_rng(0)
    part = side.recurrent.Part(1, 3, 5)
    h, u, d = (rng.standard_normal(shape) for shape in ((4, 5), (4, 5), (4, 2)))
    given_h, given_u, given_d = side.operands((h, u, d))
    rounded_h, rounded_u, rounded_d = side.results((given_h, given_u, given_d))
    assert np.array_equal(side.results(part.value(given_h)), rounded_h[:, 1:3])
    assert np.array_equal(side.results(part.jvp(given_h, given_u)), rounded_u[:, 1:3])
    assert np.array_equal(side.results(part.difference(given_h, given_u)), rounded_u[:, 1:3])
    pulled = side.results(part.vjp(given_h, given_d))
    assert np.array_equal(pulled, np.pad(rounded_d, ((0, 0), (1, 2)))), "a part's cotangent"
    whole = side.recurrent.Part(0, 5, 5)
    assert whole.value(given_h) is given_h
