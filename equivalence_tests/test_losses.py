"""Losses: twin against reference, both against PyTorch's, and the error as the gradient of the loss."""

from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from prograde.equivalence_tests.sides import Side, TwinSide
from prograde.equivalence_tests.strategies import scored, seeds
from prograde.equivalence_tests.tolerance import Comparison
from prograde.reference import losses

pytestmark = pytest.mark.smoke
temperatures = st.sampled_from([0.5, 1.0, 3.0])
smoothings = st.sampled_from([0.0, 0.1])


@given(case=scored(), temperature=temperatures, smoothing=smoothings)
def test_cross_entropy(
    twin: Side, compare: Comparison, case: tuple[Any, Any], temperature: float, smoothing: float
) -> None:
    compare(
        twin,
        "cross_entropy",
        lambda side, s, y: side.losses.cross_entropy(s, y, temperature, smoothing),
        *case,
    )
    compare(
        twin,
        "cross_entropy_gradient",
        lambda side, s, y: side.losses.cross_entropy_gradient(s, y, temperature, smoothing),
        *case,
    )


@given(case=scored())
def test_squared_error(twin: Side, compare: Comparison, case: tuple[Any, Any]) -> None:
    compare(twin, "squared_error", lambda side, s, y: side.losses.squared_error(s, y), *case)
    compare(twin, "squared_error_gradient", lambda side, s, y: side.losses.squared_error_gradient(s, y), *case)


@given(case=scored(), smoothing=smoothings)
def test_one_hot(twin64: Side, compare: Comparison, case: tuple[Any, Any], smoothing: float) -> None:
    scores, labels = case

    def targets(side: Side, labels: Any) -> Any:
        if side.name == "reference":
            return side.losses.one_hot(labels, scores.shape[1], smoothing)
        named = {"dtype": torch.float64} if "dtype" in signature(side.losses.one_hot).parameters else {}
        return side.losses.one_hot(labels, scores.shape[1], smoothing, **named)

    compare(twin64, "one_hot", targets, labels)
    if smoothing == 0:
        compare.exactly(twin64, "one_hot", targets, labels)
    assert np.allclose(losses.one_hot(labels, scores.shape[1], smoothing).sum(axis=1), 1, atol=1e-15)


@given(case=scored(), temperature=temperatures, smoothing=smoothings)
def test_error_is_the_gradient_of_the_loss(case: tuple[Any, Any], temperature: float, smoothing: float) -> None:
    """Central differences of the reference, so that the temperature's factor cannot be lost on both sides."""
    scores, labels = case
    pairs = [
        (partial(losses.cross_entropy, temperature=temperature, label_smoothing=smoothing),
         partial(losses.cross_entropy_gradient, temperature=temperature, label_smoothing=smoothing)),
        (losses.squared_error, losses.squared_error_gradient),
    ]  # fmt: skip
    step = 1e-6
    for value, gradient in pairs:
        for k in range(scores.shape[1]):
            shift = step * (np.arange(scores.shape[1]) == k)
            slope = (value(scores + shift, labels) - value(scores - shift, labels)) / (2 * step)
            assert np.allclose(slope, gradient(scores, labels)[:, k], atol=1e-7), f"class {k}"


class Weighed(NamedTuple):
    """Scores (batch, ..., K), labels, of which -1 is ignored, probabilities and several labels, and weights."""

    scores: Any
    labels: Any
    probabilities: Any
    several: Any
    class_weight: Any
    positive_weight: Any
    sample_weight: Any


@st.composite
def weighed(draw: st.DrawFn) -> Weighed:
    """Of one label for each sample, or of one for each of some positions; two labels at least are known."""
    k, places = draw(st.integers(2, 6), label="K"), draw(st.sampled_from([(), (1,), (3,)]), label="positions")
    shape = (draw(st.sampled_from([2, 5, 16]), label="batch"), *places)
    rng = draw(seeds())
    labels = np.where(rng.random(shape) < 0.3, -1, rng.integers(0, k, shape))
    labels.flat[:2] = rng.integers(0, k, 2)
    return Weighed(
        3 * rng.standard_normal((*shape, k)), labels, rng.dirichlet(np.ones(k), shape),
        rng.integers(0, 2, (*shape, k)).astype(float),
        *(rng.uniform(0.2, 2, n) for n in (k, k)), rng.uniform(0.2, 2, shape),
    )  # fmt: skip


