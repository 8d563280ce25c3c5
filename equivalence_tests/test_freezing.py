"""Freezing: a parameter with `requires_grad=False` stays as it is, at any time, and the others learn as before."""

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.rules import Backprop, Foton, HybridDynamicTemperature, MonoForward
from prograde.accelerated.training import alignment
from prograde.equivalence_tests.common_checks import Check, chosen, close, credit, parametrize_with_rules
from prograde.equivalence_tests.rule_examples import EXAMPLES, Example, dense, refusal
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.usefixtures("ours_only")


@pytest.mark.slow
@pytest.mark.smoke
@parametrize_with_rules(EXAMPLES, ["honours freezing"])
def test_what_is_frozen_since_stays_as_it_is_and_others_learn_as_before(rule: Example, check: Check) -> None:
    check(rule)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_was_frozen_before_stays_as_it_is_and_others_learn_as_before(name: str, twin: TwinSide) -> None:
    example = EXAMPLES[name]
    x, y = example.batch(twin.device)
    orthogonal: dict[str, Tensor] = {}
    if "foton" in name or "orthogonal" in name:
        built = example.build(twin.device)
        orthogonal = {key: value.detach().clone() for key, value in built.model.named_parameters()}  # type: ignore[union-attr]

    def freeze(model: nn.Module, frozen: list[str]) -> None:
        for key, parameter in model.named_parameters():
            if key in orthogonal:
                parameter.data.copy_(orthogonal[key])
            parameter.requires_grad_(key not in frozen)

    expected = credit(example.build(twin.device, lambda model: freeze(model, [])), x, y, 1)
    for frozen in chosen(example.model()):
        rule = example.build(twin.device, lambda model, frozen=frozen: freeze(model, frozen))
        found = credit(rule, x, y, 1)
        model = rule.rule.model if hasattr(rule, "rule") else getattr(rule, "model", None) or rule.members[0].model  # type: ignore[index]
        before = {key: value.clone() for key, value in model.named_parameters() if key in frozen}
        assert set(before) == set(frozen)
        for key, parameter in rule.named_parameters():
            if parameter.requires_grad:
                assert close(found[key], expected[key]), f"{key}: another gradient, with {frozen} frozen"
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for seed in (1, 2):
            credit(rule, x, y, seed)
            optimizer.step()
            rule.constrain(optimizer)
        for key, value in before.items():
            assert torch.equal(dict(model.named_parameters())[key], value), f"{key}: frozen, and changed"
            if orthogonal:
                assert torch.equal(value, orthogonal[key]), f"{key}: frozen, and replaced when the rule was built"


@pytest.mark.smoke
@pytest.mark.parametrize("kind", [Foton, lambda model: Backprop(model, orthogonal=True)])
def test_a_frozen_weight_that_is_not_orthogonal_is_refused_where_it_should_be(kind, twin: TwinSide) -> None:
    model = dense().to(twin.device)
    model[2].weight.requires_grad_(False)
    first = model[0].weight.detach().clone()
    message = refusal(lambda: kind(model))
    assert message.startswith("weight of layer '2': frozen and not orthogonal, "), "refused"
    assert message.endswith("; freeze it once it is held"), message
    assert torch.equal(model[0].weight, first), "nothing half done"


@pytest.mark.smoke
def test_frozen_layers_are_left_out_of_the_alignment(twin: TwinSide) -> None:
    example = EXAMPLES["mono-forward"]
    rule = example.build(twin.device)
    assert isinstance(rule, MonoForward)
    rule.model[0].requires_grad_(False)
    assert list(alignment(rule, *example.batch(twin.device))) == ["2"]
    rule.requires_grad_(False)
    assert alignment(rule, *example.batch(twin.device)) == {}


@pytest.mark.smoke
def test_frozen_thresholds_are_not_set_by_the_first_batch(twin: TwinSide) -> None:
    example = EXAMPLES["hybrid-dynamic-temperature"]
    rule = example.build(twin.device)
    assert isinstance(rule, HybridDynamicTemperature)
    rule.theta.requires_grad_(False)
    rule.assign_credit(*example.batch(twin.device))
    assert torch.equal(rule.theta, torch.zeros_like(rule.theta)), "theta"


@pytest.mark.smoke
def test_thresholds_that_were_frozen_are_set_by_the_first_batch_they_learn_from(twin: TwinSide) -> None:
    example = EXAMPLES["hybrid-dynamic-temperature"]
    rule = example.build(twin.device)
    assert isinstance(rule, HybridDynamicTemperature)
    for frozen in (True, False):
        rule.theta.requires_grad_(not frozen)
        rule.assign_credit(*example.batch(twin.device))
        assert bool(rule.warm) is not frozen, "set by a batch"
