"""Forward target propagation through time: twin against reference, and what follows from its equations."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Dense, Side
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.test_recurrent import (
    EXACT,
    KINDS,
    Sequences,
    Weights,
    chain,
    named,
    output_gradient,
    present,
    random_weights,
    sequences,
    without_silent,
)
from prograde.equivalence_tests.test_recurrent import updates as backpropagated
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import ftp, orthogonality

pytestmark = pytest.mark.smoke

every_step = st.booleans()
reductions = st.sampled_from(["sum", "mean"])
projections = st.sampled_from(["identity", "tanh"])


def feedback_for(case: Sequences, rng: np.random.Generator) -> Any:
    outputs, n = case.weights.weight_out.shape
    return ftp.random_feedback(n, outputs, rng)


def updates(
    side: Side,
    weights: Any,
    x: Any,
    y: Any,
    feedback: Any,
    cell: str,
    phi: str = "identity",
    loss: str = "",
    every: bool = False,
    reduction: str = "sum",
    gain: float = 1.0,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
) -> Weights:
    layers, h = chain(side, cell, weights, x)
    clean = side.layers.forward(layers, h)
    gradient = output_gradient(side, loss)
    targets, error = side.ftp.output_error(clean.scores, y, gradient, label_smoothing, temperature)
    activation = side.activations.ACTIVATIONS[phi]
    kappa = side.ftp.first_difference(feedback, targets, temperature * error, activation, gain)
    first, *later = of_states(side, layers, kappa)
    factors = side.ftp.update_factors(layers, clean, error, first, later=later if every else ())
    return named(weights, side.recurrent.updates(layers, factors, reduction))


def of_states(side: Side, layers: Any, kappa: Any) -> Any:
    """The correction (batch, n) of h as that of the state, at every step."""
    *steps, _ = layers
    shape = len(kappa), len(steps), kappa.shape[1]
    is_tensor = isinstance(kappa, torch.Tensor)
    each = kappa[:, None].expand(shape) if is_tensor else np.broadcast_to(kappa[:, None], shape)
    return side.recurrent.at_steps(steps, [each])


@pytest.mark.parametrize("kind", KINDS)
@given(
    data=st.data(),
    rng=seeds(),
    phi=projections,
    every=every_step,
    reduction=reductions,
    gain=st.sampled_from([0.3, 1.0]),
    regression=st.booleans(),
    softened=st.booleans(),
)
def test_updates(
    twin: Side,
    compare: Comparison,
    kind: str,
    data: st.DataObject,
    rng: np.random.Generator,
    phi: str,
    every: bool,
    reduction: str,
    gain: float,
    regression: bool,
    softened: bool,
) -> None:
    case = data.draw(sequences(KINDS[kind]), label="case")
    loss = "squared_error" if regression else ""

    def ours(side: Side, *operands: Any) -> Any:
        options: Any = {"gain": gain, "every": every, "reduction": reduction}
        if softened and not regression:
            options |= {"label_smoothing": 0.3, "temperature": 2.0}
        found = updates(side, *operands, cell=case.cell, phi=phi, loss=loss, **options)
        return without_silent(found, case.length)

    operands = (case.weights, case.x, case.targets if regression else case.labels, feedback_for(case, rng))
    compare(twin, "updates", ours, *operands)


def parts(side: Side, cell: str, weights: Any, x: Any, y: Any, feedback: Any, every: bool = False) -> Any:
    """e, kappa's negative, and all h_t - tau_t."""
    layers, h = chain(side, cell, weights, x)
    clean = side.layers.forward(layers, h)
    error = side.losses.cross_entropy_gradient(clean.scores, y)
    kappa = side.ftp.first_difference(feedback, -error, error)  # phi = identity: p = 0 will do
    first, *later = of_states(side, layers, kappa)
    return error, first, tuple(side.ftp.differences(layers, clean, first, later=later if every else ()))


@pytest.mark.parametrize("kind", ["elman", "gru"])  # in an LSTM's state h is not all
@given(data=st.data(), rng=seeds(), phi=projections, every=every_step, regression=st.booleans())
def test_the_updates_of_a_chain_sum_to_those_of_the_network(
    side: Side,
    compare: Comparison,
    kind: str,
    data: st.DataObject,
    rng: np.random.Generator,
    phi: str,
    every: bool,
    regression: bool,
) -> None:
    """`ftp.updates` takes the steps for layers like any others."""
    case = data.draw(sequences(KINDS[kind]), label="case")
    loss = "squared_error" if regression else ""

    def ours(side: Side, weights: Any, x: Any, y: Any, feedback: Any) -> Any:
        activation = side.activations.ACTIVATIONS[phi]
        layers, h = chain(side, case.cell, weights, x)
        *of_steps, of_output = side.ftp.updates(
            layers, feedback, h, y, output_gradient(side, loss), activation, every=every
        )
        found = named(weights, ([sum(parts) for parts in zip(*of_steps, strict=True)], of_output))
        return without_silent(found, case.length)

    def whole(side: Side, *operands: Any) -> Any:
        return without_silent(updates(side, *operands, case.cell, phi, loss, every), case.length)

    operands = (case.weights, case.x, case.targets if regression else case.labels, feedback_for(case, rng))
    compare(side, "summed", ours, *operands, expected=whole)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds(), every=every_step)
