"""The reader of models: units compute what their modules do, have the shapes that they say; others are named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated.activations import ACTIVATIONS, Activation
from prograde.accelerated.layers import Step, activity, forward
from prograde.accelerated.modules import MaxMin, OrthogonalConv2d, Rotation, ScaledAvgPool2d
from prograde.accelerated.rules import FeedbackAlignment
from prograde.accelerated.rules.cutting import has_strided_pixels, needs_default_order
from prograde.accelerated.rules.module_layer import ModuleStep
from prograde.accelerated.rules.units import (
    Chain,
    Unit,
    channels_last,
    check_batch,
    flat_input,
    read,
)
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
        assert needs_default_order([nn.ReLU(), model]) == seen, (size, stride)


def test_group_norms_that_learn_need_the_default_order() -> None:
    for norm, seen in (
        (nn.GroupNorm(2, 4), True),
        (nn.GroupNorm(2, 4, affine=False), False),
        (nn.BatchNorm2d(4), False),
    ):
        assert needs_default_order([nn.Sequential(nn.ReLU(), nn.Sequential(norm))]) == seen, norm


CONVOLUTIONS: dict[str, tuple[nn.Module, bool]] = {
    "plain": (nn.Conv2d(2, 4, 3, stride=2, padding=1), True),
    "same": (nn.Conv2d(2, 4, 3, padding="same"), True),
    "same of an even size": (nn.Conv2d(2, 4, 2, padding="same"), False),
    "same of an even side": (nn.Conv2d(2, 4, (3, 2), padding="same"), False),
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


class OwnLinear(nn.Linear):
    """A module with a forward pass of its own, which a rule can only run."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class OwnTanh(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Scaled(nn.Linear):
    """With a parameter that no closed form has."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


class ScaledNorm(nn.LayerNorm):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def convolution(**place: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **place)


NAME_OF = {id(activation): name for name, activation in ACTIVATIONS.items()}


def kind_of(step: Step) -> str:
    """A step's name; in brackets that of a module that is run."""
    if isinstance(step, ModuleStep):
        return f"({type(step.module).__name__})"
    return "leaky_relu" if type(step) is Activation and step not in ACTIVATIONS.values() else type(step).__name__


def told(found: Chain) -> str:
    """The stem, and the units: each its layer, or what is in one graph, its steps, and its outlet after ">"."""
    lines = [[kind_of(step) for step in found.stem]]
    for unit in found.units:
        layer = unit.layer()
        inside = [f"[{' '.join(type(module).__name__ for module in unit.inside)}]"] if unit.inside else []
        activation = NAME_OF.get(id(unit.activation)) or kind_of(unit.activation)
        after = [] if activation == "identity" else [activation]
        after += ["dropped"] * (unit.dropout is not None) + [kind_of(step) for step in unit.maxima]
        outlet = [">", *(kind_of(step) for step in unit.outlet)] if unit.outlet else []
        lines.append([f"{unit.name}:", *(inside or [type(layer).__name__]), *after, *outlet])
    return " | ".join(map(" ".join, lines))


ANY: dict[str, Any] = {"kinds": (nn.Conv2d,)}
FROM_X, TO_SCORES = {**ANY, "begins_with_x": True}, {**ANY, "ends_in_scores": True}
CLOSED = {**ANY, "needs": "closed forms"}
HELD = {"kinds": (OrthogonalConv2d,), "needs": "layers that can be held orthogonal"}

