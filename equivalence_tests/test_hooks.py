"""Hooks on the user's modules are called as in any pass, or refused by name; so is a layer that was replaced."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prograde.accelerated.rules import Backprop, Foton, MonoForward
from prograde.accelerated.training.diagnostics.costs import layer_costs
from prograde.equivalence_tests.common_checks import Check, built, models, parametrize_with_rules
from prograde.equivalence_tests.rule_examples import EXAMPLES, Example, dense, images, refusal
from prograde.equivalence_tests.sides import TwinSide

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


@parametrize_with_rules(EXAMPLES, ["calls hooks"])
def test_a_forward_hook_sees_the_module_once_or_is_refused(rule: Example, check: Check) -> None:
    check(rule)


def test_which_rules_call_hooks(twin: TwinSide) -> None:
    """Those that call modules, and no others: a hook on the second layer."""
    called = set()
    for name, example in EXAMPLES.items():
        rule = example.build(twin.device)
        module = list(models(rule)[0].children())[1]
        module.register_forward_hook(lambda m, inputs, output: None)
        if refusal(lambda rule=rule, example=example: rule.assign_credit(*example.batch(twin.device))) == "accepted":
            called.add(name)
    assert {"backprop", "backprop, images", "mono-forward", "end to end", "backprop through time"} <= called
    assert not {"foton", "ftp, images", "pepita", "dtp", "symba", "recurrent ftp", "truncated"} & called


def test_a_hook_that_changes_what_a_layer_gives_is_honoured(twin: TwinSide) -> None:
    """Twice the output is twice the weight: the gradient by the weight is twice that by the doubled one."""
    example = EXAMPLES["mono-forward"]
    x, y = example.batch(twin.device)

    def double(model: Any) -> None:
        model[0].weight.data *= 2
        model[0].bias.data *= 2

    expected = example.build(twin.device, double)
    rule = example.build(twin.device, lambda model: model[0].register_forward_hook(lambda m, z, a: 2 * a))
    assert torch.equal(rule.assign_credit(x, y), expected.assign_credit(x, y)), "loss"
    for found, other in zip(rule.parameters(), expected.parameters(), strict=True):
        if found.grad is None:
            assert other.grad is None
        elif found is rule.model[0].weight or found is rule.model[0].bias:  # type: ignore[index]
            assert torch.allclose(found.grad, 2 * other.grad, rtol=1e-12, atol=0), "by the layer's own parameters"
        else:
            assert torch.allclose(found.grad, other.grad, rtol=1e-12, atol=0), "by all others"


def test_a_hook_may_read_values(twin: TwinSide) -> None:
    """Sizes are checked on the meta device, where there are none."""
    model = images().to(twin.device, torch.float64)
    read: list[float] = []
    for module in model[:3]:  # type: ignore[index]
        module.register_forward_hook(lambda m, inputs, output: read.append(output.sum().item()))
    rule = MonoForward(model, grid=1)
    rule.assign_credit(*EXAMPLES["mono-forward, images"].batch(twin.device))
    assert len(read) == 3
    assert len(layer_costs(model, (3, 8, 8))) == 5
    assert len(read) == 3, "nothing is computed"


REGISTER: dict[str, tuple[Callable[[Any], object], str]] = {
    "forward": (lambda model: model[1].register_forward_hook(lambda *_: None), "layer '1': a forward hook"),
    "before": (lambda model: model[0].register_forward_pre_hook(lambda *_: None), "layer '0': a forward hook"),
    "of the model": (lambda model: model.register_forward_hook(lambda *_: None), "model: a forward hook"),
    "backward": (lambda model: model[2].register_full_backward_hook(lambda *_: None), "layer '2': a backward hook"),
    "before backward": (
        lambda model: model[2].register_full_backward_pre_hook(lambda *_: None),
        "layer '2': a backward hook",
    ),
    "of a parameter": (lambda model: model[2].weight.register_hook(lambda g: None), "layer '2': a hook on its weight"),
    "of a gradient": (
        lambda model: model[2].bias.register_post_accumulate_grad_hook(lambda p: None),
        "layer '2': a hook on its bias",
    ),
}


@pytest.mark.parametrize("kind", REGISTER)
def test_hooks_that_a_rule_does_not_call_are_refused(kind: str, twin: TwinSide) -> None:
    """When it is built, and when they come later; those of `rule(x)`, where the model itself is called, are welcome."""
    register, expected = REGISTER[kind]
    x, y = EXAMPLES["foton"].batch(twin.device)
    model = dense().to(twin.device, torch.float64)
    rule = Foton(model)
    register(model)
    assert refusal(lambda: rule.assign_credit(x, y)).startswith(expected), kind
    assert refusal(lambda: Foton(model)).startswith(expected), kind
    assert refusal(lambda: rule(x)) == "accepted"
    honoured = refusal(lambda: Backprop(model).assign_credit(x, y))
    assert honoured == "accepted" if kind != "of a gradient" else honoured.startswith(expected), kind


def test_a_parameter_that_processes_share_is_refused() -> None:
    """By the name of its type, when the rule is built and in a step; FSDP puts it where the parameter was."""
    shared = type("DTensor", (nn.Parameter,), {})
    x, y = EXAMPLES["foton"].batch(torch.device("cpu"))
    model = dense().double()
    rule = Foton(model)
    model[2].weight = shared(model[2].weight.detach())
    assert refusal(lambda: rule.assign_credit(x, y)).startswith("layer '2': in FSDP"), "in a step"
    assert refusal(lambda: Foton(model)).startswith("layer '2': in FSDP"), "when it is built"


@pytest.mark.parametrize("name", ["mono-forward", "backprop", "foton", "dfa", "forward-forward", "recurrent ftp"])
def test_weights_that_are_pruned_after_the_rule_was_built_are_named(name: str) -> None:
    """In a step, which would not train what they are computed from; a network that is pruned for good goes on."""
    rule, x, y = built(EXAMPLES[name])
    where, weight = next((path, p) for path, p in rule.model.named_parameters() if p.dim() > 1)
    where, _, key = where.rpartition(".")
    prune.random_unstructured(rule.model.get_submodule(where), key, 0.5)
    said = refusal(lambda: rule.assign_credit(x, y))
    assert said.startswith(f"layer '{where}': its parameter '{key}' came, went or is computed since the "), said
    if name in ("backprop", "mono-forward"):
        assert refusal(lambda: rule(x)) == "accepted", "scores of the pruned model"
    prune.remove(rule.model.get_submodule(where), key)
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted", "of a parameter in its place"
    assert rule.model.get_parameter(f"{where}.{key}").grad.shape == weight.shape


@parametrize_with_rules(EXAMPLES, ["names a replaced layer"])
def test_a_layer_that_was_replaced_is_named(rule: Example, check: Check) -> None:
    check(rule)


def test_layers_that_come_and_go_are_named(twin: TwinSide) -> None:
    x, y = EXAMPLES["foton"].batch(twin.device)
    model = nn.Sequential(nn.Sequential(nn.Linear(16, 8), nn.Tanh()), nn.Linear(8, 4)).to(twin.device, torch.float64)
    rule = copy.deepcopy(Foton(model))
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted", "of a copy"
    rule.model.append(nn.Tanh())  # type: ignore[operator]
    assert refusal(lambda: rule.assign_credit(x, y)).startswith("layer '2': replaced, added or removed since the Foton")
    del rule.model[2]  # type: ignore[attr-defined]
    rule.model[0][1] = nn.ReLU()  # type: ignore[index]
    message = refusal(lambda: rule(x))
    assert message.startswith("layer '0.1': replaced, added or removed since the Foton"), f"one for another: {message}"
    rule.model = dense()
    assert refusal(lambda: rule(x)).startswith("model: replaced since the Foton")
