"""Cumulative goodness: twin against reference, slopes against autograd, bounds and identities, hand-worked numbers."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import layer_goodness, seeds, size_of
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

LOSSES: dict[str, Callable[[Any], Any]] = {
    "cumulative": lambda module: module.cumulative(),
    "cumulative(0.7, 1)": lambda module: module.cumulative(0.7, 1.0),
    "per_block": lambda module: module.per_block(),
    "hardness_gated": lambda module: module.hardness_gated(),
    "hardness_gated(0.5, 2, 0.3, 1)": lambda module: module.hardness_gated(0.5, 2.0, 0.3, 1.0),
    "depth_scaled_auxiliary": lambda module: module.depth_scaled_auxiliary(),
    "depth_scaled_auxiliary(1, 1, 0.5, 1)": lambda module: module.depth_scaled_auxiliary(1.0, 1.0, 0.5, 1.0),
    "compensated": lambda module: module.compensated(),
    "compensated(1, 1, 1.5, 0.5, 0)": lambda module: module.compensated(1.0, 1.0, 1.5, 0.5, 0.0),
    "compensated(1, 1, 1, 0, 0.1)": lambda module: module.compensated(1.0, 1.0, 1.0, 0.0, 0.1),
    "squared_hinge": lambda module: module.squared_hinge(),
    "squared_hinge(1, 1)": lambda module: module.squared_hinge(1.0, 1.0),
}
losses = pytest.mark.parametrize("name", LOSSES)


def ranked(margin: Any, beta: float) -> Any:
    return torch.logaddexp(-beta * margin, torch.zeros_like(margin))


def gated(m: Any, a: Any, gamma: float, tau: Any, kappa: Any, beta: float) -> Any:
    positive = gamma / (1 + torch.exp(-tau * (kappa - a.prior_positive))) * a.prior_positive
    negative = gamma / (1 + torch.exp(-tau * (kappa - a.prior_negative))) * a.prior_negative
    return ranked(m + positive - negative, beta)


def auxiliary(m: Any, prior: Any, a: Any, gamma: float, beta: float, weight: float, growth: float) -> Any:
    residual = torch.ones_like(prior)
    if a.layer > 0:
        residual = torch.sigmoid(-beta * prior)
        residual = residual / residual.mean()
    grown = weight * (1 + growth * a.layer / (a.depth - 1)) if a.depth > 1 else weight
    return ranked(m + gamma * prior, beta) + grown * residual.detach() * ranked(m, beta)


def compensation(m: Any, prior: Any, a: Any, gamma: float, beta: float, c: float, rho: float, eps: float) -> Any:
    own, cumulative = torch.sigmoid(-beta * m), torch.sigmoid(-beta * (m + gamma * prior))
    target = c * (1 + rho * a.layer / (a.depth - 1)) if a.depth > 1 else c
    missing = (target - cumulative / (own + (eps if a.layer else 0))).clamp(min=0)
    return ranked(m + gamma * prior, beta) + missing.detach() * ranked(m, beta)


EQUATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "cumulative": lambda m, p, a: ranked(m + p, 4),
    "cumulative(0.7, 1)": lambda m, p, a: ranked(m + 0.7 * p, 1),
    "per_block": lambda m, p, a: ranked(m, 4),
    "hardness_gated": lambda m, p, a: gated(m, a, 0.7, 1, 0, 4),
    "hardness_gated(0.5, 2, 0.3, 1)": lambda m, p, a: gated(m, a, 0.5, 2, 0.3, 1),
    "depth_scaled_auxiliary": lambda m, p, a: auxiliary(m, p, a, 0.7, 4, 0.25, 3),
    "depth_scaled_auxiliary(1, 1, 0.5, 1)": lambda m, p, a: auxiliary(m, p, a, 1, 1, 0.5, 1),
    "compensated": lambda m, p, a: compensation(m, p, a, 0.7, 4, 1, 0, 1e-6),
    "compensated(1, 1, 1.5, 0.5, 0)": lambda m, p, a: compensation(m, p, a, 1, 1, 1.5, 0.5, 0),
    "compensated(1, 1, 1, 0, 0.1)": lambda m, p, a: compensation(m, p, a, 1, 1, 1, 0, 0.1),
    "squared_hinge": lambda m, p, a: (2 - m - 0.7 * p).clamp(min=0) ** 2,
    "squared_hinge(1, 1)": lambda m, p, a: (1 - m - p).clamp(min=0) ** 2,
}


def on(side: Side, loss: Any, layer: Any) -> Any:
    """The credit of a layer's goodness on a side, as NumPy arrays."""
    return side.results(loss(side.pair_losses.LayerGoodness(*side.operands(layer))))


