"""One class score from those of all layers: ranges, weights and read-outs."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import ChannelClassAssignment, DeeperForward, DynamicTemperature, MonoForward
from prograde.equivalence_tests.local_examples import (
    batch,
    channel_norm,
    dense,
    group_norm,
    held_out,
    images,
    numpy,
    same,
)
from prograde.equivalence_tests.rule_examples import K, normalised
from prograde.equivalence_tests.sides import ReferenceSide, TwinSide

pytestmark = pytest.mark.usefixtures("ours_only")


def test_sums_of_losses_outlast_half_precision() -> None:
    rule = MonoForward(dense(), aggregation="training-loss").bfloat16()
    aggregation = rule.aggregation
    losses = torch.tensor([2.3, 0.46, 1.0], dtype=torch.bfloat16)
    for _ in range(400):
        for layer, loss in enumerate(losses):
            aggregation.note(layer, loss, 128)
    assert aggregation.loss_count.tolist() == [400 * 128] * 3
    assert torch.equal(aggregation.loss_total / aggregation.loss_count, losses.float()), "means of losses"


def test_a_range_is_chosen_on_held_out_data() -> None:
    """The reference's on all of the data at once; till then all layers but the first."""
    rule = DeeperForward(images(group_norm))
    assert rule.aggregation.weights.tolist() == [0, 1, 1, 1]
    rule.calibrate(held_out(rule))
    x, y = batch(rule, 40)
    scores = numpy(rule.layer_scores(x))
    side = ReferenceSide()
    first, last = side.aggregation.best_range(scores, y.cpu().numpy())
    expected = [float(first <= layer <= last) for layer in range(4)]
    assert rule.aggregation.weights.tolist() == expected, "range"
    same("scores of the range", rule(x), side.aggregation.range_total(scores, first, last))
    other = DeeperForward(images(group_norm))
    other.load_state_dict(rule.state_dict())
    assert torch.equal(other(x), rule(x)), "part of the state"
    one = DeeperForward(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), num_classes=2)
    assert one.aggregation.weights.tolist() == [1]
    two = DeeperForward(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()), num_classes=2)
    assert two.aggregation.weights.tolist() == [0, 1]


@pytest.mark.parametrize("kind", ["validation-loss", "training-loss"])
def test_layers_are_weighted_by_their_losses(kind: Any) -> None:
    """Mean losses of the held-out samples, or of the training samples since the last time; evenly till then."""
    rule = ChannelClassAssignment(images(nn.InstanceNorm2d), aggregation=kind, label_smoothing=0.0)
    assert rule.aggregation.weights.tolist() == [0.25] * 4
    x, y = batch(rule, 40)
    if kind == "training-loss":
        rule.calibrate(held_out(rule))
        assert rule.aggregation.weights.tolist() == [0.25] * 4, "nothing noted yet"
        for part in held_out(rule):
            rule.assign_credit(*part)
        rule.eval()
        rule.assign_credit(x[:3], y[:3])  # looked at, not trained on
        rule.train()
    before = rule.layer_scores(x)
    rule.calibrate(held_out(rule) if kind == "validation-loss" else [])
    scores = rule.layer_scores(x)
    assert not torch.equal(scores, before), "it has cooled"
    scores = scores if kind == "validation-loss" else before
    losses = torch.stack([nn.functional.cross_entropy(s, y) for s in scores])
    assert torch.allclose(rule.aggregation.weights, (-losses).softmax(dim=0), rtol=1e-12), "softmax(-loss)"
    assert not rule.aggregation.loss_count.any(), "begun anew"
    assert not rule.aggregation.loss_total.any(), "begun anew"


