"""Any module as a layer: the closed forms of dense layers and convolutions, without knowing them; one draw a step."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated import convolution
from prograde.accelerated.layers import Convolution, Dense, Layer, LPPool, MaxPool, Step, forward
from prograde.accelerated.pepita import update_factors
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    CumulativeForwardForward,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    ForwardForward,
    Ftp,
    LayerCollaboration,
    MonoForward,
    Pepita,
    Rule,
    SymBa,
    convolving,
)
from prograde.accelerated.rules.module_layer import Evaluator, ModuleLayer, ModuleStep, unhooked
from prograde.accelerated.rules.second_pass import carried_modulated_factors, full_modulated_factors
from prograde.accelerated.training import unit_diagnostics
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import FLAT, IMAGES, K, dense, images

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


@pytest.fixture(autouse=True)
def _in_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class OwnLinear(nn.Linear):
    """A module with a forward pass of its own, which a rule can only run."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OwnConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OwnTanh(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Residual(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def layer_of(*modules: nn.Module) -> ModuleLayer:
    return ModuleLayer(modules, [p for module in modules for p in module.parameters()])


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Layer], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(6, 5), lambda m: Dense(m.weight.detach(), m.bias.detach()), (6,)),
    "Linear of tokens": (lambda: nn.Linear(6, 5), lambda m: Dense(m.weight.detach(), m.bias.detach()), (3, 6)),
    "Conv2d": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        lambda m: Convolution(m.weight.detach(), m.bias.detach(), (), (), (2, 2), (1, 1), 2),
        (4, 5, 5),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_four_methods_are_those_of_the_closed_form(name: str) -> None:
    make, closed_form, sample = LAYERS[name]
    module = make()
    layer, closed = layer_of(module), closed_form(module)
    z, u = torch.randn(2, 4, *sample)
    d = torch.randn_like(closed.value(z))
    torch.testing.assert_close(layer.value(z), closed.value(z), msg="value")
    torch.testing.assert_close(layer.difference(z, u), closed.difference(z, u), msg="difference")
    torch.testing.assert_close(layer.adjoint(z, d), closed.adjoint(z, d), msg="adjoint")
    torch.testing.assert_close(layer.update(z - u, d), closed.update(z - u, d), msg="update at another z")
    torch.testing.assert_close(layer.update(z, d), closed.update(z, d), msg="update")


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every convolution learns by a product with windows, as those with many channels; they are noted."""
    noted: list[int] = []

    def by_windows(z: Tensor, *place: Any) -> Tensor:
        noted.append(z.shape[1])
        return convolution.weight_gradient(z, *place)

    monkeypatch.setattr(convolution, "MANY", 1)
    monkeypatch.setattr(convolving, "weight_gradient", by_windows)
    return noted


def test_convolutions_of_modules_learn_by_windows(windows: list[int]) -> None:
    """The gradients are those of plain autograd; by the input alone no weight's is computed."""
    modules = (
        nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(inplace=True),
        nn.Conv2d(5, 4, (2, 3), padding=(0, 1)),
    )  # fmt: skip
    layer, alone = layer_of(*modules), copy.deepcopy(nn.Sequential(*modules))
    z = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    leaf = z.clone().requires_grad_()
    a = alone(leaf)
    d = torch.randn_like(a)
    of_input, *expected = torch.autograd.grad(a, (leaf, *alone.parameters()), d / len(d))
    with torch.no_grad():
        torch.testing.assert_close(layer.value(z), a.detach(), msg="value")
        torch.testing.assert_close(layer.adjoint(z, d / len(d)), of_input, msg="adjoint")
        assert windows == [], "weights of an adjoint"
        torch.testing.assert_close(layer.update(z, d), tuple(expected), msg="update")
    assert windows == [5, 3], "products with windows"


def test_settings_of_one_number_are_of_rows_and_columns(windows: list[int]) -> None:
    """As `functional.conv2d` reads them, in a module of one's own: a number, or as many numbers as one."""
    z = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    expected = nn.functional.conv2d(z, weight, stride=2, padding=1)
    d = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, weight, d)
    for stride, padding, dilation in ((2, 1, 1), ((2,), (1,), (1,)), ((2, 2), (1, 1), (1, 1))):
        found = convolving._convolved(z, weight, None, stride, padding, dilation, 1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, weight, d)[0], gradient)
    assert len(windows) == 3, "products with windows"


