"""Weights held orthogonal without a rule: by any optimizer, in any module, however the model is kept and moved."""

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from prograde.accelerated.orthogonality import polar_factor
from prograde.accelerated.rules import (
    DirectFeedbackAlignment,
    HeldOrthogonal,
    Orthogonality,
    orthogonal,
    orthogonality,
)
from prograde.equivalence_tests.rule_examples import refusal
from prograde.equivalence_tests.sides import TwinSide

pytestmark = [pytest.mark.places_itself, pytest.mark.usefixtures("ours_only")]
TOLERANCE = 5e-3
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1),
}


@pytest.fixture(autouse=True)
def _seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(orthogonality, "NARROW", 64)  # what is done for wide weights, on some that take no time


def defect(weight: torch.Tensor, blocks: int = 1) -> float:
    """The largest entry of |G - I|, each group of rows by itself; written anew for the tests."""
    found = []
    for rows in weight.detach().cpu().double().reshape(blocks, len(weight) // blocks, -1):
        g = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        found.append((g - torch.eye(len(g))).abs().max().item())
    return max(found)


class Mean(nn.Module):
    """Of the output of a module that gives a tuple, (batch, steps, n), over the steps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = (x, x, x) if isinstance(self.module, nn.MultiheadAttention) else (x,)
        mean: torch.Tensor = self.module(*inputs)[0].mean(dim=1)
        return mean


def images(*layers: nn.Module, channels_last: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Unflatten(1, (4, 4, 4)), *layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(2, 64))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def steps(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (4, 16)), Mean(module), nn.LazyLinear(5))


def dense(width: int = 20) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 5))


MODELS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "wide": (dense, "0.weight", 1),
    "tall": (lambda: dense(96), "0.weight", 1),
    "square": (lambda: dense(64), "0.weight", 1),
    "one row": (lambda: dense(1), "0.weight", 1),
    "Conv2d": (lambda: images(nn.Conv2d(4, 8, 3)), "1.weight", 1),
    "Conv2d, tall": (lambda: images(nn.Conv2d(4, 44, 3, stride=2)), "1.weight", 1),
    "Conv2d, channels last": (lambda: images(nn.Conv2d(4, 8, 3), channels_last=True), "1.weight", 1),
    "Conv2d, channels last, tall": (lambda: images(nn.Conv2d(4, 44, 3), channels_last=True), "1.weight", 1),
    "Conv2d of groups": (lambda: images(nn.Conv2d(4, 8, 3, groups=2)), "1.weight", 2),
    "Conv1d": (lambda: images(nn.Flatten(2), nn.Conv1d(4, 6, 3)), "2.weight", 1),
    "ConvTranspose2d": (lambda: images(nn.ConvTranspose2d(4, 6, 3)), "1.weight", 1),
    "RNN": (lambda: steps(nn.RNN(16, 12, batch_first=True)), "1.module.weight_hh_l0", 1),
    "LSTM": (lambda: steps(nn.LSTM(16, 12, batch_first=True)), "1.module.weight_hh_l0", 4),
    "attention": (lambda: steps(nn.MultiheadAttention(16, 2, batch_first=True)), "1.module.in_proj_weight", 3),
    "attention, out": (lambda: steps(nn.MultiheadAttention(16, 2, batch_first=True)), "1.module.out_proj.weight", 1),
}


def built(kind: str, device: torch.device) -> tuple[nn.Module, str, int]:
    make, name, blocks = MODELS[kind]
    model = make()
    model(torch.randn(2, 64))  # what is lazy
    return model.to(device), name, blocks


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, number: int, forward: Callable[..., Any] | None = None
) -> Iterator[float]:
    """So many steps on noisy clusters, far from centred; the loss of each, after the optimizer's step."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 64, generator=generator) + 0.5
    like = next(model.parameters())
    for _ in range(number):
        y = torch.randint(0, 5, (16,), generator=generator)
        x = (centres[y] + torch.randn(16, 64, generator=generator)).to(like)
        loss = nn.functional.cross_entropy((forward or model)(x), y.to(like.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_tolerance_is_kept_after_every_step(kind: str, optimizer: str, twin: TwinSide) -> None:
    """No line of the training loop is needed for it, and the model learns."""
    model, name, blocks = built(kind, twin.device)
    weight = model.get_parameter(name)
    before = weight.detach().clone()
    updates = OPTIMIZERS[optimizer](model)
    orthogonal(model, name, optimizer=updates, blocks=blocks)
    assert defect(weight, blocks) <= 1e-5, "orthogonal from the start"
    for old, new in zip(before.chunk(blocks), weight.detach().chunk(blocks), strict=True):
        assert torch.allclose(new.flatten(1), polar_factor(old.flatten(1)), atol=1e-5), "the nearest"
    start = weight.detach().clone()
    losses = []
    for number, loss in enumerate(train(model, updates, 30), 1):
        assert defect(weight, blocks) <= TOLERANCE, f"step {number}"
        losses.append(loss)
    assert model.get_parameter(name) is weight
    assert (weight.detach() - start).abs().max() > 1e-3, "moves"
    assert sum(losses[-5:]) < sum(losses[:5]), "learns"


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("kind", MODELS)
def test_without_the_optimizer_it_is_restored_before_the_module_runs(kind: str, optimizer: str, twin: TwinSide) -> None:
    """And before it is saved; whoever reads it in between finds what the optimizer has left."""
    model, name, blocks = built(kind, twin.device)
    orthogonal(model, name, blocks=blocks)
    weight = model.get_parameter(name)
    drifted = []
    seen: list[float] = []
    model.register_forward_pre_hook(lambda *_: seen.append(defect(weight, blocks)))  # after ours, which comes first
    updates = OPTIMIZERS[optimizer](model)
    for _ in train(model, updates, 30):
        drifted.append(defect(weight, blocks))
    assert max(drifted) > TOLERANCE, "else nothing is to be restored"
    assert max(seen) <= TOLERANCE, "in the forward pass"
    assert defect(model.state_dict()[name], blocks) <= TOLERANCE, "saved"


def test_an_embedding(twin: TwinSide) -> None:
    """Sparse gradients too, and a row that stands for padding stays 0 to rounding."""
    embedding = nn.Embedding(30, 8, padding_idx=0, sparse=True).to(twin.device)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=1e-2)
    orthogonal(embedding, "weight", optimizer=optimizer)
    for _ in range(10):
        embedding(torch.tensor([0, 3, 4, 3], device=twin.device)).square()[:, 0].sum().backward()
        optimizer.step()
        assert defect(embedding.weight) <= TOLERANCE
    assert embedding.weight[0].abs().max() <= 1e-6


def test_what_is_restored_is_the_nearest(twin: TwinSide) -> None:
    model = dense().to(twin.device)
    held = orthogonal(model[0], "weight")
    with torch.no_grad():
        model[0].weight += 0.05 * torch.randn(20, 64).to(twin.device)
    expected = polar_factor(model[0].weight.detach())
    held.step()
    assert torch.allclose(model[0].weight.detach(), expected, atol=TOLERANCE)


@pytest.mark.smoke
def test_several_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of a model's or of any module's, and one step for all."""
    counted = []
    step = Orthogonality.step
    monkeypatch.setattr(Orthogonality, "step", lambda held, *a: (counted.append(1), step(held, *a)))
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 5))
    for modules, names in ((model, ["0.weight", "1.weight"]), ([model[0], model[1]], "weight")):
        held = orthogonal(modules, names)
        counted.clear()
        for _ in train(model, OPTIMIZERS["momentum"](model), 5):
            pass
        model(torch.randn(1, 64))
        assert len(counted) == 5
        assert max(defect(model[0].weight), defect(model[1].weight)) <= TOLERANCE
        held.remove()


def test_a_part_of_the_model_alone() -> None:
    """Its layer looks too, and a model whose layers are read past their call."""

    class Past(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.first.weight @ self.second.weight

    model = Past()
    orthogonal(model, ["first.weight", "second.weight"])
    for layer in (model.first, model.second):
        for called in (model, layer):
            with torch.no_grad():
                layer.weight += 1
            called(torch.ones(1, 4))
            assert defect(layer.weight) <= TOLERANCE


def test_nothing_is_done_where_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense()
    orthogonal(model, "0.weight")
    looked: list[int] = []
    monkeypatch.setattr(Orthogonality, "step", lambda *_: looked.append(1))
    for _ in range(3):
        model(torch.randn(1, 64))
        model.state_dict()
    assert not looked, "looked at"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_checkpoints_are_as_without(optimizer: str) -> None:
    """The same keys; and a model that is not held takes them."""
    model = dense()
    keys = list(model.state_dict())
    updates = OPTIMIZERS[optimizer](model)
    orthogonal(model[0], "weight", optimizer=updates)
    list(train(model, updates, 3))
    assert list(model.state_dict()) == keys, "keys"
    assert [name for name, _ in model.named_parameters()] == keys, "keys"
    assert [name for name, _ in model.named_modules()] == ["", "0", "1", "2"], "modules"
    assert torch.equal(model.state_dict()["0.weight"], model[0].weight)
    dense().load_state_dict(model.state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_weights_are_taken(assign: bool) -> None:
    """Orthogonal before they are used, whatever they were; and those held are as they were saved."""
    model, other = dense(), dense()
    held = orthogonal(model, "0.weight")
    expected = polar_factor(other[0].weight.detach())
    model.load_state_dict(other.state_dict(), assign=assign)
    model(torch.randn(1, 64))
    assert torch.allclose(model[0].weight, expected, atol=TOLERANCE), "the nearest"
    saved = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight += 1
    model.load_state_dict(saved, assign=assign)
    held.step()
    assert torch.equal(model[0].weight, saved["0.weight"]), "saved within the tolerance"


def test_a_replaced_weight_is_restored() -> None:
    """Though it was changed as often as the one before."""
    model = dense()
    orthogonal(model, "0.weight")
    weight = nn.Parameter(torch.randn(20, 64))
    with torch.no_grad():
        while weight._version < model[0].weight._version:
            weight += 1
    model[0].weight = weight
    model(torch.randn(1, 64))
    assert defect(model[0].weight) <= TOLERANCE


def test_continuing_is_exact() -> None:
    """Bit for bit, given the holder's state too."""

    def start() -> tuple[nn.Module, torch.optim.Optimizer, HeldOrthogonal]:
        model = dense(80)
        optimizer = OPTIMIZERS["momentum"](model)
        return model, optimizer, orthogonal(model, "0.weight", optimizer=optimizer)

    first, second = start(), start()
    list(train(*first[:2], 20))
    for ours, theirs in zip(first, second, strict=True):
        theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for part in (first, second):
        list(train(*part[:2], 20))
    assert torch.equal(first[0][0].weight, second[0][0].weight), "weights"


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: saved(model),
}


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", COPIES)
def test_copies_are_held_by_themselves(copied: str) -> None:
    model = dense()
    optimizer = OPTIMIZERS["momentum"](model)
    optimizer.register_step_post_hook(lambda *_: None)  # which can't be pickled
    held = orthogonal(model, "0.weight", optimizer=optimizer)
    try:
        other = COPIES[copied](model)
    except (AttributeError, pickle.PicklingError) as error:
        raise AssertionError("copied with the optimizer's hooks") from error
    assert raised(lambda: orthogonal(other[0], "weight")).endswith("held already; remove() what holds it first")
    seen: list[float] = []
    other.register_forward_pre_hook(lambda *_: seen.append(defect(other[0].weight)))
    before = model[0].weight.detach().clone()
    list(train(other, OPTIMIZERS["momentum"](other), 10))
    other(torch.randn(1, 64))
    assert max(seen) <= TOLERANCE, "the copy"
    assert torch.equal(model[0].weight, before), "the original is left alone"
    held.remove()
    with torch.no_grad():
        other[0].weight += 1
        model[0].weight += 1
    other(torch.randn(1, 64))
    model(torch.randn(1, 64))
    assert defect(other[0].weight) <= TOLERANCE, "the copy"
    assert defect(model[0].weight) > TOLERANCE, "removed"


def test_another_precision() -> None:
    """A finer one is taken; one that does not resolve the tolerance is refused at the next step, not in use."""
    model = dense()
    optimizer = OPTIMIZERS["momentum"](model)
    orthogonal(model, "0.weight", optimizer=optimizer)
    model.double()
    for _ in train(model, optimizer, 5):
        assert model[0].weight.dtype == torch.float64
        assert defect(model[0].weight) <= TOLERANCE
    model.bfloat16()
    model(torch.randn(1, 64).bfloat16())
    found = raised(lambda: list(train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)))
    assert re.match(r"tolerance: 0.005, .* what torch.bfloat16 resolves in layer '0.weight'", found), found