def cases_of(case: Weighed) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Of each loss: its targets, further arguments in order, and the weights that it takes, by name."""
    every = {"class_weight": case.class_weight, "sample_weight": case.sample_weight}
    numbers = case.scores[::-1] / 2
    return {
        "classes": (case.labels, (1.0, 0.2), every | {"ignore_index": -1}),
        "probabilities": (case.probabilities, (2.0, 0.1), every),
        "several": (case.several, (), every | {"positive_weight": case.positive_weight}),
        "numbers": (numbers, (), {"sample_weight": case.sample_weight}),
        "distances": (numbers, (0.7,), {"sample_weight": case.sample_weight}),
        "absolute": (numbers, (), {"sample_weight": case.sample_weight}),
    }


FUNCTIONS = {
    "classes": "cross_entropy",
    "probabilities": "cross_entropy",
    "several": "binary_cross_entropy",
    "numbers": "squared_error",
    "distances": "huber",
    "absolute": "absolute_error",
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@given(case=weighed(), left_out=st.sets(st.sampled_from(["class_weight", "sample_weight", "positive_weight"])))
def test_weighted(twin: Side, compare: Comparison, kind: str, case: Weighed, left_out: set[str]) -> None:
    targets, arguments, weights = cases_of(case)[kind]
    weights = {name: value for name, value in weights.items() if name not in left_out}
    for name in (FUNCTIONS[kind], f"{FUNCTIONS[kind]}_gradient"):
        compare(
            twin,
            f"{name} of {kind}",
            lambda side, s, t, w, name=name: getattr(side.losses, name)(s, t, *arguments, **w),
            case.scores,
            targets,
            weights,
        )


@given(case=weighed())
def test_counted(side: Side, case: Weighed) -> None:
    scores, labels, several = side.operands((case.scores, case.labels, case.several))
    known, every = np.sum(case.labels >= 0), case.labels.size
    for targets, ignore, expected in ((labels, -1, known), (several, -1, every), (labels.clip(0), None, every)):
        assert int(side.losses.counted(scores, targets, ignore)) == expected


def oracle(loss: nn.Module, case: Weighed, targets: Any) -> tuple[Any, Any]:
    """A loss of PyTorch on K scores of each label, whose own place for them is the second axis, and its gradient."""
    k = case.scores.shape[-1]
    scores = torch.tensor(case.scores).requires_grad_()
    rows = torch.tensor(targets.reshape(-1, k) if targets.dtype.kind == "f" else targets.reshape(-1))
    value = loss(scores.reshape(-1, k), rows)
    value.backward()
    return value.item(), scores.grad.cpu().numpy()


@given(case=weighed())
def test_means_are_those_of_pytorch(case: Weighed) -> None:
    """Of all options but weights of samples, and PyTorch's means over the scores of a sample are sums here."""
    k, weight, positive = (*case.scores.shape[-1:], torch.tensor(case.class_weight), torch.tensor(case.positive_weight))
    same = {
        "classes": (nn.CrossEntropyLoss(weight, ignore_index=-1, label_smoothing=0.2), 1),
        "probabilities": (nn.CrossEntropyLoss(weight, label_smoothing=0.1), 1),
        "several": (nn.BCEWithLogitsLoss(weight, pos_weight=positive), k),
        "numbers": (nn.MSELoss(), k / 2),
        "distances": (nn.HuberLoss(delta=0.7), k),
        "absolute": (nn.L1Loss(), k),
    }
    for kind, (loss, factor) in same.items():
        targets, arguments, weights = cases_of(case)[kind]
        if kind == "probabilities":
            arguments = (1.0, *arguments[1:])
        weights.pop("sample_weight")
        found = [
            getattr(losses, name)(case.scores, targets, *arguments, **weights)
            for name in (FUNCTIONS[kind], f"{FUNCTIONS[kind]}_gradient")
        ]
        count = losses.counted(case.scores, targets, weights.get("ignore_index"))
        value, gradient = oracle(loss, case, targets)
        assert np.isclose(found[0].sum() / count, factor * value, rtol=1e-12), f"{kind}: value"
        assert np.allclose(found[1] / count, factor * gradient, rtol=0, atol=1e-14), f"{kind}: gradient"


