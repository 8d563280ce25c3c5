"""Rules whose layers are classifiers in the training loop: images, what is chosen on validation data, resuming."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.modules import small_cnn
from prograde.accelerated.rules import (
    Backprop,
    BackpropEnsemble,
    ChannelClassAssignment,
    DeeperForward,
    DynamicTemperature,
    ForwardForward,
    Ftp,
    Hardware,
    MonoForward,
    Rule,
)
from prograde.accelerated.training import (
    DataError,
    Dataset,
    Epoch,
    History,
    Recipe,
    UserError,
    accuracy,
    build,
    default_recipe,
    fit,
    load,
    mlp,
    restore,
)

RECIPE = Recipe(epochs=2, batch=64, optimizer="adamw", learning_rate=5e-3, momentum=0.0)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def by_groups(channels: int) -> nn.Module:
    return nn.GroupNorm(10, channels, affine=False)


def network(normalisation: Callable[[int], nn.Module] = by_groups) -> nn.Sequential:
    torch.manual_seed(0)
    return small_cnn((20, 20), 10, 1, (0,), normalisation)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 10))


CONVOLUTIONAL: dict[str, Callable[[], Rule]] = {
    "MonoForward": lambda: MonoForward(network()),
    "MonoForward, unflattened": lambda: MonoForward(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *network())),
    "DeeperForward": lambda: DeeperForward(network()),
    "Backprop, normalised": lambda: Backprop(network()),
    "BackpropEnsemble": lambda: BackpropEnsemble([network(), network()]),
    "Backprop": lambda: Backprop(plain()),
    "Ftp": lambda: Ftp(plain(), image_size=(8, 8)),
    "ForwardForward": lambda: ForwardForward(plain()),
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_rules_with_convolutions_are_given_images(name: str, digits: Dataset) -> None:
    """Unless the model makes them itself; alignment is measured as well. Forward-Forward learns in more epochs."""
    rule = CONVOLUTIONAL[name]()
    history = fit(rule, digits, recipe=RECIPE, epochs=2, alignment_every=1)
    assert name == "ForwardForward" or history.best.validation_accuracy > 0.4, "four times chance"
    assert len(history.epochs[0].alignment) == len(rule.units)
    assert all(-1.0001 <= cosine <= 1.0001 for cosine in history.epochs[0].alignment.values())


def test_images_have_their_channels_first(digits: Dataset) -> None:
    """Two axes are one channel; pixels stay where they are; samples that are no images are refused."""
    images = digits.as_images()
    assert images.train.images.shape == (len(digits.train.labels), 1, 8, 8)
    assert torch.equal(images.test.images.flatten(1), digits.test.images)
    assert torch.equal(images.validation.labels, digits.validation.labels)
    coloured = digits._replace(image_shape=(4, 4, 4)).as_images()
    assert coloured.train.images.shape[1:] == (4, 4, 4)
    with pytest.raises(DataError, match=r"digits: samples of shape \(64,\), expected images"):
        digits._replace(image_shape=(64,)).as_images()


CHOSEN: dict[str, Callable[[], Rule]] = {
    "range": lambda: DeeperForward(network()),
    "validation-loss": lambda: ChannelClassAssignment(network(), settings={"cooling": 0.9}),
    "training-loss": lambda: ChannelClassAssignment(network(), aggregation="training-loss"),
    "readout": lambda: DynamicTemperature(network(), aggregation="readout", readout_dropout=0.2),
}


class Interrupted(Exception):
    pass


def interrupt(epoch: Epoch) -> None:
    if epoch.epoch == 2:
        raise Interrupted


@pytest.mark.parametrize("name", CHOSEN)
def test_resuming_is_exact(name: str, digits: Dataset, tmp_path: Path) -> None:
    """Chosen layers, weights, epochs and read-outs are part of the state."""
    run = partial(fit, train=digits, recipe=RECIPE, epochs=4, alignment_every=0)
    whole = CHOSEN[name]()
    history = run(whole)
    path = tmp_path / "checkpoint"
    with pytest.raises(Interrupted):
        run(CHOSEN[name](), checkpoint=path, on_epoch=interrupt)
    resumed = CHOSEN[name]()
    found: History = run(resumed, resume=path)
    assert [(e.loss, e.validation_accuracy) for e in found.epochs] == [
        (e.loss, e.validation_accuracy) for e in history.epochs
    ]
    assert found.test_accuracy == history.test_accuracy
    state = whole.state_dict()
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_the_range_is_chosen_before_validation_accuracy_is_taken(digits: Dataset) -> None:
    """No other range of layers would have had more of the validation samples right."""
    rule = DeeperForward(network())
    assert rule.aggregation.weights.tolist() == [0, 1]
    history = fit(rule, digits, recipe=RECIPE, epochs=1, alignment_every=0)
    moved = digits.to("cpu", torch.float32, standardise=True).as_images()
    scores = rule.layer_scores(moved.validation.images)
    sums = [scores[0], scores[1], scores[0] + scores[1]]
    best = max((s.argmax(dim=1) == moved.validation.labels).double().mean().item() for s in sums)
    assert history.best.validation_accuracy == pytest.approx(best, abs=1e-12)
    assert accuracy(rule, moved.test) == history.test_accuracy


def test_hardware_chooses_on_what_it_computes() -> None:
    """Scores on crossbars, with their noise, tell the losses."""
    torch.manual_seed(0)
    rule = MonoForward(mlp(12, (8, 6), 3, "relu", 0.0), aggregation="validation-loss")
    chip = Hardware(rule, bits=2, generator=torch.Generator().manual_seed(1))
    batches = [(torch.randn(30, 12), torch.arange(30) % 3)]
    chip.calibrate(batches)
    noisy = rule.aggregation.weights.clone()
    rule.calibrate(batches)
    assert not torch.allclose(noisy, rule.aggregation.weights)


@pytest.mark.parametrize("method", ["hyperspherical", "dynamic-temperature"])
def test_a_checkpoint_has_the_normalisation(method: str, digits: Dataset, tmp_path: Path) -> None:
    recipe = default_recipe(method, "digits", hidden=(24, 16), epochs=1)
    rule = build(method, digits, recipe, seed=0)
    assert [type(m).__name__ for m in rule.model][3] == {"hyperspherical": "RMSNorm"}.get(method, "LayerNorm")
    fit(rule, digits, recipe=recipe, checkpoint=tmp_path / "checkpoint")
    restored = restore(tmp_path / "checkpoint")
    x = (digits.test.images - restored.mean) / restored.std
    assert torch.equal(restored.rule(x), rule.eval()(x))


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(UserError, match="normalisation: 'batch', expected one of none, direction, layer"):
        default_recipe("hyperspherical", "digits", normalisation="batch")


def test_what_directions_leave() -> None:
    """A mean square of 1, of every sample; "layer" takes the mean away as well."""
    x: Any = torch.randn(5, 7)
    for kind in ("direction", "layer"):
        passed = mlp(7, (9,), 3, "tanh", 0.0, kind)[:-1](x)
        assert torch.allclose(passed.square().mean(dim=1), torch.ones(5), rtol=1e-3), kind
        assert (passed.mean(dim=1).abs().max() < 1e-6) == (kind == "layer")
