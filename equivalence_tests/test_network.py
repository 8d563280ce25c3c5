"""Forward passes, the modulated pass, and updates from factors."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import Case, arrays, cases, seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke


@given(case=cases())
def test_forward(twin: Side, compare: Comparison, case: Case):
    compare(
        twin,
        "forward",
        lambda side, dense, x, masks: side.net.forward(side.network(dense), x, masks),
        case.dense,
        case.x,
        case.masks,
    )


@given(case=cases())
def test_scores(side: Side, compare: Comparison, case: Case):
    compare(
        side,
        "scores",
        lambda side, dense, x, masks: side.net.scores(side.network(dense), x, masks),
        case.dense,
        case.x,
        case.masks,
        expected=lambda side, dense, x, masks: side.net.forward(side.network(dense), x, masks).scores,
    )


def two_passes(side: Side, dense: Any, x: Any, error: Any, projection: Any, masks: Any) -> Any:
    """h_l - h~_l literally: two forward passes, subtracted."""
    network = side.network(dense)
    clean = side.net.forward(network, x, masks)
    modulated = side.net.forward(network, x - error @ projection.T, masks)
    return tuple(h - m for h, m in zip(clean.inputs[1:], modulated.inputs[1:], strict=True))


def differences(side: Side, dense: Any, x: Any, error: Any, projection: Any, masks: Any) -> Any:
    network = side.network(dense)
    clean = side.net.forward(network, x, masks)
    return tuple(side.net.activation_differences(network, clean, error, projection, masks))


@given(case=cases(), rng=seeds())
def test_differences_are_those_of_two_passes(side: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    error = rng.standard_normal((len(case.x), case.num_classes))
    projection = rng.standard_normal((case.x.shape[1], case.num_classes)) / np.sqrt(case.num_classes)
    compare(
        side,
        "activation_differences",
        differences,
        case.dense,
        case.x,
        error,
        projection,
        case.masks,
        expected=two_passes,
    )


@given(h=arrays(), rng=seeds())
def test_layer_update(twin: Side, compare: Comparison, h: Any, rng: np.random.Generator):
    delta, bias = rng.standard_normal((len(h), 4)), rng.standard_normal(4)
    compare(twin, "layer_update", lambda side, d, z, b: side.net.layer_update(d, z, b), delta, h, bias)
    update = twin.net.layer_update(*twin.operands((delta, h)), None)
    assert update.bias is None


@given(case=cases(biases=False))
def test_a_layer_without_bias_gets_no_bias_update(side: Side, case: Case):
    dense, x, labels = side.operands((case.dense, case.x, case.labels))
    assert all(len(update) == 1 for update in side.backprop.updates(side.chain(dense), x, labels))


@given(case=cases(biases=True))
def test_collect_keeps_the_order_of_layers(side: Side, case: Case):
    layers = [side.net.LayerUpdate(w, b) for w, b in zip(case.dense.weights, case.dense.biases, strict=True)]
    updates = side.net.collect(iter(layers))
    assert all(a is b for a, b in zip(updates.weights, case.dense.weights, strict=True))
    assert all(a is b for a, b in zip(updates.biases, case.dense.biases, strict=True))


def test_widths_that_do_not_fit_are_refused(side: Side):
    from prograde.equivalence_tests.sides import Dense

    dense = Dense((np.ones((3, 4)), np.ones((2, 5))), (None, None), ("relu", "identity"))
    network = side.network(side.operands(dense))
    with pytest.raises(ValueError, match=r"weights\[1\] has 5 columns, but its input has 3 units"):
        side.net.forward(network, side.operands(np.ones((2, 4))))