@given(case=weighed())
def test_weights_of_samples_are_a_weighted_mean(case: Weighed) -> None:
    """As if a label of weight 2 stood in the batch twice; the loss of classes is divided by their weights as well."""
    w = case.sample_weight
    for kind, name in FUNCTIONS.items():
        targets, arguments, weights = cases_of(case)[kind]
        plain = {key: value for key, value in weights.items() if key == "positive_weight"}
        kept = case.labels >= 0 if kind == "classes" else np.ones(w.shape, bool)
        each = getattr(losses, name)(case.scores[kept], targets[kept], *arguments, **plain)
        ignore = {key: value for key, value in weights.items() if key == "ignore_index"}
        found = getattr(losses, name)(case.scores, targets, *arguments, **plain, **ignore, sample_weight=w)
        assert np.isclose(found[kept].mean(), np.average(each, weights=w[kept]), rtol=1e-12), kind
        assert not found[~kept].any(), kind


def test_small_weights_weigh_as_large_ones(side: Side) -> None:
    """Their mean is 1, whatever they are in all."""
    scores, labels, *weights = side.operands(
        (np.array([[1.0, 2.0], [0.5, -1.0]]), np.array([0, 1]), np.array([0.01, 0.03]), np.array([10.0, 30.0]))
    )
    small, large = (side.results(side.losses.cross_entropy(scores, labels, sample_weight=w)) for w in weights)
    assert np.allclose(small, large), "weights in another unit"
    assert small.all()


@given(case=weighed())
def test_weighted_errors_are_gradients(case: Weighed) -> None:
    """Central differences of the reference, of all options at once."""
    step = 1e-6
    for kind, name in FUNCTIONS.items():
        targets, arguments, weights = cases_of(case)[kind]
        value, gradient = getattr(losses, name), getattr(losses, f"{name}_gradient")
        error = gradient(case.scores, targets, *arguments, **weights)
        for k in range(case.scores.shape[-1]):
            shift = step * (np.arange(case.scores.shape[-1]) == k)
            up, down = (value(case.scores + s, targets, *arguments, **weights) for s in (shift, -shift))
            assert np.allclose((up - down) / (2 * step), error[..., k], atol=1e-7), f"{kind}: score {k}"


def test_labels_that_are_all_ignored_or_of_no_weight_teach_nothing(side: Side) -> None:
    scores, ignored, labels, none, of_classes, second = side.operands(
        (np.ones((3, 2)), np.full(3, -1), np.array([1, 0, 1]), np.zeros(3), np.zeros(2), np.array([0.0, 1.0]))
    )
    for targets, options in (
        (ignored, {"ignore_index": -1}),
        (labels, {"sample_weight": none}),
        (labels, {"class_weight": of_classes}),
        (0 * labels, {"class_weight": second, "label_smoothing": 0.1}),
    ):
        for name in ("cross_entropy", "cross_entropy_gradient"):
            found = side.results(getattr(side.losses, name)(scores, targets, **options))
            assert not found.any(), f"{name}: {options}"


def test_scores_of_ignored_labels_may_be_anything(side: Side) -> None:
    scores, labels = side.operands((np.array([[np.nan, 1.0], [0.0, 1.0]]), np.array([-1, 0])))
    error = side.results(side.losses.cross_entropy_gradient(scores, labels, ignore_index=-1))
    assert not error[0].any()
    assert np.isfinite(error[1]).all()


def test_targets_of_one_score_may_be_a_row(side: Side) -> None:
    scores, targets = side.operands((np.array([[0.5], [2.0], [-1.0]]), np.array([1.0, 0.0, 1.0])))
    for name in ("squared_error", "absolute_error", "huber", "binary_cross_entropy"):
        for function in (getattr(side.losses, name), getattr(side.losses, f"{name}_gradient")):
            one, other = (side.results(function(scores, t)) for t in (targets, targets[:, None]))
            assert np.array_equal(one, other)


def test_an_absolute_error_of_0_has_no_direction(side: Side) -> None:
    scores, targets = side.operands((np.array([[2.0, 1.0, -1.0]]), np.array([[1.0, 1.0, 1.0]])))
    found = side.results(side.losses.absolute_error_gradient(scores, targets))
    assert found.tolist() == [[1.0, 0.0, -1.0]], "sign at 0"


