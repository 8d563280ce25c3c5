"""Aggregation over layers: twin against reference, and the choice of a range against a double loop."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke


@st.composite
def all_scores(draw: st.DrawFn, whole: bool = False) -> tuple[Any, Any]:
    """Scores (L, batch, K), small whole numbers if asked, so that sums are exact and ties are many, and labels."""
    depth = draw(st.sampled_from((1, 2, 3, 7)), label="layers")
    batch = draw(st.sampled_from((1, 5, 33)), label="batch")
    num_classes = draw(st.sampled_from((2, 3, 10)), label="classes")
    rng = draw(seeds())
    shape = depth, batch, num_classes
    scores = rng.integers(-2, 3, shape).astype(float) if whole else rng.standard_normal(shape)
    return scores, rng.integers(0, num_classes, batch)


@given(case=all_scores(), rng=seeds())
def test_twin(twin: Side, compare: Comparison, case: Any, rng: np.random.Generator) -> None:
    scores, losses = case[0], rng.uniform(0, 3, len(case[0]))
    first, end = sorted(rng.integers(0, len(scores), 2))
    compare(twin, "last", lambda side, s: side.aggregation.last(s), scores)
    compare(twin, "total", lambda side, s: side.aggregation.total(s), scores)
    compare(twin, "range_total", lambda side, s: side.aggregation.range_total(s, int(first), int(end)), scores)
    compare(twin, "loss_weights", lambda side, losses: side.aggregation.loss_weights(losses), losses)
    compare(
        twin, "weighted", lambda side, s, losses: side.aggregation.weighted(s, side.aggregation.loss_weights(losses)),
        scores, losses,
    )  # fmt: skip


def hits_by_double_loop(scores: Any, labels: Any) -> dict[tuple[int, int], int]:
    found = {}
    for first in range(len(scores)):
        for end in range(first, len(scores)):
            summed = sum(scores[layer] for layer in range(first, end + 1))
            best = [max(range(len(row)), key=lambda k, row=row: row[k]) for row in summed]  # the first of equals
            found[first, end] = sum(int(k == y) for k, y in zip(best, labels, strict=True))
    return found


@given(case=all_scores(whole=True))
def test_best_range_is_that_of_a_double_loop(side: Side, case: Any) -> None:
    """Ties: the first found, first by the first layer and then by the last."""
    expected = hits_by_double_loop(*case)
    hits = side.results(side.aggregation.range_hits(*side.operands(case)))
    assert {key: int(hits[key]) for key in expected} == expected, "hits of a range"
    assert hits[np.tril_indices(len(hits), -1)].sum() == 0, "hits of no range"
    best = max(expected, key=lambda key: expected[key])
    assert side.aggregation.best_range(*side.operands(case)) == best, "best range"


@given(case=all_scores())
def test_hits_of_any_scores(side: Side, case: Any) -> None:
    """Where no two scores of a range are so near that rounding decides."""
    scores, labels = side.results(side.operands(case))
    scores = 64 * scores.round(1)  # sums of small whole multiples of 0.1, exact in no precision
    for first in range(len(scores)):
        for end in range(first, len(scores)):
            top = np.sort(scores[first : end + 1].sum(axis=0), axis=1)[:, -2:]
            near = top[:, 1] - top[:, 0] < 1
            keep = ~near
            scores, labels = scores[:, keep], labels[keep]
    if not len(labels):
        return
    expected = hits_by_double_loop(*side.results(side.operands((scores, labels))))
    hits = side.results(side.aggregation.range_hits(*side.operands((scores, labels))))
    assert {key: int(hits[key]) for key in expected} == expected, "hits of a range"


@given(case=all_scores(whole=True))
def test_hits_of_parts_add_up(side: Side, case: Any) -> None:
    """Held-out data need not fit into memory at once."""
    scores, labels = side.operands(case)
    whole = side.results(side.aggregation.range_hits(scores, labels))
    half = len(labels) // 2 or 1
    parts = [side.results(side.aggregation.range_hits(scores[:, i], labels[i]))
             for i in (slice(0, half), slice(half, None))]  # fmt: skip
    assert np.array_equal(whole, parts[0] + parts[1]), "hits of parts"


def test_ties_by_hand(side: Side) -> None:
    """Layers 1 and 2 are right by themselves, 0 is wrong: of 1..1, 1..2, 2..2 and 0..2, all right, 0..2 comes first."""
    right, wrong = [[0.0, 1.0]], [[1.0, 0.0]]
    labels = side.operands(np.array([1]))
    assert side.aggregation.best_range(side.operands(np.array([wrong, right, right])), labels) == (0, 2)
    assert side.aggregation.best_range(side.operands(np.array([wrong, right, wrong])), labels) == (1, 1)
    assert side.aggregation.best_range(side.operands(np.array([right, right, right])), labels) == (0, 0)
    assert side.aggregation.best_range(side.operands(np.array([wrong, wrong, wrong])), labels) == (0, 0)
    equal = side.operands(np.zeros((2, 1, 2)))
    assert side.aggregation.best_range(equal, side.operands(np.array([0]))) == (0, 0)


@given(case=all_scores())
def test_special_cases(side: Side, case: Any) -> None:
    scores, _ = side.operands(case)
    module, depth = side.aggregation, len(scores)
    total = side.results(module.total(scores))
    slack = 8 * side.eps * np.abs(side.results(scores)).sum(axis=0).max()
    assert np.array_equal(side.results(module.range_total(scores, 0, depth - 1)), total), "all layers"
    assert np.array_equal(
        side.results(module.range_total(scores, depth - 1, depth - 1)), side.results(module.last(scores))
    )
    even = module.loss_weights(side.operands(np.full(depth, 1.7)))
    assert np.allclose(side.results(even), 1 / depth, rtol=4 * side.eps), "equal losses"
    assert np.allclose(side.results(module.weighted(scores, even)), total / depth, atol=slack), "equal weights"
    only = side.operands((np.arange(depth) == 0).astype(float))
    assert np.array_equal(side.results(module.weighted(scores, only)), side.results(scores)[0]), "one layer"


def test_weights_prefer_small_losses(side: Side) -> None:
    """By e to the difference; a large common part changes nothing."""
    for shift in (0.0, 100.0):
        weights = side.results(side.aggregation.loss_weights(side.operands(np.array([2.0, 1.0, 4.0]) + shift)))
        assert np.isclose(weights.sum(), 1, atol=4 * side.eps)
        assert np.allclose(weights[1] / weights, [np.e, 1, np.e**3], rtol=16 * side.eps), "weights"


@pytest.mark.parametrize(("first", "end"), [(-1, 1), (2, 1), (0, 3), (3, 3)])
def test_no_such_range(side: Side, first: int, end: int) -> None:
    message = f"first, last: {first}, {end}, expected 0 <= first <= last < 3 layers"
    with side.refuses(message):
        side.aggregation.range_total(side.operands(np.zeros((3, 2, 2))), first, end)
