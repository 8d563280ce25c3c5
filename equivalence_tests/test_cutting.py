"""A model as a line of parts: what the parts give, where units begin, and what cannot be read so."""

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prograde.accelerated.rules import Backprop, DirectFeedbackAlignment, Foton, MonoForward
from prograde.accelerated.rules.cutting import Part, check_same, is_plain, parts
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import refusal

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


class Functional(nn.Module):
    """As many write a convolutional network: what learns as modules, all else as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc1 = nn.Linear(24, 9)
        self.fc2 = nn.Linear(9, 3)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.adaptive_avg_pool2d(functional.leaky_relu(self.conv2(x), 0.2), 2)
        x = x.view(x.size(0), -1)
        x = functional.dropout(torch.tanh(self.fc1(x)), 0.3, self.training)
        x = self.fc2(x)
        return x if scale is None else x * scale


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.conv(x)))


class Residual(nn.Module):
    """With blocks of its own, and an addition around the last of them that is no block's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.last = Block(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        x = x + self.last(x)
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """With positions by a table and by a buffer, a class token, attention, and a head on one token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(7, 8), nn.Embedding(9, 8)
        self.register_buffer("waves", torch.linspace(0, 1, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        layers = [nn.TransformerEncoderLayer(8, 2, 11, 0.1, batch_first=True) for _ in range(2)]
        self.layers, self.norm = nn.ModuleList(layers), nn.LayerNorm(8)
        self.gru = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position(torch.arange(x.shape[1], device=x.device))
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), h + self.waves], dim=1)
        for layer in self.layers:
            h = layer(h)
        h, _ = self.gru(self.norm(h))
        return self.head(h[:, 0])


def images() -> Tensor:
    return torch.randn(5, 1, 8, 8, generator=seeded(1))


def tokens() -> Tensor:
    return torch.randint(7, (5, 9), generator=seeded(1))


def functional_units(model: Any) -> list[nn.Module]:
    """With modules made for what the model computes by functions; dropout is not in them."""
    return [
        nn.Sequential(model.conv1, model.norm1, nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(model.conv2, nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Sequential(model.fc1, nn.Tanh()),
        model.fc2,
    ]


def residual_units(model: Any) -> list[nn.Module]:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = model.last

        def forward(self, x: Tensor) -> Tensor:
            return x + self.block(x)

    return [model.stem, *model.layer1, Added(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc)]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], list[str], list[str]]] = {
    "functions": (Functional, images, ["conv1", "conv2", "fc1", "fc2"],
                  ["conv1", "conv2", "fc1", "fc2"]),
    "blocks": (Residual, images, ["stem", "layer1.0", "layer1.1", "last", "fc"],
               ["stem.0", "layer1.0", "layer1.1", "last", "fc"]),
    "a block of blocks": (Residual, images, ["stem", "layer1", "last"], ["stem.0", "layer1.0", "last"]),
    "tokens": (Tokens, tokens, ["embedding", "layers.0", "layers.1", "gru", "head"],
               ["embedding", "layers.0", "layers.1", "gru", "head"]),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor, list[str], list[str]]:
    make, example, names, begins = MODELS[name]
    torch.manual_seed(0)
    return make(), example(), names, begins


def read(model: nn.Module, units: Any = None, example: Tensor | None = None) -> list[Part]:
    found: list[Part] = []
    message = refusal(lambda: found.extend(parts(model, units, example)))
    assert message == "accepted", message
    return found


def run(found: Sequence[Part], x: Tensor) -> Tensor:
    for part in found:
        x = part.module(x)
    return x


def kinds(found: Sequence[Part]) -> list[str]:
    return [type(part.module).__name__ for part in found]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_the_model(name: str, training: bool) -> None:
    """In either mode, gradients and buffers too; a part has the very modules and parameters of the model."""
    model, x, names, begins = build(name)
    found = read(model, names, x)
    assert [part.name for part in found if part.begins] == begins, "where units begin"
    other = copy.deepcopy(model).train(training)
    model.train(training)
    torch.manual_seed(3)
    given = run(found, x)
    torch.manual_seed(3)
    expected = other(x)
    assert torch.equal(given, expected), f"{name}: another result"
    given.square().sum().backward()
    expected.square().sum().backward()
    for (path, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None, f"{name}: nothing for {path}"
        assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-6), f"{name}: another gradient of {path}"
    for (path, ours), theirs in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(ours, theirs), f"{name}: another {path}"
    held = {p for part in found for p in part.module.parameters()}
    assert held == set(model.parameters()), "parameters keep their identity"


@pytest.mark.parametrize(("name", "units"), [("functions", functional_units), ("blocks", residual_units)])
def test_units_as_modules(name: str, units: Callable[[nn.Module], list[nn.Module]]) -> None:
    model, x, _, begins = build(name)
    model.eval()
    found = read(model, units(model))
    assert len([part for part in found if part.begins]) == len(begins), "where units begin"
    assert torch.allclose(run(found, x), model(x), rtol=1e-5, atol=1e-6)
    if name == "blocks":
        read(model, units(model), x)
        assert [part.name for part in found][:4] == ["stem.0", "stem.1", "stem.2", "layer1.0"], "their paths"
        assert [part.begins for part in found][-3:] == [False, False, True], "at the first leaf with parameters"
    else:
        assert [part.name for part in found][:4] == ["conv1", "norm1", "units[0].2", "units[0].3"], (
            "of the model, or not"
        )


def test_functions_are_seen_as_modules() -> None:
    model, x, names, _ = build("functions")
    found = read(model, names, x)
    assert kinds(found) == [
        "Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Conv2d", "LeakyReLU", "AdaptiveAvgPool2d", "Flatten", "Linear",
        "Tanh", "FunctionalDropout", "Linear",
    ]  # fmt: skip
    by_kind = dict(zip(kinds(found), [part.module for part in found], strict=True))
    pool: Any = by_kind["MaxPool2d"]
    assert (pool.kernel_size, pool.stride, by_kind["LeakyReLU"].negative_slope) == (2, 2, 0.2), "their settings"
    dropout: Any = by_kind["FunctionalDropout"]
    assert isinstance(dropout, nn.Dropout)
    assert (dropout.p, dropout.training, model.eval().training, dropout.training) == (0.3, True, False, False)
    assert found[1] == Part("norm1", model.get_submodule("norm1"), False), "modules between units, by themselves"
    assert found[2].name == "conv1:relu"


@pytest.mark.parametrize("shape", [
    lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], -1), lambda x: x.view((x.size()[0], -1)),
    lambda x: torch.reshape(x, (x.shape[0], -1)), lambda x: x.flatten(1), lambda x: torch.flatten(x, start_dim=1),
])  # fmt: skip
def test_flattening_by_any_name(shape: Callable[[Tensor], Tensor]) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Linear(72, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(shape(self.conv(x)))

    model = Model()
    assert kinds(read(model, ["conv", "fc"], images())) == ["Conv2d", "Flatten", "Linear"]


@pytest.mark.parametrize("shape", [
    lambda x: x.view(x.size(0), -1, 1), lambda x: x.reshape(x.shape[0], x.shape[1], -1), lambda x: x.view(-1, 72),
    lambda x: x.view(5, -1), lambda x: x.reshape((5, 72)), lambda x: torch.reshape(input=x, shape=(5, 72)),
    lambda x: x.view(2 * x.size(0), -1), lambda x: x.view(x.size(1), -1), lambda x: x.view((x.size()[1], -1)),
    lambda x: x.expand(x.size(0), -1, -1, -1), lambda x: x.flatten(), lambda x: x.transpose(0, 1),
    lambda x: (2 * x).view(x.size(0), -1), lambda x: torch.flatten(input=x, start_dim=1),
])  # fmt: skip
def test_what_is_no_flattening_is_computed(shape: Callable[[Tensor], Tensor]) -> None:
    """By the model's own functions, with the shape that these give."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(1, 2, 3), nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(shape(self.conv(x)))

    model, x = Model(), images()
    found = read(model, ["conv", "last"], x)
    assert "Flatten" not in kinds(found)
    assert torch.equal(run(found, x), model(x))


