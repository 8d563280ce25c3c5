"""Streams: the same updates when one layer is held at a time, in memory that does not grow with depth."""

import copy
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional

from prograde.accelerated.layers import forward
from prograde.accelerated.rules import (
    Backprop,
    ChannelClassAssignment,
    ChannelCompetition,
    CreditAssignment,
    CumulativeForwardForward,
    DeeperForward,
    DynamicTemperature,
    ForwardForward,
    Foton,
    Ftp,
    Hyperspherical,
    MonoForward,
    PatchEnergy,
    Pepita,
    Rule,
    SymBa,
    accumulate,
)
from prograde.accelerated.rules.recomputing import recomputed
from prograde.accelerated.training.diagnostics.memory import live_bytes
from prograde.equivalence_tests.placement import seeded

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]

Make = Callable[..., Rule]

RECOMPUTING: dict[str, tuple[Make, dict[str, Any]]] = {
    "foton": (Foton, {}),
    "ftp": (Ftp, {}),
    "ftp, second layer": (Ftp, {"inject": 2}),
    "ftp, from the input": (Ftp, {"inject": 0}),
    "pepita": (Pepita, {}),
    "pepita, modulated error": (Pepita, {"output_error": "modulated", "presynaptic": "clean"}),
}


def model(*widths: int, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [nn.Linear(n_in, n_out), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:])).double()


