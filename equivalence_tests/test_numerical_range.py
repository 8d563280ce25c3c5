"""Numbers at the ends of a precision's range: the documented result on both sides, or the documented error on both.

A row is a call as in `vectors`, its operands, and what must come: an array in closed form, or the words of an error.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.tolerance import Comparison
from prograde.equivalence_tests.vectors import evaluated

RELU = "layers.dense_chain(weights, (None, None), (activations.relu, activations.identity))"
ZERO, ONE = np.zeros((3, 4)), np.ones((3, 4))
THREE = np.array([0, 1, 2])
HUGE = np.array([[1e30, -1e30, 0.0, 1.0]])
DENORMAL = np.array([[1e-40, -1e-40, 0.0, 1e-39]])
ARRAYS: dict[str, Any] = {"zero": ZERO, "one": ONE, "labels": THREE, "huge": HUGE, "denormal": DENORMAL}


def dead(n_in: int = 4, hidden: int = 5, classes: int = 3, batch: int = 3) -> dict[str, Any]:
    """A network whose hidden units are all negative: nothing reaches the output."""
    weights = (-np.ones((hidden, n_in)), np.ones((classes, hidden)))
    return {"weights": weights, "x": np.ones((batch, n_in)), "labels": np.arange(batch) % classes}


def thin(classes: int, width: int, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    weights = (rng.standard_normal((width, width)), rng.standard_normal((classes, width)))
    return {"weights": weights, "x": rng.standard_normal((batch, width)), "labels": np.full(batch, classes - 1)}


RESULTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "relu of the largest": ("activations.relu.value(huge)", ARRAYS, [[1e30, 0, 0, 1]]),
    "relu's derivative at denormal numbers": ("activations.relu.vjp(denormal, huge)", ARRAYS, [[1e30, 0, 0, 1]]),
    "tanh saturates": ("activations.tanh.value(huge)", ARRAYS, [[1, -1, 0, np.tanh(1)]]),
    "tanh's derivative vanishes": ("activations.tanh.vjp(huge[:, :3], one[:1, :3])", ARRAYS, [[0, 0, 1]]),
    "gelu saturates": ("activations.gelu.value(huge[:, :3])", ARRAYS, [[1e30, 0, 0]]),
    "silu saturates": ("activations.silu.value(huge[:, :3])", ARRAYS, [[1e30, 0, 0]]),
    "maxmin of equal units": ("activations.maxmin.value(one)", ARRAYS, ONE),
    "cross-entropy of equal scores": ("losses.cross_entropy(zero, labels)", ARRAYS, np.full(3, np.log(4))),
    "cross-entropy of certainty": ("losses.cross_entropy(huge, labels[:1])", ARRAYS, [0]),
    "cross-entropy of the opposite": ("losses.cross_entropy(huge, labels[1:2])", ARRAYS, [2e30]),
    "error of certainty": ("losses.cross_entropy_gradient(huge, labels[:1])", ARRAYS, [[0, 0, 0, 0]]),
    "error of the opposite": ("losses.cross_entropy_gradient(huge, labels[1:2])", ARRAYS, [[1, -1, 0, 0]]),
    "error of denormal scores": (
        "losses.cross_entropy_gradient(denormal, labels[:1])", ARRAYS, [[-0.75, 0.25, 0.25, 0.25]]),
    "absolute error's at 0": ("losses.absolute_error_gradient(zero, zero)", ARRAYS, ZERO),
    "Huber's far away": ("losses.huber_gradient(huge, zero[:1])", ARRAYS, [[1, -1, 0, 1]]),
    "binary cross-entropy far away": (
        "losses.binary_cross_entropy_gradient(huge[:, :3], one[:1, :3])", ARRAYS, [[0, -1, -0.5]]),
    "one class": ("losses.cross_entropy_gradient(huge[:, :1], labels[:1])", ARRAYS, [[0]]),
    "goodness of silence": ("goodness.sum_of_squares.value(zero)", ARRAYS, [0, 0, 0]),
    "goodness's gradient of silence": ("goodness.mean_square.gradient(zero)", ARRAYS, ZERO),
    "the largest of silence": ("goodness.maximum.value(zero)", ARRAYS, [0, 0, 0]),
    "entmax of equal units": ("goodness.entmax_weighted().value(one)", ARRAYS, [1, 1, 1]),
    "kurtosis of equal units": ("goodness.excess_kurtosis().value(one)", ARRAYS, [-3, -3, -3]),
    "layer norm of constants": ("normalisations.layer_norm(one)", ARRAYS, ZERO),
    "no size of silence": ("normalisations.rms_norm(zero)", ARRAYS, ZERO),
    "no direction of nothing": ("normalisations.direction(zero)", ARRAYS, ZERO),
    "no derivative of no direction": ("normalisations.direction_vjp(zero, one)", ARRAYS, ZERO),
    "quantised zeros": ("hardware.quantise(zero, 4)", ARRAYS, ZERO),
    "quantised largest": ("hardware.quantise(huge[:, :2], 4)", ARRAYS, [[1e30, -1e30]]),
    "a range of ties": ("aggregation.best_range(ties, labels)", {"ties": np.zeros((2, 3, 4)), "labels": THREE}, (0, 0)),
    "even chances": (
        "negatives.wrong_label_probabilities(zero[:, :3], labels)", ARRAYS,
        [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "dead units under backprop": (
        f"backprop.updates({RELU}, x, labels)[0][0]", dead(), np.zeros((5, 4))),
    "dead units under FOTON": (f"foton.updates({RELU}, x, labels)[1][0]", dead(), np.zeros((3, 5))),
    "dead units' output bias alone": (
        f"losses.cross_entropy_gradient(layers.forward({RELU}, x).scores, labels)", dead(), 1 / 3 - np.eye(3)),
    "one class teaches nothing": (
        f"backprop.updates({RELU}, x, labels)[1][0]", thin(1, 4, 3) | {"labels": np.zeros(3, int)}, np.zeros((1, 4))),
}  # fmt: skip

NETWORKS = {
    f"{classes} classes, width {width}, batch {batch}": thin(classes, width, batch)
    for classes in (2, 1000)
    for width in (1, 6)
    for batch in (1, 3)
}
ALGORITHMS = {
    "backprop": "backprop.updates({}, x, labels)",
    "foton": "foton.updates({}, x, labels)",
    "pepita": "pepita.updates({}, weights[1], x, labels)",
    "ftp": "ftp.updates({}, weights[1].T, x, labels)",
    "feedback_alignment": "feedback_alignment.updates({}, weights[1:], x, labels)",
    "direct_feedback_alignment": "direct_feedback_alignment.updates({}, (weights[1].T,), x, labels)",
    "direct_random_target_projection": "direct_random_target_projection.updates({}, (weights[1].T,), x, labels)",
}
TANH = RELU.replace("relu", "tanh")

ERRORS: dict[str, tuple[str, dict[str, Any], str]] = {
    "no samples": ("losses.cross_entropy(zero[:0], labels[:0])", ARRAYS, "at least one of each"),
    "no classes": ("losses.cross_entropy(zero[:, :0], labels)", ARRAYS, "at least one of each"),
    "a class beyond": ("losses.cross_entropy(zero[:, :2], labels)", ARRAYS, r"labels: found 0\.\.2, expected 0\.\.1"),
    "one class has no wrong label": (
        "negatives.wrong_label_probabilities(zero[:, :1], first)", ARRAYS | {"first": 0 * THREE}, "expected"),
    "a normalisation of one number": ("normalisations.layer_norm(zero[:, :1])", ARRAYS, "expected 2 or more"),
    "a batch of one, normalised": ("normalisations.batch_norm(zero[:1])", ARRAYS, "expected 2 or more"),
    "maxmin of one unit": ("activations.maxmin.value(zero[:, :1])", ARRAYS, "even number"),
    "one bit": ("hardware.quantise(zero, 1)", ARRAYS, "bits: 1, expected 2 or more"),
    "a temperature of 0": ("losses.cross_entropy(zero, labels, 0.0)", ARRAYS, "temperature: 0.0, expected a positive"),
}  # fmt: skip


def on(side: Side, call: str, operands: dict[str, Any]) -> Any:
    return side.results(evaluated(call, side, side.operands(operands)))


@pytest.mark.smoke
@pytest.mark.parametrize("name", RESULTS)
def test_results(side: Side, name: str) -> None:
    """To eight units of eps of the largest number, which sums of a few terms may lose."""
    call, operands, expected = RESULTS[name]
    with np.errstate(all="ignore"):
        found, wanted = np.asarray(on(side, call, operands)), np.asarray(expected)
    assert found.shape == wanted.shape, name
    scale = np.maximum(np.abs(wanted), min(1.0, float(np.abs(wanted).max(initial=0))))
    assert (np.abs(found - wanted) <= 8 * side.eps * scale + 1e-30).all(), f"{name}: {found}, expected {wanted}"


@pytest.mark.smoke
@pytest.mark.parametrize("name", ERRORS)
def test_errors(side: Side, name: str) -> None:
    call, operands, words = ERRORS[name]
    if isinstance(side, TwinSide) and not side.is_ours:
        pytest.skip("another package has words of its own")
    if not side.looks_for(words):
        pytest.skip("numbers of a tensor are looked at on a CPU alone")
    with side.refuses(words):
        on(side, call, operands)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_extreme_sizes(twin: Side, compare: Comparison, algorithm: str, network: str) -> None:
    """Of one unit or one sample, two classes or a thousand: as the reference."""
    operands, call = NETWORKS[network], ALGORITHMS[algorithm].format(TANH)
    names = [name for name in operands if name in call]
    compare(
        twin, algorithm,
        lambda side, *arrays: evaluated(call, side, dict(zip(names, arrays, strict=True))),
        *(operands[name] for name in names),
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_reference_keeps_float32(algorithm: str) -> None:
    operands = NETWORKS["2 classes, width 6, batch 3"]
    single = {name: on_each(found, lambda array: array.astype(np.float32)) for name, found in operands.items()}
    call = ALGORITHMS[algorithm].format(TANH)
    found = evaluated(call, ReferenceSide(), single | {"labels": operands["labels"]})
    assert {array.dtype for update in found for array in update} == {np.dtype(np.float32)}


def on_each(found: Any, change: Callable[[Any], Any]) -> Any:
    """Of an array, or of each of some."""
    return change(found) if isinstance(found, np.ndarray) else tuple(on_each(part, change) for part in found)
