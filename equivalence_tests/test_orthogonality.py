"""Orthogonality: twin against reference, and the theory of the Bjorck iteration."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from prograde.equivalence_tests.sides import Side, TwinSide
from prograde.equivalence_tests.strategies import matrices, near_orthogonal, seeds
from prograde.equivalence_tests.tolerance import Comparison, rms
from prograde.reference import orthogonality

pytestmark = pytest.mark.smoke
orders = st.sampled_from([1, 2, 3, 4])


@given(weight=matrices(), rng=seeds())
def test_gram(twin: Side, compare: Comparison, weight: Any, rng: np.random.Generator) -> None:
    columns = rng.standard_normal((min(weight.shape), 3))
    compare(twin, "gram", lambda side, w, c: side.orthogonality.gram(w) @ c, weight, columns)


@given(weight=matrices())
def test_defect_and_bound(twin: Side, compare: Comparison, weight: Any) -> None:
    compare(twin, "defect", lambda side, w: side.orthogonality.defect(w), weight)
    compare(
        twin,
        "spectral_bound",
        lambda side, w: side.orthogonality.spectral_bound(side.orthogonality.gram(w)),
        weight,
    )


@given(rng=seeds(), pairs=st.integers(1, 8))
def test_skew_orthogonal(twin: Side, compare: Comparison, rng: np.random.Generator, pairs: int) -> None:
    """The twin; orthogonal as far as Q is, skew for any Q, and the pull-back is the transposed derivative."""
    q, g, xi = rng.standard_normal((3, 2 * pairs, 2 * pairs))
    skew, vjp = orthogonality.skew_orthogonal, orthogonality.skew_orthogonal_vjp
    compare(twin, "skew_orthogonal", lambda side, q: side.orthogonality.skew_orthogonal(q), q)
    compare(twin, "skew_orthogonal_vjp", lambda side, q, g: side.orthogonality.skew_orthogonal_vjp(q, g), q, g)
    found = twin.results(twin.orthogonality.skew_orthogonal(twin.operands(q)))
    assert np.abs(found + found.T).max() <= 4 * len(q) * twin.eps * np.square(q).sum(axis=0).max(), "skew"
    assert orthogonality.defect(skew(orthogonality.orthogonal(q.shape, rng))) <= 1e-13, "orthogonal"
    assert np.isclose(np.sum(g * (skew(q + xi) - skew(q - xi))) / 2, np.sum(vjp(q, g) * xi)), "quadratic in Q"


@given(rng=seeds(), pairs=st.integers(1, 8))
def test_a_step_of_q_moves_the_skew_weight_by_the_skew_part(rng: np.random.Generator, pairs: int) -> None:
    """By -4 eta S, to first order, S = (G - G^T) / 2: the polar factor of Q takes off what commutes with W."""
    q, eta = orthogonality.orthogonal((2 * pairs, 2 * pairs), rng), 1e-6
    g = rng.standard_normal(q.shape)
    s, w = (g - g.T) / 2, orthogonality.skew_orthogonal(q)
    stepped = q - eta * orthogonality.skew_orthogonal_vjp(q, g)
    assert np.allclose((orthogonality.skew_orthogonal(stepped) - w) / eta, -4 * s, atol=1e-3), "step"
    retracted = orthogonality.skew_orthogonal(orthogonality.polar_factor(stepped))
    assert np.allclose((retracted - w) / eta, -2 * (s + w @ s @ w), atol=1e-3), "retracted"
    assert np.abs(w @ (s + w @ s @ w) + (s + w @ s @ w) @ w).max() <= 1e-12, "anticommutes with W"


@given(weight=near_orthogonal(), rng=seeds())
def test_drift(twin: Side, compare: Comparison, weight: Any, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3, min(weight.shape)))
    compare(twin, "drift", lambda side, *o: side.orthogonality.drift(*o), weight, rows)


@pytest.mark.parametrize("shape", [(512, 528), (528, 512)], ids=["wide", "tall"])
def test_drift_of_a_large_weight(twin: Side, compare: Comparison, shape: tuple[int, int]) -> None:
    """Large enough for few rows to be multiplied by parts of its columns."""
    rng = np.random.default_rng(0)
    weight = orthogonality.orthogonal(shape, rng) + rng.standard_normal(shape) / 100
    rows = rng.standard_normal((3, 512))
    compare(twin, "drift", lambda side, *o: side.orthogonality.drift(*o), weight, rows)


spans = st.sampled_from([(1, 3), (2, 5), (4, 17), (20, 33)])
"""Rows and their width: fewer rows, so that their span is not the whole space."""


@given(rng=seeds(), span=spans)
def test_basis(twin: Side, compare: Comparison, rng: np.random.Generator, span: tuple[int, int]) -> None:
    """Up to the signs of the rows: by the projection on their span."""
    rows = np.tril(np.ones((span[0], span[0]))) @ orthogonality.orthogonal(span, rng)

    def projection(side: Side, rows: Any, columns: Any) -> Any:
        q = side.orthogonality.basis(rows)
        return q.T @ (q @ columns)

    compare(twin, "basis", projection, rows, rng.standard_normal((span[1], 2)))


@given(rng=seeds(), span=spans)
def test_a_basis_is_orthonormal_and_spans_its_rows(side: Side, rng: np.random.Generator, span: tuple[int, int]) -> None:
    rows = np.tril(np.ones((span[0], span[0]))) @ orthogonality.orthogonal(span, rng)
    q = side.results(side.orthogonality.basis(side.operands(rows)))
    assert np.abs(q @ q.T - np.eye(len(q))).max() <= 64 * side.eps, "orthonormal"
    assert np.abs(rows - rows @ q.T @ q).max() <= 256 * side.eps, "span"


def near_orthogonal_with_span(rng: np.random.Generator, span: tuple[int, int], other: int) -> tuple[Any, Any]:
    """A matrix (other, n) with singular values from 0.6 to 1.3, and orthonormal rows (p, n)."""
    u, _, vt = np.linalg.svd(rng.standard_normal((other, span[1])), full_matrices=False)
    return (u * rng.uniform(0.6, 1.3, len(vt))) @ vt, orthogonality.orthogonal(span, rng)


@given(rng=seeds(), span=spans, wide=st.booleans())
def test_polar_within(
    twin: Side, compare: Comparison, rng: np.random.Generator, span: tuple[int, int], wide: bool
) -> None:
    weight, q = near_orthogonal_with_span(rng, span, span[1] + 4)

    def step(side: Side, weight: Any, q: Any) -> Any:
        found = side.orthogonality.polar_within(weight, q)
        return found.weight, found.change @ q, found.drift

    compare(twin, "polar_within", step, weight.T if wide else weight, q)


@given(rng=seeds(), span=spans, wide=st.booleans())
def test_drift_after(
    twin: Side, compare: Comparison, rng: np.random.Generator, span: tuple[int, int], wide: bool
) -> None:
    weight, q = near_orthogonal_with_span(rng, span, span[1] + 4)

    def after(side: Side, weight: Any, q: Any, rows: Any) -> Any:
        module = side.orthogonality
        return module.drift_after(rows, module.drift(weight, rows), q, module.polar_within(weight, q))

    rows = rng.standard_normal((2, span[1]))
    compare(twin, "drift_after", after, weight.T if wide else weight, q, rows)


@given(rng=seeds(), span=spans, wide=st.booleans())
def test_the_drift_after_a_step_is_that_of_the_new_weight(
    side: Side, rng: np.random.Generator, span: tuple[int, int], wide: bool
) -> None:
    weight, q = near_orthogonal_with_span(rng, span, span[1] + 4)
    rows = rng.standard_normal((2, span[1]))
    module = side.orthogonality
    weight, q, rows = side.operands((weight.T if wide else weight, q, rows))
    step = module.polar_within(weight, q)
    known = side.results(module.drift_after(rows, module.drift(weight, rows), q, step))
    assert rms(known - side.results(module.drift(step.weight, rows))) <= 256 * side.eps, "drift of the new weight"


@given(rng=seeds(), shape=st.sampled_from([(40, 60), (60, 40), (50, 50)]), kept=st.sampled_from([1, 4, 8]))
def test_a_drift_in_few_directions_is_found_and_undone(
    side: Side, rng: np.random.Generator, shape: tuple[int, int], kept: int
) -> None:
    """Singular values far from 1 in `kept` directions, among 8 that are sought: the polar factor, as of the whole."""
    weight = orthogonality.orthogonal(shape, rng)
    small = min(shape)
    polar, turn = weight, orthogonality.orthogonal((small, small), rng)
    stretch = np.eye(small) + (turn[:, :kept] * rng.uniform(0.2, 0.4, kept)) @ turn[:, :kept].T
    weight = stretch @ polar if shape[0] <= shape[1] else polar @ stretch
    ours, start = side.operands((weight, rng.standard_normal((8, small))))
    rows = side.orthogonality.drift(ours, side.orthogonality.drift(ours, start))
    found = side.results(side.orthogonality.polar_within(ours, side.orthogonality.basis(rows)).weight)
    assert np.abs(found - polar).max() <= 4000 * side.eps, "polar factor of the drifted directions"


@given(weight=near_orthogonal(), rng=seeds())
def test_within_a_span_nothing_else_changes(side: Side, weight: Any, rng: np.random.Generator) -> None:
    """Orthonormal in the span; what is orthogonal to the span stays as it was."""
    small = min(weight.shape)
    turn = orthogonality.orthogonal((small, small), rng)
    inside, outside = turn[: small // 2 + 1], turn[small // 2 + 1 :]
    ours = side.results(side.orthogonality.polar_within(*side.operands((weight, inside))).weight)
    before, after = (w if w.shape[0] <= w.shape[1] else w.T for w in (weight, ours))
    gram = inside @ after @ after.T @ inside.T
    assert np.abs(gram - np.eye(len(inside))).max() <= 256 * side.eps, "orthonormal in the span"
    assert np.abs(outside @ (after - before)).max(initial=0) <= 256 * side.eps, "unchanged across the span"


@given(weight=near_orthogonal())
def test_polar_factor(twin: Side, compare: Comparison, weight: Any) -> None:
    compare(twin, "polar_factor", lambda side, w: side.orthogonality.polar_factor(w), weight)


@given(weight=near_orthogonal(), order=orders, steps=st.integers(1, 3), rng=seeds())
def test_bjorck(twin: Side, compare: Comparison, weight: Any, order: int, steps: int, rng: np.random.Generator) -> None:
    compare(twin, "bjorck", lambda side, w: side.orthogonality.bjorck(w, order, steps), weight)
    columns = rng.standard_normal((min(weight.shape), 3))
    compare(
        twin,
        "bjorck_factor",
        lambda side, w, c: side.orthogonality.bjorck_factor(side.orthogonality.gram(w), order, steps) @ c,
        weight,
        columns,
    )


STACKED: dict[str, Callable[[Any, Any], Any]] = {
    "gram": lambda module, w: module.gram(w),
    "defect": lambda module, w: module.defect(w),
    "spectral_bound": lambda module, w: module.spectral_bound(module.gram(w)),
    "polar_iteration": lambda module, w: module.polar_iteration(w),
    **{
        f"bjorck_factor, {steps} steps": lambda module, w, steps=steps: module.bjorck_factor(module.gram(w), 2, steps)
        for steps in (0, 1, 3)
    },
}
"""What takes a stack of matrices, (..., n_out, n_in), with the twin's module."""


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
@pytest.mark.parametrize("name", STACKED)
def test_a_stack_of_matrices_has_what_each_has(twin64: TwinSide, name: str, shape: tuple[int, int]) -> None:
    """Each as it is alone, near orthogonal, far from it or 0: none is scaled as another has to be."""
    scales = np.array([[1.0, 20.0, 0.05, 0.0]] * 2)[:, :, None, None]
    weights = twin64.operands(scales * np.random.default_rng(0).standard_normal((2, 4, *shape)) / 3)
    found = STACKED[name](twin64.orthogonality, weights)
    alone = [[STACKED[name](twin64.orthogonality, weight) for weight in row] for row in weights]
    expected = torch.stack([torch.stack(row) for row in alone])
    torch.testing.assert_close(found, expected, msg=f"{name} of a stack")


