"""Losses through the front door: each rule's `.grad` with each loss is the reference's update."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax
from torch import nn

from prograde.accelerated.rules import (
    Backprop,
    DifferenceTargetPropagation,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    FeedbackAlignment,
    Foton,
    Ftp,
    LocalClassifiers,
    MonoForward,
    Pepita,
)
from prograde.accelerated.rules.output_loss import (
    BinaryCrossEntropy,
    CrossEntropy,
    Loss,
    SquaredError,
    check_labels,
    check_targets,
    read_loss,
)
from prograde.accelerated.rules.rule import OutputLoss
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import dense, refusal
from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Case, cases, seeds
from prograde.equivalence_tests.test_rules import layer_gradients, sequential
from prograde.equivalence_tests.tolerance import Comparison

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]

DIRECT = (DirectFeedbackAlignment, DirectRandomTargetProjection)
RULES: dict[str, type[OutputLoss]] = {
    "backprop": Backprop,
    "foton": Foton,
    "pepita": Pepita,
    "ftp": Ftp,
    "feedback_alignment": FeedbackAlignment,
    "direct_feedback_alignment": DirectFeedbackAlignment,
    "direct_random_target_projection": DirectRandomTargetProjection,
}


class Drawn(NamedTuple):
    """Targets of all kinds for one batch, of which label -1 is ignored, and weights."""

    labels: Any
    probabilities: Any
    several: Any
    numbers: Any
    of_classes: Any
    positive: Any
    of_samples: Any


class Kind(NamedTuple):
    """A loss: as rules take it, y for them; e on a side, what outputs are of the scores there, and DRTP's y, if any."""

    given: Callable[[Drawn], Any]
    y: Callable[[Drawn], Any]
    gradient: Callable[[Side, Drawn, Any], Any]
    outputs: Callable[[Any], Any]
    vectors: Callable[[Side, Drawn], Any] | None = None