@pytest.mark.usefixtures("windows")
def test_graphs_of_ours_are_not_differentiated_twice() -> None:
    """Rather than without the terms that the gradient's own graph would lack."""
    module, z = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for of in (module.weight, module.bias, z.requires_grad_()):
        with convolving.convolving():
            a = convolving.applied(module, z)
        assert of is not None
        (gradient,) = torch.autograd.grad(a.square().sum(), of, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            gradient.sum().backward()


@pytest.mark.usefixtures("windows")
def test_graphs_of_pytorchs_are() -> None:
    """Outside of a step, and of a convolution within another module, which may differentiate by itself."""
    z = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    for context, module in ((nullcontext, nn.Conv2d(3, 5, 3)), (convolving.convolving, OwnConv2d(3, 5, 3))):
        with context():
            a = convolving.applied(module, z)
        (gradient,) = torch.autograd.grad(a.square().sum(), z, create_graph=True)
        gradient.sum().backward()


@pytest.mark.usefixtures("windows")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_kernel_has_the_graph_of_pytorch(frozen: bool) -> None:
    """No gradient by it is computed."""
    module, z = nn.Conv2d(3, 5, 3), torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    module.weight.requires_grad_(not frozen)
    with convolving.convolving():
        a = convolving.applied(module, z.requires_grad_())
    assert a.grad_fn is not None
    assert a.grad_fn.name() == ("ConvolutionBackward0" if frozen else "_ConvolvedBackward")


@pytest.mark.parametrize("kind", [Ftp, MonoForward])
def test_rules_of_modules_learn_by_windows(
    kind: type[Rule], windows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(),
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Softplus(), nn.Flatten(), nn.Linear(6 * 36, 3),
    )  # fmt: skip
    options: dict[str, Any] = {} if kind is MonoForward else {"image_size": (8, 8)}
    rule = kind(model, generator=seeded(1), **options)
    x = torch.randn(2, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    y = torch.tensor([0, 2])
    rule.assign_credit(x, y)
    found = [p.grad for p in rule.parameters()]
    assert len(windows) == 2, "products with windows"
    monkeypatch.setattr(convolution, "MANY", 64)
    rule.assign_credit(x, y)
    torch.testing.assert_close(found, [p.grad for p in rule.parameters()], msg="gradients")
    assert len(windows) == 2, "products with windows of few channels"


STEPS: dict[str, tuple[nn.Module, Step | None, tuple[int, ...]]] = {
    "MaxPool2d": (nn.MaxPool2d(2), MaxPool(2), (3, 4, 4)),
    "AdaptiveAvgPool2d": (nn.AdaptiveAvgPool2d(2), None, (3, 4, 4)),
    "Softplus": (nn.Softplus(), None, (5,)),
    "Flatten": (nn.Flatten(), None, (3, 2)),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_derivatives_of_its_module(name: str) -> None:
    module, closed, sample = STEPS[name]
    step = ModuleStep(module)
    a, u = torch.randn(2, 4, *sample)
    d = torch.randn_like(module(a))
    eps = 1e-6
    along = (module(a + eps * u) - module(a - eps * u)) / (2 * eps)
    torch.testing.assert_close(step.value(a), module(a), msg="value")
    torch.testing.assert_close(step.jvp(a, u), along, rtol=1e-6, atol=1e-8, msg="jvp")
    torch.testing.assert_close((step.vjp(a, d) * u).sum(), (d * step.jvp(a, u)).sum(), msg="vjp")
    torch.testing.assert_close(step.difference(a, u), module(a) - module(a - u), msg="difference")
    if closed is not None:
        torch.testing.assert_close(step.vjp(a, d), closed.vjp(a, d), msg="vjp of the closed form")


def by_modules(model: nn.Module) -> nn.Module:
    """The same network of layers that a rule can only run; the last is left, whose outputs are the scores."""
    kinds = {nn.Linear: OwnLinear, nn.Conv2d: OwnConv2d, nn.Tanh: OwnTanh}
    for module in list(model)[:-1]:  # type: ignore[call-overload]
        module.__class__ = kinds.get(type(module), type(module))
    return model


RULES: dict[str, Callable[..., Rule]] = {
    "ftp": Ftp,
    "ftp, full": partial(Ftp, second_pass="full"),
    "ftp, second layer": partial(Ftp, inject=2),
    "ftp, squared error": partial(Ftp, loss="squared_error", phi="tanh"),
    "pepita": Pepita,
    "pepita, clean": partial(Pepita, presynaptic="clean", output_error="modulated"),
    "dfa": DirectFeedbackAlignment,
    "drtp": DirectRandomTargetProjection,
    "forward-forward": partial(ForwardForward, goodness="mean-square"),
    "forward-forward, read-out": partial(ForwardForward, readout=True, negatives="pairs", first_layer=1),
    "symba": SymBa,
    "cumulative": CumulativeForwardForward,
    "layer-collaboration": LayerCollaboration,
}
"""Those that have closed forms and take any module."""


@pytest.mark.parametrize(("make", "sample"), [(dense, FLAT), (images, IMAGES)], ids=["dense", "images"])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_gives_the_gradients_of_its_closed_form(
    name: str, make: Callable[[], nn.Module], sample: tuple[int, ...]
) -> None:
    """Ours: the same model, once as the rule reads it and once of modules that it can only run."""
    x, y = torch.randn(6, *sample), torch.arange(6) % K
    found = []
    for prepare in (lambda model: model, by_modules):
        torch.manual_seed(1)
        rule = RULES[name](prepare(make()), example=x[:2], generator=seeded(2))
        loss = rule.assign_credit(x, y)
        found.append((loss, [p.grad for p in rule.parameters()], rule(x)))
        assert bool(rule.chain.run) is (prepare is by_modules), "read"
    torch.testing.assert_close(found[1][0], found[0][0], msg="loss")
    torch.testing.assert_close(found[1][2], found[0][2], msg="scores")
    for ours, closed in zip(found[1][1], found[0][1], strict=True):
        assert (ours is None) is (closed is None)
        if ours is not None and closed is not None:
            torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-12 * closed.abs().max().item(), msg="gradient")


def drawing() -> list[nn.Module]:
    return [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 4), nn.Dropout(0.5)]


@torch.no_grad()
def test_a_second_pass_is_through_the_same_function() -> None:
    """Batch statistics and masks are those of the clean pass: nothing changes where nothing was changed."""
    modules = drawing()
    layer = layer_of(*modules)
    z = torch.randn(8, 6)
    clean = layer.value(z)
    assert (clean == 0).any(), "dropped"
    after = torch.get_rng_state()
    u = torch.zeros_like(z)
    torch.testing.assert_close(layer.difference(z, u), torch.zeros_like(clean), rtol=0, atol=1e-14, msg="no change")
    u[0] = 1  # one sample's alone
    changed = layer.difference(z, u)
    assert changed[0].any(), "the changed one"
    torch.testing.assert_close(changed[1:], torch.zeros_like(changed[1:]), rtol=0, atol=1e-14, msg="statistics lent")
    assert torch.equal(torch.get_rng_state(), after), "draws"
    norm = modules[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked == 1, "buffers written once"
    assert norm.training
    torch.testing.assert_close(norm.running_mean, 0.1 * modules[0](z).mean(dim=0), msg="running mean")


def test_a_step_draws_once() -> None:
    step = ModuleStep(nn.Dropout(0.5))
    a, u = torch.randn(2, 8, 6)
    value = step.value(a)
    kept = value != 0
    assert kept.any()
    assert not kept.all()
    for found in (step.jvp(a, u), step.vjp(a, u), step.difference(a, u)):
        torch.testing.assert_close(found, 2 * kept * u, msg="of the same mask")


class LastState(nn.Module):
    """A sample's numbers as a sequence of two steps: what holds its weights in a list of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x[:, None].expand(-1, 2, -1))
        return x + states[:, 1]


INNER: dict[str, Callable[[], nn.Module]] = {
    "closed form": nn.Tanh,
    "block": lambda: Residual(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)),
    "LayerNorm": lambda: nn.LayerNorm(8),
    "BatchNorm": lambda: nn.BatchNorm1d(8),
    "GRU": LastState,
    "step": nn.Softplus,
}


def in_half_precision(
    rule: Callable[..., Rule], inner: Callable[[], nn.Module], dtype: torch.dtype, sample: tuple[int, ...] = (16,)
) -> list[Tensor]:
    """Gradients of matrices by a correction that is a few roundings of the activities, of one draw in any dtype."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), inner(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, K)]
    model, x = nn.Sequential(*layers), torch.randn(32, *sample, generator=seeded(1))
    model, x = model.bfloat16().to(dtype), x.bfloat16().to(dtype)
    built = rule(model, scale=8 * torch.finfo(torch.bfloat16).eps, example=x)
    (projected,) = (b for name, b in built.named_buffers() if name in ("projection", "feedback"))
    projected.copy_(0.06 * torch.randn(projected.shape, generator=seeded(2)).bfloat16())
    built.assign_credit(x, torch.arange(len(x[..., 0].flatten())).view(x.shape[:-1]) % K)
    return [p.grad.double() for p in model.parameters() if p.dim() > 1 and p.grad is not None]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("rule", [Ftp, Pepita])
def test_small_differences_keep_the_digits_of_half_precision(rule: Callable[..., Rule], inner: str) -> None:
    eps = torch.finfo(torch.bfloat16).eps
    exact, half = (in_half_precision(rule, INNER[inner], dtype) for dtype in (torch.float64, torch.bfloat16))
    for ours, expected in zip(half, exact, strict=True):
        assert (ours - expected).norm() < 4 * eps * expected.norm(), "digits"


def test_small_differences_of_tokens_with_labels_keep_them_too() -> None:
    eps = torch.finfo(torch.bfloat16).eps
    exact, half = (in_half_precision(Pepita, nn.Tanh, dtype, (5, 16)) for dtype in (torch.float64, torch.bfloat16))
    for ours, expected in zip(half, exact, strict=True):
        assert (ours - expected).norm() < 4 * eps * expected.norm(), "digits"


@pytest.mark.parametrize("pool", [MaxPool(2), LPPool(3, 2)])
def test_differences_of_pools_keep_them_too(pool: Step) -> None:
    eps = torch.finfo(torch.bfloat16).eps
    h = torch.randn(4, 3, 8, 8).bfloat16()
    u = (8 * eps * torch.randn_like(h)).bfloat16()
    exact = pool.difference(h.double(), u.double())
    assert (pool.difference(h, u) - exact).norm() < eps * exact.norm(), "digits"


@torch.no_grad()
def test_a_pass_in_another_precision_is_through_the_same_function() -> None:
    """Draws and statistics are those of the clean pass in half precision, and its modules are as they were."""
    modules = [module.bfloat16() for module in drawing()]
    before = [dict(module.named_parameters()) for module in modules]
    layer, z = layer_of(*modules), torch.randn(64, 6).bfloat16()
    clean = layer.value(z)
    torch.testing.assert_close(layer.again(z), clean, rtol=0, atol=0.1, msg="the same masks")
    assert not layer.difference(z, torch.zeros_like(z)).any(), "no change"
    for module, own in zip(modules, before, strict=True):
        for name, p in module.named_parameters():
            assert p is own[name], "the module's own parameters"
        assert {held.dtype for held in module.state_dict().values() if held.is_floating_point()} <= {torch.bfloat16}


def test_a_module_that_writes_over_its_input_leaves_the_clean_pass_as_it_was() -> None:
    layer, step = layer_of(nn.ReLU(inplace=True), nn.Linear(5, 3)), ModuleStep(nn.Hardtanh(inplace=True))
    z = torch.randn(4, 5)
    before = z.clone()
    layer.value(z)
    step.value(z)
    torch.testing.assert_close(z, before, rtol=0, atol=0, msg="written over")


def test_frozen_and_unused_parameters_get_nothing() -> None:
    first, second, unused = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.ones(2))
    first.requires_grad_(False)
    layer = ModuleLayer([first, second], [*first.parameters(), *second.parameters(), unused])
    z, d = torch.randn(5, 4), torch.randn(5, 3)
    weight, bias, *learned, nothing = layer.update(z, d)
    assert not weight.any()
    assert not bias.any()
    assert not nothing.any()
    torch.testing.assert_close(tuple(learned), Dense(second.weight.detach(), second.bias).update(first(z).detach(), d))


def test_tokens_are_learned_from_but_not_changed() -> None:
    embedding = nn.Embedding(7, 3)
    layer = layer_of(embedding)
    z = torch.tensor([[1, 2, 2], [6, 0, 1]])
    d = torch.randn(2, 3, 3)
    (found,) = layer.update(z, d)
    expected = torch.zeros(7, 3).index_add(0, z.flatten(), d.flatten(0, 1) / 2)
    torch.testing.assert_close(found, expected, msg="rows of the tokens")
    with pytest.raises(ValueError, match="integers have neither difference nor derivative"):
        layer.difference(z, z)
    with pytest.raises(ValueError, match="integers have neither difference nor derivative"):
        layer.adjoint(z, d)


def modules_of(rule: Any) -> list[list[str]]:
    return [[type(part).__name__ for part in unit.parts] for unit in rule.units]


def test_what_a_unit_is() -> None:
    """It begins at parameters that are no normalisation's; closed forms stay where there are some."""
    layers = [
        nn.Linear(6, 5), nn.Softplus(), nn.LayerNorm(5), nn.Linear(5, 5), nn.PReLU(), nn.Linear(5, 5), nn.Tanh(),
        nn.Dropout(), Residual(nn.Linear(5, 5)), nn.Hardtanh(), nn.Dropout(), nn.Linear(5, 3),
    ]  # fmt: skip
    rule = Ftp(nn.Sequential(*layers))
    assert modules_of(rule) == [
        ["Linear", "Softplus", "LayerNorm"],
        ["Linear", "PReLU"],
        ["Linear", "Tanh", "Dropout"],
        ["Residual", "Hardtanh", "Dropout"],
        ["Linear"],
    ]
    assert [len(unit.inside) for unit in rule.units] == [3, 2, 0, 1, 0], "in one graph"
    assert [unit.dropout is not None for unit in rule.units] == [False, False, True, True, False]
    before = Ftp(
        nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), example=torch.ones(2, 6)
    )
    assert [len(unit.inside) for unit in before.units] == [2, 0], "what comes before the first layer joins it"


