"""The diagnostics of layers that each guess the label: by hand on small arrays, and on a rule that is made for it."""

import importlib
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.command_line.options import Job
from prograde.accelerated.command_line.pictures import layer_curves, margin_curves
from prograde.accelerated.command_line.runs import Run, measured
from prograde.accelerated.rules import Backprop, LocalClassifiers
from prograde.accelerated.rules.local.layer_aggregation import Aggregation
from prograde.accelerated.training import Recipe, Split, UserError, fit, load
from prograde.accelerated.training.diagnostics.layer_study import (
    disagreement,
    goodness_vector,
    layer_accuracies,
    layer_study,
    layer_summary,
    mean_disagreement,
    oracle_accuracy,
    pooled_features,
    scalar_goodness,
    together,
)

LABELS = torch.tensor([0, 1, 2, 2, 1])
GUESSES = torch.tensor([[0, 1, 2, 0, 0], [0, 2, 2, 2, 0], [1, 2, 0, 1, 2]])
"""Right: layer 1 on samples 1 to 3, layer 2 on 1, 3 and 4, layer 3 on none; no layer on the last."""
SCORES = nn.functional.one_hot(GUESSES, 3).double() * torch.tensor([3.0, 0.1, 7.0]).view(3, 1, 1) - 1


def test_accuracies_by_hand() -> None:
    assert layer_accuracies(SCORES, LABELS).tolist() == pytest.approx([3 / 5, 3 / 5, 0])
    assert oracle_accuracy(SCORES, LABELS).item() == pytest.approx(4 / 5)


def test_disagreement_by_hand() -> None:
    pairs = disagreement(SCORES)
    assert pairs.tolist() == [[0, 0.4, 1], [0.4, 0, 0.8], [1, 0.8, 0]]
    assert mean_disagreement(pairs).item() == pytest.approx(2.2 / 3)
    assert mean_disagreement(disagreement(SCORES[:1])).item() == 0


def test_together_by_hand() -> None:
    """The last layer's scores are the greatest: in a sum it has the say."""
    found = together(SCORES, SCORES.sum(dim=0), LABELS)
    assert found["accuracies"] == pytest.approx([3 / 5, 3 / 5, 0])
    assert (found["accuracy"], found["oracle"], found["gap"]) == pytest.approx((0, 4 / 5, 4 / 5))
    assert found["disagreement"] == pytest.approx(2.2 / 3)
    assert found["pairwise"] == disagreement(SCORES).tolist()