def fourth_power(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (scores - targets).pow(4).mean()


def weighted_vectors(side: Side, drawn: Drawn) -> Any:
    """One-hot labels times their weights of class and sample, in the mean 1."""
    known = drawn.labels >= 0
    labels = np.where(known, drawn.labels, 0)
    w = known * drawn.of_samples
    v = w * drawn.of_classes[labels] * known.sum() / (w * drawn.of_classes[labels]).sum()
    return v[:, None] * np.eye(len(drawn.of_classes))[labels]


def itself(scores: Any) -> Any:
    return scores


KINDS = {
    "classes": Kind(
        lambda d: nn.CrossEntropyLoss(d.of_classes, ignore_index=-1, label_smoothing=0.1),
        lambda d: (d.labels, d.of_samples),
        lambda side, d, s: side.losses.cross_entropy_gradient(s, d.labels, 1.0, 0.1, d.of_classes, d.of_samples, -1),
        partial(softmax, axis=1),
        weighted_vectors,
    ),
    "known classes": Kind(
        lambda d: nn.CrossEntropyLoss(ignore_index=-1),
        lambda d: d.labels,
        lambda side, d, s: side.losses.cross_entropy_gradient(s, d.labels, ignore_index=-1),
        partial(softmax, axis=1),
        lambda side, d: (d.labels >= 0)[:, None] * np.eye(len(d.of_classes))[d.labels],
    ),
    "probabilities": Kind(
        lambda d: "cross_entropy",
        lambda d: d.probabilities,
        lambda side, d, s: side.losses.cross_entropy_gradient(s, d.probabilities),
        partial(softmax, axis=1),
        lambda side, d: d.probabilities,
    ),
    "several labels": Kind(
        lambda d: "binary_cross_entropy",
        lambda d: d.several,
        lambda side, d, s: side.losses.binary_cross_entropy_gradient(s, d.several),
        expit,
        lambda side, d: d.several,
    ),
    "several labels, the module": Kind(
        lambda d: nn.BCEWithLogitsLoss(d.of_classes, pos_weight=d.positive),
        lambda d: (d.several, d.of_samples),
        lambda side, d, s: side.losses.binary_cross_entropy_gradient(
            s, d.several, d.of_classes, d.positive, d.of_samples
        ) / s.shape[1],
        expit,
        lambda side, d: (d.of_samples / d.of_samples.mean())[:, None] * d.of_classes * d.positive * d.several
        / len(d.positive),
    ),
    "numbers": Kind(
        lambda d: "squared_error",
        lambda d: (d.numbers, d.of_samples),
        lambda side, d, s: side.losses.squared_error_gradient(s, d.numbers, d.of_samples),
        itself,
    ),
    "numbers, the module": Kind(
        lambda d: nn.MSELoss(),
        lambda d: d.numbers,
        lambda side, d, s: 2 * side.losses.squared_error_gradient(s, d.numbers) / s.shape[1],
        itself,
    ),
    "huber": Kind(
        lambda d: "huber",
        lambda d: (d.numbers, d.of_samples),
        lambda side, d, s: side.losses.huber_gradient(s, d.numbers, 1.0, d.of_samples),
        itself,
    ),
    "huber, the module": Kind(
        lambda d: nn.HuberLoss(delta=0.5),
        lambda d: d.numbers,
        lambda side, d, s: side.losses.huber_gradient(s, d.numbers, 0.5) / s.shape[1],
        itself,
    ),
    "smooth": Kind(
        lambda d: nn.SmoothL1Loss(beta=0.5),
        lambda d: d.numbers,
        lambda side, d, s: side.losses.huber_gradient(s, d.numbers, 0.5) / (0.5 * s.shape[1]),
        itself,
    ),
    "own": Kind(
        lambda d: fourth_power,
        lambda d: d.numbers,
        lambda side, d, s: 4 * (s - d.numbers) ** 3 / s.shape[1],
        itself,
    ),
}  # fmt: skip


@st.composite
def drawings(draw: st.DrawFn) -> tuple[Case, Drawn, np.random.Generator]:
    """A network whose weights are orthogonal, so that every rule takes it as it is, and targets of all kinds."""
    case = draw(cases(("identity", "tanh"), orthogonal=True, dropout=False))
    rng = draw(seeds())
    batch, k = len(case.labels), case.num_classes
    labels = np.where(rng.random(batch) < 0.3, -1, case.labels)
    labels[0] = case.labels[0]
    numbers = (
        rng.dirichlet(np.ones(k), batch),
        rng.integers(0, 2, (batch, k)).astype(float),
        rng.normal(size=(batch, k)),
    )
    return case, Drawn(labels, *numbers, *(rng.uniform(0.3, 2, n) for n in (k, k, batch))), rng


def reference_updates(side: Side, name: str, kind: Kind, network: Any, x: Any, drawn: Any, extra: Any) -> Any:
    """With 1/N in place of 1/B."""
    chain = side.chain(network)
    module = getattr(side, name)

    def gradient(scores: Any, labels: Any) -> Any:
        return kind.gradient(side, drawn, scores)

    y = kind.y(drawn)
    labels = y[0] if isinstance(y, tuple) else y
    if kind.vectors is not None and "target" in name:
        clean = side.layers.forward(chain, x)
        vectors = kind.vectors(side, drawn).astype(x.dtype)
        factors = side.direct_feedback_alignment.update_factors(
            chain, clean, gradient(clean.scores, y), *extra, vectors
        )
        found = side.layers.updates(chain, factors)
    elif name == "ftp":
        phi = side.activations.ACTIVATIONS["tanh"]
        found = module.updates(chain, *extra, x, labels, gradient, phi, outputs=kind.outputs)
    else:
        found = module.updates(chain, *extra, x, labels, gradient)
    ignored = -1 if labels.ndim == 1 else None
    count = side.losses.counted(side.layers.scores(chain, x), labels, ignored)
    return tuple(side.layers.per_label(update, len(x), count) for update in found)


def arrays_of(name: str, case: Case, rng: np.random.Generator) -> tuple[Any, ...]:
    """What is random and fixed in a rule."""
    widths = [len(weight) for weight in case.dense.weights]
    k = widths[-1]
    if name == "pepita":
        return (0.5 * rng.normal(size=(k, case.x.shape[1])),)
    if name == "ftp":
        return (0.5 * rng.normal(size=(widths[0], k)),)
    if name == "feedback_alignment":
        return (tuple(rng.normal(size=weight.shape) / 2 for weight in case.dense.weights[1:]),)
    return (tuple(rng.normal(size=(width, k)) / 2 for width in widths[:-1]),) if name.startswith("direct") else ()


PAIRS = [(name, kind) for name in RULES for kind in KINDS if KINDS[kind].vectors is not None or "target" not in name]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@given(drawing=drawings())
def test_rules(twin: TwinSide, compare: Comparison, name: str, kind: str, drawing: Any) -> None:
    loss = KINDS[kind]
    case, drawn, rng = drawing

    def updates(side: Side, network: Any, x: Any, drawn: Any, *extra: Any) -> Any:
        if isinstance(side, ReferenceSide):
            return reference_updates(side, name, loss, network, x, drawn, extra)
        options = {"orthogonality_tolerance": 1e-2 if side.eps < 1e-3 else 0.2} if name == "foton" else {}
        options |= {"phi": "tanh"} if name == "ftp" else {}
        rule = RULES[name](sequential(network), loss=loss.given(drawn), **options)
        for held in ("projection", "feedback"):
            if extra and isinstance(getattr(rule, held, None), torch.Tensor):
                getattr(rule, held).copy_(extra[0])
            elif extra and hasattr(rule, held):
                for matrix, given in zip(getattr(rule, held), extra[0], strict=True):
                    matrix.copy_(given)
        rule.assign_credit(x, loss.y(drawn))
        return layer_gradients(rule)

    compare(twin, f"{name}, {kind}", updates, case.dense, case.x, drawn, *arrays_of(name, case, rng))


def batch(dtype: torch.dtype = torch.float64) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear network of orthogonal layers, by which FOTON is backpropagation, a batch, labels and numbers for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)).to(dtype)
    for layer in model[:-1]:
        nn.init.orthogonal_(layer.weight)
    return model, torch.randn(7, 6, dtype=dtype), torch.tensor([0, 1, -1, 2, 1, -1, 0]), torch.rand(7, 3, dtype=dtype)


