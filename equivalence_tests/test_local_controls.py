"""Backpropagation on the networks of local rules: deep supervision, end to end, ensembles."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.modules import small_cnn
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    BackpropEnsemble,
    DynamicTemperature,
    LocalClassifiers,
    MonoForward,
)
from prograde.equivalence_tests.local_examples import K, batch, channel_norm, dense, images, layer_norm

pytestmark = pytest.mark.usefixtures("ours_only")


KINDS: list[Callable[..., LocalClassifiers]] = [MonoForward, DynamicTemperature, BackpropDeepSupervision]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detach", [False, True])
def test_deep_supervision_is_the_gradient_of_the_sum(kind: Callable[..., LocalClassifiers], detach: bool) -> None:
    """With detach=False of the same network and heads; only the last layer learns the same without."""
    rule = kind(images(channel_norm), detach=detach)
    x, y = batch()
    loss = rule.assign_credit(x, y)
    ours = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    objective = rule.objective(x, y)
    objective.backward()
    assert loss.item() == pytest.approx(objective.item(), rel=1e-12), "the sum of the losses"
    assert set(ours) == {name for name, p in rule.named_parameters() if p.grad is not None}
    alike = {name for name, p in rule.named_parameters() if name in ours and torch.allclose(ours[name], p.grad, 1e-9)}
    if not detach:
        assert alike == set(ours), "backpropagated"
    else:
        heads = {name for name in ours if name.startswith("heads.")}
        assert alike == heads | {"model.11.weight", "model.11.bias"}, "detached"


def test_learned_normalisation_learns_under_backpropagation_alone() -> None:
    """A local rule leaves what stands outside of its layers as it is."""
    make = partial(small_cnn, (8, 8), K, 2, (0,), lambda channels: nn.GroupNorm(1, channels))
    x, y = batch()
    for kind, learns in ((MonoForward, False), (BackpropDeepSupervision, True), (Backprop, True)):
        rule = kind(make().double())
        rule.assign_credit(x, y)
        assert (rule.get_parameter("model.2.weight").grad is not None) == learns, kind.__name__


def test_end_to_end_is_autograd_and_backprop() -> None:
    model = images(channel_norm)
    x, y = batch()
    rule = Backprop(model, label_smoothing=0.1)
    loss = rule.assign_credit(x, y)
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    expected = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for grad, p in zip(ours, model.parameters(), strict=True):
        assert p.grad is not None
        assert torch.allclose(grad, p.grad, rtol=1e-12, atol=1e-15), "end to end"
    assert torch.allclose(rule(x), model(x), rtol=1e-12, atol=1e-14)


def test_an_ensemble_is_its_members_apart() -> None:
    models = [dense(layer_norm), dense(layer_norm)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.5)
    rule, members = BackpropEnsemble(models), [Backprop(copy.deepcopy(model)) for model in models]
    x, y = batch(members[0])  # type: ignore[arg-type]
    loss = rule.assign_credit(x, y)
    assert loss.item() == pytest.approx(sum(member.assign_credit(x, y).item() for member in members), rel=1e-12)
    expected = [p.grad for member in members for p in member.model.parameters()]
    for p, theirs in zip(rule.parameters(), expected, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, theirs), "members apart"
    probability = sum(member(x).softmax(dim=1) for member in members) / 2
    assert torch.allclose(rule(x).exp(), probability, rtol=1e-12), "mean probability"
    assert [unit.name for unit in rule.units] == [f"{i}.{n}" for i in (0, 1) for n in (0, 3, 6, 9)]


def test_learnable_parameters_are_those_of_the_published_comparison() -> None:
    """DTG-FF's synthetic experiment: 4 layers of 128 on 50 inputs, 10 classes."""

    def student() -> nn.Sequential:
        layers = [m for n in (50, 128, 128, 128) for m in (nn.Linear(n, 128), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(128, 10))

    def learned(rule: Any) -> int:
        rule.assign_credit(torch.randn(4, 50), torch.arange(4))
        return sum(p.numel() for p in rule.parameters() if p.grad is not None)

    assert learned(DynamicTemperature(student())) == 56_068
    assert learned(BackpropDeepSupervision(student())) == 61_224
    assert learned(Backprop(student())) == 57_354
    assert learned(BackpropEnsemble([student() for _ in range(4)])) == 229_416


def test_what_stands_before_the_first_layer_learns_with_it() -> None:
    """By backpropagation, and once."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(6), *[m for _ in range(3) for m in (nn.Linear(6, 6), nn.Tanh())], nn.Linear(6, K)
    )
    rule = LocalClassifiers(model, detach=False)
    before = list(model[0].parameters())
    for index, update in enumerate(rule.stream(torch.randn(5, 6), torch.arange(5) % K)):
        assert sum(any(p is held for held in before) for p, _ in update.pairs) == (0 if index else 2), index
