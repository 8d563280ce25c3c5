"""Losses: twin against reference, and the error as the gradient of the loss."""

from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from prograde.equivalence_tests.sides import Side, TwinSide
from prograde.equivalence_tests.strategies import scored
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference import losses

pytestmark = pytest.mark.smoke
temperatures = st.sampled_from([0.5, 1.0, 3.0])
smoothings = st.sampled_from([0.0, 0.1])


@given(case=scored(), temperature=temperatures, smoothing=smoothings)
def test_cross_entropy(twin: Side, compare: Comparison, case: tuple[Any, Any], temperature: float, smoothing: float):
    compare(
        twin,
        "cross_entropy",
        lambda side, s, y: side.losses.cross_entropy(s, y, temperature, smoothing),
        *case,
    )
    compare(
        twin,
        "cross_entropy_gradient",
        lambda side, s, y: side.losses.cross_entropy_gradient(s, y, temperature, smoothing),
        *case,
    )


@given(case=scored())
def test_squared_error(twin: Side, compare: Comparison, case: tuple[Any, Any]):
    compare(twin, "squared_error", lambda side, s, y: side.losses.squared_error(s, y), *case)
    compare(twin, "squared_error_gradient", lambda side, s, y: side.losses.squared_error_gradient(s, y), *case)


@given(case=scored(), smoothing=smoothings)
def test_one_hot(twin64: Side, compare: Comparison, case: tuple[Any, Any], smoothing: float):
    scores, labels = case

    def targets(side: Side, labels: Any) -> Any:
        if side.name == "reference":
            return side.losses.one_hot(labels, scores.shape[1], smoothing)
        named = {"dtype": torch.float64} if "dtype" in signature(side.losses.one_hot).parameters else {}
        return side.losses.one_hot(labels, scores.shape[1], smoothing, **named)

    if smoothing == 0:
        compare.exactly(twin64, "one_hot", targets, labels)
    assert np.allclose(losses.one_hot(labels, scores.shape[1], smoothing).sum(axis=1), 1, atol=1e-15)


@given(case=scored(), temperature=temperatures, smoothing=smoothings)
def test_error_is_the_gradient_of_the_loss(case: tuple[Any, Any], temperature: float, smoothing: float):
    """Central differences of the reference, so that the temperature's factor cannot be lost on both sides."""
    scores, labels = case
    pairs = [
        (partial(losses.cross_entropy, temperature=temperature, label_smoothing=smoothing),
         partial(losses.cross_entropy_gradient, temperature=temperature, label_smoothing=smoothing)),
        (losses.squared_error, losses.squared_error_gradient),
    ]  # fmt: skip
    step = 1e-6
    for value, gradient in pairs:
        for k in range(scores.shape[1]):
            shift = step * (np.arange(scores.shape[1]) == k)
            slope = (value(scores + shift, labels) - value(scores - shift, labels)) / (2 * step)
            assert np.allclose(slope, gradient(scores, labels)[:, k], atol=1e-7), f"class {k}"


@given(case=scored())
def test_cross_entropy_error_sums_to_zero(side: Side, case: tuple[Any, Any]):
    error = side.results(side.losses.cross_entropy_gradient(*side.operands(case)))
    assert np.abs(error.sum(axis=1)).max() <= 16 * side.eps


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_the_reference_refuses_labels_out_of_range(labels: list[int]):
    with pytest.raises(ValueError, match=r"labels: found .* expected 0\.\.2"):
        losses.one_hot(np.array(labels), 3)


def test_the_twin_goes_through_functorch_and_make_fx(twin: TwinSide):
    """Where the numbers of a label cannot be looked at, they are not."""
    if not twin.is_ours:
        pytest.skip("prograde's own are made of torch functions")
    scores, labels = torch.randn(5, 4, 3, device=twin.device), torch.randint(3, (5, 4), device=twin.device)
    cross_entropy = twin.losses.cross_entropy
    each = torch.stack([cross_entropy(*pair) for pair in zip(scores, labels, strict=True)])
    assert torch.allclose(torch.func.vmap(cross_entropy)(scores, labels), each)
    traced = make_fx(lambda s, y: cross_entropy(s, y))(scores[0], labels[0])
    assert torch.allclose(traced(scores[0], labels[0]), each[0])
