"""Local rules and backpropagation on models of any kind: units of modules of one's own, tokens, tied weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from prograde.accelerated.modules import OrthogonalConv2d, char_transformer, vit
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    BackpropEnsemble,
    ChannelClassAssignment,
    ChannelCompetition,
    CreditAssignment,
    DeeperForward,
    DynamicTemperature,
    HybridDynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
)
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import refusal
from prograde.equivalence_tests.test_cutting import Residual, Tokens

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]

K = 4


class Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1, stride) if n_in != n_out else nn.Identity()
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.norm1(self.conv1(x)))
        return self.relu(self.norm2(self.conv2(h)) + self.skip(x))


class ResNet(nn.Module):
    """With BatchNorm and an own forward pass, as users write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.layer1, self.layer2 = Block(6, 6, 1), Block(6, 8, 2)
        self.fc = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(x)))
        x = self.layer2(self.layer1(x))
        x = functional.adaptive_avg_pool2d(x, 1)
        return self.fc(torch.flatten(x, 1))


NAMES = ["conv", "layer1", "layer2", "fc"]


def modules(model: Any) -> list[nn.Module]:
    stem = nn.Sequential(model.conv, model.norm, nn.ReLU())
    return [stem, model.layer1, nn.Sequential(model.layer2, nn.AdaptiveAvgPool2d(1), nn.Flatten()), model.fc]


def resnet() -> ResNet:
    torch.manual_seed(0)
    return ResNet().double()


def images(batch: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, 2, 8, 8, generator=seeded(1), dtype=torch.float64)
    return x, torch.arange(batch) % K


