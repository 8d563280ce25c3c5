"""DTG-FF's dense hybrid, whose classifier is trained by backpropagation."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import HybridDynamicTemperature, MonoForward
from prograde.equivalence_tests.local_examples import K, batch, dense
from prograde.equivalence_tests.placement import seeded

pytestmark = pytest.mark.usefixtures("ours_only")


def load_through(parent: nn.ModuleDict, state: dict[str, torch.Tensor]) -> None:
    parent.load_state_dict({f"rule.{name}": value for name, value in state.items()})


def hybrid(activation: type[nn.Module] = nn.Tanh) -> HybridDynamicTemperature:
    """With temperatures, thresholds and normalisations unlike one another, and warm."""
    layers = [activation() if isinstance(module, nn.Tanh) else module for module in dense()]
    generator = seeded(0)
    rule = HybridDynamicTemperature(nn.Sequential(*layers), share=0.3, amplitude=2.0, generator=generator)
    with torch.no_grad():
        for array in (rule.alpha, rule.theta, *rule.norms.parameters()):
            array.uniform_(0.2, 1.5)
        rule.warm.fill_(True)
    return rule


def hybrid_streams(rule: HybridDynamicTemperature, x: torch.Tensor, y: torch.Tensor) -> Any:
    """By the docstring alone: g_l / T_l of both streams for the next draw of wrong labels; the classifier's scores."""
    draws = seeded(0)
    draws.set_state(rule.generator.get_state())  # type: ignore[union-attr]
    wrong = (y + torch.randint(1, K, y.shape, generator=draws)) % K
    linears, activation = [block.linear for block in rule.blocks], rule.model.get_submodule("1")
    temperature = 0.1 + 1.9 / (1 + (-rule.alpha).exp())

    def with_label(label: torch.Tensor) -> torch.Tensor:
        return torch.cat([2.0 * label, x[:, K:]], dim=1)

    found = []
    for labels in (y, wrong):
        h, goodness = with_label(nn.functional.one_hot(labels, K).double()), []
        for linear, t in zip(linears, temperature, strict=True):
            h = activation(linear(h))
            goodness.append((h * h).mean(dim=1) / t)
            h = h.detach()
            h = (h - h.mean(dim=1, keepdim=True)) / (h.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
        found.append(torch.stack(goodness))
    h, seen = with_label(torch.full((len(x), K), 1 / K, dtype=x.dtype)), []
    for linear, norm in zip(linears[:-1], rule.norms, strict=True):
        a = linear(h)
        z = (a - a.mean(dim=0)) / (a.var(dim=0, correction=0) + 1e-5).sqrt()
        seen.append(z * norm.weight + norm.bias)
        h = activation(a)
    return *found, rule.classifier(torch.cat(seen, dim=1))


def test_a_hybrid_learns_by_its_definition():
    """.grad is autograd's of the loss in the docstring; a layer's own part of it reaches no other layer."""
    rule = hybrid()
    x, y = batch(MonoForward(dense()))
    good, bad, scores = hybrid_streams(rule, x, y)
    theta = (1 + rule.theta.exp()).log()[:, None]
    local = ((1 + (theta - good).exp()).log() + (1 + (bad - theta).exp()).log()).mean(dim=1)
    expected = 0.3 * local.sum() + nn.functional.cross_entropy(scores, y)
    names = [name for name, p in rule.named_parameters() if not name.startswith("model.6")]
    held = [rule.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(expected, held)
    assert rule.assign_credit(x, y).item() == pytest.approx(expected.item(), rel=1e-12), "loss of a hybrid"
    for name, p, g in zip(names, held, gradients, strict=True):
        assert p.grad is not None, name
        assert torch.allclose(p.grad, g, rtol=1e-9, atol=1e-13), f"{name} of a hybrid"
    assert torch.allclose(rule(x), scores, rtol=1e-12), "its scores are the classifier's"
    weights = [block.linear.weight for block in rule.blocks]
    for layer, loss in enumerate(rule.losses(x, y)[0]):
        reached = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        layers = [other for other, gradient in enumerate(reached) if gradient is not None and gradient.any()]
        assert layers == [layer], "layers that a layer's own part reaches"


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_a_hybrid_begins_at_the_goodness_of_its_first_batch(size: float):
    """softplus(theta0) is the mean of g / T of both streams; above 20 theta0 is that itself, as published."""
    rule = hybrid(nn.ReLU)
    with torch.no_grad():
        rule.warm.fill_(False)
        for p in rule.model.parameters():
            p.mul_(size)
    x, y = batch(MonoForward(dense()))
    mean = torch.stack(hybrid_streams(rule, x, y)[:2]).mean(dim=(0, 2))
    assert (mean > 20).all() if size > 1 else (mean < 20).all()
    rule.assign_credit(x, y)
    expected = torch.where(mean > 20, mean, (mean.clamp(max=20).exp() - 1).log())
    assert torch.allclose(rule.theta, expected, rtol=1e-9), "theta of a hybrid"


def test_a_hybrid_warms_up_again_from_a_state_that_is_not_warm():
    torch.manual_seed(0)
    rule = HybridDynamicTemperature(dense())
    cold = copy.deepcopy(rule.state_dict())
    x, y = batch(MonoForward(dense()))
    rule.assign_credit(x, y)
    warm = rule.theta.clone()
    assert not torch.equal(warm, cold["theta"])
    rule.assign_credit(x[:2], y[:2])
    assert torch.equal(rule.theta, warm), "warmed up once"
    for load in (rule.load_state_dict, lambda state: load_through(nn.ModuleDict({"rule": rule}), state)):
        load(cold)
        rule.assign_credit(x, y)
        assert not torch.equal(rule.theta, cold["theta"]), "warmed up again"