def layer_at(margin: Any, prior: Any, layer: int = 1, depth: int = 4) -> Any:
    """A layer's goodness with these margins, all of them in the positive stream."""
    margin, prior = np.broadcast_arrays(np.atleast_1d(margin).astype(float), np.atleast_1d(prior).astype(float))
    zero = np.zeros_like(margin)
    return (layer, depth, 1.0, margin.copy(), zero, prior.copy(), zero)


def s(u: Any, beta: float = 4.0) -> Any:
    """sigmoid(-beta u)."""
    return np.exp(-np.logaddexp(0, beta * u))


@losses
@given(layer=layer_goodness())
def test_twin(twin: Side, compare: Comparison, name: str, layer: Any) -> None:
    def credit(side: Side, layer: Any) -> Any:
        return LOSSES[name](side.cumulative_goodness)(side.pair_losses.LayerGoodness(*layer))

    compare(twin, name, credit, layer)


@losses
@given(layer=layer_goodness())
def test_slopes_are_those_of_the_equation(side: Side, name: str, layer: Any) -> None:
    layer = side.results(side.operands(layer))
    if "compensated" in name:  # whose equation, by its letter, is 0 / 0 for large margins
        layer = layer._replace(**{field: getattr(layer, field) / size_of(layer) for field in layer._fields[3:]})
        layer = side.results(side.operands(layer))
    credit = on(side, LOSSES[name](side.cumulative_goodness), layer)
    tensors = layer._replace(**{field: torch.from_numpy(getattr(layer, field)) for field in layer._fields[3:]})
    positive, negative = tensors.positive.requires_grad_(), tensors.negative.requires_grad_()
    prior = tensors.prior_positive - tensors.prior_negative
    loss = EQUATIONS[name](positive - negative, prior, tensors)
    loss.sum().backward()
    limit = 256 * side.eps * size_of(layer)
    if "hinge" in name:
        limit *= size_of(layer)
    if "auxiliary" in name:
        limit *= len(prior)
    assert np.allclose(credit.loss, loss.detach(), rtol=0, atol=4 * limit * size_of(layer)), "loss"
    assert np.allclose(credit.positive, positive.grad, rtol=0, atol=4 * limit), "slope of the positive stream"
    assert np.allclose(credit.negative, negative.grad, rtol=0, atol=4 * limit), "slope of the negative stream"


@losses
@pytest.mark.parametrize("size", [200.0, 1e4, 1e15, 1e30])
def test_finite_for_any_goodness(side: Side, name: str, size: float) -> None:
    """The square of a hinge excepted, which leaves the range of single precision."""
    if "hinge" in name and size > 1e15:
        size = 1e15
    corners = np.array([(a, b, c, d) for a in (0, 1, -1) for b in (0, 1, -1) for c in (0, 1, -1) for d in (0, 1, -1)])
    for index in (0, 1):
        layer = (index, 3, 1.0, *(size * corners.T.astype(float)))
        credit = on(side, LOSSES[name](side.cumulative_goodness), layer)
        for field, array in credit._asdict().items():
            assert np.isfinite(array).all(), field
        assert np.all(credit.positive <= 0), "uphill"


# Attenuation


@st.composite
def margins(draw: st.DrawFn) -> Any:
    """Margins and priors of all signs, from far below a rounding error to far beyond the range of the exponential."""
    size, prior_size = (draw(st.sampled_from([1e-3, 1.0, 10.0, 100.0]), label=label) for label in ("size", "prior"))
    rng = draw(seeds())
    margin, prior = size * rng.standard_normal(40), prior_size * rng.standard_normal(40)
    return np.append(margin, 0.5), np.append(prior, 0.25)


