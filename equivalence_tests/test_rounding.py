"""Tests of the reference with rounded operations, the yardstick of all comparisons."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prograde import reference
from prograde.equivalence_tests.rounding import (
    COMPOSED,
    COMPUTES,
    Rounding,
    call,
    operate,
    rounded,
    rounded_reference,
    rounding_too,
)

pytestmark = pytest.mark.smoke

EPS = 1e-3

MOVES = {
    *("Generator", "LinAlgError", "T", "abs", "any", "arange", "argmax", "argsort", "array", "asarray", "astype"),
    *("broadcast_to", "clip", "concatenate", "diag", "empty", "empty_like", "eps", "errstate", "eye", "finfo"),
    *("float64", "full", "full_like", "inf", "int64", "integer", "isfinite", "isnan", "lib", "linalg", "max"),
    *("maximum", "minimum", "moveaxis", "ndarray", "ndindex", "number", "ones_like", "pad", "put_along_axis", "random"),
    *("repeat", "reshape", "roll", "sign", "sliding_window_view", "sort", "split", "stack", "stride_tricks", "take"),
    *("take_along_axis", "unravel_index", "where", "zeros", "zeros_like", "all", "count_nonzero", "expand_dims"),
    *("ones", "tri"),
}  # fmt: skip
"""What moves, selects, draws or names numbers, and computes none."""

ON_PURPOSE = {"round", "polynomial", "Polynomial"}
"""Quantisation, whose steps are not rounding errors, and a polynomial's coefficients, which are exact."""


@pytest.fixture
def rounding() -> Iterator[Rounding]:
    made = Rounding(EPS, EPS, np.random.default_rng(0))
    with rounded(made):
        yield made


def test_an_operation_moves_each_number_by_a_fourth_to_a_half_of_eps(rounding: Rounding) -> None:
    x = np.full(10_000, 3.0)
    moved = operate("add", x, 0) / x - 1
    assert np.abs(moved).max() <= EPS / 2
    assert np.abs(moved).min() >= EPS / 4 * (1 - 1e-9)
    assert abs(moved.mean()) < EPS / 50, "the sign is even"


def test_every_use_moves_a_number_anew(rounding: Rounding) -> None:
    x = np.full(10_000, 15.0)
    cancelled = operate("sub", x, x)
    assert 15 * EPS / 4 < np.std(cancelled) < 15 * EPS


def test_what_only_moves_data_is_exact(rounding: Rounding) -> None:
    x = np.random.default_rng(1).standard_normal((4, 6))
    for function, arguments in (
        (np.maximum, (x, 0)),
        (np.where, (x > 0, x, 0)),
        (np.concatenate, ([x, x],)),
        (np.abs, (x,)),
    ):
        assert np.array_equal(call(function, *arguments), function(*arguments))
    assert np.array_equal(call(x.reshape, -1), x.ravel())


def test_integers_and_python_numbers_are_exact(rounding: Rounding) -> None:
    labels = np.arange(5)
    assert np.array_equal(operate("add", labels, 1), labels + 1)
    assert np.array_equal(call(np.sum, labels < 3), 3)
    assert operate("mul", 0.1, 3) == 0.1 * 3


@pytest.mark.parametrize(
    ("sum_of", "terms"),
    [
        (lambda x: call(np.sum, x), 600),
        (lambda x: call(x.mean, axis=1) * 30, 30),
        (lambda x: operate("matmul", x, np.ones((30, 4))), 30),
        (lambda x: call(np.einsum, "ij->i", x), 30),
        (lambda x: call(np.einsum, "ij,jk->k", x, np.ones((30, 4))), 600),
        (lambda x: call(np.linalg.norm, x, axis=1) * 30**0.5, 30),
    ],
)
def test_sums_err_by_their_number_of_terms(rounding: Rounding, sum_of: Any, terms: int) -> None:
    """Of ones, by d sqrt(n - 1) n for n terms, beside which the terms' own errors, d sqrt(n), are small."""
    x = np.ones((20, 30))
    errors = np.concatenate([np.ravel(sum_of(x)) - terms for _ in range(50)])
    expected = EPS * np.sqrt(terms - 1) * terms
    assert expected / 4 < np.sqrt(np.mean(errors**2)) < expected


def test_factorisations_are_those_of_a_matrix_moved_as_a_whole(rounding: Rounding) -> None:
    """So that its small entries move as the large ones do."""
    matrix = np.diag([1.0, 1.0, 1e-6])
    u, singular, vt = call(np.linalg.svd, matrix)
    error = (u * singular) @ vt - matrix
    size = 3 * np.sqrt(np.mean(matrix**2))
    assert size * EPS / 4 <= np.abs(error[2, 2]) <= size * EPS / 2


@rounding_too
def two_thirds_of(x: Any) -> Any:
    return 2 * x / 3


def test_a_tests_own_computation_is_rounded_too() -> None:
    x = np.full(1000, 3.0)
    assert np.array_equal(two_thirds_of(x), np.full(1000, 2.0))
    with rounded(Rounding(EPS, EPS, np.random.default_rng(0))):
        assert EPS / 4 < np.std(two_thirds_of(x)) / 2 < 2 * EPS


def test_without_rounding_the_copy_is_the_reference() -> None:
    rng = np.random.default_rng(0)
    copy = rounded_reference()
    x, weight, labels = rng.standard_normal((7, 5)), rng.standard_normal((3, 5)), rng.integers(0, 3, 7)
    updates = []
    for package in (copy, reference):
        chain = package.layers.dense_chain((weight,), (None,), (package.activations.ACTIVATIONS["tanh"],))
        updates.append(package.backprop.updates(chain, x, labels)[0][0])
    assert np.array_equal(*updates)
    assert copy.losses is not reference.losses
    assert copy.foton.__file__ == reference.foton.__file__


def test_every_function_that_the_reference_calls_is_known_to_compute_or_not() -> None:
    """So that none is added whose rounding would be passed by."""
    known = COMPUTES | MOVES | ON_PURPOSE | {function.__name__ for function in COMPOSED}
    for path in Path(reference.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        of_scipy = {
            name.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scipy")
            for name in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[0] == "np":
                name = node.attr
            elif isinstance(node, ast.Name) and node.id in of_scipy:
                name = node.id
            else:
                continue
            assert name in known, f"{path.name}: does np.{name} compute, or move data? Say so in its list"
