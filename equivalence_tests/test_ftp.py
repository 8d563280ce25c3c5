"""Forward target propagation: twin against reference, and what follows from its equations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Dense, Side
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import ftp, orthogonality

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""

SMOOTH_CASES = cases(("identity", "tanh"))
projections = st.sampled_from(["identity", "tanh"])


def width(case: Case, inject: int) -> int:
    """n_j."""
    return int(case.x.shape[1] if inject == 0 else len(case.dense.weights[inject - 1]))


def feedback_for(case: Case, rng: np.random.Generator, inject: int = 1, scale: float = 0.5) -> Any:
    return ftp.random_feedback(width(case, inject), case.num_classes, rng, scale)


def updates(
    side: Side, dense: Any, x: Any, labels: Any, masks: Any, feedback: Any, phi: str = "identity", **options: Any
) -> Any:
    activation = side.activations.ACTIVATIONS[phi]
    return side.ftp.updates(side.network(dense), feedback, x, labels, masks, phi=activation, **options)


@given(case=SMOOTH_CASES, rng=seeds(), phi=projections, gain=st.sampled_from([0.3, 1.0]), data=st.data())
def test_updates(
    twin: Side, compare: Comparison, case: Case, rng: np.random.Generator, phi: str, gain: float, data: st.DataObject
):
    inject = data.draw(st.integers(0, case.depth - 1), label="inject")
    feedback = feedback_for(case, rng, inject)

    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, phi=phi, gain=gain, inject=inject)

    compare(twin, "ftp.updates", ours, *case, feedback)


@given(case=cases(("relu", "leaky_relu", "maxmin")), rng=seeds())
def test_updates_with_kinks(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    """A correction too small to reach a kink, but for the last bits of it."""
    feedback = feedback_for(case, rng, scale=1e-4)
    if twin.eps > 1e-8:
        pytest.skip("corrections this small are lost in this precision")
    compare(twin, "ftp.updates", updates, *case, feedback)


@given(case=SMOOTH_CASES, rng=seeds())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, output_gradient=side.losses.squared_error_gradient)

    compare(twin, "ftp.updates", ours, *case, feedback_for(case, rng))


SOFTENED = st.fixed_dictionaries(
    {"label_smoothing": st.sampled_from([0.0, 0.1, 0.4]), "temperature": st.sampled_from([0.5, 1.0, 3.0])}
)


@given(case=SMOOTH_CASES, rng=seeds(), options=SOFTENED)
def test_updates_with_label_smoothing_and_temperature(
    twin: Side, compare: Comparison, case: Case, rng: np.random.Generator, options: Any
):
    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, phi="tanh", **options)

    compare(twin, "ftp.updates", ours, *case, feedback_for(case, rng, scale=2.0))


def parts(side: Side, dense: Any, x: Any, labels: Any, masks: Any, feedback: Any) -> Any:
    network = side.network(dense)
    clean = side.net.forward(network, x, masks)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    phi = side.activations.tanh
    first = side.ftp.first_difference(feedback, -error, error, phi, 0.7)
    found = tuple(side.ftp.differences(network, clean, first, masks))
    return first, found, tuple(side.ftp.update_factors(network, clean, error, first, masks))


@given(case=SMOOTH_CASES, rng=seeds())
def test_parts(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    compare(twin, "parts", parts, *case, feedback_for(case, rng))


@given(case=cases(), rng=seeds(), phi=projections)
def test_where_the_output_is_the_label_no_hidden_layer_moves(
    side: Side, case: Case, rng: np.random.Generator, phi: str
):
    """p = y: both projections are one."""

    def right(scores: Any, labels: Any) -> Any:
        return 0 * scores

    operands = side.operands((*case, feedback_for(case, rng)))
    found = side.results(updates(side, *operands, phi=phi, output_gradient=right))
    assert all(rms(weight) <= 64 * side.eps for weight in found.weights), "a hidden layer moves"


@given(case=cases(max_hidden=1), rng=seeds(), gain=st.sampled_from([0.5, 1.0]))
def test_one_hidden_layer_is_direct_feedback_alignment(
    side: Side, compare: Comparison, case: Case, rng: np.random.Generator, gain: float
):
    """With phi = identity and B_1 = gamma G, dropout and any activation included."""

    def ours(side: Side, *operands: Any) -> Any:
        return updates(side, *operands, gain=gain)

    def theirs(side: Side, dense: Any, x: Any, labels: Any, masks: Any, feedback: Any) -> Any:
        matrices = (np.asarray(gain, feedback.dtype) * feedback,)
        return side.direct_feedback_alignment.updates(side.network(dense), matrices, x, labels, masks)

    compare(side, "ftp.updates", ours, *case, feedback_for(case, rng), expected=theirs)


def linear(rng: np.random.Generator, widths: list[int], batch: int = 7) -> Case:
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = tuple(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes)
    biases = tuple(0.3 * rng.standard_normal(n) for n in widths[1:])
    dense = Dense(weights, biases, ("identity",) * len(weights))
    return Case(dense, rng.standard_normal((batch, widths[0])), rng.integers(0, widths[-1], batch), None)


def steps(side: Side, case: Case, feedback: Any) -> tuple[Any, list[Any], Any]:
    """e, the differences h_l - tau_l, and backpropagation's dLoss/dh_l."""
    dense, x, labels, _, feedback = side.operands((*case, feedback))
    network = side.network(dense)
    clean = side.net.forward(network, x)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    targets = side.operands(np.eye(case.num_classes)[case.labels])
    first = side.ftp.first_difference(feedback, targets, error)
    found = side.results(tuple(side.ftp.differences(network, clean, first)))
    gradients = side.results(side.backprop.activation_gradients(network, clean, error)[0])
    return side.results(error), list(found), gradients