betas, gammas = st.sampled_from([1.0, 4.0]), st.sampled_from([0.7, 1.0])


@given(case=margins(), beta=betas, gamma=gammas)
def test_log_attenuation(twin: Side, compare: Comparison, case: Any, beta: float, gamma: float) -> None:
    def call(side: Side, m: Any, p: Any) -> Any:
        return side.cumulative_goodness.log_attenuation(m, p, beta, gamma)

    compare(twin, "log_attenuation", call, *case)


@given(case=margins(), beta=betas, gamma=gammas)
def test_attenuation_and_its_bounds(twin: Side, compare: Comparison, case: Any, beta: float, gamma: float) -> None:
    margin, prior = np.minimum(np.abs(case[0]), 2), np.maximum(case[1], -0.5)  # where R is neither 0 nor immense

    def call(side: Side, m: Any, p: Any) -> Any:
        module = side.cumulative_goodness
        return (
            module.attenuation(m, p, beta, gamma),
            module.attenuation_bounds(p, beta, gamma),
            module.decay_bound(p, beta, gamma),
            module.gradient_bound(m, beta),
        )

    compare(twin, "attenuation", call, margin, prior)


@given(rng=seeds())
def test_metrics(twin: Side, compare: Comparison, rng: np.random.Generator) -> None:
    """Of seven batches at once, since one number can be near by chance.

    R is away from the limit and margins are away from 0: which side they are on is no chance.
    """
    attenuation = np.exp(rng.uniform(-3, 1, (7, 21)))
    attenuation[:, 0] = 1e-3
    margin, prior = rng.uniform(0.2, 2, (2, 7, 21)) * rng.choice([-1, 1, 1], (2, 7, 21))
    margin[:, 0] = prior[:, 0] = 1

    def call(side: Side, r: Any, m: Any, p: Any, places: Any) -> Any:
        module = side.cumulative_goodness
        batches = [
            (
                *module.free_riding_fraction(r[i]),
                module.starved_fraction(r[i]),
                module.coverage(m[i], p[i]),
                module.layer_separation(m[i] + 2, p[i]),
            )
            for i in range(7)
        ]
        return tuple(
            sum(metric * place for metric, place in zip(of, places, strict=True)) for of in zip(*batches, strict=True)
        )

    compare(twin, "metrics", call, attenuation, margin, prior, np.eye(7))


@given(case=margins(), beta=betas, gamma=gammas)
def test_attenuation_is_a_ratio_of_slopes(side: Side, case: Any, beta: float, gamma: float) -> None:
    """log R from the slopes of the cumulative and of the local loss, where both are within the range of numbers."""
    margin, prior = (np.clip(side.results(side.operands(x)), -4, 4) for x in case)
    module = side.cumulative_goodness
    log_r = side.results(module.log_attenuation(*side.operands((margin, prior)), beta, gamma))
    layer = layer_at(margin, prior)
    ours = on(side, module.cumulative(gamma, beta), layer).positive / on(side, module.per_block(beta), layer).positive
    assert np.allclose(log_r, np.log(ours), rtol=0, atol=256 * side.eps), "log R"


@given(case=margins(), beta=betas, gamma=gammas)
def test_bounds_of_the_attenuation(side: Side, case: Any, beta: float, gamma: float) -> None:
    """For all signs, over numbers that overflow and underflow; the slack is what rounding the exponents gives."""
    margin, prior = side.results(side.operands(case))
    module, operands = side.cumulative_goodness, side.operands(case)
    log_r, r = side.results(
        (module.log_attenuation(*operands, beta, gamma), module.attenuation(*operands, beta, gamma))
    )
    lower, upper = side.results(module.attenuation_bounds(operands[1], beta, gamma))
    decay = side.results(module.decay_bound(operands[1], beta, gamma))
    slack = 16 * side.eps * beta * (1 + np.abs(margin) + np.abs(prior))
    smallest = 2e-38 if side.eps > 1e-10 else 3e-308  # below which numbers have few digits, or none
    assert np.isfinite(log_r).all(), "log R"
    assert not np.isnan(r).any(), "R"
    assert np.all((r >= lower * np.exp(-slack) - smallest) | np.isinf(lower)), "below its lower bound"
    with np.errstate(over="ignore"):
        assert np.all(r <= upper * np.exp(slack)), "above its upper bound"
    covered = (margin >= 0) & (prior >= 0)
    assert np.all(r[covered] <= (decay * np.exp(slack) + smallest)[covered]), "above the exponential decay"
    gradient = -on(side, module.cumulative(gamma, beta), layer_at(margin, prior)).positive
    total = side.operands(margin + gamma * prior)
    bound = side.results(module.gradient_bound(total, beta))
    assert np.all(gradient <= bound * np.exp(2 * slack) + smallest), "gradient above its bound"


