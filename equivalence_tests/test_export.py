"""What was trained, without its rule: `rule.export()`, and the same by `torch.export`."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.rules import Backprop, ForwardForward, Ftp, Hardware, HybridDynamicTemperature, MonoForward
from prograde.equivalence_tests.rule_examples import EXAMPLES, Example

DEVICE = torch.device("cpu")
EXPORTED = [name for name in EXAMPLES if "on hardware" not in name]
TRACED = [
    "foton, rotations", "ftp, modules", "forward-forward", "forward-forward, read-out", "forward-forward, pairs",
    "forward-forward, modules", "forward-forward, images", "hybrid-dynamic-temperature", "mono-forward, images",
    "hyperspherical", "dynamic-temperature", "patch-energy", "channel-competition, images", "channel-class-assignment",
    "deep supervision, read-out", "ensemble", "recurrent ftp, gru",
]  # fmt: skip
"""One for every way in which scores are made."""


def trained(example: Example) -> tuple[Any, Tensor]:
    """A rule after two steps, in evaluation mode, and a batch."""
    rule: Any = example.build(DEVICE)
    x, y = example.batch(DEVICE)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    for _ in range(2):
        rule.assign_credit(x, y)
        optimizer.step()
        rule.constrain(optimizer)
    rule.calibrate([(x, y)])
    return rule.eval(), x


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_module_gives_the_scores_of_its_rule(name: str) -> None:
    rule, x = trained(EXAMPLES[name])
    rule.train()
    module = rule.export()
    assert rule.training, "the rule is as it was"
    assert not any(part.training for part in module.modules()), "in evaluation mode"
    assert not any(parameter.requires_grad for parameter in module.parameters()), "frozen"
    mine = {parameter.data_ptr() for parameter in rule.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in module.parameters()}, "a copy"
    expected = rule.eval()(x)
    torch.testing.assert_close(module(x), expected, msg="the same scores")
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.zero_()
    torch.testing.assert_close(module(x), expected, msg="a copy")


@pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights:UserWarning")  # PyTorch's, of its nn.RNN
@pytest.mark.parametrize("name", TRACED)
def test_pytorch_exports_it_for_batches_of_any_size(name: str) -> None:
    rule, x = trained(EXAMPLES[name])
    batch = torch.export.Dim("batch")
    program = torch.export.export(rule.export(), (x,), dynamic_shapes=({0: batch},))
    larger = EXAMPLES[name].batch(DEVICE, 11)[0]
    torch.testing.assert_close(program.module()(larger), rule(larger))


def test_the_model_s_own_scores_are_exported_as_the_model() -> None:
    rule = Ftp(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    module = rule.export()
    assert type(module) is nn.Sequential
    assert list(module.state_dict()) == list(rule.model.state_dict())


@pytest.mark.parametrize("rule", [Ftp, ForwardForward, HybridDynamicTemperature, MonoForward])
def test_an_exported_module_flattens_what_the_model_flattens(rule: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    built, x = rule(model).eval(), torch.randn(5, 4, 4)
    torch.testing.assert_close(built.export()(x), built(x), msg="the same scores of images")


def test_noise_of_hardware_is_not_exported() -> None:
    rule = Hardware(Backprop(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))), bits=4)
    with pytest.raises(ValueError, match=r"rule: Hardware.*rule\.rule\.export\(\)"):
        rule.export()
