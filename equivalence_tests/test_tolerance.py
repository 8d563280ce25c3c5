"""Tests of the helper that all comparisons go through."""

from typing import Any

import numpy as np
import pytest

from prograde.equivalence_tests.sides import EPS, ReferenceSide, map_arrays
from prograde.equivalence_tests.tolerance import (
    FACTOR,
    Comparison,
    check,
    leaves,
    movement,
    passing_twins,
    rms,
)

pytestmark = pytest.mark.smoke


class Rough(ReferenceSide):
    """A side that computes in float64 but claims float32, with a relative error put on its results."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.eps = EPS["float32"]
        self.error = error

    def results(self, tree: Any) -> Any:
        return map_arrays(lambda array: array * (1 + self.error), super().results(tree))


def double(side: Any, x: Any) -> Any:
    return 2 * x


def test_an_error_of_the_precision_passes_and_one_well_beyond_fails() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3))
    Comparison()(Rough(0.5 * EPS["float32"]), "double", double, x)
    with pytest.raises(AssertionError, match="double: off by"):
        Comparison()(Rough(10 * EPS["float32"]), "double", double, x)


def test_a_comparison_that_is_not_closed_has_no_wider_limit_than_it_needs() -> None:
    """And refuses the same."""
    x = np.random.default_rng(0).standard_normal((20, 3))
    limits = []
    for closes in (True, False):
        compare = Comparison(closes)
        compare.seen = []
        compare(Rough(0.5 * EPS["float32"]), "double", double, x)
        limits.append(compare.seen[0].limit)
        with pytest.raises(AssertionError, match="double: off by"):
            Comparison(closes)(Rough(10 * EPS["float32"]), "double", double, x)
    least = EPS["float32"] * rms(2 * x)
    assert np.isclose(limits[1], least), "a wider limit"
    assert limits[0] > 2 * least


def test_ill_conditioned_results_get_room_for_it() -> None:
    """x - y of nearly equal operands: rounding them moves the truth by much, and that much is allowed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    y = x + 1e-3 * rng.standard_normal((20, 3))

    def gap(side: Any, x: Any, y: Any) -> Any:
        return x - y

    Comparison()(Rough(100 * EPS["float32"]), "gap", gap, x, y)
    with pytest.raises(AssertionError):
        Comparison()(Rough(1e5 * EPS["float32"]), "gap", gap, x, y)


def test_the_truth_in_double_has_noise_of_its_own() -> None:
    """A float64 side that takes the mean of nearly equal numbers off better than the reference must not fail for it."""
    x = 1 + 1e-6 * np.random.default_rng(0).standard_normal((20, 3))

    def exact(side: Any, x: Any) -> Any:
        wide = x.astype(np.longdouble)
        wide = wide - wide.mean(axis=1, keepdims=True)
        return (wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + 1e-300)).astype(x.dtype)

    def cancelling(side: Any, x: Any) -> Any:
        return side.normalisations.layer_norm(x, 1e-300)

    if np.finfo(np.longdouble).eps < EPS["float64"]:  # where the platform has a wider type
        Comparison()(ReferenceSide(), "layer_norm", exact, x, expected=cancelling)


def loss_of(side: Any, scores: Any) -> Any:
    return side.losses.cross_entropy(scores, np.zeros(len(scores), int))


@pytest.mark.parametrize(("error", "passes"), [(1.0, True), (100.0, False)])
def test_intermediate_numbers_round_at_their_own_magnitude(error: float, passes: bool) -> None:
    """A loss of 1e-6 is the difference of two numbers of magnitude 15, a unit of which is allowed and a hundred not."""
    scores, unit = np.array([[15.0, 1.2]]), np.spacing(15.0)

    def other(side: Any, scores: Any) -> Any:
        return loss_of(side, scores) + error * unit

    if passes:
        Comparison()(ReferenceSide(), "loss", other, scores, expected=loss_of)
    else:
        with pytest.raises(AssertionError, match="loss: off by"):
            Comparison()(ReferenceSide(), "loss", other, scores, expected=loss_of)


def one_after_another(a: Any, b: Any) -> Any:
    """a @ b in float32, every sum taken from its first term to its last."""
    products = a[:, :, None].astype(np.float32) * b[None].astype(np.float32)
    return np.add.accumulate(products, axis=1, dtype=np.float32)[:, -1]


@pytest.mark.parametrize("terms", [2, 33, 1000])
@pytest.mark.parametrize("positive", [False, True])
def test_sums_may_be_taken_in_any_order(terms: int, positive: bool) -> None:
    """Of numbers of one sign, whose rounding errors grow with the number of terms, and of either sign."""
    rng = np.random.default_rng(terms)
    a, b = rng.standard_normal((7, terms)), rng.standard_normal((terms, 5))
    if positive:
        a, b = np.abs(a), np.abs(b)
    moves = movement("product", lambda side, a, b: side.layers.Dense(b.T, None).value(a), (a, b), EPS["float32"])
    error = rms(one_after_another(a, b) - a.astype(np.float32).astype(float) @ b.astype(np.float32).astype(float))
    assert error <= FACTOR * EPS["float32"] * moves["product"]
    assert FACTOR * EPS["float32"] * moves["product"] < 1e-4 * rms(np.abs(a) @ np.abs(b)), "too wide"


def closed(*results: Any) -> None:
    """Compares each with itself, in one test."""
    compare = Comparison()
    for result in results:
        compare.exactly(ReferenceSide(), "result", lambda side, x: x, result)
    compare.close()


@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (1, 4), (5,), ()])
def test_comparisons_that_a_broken_twin_would_not_pass(shape: tuple[int, ...]) -> None:
    closed(np.random.default_rng(0).standard_normal(shape) + 3)


def test_a_test_that_compares_zeros_alone_fails() -> None:
    with pytest.raises(AssertionError, match="result: every comparison would hold for a twin that returns zeros"):
        closed(np.zeros((2, 3)), np.zeros(3))
    closed(np.zeros((2, 3)), np.ones((2, 3)))


def test_a_test_of_symmetric_results_alone_fails() -> None:
    symmetric = np.array([[1.0, 2.0], [2.0, 3.0]])
    with pytest.raises(AssertionError, match="result: every comparison would hold for a twin that returns the transp"):
        closed(symmetric)
    closed(symmetric, np.arange(4).reshape(2, 2))


def test_a_limit_wider_than_the_truth_tells_nothing() -> None:
    assert passing_twins(np.ones((2, 3)), 2.0) == {"zeros"}
    assert passing_twins(np.ones((2, 3)), 0.5) == set()


@pytest.mark.parametrize(
    ("result", "message"),
    [(np.ones((2, 3)), "shape"), (np.full((2, 2), np.nan), "not finite"), (np.ones((2, 2)) + 1e-9, "off by")],
)
def test_wrong_shape_nan_and_error_have_their_own_message(result: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=f"x: {message}"):
        check("x", result, np.ones((2, 2)), 1e-12)


def test_names_of_leaves() -> None:
    from prograde.equivalence_tests.sides import Dense

    tree = (Dense((np.ones(1), np.ones(2)), (None, np.ones(3)), ()), np.ones(4))
    assert [(name, array.size) for name, array in leaves("f", tree)] == [
        ("f[0].weights[0]", 1),
        ("f[0].weights[1]", 2),
        ("f[0].biases[1]", 3),
        ("f[1]", 4),
    ]