def embedded(pooled: bool) -> nn.Module:
    mean = [nn.Flatten()] if pooled else []
    return nn.Sequential(
        nn.Embedding(7, 8), Residual(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8), nn.Tanh(), *mean,
        nn.Linear(8 * (5 if pooled else 1), K),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [True, False], ids=["a label a sequence", "a label a token"])
@pytest.mark.parametrize("name", ["ftp", "pepita", "dfa", "drtp"])
def test_sequences_of_tokens(name: str, pooled: bool) -> None:
    """Every parameter is moved, and what is learned lowers the loss."""
    x = torch.randint(7, (12, 5))
    y = x.sum(dim=1) % K if pooled else x % K
    rule = RULES[name](embedded(pooled), example=x[:2], generator=seeded(0))
    before = [p.detach().clone() for p in rule.parameters()]
    optimizer = torch.optim.Adam(rule.parameters(), 0.01)
    losses = []
    for _ in range(60):
        losses.append(float(rule.assign_credit(x, y)))
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0], "learned"
    moved = [not torch.equal(p, start) for p, start in zip(rule.parameters(), before, strict=True)]
    assert all(moved), "moved"


def test_labels_of_tokens_are_as_many_samples() -> None:
    """Ours: with a label at each token, tokens that do not meet are samples of one token each."""

    def model() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, K))

    x, y = torch.randn(4, 5, 6), torch.randint(K, (4, 5))
    for name in ("ftp", "pepita", "dfa", "drtp"):
        tokens = RULES[name](model(), example=x, generator=seeded(1))
        samples = RULES[name](model(), generator=seeded(1))
        loss = tokens.assign_credit(x, y)
        torch.testing.assert_close(loss, samples.assign_credit(x.flatten(0, 1), y.flatten()), msg=f"{name}: loss")
        for ours, theirs in zip(tokens.parameters(), samples.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, msg=f"{name}: gradient")


