"""Activations: twin against reference; derivatives against finite differences; what maxmin promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.accelerated.modules.activations import MODULES, activation_of
from prograde.equivalence_tests.sides import Side, TwinSide
from prograde.equivalence_tests.strategies import KINKED, SMOOTH, KinkDistance, arrays, seeds
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference.activations import ACTIVATIONS

ALL = SMOOTH + KINKED
pytestmark = pytest.mark.smoke


def clear(name: str, a: np.ndarray) -> np.ndarray:
    """a with every pair or entry pushed off the kink."""
    if name == "maxmin":
        gap = a[:, 0::2] - a[:, 1::2]
        a = a.copy()
        a[:, 0::2] += np.where(np.abs(gap) < KinkDistance.size, 1.0, 0.0)
        return a
    return np.where(np.abs(a) < KinkDistance.size, 1.0, a)


@pytest.mark.parametrize("name", ALL)
@given(a=arrays(even=True), rng=seeds())
def test_value_and_derivatives(
    name: str, twin: Side, compare: Comparison, a: np.ndarray, rng: np.random.Generator
) -> None:
    a = clear(name, a)
    direction = rng.standard_normal(a.shape)
    compare(twin, f"{name}.value", lambda side, a: side.activations.ACTIVATIONS[name].value(a), a)
    compare(twin, f"{name}.jvp", lambda side, a, u: side.activations.ACTIVATIONS[name].jvp(a, u), a, direction)
    compare(twin, f"{name}.vjp", lambda side, a, u: side.activations.ACTIVATIONS[name].vjp(a, u), a, direction)


@pytest.mark.parametrize("name", ALL)
@given(a=arrays(even=True), rng=seeds(), size=st.sampled_from([0.05, 1.0, 30.0]))
def test_difference(
    name: str, twin: Side, compare: Comparison, a: np.ndarray, rng: np.random.Generator, size: float
) -> None:
    u = size * rng.standard_normal(a.shape)
    compare(twin, f"{name}.difference", lambda side, a, u: side.activations.ACTIVATIONS[name].difference(a, u), a, u)


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("name", ALL)
@given(a=arrays(even=True), rng=seeds())
def test_tiny_difference_keeps_its_precision(name: str, twin: Side, a: np.ndarray, rng: np.random.Generator) -> None:
    """sigma(a) - sigma(a - u) is J(a) u to first order; the twin does not lose it to cancellation."""
    a = clear(name, a)
    u = 1e-3 * KinkDistance.size * rng.standard_normal(a.shape)
    a, u = twin.results(twin.operands((a, u)))
    difference = twin.results(twin.activations.ACTIVATIONS[name].difference(*twin.operands((a, u))))
    derivative = ACTIVATIONS[name].jvp(a, u)
    assert np.abs(difference - derivative).max() <= (1e-5 + 16 * twin.eps) * np.abs(u).max()


@pytest.mark.parametrize("name", ALL)
@given(a=arrays(even=True), rng=seeds())
def test_derivatives_are_those_of_the_value(name: str, side: Side, a: np.ndarray, rng: np.random.Generator) -> None:
    """jvp is the central difference of value; vjp is its transpose: <v, J u> = <J^T v, u>."""
    a = clear(name, a)
    u, v = rng.standard_normal((2, *a.shape))
    activation = side.activations.ACTIVATIONS[name]
    jvp, vjp = side.results((activation.jvp(*side.operands((a, u))), activation.vjp(*side.operands((a, v)))))
    step = 1e-5
    central = (ACTIVATIONS[name].value(a + step * u) - ACTIVATIONS[name].value(a - step * u)) / (2 * step)
    assert np.allclose(jvp, central, atol=1e-7 + 16 * side.eps, rtol=16 * side.eps), "jvp is no slope of value"
    scale = np.abs(v * jvp).sum() + np.abs(vjp * u).sum()
    assert abs(np.sum(v * jvp) - np.sum(vjp * u)) <= 16 * side.eps * scale


@pytest.mark.parametrize("name", ["gelu", "silu"])
@given(a=arrays(), rng=seeds())
def test_pytorchs_own_functions(name: str, side: Side, a: np.ndarray, rng: np.random.Generator) -> None:
    """Value and gradient of PyTorch's function of that name, in float64."""
    operands = side.operands((2 * a, rng.standard_normal(a.shape)))
    a, d = side.results(operands)
    theirs = torch.tensor(a, requires_grad=True)
    value = getattr(torch.nn.functional, name)(theirs)
    value.backward(torch.tensor(d))
    activation = side.activations.ACTIVATIONS[name]
    found, gradient = side.results((activation.value(operands[0]), activation.vjp(*operands)))
    limit = 8 * side.eps
    assert np.all(np.abs(found - value.detach().cpu().numpy()) <= limit * np.abs(a)), f"{name}.value"
    assert np.all(np.abs(gradient - theirs.grad.cpu().numpy()) <= limit * (1 + np.abs(a)) * np.abs(d)), f"{name}.vjp"


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("size", [1e-6, 4e-4, 1e-3, 0.05, 0.1, 1.0])
def test_differences_do_not_cancel(name: str, twin: Side, size: float) -> None:
    """What is lost are a few units of rounding of u, and of a by gelu's two values, taken beyond |u| = 4 eps^(1/4)."""
    rng = np.random.default_rng(3)
    a, u = 3 * rng.standard_normal((40, 50)), size * rng.uniform(-1, 1, (40, 50))
    a[0, :4] = (40, -40, 1e4, -1e4)
    a, u = twin.results(twin.operands((a, u)))
    found = twin.results(twin.activations.ACTIVATIONS[name].difference(*twin.operands((a, u))))
    nodes, weights = np.polynomial.legendre.leggauss(40)  # the integral of the derivative, at these sizes exact
    ends = (0.5 + 0.5 * nodes)[:, None, None]
    truth = u * np.tensordot(weights / 2, ACTIVATIONS[name].jvp(a - ends * u, np.ones_like(a - ends * u)), 1)
    lost = 8 * np.abs(u) + 4 * np.abs(a) * (name == "gelu" and size > 4 * twin.eps**0.25)
    assert np.all(np.abs(found - truth) <= twin.eps * lost), f"{name} cancels"


