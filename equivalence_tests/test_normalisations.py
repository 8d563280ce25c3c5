"""Normalisations: twin against reference, both against the definition, and what they erase or leave."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import norm

from prograde.equivalence_tests.sides import ReferenceSide, Side
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

NORMALISATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "group_norm": lambda module, h: module.group_norm(h, 3),
    "group_norm(1)": lambda module, h: module.group_norm(h, 1, 0.1),
    "instance_norm": lambda module, h: module.instance_norm(h),
    "instance_norm(0.1)": lambda module, h: module.instance_norm(h, 0.1),
    "channel_norm": lambda module, h: module.channel_norm(h),
    "channel_norm(0.1)": lambda module, h: module.channel_norm(h, 0.1),
    "layer_norm": lambda module, h: module.layer_norm(h),
    "layer_norm(0.1)": lambda module, h: module.layer_norm(h, 0.1),
    "batch_norm": lambda module, h: module.batch_norm(h),
    "batch_norm(0.1)": lambda module, h: module.batch_norm(h, eps=0.1),
    "rms_norm": lambda module, h: module.rms_norm(h),
    "rms_norm(0.1)": lambda module, h: module.rms_norm(h, 0.1),
    "unit_sphere": lambda module, h: module.unit_sphere(h),
    "unit_sphere scaled": lambda module, h: module.unit_sphere(h, True),
}
names = pytest.mark.parametrize("name", NORMALISATIONS)
MOMENTS = [name for name in NORMALISATIONS if name.endswith("norm") and name != "rms_norm"]


@st.composite
def activities(draw: st.DrawFn, maps: bool = False) -> Any:
    """(batch, 12, H, W) or (batch, 12), of a mean far from 0 if drawn so.

    Nothing is normalised over two numbers: they become 1 and -1 whatever they are, but for eps and rounding.
    """
    batch = draw(st.sampled_from((3, 5, 7)), label="batch")
    size = draw(st.sampled_from(((4, 4), (3, 5), (3, 1)) if maps else ((4, 4), (3, 5), ())), label="size")
    mean = draw(st.sampled_from((0.0, 3.0)), label="mean")
    return mean + draw(seeds()).standard_normal((batch, 12, *size))


def axes_of(name: str, h: Any) -> tuple[int, ...]:
    """What a normalisation takes its mean over, of (batch, groups or channels, ...)."""
    start = {"instance": 2, "channel": 1, "layer": 1, "batch": 0}[name.partition("_")[0]]
    if name.startswith("channel"):
        return (1,)
    return (0, *range(2, h.ndim)) if name.startswith("batch") else tuple(range(start, h.ndim))


def expected(name: str, h: Any) -> Any:
    """By the definition."""
    kind, scaled = name.partition("(")[0].split(" ")[0], name.endswith("scaled")
    eps = 0.1 if "0.1" in name or name == "group_norm(1)" else {"rms_norm": 1e-8}.get(name, 1e-5)
    if kind in ("rms_norm", "unit_sphere"):
        out = []
        for sample in h:
            length = np.sqrt(np.sum(sample**2))
            size = length / np.sqrt(sample.size) + eps if kind == "rms_norm" else length
            out.append(sample / size * (np.sqrt(sample.size) if scaled else 1))
        return np.array(out)
    if kind == "group_norm":
        groups = h.reshape(len(h), 1 if name.endswith("(1)") else 3, -1)
        deviation = np.sqrt(groups.var(axis=2, keepdims=True) + eps)
        return ((groups - groups.mean(axis=2, keepdims=True)) / deviation).reshape(h.shape)
    axes = axes_of(name, h)
    return (h - h.mean(axis=axes, keepdims=True)) / np.sqrt(h.var(axis=axes, keepdims=True) + eps)


@names
@given(data=st.data())
def test_twin(twin: Side, compare: Comparison, name: str, data: st.DataObject) -> None:
    h = data.draw(activities(name.startswith("instance")), label="h")
    compare(twin, name, lambda side, h: NORMALISATIONS[name](side.normalisations, h), h)


@names
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@given(data=st.data())
def test_values_are_those_of_the_definition(side: Side, name: str, last: bool, data: st.DataObject) -> None:
    """In whatever order memory has them."""
    operand = side.operands(data.draw(activities(name.startswith("instance")), label="h"))
    if last and isinstance(operand, torch.Tensor) and operand.dim() == 4:
        operand = operand.contiguous(memory_format=torch.channels_last)
    found = side.results(NORMALISATIONS[name](side.normalisations, operand))
    h = side.results(operand)
    truth = expected(name, h)
    assert found.shape == h.shape
    smallest = min(1.0, *np.ravel(deviations(name, h))) if name in MOMENTS else 1.0
    assert np.abs(found - truth).max() <= 16 * side.eps * (np.abs(truth).max() + np.abs(h).max() / smallest), name


def deviations(name: str, h: Any) -> Any:
    """What the normalisation divides by, but for eps where it is more."""
    if name.startswith("group_norm"):
        return np.sqrt(h.reshape(len(h), 1 if name.endswith("(1)") else 3, -1).var(axis=2) + 1e-5)
    if name.startswith(("rms", "unit")):
        return np.sqrt((h**2).mean(axis=tuple(range(1, h.ndim))))
    return np.sqrt(h.var(axis=axes_of(name, h)) + 1e-5)


@given(h=activities(), rng=seeds())
def test_statistics_that_are_given(twin: Side, compare: Comparison, h: Any, rng: np.random.Generator) -> None:
    """As at inference; those of the batch itself give what the batch gives."""
    mean, variance = rng.standard_normal(12), rng.uniform(0.5, 2, 12)

    def given_ones(side: Side, *operands: Any) -> Any:
        return side.normalisations.batch_norm(*operands, eps=0.01)

    compare(twin, "batch_norm of given statistics", given_ones, h, mean, variance)
    gradient = rng.standard_normal(h.shape)

    def derivative(side: Side, *operands: Any) -> Any:
        return side.normalisations.batch_norm_vjp(*operands, eps=0.01)

    compare(twin, "derivative at given statistics", derivative, h, gradient, mean, variance)


def test_batch_norm_without_eps(side: Side) -> None:
    found = side.normalisations.batch_norm(side.operands(np.array([[0.0], [2.0]])), eps=0.0)
    assert np.array_equal(side.results(found), [[-1.0], [1.0]]), "batch_norm without eps"


@given(h=activities())
def test_statistics_of_the_batch_are_the_batch_s(side: Side, h: Any) -> None:
    operand = side.operands(h)
    h = side.results(operand)
    axes = (0, *range(2, h.ndim))
    own = side.normalisations.batch_norm(operand)
    given_ones = side.normalisations.batch_norm(operand, *side.operands((h.mean(axis=axes), h.var(axis=axes))))
    slack = 32 * side.eps * np.abs(h).max() / h.std(axis=axes).min()
    assert np.abs(side.results(own) - side.results(given_ones)).max() <= slack, "given statistics"
    for alone in ({"mean": operand[0]}, {"variance": operand[0]}):
        with side.refuses("mean, variance: one without the other, expected both or neither"):
            side.normalisations.batch_norm(operand, **alone)


def step_of(module: Any, name: str) -> Any:
    """The normalisation as a step of a layer."""
    kind = name.partition("(")[0].split(" ")[0]
    settings: dict[str, Any] = {"eps": 0.1} if "0.1" in name else {}
    if kind == "group_norm":
        settings = {"groups": 1, "eps": 0.1} if name.endswith("(1)") else {"groups": 3}
    if name.endswith("scaled"):
        settings = {"scaled": True}
    value, vjp = getattr(module, kind), getattr(module, f"{kind}_vjp")
    return module.Normalisation(partial(value, **settings), partial(vjp, **settings))


@names
@given(data=st.data())
def test_steps(twin: Side, compare: Comparison, name: str, data: st.DataObject) -> None:
    h = data.draw(activities(name.startswith("instance")), label="h")
    u = data.draw(seeds(), label="u").standard_normal(h.shape)

    def derivatives(side: Side, h: Any, u: Any) -> Any:
        step = step_of(side.normalisations, name)
        return step.jvp(h, u), step.vjp(h, u)

    compare(twin, f"derivatives of {name}", derivatives, h, u)


@pytest.mark.parametrize("name", [name for name in NORMALISATIONS if not name.startswith("batch")])
def test_a_sample_alone_is_normalised_as_among_others(side: Side, name: str) -> None:
    step, h = step_of(side.normalisations, name), np.random.default_rng(0).standard_normal((3, 12, 2, 2))
    for of in (step.value, lambda h: step.vjp(h, h**2)):
        alone, among = (side.results(of(side.operands(part))) for part in (h[:1], h))
        assert np.abs(alone - among[:1]).max() <= 64 * side.eps * np.abs(among).max(), name


@names
@given(data=st.data())
def test_derivatives_are_those_of_the_value(name: str, data: st.DataObject) -> None:
    """Central differences on the reference; the derivative is symmetric, and the difference that of two values."""
    h = data.draw(activities(name.startswith("instance")), label="h")
    rng = data.draw(seeds(), label="u")
    u, d = rng.standard_normal((2, *h.shape))
    step = step_of(ReferenceSide().normalisations, name)
    steep = 1 / np.ravel(deviations(name, h)).min()
    move = 1e-5 / steep
    slope = (step.value(h + move * u) - step.value(h - move * u)) / (2 * move)
    found = step.jvp(h, u)
    size = steep * np.abs(u).max() * (np.sqrt(h.size) + np.abs(h).max() * steep)
    assert np.abs(found - slope).max() <= 1e-7 * size, f"derivative of {name}"
    assert np.isclose(np.sum(d * found), np.sum(step.vjp(h, d) * u)), f"{name} is symmetric"
    assert np.array_equal(step.difference(h, u), step.value(h) - step.value(h - u)), f"difference of {name}"


@given(h=activities(), rng=seeds())
def test_gradient_through_batch_norm_is_that_of_its_value(side: Side, h: Any, rng: np.random.Generator) -> None:
    """Central differences in float64; it neither moves a channel's mean nor, but for eps, rescales it."""
    operand, gradient = side.operands((h, rng.standard_normal(h.shape)))
    found = side.results(side.normalisations.batch_norm_vjp(operand, gradient))
    h, gradient = side.results((operand, gradient))
    axes = (0, *range(2, h.ndim))
    steep = 1 / h.std(axis=axes).min()
    for _ in range(3):
        direction = rng.standard_normal(h.shape)
        step = 1e-6 / steep
        up, down = (expected("batch_norm", h + sign * step * direction) for sign in (1, -1))
        slope = np.sum((up - down) * gradient) / (2 * step)
        size = steep * np.abs(direction).max() * np.abs(gradient).sum() * (1 + np.abs(h).max() * steep)
        assert abs(slope - np.sum(found * direction)) <= (1e-8 + 32 * side.eps) * size, "gradient of batch_norm"
    size = np.abs(found).sum(axis=axes) + steep * np.abs(gradient).sum(axis=axes) * (1 + np.abs(h).max() * steep)
    assert np.all(np.abs(found.sum(axis=axes)) <= 16 * side.eps * size), "gradient along the mean"
    centred = h - h.mean(axis=axes, keepdims=True)
    left = np.abs(gradient * centred).sum(axis=axes) * 1e-5 * steep**3
    slack = left + 16 * side.eps * size * np.abs(centred).max()
    assert np.all(np.abs((found * centred).sum(axis=axes)) <= slack), "gradient along the scale"