WEIGHT = torch.tensor([0.5, 1.0, 3.0])
MODULES = {
    "classes": (nn.CrossEntropyLoss(WEIGHT.double(), ignore_index=-1, label_smoothing=0.2), "labels"),
    "probabilities": (nn.CrossEntropyLoss(WEIGHT.double(), label_smoothing=0.1), "numbers"),
    "several labels": (nn.BCEWithLogitsLoss(WEIGHT.double(), pos_weight=2 * WEIGHT.double()), "numbers"),
    "one weight for several labels": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT[2:].double()), "numbers"),
    "squares": (nn.MSELoss(), "numbers"),
    "huber": (nn.HuberLoss(delta=0.3), "numbers"),
    "smooth": (nn.SmoothL1Loss(beta=0.3), "numbers"),
    "smooth without a bend": (nn.SmoothL1Loss(beta=0), "numbers"),
    "distances": (nn.L1Loss(), "numbers"),
    "own": (nn.PoissonNLLLoss(), "numbers"),
}


@pytest.mark.parametrize("rule", [Backprop, Foton])
@pytest.mark.parametrize("name", MODULES)
def test_pytorchs_modules_are_what_they_are(rule: type[OutputLoss], name: str) -> None:
    """The loss and every gradient are those of `loss(model(x), y).backward()`, with reduction="mean"."""
    loss, kind = MODULES[name]
    model, x, labels, numbers = batch()
    y = labels if kind == "labels" else numbers
    built = rule(model, loss=loss)
    expected = loss(model(x), y)
    expected.backward()
    gradients = [p.grad for p in model.parameters()]
    found = built.assign_credit(x, y)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=1e-6 if rule is Foton else 1e-13)