READ: list[tuple[dict[str, Any], Callable[[], list[nn.Module]], str]] = [
    (ANY, lambda: [nn.Flatten(), linear(), nn.Identity(), nn.Tanh(), linear()], "Flatten | 1: Dense tanh | 4: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.ReLU(), linear()], " | 0: [Linear Tanh ReLU] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), nn.ReLU(), linear()], " | 0: Dense relu dropped | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), nn.LeakyReLU(0.2), linear()], " | 0: Dense leaky_relu dropped | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), nn.Tanh(), linear()], " | 0: [Linear Dropout Tanh] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), nn.GELU(), linear()], " | 0: [Linear Dropout GELU] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), nn.SiLU(), linear()], " | 0: [Linear Dropout SiLU] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), MaxMin(), linear()], " | 0: [Linear Dropout MaxMin] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Dropout(), nn.Softplus(), linear()], " | 0: [Linear Dropout Softplus] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.Softplus(), linear()], " | 0: [Linear Tanh Softplus] | 3: Dense"),
    (ANY, lambda: [linear(), nn.Softplus(), nn.Dropout(), linear()], " | 0: Dense (Softplus) dropped | 3: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.Dropout(), nn.Dropout(), linear()],
     " | 0: Dense tanh dropped > (Dropout) | 4: Dense"),
    (ANY, lambda: [linear(), nn.GELU("tanh"), linear()], " | 0: Dense (GELU) | 2: Dense"),
    (ANY, lambda: [linear(), OwnTanh(), nn.Dropout(), linear()], " | 0: Dense (OwnTanh) dropped | 3: Dense"),
    (ANY, lambda: [linear(), Doubled(), nn.Tanh(), linear()], " | 0: [Linear Doubled] tanh | 3: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), Doubled(), linear()], " | 0: [Linear Tanh Doubled] | 3: Dense"),
    (ANY, lambda: [nn.Dropout(), linear(), nn.Tanh(), linear()], "(Dropout) | 1: Dense tanh | 3: Dense"),
    (ANY, lambda: [nn.Sigmoid(), Doubled(), linear()], "(Sigmoid) (Doubled) | 2: Dense"),
    (ANY, lambda: [nn.BatchNorm1d(4), nn.Sigmoid(), linear()], " | 2: [BatchNorm1d Sigmoid Linear]"),
    (ANY, lambda: [nn.Flatten(), nn.BatchNorm1d(4), linear(), linear()],
     "Flatten | 2: [BatchNorm1d Linear] | 3: Dense"),
    (ANY, lambda: [OwnLinear(4, 4), nn.Tanh(), linear()], " | 0: [OwnLinear] tanh | 2: Dense"),
    (ANY, lambda: [Scaled(4, 4), nn.Tanh(), linear()], " | 0: [Scaled] tanh | 2: Dense"),
    (ANY, lambda: [nn.utils.parametrizations.weight_norm(linear()), linear()], " | 0: [ParametrizedLinear] | 1: Dense"),
    (ANY, lambda: [linear(), ScaledNorm(4), nn.Tanh(), linear()], " | 0: [Linear ScaledNorm] tanh | 3: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.LayerNorm(4), nn.ReLU(), linear()],
     " | 0: [Linear Tanh LayerNorm] relu | 4: Dense"),
    (ANY, lambda: [linear(), nn.PReLU(), linear()], " | 0: [Linear PReLU] | 2: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.Flatten(), nn.ReLU(), linear()],
     " | 0: [Linear Tanh Flatten ReLU] | 4: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.Flatten(2), linear()], " | 0: Dense tanh > (Flatten) | 3: Dense"),
    (ANY, lambda: [linear(), nn.Unflatten(1, (2, 2)), nn.Flatten(), linear()],
     " | 0: Dense > (Unflatten) Flatten | 3: Dense"),
    (ANY, lambda: [linear(), nn.Tanh(), nn.MaxPool2d(2), linear()], " | 0: Dense tanh > (MaxPool2d) | 3: Dense"),
    (ANY, lambda: [convolution(), nn.Tanh(), nn.AvgPool2d(2), nn.MaxPool2d(2), nn.Flatten(), linear()],
     " | 0: Convolution tanh > AveragePool MaxPool Flatten | 5: Dense"),
    (ANY, lambda: [convolution(), nn.MaxPool2d(3, 2), nn.Flatten(), linear()],
     " | 0: Convolution > (MaxPool2d) Flatten | 3: Dense"),
    (ANY, lambda: [convolution(), nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), nn.MaxPool2d(2), nn.Flatten(), linear()],
     " | 0: Convolution > Flatten (Unflatten) (MaxPool2d) Flatten | 5: Dense"),
    (ANY, lambda: [nn.Flatten(), nn.Unflatten(1, (4, 1, 1)), convolution(), nn.MaxPool2d(2), *end()],
     "Flatten (Unflatten) | 2: Convolution > MaxPool Flatten | 5: Dense"),
    (ANY, lambda: [convolution(), convolution(), nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), nn.MaxPool2d(2), *end()],
     " | 0: Convolution | 1: Convolution > Flatten (Unflatten) (MaxPool2d) Flatten | 6: Dense"),
    (ANY, lambda: [nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 4)], " | 0: Dense > (Unflatten) | 2: Dense"),
    (ANY, lambda: [OwnLinear(4, 6), nn.Linear(3, 4)], " | 0: [OwnLinear] | 1: Dense"),
    (ANY, lambda: [convolution(), nn.MaxPool2d(2), nn.Tanh(), nn.Flatten(), linear()],
     " | 0: [Conv2d MaxPool2d Tanh] > Flatten | 4: Dense"),
    (ANY, lambda: [nn.MaxPool2d(2), nn.PixelUnshuffle(2), convolution(), *end()],
     "(MaxPool2d) (PixelUnshuffle) | 2: Convolution > Flatten | 4: Dense"),
    (ANY, lambda: [convolution(), nn.Dropout2d(), nn.Tanh(), *end()],
     " | 0: [Conv2d Dropout2d] tanh > Flatten | 4: Dense"),
    (ANY, lambda: [convolution(dilation=2), nn.Tanh(), *end()], " | 0: [Conv2d] tanh > Flatten | 3: Dense"),
    (ANY, lambda: [nn.Conv1d(4, 4, 1), nn.Tanh(), *end()], " | 0: [Conv1d] tanh > Flatten | 3: Dense"),
    (ANY, lambda: [convolution(), nn.Flatten(), OwnLinear(4, 4), nn.Flatten(), linear()],
     " | 0: Convolution > Flatten | 2: [OwnLinear] > Flatten | 4: Dense"),
    (FROM_X, lambda: [nn.Flatten(), linear(), linear()], "Flatten | 1: Dense | 2: Dense"),
    (FROM_X, lambda: [nn.Sigmoid(), linear(), linear()], " | 1: [Sigmoid Linear] | 2: Dense"),
    (FROM_X, lambda: [nn.Flatten(), nn.Sigmoid(), linear()], " | 2: [Flatten Sigmoid Linear]"),
    (FROM_X, lambda: [nn.Flatten(), nn.BatchNorm1d(4), linear()], " | 2: [Flatten BatchNorm1d Linear]"),
    (FROM_X, lambda: [nn.Flatten(), OwnLinear(4, 4), linear()], " | 1: [Flatten OwnLinear] | 2: Dense"),
    (FROM_X, lambda: [nn.Flatten(), linear(), OwnLinear(4, 4)], "Flatten | 1: Dense | 2: [OwnLinear]"),
    (FROM_X, lambda: [OwnLinear(4, 4), linear()], " | 0: [OwnLinear] | 1: Dense"),
    (TO_SCORES, lambda: [linear(), nn.Tanh(), linear(), nn.Flatten()], " | 0: Dense tanh | 2: [Linear Flatten]"),
    (TO_SCORES, lambda: [linear(), nn.Softmax(1), linear()], " | 0: [Linear Softmax] | 2: Dense"),
    (CLOSED, lambda: [nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)], " | 0: Dense | 1: Dense | 2: Dense"),
    (ANY, lambda: [nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)], " | 0: Dense | 1: Dense | 2: Dense"),
    (CLOSED, lambda: [nn.Flatten(), linear(), nn.Dropout(), nn.ReLU(), linear()],
     "Flatten | 1: Dense relu dropped | 4: Dense"),
    (CLOSED, lambda: [convolution(), nn.Tanh(), nn.Dropout(), nn.MaxPool2d(2), *end()],
     " | 0: Convolution tanh dropped > MaxPool Flatten | 5: Dense"),
    (HELD, lambda: [nn.PixelUnshuffle(1), OrthogonalConv2d(4, 4, 3), MaxMin(), nn.MaxPool2d(2),
                    Rotation(4, 0.1, nn.Tanh(), 2), ScaledAvgPool2d(2), nn.Flatten(), Rotation(4, 0.1), linear()],
     "Unshuffle | 1: CircularConvolution maxmin Maxima > ScaledAveragePool | 4: Rotation > ScaledAveragePool Flatten "
     "| 7: Rotation | 8: Dense"),
]  # fmt: skip


