"""Layers: twin against reference, and each kind against what its value says of difference, adjoint and update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import SMOOTH, Case, PaddedCase, cases, padded_cases, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import activations, convolution, layers, orthogonality, pooling

pytestmark = pytest.mark.smoke


class Sample(NamedTuple):
    """Operands of a layer: its parameters in order, z and u of its input's shape, d and delta of its output's.

    `settings` are those of the convolution; d has another number of rows than z.
    """

    kind: str
    parameters: tuple[Any, ...]
    z: Any
    u: Any
    d: Any
    delta: Any
    settings: dict[str, Any]


def made(side: Side, sample: Sample) -> Any:
    weight, *bias = sample.parameters
    if sample.kind == "Rotation":
        return rotation(side, weight, bias[0] if bias else None, **sample.settings)
    return getattr(side.layers, sample.kind)(weight, bias[0] if bias else None, **sample.settings)


def rotation(side: Side, weight: Any, bias: Any, angle: float = 0.7, activation: str = "identity") -> Any:
    """A rotation whose branch is a dense layer or, of a kernel, a circular convolution."""
    branch = side.layers.Dense if weight.ndim == 2 else side.layers.CircularConvolution
    steps = () if activation == "identity" else (side.activations.ACTIVATIONS[activation],)
    return side.layers.Rotation(branch(weight, bias, steps), angle)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """A layer of any kind, with and without a bias."""
    rng = draw(seeds())
    kind = draw(st.sampled_from(["Dense", "Convolution", "CircularConvolution", "Rotation"]), label="kind")
    batch = draw(st.sampled_from([1, 3, 5]), label="batch")
    settings: dict[str, Any] = {}
    least = 2 if batch == 1 else 1  # one unit of one sample is its own transpose
    n_in, n_out = draw(st.integers(least, 5), label="n_in"), draw(st.integers(least, 5), label="n_out")
    if kind == "Dense":
        positions = draw(st.sampled_from([(), (4,), (2, 3)]), label="positions")
        weight, z = rng.standard_normal((n_out, n_in)), rng.standard_normal((batch, *positions, n_in))
    elif kind == "Rotation":
        settings = {"angle": draw(st.sampled_from([0.3, -2.0, 1.0]), label="angle")}  # of 0 the update is 0
        shape = (n_in, n_in, *draw(st.sampled_from([(), (2, 2)]), label="kernel"))
        weight, z = rng.standard_normal(shape), rng.standard_normal((batch, n_in, *(3, 4)[: len(shape) - 2]))
    elif kind == "CircularConvolution":
        size = draw(st.integers(1, 3), label="size")
        weight = rng.standard_normal((n_out, n_in, size, size)) / size
        z = rng.standard_normal((batch, n_in, draw(st.integers(1, 5)), draw(st.integers(1, 5))))
    else:
        groups = draw(st.integers(1, 2), label="groups")
        size = [draw(st.integers(1, 3), label="kernel") for _ in range(2)]
        settings = {
            "stride": (draw(st.integers(1, 3), label="stride"), draw(st.integers(1, 2), label="stride")),
            "padding": (draw(st.integers(0, 2), label="padding"), draw(st.integers(0, 1), label="padding")),
            "groups": groups,
        }
        weight = rng.standard_normal((groups * n_out, n_in, *size)) / np.sqrt(np.prod(size))
        # Two columns come out at least: of one, in strides, PyTorch's bfloat16 convolution on AMX gives anything.
        z = rng.standard_normal((batch, groups * n_in, draw(st.integers(3, 6)), draw(st.integers(5, 6))))
    parameters = (weight, rng.standard_normal(len(weight))) if draw(st.booleans(), label="bias") else (weight,)
    return sample_of(kind, parameters, z, settings, rng)


def sample_of(kind: str, parameters: Any, z: Any, settings: dict[str, Any], rng: np.random.Generator) -> Sample:
    """With u, d and delta of the shapes that go with z."""
    sample = Sample(kind, parameters, z, z, z, z, settings)
    shape = made(ReferenceSide(), sample).value(z).shape
    return sample._replace(
        u=rng.standard_normal(z.shape),
        d=rng.standard_normal((len(z) + 1, *shape[1:])),
        delta=rng.standard_normal(shape),
    )


def of_every_kind(test: Callable[..., None]) -> Any:
    """Has the test run on a layer of each kind, whatever else is drawn."""
    for kind, weight, image, settings in (
        ("Dense", (3, 4), (2, 5, 4), {}),
        ("Rotation", (3, 3), (2, 3), {"angle": 0.7}),
        ("CircularConvolution", (2, 3, 2, 2), (2, 3, 4, 3), {}),
        ("Convolution", (4, 3, 2, 3), (2, 6, 6, 5), {"stride": (2, 1), "padding": (1, 0), "groups": 2}),
    ):
        rng = np.random.default_rng(7)
        parameters = rng.standard_normal(weight), rng.standard_normal(weight[0])
        test = example(sample=sample_of(kind, parameters, rng.standard_normal(image), settings, rng))(test)
    return test


def inner(a: Any, b: Any) -> float:
    return float(np.sum(a * b))


@of_every_kind
@given(sample=samples())
def test_twin(twin: Side, compare: Comparison, sample: Sample) -> None:
    def four(side: Side, parameters: Any, z: Any, u: Any, d: Any, delta: Any) -> Any:
        layer = made(side, sample._replace(parameters=parameters))
        return layer.value(z), layer.difference(z, u), layer.adjoint(z, d), layer.update(z, delta)

    compare(twin, sample.kind, four, sample.parameters, sample.z, sample.u, sample.d, sample.delta)


@pytest.mark.parametrize("kernel", [(), (2, 2)])
def test_a_rotation_by_no_angle_is_the_identity(side: Side, kernel: tuple[int, ...]) -> None:
    """Bit for bit, and its branch is not updated."""
    rng = np.random.default_rng(7)
    shape = (3, *(3, 4)[: len(kernel)])
    weight, bias, z, d = (rng.standard_normal(s) for s in ((3, 3, *kernel), 3, (2, *shape), (5, *shape)))
    weight, bias, z, d = side.operands((weight, bias, z, d))
    layer = rotation(side, weight, bias, 0.0)
    for name, found, expected in (
        ("value", layer.value(z), z),
        ("difference", layer.difference(z, 2 * z), 2 * z),
        ("adjoint", layer.adjoint(z, d), d),
    ):
        assert np.array_equal(side.results(found), side.results(expected)), name
    assert all(not np.any(part) for part in side.results(layer.update(z, z))), "update"


@of_every_kind
@given(sample=samples())
def test_difference_is_that_of_two_values(side: Side, compare: Comparison, sample: Sample) -> None:
    def difference(side: Side, parameters: Any, z: Any, u: Any) -> Any:
        return made(side, sample._replace(parameters=parameters)).difference(z, u)

    def of_values(reference: Side, parameters: Any, z: Any, u: Any) -> Any:
        layer = made(reference, sample._replace(parameters=parameters))
        return layer.value(z) - layer.value(z - u)

    compare(side, sample.kind, difference, sample.parameters, sample.z, sample.u, expected=of_values)


@of_every_kind
@given(sample=samples())
def test_adjoint_is_the_differences_transpose(side: Side, sample: Sample) -> None:
    """<d, A u> = <A^T d, u> for every pair of rows, the layers here being affine."""
    layer = made(side, Sample(sample.kind, *side.operands(tuple(sample)[1:6]), sample.settings))
    z, u, d = side.operands((sample.z, sample.u, sample.d))
    forwards, backwards = side.results((layer.difference(z, u), layer.adjoint(z, d)))
    d, u = sample.d, sample.u
    assert backwards.shape == (len(d), *sample.z.shape[1:])
    one = np.tensordot(d, forwards, axes=(range(1, d.ndim), range(1, d.ndim)))
    other = np.tensordot(backwards, u, axes=(range(1, u.ndim), range(1, u.ndim)))
    size = rms(d) * rms(forwards) * d[0].size + 1
    assert np.abs(one - other).max() <= 64 * side.eps * size, "adjoint"


@of_every_kind
@given(sample=samples())
def test_update_is_the_derivative_by_the_parameters(side: Side, sample: Sample) -> None:
    """A is affine in its parameters: 1/B <delta, A_(theta + xi)(z) - A_theta(z)> = <G, xi>, for any xi."""
    rng = np.random.default_rng(8)
    directions = [rng.standard_normal(p.shape) for p in sample.parameters]
    layer = made(side, sample._replace(parameters=side.operands(sample.parameters)))
    update = side.results(layer.update(*side.operands((sample.z, sample.delta))))
    assert [g.shape for g in update] == [p.shape for p in sample.parameters]
    moved = sample._replace(parameters=tuple(p + xi for p, xi in zip(sample.parameters, directions, strict=True)))
    reference = ReferenceSide()
    change = made(reference, moved).value(sample.z) - made(reference, sample).value(sample.z)
    expected = inner(sample.delta, change) / len(sample.z)
    found = sum(inner(g, xi) for g, xi in zip(update, directions, strict=True))
    size = sum(rms(g) * rms(xi) * g.size for g, xi in zip(update, directions, strict=True)) + rms(change) + 1
    assert abs(found - expected) <= 256 * side.eps * size, "update"


@given(rng=seeds(), shape=st.sampled_from([(4, 4), (4, 4, 2, 2)]), batch=st.sampled_from([1, 3]))
def test_a_rotation_with_an_activation(twin: Side, compare: Comparison, rng: Any, shape: Any, batch: int) -> None:
    """The twin's; on the reference each agrees with the value, the update by what it says of a step of W."""
    weight, bias, xi = rng.standard_normal(shape), rng.standard_normal(shape[0]), rng.standard_normal(shape)
    z, u, d = rng.standard_normal((3, batch, shape[0], *(3, 4)[: len(shape) - 2]))

    def all_of(side: Side, weight: Any, bias: Any, z: Any, u: Any, d: Any) -> Any:
        layer = rotation(side, weight, bias, activation="tanh")
        return layer.value(z), layer.difference(z, u), layer.adjoint(z, d), layer.update(z, d), layer.adjoint(u, d)

    compare(twin, "Rotation", all_of, weight, bias, z, u, d)
    reference, small = ReferenceSide(), 1e-6
    value, difference, adjoint, update, _ = all_of(reference, weight, bias, z, u, d)
    ahead, behind = (all_of(reference, weight, bias, z + step * u, u, d)[0] for step in (small, -small))
    assert np.allclose(difference, value - all_of(reference, weight, bias, z - u, u, d)[0]), "difference"
    assert np.isclose(inner(d, ahead - behind) / (2 * small), inner(adjoint, u), atol=1e-7), "adjoint"
    ahead, behind = (all_of(reference, weight + step * xi, bias, z, u, d)[0] for step in (small, -small))
    assert np.isclose(inner(d, ahead - behind) / (2 * small * batch), inner(update[0], xi), atol=1e-7), "update"


