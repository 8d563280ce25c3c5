"""How a local rule reads a model, and what a step of a layer costs in graphs, convolutions and memory."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prograde.accelerated import normalisations
from prograde.accelerated.adaptive_pooling import _kept_weights
from prograde.accelerated.local_classifiers import Shortcut
from prograde.accelerated.modules import OrthogonalConv2d, ShortcutNetwork
from prograde.accelerated.rules import (
    Backprop,
    ChannelClassAssignment,
    ChannelCompetition,
    Hyperspherical,
    MonoForward,
    PatchEnergy,
)
from prograde.accelerated.rules.cutting import Part
from prograde.accelerated.rules.local.score_heads import LinearHead
from prograde.accelerated.rules.local.units import LocalNetwork, LocalUnit, _rectifier, check_sizes, read
from prograde.accelerated.training.diagnostics.memory import LiveBytes
from prograde.equivalence_tests.local_examples import K, asge, batch, batch_norm, channel_norm, images, numpy
from prograde.equivalence_tests.rule_examples import refusal
from prograde.equivalence_tests.tolerance import rms

pytestmark = pytest.mark.usefixtures("ours_only")


def kinds(modules: Any) -> list[str]:
    return [type(module).__name__ for module in modules]


def test_where_scores_are_taken() -> None:
    """Behind an activation and the dropout of its own; or behind normalisation, with all that comes before it."""
    layers = [
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Dropout2d(), nn.GroupNorm(2, 4),
        nn.Dropout(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(),
    ]  # fmt: skip
    (unit,) = MonoForward(nn.Sequential(*layers), num_classes=2).units
    assert kinds(unit.inside) == ["BatchNorm2d", "ReLU", "Dropout", "Dropout2d"], "after the activation and its dropout"
    assert kinds(unit.outside) == ["GroupNorm", "Dropout", "MaxPool2d", "BatchNorm2d", "Dropout", "Flatten"]
    (unit,) = MonoForward(nn.Sequential(*layers), num_classes=2, score_after="normalisation").units
    assert len(unit.inside) == 8, "after the last normalisation"
    assert kinds(unit.outside) == ["Dropout", "Flatten"], "after the last normalisation"
    competing = ChannelCompetition(images(batch_norm)).units[0]
    assert kinds(competing.inside) == ["Tanh", "AvgPool2d", "BatchNorm2d"], "CwComp's after batch normalisation"
    plain = nn.Sequential(nn.Linear(3, 4), nn.Flatten())
    (unit,) = MonoForward(plain, num_classes=2, score_after="normalisation").units
    assert (kinds(unit.inside), kinds(unit.outside)) == ([], ["Flatten"])


def test_modules_of_ones_own_are_not_run_without_numbers() -> None:
    """Some look at them; samples that do not fit are theirs to refuse."""

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (1 + x.abs().max().item())

    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), Scaled(), nn.Linear(5, K))
    assert torch.isfinite(MonoForward(model).assign_credit(torch.randn(4, 6), torch.arange(4) % K))


def test_images_pass_the_head_of_a_network_with_shortcuts() -> None:
    """To its last Linear, before which it flattens them; samples that do not fit this are refused by its name."""
    block = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.GroupNorm(1, 2))
    model = ShortcutNetwork(nn.Identity(), [block], [], nn.Sequential(nn.Flatten(), nn.Linear(32, K)))
    rule, x, y = Backprop(model), torch.randn(5, 1, 4, 4), torch.arange(5) % K
    expected = nn.functional.cross_entropy(model(x), y)
    torch.testing.assert_close(rule.assign_credit(x, y), expected.detach())
    with pytest.raises(
        ValueError, match=r"samples of shape \(1, 5, 5\) do not pass layer 'head.1' \(takes 32 features"
    ):
        rule.assign_credit(torch.randn(5, 1, 5, 5), y)


def test_grids_need_not_be_square() -> None:
    """A head of one's own cells: 2 rows by 3 columns of each channel."""
    unit = LocalUnit("unit", nn.Conv2d(1, 4, 3))
    head = LinearHead(unit, K, grid=(2, 3))
    assert head(torch.randn(5, 4, 6, 6)).shape == (5, K)
    assert sum(p.numel() for p in head.parameters()) == 4 * 2 * 3 * K


