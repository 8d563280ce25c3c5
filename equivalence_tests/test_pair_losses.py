"""Losses on two streams: twin against reference, slopes against autograd of the equations, limits and special cases."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import layer_goodness, size_of
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

LOSSES: dict[str, Callable[[Any], Any]] = {
    "threshold": lambda module: module.threshold(),
    "threshold(0.5)": lambda module: module.threshold(0.5),
    "symba": lambda module: module.symba(),
    "symba(0.5)": lambda module: module.symba(0.5),
    "smoothed_triplet": lambda module: module.smoothed_triplet(),
    "smoothed_triplet(2, -0.3)": lambda module: module.smoothed_triplet(2.0, -0.3),
    "two_thresholds": lambda module: module.two_thresholds(0.5, 1.5),
    "two_thresholds with a penalty": lambda module: module.two_thresholds(0.5, 1.5, 0.3),
    "collaboration": lambda module: module.collaboration(),
    "collaboration(0.5)": lambda module: module.collaboration(0.5),
}
losses = pytest.mark.parametrize("name", LOSSES)


def softplus(u: Any) -> Any:
    return torch.logaddexp(u, torch.zeros_like(u))


EQUATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "threshold": lambda p, n, a: softplus(a.scale - p) + softplus(n - a.scale),
    "threshold(0.5)": lambda p, n, a: softplus(0.5 * a.scale - p) + softplus(n - 0.5 * a.scale),
    "symba": lambda p, n, a: softplus(-4 * (p - n)),
    "symba(0.5)": lambda p, n, a: softplus(-(p - n) / 2),
    "smoothed_triplet": lambda p, n, a: softplus(5 * (n - p) + 2.5) / 5,
    "smoothed_triplet(2, -0.3)": lambda p, n, a: softplus(2 * (n - p) - 0.6) / 2,
    "two_thresholds": lambda p, n, a: softplus(0.5 * a.scale - p) + softplus(n - 1.5 * a.scale),
    "two_thresholds with a penalty": lambda p, n, a: (
        softplus(0.5 * a.scale - p) + softplus(n - 1.5 * a.scale) + 0.3 * p.abs()
    ),
    "collaboration": lambda p, n, a: (
        softplus(a.scale - p - a.prior_positive) + softplus(n + a.prior_negative - a.scale)
    ),
    "collaboration(0.5)": lambda p, n, a: (
        softplus(a.scale / 2 - p - a.prior_positive) + softplus(n + a.prior_negative - a.scale / 2)
    ),
}


@losses
@given(layer=layer_goodness())
def test_twin(twin: Side, compare: Comparison, name: str, layer: Any) -> None:
    def credit(side: Side, layer: Any) -> Any:
        return LOSSES[name](side.pair_losses)(side.pair_losses.LayerGoodness(*layer))

    compare(twin, name, credit, layer)


def on(side: Side, loss: Any, layer: Any) -> Any:
    """The credit of a layer's goodness on a side, as NumPy arrays."""
    return side.results(loss(side.pair_losses.LayerGoodness(*side.operands(layer))))


@losses
@given(layer=layer_goodness())
def test_slopes_are_those_of_the_equation(side: Side, name: str, layer: Any) -> None:
    layer = side.results(side.operands(layer))
    credit = on(side, LOSSES[name](side.pair_losses), layer)
    tensors = layer._replace(**{field: torch.from_numpy(getattr(layer, field)) for field in layer._fields[3:]})
    positive, negative = tensors.positive.requires_grad_(), tensors.negative.requires_grad_()
    loss = EQUATIONS[name](positive, negative, tensors)
    loss.sum().backward()
    limit = 64 * side.eps * size_of(layer)
    assert np.allclose(credit.loss, loss.detach(), rtol=0, atol=4 * limit), "loss"
    assert np.allclose(credit.positive, positive.grad, rtol=0, atol=4 * limit), "slope of the positive stream"
    assert np.allclose(credit.negative, negative.grad, rtol=0, atol=4 * limit), "slope of the negative stream"


@losses
@pytest.mark.parametrize("size", [200.0, 1e4, 1e30])
def test_finite_for_any_goodness(side: Side, name: str, size: float) -> None:
    corners = np.array([(a, b, c, d) for a in (0, 1, -1) for b in (0, 1, -1) for c in (0, 1) for d in (0, 1)])
    layer = (1, 3, 1.0, *(size * corners.T.astype(float)))
    credit = on(side, LOSSES[name](side.pair_losses), layer)
    for field, array in credit._asdict().items():
        assert np.isfinite(array).all(), field
    assert credit.loss.max() >= size / 4, "a stream on the wrong side costs what it is off by"


@pytest.mark.parametrize("u", [-200.0, -50.0, -25.0, 25.0, 200.0])
def test_far_tails(side: Side, u: float) -> None:
    """softplus(u) and its slope to relative precision, where log(1 + e^u) by its letter is 0 or not finite."""
    zero = np.zeros(1)
    loss = side.pair_losses.symba(1.0)
    credit = on(side, loss, (0, 1, 1.0, zero, np.array([u]), zero, zero))
    smallest = 1e-37 if side.eps > 1e-10 else 1e-300
    expected = max(u, 0) + np.log1p(np.exp(-abs(u)))
    assert abs(credit.loss[0] - expected) <= 8 * side.eps * expected + smallest, "softplus"
    slope = np.exp(min(u, 0)) / (1 + np.exp(-abs(u)))
    assert abs(credit.negative[0] - slope) <= 8 * side.eps * slope + smallest, "its slope"
    assert credit.positive[0] == -credit.negative[0]