def test_limits_of_the_attenuation(side: Side) -> None:
    """Monotone in the margin from 1 to e^(-beta gamma P): falling for a prior above 0, rising for one below."""
    margin = np.linspace(-12, 12, 241)
    for prior in (2.0, 0.1, -0.1, -2.0):
        operands = side.operands((margin, np.full_like(margin, prior)))
        log_r = side.results(side.cumulative_goodness.log_attenuation(*operands, 4.0, 0.5))
        slack = 64 * side.eps * 50
        assert abs(log_r[0]) <= slack + 1e-15, "not 1 for a layer that is wrong"
        assert abs(log_r[-1] + 2 * prior) <= slack, "not e^(-beta gamma P) for a layer that is right"
        assert np.all(np.diff(log_r) * np.sign(prior) <= slack), "not monotone"


@pytest.mark.parametrize(
    ("margin", "prior", "log_r"), [(30.0, 50.0, -200.0), (30.0, 0.5, -2.0), (1e30, 1e30, -4e30), (1e30, -1.0, 4.0)]
)
def test_attenuation_of_large_margins(side: Side, margin: float, prior: float, log_r: float) -> None:
    """For m > 0 it is e^(-beta gamma P), though both exponentials are infinite; the twin keeps digits at any margin."""
    operands = side.operands((np.array([margin]), np.array([prior])))
    ours = side.results(side.cumulative_goodness.log_attenuation(*operands, 4.0, 1.0))[0]
    lost = 0 if side.name == "twin" and side.is_ours else 8 * side.eps * margin
    assert abs(ours - log_r) <= 8 * side.eps * abs(log_r) + lost, "log R"
    r = side.results(side.cumulative_goodness.attenuation(*operands, 4.0, 1.0))[0]
    if log_r == -200 and side.eps < 1e-10:
        assert abs(r / math.exp(-200) - 1) < 1e-12, "R"
    assert not math.isnan(r)


def test_the_worked_example(side: Side) -> None:
    """gamma = 1, beta = 4, P = 2, m = 0: R = 2 / (1 + e^8) = 6.7e-4; gradients 2 and 1.3e-3."""
    module, layer = side.cumulative_goodness, layer_at(0.0, 2.0)
    r = side.results(module.attenuation(*side.operands((np.zeros(1), np.full(1, 2.0))), 4.0, 1.0))[0]
    assert abs(r - 2 / (1 + math.exp(8))) <= 64 * side.eps * r
    assert f"{2 / (1 + math.exp(8)):.1e}" == "6.7e-04"
    local, total = on(side, module.per_block(), layer).positive[0], on(side, module.cumulative(), layer).positive[0]
    assert abs(local + 2) <= 8 * side.eps, "local gradient"
    assert abs(total + 4 / (1 + math.exp(8))) <= 64 * side.eps * 1.4e-3, "cumulative gradient"
    assert f"{4 / (1 + math.exp(8)):.1e}" == "1.3e-03"


