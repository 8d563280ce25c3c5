"""Scores: twin against reference, both against the definition, and what follows from it for each kind."""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import matrix_rank, norm, svd

from prograde.equivalence_tests.sides import Side, TwinSide
from prograde.equivalence_tests.strategies import KinkDistance, seeds
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = pytest.mark.smoke

CLASSES = 3
POOLING = (0.6, 0.7, -0.5)


class Kind(NamedTuple):
    """A score: its maker from fixed arrays, how many of them and of its parameters there are, and its grid."""

    make: Callable[[Side, Any], Any]
    arrays: Callable[[int, int, np.random.Generator], tuple[Any, Any]]
    grid: tuple[int, int] | None = None
    pooling: str = "mean"


def nothing(channels: int, m: int, rng: np.random.Generator) -> Any:
    return (), ()


def readout(channels: int, m: int, rng: np.random.Generator) -> Any:
    return (rng.standard_normal((m, CLASSES)), rng.standard_normal(CLASSES)), ()


def tempered(channels: int, m: int, rng: np.random.Generator) -> Any:
    return readout(channels, m, rng)[0], (rng.standard_normal(()),)


def matrix(channels: int, m: int, rng: np.random.Generator) -> Any:
    return (), (rng.standard_normal((CLASSES, m)),)


def assigned(channels: int, m: int, rng: np.random.Generator) -> Any:
    return (), (rng.standard_normal((channels, CLASSES)), 0.3 * rng.standard_normal(()))


def anchored(per_class: int) -> Callable[[int, int, np.random.Generator], Any]:
    return lambda channels, m, rng: ((), (rng.uniform(0.3, 3) * rng.standard_normal((CLASSES, per_class, m)),))