SECOND_PASS = Foton, Ftp, Pepita


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Identity])
@pytest.mark.parametrize("rule", [Backprop, FeedbackAlignment, MonoForward, *DIRECT, *SECOND_PASS])
def test_weights_of_samples_are_counts(rule: Any, activation: type[nn.Module]) -> None:
    """A sample of weight 2 counts as one that stands in the batch twice, and one of weight 0 as one that does not.

    A second pass starts from the weighted error, and is counted so where layers are linear alone.
    """
    _, x, labels, _ = batch()
    loss, credits = nn.CrossEntropyLoss(ignore_index=-1), []
    weights = torch.tensor([2.0, 1, 1, 0, 1, 1, 1], dtype=x.dtype)
    rows = torch.tensor([0, 0, 1, 2, 4, 5, 6])
    for batch_of, y in ((x, (labels, weights)), (x[rows], labels[rows])):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3)).double()
        built = rule(model, loss=loss, generator=seeded(1), **({"presynaptic": "clean"} if rule is Pepita else {}))
        found = built.assign_credit(batch_of, y)
        credits.append([found, *(p.grad for p in built.parameters() if p.grad is not None)])
    are_counts = [torch.allclose(ours, theirs) for ours, theirs in zip(*credits, strict=True)]
    assert are_counts[0]
    assert are_counts[-1]
    assert all(are_counts) == (rule not in SECOND_PASS or activation is nn.Identity)


def test_labels_of_tokens() -> None:
    """Of scores (batch, T, K) and labels (batch, T): value, e and N of each label."""
    scores, labels = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(-1, 3, (4, 5))
    loss = nn.CrossEntropyLoss(WEIGHT.double(), ignore_index=-1)
    read = read_loss(loss)
    seen = scores.clone().requires_grad_()
    expected = loss(seen.flatten(0, 1), labels.flatten())
    expected.backward()
    count = (labels >= 0).sum()
    torch.testing.assert_close(read.value(scores, labels), expected.detach())
    torch.testing.assert_close(read.gradient(scores, labels) / count, seen.grad)
    assert read.count(scores, labels) == count
    assert read_loss("cross_entropy").count(scores, labels) == 20
    read_loss("cross_entropy").check(scores, labels.clamp(min=0), 3, (5,))
    read.check(scores, labels, 3, (5,))
    with pytest.raises(ValueError, match=r"y: torch.int64 of shape \(4,\), expected int64 of shape \(4, 5\)"):
        read.check(scores, labels[:, 0], 3, (5,))


