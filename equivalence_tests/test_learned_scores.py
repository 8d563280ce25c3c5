"""Learned anchors: what assignments and prototypes promise. Twins and gradients are in `test_scores`."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import norm

from prograde.equivalence_tests.sides import Side, TwinSide
from prograde.equivalence_tests.strategies import seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke


@st.composite
def assignments(draw: st.DrawFn) -> tuple[Any, Any]:
    """Logits (C, K) and a log temperature, whose bounds are far away."""
    channels, num_classes = draw(st.sampled_from(((3, 2), (5, 3), (12, 4), (33, 10))), label="channels, classes")
    rng = draw(seeds())
    return rng.uniform(0.1, 3) * rng.standard_normal((channels, num_classes)), np.asarray(rng.uniform(-1, 1))


SETTINGS = {
    "as published": {},
    "entropy": {"entropy": 0.7, "orthogonality": 0.0},
    "orthogonality": {"entropy": 0.0, "orthogonality": 300.0},
    "scaled": {"entropy": 0.0, "orthogonality": 0.7, "scaled": True},
    "cooled": {"entropy": 0.3, "orthogonality": 0.7, "scaled": True, "cooling": 0.6},
}
settings = pytest.mark.parametrize("setting", SETTINGS)


@settings
@given(case=assignments())
def test_penalties_of_the_twin(twin: Side, compare: Comparison, setting: str, case: Any) -> None:
    def penalty(side: Side, *parameters: Any) -> Any:
        return side.learned_scores.channel_class(**SETTINGS[setting]).penalty(parameters)

    # Operations, one upon another, between the parameters and the result.
    compare(twin, f"penalty {setting}", penalty, *case)
    cooling = SETTINGS[setting].get("cooling", 1.0)
    compare(twin, "assignment", lambda side, *case: side.learned_scores.assignment(*case, cooling), *case)


def expected_penalty(
    logits: Any, log_temperature: Any, entropy: float = 1e-2, orthogonality: float = 1e-3, scaled: bool = False,
    cooling: float = 1.0,
) -> float:  # fmt: skip
    """Channel by channel and pair by pair, as the authors' code has it."""
    channels, num_classes = logits.shape
    powers = np.exp(logits / (cooling * np.exp(log_temperature)))
    m = powers / powers.sum(axis=1, keepdims=True)
    columns = [m[:, k] / np.sqrt(m[:, k] @ m[:, k]) for k in range(num_classes)]
    overlaps = [(columns[k] @ columns[j] - (k == j)) ** 2 for k in range(num_classes) for j in range(num_classes)]
    entropies = sum(-row @ np.log(row) for row in m)
    share = 1 if scaled else 1 / (num_classes**2 * channels)
    return float(entropy * entropies / num_classes + orthogonality * share * np.mean(overlaps))


@settings
@given(case=assignments(), rng=seeds())
def test_penalties_are_those_of_the_definition(side: Side, setting: str, case: Any, rng: np.random.Generator) -> None:
    """Central differences in float64, in random directions."""
    score = side.learned_scores.channel_class(**SETTINGS[setting])
    logits, tau = side.results(side.operands(case))
    cost, found = side.results(score.penalty(side.operands(case)))
    truth = expected_penalty(logits, tau, **SETTINGS[setting])
    weight = sum(SETTINGS[setting].get(name, 1e-2) for name in ("entropy", "orthogonality"))
    scale = weight * max(1, len(logits) / logits.shape[1]) if setting != "orthogonality" else 300.0
    assert abs(cost - truth) <= 32 * side.eps * scale, "penalty"
    for which, gradient in enumerate(found):
        assert gradient.shape == case[which].shape
        direction = rng.standard_normal(gradient.shape)
        slopes = []
        for sign in (1, -1):
            moved = [a + sign * 1e-6 * direction if i == which else a for i, a in enumerate((logits, tau))]
            slopes.append(expected_penalty(*moved, **SETTINGS[setting]))
        error = abs((slopes[0] - slopes[1]) / 2e-6 - np.sum(gradient * direction))
        size = scale * (1 + np.abs(direction).max()) * (1 + np.abs(logits).max()) * 4
        assert error <= (1e-8 + 8 * side.eps) * size, f"gradient of the penalty by operand {which}"


