"""Goodness: twin against reference, gradients against differences of independent expressions, and hand-worked cases."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import KinkDistance, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms

pytestmark = pytest.mark.smoke

SHARES = (0.02, 0.3, 1.0)
KINDS: dict[str, Callable[[Side], Any]] = {
    "sum_of_squares": lambda side: side.goodness.sum_of_squares,
    "mean_square": lambda side: side.goodness.mean_square,
    "mean_activation": lambda side: side.goodness.mean_activation,
    **{f"top_k({share})": lambda side, share=share: side.goodness.top_k(share) for share in SHARES},
    "maximum": lambda side: side.goodness.maximum,
    "entmax_weighted": lambda side: side.goodness.entmax_weighted(),
    "entmax_weighted(False)": lambda side: side.goodness.entmax_weighted(stop_gradient=False),
    "excess_kurtosis": lambda side: side.goodness.excess_kurtosis(),
    "excess_kurtosis(0.5)": lambda side: side.goodness.excess_kurtosis(0.5),
    "negated": lambda side: side.goodness.negated(side.goodness.mean_square),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_the_reference_keeps_float32(kind: str) -> None:
    """So that a package which is written as it is gives results in the precision under test."""
    goodness, h = KINDS[kind](ReferenceSide()), np.array([[0.5, -1.0, 2.0, 0.25]], np.float32)
    assert [goodness.value(h).dtype, goodness.gradient(h).dtype] == [np.float32, np.float32], "float32"


@st.composite
def activities(draw: st.DrawFn, widths: tuple[int, ...] = (5, 8, 17, 33)) -> Any:
    """(batch, n) or (batch, channels, height, width), magnitudes so far apart: which is largest is no chance."""
    batch = draw(st.sampled_from((1, 2, 7, 16)), label="batch")  # never n: the gradient of the maximum is no diagonal
    width = draw(st.sampled_from(widths), label="width")
    shape = draw(st.sampled_from(((batch, width), (batch, 2, 3, 4))), label="shape")
    rng = draw(seeds())
    count = math.prod(shape[1:])
    apart = max(KinkDistance.size, 1 / count)
    magnitudes = rng.uniform(0.2, 1) + apart * (np.arange(count) + 0.3 * rng.random((batch, count)))
    signs = rng.choice([-1.0, 1.0], (batch, count))
    return (rng.permuted(magnitudes, axis=1) * signs).reshape(shape)


@kinds
@given(h=activities())
def test_twin(twin: Side, compare: Comparison, kind: str, h: Any) -> None:
    compare(twin, f"{kind}.value", lambda side, h: KINDS[kind](side).value(h), h)
    compare(twin, f"{kind}.gradient", lambda side, h: KINDS[kind](side).gradient(h), h)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(twin: TwinSide, kind: str, dtype: torch.dtype) -> None:
    """The value keeps the digits that sums in half precision lose; the gradient is in the activities' precision."""
    if not twin.is_ours:
        pytest.skip("in what precision a package sums is its own matter")
    h = torch.tensor(np.random.default_rng(3).uniform(0.2, 1, (4, 2, 25, 30)), dtype=dtype, device=twin.device)
    ours, theirs = KINDS[kind](twin), KINDS[kind](ReferenceSide())
    value, gradient = ours.value(h), ours.gradient(h)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype), "precision"
    exact = h.double().cpu().numpy()
    expected, slope = theirs.value(exact), theirs.gradient(exact)
    single, half = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps
    assert np.allclose(value.double().cpu().numpy(), expected, rtol=64 * single, atol=192 * single), "value"
    # In order, since of two that are equal in half precision either may be among the largest.
    slopes, expected_slopes = (np.sort(g.reshape(4, -1)) for g in (gradient.double().cpu().numpy(), slope))
    assert rms(slopes - expected_slopes) <= 4 * half * rms(slope), "gradient"


@kinds
@pytest.mark.parametrize("n", [1, 3, 17, 100, 2000])
def test_scales_agree(twin: Side, kind: str, n: int) -> None:
    assert KINDS[kind](ReferenceSide()).scale(n) == KINDS[kind](twin).scale(n)


def entmax_by_bisection(z: Any) -> Any:
    """1.5-entmax of a vector: the root of sum_j max(z_j / 2 - t, 0)^2 = 1."""
    from scipy.optimize import brentq

    x = z / 2

    def excess(t: float) -> float:
        return float(np.sum(np.maximum(x - t, 0) ** 2) - 1)

    return np.maximum(x - brentq(excess, x.max() - 1 - 1e-12, x.max(), xtol=1e-15), 0) ** 2