def test_no_step_changes_nothing(side: Side) -> None:
    weight = side.operands(np.array([[3.0, 0.0, 4.0], [0.0, 1.0, 0.0]]))
    assert np.array_equal(side.results(side.orthogonality.bjorck(weight, steps=0)), side.results(weight)), "no step"


@given(weight=matrices(), order=orders)
def test_bjorck_of_a_rescaled_weight(twin: Side, compare: Comparison, weight: Any, order: int) -> None:
    compare(twin, "bjorck", lambda side, w: side.orthogonality.bjorck(w, order, 2), 5 * weight)


@given(weight=near_orthogonal(), rng=seeds())
def test_scaled_bjorck(twin: Side, compare: Comparison, weight: Any, rng: np.random.Generator) -> None:
    start = rng.standard_normal(weight.shape[1])
    compare(twin, "scaled_bjorck", lambda side, w, v: side.orthogonality.scaled_bjorck(w, v), 7 * weight, start)


@given(weight=near_orthogonal(), rng=seeds())
def test_scaled_bjorck_of_any_scale_ends_at_the_polar_factor(side: Side, weight: Any, rng: np.random.Generator) -> None:
    w, start = side.operands((7 * weight, rng.standard_normal(weight.shape[1])))
    u, _, vt = np.linalg.svd(weight, full_matrices=False)
    gap = np.abs(side.results(side.orthogonality.scaled_bjorck(w, start)) - u @ vt).max()
    assert gap <= 64 * max(weight.shape) * side.eps, "scaled_bjorck: the polar factor"


