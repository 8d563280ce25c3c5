"""Scores as modules: what they learn, what stays, and what changes with the epochs."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from prograde.accelerated.rules import (
    ChannelClassAssignment,
    DynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
)
from prograde.accelerated.rules.local.score_heads import (
    ChannelHead,
    GroupHead,
    LinearHead,
    PrototypeHead,
    ReadoutHead,
    check_scores,
    grids,
    head_credit,
    head_loss,
    judged,
    size_of,
)
from prograde.accelerated.rules.local.units import LocalUnit
from prograde.accelerated.score_losses import cross_entropy
from prograde.accelerated.scores import Score, ScoreCredit, group_mean_square, linear_map, no_penalty
from prograde.equivalence_tests.local_examples import K, batch, channels, dense, group_norm, images
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import refusal

pytestmark = pytest.mark.usefixtures("ours_only")


def test_epochs_are_counted_in_half_precision() -> None:
    rule = channels().bfloat16()
    for _ in range(300):
        rule.calibrate([])
    assert [int(head.epochs) for head in rule.heads] == [300] * 3


def test_no_ramp_is_all_of_the_weight() -> None:
    ramped, whole = (channels(ramp=ramp, cooling=1.0, scaled=True, orthogonality=1.0) for ramp in (1, 0))
    ramped.calibrate([])
    for heads in zip(ramped.heads, whole.heads, strict=True):
        found, expected = (head.score().penalty(head.arrays())[0] for head in heads)
        assert found == expected > 0


def test_channels_cool_and_are_regularised_with_the_epochs() -> None:
    rule = ChannelClassAssignment(images(nn.InstanceNorm2d), settings={"cooling": 0.5, "ramp": 4})
    x, y = batch()
    first = rule.layer_scores(x)
    for _ in range(2):
        rule.calibrate([(x, y)])
    head: Any = rule.heads[0]
    assert head.epochs.item() == 2, "epochs counted"
    other = ChannelClassAssignment(images(nn.InstanceNorm2d), settings={"temperature": 0.25})
    other.heads[0].logits.data.copy_(head.logits)  # type: ignore[union-attr, operator]
    assert torch.allclose(rule.layer_scores(x)[0], other.layer_scores(x)[0], rtol=1e-10), "a quarter of the temperature"
    assert not torch.allclose(rule.layer_scores(x)[0], first[0], rtol=1e-3)
    loaded = ChannelClassAssignment(images(nn.InstanceNorm2d), settings={"cooling": 0.5, "ramp": 4})
    loaded.load_state_dict(rule.state_dict())
    assert torch.equal(loaded.layer_scores(x), rule.layer_scores(x)), "the epoch is part of the state"
    costs = []
    for epochs in (0, 2, 4, 8):
        head.epochs.fill_(epochs)
        head.cooling = 1.0
        costs.append(head.score().penalty(head.arrays())[0].item())
    assert costs[0] < costs[1] < costs[2] == costs[3], "grown"
    assert costs[1] - costs[0] == pytest.approx(costs[3] - costs[1], rel=1e-6), "evenly"


def test_static_and_frozen_assignments() -> None:
    """Contiguous groups, each summed; or a draw that stays; neither learns."""
    x, y = batch()
    static = ChannelClassAssignment(images(group_norm), assignment="static", aggregation="sum")
    h = static.layer_features(x)[0]
    pooled = 0.94 * h.mean(dim=(2, 3)) + 0.06 * h.amax(dim=(2, 3)) - 0.05 * h.amin(dim=(2, 3))
    groups = pooled.unflatten(1, (K, -1)).sum(dim=2)
    assert torch.allclose(static.layer_scores(x)[0], groups, rtol=1e-12), "contiguous groups"
    for assignment in ("static", "frozen"):
        rule = ChannelClassAssignment(images(group_norm), assignment=assignment)  # type: ignore[arg-type]
        before = copy.deepcopy(rule.heads.state_dict())
        assert not list(rule.heads.parameters())
        rule.assign_credit(x, y)
        assert all(torch.equal(before[name], value) for name, value in rule.heads.state_dict().items())
    drawn = [ChannelClassAssignment(dense(), assignment="frozen", generator=seeded(i)) for i in (1, 1, 2)]
    logits = [rule.heads[0].logits for rule in drawn]
    assert torch.equal(logits[0], logits[1])  # type: ignore[arg-type]
    assert not torch.equal(logits[0], logits[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_channels_in_groups_belong_to_one_class_in_any_precision(dtype: torch.dtype) -> None:
    rule = ChannelClassAssignment(dense().to(dtype), assignment="static")
    for head in rule.heads:
        score = head.score()
        found = score.value(torch.eye(head.logits.shape[0], dtype=dtype), head.arrays())
        assert torch.equal(found != 0, nn.functional.one_hot(found.argmax(dim=1), K) > 0), "one class a channel"
        assert torch.equal(found.argmax(dim=1).unique(), torch.arange(K)), "every class"


class Shifted(nn.Module):
    """A score whose gradients by activities and parameter are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1, K, dtype=torch.float64))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.offset