@given(rng=seeds(), size=st.sampled_from([None, 1, 2]), angle=st.sampled_from([0.1, 0.8, 1.5, -3.0]))
def test_a_rotation_by_a_skew_orthogonal_weight_keeps_inner_products(
    side: Side, rng: np.random.Generator, size: int | None, angle: float
) -> None:
    """Without an activation; with a weight that is orthogonal alone it does not."""
    if side.eps > 1e-4:
        pytest.skip("too coarse to tell them apart")
    z = rng.standard_normal((5, 6, *(() if size is None else (4, 3))))
    q = orthogonality.orthogonal((6, 6), rng)
    if size is None:
        weights = (orthogonality.skew_orthogonal(q), q)
    else:
        bases = [orthogonality.orthogonal((6, 3), rng) for _ in range(2 * (size - 1))]
        kernel = convolution.orthogonal_kernel(q, bases)
        weights = (convolution.skew_kernel(kernel), kernel)
    flat = z.reshape(5, -1)
    for weight, kept in zip(weights, (True, False), strict=True):
        layer = rotation(side, *side.operands((weight,)), None, angle)
        value = side.results(layer.value(side.operands(z))).reshape(5, -1)
        off = np.abs(value @ value.T - flat @ flat.T).max()
        assert kept == (off <= 256 * side.eps * z[0].size), "inner products"


