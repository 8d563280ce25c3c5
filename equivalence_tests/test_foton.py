"""FOTON: twin against reference, and the theorems on when it is backpropagation and when it is not."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Dense, ReferenceSide, Side
from prograde.equivalence_tests.strategies import SMOOTH, Case, cases, keeping_masks, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import orthogonality

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""


def foton_updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.foton.updates(side.network(dense), x, labels, masks)


def backprop_updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.backprop.updates(side.network(dense), x, labels, masks)


def differences(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    """What stands for dLoss/dh_l at the hidden layers."""
    network = side.network(dense)
    clean = side.net.forward(network, x, masks)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    projection = side.foton.error_projection(network.weights)
    return tuple(side.net.activation_differences(network, clean, error, projection, masks))


def gradients(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    """dLoss/dh_l at the hidden layers."""
    network = side.network(dense)
    clean = side.net.forward(network, x, masks)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    return side.backprop.activation_gradients(network, clean, error, masks)[0][:-1]


def linear_case(widths: list[int], seed: int = 0, gaussian: bool = False) -> Case:
    """A linear network with orthonormal rows or columns, but for its Gaussian output layer, and a batch of 32."""
    rng = np.random.default_rng(seed)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [
        rng.standard_normal(shape) / np.sqrt(shape[1]) if gaussian else orthogonality.orthogonal(shape, rng)
        for shape in shapes[:-1]
    ]
    weights.append(rng.standard_normal(shapes[-1]) / np.sqrt(shapes[-1][1]))
    dense = Dense(tuple(weights), (None,) * len(weights), ("identity",) * len(weights))
    return Case(dense, rng.standard_normal((32, widths[0])), rng.integers(0, widths[-1], 32), None)


def on(side: Side, call: Any, case: Case) -> Any:
    return side.results(call(side, *side.operands(tuple(case))))


def relative_errors(side: Side, case: Case) -> list[float]:
    pairs = zip(on(side, foton_updates, case).weights, on(side, backprop_updates, case).weights, strict=True)
    return [rms(ours - theirs) / rms(theirs) for ours, theirs in pairs]


def cosine(a: Any, b: Any) -> float:
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


@given(case=cases())
def test_updates(twin: Side, compare: Comparison, case: Case):
    compare(twin, "foton.updates", foton_updates, *case)


@given(case=cases())
def test_error_projection(twin: Side, compare: Comparison, case: Case):
    def projection(side: Side, weights: Any) -> Any:
        return side.foton.error_projection(weights)

    compare(twin, "foton.error_projection", projection, case.dense.weights)


@given(case=cases(max_hidden=4), rng=seeds())
def test_credit_operators(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    """M_l = P_l P_l^T with P_l = W_l ... W_1, from the products themselves; applied to columns, since symmetric."""
    columns = tuple(rng.standard_normal((len(weight), 3)) for weight in case.dense.weights[:-1])

    def products(reference: Side, weights: Any, columns: Any) -> Any:
        prefixes = [weights[0]]
        for weight in weights[1:-1]:
            prefixes.append(weight @ prefixes[-1])
        return tuple(p @ (p.T @ c) for p, c in zip(prefixes, columns, strict=True))

    def operators(side: Side, weights: Any, columns: Any) -> Any:
        return tuple(m @ c for m, c in zip(side.foton.credit_operators(weights), columns, strict=True))

    for side in (ReferenceSide(), twin):
        compare(
            side,
            "credit_operators",
            operators,
            case.dense.weights,
            columns,
            expected=products,
        )


@given(case=cases(max_hidden=4), activation_gain=st.sampled_from([1.0, 0.7, 1.3]), linear=st.booleans())
def test_recomputing_the_clean_pass_changes_nothing(
    side: Side, compare: Comparison, case: Case, activation_gain: float, linear: bool
):
    """The factors of the form that holds one layer at a time are those of the ordinary form."""

    def factors(side: Side, dense: Any, x: Any, labels: Any, masks: Any, recompute: bool) -> Any:
        network = side.network(dense)
        clean = side.net.forward(network, x, masks)
        error = side.losses.cross_entropy_gradient(clean.scores, labels)
        projection = side.foton.error_projection(network.weights)
        if recompute:
            return tuple(side.foton.recomputed_factors(network, x, error, projection, masks, activation_gain, linear))
        return tuple(side.foton.update_factors(network, clean, error, projection, masks, activation_gain, linear))

    compare(
        side,
        "recomputed_factors",
        lambda side, *o: factors(side, *o, recompute=True),
        *case,
        expected=lambda side, *o: factors(side, *o, recompute=False),
    )


def linear_updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.foton.updates(side.network(dense), x, labels, masks, linear=True)


@given(case=cases())
def test_linear_updates(twin: Side, compare: Comparison, case: Case):
    compare(twin, "foton.updates", linear_updates, *case)


@given(case=cases(orthogonal=True, growing=False))
def test_linear_pass_gives_the_last_hidden_layer_its_gradient(side: Side, compare: Comparison, case: Case):
    """Through any activation and mask, as nothing is missing above that layer; the output layer is exact as ever."""

    def last(updates: Any) -> Any:
        return lambda *operands: tuple(part[-2:] for part in updates(*operands))

    compare(side, "foton.updates", last(linear_updates), *case, expected=last(backprop_updates))


@given(case=cases(("identity",), orthogonal=True, growing=False))
def test_linear_pass_of_a_linear_network_gives_backprop(side: Side, compare: Comparison, case: Case):
    case = case._replace(masks=None)
    compare(side, "foton.updates", linear_updates, *case, expected=backprop_updates)


def test_linear_pass_comes_nearer_to_backprop_in_a_deep_network(side: Side):
    """784-128x19-10 with tanh on random data: at every layer from the second on, and more towards the output."""
    rng = np.random.default_rng(0)
    shapes = [(128, 784), *[(128, 128)] * 18]
    weights = (*(orthogonality.orthogonal(shape, rng) for shape in shapes), rng.standard_normal((10, 128)) / 12)
    dense = Dense(weights, (None,) * 20, ("tanh",) * 19 + ("identity",))
    case = Case(dense, rng.standard_normal((64, 784)), rng.integers(0, 10, 64), None)
    theirs = on(side, backprop_updates, case).weights[:-1]
    plain = [cosine(a, b) for a, b in zip(on(side, foton_updates, case).weights, theirs, strict=False)]
    linear = [cosine(a, b) for a, b in zip(on(side, linear_updates, case).weights, theirs, strict=False)]
    assert linear == sorted(linear), f"cosines {linear}"
    assert all(a > b for a, b in zip(linear[1:], plain[1:], strict=True)), f"cosines {linear} and {plain}"


@given(case=cases(), activation_gain=st.sampled_from([0.7, 1.3]))
def test_updates_corrected_for_an_activation_gain(side: Side, compare: Comparison, case: Case, activation_gain: float):
    """Each hidden update times lambda^(L-2l), biases too; the output's as it was."""

    def corrected(reference: Side, *operands: Any) -> Any:
        plain = foton_updates(reference, *operands)
        factors = [activation_gain ** (case.depth - 2 * layer) for layer in range(1, case.depth)] + [1.0]
        return reference.net.Updates(
            *(
                tuple(None if a is None else np.asarray(f, a.dtype) * a for f, a in zip(factors, part, strict=True))
                for part in plain
            )
        )

    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        return side.foton.updates(side.network(dense), x, labels, masks, activation_gain=activation_gain)

    compare(side, "foton.updates", updates, *case, expected=corrected)