@given(rng=seeds())
def test_targets_of_a_linear_network_are_displaced_by_its_jacobian(side: Side, rng: np.random.Generator):
    """tau_l - h_l = J G (y - p) with J the Jacobian from the first hidden layer to that one; biases do not enter."""
    case = linear(rng, [6, 9, 5, 8, 4])
    feedback = feedback_for(case, rng)
    error, found, _ = steps(side, case, feedback)
    jacobian = np.eye(9)
    for layer, difference in enumerate(found):
        if layer > 0:
            jacobian = case.dense.weights[layer] @ jacobian
        expected = error @ feedback.T @ jacobian.T
        assert rms(difference - expected) <= EXACT * side.eps * rms(expected), f"layer {layer + 1}"


@given(rng=seeds())
def test_every_layer_of_a_linear_network_has_the_same_inner_product_with_backprop(side: Side, rng: np.random.Generator):
    """<dLoss/dh_l, h_l - tau_l> = e^T J G e, of all layers: the sign of one tells whether all descend."""
    case = linear(rng, [6, 9, 5, 8, 4])
    feedback = feedback_for(case, rng)
    error, found, gradients = steps(side, case, feedback)
    whole = case.dense.weights[3] @ case.dense.weights[2] @ case.dense.weights[1]
    shared = np.sum(error * (error @ feedback.T @ whole.T), axis=1)
    for layer, difference in enumerate(found):
        products = np.sum(gradients[layer] * difference, axis=1)
        sizes = np.linalg.norm(gradients[layer], axis=1) * np.linalg.norm(difference, axis=1)
        assert np.all(np.abs(products - shared) <= EXACT * side.eps * sizes), f"layer {layer + 1}"


@given(rng=seeds())
def test_the_pseudoinverse_as_feedback_corrects_the_output(rng: np.random.Generator):
    """G = J^+, J of full row rank: what the network makes of each layer's target is y, exactly where it is linear."""
    case = linear(rng, [6, 9, 8, 8, 4])
    weights = case.dense.weights
    feedback = np.linalg.pinv(weights[3] @ weights[2] @ weights[1])
    from prograde.equivalence_tests.sides import ReferenceSide

    error, found, _ = steps(ReferenceSide(), case, feedback)
    onward = [weights[3] @ weights[2] @ weights[1], weights[3] @ weights[2], weights[3]]
    for layer, (difference, jacobian) in enumerate(zip(found, onward, strict=True)):
        assert rms(difference @ jacobian.T - error) <= 1e-9 * rms(error), f"layer {layer + 1} corrects the output"