def expected_value(kind: str, h: Any, constants_of: Any) -> float:
    """The goodness of one sample; what the gradient holds constant (order, entmax) is taken from `constants_of`."""
    h, held = h.ravel(), constants_of.ravel()
    if kind == "sum_of_squares":
        return sum(x * x for x in h)
    if kind == "mean_square":
        return sum(x * x for x in h) / len(h)
    if kind == "mean_activation":
        return sum(h) / len(h)
    if kind.startswith("top_k") or kind == "maximum":
        k = 1 if kind == "maximum" else math.ceil(float(kind[6:-1]) * len(h))
        return sum(h[j] ** 2 for j in sorted(range(len(h)), key=lambda j: abs(held[j]))[-k:])
    if kind == "entmax_weighted":
        return entmax_by_bisection(held**2) @ h**2
    if kind == "entmax_weighted(False)":
        return entmax_by_bisection(h**2) @ h**2
    if kind.startswith("excess_kurtosis"):
        eps = float(kind[16:-1]) if "(" in kind else 1e-6
        centred = h - h.mean()
        return (centred**4).mean() / ((centred**2).mean() + eps) ** 2 - 3
    assert kind == "negated"
    return -(h @ h) / len(h)


@kinds
@given(h=activities(widths=(5, 8)))
def test_values_and_gradients_are_those_of_the_definition(side: Side, kind: str, h: Any) -> None:
    """Central differences in float64 of the definition, one unit at a time, beside the gradient in closed form."""
    operand = side.operands(h)
    h = side.results(operand)
    goodness = KINDS[kind](side)
    value, gradient = side.results((goodness.value(operand), goodness.gradient(operand)))
    size = 1 + np.square(h).sum()
    for b, sample in enumerate(h):
        expected = expected_value(kind, sample, sample)
        assert abs(value[b] - expected) <= 64 * side.eps * size, f"value of {kind}"
        for j in range(sample.size):
            step = np.zeros(sample.size)
            step[j] = 1e-5
            step = step.reshape(sample.shape)
            up, down = (expected_value(kind, sample + sign * step, sample) for sign in (1, -1))
            error = abs(gradient[b].ravel()[j] - (up - down) / 2e-5)
            assert error <= 1e-5 * size + 64 * side.eps * size, f"gradient of {kind}"


@given(h=activities())
def test_weights_of_the_entmax(side: Side, h: Any) -> None:
    """A distribution on the largest units."""
    root = side.results(side.goodness._entmax_root(side.operands(h.reshape(len(h), -1) ** 2)))
    assert np.allclose((root**2).sum(axis=1), 1, atol=64 * side.eps), "weights do not sum to 1"


@given(h=activities())
def test_the_entmax_lies_between_mean_and_maximum(side: Side, h: Any) -> None:
    operand = side.operands(h)
    value = side.results(side.goodness.entmax_weighted().value(operand))
    largest = side.results(side.goodness.maximum.value(operand))
    mean = side.results(side.goodness.mean_square.value(operand))
    slack = 64 * side.eps * largest
    assert np.all(value <= largest + slack), "above the maximum"
    assert np.all(value >= mean - slack), "below the mean"


def test_entmax_by_hand(side: Side) -> None:
    """Two units, z_1 - z_2 = 2 d < 2: roots s = a + d/2 and a - d/2 with 2 a^2 + d^2 / 2 = 1; else one has all."""
    entmax = side.goodness.entmax_weighted()
    d = 0.6
    a = math.sqrt((1 - d**2 / 2) / 2)
    h = side.operands(np.array([[math.sqrt(2 * d + 0.25), 0.5], [math.sqrt(2.25), 0.5], [100.0, 1.0], [1.5, 1.5]]))
    weights = [(a + d / 2) ** 2, 1.0, 1.0, 0.5]
    squares = side.results(h) ** 2
    expected = [w * s[0] + (1 - w) * s[1] for w, s in zip(weights, squares, strict=True)]
    assert np.allclose(side.results(entmax.value(h)), expected, rtol=16 * side.eps), "entmax by hand"