@pytest.mark.parametrize("name", ["ftp, input", "pepita", "dfa"])
def test_images_that_a_model_flattens_are_as_flat_ones(name: str) -> None:
    rules = {**RULES, "ftp, input": partial(Ftp, inject=0)}
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6) % K
    found = []
    for flatten in (True, False):
        torch.manual_seed(1)
        hidden = [OwnLinear(16, 8), nn.GELU(), nn.LayerNorm(8)]
        model = nn.Sequential(*[nn.Flatten()] * flatten, *hidden, nn.Linear(8, K))
        given = x if flatten else x.flatten(1)
        rule = rules[name](model, example=given[:2], generator=seeded(2))
        rule.assign_credit(given, y)
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1], msg="gradients")


def test_the_objective_is_differentiated_through_modules() -> None:
    """Of Forward-Forward, whose objective is a function of its layers: what diagnostics backpropagate."""
    torch.manual_seed(1)
    model = by_modules(dense())
    rule = SymBa(model, generator=seeded(2))
    x, y = torch.randn(6, *FLAT), torch.arange(6) % K
    rule.objective(x, y).backward()
    assert model[0].weight.grad is not None
    assert model[0].weight.grad.any(), "reached"


def test_computed_parameters_are_reached_by_the_units_own_graph() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, K))
    rule = DirectFeedbackAlignment(model, generator=seeded(2))
    x, y = torch.randn(6, 6), torch.arange(6) % K
    rule.assign_credit(x, y)
    (matrix,) = rule.feedback
    signal = (model(x).softmax(dim=1) - nn.functional.one_hot(y, K)) @ matrix.T
    learned = list(model[0].parameters())
    expected = torch.autograd.grad(model[:2](x), learned, signal.detach() / len(x))
    for p, gradient in zip(learned, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, msg="gradient")