STEPS = (
    "Mask", "Flatten", "Unshuffle", "AveragePool", "ScaledAveragePool", "MaxPool", "Maxima", "LPPool",
    "AdaptiveAveragePool", "MeanOverPositions",
)  # fmt: skip
WHOLE = ("Unshuffle", "ScaledAveragePool")
"""Those that refuse what fills no square."""


class StepCase(NamedTuple):
    """A step's name, its settings, and maps h and u, or sequences."""

    name: str
    setting: Any
    h: Any
    u: Any


@st.composite
def strides(draw: st.DrawFn, size: int) -> tuple[int | None, int]:
    """Stride, None for squares side by side, and padding."""
    return draw(st.sampled_from([None, 1, 2]), label="stride"), draw(st.integers(0, size // 2), label="padding")


@st.composite
def step_cases(draw: st.DrawFn) -> StepCase:
    name = draw(st.sampled_from(STEPS), label="step")
    rng = draw(seeds())
    size = draw(st.integers(1, 3), label="size")
    sides = [draw(st.integers(1, 2)) * size + (0 if name in WHOLE else draw(st.integers(0, size - 1))) for _ in "hw"]
    apart = np.tile(np.linspace(-2, 2.1, sides[0] * sides[1]), (3, 2, 1))  # no maximum is chance, and none is 0
    h = rng.permuted(apart, axis=2).reshape(3, 2, *sides)
    settings = {
        "Mask": (rng.integers(0, 2, h.shape) / 0.5,),
        "Flatten": (),
        "MeanOverPositions": (),
        **dict.fromkeys(("MaxPool", "AveragePool"), (size, *draw(strides(size)))),
        "LPPool": (draw(st.sampled_from([1, 2, 3.5]), label="power"), size),
        "AdaptiveAveragePool": ((size, 2),),
    }
    setting = settings.get(name, (size,))
    if name == "MeanOverPositions":
        h = h.reshape(3, 2, -1)
    return StepCase(name, setting, h, rng.standard_normal(h.shape))


def step_of(side: Side, name: str, setting: Any) -> Any:
    return getattr(side.layers, name)(*setting)


@given(case=step_cases())
def test_steps(twin: Side, compare: Comparison, case: StepCase) -> None:
    def all_of(side: Side, setting: Any, h: Any, u: Any) -> Any:
        step = step_of(side, case.name, setting)
        return step.value(h), step.jvp(h, u), step.vjp(h, step.value(u)), step.difference(h, u)

    compare(twin, case.name, all_of, case.setting, case.h, case.u)


@given(case=step_cases())
def test_steps_agree_with_their_value(side: Side, case: StepCase) -> None:
    """difference is that of two values, jvp its limit for small u, and vjp the transpose of jvp."""
    step = step_of(ReferenceSide(), case.name, case.setting)
    small = 1e-7 * case.u
    difference = step.value(case.h) - step.value(case.h - small)
    assert rms(step.difference(case.h, small) - difference) <= 1e-14, "difference"
    assert rms(step.jvp(case.h, case.u) - 1e7 * difference) <= 1e-6, "jvp"
    d = step.value(case.u)
    assert np.isclose(inner(d, step.jvp(case.h, case.u)), inner(step.vjp(case.h, d), case.u)), "vjp"


@given(rng=seeds(), size=st.integers(1, 3))
def test_maxima_and_scaled_averages_are_maximum_pooling(side: Side, rng: np.random.Generator, size: int) -> None:
    """Value, derivative and its transpose."""
    h, u = rng.standard_normal((2, 3, 2, 2 * size, 3 * size))
    module = side.layers
    h, u = side.operands((rng.permuted(np.argsort(h, axis=None)).reshape(h.shape) / h.size, u))  # no two are equal
    both, pool = (module.Maxima(size), module.ScaledAveragePool(size)), (module.MaxPool(size),)
    found, expected = (
        side.results((module.activity(steps, h), module.pushed(steps, h, u), module.pulled_back(steps, h, pooled)))
        for pooled in [module.activity(pool, h)]
        for steps in (both, pool)
    )
    for one, other in zip(found, expected, strict=True):
        assert rms(one - other) <= 4 * side.eps * rms(other), "maximum pooling"


def test_equal_maxima_count_the_first(side: Side) -> None:
    """Row by row; on both sides."""
    h, d = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 1, 1))
    found = side.results(side.layers.MaxPool(2).vjp(*side.operands((h, d))))
    assert found.tolist() == [[[[1, 0], [0, 0]]]], "the first"