def test_the_first_layer_tells_whether_a_unit_gives_maps() -> None:
    """The first module with parameters, wherever in the unit it stands."""
    modules: dict[nn.Module, bool] = {
        nn.Conv2d(1, 2, 3): True, nn.Linear(4, 2): False, nn.ReLU(): False,
        nn.Sequential(nn.ReLU(), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))): True,
        nn.Sequential(nn.Flatten(), nn.Linear(4, 9), nn.Unflatten(1, (1, 3, 3)), nn.Conv2d(1, 2, 3)): False,
    }  # fmt: skip
    for module, gives_maps in modules.items():
        assert LocalUnit("unit", module).has_maps == gives_maps, module


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_rectified_layers_are_trained_without_a_graph(
    activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, and to the gradients of the graph."""
    without: list[str] = []
    rectified = LocalUnit.rectified

    def counted(unit: LocalUnit, x: torch.Tensor) -> torch.Tensor:
        without.append(unit.name)
        return rectified(unit, x)

    monkeypatch.setattr(LocalUnit, "rectified", counted)
    rule = Hyperspherical(images(channel_norm, activation=activation))
    x, y = batch()
    rule.assign_credit(x, y)
    assert without == [unit.name for unit in rule.units], f"without a graph: {without}"
    ours = [p.grad for p in rule.parameters()]
    monkeypatch.setattr(LocalUnit, "takes_graph", True)
    rule.assign_credit(x, y)
    assert len(without) == len(rule.units), "a graph was asked for"
    for found, p in zip(ours, rule.parameters(), strict=True):
        assert (found is None) == (p.grad is None)
        assert p.grad is None or rms(numpy(found - p.grad)) <= 1e-12 * rms(numpy(p.grad)), "gradients of the graph"


def deep(depth: int, shortcuts: bool = False) -> nn.Module:
    torch.manual_seed(0)
    widths = [20] + [32] * depth
    units = [nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh(), nn.LayerNorm(n_out)) for n_in, n_out in pairwise(widths)]
    if not shortcuts:
        return nn.Sequential(*units, nn.Linear(32, K))
    shortcuts_ = [Shortcut(target - 2, target, "add") for target in range(2, depth, 2)]
    return ShortcutNetwork(nn.Identity(), units, shortcuts_, nn.Linear(32, K))


def deep_convolutional(depth: int) -> nn.Module:
    """Of ReLU: a step of them builds no graph."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in in [1] + [8] * (depth - 1):
        layers += [nn.Conv2d(n_in, 8, 3, padding=1), nn.ReLU(), nn.GroupNorm(1, 8)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, K))


def peak(depth: int, shortcuts: bool = False, detach: bool = True, images: bool = False) -> int:
    """Bytes alive in a training step that takes each layer's update as it comes."""
    rule = MonoForward(deep_convolutional(depth) if images else deep(depth, shortcuts), detach=detach)
    x, y = torch.randn(24, 1, 6, 6) if images else torch.randn(24, 20), torch.arange(24) % K
    with LiveBytes([x, y, *rule.parameters(), *rule.buffers()]) as live:
        for update in rule.stream(x, y):
            with torch.no_grad():
                for parameter, gradient in update.pairs:
                    parameter.sub_(gradient, alpha=0.1)
            del update
    return live.peak


DEEP: dict[str, dict[str, Any]] = {"shortcuts": {"shortcuts": True}, "convolutional": {"images": True}}


@pytest.mark.parametrize("name", DEEP)
def test_memory_does_not_grow_with_depth(name: str) -> None:
    """At most a tenth more at depth 64 than at depth 4, in bytes of live tensors. Backpropagation's does grow."""
    shallow, depth64 = peak(4, **DEEP[name]), peak(64, **DEEP[name])
    assert depth64 <= 1.1 * shallow, f"live bytes: {shallow} at depth 4, {depth64} at depth 64"
    assert peak(64, **DEEP[name], detach=False) > 5 * peak(4, **DEEP[name], detach=False), "the count sees what is held"


@pytest.mark.parametrize("aggregation", ["sum", "readout"])
def test_scores_hold_one_layer_at_a_time(aggregation: Any) -> None:
    """Beside the scores of all layers, or the averages that a read-out sees, both twice: apart and together."""
    peaks = []
    for depth in (4, 64):
        rule, x = MonoForward(deep_convolutional(depth), aggregation=aggregation).eval(), torch.randn(24, 1, 6, 6)
        with torch.no_grad(), LiveBytes([x, *rule.parameters(), *rule.buffers()]) as live:
            rule(x)
        peaks.append(live.peak)
    beside = 2 * 60 * 24 * 4 * (K if aggregation == "sum" else 8 + 8)
    assert peaks[1] <= 1.1 * peaks[0] + beside, f"live bytes: {peaks}"


