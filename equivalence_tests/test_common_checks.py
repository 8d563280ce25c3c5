"""The common checks on rules of others, wrong ones among them, and the suite on a package, as a user's own suite."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prograde.equivalence_tests import parametrize_with_rules, parametrize_with_twins
from prograde.equivalence_tests.common_checks import CHECKS, Check, as_example, checks_of
from prograde.equivalence_tests.rule_examples import Example
from prograde.equivalence_tests.sides import TwinSide

pytestmark = [pytest.mark.smoke, pytest.mark.places_itself, pytest.mark.usefixtures("ours_only")]


class Plain(nn.Module):
    """A rule of somebody's own: backpropagation, which has a step where all is frozen, too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.model(x)
        return scores

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in self.parameters():
            parameter.grad = None
        if not learned:
            return torch.zeros(())
        loss = nn.functional.cross_entropy(self(x), y)
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.grad = gradient
        return loss.detach()


class Adds(Plain):
    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(self(x), y)
        loss.backward()
        return loss.detach()


class WithGraph(Plain):
    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        super().assign_credit(x, y)
        return nn.functional.cross_entropy(self(x), y)


class Tells(Plain):
    """The loss as a number, which has to wait for it."""

    def assign_credit(self, x: Tensor, y: Tensor) -> Any:
        return super().assign_credit(x, y).item()


class NoModule:
    def __init__(self, model: nn.Module) -> None:
        self.model = model


class Decays(Plain):
    """The weights, by itself."""

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().assign_credit(x, y)
        with torch.no_grad():
            self.model[0].weight.mul_(0.99)  # type: ignore[index]
        return loss


class Overlays(Plain):
    """Labels on the samples of the batch."""

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        x.view(len(x), -1)[:, 0] = y.to(x.dtype)
        return super().assign_credit(x, y)


class Trains(Plain):
    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        self.model[1].eval()  # type: ignore[index]
        return super().assign_credit(x, y)


class SwitchesOff(Plain):
    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        loss = super().assign_credit(x, y)
        torch.set_grad_enabled(False)
        return loss


class Forgets(Plain):
    """The last layer's bias."""

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().assign_credit(x, y)
        self.model[4].bias.grad = None  # type: ignore[index]
        return loss


class Streams(Plain):
    """Each update of the weights as they are then."""

    def stream(self, x: Tensor, y: Tensor) -> Iterator[SimpleNamespace]:
        for parameter in [parameter for parameter in self.parameters() if parameter.requires_grad]:
            Plain.assign_credit(self, x, y)
            yield SimpleNamespace(pairs=[(parameter, parameter.grad)])


class Counts(Plain):
    """Learns faster with every step, and does not say so in its state."""

    steps = 0

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().assign_credit(x, y)
        self.steps += 1
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad = self.steps * parameter.grad
        return loss


class Keeps(Plain):
    """A tensor that no conversion sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.signs = torch.ones(16, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.signs)


class Thaws(Plain):
    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        self.requires_grad_(True)
        return super().assign_credit(x, y)


class Waits(Plain):
    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().assign_credit(x, y)
        return torch.tensor(loss.item())

    def step(self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
        self.assign_credit(x, y)
        optimizer.step()

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None: ...


class Shortest(nn.Module):
    """That of docs/check.md."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = model

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        self.zero_grad()
        loss = nn.functional.cross_entropy(self(x), y)
        loss.backward()
        return loss.detach()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.network(x)
        return scores