@given(case=assignments())
def test_every_channel_is_a_distribution_over_classes(side: Side, case: Any) -> None:
    m = side.results(side.learned_scores.assignment(*side.operands(case)))
    assert np.abs(m.sum(axis=1) - 1).max() <= 16 * side.eps, "rows do not sum to 1"
    assert m.min() > 0
    likeliest = side.results(side.operands(case[0])).argmax(axis=1)[:, None]
    assert np.array_equal(np.take_along_axis(m, likeliest, axis=1)[:, 0], m.max(axis=1)), "order of the classes"


@pytest.mark.parametrize(("log_temperature", "temperature"), [(-9.0, 0.1), (0.0, 1.0), (9.0, 100.0)])
def test_the_temperature_has_bounds(side: Side, log_temperature: float, temperature: float) -> None:
    """Beyond them nothing more is learned of it; cooling goes on below the lower one."""
    logits = np.array([[0.3, 0.0], [-0.25, 0.0], [0.125, 0.0]])
    parameters = side.operands((logits, np.array(log_temperature)))
    gradient, h = side.operands((np.array([[1.0, -1.0]]), np.array([[1.0, 2.0, 3.0]])))
    for cooling in (1.0, 0.5):
        m = side.results(side.learned_scores.assignment(*parameters, cooling))
        expected = 1 / (1 + np.exp(-side.results(parameters[0])[:, 0] / (cooling * temperature)))
        assert np.allclose(m[:, 0], expected, rtol=8 * side.eps), "temperature"
    score = side.learned_scores.channel_class(entropy=0.5, orthogonality=0.5)
    inside = log_temperature == 0
    assert (float(score.credit(h, parameters, gradient).parameters[1]) != 0) == inside, "gradient beyond the bounds"
    assert (float(score.penalty(parameters)[1][1]) != 0) == inside, "gradient beyond the bounds"


@given(rng=seeds(), smoothing=st.sampled_from([0.0, 0.1]))
def test_a_uniform_assignment_gives_activities_no_gradient(
    side: Side, rng: np.random.Generator, smoothing: float
) -> None:
    """Constant logits, as published: dL/dh = M (p - t) is the sum over classes of p - t, which is 0. Noise helps."""
    h, labels = side.operands((rng.uniform(0.2, 1, (8, 12, 3, 3)), np.arange(8) % 4))
    score = side.learned_scores.channel_class()
    loss = side.score_losses.cross_entropy(smoothing)

    def credit(logits: Any) -> Any:
        parameters = side.operands((logits, np.array(math.log(10))))
        return side.results(score.credit(h, parameters, loss(score.value(h, parameters), labels).scores))

    stalled = credit(np.full((12, 4), 0.5))
    assert norm(stalled.activities) <= 16 * side.eps, "a gradient for a uniform assignment"
    assert norm(stalled.parameters[0]) > 1e-3, "logits do learn"
    noisy = credit(0.5 * rng.standard_normal((12, 4)))
    assert norm(noisy.activities) > 100 * 2.0**-52 + 1e-4, "noise does not start it"


@pytest.mark.parametrize(("channels", "least"), [(100, 9e-8), (800, 1.125e-8)])
def test_published_orthogonality_is_nil(side: Side, channels: int, least: float) -> None:
    """lambda (1 - 1 / K) / (K^2 C) at most, which uniform rows have; scaled, it is 9e-4, and 0 for K specialists."""
    rng = np.random.default_rng(1)
    uniform = np.full((channels, 10), 0.5)
    specialists = 40.0 * np.eye(10)[np.arange(channels) % 10]

    def cost(logits: Any, scaled: bool) -> float:
        score = side.learned_scores.channel_class(entropy=0.0, scaled=scaled)
        return float(score.penalty(side.operands((logits, np.array(0.0))))[0])

    for logits in (uniform, specialists, *rng.standard_normal((5, channels, 10))):
        assert cost(logits, False) <= least * (1 + channels * side.eps), "orthogonality as published"
    assert math.isclose(cost(uniform, False), least, rel_tol=channels * side.eps), "orthogonality as published"
    assert math.isclose(cost(uniform, True), 9e-4, rel_tol=channels * side.eps), "scaled orthogonality"
    assert cost(specialists, True) <= 1e-3 * 32 * side.eps, "orthogonality of specialists"