class Convolutions(TorchDispatchMode):
    """Counts convolutions forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forward += func is torch.ops.aten.convolution.default
        self.backward += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_a_layer_is_convolved_once(activation: type[nn.Module]) -> None:
    """In a step once forward and once for its kernel, whether there is a graph or not; for all scores once."""
    rule = MonoForward(images(channel_norm, activation=activation))
    layers = sum(unit.has_maps for unit in rule.units)
    x, y = batch()
    rule.assign_credit(x, y)  # sizes are known from here on
    with Convolutions() as step:
        rule.assign_credit(x, y)
    assert (step.forward, step.backward) == (layers, layers), "convolutions of a step"
    with torch.no_grad(), Convolutions() as scores:
        assert rule.layer_scores(x).shape == (len(rule.units), len(x), K)
    assert (scores.forward, scores.backward) == (layers, 0), "convolutions for the scores of all classes"


def test_cells_are_not_kept_from_where_nothing_is_computed() -> None:
    rule = MonoForward(images(channel_norm))
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    _kept_weights.cache_clear()  # other tests have left the same cells there
    with FakeTensorMode(allow_non_fake_inputs=True):
        rule(x)
    assert type(rule(x).detach()) is torch.Tensor, "cells that are computed"


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"track_running_stats": True}, {"eps": 0.1}])
def test_instance_normalisation_is_that_of_its_module(options: dict[str, Any]) -> None:
    """Though one that learns nothing goes by a function of ours."""
    torch.manual_seed(0)
    normalise = nn.InstanceNorm2d(10, **options)
    for array in (*normalise.parameters(), *(b for b in normalise.buffers() if b.dim())):
        nn.init.uniform_(array, 0.5, 2)
    model = nn.Sequential(nn.Conv2d(2, 10, 3), nn.ReLU(), normalise, nn.Conv2d(10, 10, 3), nn.ReLU())
    rule = ChannelClassAssignment(model.double(), num_classes=K).eval()
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(rule.layer_features(x)[1], model(x)), "what is passed on"


def test_batch_normalisation_may_average_all_batches_alike() -> None:
    """Without a momentum it counts them, where nothing is computed too; statistics are those of a plain pass."""
    torch.manual_seed(0)
    plain, trained = (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU()) for _ in range(2))
    trained.load_state_dict(plain.state_dict())
    rule = MonoForward(trained, num_classes=3)
    for _ in range(3):
        x = torch.randn(4, 2, 5, 5)
        plain(x)
        rule.assign_credit(x, torch.tensor([0, 1, 2, 0]))
    assert trained[1].num_batches_tracked == 3, "batches are counted once each"
    torch.testing.assert_close(trained[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(trained[1].running_var, plain[1].running_var)


def test_layers_of_asge_are_pooled_by_their_squares() -> None:
    """Roots of means of squares, as published, but for a factor that normalisation takes away."""
    rule = PatchEnergy(asge())
    x = batch()[0]
    first, second = rule.layer_features(x)
    assert (first >= 0).all(), "energies of what ReLU gives"
    means = nn.functional.avg_pool2d(first.square(), 2).sqrt()
    expected = rule.model[4](normalisations.channel_norm(means, eps=1e-5 / 4)).relu()  # of half the size
    assert second.shape == expected.shape, "pooled by squares"
    assert torch.allclose(second, expected, rtol=1e-12, atol=1e-14), "pooled by squares"
    assert [head.grid for head in rule.heads] == [(2, 2), (1, 1)], "patches"


def test_which_layers_have_a_rectifier() -> None:
    """Those that are convolved with zeros around, or dense, and a ReLU or LeakyReLU that falls nowhere, alone."""
    relu, leaky = nn.ReLU(), nn.LeakyReLU(0.1)
    rows: list[tuple[nn.Module, tuple[nn.Module, ...], bool]] = [
        (nn.Linear(4, 4), (relu,), True), (nn.Linear(4, 4), (leaky,), True), (nn.Linear(4, 4), (), False),
        (nn.Linear(4, 4), (nn.Tanh(),), False), (nn.Linear(4, 4), (relu, nn.Dropout()), False),
        (nn.Linear(4, 4), (nn.LeakyReLU(0),), False), (nn.Linear(4, 4), (nn.LeakyReLU(-0.1),), False),
        (nn.Conv2d(2, 2, 3, stride=2, padding=1, dilation=2, groups=2), (relu,), True),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (relu,), False),
        (nn.Conv2d(2, 2, 3, padding="same"), (relu,), False), (nn.Conv1d(2, 2, 3), (relu,), False),
        (OrthogonalConv2d(2, 2, 3), (relu,), False), (nn.BatchNorm1d(4), (relu,), False),
    ]  # fmt: skip
    for layer, inside, rectified in rows:
        assert _rectifier(layer, inside) is (inside[0] if rectified else None), (layer, inside)


class OwnTanh(nn.Tanh):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class Gain(nn.Module):
    """What learns and is of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * x