def test_gradients_of_ones_own_score_are_not_written_over() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, K), nn.ReLU()).double()
    rule = LocalClassifiers(model, score=lambda blocks, k: [Shifted()], num_classes=K)
    x, y = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), torch.tensor([1])
    rule.assign_credit(x, y)
    scores = model(x)
    assert (scores == 0).any(), "units at rest, whose part of a gradient is 0"
    expected = scores.softmax(dim=1) - nn.functional.one_hot(y, K)
    assert torch.allclose(rule.heads[0].offset.grad, expected, rtol=1e-12, atol=0), "all of the gradient"


def test_cells_are_fewer_the_more_channels_a_convolution_has() -> None:
    """Whatever dense layers follow."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 90), nn.ReLU(), nn.Linear(90, K),
    )  # fmt: skip
    assert [head.grid for head in PatchEnergy(model).heads] == [(2, 2), (1, 1), None], "cells of convolutions"


def test_cells_are_those_of_the_last_convolutions_channels() -> None:
    """Not of the widest."""
    layers = [layer for m, n in ((2, 8), (8, 16), (16, 4)) for layer in (nn.Conv2d(m, n, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, K))
    assert [head.grid for head in PatchEnergy(model).heads] == [(1, 1)] * 3


def test_linear_maps_start_as_those_of_pytorch() -> None:
    """Uniform, up to one by the root of their inputs, either way."""
    (head, *_) = MonoForward(nn.Sequential(nn.Linear(5, 400), nn.ReLU(), nn.Linear(400, K)), generator=seeded(0)).heads
    low, high = head.matrix.aminmax()
    assert -1 / 20 <= low < -0.9 / 20
    assert 0.9 / 20 < high <= 1 / 20


def test_temperatures_are_not_decayed() -> None:
    learned = [DynamicTemperature(dense()), channels(), ChannelClassAssignment(dense(), assignment="frozen")]
    names = [
        {name for name, p in rule.named_parameters() if any(p is q for q in rule.no_weight_decay())} for rule in learned
    ]
    assert names == [
        {f"heads.{i}.alpha" for i in range(3)}, {f"heads.{i}.log_temperature" for i in range(3)}, set(),
    ]  # fmt: skip
    assert MonoForward(dense()).no_weight_decay() == []


def test_what_a_rule_is_given_is_its_heads() -> None:
    """Other tests read it from the heads themselves."""
    temperatures: Any = DynamicTemperature(dense(), lowest=0.1, highest=1.5).heads
    assert {(head.lowest, head.highest) for head in temperatures} == {(0.1, 1.5)}, "bounds of temperatures"
    prototypes: Any = Hyperspherical(dense(), per_class=3, sharpness=4.0).heads
    assert {(head.sharpness, head.prototypes.shape[:2]) for head in prototypes} == {(4.0, (K, 3))}, "prototypes"


def unit(width: int = 8) -> LocalUnit:
    return LocalUnit("0", nn.Linear(2, width, dtype=torch.float64))


def maps(channels: int = 8) -> LocalUnit:
    return LocalUnit("0", nn.Conv2d(2, channels, 1, dtype=torch.float64))


def frozen(module: nn.Linear) -> nn.Linear:
    module.bias.requires_grad = False
    return module


HEADS: dict[str, Callable[[], nn.Module]] = {
    "groups": lambda: GroupHead(unit(), K),
    "squares of groups": lambda: GroupHead(unit(), K, square=True),
    "linear": lambda: LinearHead(unit(), K),
    "read-out": lambda: ReadoutHead(unit(), K),
    "prototypes": lambda: PrototypeHead(unit(), K, per_class=2),
    "channels": lambda: ChannelHead(unit(), K, orthogonality=0.5, ramp=0),
    "fixed channels": lambda: ChannelHead(unit(), K, assignment="frozen", orthogonality=0.5, ramp=0),
    "a module": lambda: nn.Linear(8, K, dtype=torch.float64),
    "a frozen bias": lambda: frozen(nn.Linear(8, K, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_credit_of_a_head_is_its_losses_gradient(name: str) -> None:
    """By the activities of the mean loss, by parameters with the penalty."""
    torch.manual_seed(0)
    head, y, loss = HEADS[name](), torch.arange(5) % K, cross_entropy()
    h = torch.rand(5, 8, dtype=torch.float64)
    credit = head_credit(head, h, y, loss, "0", K)
    seen = h.clone().requires_grad_()
    mean, cost = head_loss(head, seen, y, loss, "0", K)
    torch.testing.assert_close(credit.loss, mean.detach(), msg="loss")
    torch.testing.assert_close(credit.cost, cost.detach(), msg="cost")
    assert bool(cost > mean) == (name == "channels"), "a penalty"
    torch.testing.assert_close(credit.activities, torch.autograd.grad(mean, seen, retain_graph=True)[0])
    learned = [p for p in head.parameters() if p.requires_grad]
    assert [p for p, _ in credit.own] == learned
    for p, gradient in credit.own:
        torch.testing.assert_close(gradient, torch.autograd.grad(cost, p, retain_graph=True)[0])


class Reductions(TorchDispatchMode):
    """Counts operations by name that make fewer numbers than they read of `h`, or of what has its shape."""

    def __init__(self, h: torch.Tensor) -> None:
        super().__init__()
        self.size, self.found = h.numel(), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        reads = any(isinstance(each, torch.Tensor) and each.numel() == self.size for each in args)
        self.found[str(func)] += reads and isinstance(made, torch.Tensor) and made.numel() < self.size
        return made


@pytest.mark.parametrize(
    ("name", "times"), {"linear": 1, "read-out": 2, "prototypes": 1, "channels": 5, "prototypes of units": 3}.items()
)
def test_what_a_head_makes_of_activities_is_made_once(name: str, times: int) -> None:
    """Cells; for the temperature a sum beside; mean, maximum and minimum, and how many are as large and as small; of
    units the length, and a product for scores and for the gradient.
    """
    heads: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: LinearHead(maps(), K, grid=(2, 2)),
        "read-out": lambda: ReadoutHead(maps(), K, grid=(2, 2)),
        "prototypes": lambda: PrototypeHead(maps(), K, grid=(2, 2)),
        "channels": lambda: ChannelHead(maps(), K),
        "prototypes of units": lambda: PrototypeHead(unit(), K),
    }
    torch.manual_seed(0)
    head = heads[name]()
    h = torch.rand(5, 8, *[] if name.endswith("units") else [6, 6], dtype=torch.float64)
    with Reductions(h) as reductions:
        head_credit(head, h, torch.arange(5) % K, cross_entropy(), "0", K)
    assert reductions.found.total() == times, f"{+reductions.found}"


@pytest.mark.parametrize("score", [linear_map(), group_mean_square(K)])
def test_a_pullback_is_of_the_scores_own_functions(score: Score) -> None:
    torch.manual_seed(0)
    h, e, arrays = torch.rand(5, 8), torch.rand(5, K), (torch.rand(K, 8),)
    for found in (score, Score(score.value, lambda h, arrays, e: ScoreCredit(-h, ()))):
        scores, credit = found.pullback(h, arrays)
        torch.testing.assert_close(scores, found.value(h, arrays))
        activities, expected = credit(e).activities, found.credit(h, arrays, e).activities
        torch.testing.assert_close(activities, expected, msg="credit")


def test_hooks_of_a_head_are_called_in_a_step() -> None:
    rule = MonoForward(dense())
    x, y = batch(rule)
    seen: dict[str, torch.Tensor] = {}
    rule.heads[1].register_forward_hook(lambda head, inputs, scores: seen.update(h=inputs[0], scores=scores))
    rule.assign_credit(x, y)
    assert seen, "no hook was called"
    torch.testing.assert_close(seen["scores"], rule.heads[1](seen["h"]))


def test_scores_are_one_of_each_class() -> None:
    for shape, fits in (((5, 4), True), ((5, 3), False), ((5, 5), False), ((5,), False), ((5, 4, 4), False)):
        message = refusal(lambda: check_scores(torch.zeros(shape), "0", 4))  # noqa: B023
        said = f"score: {shape} of layer '0', expected (batch, 4), one of each class"
        assert message == ("accepted" if fits else said)


def test_scores_are_of_units_or_of_maps() -> None:
    head = LinearHead(maps(), K, grid=(1, 1))
    assert head(torch.zeros(5, 8, 3, 3, dtype=torch.float64)).shape == (5, K)
    for shape in ((8,), (5, 8, 3), (5, 8, 3, 3, 3)):
        said = f"score: activities of shape {shape}, expected (batch, units) or maps; put nn.Flatten before"
        assert refusal(lambda: head(torch.zeros(shape))) == said  # noqa: B023


def test_how_many_numbers_a_score_sees() -> None:
    assert size_of(unit(), None) == (8, None)
    assert size_of(unit(), (2, 3)) == (8, None), "units have no cells"
    assert size_of(maps(), (2, 3)) == (48, (2, 3))
    said = "layer '0': grid: None, expected the cells that its maps are pooled to"
    assert refusal(lambda: size_of(maps(), None)) == said


def test_cells_a_side() -> None:
    """Of all layers, of each, or by the channels."""
    units = [maps(4), maps(8), unit(64)]
    for sides, expected in ((2, [2, 2, 2]), ([1, 2, 3], [1, 2, 3]), ((3, 1, 1), [3, 1, 1]), (None, [2, 1, 1])):
        assert grids(units, sides) == [(side, side) for side in expected], sides
    assert grids([unit(4), unit(2)], None) == [(1, 1)] * 2, "without maps"
    for sides in (0, [1, 2], [1, 2, 0], [1, 2, 1.0], 2.0):
        said = f"grid: {sides}, expected a positive integer, or one for each of 3 layers"
        assert refusal(lambda: grids(units, sides)) == said  # type: ignore[arg-type] # noqa: B023


def test_a_loss_of_ones_own_is_the_mean_or_losses_and_derivatives() -> None:
    scores, y = torch.randn(5, K, dtype=torch.float64), torch.arange(5) % K
    expected = cross_entropy()(scores, y)
    mean: Any = nn.functional.cross_entropy
    pair: Any = lambda scores, y: tuple(expected)  # noqa: E731
    assert judged(pair, scores, y) == expected
    found = judged(mean, scores, y)
    torch.testing.assert_close(found.loss.mean(), expected.loss.mean())
    torch.testing.assert_close(found[1], expected[1])
    wrong: Any = lambda scores, y: [scores]  # noqa: E731
    assert refusal(lambda: judged(wrong, scores, y)).startswith("loss: gives a list, expected their mean, or losses")


BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"assignment": "drawn"}, "assignment: 'drawn', expected one of learned, static, frozen"),
    ({"pooling": (1.0, 0.0)}, "pooling: (1.0, 0.0), expected the weights of mean, maximum and minimum"),
    ({"pooling": (1.0, 0.0, math.inf)}, "pooling: (1.0, 0.0, inf), expected the weights of mean, maximum and minimum"),
    ({"temperature": 0.0}, "temperature: 0.0, expected a positive number"),
    ({"temperature": math.inf}, "temperature: inf, expected a positive number"),
    ({"cooling": 0.0}, "cooling: 0.0, expected more than 0 and at most 1"),
    ({"cooling": 1.1}, "cooling: 1.1, expected more than 0 and at most 1"),
    ({"entropy": -0.1}, "entropy: -0.1, expected 0 or more"),
    ({"orthogonality": math.inf}, "orthogonality: inf, expected 0 or more"),
    ({"ramp": -1}, "ramp: -1, expected 0 or more"),
]


@pytest.mark.parametrize(("options", "said"), BOUNDS)
def test_settings_of_channels(options: dict[str, Any], said: str) -> None:
    assert refusal(lambda: ChannelHead(unit(), K, **options)) == said


def test_settings_at_their_bounds_are_taken() -> None:
    for options in ({"cooling": 1.0}, {"entropy": 0.0}, {"orthogonality": 0.0}, {"ramp": 0}, {"pooling": (0, 0, 0)}):
        ChannelHead(unit(K), K, **options)  # as many channels as classes, too
    said = f"layer '0': {K - 1} channels, expected one for each class at least"
    assert refusal(lambda: ChannelHead(unit(K - 1), K)) == said
    said = f"layer '0': {K + 1} channels, expected a multiple of the {K} classes"
    assert refusal(lambda: GroupHead(unit(K + 1), K)) == said
    ReadoutHead(unit(), K, lowest=2.0, highest=2.0)
    for lowest, highest in ((0.0, 1.0), (2.0, 1.0), (1.0, math.inf)):
        said = f"lowest, highest: {lowest}, {highest}, expected 0 < lowest <= highest"
        assert refusal(lambda: ReadoutHead(unit(), K, lowest=lowest, highest=highest)) == said  # noqa: B023
    PrototypeHead(unit(), K, per_class=1)
    for per_class in (0, 1.0, True):
        said = f"per_class: {per_class}, expected a positive integer"
        assert refusal(lambda: PrototypeHead(unit(), K, per_class=per_class)) == said  # type: ignore[arg-type] # noqa: B023


def test_what_channels_start_from() -> None:
    """The temperature as its logarithm, groups of channels in turn, and as many epochs as none."""
    head: Any = ChannelHead(unit(6), 3, temperature=2.0, assignment="static")
    assert head.log_temperature.exp().item() == pytest.approx(2.0)
    assert head.epochs.item() == 0
    assert (head.logits == 0).nonzero().tolist() == [[0, 0], [1, 0], [2, 1], [3, 1], [4, 2], [5, 2]]
    assert not list(head.parameters())
    assert head.score().penalty is no_penalty
    learned: Any = ChannelHead(unit(6), 3)
    assert [name for name, _ in learned.named_parameters()] == ["logits", "log_temperature"]
    assert (learned.cooling, learned.ramp, learned.pooling) == (0.995, 50, (0.94, 0.06, -0.05)), "the paper's"
    assert (learned.entropy, learned.orthogonality, learned.log_temperature.item()) == (1e-2, 1e-3, 0), "the paper's"