class Focal(nn.Module):
    """A loss of one's own, with a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("powers", torch.tensor([2.0, 2.0]))

    def forward(self, scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = scores.softmax(dim=1).gather(1, y[:, None])
        return (-((1 - p) ** self.powers[0]) * p.log()).mean()


def test_a_module_of_ones_own_keeps_its_buffers() -> None:
    torch.manual_seed(0)
    rule, x, y = Backprop(dense(), loss=Focal()), torch.randn(6, 16), torch.arange(6) % 4
    expected = Focal()(rule.model(x), y)
    torch.testing.assert_close(rule.assign_credit(x, y), expected.detach())
    assert rule.loss.function.powers.tolist() == [2.0, 2.0]
    assert rule.double().loss.function.powers.dtype == torch.float64


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(torch.ones(4)), nn.BCEWithLogitsLoss(torch.ones(4), pos_weight=torch.ones(4))]
)
def test_class_weights_move_with_the_rule(loss: nn.Module) -> None:
    rule = Backprop(dense().double(), loss=loss)
    weights = dict(rule.loss.named_buffers())
    assert len(weights) == len(dict(loss.named_buffers()))
    assert all(weight.dtype == torch.float64 for weight in weights.values())
    assert all(weight.dtype == torch.float32 for weight in dict(rule.float().loss.named_buffers()).values())
    assert not any(name.startswith("loss.") for name in rule.state_dict()), "settings, no state"


@pytest.mark.parametrize("make", [CrossEntropy, BinaryCrossEntropy, SquaredError])
def test_a_share_of_a_batch_weighs_its_labels(make: type[Loss]) -> None:
    """By a factor on all weights: on the loss of each label, and on e."""
    scores, y = torch.randn(2, 5, 3, dtype=torch.float64, generator=seeded(0))
    whole, share, y = make(), make(), y.softmax(dim=1)
    share.share = 0.75
    torch.testing.assert_close(share.of_labels(scores, y), 0.75 * whole.of_labels(scores, y))
    torch.testing.assert_close(share.gradient(scores, y), 0.75 * whole.gradient(scores, y))
    weighted = y, torch.linspace(0.5, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(share.label_vectors(scores, weighted), 0.75 * whole.label_vectors(scores, weighted))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (BinaryCrossEntropy(), True), (BinaryCrossEntropy(mean=True), False),
        (BinaryCrossEntropy(class_weight=WEIGHT.double()), False),
        (BinaryCrossEntropy(positive_weight=WEIGHT.double()), False),
        (CrossEntropy(), True), (CrossEntropy(label_smoothing=0.1), False),
        (CrossEntropy(class_weight=WEIGHT.double()), False), (SquaredError(), True),
    ],
)  # fmt: skip
def test_outputs_are_drawn_as_far_as_e_leads(loss: Loss, plain: bool, weighted: bool) -> None:
    """To the outputs less e: without a weight or a mean to the targets themselves, to the last digit."""
    scores, y = torch.randn(2, 50, 3, dtype=torch.float64, generator=seeded(0))
    y = y.softmax(dim=1)
    given = (y, torch.linspace(0.5, 2, 50, dtype=torch.float64)) if weighted else y
    error = loss.gradient(scores, given)
    found = loss.pursued(scores, given, error)
    torch.testing.assert_close(found, loss.outputs(scores) - error)
    assert torch.equal(found, y) == (plain and not weighted), "the targets themselves"


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("shape", [(5,), (4, 5)], ids=["samples", "tokens"])
def test_labels_are_one_hot_targets(name: str, shape: tuple[int, ...]) -> None:
    loss, scores = read_loss(name), torch.randn(*shape, 3, dtype=torch.float64, generator=seeded(0))
    labels = torch.randint(3, shape, generator=seeded(1))
    expected = nn.functional.one_hot(labels, 3).double()
    loss.check(scores[..., 0, :] if len(shape) > 1 else scores, labels, 3, shape[1:])
    assert torch.equal(loss.label_vectors(scores, labels), expected)
    assert torch.equal(loss.pursued(scores, labels, loss.gradient(scores, labels)), expected)
    known = (labels != 1)[..., None]
    assert torch.equal(CrossEntropy(ignore_index=1).label_vectors(scores, labels), known * expected)


@pytest.mark.parametrize("known", [0, 1, 3])
def test_means_are_over_the_labels_that_are_known(known: int) -> None:
    """Of none 0; as the loss of one layer too, whose means are over all rows, and whose e has no graph."""
    scores = torch.randn(7, 3, dtype=torch.float64, generator=seeded(0)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 1]).masked_fill(torch.arange(7) >= known, -1)
    loss = read_loss(nn.CrossEntropyLoss(ignore_index=-1))
    expected = nn.functional.cross_entropy(scores[:known], labels[:known], reduction="sum") / max(known, 1)
    (gradient,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(loss.value(scores, labels), expected, rtol=1e-12, atol=0)
    found, e = loss(scores, labels)
    torch.testing.assert_close(found.mean(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(e / 7, gradient, rtol=1e-12, atol=1e-16)
    assert not e.requires_grad


def test_what_is_wrong_with_targets_is_said() -> None:
    """And no more: another dtype is of no help where the shape is wrong, or where x are tokens of no dtype."""
    x, tokens = torch.ones(6, 2), torch.ones(6, 2, dtype=torch.int64)
    for z, y, said in (
        (x, torch.ones(6, 4).double(), r"expected torch.float32 of shape \(6, 4\), numbers; y.to\(torch.float32\)$"),
        (x, torch.ones(6, 3).double(), r"expected torch.float32 of shape \(6, 4\), numbers$"),
        (x, torch.ones(6, 3), r"expected torch.float32 of shape \(6, 4\), numbers$"),
        (tokens, torch.ones(6, 4).long(), r"expected real numbers of shape \(6, 4\), numbers$"),
    ):
        with pytest.raises(ValueError, match=said):
            check_targets(z, y, (6, 4), "numbers")
    check_targets(tokens, torch.ones(6, 4).double(), (6, 4), "numbers")
    check_targets(x, torch.tensor([[0.0, 1.0]] * 6), (6, 2), "probabilities")
    check_labels(x, torch.tensor([0, -1, 0, 0, 0, 0]), 1, ignore_index=-1)
    read_loss("cross_entropy").check(x, torch.full((6, 2), 0.5), 2)
    with pytest.raises(ValueError, match=r"y: torch.int64 .*, expected torch.float32 of shape .*, numbers"):
        read_loss("squared_error").check(x, torch.zeros(6, dtype=torch.int64), 1)


def test_label_smoothing_is_of_cross_entropy_alone() -> None:
    for name, smoothing in (("cross_entropy", 1.0), ("cross_entropy", -0.1), ("squared_error", 0.1)):
        with pytest.raises(ValueError, match=f"label_smoothing: {smoothing}, expected 0 <= label_smoothing < 1, for"):
            read_loss(name, smoothing)
    assert isinstance(read_loss("squared_error", 0.0), SquaredError)
    assert read_loss("cross_entropy", 0.5).label_smoothing == 0.5


def test_class_weights_are_finite_and_not_negative() -> None:
    for weights, said in (
        ([1, 1, 1, float("inf")], "negative or infinite"),
        ([1, 1, 1, float("nan")], "negative or infinite"),
        ([1, 1, 1, -1], "negative or infinite"),
        ([1, 1, 1], r"shape \(3,\), expected \(4,\)"),
    ):
        with pytest.raises(ValueError, match=f"loss: its class_weight has .*{said}"):
            Backprop(dense(), loss=nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32)))
    Backprop(dense(), loss=nn.CrossEntropyLoss(torch.tensor([0.0, 1, 1, 1])))


def test_one_score_takes_numbers_and_labels_of_yes_and_no() -> None:
    x, y = torch.randn(5, 6), torch.rand(5)
    for rule in (Backprop, Foton, Ftp, Pepita, FeedbackAlignment, DirectFeedbackAlignment):
        for loss in ("squared_error", "huber", "binary_cross_entropy", nn.BCEWithLogitsLoss(), nn.MSELoss()):
            built = rule(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), loss=loss)
            row = built.assign_credit(x, y)
            assert torch.equal(row, built.assign_credit(x, y[:, None])), loss


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_losses_of_layers(name: str, detach: bool) -> None:
    """Of local classifiers every layer has PyTorch's loss of its own scores: its gradients are those of autograd."""
    loss, kind = MODULES[name]
    _, x, labels, numbers = batch()
    y = labels if kind == "labels" else numbers
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    rule = MonoForward(model, loss=loss, aggregation="last", detach=detach)
    h, total = x, torch.zeros((), dtype=x.dtype)
    for layer, head in zip((model[0], model[2]), rule.heads, strict=True):
        h = torch.tanh(layer(h.detach() if detach else h))
        total = total + loss(head(h), y)
    total.backward()
    expected = {name: p.grad for name, p in rule.named_parameters()}
    torch.testing.assert_close(rule.assign_credit(x, y), total.detach())
    for name, p in rule.named_parameters():
        assert (p.grad is None) == (expected[name] is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=0, atol=1e-13, msg=name)
    torch.testing.assert_close(rule.objective(x, y), total)