def test_a_function_of_two_values_is_no_module() -> None:
    """Nor a module that is called by the name of its argument, or with an option."""

    class Optional(nn.Linear):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return scale * super().forward(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pooled, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 1), Optional(27, 2)
            self.named = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            h = self.pooled(functional.adaptive_avg_pool2d(h, h.shape[2] // 2))
            return self.last(self.named(input=h.flatten(1)), 2.0)

    model, x = Model(), images()
    found = read(model, ["conv", "pooled", "last"], x)
    assert kinds(found) == ["Conv2d", "Computed", "Conv2d", "Flatten", "Computed", "Computed"]
    assert torch.equal(run(found, x), model(x))


def test_values_that_are_used_twice_stay_in_one_part() -> None:
    """What is computed from one block's output and around the next is of this next block's part."""
    model, x, names, _ = build("blocks")
    found = {part.name: part.module for part in read(model, names, x)}
    assert model.get_submodule("last") in set(found["last"].modules()), "the block itself"
    with torch.no_grad():
        h = torch.randn(5, 4, 8, 8)
        model.eval()
        assert torch.equal(found["last"](h), h + model.get_submodule("last")(h)), "the addition around a block"


def test_buffers_stay_those_of_the_model() -> None:
    """Which gets other tensors for them when it is converted."""
    model, x, names, _ = build("tokens")
    found = read(model, names, x)
    model.eval().double().get_buffer("waves").mul_(2)
    assert torch.equal(run(found, x), model(x)), "the buffers of the model"


def test_a_copy_has_parts_of_its_own() -> None:
    model, x, names, _ = build("tokens")
    both = model, read(model, names)
    for first, second in (copy.deepcopy(both), pickle.loads(pickle.dumps(both))):
        assert {p for part in second for p in part.module.parameters()} == set(first.parameters())
        first.eval().double().get_buffer("waves").mul_(2)
        assert torch.equal(run(second, x), first(x)), "the buffers of the copy"


def test_hooks_are_called_in_a_part_and_not_by_a_check() -> None:
    model, x, names, _ = build("blocks")
    seen: list[str] = []
    for path in ("stem.0", "layer1.0", "last.conv"):
        model.get_submodule(path).register_forward_hook(lambda m, given, y, path=path: seen.append(path))
    found = read(model, names, x)
    assert not seen, "hooks called while a model is read"
    run(found, x)
    assert seen == ["stem.0", "layer1.0", "last.conv"]


def test_reading_leaves_no_trace() -> None:
    """Modes, buffers and the state of the generator are what they were."""
    model, x, names, _ = build("functions")
    model.get_submodule("norm1").eval()
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    drawn = torch.get_rng_state()
    read(model, names, x)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True)), "buffers"
    assert modes == [module.training for module in model.modules()], "modes"
    assert torch.equal(drawn, torch.get_rng_state()), "draws"