class Holds(Plain):
    """The layers of the model as they were."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.layers = [*model]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        self.zero_grad()
        loss = nn.functional.cross_entropy(self(x), y)
        loss.backward()
        return loss.detach()


class NeedsAll(Shortest):
    """Gradients of all parameters, frozen or not."""

    def assign_credit(self, x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(self(x), y)
        parameters = list(self.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        return loss.detach()


@parametrize_with_rules([Plain, Shortest])
def test_a_rule_of_somebodys_own(rule: Example, check: Check) -> None:
    check(rule)


WRONG = {
    Adds: ("replaces gradients", "stale gradient: model.0.weight"),
    WithGraph: ("leaves no graph", "loss: with a graph, expected"),
    Tells: ("leaves no graph", ", expected a tensor of shape ()"),
    NoModule: ("fills every .grad", "rule: NoModule, expected an nn.Module"),
    Decays: ("changes gradients alone", "['model.0.weight']: changed by assign_credit, expected"),
    Overlays: ("changes gradients alone", "x: changed in place, expected"),
    Trains: ("changes gradients alone", "['model.1']: in another mode after a step"),
    SwitchesOff: ("changes gradients alone", "gradients are switched off after a step"),
    Forgets: ("fills every .grad", "no gradient: ['model.4.bias'], expected [], which left_out names"),
    Streams: ("streams as at once", "another update when streamed"),
    Counts: ("resumes bitwise", "model.0.weight: a rule with its state loaded learned otherwise"),
    Keeps: ("follows dtype and device", ""),
    Thaws: ("honours freezing", "a gradient of a frozen parameter"),
    Waits: ("waits for no device", ""),
    Holds: ("names a replaced layer", "layer '0' replaced by its copy: a step accepted, and another gradient of ['"),
    NeedsAll: ("honours freezing", "with ['network.0.weight', 'network.0.bias'] frozen, expected a step"),
}


@pytest.mark.parametrize("rule", WRONG)
def test_wrong_rules_are_refused(rule: Any) -> None:
    check, said = WRONG[rule]
    found = {}
    for name in CHECKS:
        try:
            CHECKS[name](as_example(rule))
        except pytest.skip.Exception:
            continue
        except (AssertionError, RuntimeError) as error:
            found[name] = str(error)
        finally:
            torch.set_grad_enabled(True)
    assert check in found, f"refused by {found}"
    assert said in found[check], found[check]


def test_a_rule_without_a_generator_has_an_example_too() -> None:
    """Of a model of its own."""
    example = as_example(Example(Plain, lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4)), (7,)))
    CHECKS["leaves no graph"](example)
    assert example.build("cpu").model[0].in_features == 7  # type: ignore[attr-defined]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"checks: \['flies'\], expected some of \['fills every"):
        parametrize_with_rules([Plain], ["flies"])
    with pytest.raises(ValueError, match=r"expected_failed_checks: \['flies'\], expected some of"):
        parametrize_with_rules([Plain], expected_failed_checks={"flies": "it can't"})
    with pytest.raises(ValueError, match=r"modules: \['fotom'\], expected some of"):
        parametrize_with_twins(["prograde.accelerated"], ["fotom"])


@pytest.mark.parametrize(("from_numpy", "is_skipped"), [(np.ndarray.tolist, True), (torch.from_numpy, False)])
def test_what_reckons_with_arrays_is_skipped_where_they_are_lists(
    from_numpy: Any, is_skipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(scores: Any, targets: Any) -> None:
        raise AttributeError("one of its own")

    made: Any = ModuleType("made")
    made.losses, made.from_numpy = SimpleNamespace(squared_error=fails, squared_error_gradient=fails), from_numpy
    monkeypatch.setitem(sys.modules, "made", made)
    (check,) = [
        check for label, check in checks_of("losses") if label.endswith("test_targets_of_one_score_may_be_a_row")
    ]
    with pytest.raises(
        pytest.skip.Exception if is_skipped else AttributeError, match="reckons" if is_skipped else "own"
    ):
        check(TwinSide("made", "cpu", "float64"))


@pytest.mark.slow
@parametrize_with_twins(["prograde.accelerated"], ["pepita", "aggregation"])
def test_a_package_in_a_suite_of_ones_own(twin: TwinSide, check: Any) -> None:
    check(twin)