def test_entmax_of_many_units(side: Side) -> None:
    """One unit, and a million that are almost without a part: s of theirs is u, of the one 0.99 + u, by hand."""
    n, low = 10**6, 0.99
    z = np.full((1, n), 2 - 2 * low)
    z[0, 0] = 2
    z = side.operands(z)
    low = float(np.subtract(*side.results(z)[0, :2]) / 2)
    u = (math.sqrt(low**2 + n * (1 - low**2)) - low) / n
    root = side.results(side.goodness._entmax_root(z))
    assert np.allclose(root[0, :2], [low + u, u], rtol=64 * side.eps * low / u, atol=0), "entmax of many units"
    assert abs(np.square(root, dtype=np.float64).sum() - 1) <= 64 * side.eps, "weights do not sum to 1"


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("h", [[2, 2, 0, 0], [1, 1, 1, 1], [3, 0, 0, 0], [0, 0, 0, 0], [1.2, 1, 0.5, 0.1]])
def test_autograd_of_the_entmax_is_its_gradient(twin: TwinSide, h: list[float]) -> None:
    """At ties too, where a threshold by deviations from a mean has no derivative."""
    entmax = twin.goodness.entmax_weighted(stop_gradient=False)
    activities = torch.tensor([h], dtype=twin.dtype, device=twin.device, requires_grad=True)
    entmax.value(activities).sum().backward()
    error = (activities.grad - entmax.gradient(activities.detach())).abs().max()
    assert float(error) <= 64 * twin.eps, "autograd of the entmax"


@pytest.mark.parametrize(
    ("share", "n", "k"), [(0.02, 2000, 40), (0.07, 100, 7), (0.1, 30, 3), (0.02, 5, 1), (1.0, 9, 9), (0.3, 11, 4)]
)
def test_number_of_units_of_the_top(side: Side, share: float, n: int, k: int) -> None:
    h = side.operands(np.arange(1.0, n + 1)[None])
    goodness = side.goodness.top_k(share)
    assert goodness.scale(n) == k, "units in the top"
    assert (side.results(goodness.gradient(h)) != 0).sum() == k, "units in the top"


def test_the_top_is_that_of_squares(side: Side) -> None:
    """A unit at -3 is more active than one at 2."""
    h = side.operands(np.array([[2.0, -3.0, 1.0]]))
    assert side.results(side.goodness.maximum.value(h)) == 9, "largest square"
    assert np.array_equal(side.results(side.goodness.maximum.gradient(h)), [[0, -6, 0]])
    assert side.results(side.goodness.top_k(0.5).value(h)) == 13


@kinds
@pytest.mark.parametrize("n", [2, 5, 100])
def test_scale_is_the_goodness_of_units_of_activity_one(side: Side, kind: str, n: int) -> None:
    """But for kurtosis, to which n equal units are of no spread."""
    goodness = KINDS[kind](side)
    value = side.results(goodness.value(side.operands(np.ones((1, n)))))
    if kind.startswith("excess_kurtosis"):
        assert (value, goodness.scale(n)) == (-3, 1), "equal units have no spread"
    else:
        assert np.allclose(value, goodness.scale(n), rtol=8 * side.eps), "scale"


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_kurtosis_of_a_share_of_active_units(side: Side, share: float) -> None:
    """Bernoulli: (1 - 6 p (1 - p)) / (p (1 - p)), so -2 for half of them; shifting and scaling change nothing."""
    h = np.zeros((1, 20))
    h[0, : round(20 * share)] = 1
    expected = (1 - 6 * share * (1 - share)) / (share * (1 - share))
    for activities in (h, 5 - 64 * h):
        value = side.results(side.goodness.excess_kurtosis(0.0).value(side.operands(activities)))
        assert np.allclose(value, expected, atol=64 * side.eps * (abs(expected) + 3)), "kurtosis"


def test_kurtosis_of_normal_activities_is_zero(side: Side) -> None:
    """Its standard error is sqrt(24 / n)."""
    h = np.random.default_rng(5).standard_normal((4, 50_000))
    assert np.abs(side.results(side.goodness.excess_kurtosis().value(side.operands(h)))).max() < 0.1


@pytest.mark.parametrize(("n", "constant"), [(2, -2.0), (3, -1.5)])
def test_kurtosis_of_two_and_of_three_units_is_constant(side: Side, n: int, constant: float) -> None:
    h = side.operands(np.random.default_rng(2).standard_normal((5, n)))
    goodness = side.goodness.excess_kurtosis(0.0)
    assert np.allclose(side.results(goodness.value(h)), constant, atol=64 * side.eps)
    deviation = side.results(h).std(axis=1, keepdims=True)
    assert np.abs(side.results(goodness.gradient(h)) * deviation).max() < 64 * side.eps