def test_a_sequential_begins_a_unit_at_each_layer() -> None:
    inner = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), inner, nn.PReLU(), nn.Linear(4, 2))
    found = read(model)
    assert [(part.name, part.begins) for part in found] == [
        ("0", False), ("1", True), ("2.0", False), ("2.1", False), ("3", False), ("4", True),
    ]  # fmt: skip
    named = read(model, ["1", "4"], torch.randn(5, 3))
    assert [part.begins for part in named] == [False, True, False, False, False, True], "as named"


def test_frozen_parts_may_come_before_the_first_unit() -> None:
    model, x, _, _ = build("blocks")
    for p in (*model.stem.parameters(), *model.layer1.parameters()):  # type: ignore[union-attr]
        p.requires_grad = False
    found = read(model, ["last", "fc"], x)
    stem = ["stem.0", "stem.1", "stem.2", "layer1.0", "layer1.1"]
    assert [part.name for part in found if not part.begins] == [*stem, "last:mean"]


def test_tensors_that_the_model_makes_are_part_of_what_is_computed() -> None:
    class Model(Constant):
        def forward(self, x: Tensor) -> Any:
            return self.a(x + torch.arange(8.0))

    class Noisy(Constant):
        def forward(self, x: Tensor) -> Any:
            return self.a(x + torch.randn(8))

    x = torch.randn(5, 8)
    read(Model(), ["a"], x)
    said = f"model: its forward pass draws random numbers itself; {AS_MODULES}"
    assert refusal(lambda: parts(Noisy(), ["a"], x)) == said, "noise of one pass"


