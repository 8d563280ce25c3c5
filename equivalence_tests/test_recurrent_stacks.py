"""Stacks of recurrent layers, tokens, several lengths, labels per step: twins, autograd, and samples alone."""

from itertools import pairwise
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


IGNORED = -1
"""The label of a step that has none."""


class Stack(NamedTuple):
    """Recurrent layers by their cells, each with W_x, W_h, b_x and b_h, then the output; lengths or None.

    `table` is an embedding of the tokens x, or None. Labels are (batch,), or (batch, T) with some of them ignored.
    """

    cells: tuple[str, ...]
    weights: tuple[Any, ...]
    table: Any
    x: Any
    labels: Any
    lengths: Any
    feedback: Any

    @property
    def operands(self) -> tuple[Any, ...]:
        return self[1:]

    @property
    def per_step(self) -> bool:
        return bool(self.labels.ndim == 2)

    @property
    def units(self) -> list[int]:
        """Of each layer of the stack, which have corrections: what is embedded, and h."""
        embedded = [] if self.table is None else [self.table.shape[1]]
        return [*embedded, *(weight.shape[1] for _, weight, _, _ in self.weights[:-1])]

    @property
    def places(self) -> list[slice]:
        """The part of the state that each layer of the stack has."""
        parts = [1] * (self.table is not None) + [PARTS.get(cell, 1) for cell in self.cells]
        ends = np.cumsum([0, *(k * n for k, n in zip(parts, self.units, strict=True))]).tolist()
        return [slice(*pair) for pair in pairwise(ends)]


@st.composite
def stacks(
    draw: st.DrawFn, depths: tuple[int, ...] = (1, 2, 3), padded: bool | None = None, per_step: bool | None = None
) -> Stack:
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
    x, labels, table = rng.standard_normal((batch, length, sizes[0])), rng.integers(0, outputs, batch), None
    if draw(st.booleans(), label="tokens"):
        table, x = rng.standard_normal((4, sizes[0])), rng.integers(0, 4, (batch, length))
    if draw(st.booleans(), label="a label of each step") if per_step is None else per_step:
        labels = rng.integers(IGNORED, outputs, (batch, length))
        labels[0, 0] = 0
        if lengths is not None:
            labels[np.arange(length) >= lengths[:, None]] = IGNORED
    feedback = tuple(rng.standard_normal((n, outputs)) for n in sizes[table is None :])
    return Stack(cells, (*layers, output), table, x, labels, lengths, feedback)


def stack_of_tokens() -> Stack:
    """One layer, three steps of four samples, each with one label."""
    rng = np.random.default_rng(3)
    layer = rng.standard_normal((5, 2)) / 2, rng.standard_normal((5, 5)) / 2, None, None
    output, table = (rng.standard_normal((3, 5)), None), rng.standard_normal((4, 2))
    x, labels = rng.permutation(12).reshape(4, 3) % 4, np.array([0, 1, 2, 0])
    feedback = rng.standard_normal((2, 3)), rng.standard_normal((5, 3))
    return Stack(("tanh",), (layer, output), table, x, labels, None, feedback)


def stack_of_lengths() -> Stack:
    """One layer, samples of one, three and two steps; the third's first step has no label."""
    rng = np.random.default_rng(4)
    layer = rng.standard_normal((5, 2)) / 2, rng.standard_normal((5, 5)) / 2, None, None
    labels = np.array([[0, IGNORED, IGNORED], [2, 1, 0], [IGNORED, 2, IGNORED]])
    output, x = (rng.standard_normal((3, 5)), None), rng.standard_normal((3, 3, 2))
    return Stack(("tanh",), (layer, output), None, x, labels, np.array([1, 3, 2]), (rng.standard_normal((5, 3)),))


