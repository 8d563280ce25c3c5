"""Losses on scores: twin against reference, slopes against autograd of the equations, bounds and special cases."""

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.nn import functional

from prograde.equivalence_tests.sides import Side
from prograde.equivalence_tests.strategies import scored
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

LOSSES: dict[str, Callable[[Any], Any]] = {
    "cross_entropy": lambda module: module.cross_entropy(),
    "cross_entropy(0.1)": lambda module: module.cross_entropy(0.1),
    "cross_entropy(0, 3)": lambda module: module.cross_entropy(temperature=3.0),
    "positive_versus_negative": lambda module: module.positive_versus_negative(),
    "positive_versus_negative(0.5)": lambda module: module.positive_versus_negative(0.5),
    "mixed": lambda module: module.mixed(),
    "mixed(0.8, 1)": lambda module: module.mixed(0.8, 1.0),
    "cosine_margin": lambda module: module.cosine_margin(),
    "cosine_margin(3, 0.35)": lambda module: module.cosine_margin(3.0, 0.35),
    "smooth_margin": lambda module: module.smooth_margin(),
    "smooth_margin(0.7, 1.5)": lambda module: module.smooth_margin(0.7, 1.5),
}
losses = pytest.mark.parametrize("name", LOSSES)


def softplus(u: Any) -> Any:
    return torch.logaddexp(u, torch.zeros_like(u))


def hot(s: Any, y: Any) -> Any:
    """1 at the label: (batch, K)."""
    return functional.one_hot(y, s.shape[1]).to(s.dtype)


def parted(s: Any, y: Any) -> tuple[Any, Any]:
    """The label's score, (batch,), and all others, (batch, K - 1)."""
    chosen = hot(s, y).bool()
    return s[chosen], s[~chosen].view(len(s), -1)


def versus(s: Any, y: Any, theta: float) -> Any:
    own, others = parted(s, y)
    return (softplus(theta - own) + softplus(others.mean(dim=1) - theta)) / 2


def entropic(s: Any, y: Any, smoothing: float = 0.0) -> Any:
    """-sum_k t_k log p_k."""
    targets = (1 - smoothing) * hot(s, y) + smoothing / s.shape[1]
    return (targets * (s.logsumexp(dim=1, keepdim=True) - s)).sum(dim=1)


def margined(s: Any, y: Any, beta: float, margin: float) -> Any:
    own, others = parted(s, y)
    return softplus(beta * (margin + others.exp().sum(dim=1).log() - own)) / beta


EQUATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "cross_entropy": entropic,
    "cross_entropy(0.1)": lambda s, y: entropic(s, y, 0.1),
    "cross_entropy(0, 3)": lambda s, y: entropic(s / 3, y),
    "positive_versus_negative": lambda s, y: versus(s, y, 2.0),
    "positive_versus_negative(0.5)": lambda s, y: versus(s, y, 0.5),
    "mixed": lambda s, y: 0.28 * entropic(s, y) + 0.72 * versus(s, y, 2.0),
    "mixed(0.8, 1)": lambda s, y: 0.8 * entropic(s, y) + 0.2 * versus(s, y, 1.0),
    "cosine_margin": lambda s, y: entropic(20 * s, y),
    "cosine_margin(3, 0.35)": lambda s, y: entropic(3 * (s - 0.35 * hot(s, y)), y),
    "smooth_margin": lambda s, y: margined(s, y, 5.0, 0.5),
    "smooth_margin(0.7, 1.5)": lambda s, y: margined(s, y, 0.7, 1.5),
}


@losses
@given(case=scored())
def test_twin(twin: Side, compare: Comparison, name: str, case: Any) -> None:
    compare(twin, name, lambda side, s, y: LOSSES[name](side.score_losses)(s, y), *case)


def credit(side: Side, name: str, scores: Any, labels: Any) -> Any:
    return side.results(LOSSES[name](side.score_losses)(*side.operands((scores, labels))))


