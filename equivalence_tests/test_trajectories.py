"""Thirty updates in a row: errors that a single step hides add up here."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from prograde.equivalence_tests.sides import Dense, ReferenceSide, Side
from prograde.equivalence_tests.strategies import (
    Case,
    Streams,
    cases,
    clear_of_kinks,
    seeds,
    streams,
)
from prograde.equivalence_tests.tolerance import Comparison

STEPS = 30


def descend(side: Side, dense: Any, updates: Any, rate: float, orthogonal: bool = False) -> tuple[Any, ...]:
    """The weights and biases after STEPS plain steps; hidden weights orthogonalised after each, if asked."""
    for _ in range(STEPS):
        dense = moved(dense, updates(dense), rate)
        if orthogonal:
            *hidden, last = dense.weights
            dense = dense._replace(weights=(*map(side.orthogonality.bjorck, hidden), last))
    return dense[:2]


def moved(dense: Dense, updates: Any, rate: float) -> Dense:
    """The network after one plain step."""
    weights = tuple(w - rate * update[0] for w, update in zip(dense.weights, updates, strict=True))
    biases = (None if b is None else b - rate * update[1] for b, update in zip(dense.biases, updates, strict=True))
    return Dense(weights, tuple(biases), dense.activations)


@pytest.mark.parametrize("rule", ["backprop", "foton"])
@given(case=cases(("tanh",), orthogonal=True))
def test_free_running(rule: str, twin64: Side, compare: Comparison, case: Case) -> None:
    def train(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        module = getattr(side, rule)
        updates = lambda dense: module.updates(side.chain(dense, masks), x, labels)  # noqa: E731
        return descend(side, dense, updates, 0.1, orthogonal=rule == "foton")

    compare(twin64, f"{rule} trajectory", train, *case)


@given(case=cases(("tanh",)), rng=seeds())
def test_pepita_free_running(twin64: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    projection = 0.1 * rng.standard_normal((case.num_classes, case.x.shape[1]))

    def train(side: Side, dense: Any, x: Any, labels: Any, masks: Any, projection: Any) -> Any:
        rule = side.pepita.updates
        updates = lambda dense: rule(side.chain(dense, masks), projection, x, labels)  # noqa: E731
        return descend(side, dense, updates, 0.1)

    compare(twin64, "pepita trajectory", train, *case, projection)


@given(case=streams())
def test_forward_forward_free_running(twin64: Side, compare: Comparison, case: Streams) -> None:
    smooth = case._replace(dense=case.dense._replace(activations=("tanh",) * case.depth))

    def train(side: Side, dense: Any, x: Any, labels: Any, negative: Any) -> Any:
        module = side.forward_forward
        updates = lambda dense: module.updates(side.chain(dense), x, labels, negative, 5)  # noqa: E731
        return descend(side, dense, updates, 0.05)

    compare(twin64, "forward_forward trajectory", train, *smooth)


@pytest.mark.parametrize("rule", ["backprop", "foton"])
@given(case=cases(max_hidden=2, orthogonal=True, dropout=False), rng=seeds())
def test_resynchronised(rule: str, twin: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    """With kinks: the twin starts each step from the reference's weights, on a batch drawn anew and clear of kinks.

    Hidden weights are orthogonalised after each step: FOTON's updates lower no loss elsewhere, and weights overflow.
    """
    reference = ReferenceSide()
    dense, x = case.dense, case.x
    for step in range(10):
        compare(
            twin,
            f"{rule} step {step}",
            lambda side, dense, x, y: getattr(side, rule).updates(
                side.chain(dense), x, y, output_gradient=side.losses.squared_error_gradient
            ),
            dense,
            x,
            case.labels,
        )
        updates = getattr(reference, rule).updates
        change = updates(reference.chain(dense), x, case.labels, reference.losses.squared_error_gradient)
        dense = moved(dense, change, 0.02)
        *hidden, last = dense.weights
        dense = dense._replace(weights=(*map(reference.orthogonality.polar_factor, hidden), last))
        x = clear_of_kinks(dense, len(x), None, rng)