@given(layer=layer_goodness())
def test_a_quiet_layer_is_the_mirror_of_an_active_one(side: Side, layer: Any) -> None:
    """The threshold loss on -g and -scale: softplus(g^+ - theta) + softplus(theta - g^-)."""
    mirrored = layer._replace(scale=-layer.scale, positive=-layer.positive, negative=-layer.negative)
    ours = on(side, side.pair_losses.threshold(), mirrored)
    swapped = layer._replace(positive=layer.negative, negative=layer.positive)
    theirs = on(side, side.pair_losses.threshold(), swapped)
    assert np.allclose(ours.loss, theirs.loss, rtol=16 * side.eps)
    assert np.allclose(ours.positive, -theirs.negative, rtol=16 * side.eps)
    assert np.allclose(ours.negative, -theirs.positive, rtol=16 * side.eps)


@given(layer=layer_goodness())
def test_slopes_of_rankings_are_opposite(side: Side, layer: Any) -> None:
    """And at most alpha, or 1; the threshold loss can be settled on one stream alone."""
    for loss, most in ((side.pair_losses.symba(), 4), (side.pair_losses.smoothed_triplet(), 1)):
        credit = on(side, loss, layer)
        assert np.array_equal(credit.positive, -credit.negative)
        assert np.all((credit.negative >= 0) & (credit.negative <= most))
    zero = np.zeros(1)
    settled = on(side, side.pair_losses.threshold(), (0, 1, 1.0, zero + 60, zero + 5, zero, zero))
    assert abs(settled.positive[0]) < 1e-20
    assert settled.negative[0] > 0.9


@given(layer=layer_goodness())
def test_limits_of_the_smoothed_triplet(side: Side, layer: Any) -> None:
    """Between max(0, .) and that plus log 2 / beta; without a margin, beta times it is SymBa."""
    layer = side.results(side.operands(layer))
    gap = layer.negative - layer.positive
    limit = 32 * side.eps * size_of(layer)
    for beta in (1.0, 5.0, 1e4):
        loss = on(side, side.pair_losses.smoothed_triplet(beta, 0.5), layer).loss
        hinge = np.maximum(gap + 0.5, 0)
        assert np.all(loss >= hinge - limit), "below the triplet"
        assert np.all(loss <= hinge + np.log(2) / beta + limit), "too far above the triplet"
    triplet = on(side, side.pair_losses.smoothed_triplet(4.0, 0.0), layer)
    symba = on(side, side.pair_losses.symba(4.0), layer)
    assert np.allclose(4 * triplet.loss, symba.loss, rtol=8 * side.eps)
    assert np.allclose(4 * triplet.positive, symba.positive, rtol=8 * side.eps)


@given(layer=layer_goodness())
def test_collaboration_is_the_threshold_loss_of_a_sum(side: Side, layer: Any) -> None:
    layer = side.results(side.operands(layer))
    summed = layer._replace(
        positive=layer.positive + layer.prior_positive, negative=layer.negative + layer.prior_negative
    )
    ours = on(side, side.pair_losses.collaboration(), layer)
    theirs = on(side, side.pair_losses.threshold(), summed)
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        assert np.allclose(a, b, rtol=0, atol=32 * side.eps * size_of(layer)), name


@losses
@given(layer=layer_goodness())
def test_who_asks_for_the_other_layers(side: Side, name: str, layer: Any) -> None:
    """Bit for bit: but for collaboration, a layer's credit does not depend on the others' goodness."""
    other = layer._replace(prior_positive=layer.prior_negative - 7, prior_negative=layer.prior_positive + 1)
    loss = LOSSES[name](side.pair_losses)
    ours, theirs = on(side, loss, layer), on(side, loss, other)
    same = all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert same != name.startswith("collaboration"), "prior"


@given(layer=layer_goodness())
def test_equal_thresholds_are_one(side: Side, layer: Any) -> None:
    """The penalty adds its slope by the sign of the positive goodness, and nothing to the negative stream."""
    one = on(side, side.pair_losses.threshold(1.5), layer)
    two = on(side, side.pair_losses.two_thresholds(1.5, 1.5), layer)
    for name, a, b in zip(one._fields, one, two, strict=True):
        assert np.array_equal(a, b), name
    paid = on(side, side.pair_losses.two_thresholds(1.5, 1.5, 8.0), layer)
    assert np.array_equal(paid.negative, two.negative)
    assert np.allclose(paid.positive, two.positive + 8 * np.sign(layer.positive), rtol=4 * side.eps)


@losses
def test_a_loss_of_the_twin_can_be_pickled(twin: Side, name: str) -> None:
    if not twin.is_ours:
        pytest.skip("another package may make them as it likes")
    loss = LOSSES[name](twin.pair_losses)
    layer = (1, 2, 1.0, *np.array([[0.3], [0.7], [2.0], [1.0]]))
    for a, b in zip(on(twin, loss, layer), on(twin, pickle.loads(pickle.dumps(loss)), layer), strict=True):
        assert np.array_equal(a, b)