def batch(n_in: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    x = torch.randn(24, n_in, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (24,), generator=generator)


def gradients(rule: CreditAssignment) -> list[torch.Tensor]:
    return [p.grad.clone() for p in rule.parameters() if p.grad is not None]


def credited(rule: CreditAssignment, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    rule.assign_credit(x, y)
    return gradients(rule)


def all_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(a, b, rtol=0, atol=1e-14 * b.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("own_generator", [True, False], ids=["own generator", "PyTorch's generator"])
@pytest.mark.parametrize("name", RECOMPUTING)
def test_recomputed_updates_are_the_same_under_dropout(name: str, own_generator: bool) -> None:
    """The masks of the second sweep are those of the first, and the next step draws others."""
    make, options = RECOMPUTING[name]
    seen = []
    for recompute in (False, True):
        generator = seeded(5) if own_generator else None
        torch.manual_seed(6)
        rule = make(model(12, 10, 8, 8, 3, dropout=0.4), recompute=recompute, generator=generator, **options)
        torch.manual_seed(7)
        seen.append([credited(rule, *batch(12)) for _ in range(2)])
    for ours, theirs in zip(*seen, strict=True):
        assert all_close(ours, theirs), "same updates, layer by layer"
    assert not torch.equal(seen[1][0][-2], seen[1][1][-2]), "other masks at the next step"


def test_recomputed_updates_of_images_are_the_same() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.AvgPool2d(2)
    images = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3)).double()
    x, y = torch.randn(5, 1, 8, 8, generator=seeded(1), dtype=torch.float64), torch.arange(5) % 3
    for make in (Ftp, Pepita):
        found = []
        for recompute in (False, True):
            given = {"recompute": recompute, "image_size": (8, 8), "generator": seeded(5)}
            found.append(credited(make(copy.deepcopy(images), **given), x, y))
        assert all_close(*found), f"same updates of {make.__name__}"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", RECOMPUTING)
def test_a_layer_may_be_stepped_before_the_next_update_is_asked_for(name: str, recompute: bool) -> None:
    make, options = RECOMPUTING[name]
    rule = make(model(12, 10, 8, 8, 3), recompute=recompute, generator=seeded(5), **options)
    at_once = copy.deepcopy(rule)
    x, y = batch(12)
    expected = credited(at_once, x, y)
    found: list[torch.Tensor] = []
    for update in rule.stream(x, y):
        for parameter, gradient in update.pairs:
            found.append(gradient.clone())
            parameter.data.sub_(gradient, alpha=0.5)
    assert all_close(found, expected), "updates of the weights as they were"


SAMPLES, WIDTH, CLASSES = 64, 16, 4


def dense(depth: int, dropout: float = 0.0, normalised: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
        layers += [nn.Dropout(dropout)] if dropout else []
        layers += [nn.LayerNorm(WIDTH, elementwise_affine=False)] if normalised else []
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def images(depth: int, normalisation: Callable[[int], nn.Module]) -> nn.Sequential:
    """As many numbers a sample as `dense` has, in four channels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), normalisation(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTH, CLASSES))


def grouped(channels: int) -> nn.Module:
    return nn.GroupNorm(CLASSES, channels, affine=False)


class Network(NamedTuple):
    """Of any depth, and what backpropagation holds of it."""

    make: Callable[[int], nn.Sequential]
    shape: tuple[int, ...] = (WIDTH,)

    def x(self, samples: int = SAMPLES) -> torch.Tensor:
        return torch.randn(samples, *self.shape, generator=seeded(1))


NETWORKS = {
    "plain": Network(dense),
    "dropped": Network(lambda depth: dense(depth, dropout=0.1)),
    "normalised": Network(lambda depth: dense(depth, normalised=True)),
    "images": Network(lambda depth: images(depth, grouped), (4, 2, 2)),
    "images, over the batch": Network(lambda depth: images(depth, nn.BatchNorm2d), (4, 2, 2)),
}


class Streamed(NamedTuple):
    """A rule whose memory does not grow with depth, on a network, and what of backpropagation's it may hold."""

    make: Make
    network: str
    share: float = 0.1


def recomputing(rule: Make) -> Make:
    return lambda model: rule(model, recompute=True)


STREAMED: dict[str, Streamed] = {
    "foton": Streamed(recomputing(Foton), "dropped"),
    "ftp": Streamed(recomputing(Ftp), "dropped"),
    "pepita": Streamed(recomputing(Pepita), "dropped"),
    "foton, bare": Streamed(recomputing(Foton), "plain"),
    "ftp, bare": Streamed(recomputing(Ftp), "plain"),
    "pepita, bare": Streamed(recomputing(Pepita), "plain", 0.11),  # with the inputs of both passes
    "mono-forward": Streamed(MonoForward, "plain"),
    "hyperspherical": Streamed(Hyperspherical, "normalised"),
    "dynamic-temperature": Streamed(DynamicTemperature, "normalised"),
    "patch-energy": Streamed(PatchEnergy, "images"),
    "deeper-forward": Streamed(DeeperForward, "images"),
    "channel-class-assignment": Streamed(ChannelClassAssignment, "images"),
    "channel-competition": Streamed(ChannelCompetition, "images, over the batch"),
    # Two streams, each with its normalised activities: of the barest network, eight arrays to backpropagation's one.
    "forward-forward": Streamed(ForwardForward, "plain", 0.22),
    "symba": Streamed(SymBa, "plain", 0.22),
    "cumulative": Streamed(CumulativeForwardForward, "plain", 0.22),
}


def labels(samples: int) -> torch.Tensor:
    return torch.arange(samples) % CLASSES


def streamed(rule: Rule, x: torch.Tensor) -> int:
    """Bytes alive at most in a training step that takes each layer's update as it comes, parameters left out."""
    y = labels(len(x))
    rule.checked(x, y)  # what is done once
    with live_bytes([x, y, *rule.parameters(), *rule.buffers()]) as live:
        for update in rule.stream(x, y):
            for parameter, gradient in update.pairs:
                parameter.data.sub_(gradient, alpha=0.1)
            del update, parameter, gradient
    return live.peak


@cache
def backpropagated(network: str, depth: int) -> int:
    """The same of what autograd saves for `loss.backward()`: without a gradient of any weight."""
    model, x, y = NETWORKS[network].make(depth), NETWORKS[network].x(), labels(SAMPLES)
    with live_bytes([x, y, *model.parameters(), *model.buffers()]) as live:
        loss = functional.cross_entropy(model(x), y)
    assert loss.requires_grad
    return live.peak


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMED)
def test_memory_does_not_grow_with_depth(name: str) -> None:
    """At depth 64 at most a hundredth more than at depth 4, and a tenth of what backpropagation saves."""
    make, network, share = STREAMED[name]
    shallow, deep = (streamed(make(NETWORKS[network].make(depth)), NETWORKS[network].x()) for depth in (4, 64))
    assert deep <= 1.01 * shallow, f"live bytes: {shallow} at depth 4, {deep} at depth 64"
    saved = backpropagated(network, 64)
    assert deep <= share * saved, f"live bytes: {deep}, backpropagation's {saved}"


def test_the_count_sees_what_is_held() -> None:
    for rule in (Ftp, Pepita):
        shallow, deep = (streamed(rule(dense(depth)), NETWORKS["plain"].x()) for depth in (2, 16))
        assert deep > 2 * shallow, rule.__name__


@pytest.mark.parametrize("make", [Backprop, Foton, Ftp, MonoForward])
def test_accumulated_micro_batches_are_one_batch(make: Make) -> None:
    rule = make(model(12, 10, 8, 3), generator=seeded(5))
    frozen = next(rule.parameters())
    x, y = batch(12)
    for requires_grad in (True, False):
        frozen.requires_grad_(requires_grad)
        loss, expected = rule.assign_credit(x, y), gradients(rule)
        for p in rule.parameters():
            p.grad = None
        shares = [accumulate(rule, x[part], y[part], n / 24) for part, n in ((slice(6), 6), (slice(6, None), 18))]
        torch.testing.assert_close(sum(shares), loss.as_subclass(torch.Tensor), check_dtype=False)
        assert all_close(gradients(rule), expected), "mean gradient of the micro-batches"
        assert (frozen.grad is not None) == requires_grad


def test_micro_batches_hold_less_than_those_of_backpropagation() -> None:
    """Sixteen equal layers, four micro-batches: gradients of all weights and what one micro-batch needs."""
    parts = NETWORKS["plain"].x(4 * SAMPLES).split(SAMPLES)
    y = labels(SAMPLES)
    held = {}
    for name in ("mono-forward", "backprop"):
        model = dense(16)
        rule = MonoForward(model)
        optimizer = torch.optim.SGD((rule if name == "mono-forward" else model).parameters(), lr=0.1)
        with live_bytes([*parts, y, *rule.parameters()]) as live:
            for x in parts:
                if name == "mono-forward":
                    accumulate(rule, x, y, 1 / 4)
                else:
                    (functional.cross_entropy(model(x), y) / 4).backward()
            optimizer.step()
        held[name] = live.peak
    assert held["mono-forward"] <= 0.5 * held["backprop"], f"live bytes: {held}"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [Foton, Ftp, Pepita])