spreads = st.sampled_from(["near", "far"])


def stretched(rng: np.random.Generator, shape: tuple[int, int], spread: str) -> tuple[Any, Any]:
    """A weight with singular values within 20 % of 1, or from 0.3 to 6, and its polar factor."""
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    if spread == "near":
        s = rng.uniform(0.8, 1.15, min(shape))
    else:
        s = np.append(np.exp(rng.uniform(np.log(0.3), np.log(6), min(shape) - 1)), 6)
    return (u * s) @ vt, u @ vt


@given(rng=seeds(), shape=st.sampled_from([(7, 12), (12, 7), (9, 9)]), spread=spreads, steps=st.sampled_from([3, 4]))
def test_polar_iteration(
    twin: Side, compare: Comparison, rng: np.random.Generator, shape: tuple[int, int], spread: str, steps: int
) -> None:
    if twin.eps > 1e-4:
        pytest.skip("rounded so coarsely the reference's steps diverge; the twin takes them in float32")
    weight, _ = stretched(rng, shape, spread)
    compare(twin, "polar_iteration", lambda side, w: side.orthogonality.polar_iteration(w, steps), weight)


@given(rng=seeds(), shape=st.sampled_from([(7, 12), (12, 7), (9, 9)]), spread=spreads)
def test_the_polar_iteration_ends_at_the_polar_factor(
    side: Side, rng: np.random.Generator, shape: tuple[int, int], spread: str
) -> None:
    """To rounding from near, within 3.4e-4 from afar and to rounding with one step more.

    From afar the first step sums terms with coefficients of 843 in all, each of which may be rounded.
    """
    weight, polar = stretched(rng, shape, spread)
    weight = side.operands(weight)
    rounding = (64 if spread == "near" else 843) * side.eps
    for steps, least in ((3, 0 if spread == "near" else 3.4e-4), (4, 0)):
        ours = side.results(side.orthogonality.polar_iteration(weight, steps))
        assert np.linalg.norm(ours - polar, 2) <= least + rounding, f"polar factor after {steps} steps"


