"""PEPITA: twin against reference in all its published forms, and what follows from its equations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import ReferenceSide, Side
from prograde.equivalence_tests.strategies import SMOOTH, Case, cases, seeds
from prograde.equivalence_tests.test_backprop import ChainCase, chain_cases, chain_of
from prograde.equivalence_tests.test_backprop import updates as backprop_updates
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import layers, losses, pepita

pytestmark = pytest.mark.smoke
passes = st.sampled_from(["clean", "modulated"])


def projection_for(case: Case | ChainCase, rng: np.random.Generator, scale: float = 0.5) -> Any:
    sample = ReferenceSide().unshuffled(case[0], case.x).shape[1:]
    return pepita.error_projection(sample, case.num_classes, rng, scale)


def updates(side: Side, network: Any, x: Any, labels: Any, masks: Any, projection: Any, **options: Any) -> Any:
    chain, x = chain_of(side, network, x, masks)
    return side.pepita.updates(chain, projection, x, labels, **options)


@given(case=chain_cases(), rng=seeds(), output_error=passes, presynaptic=passes)
def test_updates(
    twin: Side, compare: Comparison, case: ChainCase, rng: np.random.Generator, output_error: Any, presynaptic: Any
) -> None:
    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, output_error=output_error, presynaptic=presynaptic)

    compare(twin, "pepita.updates", ours, *case, projection_for(case, rng))


@given(case=cases(), rng=seeds())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, output_gradient=side.losses.squared_error_gradient)

    compare(twin, "pepita.updates", ours, *case, projection_for(case, rng))


@given(case=chain_cases(), rng=seeds())
def test_without_projection_only_the_output_layer_learns(side: Side, case: ChainCase, rng: np.random.Generator) -> None:
    """F = 0: both passes are one, so hidden updates vanish and the output layer's is backpropagation's."""
    *operands, projection = side.operands((*case, 0 * projection_for(case, rng)))
    ours = side.results(updates(side, *operands, projection))
    theirs = side.results(backprop_updates(side, *operands))
    assert all(rms(g) <= 4 * side.eps for update in ours[:-1] for g in update)
    assert all(rms(a - b) <= 16 * side.eps * rms(b) for a, b in zip(ours[-1], theirs[-1], strict=True))


@given(case=cases(SMOOTH, dropout=False), rng=seeds())
def test_small_modulation_is_feedback_alignment_with_a_moving_matrix(case: Case, rng: np.random.Generator) -> None:
    """h_1 - h~_1 = -sigma'(a_1) * (W_1 F e) to first order in F: feedback alignment with the matrix -W_1 F."""
    chain = ReferenceSide().chain(case.dense)
    projection = 1e-5 * rng.standard_normal((case.num_classes, case.x.shape[1]))
    ours = pepita.updates(chain, projection, case.x, case.labels, presynaptic="clean")[0][0]
    clean = layers.forward(chain, case.x)
    error = losses.cross_entropy_gradient(clean.scores, case.labels)
    (activation,) = chain[0].steps
    delta = activation.jvp(clean.preactivations[0], -error @ projection @ chain[0].weight.T)
    expected = delta.T @ case.x / len(case.x)
    assert rms(ours - expected) <= 1e-3 * rms(expected), "not feedback alignment with -W_1 F"


@given(case=cases(("identity",), dropout=False), rng=seeds())
def test_the_sign_of_the_projection_is_a_convention(case: Case, rng: np.random.Generator) -> None:
    """Linear layers, clean presynaptic factors: -F gives exactly the negative hidden updates."""
    chain, projection = ReferenceSide().chain(case.dense), projection_for(case, rng)
    plus = pepita.updates(chain, projection, case.x, case.labels, presynaptic="clean")
    minus = pepita.updates(chain, -projection, case.x, case.labels, presynaptic="clean")
    for (a, *_), (b, *_) in zip(plus[:-1], minus[:-1], strict=True):
        assert rms(a + b) <= 1e-12 * rms(a) + 1e-15
    assert np.array_equal(plus[-1][0], minus[-1][0])


@given(case=cases(), rng=seeds())
def test_modulated_and_clean_forms_differ(side: Side, case: Case, rng: np.random.Generator) -> None:
    """The published forms are different rules, so that taking one for the other cannot go unnoticed.

    Labels are the least likely classes: a small error would modulate the input by less than a rounding.
    """
    scores = layers.scores(ReferenceSide().chain(case.dense, case.masks), case.x)
    case = case._replace(labels=scores.argmin(axis=1))
    projection = projection_for(case, rng)

    def of_both(side: Side) -> list[Any]:
        operands = side.operands((*case, projection))
        return [side.results(updates(side, *operands, presynaptic=form))[0][0] for form in ("modulated", "clean")]

    for found in (ReferenceSide(), side):
        base, clean = of_both(found)
        assert rms(base - clean) > 2 * found.eps * rms(base), "the presynaptic forms are one"
        assume(rms(base - clean) > 8 * side.eps * rms(base))  # few units may be modulated by next to nothing


@given(case=cases(orthogonal=True), rng=seeds())
def test_pepita_is_not_backprop(case: Case, rng: np.random.Generator) -> None:
    side = ReferenceSide()
    ours = updates(side, *case, projection_for(case, rng))[0][0]
    theirs = backprop_updates(side, *case)[0][0]
    assert rms(ours - theirs) > 1e-3 * rms(theirs)