def test_moved_to_another_device(twin: TwinSide) -> None:
    model = dense()
    orthogonal(model, "0.weight")
    model.to(twin.device)
    list(train(model, OPTIMIZERS["momentum"](model), 5))
    assert defect(model.state_dict()["0.weight"]) <= TOLERANCE


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each step of a holder, whether it was compiled with what calls it."""
    found: list[bool] = []
    step = Orthogonality.step
    monkeypatch.setattr(
        Orthogonality, "step", lambda held, *a: (found.append(torch.compiler.is_compiling()), step(held, *a))
    )
    return found


@pytest.mark.parametrize("told", [True, False])
def test_a_compiled_forward_pass(told: bool, traced: list[bool]) -> None:
    """In one graph where the optimizer is known; else with a break, since someone has to look."""
    model = dense()
    optimizer = OPTIMIZERS["momentum"](model)
    orthogonal(model, "0.weight", optimizer=optimizer if told else None)
    compiled = torch.compile(model, backend="eager", fullgraph=told)
    for _ in train(model, optimizer, 5, lambda x: run(compiled, x)):
        assert not told or defect(model[0].weight) <= TOLERANCE
    compiled(torch.randn(16, 64))
    assert defect(model[0].weight) <= TOLERANCE
    assert traced == [False] * 5, "looked at past the compiler"


def test_an_export_takes_weights_that_follow_the_optimizer() -> None:
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(4, 6)
    held = orthogonal(model, "0.weight")
    programs: list[torch.export.ExportedProgram] = []

    def export() -> None:
        programs.append(torch.export.export(model, (x,)))

    assert refusal(export) == "weight '0.weight': held without the optimizer; step() and remove() before an export"
    held.remove()
    orthogonal(model, "0.weight", optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert refusal(export) == "accepted", "exported"
    torch.testing.assert_close(programs[0].module()(x), model(x))


def test_a_copy_that_is_compiled_looks() -> None:
    """The copy of an optimizer has no hooks, so that nothing else would."""
    model = dense()
    orthogonal(model, "0.weight", optimizer=OPTIMIZERS["momentum"](model))
    other = copy.deepcopy(model)
    compiled = torch.compile(other, backend="eager")
    with torch.no_grad():
        other[0].weight += 1
    compiled(torch.randn(16, 64))
    assert defect(other[0].weight) <= TOLERANCE, "the copy"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # PyTorch's own, of what it imports then
def test_a_compiled_model_and_a_compiled_step(traced: list[bool]) -> None:
    model = dense()
    compiled = torch.compile(model, backend="eager")
    optimizer = OPTIMIZERS["momentum"](compiled)
    orthogonal(model, "0.weight", optimizer=optimizer)
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    for _ in train(compiled, optimizer, 5):
        assert defect(model[0].weight) <= TOLERANCE
    assert traced == [False] * 5, "restored past the compiler"


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.no_grad])
def test_restored_in_its_own_precision_whatever_the_pass_runs_in(mode: Callable[[], Any]) -> None:
    model = dense(80)
    held = orthogonal(model, "0.weight", tolerance=1e-5)
    for _ in range(2):
        with torch.no_grad():
            model[0].weight += 1e-3 * torch.randn(80, 64)
        with mode():
            run(model, torch.randn(1, 64))
        assert defect(model[0].weight) <= 1e-5, "in its own precision"
    held.step()
    assert model(torch.randn(1, 64)).sum().backward() is None


def test_what_is_kept_of_a_pass_without_gradients() -> None:
    """Directions found in inference mode serve steps after it."""
    held = orthogonal(nn.Sequential(nn.Linear(320, 320)), "0.weight")
    layer = held._held["0.weight"][0]
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight += 1e-2 * torch.randn(320, 1) @ torch.randn(1, 320)
    with torch.inference_mode():
        layer(torch.randn(1, 320))
    assert held.directions, "sought"
    assert not any(found.is_inference() for found in held.directions.values()), "kept"


def test_tensors_of_the_caller_are_left_alone() -> None:
    """functional_call computes with them in the parameters' place."""
    model = dense()
    orthogonal(model, "0.weight")
    lent = {"0.weight": torch.ones(20, 64)}
    run(lambda x: torch.func.functional_call(model, lent, (x,)), torch.ones(1, 64))
    assert torch.equal(lent["0.weight"], torch.ones(20, 64))