def test_metrics_by_hand(side: Side) -> None:
    module = side.cumulative_goodness
    r = side.operands(np.array([0.0, 0.5, 1.0, 2.0, np.inf]))
    fraction, half_width = side.results(module.free_riding_fraction(r))
    assert abs(fraction - 0.3) <= 4 * side.eps, "free-riding fraction"
    # lost: 1, 0.5, 0, 0, 0; squared deviations 0.49 + 0.04 + 3 * 0.09 = 0.8, of 4 degrees of freedom
    assert abs(half_width - 1.96 * math.sqrt(0.2 / 5)) <= 8 * side.eps, "half-width"
    starved = module.starved_fraction(side.operands(np.array([0.0, 1e-3, 0.5, 2.0])))
    assert side.results(starved) == 0.5, "starved"
    assert side.results(module.starved_fraction(side.operands(np.array([0.0, 0.25, 0.5, 2.0])), 0.5)) == 0.75
    margin, prior = side.operands((np.array([1.0, 0.0, -1.0, 1.0]), np.array([0.0, 2.0, 1.0, -1.0])))
    assert side.results(module.coverage(margin, prior)) == 0.5, "coverage"
    assert side.results(module.layer_separation(margin, prior)) == -0.25, "separation"


def test_an_interval_of_two_samples(side: Side) -> None:
    """The fewest that have a deviation: lost are 1 and 1/2, whose squared deviations, 1/8 in all, have 1 degree."""
    fraction, half_width = side.results(
        side.cumulative_goodness.free_riding_fraction(side.operands(np.array([0, 0.5])))
    )
    assert fraction == 0.75, "free-riding fraction"
    assert math.isclose(half_width, 1.96 * math.sqrt(0.125 / 2), rel_tol=8 * side.eps), "half-width"


def test_no_interval_of_one_sample(side: Side) -> None:
    with side.refuses("attenuation: 1 samples, expected 2 or more"):
        side.cumulative_goodness.free_riding_fraction(side.operands(np.ones(1)))


# Remedies


@given(layer=layer_goodness(), beta=betas)
def test_without_gamma_all_is_local(side: Side, layer: Any, beta: float) -> None:
    """gamma = 0 is the loss per block, SymBa's; gated or not."""
    module = side.cumulative_goodness
    local = on(side, module.per_block(beta), layer)
    symba = on(side, side.pair_losses.symba(beta), layer)
    limit = 64 * side.eps * size_of(layer)
    for loss in (module.cumulative(0.0, beta), module.hardness_gated(0.0, beta=beta)):
        for name, a, b, c in zip(local._fields, local, on(side, loss, layer), symba, strict=True):
            assert np.allclose(a, b, rtol=0, atol=limit), name
            assert np.array_equal(a, c), name
    r = side.results(module.attenuation(*side.operands((layer.positive, layer.prior_positive)), beta, 0.0))
    assert np.array_equal(r, np.ones_like(r)), "attenuation without gamma"


@given(layer=layer_goodness())
def test_the_prior_is_that_of_the_other_layers(side: Side, layer: Any) -> None:
    """Twice the prior is twice gamma, for any margin of the layer's own."""
    module = side.cumulative_goodness
    doubled = layer._replace(prior_positive=2 * layer.prior_positive, prior_negative=2 * layer.prior_negative)
    ours, theirs = on(side, module.cumulative(0.5), doubled), on(side, module.cumulative(1.0), layer)
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        assert np.allclose(a, b, rtol=0, atol=64 * side.eps * size_of(layer)), name


def test_easy_samples_lose_the_cumulative_term_and_hard_ones_keep_it(side: Side) -> None:
    """Each stream has a gate of its own: by its own earlier goodness, closed above kappa and open below."""
    module = side.cumulative_goodness
    loss = module.hardness_gated(0.5, 4.0, 1.0, 1.0)

    def slope(prior_positive: float, prior_negative: float) -> float:
        arrays = (np.array([x]) for x in (0.25, 0.0, prior_positive, prior_negative))
        return float(on(side, loss, (1, 2, 1.0, *arrays)).negative[0])

    for positive, negative, margin in (
        (20.0, 0.0, 0.25),  # the positive stream is easy
        (0.0, 20.0, 0.25),  # the negative stream is
        (-3.0, 20.0, 0.25 - 0.5 * 3.0),  # the positive stream is hard
        (20.0, -3.0, 0.25 + 0.5 * 3.0),  # the negative stream is
        (1.0, 20.0, 0.25 + 0.5 / 2),  # half open at kappa
        (0.0, 1.0, 0.25 - 0.5 / 2),
    ):
        assert abs(slope(positive, negative) - 1 / (1 + math.exp(margin))) < 1e-5 + 16 * side.eps, "gate"