def test_the_polar_iteration_from_the_widest_spread(side: Side) -> None:
    """Singular values from 1/64 of the bound to all of it, on which the bound depends a little."""
    s = np.geomspace(0.1, 6, 200)
    for _ in range(20):
        bound = np.sqrt(1 + np.sum((1 - s**2) ** 4) ** 0.25)
        s = np.append(np.geomspace(1.01 * bound / 64, 6, 199), 6)
    ours = np.diag(side.results(side.orthogonality.polar_iteration(side.operands(np.diag(s)))))
    assert np.abs(1 - ours).max() <= 3.4e-4 + 64 * side.eps, "singular values reach 1"


class Tf32(TorchDispatchMode):
    """Products as a GPU may form them in float32: their factors are rounded to 11 digits."""

    PRODUCTS: ClassVar = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.PRODUCTS:
            args = [self.rounded(factor) for factor in args]
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        mantissa, exponent = torch.frexp(x)
        return torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)


@pytest.mark.parametrize("largest", [2.0, 3.0, 4.5, 8.0, 20.0])
@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.usefixtures("ours_only")
def test_the_polar_iteration_of_products_in_few_digits(twin64: TwinSide, width: int, largest: float) -> None:
    """One large singular value, as a large step leaves: made for what is exact alone, steps left up to 2 here."""
    rng = np.random.default_rng(0)
    module = twin64.orthogonality
    for _ in range(5):
        u, _, vt = np.linalg.svd(rng.standard_normal((width, width)))
        weight = torch.tensor((u * np.append(largest, rng.uniform(0.9, 1, width - 1))) @ vt, dtype=torch.float32)
        with Tf32():
            restored = module.polar_iteration(weight)
        assert module.defect(restored.double()) <= 1.2e-3, "few digits"