def chain(side: Side, cells: tuple[str, ...], weights: Any, table: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
    """The layers of a network of this side on x, and the state that they begin with."""
    module, dense = side.recurrent, side.layers.Dense
    *layers, output = weights
    stack = [
        module.RecurrentLayer(make_cell(side, cell), dense(w_x, b_x), dense(w_h, b_h))
        for cell, (w_x, w_h, b_x, b_h) in zip(cells, layers, strict=True)
    ]
    stack = stack if table is None else [side.embedding.Embedding(table), *stack]
    zero = 0 * weights[0][1][:1, :1]
    start = zero.repeat(*counted(x, module.state_size(stack)))[[0] * len(x)]
    return (*module.unrolled(stack, x, lengths), dense(*output)), start


def counted(x: Any, width: int) -> tuple[int, ...]:
    """How often a tensor of one number, or an array, is repeated for so many columns."""
    return (1, width) if isinstance(x, torch.Tensor) else (width, 1)


def along(kappa: Any, length: int) -> Any:
    """(batch, n) at each of so many steps, (batch, length, n)."""
    shape = len(kappa), length, kappa.shape[1]
    return kappa[:, None].expand(shape) if isinstance(kappa, torch.Tensor) else np.broadcast_to(kappa[:, None], shape)


def kappas(side: Side, feedback: Any, error: Any, length: int) -> list[Any]:
    """The corrections of the layers of the stack, (batch, T, n) each, but for their sign; phi = identity."""
    rows = error.reshape(-1, error.shape[-1])
    each = [side.ftp.first_difference(matrix, -rows, rows) for matrix in feedback]
    if error.ndim == 2:
        return [along(kappa, length) for kappa in each]
    return [kappa.reshape(*error.shape[:2], kappa.shape[1]) for kappa in each]


def differences(side: Side, layers: Any, clean: Any, feedback: Any, error: Any, length: int, every: bool) -> Any:
    """h_l - tau_l; corrected is the lowest layer or every one, of one label of a sample at the first step or at all.

    Of tokens every step's embedding is corrected, since no state comes to it.
    """
    *steps, _ = layers
    each: list[Any] = kappas(side, feedback, error, length)
    found = side.recurrent.at_steps(steps, each if every else [each[0], *[None] * (len(each) - 1)])
    if error.ndim == 3:
        return side.recurrent.differences_per_step(layers, clean, found)
    alone = not every and not hasattr(steps[0].layer, "table")
    return side.ftp.differences(layers, clean, found[0], later=() if alone else found[1:])


def passed(side: Side, layers: Any, start: Any, labels: Any) -> tuple[Any, Any, int]:
    """The pass, e, and the number of labels."""
    if labels.ndim == 1:
        clean = side.layers.forward(layers, start)
        return clean, side.losses.cross_entropy_gradient(clean.scores, labels), len(labels)
    clean = side.recurrent.forward_per_step(layers, start)
    error = side.losses.cross_entropy_gradient(clean.scores, labels, ignore_index=IGNORED)
    return clean, error, side.losses.counted(clean.scores, labels, IGNORED)


def updates(
    side: Side,
    weights: Any,
    table: Any,
    x: Any,
    labels: Any,
    lengths: Any,
    feedback: Any,
    cells: tuple[str, ...],
    algorithm: str,
    reduction: str = "sum",
) -> Any:
    layers, start = chain(side, cells, weights, table, x, lengths)
    clean, error, count = passed(side, layers, start, labels)
    if algorithm == "backprop":
        module = side.backprop.update_factors if labels.ndim == 1 else side.recurrent.factors_per_step
        factors = module(layers, clean, error)
    else:
        found = differences(side, layers, clean, feedback, error, x.shape[1], algorithm == "every")
        factors = side.ftp.local_factors(layers, clean, error, found)
    each = side.recurrent.updates(layers, factors, reduction)
    return tuple(side.layers.per_label(update, len(x), count) for update in each)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=stacks(), reduction=st.sampled_from(["sum", "mean"]))
def test_updates(twin: Side, compare: Comparison, algorithm: str, case: Stack, reduction: str) -> None:
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


def embedded(case: Stack) -> tuple[Any, list[Any]]:
    """x, or what its tokens are embedded as, and the table as a parameter, if there is one."""
    if case.table is None:
        return torch.tensor(case.x), []
    table = torch.tensor(case.table, requires_grad=True)
    return nn.functional.embedding(torch.tensor(case.x), table), [table]


