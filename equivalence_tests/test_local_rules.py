"""Rules whose layers are classifiers, through the front door: against the reference, and against autograd."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from prograde.accelerated.modules import ChannelNorm
from prograde.accelerated.rules import (
    Backprop,
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    Ftp,
    LocalClassifiers,
    MonoForward,
    Rule,
    SymBa,
)
from prograde.accelerated.rules.local.score_heads import head_loss
from prograde.equivalence_tests.local_examples import MODELS, RULES, K, batch, dense, images, numpy, same
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import ReferenceSide, Side
from prograde.equivalence_tests.strategies import Case, cases
from prograde.equivalence_tests.test_local_classifiers import normalised
from prograde.equivalence_tests.test_rules import sequential
from prograde.equivalence_tests.tolerance import Comparison, rms

pytestmark = pytest.mark.usefixtures("ours_only")


def score_of(side: ReferenceSide, head: nn.Module) -> tuple[Any, tuple[Any, ...]]:
    """The reference's score and parameters for a head."""
    scores, learned, name = side.scores, side.learned_scores, type(head).__name__
    h: Any = head
    if name == "LinearHead":
        return scores.linear_map(h.grid), (numpy(h.matrix),)
    if name == "GroupHead":
        return (scores.group_mean_square if h.square else scores.group_mean)(K), ()
    if name == "ReadoutHead":
        fixed = numpy(h.projection), numpy(h.offset)
        return scores.random_readout(*fixed, h.grid, h.lowest, h.highest), (numpy(h.alpha),)
    if name == "PatchHead":
        return scores.patch_energy(numpy(h.projection), numpy(h.offset), h.grid), ()
    if name == "PrototypeHead":
        return learned.prototype_cosine(h.sharpness, h.grid), (numpy(h.prototypes),)
    epochs = int(h.epochs)
    score = learned.channel_class(h.pooling, h.entropy, h.orthogonality * min(1, epochs / 50), False, 0.995**epochs)
    return score if not h.fixed else score._replace(penalty=scores.no_penalty), tuple(numpy(p) for p in h.arrays())


def step_of(side: ReferenceSide, module: nn.Module) -> Any:
    """The reference's step for a module."""
    match module:
        case ChannelNorm():
            return normalised(side, "channel_norm")
        case nn.GroupNorm():
            return normalised(side, "group_norm", groups=module.num_groups)
        case nn.InstanceNorm2d():
            return normalised(side, "instance_norm")
        case nn.LayerNorm():
            return normalised(side, "layer_norm")
        case nn.BatchNorm2d():
            return normalised(side, "batch_norm")
        case nn.AvgPool2d():
            return side.layers.AveragePool(module.kernel_size)
        case nn.MaxPool2d():
            return side.layers.MaxPool(module.kernel_size)
        case nn.Flatten():
            return side.layers.Flatten()
        case nn.Tanh():
            return side.activations.tanh
    raise AssertionError(module)


def reference_layers(rule: LocalClassifiers) -> list[Any]:
    side = ReferenceSide()
    found = []
    for unit, head in zip(rule.units, rule.heads, strict=True):
        weight, bias = numpy(unit.module.weight), numpy(unit.bias)
        steps, outlet = (tuple(step_of(side, m) for m in modules) for modules in (unit.inside, unit.outside))
        if isinstance(unit.module, nn.Conv2d):
            place = unit.module.stride, unit.module.padding, unit.module.groups
            layer = side.layers.Convolution(weight, bias, steps, outlet, *place)
        else:
            layer = side.layers.Dense(weight, bias, steps, outlet)
        found.append(side.local_classifiers.LocalLayer(layer, *score_of(side, head)))
    return found