@pytest.mark.parametrize(("channels", "rounded"), [(100, 0.23), (800, 1.84)])
def test_entropy_grows_with_the_channels(side: Side, channels: int, rounded: float) -> None:
    """lambda C / K log K where rows are uniform, as large as a cross entropy; 0 for one-hot rows, and falling."""
    score = side.learned_scores.channel_class(orthogonality=0.0)
    uniform = 1e-2 * channels / 10 * math.log(10)
    assert round(uniform, 2) == rounded
    cost, _ = score.penalty(side.operands((np.full((channels, 10), 0.5), np.array(math.log(10)))))
    assert math.isclose(float(cost), uniform, rel_tol=64 * side.eps), "entropy of uniform rows"
    hard, _ = score.penalty(side.operands((60.0 * np.eye(10)[np.arange(channels) % 10], np.array(0.0))))
    assert 0 <= float(hard) < 1e-20, "entropy of one-hot rows"
    logits = np.random.default_rng(2).standard_normal((channels, 10))
    for _ in range(3):
        before, (gradient, _) = side.results(score.penalty(side.operands((logits, np.array(0.0)))))
        logits = logits - 200 * gradient
        after, _ = side.results(score.penalty(side.operands((logits, np.array(0.0)))))
        assert 0 < after < before < uniform, "entropy does not fall"


def test_pooling_by_hand(side: Side) -> None:
    """Channel 0 is of class 0, channel 1 of class 1; equal positions move an extreme alike."""
    h = side.operands(np.array([[[[2.0, 0.0], [2.0, 0.0]], [[-1.0, 3.0], [0.0, 6.0]]]]))
    parameters = side.operands((np.array([[80.0, 0.0], [0.0, 80.0]]), np.array(0.0)))
    score = side.learned_scores.channel_class((0.5, 0.25, -0.125))
    assert side.results(score.value(h, parameters)).tolist() == [[1.0, 2.625]], "pooling"
    found = score.credit(h, parameters, side.operands(np.array([[8.0, 16.0]]))).activities
    expected = [[[[2.0, 0.5], [2.0, 0.5]], [[0.0, 2.0], [2.0, 6.0]]]]
    assert side.results(found).tolist() == expected, "equal positions"