def told(found: LocalNetwork) -> str:
    """The stem, and the units: each its layer, what is inside, its rectifier as "!", and what is outside after ">"."""
    lines = [kinds(found.stem)]
    for unit in found.units:
        inside = [
            kind + "!" * (module is unit.rectifier)
            for kind, module in zip(kinds(unit.inside), unit.inside, strict=True)
        ]
        lines.append([f"{unit.name}:", type(unit.module).__name__, *inside, *[">"] * bool(unit.outside)])
        lines[-1] += kinds(unit.outside)
    return " | ".join(map(" ".join, lines)) + f" -> {found.num_classes}"


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def last() -> nn.Linear:
    return nn.Linear(4, 3)


AFTER_NORMS, WHOLE = {"score_after": "normalisation"}, {"whole": True}

READ: list[tuple[dict[str, Any], Callable[[], list[nn.Module]], str]] = [
    ({}, lambda: [nn.Flatten(), linear(), nn.ReLU(), last()], "Flatten | 1: Linear ReLU! -> 3"),
    ({}, lambda: [linear(), nn.LeakyReLU(), last(), nn.Identity()], " | 0: Linear LeakyReLU! -> 3"),
    ({}, lambda: [linear(), nn.LeakyReLU(0.0), last()], " | 0: Linear LeakyReLU -> 3"),
    ({}, lambda: [linear(), nn.ReLU(), nn.Dropout(), last()], " | 0: Linear ReLU Dropout -> 3"),
    ({}, lambda: [nn.Bilinear(4, 4, 4), nn.ReLU(), last()], " | 0: Bilinear ReLU -> 3"),
    ({}, lambda: [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), last()], " | 0: Conv2d ReLU! > Flatten -> 3"),
    ({}, lambda: [nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU(), nn.Flatten(), last()],
     " | 0: Conv2d ReLU > Flatten -> 3"),
    ({}, lambda: [nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten(), last()],
     " | 0: Conv2d ReLU > Flatten -> 3"),
    ({}, lambda: [linear(), nn.Tanh(), nn.Dropout(), nn.Dropout1d(), nn.LayerNorm(4), nn.Dropout(), last()],
     " | 0: Linear Tanh Dropout Dropout1d > LayerNorm Dropout -> 3"),
    ({}, lambda: [linear(), nn.LayerNorm(4), last()], " | 0: Linear > LayerNorm -> 3"),
    ({}, lambda: [linear(), nn.LayerNorm(4), OwnTanh(), nn.LayerNorm(4), last()],
     " | 0: Linear LayerNorm OwnTanh > LayerNorm -> 3"),
    ({}, lambda: [linear(), nn.Dropout(), nn.LayerNorm(4), last()], " | 0: Linear Dropout > LayerNorm -> 3"),
    ({}, lambda: [linear(), nn.Flatten(), nn.Tanh(), nn.Tanh(), last()], " | 0: Linear Flatten Tanh > Tanh -> 3"),
    ({}, lambda: [linear(), nn.PReLU(), nn.ReLU(), last()], " | 0: Linear PReLU > ReLU -> 3"),
    (AFTER_NORMS, lambda: [linear(), nn.LayerNorm(4), nn.Tanh(), nn.LayerNorm(4), nn.Dropout(), last()],
     " | 0: Linear LayerNorm Tanh LayerNorm > Dropout -> 3"),
    (AFTER_NORMS, lambda: [linear(), nn.Tanh(), nn.Flatten(), last()], " | 0: Linear Tanh > Flatten -> 3"),
    ({}, lambda: [linear(), nn.Tanh(), linear(), nn.ReLU()], " | 0: Linear Tanh | 2: Linear ReLU! -> None"),
    ({}, lambda: [nn.Identity(), linear(), Gain(), nn.Tanh(), last()], "Identity | 1: Linear | 2: Gain Tanh -> 3"),
    (WHOLE, lambda: [linear(), nn.Tanh(), last()], " | 0: Linear Tanh | 2: Linear -> 3"),
    (WHOLE, lambda: [OrthogonalConv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), last()],
     " | 0: OrthogonalConv2d ReLU > Flatten | 3: Linear -> 3"),
    (WHOLE, lambda: [shared := linear(), nn.Tanh(), shared, last()], " | model: Sequential -> 3"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "layers", "expected"), READ)