def test_differences(
    twin: Side, compare: Comparison, kind: str, data: st.DataObject, rng: np.random.Generator, every: bool
) -> None:
    case = data.draw(sequences(KINDS[kind]), label="case")

    def ours(side: Side, *operands: Any) -> Any:
        return parts(side, case.cell, *operands, every=every)[2]

    compare(twin, "differences", ours, *case.operands, feedback_for(case, rng))


@given(case=sequences(), rng=seeds(), phi=projections, every=every_step)
def test_where_the_output_is_the_target_no_state_moves(
    side: Side, case: Sequences, rng: np.random.Generator, phi: str, every: bool
) -> None:
    """p = y: both projections are one, and nothing is learnt."""
    weights, x, feedback = side.operands((case.weights, case.x, feedback_for(case, rng)))
    y = side.layers.forward(*chain(side, case.cell, weights, x)).scores
    found = updates(side, weights, x, y, feedback, case.cell, phi, "squared_error", every)
    sizes = [rms(part) for part in present(side.results(found))]
    assert max(sizes) <= 64 * case.length * side.eps, "a parameter moves"


@given(case=sequences(("identity", "tanh"), lengths=(1,)), rng=seeds(), gain=st.sampled_from([0.5, 1.0]))
def test_one_step_is_dense_ftp_and_direct_feedback_alignment(
    side: Side, compare: Comparison, case: Sequences, rng: np.random.Generator, gain: float
) -> None:
    """With phi = identity, B_1 = gamma G, and the state's bias a part of the layer's."""
    weights = case.weights._replace(bias_hh=None if case.weights.bias_hh is None else 0 * case.weights.bias_hh)

    def dense(weights: Any) -> Dense:
        biases = (weights.bias_ih, weights.bias_out)
        return Dense((weights.weight_ih, weights.weight_out), biases, (case.cell, "identity"))

    def ours(side: Side, weights: Any, x: Any, y: Any, feedback: Any) -> Any:
        found = updates(side, weights, x, y, feedback, case.cell, gain=gain)
        return tuple(
            (w,) if b is None else (w, b)
            for w, b in ((found.weight_ih, found.bias_ih), (found.weight_out, found.bias_out))
        )

    def layered(side: Side, weights: Any, x: Any, y: Any, feedback: Any) -> Any:
        return side.ftp.updates(side.chain(dense(weights)), feedback, x[:, 0], y, gain=gain)

    def direct(side: Side, weights: Any, x: Any, y: Any, feedback: Any) -> Any:
        matrices = (np.asarray(gain, feedback.dtype) * feedback,)
        return side.direct_feedback_alignment.updates(side.chain(dense(weights)), matrices, x[:, 0], y)

    operands = (weights, case.x, case.labels, feedback_for(case, rng))
    compare(side, "dense FTP", ours, *operands, expected=layered)
    compare(side, "direct feedback alignment", ours, *operands, expected=direct)


def linear(rng: np.random.Generator, length: int = 6, n: int = 7, orthogonal: bool = False) -> Sequences:
    weights = random_weights("identity", 3, n, 4, rng)
    if orthogonal:
        weights = weights._replace(weight_hh=orthogonality.orthogonal((n, n), rng))
    x = rng.standard_normal((5, length, 3))
    return Sequences("identity", weights, x, rng.integers(0, 4, 5), rng.standard_normal((5, 4)))


@given(rng=seeds())
def test_targets_of_a_linear_cell_are_displaced_by_powers_of_its_weights(side: Side, rng: np.random.Generator) -> None:
    """tau_t - h_t = W_h^(t-1) G (y - p); where every step is corrected, the sum of these up to t."""
    case = linear(rng)
    feedback = feedback_for(case, rng)
    for every in (False, True):
        operands = side.operands((*case.operands, feedback))
        error, first, found = side.results(parts(side, "identity", *operands, every=every))
        carried = -error @ feedback.T
        assert rms(first + carried) <= EXACT * side.eps * rms(carried), "the correction is G (y - p)"
        expected = carried
        for t, difference in enumerate(found):
            if t > 0:
                carried = carried @ case.weights.weight_hh.T
                expected = carried + (expected if every else 0)
            assert rms(difference + expected) <= EXACT * side.eps * rms(expected), f"step {t + 1}, every: {every}"


@given(rng=seeds())
def test_every_step_of_a_linear_cell_has_the_same_inner_product_with_backprop(
    side: Side, compare: Comparison, rng: np.random.Generator
) -> None:
    """<dLoss/dh_t, h_t - tau_t> = e^T W_o W_h^(T-1) G e of all steps: the sign of one tells whether all descend."""
    case = linear(rng)

    def products(side: Side, weights: Any, x: Any, labels: Any, feedback: Any) -> Any:
        _, _, found = parts(side, "identity", weights, x, labels, feedback)
        return tuple((g * d).sum(-1) for g, d in zip(state_gradients(side, weights, x, labels), found, strict=True))

    def shared(side: Side, weights: Any, x: Any, labels: Any, feedback: Any) -> Any:
        error, _, _ = parts(side, "identity", weights, x, labels, feedback)
        back = error @ weights.weight_out
        for _ in range(case.length - 1):
            back = back @ weights.weight_hh
        return ((back * (error @ feedback.T)).sum(-1),) * case.length

    compare(side, "inner products", products, *case.operands, feedback_for(case, rng), expected=shared)