@given(rng=seeds(), options=SOFTENED)
def test_the_correction_lies_between_the_output_and_the_targets_of_the_loss(
    side: Side, rng: np.random.Generator, options: Any
):
    """phi(G p) - phi(G t), by hand: p the softmax of the divided scores, t the smoothed labels."""
    case = linear(rng, [6, 9, 4])
    feedback = feedback_for(case, rng, scale=2.0)
    found = side.results(updates(side, *side.operands((*case, feedback)), phi="tanh", **options)).biases[0]
    (first, last), (offset, bias) = case.dense.weights, case.dense.biases
    divided = ((case.x @ first.T + offset) @ last.T + bias) / options["temperature"]
    outputs = np.exp(divided) / np.exp(divided).sum(axis=1, keepdims=True)
    alpha = options["label_smoothing"]
    targets = (1 - alpha) * np.eye(4)[case.labels] + alpha / 4
    expected = (np.tanh(outputs @ feedback.T) - np.tanh(targets @ feedback.T)).mean(axis=0)
    assert rms(found - expected) <= EXACT * side.eps * rms(expected), "correction of the first layer"


@given(case=SMOOTH_CASES, rng=seeds(), data=st.data())
def test_layers_before_the_injection_are_not_trained(
    side: Side, case: Case, rng: np.random.Generator, data: st.DataObject
):
    inject = data.draw(st.integers(1, case.depth - 1), label="inject")
    operands = side.operands((*case, feedback_for(case, rng, inject)))
    found = side.results(updates(side, *operands, inject=inject)).weights
    assert all(rms(weight) == 0 for weight in found[: inject - 1]), "no target, no update"
    assert all(rms(weight) > 0 for weight in found[inject - 1 :]), "every later layer is trained"


def test_dropped_units_have_no_target(side: Side):
    """What the feedback says to a unit that is dropped for every sample reaches no later layer."""
    rng = np.random.default_rng(0)
    case = linear(rng, [6, 5, 7, 4])
    masks = (np.array([0.0, 2.0, 2.0, 0.0, 2.0]) * np.ones((len(case.x), 1)), None, None)
    feedback = feedback_for(case, rng)
    other = feedback.copy()
    other[[0, 3]] = 9.0
    found = [updates(side, *side.operands((*case[:3], masks, given))) for given in (feedback, other)]
    for a, b in zip(*(side.results(one).weights for one in found), strict=True):
        assert np.array_equal(a, b), "a row of the feedback for a dropped unit is used"


def test_an_injection_that_is_no_layer_is_refused(side: Side):
    case = linear(np.random.default_rng(0), [6, 5, 4])
    operands = side.operands((*case, np.ones((5, 4))))
    for inject in (-1, 2):
        with pytest.raises(ValueError, match=rf"inject: {inject}, expected 0..1"):
            updates(side, *operands, inject=inject)


@pytest.mark.parametrize("law", ["uniform", "normal", "orthogonal"])
def test_feedback_of_every_law_has_the_same_mean_square(law: Any):
    for n in (300, 5):
        drawn = ftp.random_feedback(n, 10, np.random.default_rng(0), 0.5, law)
        assert drawn.shape == (n, 10)
        assert np.mean(drawn**2) == pytest.approx(0.25 * 6 / 10 / 3, rel=0.1 if n == 300 else 0.6)
    with pytest.raises(ValueError, match="law: 'cauchy', expected 'uniform', 'normal' or 'orthogonal'"):
        ftp.random_feedback(3, 4, np.random.default_rng(0), law="cauchy")  # type: ignore[arg-type]


def test_the_orthogonal_law_is_orthogonal():
    drawn = ftp.random_feedback(30, 10, np.random.default_rng(0), law="orthogonal")
    assert orthogonality.defect(drawn / np.linalg.norm(drawn[:, 0])) < 1e-12