def end() -> list[nn.Module]:
    return [nn.Flatten(), linear()]


@pytest.mark.parametrize(("options", "layers", "expected"), READ)
def test_how_layers_are_read(options: dict[str, Any], layers: Callable[[], list[nn.Module]], expected: str) -> None:
    """What has a closed form, what is run, and what has to be in one graph; no module but Identity is left out."""
    made = layers()
    found = read(nn.Sequential(*made), "R", **options)
    assert told(found) == expected
    of_units = [part for unit in found.units for part in unit.parts]
    assert of_units == [m for m in made if type(m) is not nn.Identity][len(found.stem) :], "all of them, in order"


TOLD: dict[str, tuple[Callable[[], list[nn.Module]], dict[str, Any]]] = {
    "Linear": (lambda: [nn.Linear(4, 6)],
               {"width": 6, "has_maps": False, "gives_channels_first": False, "gives_scores": True, "is_closed": True}),
    "activated": (lambda: [nn.Linear(4, 6), nn.Tanh()], {"gives_scores": False, "is_linear": False, "is_closed": True}),
    "Conv2d": (lambda: [nn.Conv2d(4, 6, 1)],
               {"width": 6, "has_maps": True, "gives_channels_first": True, "gives_scores": False, "is_closed": True}),
    "dilated": (lambda: [nn.Conv2d(4, 6, 3, dilation=2)],
                {"width": 6, "has_maps": True, "gives_channels_first": True, "is_closed": False}),
    "Conv1d": (lambda: [nn.Conv1d(4, 6, 1)], {"width": 6, "has_maps": False, "gives_channels_first": True}),
    "Bilinear": (lambda: [nn.Bilinear(4, 4, 6)], {"width": 0, "has_maps": False, "gives_channels_first": False}),
    "tokens of a Conv2d": (lambda: [nn.Sequential(nn.Conv2d(4, 6, 1), nn.Flatten(2), nn.Sigmoid()), ScaledNorm(4)],
                           {"width": 6, "has_maps": True, "gives_channels_first": True, "gives_scores": False}),
    "two in one graph": (lambda: [Residual(nn.Conv2d(4, 6, 1), nn.Linear(4, 5))],
                         {"width": 5, "has_maps": True, "gives_channels_first": False, "gives_scores": False}),
    "a Linear of its own": (lambda: [OwnLinear(4, 6)],
                            {"width": 6, "gives_channels_first": False, "gives_scores": True, "is_closed": False}),
    "normalised": (lambda: [OwnLinear(4, 6), ScaledNorm(6)], {"width": 6, "gives_scores": False}),
    "pooled by a module": (lambda: [nn.Linear(4, 6), nn.MaxPool2d(2)], {"gives_scores": True, "is_closed": False}),
}  # fmt: skip


