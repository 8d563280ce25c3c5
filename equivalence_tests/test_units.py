"""The reader of models: units compute what their modules do, have the shapes that they say; others are named."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prograde.accelerated.layers import activity, forward
from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, ScaledAvgPool2d
from prograde.accelerated.rules import FeedbackAlignment
from prograde.accelerated.rules.units import Chain, channels_last, has_strided_pixels, read
from prograde.equivalence_tests.sides import TwinSide

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


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
def test_units_compute_what_the_model_does(name: str, twin: TwinSide) -> None:
    model = MODELS[name]().to(twin.device, torch.float64).eval()
    x = torch.randn(3, 2, 6, 6, device=twin.device, dtype=torch.float64)
    found = chain(model)
    clean = forward([unit.layer() for unit in found.units], activity(found.stem, x))
    torch.testing.assert_close(clean.scores, model(x))
    assert found.activity_shapes(x.shape[1:]) == [h.shape[1:] for h in clean.activities], "shapes"


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_parameters(name: str, twin: TwinSide) -> None:
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


def test_channels_are_last_in_memory() -> None:
    """Of images on a CPU, one channel and one that stands for all included; what is so already is not copied."""
    for x in (torch.randn(3, 4, 5, 6), torch.randn(3, 1, 5, 6), torch.randn(3, 1, 5, 6).expand(3, 4, 5, 6)):
        found = channels_last(x)
        assert torch.equal(found, x)
        assert found.stride() == (30 * x.shape[1], 1, 6 * x.shape[1], x.shape[1]), "their strides"
        assert channels_last(found) is found, "a copy of what is right"
    for shape in ((3, 4, 5), (3, 4, 5, 6, 7)):
        volumes = torch.randn(shape)
        assert channels_last(volumes) is volumes, "no images"


def test_strided_kernels_of_one_pixel_are_seen() -> None:
    """Wherever they stand, in rows or in columns."""
    kernels = {(1, 2): True, (1, (1, 2)): True, (1, 1): False, (3, 2): False, ((1, 3), 2): False}
    for (size, stride), seen in kernels.items():
        model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Conv2d(2, 2, size, stride)))
        assert has_strided_pixels(model) == seen, (size, stride)


CONVOLUTIONS: dict[str, tuple[nn.Module, bool]] = {
    "plain": (nn.Conv2d(2, 4, 3, stride=2, padding=1), True),
    "same": (nn.Conv2d(2, 4, 3, padding="same"), True),
    "same of an even size": (nn.Conv2d(2, 4, 2, padding="same"), False),
    "dilated": (nn.Conv2d(2, 4, 3, dilation=2), False),
    "circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), False),
    "orthogonal": (OrthogonalConv2d(2, 4, 1), False),
    "in one dimension": (nn.Conv1d(2, 4, 3), False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_which_convolutions_have_a_closed_form(name: str) -> None:
    """Where a rule takes any module the others are run."""
    layer, closed = CONVOLUTIONS[name]
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(4, 3))
    assert read(model, "R", (nn.Conv2d,)).units[0].is_closed == closed


def test_pooling_of_what_is_no_map_is_run() -> None:
    """As PyTorch runs it: of two axes a sample it takes the samples for channels."""
    model = nn.Sequential(nn.Unflatten(1, (4, 4)), nn.Linear(4, 4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    found, x = read(model, "R"), torch.randn(3, 16)
    clean = forward([unit.layer() for unit in found.units], activity(found.stem, x))
    torch.testing.assert_close(clean.scores, model(x))


def test_flattening_what_is_flat_is_named() -> None:
    """Where a rule needs closed forms, which begin at maps or at the input."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="layer '1': Flatten"):
        read(model, "R", (nn.Conv2d,), needs="layers")


def test_compiled_code_remembers_no_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it would be guarded by, and made anew for."""
    rule = FeedbackAlignment(plain())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    shapes, known = rule.activity_shapes(torch.Size((2, 6, 6))), len(rule._shapes)
    monkeypatch.undo()
    assert rule.activity_shapes(torch.Size((2, 6, 6))) == shapes
    assert len(rule._shapes) == known + 1