LOSSES: dict[str, Callable[[Side], Any]] = {
    "Hyperspherical": lambda side: side.score_losses.cosine_margin(10, 0.2),
    "Hyperspherical, dense": lambda side: side.score_losses.smooth_margin(),
    "ChannelCompetition, PvN": lambda side: side.score_losses.positive_versus_negative(),
    "ChannelCompetition, mixed": lambda side: side.score_losses.mixed(),
    **dict.fromkeys(
        [name for name in RULES if name.startswith("ChannelClass")], lambda side: side.score_losses.cross_entropy(0.1)
    ),
}
"""The reference's, where it is not the plain cross-entropy."""


@pytest.mark.parametrize("name", RULES)
def test_gradients_and_scores(name: str) -> None:
    """.grad of weights, biases and what scores learn is the reference's update; one pass gives all layers' scores."""
    rule = RULES[name]()
    rule.calibrate([batch(rule)])  # moves on what changes with epochs
    x, y = batch(rule)
    layers, side = reference_layers(rule), ReferenceSide()
    loss_of = LOSSES.get(name, lambda side: side.score_losses.cross_entropy())
    loss = rule.assign_credit(x, y)
    assert not any(p.grad.requires_grad for p in rule.parameters() if p.grad is not None)
    expected = side.local_classifiers.updates(layers, numpy(x), y.cpu().numpy(), loss_of(side))
    for unit, head, update in zip(rule.units, rule.heads, expected, strict=True):
        same(f"weight of {unit.name}", unit.module.weight.grad, update.layer[0])
        if not any(isinstance(module, nn.BatchNorm2d) for module in unit.inside):  # before it a bias has no gradient
            bias = update.layer[1] if len(update.layer) == 2 else None
            same(f"bias of {unit.name}", None if unit.bias is None else unit.bias.grad, bias)
        for parameter, theirs in zip(head.parameters(), update.parameters, strict=False):
            same(f"score of {unit.name}", parameter.grad, theirs)
    assert loss.item() == pytest.approx(sum(float(update.loss) for update in expected), rel=1e-10), "loss"
    scores = side.local_classifiers.layer_scores(layers, numpy(x))
    same("layer_scores", rule.layer_scores(x), scores)
    same("scores", rule(x), np.einsum("l,lbk->bk", numpy(rule.aggregation.weights), scores))
    for ours, p in zip(rule.layer_features(x), side.local_classifiers.layer_passes(layers, numpy(x)), strict=True):
        same("layer_features", ours, p.h)


@given(case=cases(dropout=False))
def test_dense_gradients(twin: Side, compare: Comparison, case: Case) -> None:
    """In every precision. The last layer is no hidden one, and has no part."""
    rng = np.random.default_rng(0)
    k = case.num_classes
    maps = tuple(rng.standard_normal((k, len(w))) / np.sqrt(len(w)) for w in case.dense.weights[:-1])

    def updates(side: Side, dense: Any, x: Any, labels: Any, maps: Any) -> Any:
        if isinstance(side, ReferenceSide):
            module = side.local_classifiers
            layers = [
                module.LocalLayer(layer, side.scores.linear_map(), (matrix,))
                for layer, matrix in zip(side.chain(dense)[:-1], maps, strict=True)
            ]
            found = module.updates(layers, x, labels, side.score_losses.cross_entropy())
            scores = module.layer_scores(layers, x).sum(axis=0)
            return [(u.layer[0], u.layer[1] if len(u.layer) == 2 else None, *u.parameters) for u in found], scores
        rule = MonoForward(sequential(dense))
        for head, matrix in zip(rule.heads, maps, strict=True):
            with torch.no_grad():
                head.matrix.copy_(matrix)
        rule.assign_credit(x.unflatten(1, (1, -1)), labels)
        assert all(p.grad is None for p in rule.model[-2].parameters()), "the last layer"
        found = [
            (b.module.weight.grad, None if b.bias is None else b.bias.grad, h.matrix.grad)
            for b, h in zip(rule.units, rule.heads, strict=True)
        ]
        return found, rule(x)

    compare(twin, "MonoForward", updates, *case[:3], maps)