def state_gradients(side: Side, weights: Any, x: Any, labels: Any) -> Any:
    """dLoss/dh_t of all steps, for a linear cell."""
    layers, h = chain(side, "identity", weights, x)
    clean = side.layers.forward(layers, h)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    return side.backprop.activity_gradients(layers, clean, error)[0][:-1]


@given(rng=seeds(), length=st.sampled_from([1, 2, 30]))
def test_an_orthogonal_linear_cell_with_matching_feedback_gives_backprop(
    side: Side, rng: np.random.Generator, length: int
) -> None:
    """G = (W_o W_h^(T-1))^T: each target is displaced by the gradient, through any number of steps."""
    case = linear(rng, length, orthogonal=True)
    power = np.linalg.matrix_power(case.weights.weight_hh, length - 1)
    weights, x, labels, feedback = side.operands((*case.operands, (case.weights.weight_out @ power).T))
    _, _, found = side.results(parts(side, "identity", weights, x, labels, feedback))
    gradients = np.stack(side.results(state_gradients(side, weights, x, labels)))
    bound = EXACT * length * side.eps * rms(gradients)
    assert rms(np.stack(found) - gradients) <= bound, "the targets' differences are backpropagation's gradients"
    ours = side.results(updates(side, weights, x, labels, feedback, "identity"))
    theirs = side.results(backpropagated(side, weights, x, labels, cell="identity"))
    for name, a, b in zip(Weights._fields, ours, theirs, strict=True):
        assert rms(a - b) <= EXACT * length * side.eps * max(rms(b), rms(gradients)), name


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), rng=seeds(), every=every_step)
def test_the_local_losses_are_descended(kind: str, data: st.DataObject, rng: np.random.Generator, every: bool) -> None:
    """The slope of sum_t 1/2 |h_t - tau_t|^2, tau_t and h_(t-1) held fixed, along any direction of the parameters."""
    case = data.draw(sequences(KINDS[kind], lengths=(2, 7)), label="case")
    from prograde.equivalence_tests.sides import ReferenceSide

    side = ReferenceSide()
    feedback = feedback_for(case, rng)
    layers, h_0 = chain(side, case.cell, case.weights, case.x)
    states = (h_0, *side.layers.forward(layers, h_0).activities[:-1])
    _, _, found = parts(side, case.cell, *case.operands, feedback, every=every)
    targets = [h - difference for h, difference in zip(states[1:], found, strict=True)]
    names = [name for name in Weights._fields[:4] if getattr(case.weights, name) is not None]
    direction = {name: rng.standard_normal(getattr(case.weights, name).shape) for name in names}

    def loss(step: float) -> float:
        w = case.weights._replace(**{k: getattr(case.weights, k) + step * d for k, d in direction.items()})
        total = 0.0
        for t, target in enumerate(targets):
            p, q = case.x[:, t] @ w.weight_ih.T, states[t][:, : w.weight_hh.shape[1]] @ w.weight_hh.T
            if w.bias_ih is not None:
                p, q = p + w.bias_ih, q + w.bias_hh
            total += 0.5 * np.sum((layers[0].layer.cell.value(p, q, states[t]) - target) ** 2)
        return total / len(case.x)

    ours = updates(side, *case.operands, feedback, case.cell, every=every)
    expected = sum(np.sum(getattr(ours, name) * d) for name, d in direction.items())
    size = 1e-6
    assert (loss(size) - loss(-size)) / (2 * size) == pytest.approx(expected, rel=1e-5, abs=1e-7), "local slope"


@given(case=sequences(lengths=(7,)), rng=seeds(), every=every_step)
def test_the_mean_over_steps_is_the_sum_by_their_number(
    side: Side, case: Sequences, rng: np.random.Generator, every: bool
) -> None:
    """The output's update is neither."""
    operands = side.operands((*case.operands, feedback_for(case, rng)))
    whole, mean = (
        side.results(updates(side, *operands, case.cell, every=every, reduction=reduction))
        for reduction in ("sum", "mean")
    )
    for name, a, b in zip(Weights._fields, whole, mean, strict=True):
        if a is not None:
            share = 1 if name in ("weight_out", "bias_out") else case.length
            assert rms(a - share * b) <= 64 * side.eps * rms(a), name


def test_unknown_options_are_refused(side: Side) -> None:
    case = linear(np.random.default_rng(0))
    operands = side.operands((*case.operands, np.ones((7, 4))))
    with side.refuses("reduction: 'max', expected 'sum' or 'mean'"):
        updates(side, *operands, "identity", reduction="max")