def test_hooks_of_modules_that_are_run_are_called() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Residual(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, K))
    seen: list[Sequence[int]] = []
    rule = Ftp(model)
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    rule.assign_credit(torch.randn(3, 6), torch.tensor([0, 1, 2]))
    assert len(seen) == 1, "called once"
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    with pytest.raises(ValueError, match="layer '0': a forward hook, which Ftp does not call"):
        rule.assign_credit(torch.randn(3, 6), torch.tensor([0, 1, 2]))


class Whole(nn.Module):
    """A network of one's own, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.block = Residual(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = nn.functional.max_pool2d(self.block(x), 2)
        scores: Tensor = self.head(x.flatten(1))
        return scores

    def units(self) -> list[nn.Module]:
        return [
            nn.Sequential(self.first, self.norm, nn.ReLU()),
            nn.Sequential(self.block, nn.MaxPool2d(2), nn.Flatten()),
            self.head,
        ]


@pytest.mark.parametrize("name", ["ftp", "pepita", "dfa", "drtp", "symba"])
def test_a_network_of_ones_own(name: str) -> None:
    """By modules or by names, the same; every parameter is trained, and buffers are written once a step."""
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6) % K
    found = []
    for given in (lambda model: model.units(), lambda model: ["first", "block", "head"]):
        torch.manual_seed(1)
        model = Whole()
        rule = RULES[name](model, units=given(model), example=x[:2], generator=seeded(2))
        assert len(rule.chain.units) == 3
        rule.assign_credit(x, y)
        assert model.norm.num_batches_tracked == 1, "buffers written once"
        found.append({key: p.grad for key, p in model.named_parameters()})
        trained = [key for key, gradient in found[-1].items() if gradient is not None and gradient.any()]
        left_out = ["head.weight", "head.bias"] if name == "symba" else []
        assert trained == [key for key in found[-1] if key not in left_out], "trained"
    by_modules, by_names = found
    for key, gradient in by_modules.items():
        torch.testing.assert_close(gradient, by_names[key], msg=f"gradient of {key}")


def test_units_that_are_not_the_model_are_refused() -> None:
    """When the rule is built, by an example, or at its first step."""
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6) % K
    model = Whole()
    units = model.units()
    units[1] = nn.Sequential(model.block, nn.AvgPool2d(2), nn.Flatten())
    with pytest.raises(ValueError, match="units: one after another they give another result than the model"):
        Ftp(model, units=units, example=x)
    rule = SymBa(model, units=units)
    with pytest.raises(ValueError, match="units: one after another they give another result than the model"):
        rule.assign_credit(x, y)
    with pytest.raises(ValueError, match="example: None, expected a batch as the model takes it"):
        Ftp(model, units=model.units())


class Swish(nn.Module):
    """An activation of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