@given(case=cases(), rng=seeds())
def test_updates_with_a_given_projection(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator):
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any, projection: Any) -> Any:
        return side.foton.updates(side.network(dense), x, labels, masks, projection=projection)

    projection = rng.standard_normal((case.x.shape[1], case.num_classes)) / np.sqrt(case.num_classes)
    compare(twin, "foton.updates", updates, *case, projection)


@given(case=cases())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case):
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        gradient = side.losses.squared_error_gradient
        return side.foton.updates(side.network(dense), x, labels, masks, output_gradient=gradient)

    compare(twin, "foton.updates", updates, *case)


@given(case=cases(("identity",), orthogonal=True, growing=False, dropout=False))
def test_linear_orthogonal_network_gives_backprop(side: Side, compare: Comparison, case: Case):
    """Orthonormal rows up to a layer (widths that do not grow from the input): exact, for any output layer."""
    compare(side, "differences", differences, *case, expected=gradients)
    compare(side, "foton.updates", foton_updates, *case, expected=backprop_updates)


def test_linear_orthogonal_network_gives_backprop_to_1e_12(side: Side):
    assert max(relative_errors(side, linear_case([64, 48, 48, 32, 10]))) <= EXACT * side.eps


def test_growing_layer_differs_from_backprop_by_a_projection(side: Side):
    """32-64-64-48-10: M_l = P_l P_l^T is a projector of rank 32, and G_l = M_l G_l^BP, up to the shrinking layer."""
    case = linear_case([32, 64, 64, 48, 10])
    errors = relative_errors(side, case)
    assert min(errors[:3]) > 0.5, f"expected a difference at every hidden layer, found {errors}"
    assert errors[3] <= EXACT * side.eps, "the output layer is exact for any network"
    ours, theirs = on(side, foton_updates, case), on(side, backprop_updates, case)
    operators = side.results(side.foton.credit_operators(side.operands(case.dense.weights)))
    for layer, projection in enumerate(operators[:2]):
        off = np.abs(projection @ projection - projection).max()
        assert off <= EXACT * side.eps, f"M_{layer + 1} is no projector"
        assert abs(np.trace(projection) - 32) <= 64 * 32 * side.eps
        expected = projection @ theirs.weights[layer]
        assert rms(ours.weights[layer] - expected) <= EXACT * side.eps * rms(expected), f"weights[{layer}]"