def test_losses_of_layers_weigh_samples_and_choose_layers() -> None:
    _, x, _, numbers = batch()
    weights = torch.rand(7, dtype=x.dtype)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    rule = LocalClassifiers(model, loss="squared_error", aggregation="validation-loss")
    loss = rule.assign_credit(x, (numbers, weights))
    of_layers = (rule.layer_scores(x) - numbers).square().sum(dim=2) / 2
    torch.testing.assert_close(loss, (of_layers * weights).sum() / weights.sum())
    rule.calibrate([(x, numbers)])
    torch.testing.assert_close(rule.aggregation.weights, torch.softmax(-of_layers.mean(dim=1), dim=0))
    assert LocalClassifiers(
        nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)), loss="huber", aggregation="last"
    )


def tokens() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    return model.double(), torch.randn(4, 5, 6, dtype=torch.float64), torch.randint(-1, 4, (4, 5))


@pytest.mark.parametrize("rule", [Backprop, Ftp, Pepita, FeedbackAlignment, MonoForward, *DIRECT])
def test_tokens_whose_labels_are_ignored(rule: Any) -> None:
    """Tokens that do not meet are samples of one token each, and those that are ignored are as if not there."""
    loss = nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0, 3.0]), ignore_index=-1, label_smoothing=0.1)
    weights = torch.rand(4, 5, dtype=torch.float64)
    model, x, y = tokens()
    of_tokens = rule(model, loss=loss, example=x, generator=seeded(1))
    known = y >= 0
    found = of_tokens.assign_credit(x, (y, weights))
    of_samples = rule(tokens()[0], loss=loss, generator=seeded(1))
    torch.testing.assert_close(found, of_samples.assign_credit(x[known], (y[known], weights[known])))
    for ours, theirs in zip(of_tokens.parameters(), of_samples.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("shown", [1, 5])
@pytest.mark.parametrize("rule", [Backprop, Ftp, Pepita, FeedbackAlignment, MonoForward, *DIRECT])
def test_one_token_is_a_sample_that_stays_where_it_is(rule: Any, shown: int) -> None:
    """Scores have the axis that an example has shown, as the model's; without one a row of features is a sample."""
    model, x, y = tokens()
    of_tokens, of_samples = (
        rule(model, example=x[:, :shown], generator=seeded(1)),
        rule(tokens()[0], generator=seeded(1)),
    )
    one, label = x[:, :1], y[:, :1].clamp(min=0)
    assert of_tokens(one).shape == (4, 1, 4)
    assert of_samples(one).shape == (4, 4)
    torch.testing.assert_close(of_tokens(one)[:, 0], of_samples(one))
    found = of_tokens.assign_credit(one, label)
    torch.testing.assert_close(found, of_samples.assign_credit(one, label[:, 0]))
    for ours, theirs in zip(of_tokens.parameters(), of_samples.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with pytest.raises(ValueError, match=r"expected int64 of shape \(4, 1\), a label for each position of a sample"):
        of_tokens.assign_credit(one, label[:, 0])


def test_scores_of_positions_without_an_example_are_refused_by_backprop() -> None:
    """Where a loss of one's own might broadcast."""
    model, x, _ = tokens()
    rule = Backprop(model, loss=lambda scores, targets: (scores - targets).square().mean())
    said = refusal(lambda: rule.assign_credit(x[:, :4], x.new_ones(4, 4)))
    assert said.startswith("model: gives (4, 4, 4), expected (4, 4); where positions have a label"), said


@pytest.mark.parametrize("rule", [Ftp, Pepita, Foton, DifferenceTargetPropagation])
def test_labels_of_positions_are_refused_where_they_have_no_place(rule: type[OutputLoss]) -> None:
    model, x, y = tokens()
    said = "give the rule an example" if rule in (Ftp, Pepita) else r"make them samples, x.flatten\(0, 1\)"
    with pytest.raises(ValueError, match=rf"x: shape \(4, 5, 6\), whose positions have a label each; {said}"):
        rule(model).assign_credit(x, y.clamp(min=0))


OUTPUTS = [
    (rule, name)
    for rule in (*RULES.values(), DifferenceTargetPropagation)
    for name in MODULES
    if rule is not DirectRandomTargetProjection or name in ("classes", "probabilities", "several labels")
]


@pytest.mark.parametrize(("rule", "name"), OUTPUTS)
def test_the_output_layer_has_its_exact_gradient(rule: type[OutputLoss], name: str) -> None:
    """Under every rule, with PyTorch's own loss; of PEPITA with the clean activities."""
    loss, kind = MODULES[name]
    model, x, labels, numbers = batch()
    built = rule(model, loss=loss, **({"presynaptic": "clean"} if rule is Pepita else {}))
    y = labels if kind == "labels" else numbers
    expected = torch.autograd.grad(loss(model(x), y), [*model[-1].parameters()])
    built.assign_credit(x, y)
    for p, gradient in zip(model[-1].parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=1e-13)


@pytest.mark.parametrize("aggregation", ["readout", "range"])
def test_what_chooses_and_joins_layers_knows_which_labels_are_ignored(aggregation: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 16), torch.tensor([0, 1, 2, 3, -1, -1, 0, 1])
    rule = LocalClassifiers(dense(), loss=nn.CrossEntropyLoss(ignore_index=-1), aggregation=aggregation)
    rule.calibrate([(x, y)])
    hits = rule.aggregation.weights.clone()
    rule.calibrate([(x[y >= 0], y[y >= 0])])
    assert torch.equal(hits, rule.aggregation.weights)
    if aggregation == "readout":
        expected = nn.functional.cross_entropy(rule(x), y, ignore_index=-1)
        *_, of_readout = rule.stream(x, y)
        torch.testing.assert_close(of_readout.loss, expected.detach())


def test_losses_of_labels_are_shaped_as_labels() -> None:
    """A mean over scores is over those of one label, of which a sample may have many; a function is of all of them."""
    scores, numbers = torch.rand(2, 4, 5, 3, dtype=torch.float64)
    found = read_loss(nn.MSELoss()).of_labels(scores, numbers)
    torch.testing.assert_close(found, (scores - numbers).square().mean(dim=2))
    of_several = read_loss(nn.BCEWithLogitsLoss()).of_labels(scores, numbers)
    each = nn.functional.binary_cross_entropy_with_logits(scores, numbers, reduction="none")
    torch.testing.assert_close(of_several, each.mean(dim=2))
    own = read_loss(lambda given, targets: (given - targets).square().mean())
    assert own.of_labels(scores[0], numbers[0]).shape == (5,)
    assert own.of_labels(scores, numbers).shape == (4, 5)
    assert own.count(scores[..., :1], numbers) == 20, "of one score each"


@pytest.mark.parametrize("rule", [Backprop, MonoForward, *DIRECT])
def test_one_sample_of_tokens(rule: Any) -> None:
    model, x, y = tokens()
    built = rule(model, example=x, generator=seeded(1))
    once = built.assign_credit(x[:1], y[:1].clamp(min=0))
    torch.testing.assert_close(built.assign_credit(x[[0, 0]], y[[0, 0]].clamp(min=0)), once)


OF_CLASSES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [None, 1])
@pytest.mark.parametrize("of_classes", [None, OF_CLASSES])
def test_means_of_batches_count_by_the_weight_of_their_labels(
    of_classes: torch.Tensor | None, ignored: int | None, weighted: bool
) -> None:
    """So counted, PyTorch's means of two batches are that of both."""
    scores, labels = torch.randn(6, 3, dtype=torch.float64, generator=seeded(0)), torch.tensor([0, 1, 2, 1, 0, 2])
    weights = torch.linspace(0.5, 2, 6, dtype=torch.float64)
    loss = CrossEntropy(class_weight=of_classes, ignore_index=ignored)

    def y(part: slice) -> Any:
        return (labels[part], weights[part]) if weighted else labels[part]

    first, second, both = slice(2), slice(2, 6), slice(6)
    total = [float(loss.total_weight(y(part))) for part in (first, second, both)]
    means = [loss.value(scores[part], y(part)).item() for part in (first, second, both)]
    assert total[0] + total[1] == pytest.approx(total[2], rel=1e-12)
    assert total[0] * means[0] + total[1] * means[1] == pytest.approx(total[2] * means[2], rel=1e-12)


@pytest.mark.parametrize("make", [CrossEntropy, BinaryCrossEntropy, SquaredError])
def test_vectors_of_labels_are_the_targets_weighted(make: type[Loss]) -> None:
    """As the loss weighs them, whose mean weight is 1."""
    scores, y = torch.randn(2, 5, 3, dtype=torch.float64, generator=seeded(0))
    y, weights = y.softmax(dim=1), torch.linspace(0.5, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(make().label_vectors(scores, y), y)
    share = (weights / weights.mean())[:, None]
    torch.testing.assert_close(make().label_vectors(scores, (y, weights)), share * y)
    assert make().total_weight((y, weights)) == weights.sum()
