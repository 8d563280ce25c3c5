"""Margins of layers: what they are, what they leave alone, and that a resumed training keeps them."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.rules import Backprop, CumulativeForwardForward, ForwardForward, LayerCollaboration
from prograde.accelerated.training import Epoch, UserError, build, default_recipe, fit, load, margin_summary, margins


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in ((12, 10), (10, 8), (8, 6)):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 3)
    ).double()


def batch(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, *shape, generator=generator, dtype=torch.float64), torch.arange(40) % 3


@pytest.mark.parametrize("shape", [(12,), (1, 3, 4)], ids=["dense", "images"])
def test_margins_are_of_the_labels_scores(shape: tuple[int, ...]) -> None:
    """Goodness of the right label over all layers is its score, and that of negatives is a wrong label's."""
    rule = ForwardForward(model() if len(shape) == 1 else images(), generator=torch.Generator().manual_seed(3))
    x, y = batch(*shape)
    found = list(margins(rule, x, y).values())
    scores = rule(x).detach()
    assert torch.allclose(sum(layer.positive for layer in found), scores.gather(1, y[:, None])[:, 0])
    wrong = torch.stack([layer.negative for layer in found]).sum(dim=0)
    nearest = (scores - wrong[:, None]).abs().min(dim=1)
    assert nearest.values.max() < 1e-9
    assert (nearest.indices != y).all()


def test_the_prior_is_the_margin_of_the_layers_before() -> None:
    """Whatever the rule's own loss is told."""
    rule = LayerCollaboration(model(), generator=torch.Generator().manual_seed(3))
    found = list(margins(rule, *batch(12)).values())
    before = torch.zeros(40, dtype=torch.float64)
    for layer in found:
        assert torch.allclose(layer.prior, before)
        before = before + layer.margin


def test_nothing_is_disturbed() -> None:
    rule = CumulativeForwardForward(model(), generator=torch.Generator().manual_seed(3))
    x, y = batch(12)
    rule.assign_credit(x, y)
    before = [p.grad.clone() for p in rule.parameters() if p.grad is not None]
    state = rule.generator.get_state()  # type: ignore[union-attr]
    summary = margin_summary(rule, x, y)
    assert summary == margin_summary(rule, x, y)
    assert torch.equal(rule.generator.get_state(), state)  # type: ignore[union-attr]
    assert all(torch.equal(p.grad, g) for p, g in zip(rule.parameters(), before, strict=False) if p.grad is not None)
    assert rule.training


def test_the_summary_of_margins_given_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """m = 0 behind P = 2: R = 2 / (1 + e^8); the first layer has no layer before it."""
    rule = CumulativeForwardForward(model())
    zero = torch.zeros(4)
    given = {"0": (zero + 2, zero, zero), "2": (zero, zero, zero + 2), "4": (-zero - 1, zero, zero - 2)}
    kind = type(next(iter(margins(rule, *batch(12)).values())))
    module = import_module("prograde.accelerated.training.diagnostics.margins")
    monkeypatch.setattr(module, "margins", lambda *_: {name: kind(*arrays) for name, arrays in given.items()})
    first, second, third = margin_summary(rule, *batch(12)).values()
    ratio = 2 / (1 + torch.tensor(8.0).exp().item())
    assert first == {"separation": 2, "log_attenuation": 0, "free_riding": 0, "starved": 0, "coverage": 1}
    assert second["separation"] == 0
    assert second["log_attenuation"] == pytest.approx(torch.tensor(ratio).log().item(), rel=1e-5)
    assert second["free_riding"] == pytest.approx(1 - ratio, rel=1e-5)
    assert (second["starved"], second["coverage"]) == (1, 1)
    assert (third["free_riding"], third["starved"], third["coverage"]) == (0, 0, 0)
    assert margin_summary(rule, *batch(12), gamma=0.0)["2"]["free_riding"] == 0


def test_a_rule_without_goodness_is_refused() -> None:
    with pytest.raises(UserError, match="rule: a Backprop, whose layers have no goodness"):
        margins(Backprop(model()), *batch(12))


def test_they_are_kept_with_the_epochs_of_a_resumed_training(tmp_path: Path) -> None:
    digits = load("digits")
    recipe = default_recipe("symba", "digits", hidden=(16, 12), epochs=3)
    whole = fit(build("symba", digits, recipe, seed=0), digits, recipe=recipe, measure=margin_summary)
    assert [list(epoch.measured) for epoch in whole.epochs] == [["0", "2"]] * 3

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    file = tmp_path / "stopped.pt"
    rule = build("symba", digits, recipe, seed=0)
    assert fit(rule, digits, recipe=recipe, measure=margin_summary, checkpoint=file, on_epoch=stop).interrupted
    rule = build("symba", digits, recipe, seed=0)
    resumed = fit(rule, digits, recipe=recipe, measure=margin_summary, resume=file)
    assert [epoch.measured for epoch in resumed.epochs] == [epoch.measured for epoch in whole.epochs]