def by_rule(name: str, model: nn.Module, x: Tensor, y: Tensor, **given: Any) -> list[Tensor | None]:
    rule = RULES[name](model, example=x[:2], generator=seeded(2), **given)
    rule.assign_credit(x, y)
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("name", ["dfa", "ftp", "ftp, full", "drtp"])
def test_what_has_no_closed_form_is_differentiated_all_the_same(name: str) -> None:
    """An activation of one's own, and one behind Dropout or pooling: as PyTorch's in the same place."""
    x, y = torch.randn(6, 6), torch.arange(6) % K
    found = []
    for activation in (Swish(), nn.SiLU()):
        torch.manual_seed(1)
        hidden = [nn.Linear(6, 8), activation, nn.Linear(8, 8), activation]
        found.append(by_rule(name, nn.Sequential(*hidden, nn.Linear(8, K)), x, y))
    torch.testing.assert_close(found[0], found[1], msg="gradients")


def test_a_full_second_pass_is_through_outlets_that_are_not_linear() -> None:
    """But homogeneous, as norms and maxima are: J h = p(h)."""
    x, y = torch.randn(6, 1, 6, 6), torch.arange(6) % K
    found = []
    for name in ("ftp", "ftp, full"):
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 3, 3), nn.Tanh(), nn.LPPool2d(2.0, 2), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K))
        found.append(by_rule(name, model, x, y))
    torch.testing.assert_close(found[0], found[1], msg="gradients")


@pytest.mark.parametrize(
    "end", [[nn.Linear(8, K), Scale()], [nn.Linear(8, 2 * K), nn.AvgPool1d(2)]], ids=["own", "pool"]
)
@pytest.mark.parametrize("name", ["dfa", "ftp", "pepita"])
def test_what_follows_the_last_layer_belongs_to_it(name: str, end: list[nn.Module]) -> None:
    """The loss is that of the scores which the rule gives, and the last layer has its exact gradient."""
    x, y = torch.randn(6, 6), torch.arange(6) % K
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *copy.deepcopy(end)).double()
    options = {"presynaptic": "clean"} if name == "pepita" else {}
    rule = partial(RULES[name], **options)(model, example=x[:2], generator=seeded(2))
    loss = rule.assign_credit(x, y)
    torch.testing.assert_close(loss, rule.objective(x, y).detach(), msg="loss")
    expected = torch.autograd.grad(rule.objective(x, y), list(model[2].parameters()))
    for p, gradient in zip(model[2].parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, msg="gradient of the last layer")


def test_forward_forward_runs_what_comes_before_the_first_layer() -> None:
    x, y = torch.rand(6, 6), torch.arange(6) % K
    found = []
    for before in ([], [nn.Sigmoid()], [Scale(), nn.Sigmoid()]):
        torch.manual_seed(1)
        model = nn.Sequential(*before, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, K))
        rule = SymBa(model, generator=seeded(2))
        rule.assign_credit(x, y)
        found.append(model[len(before)].weight.grad)
    assert not torch.equal(found[0], found[1]), "of a Sigmoid"
    assert not torch.equal(found[1], found[2]), "of a scale before it"


class Seeing(nn.Module):
    """Notes what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.sigmoid()


def test_labels_are_written_over_what_comes_first() -> None:
    """Not over what it makes of x: samples that are the same reach it as those of their labels."""
    first = Seeing()
    rule = SymBa(nn.Sequential(first, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, K)), generator=seeded(2))
    first.seen.clear()
    rule.assign_credit(torch.ones(6, 6), torch.arange(6) % K)
    assert max(len(x.unique(dim=0)) for x in first.seen) == K, "a label each"


class Detached(nn.Module):
    """Whose weight autograd does not see, as with checkpoint(use_reentrant=True) in a graph of this unit alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear.weight.data)