def test_maxima_by_hand(side: Side) -> None:
    """Those of h and of h - u are elsewhere; the derivative is u at those of h, not the largest u."""
    h, u = side.operands((np.array([[[[5.0, 0.0], [0.0, 1.0]]]]), np.array([[[[4.0, 9.0], [0.0, -1.0]]]])))
    maxima, pool = side.layers.Maxima(2), side.layers.MaxPool(2)
    assert side.results(maxima.difference(h, u)).tolist() == [[[[10, 0], [0, -4]]]], "two passes"
    assert side.results(maxima.jvp(h, u)).tolist() == [[[[8, 0], [0, 0]]]], "derivative"
    assert side.results(pool.jvp(h, u)).tolist() == [[[[4]]]], "derivative"


def test_strides_are_of_rows_then_columns(side: Side) -> None:
    image, kernel = side.operands((np.arange(12.0).reshape(1, 1, 3, 4), np.ones((1, 1, 1, 1))))
    layer = side.layers.Convolution(kernel, None, stride=(2, 3))
    assert side.results(layer.value(image)).tolist() == [[[[0, 3], [8, 11]]]], "stride"


def test_pooling_by_hand(side: Side) -> None:
    """Of 5 x 4 pixels the last row is lost."""
    h, d = side.operands((np.arange(20.0).reshape(1, 1, 5, 4), np.array([[[[1.0, 2.0], [3.0, 4.0]]]])))
    module = side.layers
    assert side.results(module.MaxPool(2).value(h)).tolist() == [[[[5, 7], [13, 15]]]], "maxima"
    spread = side.results(module.MaxPool(2).vjp(h, d))
    assert spread.tolist() == [[[[0, 0, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [0, 3, 0, 4], [0, 0, 0, 0]]]], "gradient"
    assert side.results(module.AveragePool(2).value(h)).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]], "averages"