@pytest.mark.parametrize("residual", [0.88, -0.88])
def test_the_polar_iteration_from_a_bound_of_nine_tenths(side: Side, residual: float) -> None:
    """The steps of Bjorck are left to themselves: no singular value ends off by 3.4e-4."""
    s = np.sqrt([1 - residual, 1, 1])
    ours = np.diag(side.results(side.orthogonality.polar_iteration(side.operands(np.diag(s)))))
    assert np.abs(1 - ours).max() <= 1e-8 + 64 * side.eps, "near enough for Bjorck's steps"


def test_the_polar_iteration_leaves_a_lost_direction_lost(side: Side) -> None:
    """So that it is seen in what the iteration leaves."""
    s = np.array([1.3, 1.0, 0.7, 0.0])
    ours = np.diag(side.results(side.orthogonality.polar_iteration(side.operands(np.diag(s)))))
    assert np.allclose(ours, [1, 1, 1, 0], rtol=0, atol=3.4e-4 + 64 * side.eps)


@given(weight=near_orthogonal(), order=orders)
def test_one_step_acts_on_singular_values_alone(side: Side, weight: Any, order: int) -> None:
    """W = U S V^T becomes U s q_p(1 - s^2) V^T."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    e = 1 - s**2
    coefficients = [1, 1 / 2, 3 / 8, 5 / 16, 35 / 128]
    expected = (u * (s * sum(c * e**k for k, c in enumerate(coefficients[: order + 1])))) @ vt
    ours = side.results(side.orthogonality.bjorck(side.operands(weight), order, rescale=False))
    assert rms(ours - expected) <= 64 * order * side.eps * rms(expected), "singular values of another polynomial"


@given(weight=near_orthogonal(1.1, 0.9))
def test_first_order_residual(weight: Any) -> None:
    """E = I - G becomes 3/4 E^2 + 1/4 E^3."""
    e = np.eye(min(weight.shape)) - orthogonality.gram(weight)
    after = np.eye(min(weight.shape)) - orthogonality.gram(orthogonality.bjorck(weight))
    assert np.allclose(after, 0.75 * e @ e + 0.25 * e @ e @ e, atol=1e-13)


@given(order=orders, rng=seeds(), inside=st.floats(0.05, 0.98))
def test_convergence_within_the_limit(side: Side, order: int, rng: np.random.Generator, inside: float) -> None:
    limit = side.orthogonality.convergence_limit(order)
    weight = orthogonality.orthogonal((6, 9), rng)
    weight[0] *= inside * limit
    ours = side.results(side.orthogonality.bjorck(side.operands(weight), order, 60, rescale=False))
    assert np.abs(ours @ ours.T - np.eye(6)).max() <= 64 * side.eps


@given(order=orders, rng=seeds())
def test_no_convergence_beyond_the_limit(order: int, rng: np.random.Generator) -> None:
    """Odd orders flip the sign just beyond the limit, even orders grow: neither ends at the polar factor."""
    weight = orthogonality.orthogonal((6, 9), rng)
    polar = weight.copy()
    weight[0] *= 1.02 * orthogonality.convergence_limit(order)
    with np.errstate(over="ignore", invalid="ignore"):
        ours = orthogonality.bjorck(weight, order, 60, rescale=False)
    assert not np.abs(ours - polar).max() < 0.1


@given(weight=matrices(), order=orders, size=st.sampled_from([3.0, 100.0]))
def test_rescaling_converges_from_anywhere(side: Side, weight: Any, order: int, size: float) -> None:
    weight = size * weight
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    weight = (u * np.maximum(s, 0.05 * s.max())) @ vt
    ours = side.results(side.orthogonality.bjorck(side.operands(weight), order, 60))
    assert np.abs(ours - u @ vt).max() <= 2000 * side.eps


def test_convergence_limits(side: Side) -> None:
    """sqrt(3), sqrt(7/3), and the roots of the polynomials of orders 3 and 4."""
    limits = [side.orthogonality.convergence_limit(order) for order in (1, 2, 3, 4)]
    assert np.allclose(limits, [3**0.5, (7 / 3) ** 0.5, 1.58929, 1.49438], atol=1e-5), "convergence limits"


def test_order_zero_is_refused(side: Side) -> None:
    with side.refuses("order: 0, expected a positive integer"):
        side.orthogonality.bjorck(side.operands(np.eye(3)), 0)


@given(weight=matrices())
def test_the_bound_bounds(side: Side, weight: Any) -> None:
    weight = side.results(side.operands(weight))
    bound = side.results(side.orthogonality.spectral_bound(side.orthogonality.gram(side.operands(weight))))
    assert bound >= np.linalg.norm(weight, 2) ** 2 * (1 - 64 * side.eps)


@given(rng=seeds(), n=st.integers(4, 20), size=st.sampled_from([0.3, 2.0]))
def test_the_bound_is_tight(side: Side, rng: np.random.Generator, n: int, size: float) -> None:
    """The row sum of a diagonal matrix, and 1 + |E|_F of an E of rank one: the largest eigenvalue itself."""
    diagonal = np.diag(1 + size * np.append(rng.uniform(0.5, 0.9, n - 1), 1))
    direction = rng.uniform(0.1, 1, n) ** 2
    one = np.eye(n) + size * np.outer(direction, direction) / (direction @ direction)
    for gram in (diagonal, one):
        bound = side.results(side.orthogonality.spectral_bound(side.operands(gram)))
        assert abs(bound - (1 + size)) <= 32 * side.eps, "tight"


@given(weight=near_orthogonal())
def test_the_polar_factor_is_the_nearest(weight: Any) -> None:
    """W = (polar factor)(symmetric, positive semidefinite), and its rows or columns are orthonormal."""
    polar = orthogonality.polar_factor(weight)
    assert orthogonality.defect(polar) <= 1e-14
    stretch = polar.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ polar.T
    assert np.allclose(stretch, stretch.T, atol=1e-13)
    assert np.linalg.eigvalsh(stretch).min() > 0


def a_step(rng: np.random.Generator, shape: tuple[int, int], batch: int, rate: float) -> tuple[Any, ...]:
    """An orthogonal weight and a plain gradient step from it: W', delta, z, a = W z."""
    weight = orthogonality.orthogonal(shape, rng)
    delta = 0.3 * rng.standard_normal((batch, shape[0]))
    z = rng.standard_normal((batch, shape[1]))
    return weight - rate / batch * delta.T @ z, delta, z, z @ weight.T


