"""What is measured of a rule's units: by hand where that can be done, and without a trace in the rule."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.rules import (
    Backprop,
    CreditAssignment,
    ForwardForward,
    Foton,
    MonoForward,
    RecurrentFtp,
    Rule,
)
from prograde.accelerated.training import alignment, margin_summary, unit_diagnostics
from prograde.accelerated.training.diagnostics.unit_diagnostics import class_separation, dead_share
from prograde.equivalence_tests.rule_examples import EXAMPLES

CPU = torch.device("cpu")


def test_the_class_separation_by_hand() -> None:
    """Classes of one sample and of three, means 6 and 2 around 3: between 9 + 3 * 1 of 9 + 1 + 1 + 4 + ... in all."""
    h = torch.tensor([[6.0], [2.0], [1.0], [3.0]])
    labels = torch.tensor([1, 0, 0, 0])
    assert class_separation(h, labels).item() == pytest.approx((9 + 3) / (9 + 1 + 4 + 0))
    assert class_separation(torch.ones(4, 2), labels).item() == 0
    assert class_separation(labels[:, None].half() + 1000, labels).item() == pytest.approx(1)
    maps = torch.randn(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert class_separation(maps, torch.arange(12) % 3) == class_separation(maps.flatten(1), torch.arange(12) % 3)


def test_the_class_separation_of_noise_is_that_of_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    h, labels = torch.randn(201, 2000, generator=generator), torch.arange(201) % 11
    assert class_separation(h, labels).item() == pytest.approx(10 / 200, rel=0.05)


def test_dead_units_are_those_that_never_change() -> None:
    h = torch.tensor([[0.0, 1, 5, 0], [0, 2, 5, 0], [0, 3, 5, 1]])
    assert dead_share(h).item() == 0.5
    assert dead_share(torch.stack([h, h + torch.tensor([1.0, 0, 0, 0])])).item() == 0.25, "positions count as samples"


def whole_state(rule: CreditAssignment) -> list[Any]:
    generator = getattr(rule, "generator", None)
    return [
        [None if p.grad is None else p.grad.clone() for p in rule.parameters()],
        [module.training for module in rule.modules()],
        [torch.get_rng_state(), None if generator is None else generator.get_state()],
        copy.deepcopy(rule.state_dict()),
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_rule_is_measured_and_left_as_it_was(name: str) -> None:
    example = EXAMPLES[name]
    rule, (x, y) = example.build(CPU), example.batch(CPU, 12)
    assert isinstance(rule, Rule)
    rule.assign_credit(x, y)
    before = whole_state(rule)
    found = unit_diagnostics(rule, x, y)
    torch.testing.assert_close(whole_state(rule), before, rtol=0, atol=0)
    assert list(found) == [unit.name for unit in rule.units]
    assert {unit: values["alignment"] for unit, values in found.items()} == alignment(rule, x, y)
    rule.eval()
    rule.assign_credit(x, y)
    for unit in rule.units:
        gradients = [p.grad for p in unit.parameters if p.grad is not None]
        if "noise" not in name and "hardware" not in name and gradients:
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            assert found[unit.name]["update_norm"] == pytest.approx(norm.item(), rel=1e-6)
    if not rule.wants_sequences:
        assert all(0 <= values["dead"] <= 1 for values in found.values())
        separation = {key for values in found.values() for key in values if key.endswith("separation")}
        assert separation == {"separation" if isinstance(rule, ForwardForward) else "class_separation"}


@pytest.mark.parametrize("name", ["foton", "backprop, images", "ftp, modules", "foton, rotations"])
def test_the_last_activities_are_the_scores(name: str) -> None:
    example = EXAMPLES[name]
    rule, (x, y) = example.build(CPU).eval(), example.batch(CPU)
    *_, last = rule.activities(x, y)
    torch.testing.assert_close(last, rule(x))


def test_activities_of_local_classifiers_are_what_they_score() -> None:
    rule, (x, y) = EXAMPLES["mono-forward, images"].build(CPU).eval(), EXAMPLES["mono-forward, images"].batch(CPU)
    for h, feature in zip(rule.activities(x, y), rule.layer_features(x), strict=True):
        assert torch.equal(h, feature)


@pytest.mark.parametrize("name", ["forward-forward", "forward-forward, images", "forward-forward, pairs"])
def test_activities_of_forward_forward_have_the_goodness_of_positive_data(name: str) -> None:
    rule, (x, y) = EXAMPLES[name].build(CPU).eval(), EXAMPLES[name].batch(CPU)
    layers = rule.layer_goodness(x, y)
    assert len(layers) > 1
    for h, layer in zip(rule.activities(x, y), layers, strict=True):
        torch.testing.assert_close(rule.goodness.value(h), layer.positive)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(32, 6, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def test_what_is_planted_is_found() -> None:
    """Three dead units of eight, in the layer that has them; a weight that is off; a frozen layer."""
    rule, (x, y) = Foton(network()), batch()
    whole = unit_diagnostics(rule, x, y)
    assert whole["0"]["defect"] < 5e-3
    assert "defect" not in whole["4"], "the last layer is free"
    with torch.no_grad():
        rule.model[2].bias.copy_(torch.tensor([-100.0] * 3 + [100.0] * 5))
        rule.model[0].weight[0] *= 2**0.5
    found = unit_diagnostics(rule, x, y)
    assert (found["2"]["dead"], found["0"]["dead"]) == (3 / 8, whole["0"]["dead"])
    assert found["0"]["defect"] > 0.1 > found["2"]["defect"]
    rule.model[2].weight.requires_grad_(False)
    assert "alignment" not in unit_diagnostics(rule, x, y)["2"]


def test_the_separation_is_that_of_the_margins() -> None:
    torch.manual_seed(0)
    rule, (x, y) = ForwardForward(network(), generator=torch.Generator().manual_seed(0)), batch()
    by_margins = {name: values["separation"] for name, values in margin_summary(rule, x, y).items()}
    assert {name: values["separation"] for name, values in unit_diagnostics(rule, x, y).items()} == by_margins


def test_a_layer_that_tells_classes_apart_is_seen() -> None:
    """Trained on classes that can be told apart, the last hidden layer tells them better than it did before."""
    y = torch.arange(60) % 3
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)) + 2 * nn.functional.one_hot(y, 6)
    rule = MonoForward(network())
    before = unit_diagnostics(rule, x, y)["2"]["class_separation"]
    optimizer = torch.optim.Adam(rule.parameters(), 0.02)
    for _ in range(60):
        rule.assign_credit(x, y)
        optimizer.step()
    assert unit_diagnostics(rule, x, y)["2"]["class_separation"] > before + 0.2


class Reader(nn.Module):
    """A label from the last state of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h: Tensor = self.gru(x)[0]
        return self.head(h[torch.arange(len(x)), lengths - 1])  # type: ignore[no-any-return]


def test_sequences_of_several_lengths() -> None:
    torch.manual_seed(0)
    model = Reader()
    rule = RecurrentFtp(model, units=[model.gru, model.head])
    x, lengths, y = torch.randn(8, 7, 5), torch.randint(3, 8, (8,)), torch.arange(8) % 3
    found = unit_diagnostics(rule, (x, lengths), y)
    assert found["head"]["alignment"] == pytest.approx(1)
    assert [set(values) for values in found.values()] == [{"alignment", "update_norm"}] * 2


def test_what_is_no_rule_and_targets_without_classes() -> None:
    x, y = batch()
    with pytest.raises(TypeError, match="unit_diagnostics takes a Rule"):
        unit_diagnostics(network(), x, y)  # type: ignore[arg-type]
    rule = Backprop(network(), loss="squared_error")
    found = unit_diagnostics(rule, x, torch.randn(32, 3))
    assert all("class_separation" not in values and "dead" in values for values in found.values())
