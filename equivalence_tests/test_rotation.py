"""The module `Rotation`: the layer of the same name, with autograd as the oracle, and under FOTON."""

from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated import convolution, layers, orthogonality
from prograde.accelerated.activations import maxmin, tanh
from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, Rotation, ScaledAvgPool2d
from prograde.accelerated.rules import Foton

pytestmark = [pytest.mark.places_itself, pytest.mark.usefixtures("ours_only")]


def rotation(kernel_size: int | None, activation: nn.Module | None, bias: bool = True) -> Rotation:
    torch.manual_seed(0)
    module = Rotation(6, 0.7, activation, kernel_size, bias).double()
    if bias:
        nn.init.normal_(module.orthogonal.bias)
    return module


def layer_of(module: Rotation) -> layers.Rotation:
    """As the functions take it, with the skew weight as the parameter."""
    steps = {nn.Tanh: (tanh,), MaxMin: (maxmin,), nn.Identity: ()}[type(module.activation)]
    dense = isinstance(module.orthogonal, nn.Linear)
    branch = (layers.Dense if dense else layers.CircularConvolution)(module.skew(), module.orthogonal.bias, steps)
    return layers.Rotation(branch, module.angle)


@pytest.mark.parametrize("activation", [None, nn.Tanh(), MaxMin()], ids=["linear", "tanh", "maxmin"])
@pytest.mark.parametrize("kernel_size", [None, 1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_module_is_the_layer_and_autograd_its_oracle(kernel_size: int | None, activation: Any, bias: bool) -> None:
    module = rotation(kernel_size, activation, bias)
    x = torch.randn(5, 6, *(() if kernel_size is None else (4, 3)), dtype=torch.float64, requires_grad=True)
    d = torch.randn_like(x)
    y = module(x)
    gradients = torch.autograd.grad(y, [x, *module.parameters()], d)
    with torch.no_grad():
        layer = layer_of(module)
        weight, *of_bias = layer.update(x, d)
        q = module.orthogonal
        if isinstance(q, nn.Linear):
            parts = [orthogonality.skew_orthogonal_vjp(q.weight, weight)]
        else:
            of_kernel = convolution.skew_kernel_vjp(q.kernel(), weight)
            mixing, bases = convolution.orthogonal_kernel_vjp(q.mixing, list(q.bases), of_kernel)
            parts = [mixing, *bases]
        names = [name.removeprefix("orthogonal.") for name, _ in module.named_parameters()]
        order = ["weight"] if kernel_size is None else ["mixing", *(f"bases.{i}" for i in range(len(q.bases)))]
        found = dict(zip([*order, *(["bias"] if bias else [])], [*parts, *of_bias], strict=True))
        assert torch.allclose(layer.value(x), y), "value"
        assert torch.allclose(layer.adjoint(x, d), gradients[0]), "adjoint"
        for name, gradient in zip(names, gradients[1:], strict=True):
            assert torch.allclose(5 * found[name], gradient), f"update of {name}"


@pytest.mark.parametrize("kernel_size", [None, 1, 3])
def test_without_an_activation_it_keeps_inner_products(kernel_size: int | None) -> None:
    module = rotation(kernel_size, None, bias=False)
    x = torch.randn(5, 6, *(() if kernel_size is None else (4, 3)), dtype=torch.float64)
    y = module(x)
    assert torch.allclose(y.flatten(1) @ y.flatten(1).T, x.flatten(1) @ x.flatten(1).T), "inner products"
    skew = module.skew()
    assert torch.allclose(skew, -(skew.T if kernel_size is None else skew.transpose(0, 1).flip(2, 3))), "skew"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 0.1), "features: 5, expected a positive even number"),
        ((0, 0.1), "features: 0, expected a positive even number"),
        ((4, 0.1, None, 0), "kernel_size: 0, expected a positive integer"),
    ],
)
def test_sizes_are_checked(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotation(*arguments)


def networks(activation: type[nn.Module]) -> list[tuple[nn.Sequential, tuple[int, ...]]]:
    """A dense network and one of images, in float64, with the shapes of their samples."""
    torch.manual_seed(0)
    dense = [nn.Linear(10, 8), activation(), Rotation(8, 0.5, activation()), Rotation(8, 0.4, activation(), bias=False)]
    images = [
        *(nn.PixelUnshuffle(2), OrthogonalConv2d(12, 8, 2), activation(), Rotation(8, 0.5, activation(), 2)),
        *(ScaledAvgPool2d(2), Rotation(8, 0.3, activation(), 1), nn.Flatten(), Rotation(32, 0.4, activation())),
    ]
    return [
        (nn.Sequential(*dense, nn.Linear(8, 4)).double(), (10,)),
        (nn.Sequential(*images, nn.Linear(32, 4)).double(), (3, 8, 8)),
    ]


def batch(shape: tuple[int, ...], size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, *shape, generator=generator, dtype=torch.float64), torch.arange(size) % 4


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"linear": True}, {"linear": True, "recompute": True}])
@pytest.mark.parametrize("kind", [0, 1], ids=["dense", "images"])
def test_without_activations_foton_gives_every_parameter_the_gradient_of_autograd(kind: int, options: Any) -> None:
    """And with tanh the linear pass gives it to the last rotation."""
    for activation in (nn.Identity, nn.Tanh):
        model, shape = networks(activation)[kind]
        rule, (x, y) = Foton(model, **options), batch(shape)
        loss = rule.assign_credit(x, y)
        ours = gradients(model)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        theirs = gradients(model)
        assert torch.allclose(loss, nn.functional.cross_entropy(model(x), y)), "loss"
        last = str(len(model) - 2)
        exact = [name for name in theirs if activation is nn.Identity or (options and name.startswith(last))]
        assert ours.keys() == theirs.keys()
        for name in exact:
            assert torch.allclose(ours[name], theirs[name], atol=1e-12), f"gradient of {name}"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("kind", [0, 1], ids=["dense", "images"])