def test_bounds_that_hold_for_any_scores() -> None:
    """Layers that differ in accuracy by d disagree on d at least; the oracle gains no more than they disagree."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (60,), generator=generator)
    scores = torch.randn(5, 60, 4, generator=generator) + nn.functional.one_hot(labels, 4)
    accuracies, pairs = layer_accuracies(scores, labels), disagreement(scores)
    assert torch.equal(pairs, pairs.T)
    assert (pairs >= (accuracies[:, None] - accuracies).abs() - 1e-12).all()
    for i in range(5):
        for j in range(5):
            oracle = oracle_accuracy(scores[[i, j]], labels)
            assert max(accuracies[i], accuracies[j]) <= oracle <= accuracies[i] + pairs[i, j] + 1e-12
    assert all(pairs[i, k] <= pairs[i, j] + pairs[j, k] + 1e-12 for i in range(5) for j in range(5) for k in range(5))


def test_goodness_of_images_and_of_vectors() -> None:
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float64).reshape(2, 3, 4, 6)
    parts = (images**2).reshape(2, 3, 2, 2, 2, 3).mean(dim=(3, 5)).reshape(2, 12)
    assert torch.equal(goodness_vector(images, 2), parts)
    assert torch.equal(goodness_vector(images, 1), (images**2).mean(dim=(2, 3)))
    assert torch.allclose(goodness_vector(images, 9), nn.functional.adaptive_avg_pool2d(images**2, (4, 6)).flatten(1))
    assert torch.allclose(scalar_goodness(images), goodness_vector(images, 1).mean(dim=1))
    assert torch.equal(pooled_features(images), images.mean(dim=(2, 3)))
    vectors = images[:, :, 0, 0]
    assert torch.equal(goodness_vector(vectors, 4), vectors**2)
    assert torch.equal(pooled_features(vectors), vectors)
    assert torch.equal(scalar_goodness(vectors), (vectors**2).sum(dim=1) / 3)


class Columns(Backprop):
    """Layers that see the first column of x, whose sign is the label, and one of noise, through ReLU."""

    def layer_scores(self, x: Tensor) -> Tensor:
        drawn = torch.rand(2) if self.training else torch.zeros(2)
        return torch.stack([torch.stack([-column, column], dim=1) + drawn for column in x[:, :2].T])

    def layer_features(self, x: Tensor) -> list[Tensor]:
        return [torch.cat([x[:, :1], 0 * x[:, :1]], dim=1).clamp(min=0), x[:, 1:2].clamp(min=0)]

    def layer_outputs(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        scores = self.layer_scores(x)
        return self.layer_features(x), scores, scores[0]


def columns(samples: int) -> tuple[Columns, Split]:
    torch.manual_seed(0)
    rule = Columns(nn.Sequential(nn.Linear(4, 2)))
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))
    return rule, Split(x, (x[:, 0] > 0).long())


def test_the_summary_of_layers_that_are_known() -> None:
    """A layer that is silent for one of two labels tells its bit, noise none; permuted labels are not told either."""
    rule, data = columns(600)
    found = layer_summary(rule, data.images, data.labels)
    assert (found["accuracy"], found["oracle"], found["gap"]) == (1, 1, 0)
    assert found["accuracies"][0] == 1
    assert found["accuracies"][1] == pytest.approx(0.5, abs=0.1)
    assert found["disagreement"] == pytest.approx(1 - found["accuracies"][1])
    assert found["information"][1] == pytest.approx(0, abs=0.1)
    assert found["permuted"] == pytest.approx([0, 0], abs=0.1)
    assert found["information"][0] == pytest.approx(1, abs=0.05)


def test_nothing_is_disturbed() -> None:
    rule, data = columns(100)
    state = torch.get_rng_state()
    assert layer_summary(rule, data.images, data.labels) == layer_summary(rule, data.images, data.labels)
    assert layer_study(rule, data) == layer_study(rule, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert rule.training


def test_the_study_of_layers_that_are_known() -> None:
    """Over more than one batch: a line through its activities finds the silence of the first layer, nearly."""
    rule, data = columns(2300)
    found = layer_study(rule, data)
    assert (found["accuracy"], found["gap"], found["accuracies"][0]) == (1, 0, 1)
    first, second = found["layers"]
    assert first["features"]["samples"] == 460
    assert first["features"]["bits"] > 0.6
    assert first["vector"]["bits"] > 0.4
    assert 0.4 < first["features"]["at_least"] < first["features"]["bits"]
    assert second["features"]["bits"] < 0.05
    assert list(first["goodness"])[:3] == ["nearest neighbours", "50 bins", "100 bins"]
    assert all(set(e) == {"bits", "permuted", "spread", "bias"} for e in first["goodness"].values())
    assert second["goodness"]["nearest neighbours"]["bits"] == pytest.approx(0, abs=0.06)
    assert first["goodness"]["nearest neighbours"]["bits"] == pytest.approx(1, abs=0.01)


def test_goodness_vectors_of_layers_are_about_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts a side, the fewer channels a layer has."""

    class Maps(Columns):
        def layer_features(self, x: Tensor) -> list[Tensor]:
            return [torch.ones(len(x), channels, side, side) for channels, side in ((2, 8), (4, 8), (9, 2))]

    seen: list[tuple[int, ...]] = []
    module = importlib.import_module("prograde.accelerated.training.diagnostics.layer_study")
    probe = module.linear_probe
    monkeypatch.setattr(module, "linear_probe", lambda x, *rest: (seen.append(tuple(x.shape)), probe(x, *rest))[1])
    layer_study(Maps(nn.Sequential(nn.Linear(4, 2))), columns(40)[1])
    vectors, means = seen[::2], seen[1::2]
    assert vectors == [(40, 2 * 4 * 4), (40, 4 * 2 * 2), (40, 9)]
    assert means == [(40, 2), (40, 4), (40, 9)]