retraction_orders = st.sampled_from([1, 2, 3, 4, 9])
shapes = st.sampled_from([(16, 24), (24, 16), (13, 13), (5, 40), (40, 5)])


@given(rng=seeds(), shape=shapes, batch=st.sampled_from([1, 3, 8]), order=retraction_orders)
def test_retract(twin: Side, compare: Comparison, rng: np.random.Generator, shape: Any, batch: int, order: int) -> None:
    step = a_step(rng, shape, batch, 0.3)
    compare(twin, "retract", lambda side, *o: side.orthogonality.retract(*o, 0.3, order), *step)


@given(rng=seeds(), shape=shapes, batch=st.sampled_from([1, 3, 8]), order=retraction_orders)
def test_retraction_from_the_factors_is_bjorck_of_the_weight(
    side: Side, compare: Comparison, rng: np.random.Generator, shape: Any, batch: int, order: int
) -> None:
    """Exactly, second-order terms included, for a weight that was orthogonal before the step."""

    def bjorck(reference: Side, stepped: Any, *factors: Any) -> Any:
        return reference.orthogonality.bjorck(stepped, order, rescale=False)

    step = a_step(rng, shape, batch, 0.05)
    assert np.linalg.norm(np.eye(min(shape)) - orthogonality.gram(step[0]), 2) < 0.8
    compare(
        side,
        "retract",
        lambda side, *o: side.orthogonality.retract(*o, 0.05, order),
        *step,
        expected=bjorck,
    )


