"""FOTON: twin against reference, and the theorems on when it is backpropagation and when it is not.

Through dense layers first, then through circular convolutions.
"""

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Convolution, Dense, Images, Padded, ReferenceSide, Side
from prograde.equivalence_tests.strategies import SMOOTH, Case, cases, keeping_masks, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import convolution, orthogonality

pytestmark = pytest.mark.smoke
EXACT = 1e-12 / 2.0**-52
"""The promise of 1e-12 in float64, in units of the side's eps."""


def begin(side: Side, network: Any, x: Any) -> Any:
    """x as the first layer takes it."""
    return side.unshuffled(network, x) if isinstance(network, Images) else x


def foton_updates(side: Side, network: Any, x: Any, labels: Any, masks: Any, **options: Any) -> Any:
    return side.foton.updates(side.chain(network, masks), begin(side, network, x), labels, **options)


def linear_updates(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
    return foton_updates(side, network, x, labels, masks, linear=True)


def backprop_updates(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
    return side.backprop.updates(side.chain(network, masks), begin(side, network, x), labels)


def parts(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
    """The layers, the clean pass, its error and the projection."""
    layers = side.chain(network, masks)
    clean = side.layers.forward(layers, begin(side, network, x))
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    return layers, clean, error, side.foton.error_projection(layers, clean)


def differences(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
    """What stands for dLoss/dh_l at the hidden layers."""
    return tuple(side.foton.differences(*parts(side, network, x, labels, masks)))


def gradients(side: Side, *operands: Any) -> Any:
    """dLoss/dh_l at the hidden layers."""
    layers, clean, error, _ = parts(side, *operands)
    return side.backprop.activity_gradients(layers, clean, error)[0][:-1]


def weights_of(updates: Any) -> list[Any]:
    """The updates of the weights or kernels, without those of biases."""
    return [layer[0] for layer in updates]


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


def relative_errors(side: Side, case: Any, gain: float = 1.0, linear: bool = False) -> list[float]:
    """FOTON's errors, layer by layer, with sigma(a) = gain a and the gain corrected where it is not 1."""
    network, x, labels, masks = side.operands(tuple(case))
    activations = None if gain == 1 else scaled(side, gain)
    layers, x = side.chain(network, masks, activations), begin(side, network, x)
    ours = side.foton.updates(layers, x, labels, activation_gain=gain, linear=linear)
    theirs = side.backprop.updates(layers, x, labels)
    both = (weights_of(side.results(updates)) for updates in (ours, theirs))
    return [rms(a - b) / rms(b) for a, b in zip(*both, strict=True)]


def cosine(a: Any, b: Any) -> float:
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


@given(case=cases())
def test_updates(twin: Side, compare: Comparison, case: Case) -> None:
    compare(twin, "foton.updates", foton_updates, *case)


@given(case=cases())
def test_error_projection(twin: Side, compare: Comparison, case: Case) -> None:
    def projection(side: Side, *operands: Any) -> Any:
        return parts(side, *operands)[-1]

    compare(twin, "foton.error_projection", projection, *case)


@given(case=cases(max_hidden=4))
def test_error_projection_is_the_transposed_product_of_the_weights(side: Side, compare: Comparison, case: Case) -> None:
    """F^T = W_L ... W_1: biases, activations and masks do not enter."""

    def product(reference: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        rows = dense.weights[-1]
        for weight in reversed(dense.weights[:-1]):
            rows = rows @ weight
        return rows

    compare(side, "foton.error_projection", lambda side, *o: parts(side, *o)[-1], *case, expected=product)


@given(case=cases(max_hidden=4), rng=seeds())
def test_credit_operators(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
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


def factors(
    side: Side, network: Any, x: Any, labels: Any, masks: Any, *, recompute: bool, gain: float, linear: bool
) -> Any:
    layers, clean, error, projection = parts(side, network, x, labels, masks)
    if recompute:
        x, layers = begin(side, network, x), side.one_by_one(layers)
        return tuple(side.foton.recomputed_factors(iter(layers), len(layers), x, error, projection, gain, linear))
    return tuple(side.foton.update_factors(layers, clean, error, projection, gain, linear))


def check_recomputed(side: Side, compare: Comparison, case: Any, **options: Any) -> None:
    compare(
        side,
        "recomputed_factors",
        lambda side, *o: factors(side, *o, recompute=True, **options),
        *case,
        expected=lambda side, *o: factors(side, *o, recompute=False, **options),
    )


@pytest.mark.parametrize("linear", [False, True])
@given(case=cases(max_hidden=4), gain=st.sampled_from([1.0, 0.7, 1.3]))
def test_recomputing_the_clean_pass_changes_nothing(
    side: Side, compare: Comparison, case: Case, gain: float, linear: bool
) -> None:
    """The factors of the form that holds one layer at a time are those of the ordinary form."""
    check_recomputed(side, compare, case, gain=gain, linear=linear)


@given(case=cases())
def test_linear_updates(twin: Side, compare: Comparison, case: Case) -> None:
    compare(twin, "foton.updates", linear_updates, *case)


@given(case=cases(orthogonal=True, growing=False))
def test_linear_pass_gives_the_last_hidden_layer_its_gradient(side: Side, compare: Comparison, case: Case) -> None:
    """Through any activation and mask, as nothing is missing above that layer; the output layer is exact as ever."""

    def last(updates: Any) -> Any:
        return lambda *operands: updates(*operands)[-2:]

    compare(side, "foton.updates", last(linear_updates), *case, expected=last(backprop_updates))


@given(case=cases(("identity",), orthogonal=True, growing=False))
def test_linear_pass_of_a_linear_network_gives_backprop(side: Side, compare: Comparison, case: Case) -> None:
    case = case._replace(masks=None)
    compare(side, "foton.updates", linear_updates, *case, expected=backprop_updates)


def test_linear_pass_comes_nearer_to_backprop_in_a_deep_network(side: Side) -> None:
    """784-128x19-10 with tanh on random data: at every layer from the second on, and more towards the output."""
    rng = np.random.default_rng(0)
    shapes = [(128, 784), *[(128, 128)] * 18]
    weights = (*(orthogonality.orthogonal(shape, rng) for shape in shapes), rng.standard_normal((10, 128)) / 12)
    dense = Dense(weights, (None,) * 20, ("tanh",) * 19 + ("identity",))
    case = Case(dense, rng.standard_normal((64, 784)), rng.integers(0, 10, 64), None)
    theirs = weights_of(on(side, backprop_updates, case))[:-1]
    plain = [cosine(a, b) for a, b in zip(weights_of(on(side, foton_updates, case)), theirs, strict=False)]
    linear = [cosine(a, b) for a, b in zip(weights_of(on(side, linear_updates, case)), theirs, strict=False)]
    assert linear == sorted(linear), f"cosines {linear}"
    assert all(a > b for a, b in zip(linear[1:], plain[1:], strict=True)), f"cosines {linear} and {plain}"


@given(case=cases(), activation_gain=st.sampled_from([0.7, 1.3]))
def test_updates_corrected_for_an_activation_gain(
    side: Side, compare: Comparison, case: Case, activation_gain: float
) -> None:
    """Each hidden update times lambda^(L-2l), biases too; the output's as it was."""

    def corrected(reference: Side, *operands: Any) -> Any:
        gains = [activation_gain ** (case.depth - 2 * layer) for layer in range(1, case.depth)] + [1.0]
        plain = zip(gains, foton_updates(reference, *operands), strict=True)
        return tuple(tuple(np.asarray(gain, a.dtype) * a for a in layer) for gain, layer in plain)

    def updates(side: Side, *operands: Any) -> Any:
        return foton_updates(side, *operands, activation_gain=activation_gain)

    compare(side, "foton.updates", updates, *case, expected=corrected)


@given(case=cases(), rng=seeds())
def test_updates_with_a_given_projection(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    def updates(side: Side, dense: Any, x: Any, labels: Any, masks: Any, projection: Any) -> Any:
        return foton_updates(side, dense, x, labels, masks, projection=projection)

    projection = rng.standard_normal((case.num_classes, case.x.shape[1])) / np.sqrt(case.num_classes)
    compare(twin, "foton.updates", updates, *case, projection)


@given(case=cases())
def test_squared_error_updates(twin: Side, compare: Comparison, case: Case) -> None:
    def updates(side: Side, *operands: Any) -> Any:
        return foton_updates(side, *operands, output_gradient=side.losses.squared_error_gradient)

    compare(twin, "foton.updates", updates, *case)


@given(case=cases(("identity",), orthogonal=True, growing=False, dropout=False))
def test_linear_orthogonal_network_gives_backprop(side: Side, compare: Comparison, case: Case) -> None:
    """Orthonormal rows up to a layer (widths that do not grow from the input): exact, for any output layer."""
    compare(side, "differences", differences, *case, expected=gradients)
    compare(side, "foton.updates", foton_updates, *case, expected=backprop_updates)


def test_linear_orthogonal_network_gives_backprop_to_1e_12(side: Side) -> None:
    assert max(relative_errors(side, linear_case([64, 48, 48, 32, 10]))) <= EXACT * side.eps


def test_growing_layer_differs_from_backprop_by_a_projection(side: Side) -> None:
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
        expected = projection @ theirs[layer][0]
        assert rms(ours[layer][0] - expected) <= EXACT * side.eps * rms(expected), f"weights[{layer}]"


def test_bottleneck_is_exact_until_the_width_grows_again(side: Side) -> None:
    errors = relative_errors(side, linear_case([64, 16, 48, 10]))
    assert errors[0] <= EXACT * side.eps
    assert errors[1] > 0.5


def test_gaussian_weights_differ_from_backprop(side: Side) -> None:
    assert min(relative_errors(side, linear_case([64, 48, 48, 32, 10], gaussian=True))[:3]) > 0.5


def test_orthonormal_columns_alone_do_not_give_backprop(side: Side) -> None:
    """W^T W = I, the wording of the paper's summary, on a layer that grows."""
    case = linear_case([16, 32, 10])
    assert orthogonality.defect(case.dense.weights[0]) < 1e-14
    assert relative_errors(side, case)[0] > 0.5


@given(case=cases(("identity",), dropout=False))
def test_any_linear_network_is_backprop_times_a_positive_operator(side: Side, compare: Comparison, case: Case) -> None:
    """G_l = M_l G_l^BP, hence <G_l, G_l^BP> >= 0: never an ascent direction."""

    def expected(reference: Side, dense: Any, x: Any, labels: Any, masks: Any) -> Any:
        theirs = backprop_updates(reference, dense, x, labels, masks)
        last = np.eye(len(dense.weights[-1]), dtype=dense.weights[-1].dtype)
        operators = [*reference.foton.credit_operators(dense.weights), last]
        return tuple(tuple(m @ g for g in layer) for m, layer in zip(operators, theirs, strict=True))

    compare(side, "foton.updates", foton_updates, *case, expected=expected)
    ours, theirs = (weights_of(on(side, updates, case)) for updates in (foton_updates, backprop_updates))
    for a, b in zip(ours, theirs, strict=True):
        assert np.sum(a * b) >= -64 * side.eps * rms(a) * rms(b) * a.size


@given(case=cases())
def test_output_layer_is_exact_for_any_network(side: Side, compare: Comparison, case: Case) -> None:
    def last(updates: Any) -> Any:
        return lambda *operands: updates(*operands)[-1]

    compare(side, "last", last(foton_updates), *case, expected=last(backprop_updates))


@given(rng=seeds(), depth=st.integers(2, 5), factor=st.sampled_from([0.5, 0.7, 1.5]))
def test_scaled_identity_scales_updates_by_depth(
    side: Side, rng: np.random.Generator, depth: int, factor: float
) -> None:
    """sigma(z) = factor z, square weights: h_l - h~_l = factor^(2l-L+1) delta_l and G_l = factor^(2l-L) G_l^BP."""
    n = 12
    weights = tuple(orthogonality.orthogonal((n, n), rng) for _ in range(depth))
    x, labels = rng.standard_normal((7, n)), rng.integers(0, n, 7)
    activations = ("scaled",) * (depth - 1) + ("identity",)
    dense, x, labels = side.operands((Dense(weights, (None,) * depth, activations), x, labels))
    layers = side.chain(dense, activations=scaled(side, factor))
    clean = side.layers.forward(layers, x)
    error = side.losses.cross_entropy_gradient(clean.scores, labels)
    ours = side.results(tuple(side.foton.differences(layers, clean, error, side.foton.error_projection(layers, clean))))
    theirs = side.results(side.backprop.activity_gradients(layers, clean, error)[0])
    theirs_g = weights_of(side.results(side.backprop.updates(layers, x, labels)))
    ours_g, corrected, linear = (
        weights_of(side.results(side.foton.updates(layers, x, labels, **options)))
        for options in ({}, {"activation_gain": factor}, {"activation_gain": factor, "linear": True})
    )
    for layer in range(1, depth):
        delta, gradient = factor ** (2 * layer - depth + 1), factor ** (2 * layer - depth)
        assert rms(ours[layer - 1] - delta * theirs[layer - 1]) <= EXACT * side.eps * rms(ours[layer - 1])
        assert rms(ours_g[layer - 1] - gradient * theirs_g[layer - 1]) <= EXACT * side.eps * rms(ours_g[layer - 1])
        for name, found in {"corrected": corrected, "linear, corrected": linear}.items():
            error = rms(found[layer - 1] - theirs_g[layer - 1])
            assert error <= EXACT * side.eps * rms(theirs_g[layer - 1]), f"{name} weights[{layer - 1}]"


def scaled(side: Side, gain: float) -> dict[str, Any]:
    """The activations by name: sigma(a) = gain a, and the identity of the last layer."""
    activation = side.activations.Activation(lambda a: gain * a, *(lambda a, u: gain * u,) * 3)
    return {"scaled": activation, "identity": side.activations.ACTIVATIONS["identity"]}


def test_maxmin_needs_more_than_the_weights_in_the_projection(twin64: Side) -> None:
    """Piecewise orthogonal: F of the weights alone fails; the Jacobian's transpose, and a small step, succeed."""
    rng = np.random.default_rng(5)
    widths = [32, 32, 32, 32]
    weights = tuple(orthogonality.orthogonal(shape, rng) for shape in zip(widths[1:], widths[:-1], strict=True))
    dense = Dense((*weights, rng.standard_normal((10, 32)) / 6), (None,) * 4, ("maxmin",) * 3 + ("identity",))
    x, labels = rng.standard_normal((16, 32)), rng.integers(0, 10, 16)
    for side in (ReferenceSide(), twin64):
        operands = (*side.operands((dense, x, labels)), None)
        theirs = side.results(gradients(side, *operands))
        layers, clean, error, by_weights = parts(side, *operands)
        ours = side.results(tuple(side.foton.differences(layers, clean, error, by_weights)))
        assert min(rms(a - b) / rms(b) for a, b in zip(ours, theirs, strict=True)) > 0.5, "equal by the weights alone"
        beginning = side.opened(layers)[0]
        first = side.layers.pulled_back(beginning.steps, clean.preactivations[0], side.operands(theirs[0]))
        jacobian_error = beginning.adjoint(clean.inputs[0], first)  # J^T e of each sample, (batch, n_0)
        step = 1e-6
        identity = side.operands(np.eye(32))
        small = side.foton.differences(layers, clean, step * jacobian_error, identity)
        for a, b in zip(side.results(tuple(small)), theirs, strict=True):
            assert rms(a / step - b) / rms(b) <= 1e-7, "equal by the Jacobian"


def test_both_passes_need_the_same_masks(side: Side) -> None:
    """A second pass with masks of its own differs from the first by the masks, not by the error."""
    rng = np.random.default_rng(0)
    case = linear_case([64, 48, 48, 32, 10])
    ours, others = (keeping_masks([48, 48, 32, 10], 32, rng) for _ in range(2))
    dense, x, labels, masks, other_masks = side.operands((case.dense, case.x, case.labels, ours, others))
    layers, clean, error, projection = parts(side, dense, x, labels, masks)
    other = side.layers.forward(side.chain(dense, other_masks), x)
    same = side.results(tuple(side.foton.differences(layers, clean, error, projection)))
    modulated = side.layers.forward(side.chain(dense, other_masks), x - error @ projection)
    for layer, (right, h, wrong) in enumerate(zip(same, clean.inputs[1:], modulated.inputs[1:], strict=True)):
        assert rms(side.results(h) - side.results(wrong)) > 2 * rms(right), f"layer {layer + 1}"
    assert rms(side.results(clean.scores) - side.results(other.scores)) > 0


@given(case=cases(("identity",), orthogonal=True, growing=False, dropout=False))
def test_adding_the_projected_error_ascends(side: Side, compare: Comparison, case: Case) -> None:
    """x + F e in place of x - F e: the negative of backpropagation at every hidden layer."""

    def added(side: Side, *operands: Any) -> Any:
        layers, clean, error, projection = parts(side, *operands)
        return tuple(-d for d in side.foton.differences(layers, clean, -error, projection))

    compare(side, "ascent", added, *case, expected=gradients)


def test_a_stale_projection_errs_with_its_age(side: Side) -> None:
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
        stale = case._replace(dense=case.dense._replace(weights=older))
        projection = parts(side, *side.operands(tuple(stale)))[-1]
        found = foton_updates(side, *side.operands(tuple(case)), projection=projection)
        ours, theirs = weights_of(side.results(found))[0], weights_of(on(side, backprop_updates, case))[0]
        errors.append(rms(ours - theirs) / rms(theirs))
    assert errors[0] <= EXACT * side.eps
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(("activation", "least"), [("tanh", 0.8), ("relu", 0.5)])
def test_alignment_at_initialisation(side: Side, activation: str, least: float) -> None:
    """784-512-512-10 on random data: cosines with backpropagation of .6 to .75 with ReLU, higher with tanh."""
    rng = np.random.default_rng(0)
    weights = tuple(orthogonality.orthogonal(shape, rng) for shape in ((512, 784), (512, 512)))
    weights = (*weights, rng.uniform(-1, 1, (10, 512)) / np.sqrt(512))
    dense = Dense(weights, (None,) * 3, (activation, activation, "identity"))
    case = Case(dense, rng.standard_normal((64, 784)), rng.integers(0, 10, 64), None)
    ours, theirs = (weights_of(on(side, updates, case)) for updates in (foton_updates, backprop_updates))
    cosines = [cosine(a, b) for a, b in zip(ours, theirs, strict=True)]
    assert min(cosines[:2]) > least, cosines
    assert cosines[2] > 1 - 16 * side.eps


@given(case=cases(SMOOTH))
def test_no_error_gives_no_updates(side: Side, case: Case) -> None:
    """Where the output error is zero there is nothing to learn, at any layer."""
    operands = side.operands(tuple(case))
    some = foton_updates(side, *operands)
    none = foton_updates(side, *operands, output_gradient=lambda scores, labels: 0 * scores)
    assert min(map(rms, weights_of(side.results(some)))) > 0
    assert max(map(rms, weights_of(side.results(none)))) <= side.eps


# Images


class ImageCase(NamedTuple):
    """A convolutional network with a batch: x (batch, c_0, height, width), labels (batch,), masks as in `Case`."""

    images: Images
    x: Any
    labels: Any
    masks: Any

    @property
    def depth(self) -> int:
        return len(self.images.layers) + len(self.images.dense.weights)


def image_case(
    rng: np.random.Generator,
    channels: tuple[int, ...],
    factors: tuple[int, ...],
    pools: tuple[int, ...],
    size: int = 3,
    hidden: tuple[int, ...] = (),
    activation: str = "identity",
    biases: bool = False,
    batch: int = 5,
    pixels: int = 1,
    dropout: bool = False,
) -> ImageCase:
    """Orthogonal kernels and dense hidden layers; the scores' weights are Gaussian. Images as large as is needed."""
    side = pixels * int(np.prod(factors)) * int(np.prod(pools))
    layers, height = [], side
    for c_in, c_out, factor, pool in zip(channels, channels[1:], factors, pools, strict=False):
        c_z = c_in * factor**2
        c = max(c_z, c_out)
        bases = [orthogonality.orthogonal((c, c // 2), rng) for _ in range(2 * (size - 1))] if c > 1 else []
        kernel = convolution.orthogonal_kernel(orthogonality.orthogonal((c_out, c_z), rng), bases)
        bias = 0.3 * rng.standard_normal(c_out) if biases else None
        layers.append(Convolution(kernel, bias, activation, factor, pool))
        height = height // factor // pool
    widths = [channels[-1] * height**2, *hidden, 4]
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [orthogonality.orthogonal(shape, rng) for shape in shapes[:-1]]
    weights.append(rng.standard_normal(shapes[-1]) / np.sqrt(shapes[-1][1]))
    offsets = tuple(0.3 * rng.standard_normal(n) if biases else None for n in widths[1:])
    dense = Dense(tuple(weights), offsets, (activation,) * len(hidden) + ("identity",))
    x = rng.standard_normal((batch, channels[0], side, side))
    case = ImageCase(Images(tuple(layers), dense), x, rng.integers(0, 4, batch), None)
    return case._replace(masks=image_masks(case, rng)) if dropout else case


def image_masks(case: ImageCase, rng: np.random.Generator) -> tuple[Any, ...]:
    """Of dropout after every layer but the last; one unit at least is kept in each sample."""
    side = ReferenceSide()
    clean = side.layers.forward(side.chain(case.images), begin(side, case.images, case.x))
    masks = [2.0 * rng.integers(0, 2, h.shape) for h in clean.activities[:-1]]
    for mask in masks:
        mask[:, 0] = 2.0
    return (*masks, None)


@st.composite
def image_cases(
    draw: st.DrawFn,
    activations: tuple[str, ...] = ("identity", "tanh"),
    growing: bool = True,
    dropout: bool = True,
) -> ImageCase:
    """One or two convolutional layers, with unshuffling and pooling or without, and at most one dense hidden layer."""
    depth = draw(st.integers(1, 2), label="depth")
    factors = tuple(draw(st.sampled_from([1, 2]), label="factor") for _ in range(depth))
    pools = tuple(draw(st.sampled_from([1, 2]), label="pool") for _ in range(depth))
    channels = [draw(st.integers(2, 3), label="channels")]
    for factor in factors:
        most = channels[-1] * factor**2
        channels.append(draw(st.integers(2, 2 * most if growing else most), label="channels"))
    pixels = draw(st.integers(1, 2), label="pixels")
    hidden = draw(st.sampled_from([(), (2,)]), label="hidden")
    return image_case(
        draw(seeds()),
        tuple(channels),
        factors,
        pools,
        draw(st.sampled_from([1, 2, 3]), label="size"),
        hidden,
        draw(st.sampled_from(activations), label="activation"),
        draw(st.booleans(), label="biases"),
        draw(st.sampled_from([1, 3]), label="batch"),
        pixels,
        dropout and draw(st.booleans(), label="dropout"),
    )


@given(case=image_cases())
def test_updates_of_images(twin: Side, compare: Comparison, case: ImageCase) -> None:
    compare(twin, "foton.updates", foton_updates, *case)
    compare(twin, "foton.differences", differences, *case)
    compare(twin, "foton.error_projection", lambda side, *o: parts(side, *o)[-1], *case)


@given(case=image_cases())
def test_linear_updates_of_images(twin: Side, compare: Comparison, case: ImageCase) -> None:
    compare(twin, "foton.updates", linear_updates, *case)


@pytest.mark.parametrize("linear", [False, True])
@given(case=image_cases())
def test_recomputing_the_clean_pass_of_images_changes_nothing(
    side: Side, compare: Comparison, case: ImageCase, linear: bool
) -> None:
    check_recomputed(side, compare, case, gain=0.7, linear=linear)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "maxmin"])
def test_updates_of_images_with_kinks(twin: Side, compare: Comparison, activation: str) -> None:
    """An image in which no unit of either pass comes near a kink, sought among thousands."""
    if twin.eps > 1e-4:
        pytest.skip("no image keeps clear of kinks in this precision")
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        case = image_case(rng, (1, 4, 4), (2, 1), (1, 1), 2, activation=activation, batch=1, pixels=2)
        if clearance(case) > 2e-2:
            compare(twin, "foton.updates", foton_updates, *case)
            return
    raise AssertionError("no image clear of kinks")


def clearance(case: ImageCase) -> float:
    """How near a pre-activation of the clean or the modulated pass comes to a kink."""
    side = ReferenceSide()
    layers, clean, error, projection = parts(side, *case)
    least = np.inf
    for z in (clean.inputs[0], clean.inputs[0] - np.tensordot(error, projection, axes=1)):
        preactivations = side.layers.forward(layers, z).preactivations
        for layer, a in zip(case.images.layers, preactivations, strict=False):
            gaps = a[:, 0::2] - a[:, 1::2] if layer.activation == "maxmin" else a
            least = min(least, float(np.abs(gaps).min()))
    return least


@given(case=image_cases(("identity",), growing=False, dropout=False))
def test_a_linear_network_of_images_that_does_not_widen_gives_backprop(side: Side, case: ImageCase) -> None:
    """Unshuffling, circular orthogonal kernels, scaled pooling, any output layer: exact, for every layer."""
    assert max(relative_errors(side, case)) <= EXACT * side.eps, "equal to backprop"


@given(case=image_cases(growing=False))
def test_linear_pass_gives_the_last_convolution_its_gradient(side: Side, case: ImageCase) -> None:
    """Nothing is missing above it where the output layer follows; through pooling and any activation and mask."""
    last = len(case.images.layers) - 1
    if len(case.images.dense.weights) > 1:
        masks = None if case.masks is None else (*case.masks[: last + 1], None)
        case = case._replace(images=case.images._replace(dense=output_only(case)), masks=masks)
    error = relative_errors(side, case, linear=True)[last]
    assert error <= EXACT * side.eps, f"foton.updates: relative error {error}"


def output_only(case: ImageCase) -> Dense:
    """The dense part without its hidden layers."""
    weights, biases, activations = case.images.dense
    weight = np.random.default_rng(0).standard_normal((4, weights[0].shape[1]))
    return Dense((weight / weight.shape[1] ** 0.5,), biases[-1:], activations[-1:])


@pytest.mark.parametrize("linear", [False, True])
def test_an_activation_gain_gives_the_updates_of_a_scaled_network_their_size(side: Side, linear: bool) -> None:
    """sigma(a) = a / 2 in three layers, two of them convolutions: backpropagation's updates, layer by layer."""
    case = image_case(np.random.default_rng(3), (3, 6, 6), (2, 1), (1, 2), 3, (5,), "scaled", biases=True)
    errors = relative_errors(side, case, gain=0.5, linear=linear)
    assert max(errors) <= EXACT * side.eps, f"activation_gain: relative errors {errors}"


def test_a_widening_stem_does_not_give_backprop(side: Side) -> None:
    """3 to 16 to 8 channels: errors of .8 and more up to the output layer, which is exact as ever."""
    case = image_case(np.random.default_rng(0), (3, 16, 8), (1, 1), (1, 2), batch=16, pixels=4)
    first, second, last = relative_errors(side, case)
    assert min(first, second) > 0.6, "expected a difference where channels grow"
    assert last <= EXACT * side.eps, "the output layer is exact for any network"


@given(case=image_cases(("identity",), dropout=False), rng=seeds())
def test_the_projection_is_the_adjoint_of_the_network(side: Side, case: ImageCase, rng: np.random.Generator) -> None:
    """A linear network A: <F e, x> = <e, A x> for every e and x, widening or not."""
    plain = case.images._replace(
        layers=tuple(layer._replace(bias=None) for layer in case.images.layers),
        dense=case.images.dense._replace(biases=(None,) * len(case.images.dense.weights)),
    )
    _, clean, _, projection = parts(side, *side.operands(tuple(case._replace(images=plain))))
    scores, projection, z = side.results((clean.scores, projection, clean.inputs[0]))
    direct = np.einsum("kchw,bchw->bk", projection, z)
    assert rms(direct - scores) <= 256 * side.eps * rms(scores) + 64 * side.eps, "adjoint of the network"


@given(rng=seeds())
def test_a_convolution_padded_with_zeros_is_one_affine_layer_more(twin: Side, compare: Comparison, rng: Any) -> None:
    """It is not orthogonal, so the update is no gradient; but F is built through its adjoint and its stride."""
    layers = (Padded(rng.standard_normal((3, 2, 3, 3)) / 4, rng.standard_normal(3), "tanh", (2, 1), (1, 1), 1),)
    dense = Dense((rng.standard_normal((4, 36)) / 6,), (None,), ("identity",))
    x, labels = rng.standard_normal((5, 2, 5, 4)), rng.integers(0, 4, 5)

    def updates(side: Side, images: Any, x: Any, labels: Any) -> Any:
        return side.foton.updates(side.chain(images), x, labels)

    compare(twin, "foton.updates", updates, Images(layers, dense), x, labels)


def test_maximum_pooling_is_refused(side: Side) -> None:
    """A maximum has no adjoint that all samples share."""
    rng = np.random.default_rng(0)
    layer = Padded(rng.standard_normal((3, 2, 3, 3)), None, "tanh", (1, 1), (1, 1), 2)
    images = Images((layer,), Dense((rng.standard_normal((4, 12)),), (None,), ("identity",)))
    images, x, labels = side.operands((images, rng.standard_normal((5, 2, 4, 4)), rng.integers(0, 4, 5)))
    with side.refuses(r"d: shape \(4, 3, 2, 2\), expected \(1, 3, 2, 2\)"):
        side.foton.updates(side.chain(images), x, labels)


# Rotations


class RotationCase(NamedTuple):
    """Rotations by the Q of their weights, matrices or kernels, with a batch shaped as they take it.

    `before` is a dense layer before them or None, `weight` that of the scores.
    """

    before: Any
    qs: Any
    biases: Any
    weight: Any
    x: Any
    labels: Any


def rotation_case(
    rng: np.random.Generator, depth: int, n: int = 8, size: int = 0, biases: bool = False
) -> RotationCase:
    """Orthogonal: of n units behind a dense layer that narrows, or with kernels of a size on 4 x 3 pixels."""
    qs = [orthogonality.orthogonal((n, n), rng) for _ in range(depth)]
    before = None if size else orthogonality.orthogonal((n, n + 3), rng)
    if size:
        bases = [[orthogonality.orthogonal((n, n // 2), rng) for _ in range(2 * (size - 1))] for _ in qs]
        qs = [convolution.orthogonal_kernel(q, of_q) for q, of_q in zip(qs, bases, strict=True)]
    offsets = [0.3 * rng.standard_normal(n) if biases else None for _ in qs]
    shape = (n, 4, 3) if size else (n + 3,)
    weight = rng.standard_normal((4, 12 * n if size else n)) / n**0.5
    return RotationCase(before, qs, offsets, weight, rng.standard_normal((5, *shape)), rng.integers(0, 4, 5))


def rotations(side: Side, case: Any, activation: str, angle: float = 0.6) -> Any:
    """The layers: each branch has the activation inside."""
    module, steps = side.layers, (side.activations.ACTIVATIONS[activation],)
    found = [] if case.before is None else [module.Dense(case.before, None, steps)]
    for q, bias in zip(case.qs, case.biases, strict=True):
        if q.ndim == 2:
            branch = module.Dense(side.orthogonality.skew_orthogonal(q), bias, steps)
        else:
            branch = module.CircularConvolution(side.convolution.skew_kernel(q), bias, steps)
        found.append(module.Rotation(branch, angle, (), (module.Flatten(),) if q is case.qs[-1] else ()))
    return (*found, module.Dense(case.weight, None))


@st.composite
def rotation_cases(draw: st.DrawFn) -> RotationCase:
    kind = draw(st.sampled_from([(2, 0), (8, 0), (2, 1), (4, 2)]), label="channels and size")
    return rotation_case(
        draw(seeds()), draw(st.integers(1, 4), label="depth"), *kind, draw(st.booleans(), label="bias")
    )


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("activation", ["identity", "gelu", "silu", "tanh"])
@given(case=rotation_cases())
def test_updates_of_rotations(
    twin: Side, compare: Comparison, case: RotationCase, activation: str, linear: bool
) -> None:
    def updates(side: Side, *operands: Any) -> Any:
        case = RotationCase(*operands)
        layers = rotations(side, case, activation)
        clean = side.layers.forward(layers, case.x)
        error = side.losses.cross_entropy_gradient(clean.scores, case.labels)
        projection = side.foton.error_projection(layers, clean)
        again = side.foton.recomputed_factors(layers, len(layers), case.x, error, projection, 0.8, linear)
        whole = side.foton.updates(layers, case.x, case.labels, activation_gain=0.8, linear=linear)
        return projection, whole, side.layers.updates(layers, again)

    compare(twin, "foton.updates", updates, *case)


def rotation_errors(side: Side, case: RotationCase, activation: str, **options: Any) -> list[float]:
    """FOTON's errors in the weights' updates, layer by layer."""
    case = RotationCase(*side.operands(tuple(case)))
    layers = rotations(side, case, activation)
    ours = weights_of(side.results(side.foton.updates(layers, case.x, case.labels, **options)))
    theirs = weights_of(side.results(side.backprop.updates(layers, case.x, case.labels)))
    return [rms(a - b) / rms(b) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("linear", [False, True])
@given(case=rotation_cases())
def test_linear_rotations_give_backprop(side: Side, case: RotationCase, linear: bool) -> None:
    """As chains of orthogonal layers do, with any biases and any scores."""
    assert max(rotation_errors(side, case, "identity", linear=linear)) <= EXACT * side.eps, "equal to backprop"


@given(case=rotation_cases())
def test_linear_pass_gives_the_last_rotation_its_gradient(side: Side, case: RotationCase) -> None:
    """With any activation: its own derivative is in its update, and nothing is missing above."""
    assert rotation_errors(side, case, "tanh", linear=True)[-2] <= EXACT * side.eps, "the last rotation"


def test_a_shortcut_whose_weight_is_orthogonal_but_not_skew_does_not_give_backprop(side: Side) -> None:
    """c I + s Q is not orthogonal; skew alone is not enough either."""
    case = rotation_case(np.random.default_rng(0), 3)
    weights = [*case.qs, 0.5 * orthogonality.skew_orthogonal(case.qs[0])]
    for weight in side.operands(weights):
        own = RotationCase(*side.operands(tuple(case._replace(qs=[case.qs[0]], biases=[None]))))
        first, rotation, last = rotations(side, own, "identity")
        layers = (first, side.layers.Rotation(side.layers.Dense(weight, None), rotation.angle), last)
        ours, theirs = (f(layers, own.x, own.labels) for f in (side.foton.updates, side.backprop.updates))
        ours, theirs = (weights_of(side.results(updates))[1] for updates in (ours, theirs))
        assert rms(ours - theirs) > 0.05 * rms(theirs), "expected a difference"


def test_rotations_stay_nearer_to_backprop_than_chains_through_fifty_layers(side: Side) -> None:
    """tanh, an angle of .15, random data: cosines of .87 and more, where those of a chain fall to .77."""
    rng = np.random.default_rng(0)
    case = rotation_case(rng, 50, 32)
    dense = Dense((case.before, *case.qs, case.weight), (None,) * 52, ("tanh",) * 51 + ("identity",))
    chain = Case(dense, case.x, case.labels, None)
    of_chain = [weights_of(on(side, updates, chain)) for updates in (foton_updates, backprop_updates)]
    case = RotationCase(*side.operands(tuple(case)))
    layers = rotations(side, case, "tanh", 0.15)
    updates = (side.foton.updates(layers, case.x, case.labels), side.backprop.updates(layers, case.x, case.labels))
    of_rotations = [weights_of(side.results(update)) for update in updates]
    found, chained = ([cosine(a, b) for a, b in zip(*pair, strict=True)] for pair in (of_rotations, of_chain))
    assert all(a > b for a, b in zip(found[:-1], chained, strict=False)), f"cosines {found} and {chained}"


# Maximum pooling: the maxima as a step, scaled averages as the outlet


def with_maxima(side: Side, layers: Any, sizes: tuple[int, ...]) -> Any:
    """The layers of an `Images` whose scaled averages of these sizes, 1 for none, become maximum pooling."""
    layers = side.opened(layers)
    pooled = [
        layer if size == 1 else layer._replace(steps=(*layer.steps, side.layers.Maxima(size)))
        for layer, size in zip(layers, sizes, strict=False)
    ]
    return (*pooled, *layers[len(sizes) :])


def pooled_both(side: Side, case: ImageCase, **options: Any) -> tuple[Any, Any]:
    """FOTON's and backpropagation's updates of the weights with maximum pooling."""
    sizes = tuple(layer.pool for layer in case.images.layers)
    network, x, labels, masks = side.operands(tuple(case))
    layers, x = with_maxima(side, side.chain(network, masks), sizes), begin(side, network, x)
    ours, theirs = side.foton.updates(layers, x, labels, **options), side.backprop.updates(layers, x, labels)
    return weights_of(side.results(ours)), weights_of(side.results(theirs))


def pooled_case(seed: int, pools: tuple[int, ...], activation: str = "identity", batch: int = 6) -> ImageCase:
    channels = (8,) * (len(pools) + 1)
    return image_case(np.random.default_rng(seed), channels, (1,) * len(pools), pools, 2, (6,), activation, batch=batch)


@pytest.mark.parametrize("activation", ["identity", "tanh"])
@pytest.mark.parametrize("linear", [False, True])
def test_updates_with_maximum_pooling(twin: Side, compare: Comparison, activation: str, linear: bool) -> None:
    if twin.eps > 1e-4:
        pytest.skip("pixels are too near each other in this precision")
    case = pooled_case(0, (2, 2), activation, batch=2)

    def updates(side: Side, network: Any, x: Any, labels: Any, masks: Any) -> Any:
        layers = with_maxima(side, side.chain(network), (2, 2))
        return side.foton.updates(layers, x, labels, linear=linear)

    compare(twin, "foton.updates", updates, *case)


@pytest.mark.parametrize("pools", [(2,), (3,), (1, 2)])
@given(rng=seeds())
def test_one_maximum_pooling_of_a_linear_network_gives_backprop_from_there_on(
    side: Side, pools: tuple[int, ...], rng: np.random.Generator
) -> None:
    """n A is the same for every sample, and the maxima take the sample's own: exact at the pooled layer and above.

    The plain pass carries the difference on at 1/n of its size; a layer below a maximum pooling does not have its
    gradient.
    """
    case = pooled_case(int(rng.integers(1 << 30)), pools)
    size, pooled = pools[-1], len(pools) - 1
    for options, scale in (({"linear": True}, 1), ({}, size)):
        ours, theirs = pooled_both(side, case, **options)
        ours = [g if layer != pooled + 1 else scale * g for layer, g in enumerate(ours)]
        errors = [rms(a - b) / rms(b) for a, b in zip(ours, theirs, strict=True)]
        assert max(errors[pooled:]) <= 4 * EXACT * side.eps, f"maximum pooling: {errors}"
        assert all(error > 0.3 for error in errors[:pooled]), "expected a difference below"


def test_each_maximum_pooling_above_divides_the_cosine_by_its_size(side: Side) -> None:
    """The projection gives every pixel of a square what its maximum alone should have: cosine 1/n of n x n pixels."""
    rng = np.random.default_rng(0)
    for size in (2, 3):
        h, d = rng.standard_normal((4, 8, 6 * size, 6 * size)), rng.standard_normal((4, 8, 6, 6))
        h, d = side.operands((h, d))
        shared = side.layers.ScaledAveragePool(size).vjp(h, d)
        own = side.layers.MaxPool(size).vjp(h, d)
        found = cosine(*side.results((shared, own)))
        assert abs(found - 1 / size) <= 64 * side.eps, "cosine"
    ours, theirs = pooled_both(side, pooled_case(0, (2, 2, 2), batch=64), linear=True)
    cosines = [cosine(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True)]
    assert 0.25 < cosines[0] < cosines[1] < 0.995 < cosines[2], f"cosines {cosines} of the updates, sums over pixels"