class Wandering(nn.Module):
    """What is another function at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(6, 6), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        given: Tensor = self.linear(x) * self.calls
        return given


def test_pepita_moves_what_tokens_are_embedded_in() -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, K))
    rule = Pepita(model, example=torch.randint(7, (2, 3)))
    assert rule.projection.shape == (K, 3, 5)


def test_units_that_cannot_be_trained_are_named() -> None:
    x, y = torch.randn(6, 6), torch.arange(6) % K
    rule = DirectFeedbackAlignment(nn.Sequential(Detached(), nn.Tanh(), nn.Linear(6, K)), example=x)
    with pytest.raises(ValueError, match="unit '0': its parameters do not reach what it gives"):
        rule.assign_credit(x, y)
    rule = Ftp(nn.Sequential(nn.Linear(6, 6), Wandering(), nn.Tanh(), nn.Linear(6, K)))
    with pytest.raises(ValueError, match=r"unit '1': gives results .* apart for the same input"):
        rule.assign_credit(x, y)
    with pytest.raises(ValueError, match=r"layer '3': Softmax; .*the loss contains it"):
        Ftp(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, K), nn.Softmax(1)))
    pepita = Pepita(nn.Sequential(Residual(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, K)), example=x.unsqueeze(1))
    with pytest.raises(ValueError, match=r"y: |x: shape"):
        pepita.assign_credit(x.unsqueeze(1).expand(-1, 3, -1), y)


class Shifted(nn.Module):
    def __init__(self, width: int, over: bool) -> None:
        super().__init__()
        self.shift, self.linear, self.over = nn.Parameter(torch.ones(width)), nn.Linear(width, width), over

    def forward(self, x: Tensor) -> Tensor:
        if self.over:  # the input, as people's blocks do
            x += self.shift
        else:
            x = x + self.shift
        given: Tensor = self.linear(x)
        return given


@pytest.mark.parametrize("output_gradient", [None, torch.tanh], ids=["clean error", "modulated error"])
@pytest.mark.parametrize("presynaptic", ["modulated", "clean"])
def test_second_passes_of_pepita_are_one(presynaptic: Any, output_gradient: Any) -> None:
    """By closed forms, by differences as modules take them, and by a whole pass."""
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, K))
    rule, x = Pepita(model, generator=seeded(1)), torch.randn(5, 6)
    with torch.no_grad():
        layers = rule.layers()
        clean = forward(layers, x)
        settings = layers, clean, torch.randn(5, K), rule.projection, output_gradient, presynaptic
        expected = list(update_factors(*settings))
        for found in (carried_modulated_factors(*settings), full_modulated_factors(*settings)):
            torch.testing.assert_close(list(found), expected)


@pytest.mark.parametrize("name", ["dfa", "ftp", "pepita", "symba"])
def test_blocks_that_write_over_their_input_are_as_those_that_do_not(name: str) -> None:
    x, y = torch.randn(6, 6), torch.arange(6) % K
    found = []
    for over in (True, False):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Shifted(8, over), nn.Tanh(), nn.Linear(8, K))
        found.append([g for g in by_rule(name, model, x, y) if g is not None])
    torch.testing.assert_close(found[0], found[1], msg="gradients")


def test_a_second_pass_reads_the_buffers_of_the_first() -> None:
    """spectral_norm moves on its vectors at each evaluation in training mode."""
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    layer = layer_of(linear)
    z = torch.randn(4, 6)
    with torch.no_grad():
        linear.parametrizations.weight.original.add_(torch.randn(6, 6))
        layer.value(z)
        torch.testing.assert_close(layer.difference(z, torch.zeros_like(z)), torch.zeros(4, 6), msg="no change")


def test_tokens_with_dropout_and_in_inference_mode() -> None:
    x, y = torch.randint(7, (6, 5)), torch.arange(6) % K
    model = nn.Sequential(
        nn.Embedding(7, 8, sparse=True), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, K)
    )
    for gradient in by_rule("dfa", model, x, y):
        assert gradient is not None
        assert gradient.any()
    rule = Ftp(nn.Sequential(Residual(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, K)), example=torch.randn(2, 6))
    with torch.inference_mode():
        assert rule.assign_credit(torch.randn(6, 6), y).isfinite()


@pytest.mark.parametrize("rule", [Backprop, BackpropDeepSupervision, MonoForward, Ftp])
def test_a_sparse_embedding_learns_as_a_dense_one(rule: Any) -> None:
    """With decay, which PyTorch's SGD refuses of sparse gradients, and measured."""
    x, y = torch.randint(7, (6, 5)), torch.arange(6) % K
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(7, 8, sparse=sparse)
        model = nn.Sequential(embedding, nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, K))
        made = rule(model, example=x, generator=seeded(1))
        made.assign_credit(x, y)
        assert not any(p.grad.is_sparse for p in model.parameters() if p.grad is not None)
        made.step(x, y, torch.optim.SGD(made.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1))
        found.append(([p.detach() for p in made.parameters()], unit_diagnostics(made, x, y)))
    (as_dense, measured), (learned, of_sparse) = found
    for expected, given in zip(as_dense, learned, strict=True):
        torch.testing.assert_close(given, expected)
    for name, numbers in measured.items():
        assert of_sparse[name] == pytest.approx(numbers, abs=1e-4)


