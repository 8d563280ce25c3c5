"""FOTON and backpropagation on models for images, through the front door."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prograde.accelerated.modules import OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.orthogonality import defect
from prograde.accelerated.rules import Backprop, Foton
from prograde.accelerated.training.diagnostics.alignment import alignment
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import reference_layers
from prograde.equivalence_tests.sides import ReferenceSide
from prograde.equivalence_tests.tolerance import rms
from prograde.reference import convolution, pooling
from prograde.reference import layers as reference

pytestmark = pytest.mark.usefixtures("ours_only")


def model(
    channels: int = 8,
    activation: type[nn.Module] = nn.Tanh,
    dtype: torch.dtype = torch.float64,
    dropout: float | None = None,
) -> nn.Sequential:
    """For images of 8 x 8 pixels: 1 channel to 16 by unshuffling, then never more; with dropout behind activations."""
    torch.manual_seed(0)
    layers = [
        nn.PixelUnshuffle(4),
        OrthogonalConv2d(16, 12, 3),
        activation(),
        OrthogonalConv2d(12, channels, 2),
        activation(),
        ScaledAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(channels, 6),
        activation(),
        nn.Linear(6, 3),
    ]
    if dropout is not None:
        layers = [
            part
            for layer in layers
            for part in ((layer, nn.Dropout(dropout)) if type(layer) is activation else (layer,))
        ]
    return nn.Sequential(*layers).to(dtype)


def batch(n: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    y = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.randn(3, 1, 8, 8, generator=generator)
    return (centres[y] + 0.5 * torch.randn(n, 1, 8, 8, generator=generator)).to(dtype), y


def numpy(tensor: Any) -> Any:
    return tensor.detach().double().cpu().numpy()


def parts_of(unit: Any) -> tuple[Any, list[Any]]:
    return numpy(unit.module.mixing), [numpy(b) for b in unit.module.bases]


def check_gradients(rule: Foton, x: torch.Tensor, y: torch.Tensor, masks: Any = None, **options: Any) -> None:
    """.grad of mixing, bases, weights and biases: the reference's update times its kernel's derivative."""
    side = ReferenceSide()
    start = pooling.unshuffle(numpy(x), 4)
    expected = side.foton.updates(reference_layers(rule, masks), start, y.cpu().numpy(), **options)

    def same(name: str, ours: Any, theirs: Any) -> None:
        assert rms(numpy(ours) - theirs) <= 1e-12 * rms(theirs), name

    for unit, (weight, bias) in zip(rule.units, expected, strict=True):
        assert unit.bias is not None
        same("bias", unit.bias.grad, bias)
        if not unit.has_maps:
            same("dense weight", unit.module.weight.grad, weight)
            continue
        of_mixing, of_bases = convolution.orthogonal_kernel_vjp(*parts_of(unit), weight)
        same("mixing", unit.module.mixing.grad, of_mixing)
        for parameter, theirs in zip(unit.module.bases, of_bases, strict=True):
            same("bases", parameter.grad, theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"linear": True, "activation_gain": 0.9}, {"recompute": True}],
    ids=["plain", "linear", "recomputed"],
)
@pytest.mark.parametrize("channels", [8, 14], ids=["narrowing", "widening"])
def test_gradients_are_the_references_through_the_parts(channels: int, options: Any) -> None:
    rule = Foton(model(channels), **options)
    x, y = batch()
    rule.assign_credit(x, y)
    check_gradients(rule, x, y, **{name: value for name, value in options.items() if name != "recompute"})


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_drops_pixels_of_maps(recompute: bool) -> None:
    """Both passes have the masks that the rule draws, whose shapes are those of the activities."""
    rule = Foton(model(dropout=0.3), recompute=recompute, generator=seeded(3))
    x, y = batch()
    masks = tuple(rule.draw_masks(x, rule.replay(x.device)))
    shapes = [None if mask is None else tuple(mask.shape[1:]) for mask in masks]
    assert shapes == [(12, 2, 2), (8, 2, 2), (6,), None], "shapes of masks"
    assert all(0.1 < (mask == 0).double().mean() < 0.5 for mask in masks[:-1]), "share that is dropped"
    rule.assign_credit(x, y)
    check_gradients(rule, x, y, masks)
    rule.eval()
    rule.assign_credit(x, y)
    check_gradients(rule, x, y)


def test_a_projection_of_images_is_held_for_some_steps() -> None:
    """F^T is built at the first step and every third one, and is part of the state."""
    rule = Foton(model(), projection_every=3)
    steps = torch.optim.SGD(rule.parameters(), lr=0.1)
    x, y = batch()
    built: list[Any] = []
    for step in range(5):
        if step == 4:
            other = Foton(model(), projection_every=3)
            other.load_state_dict(copy.deepcopy(rule.state_dict()))
            rule = other
        if step % 3 == 0:
            layers = reference_layers(rule)
            clean = reference.forward(layers, pooling.unshuffle(numpy(x), 4))
            built.append(ReferenceSide().foton.error_projection(layers, clean))
        rule.assign_credit(x, y)
        check_gradients(rule, x, y, projection=built[-1])
        steps.step()
        rule.constrain(steps)
    assert rule.projection is not None
    assert tuple(rule.projection.shape) == (3, 16, 2, 2)
    assert rms(built[0] - built[1]) > 1e-3 * rms(built[0])


def test_backprop_on_images_is_autograd() -> None:
    rule = Backprop(model())
    x, y = batch()
    rule.assign_credit(x, y)
    ours = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    nn.functional.cross_entropy(rule.model(x), y).backward()
    for name, parameter in rule.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-12, atol=1e-14), name


def test_linear_network_is_backprop_in_every_part() -> None:
    """Through the derivative of the kernel as well: cosines of 1 for every layer's parts."""
    rule = Foton(model(activation=nn.Identity))
    cosines = alignment(rule, *batch())
    assert len(cosines) == 4
    assert min(cosines.values()) > 1 - 1e-12, cosines


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["foton", "backprop"])
def test_training_keeps_every_part_orthogonal(optimizer: str, kind: str) -> None:
    rule = (
        Foton(model(dtype=torch.float32)) if kind == "foton" else Backprop(model(dtype=torch.float32), orthogonal=True)
    )
    x, y = batch(64, torch.float32)
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, lr=1e-2)}
    steps = make[optimizer](rule.parameters())
    losses = []
    for _ in range(40):
        losses.append(rule.assign_credit(x, y).item())
        steps.step()
        rule.constrain(steps)
        assert rule.orthogonality is not None
        assert max(defect(w.detach()).item() for w in rule.orthogonality.weights().values()) <= 5e-3, "orthogonal parts"
    assert losses[-1] < 0.2 * losses[0], "the loss falls"
    for unit in (unit for unit in rule.units if unit.has_maps):
        kernel = numpy(rule.model.get_submodule(unit.name).kernel())  # type: ignore[operator]
        n = kernel.shape[1] * 16
        matrix = convolution.convolve(kernel, np.eye(n).reshape(n, -1, 4, 4)).reshape(n, -1)
        assert np.abs(np.linalg.svd(matrix, compute_uv=False) - 1).max() < 0.02, "orthogonal kernel"


