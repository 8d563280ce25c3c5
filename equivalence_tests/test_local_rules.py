"""Rules whose layers are classifiers, through the front door: against the reference, and against autograd."""

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prograde.accelerated.adaptive_pooling import _kept_weights
from prograde.accelerated.local_classifiers import Shortcut
from prograde.accelerated.modules import (
    ChannelNorm,
    MaxMin,
    ShortcutNetwork,
    cfse,
    resnet17,
    small_cnn,
    tiny_cnn,
    vgg8,
    vgg11,
)
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    BackpropEndToEnd,
    BackpropEnsemble,
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    DynamicTemperature,
    Ftp,
    HybridDynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
    Rule,
    SymBa,
)
from prograde.accelerated.rules.local_blocks import LocalBlock
from prograde.accelerated.rules.score_heads import Heads, LinearHead, head_loss
from prograde.accelerated.score_losses import smooth_margin
from prograde.accelerated.training.diagnostics.memory import LiveBytes
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import ReferenceSide, Side, TwinSide
from prograde.equivalence_tests.strategies import Case, cases
from prograde.equivalence_tests.test_local_classifiers import normalised
from prograde.equivalence_tests.test_rules import sequential
from prograde.equivalence_tests.tolerance import Comparison, rms

K = 4


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


def dense(norm: Callable[[int], nn.Module] | None = None, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((11, 16, 12, 8)):
        layers += [nn.Linear(n_in, n_out), nn.Tanh(), *([nn.Dropout(dropout)] if dropout else [])]
        layers += [] if norm is None else [norm(n_out)]
    return nn.Sequential(*layers, nn.Linear(8, K)).double()


def images(
    norm: Callable[[int], nn.Module], pool: nn.Module | None = None, activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """For images of 8 x 8 pixels with 2 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), activation(), *([nn.AvgPool2d(2)] if pool is None else [pool]), norm(8),
        nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False), activation(), norm(12), nn.AvgPool2d(2),
        nn.Conv2d(12, 8, (3, 2), stride=(2, 1), padding=1), activation(), nn.Flatten(),
        nn.Linear(24, 8), activation(), nn.Linear(8, K),
    ).double()  # fmt: skip


def channel_norm(channels: int) -> nn.Module:
    return ChannelNorm()


group_norm = partial(nn.GroupNorm, K, affine=False)
batch_norm = partial(nn.BatchNorm2d, affine=False)
layer_norm = partial(nn.LayerNorm, elementwise_affine=False)
RULES: dict[str, Callable[[], LocalClassifiers]] = {
    "MonoForward": lambda: MonoForward(images(channel_norm), grid=2),
    "MonoForward, dense": lambda: MonoForward(dense(layer_norm), aggregation="last"),
    "Hyperspherical": lambda: Hyperspherical(images(channel_norm), grid=(3, 2, 1, 1), margin=0.2, scale=10),
    "Hyperspherical, dense": lambda: Hyperspherical(dense(layer_norm), per_class=3, sharpness=4, loss=smooth_margin()),
    "DynamicTemperature": lambda: DynamicTemperature(images(channel_norm)),
    "DynamicTemperature, dense": lambda: DynamicTemperature(dense(layer_norm), lowest=0.1, first_layer=1),
    "PatchEnergy": lambda: PatchEnergy(images(channel_norm), grid=2),
    "DeeperForward": lambda: DeeperForward(images(group_norm)),
    "ChannelCompetition": lambda: ChannelCompetition(images(batch_norm, nn.MaxPool2d(2))),
    "ChannelCompetition, PvN": lambda: ChannelCompetition(images(batch_norm), loss="pvn"),
    "ChannelCompetition, mixed": lambda: ChannelCompetition(images(batch_norm), loss="mixed"),
    "ChannelClassAssignment": lambda: ChannelClassAssignment(images(nn.InstanceNorm2d)),
    "ChannelClassAssignment, static": lambda: ChannelClassAssignment(images(group_norm), assignment="static"),
    "ChannelClassAssignment, frozen": lambda: ChannelClassAssignment(dense(), assignment="frozen"),
}


def batch(rule: LocalClassifiers | None = None, n: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """What the rule's model takes; images without one."""
    generator = seeded(1)
    shape = (11,) if rule is not None and not rule.convolutions else (2, 8, 8)
    y = torch.randint(0, K, (n,), generator=generator)
    centres = torch.randn(K, *shape, generator=generator, dtype=torch.float64)
    return centres[y] + 0.5 * torch.randn(n, *shape, generator=generator, dtype=torch.float64), y


def numpy(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().double().cpu().numpy()


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
    for block, head in zip(rule.units, rule.heads, strict=True):
        weight, bias = numpy(block.layer.weight), numpy(block.bias)
        steps, outlet = (tuple(step_of(side, m) for m in modules) for modules in (block.inside, block.outside))
        if isinstance(block.layer, nn.Conv2d):
            place = block.layer.stride, block.layer.padding, block.layer.groups
            layer = side.layers.Convolution(weight, bias, steps, outlet, *place)
        else:
            layer = side.layers.Dense(weight, bias, steps, outlet)
        found.append(side.local_classifiers.LocalLayer(layer, *score_of(side, head)))
    return found


def same(name: str, ours: Any, theirs: Any) -> None:
    if theirs is None:
        assert ours is None, name
    else:
        assert rms(theirs) > 0, f"{name}: vacuous"
        assert rms(numpy(ours) - theirs) <= 1e-10 * rms(theirs), name


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
def test_gradients_and_scores(name: str):
    """.grad of weights, biases and what scores learn is the reference's update; one pass gives all layers' scores."""
    rule = RULES[name]()
    rule.calibrate([batch(rule)])  # moves on what changes with epochs
    x, y = batch(rule)
    layers, side = reference_layers(rule), ReferenceSide()
    loss_of = LOSSES.get(name, lambda side: side.score_losses.cross_entropy())
    loss = rule.assign_credit(x, y)
    assert not any(p.grad.requires_grad for p in rule.parameters() if p.grad is not None)
    expected = side.local_classifiers.updates(layers, numpy(x), y.cpu().numpy(), loss_of(side))
    for block, head, update in zip(rule.units, rule.heads, expected, strict=True):
        same(f"weight of {block.name}", block.layer.weight.grad, update.layer[0])
        if not any(isinstance(module, nn.BatchNorm2d) for module in block.inside):  # before it a bias has no gradient
            bias = update.layer[1] if len(update.layer) == 2 else None
            same(f"bias of {block.name}", None if block.bias is None else block.bias.grad, bias)
        for parameter, theirs in zip(head.parameters(), update.parameters, strict=False):
            same(f"score of {block.name}", parameter.grad, theirs)
    assert loss.item() == pytest.approx(sum(float(update.loss) for update in expected), rel=1e-10), "loss"
    scores = side.local_classifiers.layer_scores(layers, numpy(x))
    same("layer_scores", rule.layer_scores(x), scores)
    same("scores", rule(x), np.einsum("l,lbk->bk", numpy(rule.aggregation.weights), scores))
    for ours, p in zip(rule.layer_features(x), side.local_classifiers.layer_passes(layers, numpy(x)), strict=True):
        same("layer_features", ours, p.h)


def kinds(modules: Any) -> list[str]:
    return [type(module).__name__ for module in modules]


def test_where_scores_are_taken():
    """Behind an activation and the dropout of its own; or behind normalisation, with all that comes before it."""
    layers = [
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Dropout2d(), nn.GroupNorm(2, 4),
        nn.Dropout(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(),
    ]  # fmt: skip
    (block,) = MonoForward(nn.Sequential(*layers), num_classes=2).units
    assert kinds(block.inside) == ["BatchNorm2d", "ReLU", "Dropout", "Dropout2d"], (
        "after the activation and its dropout"
    )
    assert kinds(block.outside) == ["GroupNorm", "Dropout", "MaxPool2d", "BatchNorm2d", "Dropout", "Flatten"]
    (block,) = MonoForward(nn.Sequential(*layers), num_classes=2, score_after="normalisation").units
    assert len(block.inside) == 8, "after the last normalisation"
    assert kinds(block.outside) == ["Dropout", "Flatten"], "after the last normalisation"
    competing = ChannelCompetition(images(batch_norm)).units[0]
    assert kinds(competing.inside) == ["Tanh", "AvgPool2d", "BatchNorm2d"], "CwComp's after batch normalisation"
    plain = nn.Sequential(nn.Linear(3, 4), nn.Flatten())
    (block,) = MonoForward(plain, num_classes=2, score_after="normalisation").units
    assert (kinds(block.inside), kinds(block.outside)) == ([], ["Flatten"])


@given(case=cases(dropout=False))
def test_dense_gradients(twin: Side, compare: Comparison, case: Case):
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
            (b.layer.weight.grad, None if b.bias is None else b.bias.grad, h.matrix.grad)
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
    for index, (block, head) in enumerate(zip(rule.units, rule.heads, strict=True)):
        h = block.activities(x.detach())
        loss = head_loss(head, h, y, rule.loss, block.name, rule.num_classes)[1]
        own = {id(p) for p in (*block.trained, *head.parameters())}
        for p, g in zip(
            rule.parameters(), torch.autograd.grad(loss, list(rule.parameters()), allow_unused=True), strict=True
        ):
            assert (g is not None) == (id(p) in own), f"the loss of {block.name} and {names[id(p)]}"
            if g is not None:
                found[names[id(p)]] = g
        x = wire(rule, index, block.pass_on(h).detach(), saved)
    return found


def wire(rule: LocalClassifiers, index: int, x: torch.Tensor, saved: dict[int, torch.Tensor]) -> torch.Tensor:
    for shortcut in rule.local.shortcuts:
        if shortcut.target == index:
            other = nn.functional.avg_pool2d(saved[shortcut.source], shortcut.pool)
            x = x + other if shortcut.join == "add" else torch.cat([x, other], dim=1)
    saved[index] = x
    return x


def own_score(blocks: Any, classes: int) -> list[nn.Module]:
    """A score of a user's own, of modules that no twin has."""
    return [
        nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(block.width, classes)).double()
        if block.has_maps
        else nn.Linear(block.width, classes).double()
        for block in blocks
    ]


def odd(activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """What the reference has no word for: other activations, learned normalisation, dropout, nested and unflattened."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 8, 8)),
        nn.Sequential(nn.Conv2d(2, 6, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(6), nn.PReLU()),
        nn.Dropout(0.3), nn.LayerNorm([8, 8]), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, dilation=2, padding=2), activation(), nn.BatchNorm2d(8), nn.Dropout2d(0.2), nn.Flatten(),
        nn.Linear(128, 6), activation(),
    ).double()  # fmt: skip


MODELS: dict[str, Callable[[], tuple[LocalClassifiers, tuple[int, ...]]]] = {
    "own score": lambda: (LocalClassifiers(odd(), score=own_score, num_classes=K), (128,)),
    "after normalisation": lambda: (
        LocalClassifiers(odd(nn.SiLU), score=own_score, score_after="normalisation", num_classes=K), (128,),
    ),
    "ResNet-17": lambda: (
        DeeperForward(resnet17(K, 2, 0.1, planes=(4, 8, 16, 32)).double()), (2, 16, 16),
    ),
    "TinyCNN": lambda: (ChannelClassAssignment(tiny_cnn(K, 2).double()), (2, 8, 8)),
    "CFSE": lambda: (ChannelCompetition(cfse((4, 8, 12, 16), K, 2, 0.1).double()), (2, 8, 8)),
    "LeakyReLU": lambda: (MonoForward(images(channel_norm, activation=nn.LeakyReLU)), (2, 8, 8)),
    "three axes": lambda: (
        LocalClassifiers(
            nn.Sequential(
                nn.Unflatten(1, (3, 5)), nn.Linear(5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 6), nn.ReLU()
            ).double(),
            score=lambda b, k: [nn.Sequential(nn.Flatten(), nn.Linear(n, k)).double() for n in (18, 6)], num_classes=K,
        ),
        (15,),
    ),
    "MaxMin": lambda: (Hyperspherical(images(channel_norm, activation=MaxMin)), (2, 8, 8)),
    "rectified, as convolutions may be": lambda: (
        LocalClassifiers(
            nn.Sequential(
                nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                nn.Conv2d(6, 6, 3, dilation=2, padding=2), nn.ReLU(),
                nn.Conv2d(6, 6, 3, dilation=(1, 2), padding="same"), nn.ReLU(),
                nn.Conv2d(6, 6, 3, stride=2, groups=2, bias=False), nn.LeakyReLU(-0.1), nn.Linear(3, 5), nn.ReLU(),
            ).double(),
            score=lambda blocks, k: [
                nn.Sequential(nn.Flatten(), nn.Linear(n, k)).double() for n in (384, 384, 384, 54, 90)
            ],
            num_classes=K,
        ),
        (2, 8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_loss_is_its_layers_own(name: str):
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


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
def test_rectified_layers_are_trained_without_a_graph(activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch):
    """All of them, and to the gradients of the graph."""
    without: list[str] = []
    rectified = LocalBlock.rectified

    def counted(block: LocalBlock, x: torch.Tensor) -> torch.Tensor:
        without.append(block.name)
        return rectified(block, x)

    monkeypatch.setattr(LocalBlock, "rectified", counted)
    rule = Hyperspherical(images(channel_norm, activation=activation))
    x, y = batch()
    rule.assign_credit(x, y)
    assert without == [unit.name for unit in rule.units], f"without a graph: {without}"
    ours = [p.grad for p in rule.parameters()]
    monkeypatch.setattr(LocalBlock, "takes_graph", True)
    rule.assign_credit(x, y)
    assert len(without) == len(rule.units), "a graph was asked for"
    for found, p in zip(ours, rule.parameters(), strict=True):
        assert (found is None) == (p.grad is None)
        assert p.grad is None or rms(numpy(found - p.grad)) <= 1e-12 * rms(numpy(p.grad)), "gradients of the graph"


@pytest.mark.parametrize("name", MODELS)
def test_stepping_while_streaming_changes_nothing(name: str):
    """Each block's weights are overwritten before the next update is asked for; bit for bit the same updates."""
    rule, shape = MODELS[name]()
    other = copy.deepcopy(rule)
    generator = seeded(1)
    x, y = torch.randn(6, *shape, generator=generator, dtype=torch.float64), torch.arange(6) % K
    torch.manual_seed(5)
    whole = [[gradient.clone() for _, gradient in update.pairs] for update in list(rule.stream(x, y))]
    torch.manual_seed(5)
    for expected, update in zip(whole, other.stream(x, y), strict=True):
        for (parameter, gradient), theirs in zip(update.pairs, expected, strict=True):
            assert torch.equal(gradient, theirs), update.block.name
            with torch.no_grad():
                parameter.fill_(float("nan"))


def deep(depth: int, shortcuts: bool = False) -> nn.Module:
    torch.manual_seed(0)
    widths = [20] + [32] * depth
    blocks = [nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh(), nn.LayerNorm(n_out)) for n_in, n_out in pairwise(widths)]
    if not shortcuts:
        return nn.Sequential(*blocks, nn.Linear(32, K))
    shortcuts_ = [Shortcut(target - 2, target, "add") for target in range(2, depth, 2)]
    return ShortcutNetwork(nn.Identity(), blocks, shortcuts_, nn.Linear(32, K))


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


DEEP: dict[str, dict[str, Any]] = {"dense": {}, "shortcuts": {"shortcuts": True}, "convolutional": {"images": True}}


@pytest.mark.parametrize("name", DEEP)
def test_memory_does_not_grow_with_depth(name: str):
    """At most a tenth more at depth 64 than at depth 4, in bytes of live tensors. Backpropagation's does grow."""
    shallow, depth64 = peak(4, **DEEP[name]), peak(64, **DEEP[name])
    assert depth64 <= 1.1 * shallow, f"live bytes: {shallow} at depth 4, {depth64} at depth 64"
    assert peak(64, **DEEP[name], detach=False) > 5 * peak(4, **DEEP[name], detach=False), "the count sees what is held"


@pytest.mark.parametrize("aggregation", ["sum", "readout"])
def test_scores_hold_one_layer_at_a_time(aggregation: Any):
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
def test_a_layer_is_convolved_once(activation: type[nn.Module]):
    """In a step once forward and once for its kernel, whether there is a graph or not; for all scores once."""
    rule = MonoForward(images(channel_norm, activation=activation))
    layers = sum(block.has_maps for block in rule.units)
    x, y = batch()
    rule.assign_credit(x, y)  # sizes are known from here on
    with Convolutions() as step:
        rule.assign_credit(x, y)
    assert (step.forward, step.backward) == (layers, layers), "convolutions of a step"
    with torch.no_grad(), Convolutions() as scores:
        assert rule.layer_scores(x).shape == (len(rule.units), len(x), K)
    assert (scores.forward, scores.backward) == (layers, 0), "convolutions for the scores of all classes"


def test_sums_of_losses_outlast_half_precision():
    rule = MonoForward(dense(), aggregation="training-loss").bfloat16()
    aggregation = rule.aggregation
    losses = torch.tensor([2.3, 0.46, 1.0], dtype=torch.bfloat16)
    for _ in range(400):
        for layer, loss in enumerate(losses):
            aggregation.note(layer, loss, 128)
    assert aggregation.loss_count.tolist() == [400 * 128] * 3
    assert torch.equal(aggregation.loss_total / aggregation.loss_count, losses.float()), "means of losses"


def test_epochs_are_counted_in_half_precision():
    rule = channels().bfloat16()
    for _ in range(300):
        rule.calibrate([])
    assert [int(head.epochs) for head in rule.heads] == [300] * 3


def test_no_ramp_is_all_of_the_weight():
    ramped, whole = (channels(ramp=ramp, cooling=1.0, scaled=True, orthogonality=1.0) for ramp in (1, 0))
    ramped.calibrate([])
    for heads in zip(ramped.heads, whole.heads, strict=True):
        found, expected = (head.score().penalty(head.arrays())[0] for head in heads)
        assert found == expected > 0


def test_cells_are_not_kept_from_where_nothing_is_computed():
    rule = MonoForward(images(channel_norm))
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    _kept_weights.cache_clear()  # other tests have left the same cells there
    with FakeTensorMode(allow_non_fake_inputs=True):
        rule(x)
    assert type(rule(x).detach()) is torch.Tensor, "cells that are computed"


def test_calibration_checks_its_labels_and_leaves_the_mode_after_an_error():
    rule = DeeperForward(dense())
    x, y = batch(rule, 8)
    for wrong, message in ((y[:3], r"y: .*, expected int64 of shape \(8,\)"), (y + 9, r"y: labels 9\.\.")):
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


def test_what_is_frozen_inside_a_layer_stays():
    model = nn.Sequential(nn.Linear(11, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, K)).double()
    model[1].requires_grad_(False)
    for kind in (MonoForward, BackpropEndToEnd):
        rule = kind(model)
        rule.assign_credit(*batch(rule))
        assert model[0].weight.grad is not None
        assert model[1].weight.grad is None


def test_a_read_out_asks_for_two_samples():
    rule = MonoForward(dense(), aggregation="readout")
    x, y = batch(rule)
    with pytest.raises(ValueError, match=r"x: a batch of 1, expected 2 or more: BatchNorm1d 'aggregation\.readout\.0'"):
        next(rule.stream(x[:1], y[:1]))
    assert rule.eval()(x[:1]).shape == (1, K)
    for update in rule.stream(x[:1], y[:1]):
        assert all(torch.isfinite(gradient).all() for _, gradient in update.pairs)


KINDS: list[Callable[..., LocalClassifiers]] = [MonoForward, DynamicTemperature, BackpropDeepSupervision]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detach", [False, True])
def test_deep_supervision_is_the_gradient_of_the_sum(kind: Callable[..., LocalClassifiers], detach: bool):
    """With detach=False of the same network and heads; only the last layer learns the same without."""
    rule = kind(images(channel_norm), detach=detach)
    x, y = batch()
    loss = rule.assign_credit(x, y)
    ours = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    objective = rule.objective(x, y)
    objective.backward()
    assert loss.item() == pytest.approx(objective.item(), rel=1e-12), "the sum of the losses"
    assert set(ours) == {name for name, p in rule.named_parameters() if p.grad is not None}
    alike = {name for name, p in rule.named_parameters() if name in ours and torch.allclose(ours[name], p.grad, 1e-9)}
    if not detach:
        assert alike == set(ours), "backpropagated"
    else:
        heads = {name for name in ours if name.startswith("heads.")}
        assert alike == heads | {"model.11.weight", "model.11.bias"}, "detached"


def test_learned_normalisation_learns_under_backpropagation_alone():
    """A local rule leaves what stands outside of its layers as it is."""
    make = partial(small_cnn, (8, 8), K, 2, (0,), lambda channels: nn.GroupNorm(1, channels))
    x, y = batch()
    for kind, learns in ((MonoForward, False), (BackpropDeepSupervision, True), (BackpropEndToEnd, True)):
        rule = kind(make().double())
        rule.assign_credit(x, y)
        assert (rule.get_parameter("model.2.weight").grad is not None) == learns, kind.__name__


def test_end_to_end_is_autograd_and_backprop():
    model = images(channel_norm)
    x, y = batch()
    rule = BackpropEndToEnd(model, label_smoothing=0.1)
    loss = rule.assign_credit(x, y)
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    expected = nn.functional.cross_entropy(model(x), y, label_smoothing=0.1)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for grad, p in zip(ours, model.parameters(), strict=True):
        assert p.grad is not None
        assert torch.allclose(grad, p.grad, rtol=1e-12, atol=1e-15), "end to end"
    assert torch.allclose(rule(x), model(x), rtol=1e-12, atol=1e-14)


def test_an_ensemble_is_its_members_apart():
    models = [dense(layer_norm), dense(layer_norm)]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.5)
    rule, members = BackpropEnsemble(models), [BackpropEndToEnd(copy.deepcopy(model)) for model in models]
    x, y = batch(members[0])  # type: ignore[arg-type]
    loss = rule.assign_credit(x, y)
    assert loss.item() == pytest.approx(sum(member.assign_credit(x, y).item() for member in members), rel=1e-12)
    expected = [p.grad for member in members for p in member.model.parameters()]
    for p, theirs in zip(rule.parameters(), expected, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, theirs), "members apart"
    probability = sum(member(x).softmax(dim=1) for member in members) / 2
    assert torch.allclose(rule(x).exp(), probability, rtol=1e-12), "mean probability"
    assert [unit.name for unit in rule.units] == ["0.0", "0.3", "0.6", "1.0", "1.3", "1.6"]


def test_learnable_parameters_are_those_of_the_published_comparison():
    """DTG-FF's synthetic experiment: 4 layers of 128 on 50 inputs, 10 classes."""

    def student() -> nn.Sequential:
        layers = [m for n in (50, 128, 128, 128) for m in (nn.Linear(n, 128), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(128, 10))

    def learned(rule: Any) -> int:
        rule.assign_credit(torch.randn(4, 50), torch.arange(4))
        return sum(p.numel() for p in rule.parameters() if p.grad is not None)

    assert learned(DynamicTemperature(student())) == 56_068
    assert learned(BackpropDeepSupervision(student())) == 61_224
    assert learned(BackpropEndToEnd(student())) == 57_354
    assert learned(BackpropEnsemble([student() for _ in range(4)])) == 229_416


def held_out(rule: LocalClassifiers) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = batch(rule, 40)
    return list(zip(x.split(15), y.split(15), strict=True))


def test_a_range_is_chosen_on_held_out_data():
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


@pytest.mark.parametrize("kind", ["validation-loss", "training-loss"])
def test_layers_are_weighted_by_their_losses(kind: Any):
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


def test_calibration_is_in_evaluation_mode_and_leaves_modes_alone():
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


def test_the_read_out_learns_from_all_layers_beside_them():
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
    for block, other in zip(rule.units, without.units, strict=True):
        assert torch.equal(block.layer.weight.grad, other.layer.weight.grad), block.name  # type: ignore[arg-type]
    rule.eval()
    assert torch.equal(rule(x), rule.aggregation.readout(features)), "scores"  # type: ignore[misc]


def test_channels_cool_and_are_regularised_with_the_epochs():
    rule = ChannelClassAssignment(images(nn.InstanceNorm2d), settings={"cooling": 0.5, "ramp": 4})
    x, y = batch()
    first = rule.layer_scores(x)
    for _ in range(2):
        rule.calibrate([(x, y)])
    head: Any = rule.heads[0]
    assert head.epochs.item() == 2, "epochs counted"
    other = ChannelClassAssignment(images(nn.InstanceNorm2d), settings={"temperature": 0.25})
    other.heads[0].logits.data.copy_(head.logits)  # type: ignore[union-attr, operator]
    assert torch.allclose(rule.layer_scores(x)[0], other.layer_scores(x)[0], rtol=1e-10), "a quarter of the temperature"
    assert not torch.allclose(rule.layer_scores(x)[0], first[0], rtol=1e-3)
    loaded = ChannelClassAssignment(images(nn.InstanceNorm2d), settings={"cooling": 0.5, "ramp": 4})
    loaded.load_state_dict(rule.state_dict())
    assert torch.equal(loaded.layer_scores(x), rule.layer_scores(x)), "the epoch is part of the state"
    costs = []
    for epochs in (0, 2, 4, 8):
        head.epochs.fill_(epochs)
        head.cooling = 1.0
        costs.append(head.score().penalty(head.arrays())[0].item())
    assert costs[0] < costs[1] < costs[2] == costs[3], "grown"
    assert costs[1] - costs[0] == pytest.approx(costs[3] - costs[1], rel=1e-6), "evenly"


def test_static_and_frozen_assignments():
    """Contiguous groups, each summed; or a draw that stays; neither learns."""
    x, y = batch()
    static = ChannelClassAssignment(images(group_norm), assignment="static", aggregation="sum")
    h = static.layer_features(x)[0]
    pooled = 0.94 * h.mean(dim=(2, 3)) + 0.06 * h.amax(dim=(2, 3)) - 0.05 * h.amin(dim=(2, 3))
    groups = pooled.unflatten(1, (K, -1)).sum(dim=2)
    assert torch.allclose(static.layer_scores(x)[0], groups, rtol=1e-12), "contiguous groups"
    for assignment in ("static", "frozen"):
        rule = ChannelClassAssignment(images(group_norm), assignment=assignment)  # type: ignore[arg-type]
        before = copy.deepcopy(rule.heads.state_dict())
        assert not list(rule.heads.parameters())
        rule.assign_credit(x, y)
        assert all(torch.equal(before[name], value) for name, value in rule.heads.state_dict().items())
    drawn = [ChannelClassAssignment(dense(), assignment="frozen", generator=seeded(i)) for i in (1, 1, 2)]
    logits = [rule.heads[0].logits for rule in drawn]
    assert torch.equal(logits[0], logits[1])  # type: ignore[arg-type]
    assert not torch.equal(logits[0], logits[2])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*RULES, *MODELS])
def test_copies_and_pickles_learn_the_same(name: str):
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


def test_training_tells_classes_apart():
    """Every method, in few steps on few images; chance is a quarter."""
    for name, make in RULES.items():
        rule = make().float()
        x, y = batch(rule, 64)
        optimizer = torch.optim.AdamW(rule.parameters(), lr=1e-2)
        for _ in range(40):
            rule.assign_credit(x.float(), y)
            optimizer.step()
        rule.calibrate([(x.float(), y)])
        assert (rule.eval()(x.float()).argmax(dim=1) == y).double().mean() > 0.9, name


def channels(**settings: Any) -> ChannelClassAssignment:
    return ChannelClassAssignment(dense(), settings=settings)


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
        lambda: LocalClassifiers(dense(), score=nn.Linear(3, 2)), r"score: Linear\(.*, expected a function of blocks",
    ),
    "a score that is a class": (
        lambda: LocalClassifiers(dense(), score=Shifted), r"score: <class .*Shifted'>, expected a function of blocks",
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


BATCHES: dict[str, tuple[torch.Tensor, str]] = {
    "flat": (
        torch.ones(2, 128),
        r"x: samples of shape \(128,\) do not pass layer '0' \(takes \(channels, .* gets \(128,\)\)",
    ),
    "without a batch": (torch.ones(2, 8, 8), r"x: samples of shape \(8, 8\) do not pass layer '0'"),
    "channels": (
        torch.ones(2, 3, 8, 8),
        r"x: samples of shape \(3, 8, 8\) do not pass layer '0' \(takes 2 channels, but gets 3\)",
    ),
    "size": (torch.ones(2, 2, 12, 12), r"x: samples of shape \(2, 12, 12\) do not pass layer '11' \(takes 24"),
    "too small": (torch.ones(2, 2, 2, 2), r"x: samples of shape \(2, 2, 2\) do not pass layer '4'"),
    "no sample": (torch.ones(0, 2, 8, 8), r"x: shape \(0, 2, 8, 8\), expected .* at least one sample"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_images_that_do_not_fit_are_refused_before_anything_is_done(name: str):
    x, message = BATCHES[name]
    rule = MonoForward(images(channel_norm))
    y = torch.zeros(len(x), dtype=torch.int64)
    for run in (lambda: rule(x.double()), lambda: next(rule.stream(x.double(), y))):
        with pytest.raises(ValueError, match=message):
            run()
    with pytest.raises(ValueError, match=r"x: dtype torch.float32, expected torch.float64"):
        rule(torch.ones(2, 2, 8, 8))
    with pytest.raises(ValueError, match=r"x: a list, expected a torch\.Tensor"):
        rule([1.0])


@pytest.mark.parametrize("planes", [(4, 8, 16, 32)])
def test_resnet_17_is_wired_as_published(planes: Any):
    """By its description: saved after layers 0, 2, 4, ..., added at 2, 6, 10, 14, concatenated at 4, 8, 12, 16."""
    torch.manual_seed(0)
    network = resnet17(K, 3, 0.0, planes=planes).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    features = network.stem(x)
    saved = None
    for index, block in enumerate(network.blocks):
        features = block(features)
        if index in (2, 6, 10, 14):
            features = features + saved
        elif index in (4, 8, 12, 16):
            features = torch.cat([features, saved], dim=1)
        if index % 2 == 0:
            saved = nn.functional.avg_pool2d(features, 2) if index in (4, 8, 12) else features
    assert features.shape == (2, 2 * planes[-1], 2, 2)
    assert torch.equal(network(x), network.head(features)), "wiring"


def test_sizes_are_those_published():
    """Weights of convolutions, in millions."""

    def kernels(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters() if p.dim() == 4)

    assert kernels(resnet17()) == 30_602_700
    assert round(kernels(tiny_cnn()) / 1e6, 2) == 2.67
    assert round(kernels(vgg8()) / 1e6, 2) == 9.15
    assert kernels(vgg11()) == 9_217_728
    assert [b.layer.groups for b in ChannelCompetition(cfse()).units] == [1, 10, 1, 10]  # type: ignore[union-attr]
    assert len(DeeperForward(resnet17()).units) == 17
    assert len(DynamicTemperature(vgg8()).units) == 7
    assert [head.grid for head in DynamicTemperature(vgg8()).heads] == [(g, g) for g in (4, 2, 2, 1, 1, 1, 1)]


@pytest.mark.parametrize(
    "make", [partial(small_cnn, (8, 12)), tiny_cnn, cfse, partial(resnet17, planes=(20, 40, 80, 160))]
)
def test_plain_backpropagation_trains_the_very_same_network(make: Callable[..., nn.Module]):
    """Its scores and gradients need no rule."""
    torch.manual_seed(0)
    network = make(num_classes=10, image_channels=1)
    x, y = torch.randn(4, 1, 16, 16), torch.arange(4)
    nn.functional.cross_entropy(network(x), y).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters()), "trained whole"


def test_small_networks_keep_the_size_of_maps_whatever_the_kernel():
    rule = DeeperForward(small_cnn((10, 20), image_channels=2, pool_after=(0,), kernel_size=5))
    first, second = rule.layer_features(torch.randn(3, 2, 12, 12))
    assert [unit.layer.kernel_size for unit in rule.units] == [(5, 5), (5, 5)]  # type: ignore[union-attr]
    assert first.shape == (3, 10, 12, 12)
    assert second.shape == (3, 20, 6, 6)
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"kernel_size: {size}, expected an odd number"):
            small_cnn((10, 20), kernel_size=size)


@pytest.mark.parametrize("kind", [MonoForward, ChannelCompetition, HybridDynamicTemperature])
def test_normalisation_over_a_batch_asks_for_two_samples(kind: Callable[[nn.Module], Rule]):
    rule = kind(dense() if kind is HybridDynamicTemperature else dense(nn.BatchNorm1d))
    x, y = torch.randn(1, 11, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="x: a batch of 1, expected 2 or more: BatchNorm1d"):
        rule.assign_credit(x, y)
    assert rule.eval()(x).shape == (1, K)


def test_layers_left_out_may_score_what_they_will():
    """Infinity by a weight of 0 would be none."""
    rule = MonoForward(dense(), aggregation="last")
    with torch.no_grad():
        rule.heads[0].matrix.fill_(torch.inf)
    x, _ = batch(rule)
    assert not rule.layer_scores(x)[0].isfinite().all()
    assert torch.equal(rule(x), rule.layer_scores(x)[-1]), "the last layer's"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_channels_in_groups_belong_to_one_class_in_any_precision(dtype: torch.dtype):
    rule = ChannelClassAssignment(dense().to(dtype), assignment="static")
    for head in rule.heads:
        score = head.score()
        found = score.value(torch.eye(head.logits.shape[0], dtype=dtype), head.arrays())
        assert torch.equal(found != 0, nn.functional.one_hot(found.argmax(dim=1), K) > 0), "one class a channel"
        assert torch.equal(found.argmax(dim=1).unique(), torch.arange(K)), "every class"


def test_parameters_set_by_assignment_learn():
    """`load_state_dict(..., assign=True)` puts others in their place."""
    rule = ChannelCompetition(images(nn.BatchNorm2d))
    expected = copy.deepcopy(rule)
    rule.load_state_dict({name: value.clone() for name, value in rule.state_dict().items()}, assign=True)
    for each in (rule, expected):
        each.assign_credit(*batch())
    for (name, ours), theirs in zip(rule.named_parameters(), expected.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


def test_hooks_are_called():
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


class Shifted(nn.Module):
    """A score whose gradients by activities and parameter are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1, K, dtype=torch.float64))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.offset


def test_gradients_of_ones_own_score_are_not_written_over():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, K), nn.ReLU()).double()
    rule = LocalClassifiers(model, score=lambda blocks, k: [Shifted()], num_classes=K)
    x, y = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), torch.tensor([1])
    rule.assign_credit(x, y)
    scores = model(x)
    assert (scores == 0).any(), "units at rest, whose part of a gradient is 0"
    expected = scores.softmax(dim=1) - nn.functional.one_hot(y, K)
    assert torch.allclose(rule.heads[0].offset.grad, expected, rtol=1e-12, atol=0), "all of the gradient"


def test_cells_are_fewer_the_more_channels_a_convolution_has():
    """Whatever dense layers follow."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 90), nn.ReLU(), nn.Linear(90, K),
    )  # fmt: skip
    assert [head.grid for head in PatchEnergy(model).heads] == [(2, 2), (1, 1), None], "cells of convolutions"


@pytest.mark.parametrize("options", [{}, {"affine": True}, {"track_running_stats": True}, {"eps": 0.1}])
def test_instance_normalisation_is_that_of_its_module(options: dict[str, Any]):
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


def test_temperatures_are_not_decayed():
    learned = [DynamicTemperature(dense()), channels(), ChannelClassAssignment(dense(), assignment="frozen")]
    names = [
        {name for name, p in rule.named_parameters() if any(p is q for q in rule.no_weight_decay())} for rule in learned
    ]
    assert names == [
        {f"heads.{i}.alpha" for i in range(3)}, {f"heads.{i}.log_temperature" for i in range(3)}, set(),
    ]  # fmt: skip
    assert MonoForward(dense()).no_weight_decay() == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [MonoForward, DeeperForward, BackpropEndToEnd, Backprop, Ftp, SymBa])
def test_a_fused_optimizer_steps_as_any_other(kind: Callable[..., Rule], memory_format: torch.memory_format):
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
        optimizer = torch.optim.AdamW(rule.parameters(), lr=1e-2, fused=fused)
        for _ in range(2):
            rule.assign_credit(x.float(), y)
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in rule.parameters()]))
    # An entry moves by the rate in each step, one way or the other.
    assert torch.allclose(*found, rtol=0, atol=1e-3 * 1e-2), "a fused step"


def test_no_loss_of_ones_own_is_the_rules():
    """Its label smoothing stays."""
    x, y = batch(MonoForward(dense()))
    losses = []
    for options in ({}, {"loss": None}, {"label_smoothing": 0.0}):
        torch.manual_seed(0)
        losses.append(ChannelClassAssignment(dense(), assignment="static", **options).assign_credit(x, y).item())
    assert losses[0] == losses[1] != losses[2]


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