KINDS = {
    "group_mean": Kind(lambda side, fixed: side.scores.group_mean(CLASSES), nothing),
    "group_mean_square": Kind(lambda side, fixed: side.scores.group_mean_square(CLASSES), nothing),
    "linear_map": Kind(lambda side, fixed: side.scores.linear_map(), matrix),
    "linear_map of cells": Kind(lambda side, fixed: side.scores.linear_map((2, 2)), matrix, (2, 2)),
    "random_readout": Kind(lambda side, fixed: side.scores.random_readout(*fixed), tempered),
    "random_readout of cells": Kind(
        lambda side, fixed: side.scores.random_readout(*fixed, (2, 2), 0.1, 3.0), tempered, (2, 2)
    ),
    "patch_energy": Kind(lambda side, fixed: side.scores.patch_energy(*fixed), readout, None, "sum"),
    "patch_energy of cells": Kind(lambda side, fixed: side.scores.patch_energy(*fixed, (2, 1)), readout, (2, 1), "sum"),
    "channel_class": Kind(lambda side, fixed: side.learned_scores.channel_class(), assigned),
    "channel_class of extremes": Kind(
        lambda side, fixed: side.learned_scores.channel_class(POOLING, 0.5, 2.0, True, 0.7), assigned
    ),
    "prototype_cosine": Kind(lambda side, fixed: side.learned_scores.prototype_cosine(), anchored(1)),
    "prototype_cosine of three": Kind(lambda side, fixed: side.learned_scores.prototype_cosine(4.0), anchored(3)),
    "prototype_cosine of cells": Kind(
        lambda side, fixed: side.learned_scores.prototype_cosine(4.0, (2, 1)), anchored(2), (2, 1)
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


class Layer(NamedTuple):
    """Activities (batch, C, H, W) or (batch, C), a score's fixed arrays and parameters, and dL/ds (batch, K)."""

    h: Any
    fixed: Any
    parameters: Any
    gradient: Any


@st.composite
def layers(draw: st.DrawFn, kind: Kind, batches: tuple[int, ...] = (1, 2, 7, 16)) -> Layer:
    """A layer for the score; its positions are so far apart that no extreme is chance."""
    batch = draw(st.sampled_from(batches), label="batch")
    channels = CLASSES * draw(st.sampled_from((1, 2, 3)), label="channels of a class")
    sizes = ((4, 4), (3, 4), (2, 5), (1, 3)) if kind.grid else ((4, 4), (3, 5), (2, 1), ())
    size = draw(st.sampled_from(sizes), label="size")
    rng = draw(seeds())
    count = int(np.prod(size, dtype=int))
    apart = max(KinkDistance.size, 1 / count)
    h = rng.uniform(0.1, 1, (batch, channels, 1)) + apart * (
        np.arange(count) + 0.3 * rng.random((batch, channels, count))
    )
    h = (rng.permuted(h, axis=2) - rng.choice((0, 0.7))).reshape(batch, channels, *size)
    m = channels * (np.prod(kind.grid) if kind.grid else count)
    fixed, parameters = kind.arrays(channels, int(m), rng)
    return Layer(h, fixed, tuple(np.asarray(p) for p in parameters), rng.standard_normal((batch, CLASSES)))


@kinds
@given(data=st.data())
def test_twin(twin: Side, compare: Comparison, kind: str, data: st.DataObject) -> None:
    layer = data.draw(layers(KINDS[kind]), label="layer")

    def value(side: Side, h: Any, fixed: Any, parameters: Any, gradient: Any) -> Any:
        return KINDS[kind].make(side, fixed).value(h, parameters)

    def credit(side: Side, h: Any, fixed: Any, parameters: Any, gradient: Any) -> Any:
        return KINDS[kind].make(side, fixed).credit(h, parameters, gradient)

    compare(twin, f"{kind}.value", value, *layer)
    compare(twin, f"{kind}.credit", credit, *layer)


def cells(h: Any, grid: tuple[int, int] | None, pooling: str) -> Any:
    """The cells of one sample, cut out one by one."""
    if grid is None:
        return h.ravel()
    found = []
    for channel in h:
        for i in range(grid[0]):
            rows = channel[i * len(channel) // grid[0] : -((i + 1) * len(channel) // -grid[0])]
            for j in range(grid[1]):
                width = channel.shape[1]
                cell = rows[:, j * width // grid[1] : -((j + 1) * width // -grid[1])]
                found.append(cell.mean() if pooling == "mean" else cell.sum())
    return np.array(found)


def expected_scores(kind: str, h: Any, fixed: Any, parameters: Any) -> list[float]:
    """The scores of one sample, class by class, from the equations."""
    name, of = kind.split(" ")[0], KINDS[kind]
    if name.startswith("group_mean"):
        size = len(h) // CLASSES
        groups = [h[k * size : (k + 1) * size].ravel() for k in range(CLASSES)]
        return [float(g.sum() if name == "group_mean" else g @ g) / g.size for g in groups]
    if name == "linear_map":
        return [float(row @ cells(h, of.grid, of.pooling)) for row in parameters[0]]
    if name in ("random_readout", "patch_energy"):
        low, high = (0.1, 3.0) if of.grid else (0.5, 2.0)
        temperature = low + (high - low) / (1 + np.exp(-parameters[0])) if name == "random_readout" else 1.0
        u = cells(h * h, of.grid, of.pooling) / temperature
        return [float(sum(u * fixed[0][:, k]) + fixed[1][k]) for k in range(CLASSES)]
    if name == "channel_class":
        weights, cooling = ((0.94, 0.06, -0.05), 1.0) if kind == name else (POOLING, 0.7)
        pooled = [weights[0] * c.mean() + weights[1] * c.max() + weights[2] * c.min() for c in h]
        powers = np.exp(parameters[0] / (cooling * np.exp(parameters[1])))
        return [float(sum(a * p[k] / p.sum() for a, p in zip(pooled, powers, strict=True))) for k in range(CLASSES)]
    assert name == "prototype_cosine"
    sharpness, z = (10.0 if kind == name else 4.0), cells(h, of.grid, of.pooling)
    found = []
    for prototypes in parameters[0]:
        cosines = [v @ z / np.sqrt((v @ v) * (z @ z)) for v in prototypes]
        found.append(float(np.log(np.mean(np.exp(sharpness * np.array(cosines)))) / sharpness))
    return found


@kinds
@given(data=st.data())
def test_values_and_gradients_are_those_of_the_definition(side: Side, kind: str, data: st.DataObject) -> None:
    """Central differences in float64 of the definition, in random directions, beside the gradient in closed form."""
    drawn = data.draw(layers(KINDS[kind], (1, 3)), label="layer")
    rng = data.draw(seeds())
    layer = Layer(*side.results(side.operands(tuple(drawn))))
    score = KINDS[kind].make(side, side.operands(layer.fixed))
    h, parameters, gradient = side.operands((layer.h, layer.parameters, layer.gradient))
    value, credit = side.results((score.value(h, parameters), score.credit(h, parameters, gradient)))

    def scores(h: Any, parameters: Any) -> Any:
        return np.array([expected_scores(kind, sample, layer.fixed, parameters) for sample in h])

    truth = scores(layer.h, layer.parameters)
    scale = 1 + np.abs(truth).max() + sum(np.abs(a).max() for a in layer.fixed)
    assert np.abs(value - truth).max() <= 32 * side.eps * scale, f"value of {kind}"
    assert credit.activities.shape == layer.h.shape
    operands = (layer.h, *layer.parameters)
    for which, found in enumerate((credit.activities, *credit.parameters)):
        assert found.shape == operands[which].shape
        for _ in range(3):
            direction = rng.standard_normal(found.shape)
            slopes = []
            for sign in (1, -1):
                moved = [a + sign * 1e-6 * direction if i == which else a for i, a in enumerate(operands)]
                slopes.append(np.sum(scores(moved[0], tuple(moved[1:])) * layer.gradient))
            error = abs((slopes[0] - slopes[1]) / 2e-6 - np.sum(found * direction))
            size = scale * np.abs(layer.gradient).sum() + np.abs(found * direction).sum()
            assert error <= (1e-8 + 32 * side.eps) * size, f"gradient of {kind} by operand {which}"


@kinds
@given(data=st.data())
def test_samples_do_not_see_one_another(side: Side, kind: str, data: st.DataObject) -> None:
    """Scores and gradients of a part of the batch are those of the whole; gradients by parameters add up."""
    layer = data.draw(layers(KINDS[kind], (7,)), label="layer")
    h, fixed, parameters, gradient = side.operands(tuple(layer))
    score = KINDS[kind].make(side, fixed)
    whole = side.results((score.value(h, parameters), score.credit(h, parameters, gradient)))
    parts = [side.results((score.value(h[i], parameters), score.credit(h[i], parameters, gradient[i])))
             for i in (slice(0, 2), slice(2, 7))]  # fmt: skip
    for name, one, other in (
        ("scores", whole[0], np.concatenate([value for value, _ in parts])),
        ("gradient", whole[1].activities, np.concatenate([credit.activities for _, credit in parts])),
        *((f"parameter {i}", p, parts[0][1].parameters[i] + parts[1][1].parameters[i])
          for i, p in enumerate(whole[1].parameters)),
    ):  # fmt: skip
        terms = sum(np.abs(p[1].parameters[0]).max() for p in parts) if name.startswith("parameter") else 0
        assert np.abs(one - other).max() <= 32 * side.eps * (np.abs(one).max() + terms), name


@kinds
def test_finite_for_silent_and_for_loud_layers(side: Side, kind: str) -> None:
    rng = np.random.default_rng(3)
    maps = rng.standard_normal((2, 6, 4, 4))
    fixed, parameters = KINDS[kind].arrays(6, 6 * int(np.prod(KINDS[kind].grid or (4, 4))), rng)
    fixed, parameters = side.operands((fixed, tuple(np.asarray(p) for p in parameters)))
    score = KINDS[kind].make(side, fixed)
    gradient = side.operands(rng.standard_normal((2, CLASSES)))
    for size in (0.0, 1e-30, 1e-12, 1e12):
        h = side.operands(size * maps)
        value, credit = side.results((score.value(h, parameters), score.credit(h, parameters, gradient)))
        assert np.isfinite(value).all(), f"scores at size {size}"
        for found in (credit.activities, *credit.parameters):
            assert np.isfinite(found).all(), f"gradient at size {size}"


@kinds
def test_channels_last_are_the_same_numbers(twin: Side, kind: str) -> None:
    """In whatever order memory has them."""
    if not twin.is_ours:
        pytest.skip("another package may have no strides")
    rng = np.random.default_rng(4)
    fixed, parameters = KINDS[kind].arrays(6, 6 * int(np.prod(KINDS[kind].grid or (4, 4))), rng)
    fixed, parameters = twin.operands((fixed, tuple(np.asarray(p) for p in parameters)))
    h, gradient = twin.operands((rng.standard_normal((2, 6, 4, 4)), rng.standard_normal((2, CLASSES))))
    score = KINDS[kind].make(twin, fixed)
    last = h.contiguous(memory_format=torch.channels_last)
    for one, other in ((score.value(h, parameters), score.value(last, parameters)),
                       (score.credit(h, parameters, gradient).activities,
                        score.credit(last, parameters, gradient).activities)):  # fmt: skip
        assert torch.allclose(one, other, rtol=8 * twin.eps, atol=8 * twin.eps), kind


@pytest.mark.parametrize("grid", [(1, 1), (2, 3)])
@pytest.mark.parametrize("name", ["linear_map", "random_readout", "patch_energy", "prototype_cosine"])
def test_gradients_lie_in_memory_as_activities_do(twin: Side, name: str, grid: tuple[int, int]) -> None:
    """Where they do not, every pass that reads both takes many times as long."""
    if not twin.is_ours:
        pytest.skip("another package may have no strides")
    size = 6 * grid[0] * grid[1]
    projection, matrix = torch.randn(size, CLASSES), torch.randn(CLASSES, size)
    alpha, prototypes, offset = torch.zeros(()), torch.randn(CLASSES, 1, size), torch.zeros(CLASSES)
    score, parameters = {
        "linear_map": lambda: (twin.scores.linear_map(grid), (matrix,)),
        "random_readout": lambda: (twin.scores.random_readout(projection, offset, grid), (alpha,)),
        "patch_energy": lambda: (twin.scores.patch_energy(projection, offset, grid), ()),
        "prototype_cosine": lambda: (twin.learned_scores.prototype_cosine(grid=grid), (prototypes,)),
    }[name]()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        h = torch.randn(2, 6, 4, 5).contiguous(memory_format=memory_format)
        found = score.credit(h, parameters, torch.randn(2, CLASSES)).activities
        assert found.stride() == h.stride(), f"{name}, {memory_format}"


@kinds
def test_a_score_of_the_twin_can_be_pickled(twin: Side, kind: str) -> None:
    if not twin.is_ours:
        pytest.skip("another package may make them as it likes")
    rng = np.random.default_rng(6)
    fixed, parameters = KINDS[kind].arrays(6, 6 * int(np.prod(KINDS[kind].grid or (1, 1))), rng)
    fixed, parameters = twin.operands((fixed, tuple(np.asarray(p) for p in parameters)))
    h = twin.operands(rng.standard_normal((2, 6, 3, 4) if KINDS[kind].grid else (2, 6)))
    score = KINDS[kind].make(twin, fixed)
    copy = pickle.loads(pickle.dumps(score))
    assert np.array_equal(twin.results(copy.value(h, parameters)), twin.results(score.value(h, parameters)))


@kinds
def test_who_has_a_penalty(side: Side, kind: str) -> None:
    """Only assignments; of all others it is 0, and so are its gradients."""
    rng = np.random.default_rng(7)
    fixed, parameters = KINDS[kind].arrays(6, 24, rng)
    fixed, parameters = side.operands((fixed, tuple(np.asarray(p) for p in parameters)))
    cost, gradients = KINDS[kind].make(side, fixed).penalty(parameters)
    assert tuple(cost.shape) == (), "penalty is a scalar"
    assert len(gradients) == len(parameters)
    assert (float(cost) != 0) == kind.startswith("channel_class"), "penalty"
    for gradient, parameter in zip(gradients, parameters, strict=True):
        assert gradient.shape == parameter.shape
        assert bool((gradient != 0).any()) == kind.startswith("channel_class"), "gradient of the penalty"


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_mean_squares_of_float16_are_of_wider_squares(twin: TwinSide, memory: torch.memory_format) -> None:
    """One unit of 300 among 16, whose square float16 does not have: 90000 / 16, in either order in memory."""
    h = torch.zeros(2, 4, 2, 4, dtype=torch.float16, device=twin.device)
    h[:, :, 0, 1] = torch.tensor([300.0, 0.0, 0.0, 300.0])
    found = twin.scores.group_mean_square(2).value(h.contiguous(memory_format=memory), ())
    assert ((found.double() - 5625).abs() <= 2**-11 * 5625).all(), "mean of squares"


@pytest.mark.parametrize("name", ["group_mean", "group_mean_square"])
def test_groups_are_contiguous_and_of_one_size(side: Side, name: str) -> None:
    """Also of one channel; else refused, whatever the positions could be divided into."""
    score = getattr(side.scores, name)(2)
    h = side.operands(np.array([[1.0, 2.0, 4.0, 5.0]]))
    expected = [[1.5, 4.5]] if name == "group_mean" else [[2.5, 20.5]]
    assert np.allclose(side.results(score.value(h, ())), expected, rtol=4 * side.eps), "contiguous groups"
    gradient = side.operands(np.array([[1.0, 3.0]]))
    slopes = [[0.5, 0.5, 1.5, 1.5]] if name == "group_mean" else [[1, 2, 12, 15]]
    assert side.results(score.credit(h, (), gradient).activities).tolist() == slopes, "contiguous groups"
    single = side.results(getattr(side.scores, name)(4).value(h, ()))
    assert np.allclose(single, side.results(h) ** (1 if name == "group_mean" else 2), rtol=4 * side.eps)
    for functions in (lambda h: score.value(h, ()), lambda h: score.credit(h, (), gradient)):
        with side.refuses("h: 3 channels, expected a multiple of the 2 classes"):
            functions(side.operands(np.ones((1, 3, 2, 2))))


def test_weights_of_a_mean_do_not_depend_on_activity(side: Side) -> None:
    """ds/dh = 1/n for every unit, quiet or not, where that of squares starves quiet ones: 2 h / n."""
    h = np.array([[0.0, 1e-3, 8.0, 1.0]])
    gradient = side.operands(np.array([[1.0, 1.0]]))
    mean = side.results(side.scores.group_mean(2).credit(side.operands(h), (), gradient).activities)
    squares = side.results(side.scores.group_mean_square(2).credit(side.operands(h), (), gradient).activities)
    assert np.array_equal(mean, np.full((1, 4), 0.5)), "weights of a mean"
    assert np.allclose(squares, h, rtol=4 * side.eps), "weights of squares"


def credit_by_squares(side: Side, projection: Any, offset: Any, alpha: float, u: float, labels: Any) -> Any:
    """dL/du, (batch, m), of a dense random read-out under cross entropy: at h = 1/2, dL/dh is dL/du."""
    score = side.scores.random_readout(*side.operands((projection, offset)))
    parameters = side.operands((np.array(alpha),))
    h = side.operands(np.full((len(labels), len(projection)), u))
    error = side.score_losses.cross_entropy()(score.value(h, parameters), side.operands(labels)).scores
    return side.results(score.credit(h, parameters, error).activities)


@given(rng=seeds(), alpha=st.sampled_from([-8.0, -1.0, 0.0, 2.0, 8.0]))
def test_the_temperature_bounds_the_gradient(side: Side, rng: np.random.Generator, alpha: float) -> None:
    """|dL/du| <= sqrt 2 / T times the operator norm of the read-out, since |p - onehot| <= sqrt 2."""
    projection, offset = rng.standard_normal((24, 5)), 3 * rng.standard_normal(5)
    gradient = credit_by_squares(side, projection, offset, alpha, 0.5, np.arange(5))
    temperature = 0.5 + 1.5 / (1 + np.exp(-alpha))
    bound = np.sqrt(2) / temperature * norm(projection, 2)
    assert norm(gradient, axis=1).max() <= bound * (1 + 16 * side.eps), "gradient above its bound"
    assert norm(gradient, axis=1).max() >= bound / 1e3, "a bound that says nothing"


@pytest.mark.parametrize(("alpha", "temperature"), [(-60.0, 0.5), (0.0, 1.25), (60.0, 2.0)])
def test_the_bound_of_the_gradient_is_reached(side: Side, alpha: float, temperature: float) -> None:
    """Two opposite read-outs and a sample on the wrong side: hence a range of 4 between the two temperatures."""
    row = np.array([2.0, -1.0, 2.0])
    gradient = credit_by_squares(
        side, np.stack([row, -row], axis=1), np.array([-40.0, 40.0]), alpha, 0.5, np.zeros(1, int)
    )
    assert np.allclose(norm(gradient), np.sqrt(2) / temperature * np.sqrt(2) * 3, rtol=16 * side.eps), "bound reached"


@given(rng=seeds())
def test_a_scalar_goodness_is_rank_one(side: Side, rng: np.random.Generator) -> None:
    """Its scores lie on a line, and activities on one of K gradients; those of a vector have the rank of K."""
    h = rng.uniform(0.2, 1, (16, 1, 4, 5))
    projection, offset = rng.standard_normal((20, 5)), rng.standard_normal(5)
    parameters = side.operands((np.array(0.0),))

    def scores(projection: Any, grid: Any) -> Any:
        score = side.scores.random_readout(*side.operands((projection, offset)), grid)
        return side.results(score.value(side.operands(h), parameters)) - side.results(side.operands(offset))

    values = svd(scores(projection[:1], (1, 1)), compute_uv=False)
    assert values[1] <= 64 * side.eps * (values[0] + norm(offset) * 4), "scalar goodness of more than one rank"
    assert matrix_rank(scores(projection, (4, 5)), 16 * side.eps * norm(offset)) == 5, "vector goodness of low rank"
    score = side.scores.random_readout(*side.operands((projection[:1], offset)), (1, 1))
    rows = [side.results(score.credit(side.operands(h[:1]), parameters, side.operands(e[None])).activities).ravel()
            for e in np.eye(5)]  # fmt: skip
    values = svd(np.array(rows), compute_uv=False)
    assert values[1] <= 16 * side.eps * values[0], "gradients of more than one direction"


def test_patch_energies_add_up(side: Side) -> None:
    """A read-out of ones has all the energy, whatever tiling the grid is."""
    h = side.operands(np.random.default_rng(8).standard_normal((3, 2, 4, 6)))
    energy = (side.results(h) ** 2).sum(axis=(1, 2, 3))
    for grid in ((1, 1), (2, 2), (4, 6), None):
        m = 48 if grid is None else 2 * grid[0] * grid[1]
        score = side.scores.patch_energy(*side.operands((np.ones((m, 2)), np.zeros(2))), grid)
        assert np.allclose(side.results(score.value(h, ()))[:, 1], energy, rtol=8 * side.eps), "energy"