@pytest.mark.parametrize("per_step", [False, True])
@given(data=st.data())
def test_backprop_through_time_is_autograd_of_packed_sequences(side: Side, per_step: bool, data: st.DataObject) -> None:
    """Of PyTorch's own modules, one on top of the other, from their last states, or from all of them."""
    case = data.draw(stacks(padded=True, per_step=per_step), label="case")
    modules, output = library(case)
    h, tables = embedded(case)
    h = nn.utils.rnn.pack_padded_sequence(h, case.lengths.tolist(), batch_first=True, enforce_sorted=False)
    for module in modules:
        h, last = module(h)
    last = last[0] if isinstance(last, tuple) else last
    if case.per_step:
        states, _ = nn.utils.rnn.pad_packed_sequence(h, batch_first=True)
        labels = torch.tensor(case.labels)[:, : states.shape[1]]
        loss = nn.functional.cross_entropy(output(states).flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    else:
        loss = nn.functional.cross_entropy(output(last[0]), torch.tensor(case.labels))
    loss.backward()
    found = side.results(updates(side, *side.operands(case.operands), case.cells, "backprop"))
    parameters = [tables, *([*module.parameters()] for module in (*modules, output))][not tables :]
    bound = 256 * case.x.shape[1] * len(modules) * side.eps
    for number, (layer, ours) in enumerate(zip(parameters, found, strict=True)):
        for parameter, a in zip(layer, ours, strict=True):
            b = parameter.grad.cpu().numpy()
            assert np.max(np.abs(a - b)) <= bound * max(1.0, np.max(np.abs(b))), f"layer {number}"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(case=stacks(padded=True), reduction=st.sampled_from(["sum", "mean"]))
def test_padded_samples_learn_as_alone(
    side: Side, compare: Comparison, algorithm: str, case: Stack, reduction: str
) -> None:
    """The batch's updates are the mean of those of each sample without its padding, by its labels."""

    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, case.cells, algorithm, reduction)

    def alone(side: Side, weights: Any, table: Any, x: Any, labels: Any, lengths: Any, feedback: Any) -> Any:
        each, counts = [], []
        for i, n in enumerate(lengths):
            own = labels[i : i + 1, :n] if labels.ndim == 2 else labels[i : i + 1]
            operands = weights, table, x[i : i + 1, :n], own, None, feedback
            each.append(updates(side, *operands, case.cells, algorithm, reduction))
            counts.append(np.sum(own != IGNORED))

        def mean(parts: Any) -> Any:
            return sum(count * part for count, part in zip(counts, parts, strict=True)) / sum(counts)

        return tuple(tuple(map(mean, zip(*layer, strict=True))) for layer in zip(*each, strict=True))

    compare(side, algorithm, ours, *case.operands, expected=alone)


def corrected(case: Stack, step: int, place: int, every: bool) -> bool:
    """Whether the target of that layer of the stack is corrected at that step."""
    return every or (place == 0 and (step == 0 or case.per_step or case.table is not None))


def by_hand(case: Stack, found: list[Any], every: bool) -> list[Any]:
    """h - tau of each layer, (batch, T, n), from PyTorch's own modules run a step at a time; `found` are kappas."""
    modules, _ = library(case)
    h = tau = embedded(case)[0]
    differences = []
    if case.table is not None:
        tau = h - torch.tensor(found[0])
        differences.append((h - tau).detach().cpu().numpy())
    for place, module in enumerate(modules, case.table is not None):
        of_h, of_tau = None, None
        seen, aimed = [], []
        for t in range(case.x.shape[1]):
            _, of_tau = module(tau[:, t : t + 1], of_h if case.per_step else of_tau)
            _, of_h = module(h[:, t : t + 1], of_h)
            kappa = torch.tensor(found[place][:, t]) if corrected(case, t, place, every) else 0
            of_tau = (of_tau[0] - kappa, of_tau[1]) if isinstance(of_h, tuple) else of_tau - kappa
            seen.append(of_h[0][0] if isinstance(of_h, tuple) else of_h[0])
            aimed.append(of_tau[0][0] if isinstance(of_h, tuple) else of_tau[0])
        h, tau = torch.stack(seen, dim=1), torch.stack(aimed, dim=1)
        differences.append((h - tau).detach().cpu().numpy())
    return differences