@given(h=activities(), rng=seeds(), classes=st.sampled_from([1, 2, 3, 12]))
def test_group_norm_erases_every_linear_read_out_of_group_means(
    side: Side, h: Any, rng: np.random.Generator, classes: int
) -> None:
    """Of a layer after ReLU, whose group means are its scores; that of one channel a group is instance_norm."""
    if h.ndim == 2 and classes == 12:
        classes = 3
    operand = side.operands(np.maximum(h, 0))
    score = side.scores.group_mean(classes)
    passed = side.normalisations.group_norm(operand, classes)
    readout = rng.standard_normal((classes, classes))
    before = side.results(score.value(operand, ())) @ readout
    after = side.results(score.value(passed, ())) @ readout
    groups = side.results(operand).reshape(len(h), classes, -1)
    size = np.abs(readout).sum(axis=0).max() * (groups.max(axis=2) / np.sqrt(groups.var(axis=2) + 1e-5)).max()
    assert norm(before) > 1e-2, "nothing to erase"
    assert np.abs(after).max() <= 4 * side.eps * size, "group means are passed on"
    squares = side.results(side.scores.group_mean_square(classes).value(passed, ()))
    assert np.all(squares <= 1 + 16 * side.eps), "mean square above 1"
    if classes == 12:
        assert np.array_equal(side.results(passed), side.results(side.normalisations.instance_norm(operand)))


