"""FOTON and backpropagation on models for images, through the front door."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.orthogonality import defect
from prograde.accelerated.rules import Backprop, Foton, Pepita
from prograde.accelerated.training.diagnostics.alignment import alignment
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import ReferenceSide, TwinSide
from prograde.equivalence_tests.tolerance import rms
from prograde.reference import convolution


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


def model(
    channels: int = 8, activation: type[nn.Module] = nn.Tanh, dtype: torch.dtype = torch.float64
) -> nn.Sequential:
    """For images of 8 x 8 pixels: 1 channel to 16 by unshuffling, then never more."""
    torch.manual_seed(0)
    return nn.Sequential(
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
    ).to(dtype)


def batch(n: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(1)
    y = torch.randint(0, 3, (n,), generator=generator)
    centres = torch.randn(3, 1, 8, 8, generator=generator)
    return (centres[y] + 0.5 * torch.randn(n, 1, 8, 8, generator=generator)).to(dtype), y


def numpy(tensor: Any) -> Any:
    return tensor.detach().double().cpu().numpy()


@pytest.mark.parametrize("options", [{}, {"linear": True, "activation_gain": 0.9}], ids=["plain", "linear"])
@pytest.mark.parametrize("channels", [8, 14], ids=["narrowing", "widening"])
def test_gradients_are_the_references_through_the_parts(channels: int, options: Any):
    """.grad of mixing, bases and biases: the reference's kernel update times its kernel's derivative."""
    rule = Foton(model(channels), **options)
    x, y = batch()
    rule.assign_credit(x, y)
    side = ReferenceSide()
    table, module = side.activations.ACTIVATIONS, side.convolutional_foton
    layers, parts = [], []
    for unit in rule.convolutions:
        mixing, bases = numpy(unit.convolution.mixing), [numpy(b) for b in unit.convolution.bases]
        kernel, bias = convolution.orthogonal_kernel(mixing, bases), numpy(unit.convolution.bias)
        layers.append(module.ConvolutionalLayer(kernel, bias, table["tanh"], unit.factor, unit.pool))
        parts.append((mixing, bases))
    weights = tuple(numpy(block.linear.weight) for block in rule.blocks)
    biases = tuple(numpy(block.linear.bias) for block in rule.blocks)
    dense = side.net.Network(weights, biases, (table["tanh"], table["identity"]))
    expected = module.updates(module.ConvolutionalNetwork(tuple(layers), dense), numpy(x), y.cpu().numpy(), **options)

    def same(name: str, ours: Any, theirs: Any) -> None:
        assert rms(numpy(ours) - theirs) <= 1e-12 * rms(theirs), name

    for unit, (mixing, bases), update in zip(rule.convolutions, parts, expected.layers, strict=True):
        of_mixing, of_bases = convolution.orthogonal_kernel_vjp(mixing, bases, update.weight)
        same("mixing", unit.convolution.mixing.grad, of_mixing)
        for parameter, theirs in zip(unit.convolution.bases, of_bases, strict=True):
            same("bases", parameter.grad, theirs)
        assert unit.convolution.bias is not None
        same("bias of a convolution", unit.convolution.bias.grad, update.bias)
    for block, weight, bias in zip(rule.blocks, expected.dense.weights, expected.dense.biases, strict=True):
        same("dense weight", block.linear.weight.grad, weight)
        same("dense bias", block.linear.bias.grad, bias)


def test_backprop_on_images_is_autograd():
    rule = Backprop(model())
    x, y = batch()
    rule.assign_credit(x, y)
    ours = {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}
    rule.zero_grad()
    nn.functional.cross_entropy(rule.model(x), y).backward()
    for name, parameter in rule.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-12, atol=1e-14), name


def test_linear_network_is_backprop_in_every_part():
    """Through the derivative of the kernel as well: cosines of 1 for every layer's parts."""
    rule = Foton(model(activation=nn.Identity))
    cosines = alignment(rule, *batch())
    assert len(cosines) == 4
    assert min(cosines.values()) > 1 - 1e-12, cosines


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["foton", "backprop"])
def test_training_keeps_every_part_orthogonal(optimizer: str, kind: str):
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
    for unit in rule.convolutions:
        kernel = numpy(unit.convolution.kernel())
        n = kernel.shape[1] * 16
        matrix = convolution.convolve(kernel, np.eye(n).reshape(n, -1, 4, 4)).reshape(n, -1)
        assert np.abs(np.linalg.svd(matrix, compute_uv=False) - 1).max() < 0.02, "orthogonal kernel"