def test_frozen_weights_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 5))
    optimizer = OPTIMIZERS["momentum"](model)
    orthogonal(model, ["0.weight", "1.weight"], optimizer=optimizer)
    model[0].weight.requires_grad_(False)
    before = model[0].weight.detach().clone()
    for _ in train(model, optimizer, 5):
        assert defect(model[1].weight) <= TOLERANCE
    assert torch.equal(model[0].weight, before)
    model[0].weight.requires_grad_(True)
    for _ in train(model, optimizer, 5):
        assert max(defect(model[0].weight), defect(model[1].weight)) <= TOLERANCE
    assert not torch.equal(model[0].weight, before)


def test_a_frozen_kernel_that_is_orthogonal_is_taken() -> None:
    conv = nn.Conv2d(4, 8, 3)
    nn.init.orthogonal_(conv.weight)
    before = conv.weight.detach().clone()
    conv.weight.requires_grad_(False)
    orthogonal(conv, "weight", optimizer=torch.optim.SGD([conv.bias]))
    assert torch.equal(conv.weight, before)


@pytest.mark.parametrize("told", [True, False])
def test_removed_weights_are_free(told: bool) -> None:
    model = dense()
    optimizer = OPTIMIZERS["momentum"](model)
    held = orthogonal(model, "0.weight", optimizer=optimizer if told else None)
    held.remove()
    list(train(model, optimizer, 5))
    assert defect(model.state_dict()["0.weight"]) > TOLERANCE
    assert raised(lambda: orthogonal(model, "0.weight")) == "nothing raised"