def test_values_at_maxima_are_taken_where_the_map_is_largest(side: Side) -> None:
    """Not where they are largest themselves: of equal pixels the first; what is left at the border is lost."""
    clean, values = np.zeros((1, 1, 3, 5)), np.arange(15.0).reshape(1, 1, 3, 5)
    clean[0, 0, 1, 2] = 1.0
    found = side.results(side.pooling.at_maxima(*side.operands((clean, values)), 2))
    assert found.tolist() == [[[[0.0, 7.0]]]], "places of the maxima"


@given(case=padded_cases(("relu",)))
def test_of_equal_pixels_both_sides_take_the_first(twin: Side, case: PaddedCase) -> None:
    """Zeros of ReLU are equal: the values there are the pre-activations, which are not."""

    def ours(side: Side, a: Any) -> Any:
        g = side.activations.relu.value(a)
        at_maxima = side.pooling.at_maxima
        return tuple(at_maxima(g, values, size) for size in (1, 2, 3) for values in (g, a))

    a = case.x[:, :, :6, :6]
    found, expected = ours(twin, twin.operands(a)), ours(ReferenceSide(), a)
    for one, other in zip(twin.results(found), expected, strict=True):
        assert rms(one - other) <= twin.eps * rms(other), "places"


@given(case=padded_cases())
def test_a_pass_through_convolutions(twin: Side, compare: Comparison, case: PaddedCase) -> None:
    def ours(side: Side, images: Any, x: Any) -> Any:
        return side.layers.forward(side.chain(images), x)

    compare(twin, "layers.forward", ours, case.images, case.x)


@given(case=cases())
def test_a_pass_through_dense_layers(twin: Side, compare: Comparison, case: Case) -> None:
    def ours(side: Side, dense: Any, x: Any, masks: Any) -> Any:
        found = side.layers.forward(side.chain(dense, masks), x)
        return found, found.scores, side.layers.scores(side.chain(dense, masks), x)

    compare(twin, "layers.forward", ours, case.dense, case.x, case.masks)


@given(case=cases(SMOOTH), rng=seeds())
def test_steps_in_a_row(twin: Side, compare: Comparison, case: Case, rng: np.random.Generator) -> None:
    """An activation, then a mask, then a tanh: value, difference, derivative and its transpose."""
    u = rng.standard_normal((len(case.x), len(case.dense.weights[0])))

    def ours(side: Side, dense: Any, x: Any, masks: Any, u: Any) -> Any:
        first, module = side.opened(side.chain(dense, masks))[0], side.layers
        steps, a = (*first.steps, side.activations.tanh), first.value(x)
        functions = (module.changed, module.pushed, module.pulled_back)
        return module.activity(steps, a), *(function(steps, a, u) for function in functions)

    compare(twin, "steps", ours, case.dense, case.x, case.masks, u)


