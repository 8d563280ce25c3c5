"""Feedback alignment, direct feedback alignment, direct random target projection: twins, and how they are related."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import direct_feedback_alignment, feedback_alignment

pytestmark = pytest.mark.smoke


def mirrored(case: Case, rng: np.random.Generator) -> Any:
    widths = (case.x.shape[1], *(len(weight) for weight in case.dense.weights))
    return feedback_alignment.random_feedback(widths, rng)


def direct(case: Case, rng: np.random.Generator) -> Any:
    widths = tuple(len(weight) for weight in case.dense.weights[:-1])
    return direct_feedback_alignment.random_feedback(widths, case.num_classes, rng)


def updates(module: str, **options: Any) -> Any:
    def run(side: Side, dense: Any, x: Any, labels: Any, masks: Any, feedback: Any) -> Any:
        return getattr(side, module).updates(side.network(dense), feedback, x, labels, masks, **options)

    return run


@given(case=cases(), rng=seeds())
def test_feedback_alignment(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    rule = updates("feedback_alignment")
    compare(twin, "feedback_alignment.updates", rule, *case, mirrored(case, rng))


@given(case=cases(), rng=seeds(), signs=st.booleans())
def test_direct_feedback_alignment(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator, signs: bool):
    rule = updates("direct_feedback_alignment", signs=signs)
    compare(twin, "direct_feedback_alignment.updates", rule, *case, direct(case, rng))


@given(case=cases(), rng=seeds())
def test_direct_random_target_projection(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    rule = updates("direct_random_target_projection")
    compare(twin, "direct_random_target_projection.updates", rule, *case, direct(case, rng))


def backprop(side: Side, dense: Any, x: Any, labels: Any, masks: Any, _: Any) -> Any:
    return side.backprop.updates(side.network(dense), x, labels, masks)


@given(case=cases())
def test_the_weights_as_feedback_give_backprop(side: Side, compare: Comparison, case: Case):
    rule = updates("feedback_alignment")
    compare(side, "updates", rule, *case, case.dense.weights, expected=backprop)


@given(case=cases(max_hidden=1))
def test_the_last_weights_as_feedback_give_backprop_with_one_hidden_layer(side: Side, compare: Comparison, case: Case):
    rule = updates("direct_feedback_alignment")
    matrices = (case.dense.weights[-1].T.copy(),)
    compare(side, "updates", rule, *case, matrices, expected=backprop)


@given(case=cases(("identity",), dropout=False), rng=seeds())
def test_direct_feedback_is_feedback_through_products_in_a_linear_network(
    side: Side, compare: Comparison, case: Case, rng: np.random.Generator
):
    """B_l (direct) = B_(l+1)^T ... B_L^T."""
    chain = mirrored(case, rng)
    products = []
    through = np.eye(case.num_classes)
    for matrix in reversed(chain[1:]):
        through = matrix.T @ through
        products.append(through)

    def aligned(side: Side, dense: Any, x: Any, labels: Any, masks: Any, _: Any) -> Any:
        feedback = tuple(matrix.astype(x.dtype) for matrix in chain)
        return side.feedback_alignment.updates(side.network(dense), feedback, x, labels, masks)

    rule = updates("direct_feedback_alignment")
    compare(side, "updates", rule, *case, tuple(reversed(products)), expected=aligned)


@given(case=cases(), rng=seeds())
def test_the_output_layer_learns_as_under_backprop(side: Side, case: Case, rng: np.random.Generator):
    for module, draw in (
        ("feedback_alignment", mirrored),
        ("direct_feedback_alignment", direct),
        ("direct_random_target_projection", direct),
    ):
        operands = side.operands((*case, draw(case, rng)))
        ours = side.results(updates(module)(side, *operands)).weights[-1]
        theirs = side.results(backprop(side, *operands)).weights[-1]
        assert rms(ours - theirs) <= 16 * side.eps * rms(theirs), module


@given(case=cases(), rng=seeds())
def test_target_projection_does_not_look_at_the_output(side: Side, case: Case, rng: np.random.Generator):
    """Hidden updates are the same whatever the output layer says."""
    feedback = direct(case, rng)
    other = case.dense._replace(weights=(*case.dense.weights[:-1], 2 * case.dense.weights[-1] + 1))
    found = [
        side.results(
            updates("direct_random_target_projection")(side, *side.operands((*case._replace(dense=dense), feedback)))
        ).weights[:-1]
        for dense in (case.dense, other)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True)), "the output is looked at"