def test_saved_and_loaded_rules_go_on_alike() -> None:
    rule = Foton(model(dtype=torch.float32))
    other = Foton(model(dtype=torch.float32))
    x, y = batch(16, torch.float32)
    rule.assign_credit(x, y)
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    assert torch.equal(rule(x), other(x))
    assert torch.equal(rule.assign_credit(x, y), other.assign_credit(x, y))


def test_the_scores_that_are_trained_are_the_models() -> None:
    """Unshuffled twice and between convolutions, pooled twice."""
    torch.manual_seed(0)
    layers = [
        nn.PixelUnshuffle(2),
        nn.PixelUnshuffle(2),
        OrthogonalConv2d(16, 5, 3),
        nn.Tanh(),
        ScaledAvgPool2d(2),
        nn.PixelUnshuffle(2),
    ]
    layers += [OrthogonalConv2d(20, 8, 2), ScaledAvgPool2d(2), nn.Identity(), ScaledAvgPool2d(2)]
    rule = Foton(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double())
    generator = seeded(1)
    x = torch.randn(4, 1, 64, 64, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    assert rule.assign_credit(x, y).item() == pytest.approx(rule.objective(x, y).item(), rel=1e-12)


def padded_model(activation: type[nn.Module]) -> nn.Sequential:
    """For images of 11 x 9 pixels with 2 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, (3, 2), padding="valid"),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, stride=(2, 1), padding=(1, 2), bias=False),
        activation(),
        nn.Flatten(),
        nn.Linear(48, 6),
        activation(),
        nn.Linear(6, 3),
    ).double()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity])
def test_backprop_through_padded_convolutions_is_autograd(activation: type[nn.Module]) -> None:
    rule = Backprop(padded_model(activation))
    x, y = torch.randn(16, 2, 11, 9, dtype=torch.float64), torch.randint(0, 3, (16,))
    loss = rule.assign_credit(x, y)
    ours = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    expected = nn.functional.cross_entropy(rule.model(x), y)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for name, parameter in rule.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-12, atol=1e-14), name