@given(rng=seeds())
def test_steps_in_a_row_follow_the_chain_rule(rng: np.random.Generator) -> None:
    """tanh, a mask, max pooling and flattening, on the reference: against two values and each other."""
    steps = (activations.tanh, layers.Mask(np.where(rng.random((3, 2, 4, 4)) < 0.3, 0, 2.0)), layers.MaxPool(2))
    steps = (*steps, layers.Flatten())
    a, u = rng.standard_normal((2, 3, 2, 4, 4))
    d = rng.standard_normal((3, 8))
    both = layers.activity(steps, a) - layers.activity(steps, a - u)
    assert np.allclose(layers.changed(steps, a, u), both)
    small = layers.activity(steps, a + 5e-7 * u) - layers.activity(steps, a - 5e-7 * u)
    assert np.allclose(layers.pushed(steps, a, u), 1e6 * small, atol=1e-6)
    assert np.isclose(inner(d, layers.pushed(steps, a, u)), inner(layers.pulled_back(steps, a, d), u))


@pytest.mark.parametrize("kind", ["MaxPool", "Maxima"])
def test_steps_are_equal_by_their_settings(side: Side, kind: str) -> None:
    """Not by the maps that they have seen."""
    make = getattr(side.layers, kind)
    used = make(2)
    used.value(side.operands(np.ones((1, 1, 4, 4))))
    assert (used, hash(used)) == (make(2), hash(make(2))), "of one size"
    assert used != make(4), "of two sizes"


def test_dropped_units(side: Side) -> None:
    """0 where a mask has 0, and elsewhere u as it was, without the mask's scale."""
    mask, u = np.array([[0, 2.0, 2.0]]), np.array([[3.0, 5.0, 0]])
    steps = (side.activations.relu, side.layers.Mask(side.operands(mask)))
    found = side.layers.without_dropped(steps, side.operands(u))
    assert side.results(found).tolist() == [[0, 5, 0]], "dropped"


def test_the_last_layers_outlet_is_not_applied(side: Side) -> None:
    """It leads nowhere: no squares of five pixels are looked for in maps of three."""
    module, kernel = side.layers, np.ones((1, 1, 1, 1))
    layers = [module.Convolution(side.operands(kernel), None, outlet=(module.MaxPool(size),)) for size in (2, 5)]
    z = side.operands(np.arange(36.0).reshape(1, 1, 6, 6))
    try:
        found = side.results(module.forward(layers, z).scores)
    except ValueError as error:
        raise AssertionError("outlet that leads nowhere") from error
    assert found[0, 0, 0].tolist() == [7, 9, 11]
    with side.refuses(r"layers\[1\]: size: 5, expected 1\.\.3"):
        module.forward([*layers, layers[0]], z)


def test_the_layer_that_does_not_fit_is_named(side: Side) -> None:
    weights = side.operands((np.ones((3, 2)), np.ones((4, 5))))
    chain = side.layers.dense_chain(weights, (None, None), (side.activations.relu, side.activations.identity))
    with side.refuses(r"layers\[1\]: z: 3 units, but the weight has 5 columns"):
        side.layers.forward(chain, side.operands(np.ones((2, 2))))


@given(rng=seeds())
def test_average_pooling_is_scaled_average_pooling_but_for_the_size(rng: np.random.Generator) -> None:
    h = rng.standard_normal((2, 3, 6, 4))
    assert np.allclose(pooling.scaled_average_pool(h, 2), 2 * pooling.average_pool(h, 2))


def test_an_update_by_the_labels_that_count(side: Side) -> None:
    """1/N in place of 1/B, a number or a tensor: nothing is divided by 0 where N is."""
    gradient = np.array([[3.0, -6.0]])
    expected = {0: 4 * gradient, 1: 4 * gradient, 3: 4 / 3 * gradient, 4: gradient}
    for count, wanted in expected.items():
        tensors = isinstance(side, TwinSide) and side.takes_tensors
        numbers = (count, torch.tensor(count)) if tensors else (count,)
        for number in numbers:
            (found,) = side.results(side.layers.per_label((side.operands(gradient),), 4, number))
            assert np.allclose(found, wanted, rtol=4 * side.eps), f"of {count} labels"