def test_a_weight_that_is_no_longer_finite_is_named() -> None:
    model = dense()
    optimizer = OPTIMIZERS["sgd"](model)
    orthogonal(model, "0.weight", optimizer=optimizer)
    model[0].weight.grad = torch.full((20, 64), float("nan"))
    assert raised(optimizer.step) == "weight of layer '0.weight': not finite at step 1; lower the learning rate"
    assert raised(lambda: model(torch.randn(1, 64))).startswith("weight of layer '0.weight': not finite"), "used"
    kernel = nn.Conv2d(4, 8, 3)
    orthogonal(kernel, "weight")
    with torch.no_grad():
        kernel.weight.fill_(float("nan"))
    assert raised(lambda: kernel(torch.randn(1, 4, 4, 4))).startswith("weight of layer 'weight': not finite"), "named"


def test_the_way_of_accelerators(twin: TwinSide) -> None:
    """All weights of a shape at once, blocks too; what could not be restored is raised later, or by `settle`."""
    model, name, blocks = built("LSTM", twin.device)
    optimizer = OPTIMIZERS["momentum"](model)
    held = orthogonal(model, name, optimizer=optimizer, blocks=blocks)
    held.asynchronous = True
    for _ in train(model, optimizer, 10):
        assert defect(model.get_parameter(name), blocks) <= TOLERANCE
    with torch.no_grad():
        model.get_parameter(name)[13] = 0
    held.step()
    assert re.match(r"weight of layer '1.module.weight_hh_l0\[1\]': .* at step 11", raised(held.settle))