@given(layer=layer_goodness(), raw_tau=st.sampled_from([-1.0, 0.5, 3.0]), kappa=st.sampled_from([-0.5, 0.3]))
def test_gate_gradient(twin: Side, compare: Comparison, layer: Any, raw_tau: float, kappa: float) -> None:
    def gradient(side: Side, layer: Any, raw_tau: Any, kappa: Any) -> Any:
        layer = side.pair_losses.LayerGoodness(*layer)
        return side.cumulative_goodness.gate_gradient(layer, raw_tau, kappa, 0.5, 1.0)

    compare(twin, "gate_gradient", gradient, layer, np.array(raw_tau), np.array(kappa))


@given(layer=layer_goodness(), raw_tau=st.sampled_from([-1.0, 0.5, 3.0]), kappa=st.sampled_from([-0.5, 0.3]))
def test_gate_gradient_is_that_of_the_loss(side: Side, layer: Any, raw_tau: float, kappa: float) -> None:
    """Autograd through tau = softplus(raw_tau), sample by sample."""
    layer = side.results(side.operands(layer))
    layer = layer._replace(**{field: 2 * getattr(layer, field) / size_of(layer) for field in layer._fields[3:]})
    layer = side.results(side.operands(layer))
    operand = side.pair_losses.LayerGoodness(*side.operands(layer))
    learnt = side.operands((np.array(raw_tau), np.array(kappa)))
    kept = side.results(learnt)
    ours = side.results(side.cumulative_goodness.gate_gradient(operand, *learnt, 0.5, 1.0))
    tensors = layer._replace(**{field: torch.from_numpy(getattr(layer, field)) for field in layer._fields[3:]})
    for b in range(len(layer.positive)):
        raw, threshold = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in kept)
        sample = tensors._replace(**{field: getattr(tensors, field)[b] for field in layer._fields[3:]})
        gated(sample.positive - sample.negative, sample, 0.5, torch.log1p(raw.exp()), threshold, 1.0).backward()
        assert abs(ours[0][b] - raw.grad) <= 256 * side.eps, "by tau"
        assert abs(ours[1][b] - threshold.grad) <= 256 * side.eps, "by kappa"


@pytest.mark.parametrize(("layer", "weight"), [(0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0)])
def test_weights_of_the_auxiliary_by_depth(side: Side, layer: int, weight: float) -> None:
    """0.25, 0.5, 0.75, 1 in four layers, where all samples are alike; 0.25 in a single one."""
    loss = side.cumulative_goodness.depth_scaled_auxiliary()
    for index, depth, expected in ((layer, 4, weight), (0, 1, 0.25)):
        credit = on(side, loss, layer_at(np.zeros(3), np.full(3, 1.0), index, depth))
        own = -credit.positive - 4 * s(0.7)
        assert np.allclose(own, 2 * expected, rtol=32 * side.eps), "weight of the auxiliary"


@pytest.mark.parametrize("level", [-50.0, 0.0, 5.0, 50.0, 1e30])
def test_residual_weights_have_mean_one(side: Side, level: float) -> None:
    """Even where all samples are told apart below, and s(P) is nothing; the harder sample has the larger weight."""
    prior = level + np.array([0.0, 0.5, 1.0, 4.0])
    credit = on(side, side.cumulative_goodness.depth_scaled_auxiliary(0.0, 4.0, 1.0, 0.0), layer_at(np.zeros(4), prior))
    weights = -credit.positive / 2 - 1
    assert abs(weights.mean() - 1) <= 16 * side.eps, "mean weight"
    assert np.all(np.diff(weights) <= 0), "the harder sample has the larger weight"
    if level == 50.0:
        kept = side.results(side.operands(prior))
        assert np.allclose(weights / weights[0], np.exp(-4 * (kept - kept[0])), atol=64 * side.eps * 200), "s(P)"