def test_one_class_may_be_ignored(side: Side) -> None:
    """Its loss is 0, with or without the label."""
    scores, labels = side.operands((np.array([[0.5], [2.0]]), np.array([0, -100])))
    for function in (side.losses.cross_entropy, side.losses.cross_entropy_gradient):
        assert not np.any(side.results(function(scores, labels, ignore_index=-100)))


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_may_be_wider_than_scores(twin: TwinSide, dtype: torch.dtype) -> None:
    """Gradients are as the scores, which may be of half precision."""
    scores, targets, wide = torch.zeros(2, 3, dtype=dtype), torch.ones(2, 3, dtype=dtype), torch.full((3,), 2.0)
    gradient = twin.losses.binary_cross_entropy_gradient
    for weights, expected in (((wide, None), 1), ((None, wide), 1), ((wide, wide), 2)):
        found = gradient(scores, targets, *weights)
        assert found.dtype == dtype
        assert (found == -expected).all()
    assert twin.losses.cross_entropy_gradient(scores, torch.tensor([0, 1]), class_weight=wide).dtype == dtype


@pytest.mark.usefixtures("ours_only")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_an_entropy_is_of_the_dtype_of_scores(twin: TwinSide, dtype: torch.dtype) -> None:
    """Whatever that of targets."""
    scores, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]], dtype=dtype)
    for function in (twin.losses.cross_entropy, twin.losses.cross_entropy_gradient):
        assert function(scores, targets).dtype == torch.float32


def test_errors_of_confident_scores_keep_their_digits(side: Side) -> None:
    """Relative ones: softmax - 1 and sigmoid - 1 would have none left."""
    if isinstance(side, TwinSide) and not side.is_ours:
        pytest.skip("a promise of ours")
    scores, labels, hot, several = side.operands(
        (np.array([[20.0, 0.0, 1.0]]), np.array([0]), np.eye(3)[:1], np.array([[1.0, 0.0, 0.0]]))
    )
    expected = np.exp([20.0, 0.0, 1.0]) / np.exp([20.0, 0.0, 1.0]).sum()
    expected[0] = -expected[1:].sum()
    ones = side.operands(np.ones(3))
    for targets, options in ((labels, {}), (hot, {}), (labels, {"class_weight": ones})):
        found = side.results(side.losses.cross_entropy_gradient(scores, targets, **options))[0]
        limit = 1e-6 if side.name == "reference" else 8 * side.eps
        assert np.allclose(found, expected, rtol=limit, atol=0), "cross_entropy_gradient"
    found = side.results(side.losses.binary_cross_entropy_gradient(scores, several))[0, 0]
    assert np.isclose(found, -1 / (1 + np.exp(20.0)), rtol=8 * side.eps, atol=0), "binary_cross_entropy_gradient"


@given(case=scored())
def test_cross_entropy_error_sums_to_zero(side: Side, case: tuple[Any, Any]) -> None:
    error = side.results(side.losses.cross_entropy_gradient(*side.operands(case)))
    assert np.abs(error.sum(axis=1)).max() <= 16 * side.eps


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_the_reference_refuses_labels_out_of_range(labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"labels: found .* expected 0\.\.2"):
        losses.one_hot(np.array(labels), 3)


def test_the_twin_goes_through_functorch_and_make_fx(twin: TwinSide) -> None:
    """Where the numbers of a label cannot be looked at, they are not."""
    if not twin.is_ours:
        pytest.skip("prograde's own are made of torch functions")
    scores, labels = torch.randn(5, 4, 3, device=twin.device), torch.randint(3, (5, 4), device=twin.device)
    cross_entropy = twin.losses.cross_entropy
    each = torch.stack([cross_entropy(*pair) for pair in zip(scores, labels, strict=True)])
    assert torch.allclose(torch.func.vmap(cross_entropy)(scores, labels), each)
    traced = make_fx(lambda s, y: cross_entropy(s, y))(scores[0], labels[0])
    assert torch.allclose(traced(scores[0], labels[0]), each[0])


@pytest.mark.parametrize("by", [{"label_smoothing": 0.1}, {"class_weight": np.array([1.0, 2.0])}])
def test_the_reference_keeps_float32(by: dict[str, Any]) -> None:
    scores, labels = np.zeros((3, 2), np.float32), np.array([0, 1, 1])
    assert losses.cross_entropy_gradient(scores, labels, **by).dtype == np.float32
