"""FOTON's streams: the same updates when one layer is held at a time, in memory that does not grow with depth."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import Foton
from prograde.accelerated.training.diagnostics.memory import LiveBytes
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


def model(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [nn.Linear(n_in, n_out), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:])).double()


def batch(n_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    x = torch.randn(24, n_in, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (24,), generator=generator)


def credited(rule: Foton, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    rule.assign_credit(x, y)
    return [p.grad.clone() for p in rule.parameters() if p.grad is not None]


@pytest.mark.parametrize("own_generator", [True, False], ids=["own generator", "PyTorch's generator"])
def test_recomputed_updates_are_the_same_under_dropout(own_generator: bool):
    """The masks of the second sweep are those of the first, and the next step draws others."""
    rules = []
    for recompute in (False, True):
        generator = seeded(5) if own_generator else None
        rules.append(Foton(model(12, 10, 8, 8, 3, dropout=0.4), recompute=recompute, generator=generator))
    seen = []
    for rule in rules:
        torch.manual_seed(7)
        seen.append([credited(rule, *batch(12)) for _ in range(2)])
    for ours, theirs in zip(*seen, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-14 * b.abs().max()), "same updates, layer by layer"
    assert not torch.equal(seen[1][0][0], seen[1][1][0]), "other masks at the next step"


@pytest.mark.parametrize("recompute", [False, True])
def test_a_layer_may_be_stepped_before_the_next_update_is_asked_for(recompute: bool):
    rule = Foton(model(12, 10, 8, 8, 3), recompute=recompute)
    at_once = copy.deepcopy(rule)
    x, y = batch(12)
    expected = credited(at_once, x, y)
    found: list[torch.Tensor] = []
    for update in rule.stream(x, y):
        assert update.gradients[1] is not None
        found += [update.gradients[0].clone(), update.gradients[1].clone()]
        with torch.no_grad():
            update.unit.module.weight -= 0.5 * update.gradients[0]
            update.unit.module.bias -= 0.5 * update.gradients[1]
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-14 * b.abs().max()), "updates of the weights as they were"


def peak(depth: int, recompute: bool) -> int:
    """Of a training step that takes each layer's update as it comes."""
    rule = Foton(model(20, *[32] * depth, 3, dropout=0.1), recompute=recompute)
    x, y = batch(20)
    with LiveBytes([x, y, *rule.parameters(), *rule.buffers()]) as live:
        for update in rule.stream(x, y):
            with torch.no_grad():
                update.unit.module.weight.sub_(update.gradients[0], alpha=0.1)
            del update
    return live.peak


def test_memory_does_not_grow_with_depth():
    """At most a tenth more at depth 64 than at depth 4, in bytes of live tensors. The ordinary form does grow."""
    shallow, deep = peak(4, recompute=True), peak(64, recompute=True)
    assert deep <= 1.1 * shallow, f"live bytes: {shallow} at depth 4, {deep} at depth 64"
    assert peak(64, recompute=False) > 5 * peak(4, recompute=False), "the count sees what is held"