def tokens(batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randint(7, (batch, 9), generator=seeded(1)), torch.arange(batch) % 3


def same(given: Tensor | None, expected: Tensor, what: str) -> None:
    assert given is not None, f"nothing for {what}"
    assert torch.allclose(given, expected, rtol=1e-9, atol=1e-12), what


def accepted(call: Callable[[], object]) -> None:
    message = refusal(call)
    assert message == "accepted", message


@pytest.mark.parametrize("units", [lambda model: NAMES, modules], ids=["names", "modules"])
@pytest.mark.parametrize("seen", ["example", "first batch"])
def test_a_resnet_learns_by_each_units_own_loss(units: Callable[[nn.Module], Any], seen: str) -> None:
    """As written by hand: each unit's cross-entropy of a linear map of its maps' means, its input detached."""
    model, (x, y) = resnet(), images()
    other: Any = copy.deepcopy(model)
    rule = MonoForward(model, units=units(model), example=x, grid=1, generator=seeded(2))
    if seen == "first batch":
        made = copy.deepcopy(rule.state_dict())
        late = LocalClassifiers(model, units=units(model), score=linear_maps)
        late.load_state_dict({name: tensor.to(late.state_dict()[name]) for name, tensor in made.items()})
        rule = late  # type: ignore[assignment]
    rule.assign_credit(x, y)
    by_hand = [lambda z: functional.relu(other.norm(other.conv(z))), other.layer1, other.layer2]
    z = x
    for unit, head in zip(by_hand, rule.heads, strict=True):
        h = unit(z.detach())
        functional.cross_entropy(h.mean((2, 3)) @ head.matrix.detach().T, y).backward()
        z = h
    ours = dict(model.named_parameters())
    for name, p in other.named_parameters():
        if name.startswith("fc"):
            assert ours[name].grad is None, "the last layer, which has no local loss"
        else:
            same(ours[name].grad, p.grad, f"gradient of {name}")
    for (name, buffer), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        same(buffer.double(), theirs.double(), f"statistics that are written once: {name}")


class LinearMap(nn.Module):
    """`MonoForward`'s score on a grid of one cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(K, width, dtype=torch.float64))

    def forward(self, h: Tensor) -> Tensor:
        return h.mean((2, 3)) @ self.matrix.T


def linear_maps(units: Any, num_classes: int) -> list[nn.Module]:
    return [LinearMap(unit.weights[0].shape[0]) for unit in units]


METHODS: list[type[LocalClassifiers]] = [
    LocalClassifiers, MonoForward, Hyperspherical, DynamicTemperature, PatchEnergy, ChannelCompetition, DeeperForward,
    ChannelClassAssignment, BackpropDeepSupervision,
]  # fmt: skip


def embedded() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().double()


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    return vit(K, 2, 8, 4, 12, 2, 3).double()


def residual() -> nn.Module:
    torch.manual_seed(0)
    return Residual().double()


MODELS: dict[str, tuple[Callable[[], nn.Module], Any, Callable[[], tuple[Tensor, Tensor]]]] = {
    "resnet": (resnet, NAMES, images),
    "an addition around a block": (
        residual, ["stem", "layer1.0", "layer1.1", "last", "fc"], lambda: (images()[0][:, :1], images()[1] % 3),
    ),
    "vit": (small_vit, None, images),
    "tokens": (embedded, ["embedding", "layers.0", "layers.1", "gru", "head"], tokens),
}  # fmt: skip
OUTSIDE = {"resnet": ("fc",), "an addition around a block": ("fc",), "vit": ("output",), "tokens": ("head",)}
"""What no local loss trains: the last Linear."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_local_rules_train_models_of_any_kind(method: type[LocalClassifiers], name: str) -> None:
    """Every parameter but those of the last layer has a gradient; the loss of a fixed batch goes down."""
    make, units, batch = MODELS[name]
    model, (x, y) = make(), batch()
    by_classes = method in (DeeperForward, ChannelCompetition)
    if by_classes and name != "vit":
        message = refusal(lambda: method(model, units=units, example=x))
        assert ", expected a multiple of the " in message, message
        return
    rule = method(model, units=units, example=x)
    optimizer = torch.optim.Adam(rule.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        losses.append(rule.assign_credit(x, y).item())
        optimizer.step()
    assert losses[-1] < losses[0], f"losses: {losses}"
    for path, p in model.named_parameters():
        left_out = not rule.detach or path.startswith(OUTSIDE[name])
        assert left_out or p.grad is not None or path.startswith("norm."), f"{path}: no gradient"
    assert rule.eval()(x).shape == (len(x), rule.num_classes)


def test_tokens_are_seen_by_their_mean_or_each() -> None:
    """By scores of a sample their mean; by scores of every token each, with the labels that count."""
    x = torch.randint(5, (3, 6), generator=seeded(1))
    torch.manual_seed(0)
    model = char_transformer(5, 8, 8, 2, 2).double()
    rule = MonoForward(model, example=x, loss=nn.CrossEntropyLoss())
    assert (rule.num_classes, [tuple(unit.shape) for unit in rule.units]) == (5, [(6, 8)] * 3)
    assert rule(x).shape == (3, 6, 5), "scores of every token"
    y = torch.randint(5, (3, 6), generator=seeded(2))
    y[0, 3:] = y[2, 1] = -100
    loss = rule.assign_credit(x, y)
    h, total = x, torch.zeros((), dtype=torch.float64)
    parts: list[nn.Module] = [model[0], *model[1]]
    for unit, head in zip(parts, rule.heads, strict=True):
        found = h = unit(h.detach() if h.is_floating_point() else h)
        scores = found @ head.matrix.detach().T
        each = functional.cross_entropy(scores.flatten(0, 1), y.flatten())
        expected = torch.autograd.grad(each, list(unit.parameters()))
        for (path, p), g in zip(unit.named_parameters(), expected, strict=True):
            same(p.grad, g, f"gradient of {path} by the labels that count")
        total = total + each.detach()
    same(loss, total, "the loss")
    weight = torch.rand(3, 6, generator=seeded(3), dtype=torch.float64)
    y = y.clamp(min=0)
    scores = rule.layer_scores(x)
    each = torch.stack([functional.cross_entropy(s, y.flatten(), reduction="none") for s in scores])
    same(rule.assign_credit(x, (y, weight)), (each @ weight.flatten()).sum() / weight.sum(), "weights of tokens")
    pooled = MonoForward(small_vit(), example=images()[0])
    x, y = images()
    h = pooled.layer_features(x)[0]
    same(pooled.layer_scores(x)[0], h.mean(1) @ pooled.heads[0].matrix.T, "the mean of tokens")
    assert "expected int64 of shape (3, 6)" in refusal(lambda: rule.assign_credit(torch.zeros(3, 6).long(), y[:3]))


def test_backward_hooks_are_called_where_layers_learn_of_each_other() -> None:
    x, y, called = torch.randn(6, 5), torch.arange(6) % K, []
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, K))
    model[0].weight.register_hook(called.append)
    MonoForward(model, detach=False).assign_credit(x, y)
    assert len(called) == 1
    assert refusal(lambda: MonoForward(model)).startswith("layer '0': a hook on its weight")


