"""PEPITA: twin against reference in all its published forms, and what follows from its equations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import SMOOTH, Case, cases, reference_network, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import backprop, pepita
from prograde.reference.network import forward

pytestmark = pytest.mark.smoke
passes = st.sampled_from(["clean", "modulated"])


def projection_for(case: Case, rng: np.random.Generator, scale: float = 0.5) -> Any:
    return pepita.error_projection(case.x.shape[1], case.num_classes, rng, scale)


@given(case=cases(), rng=seeds(), output_error=passes, presynaptic=passes)
def test_updates(
    twin: Side, compare: Comparison, case: Case, rng: np.random.Generator, output_error: Any, presynaptic: Any
):
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any, projection: Any) -> Any:
        return side.pepita.updates(
            side.network(dense), projection, x, labels, masks, output_error=output_error, presynaptic=presynaptic
        )

    compare(twin, "pepita.updates", updates, *case, projection_for(case, rng))


@given(case=cases(), rng=seeds())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any, projection: Any) -> Any:
        gradient = side.losses.squared_error_gradient
        return side.pepita.updates(side.network(dense), projection, x, labels, masks, gradient)

    compare(twin, "pepita.updates", updates, *case, projection_for(case, rng))


@given(case=cases())
def test_without_projection_only_the_output_layer_learns(side: Side, case: Case):
    """F = 0: both passes are one, so hidden updates vanish and the output layer's is backpropagation's."""
    projection = np.zeros((case.x.shape[1], case.num_classes))
    dense, x, labels, masks, projection = side.operands((*case, projection))
    ours = side.results(side.pepita.updates(side.network(dense), projection, x, labels, masks)).weights
    theirs = side.results(side.backprop.updates(side.network(dense), x, labels, masks)).weights
    assert all(rms(weight) <= 4 * side.eps for weight in ours[:-1])
    assert rms(ours[-1] - theirs[-1]) <= 16 * side.eps * rms(theirs[-1])


@given(case=cases(SMOOTH, dropout=False), rng=seeds())
def test_small_modulation_is_feedback_alignment_with_a_moving_matrix(case: Case, rng: np.random.Generator):
    """h_1 - h~_1 = -sigma'(a_1) * (W_1 F e) to first order in F: feedback alignment with the matrix -W_1 F."""
    network = reference_network(case.dense)
    scale = 1e-5
    projection = scale * rng.standard_normal((case.x.shape[1], case.num_classes))
    ours = pepita.updates(network, projection, case.x, case.labels, presynaptic="clean").weights[0]
    from prograde.reference.losses import cross_entropy_gradient
    from prograde.reference.network import forward

    clean = forward(network, case.x)
    error = cross_entropy_gradient(clean.scores, case.labels)
    delta = network.activations[0].jvp(clean.preactivations[0], -error @ projection.T @ network.weights[0].T)
    expected = delta.T @ case.x / len(case.x)
    assert rms(ours - expected) <= 1e-3 * rms(expected), "not feedback alignment with -W_1 F"


@given(case=cases(("identity",), dropout=False), rng=seeds())
def test_the_sign_of_the_projection_is_a_convention(case: Case, rng: np.random.Generator):
    """Linear layers, clean presynaptic factors: -F gives exactly the negative hidden updates."""
    network, projection = reference_network(case.dense), projection_for(case, rng)
    plus = pepita.updates(network, projection, case.x, case.labels, presynaptic="clean")
    minus = pepita.updates(network, -projection, case.x, case.labels, presynaptic="clean")
    for a, b in zip(plus.weights[:-1], minus.weights[:-1], strict=True):
        assert rms(a + b) <= 1e-12 * rms(a) + 1e-15
    assert np.array_equal(plus.weights[-1], minus.weights[-1])


@given(case=cases(), rng=seeds())
def test_modulated_and_clean_forms_differ(side: Side, case: Case, rng: np.random.Generator):
    """The published forms are different rules, so that taking one for the other cannot go unnoticed.

    Labels are the least likely classes: a small error would modulate the input by less than a rounding.
    """
    scores = forward(reference_network(case.dense), case.x, case.masks).scores
    case = case._replace(labels=scores.argmin(axis=1))
    dense, x, labels, masks, projection = side.operands((*case, projection_for(case, rng)))
    network = side.network(dense)
    base = side.results(side.pepita.updates(network, projection, x, labels, masks)).weights
    clean = side.results(side.pepita.updates(network, projection, x, labels, masks, presynaptic="clean")).weights
    assert rms(base[0] - clean[0]) > 2 * side.eps * rms(base[0]), "the presynaptic forms are one"


@given(case=cases(orthogonal=True), rng=seeds())
def test_pepita_is_not_backprop(case: Case, rng: np.random.Generator):
    network = reference_network(case.dense)
    ours = pepita.updates(network, projection_for(case, rng), case.x, case.labels, case.masks).weights[0]
    theirs = backprop.updates(network, case.x, case.labels, case.masks).weights[0]
    assert rms(ours - theirs) > 1e-3 * rms(theirs)