@given(h=activities())
def test_kurtosis_gradient_is_of_shape_alone(side: Side, h: Any) -> None:
    """Without eps it neither moves the mean nor rescales: sum_j d_j = 0 and sum_j d_j h_j = 0."""
    operand = side.operands(h)
    gradient = side.results(side.goodness.excess_kurtosis(0.0).gradient(operand)).reshape(len(h), -1)
    rows = side.results(operand).reshape(len(h), -1)
    for name, direction in (("shift", np.ones_like(rows)), ("scale", rows)):
        turned = np.abs((gradient * direction).sum(axis=1))
        limit = 256 * side.eps * np.linalg.norm(direction, axis=1) * (np.linalg.norm(gradient, axis=1) + 1)
        assert np.all(turned <= limit), name


@kinds
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_finite_for_silent_and_for_loud_layers(side: Side, kind: str, size: float) -> None:
    loud = np.random.default_rng(1).standard_normal((3, 2, 8)) * size
    for h in (loud, np.zeros_like(loud)):
        goodness = KINDS[kind](side)
        value, gradient = side.results((goodness.value(side.operands(h)), goodness.gradient(side.operands(h))))
        assert np.isfinite(value).all(), "value"
        assert np.isfinite(gradient).all(), "gradient"


@pytest.mark.parametrize("share", [0.4, 0.6])
def test_of_equal_units_no_more_than_k_count(side: Side, share: float) -> None:
    """Which of them is free, but value and gradient are of the same number of units: of 5 equal ones 2 or 3."""
    h = np.array([[2.0, -2.0, 2.0, 2.0, -2.0], [0.5, 3.0, -3.0, 0.25, 3.0]])
    count = {0.4: 2, 0.6: 3}[share]
    goodness = side.goodness.top_k(share)
    value, gradient = side.results((goodness.value(side.operands(h)), goodness.gradient(side.operands(h))))
    assert value.tolist() == [4 * count, 9 * count], "value"
    assert np.count_nonzero(gradient, axis=1).tolist() == [count, count], "units with a gradient"
    assert np.all((gradient == 0) | (gradient == 2 * h)), "gradient"
    one = side.results(side.goodness.maximum.gradient(side.operands(h)))
    assert np.count_nonzero(one, axis=1).tolist() == [1, 1], "maximum"


@pytest.mark.parametrize("kind", ["maximum", "top_k(0.3)"])
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_value_and_gradient_are_of_the_same_units_in_half_precision(
    twin: TwinSide, kind: str, scale: float, dtype: torch.dtype
) -> None:
    """g is homogeneous of degree 2: <h, dg/dh> = 2 g, whatever rounding or range does to squares."""
    if not twin.is_ours:
        pytest.skip("a promise of ours")
    h = torch.as_tensor(np.random.default_rng(5).uniform(1, 1.01, (64, 33)) * scale, dtype=dtype, device=twin.device)
    goodness = KINDS[kind](twin)
    inner = (goodness.gradient(h).double() * h.double()).sum(dim=1)
    assert bool(torch.isclose(inner, 2 * goodness.value(h).double(), rtol=1e-5, atol=0).all()), "different units"


def test_negated_turns_all_signs(side: Side) -> None:
    """Twice negated is the goodness itself."""
    goodness = side.goodness.sum_of_squares
    negated = side.goodness.negated(goodness)
    h = side.operands(np.array([[1.0, -2.0, 3.0]]))
    assert side.results(negated.value(h)) == -14
    assert np.array_equal(side.results(negated.gradient(h)), [[-2, 4, -6]])
    assert negated.scale(3) == -3
    assert side.goodness.negated(negated).scale(3) == 3
    assert side.results(side.goodness.negated(negated).value(h)) == 14


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_of_no_units_is_refused(side: Side, share: float) -> None:
    with side.refuses(f"share: {share}, expected more than 0 and at most 1"):
        side.goodness.top_k(share)


def test_a_goodness_of_the_twin_can_be_pickled(twin: Side) -> None:
    if not twin.is_ours:
        pytest.skip("another package may make them as it likes")
    h = twin.operands(np.array([[1.0, -2.0, 3.0]]))
    for name, goodness in twin.goodness.GOODNESS.items():
        copy = pickle.loads(pickle.dumps(twin.goodness.negated(goodness)))
        assert twin.results(copy.value(h)) == -twin.results(goodness.value(h)), name