def test_bottleneck_is_exact_until_the_width_grows_again(side: Side):
    errors = relative_errors(side, linear_case([64, 16, 48, 10]))
    assert errors[0] <= EXACT * side.eps
    assert errors[1] > 0.5


def test_gaussian_weights_differ_from_backprop(side: Side):
    assert min(relative_errors(side, linear_case([64, 48, 48, 32, 10], gaussian=True))[:3]) > 0.5


def test_orthonormal_columns_alone_do_not_give_backprop(side: Side):
    """W^T W = I, the wording of the paper's summary, on a layer that grows."""
    case = linear_case([16, 32, 10])
    assert orthogonality.defect(case.dense.weights[0]) < 1e-14
    assert relative_errors(side, case)[0] > 0.5


@given(case=cases(("identity",), dropout=False))
def test_any_linear_network_is_backprop_times_a_positive_operator(side: Side, compare: Comparison, case: Case):
    """G_l = M_l G_l^BP, hence <G_l, G_l^BP> >= 0: never an ascent direction."""

    def expected(reference: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        theirs = backprop_updates(reference, dense, x, labels, masks)
        last = np.eye(len(dense.weights[-1]), dtype=dense.weights[-1].dtype)
        operators = [*reference.foton.credit_operators(dense.weights), last]
        weights = tuple(m @ w for m, w in zip(operators, theirs.weights, strict=True))
        biases = tuple(None if b is None else m @ b for m, b in zip(operators, theirs.biases, strict=True))
        return reference.net.Updates(weights, biases)

    compare(side, "foton.updates", foton_updates, *case, expected=expected)
    ours, theirs = on(side, foton_updates, case), on(side, backprop_updates, case)
    for a, b in zip(ours.weights, theirs.weights, strict=True):
        assert np.sum(a * b) >= -64 * side.eps * rms(a) * rms(b) * a.size


@given(case=cases())
def test_output_layer_is_exact_for_any_network(side: Side, compare: Comparison, case: Case):
    def last(updates: Any) -> Any:
        return lambda *operands: (updates(*operands).weights[-1], updates(*operands).biases[-1])

    compare(side, "last", last(foton_updates), *case, expected=last(backprop_updates))


@given(rng=seeds(), depth=st.integers(2, 5), factor=st.sampled_from([0.5, 0.7, 1.5]))
def test_scaled_identity_scales_updates_by_depth(side: Side, rng: np.random.Generator, depth: int, factor: float):
    """sigma(z) = factor z, square weights: h_l - h~_l = factor^(2l-L+1) delta_l and G_l = factor^(2l-L) G_l^BP."""
    n = 12
    weights = tuple(orthogonality.orthogonal((n, n), rng) for _ in range(depth))
    x, labels = rng.standard_normal((7, n)), rng.integers(0, n, 7)
    weights, x, labels = side.operands((weights, x, labels))
    scaled = side.activations.Activation(
        lambda a: factor * a, lambda a, u: factor * u, lambda a, d: factor * d, lambda a, u: factor * u
    )
    network = side.net.Network(weights, (None,) * depth, (scaled,) * (depth - 1) + (side.activations.identity,))
    clean = side.net.forward(network, x)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    projection = side.foton.error_projection(weights)
    ours = side.results(tuple(side.net.activation_differences(network, clean, error, projection)))
    theirs = side.results(side.backprop.activation_gradients(network, clean, error)[0])
    ours_g = side.results(side.foton.updates(network, x, labels)).weights
    theirs_g = side.results(side.backprop.updates(network, x, labels)).weights
    for layer in range(1, depth):
        delta, gradient = factor ** (2 * layer - depth + 1), factor ** (2 * layer - depth)
        assert rms(ours[layer - 1] - delta * theirs[layer - 1]) <= EXACT * side.eps * rms(ours[layer - 1])
        assert rms(ours_g[layer - 1] - gradient * theirs_g[layer - 1]) <= EXACT * side.eps * rms(ours_g[layer - 1])
    corrected = side.results(side.foton.updates(network, x, labels, activation_gain=factor)).weights
    for layer, (a, b) in enumerate(zip(corrected, theirs_g, strict=True)):
        assert rms(a - b) <= EXACT * side.eps * rms(b), f"corrected weights[{layer}]"
    linear = side.results(side.foton.updates(network, x, labels, activation_gain=factor, linear=True)).weights
    for layer, (a, b) in enumerate(zip(linear, theirs_g, strict=True)):
        assert rms(a - b) <= EXACT * side.eps * rms(b), f"linear, corrected weights[{layer}]"


def test_maxmin_needs_more_than_the_weights_in_the_projection(twin64: Side):
    """Piecewise orthogonal: F of the weights alone fails; the Jacobian's transpose, and a small step, succeed."""
    rng = np.random.default_rng(5)
    widths = [32, 32, 32, 32]
    weights = tuple(orthogonality.orthogonal(shape, rng) for shape in zip(widths[1:], widths[:-1], strict=True))
    dense = Dense((*weights, rng.standard_normal((10, 32)) / 6), (None,) * 4, ("maxmin",) * 3 + ("identity",))
    x, labels = rng.standard_normal((16, 32)), rng.integers(0, 10, 16)
    for side in (ReferenceSide(), twin64):
        d, h, y = side.operands((dense, x, labels))
        network = side.network(d)
        clean = side.net.forward(network, h)
        error = side.losses.cross_entropy_gradient(clean.scores, y)
        activation_gradients, preactivation = side.backprop.activation_gradients(network, clean, error)
        theirs = side.results(activation_gradients[:-1])
        by_weights = side.foton.error_projection(network.weights)
        ours = side.results(tuple(side.net.activation_differences(network, clean, error, by_weights)))
        assert min(rms(a - b) / rms(b) for a, b in zip(ours, theirs, strict=True)) > 0.5, "equal by the weights alone"
        jacobian_error = preactivation[0] @ network.weights[0]  # J^T e of each sample, (batch, n_0)
        step = 1e-6
        identity = side.operands(np.eye(32))
        small = side.net.activation_differences(network, clean, step * jacobian_error, identity)
        for a, b in zip(side.results(tuple(small)), theirs, strict=True):
            assert rms(a / step - b) / rms(b) <= 1e-7, "equal by the Jacobian"


def test_both_passes_need_the_same_masks(side: Side):
    """A second pass with masks of its own differs from the first by the masks, not by the error."""
    rng = np.random.default_rng(0)
    case = linear_case([64, 48, 48, 32, 10])
    ours, others = (keeping_masks([48, 48, 32, 10], 32, rng) for _ in range(2))
    dense, x, labels, masks, other_masks = side.operands((case.dense, case.x, case.labels, ours, others))
    network = side.network(dense)
    clean, other = side.net.forward(network, x, masks), side.net.forward(network, x, other_masks)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    projection = side.foton.error_projection(network.weights)
    same = side.results(tuple(side.net.activation_differences(network, clean, error, projection, masks)))
    modulated = side.net.forward(network, x - error @ projection.T, other_masks)
    for layer, (right, h, wrong) in enumerate(zip(same, clean.inputs[1:], modulated.inputs[1:], strict=True)):
        assert rms(side.results(h) - side.results(wrong)) > 2 * rms(right), f"layer {layer + 1}"
    assert rms(side.results(clean.scores) - side.results(other.scores)) > 0


@given(case=cases(("identity",), orthogonal=True, growing=False, dropout=False))
def test_adding_the_projected_error_ascends(side: Side, compare: Comparison, case: Case):
    """x + F e in place of x - F e: the negative of backpropagation at every hidden layer."""

    def added(side: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        network = side.network(dense)
        clean = side.net.forward(network, x, masks)
        error = side.losses.cross_entropy_gradient(clean.scores, labels)
        projection = side.foton.error_projection(network.weights)
        return tuple(-d for d in side.net.activation_differences(network, clean, -error, projection, masks))

    compare(side, "ascent", added, *case, expected=gradients)


def test_a_stale_projection_errs_with_its_age(side: Side):
    """The error grows with the distance of the weights from those that F was built from; none where F is rebuilt."""
    case = linear_case([32, 24, 24, 10])
    rng = np.random.default_rng(1)
    turn = rng.standard_normal((24, 24))
    turn = turn - turn.T
    errors = []
    for angle in (0.0, 0.01, 0.1):
        rotation = np.linalg.qr(np.eye(24) + angle * turn)[0] * np.sign(
            np.diag(np.linalg.qr(np.eye(24) + angle * turn)[1])
        )
        older = (case.dense.weights[0], rotation @ case.dense.weights[1], case.dense.weights[2])
        dense, x, labels, weights = side.operands((case.dense, case.x, case.labels, older))
        projection = side.foton.error_projection(weights)
        ours = side.results(side.foton.updates(side.network(dense), x, labels, projection=projection)).weights[0]
        theirs = on(side, backprop_updates, case).weights[0]
        errors.append(rms(ours - theirs) / rms(theirs))
    assert errors[0] <= EXACT * side.eps
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(("activation", "least"), [("tanh", 0.8), ("relu", 0.5)])
def test_alignment_at_initialisation(side: Side, activation: str, least: float):
    """784-512-512-10 on random data: cosines with backpropagation of .6 to .75 with ReLU, higher with tanh."""
    rng = np.random.default_rng(0)
    weights = tuple(orthogonality.orthogonal(shape, rng) for shape in ((512, 784), (512, 512)))
    weights = (*weights, rng.uniform(-1, 1, (10, 512)) / np.sqrt(512))
    dense = Dense(weights, (None,) * 3, (activation, activation, "identity"))
    case = Case(dense, rng.standard_normal((64, 784)), rng.integers(0, 10, 64), None)
    ours, theirs = on(side, foton_updates, case).weights, on(side, backprop_updates, case).weights
    cosines = [cosine(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert min(cosines[:2]) > least, cosines
    assert cosines[2] > 1 - 16 * side.eps


@given(case=cases(SMOOTH))
def test_no_error_gives_no_updates(side: Side, case: Case):
    """Where the output error is zero there is nothing to learn, at any layer."""
    dense, x, labels, masks = side.operands(tuple(case))
    network = side.network(dense)
    some = side.foton.updates(network, x, labels, masks)
    none = side.foton.updates(network, x, labels, masks, output_gradient=lambda scores, labels: 0 * scores)
    assert min(rms(weight) for weight in side.results(some).weights) > 0
    assert max(rms(weight) for weight in side.results(none).weights) <= side.eps
