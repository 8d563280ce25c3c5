"""`rule.step(x, y, optimizer)` is `assign_credit`, the optimizer's step and `constrain`, to rounding."""

import copy
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from prograde.accelerated.rules import (
    RULES,
    DeeperForward,
    ForwardForward,
    Foton,
    Ftp,
    HybridDynamicTemperature,
    MonoForward,
    Pepita,
    Rule,
    stepping,
)
from prograde.accelerated.rules.orthogonality import Orthogonality
from prograde.accelerated.training.diagnostics.memory import LiveBytes
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.rule_examples import refusal
from prograde.equivalence_tests.test_rules import make

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))


def batches(steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = seeded(2)
    return [
        (torch.randn(9, 20, dtype=torch.float64, generator=drawn), torch.randint(4, (9,), generator=drawn))
        for _ in range(steps)
    ]


def trained_once(
    rule: Rule, x: torch.Tensor, y: torch.Tensor, optimizer: torch.optim.Optimizer, in_one: bool
) -> torch.Tensor:
    if in_one:
        return rule.step(x, y, optimizer)
    loss = rule.assign_credit(x, y)
    optimizer.step()
    rule.constrain(optimizer)
    return loss


def trained(rule: Rule, optimizer: torch.optim.Optimizer, in_one: bool, steps: int = 4) -> tuple[list[Any], Any, Any]:
    """The losses, the parameters and the optimizer's state after some steps."""
    if rule.generator is not None:
        rule.generator.manual_seed(1)
    torch.manual_seed(1)
    losses = [trained_once(rule, x, y, optimizer, in_one) for x, y in batches(steps)]
    return losses, rule.state_dict(), optimizer.state_dict()["state"]


def check_same(rule: Rule, optimizer: Callable[[Any], torch.optim.Optimizer]) -> Rule:
    other = copy.deepcopy(rule)
    expected = trained(rule, optimizer(rule.parameters()), in_one=False)
    found = trained(other, optimizer(other.parameters()), in_one=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    return other


def sgd(**settings: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr=0.05, **settings)


OPTIMIZERS = {
    "SGD": sgd(),
    "weight decay": sgd(weight_decay=0.3),
    "momentum": sgd(momentum=0.8),
    "momentum, damped and decayed": sgd(momentum=0.8, dampening=0.4, weight_decay=0.3),
    "Nesterov": sgd(momentum=0.8, nesterov=True),
    "ascent": sgd(maximize=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
    "all together": lambda parameters: Together(parameters, lr=0.05),
}


class Together(torch.optim.Adam):
    """A step of one's own, which takes all parameters together."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        held = [p for p in self.param_groups[0]["params"] if p.grad is not None]
        longest = torch.cat([p.grad.flatten() for p in held]).norm()
        for p in held:
            p.sub_(0.05 * p.grad / longest)


@pytest.mark.parametrize("name", RULES)
def test_every_rule(name: str) -> None:
    torch.manual_seed(3)
    check_same(make(name, dense().double(), seeded(1)), OPTIMIZERS["momentum, damped and decayed"])


SMALLEST = {
    "one layer": lambda: nn.Sequential(nn.Linear(20, 4)),
    "one hidden layer": lambda: nn.Sequential(nn.Linear(20, 6), nn.Tanh(), nn.Linear(6, 4)),
}


@pytest.mark.parametrize("model", SMALLEST)
@pytest.mark.parametrize("name", [*RULES, "backprop, orthogonal"])
def test_the_smallest_networks(name: str, model: str) -> None:
    """Are trained, on one sample too; or one without a hidden layer is refused."""
    torch.manual_seed(3)
    options = {"orthogonal": True} if "orthogonal" in name else {}
    kind = partial(RULES[name.removesuffix(", orthogonal")], SMALLEST[model]().double(), **options)
    said = refusal(kind)
    if said != "accepted":
        assert model == "one layer"
        assert re.match("model: no hidden layer|inject: 1, ", said)
        return
    rule = kind(generator=seeded(1))
    x, y = torch.randn(1, 20, dtype=torch.float64), torch.tensor([2])
    before, optimizer = copy.deepcopy(rule.model), torch.optim.SGD(rule.parameters(), lr=0.1)
    assert rule(x).shape == (1, 4)
    for _ in range(2):
        assert rule.step(x, y, optimizer).isfinite()
    assert rule.assign_credit(x, y).isfinite()
    trained = {id(p) for p in rule.parameters() if p.grad is not None}
    for (key, p), old in zip(rule.model.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, old) == (id(p) not in trained), key


@pytest.mark.parametrize("kind", [HybridDynamicTemperature, DeeperForward])
def test_rules_that_have_options_of_their_own(kind: type[Rule]) -> None:
    torch.manual_seed(3)
    check_same(kind(dense().double(), generator=seeded(1)), OPTIMIZERS["weight decay"])


@pytest.mark.parametrize("optimizer", ["SGD", "momentum"])
def test_the_constraint_knows_the_step(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain one after so small a batch is taken back by its factors, which are those of the step itself."""
    torch.manual_seed(3)
    known: list[set[str]] = []
    take = Orthogonality.step
    monkeypatch.setattr(Orthogonality, "step", lambda self, plain: known.append(set(plain)) or take(self, plain))
    model = nn.Sequential(nn.Linear(20, 48), nn.Tanh(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 4))
    check_same(Foton(model.double(), orthogonality_tolerance=1e-10), OPTIMIZERS[optimizer])
    assert known == [{"2"} if optimizer == "SGD" else set()] * 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", [MonoForward, Ftp])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer: str, kind: type[Rule], monkeypatch: pytest.MonkeyPatch) -> None:
    """Called once a unit too, as it is where weights are large."""
    for large in (stepping.LARGE, 0):
        monkeypatch.setattr(stepping, "LARGE", large)
        torch.manual_seed(3)
        check_same(kind(dense().double()), OPTIMIZERS[optimizer])


@pytest.mark.parametrize("optimizer", ["momentum", "AdamW"])
def test_gradients_of_other_parameters_are_stepped_once(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an encoder before the model, say, which were backpropagated."""
    monkeypatch.setattr(stepping, "LARGE", 0)
    torch.manual_seed(3)
    rule, other = MonoForward(dense().double()), nn.Parameter(torch.ones(3).double())
    found = []
    for in_one in (True, False):
        trained, weight = copy.deepcopy((rule, other))
        steps = OPTIMIZERS[optimizer]([weight, *trained.parameters()])
        for x, y in batches(2):
            weight.grad = torch.arange(3).double()
            trained_once(trained, x, y, steps, in_one)
        found.append((weight, trained.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4),
    ),
    "modules": lambda: nn.Sequential(
        nn.Linear(20, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 12), nn.LeakyReLU(0.1), nn.Linear(12, 4)
    ),
    "no bias": lambda: nn.Sequential(nn.Linear(20, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False)),
}  # fmt: skip


@pytest.mark.parametrize("kind", [MonoForward, Ftp, Pepita, ForwardForward])
@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_layer(model: str, kind: type[Rule]) -> None:
    torch.manual_seed(3)
    built = MODELS[model]()
    options: dict[str, Any] = {"generator": seeded(1)}
    if model != "no bias" and kind is not ForwardForward:
        options["example"] = torch.zeros(2, 20).double()
    if model == "modules":
        options |= {"units": ["0", "3", "5"], "example": torch.zeros(2, 20).double()}
    check_same(kind(built.double(), **options), OPTIMIZERS["momentum"])


@pytest.mark.parametrize("kind", [MonoForward, Ftp])
def test_labels_of_tokens_some_of_them_ignored(kind: type[Rule]) -> None:
    """N is a tensor there, by which the factors are scaled."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    example = torch.randn(7, 3, 5, dtype=torch.float64)
    labels = torch.randint(4, (7, 3)).masked_fill(torch.rand(7, 3) < 0.3, -100)
    loss = nn.CrossEntropyLoss(ignore_index=-100)
    apart = kind(model, loss=loss, units=["0", "2", "4"], example=example, generator=seeded(1))
    in_one = copy.deepcopy(apart)
    optimizers = [torch.optim.SGD(rule.parameters(), lr=0.1) for rule in (apart, in_one)]
    for _ in range(2):
        apart.assign_credit(example, labels)
        optimizers[0].step()
        in_one.step(example, labels, optimizers[1])
    torch.testing.assert_close(in_one.state_dict(), apart.state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_a_frozen_layer_stays_as_it_is(name: str) -> None:
    torch.manual_seed(3)
    rule = make(name, dense().double(), seeded(1))
    rule.units[0].module.weight.requires_grad_(False)
    before = rule.units[0].module.weight.clone()
    after = check_same(rule, sgd(weight_decay=0.3))
    assert torch.equal(after.units[0].module.weight, before)


def test_a_scheduler_is_content_and_its_rate_counts() -> None:
    torch.manual_seed(3)
    rules = [MonoForward(dense().double())]
    rules.append(copy.deepcopy(rules[0]))
    with warnings.catch_warnings(record=True) as said:
        for rule, in_one in zip(rules, (False, True), strict=True):
            optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            for x, y in batches(3):
                trained_once(rule, x, y, optimizer, in_one)
                schedule.step()
    assert not said, "a scheduler warns where no step of the optimizer came before its own"
    torch.testing.assert_close(rules[1].state_dict(), rules[0].state_dict(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hook", ["before", "after", "of all optimizers", "a step of one's own", "of the class"])
def test_whoever_watches_the_optimizer_sees_one_step(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = MonoForward(dense().double())
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    seen: list[int] = []

    def watch(*_: Any) -> None:
        seen.append(sum(p.grad is not None for p in rule.parameters()))

    if hook == "a step of one's own":
        own = optimizer.step
        optimizer.step = lambda: (watch(), own())[1]  # type: ignore[method-assign]
    elif hook == "of the class":
        of_class = torch.optim.SGD.step
        monkeypatch.setattr(torch.optim.SGD, "step", lambda *of: (watch(), of_class(*of))[1])
    elif hook == "of all optimizers":
        handle = register_optimizer_step_pre_hook(watch)
    else:
        handle = {"before": optimizer.register_step_pre_hook, "after": optimizer.register_step_post_hook}[hook](watch)
    rule.step(*batches(1)[0], optimizer)
    if hook not in ("a step of one's own", "of the class"):
        handle.remove()
    assert seen == [sum(1 for _ in rule.parameters()) - 2], "all gradients but those of the last layer, which has none"


def test_no_gradient_of_a_large_weight_is_held() -> None:
    """Of 128 x 128 weights and batches of 4, a step by itself holds fewer bytes than one weight has."""
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    rule = MonoForward(model)
    optimizer = torch.optim.SGD(rule.parameters(), lr=0.1)
    x, y = torch.randn(4, 128), torch.randint(4, (4,))
    with LiveBytes([x, y, *rule.parameters()]) as live:
        rule.step(x, y, optimizer)
    assert live.peak < 4 * 128 * 128
    with LiveBytes([x, y, *rule.parameters()]) as live:
        rule.assign_credit(x, y)
    assert live.peak > 2 * 4 * 128 * 128, "the count sees what is held"
    rule.step(x, y, optimizer)
    assert all(p.grad is None for p in rule.parameters())


def test_gradients_of_one_unit_are_held_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an optimizer that is called once a unit: what a step holds is little more than one weight."""
    monkeypatch.setattr(stepping, "LARGE", 0)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    rule = MonoForward(model)
    optimizer = torch.optim.AdamW(rule.parameters(), fused=True)
    x, y = torch.randn(4, 128), torch.randint(4, (4,))
    rule.step(x, y, optimizer)
    with LiveBytes([x, y, *rule.parameters()]) as live:
        rule.step(x, y, optimizer)
    assert live.peak < 1.25 * 4 * 128 * 128
    assert [len(held) for held in rule._memory.values()] == [128 * 128]
    assert not copy.deepcopy(rule)._memory, "a copy has its own"
    assert all(p.grad is None for p in rule.parameters())


def test_a_unit_may_have_several_dense_weights() -> None:
    weights = [torch.ones(3, 4).double().requires_grad_(), torch.ones(2, 3).double().requires_grad_()]
    factors = [stepping.Factors(torch.randn(len(w), 5).double(), torch.randn(5, w.shape[1]).double()) for w in weights]
    optimizer = torch.optim.RMSprop(weights, lr=0.1, eps=1e-30)
    expected = [
        w - 0.1 * f.left @ f.right / (0.01 * (f.left @ f.right).square()).sqrt()
        for w, f in zip(weights, factors, strict=True)
    ]
    with torch.no_grad():
        stepping.UnitSteps(optimizer, {}).step(zip(weights, factors, strict=True))
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)


def test_an_optimizer_is_called_once_a_unit_from_2_18_numbers_on() -> None:
    small = nn.Parameter(torch.zeros(3))
    for rows, is_by_unit in ((511, False), (512, True)):
        held = [small, nn.Parameter(torch.empty(rows, 512))]
        found = stepping.stepping(torch.optim.Adam(held), held, {})
        assert isinstance(found, stepping.UnitSteps) == is_by_unit, rows


def test_memory_of_a_unit_is_kept_for_others_of_its_size() -> None:
    like = torch.zeros(3, 4)
    steps = stepping.UnitSteps(torch.optim.Adam([like]), {})

    def memory(rows: int) -> torch.Tensor:
        factors = stepping.Factors(torch.zeros(rows, 2), torch.zeros(2, 4))
        return steps._of_unit([(torch.zeros(rows, 4), factors), (torch.zeros(9), torch.zeros(9))], like)

    first = memory(3)
    assert len(first) == 12, "of its dense weights alone"
    assert memory(3) is memory(2) is first
    assert len(memory(4)) == 16
    assert memory(3) is not first, "the larger one is kept"


def test_plain_steps_of_sgd_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what has a gradient, and by the optimizer itself where they are not plain."""
    seen: list[int] = []
    taken = stepping.PlainSGD.step
    monkeypatch.setattr(
        stepping.PlainSGD,
        "step",
        lambda plain, pairs: taken(plain, (seen.append(p.numel()) or (p, g) for p, g in pairs)),
    )
    held = [nn.Parameter(torch.ones(n)) for n in (2, 3)]
    held[0].grad = torch.ones(2)
    for options in ({"weight_decay": 2.0}, {"maximize": True}):
        with torch.no_grad():
            stepping.step_together(torch.optim.SGD(held, lr=0.5, **options))
    assert seen == [2]
    assert held[0].tolist() == [0, 0], "1 - 0.5 (1 + 2 1) + 0.5"
    assert held[1].tolist() == [1, 1, 1]


def test_credit_of_ones_own_is_not_passed_by() -> None:
    rule = MonoForward(dense().double())
    seen: list[int] = []
    credit = rule.assign_credit
    rule.assign_credit = lambda x, y: (seen.append(len(x)), credit(x, y))[1]  # type: ignore[method-assign]
    rule.step(*batches(1)[0], torch.optim.SGD(rule.parameters(), lr=0.1))
    assert seen == [9], "assign_credit as it was replaced"