def test_units_that_the_model_runs_without_gradients_are_frozen() -> None:
    class Model(Tied):
        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                h = self.a(x)
            return self.b(h)

    model, x = Model(), torch.randn(3, 8)
    said = "units: 'a' runs under no_grad in the model, expected a unit that learns; freeze it"
    assert refusal(lambda: parts(model, ["a", "b"], x)).startswith(said), "trained against the model"
    model.a.weight.requires_grad_(False)
    assert refusal(lambda: parts(model, ["a", "b"], x)).startswith(said), "its bias"
    model.a.requires_grad_(False)
    read(model, ["a", "b"], x)


def test_a_unit_has_any_of_its_names() -> None:
    """Of a module that stands in the model twice."""

    class Model(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    for name in ("a", "first"):
        model, x = Model(), torch.randn(5, 8)
        assert torch.equal(run(read(model, [name, "b"], x), x), model(x)), name


@pytest.mark.parametrize("training", [False, True])
def test_dropout_around_which_something_goes_is_the_callers(training: bool) -> None:
    """In the mode that the model has at the time."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h + functional.dropout(h, 0.5, self.training))

    model, x = Model(), torch.randn(5, 8)
    found = read(model, ["a", "b"], x)
    assert kinds(found) == ["Linear", "Computed", "Linear"]
    model.train(training)
    torch.manual_seed(1)
    given = run(found, x)
    torch.manual_seed(1)
    assert torch.equal(given, model(x))
    assert torch.equal(run(found, x), model(x)) != training, "drawn anew"


def test_a_constant_dropout_stays_one() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(functional.dropout(self.a(x), 0.5))

    model = Model().eval()
    x = torch.randn(5, 8)
    found = read(model, ["a", "b"], x)
    torch.manual_seed(1)
    given = run(found, x)
    torch.manual_seed(1)
    assert torch.equal(given, model(x)), "dropout that is on in evaluation mode too"


class Branching(Functional):
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class ByMode(Functional):
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        return super().forward(x if self.training else -x)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(self.b(self.a(x))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(functional.linear(torch.tanh(self.a(x)), self.a.weight))


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.c(self.b(h).relu() + h)


class Tuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        return self.a(x), x


class ByName(Tuple):
    def forward(self, x: Tensor) -> Any:
        return {"scores": self.a(x), "x": x}


class Constant(Tuple):
    def forward(self, x: Tensor) -> Any:
        self.a(x)
        return self.a.weight


NAMES = ["conv1", "conv2", "fc1", "fc2"]
ORDER = "in the order in which they run"
SCORES_ALONE = "expected a tensor; put the model into a module that gives its scores alone"
AS_MODULES = f"give the units as modules, units=[model.a, model.b, ...], {ORDER}"

REFUSALS: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "no units": (Functional, None, "model: Functional; of a model that is no nn.Sequential Foton needs to know the "
                 f"units: units=[model.a, model.b, ...] {ORDER}, or their names"),
    "one string": (Functional, "conv1", "units: 'conv1', expected a list of modules, or of their names in the model"),
    "none": (Functional, [], "units: [], expected a list of modules, or of their names in the model"),
    "names and modules": (Functional, lambda m: ["conv1", m.conv2],
                          "units: str, Conv2d, expected modules alone, or names alone"),
    "numbers": (Functional, [1, 2], "units: int, expected modules alone, or names alone"),
    "unknown": (Functional, ["conv1", "conv3"],
                "units: 'conv3' is no module of the model; did you mean 'conv2' or 'conv1'?"),
    "the model by no name": (Functional, [""], "units: '' is no module of the model, expected names of its modules"),
    "named twice": (Functional, [*NAMES, "fc1"], "units: 'fc1' is named twice, expected each unit once"),
    "module twice": (Functional, lambda m: [m.conv1, m.conv1],
                     "units: 'conv1' is named twice, expected each unit once"),
    "overlapping": (Residual, ["layer1.0", "layer1"],
                    "units: 'layer1' and 'layer1.0' overlap, expected units apart from one another"),
    "a shared block": (Residual, lambda m: [nn.Sequential(m.stem, m.last), m.last],
                       "units: 'last' and 'units[0]' overlap, expected units apart from one another"),
    "another model's": (Functional, lambda m: [m.conv1, nn.Linear(2, 2)],
                        "units: 'units[1]' is no part of the model, which has not its weight"),
    "order": (Functional, ["conv2", "conv1", "fc1", "fc2"],
              "units: 'conv1' runs before 'conv2', expected the order in which they run"),
    "runs twice": (Twice, ["a", "b", "c"],
                   "units: 'a' runs 2 times, expected units that run once; put all of its calls into one module, and "
                   "name that"),
    "does not run": (Tied, lambda m: m.register_module("c", nn.Linear(2, 2)) or ["a", "b", "c"],
                     "units: 'c' is not called on what comes from the input, expected units that run once; "
                     f"{AS_MODULES}"),
    "tied": (Tied, ["a", "b"], "accepted"),
    "weights of two units": (Tied, lambda m: setattr(m.b, "weight", m.a.weight) or [m.a, m.b],
                             "layer 'b': shares a parameter with layer 'a'; Foton needs each unit's own"),
    "parameters of no unit": (Functional, lambda m: [m.conv1, m.fc1, m.fc2],
                              "units: norm1.weight, norm1.bias, conv2.weight, conv2.bias of the model in none of them, "
                              "expected units that hold all parameters but frozen ones; add the module to the units"),
    "few parameters of no unit": (Functional, lambda m: [nn.Sequential(m.conv1, m.norm1), m.conv2, m.fc1],
                                  "units: fc2.weight, fc2.bias of the model in none of them, expected units that hold "
                                  "all parameters but frozen ones; add the module to the units"),
    "more of them": (Functional, lambda m: [m.conv1, m.conv2, m.fc1],
                     "units: norm1.weight, norm1.bias, fc2.weight, fc2.bias of the model in none of them, expected "
                     "units that hold all parameters but frozen ones; add the module to the units"),
    "many of them": (Functional, lambda m: [m.conv1, m.fc2],
                     "units: norm1.weight, norm1.bias, conv2.weight, conv2.bias and 2 more of the model in none of "
                     "them, expected units that hold all parameters but frozen ones; add the module to the units"),
    "parameters before the first": (Functional, ["conv2", "fc1", "fc2"],
                                    "units: conv1.weight, conv1.bias, norm1.weight, norm1.bias of the model in none of "
                                    "them, expected units that hold all parameters but frozen ones; add the module to "
                                    "the units"),
    "nothing to learn": (lambda: Functional().requires_grad_(False), lambda m: [nn.ReLU()],
                         "units: no parameters in them, expected one unit at least that can learn"),
    "two values": (Forked, ["a", "b", "c"], "accepted"),
    "cut in a branch": (Residual, ["stem", "layer1.0.conv", "layer1.0.norm", "layer1.1", "last", "fc"],
                        "units: 'stem', 'layer1.0.conv' all go into what begins with 'layer1.0.norm', expected one "
                        "tensor; name a module around them as one unit, or cut elsewhere"),
    "data": (Branching, NAMES, "model: its forward pass cannot be traced (symbolically traced variables cannot be "
             f"used as inputs to control flow); {AS_MODULES}"),
    "mode": (ByMode, NAMES, "model: its forward pass computes by other functions in evaluation than in training mode; "
             f"{AS_MODULES}"),
    "several outputs": (Tuple, ["a"], f"model: gives a tuple, {SCORES_ALONE}"),
    "outputs by name": (ByName, ["a"], f"model: gives a dict, {SCORES_ALONE}"),
    "not from the input": (Constant, ["a"],
                           "model: gives model_a_weight, expected a tensor that is computed from its input"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), ["0"],
             "model: its 0.weight is not there yet; call the model once, then build Foton"),
    "compiled": (lambda: torch.compile(Functional(), backend="eager"), NAMES,
                 "model: compiled; Foton runs its units apart, pass the uncompiled model"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(name: str) -> None:
    make, units, message = REFUSALS[name]
    model = make()
    given = units(model) if callable(units) else units
    assert refusal(lambda: parts(model, given, rule="Foton")) == message


def test_units_that_are_not_the_model() -> None:
    """Whatever differs from it, in whichever mode, is seen on an example."""
    model, x, _, _ = build("functions")
    found = functional_units(model)
    missing = refusal(lambda: parts(model, found, x))
    assert missing.startswith("units: one after another they give another result than the model, "), missing
    assert ", in training mode; expected all that the model computes" in missing, "dropout forgotten"
    found[2] = nn.Sequential(model.get_submodule("fc1"), nn.Tanh(), nn.Dropout(0.3))
    other = refusal(lambda: parts(model, found, x))
    assert ", in evaluation mode; expected all that" in other, "dropout that is not of the model"
    found[2] = nn.Sequential(model.get_submodule("fc1"), nn.ReLU())
    assert ", in evaluation mode; expected all that" in refusal(lambda: parts(model, found, x)), "another activation"
    rule, y = MonoForward(model, units=found), torch.zeros(len(x), dtype=torch.long)
    assert ", in evaluation mode; expected all that" in refusal(lambda: rule.assign_credit(x, y)), "at the first batch"
    order = refusal(lambda: parts(model, found[::-1], x))
    assert order.startswith("units: 'fc2' does not take what comes before it (mat1 and mat2 shapes"), order
    shape = refusal(lambda: parts(model, [*found, nn.Unflatten(1, (1, 3))], x))
    assert shape == (
        "units: one after another they give (5, 1, 3), not (5, 3), in evaluation mode; expected all that the model "
        "computes, in the order in which it does"
    )


@pytest.mark.parametrize("rule", [Backprop, DirectFeedbackAlignment])
def test_a_model_may_view_what_it_convolves(rule: Any) -> None:
    """x.view(len(x), -1) refuses maps whose channels come last, as the layers alone are given them."""
    model, x, names, _ = build("functions")
    built, y = rule(model, units=names, example=x), torch.zeros(len(x), dtype=torch.long)
    built.assign_credit(x, y)
    torch.testing.assert_close(built.eval()(x), model(x))


def test_zeros_hide_no_difference() -> None:
    """As people begin: an output layer of zeros, a gain of zeros at the end of each residual branch."""
    model = Functional()
    for p in model.fc2.parameters():
        nn.init.zeros_(p)
    x = torch.randn(3, 1, 8, 8, generator=seeded(0))
    convolutions = nn.Sequential(model.conv1, model.norm1, nn.ReLU(), nn.MaxPool2d(2))
    rest = nn.Sequential(model.conv2, nn.LeakyReLU(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    dense = nn.Sequential(model.fc1, nn.Tanh())
    units = [convolutions, rest, dense, model.fc2]
    model.eval()
    said = refusal(lambda: parts(model, [*units[:2], nn.Sequential(model.fc1, nn.ReLU()), model.fc2], x))
    assert "they give another result than the model" in said, "hidden by zeros"
    assert not any(p.any() for p in model.fc2.parameters()), "zeros again"


def test_differences_are_beside_what_the_model_gives() -> None:
    """Small scores hide none, and of large ones rounding is none."""

    class Model(nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.a, self.size = nn.Linear(8, 3), size

        def forward(self, x: Tensor) -> Tensor:
            return self.size * self.a(x)

    class Another(Model):
        def forward(self, x: Tensor) -> Tensor:
            return self.size * (self.a(x) * 1.1) / 1.1

    x = torch.randn(5, 8)
    none = Model(0.0)
    assert refusal(lambda: check_same(none, [Part("a", none, True)], x)) == "accepted", "of nothing nothing differs"
    for size in (1e-9, 1e9):
        model, other, twice = Model(size), Another(size), Another(2 * size)
        other.a = twice.a = model.a
        assert refusal(lambda: check_same(model, [Part("a", other, True)], x)) == "accepted", size  # noqa: B023
        for power, accepted in ((0.75, True), (0.25, False)):
            near = Model(size * (1 + torch.finfo(x.dtype).eps ** power))
            near.a = model.a
            said = refusal(lambda: check_same(model, [Part("a", near, True)], x))  # noqa: B023
            assert (said == "accepted") == accepted, "the digits that rounding may take are half of them"
        said = refusal(lambda: check_same(model, [Part("a", twice, True)], x))  # noqa: B023
        assert said.startswith("units: one after another they give another result than the model, "), size


def test_examples_that_do_not_pass() -> None:
    model, x, names, _ = build("functions")
    found = read(model, names)
    assert refusal(lambda: check_same(model, found, x)) == "accepted"
    assert refusal(lambda: check_same(model, found, x[:0])).startswith("example: shape (0, 1, 8, 8), expected a batch")
    assert refusal(lambda: check_same(model, found, x[0, 0, 0, 0])) == (
        "example: shape (), expected a batch as the model takes it"
    )
    table = nn.Embedding(5, 3)
    assert refusal(lambda: check_same(table, [Part("table", table, True)], torch.arange(4))) == "accepted", "tokens"
    assert refusal(lambda: check_same(model, found, [1])) == "example: a list, expected a batch as the model takes it"  # type: ignore[arg-type]
    message = refusal(lambda: parts(model, names, x[:, :, :3]))
    assert message.startswith("example: shape (5, 1, 3, 8) does not pass the model ("), message
    message = refusal(lambda: parts(nn.Sequential(nn.GRU(3, 4)), example=torch.randn(5, 2, 3)))
    assert message == f"model: gives a tuple, {SCORES_ALONE}"
    assert refusal(lambda: Backprop(ByName()).assign_credit(torch.ones(2, 8), torch.ones(2, dtype=torch.int64))) == (
        f"model: gives a dict, {SCORES_ALONE}"
    )


def test_compiled_modules_are_units() -> None:
    """They have no truth value: len() is asked of what was compiled."""
    model, x = Tied(), torch.randn(3, 8)
    model.b = torch.compile(model.b, backend="eager")
    assert refusal(lambda: parts(model, ["a", "b"], x)) == "accepted", "compiled"


def test_a_lazy_layer_among_others_is_named_before_an_example_is_run() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(ValueError, match="layer '2': its parameters are not there yet"):
        Foton(model, example=torch.randn(2, 4))


def test_what_computes_as_its_kind() -> None:
    """A class of one's own with neither a forward pass nor a call of its own does."""

    class Named(nn.ReLU):
        """The same."""

    class Forward(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    class Called(nn.ReLU):
        def __call__(self, x: Tensor) -> Tensor:
            return 2 * x

    changed = nn.ReLU()
    changed.forward = lambda x: 2 * x  # type: ignore[method-assign]
    rows = {nn.ReLU(): True, Named(): True, Forward(): False, Called(): False, changed: False, nn.Tanh(): False}
    for module, plain in rows.items():
        assert is_plain(module, nn.ReLU) == plain, module
