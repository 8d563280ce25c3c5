"""What local rules refuse: models, options and data."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.modules import ShortcutNetwork, resnet17
from prograde.accelerated.rules import (
    BackpropEnsemble,
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    DynamicTemperature,
    HybridDynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    Rule,
)
from prograde.accelerated.rules.local.score_heads import Heads, LinearHead
from prograde.equivalence_tests.local_examples import K, batch, batch_norm, channel_norm, channels, dense, images
from prograde.equivalence_tests.test_score_heads import Shifted

pytestmark = pytest.mark.usefixtures("ours_only")


def test_calibration_checks_its_labels_and_leaves_the_mode_after_an_error():
    rule = DeeperForward(dense())
    x, y = batch(rule, 8)
    cases = [(y[:3], r"y: .*, expected int64 of shape \(8,\)")]
    if y.device.type == "cpu":  # elsewhere looking would wait for the device
        cases.append((y + 9, r"y: labels 9\.\."))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message):
            rule.calibrate([(x, wrong)])
        assert rule.training
    with pytest.raises(ValueError, match=r"batches: a Tensor, expected pairs \(x, y\), as in calibrate"):
        rule.calibrate((x, y))  # type: ignore[arg-type]


def test_scores_of_ones_own_are_checked():
    x, y = batch(MonoForward(dense()))
    kinds: list[Heads] = [
        lambda blocks, k: [nn.Linear(b.width, k + 3).double() for b in blocks],
        lambda blocks, k: [LinearHead(b, k + 3) for b in blocks],
    ]
    for kind in kinds:
        for detach in (True, False):
            rule = LocalClassifiers(dense(), score=kind, detach=detach)
            for run, *arguments in ((rule, x), (rule.assign_credit, x, y)):
                with pytest.raises(ValueError, match=r"score: \(\d+, 7\) of layer '0', expected \(batch, 4\)"):
                    run(*arguments)
    rule = MonoForward(dense(), loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="loss: gives a Tensor, expected losses and their derivatives"):
        rule.assign_credit(x, y)


def test_class_groups_of_other_axes_are_refused():
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Unflatten(1, (1, 8)), nn.Linear(8, 8), nn.ReLU()).double()
    rule = DeeperForward(model, num_classes=K)
    with pytest.raises(ValueError, match=r"score: activities of shape \(2, 1, 8, 8, 8\), expected \(batch, units\)"):
        rule(torch.randn(2, 2, 8, 8, dtype=torch.float64))


def test_a_read_out_asks_for_two_samples():
    rule = MonoForward(dense(), aggregation="readout")
    x, y = batch(rule)
    with pytest.raises(ValueError, match=r"x: a batch of 1, expected 2 or more: BatchNorm1d 'aggregation\.readout\.0'"):
        next(rule.stream(x[:1], y[:1]))
    assert rule.eval()(x[:1]).shape == (1, K)
    for update in rule.stream(x[:1], y[:1]):
        assert all(torch.isfinite(gradient).all() for _, gradient in update.pairs)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a module that is no network": (lambda: MonoForward(nn.Linear(3, 2)), "model: Linear; MonoForward trains an nn"),
    "no hidden layer": (lambda: MonoForward(nn.Sequential(nn.Flatten(), nn.Linear(3, 2))), "model: no hidden layer"),
    "an unknown layer": (
        lambda: MonoForward(nn.Sequential(nn.Linear(3, 2), nn.Bilinear(2, 2, 2))), "layer '1': Bilinear; MonoForward",
    ),
    "softmax": (
        lambda: MonoForward(nn.Sequential(nn.Linear(3, 2), nn.Softmax(1))), "layer '1': Softmax.*the loss contains it",
    ),
    "a layer twice": (
        lambda: (lambda m: MonoForward(nn.Sequential(m, nn.ReLU(), m, nn.ReLU()), num_classes=2))(nn.Linear(3, 3)),
        "layer '2': shares a parameter with layer '0'",
    ),
    "one class": (
        lambda: MonoForward(nn.Sequential(nn.Linear(3, 2), nn.ReLU())),
        "num_classes: missing; the model ends with a ReLU, expected a last Linear .* nothing after it, or num_classes",
    ),
    "other classes": (lambda: MonoForward(dense(), num_classes=3), "num_classes: 3, but the model's last layer has 4"),
    "groups": (lambda: DeeperForward(dense(), num_classes=None, first_layer=3), r"first_layer: 3, expected 0\.\.2"),
    "classes that do not divide": (
        lambda: DeeperForward(nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))),
        "layer '0': 6 channels, expected a multiple of the 4 classes",
    ),
    "too few channels": (
        lambda: ChannelClassAssignment(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4))),
        "layer '0': 3 channels, expected one for each class",
    ),
    "grids": (lambda: MonoForward(images(channel_norm), grid=(2, 2)), r"grid: \(2, 2\), expected .* each of 4 layers"),
    "aggregation": (lambda: MonoForward(dense(), aggregation="mean"), "aggregation: 'mean', expected one of last, sum"),
    "score_after": (lambda: MonoForward(dense(), score_after="pool"), "score_after: 'pool', expected one of"),
    "scores": (lambda: LocalClassifiers(dense(), score=lambda b, k: []), "score: 0 modules, expected one for each"),
    "loss": (lambda: ChannelCompetition(images(batch_norm), loss="ff"), "loss: 'ff', expected one of cwc, pvn, mixed"),
    "assignment": (lambda: ChannelClassAssignment(dense(), assignment="drawn"), "assignment: 'drawn', expected one of"),
    "temperatures": (lambda: DynamicTemperature(dense(), lowest=0), "lowest, highest: 0, 2.0, expected 0 < lowest"),
    "prototypes": (lambda: Hyperspherical(dense(), per_class=0), "per_class: 0, expected a positive integer"),
    "sharpness": (lambda: Hyperspherical(dense(), sharpness=0), "sharpness: 0, expected a positive number"),
    "an endless sharpness": (lambda: Hyperspherical(dense(), sharpness=math.inf), "sharpness: inf, expected a"),
    "scale": (lambda: Hyperspherical(dense(), scale=0), "scale: 0, expected a positive number"),
    "margin": (lambda: Hyperspherical(dense(), margin=math.nan), "margin: nan, expected 0 or more"),
    "temperature": (lambda: channels(temperature=0), "temperature: 0, expected a positive number"),
    "pooling": (lambda: channels(pooling=(1, 0)), r"pooling: \(1, 0\), expected the weights of mean, maximum"),
    "cooling": (lambda: channels(cooling=0), "cooling: 0, expected more than 0 and at most 1"),
    "entropy": (lambda: channels(entropy=-1), "entropy: -1, expected 0 or more"),
    "ramp": (lambda: channels(ramp=-1), "ramp: -1, expected 0 or more"),
    "a score that is a module": (
        lambda: LocalClassifiers(dense(), score=nn.Linear(3, 2)), r"score: Linear\(.*, expected a function of units",
    ),
    "a score that is a class": (
        lambda: LocalClassifiers(dense(), score=Shifted), r"score: <class .*Shifted'>, expected a function of units",
    ),
    "one score for all layers": (
        lambda: LocalClassifiers(dense(), score=lambda b, k: Shifted()), "score: gives a Shifted, expected a function",
    ),
    "scores that are no modules": (
        lambda: LocalClassifiers(dense(), score=lambda b, k: [torch.sum] * 3), "score: a builtin.* for layer '0'",
    ),
    "one score for two layers": (
        lambda: LocalClassifiers(dense(), score=lambda b, k: [nn.Linear(8, k)] * 3),
        "score: the score of layer '2' shares a parameter with the score of layer '0', expected modules of",
    ),
    "a score of a layer's own weight": (
        lambda: (lambda m: LocalClassifiers(m, score=lambda b, k: [m[0]] * 3))(dense()),
        "score: the score of layer '0' shares a parameter with layer '0'",
    ),
    "a name for a loss": (lambda: MonoForward(dense(), loss="cross_entropy"), "loss: 'cross_entropy', expected one"),
    "activities written over": (
        lambda: MonoForward(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Hardtanh(inplace=True), nn.Linear(3, 2))),
        "layer '0': inplace=True of the Hardtanh after it would write over",
    ),
    "activities written over behind an identity": (
        lambda: MonoForward(
            nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Identity(), nn.Hardtanh(inplace=True), nn.Linear(3, 2))
        ),
        "layer '0': inplace=True of the Hardtanh after it would write over",
    ),
    "activities written over behind a view": (
        lambda: MonoForward(
            nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Flatten(), nn.Hardtanh(inplace=True), nn.Linear(3, 2))
        ),
        "layer '0': inplace=True of the Hardtanh after it would write over",
    ),
    "activities written over behind dropout, which does nothing in evaluation": (
        lambda: MonoForward(
            nn.Sequential(
                nn.Linear(3, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(), nn.Hardtanh(inplace=True), nn.Linear(3, 2)
            )
        ),
        "layer '0': inplace=True of the Hardtanh after it would write over",
    ),
    "one activation of two layers": (
        lambda: (lambda act: MonoForward(nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act, nn.Linear(3, 2))))(
            nn.PReLU()
        ),
        "layer '2': shares a parameter with layer '0', expected its own",
    ),
    "a class alone": (
        lambda: DeeperForward(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), num_classes=1),
        "num_classes: 1, expected an integer of 2 or more",
    ),
    "half a cell": (lambda: MonoForward(dense(), grid=[2.5, 1, 1]), r"grid: \[2.5, 1, 1\], expected a positive"),
    "cells": (lambda: MonoForward(dense(), grid=2.5), r"grid: 2.5, expected a positive integer"),
    "a first layer where all have weights": (
        lambda: ChannelClassAssignment(dense(), first_layer=1),
        "first_layer: 1, but the aggregation is 'validation-loss', expected None",
    ),
    "dropout of no read-out": (
        lambda: MonoForward(dense(), readout_dropout=0.2),
        "readout_dropout: 0.2, but the aggregation is 'sum', expected 'readout'",
    ),
    "dropout of all": (
        lambda: MonoForward(dense(), aggregation="readout", readout_dropout=1),
        "readout_dropout: 1, expected 0 or more and less than 1",
    ),
    "smoothing": (
        lambda: MonoForward(dense(), aggregation="readout", readout_smoothing=-1),
        "readout_smoothing: -1, expected 0 or more and less than 1",
    ),
    "planes": (lambda: resnet17(planes=(10, 10, 10, 10)), r"planes: \(10, 10, 10, 10\), expected each twice"),
    "a convolution of another kind": (
        lambda: MonoForward(nn.Sequential(nn.Conv1d(3, 3, 1), nn.ReLU(), nn.Linear(3, 2))),
        r"layer '0': Conv1d; MonoForward trains .* pooling after it \(no rule trains it yet\)$",
    ),
    "no members": (lambda: BackpropEnsemble([]), "models: none, expected one or more"),
    "members": (
        lambda: BackpropEnsemble([dense(), nn.Sequential(nn.Linear(11, 3), nn.ReLU(), nn.Linear(3, 3))]),
        r"models: \[4, 3\] classes, expected as many",
    ),
    "two layers in a block": (
        lambda: MonoForward(
            ShortcutNetwork(
                nn.Identity(), [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))], [], nn.Sequential(nn.Linear(3, 2))
            )
        ),
        "block 'blocks.0': 2 layers, expected one",
    ),
    "a layer in the stem": (
        lambda: MonoForward(
            ShortcutNetwork(
                nn.Sequential(nn.Linear(3, 3)), [nn.Sequential(nn.Linear(3, 3))], [], nn.Sequential(nn.Linear(3, 2))
            )
        ),
        r"layer 'stem\.0': in the stem",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(name: str):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


BATCHES: dict[str, tuple[tuple[int, ...], str]] = {
    "flat": (
        (2, 128),
        r"x: samples of shape \(128,\) do not pass layer '0' \(takes \(channels, .* gets \(128,\)\)",
    ),
    "without a batch": ((2, 8, 8), r"x: samples of shape \(8, 8\) do not pass layer '0'"),
    "channels": (
        (2, 3, 8, 8),
        r"x: samples of shape \(3, 8, 8\) do not pass layer '0' \(takes 2 channels, but gets 3\)",
    ),
    "size": ((2, 2, 12, 12), r"x: samples of shape \(2, 12, 12\) do not pass layer '11' \(takes 24"),
    "too small": ((2, 2, 2, 2), r"x: samples of shape \(2, 2, 2\) do not pass layer '4'"),
    "no sample": ((0, 2, 8, 8), r"x: shape \(0, 2, 8, 8\), expected .* at least one sample"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_images_that_do_not_fit_are_refused_before_anything_is_done(name: str):
    shape, message = BATCHES[name]
    rule = MonoForward(images(channel_norm))
    x, y = torch.ones(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.int64)
    for run in (lambda: rule(x), lambda: next(rule.stream(x, y))):
        with pytest.raises(ValueError, match=message):
            run()
    with pytest.raises(ValueError, match=r"x: dtype torch.float32, expected torch.float64"):
        rule(torch.ones(2, 2, 8, 8))
    with pytest.raises(ValueError, match=r"x: a list, expected a torch\.Tensor"):
        rule([1.0])


@pytest.mark.parametrize("kind", [MonoForward, ChannelCompetition, HybridDynamicTemperature])
def test_normalisation_over_a_batch_asks_for_two_samples(kind: Callable[[nn.Module], Rule]):
    rule = kind(dense() if kind is HybridDynamicTemperature else dense(nn.BatchNorm1d))
    x, y = torch.randn(1, 11, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="x: a batch of 1, expected 2 or more: BatchNorm1d"):
        rule.assign_credit(x, y)
    assert rule.eval()(x).shape == (1, K)