def test_saved_and_loaded_rules_go_on_alike():
    rule = Foton(model(dtype=torch.float32))
    other = Foton(model(dtype=torch.float32))
    x, y = batch(16, torch.float32)
    rule.assign_credit(x, y)
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    assert torch.equal(rule(x), other(x))
    assert torch.equal(rule.assign_credit(x, y), other.assign_credit(x, y))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([OrthogonalConv2d(4, 4, 3), nn.MaxPool2d(2)], "'1': MaxPool2d.*no linear map"),
        ([OrthogonalConv2d(4, 4, 3), nn.AvgPool2d(2)], "'1': AvgPool2d.*ScaledAvgPool2d"),
        ([nn.Conv2d(4, 4, 3, padding=1)], "'0': Conv2d.*padded with zeros"),
        ([OrthogonalConv2d(4, 4, 3), OrthogonalConv2d(3, 4, 3)], "takes 3 channels, but gets 4"),
        ([OrthogonalConv2d(4, 3, 3), MaxMin()], "'1': MaxMin pairs channels"),
        ([OrthogonalConv2d(4, 3, 3), nn.Flatten()], "model: no Linear layer"),
        ([OrthogonalConv2d(4, 3, 3), nn.PixelUnshuffle(2), nn.Flatten(), nn.Linear(12, 2)], "'1': PixelUnshuffle"),
        ([OrthogonalConv2d(4, 3, 3), nn.PixelUnshuffle(2), nn.Tanh()], "'2': Tanh; Foton trains"),
        ([nn.PixelUnshuffle(2), OrthogonalConv2d(6, 3, 3)], "'1': takes 6 channels, expected a multiple of 4"),
        (
            [*[OrthogonalConv2d(4, 4, 3)] * 2, nn.Flatten(), nn.Linear(4, 2)],
            "'1': shares a parameter with layer '0'",
        ),
        ([*[nn.PixelUnshuffle(2)] * 2, OrthogonalConv2d(16, 3, 3)], "'1': a second PixelUnshuffle"),
        ([OrthogonalConv2d(4, 4, 3), nn.SiLU()], "'1': SiLU.*use ReLU or Tanh"),
        ([OrthogonalConv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 4), nn.Dropout()], "'2': Dropout after it"),
    ],
)
def test_models_that_cannot_be_trained_are_refused(layers: list[nn.Module], message: str):
    with pytest.raises(ValueError, match=message):
        Foton(nn.Sequential(*layers))


def test_the_scores_that_are_trained_are_the_models():
    """Unshuffled between convolutions, pooled twice."""
    torch.manual_seed(0)
    layers = [nn.PixelUnshuffle(4), OrthogonalConv2d(16, 5, 3), nn.Tanh(), ScaledAvgPool2d(2), nn.PixelUnshuffle(2)]
    layers += [OrthogonalConv2d(20, 8, 2), ScaledAvgPool2d(2), nn.Identity(), ScaledAvgPool2d(2)]
    rule = Foton(nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double())
    generator = seeded(1)
    x = torch.randn(4, 1, 64, 64, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0])
    assert rule.assign_credit(x, y).item() == pytest.approx(rule.objective(x, y).item(), rel=1e-12)


def test_images_of_another_size_than_the_dense_layers_take():
    with pytest.raises(ValueError, match=r"layer '7': takes 8 features, but images of 16 x 16 give 32 \(8 x 2 x 2\)"):
        Foton(model())(torch.ones(2, 1, 16, 16, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"x: 1 x 1 pixels at layer '3', which can't be pooled by 2"):
        Foton(model())(torch.ones(2, 1, 4, 4, dtype=torch.float64))


def test_rules_without_convolutions_refuse_them():
    with pytest.raises(ValueError, match=r"layer '1': OrthogonalConv2d; Pepita trains"):
        Pepita(nn.Sequential(nn.Identity(), OrthogonalConv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2)))


@pytest.mark.parametrize("options", [{"recompute": True}, {"projection_every": 2}])
def test_options_that_convolutions_lack_are_refused(options: Any):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*: with convolutions"):
        Foton(model(), **options)


@pytest.mark.parametrize("shape", [(5, 64), (5, 2, 8, 8), (0, 1, 8, 8)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]):
    rule = Foton(model())
    with pytest.raises(ValueError, match=r"x: shape .*, expected \(batch, 1, height, width\)"):
        rule(torch.ones(shape, dtype=torch.float64))


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
def test_backprop_through_padded_convolutions_is_autograd(activation: type[nn.Module]):
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


def test_padded_kernels_are_not_held_orthogonal():
    with pytest.raises(ValueError, match="orthogonal: True, with Conv2d"):
        Backprop(padded_model(nn.Tanh), orthogonal=True)