@pytest.mark.parametrize("every", [False, True])
@given(case=stacks(padded=False))
def test_targets_are_the_networks_own_run_with_corrections(side: Side, every: bool, case: Stack) -> None:
    """A second run of PyTorch's modules, in which the first h, or every h, is corrected.

    Where every step has a label, each is run from the first run's state before it.
    """
    weights, table, x, labels, _, feedback = side.operands(case.operands)
    layers, start = chain(side, case.cells, weights, table, x, None)
    clean, error, _ = passed(side, layers, start, labels)
    found = side.results(tuple(differences(side, layers, clean, feedback, error, case.x.shape[1], every)))
    wanted = [np.array(kappa, float) for kappa in side.results(kappas(side, feedback, error, case.x.shape[1]))]
    expected = by_hand(case, wanted, every)
    size = max(1.0, *(float(np.max(np.abs(kappa))) for kappa in wanted))
    for number, difference in enumerate(found):
        t, place = divmod(number, len(case.units))
        ours = difference[:, case.places[place]][:, : case.units[place]]
        bound = 256 * (number + 1) * side.eps * size
        assert np.max(np.abs(ours - expected[place][:, t])) <= bound, f"step {t + 1}, layer {place + 1}"


@given(case=stacks(padded=False), every=st.booleans())
def test_the_local_losses_are_descended(side: Side, case: Stack, every: bool) -> None:
    """By autograd, of 1/2 |state - tau|^2 of every cell and step, whose inputs and targets are held fixed."""
    if side.eps > 1e-8:
        pytest.skip("rounding of targets is not what is looked at")
    weights, table, x, labels, _, feedback = side.operands(case.operands)
    layers, start = chain(side, case.cells, weights, table, x, None)
    clean, error, count = passed(side, layers, start, labels)
    each = side.results(tuple(differences(side, layers, clean, feedback, error, case.x.shape[1], every)))
    states = side.results((start, *clean.activities[:-1]))
    modules, _ = library(case)
    inputs, tables = embedded(case)
    total: Any = 0
    for number, difference in enumerate(each):
        t, place = divmod(number, len(case.units))
        own, n = case.places[place], case.units[place]
        before = torch.tensor(states[number][:, own])
        if tables and place == 0:
            state = inputs[:, t]
        else:
            below = states[number][:, case.places[place - 1]][:, : case.units[place - 1]]
            taken = torch.tensor(case.x[:, t] if place == 0 else below)[:, None]
            module = modules[place - len(tables)]
            if isinstance(module, nn.LSTM):
                _, both = module(taken, (before[None, :, :n].contiguous(), before[None, :, n:].contiguous()))
                state = torch.cat([part[0] for part in both], dim=1)
            else:
                state = module(taken, before[None])[1][0]
        target = torch.tensor(states[number + 1][:, own] - difference[:, own])
        total = total + 0.5 * (state - target).square().sum() / count
    total.backward()
    found = side.results(updates(side, *side.operands(case.operands), case.cells, "every" if every else "first"))
    parameters = [tables, *([*module.parameters()] for module in modules)][not tables :]
    for place, (layer, ours) in enumerate(zip(parameters, found[:-1], strict=True)):
        for parameter, a in zip(layer, ours, strict=True):
            b = parameter.grad.cpu().numpy()
            assert np.max(np.abs(a - b)) <= 1e-10 * max(1.0, np.max(np.abs(b))), f"layer {place + 1}"


@given(case=stacks(), rng=seeds(), number=st.integers(0, 5))
def test_a_steps_difference_is_that_of_two_values(
    side: Side, compare: Comparison, case: Stack, rng: np.random.Generator, number: int
) -> None:
    """Whichever cell takes it, whether samples have ended or not."""
    u = rng.standard_normal((2, len(case.x), case.places[-1].stop))

    def step(side: Side, weights: Any, table: Any, x: Any, lengths: Any) -> Any:
        *steps, _ = chain(side, case.cells, weights, table, x, lengths)[0]
        return steps[number % len(steps)]

    def difference(side: Side, *operands: Any) -> Any:
        *of_chain, (z, u) = operands
        return step(side, *of_chain).difference(z, u)

    def of_values(reference: Side, *operands: Any) -> Any:
        *of_chain, (z, u) = operands
        found = step(reference, *of_chain)
        return found.value(z) - found.value(z - u)

    compare(
        side, "difference", difference, case.weights, case.table, case.x, case.lengths, tuple(u), expected=of_values
    )


def test_a_part_of_a_state_is_a_step(side: Side) -> None:
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
    for rows in (2, 5):  # 5: as many samples as the state has numbers
        with side.refuses(rf"state: shape \({rows}, 4\), expected \({rows}, 5\)"):
            part.value(side.operands(np.ones((rows, 4))))