class Doubling(nn.Module):
    """Gives scores of two positions for each token, or of one for every two."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.embedding, self.output, self.factor = nn.Embedding(5, 8), nn.Linear(8, 5), factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = h.repeat_interleave(2, dim=1) if self.factor == 2 else h[:, ::2]
        return self.output(h)


def test_labels_are_as_many_as_scores() -> None:
    """As many as tokens, in longer sequences too, where the example has as many; else as many as the example has."""
    y = torch.randint(5, (3, 6), generator=seeded(2))
    rule = MonoForward(char_transformer(5, 8, 8, 2, 2), example=y)
    rule.assign_credit(y[:, :4], y[:, :4])
    assert "expected int64 of shape (3, 4)" in refusal(lambda: rule.assign_credit(y[:, :4], y))
    for factor in (2, 0.5):
        rule = Backprop(Doubling(factor), example=y)
        rule.assign_credit(y, torch.zeros(3, int(6 * factor)).long())
        with pytest.raises(ValueError, match=rf"expected int64 of shape \(3, {int(6 * factor)}\)"):
            rule.assign_credit(y, y)


def test_a_parameter_without_a_part_in_the_loss_has_the_gradient_0() -> None:
    """In a unit that has others, whether its loss is its own or the sum's."""

    class Spare(nn.Linear):
        def __init__(self) -> None:
            super().__init__(5, 6)
            self.spare = nn.Parameter(torch.ones(2))

    x, y = torch.randn(6, 5), torch.arange(6) % K
    for detach in (True, False):
        model = nn.Sequential(nn.Sequential(Spare(), nn.Tanh()), nn.Linear(6, K))
        rule = MonoForward(model, units=["0", "1"], example=x, detach=detach)
        rule.assign_credit(x, y)
        assert model[0][0].spare.grad.tolist() == [0.0, 0.0]
        assert model[0][0].weight.grad.abs().max() > 0


def test_gradients_by_a_module_of_its_own_on_tokens() -> None:
    """A head of PyTorch's own gets the mean of tokens too."""
    x, y = images()
    rule = LocalClassifiers(
        small_vit(), example=x, score=lambda units, classes: [nn.Linear(u.width, classes).double() for u in units]
    )
    rule.assign_credit(x, y)
    h = rule.model[0](x)
    loss = functional.cross_entropy(rule.heads[0](h.mean(1)), y)
    own = list(rule.model[0].parameters())
    for p, g in zip(own, torch.autograd.grad(loss, own), strict=True):
        same(p.grad, g, "gradient by a head of one's own")


def by_autograd(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor | None]:
    other = copy.deepcopy(model)
    functional.cross_entropy(other(x), y).backward()
    return {name: p.grad for name, p in other.named_parameters()}


def tied() -> nn.Module:
    torch.manual_seed(0)
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(5, K)).double()


def normed() -> nn.Module:
    torch.manual_seed(0)
    layers = [parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), parametrizations.orthogonal(nn.Linear(6, 6))]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(6, K)).double()


def unused() -> nn.Module:
    model = normed()
    model.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    return nn.Sequential(model, nn.Identity())


def compiled() -> nn.Module:
    return torch.compile(resnet(), backend="eager")  # type: ignore[return-value]


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5, generator=seeded(1), dtype=torch.float64), torch.arange(6) % K


WHOLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]] = {
    "resnet": (resnet, images), "tokens": (embedded, tokens), "tied": (tied, rows), "parametrized": (normed, rows),
    "unused": (unused, rows), "compiled": (compiled, images),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_backprop_takes_any_module(name: str) -> None:
    """Its gradients are autograd's, statistics are written once; a frozen parameter has none."""
    make, batch = WHOLE[name]
    model, (x, y) = make(), batch()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    frozen = next(model.parameters())
    accepted(lambda: Backprop(model))
    rule = Backprop(model)
    for requires_grad in (True, False):
        frozen.requires_grad = requires_grad
        expected = by_autograd(model, x, y)
        rule.assign_credit(x, y)
        for path, p in model.named_parameters():
            g = expected[path]
            if p is frozen and not requires_grad:
                assert p.grad is None, "frozen"
            elif g is None:
                assert not p.grad.any(), f"{path}, which the model does not use"  # type: ignore[union-attr]
            else:
                same(p.grad, g, f"gradient of {path}")
    for path, buffer in model.named_buffers():
        assert "num_batches" not in path or buffer == 2, "statistics that are written once a step"


def test_units_of_backprop() -> None:
    model, (x, y) = resnet(), images()
    assert [unit.name for unit in Backprop(model).units] == ["model"]
    rule = Backprop(model, units=NAMES, example=x)
    assert [unit.name for unit in rule.units] == NAMES
    expected = by_autograd(model, x, y)
    updates = list(rule.stream(x, y))
    assert [len(update.unit.parameters) for update in updates] == [1, 6, 8, 2]
    found = {p: g for update in updates for p, g in update.pairs}
    for path, p in model.named_parameters():
        same(found[p], expected[path], f"gradient of {path} by units")  # type: ignore[arg-type]
    assert Backprop(nn.Sequential(nn.Conv2d(2, K, 8), nn.Flatten()).double(), example=x).num_classes == K
    ensemble = BackpropEnsemble([resnet(), ResNet().double()], example=x)
    ensemble.assign_credit(x, y)
    assert ensemble(x).shape == (len(x), K)
    per_token = Backprop(char_transformer(5, 8, 8, 1, 2), example=torch.zeros(2, 6).long())
    found_loss = per_token.assign_credit(torch.zeros(2, 6).long(), torch.zeros(2, 6).long())
    assert found_loss.dim() == 0, "labels of every token"


def test_the_hybrid_rule_takes_layers_of_any_kind() -> None:
    """Its step is the finite difference of the loss that each layer has a part in."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(5, 6), nn.GELU(), nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)]
    model = nn.Sequential(*layers, nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, K)).double()
    rule = HybridDynamicTemperature(model, generator=seeded(1))
    x, y = rows()
    rule.assign_credit(x, y)  # the first batch sets the thresholds
    drawn = rule.generator.get_state()  # type: ignore[union-attr]
    rule.assign_credit(x, y)
    for index, unit in enumerate(rule.units):
        p, losses = unit.parameters[0], []
        assert p.grad is not None
        direction = torch.randn_like(p)
        for step in (1e-5, -1e-5):
            rule.generator.set_state(drawn)  # type: ignore[union-attr]
            with torch.no_grad():
                p.add_(step * direction)
                local, last = rule.losses(x, y)
                p.sub_(step * direction)
            losses.append(rule.share * local[index] + last)
        expected = (losses[0] - losses[1]) / 2e-5
        found = (p.grad * direction).sum()
        assert abs(found - expected) <= 1e-6 * abs(expected) + 1e-9, f"the step of layer {unit.name}"


def test_activities_are_not_written_over() -> None:
    """A block that begins in place gets a copy of what the one before it has given."""

    class InPlace(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.relu(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), InPlace(6), nn.Linear(6, K)).double()
    x, y = rows()
    rule = MonoForward(model, example=x)
    first, _ = rule.layer_features(x)
    assert (first < 0).any(), "activities of the unit before"
    rule.assign_credit(x, y)


def test_layers_that_compute_in_another_way() -> None:
    """A Linear with a forward pass of its own, or with parameters from which its weight is computed."""
    x, y = rows()

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    for first in (Doubled(5, 6).double(), parametrizations.weight_norm(nn.Linear(5, 6).double())):
        rule = MonoForward(nn.Sequential(first, nn.ReLU(), nn.Linear(6, K).double()), example=x)
        rule.assign_credit(x, y)
        loss = functional.cross_entropy(first(x).relu() @ rule.heads[0].matrix.T, y)
        for p, g in zip(first.parameters(), torch.autograd.grad(loss, list(first.parameters())), strict=True):
            same(p.grad, g, "gradient of a layer of another kind")


def test_freezing_and_hooks_within_units() -> None:
    model, (x, y) = resnet(), images()
    rule = MonoForward(model, units=NAMES, example=x)
    seen: list[str] = []
    for path in ("conv", "layer1.conv2", "layer2.norm1"):
        model.get_submodule(path).register_forward_hook(lambda m, given, h, path=path: seen.append(path))
    for p in model.layer1.parameters():
        p.requires_grad = False
    accepted(lambda: rule.assign_credit(x, y))
    assert seen == ["conv", "layer1.conv2", "layer2.norm1"], "hooks"
    assert all(p.grad is None for p in model.layer1.parameters()), "frozen since"
    assert all(p.grad is not None for p in model.layer2.parameters())
    model.fc.register_forward_hook(lambda m, given, h: None)
    assert refusal(lambda: rule.assign_credit(x, y)).startswith("layer 'fc': a forward hook, which MonoForward does no")


REFUSALS: list[tuple[Callable[[], CreditAssignment], str]] = [
    (lambda: MonoForward(resnet()), "model: ResNet; MonoForward trains an nn.Sequential of Conv2d and Linear"),
    (lambda: MonoForward(resnet(), units=NAMES), "example: None, expected a batch as the model takes it, (batch, ...), "
     "which tells how wide unit 'layer1' is, a Block"),
    (lambda: MonoForward(resnet(), units=["layer1"]), "units: conv.weight, norm.weight, norm.bias of the model in non"),
    (lambda: MonoForward(tied()), "layer '2': shares a parameter with layer '0'; MonoForward needs each layer's own"),
    (lambda: MonoForward(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))), "layer '0': its parameters are not there"),
    (lambda: Backprop(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))), "layer '0': its parameters are not there ye"),
    (lambda: MonoForward(compiled(), units=NAMES), "model: compiled; MonoForward runs its units apart, pass the uncom"),
    (lambda: MonoForward(nn.Sequential(OrthogonalConv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 2))),
     "layer '0': OrthogonalConv2d; MonoForward trains"),
    (lambda: Backprop(resnet(), orthogonal=True), "orthogonal: True, with ResNet, whose weights are not held orthogon"),
    (lambda: Backprop(nn.Bilinear(2, 2, 2)), "model: Bilinear; how many scores it gives is not known, expected a Li"),
    (lambda: Backprop(resnet(), example=images()[0][:, :1]), "example: shape (6, 1, 8, 8) does not pass the model"),
    (lambda: MonoForward(small_vit(), example=images()[0], num_classes=3), "num_classes: 3, but the model's last la"),
    (lambda: Backprop(resnet()).assign_credit(images()[0].float(), images()[1]), "x: dtype torch.float32, expected t"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "said"), REFUSALS, ids=[said for _, said in REFUSALS])
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_is_refused(build: Callable[[], CreditAssignment], said: str) -> None:
    assert refusal(build).startswith(said), refusal(build)


def test_units_that_are_not_the_model_are_refused_at_the_first_batch() -> None:
    model, (x, y) = resnet(), images()
    units = modules(model)
    units[0] = nn.Sequential(model.conv, model.norm, nn.Tanh())
    rule = LocalClassifiers(model, units=units, score=linear_maps)
    message = refusal(lambda: rule.assign_credit(x, y))
    assert message.startswith("units: one after another they give another result than the model"), message
    assert all(p.grad is None for p in model.parameters())
    assert not model.norm.num_batches_tracked, "statistics of a refusal"