@pytest.mark.parametrize("kind", ["validation-loss", "training-loss"])
def test_ignored_labels_do_not_weigh(kind: Any) -> None:
    """Batches of which one has few labels that count: the layers' losses are means over those of all batches."""
    loss = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=torch.float64), ignore_index=-1)
    rule = MonoForward(dense(), aggregation=kind, loss=loss)
    x, y = batch(rule, 40)
    y[:18] = -1
    parts = list(zip(x.split(20), y.split(20), strict=True))
    for part in parts:
        rule.assign_credit(*part)
    expected = torch.stack([loss(scores, y) for scores in rule.layer_scores(x)])
    rule.calibrate(parts if kind == "validation-loss" else [])
    assert torch.allclose(rule.aggregation.weights, (-expected).softmax(dim=0), rtol=1e-12), "means over labels"


def test_calibration_is_in_evaluation_mode_and_leaves_modes_alone() -> None:
    rule = MonoForward(dense(dropout=0.5), aggregation="validation-loss")
    state = torch.get_rng_state()
    rule.calibrate(held_out(rule))
    assert rule.training
    assert torch.equal(torch.get_rng_state(), state), "nothing is dropped"
    rule.eval()
    rule.calibrate(held_out(rule))
    assert not rule.training
    plain = MonoForward(dense())
    plain.calibrate(iter([]))
    assert plain.aggregation.weights.tolist() == [1, 1, 1], "nothing to choose"


def test_the_read_out_learns_from_all_layers_beside_them() -> None:
    """Autograd's gradient of its cross-entropy on activities that are constants; layers learn as without it."""
    options: Any = {"first_layer": 1, "readout_smoothing": 0.1}
    rule = DynamicTemperature(images(channel_norm), aggregation="readout", **options)
    without = DynamicTemperature(images(channel_norm))
    without.load_state_dict({n: p for n, p in rule.state_dict().items() if "readout" not in n}, strict=False)
    x, y = batch()
    readout = copy.deepcopy(rule.aggregation.readout)
    assert readout is not None
    rule.assign_credit(x, y)
    without.assign_credit(x, y)
    features = torch.cat([h.mean(dim=(2, 3)) if h.dim() == 4 else h for h in rule.layer_features(x)[1:]], dim=1)
    assert features.shape == (14, 12 + 8 + 8)
    nn.functional.cross_entropy(readout(features), y, label_smoothing=0.1).backward()
    for ours, theirs in zip(rule.aggregation.readout.parameters(), readout.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14), "read-out"  # type: ignore[arg-type]
    for ours, theirs in zip(rule.heads.parameters(), without.heads.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), "scores"  # type: ignore[arg-type]
    for unit, other in zip(rule.units, without.units, strict=True):
        assert torch.equal(unit.module.weight.grad, other.module.weight.grad), unit.name  # type: ignore[arg-type]
    rule.eval()
    assert torch.equal(rule(x), rule.aggregation.readout(features)), "scores"  # type: ignore[misc]


def test_layers_left_out_may_score_what_they_will() -> None:
    """Infinity by a weight of 0 would be none."""
    rule = MonoForward(dense(), aggregation="last")
    with torch.no_grad():
        rule.heads[0].matrix.fill_(torch.inf)
    x, _ = batch(rule)
    assert not rule.layer_scores(x)[0].isfinite().all()
    assert torch.equal(rule(x), rule.layer_scores(x)[-1]), "the last layer's"


def test_choosing_on_held_out_data_leaves_each_modules_mode_alone(twin: TwinSide) -> None:
    """Batch normalisation at rest, as fine-tuning wants it, stays at rest, and its statistics as they are."""
    model = normalised().to(twin.device)
    rule = MonoForward(model, aggregation="validation-loss")
    model[2].eval()
    statistics = copy.deepcopy(model[5].state_dict())
    x, y = torch.randn(6, 16, device=twin.device), (torch.arange(6) % K).to(twin.device)
    rule.calibrate([(x, y)])
    assert [model[i].training for i in (0, 2, 5)] == [True, False, True], "modes"
    assert all(torch.equal(value, statistics[key]) for key, value in model[5].state_dict().items())