def test_the_trace_of_group_means_stays(side: Side) -> None:
    """The argmax of -min over a group finds that of the group means in far more than one case of ten.

    A ReLU's zeros become -mu / sqrt(v). For n rectified standard normal numbers, whose moments are 0.3989, 0.5, 0.7979
    and 1.5, the delta method correlates mu with log(mu^2 / (mu^2 + v)), which rises with mu / sqrt(v), by 0.5117 /
    sqrt(0.3408 1.5661) = 0.7004. The largest of ten pairs of normal numbers so correlated are the same in 42 %.
    """
    rng = np.random.default_rng(11)
    pairs = rng.standard_normal((2, 100_000, 10))
    other = 0.7004 * pairs[0] + np.sqrt(1 - 0.7004**2) * pairs[1]
    predicted = np.mean(pairs[0].argmax(axis=1) == other.argmax(axis=1))
    assert 0.415 < predicted < 0.43

    samples, share = 0, 0.0
    for _ in range(4):
        h = side.operands(np.maximum(rng.standard_normal((500, 20, 6, 6)), 0))
        goodness = side.results(side.scores.group_mean(10).value(h, ()))
        passed = side.results(side.normalisations.group_norm(h, 10)).reshape(500, 10, -1)
        share += np.sum((-passed.min(axis=2)).argmax(axis=1) == goodness.argmax(axis=1))
        samples += 500
    assert abs(share / samples - predicted) < 0.06, (
        "share of goodness that can be read"
    )  # 5 standard errors, 1.1 % each
    assert share / samples > 0.35, "no more than chance"