def by_autograd(rule: LocalClassifiers, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each parameter's gradient by the one loss that it has a part in; no loss reaches what is not its own."""
    names = {id(p): name for name, p in rule.named_parameters()}
    found: dict[str, torch.Tensor] = {}
    saved: dict[int, torch.Tensor] = {}
    x = rule.local.begin(rule.checked_input(x))  # in the same memory format, by which dropout draws
    for index, (unit, head) in enumerate(zip(rule.units, rule.heads, strict=True)):
        h = unit.activities(x.detach())
        loss = head_loss(head, h, y, rule.loss, unit.name, rule.num_classes)[1]
        own = {id(p) for p in (*unit.trained, *head.parameters())}
        for p, g in zip(
            rule.parameters(), torch.autograd.grad(loss, list(rule.parameters()), allow_unused=True), strict=True
        ):
            assert (g is not None) == (id(p) in own), f"the loss of {unit.name} and {names[id(p)]}"
            if g is not None:
                found[names[id(p)]] = g
        x = wire(rule, index, unit.pass_on(h).detach(), saved)
    return found


def wire(rule: LocalClassifiers, index: int, x: torch.Tensor, saved: dict[int, torch.Tensor]) -> torch.Tensor:
    for shortcut in rule.local.shortcuts:
        if shortcut.target == index:
            other = nn.functional.avg_pool2d(saved[shortcut.source], shortcut.pool)
            x = x + other if shortcut.join == "add" else torch.cat([x, other], dim=1)
    saved[index] = x
    return x


@pytest.mark.parametrize("name", MODELS)
def test_every_loss_is_its_layers_own(name: str) -> None:
    """On networks of all kinds: .grad is autograd's of each layer's own loss, which reaches nothing else."""
    rule, shape = MODELS[name]()
    generator = seeded(1)
    x, y = torch.randn(6, *shape, generator=generator, dtype=torch.float64), torch.arange(6) % K
    torch.manual_seed(5)
    rule.assign_credit(x, y)
    torch.manual_seed(5)  # the same dropout
    expected = by_autograd(rule, x, y)
    for name, parameter in rule.named_parameters():
        if name in expected:
            theirs = expected[name]
            assert parameter.grad is not None, name
            assert rms(numpy(parameter.grad - theirs)) <= 1e-9 * rms(numpy(theirs)) + 1e-15, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("name", MODELS)
def test_stepping_while_streaming_changes_nothing(name: str) -> None:
    """Each unit's weights are overwritten before the next update is asked for; bit for bit the same updates."""
    rule, shape = MODELS[name]()
    other = copy.deepcopy(rule)
    generator = seeded(1)
    x, y = torch.randn(6, *shape, generator=generator, dtype=torch.float64), torch.arange(6) % K
    torch.manual_seed(5)
    whole = [[gradient.clone() for _, gradient in update.pairs] for update in list(rule.stream(x, y))]
    torch.manual_seed(5)
    for expected, update in zip(whole, other.stream(x, y), strict=True):
        for (parameter, gradient), theirs in zip(update.pairs, expected, strict=True):
            assert torch.equal(gradient, theirs), update.unit.name
            with torch.no_grad():
                parameter.fill_(float("nan"))


def test_what_is_frozen_inside_a_layer_stays() -> None:
    model = nn.Sequential(nn.Linear(11, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, K)).double()
    model[1].requires_grad_(False)
    for kind in (MonoForward, Backprop):
        rule = kind(model)
        rule.assign_credit(*batch(rule))
        assert model[0].weight.grad is not None
        assert model[1].weight.grad is None


@pytest.mark.parametrize("name", [*RULES, *MODELS])
def test_copies_and_pickles_learn_the_same(name: str) -> None:
    rule = RULES[name]() if name in RULES else MODELS[name]()[0]
    shape = batch(rule)[0].shape[1:] if name in RULES else MODELS[name]()[1]
    x, y = torch.randn(6, *shape, dtype=torch.float64), torch.arange(6) % K
    twins = [rule, copy.deepcopy(rule), pickle.loads(pickle.dumps(rule))]
    for other in twins:
        other.float()
        optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
        torch.manual_seed(2)
        for _ in range(2):
            other.assign_credit(x.float(), y)
            optimizer.step()
        other.calibrate([(x.float(), y)])
    for other in twins[1:]:
        assert torch.equal(rule.eval()(x.float()), other.eval()(x.float())), "copied"
        assert all(a is not b for a, b in zip(rule.parameters(), other.parameters(), strict=True))


def test_training_tells_classes_apart() -> None:
    """Every method, in few steps on few images; chance is a quarter, and the least of 20 seeds 0.66."""
    for name, make in RULES.items():
        rule = make().float()
        x, y = batch(rule, 64)
        optimizer = torch.optim.AdamW(rule.parameters(), lr=3e-3 if isinstance(rule, ChannelCompetition) else 1e-2)
        for _ in range(60):
            rule.assign_credit(x.float(), y)
            optimizer.step()
        rule.calibrate([(x.float(), y)])
        assert (rule.eval()(x.float()).argmax(dim=1) == y).double().mean() > 0.55, name


def test_parameters_set_by_assignment_learn() -> None:
    """`load_state_dict(..., assign=True)` puts others in their place."""
    rule = ChannelCompetition(images(nn.BatchNorm2d))
    expected = copy.deepcopy(rule)
    rule.load_state_dict({name: value.clone() for name, value in rule.state_dict().items()}, assign=True)
    for each in (rule, expected):
        each.assign_credit(*batch())
    for (name, ours), theirs in zip(rule.named_parameters(), expected.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


def test_hooks_are_called() -> None:
    """On activations and normalisations that go without a graph or by a function as long as nobody looks."""
    model = images(nn.InstanceNorm2d, activation=nn.ReLU)
    rule = ChannelClassAssignment(model)
    x, y = batch()
    rule.assign_credit(x, y)
    unseen = [p.grad.clone() for p in rule.parameters() if p.grad is not None]
    seen: list[str] = []
    called = list(model.named_children())[:-1]  # the last Linear is left out
    for name, module in called:
        module.register_forward_hook(lambda m, a, h, name=name: seen.append(name))
    rule.assign_credit(x, y)
    assert seen == [name for name, _ in called], "every module, once"
    for before, p in zip(unseen, [p for p in rule.parameters() if p.grad is not None], strict=True):
        assert torch.allclose(before, p.grad, rtol=1e-9, atol=1e-15), "the same step"


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [MonoForward, DeeperForward, Backprop, Ftp, SymBa])
def test_a_fused_optimizer_steps_as_any_other(kind: Callable[..., Rule], memory_format: torch.memory_format) -> None:
    """It reads parameters and gradients in the order of memory, whatever their strides are."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 64, K),
    ).to(memory_format=memory_format)  # fmt: skip
    options = {"image_size": (8, 8)} if kind is Ftp else {}
    x, y = batch()
    found = []
    for fused in (False, True):
        rule = kind(copy.deepcopy(model), generator=seeded(1), **options)
        # With the usual eps an entry whose gradients are all but 0 moves by a quotient of their rounding errors.
        optimizer = torch.optim.AdamW(rule.parameters(), lr=1e-2, eps=1e-3, fused=fused)
        for _ in range(2):
            rule.assign_credit(x.float(), y)
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in rule.parameters()]))
    # An entry moves by the rate in each step, one way or the other.
    assert torch.allclose(*found, rtol=0, atol=1e-3 * 1e-2), "a fused step"


def test_no_loss_of_ones_own_is_the_rules() -> None:
    """Its label smoothing stays."""
    x, y = batch(MonoForward(dense()))
    losses = []
    for options in ({}, {"loss": None}, {"label_smoothing": 0.0}):
        torch.manual_seed(0)
        losses.append(ChannelClassAssignment(dense(), assignment="static", **options).assign_credit(x, y).item())
    assert losses[0] == losses[1] != losses[2]