def test_training_keeps_w_skew_and_orthogonal(kind: int, optimizer: str) -> None:
    """Q within 5e-3 after every step, W hence within twice that; skew to rounding."""
    model, shape = networks(nn.Tanh)[kind]
    rule, (x, y) = Foton(model.float(), linear=True), batch(shape)
    x = x.float()
    steps = {
        "sgd": lambda p: torch.optim.SGD(p, 0.1),
        "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, 1e-2),
    }[optimizer](rule.parameters())
    losses = []
    for _ in range(40):
        losses.append(float(rule.assign_credit(x, y)))
        steps.step()
        rule.constrain(steps)
        for rotation in (part for part in model if isinstance(part, Rotation)):
            for name, p in rotation.orthogonal.named_parameters():
                assert name == "bias" or orthogonality.defect(p.detach()) <= 5e-3, f"{name} within the tolerance"
            skew = rotation.skew().detach()
            if skew.dim() == 2:
                assert orthogonality.defect(skew) <= 1e-2, "W within twice the tolerance"
                assert torch.allclose(skew, -skew.T, atol=1e-6), "skew"
    assert losses[-1] < 0.8 * losses[0], "it learns"


def test_maximum_pooling_trains_and_its_last_layer_has_its_gradient() -> None:
    """OrthogonalConv2d, activation, MaxPool2d: the linear pass is exact for the convolution before the scores."""
    torch.manual_seed(0)
    pooled = [OrthogonalConv2d(4, 4, 2), nn.Tanh(), nn.MaxPool2d(2)]
    model = nn.Sequential(*pooled, *pooled_again(), nn.Flatten(), nn.Linear(16, 4)).double()
    rule, (x, y) = Foton(model, linear=True), batch((4, 8, 8))
    rule.assign_credit(x, y)
    ours = gradients(model)
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    theirs = gradients(model)
    assert torch.allclose(rule(x), model(x)), "scores"
    for name, gradient in theirs.items():
        near = torch.allclose(ours[name], gradient, atol=1e-12)
        assert near == (not name.startswith("0.")), f"gradient of {name}"


def pooled_again() -> list[nn.Module]:
    return [OrthogonalConv2d(4, 4, 2), nn.MaxPool2d(2)]