def test_a_dead_group_stays_dead(side: Side) -> None:
    """Its variance is 0: zeros, not noise, and nothing that is not finite."""
    h = np.zeros((2, 4, 3, 3))
    h[:, 2:] = np.random.default_rng(12).standard_normal((2, 2, 3, 3))
    for name in ("group_norm", "instance_norm"):
        function = getattr(side.normalisations, name)
        found = side.results(function(side.operands(h), 2) if name == "group_norm" else function(side.operands(h)))
        assert not found[:, :2].any(), "a dead group"
        assert np.isfinite(found).all()


@names
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e12])
def test_finite_for_silent_and_for_loud_layers(side: Side, name: str, size: float) -> None:
    h = side.operands(size * np.random.default_rng(13).standard_normal((3, 6, 4, 4)))
    assert np.isfinite(side.results(NORMALISATIONS[name](side.normalisations, h))).all(), name
    vjp = side.normalisations.batch_norm_vjp(h, side.operands(np.ones((3, 6, 4, 4))))
    assert np.isfinite(side.results(vjp)).all(), "gradient of batch_norm"


@given(h=activities())
def test_sizes_of_what_is_passed_on(side: Side, h: Any) -> None:
    """Mean square 1, length 1, or sqrt(n); direction and sign are kept, and the mean is not removed."""
    operand = side.operands(h)
    h = side.results(operand).reshape(len(h), -1)
    module, slack = side.normalisations, 8 * side.eps
    rms = side.results(module.rms_norm(operand)).reshape(h.shape)
    unit = side.results(module.unit_sphere(operand)).reshape(h.shape)
    scaled = side.results(module.unit_sphere(operand, scaled=True)).reshape(h.shape)
    assert np.allclose((rms**2).mean(axis=1), 1, atol=slack), "mean square"
    assert np.allclose(norm(unit, axis=1), 1, atol=slack), "length"
    assert np.allclose((scaled**2).mean(axis=1), 1, atol=slack), "scaled length"
    for found in (rms, unit, scaled):
        cosines = np.sum(found * h, axis=1) / (norm(found, axis=1) * norm(h, axis=1))
        assert np.allclose(cosines, 1, atol=slack), "direction"
    assert np.allclose(rms, scaled, atol=slack * np.abs(rms).max()), "two names of one thing"


