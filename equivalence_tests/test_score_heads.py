"""Scores as modules: what they learn, what stays, and what changes with the epochs."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import (
    ChannelClassAssignment,
    DynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
)
from prograde.equivalence_tests.local_examples import K, batch, channels, dense, group_norm, images
from prograde.equivalence_tests.placement import seeded

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