@pytest.mark.parametrize("name", ["forward-forward, hard", "forward-forward, read-out"])
def test_passes_beside_the_streams_write_no_buffers(name: str) -> None:
    rules = {**RULES, "forward-forward, hard": partial(ForwardForward, negatives="hard")}
    x, y = torch.rand(6, 6), torch.arange(6) % K
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), Residual(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, K)
    )
    rule = rules[name](model, example=x[:2], generator=seeded(2))
    rule.assign_credit(x, y)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked == 1, "buffers written once"


def test_channels_of_other_layers_than_maps() -> None:
    """Of Conv1d they are axis 1: positions have projections of their own there, as those of Conv3d have."""
    x, y = torch.randn(6, 2, 9), torch.arange(6) % K
    model = nn.Sequential(nn.Conv1d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(35, K))
    rule = Ftp(model, example=x[:2], generator=seeded(2))
    assert rule.feedback.shape == (35, K)
    assert not rule.by_channel
    rule.assign_credit(x, y)
    with pytest.raises(ValueError, match="by_channel: True"):
        Ftp(model, example=x[:2], by_channel=True)


def test_a_value_in_inference_mode() -> None:
    """An input that is made there has its graph all the same."""
    module = nn.Linear(6, 5)
    layer = layer_of(module)
    with torch.inference_mode():
        z = torch.randn(4, 6)
        torch.testing.assert_close(layer.value(z), module(z))
    torch.testing.assert_close(layer.adjoint(z, torch.ones(4, 5)), torch.ones(4, 5) @ module.weight.detach())


class Counted(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_modules_run_once_for_each_input() -> None:
    """Until the update at it, which frees its graph, and no other's."""
    module = Counted(6, 5)
    layer, z, other, d = layer_of(module), torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 5)
    with torch.no_grad():
        for _ in range(2):
            value = layer.value(z)
            assert not value.requires_grad
            layer.adjoint(z, d)
        assert module.calls == 1, "held"
        layer.value(other)
        assert module.calls == 2, "of another input"
        layer.update(z, d)
        assert module.calls == 2, "the update's graph"
        layer.value(other)
        assert module.calls == 2, "of another update"
        layer.difference(other, z)
        assert module.calls == 3, "at the changed input alone"
        layer.again(other)
        assert module.calls == 4, "once more"
        layer.value(z)
        assert module.calls == 5, "freed"
    assert layer.value(z).requires_grad, "where a graph is wanted"
    assert module.calls == 6


def test_a_step_finds_its_last_value_again() -> None:
    called: list[int] = []

    class Noting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            called.append(len(x))
            return x.tanh()

    step, a, b = ModuleStep(Noting()), torch.randn(2, 3), torch.randn(4, 3)
    for x, calls in ((a, [2]), (a, [2]), (b, [2, 4]), (b, [2, 4]), (a, [2, 4, 2])):
        torch.testing.assert_close(step.value(x), x.tanh())
        assert called == calls


def test_what_has_no_difference_is_named() -> None:
    layer = layer_of(nn.Linear(6, 5))
    with pytest.raises(ValueError, match="u: 1 rows, expected 4, those of z, through a module that is not linear"):
        layer.difference(torch.randn(4, 6), torch.randn(1, 6))
    tokens, said = torch.zeros(4, 6).long(), "z: torch.int64, expected floating point: integers have neither"
    for call in (lambda: layer.difference(tokens, tokens), lambda: layer.adjoint(tokens, torch.randn(4, 5))):
        with pytest.raises(ValueError, match=said):
            call()


def test_inputs_are_copied_for_what_may_write_over_them() -> None:
    """One's own modules may; PyTorch's say so."""

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    rows = ((nn.Identity(), False), (nn.Sequential(nn.Identity()), False), (Own(), True), (nn.ReLU(inplace=True), True),
            (nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), True), (nn.Sequential(Own()), True))  # fmt: skip
    for module, copies in rows:
        x = torch.rand(4, 6)
        assert (Evaluator((module,))(x).data_ptr() != x.data_ptr()) == copies, module


def test_hooks_are_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, given, y: None)
    model[1].register_forward_pre_hook(lambda module, given: None)
    inside: list[bool] = []

    def interrupted() -> None:
        with unhooked(model.modules()):
            inside.extend(bool(m._forward_hooks or m._forward_pre_hooks) for m in model)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert inside == [False] * 3
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model] == [(1, 0), (0, 1), (0, 0)]