@pytest.mark.parametrize("name", ["relu", "gelu", "silu"])
def test_a_difference_from_0_is_the_value(name: str, side: Side) -> None:
    """With all its digits, whatever the size of u: at -1024 the activation is 0 in every precision."""
    activation = side.activations.ACTIVATIONS[name]
    ends = np.linspace(-3, 3, 61)[None]
    a, far, rise, fall = side.operands((ends, np.full((1, 61), -1024.0), ends + 1024, -1024 - ends))
    end = side.operands(-1024 - side.results(fall))  # exact, in the precision of what falls
    for words, start, u, sign, at in (("from 0", a, rise, 1, a), ("to 0", far, fall, -1, end)):
        found, value = side.results((activation.difference(start, u), activation.value(at)))
        assert np.all(np.abs(sign * found - value) <= 16 * side.eps * np.abs(value)), f"{name} {words}"


def test_tanhs_derivative_is_even_and_keeps_its_digits(side: Side) -> None:
    """1 - tanh(a)^2 is 1 / cosh(a)^2: no a is so large that it is lost in what is subtracted from 1."""
    a = side.operands(np.linspace(0.1, 40, 400)[None])
    ones = side.operands(np.ones((1, 400)))
    truth = 1 / np.cosh(side.results(a)) ** 2
    for name in ("jvp", "vjp"):
        function = getattr(side.activations.tanh, name)
        right, left = side.results((function(a, ones), function(-a, ones)))
        assert np.array_equal(left, right), f"tanh.{name} is not even"
        # Rounding a in exp(2a) moves it by 2 a eps.
        units = np.abs(right - truth) / ((4 + 2 * side.results(a)) * side.eps * truth)
        worst = int(units.argmax())
        said = f"tanh.{name} at {side.results(a).flat[worst]:.3g}: {right.flat[worst]:.3g}, expected"
        assert units.max() <= 1, (
            f"{said} {truth.flat[worst]:.3g}: 1 - tanh(a)^2 loses its digits, 1 / cosh(a)^2 does not"
        )