def test_the_loss_is_given_with_the_last_layer(make: Make, recompute: bool) -> None:
    rule, x = make(dense(3), recompute=recompute), torch.randn(4, WIDTH)
    losses = [update.loss for update in rule.stream(x, labels(4))]
    assert [loss is None for loss in losses] == [True] * 3 + [False]


def test_what_cannot_be_recomputed_is_refused_by_name() -> None:
    class Doubled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    for rule in (Ftp, Pepita):
        with pytest.raises(ValueError, match="recompute: True, with second_pass='full', which holds all of a pass"):
            rule(dense(2), recompute=True, second_pass="full")
        for module in (nn.BatchNorm1d(WIDTH), Doubled()):
            layers = nn.Linear(WIDTH, WIDTH), module, nn.ReLU(), nn.Linear(WIDTH, CLASSES)
            with pytest.raises(ValueError, match="recompute: True, but unit '0' has modules that a second clean pass"):
                rule(nn.Sequential(*layers), recompute=True, example=torch.randn(2, WIDTH))
        with pytest.raises(ValueError, match="recompute: True, but unit '0' has modules that a second clean pass"):
            rule(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), *dense(1)), recompute=True)


def test_of_the_last_layer_nothing_is_computed_again() -> None:
    """What is recomputed is the pass, whose scores are known."""
    layers, (x, _) = Ftp(model(12, 10, 8, 3)).layers(), batch(12)
    with torch.no_grad():
        clean = forward(layers, x)
        taken, again = recomputed(iter(layers), len(layers), x, clean.scores)
        for index, layer in enumerate(layers):
            assert taken[index] is layer
            for part in ("inputs", "preactivations", "activities"):
                assert torch.equal(getattr(again, part)[index], getattr(clean, part)[index]), f"{part}[{index}]"
        assert again.preactivations[-1] is clean.scores


def test_a_pass_that_is_made_again_is_walked_through_once() -> None:
    """A layer's row is there until the next is asked for; the scores are there from the start."""
    layers, (x, _) = Ftp(model(12, 10, 8, 3)).layers(), batch(12)
    with torch.no_grad():
        clean = forward(layers, x)
        taken, again = recomputed(iter(layers), len(layers), x, clean.scores)
        assert [len(part) for part in (taken, *again)] == [3] * 4
        assert again.activities[-1] is clean.scores, "known"
        later = again.inputs[1:]
        for _ in range(2):
            assert taken[0] is layers[0]
            assert torch.equal(again.inputs[0], x)
        assert again.activities[0] is again.activities[0], "computed once"
        assert len(later) == 2
        assert torch.equal(later[0], clean.inputs[1]), "a slice is of the same walk"
        with pytest.raises(IndexError, match=r"layers\[0\]: gone, the pass is at layers\[1\]"):
            again.inputs[0]
        with pytest.raises(IndexError, match="range object index out of range"):
            again.inputs[3]
