"""Tests of the helper that all comparisons go through."""

from typing import Any

import numpy as np
import pytest

from prograde.equivalence_tests.sides import EPS, ReferenceSide
from prograde.equivalence_tests.tolerance import Comparison, check, leaves, rounded, spoil

pytestmark = pytest.mark.smoke


class Rough(ReferenceSide):
    """A side that computes in float64 but claims float32, with a relative error put on its results."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.eps = EPS["float32"]
        self.error = error

    def results(self, tree: Any) -> Any:
        return super().results(tree) * (1 + self.error)


def double(side: Any, x: Any) -> Any:
    return 2 * x


def test_an_error_of_the_precision_passes_and_one_well_beyond_fails():
    x = np.random.default_rng(0).standard_normal((20, 3))
    Comparison()(Rough(0.5 * EPS["float32"]), "double", double, x)
    with pytest.raises(AssertionError, match="double: off by"):
        Comparison()(Rough(10 * EPS["float32"]), "double", double, x)


def test_ill_conditioned_results_get_room_for_it():
    """x - y of nearly equal operands: rounding them moves the truth by much, and that much is allowed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    y = x + 1e-3 * rng.standard_normal((20, 3))

    def gap(side: Any, x: Any, y: Any) -> Any:
        return x - y

    Comparison()(Rough(100 * EPS["float32"]), "gap", gap, x, y)
    with pytest.raises(AssertionError):
        Comparison()(Rough(1e5 * EPS["float32"]), "gap", gap, x, y)


def test_the_truth_in_double_has_noise_of_its_own():
    """A float64 side that computes x - (x - u) = u better than the reference must not fail for it."""
    rng = np.random.default_rng(0)
    x, u = rng.standard_normal((20, 3)), 1e-4 * rng.standard_normal((20, 3))

    def exact(side: Any, x: Any, u: Any) -> Any:
        return u

    def cancelling(side: Any, x: Any, u: Any) -> Any:
        return x - (x - u)

    Comparison()(ReferenceSide(), "u", exact, x, u, expected=cancelling)


@pytest.mark.parametrize("sabotage", ["zeros", "transposed"])
@pytest.mark.parametrize("shape", [(3, 3), (3, 4), (1, 4), (5,), ()])
def test_spoilt_results_fail(sabotage: str, shape: tuple[int, ...]):
    truth = np.random.default_rng(0).standard_normal(shape) + 3
    with pytest.raises(AssertionError):
        check("x", spoil(sabotage, truth), truth, 1e-3)


def test_a_vacuous_comparison_fails():
    with pytest.raises(AssertionError, match="vacuous"):
        Comparison()(ReferenceSide(), "nothing", lambda side, x: 0 * x, np.ones((2, 2)))


def test_sabotage_fails_where_a_comparison_would_hold():
    """A symmetric result passes for its transpose: the harness says so."""
    symmetric = np.array([[1.0, 2.0], [2.0, 3.0]])
    with pytest.raises(AssertionError, match="holds for a twin that returns transposed"):
        Comparison("transposed")(ReferenceSide(), "symmetric", double, symmetric)


@pytest.mark.parametrize(
    ("result", "message"),
    [(np.ones((2, 3)), "shape"), (np.full((2, 2), np.nan), "not finite"), (np.ones((2, 2)) + 1e-9, "off by")],
)
def test_wrong_shape_nan_and_error_have_their_own_message(result: Any, message: str):
    with pytest.raises(AssertionError, match=f"x: {message}"):
        check("x", result, np.ones((2, 2)), 1e-12)


def test_names_of_leaves():
    from prograde.equivalence_tests.sides import Dense

    tree = (Dense((np.ones(1), np.ones(2)), (None, np.ones(3)), ()), np.ones(4))
    assert [(name, array.size) for name, array in leaves("f", tree)] == [
        ("f[0].weights[0]", 1),
        ("f[0].weights[1]", 2),
        ("f[0].biases[1]", 3),
        ("f[1]", 4),
    ]


def test_rounding_moves_floats_by_half_an_eps_and_leaves_integers():
    rng = np.random.default_rng(0)
    x, labels = np.ones((100, 3)), np.arange(5)
    moved, same = rounded((x, labels), 1e-3, rng)
    assert 0.9e-3 / 2 < np.abs(moved - x).max() <= 1e-3 / 2
    assert np.array_equal(same, labels)
