"""`rule.step(x, y, optimizer)` is `assign_credit`, the optimizer's step and `constrain`, to rounding."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import RULES, Ftp, MonoForward, Rule
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import TwinSide
from prograde.equivalence_tests.test_rules import make

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = seeded(2)
    return [
        (torch.randn(9, 20, dtype=torch.float64, generator=drawn), torch.randint(4, (9,), generator=drawn))
        for _ in range(steps)
    ]


def trained(rule: Rule, optimizer: torch.optim.Optimizer, in_one: bool, steps: int = 4) -> tuple[list[Any], Any, Any]:
    """The losses, the parameters and the optimizer's state after some steps."""
    if rule.generator is not None:
        rule.generator.manual_seed(1)
    torch.manual_seed(1)
    losses = []
    for x, y in batches(steps):
        if in_one:
            losses.append(rule.step(x, y, optimizer))
        else:
            losses.append(rule.assign_credit(x, y))
            optimizer.step()
            rule.constrain(optimizer)
    return losses, rule.state_dict(), optimizer.state_dict()["state"]


def check_same(rule: Rule, optimizer: Callable[[Any], torch.optim.Optimizer]) -> Rule:
    other = copy.deepcopy(rule)
    expected = trained(rule, optimizer(rule.parameters()), in_one=False)
    found = trained(other, optimizer(other.parameters()), in_one=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    return other


def sgd(**settings: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.05, **settings)


OPTIMIZERS = {
    "SGD": sgd(),
    "weight decay": sgd(weight_decay=0.3),
    "momentum": sgd(momentum=0.8),
    "momentum, damped and decayed": sgd(momentum=0.8, dampening=0.4, weight_decay=0.3),
    "Nesterov": sgd(momentum=0.8, nesterov=True),
    "ascent": sgd(maximize=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
}


@pytest.mark.parametrize("name", RULES)
def test_every_rule(name: str) -> None:
    torch.manual_seed(3)
    check_same(make(name, dense().double(), seeded(1)), OPTIMIZERS["momentum, damped and decayed"])


@pytest.mark.parametrize("kind", [MonoForward, Ftp])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer: str, kind: type[Rule]) -> None:
    torch.manual_seed(3)
    check_same(kind(dense().double()), OPTIMIZERS[optimizer])