@given(rng=seeds(), shape=shapes)
def test_a_step_too_large_for_the_series_is_left_alone(side: Side, rng: np.random.Generator, shape: Any) -> None:
    step = a_step(rng, shape, 3, 20.0)
    ours = side.results(side.orthogonality.retract(*side.operands(step), 20.0))
    assert np.array_equal(ours, side.results(side.operands(step[0])))


@given(rng=seeds(), shape=st.sampled_from([(16, 24), (24, 16), (13, 13)]))
def test_a_step_is_left_alone_just_where_the_trace_says_so(
    side: Side, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    """tr E^6 a little below 1 and above, from one direction: half precision moves it by tenths, others by less."""
    off = 0.4 if side.eps > 1e-3 else 0.01
    weight, _, z, _ = a_step(rng, shape, 1, 0.0)
    delta = rng.standard_normal((1, shape[0]))
    delta /= np.linalg.norm(delta) * np.linalg.norm(z)

    def step(rate: float) -> tuple[Any, ...]:
        return weight - rate * delta.T @ z, delta, z, z @ weight.T

    def trace(rate: float) -> float:
        e = np.eye(min(shape)) - orthogonality.gram(step(rate)[0])
        return float(np.trace(np.linalg.matrix_power(e, 6)))

    for target in (1 - off, 1 + off):
        low, high = 0.0, 3.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if trace(middle) < target else (low, middle)
        operands = side.operands(step(low))
        ours = side.results(side.orthogonality.retract(*operands, low))
        alone = np.array_equal(ours, side.results(operands[0]))
        assert alone == (target > 1), f"left alone: {alone}, tr E^6 = {target}"


@given(rng=seeds(), span=st.sampled_from([(4, 17), (20, 33)]))
def test_directions_with_a_small_weight_are_set_right(
    side: Side, rng: np.random.Generator, span: tuple[int, int]
) -> None:
    """Ten times as large as what is taken for 0; of half precision, whose products are coarser, a tenth."""
    eps = side.eps if side.eps < 1e-4 else 0.01 / 100 / span[0]
    s = np.ones(span[1])
    s[0] = 10 * np.sqrt(span[0] * eps)
    q = np.eye(span[1])[: span[0]]
    weight = side.operands(np.diag(s) @ orthogonality.orthogonal((span[1], span[1] + 3), rng))
    ours = side.results(side.orthogonality.polar_within(weight, side.operands(q)).weight)
    found = np.linalg.norm(ours[0])
    assert 0.8 <= found <= 1.25, f"set right: {found}"


def test_directions_without_a_weight_stay_as_they_are(side: Side) -> None:
    """A weight of rank one: what is 0 to rounding is not blown up to a direction of norm 1."""
    rng = np.random.default_rng(0)
    weight = np.outer(*rng.standard_normal((2, 128))) / 128**0.5  # of entries that do not all round alike
    weight, rows = side.operands((weight, rng.standard_normal((24, 128))))
    ours = side.results(side.orthogonality.polar_within(weight, side.orthogonality.basis(rows)).weight)
    singular = np.linalg.svd(ours, compute_uv=False)
    assert singular[1] <= 1e5 * side.eps, f"expected the others to stay, found {singular[:3]}"