@losses
@given(case=scored())
def test_slopes_are_those_of_the_equation(side: Side, name: str, case: Any) -> None:
    scores, labels = side.results(side.operands(case))
    found = credit(side, name, scores, labels)
    tensor = torch.tensor(scores, requires_grad=True)
    loss = EQUATIONS[name](tensor, torch.tensor(labels))
    loss.sum().backward()
    steep = 20 if name == "cosine_margin" else 5
    limit = 16 * side.eps * steep * (1 + np.abs(scores).max())
    assert np.abs(found.loss - loss.detach().cpu().numpy()).max() <= limit, "loss"
    assert np.abs(found.scores - tensor.grad.cpu().numpy()).max() <= steep * limit, "slope"


@losses
@given(case=scored())
def test_who_counts_differences_alone(side: Side, name: str, case: Any) -> None:
    """The slopes of all classes sum to 0 where only differences of scores count, not where a threshold does."""
    found = credit(side, name, *case)
    summed = np.abs(found.scores.sum(axis=1))
    slack = 16 * side.eps * (20 if name == "cosine_margin" else 5)
    if name.startswith(("positive", "mixed")):
        right = credit(side, name, np.array([[0.0, 0.0, 0.0]]), np.array([1]))
        assert abs(right.scores.sum()) > 0.02, "a threshold that moves with the scores"
    else:
        assert summed.max() <= slack, "slopes do not sum to 0"
    own = np.take_along_axis(found.scores, case[1][:, None], axis=1)
    others = found.scores.copy()
    np.put_along_axis(others, case[1][:, None], 0, axis=1)
    if "0.1" not in name:
        assert own.max() <= 0, "the label's score is raised"
        assert others.min() >= 0, "others are lowered"


@losses
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_finite_for_any_scores(side: Side, name: str, size: float) -> None:
    scores = size * np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [1.0, 1.0, -1.0]])
    found = credit(side, name, scores, np.zeros(3, int))
    assert np.isfinite(found.loss).all(), "loss"
    assert np.isfinite(found.scores).all(), "slope"
    assert found.loss[1] >= size / 4, "what is wrong costs what it is off by"
    if name in ("cross_entropy", "cosine_margin", "smooth_margin"):
        assert 0 <= found.loss[0] < 1e-12, "what is right costs nothing"


def test_a_wrong_average_of_many_does_not_cancel(side: Side) -> None:
    """The mean of the others is of the others: not of all, less the label's, which may be far larger."""
    scores = np.array([[1e30, 3.0, 1.0]])
    found = credit(side, "positive_versus_negative", scores, np.array([0]))
    assert math.isclose(found.loss[0], math.log(2) / 2, rel_tol=8 * side.eps), "mean of the others"
    assert np.allclose(found.scores, [[0, 1 / 8, 1 / 8]], atol=4 * side.eps), "mean of the others"


@given(case=scored())
def test_ends_of_the_mixture(side: Side, case: Any) -> None:
    operands = side.operands(case)
    module = side.score_losses
    one, other = (side.results(module.mixed(share, 1.5)(*operands)) for share in (1.0, 0.0))
    entropy = side.results(module.cross_entropy()(*operands))
    versus = side.results(module.positive_versus_negative(1.5)(*operands))
    for a, b in ((one, entropy), (other, versus)):
        assert np.allclose(a.loss, b.loss, rtol=8 * side.eps), "share"
        assert np.allclose(a.scores, b.scores, atol=8 * side.eps), "share"