def test_how_layers_are_read(options: dict[str, Any], layers: Callable[[], list[nn.Module]], expected: str) -> None:
    """What comes before the first layer, what a score is made from, and what stands behind it."""
    assert told(read(nn.Sequential(*layers()), "R", **options)) == expected


def test_a_unit_of_parts_learns_in_all_of_them() -> None:
    """Its score comes after the last of its modules that learns, where this is of no known kind."""
    model = nn.Sequential(linear(), Gain(), nn.Tanh(), nn.ReLU(), last())
    parts = [Part(str(i), module, i in (0, 4)) for i, module in enumerate(model)]
    assert told(read(model, "R", units=parts)) == " | 0: Linear Gain Tanh > ReLU -> 3"
    parts[1:3] = [Part("1", nn.Tanh(), False), Part("2", Gain(), False)]
    assert told(read(model, "R", units=parts)) == " | 0: Linear Tanh Gain ReLU -> 3"


def test_what_a_shape_tells_of_a_unit() -> None:
    unit = LocalUnit("unit", linear())
    for shape, has_maps, width in (((5, 6, 7), True, 5), ((6, 7), False, 7), ((7,), False, 7)):
        told = replace(unit, shape=torch.Size(shape))
        assert (told.has_maps, told.width) == (has_maps, width), shape
    assert (unit.has_maps, unit.width) == (False, 4), "as its layer tells"
    said = "example: None, expected a batch as the model takes it, (batch, ...), which tells how wide unit 'unit' is, a"
    for unknown in (LocalUnit("unit", nn.Bilinear(4, 4, 4)), LocalUnit("unit", linear(), inside=(Gain(),))):
        assert refusal(lambda: unknown.width).startswith(said)  # noqa: B023


def test_parameters_inside_are_trained_unless_frozen_or_the_layers_own() -> None:
    layer, norm, gain = linear(), nn.LayerNorm(4), Gain()
    norm.bias.requires_grad = False
    unit = LocalUnit("unit", layer, inside=(norm, gain, layer, gain))
    assert unit.inner == [norm.weight, gain.gain]
    assert unit.trained == [layer.weight, layer.bias, norm.weight, gain.gain]
    assert LocalUnit("unit", layer, inside=(nn.Tanh(),)).inner == []


def test_hooks_and_other_activations_take_a_graph() -> None:
    layer, relu = linear(), nn.ReLU()
    unit = LocalUnit("unit", layer, inside=(relu,), rectifier=relu)
    assert not unit.takes_graph
    assert LocalUnit("unit", layer, inside=(relu,)).takes_graph
    for module in (layer, relu):
        hook = module.register_forward_hook(lambda module, given, y: None)
        assert unit.takes_graph
        hook.remove()


def test_activities_of_a_unit_that_writes_over_its_input_leave_it() -> None:
    x = torch.randn(5, 4)
    before = x.clone()
    unit = LocalUnit("unit", nn.Sequential(nn.ReLU(inplace=True), linear()))
    unit.activities(x)
    assert torch.equal(x, before)
    assert LocalUnit("unit", nn.Identity()).activities(x) is x, "not copied for nothing"


def test_sizes_that_do_not_fit_are_named_by_their_layer() -> None:
    """Without a number computed, of two samples or as many as are said."""
    layers = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), last()
    found = read(nn.Sequential(*layers), "R")
    for shape, layer, said in (
        ((2, 4), "0", "takes (channels, height, width) a sample, but gets (2, 4)"),
        ((3, 4, 4), "0", "takes 2 channels, but gets 3"),
        ((2, 5, 4), "3", "takes 12 features, but gets 18"),
    ):
        message = refusal(lambda: check_sizes(found, torch.Size(shape), torch.float32))  # noqa: B023
        assert message == f"x: samples of shape {shape} do not pass layer '{layer}' ({said})"
    assert refusal(lambda: check_sizes(found, torch.Size((2, 4, 4)), torch.float32)) == "accepted"
    normed = read(nn.Sequential(linear(), nn.BatchNorm1d(4), nn.ReLU(), last()), "R")
    assert refusal(lambda: check_sizes(normed, torch.Size((4,)), torch.float32)) == "accepted", "two samples"
    one = refusal(lambda: check_sizes(normed, torch.Size((4,)), torch.float32, batch=1))
    assert one.startswith("x: samples of shape (4,) do not pass layer '0' (Expected more than 1 value per channel"), one