@st.composite
def anchors(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """Activities (batch, n), prototypes (K, m, n) and dL/ds."""
    batch, size = draw(st.sampled_from((1, 7)), label="batch"), draw(st.sampled_from((2, 5, 24)), label="size")
    num_classes, per_class = draw(st.sampled_from(((2, 1), (3, 4), (10, 2))), label="classes, prototypes of each")
    rng = draw(seeds())
    return (
        rng.standard_normal((batch, size)),
        rng.standard_normal((num_classes, per_class, size)),
        rng.standard_normal((batch, num_classes)),
    )


@given(case=anchors(), sharpness=st.sampled_from([0.5, 10.0, 300.0]))
def test_only_directions_count(side: Side, case: Any, sharpness: float) -> None:
    """Bit for bit at powers of two: prototypes are on the sphere whatever their length; loudness is no evidence."""

    def equal(rescaled: Any, original: Any) -> bool:
        underflows = abs(original) < 2.0**-106  # where a 2^-20th of it is no normal number of float32
        return bool(((rescaled == original) | underflows).all())

    h, v, gradient = side.operands(case)
    score = side.learned_scores.prototype_cosine(sharpness)
    scores, credit = score.value(h, (v,)), score.credit(h, (v,), gradient)
    for factor in (2.0**-20, 8.0, 2.0**20):
        assert equal(score.value(h * factor, (v,)), scores), "score of a rescaled layer"
        assert equal(score.value(h, (v * factor,)), scores), "score of rescaled prototypes"
        louder, longer = score.credit(h * factor, (v,), gradient), score.credit(h, (v * factor,), gradient)
        assert equal(louder.activities * factor, credit.activities), "gradient of a rescaled layer"
        assert equal(longer.parameters[0] * factor, credit.parameters[0]), "gradient of rescaled prototypes"
    other = score.value(h * 1.7, (v * 0.3,))
    assert np.allclose(side.results(other), side.results(scores), atol=16 * side.eps), "rescaled"


@pytest.mark.parametrize("grid", [None, (1, 1), (2, 2), (2, 3)])
@given(case=anchors(), rng=seeds())
def test_gradients_are_tangential(side: Side, grid: Any, case: Any, rng: np.random.Generator) -> None:
    """Nothing is gained along a layer's activity, pooled or not: its norm is no shortcut; nor along the prototypes."""
    h, v, gradient = case
    if grid is not None:
        h = rng.standard_normal((len(h), 3, 4, 5))
        v = rng.standard_normal((*v.shape[:2], 3 * grid[0] * grid[1]))
    h, v, gradient = side.operands((h, v, gradient))
    score = side.learned_scores.prototype_cosine(5.0, grid)
    found = side.results(score.credit(h, (v,), gradient))
    h, v, gradient = side.results((h, v, gradient))
    along = (found.activities * h).reshape(len(h), -1).sum(axis=1)  # <A* g, h> = <g, A h>: the pooled activity
    size = np.abs(found.activities * h).reshape(len(h), -1).sum(axis=1) + np.abs(gradient).sum(axis=1)
    assert np.all(np.abs(along) <= 8 * side.eps * size), "gradient along the activity"
    along = (found.parameters[0] * v).sum(axis=2)
    assert np.all(np.abs(along) <= 8 * side.eps * np.abs(gradient).sum()), "gradient along the prototypes"
    stepped = v - 0.3 * found.parameters[0]
    assert np.all(norm(stepped, axis=2) >= norm(v, axis=2) * (1 - 8 * side.eps)), "prototypes shrink"


@given(case=anchors())
def test_between_the_mean_and_the_largest_cosine(side: Side, case: Any) -> None:
    """Within log(m) / t of the largest; for one prototype a class, the cosine, whatever the sharpness."""
    h, v, _ = side.results(side.operands(case))
    cosines = np.einsum("bd,kmd->bkm", h / norm(h, axis=1, keepdims=True), v / norm(v, axis=2, keepdims=True))
    for sharpness in (0.01, 1.0, 30.0, 1e4):
        score = side.learned_scores.prototype_cosine(sharpness)
        found = side.results(score.value(*side.operands((h, (v,)))))
        slack = 16 * side.eps * (1 + 1 / sharpness)
        assert np.all(found <= cosines.max(axis=2) + slack), "above the largest cosine"
        assert np.all(found >= cosines.mean(axis=2) - slack), "below the mean cosine"
        assert np.all(found >= cosines.max(axis=2) - math.log(v.shape[1]) / sharpness - slack), "far from the largest"
        one = side.learned_scores.prototype_cosine(sharpness).value(*side.operands((h, (v[:, :1],))))
        assert np.allclose(side.results(one), cosines[:, :, 0], atol=slack), "the cosine of one prototype"


def test_a_silent_layer_has_no_direction(side: Side) -> None:
    """Chosen: scores of 0 and no gradient, of nothing and of what is as good as nothing; beside others in a batch."""
    h = np.array([[0.0, 0.0], [3e-13, 0.0], [0.0, 2.0]])
    v = side.operands(np.array([[[1.0, 1.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 0.0]]]))
    score = side.learned_scores.prototype_cosine(2.0)
    scores = side.results(score.value(side.operands(h), (v,)))
    assert np.abs(scores[:2]).max() <= 2 * side.eps, "score of nothing"
    assert scores[2, 0] > 0.8
    assert abs(scores[2, 1]) <= 2 * side.eps
    found = side.results(score.credit(side.operands(h), (v,), side.operands(np.ones((3, 2)))))
    assert not found.activities[:2].any(), "gradient of nothing"
    assert found.activities[2].any()
    assert not found.parameters[0][1, 1].any(), "gradient of a prototype of length 0"


@pytest.mark.parametrize(("grid", "scale"), [(None, 1e-5), (None, 1.0), (None, 1e3), ((1, 2), 1e-3), ((1, 2), 1e3)])
@pytest.mark.parametrize("per_class", [1, 3])
def test_quiet_and_loud_layers_in_float16(twin: Side, scale: float, per_class: int, grid: Any) -> None:
    """Cosines and derivatives of activities that float16 has, but not their squares, nor 1 over these."""
    if not isinstance(twin, TwinSide) or not twin.is_ours:
        pytest.skip("a promise of ours")
    rng = np.random.default_rng(3)
    h, v = scale * rng.standard_normal((4, 3, 2, 4)), rng.standard_normal((5, per_class, 24 if grid is None else 6))
    gradient = 0.1 * rng.standard_normal((4, 5))
    score = twin.learned_scores.prototype_cosine(5.0, grid)
    operands = [torch.as_tensor(a, device=twin.device) for a in (h, v, gradient)]
    half = [operand.half() for operand in operands]
    h, v, gradient = (operand.double() for operand in half)
    truth, found = score.credit(h, (v,), gradient), score.credit(half[0], (half[1],), half[2])
    assert bool((score.value(half[0], (half[1],)) - score.value(h, (v,))).abs().max() <= 2e-3), "cosines"
    for name, a, b in (
        ("activities", found.activities, truth.activities),
        ("prototypes", found.parameters[0], truth.parameters[0]),
    ):
        assert bool((a - b).norm() <= 4e-3 * b.norm()), name


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("name", ["channel_class", "prototype_cosine"])
def test_credit_has_the_dtype_of_what_it_is_of(twin: TwinSide, name: str) -> None:
    """Of float16 too, whose sums are of float32: an optimizer adds a gradient to its parameter."""
    shapes = [(6, 3), ()] if name == "channel_class" else [(3, 2, 6)]
    h, gradient, *parameters = (
        torch.ones(s, dtype=torch.float16, device=twin.device) for s in [(4, 6), (4, 3), *shapes]
    )
    score = getattr(twin.learned_scores, name)()
    found = score.credit(h, tuple(parameters), gradient)
    cost, by_penalty = score.penalty(tuple(parameters))
    for array in (score.value(h, tuple(parameters)), found.activities, *found.parameters, cost, *by_penalty):
        assert array.dtype == torch.float16
    for gradients in (found.parameters, by_penalty):
        assert [g.shape for g in gradients] == [p.shape for p in parameters]


@pytest.mark.usefixtures("ours_only")
def test_entropy_of_a_nearly_certain_channel(twin: Side) -> None:
    """-sum M log M where 1 - M is below eps: log M of the likely class is -(1 - M), not 0."""
    eps = min(twin.eps, 2.0**-23)
    gap = -math.log(eps) + 8
    logits = np.array([[gap, 0.0], [0.0, gap]])
    score = twin.learned_scores.channel_class(entropy=1.0, orthogonality=0.0)
    logits, log_temperature = twin.operands((logits, np.array(0.0)))
    (gap, _), _ = twin.results(logits)
    small = math.exp(-gap)  # log(1 + small) = small, to eps: the entropy is small (1 + gap) for each of K = 2 channels
    cost, _ = twin.results(score.penalty((logits, log_temperature)))
    assert math.isclose(cost, small * (1 + gap), rel_tol=1e-3 + 8 * twin.eps), "log-softmax of the likely class"


@pytest.mark.parametrize(("num_classes", "rounded"), [(10, 0.797), (100, 2.667)])
def test_unscaled_cosines_cannot_be_sure(side: Side, num_classes: int, rounded: float) -> None:
    """Their cross entropy stays above log(1 + (K - 1) e^-2), even for h at its prototype and all others opposite."""
    least = math.log1p((num_classes - 1) * math.exp(-2))
    assert round(least, 3) == rounded
    h = side.operands(np.array([[1.0, 0.0], [0.6, 0.8]]))
    v = np.full((num_classes, 1, 2), (-1.0, 0.0))
    v[0, 0] = (1.0, 0.0)
    scores = side.learned_scores.prototype_cosine().value(h, (side.operands(v),))
    labels = side.operands(np.zeros(2, int))
    unscaled = side.results(side.score_losses.cross_entropy()(scores, labels).loss)
    assert math.isclose(unscaled[0], least, rel_tol=4 * side.eps), "bound not reached"
    assert unscaled[1] > least
    rng = np.random.default_rng(3)
    drawn = side.operands((rng.standard_normal((50, 7)), (rng.standard_normal((num_classes, 3, 7)),)))
    drawn = side.learned_scores.prototype_cosine().value(*drawn)
    labels = side.operands(rng.integers(0, num_classes, 50))
    assert side.results(side.score_losses.cross_entropy()(drawn, labels).loss).min() > least, "below the bound"
    scaled = side.results(side.score_losses.cosine_margin(20.0)(scores, side.operands(np.zeros(2, int))).loss)
    assert scaled[0] < 1e-14, "what the scale is for"


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.nan])
def test_a_sharpness_of_nothing_is_refused(side: Side, sharpness: float) -> None:
    with side.refuses(f"sharpness: {sharpness}, expected a positive number"):
        side.learned_scores.prototype_cosine(sharpness)