@given(case=scored())
def test_smooth_margin_at_one_is_the_cosine_margin_at_one(side: Side, case: Any) -> None:
    """log(1 + sum e^(delta + s_k - s_y)); for a large beta it is the hinge max(0, delta + log sum exp s^- - s_y)."""
    operands = side.operands(case)
    smooth = side.results(side.score_losses.smooth_margin(1.0, 0.7)(*operands))
    cosine = side.results(side.score_losses.cosine_margin(1.0, 0.7)(*operands))
    scores, labels = side.results(operands)
    slack = 32 * side.eps * (1 + np.abs(scores).max())
    assert np.allclose(smooth.loss, cosine.loss, atol=slack), "beta of one"
    assert np.allclose(smooth.scores, cosine.scores, atol=slack), "beta of one"
    own, others = parted(torch.tensor(scores), torch.tensor(labels))
    hinge = np.maximum(0, (0.7 + others.logsumexp(dim=1) - own).cpu().numpy())
    steep = side.results(side.score_losses.smooth_margin(1e4, 0.7)(*operands))
    assert np.all(steep.loss >= hinge - slack), "below the hinge"
    assert np.all(steep.loss <= hinge + math.log(2) / 1e4 + slack), "far from the hinge"


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_bounds_for_cosines(side: Side, num_classes: int) -> None:
    """Which s = 1 for the label and -1 for all others reach."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, num_classes, 40)
    best = 2.0 * (np.arange(num_classes) == labels[:, None]) - 1
    drawn = rng.uniform(-1, 1, (40, num_classes))
    entropy = math.log1p((num_classes - 1) * math.exp(-2))
    margin = math.log1p(math.exp(5 * (0.5 + math.log(num_classes - 1) - 2))) / 5
    for name, least in (("cross_entropy", entropy), ("smooth_margin", margin)):
        assert np.allclose(credit(side, name, best, labels).loss, least, rtol=16 * side.eps), "bound not reached"
        assert credit(side, name, drawn, labels).loss.min() > least, "below the bound"


def test_a_margin_raises_the_loss_of_what_is_barely_right(side: Side) -> None:
    scores, labels = np.array([[0.5, 0.25]]), np.array([0])
    plain, strict = (
        side.results(side.score_losses.cosine_margin(8.0, margin)(*side.operands((scores, labels))))
        for margin in (0.0, 0.5)
    )
    assert math.isclose(plain.loss[0], math.log1p(math.exp(-2)), rel_tol=8 * side.eps), "no margin"
    assert math.isclose(strict.loss[0], math.log1p(math.exp(2)), rel_tol=8 * side.eps), "margin"


@pytest.mark.parametrize("name", ["positive_versus_negative", "mixed", "cosine_margin", "smooth_margin"])
def test_one_class_is_refused(side: Side, name: str) -> None:
    with side.refuses("scores: 1 class, expected 2 or more"):
        credit(side, name, np.ones((3, 1)), np.zeros(3, int))


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("cross_entropy", "temperature", 0.0), ("cross_entropy", "label_smoothing", 1.0),
     ("cross_entropy", "label_smoothing", -0.1), ("cosine_margin", "scale", -1.0), ("smooth_margin", "beta", 0.0)],
)  # fmt: skip
def test_settings_without_a_loss_are_refused(side: Side, name: str, setting: str, value: float) -> None:
    with side.refuses(f"{setting}: {value}, expected"):
        getattr(side.score_losses, name)(**{setting: value})


@losses
def test_a_loss_of_the_twin_can_be_pickled(twin: Side, name: str) -> None:
    if not twin.is_ours:
        pytest.skip("another package may make them as it likes")
    loss = LOSSES[name](twin.score_losses)
    operands = twin.operands((np.array([[0.3, 0.7, -1.0]]), np.array([1])))
    for a, b in zip(loss(*operands), pickle.loads(pickle.dumps(loss))(*operands), strict=True):
        assert np.array_equal(twin.results(a), twin.results(b))


@pytest.mark.usefixtures("ours_only")
@losses
def test_losses_have_the_dtype_of_the_scores(twin: Side, name: str) -> None:
    """Of float16 too, in which they are not computed."""
    scores, y = torch.linspace(-1, 1, 6, dtype=torch.float16).view(2, 3), torch.tensor([0, 2])
    found = LOSSES[name](twin.score_losses)(scores, y)
    assert [array.dtype for array in found] == [torch.float16] * 2
