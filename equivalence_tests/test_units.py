"""The reader of models: units compute what their modules do, have the shapes that they say; others are named."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prograde.accelerated.layers import activity, forward
from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.rules.units import Chain, read
from prograde.equivalence_tests.rule_examples import refusal
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(72, 8),
        nn.Sequential(MaxMin(), nn.Dropout(), nn.Linear(8, 6, bias=False)),
        nn.Dropout(),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same"),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Sequential(
            nn.Conv2d(4, 6, (1, 2), stride=2, padding=(1, 0)), nn.LeakyReLU(0.2), nn.Dropout(), nn.MaxPool2d(1)
        ),
        nn.Flatten(),
        nn.Linear(18, 3),
    )


def orthogonal() -> nn.Module:
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        OrthogonalConv2d(8, 4, 3),
        MaxMin(),
        nn.Dropout(),
        nn.PixelUnshuffle(3),
        OrthogonalConv2d(36, 6, 1),
        ScaledAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"dense": dense, "Conv2d": plain, "OrthogonalConv2d": orthogonal}


def chain(model: nn.Module) -> Chain:
    return read(model, "R", (OrthogonalConv2d, nn.Conv2d))


@pytest.mark.parametrize("name", MODELS)
def test_units_compute_what_the_model_does(name: str, twin: TwinSide):
    model = MODELS[name]().to(twin.device, torch.float64).eval()
    x = torch.randn(3, 2, 6, 6, device=twin.device, dtype=torch.float64)
    found = chain(model)
    clean = forward([unit.layer() for unit in found.units], activity(found.stem, x))
    torch.testing.assert_close(clean.scores, model(x))
    assert found.activity_shapes(x.shape[1:]) == [h.shape[1:] for h in clean.activities], "shapes"


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_parameters(name: str, twin: TwinSide):
    """A unit's update, and autograd's gradient of the same product."""
    found = chain(MODELS[name]().to(twin.device, torch.float64).eval())
    x = torch.randn(3, 2, 6, 6, device=twin.device, dtype=torch.float64)
    clean = forward([unit.layer() for unit in found.units], activity(found.stem, x))
    for unit, z, a in zip(found.units, clean.inputs, clean.preactivations, strict=True):
        delta = torch.randn_like(a)
        gradients = unit.gradients(unit.layer().update(z.detach(), delta))
        expected = torch.autograd.grad((delta * unit.layer().value(z.detach())).sum() / len(x), unit.parameters)
        for parameter, ours, theirs in zip(unit.parameters, gradients, expected, strict=True):
            assert ours.shape == parameter.shape
            torch.testing.assert_close(ours, theirs, msg=f"gradient of {unit.name}")


REFUSED: list[tuple[nn.Module, str]] = [
    (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.ReLU()), "layer '2': a second activation after layer '0'"),
    (nn.Sequential(nn.Linear(4, 3), MaxMin()), "layer '1': MaxMin pairs units, but layer '0' gives 3"),
    (nn.Sequential(nn.Linear(4, 3), nn.Flatten()), "layer '1': Flatten; R trains"),
    (nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.Tanh()), "layer '2': Tanh after Dropout; put the Dropout behind"),
    (nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), "layer '0': Dropout before the first layer"),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3)), "layer '1': Linear; R trains"),
    (nn.Sequential(nn.Linear(4, 3), nn.Conv2d(1, 2, 3)), "layer '1': Conv2d; R trains"),
    (nn.Sequential(nn.Flatten(), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 3)), "layer '1': Conv2d; R trains"),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2), nn.Linear(4, 3)), "layer '1': Flatten(start_dim=2"),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(4, 3)), "layer '1': MaxPool2d(kern"),
    (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(4, 3)),
        "layer '2': Dropout after pooling or Flatten; put it right behind the activation",
    ),
    (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
        "layer '2': ReLU; R",
    ),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(3, 2, 3), nn.Flatten()), "layer '1': takes 3 channels, but gets 2"),
    (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "model: no Linear layer; R trains"),
    (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten(), nn.Linear(4, 3)), "layer '0': Conv2d(2, 2"),
    (nn.Linear(4, 3), "model: Linear; R trains"),
]


@pytest.mark.parametrize(("model", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_no_unit_is_named(model: nn.Module, said: str):
    assert refusal(lambda: read(model, "R", (nn.Conv2d,))).startswith(said), "refusal"


def test_images_that_do_not_fit_are_refused_with_the_layers_name(twin: TwinSide):
    """Before anything is computed."""
    cases = (
        (orthogonal(), 9, "layer '1'"),
        (orthogonal(), 10, "layer '1'"),
        (plain(), 8, "layer '5' (z: 36 units, but the weight has 18 columns)"),
        (plain(), 1, "layer '0'"),
    )
    for model, side, where in cases:
        message = refusal(lambda model=model, side=side: chain(model).activity_shapes(torch.Size([2, side, side])))
        assert message.startswith(f"x: samples of shape (2, {side}, {side}) do not pass {where}"), message


def test_rules_without_dropout_say_so():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 2))
    message = refusal(lambda: read(model, "R", dropout=False))
    assert message.startswith("layer '2': Dropout; R trains"), message
    assert "Dropout after" not in message, message
    assert refusal(lambda: read(model, "R")) == "accepted"