@pytest.mark.parametrize("aggregation", ["sum", "last", "readout"])
def test_outputs_of_one_pass(aggregation: Aggregation) -> None:
    """Are those of the three passes that they stand for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.BatchNorm1d(7), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    rule = LocalClassifiers(model, aggregation=aggregation).eval()
    x, passes = torch.randn(11, 4), []
    rule(x)  # the first look at a shape is another pass
    rule.units[0].module.register_forward_hook(lambda *_: passes.append(1))
    features, scores, aggregated = rule.layer_outputs(x)
    assert len(passes) == 1
    assert torch.equal(scores, rule.layer_scores(x))
    assert torch.equal(aggregated, rule(x))
    assert not aggregated.requires_grad
    for ours, layer in zip(features, rule.layer_features(x), strict=True):
        assert torch.equal(ours, layer)


def test_a_rule_in_bfloat16_is_studied() -> None:
    """As if its activities had come in float32: squares and means are those of their values, not rounded again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2))
    rule = LocalClassifiers(model).to(torch.bfloat16)
    x = torch.randn(300, 4).to(torch.bfloat16)
    y = (x[:, 0] > 0).long()

    class Wide(Columns):
        def layer_outputs(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
            features, scores, aggregated = rule.layer_outputs(x.to(torch.bfloat16))
            return [layer.float() for layer in features], scores, aggregated

    wide = Wide(nn.Sequential(nn.Linear(4, 2)))
    assert layer_summary(rule, x, y) == layer_summary(wide, x.float(), y)
    assert layer_study(rule, Split(x, y)) == layer_study(wide, Split(x.float(), y))


def test_a_rule_whose_layers_do_not_guess_is_refused() -> None:
    rule = Backprop(nn.Sequential(nn.Linear(4, 2)))
    data = columns(20)[1]
    with pytest.raises(UserError, match="rule: a Backprop, whose layers do not guess labels"):
        layer_summary(rule, data.images, data.labels)
    with pytest.raises(UserError, match="rule: a Backprop, whose layers do not guess labels"):
        layer_study(rule, data)


def test_it_is_kept_with_the_epochs_and_drawn() -> None:
    """By `fit`, as numbers that JSON takes; a row of pictures for a rule with it, none for one without."""
    digits = load("digits")
    recipe = Recipe(epochs=2)

    def trained(rule: Backprop, **options: Any) -> Run:
        return Run(Job(type(rule).__name__, recipe), 0, fit(rule, digits, recipe=recipe, alignment_every=0, **options))

    torch.manual_seed(0)
    plain = trained(Backprop(nn.Sequential(nn.Linear(64, 10))))
    studied = trained(Halves(nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))), measure=measured)
    for epoch in studied.history.epochs:
        assert json.loads(json.dumps(epoch.measured)) == epoch.measured
        assert len(epoch.measured["layers"]["accuracies"]) == 2
    assert layer_curves([plain]) is None
    assert margin_curves([studied]) is None
    drawn = layer_curves([plain, studied])
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")
    assert len(drawn) > 20_000


class Halves(Backprop):
    """Two layers with the scores of the model on one half of the image each."""

    def layer_scores(self, x: Tensor) -> Tensor:
        kept = torch.arange(64) < 32
        return torch.stack([self.model(x * half) for half in (kept, ~kept)])

    def layer_outputs(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        return [self.model[:2](x), x], self.layer_scores(x), self(x)