def test_tanhs_derivative_in_float16(twin: Side) -> None:
    if not isinstance(twin, TwinSide) or not twin.is_ours:
        pytest.skip("a promise of ours")
    a = torch.linspace(0.1, 5.4, 200, dtype=torch.float16, device=twin.device)
    truth = 1 / a.double().cosh().square()
    for sign in (1, -1):
        found = twin.activations.tanh.vjp(sign * a, torch.ones_like(a)).double()
        assert bool(((found - truth).abs() <= 4 * 2.0**-10 * truth).all()), "digits lost"


ZERO = {"identity": 1.0, "relu": 0.0, "leaky_relu": 0.01, "tanh": 1.0, "gelu": 0.5, "silu": 0.5}


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_derivative_at_zero(side: Side, name: str, sign: float) -> None:
    """Specified, at both zeros: that of the left side at a kink."""
    a, direction = side.operands((np.full((2, 2), sign * 0.0), np.array([[3.0, -5.0], [0.5, 7.0]])))
    activation = side.activations.ACTIVATIONS[name]
    slope = side.results(side.operands(np.array(ZERO[name])))
    found = side.results((activation.jvp(a, direction), activation.vjp(a, direction), activation.value(a)))
    for derivative in found[:2]:
        agrees = np.allclose(derivative, slope * side.results(direction), rtol=side.eps, atol=0)
        assert agrees, f"{name}'({sign * 0.0:g}): {derivative.flat[0] / 3:g}, expected {slope:g}"
    assert not found[2].any(), f"{name}(0)"


def test_equal_units_stay_in_their_order(side: Side) -> None:
    """Specified: maxmin's derivative keeps a pair of equal units as it is."""
    a, direction = side.operands((np.array([[2.0, 2.0, -1.0, -1.0, 1.0, 3.0]]), np.array([[1, 2, 3, 4, 5, 6.0]])))
    for derivative in (side.activations.maxmin.jvp, side.activations.maxmin.vjp):
        assert side.results(derivative(a, direction)).tolist() == [[1, 2, 3, 4, 6, 5]], "equal units exchanged"


@given(a=arrays(even=True))
def test_maxmin_sorts_pairs_and_keeps_norms(side: Side, a: np.ndarray) -> None:
    out = side.results(side.activations.maxmin.value(side.operands(a)))
    a = side.results(side.operands(a))
    assert np.array_equal(np.sort(out.reshape(len(a), -1, 2)), np.sort(a.reshape(len(a), -1, 2)))
    assert np.all(out[:, 0::2] >= out[:, 1::2])


def test_maxmin_refuses_an_odd_number_of_units(side: Side) -> None:
    with side.refuses("5 units, expected an even number"):
        side.activations.maxmin.value(side.operands(np.ones((2, 5))))


def test_modules_and_the_activations_that_they_are(twin: Side) -> None:
    """Each is that of its value; GELU's approximation by tanh is another function than GELU."""
    if not isinstance(twin, TwinSide) or not twin.is_ours:
        pytest.skip("modules are ours")
    a = torch.linspace(-3, 3, 20, device=twin.device).view(2, 10)
    for name, kind in MODULES.items():
        found = activation_of(kind())
        assert found == twin.activations.ACTIVATIONS[name], name
        assert torch.equal(found.value(a), kind()(a)), f"{name}: another value than its module's"
    assert activation_of(torch.nn.GELU(approximate="tanh")) is None, "an approximation for the exact one"