def test_other_rules_name_the_hook() -> None:
    """They do not run the modules, so that they are to be told the optimizer: by none that would not look."""
    model = dense()
    orthogonal(model, "0.weight")
    assert "a forward hook, which DirectFeedbackAlignment does not call" in raised(
        lambda: DirectFeedbackAlignment(model)
    )


def run(forward: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
    """A forward pass that raises nothing."""
    try:
        return forward(x)
    except (RuntimeError, ValueError) as error:
        raise AssertionError(f"the forward pass raised {error}") from error


def raised(call: Callable[[], object]) -> str:
    """The message of the error."""
    try:
        call()
    except (FloatingPointError, ValueError) as error:
        return str(error)
    return "nothing raised"


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def held_linear() -> nn.Module:
    linear = nn.Linear(4, 4)
    orthogonal(linear, "weight")
    return linear


def held_in_a_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    orthogonal(model, "0.weight")
    return model[0]


def with_(weight: torch.Tensor, requires_grad: bool = True) -> nn.Module:
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(weight, requires_grad=requires_grad)
    return linear


REFUSALS: dict[str, tuple[Callable[[], Any], str | list[str], dict[str, Any], str]] = {
    "no module": (lambda: "fc1", "weight", {}, "module: a str, expected an nn.Module or several"),
    "no modules": (list, "weight", {}, "module: none given, expected at least one"),
    "no name": (lambda: nn.Linear(4, 4), [], {}, "name: none given, expected at least one"),
    "compiled": (
        lambda: torch.compile(nn.Linear(4, 4), backend="eager"),
        "weight",
        {},
        "module: compiled; give the module that was compiled",
    ),
    "a list of modules": (
        lambda: nn.ModuleList([nn.Linear(4, 4)]),
        "0.weight",
        {},
        "module: a ModuleList is not called itself; give the modules in it, list(module)",
    ),
    "the projection of an attention": (
        lambda: nn.MultiheadAttention(4, 1).out_proj,
        "weight",
        {},
        'module: its attention does not call it; give that, with the name "out_proj.weight"',
    ),
    "another name": (
        lambda: nn.Linear(4, 4),
        "wieght",
        {},
        "weight 'wieght': not a parameter of the Linear, which has weight, bias",
    ),
    "another name among many": (
        lambda: nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)]),
        "5.weight",
        {},
        "weight '5.weight': not a parameter of the Sequential, which has 0.weight, 0.bias, 1.weight, 1.bias, 2.weight, "
        "2.bias, 3.weight, 3.bias, ...",
    ),
    "another path": (
        lambda: nn.Sequential(nn.Linear(4, 4)),
        "fc1.weight",
        {},
        "weight 'fc1.weight': not a parameter of the Sequential, which has 0.weight, 0.bias",
    ),
    "no bias": (
        lambda: nn.Linear(4, 4, bias=False),
        "bias",
        {},
        "weight 'bias': not a parameter of the Linear, which has weight",
    ),
    "a buffer": (
        lambda: nn.BatchNorm1d(4),
        "running_mean",
        {},
        "weight 'running_mean': not a parameter of the BatchNorm1d, which has weight, bias",
    ),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        "weight",
        {},
        "weight 'weight': computed from others; hold it without what computes it",
    ),
    "lazy": (
        lambda: nn.LazyLinear(4),
        "weight",
        {},
        "weight 'weight': not initialised yet; call the model once before",
    ),
    "complex": (
        lambda: with_(torch.eye(4, dtype=torch.complex64)),
        "weight",
        {},
        "weight 'weight': torch.complex64 on cpu, expected real numbers in memory",
    ),
    "meta": (
        lambda: nn.Linear(4, 4, device="meta"),
        "weight",
        {},
        "weight 'weight': torch.float32 on meta, expected real numbers in memory",
    ),
    "a vector": (
        lambda: nn.Linear(4, 4),
        "bias",
        {},
        "weight 'bias': shape (4,), expected (n_out, n_in) or (c_out, c_in, ...)",
    ),
    "empty": (
        lambda: with_(torch.ones(0, 4)),
        "weight",
        {},
        "weight 'weight': shape (0, 4), expected (n_out, n_in) or (c_out, c_in, ...)",
    ),
    "not finite": (
        lambda: with_(torch.full((4, 4), float("inf"))),
        "weight",
        {},
        "weight 'weight': not all finite, expected finite numbers",
    ),
    "frozen": (
        lambda: with_(torch.ones(4, 4), requires_grad=False),
        "weight",
        {},
        "weight of layer 'weight': frozen and not orthogonal, its Gram matrix is 4 off the identity, expected at most "
        "0.005; freeze it once it is held",
    ),
    "tied": (tied, ["0.weight", "1.weight"], {}, "weight '1.weight': the same parameter as '0.weight'; name it once"),
    "named twice": (
        lambda: nn.Linear(4, 4),
        ["weight", "weight"],
        {},
        "weight 'weight': the same parameter as 'weight'; name it once",
    ),
    "held": (held_linear, "weight", {}, "weight 'weight': held already; remove() what holds it first"),
    "held in a model": (held_in_a_model, "weight", {}, "weight 'weight': held already; remove() what holds it first"),
    "blocks": (
        lambda: nn.Linear(4, 4),
        "weight",
        {"blocks": 3},
        "blocks: 3, expected a divisor of the 4 rows of weight 'weight'",
    ),
    "no blocks": (lambda: nn.Linear(4, 4), "weight", {"blocks": 0}, "blocks: 0, expected a positive integer"),
    "tolerance": (
        lambda: nn.Linear(4, 4),
        "weight",
        {"tolerance": 0.0},
        "tolerance: 0.0, expected a positive number",
    ),
    "precision": (
        lambda: nn.Linear(4, 4).bfloat16(),
        "weight",
        {},
        "tolerance: 0.005, expected at least 0.016, what torch.bfloat16 resolves in layer 'weight'; raise the "
        "tolerance or keep the weights in a finer precision",
    ),
    "a scheduler": (
        lambda: nn.Linear(4, 4),
        "weight",
        {"optimizer": "sgd"},
        "optimizer: a str, expected a torch.optim.Optimizer",
    ),
    "another's optimizer": (
        lambda: nn.Linear(4, 4),
        "weight",
        {"optimizer": torch.optim.SGD(nn.Linear(4, 4).parameters())},
        "optimizer: does not have weight 'weight'; give the one that steps it",
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("kind", REFUSALS)
def test_refusals(kind: str) -> None:
    """And a model that is refused is left as it was."""
    make, name, options, said = REFUSALS[kind]
    module = make()
    before = dict(vars(module)) if isinstance(module, nn.Module) else {}
    values = {} if kind in ("lazy", "meta") or not before else copy.deepcopy(module.state_dict())
    hooks = len(before.get("_forward_pre_hooks", ()))
    assert raised(lambda: orthogonal(module, name, **options)) == said
    if before:
        assert len(module._forward_pre_hooks) == hooks, "left as it was"
        assert all(torch.equal(value, module.state_dict()[key]) for key, value in values.items()), "left as it was"


def test_a_weight_that_is_computed_later_is_named() -> None:
    model = dense()
    orthogonal(model, "0.weight")
    parametrizations.weight_norm(model[0])
    found = raised(lambda: model(torch.randn(1, 64)))
    assert found == "weight '0.weight': computed from others; hold it without what computes it", found
