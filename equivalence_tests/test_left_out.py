"""What a rule says that it leaves out, `rule.left_out`: the parameters that no step changes, and nothing else."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.rules import (
    ChannelCompetition,
    CreditAssignment,
    DirectFeedbackAlignment,
    DynamicTemperature,
    Ftp,
    Hardware,
    MonoForward,
    SymBa,
)
from prograde.equivalence_tests.common_checks import Check, parametrize_with_rules
from prograde.equivalence_tests.rule_examples import EXAMPLES, Example, K, dense, normalised

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


def without_gradient(rule: CreditAssignment) -> set[str]:
    return {name for name, parameter in rule.named_parameters() if parameter.grad is None}


@parametrize_with_rules(EXAMPLES, ["fills every .grad"])
def test_it_names_what_has_no_gradient(rule: Example, check: Check) -> None:
    check(rule)


class Aside(nn.Module):
    """A network with a layer that its scores do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.last = nn.Linear(16, 8), nn.Linear(16, 3), nn.Linear(8, K)
        self.aside.requires_grad_(False)  # else units without it are refused

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(torch.tanh(self.first(x)))
        return scores


def stem() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(16), *normalised())


NO_UNIT, STEM = (
    "in no unit: the rule's scores do not depend on it",
    "before the first unit, whose loss does not reach it",
)
BEHIND = "behind the score of unit '{}', whose loss does not reach it".format
LOCAL = {"3": BEHIND("1"), "6": BEHIND("4"), "7": NO_UNIT, "0": STEM}

CASES: dict[str, tuple[Callable[[], CreditAssignment], dict[str, str]]] = {
    "nothing": (lambda: DirectFeedbackAlignment(dense()), {}),
    "layers before the first target": (
        lambda: Ftp(dense(), inject=2), {"0": "before unit 2, the first with a target"},
    ),
    "what scores do not depend on": (
        lambda: DirectFeedbackAlignment(Aside(), units=["first", "last"], example=torch.randn(2, 16)),
        {"aside": NO_UNIT},
    ),
    "what gives scores to other rules": (lambda: SymBa(dense()), {"4": NO_UNIT}),
    "what is around a local loss": (lambda: MonoForward(stem()), LOCAL),
    "less where the loss sees the normalisation": (lambda: ChannelCompetition(stem()), {"0": STEM, "7": NO_UNIT}),
    "what no loss reaches": (lambda: MonoForward(stem(), detach=False), {"6": BEHIND("4"), "7": NO_UNIT}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_says_why(name: str) -> None:
    """By layers here; frozen ones are named all the same."""
    make, expected = CASES[name]
    rule = make()
    found = {name.removeprefix("model.").rpartition(".")[0]: why for name, why in rule.left_out.items()}
    assert found == expected, "reasons"
    rule.assign_credit(torch.randn(8, 16), torch.arange(8) % K)
    assert set(rule.left_out) == without_gradient(rule), "left out"
    rule.requires_grad_(False)
    assert set(rule.left_out) == without_gradient(rule) & {f"model.{key}.{p}" for key in expected for p in PARTS}


PARTS = ("weight", "bias")


def test_what_a_wrapped_rule_says() -> None:
    bare, wrapped = (make(DynamicTemperature(normalised())) for make in (lambda rule: rule, partial(Hardware, bits=8)))
    assert wrapped.left_out == {f"rule.{name}": why for name, why in bare.left_out.items()}, "by its own names"
    assert [p.shape for p in wrapped.no_weight_decay()] == [()] * 2, "what weight decay leaves alone"