@st.composite
def vectors(draw: st.DrawFn) -> tuple[Any, Any]:
    shape = draw(st.sampled_from(((3, 5), (1, 2), (2, 3, 7))), label="shape")
    rng = draw(seeds())
    return rng.uniform(0.1, 5) * rng.standard_normal(shape), rng.standard_normal(shape)


@given(case=vectors())
def test_direction(twin: Side, compare: Comparison, case: Any) -> None:
    compare(twin, "direction", lambda side, v, g: side.normalisations.direction(v), *case)
    compare(twin, "direction_vjp", lambda side, v, g: side.normalisations.direction_vjp(v, g), *case)


@given(case=vectors(), rng=seeds())
def test_derivative_of_a_direction(side: Side, case: Any, rng: np.random.Generator) -> None:
    """Central differences in float64; orthogonal to the vector, and as much larger as this is shorter."""
    v, gradient = side.operands(case)
    found = side.results(side.normalisations.direction_vjp(v, gradient))
    v, gradient = side.results((v, gradient))
    length = norm(v, axis=-1, keepdims=True)
    size = (np.abs(gradient) / length).sum()
    move = length.min() * rng.standard_normal(v.shape)
    up, down = ((w / norm(w, axis=-1, keepdims=True) * gradient).sum() for w in (v + 1e-6 * move, v - 1e-6 * move))
    error = abs((up - down) / 2e-6 - np.sum(found * move))
    assert error <= (1e-8 + 16 * side.eps) * size * np.abs(move).max(), "derivative of a direction"
    along = np.abs((found * v).sum(axis=-1))
    assert np.all(along <= 8 * side.eps * np.abs(gradient).sum(axis=-1)), "derivative along the vector"


def test_no_direction_of_nothing(side: Side) -> None:
    """0, and a derivative of 0, up to eps; both are chosen."""
    v = side.operands(np.array([[0.0, 0.0], [3e-13, 4e-13], [3e-12, 4e-12], [3.0, 4.0]]))
    gradient = side.operands(np.ones((4, 2)))
    expected = np.array([[0, 0], [0, 0], [0.6, 0.8], [0.6, 0.8]])
    for function in (side.normalisations.direction, side.normalisations.unit_sphere):
        assert np.allclose(side.results(function(v)), expected, atol=4 * side.eps), "direction of nothing"
        assert not side.results(function(v))[:2].any(), "direction of nothing"
    found = side.results(side.normalisations.direction_vjp(v, gradient))
    assert not found[:2].any(), "derivative of nothing"
    assert np.allclose(found[3], [0.032, -0.024], atol=4 * side.eps), "derivative"
    module = side.normalisations
    for eps in (5.0, 6.0):  # 5: the last one's length
        for found in (module.direction(v, eps), module.unit_sphere(v, eps=eps)):
            assert not side.results(found).any(), "direction of eps"
        for found in (module.direction_vjp(v, gradient, eps), module.unit_sphere_vjp(v, gradient, eps=eps)):
            assert not side.results(found).any(), "derivative at eps"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda module, ones: module.group_norm(ones(2, 4, 3, 3), 3), "h: 4 channels, expected a multiple of 3 groups"),
        (lambda module, ones: module.group_norm(ones(2, 4), 4), "h: a group has 1 number"),
        (lambda module, ones: module.instance_norm(ones(2, 4)), "h: a channel has 1 number"),
        (lambda module, ones: module.instance_norm(ones(2, 4, 1, 1)), "h: a channel has 1 number"),
        (lambda module, ones: module.channel_norm(ones(2, 1, 3, 3)), "h: a position has 1 number"),
        (lambda module, ones: module.layer_norm(ones(2, 1)), "h: a sample has 1 number"),
        (lambda module, ones: module.batch_norm(ones(1, 4)), "h: a channel of the batch has 1 number"),
        (lambda module, ones: module.batch_norm_vjp(ones(1, 4), ones(1, 4)), "h: a channel of the batch has 1 number"),
    ],
)
def test_sets_of_one_number_are_refused(side: Side, call: Any, message: str) -> None:
    with side.refuses(message):
        call(side.normalisations, lambda *shape: side.operands(np.ones(shape)))