class Residual(nn.Sequential):
    """Whose forward pass is its own, so that it is one leaf."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


@pytest.mark.parametrize("name", TOLD)
def test_what_a_unit_tells(name: str) -> None:
    make, expected = TOLD[name]
    unit = read(nn.Sequential(*make(), OwnLinear(4, 4)), "R", **ANY).units[0]
    assert {key: getattr(unit, key) for key in expected} == expected
    assert unit.run == ([] if unit.is_closed else [*unit.inside, *(step.module for step in unit.outlet)]), "what is run"
    assert unit.parameters == list(nn.Sequential(*unit.parts).parameters()), "its parameters"


def test_a_layer_with_a_closed_form_tells_whether_it_gives_maps() -> None:
    layers = {nn.Linear(2, 4): False, nn.Conv2d(2, 4, 3): True, OrthogonalConv2d(4, 4, 3): True}
    for module, has_maps in layers.items():
        unit = Unit("0", module)  # type: ignore[arg-type]
        assert (unit.has_maps, unit.width) == (has_maps, 4), module


def test_what_is_held_has_its_name_in_the_model() -> None:
    model = nn.Sequential(OrthogonalConv2d(4, 4, 3), *end()[:1], Rotation(4, 0.1), linear())
    found = [name for unit in read(model, "R", **HELD).units for name in unit.held]
    bases = [f"0.bases.{i}" for i in range(len(model[0].bases))]
    assert found[: 1 + len(bases)] == ["0.mixing", *bases]
    assert found[-2:] == ["2.orthogonal", "3"]
    for unit in read(model, "R", **HELD).units:
        for name, (module, key) in unit.held.items():
            held = getattr(module, key, None) if isinstance(module, nn.Module) else None
            held = module[int(key)] if held is None else held  # type: ignore[index]
            assert any(held is p for path, p in model.named_parameters() if path.startswith(name)), name
    assert read(nn.Sequential(OwnLinear(4, 4), linear()), "R", **ANY).units[0].held == {}, "what is run"


PADDED = [("same", 3), ("same", (1, 5)), ("valid", 3), (0, 3), (1, 3), ((2, 1), 3)]


@pytest.mark.parametrize(("padding", "size"), PADDED)
def test_convolutions_are_padded_as_their_modules(padding: Any, size: Any) -> None:
    layer, x = nn.Conv2d(2, 3, size, padding=padding), torch.randn(2, 2, 7, 6)
    unit = read(nn.Sequential(layer, *end()), "R", **ANY).units[0]
    assert unit.is_closed
    torch.testing.assert_close(unit.layer().value(x), layer(x))


def test_a_unit_of_one_graph_has_its_activation() -> None:
    """And, after it, its mask."""
    layer, x = OwnLinear(4, 6), torch.randn(3, 4)
    unit, mask = read(nn.Sequential(layer, nn.ReLU(), nn.Dropout(), linear()), "R").units[0], torch.ones(3, 6).tril()
    made = unit.layer(mask)
    torch.testing.assert_close(activity(made.steps, made.value(x)), mask * layer(x).relu())
    made = unit.layer()
    torch.testing.assert_close(activity(made.steps, made.value(x)), layer(x).relu())


def test_shapes_of_positions_and_of_one_layer() -> None:
    """Features are last, and a chain may be one layer long."""
    found = read(nn.Sequential(nn.Linear(4, 6)), "R")
    assert found.activity_shapes(torch.Size((4,))) == [(6,)]
    assert found.activity_shapes(torch.Size((3, 4))) == [(3, 6)]
    with pytest.raises(ValueError, match=r"x: samples of shape \(4, 3\) do not pass layer '0' \(takes 4 features, but"):
        found.activity_shapes(torch.Size((4, 3)))


def test_a_stem_runs_where_any_of_its_modules_does() -> None:
    before: list[tuple[list[nn.Module], bool]] = [
        ([], False), ([nn.Flatten()], False), ([nn.Sigmoid()], True), ([nn.Flatten(), nn.Sigmoid()], True),
    ]  # fmt: skip
    for layers, runs in before:
        assert read(nn.Sequential(*layers, linear()), "R").stem_runs == runs, layers


def test_channels_of_images_are_those_before_unshuffling() -> None:
    layers = nn.PixelUnshuffle(2), nn.PixelUnshuffle(3), OrthogonalConv2d(72, 4, 1), *end()
    assert read(nn.Sequential(*layers), "R", **HELD).image_channels == 2
    assert read(nn.Sequential(nn.Conv2d(3, 4, 1), *end()), "R", **ANY).image_channels == 3


def test_a_batch_is_flattened_where_it_fits() -> None:
    """One sample too."""
    weight = torch.zeros(3, 4)
    for shape in ((1, 4), (2, 4), (2, 2, 2), (5, 4, 1)):
        assert torch.equal(flat_input(x := torch.randn(shape), weight), x.flatten(1)), shape
    for shape in ((4,), (0, 4), (0, 2, 4), ()):
        with pytest.raises(ValueError, match=r"x: shape \(.*\), expected \(batch, ...\) with at least one sample"):
            check_batch(torch.zeros(shape))
    for x, said in (
        (torch.zeros(4, 3), "x: 3 features a sample, expected 4"),
        (torch.zeros(2, 2, 3), "x: 6 features a sample, expected 4"),
        (torch.zeros(2, 4).double(), "x: dtype torch.float64, expected torch.float32"),
        (torch.zeros(2, 4, device="meta"), "x: on meta, expected cpu"),
    ):
        with pytest.raises(ValueError, match=said):
            flat_input(x, weight)