@given(layer=layer_goodness(), c=st.sampled_from([1.0, 1.5]), eps=st.sampled_from([1e-6, 0.1, 0.0]))
def test_compensated_gradient(side: Side, layer: Any, c: float, eps: float) -> None:
    """-beta (c s(m) + s(M) eps / (s(m) + eps)) where the bracket is positive, else that of the cumulative loss."""
    layer = layer._replace(layer=1, depth=3, **{f: getattr(layer, f) / size_of(layer) for f in layer._fields[3:]})
    layer = side.results(side.operands(layer))
    margin, prior = layer.positive - layer.negative, layer.prior_positive - layer.prior_negative
    own, total = s(margin), s(margin + 0.7 * prior)
    expected = np.maximum(c * own + (total * eps / (own + eps) if eps else 0), total)
    gradient = -on(side, side.cumulative_goodness.compensated(0.7, 4.0, c, 0.0, eps), layer).positive
    assert np.allclose(gradient, 4 * expected, rtol=0, atol=256 * side.eps), "compensated gradient"


@pytest.mark.parametrize(("margin", "ratio"), [(3.5, "1.55"), (5.0, "2.00"), (0.0, "1.00")])
def test_what_the_published_eps_does(side: Side, margin: float, ratio: str) -> None:
    """With P = 0 nothing is missing; the local gradient is given back in part, in full at m = 5. Not so in layer 0."""
    module = side.cumulative_goodness
    expected = 1 + 1e-6 / (s(margin) + 1e-6)
    assert f"{expected:.2f}" == ratio
    for layer, eps, factor in ((1, 1e-6, expected), (1, 0.0, 1.0), (0, 1e-6, 1.0)):
        at = layer_at(margin, 0.0, layer)
        ours = on(side, module.compensated(eps=eps), at).positive[0] / on(side, module.per_block(), at).positive[0]
        assert abs(ours - factor) <= 64 * side.eps * max(1, 4 * margin), f"layer {layer}, eps {eps}"


@pytest.mark.parametrize("margin", [0.0, 1.0, 20.0])
def test_compensation_restores_the_local_gradient(side: Side, margin: float) -> None:
    """c = 1 without eps, prior above 0: that of gamma = 0, however much was lost; grown by 1 + rho d / (L - 1)."""
    module, at = side.cumulative_goodness, layer_at(margin, [0.0, 1.0, 30.0], 2, 5)
    local = on(side, module.per_block(), at).positive
    exact = on(side, module.compensated(1.0, eps=0.0), at).positive
    assert np.allclose(exact, local, rtol=512 * side.eps), "local gradient"
    grown = on(side, module.compensated(1.0, rho=0.5, eps=0.0), at).positive
    assert np.allclose(grown, 1.25 * local, rtol=512 * side.eps), "growth with depth"
    wrong = layer_at(margin, [-1.0, -30.0], 2, 5)
    amplified = on(side, module.compensated(1.0, eps=0.0), wrong).positive
    assert np.array_equal(amplified, on(side, module.cumulative(1.0), wrong).positive), "bracket below 0"


def test_the_hinge_rests_beyond_its_target(side: Side) -> None:
    """On each sample's cumulative margin: 2 and more cost nothing, and earlier layers can pay for it."""
    credit = on(side, side.cumulative_goodness.squared_hinge(gamma=0.5), layer_at([1.5, 2.0, 0.0, 1.0], [0, 0, 4, -2]))
    assert np.array_equal(credit.loss, [0.25, 0, 0, 4])
    assert np.array_equal(credit.positive, [-1, 0, 0, -4])
    assert np.array_equal(credit.negative, [1, 0, 0, 4])


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"c": 0.0}, "c: 0.0, expected a positive number"), ({"eps": -1.0}, "eps: -1.0, expected 0 or more")],
)
def test_a_compensation_of_nothing_is_refused(side: Side, bad: dict[str, float], said: str) -> None:
    with side.refuses(said):
        side.cumulative_goodness.compensated(**bad)


def test_a_loss_of_the_twin_can_be_pickled(twin: Side) -> None:
    if not twin.is_ours:
        pytest.skip("another package may make them as it likes")
    for name, remedy in twin.cumulative_goodness.REMEDIES.items():
        ours, copy = on(twin, remedy(), layer_at(0.3, 1.0)), pickle.loads(pickle.dumps(remedy()))
        assert ours.positive == on(twin, copy, layer_at(0.3, 1.0)).positive, name
