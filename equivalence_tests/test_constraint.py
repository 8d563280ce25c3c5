"""FOTON's constraint through training: the tolerance is kept at every step, whatever optimizer steps the weights."""

import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prograde.accelerated._arrays import few_rows
from prograde.accelerated.foton import error_projection
from prograde.accelerated.layers import forward
from prograde.accelerated.modules import OrthogonalConv2d
from prograde.accelerated.orthogonality import defect, drift, polar_factor
from prograde.accelerated.rules import Backprop, Foton, Rule, orthogonality
from prograde.accelerated.rules.foton import plain_rate
from prograde.accelerated.rules.orthogonality import (
    Known,
    KnownStep,
    Orthogonality,
    ScaledBjorck,
    _Copy,
    drift_change,
    resolution,
    tall_bounds,
    wide_bounds,
)
from prograde.equivalence_tests.placement import seeded
from prograde.equivalence_tests.sides import ReferenceSide, TwinSide
from prograde.equivalence_tests.tolerance import rms

pytestmark = [pytest.mark.places_itself, pytest.mark.usefixtures("ours_only")]
TOLERANCE = 5e-3
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.2),
    "sgd hot": lambda m: torch.optim.SGD(m.parameters(), lr=1.0),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "weight decay": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, weight_decay=1e-2),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-3),
    "adamw hot": lambda m: torch.optim.AdamW(m.parameters(), lr=3e-2),
}


@pytest.fixture(autouse=True)
def _as_wide_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests are of widths at which nothing takes long, and of what is done for those that are larger."""
    monkeypatch.setattr(orthogonality, "NARROW", 64)


class Path(NamedTuple):
    """How the constraint goes: by looking at the weights, which only the CPU does, or asynchronously."""

    device: torch.device
    asynchronous: bool

    def foton(self, model: nn.Module, **options: Any) -> Foton:
        rule = Foton(model.to(self.device), **options)
        self.take(rule)
        return rule

    def take(self, rule: Foton | Backprop) -> None:
        assert rule.orthogonality is not None
        rule.orthogonality.asynchronous = self.asynchronous

    def batches(self, n: int, features: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x.to(self.device), y.to(self.device)) for x, y in batches(n, features)]


@pytest.fixture(params=["looking", "asynchronous"])
def path(request: pytest.FixtureRequest, twin: TwinSide) -> Path:
    """The CPU's path, on the CPU whatever `--device` is, and that of the device, which is tested on the CPU too.

    Tests without it are of what only the CPU's path does, or of neither.
    """
    if request.param == "looking":
        return Path(torch.device("cpu"), False)
    return Path(twin.device, True)


def raised_by(call: Callable[[], object]) -> str:
    """The message of the error."""
    try:
        call()
    except (FloatingPointError, RuntimeError, ValueError) as error:
        return str(error)
    return "nothing raised"


def model(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batches(n: int, features: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Four noisy clusters, far from centred: large activations, hence large updates."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, features, generator=generator) + 0.5
    out = []
    for _ in range(n):
        y = torch.randint(0, 4, (16,), generator=generator)
        out.append((centres[y] + torch.randn(16, features, generator=generator), y))
    return out


def defects(rule: Foton | Backprop) -> list[float]:
    return [defect(unit.module.weight.detach()).item() for unit in rule.units[:-1]]


@pytest.mark.parametrize("tell", [True, False], ids=["told the optimizer", "not told"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("widths", [(80, 64, 64, 4), (64, 96, 80, 4)], ids=["shrinking", "growing"])
def test_the_tolerance_is_kept_at_every_step(optimizer: str, widths: tuple[int, ...], tell: bool) -> None:
    torch.manual_seed(0)
    rule = Foton(model(*widths))
    assert max(defects(rule)) <= 1e-5, "orthogonal from the start"
    steps = OPTIMIZERS[optimizer](rule)
    worst = 0.0
    for x, y in batches(80, widths[0]):
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain(steps if tell else None)
        worst = max(worst, *defects(rule))
    assert worst <= TOLERANCE


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "widths",
    [
        pytest.param((80, 64, 64, 4), id="shrinking", marks=pytest.mark.smoke),
        pytest.param((64, 96, 80, 4), id="growing"),
    ],
)
def test_the_tolerance_is_kept_asynchronously_or_its_violation_raised(
    twin: TwinSide, optimizer: str, widths: tuple[int, ...]
) -> None:
    """With a rate of 1 and no decay a weight is left with singular values 65 times as large as others: too much."""
    path = Path(twin.device, True)
    torch.manual_seed(0)
    rule = path.foton(model(*widths))
    steps = OPTIMIZERS[optimizer](rule)
    violated: list[int] = []
    raised = ""
    number = 0
    for number, (x, y) in enumerate(path.batches(40, widths[0]), 1):
        rule.assign_credit(x, y)
        steps.step()
        try:
            rule.constrain(steps)
        except FloatingPointError as error:
            raised = str(error)
            break
        if max(defects(rule)) > TOLERANCE:
            violated.append(number)
    assert not violated or optimizer == "sgd hot", f"tolerance exceeded at steps {violated}"
    assert not violated or number - violated[0] <= 16, "raised at most 16 steps late"
    assert not raised or f"at step {violated[0]}; lower the learning rate" in raised, "the step is named"


@pytest.mark.parametrize("rate", [1e-2, 3e-2])
def test_adam_at_high_rates(path: Path, rate: float) -> None:
    """At 1e-2 a step of order 3 from a weight rescaled by its bound exceeded the tolerance, 16 times in 300 steps."""
    torch.manual_seed(0)
    rule = path.foton(model(64, 128, 128, 4))
    steps = torch.optim.Adam(rule.parameters(), lr=rate)
    worst = 0.0
    for x, y in path.batches(30, 64):
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain()
        worst = max(worst, *defects(rule))
    assert worst <= TOLERANCE


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_tolerance_is_kept_in_a_wide_network(path: Path, optimizer: str) -> None:
    """Wide enough for drifts to be undone in few directions, and seldom by the Gram matrix."""
    torch.manual_seed(0)
    rule = path.foton(model(300, 280, 320, 4))
    steps = OPTIMIZERS[optimizer](rule)
    worst = 0.0
    for x, y in path.batches(60 if not path.asynchronous else 20, 300):
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain()
        worst = max(worst, *defects(rule))
    assert worst <= TOLERANCE


@pytest.mark.parametrize("width", [64, 512])
def test_the_polar_factor_is_reached_asynchronously(twin: TwinSide, width: int) -> None:
    """Of wide and tall weights with singular values from 0.5 to 2, which Adam's first step at 1e-3 leaves in 2,048."""
    path = Path(twin.device, True)
    torch.manual_seed(0)
    rule = path.foton(model(width, width + 8, width, 4))
    generator = torch.Generator().manual_seed(0)
    polar = []
    with torch.no_grad():
        for unit in rule.units[:-1]:
            weight = unit.module.weight
            u, s, vt = torch.linalg.svd(torch.randn(weight.shape, generator=generator).double(), full_matrices=False)
            s = 1 + torch.randn(s.shape, generator=generator).double() / 50
            s[:2] = torch.tensor([2.0, 0.5])
            polar.append((u @ vt).float())
            weight.copy_((u * s) @ vt)
    rule.constrain()
    for unit, expected in zip(rule.units[:-1], polar, strict=True):
        gap = (unit.module.weight.detach().cpu() - expected).double()
        # The factors of the first step, up to 8 and 1, may have 11 digits each.
        rounding = 8 * 2.0**-10 if torch.get_float32_matmul_precision() == "high" else 0
        assert torch.linalg.matrix_norm(gap, 2) <= 3.4e-4 + rounding, "polar factor"


def test_the_parts_of_a_kernel(path: Path) -> None:
    """Of one shape each: those of tall bases, and the mixing."""
    torch.manual_seed(0)
    network = nn.Sequential(OrthogonalConv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4))
    rule = path.foton(network)
    steps = OPTIMIZERS["adam"](rule)
    for x, y in path.batches(8, 64):
        rule.assign_credit(x.reshape(-1, 4, 4, 4), y)
        steps.step()
        rule.constrain()
        worst = max(defect(weight.detach()).item() for weight in rule.orthogonality.weights().values())
        assert worst <= TOLERANCE


def test_backprop_under_the_same_constraint(path: Path) -> None:
    torch.manual_seed(0)
    rule = Backprop(model(80, 64, 64, 4).to(path.device), orthogonal=True)
    path.take(rule)
    steps = OPTIMIZERS["momentum"](rule)
    for x, y in path.batches(60, 80):
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain(steps)
        assert max(defects(rule)) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:Foton. the weights were changed twice")  # the other's are set right by hand
def test_telling_the_optimizer_gives_the_same_weights() -> None:
    """Plain SGD, float64: thin products and the Gram matrix both lead to the polar factor."""
    torch.manual_seed(0)
    rule = Foton(model(80, 64, 64, 4).double())
    other = copy.deepcopy(rule)
    told, untold = (torch.optim.SGD(r.parameters(), lr=0.05) for r in (rule, other))
    for x, y in batches(20, 80):
        for r, o in ((rule, told), (other, untold)):
            r.assign_credit(x.double(), y)
            o.step()
        rule.constrain(told)
        for unit in other.units[:-1]:
            with torch.no_grad():
                unit.module.weight.copy_(polar_factor(unit.module.weight))
    for ours, theirs in zip(rule.parameters(), other.parameters(), strict=True):
        gap = (ours - theirs).detach().cpu().numpy()
        assert rms(gap) <= 1e-7 * rms(theirs.detach().cpu().numpy())


@pytest.mark.parametrize("rate", [0.003, 0.05, 0.5])
def test_with_and_without_the_optimizer_weights_differ_in_their_stretch_alone(rate: float) -> None:
    """Without it a drift within the tolerance is left; the polar factor is that of the step either way."""
    torch.manual_seed(0)
    rule = Foton(model(80, 64, 64, 4).double())
    for x, y in batches(6, 80):
        other = copy.deepcopy(rule)
        before = [unit.module.weight.detach().clone() for unit in rule.units[:-1]]
        for r, tell in ((rule, True), (other, False)):
            steps = torch.optim.SGD(r.parameters(), lr=rate)
            r.assign_credit(x.double(), y)
            steps.step()
            stepped = [unit.module.weight.detach().clone() for unit in r.units[:-1]]
            r.constrain(steps if tell else None)
        for old, new, *units in zip(before, stepped, rule.units, other.units, strict=False):
            for weight in (unit.module.weight.detach() for unit in units):
                gap = polar_factor(weight) - polar_factor(new)
                assert rms(gap.cpu().numpy()) <= 0.05 * rms((new - old).cpu().numpy()), (
                    "polar factor of the stepped weight"
                )
                assert defect(weight) <= TOLERANCE


@pytest.mark.parametrize("s", [1e-6, 0.3])
def test_what_a_plain_step_changes_is_known_by_its_factors(s: float) -> None:
    """Of a weight that need not be orthogonal, I - G of rows and its largest entry; this just so for a short step."""
    generator = torch.Generator().manual_seed(0)
    weight, delta, z = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((16, 20), (4, 16), (4, 20))
    )
    delta[:, 3] *= 9
    rows = torch.randn(24, 16, generator=generator, dtype=torch.float64).sign()
    before = Known(rows, drift(weight, rows), 0.0)
    found = before.after(KnownStep(drift_change(rows, delta, z, z @ weight.T), s))
    stepped = weight - s * delta.T @ z
    gap = (found.drifts - drift(stepped, rows)).numpy()
    assert rms(gap) <= 1e-11, "drift of the rows"
    given_up = before.after(KnownStep(wide_bounds(delta, z, z @ weight.T), s))
    assert given_up.rows.shape == given_up.drifts.shape == (0, 16), "rows that are followed no more"
    largest = (stepped @ stepped.T - weight @ weight.T).abs().max().item()
    assert largest <= found.entry * (1 + 1e-9), "bound"
    assert s > 1e-3 or found.entry <= 1.001 * largest, "bound that is reached"


PLUS = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
ORTHOGONAL_SIGNS = torch.kron(torch.kron(torch.kron(PLUS, PLUS), PLUS), PLUS)
"""As many as there are units, 16: they tell the norms of rows without an error."""


@pytest.mark.parametrize("where", ["on the diagonal", "off it", "in the eighth row"])
def test_the_largest_change_is_told_wherever_it_is(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Not in the rows with the largest norms, which have many entries of 1, or in the last of these."""
    monkeypatch.setattr(orthogonality, "CHECKS", 16)
    preactivation, delta = torch.zeros(2, 16, dtype=torch.float64), torch.zeros(2, 16, dtype=torch.float64)
    preactivation[0, 5] = 2.0
    delta[0, 5 if where == "on the diagonal" else 4] = 0.5 if where == "on the diagonal" else 0.95
    start = 9 if where == "in the eighth row" else 6
    preactivation[1, start:], delta[1, start:] = 1.0, 0.5
    change = preactivation.T @ delta + delta.T @ preactivation
    assert change[:6].abs().max() == change.abs().max(), "in a row of a small norm"
    found = drift_change(ORTHOGONAL_SIGNS, delta, torch.ones(2, 20, dtype=torch.float64), preactivation)
    assert change.abs().max() <= found.of_linear <= 2.1


def test_the_largest_of_the_other_rows_is_told_by_the_ninth_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that says more than any entry that is seen, in the proportion of the two shares."""
    monkeypatch.setattr(orthogonality, "CHECKS", 16)
    row = torch.tensor([[1.0] * 8 + [0.9] + [0.5] * 7], dtype=torch.float64)
    change = 2 * row.T @ row
    ninth = change[8].square().sum().item()
    found = drift_change(ORTHOGONAL_SIGNS.repeat(2, 1), row, row, row).of_linear
    expected = orthogonality.SHARE / orthogonality.PROBABLE * orthogonality._evenly(ninth, 16)
    assert found == pytest.approx(expected), "the ninth norm"
    assert found > change.max(), "larger than any entry"


def test_the_largest_of_normal_entries() -> None:
    """Of n^2 with a variance of 1 / n each, so that rows have a norm of 1."""
    drawn = torch.randn(400, 400, dtype=torch.float64, generator=seeded(0)) / 20
    assert 0.95 <= drawn.abs().max().item() / orthogonality._evenly(1.0, 400) <= 1.05
    assert orthogonality._evenly(9.0, 400) == pytest.approx(3 * orthogonality._evenly(1.0, 400))


def test_as_many_large_rows_as_are_looked_at_are_told_by_their_entries() -> None:
    """A ninth would be told by its norm; and the bound of the square is that of any wide weight."""
    n = 256
    signs, a, delta = (torch.randn(24, n, generator=seeded(0)).sign(), torch.randn(1, n, generator=seeded(1)).sign(),
                       torch.zeros(1, n))  # fmt: skip
    z = torch.randn(3, n, generator=seeded(2))
    delta[:, : orthogonality.ROWS] = 1
    assert drift_change(signs, delta, z[:1], a).of_linear == 2, "on the diagonal"
    delta, a = torch.randn(2, 3, n, generator=seeded(3))
    assert drift_change(signs, delta, z, a).of_square == wide_bounds(delta, z, a).of_square


@pytest.mark.parametrize("shape", [(16, 20), (16, 16), (20, 16)], ids=["wide", "square", "tall"])
def test_a_weight_that_is_not_followed_has_bounds_of_its_shape(shape: tuple[int, int]) -> None:
    constraint = held(shape)
    ((name, weight),) = constraint.weights().items()
    delta, z = (torch.randn(4, n, generator=seeded(0), dtype=torch.float64) for n in shape)
    assert constraint.change_of(name, weight, delta, z, z @ weight.T) is None, "nothing is known"
    constraint.known[name] = Known(weight.new_empty(0, 16), weight.new_empty(0, 16), 0.0)
    signs = constraint._signs(weight.device, weight.dtype, orthogonality.CHECKS, 4)
    expected = wide_bounds(delta, z, z @ weight.T) if shape[0] == 16 else tall_bounds(weight, delta, z, signs)
    assert constraint.change_of(name, weight, delta, z, z @ weight.T) == expected


@pytest.mark.parametrize(
    ("entry", "last", "is_followed"), [(1, 0, False), (1.01, 0, True), (0.1, 0.299, False), (0.1, 0.301, True)]
)
def test_rows_are_followed_where_few_steps_more_may_be_too_many(entry: float, last: float, is_followed: bool) -> None:
    """Three like the last, in shares of what is let pass."""
    constraint, delta, z = held((16, 20)), torch.ones(4, 16).double(), torch.ones(4, 20).double()
    ((name, weight),) = constraint.weights().items()
    share, rows = orthogonality.SHARE * constraint.tolerance, torch.ones(24, 16).double()
    constraint.known[name] = Known(rows, 0 * rows, entry * share, last * share)
    found = constraint.change_of(name, weight, delta, z, z @ weight.T)
    assert found is not None
    assert (found.of_rows is not None) == is_followed


def test_what_is_known_in_another_precision_is_not_used() -> None:
    constraint = held((16, 20))
    ((name, weight),) = constraint.weights().items()
    delta, z = (torch.randn(4, n, generator=seeded(0), dtype=torch.float64) for n in (16, 20))
    rows = torch.ones(3, 16)
    for dtype, is_used in ((torch.float32, False), (torch.float64, True)):
        constraint.known[name], constraint.directions[name] = Known(*[rows.to(dtype)[:0]] * 2, 0.0), rows.to(dtype)
        assert (constraint.change_of(name, weight, delta, z, z @ weight.T) is not None) == is_used, dtype
        assert constraint._held_directions(name, weight).shape == (3 * is_used, 16), dtype


@pytest.mark.parametrize(("shape", "batch"), [((512, 512), 32), ((64, 512), 16), ((512, 64), 16)])
def test_factors_of_small_batches_are_of_use(shape: tuple[int, int], batch: int) -> None:
    """Of a quarter of 128, or of the narrower side; where each step is seen and the weight is looked at."""
    weight = torch.empty(shape)
    assert [held((2, 2)).knows_steps_of(n, weight) for n in (batch, batch + 1)] == [True, False]
    assert not held((2, 2), every=2).knows_steps_of(1, weight)
    assert not held((2, 2), asynchronous=True).knows_steps_of(1, weight)
    assert not ScaledBjorck({}).knows_steps_of(1, weight), "which has no use for them"


def test_a_weight_known_to_be_within_its_share_is_not_looked_at(looks: list[torch.Tensor]) -> None:
    """Up to that share itself."""
    constraint = held((80, 80))
    ((name, weight),) = constraint.weights().items()
    signs = constraint._signs(weight.device, weight.dtype, orthogonality.CHECKS + orthogonality.NEW, 80)
    share = orthogonality.SHARE * constraint.tolerance
    for entry, seen in ((share, 0), (share * 1.001, 1)):
        known = Known(signs[:0], signs[:0], entry)
        assert constraint._kept(name, weight, signs, known)
        assert (len(looks), constraint.known[name] is known) == (seen, not seen), entry


@pytest.mark.parametrize(
    ("drifts", "done", "is_kept"),
    [
        ([0.5], "", True), ([0.51], "set right", False), ([0.5, 0.5], "set right", False),
        ([0.5, 0.51], "set right, looked at", True), ([999.0], "set right, looked at", True), ([1000.0], "", False),
    ],
)  # fmt: skip
def test_what_is_done_goes_by_the_norm_of_the_drift(
    drifts: list[float], done: str, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an orthogonal weight that is said to have these norms in rows of I - G: squares of 1/4, 1/2 and 1e6 in all."""
    seen: list[str] = []
    within = orthogonality.polar_within
    monkeypatch.setattr(orthogonality, "drift", lambda w, rows: seen.append("looked at") or drift(w, rows))
    monkeypatch.setattr(orthogonality, "polar_within", lambda *a, out: seen.append("set right") or within(*a, out=out))
    constraint = held((80, 80), tolerance=1.0)
    ((name, weight),) = constraint.weights().items()
    signs = constraint._signs(weight.device, weight.dtype, orthogonality.CHECKS + orthogonality.NEW, 80)
    known = Known(signs.roll(orthogonality.NEW, 0), torch.zeros_like(signs), math.inf)
    known.drifts[:, : len(drifts)] = torch.tensor(drifts)
    with torch.no_grad():
        assert constraint._kept(name, weight, signs, known) == is_kept
    assert ", ".join(seen) == done


@pytest.mark.parametrize(("width", "rounds"), [(320, 1), (40, 2), (20, 3)])
def test_wide_weights_are_set_right_more_often(width: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 units, whatever the longer side is, which drift in all directions."""
    seen: list[torch.Tensor] = []
    within = orthogonality.polar_within
    monkeypatch.setattr(orthogonality, "ROUND_WIDTH", width)
    monkeypatch.setattr(orthogonality, "polar_within", lambda w, q, out: seen.append(q) or within(w, q, out=out))
    constraint = held((80, 130))
    ((name, weight),) = constraint.weights().items()
    weight = 1.01 * weight.detach()
    signs = constraint._signs(weight.device, weight.dtype, orthogonality.CHECKS + orthogonality.NEW, 80)
    constraint.directions[name] = torch.randn(16, 80, dtype=torch.float64, generator=seeded(0))
    assert not constraint._kept(name, weight, signs, None)
    assert len(seen) == rounds
    assert constraint.directions[name].shape == (16, 80), "of the 24 directions, those that are sought again"


def test_signs_are_drawn_once_for_all_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many numbers as the widest has rows or columns to check."""
    constraint, seen = held((80, 100), (90, 70), (70, 70)), []
    drawn = constraint._signs
    monkeypatch.setattr(constraint, "_signs", lambda *kind: seen.append(kind[2:]) or drawn(*kind))
    constraint.step()
    assert seen == [(16, 80)]


def test_narrow_weights_are_looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint, seen = held((64, 80), (63, 80)), []
    monkeypatch.setattr(constraint, "_kept", lambda name, *given: seen.append(name) or True)
    constraint.step()
    assert seen == ["0"]


def test_entries_and_norms_just_within_their_share() -> None:
    """Of W = diag(17/16, 1), whose I - G has one entry; and of two rows of norm 1 with a product of 1/4."""
    constraint, entry = held((2, 2)), (17 / 16) ** 2 - 1
    constraint.tolerance = entry / orthogonality.SHARE
    weight = torch.diag(torch.tensor([17 / 16, 1.0]))
    assert constraint._is_within(weight)
    constraint.tolerance *= 0.999
    assert not constraint._is_within(weight)
    constraint.tolerance = 1.0
    assert constraint._is_within(torch.stack([torch.eye(16)[0], torch.full((16,), 0.25)])), "a norm of 1/2"


@pytest.mark.parametrize(("tolerance", "steps"), [(5e-3, 3), (1e-3, 3), (0.999e-3, 4)])
def test_wide_and_tall_weights_of_a_size_are_restored_in_one(
    tolerance: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By three steps down to a tolerance of 1e-3, and by four below."""
    constraint, seen = held((16, 20), (20, 16), asynchronous=True, tolerance=tolerance), []
    restored = orthogonality.polar_iteration
    monkeypatch.setattr(orthogonality, "polar_iteration", lambda w, n: seen.append((*w.shape, n)) or restored(w, n))
    with torch.no_grad():
        for weight in constraint.weights().values():
            weight *= 1.1
    constraint.step()
    assert seen == [(2, 16, 20, steps)]
    assert max(defect(weight.detach()).item() for weight in constraint.weights().values()) <= tolerance


@pytest.mark.parametrize("frozen", [False, True])
def test_a_defect_of_the_tolerance_itself_is_within_it(frozen: bool) -> None:
    """Of a lost direction it is 1."""
    constraint = held((3, 5), tolerance=1.0, asynchronous=True)
    ((_, weight),) = constraint.weights().items()
    with torch.no_grad():
        weight[0] = 0
    weight.requires_grad_(not frozen)
    for tolerance in (1.0, 0.999):
        constraint.tolerance, said = tolerance, ""
        try:
            constraint.initialise() if frozen else constraint.step()
            constraint.settle()
        except (FloatingPointError, ValueError) as error:
            said = str(error)
        assert bool(said) == (tolerance < 1), tolerance


EVERY_SIGN = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
"""All sign vectors of 4 samples: they estimate a norm without an error."""


@pytest.mark.parametrize("shape", [(16, 20), (20, 16)], ids=["wide", "tall"])
@pytest.mark.parametrize("s", [1e-6, 0.3])
def test_a_plain_step_changes_no_entry_by_more_than_its_bounds(shape: tuple[int, int], s: float) -> None:
    """And one of one sample, against the weight where z reaches farthest, by just that."""
    generator = torch.Generator().manual_seed(0)
    n_out, n_in = shape
    is_wide = n_out <= n_in
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)

    def change(delta: torch.Tensor, z: torch.Tensor, s: float) -> tuple[float, float]:
        signs = EVERY_SIGN[:, : len(z)]
        bounds = wide_bounds(delta, z, z @ weight.T) if is_wide else tall_bounds(weight, delta, z, signs)
        bound = Known(delta[:0], delta[:0], 0.0).after(KnownStep(bounds, s)).entry
        old, new = (w if is_wide else w.T for w in (weight, weight - s * delta.T @ z))
        return float((new @ new.T - old @ old.T).abs().max()), bound

    for batch in (1, 2, 4):
        delta, z = (torch.randn(batch, n, generator=generator, dtype=torch.float64) for n in (n_out, n_in))
        delta[:, 3] *= 9
        largest, bound = change(delta, z, s)
        assert largest <= bound, "bound"
    z = torch.randn(1, n_in, generator=generator, dtype=torch.float64)
    reach = (z @ weight.T if is_wide else z)[0]
    at = int(reach.abs().argmax())
    towards = torch.eye(n_out, dtype=torch.float64)[at] if is_wide else weight[:, at]
    largest, bound = change(-reach[at].sign() * towards[None], z, s)
    assert math.isclose(largest, bound, rel_tol=1e-9), "bound that is reached"


def test_bounds_are_products_of_the_largest_columns() -> None:
    """2 |A_i| |delta_j| and |delta_i|^2 |z|^2 of a wide weight; of a tall one the same of its transpose."""
    delta, z, weight = (torch.randn(shape, generator=seeded(0)).double() for shape in ((4, 16), (4, 20), (16, 20)))

    def bounds(first: torch.Tensor, second: torch.Tensor, whole: torch.Tensor) -> list[float]:
        of_first, of_second = (torch.linalg.vector_norm(of, dim=0).max() for of in (first, second))
        return [(2 * of_first * of_second).item(), (of_second * whole.norm()).item() ** 2]

    expected = bounds(z @ weight.T, delta, z)
    assert wide_bounds(delta, z, z @ weight.T)[:2] == pytest.approx(expected)
    assert tall_bounds(weight.T, z, delta, EVERY_SIGN)[:2] == pytest.approx(expected)


def large_batches(n: int, features: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of 64 samples, too many for the factors of a step to be of use."""
    x, y = (torch.cat(parts) for parts in zip(*batches(4 * n, features), strict=True))
    return list(zip(x.split(64), y.split(64), strict=True))


def steps_taken(rule: Foton, optimizer: torch.optim.Optimizer, data: list[Any], fused: bool = False) -> float:
    """The largest defect after any of the steps."""
    worst = 0.0
    for x, y in data:
        if fused:
            rule.step(x, y, optimizer)
        else:
            rule.assign_credit(x, y)
            optimizer.step()
            rule.constrain(optimizer)
        worst = max(worst, *defects(rule))
    return worst


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The weights that are read for products with vectors."""
    found: list[torch.Tensor] = []

    def watched(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        found.append(weight)
        return drift(weight, rows)

    monkeypatch.setattr(orthogonality, "drift", watched)
    return found


@pytest.mark.parametrize("fused", [True, False], ids=["step", "apart"])
def test_a_weight_that_takes_plain_steps_is_not_read_for_its_check(looks: list[torch.Tensor], fused: bool) -> None:
    """Unless something else has changed it. What is known is what a look finds, through steps and what undoes them."""
    torch.manual_seed(0)
    rule, data = Foton(model(80, 80, 80, 4).double()), [(x.double(), y) for x, y in large_batches(12, 80)]
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-2)
    for batch in data:
        assert steps_taken(rule, optimizer, [batch], fused) <= TOLERANCE
        assert len(looks) == 2, "looks in 12 steps of 2 weights"
        for name, weight in rule.orthogonality.weights().items():
            rows, drifts, entry, _ = rule.orthogonality.known[name]
            assert len(rows), "rows that are followed"
            gap = (drifts - drift(weight.detach(), rows))[orthogonality.NEW :]
            assert rms(gap.numpy()) <= 1e-12, "what is known"
            assert defect(weight.detach()) <= entry / orthogonality.SHARE, "what is known of entries"
    with torch.no_grad():
        rule.units[1].module.weight.mul_(1.1)
    assert steps_taken(rule, optimizer, data[:1], fused) <= TOLERANCE, "changed by another"
    assert len(looks) > 2, "a look after a change by another"
    optimizer.param_groups[0]["lr"] = 0.5
    assert steps_taken(rule, optimizer, data, fused) <= TOLERANCE, "at a rate of 0.5"


def test_no_entry_is_looked_at_that_no_step_can_have_brought_far(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    rule, data = Foton(model(80, 80, 80, 4)), large_batches(6, 80)
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-4)
    steps_taken(rule, optimizer, data[:1])
    monkeypatch.setattr(Orthogonality, "_entry", refuse)
    assert steps_taken(rule, optimizer, data[1:]) <= TOLERANCE


@pytest.mark.parametrize("widths", [(80, 80, 80, 4), (70, 90, 4)], ids=["wide", "tall"])
@pytest.mark.parametrize(("rate", "is_read"), [(2e-4, False), (1e-2, True)], ids=["short", "long"])
def test_weights_are_followed_where_bounds_do_not_do(
    looks: list[torch.Tensor], widths: tuple[int, ...], rate: float, is_read: bool
) -> None:
    """After short steps rows are given up; tall weights have none, and are read where bounds say no more."""
    torch.manual_seed(0)
    rule, data = Foton(model(*widths).double()), [(x.double(), y) for x, y in large_batches(8, widths[0])]
    optimizer = torch.optim.SGD(rule.parameters(), lr=rate)
    steps_taken(rule, optimizer, data[:2])
    before = len(looks)
    for batch in data[2:]:
        assert steps_taken(rule, optimizer, [batch]) <= TOLERANCE
        for name, weight in rule.orthogonality.weights().items():
            found = rule.orthogonality.known[name]
            is_followed = is_read and weight.shape[0] <= weight.shape[1]
            assert bool(len(found.rows)) == is_followed, "rows that are followed"
            assert defect(weight.detach()) <= found.entry / orthogonality.SHARE, "what is known of entries"
    assert (len(looks) > before) == (is_read and len(widths) == 3), "read"


def test_what_is_known_of_weights_is_resumed_and_copied() -> None:
    """So that the next look comes when it would have."""
    torch.manual_seed(0)
    rule, data = Foton(model(80, 80, 80, 4)), large_batches(12, 80)
    steps_taken(rule, torch.optim.SGD(rule.parameters(), lr=1e-3), data[:6])
    resumed, copied = Foton(model(80, 80, 80, 4)), copy.deepcopy(rule)
    resumed.load_state_dict(rule.state_dict())
    assert rule.orthogonality.known, "something is known"
    for other in (rule, resumed, copied):
        steps_taken(other, torch.optim.SGD(other.parameters(), lr=1e-3), data[6:])
        for name, known in rule.orthogonality.known.items():
            found = other.orthogonality.known[name]
            assert torch.equal(found.drifts, known.drifts), "what is known"
            assert found[2:] == known[2:], "what is known"
        for a, b in zip(rule.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b), "weights"


def test_a_clipped_gradient_is_no_plain_step() -> None:
    """The gradient was changed after the rule wrote it, so the factors no longer tell what was applied."""
    torch.manual_seed(0)
    rule = Foton(model(80, 64, 64, 4))
    steps = OPTIMIZERS["sgd"](rule)
    for x, y in batches(20, 80):
        rule.assign_credit(x, y)
        nn.utils.clip_grad_norm_(rule.parameters(), 0.05)
        steps.step()
        taken = [name for name, credit in rule._last_step.items() if credit.was_applied()]
        assert not taken, f"plain steps of {taken} would not lead to the nearest orthogonal matrix"
        stepped = [unit.module.weight.detach().clone() for unit in rule.units[:-1]]
        rule.constrain(steps)
        for unit, weight in zip(rule.units[:-1], stepped, strict=True):
            gap = (unit.module.weight.detach() - polar_factor(weight)).cpu().numpy()
            assert rms(gap) <= TOLERANCE * rms(weight.cpu().numpy()), "not the nearest orthogonal matrix"


def test_which_optimizers_take_plain_steps() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    assert plain_rate(torch.optim.SGD([parameter], lr=0.25), parameter) == 0.25, "plain rate"
    assert plain_rate(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.25), parameter) is None, "plain rate"
    assert plain_rate(None, parameter) is None, "plain rate"
    for options in ({"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}):
        assert plain_rate(torch.optim.SGD([parameter], lr=0.25, **options), parameter) is None, "plain rate"
    assert plain_rate(torch.optim.Adam([parameter], lr=0.25), parameter) is None, "plain rate"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_resuming_from_a_state_dict_is_exact(path: Path, optimizer: str) -> None:
    """Bit for bit, the schedule of measurements included."""
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4))
    steps = OPTIMIZERS[optimizer](rule)
    data = path.batches(50, 80)

    def train(rule: Foton, steps: torch.optim.Optimizer, part: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for x, y in part:
            rule.assign_credit(x, y)
            steps.step()
            rule.constrain(steps)

    train(rule, steps, data[:25])
    other = path.foton(model(80, 64, 64, 4))
    other_steps = OPTIMIZERS[optimizer](other)
    other.load_state_dict(copy.deepcopy(rule.state_dict()))
    other_steps.load_state_dict(copy.deepcopy(steps.state_dict()))
    train(rule, steps, data[25:])
    train(other, other_steps, data[25:])
    for ours, theirs in zip(rule.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), "weights"
    ours, theirs = (r.orthogonality.get_extra_state() for r in (rule, other))
    assert (ours["steps"], ours["unread"]) == (theirs["steps"], theirs["unread"])
    assert ours["directions"].keys() == theirs["directions"].keys(), "directions"
    assert all(torch.equal(found, theirs["directions"][name]) for name, found in ours["directions"].items())


def test_the_tolerance_is_kept_when_the_drift_speeds_up(path: Path) -> None:
    """A rate that was harmless for 60 steps grows ten-thousandfold."""
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4))
    steps = torch.optim.SGD(rule.parameters(), lr=1e-5, momentum=0.9)
    for number, (x, y) in enumerate(path.batches(120, 80)):
        if number == 60:
            steps.param_groups[0]["lr"] = 0.1
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain(steps)
        assert max(defects(rule)) <= TOLERANCE, f"step {number}"


@pytest.mark.parametrize("largest", [0.02, 0.3, 0.6, 0.89, 0.97, 1.7, 30.0])
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (6, 6), (20, 64), (64, 20)])
@pytest.mark.parametrize("tolerance", [5e-3, 1e-4])
def test_a_restored_weight_is_within_the_tolerance(largest: float, shape: tuple[int, int], tolerance: float) -> None:
    """One call of `constrain` from defects of any size, in all directions and in one alone; no direction is turned."""
    generator = torch.Generator().manual_seed(1)
    for spread in (0, 2):  # one large singular value, or many
        rule = Foton(model(shape[1], shape[0], 2), orthogonality_tolerance=tolerance)
        weight = rule.units[0].module.weight
        with torch.no_grad():
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
            s = 1 + largest * torch.rand(s.shape, generator=generator) ** (20 if spread == 0 else 1)
            s[0] = (1 + largest) ** 0.5
            weight.copy_((u * s) @ vt)
        rule.constrain()
        assert defect(weight.detach()) <= tolerance
        assert torch.linalg.matrix_norm(weight.detach() - u @ vt, 2) < 0.1, "not the nearest orthogonal matrix"


def test_narrow_weights_are_restored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide and tall ones, whatever their drifts are: as each would be by itself, by a few dispatches for each."""
    torch.manual_seed(0)
    monkeypatch.setattr(orthogonality, "NARROW", 18)
    rule = Foton(model(*[16, 20] * 8, 4).double())
    assert rule.orthogonality is not None
    scales = [1, 1 + 1e-4, 1 + 1e-2, 1 - 3e-2, 1 + 3e-2, 1.1, 0.8, 2.0, 1e-2]
    with torch.no_grad():
        for index, weight in enumerate(rule.orthogonality.weights().values()):
            q = torch.diag(torch.linspace(1, scales[index % len(scales)], len(weight), dtype=weight.dtype))
            weight.copy_(q @ weight)
    other = copy.deepcopy(rule)
    counted = Dispatches()
    with counted:
        rule.constrain()
    assert counted.number < 15 * len(rule.units), "dispatches"
    assert other.orthogonality is not None
    for (name, found), alone in zip(rule.orthogonality.weights().items(), other.units, strict=False):
        held = Orthogonality({name: (alone.module, "weight")})
        held.step()
        gap = (found - alone.module.weight).detach()
        assert rms(gap.numpy()) <= 1e-13, f"layer '{name}' by itself"


class Dispatches(TorchDispatchMode):
    """Counts operations."""

    number = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), options: Any = None) -> Any:
        self.number += 1
        return operation(*args, **(options or {}))


def holding(weight: torch.Tensor, tolerance: float = TOLERANCE) -> tuple[Foton, torch.Tensor]:
    """A rule with that weight in its first layer, put there after construction."""
    torch.manual_seed(0)
    rule = Foton(model(weight.shape[1], weight.shape[0], 2).to(weight.dtype), orthogonality_tolerance=tolerance)
    held = rule.units[0].module.weight.detach()
    held.copy_(weight)
    return rule, held


FOREIGN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ten times as large": lambda q: 10 * q,
    "a thousandth": lambda q: 1e-3 * q,
    "0.9 times": lambda q: 0.9 * q,
    "1e12 times": lambda q: 1e12 * q,
    "as PyTorch draws it": lambda q: nn.Linear(q.shape[1], q.shape[0]).weight.detach().to(q),
    "zero": torch.zeros_like,
    "of rank one": torch.ones_like,
    "half its rows zero": lambda q: torch.cat([q[: len(q) // 2], 0 * q[len(q) // 2 :]]),
    "its rows in pairs": lambda q: q[torch.arange(len(q)) // 2],
    "one large direction": lambda q: q + 3e9 * q[:1].T @ q[1:2] if q.shape[0] == q.shape[1] else 1e9 * q,
}


@pytest.mark.parametrize("width", [48, 128])
@pytest.mark.parametrize("name", FOREIGN)
def test_weights_put_there_by_others_are_within_the_tolerance_after_one_step(name: str, width: int) -> None:
    """However far off, and of whatever rank: what a checkpoint, an initialiser or a wild step may leave."""
    generator = torch.Generator().manual_seed(0)
    q = polar_factor(torch.randn(width, width, generator=generator))
    rule, held = holding(FOREIGN[name](q))
    rule.constrain()
    assert torch.isfinite(held).all()
    found = defect(held).item()
    assert found <= TOLERANCE, f"found {found}"


@pytest.mark.parametrize("width", [48, 96])
def test_the_tolerance_is_kept_under_a_slow_even_drift(width: int) -> None:
    """All singular values shrink by 1e-4 a step, as under weight decay: no direction stands out."""
    rule, held = holding(polar_factor(torch.randn(width, width, generator=torch.Generator().manual_seed(0))))
    worst = 0.0
    for _ in range(150):
        held.mul_(1 - 1e-4)
        rule.constrain()
        worst = max(worst, defect(held).item())
    assert worst <= TOLERANCE


def with_gram(g: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a Gram matrix."""
    eigenvalues, vectors = torch.linalg.eigh(g)
    return (vectors * eigenvalues.sqrt()) @ vectors.T


def test_one_pair_of_rows_is_found() -> None:
    """One entry of G - I among zeros."""
    g = torch.eye(512, dtype=torch.float64)
    g[100, 200] = g[200, 100] = 9e-3
    rule, held = holding(with_gram(g))
    rule.constrain()
    found = defect(held).item()
    assert found <= TOLERANCE, f"found {found}"


@pytest.mark.parametrize("seed", range(2))
def test_one_pair_of_rows_is_found_among_many_that_are_within_the_tolerance(seed: int) -> None:
    """80 rows whose small entries add up to larger norms than that of the pair with the one large entry.

    Not at once, but when all entries are looked at next.
    """
    generator = torch.Generator().manual_seed(seed)
    n = 1024
    g = torch.eye(n, dtype=torch.float64)
    block = 1.2e-3 * (torch.randint(0, 2, (80, 80), generator=generator) * 2.0 - 1).triu(1)
    g[:80, :80] += block + block.T
    g[100, 200] = g[200, 100] = 7e-3
    rule, held = holding(with_gram(g))
    for _ in range(64):
        rule.constrain()
    found = defect(held).item()
    assert found <= TOLERANCE, f"found {found}"


@pytest.mark.parametrize("shape", [(256, 256), (256, 300), (300, 256)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_entry_of_the_diagonal_is_found_at_once(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Among rows whose small entries add up to larger norms."""
    generator = torch.Generator().manual_seed(0)
    g = torch.eye(256, dtype=torch.float64)
    block = 1.2e-3 * (torch.randint(0, 2, (80, 80), generator=generator) * 2.0 - 1).triu(1)
    g[:80, :80] += block + block.T
    g[200, 200] = 1.007
    rows = polar_factor(torch.randn(256, max(shape), generator=generator, dtype=torch.float64))
    weight = with_gram(g) @ rows
    rule, held = holding((weight.T if shape[0] > shape[1] else weight).to(dtype))
    rule.constrain()
    found = defect(held).item()
    assert found <= TOLERANCE, f"found {found}"


@pytest.mark.parametrize("width", [16, 63, 64, 200])
def test_no_drift_stays_unseen(width: int) -> None:
    """E in the null space of the first step's sign vectors: seen at once or, in wide weights, a step later."""
    q = polar_factor(torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    rule, held = holding(q)
    rule.constrain()
    signs = rule.orthogonality._signs(
        torch.device("cpu"), torch.float64, orthogonality.CHECKS + orthogonality.NEW, width
    )
    null = torch.linalg.svd(signs)[2][min(len(signs), width - 1) :]
    rule, held = holding((torch.eye(width) + 0.1 * null.T @ null) @ q)
    for _ in range(2):
        rule.constrain()
    found = defect(held).item()
    assert found <= TOLERANCE, f"found {found}"


def test_an_even_drift_of_many_small_entries_is_seen() -> None:
    """Every entry of G - I within the tolerance, yet a singular value far from 1: no Bjorck step may turn it over."""
    n = 512
    ones = torch.ones(n, 1, dtype=torch.float64) / n**0.5
    rule = Foton(model(n, n, 2).double())
    weight = rule.units[0].module.weight
    with torch.no_grad():
        weight.copy_(torch.eye(n) + 0.9 * ones @ ones.T)
    assert defect(weight.detach()) < 6e-3
    rule.constrain()
    assert torch.linalg.eigvals(weight.detach()).real.min() > 0.9


def test_replaced_parameters_are_the_ones_constrained(path: Path) -> None:
    """load_state_dict(assign=True) puts other tensors into the model."""
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4))
    rule.load_state_dict(copy.deepcopy(rule.state_dict()), assign=True)
    steps = OPTIMIZERS["momentum"](rule)
    for x, y in path.batches(20, 80):
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain(steps)
        assert max(defects(rule)) <= TOLERANCE


def test_products_in_tf32_resolve_less() -> None:
    """On a GPU alone, for which a fake tensor stands here."""
    rule = Foton(model(4, 3, 2), orthogonality_tolerance=9e-4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        rule.constrain()
        with FakeTensorMode():
            rule.model[0].weight = nn.Parameter(torch.ones(3, 4, device="cuda"))
        found = raised_by(rule.constrain)
    finally:
        torch.set_float32_matmul_precision(before)
    assert re.match(r"tolerance: 0.0009, .* 0.00098, what torch.float32 with TF32 products resolves", found), found


@pytest.mark.parametrize(
    "convert", [lambda rule: rule.bfloat16(), lambda rule: rule.model.bfloat16()], ids=["rule", "model"]
)
def test_a_conversion_to_a_precision_that_cannot_resolve_the_tolerance_is_refused(
    path: Path, convert: Callable[[Foton], object]
) -> None:
    """At the first step, since a module isn't asked before it is converted."""
    rule = path.foton(model(80, 64, 64, 4))
    convert(rule)
    found = raised_by(rule.constrain)
    assert re.match(r"tolerance: 0.005, .* 0.016, what torch.bfloat16 resolves in layer '0'; .* finer", found), found


BROKEN: dict[str, tuple[Callable[[torch.Tensor], object], str]] = {
    "not finite": (lambda w: w[0, 0].fill_(float("nan")), "not finite"),
    "of lost rank": (lambda w: w[0].zero_(), r"\|G - I\| up to 1, tolerance 0.005,"),
    "a thousand times as large in a row": (lambda w: w[0].mul_(1e3), r"\|G - I\| up to 0.98, tolerance 0.005,"),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_weight_that_cannot_be_restored_asynchronously_is_named(
    twin: TwinSide, kind: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the step, and at most 16 steps late, where the device is that much behind."""
    path = Path(twin.device, True)
    if late:
        monkeypatch.setattr(_Copy, "has_arrived", lambda copy: False)
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4))
    rule.constrain()
    spoil, what = BROKEN[kind]
    with torch.no_grad():
        spoil(rule.units[1].module.weight)
    rule.constrain()
    if path.device.type != "cpu":
        torch.accelerator.synchronize()
    for _ in range(15 if late else 0):
        rule.constrain()
    found = raised_by(rule.constrain)
    assert re.match(f"weight of layer '2': {what} at step 2; lower the learning rate", found), found


@pytest.mark.parametrize("build", [Foton, lambda model: Backprop(model, orthogonal=True)])
def test_a_violation_in_the_last_step_is_raised_at_the_epochs_end(
    build: Callable[[nn.Module], Rule], twin: TwinSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Copy, "has_arrived", lambda copy: False)
    rule = build(model(80, 64, 64, 4).to(twin.device))
    rule.orthogonality.asynchronous = True
    with torch.no_grad():
        rule.units[1].module.weight[0] = 0
    rule.constrain()
    assert "weight of layer '2'" in raised_by(lambda: rule.calibrate([]))
    rule.calibrate([])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda rule: pickle.loads(pickle.dumps(rule)), None])
def test_a_violation_is_raised_by_copies_too(twin: TwinSide, copied: Callable[[Foton], Foton] | None) -> None:
    """Those of the rule, and one that has taken its state."""
    path = Path(twin.device, True)
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4))
    with torch.no_grad():
        rule.units[1].module.weight[0] = 0
    rule.constrain()
    if copied is None:
        other = path.foton(model(80, 64, 64, 4))
        other.load_state_dict(copy.deepcopy(rule.state_dict()))
    else:
        other = copied(rule)
    found = raised_by(other.constrain)
    assert re.match(r"weight of layer '2': .* at step 1;", found), found


def test_one_copy_a_step_for_all_weights(twin: TwinSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else of a step is read by the host."""
    path = Path(twin.device, True)
    rule = path.foton(model(*[8] * 25, *[6] * 25, 4))
    read: list[int] = []
    to = torch.Tensor.to

    def copy_to(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if args[:1] == ("cpu",):
            assert options == {"non_blocking": True}
            read.append(tensor.numel())
        return to(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", copy_to)
    for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    rule.constrain()
    assert read == [49], "one copy for all weights"


def test_a_step_that_a_graph_repeats_is_read_by_settle_alone(twin: TwinSide, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, told that a graph is captured: the largest defect of each weight is gathered where it is."""
    path = Path(twin.device, True)
    rule = path.foton(model(80, 64, 64, 4))
    assert rule.orthogonality is not None
    other = copy.deepcopy(rule)
    rule.constrain()
    with monkeypatch.context() as patch:
        patch.setattr(orthogonality, "is_captured", lambda device: True)
        patch.setattr(orthogonality, "_Copy", refuse)
        for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
            patch.setattr(torch.Tensor, name, refuse)
        row = rule.units[1].module.weight.detach()[0]
        row.zero_()
        rule.constrain()
        row.normal_()
        for _ in range(17):
            rule.constrain()
        assert raised_by(other.constrain) == "constrain: none yet, expected one before a CUDA graph is captured"
        other.orthogonality.every = 2
        assert raised_by(other.constrain).startswith("every: 2, expected 1 while a CUDA graph is captured")
    found = raised_by(lambda: rule.calibrate([]))
    assert re.match(r"weight of layer '2': \|G - I\| up to 1, .* at a step of a CUDA graph; lower", found), found
    rule.calibrate([])


def test_a_graph_that_one_of_two_devices_captures_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    constraint, answers = held((2, 2), (2, 2), every=2), iter([False, True])
    monkeypatch.setattr(orthogonality, "is_captured", lambda device: next(answers))
    assert raised_by(constraint.step).startswith("every: 2, expected 1 while a CUDA graph is captured")


def refuse(*args: Any, **options: Any) -> None:
    raise AssertionError("the host has read a tensor")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw hot"])
def test_the_tolerance_is_kept_by_looks_at_an_accelerators_wide_weights(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, told that it is none: what it would take from LAPACK is left to products."""
    torch.manual_seed(0)
    rule = Foton(model(80, 72, 64, 4))
    monkeypatch.setattr(orthogonality, "LOOKED_AT", 64)
    monkeypatch.setattr(orthogonality, "_is_of_host", lambda weight: False)
    for name in ("basis", "polar_within", "polar_factor"):
        monkeypatch.setattr(orthogonality, name, refuse)
    restored: list[int] = []
    unseen = Orthogonality._restore_unseen
    monkeypatch.setattr(
        Orthogonality, "_restore_unseen", lambda held, weights: (restored.append(len(weights)), unseen(held, weights))
    )
    steps = OPTIMIZERS[optimizer](rule)
    worst = 0.0
    for x, y in batches(30, 80):
        rule.assign_credit(x, y)
        steps.step()
        rule.constrain()
        worst = max(worst, *defects(rule))
    assert worst <= TOLERANCE, f"found {worst}"
    assert (sum(restored) > 0) == (optimizer == "adamw hot"), "products without a look where nothing else is known"


@pytest.mark.parametrize("width", [64, 256])
@pytest.mark.parametrize("kind", ["half", "one large", "one small", "even", "large"])
def test_what_the_polar_iteration_takes(twin: TwinSide, width: int, kind: str) -> None:
    """Singular values from 1/20 to 1, or to 20, however they lie between."""
    values = {
        "half": [1.0, 0.05] * (width // 2),
        "one large": [1.0] + [0.05] * (width - 1),
        "one small": [0.05] + [1.0] * (width - 1),
        "even": torch.logspace(math.log10(0.05), 0, width).tolist(),
        "large": torch.logspace(0, math.log10(20), width).tolist(),
    }[kind]
    path = Path(twin.device, True)
    torch.manual_seed(0)
    rule = path.foton(model(width, width, 4))
    weight = rule.units[0].module.weight
    with torch.no_grad():
        weight.copy_(weight * torch.tensor(values, device=weight.device))
    rule.constrain()
    assert defect(weight.detach()).item() <= TOLERANCE


@pytest.mark.parametrize("tolerance", [5e-3, 1e-4])
def test_a_fine_tolerance_is_kept_asynchronously(twin: TwinSide, tolerance: float) -> None:
    """From singular values 50 times as large as others, in one step."""
    if tolerance < resolution(torch.ones(1, 1, device=twin.device)):
        pytest.skip("refused where products are in TF32")
    path = Path(twin.device, True)
    torch.manual_seed(0)
    rule = path.foton(model(64, 64, 4), orthogonality_tolerance=tolerance)
    weight = rule.units[0].module.weight
    with torch.no_grad():
        u, _, vt = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_((u * torch.logspace(-1, 0.65, 64).to(u)) @ vt)
    rule.constrain()
    found = defect(weight.detach()).item()
    assert found <= tolerance, f"found {found}"


def test_steps_do_where_no_singular_value_is_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of G - I's are 0.25 or -0.25: its norm as a vector is 2.5, but that of its fourth power says enough."""

    def decompose(weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError("decomposed where steps do")

    generator = torch.Generator().manual_seed(0)
    turn = polar_factor(torch.randn(100, 100, generator=generator, dtype=torch.float64))
    signs = torch.ones(100, dtype=torch.float64)
    signs[::2] = -1
    rule, held = holding(with_gram(torch.eye(100) + 0.25 * (turn * signs) @ turn.T))
    monkeypatch.setattr("prograde.accelerated.rules.orthogonality.polar_factor", decompose)
    rule.constrain()
    assert defect(held) <= TOLERANCE


def test_a_weight_that_is_not_finite_is_named() -> None:
    rule = Foton(model(80, 64, 64, 4))
    with torch.no_grad():
        rule.units[1].module.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="weight of layer '2': not finite at step 1"):
        rule.constrain()


def test_a_weight_whose_decomposition_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was seen once training had diverged."""

    def fails(*args: object, **options: object) -> None:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    rule = Foton(model(80, 64, 64, 4))
    with torch.no_grad():
        rule.units[1].module.weight.mul_(10)
    monkeypatch.setattr(torch.linalg, "svd", fails)
    with pytest.raises(FloatingPointError, match=r"weight of layer '2': with no singular value .* lower the learning"):
        rule.constrain()


@pytest.mark.smoke
def test_updates_follow_the_weights(twin64: TwinSide, path: Path) -> None:
    """F is built from the weights as they are: after steps, .grad still equals the reference's update."""
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4).double())
    steps = OPTIMIZERS["momentum"](rule)
    reference = ReferenceSide()
    for x, y in path.batches(12, 80):
        rule.assign_credit(x.double(), y)
        arrays = [(p[0].detach().cpu().numpy().copy(), p[1].detach().cpu().numpy().copy()) for p in rule.layers()]
        table = reference.activations.ACTIVATIONS
        layers = reference.layers.dense_chain(
            *zip(*arrays, strict=True), (table["relu"], table["relu"], table["identity"])
        )
        theirs = reference.foton.updates(layers, x.double().cpu().numpy(), y.cpu().numpy())
        for layer, unit in enumerate(rule.units):
            gap = rms(unit.module.weight.grad.cpu().numpy() - theirs[layer][0])
            assert gap <= 1e-12 * rms(theirs[layer][0]), f"Foton.weights[{layer}]"
        steps.step()
        rule.constrain(steps)


def test_constraint_at_every_third_step(path: Path) -> None:
    """In between the weights are left as the optimizer left them."""
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4), orthogonality_every=3)
    steps = OPTIMIZERS["momentum"](rule)
    for number, (x, y) in enumerate(path.batches(12, 80), 1):
        rule.assign_credit(x, y)
        steps.step()
        stepped = [p.detach().clone() for p in rule.parameters()]
        rule.constrain(steps)
        same = all(torch.equal(a, b) for a, b in zip(stepped, rule.parameters(), strict=True))
        assert same == (number % 3 != 0), f"step {number}"
        assert number % 3 != 0 or max(defects(rule)) <= TOLERANCE


def test_projection_rebuilt_every_third_step(path: Path) -> None:
    """In between F is as last rebuilt; evaluation and state_dict do not move the clock."""
    torch.manual_seed(0)
    rule = path.foton(model(80, 64, 64, 4), projection_every=3)
    steps = OPTIMIZERS["momentum"](rule)
    data = path.batches(8, 80)
    built: list[torch.Tensor] = []
    for number, (x, y) in enumerate(data):
        with torch.no_grad():
            now = error_projection(rule.layers(), forward(rule.layers(), x))
        if number == 4:
            rule.eval()
            rule.assign_credit(x, y)
            rule.train()
            other = path.foton(model(80, 64, 64, 4), projection_every=3)
            other.load_state_dict(copy.deepcopy(rule.state_dict()))
            rule = other
            steps = OPTIMIZERS["momentum"](rule)
        rule.assign_credit(x, y)
        if number % 3 == 0:
            built.append(now)
        assert rule.projection is not None
        assert torch.equal(rule.projection, built[-1]), f"step {number}"
        steps.step()
        rule.constrain(steps)
    assert not torch.equal(built[0], built[1])


def test_every_second_step_has_the_projection_of_the_one_before() -> None:
    """It is part of the state; and `constrain` alone, after a state is loaded, counts as no step."""
    torch.manual_seed(0)
    rule, (x, y) = Foton(model(8, 6, 6, 4), projection_every=2), batches(1, 8)[0]
    rule.assign_credit(x, y)
    assert "projection" in rule.state_dict()
    first = rule.projection
    rule.assign_credit(x, y)
    assert rule.projection is first, "once a step"
    other = Foton(model(8, 6, 6, 4), projection_every=2)
    other.load_state_dict(rule.state_dict())
    assert other.projection is not None
    assert torch.equal(other.projection, rule.projection)
    other.constrain()
    assert other.get_extra_state() == 0
    other.assign_credit(x, y)
    other.constrain()
    assert other.get_extra_state() == 1


def test_a_frozen_weight_may_change_and_freezing_is_no_change() -> None:
    rule = Foton(model(8, 6, 6, 4))
    before, weight = rule._weight_versions(), rule.units[0].module.weight
    weight.requires_grad_(False)
    assert rule._weight_versions() == before
    weight.mul_(2)
    assert rule._weight_versions() != before


def as_its_authors_run_it(weights: list[Any], x: Any, y: Any, temperature: float, rate: float) -> list[Any]:
    """One step of FOTON with ReLU: the output layer projected too, 20 Bjorck steps of order 1 after scaling."""

    def activities(h: Any) -> list[Any]:
        found = [h]
        for weight in weights[:-1]:
            found.append(np.maximum(found[-1] @ weight.T, 0))
        return found

    clean = activities(x)
    logits = temperature * clean[-1] @ weights[-1].T
    error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(len(weights[-1]))[y]
    projection = np.eye(x.shape[1])
    for weight in weights:
        projection = projection @ weight.T
    modulated = activities(x - error @ projection.T)
    deltas = [*(h - h_modulated for h, h_modulated in zip(clean[1:], modulated[1:], strict=True)), error]
    stepped = []
    for weight, delta, h in zip(weights, deltas, clean, strict=True):
        w = weight - rate * delta.T @ h / len(x)
        w = w / np.linalg.norm(w, 2)
        for _ in range(20):
            w = 1.5 * w - 0.5 * w @ w.T @ w
        stepped.append(w)
    return stepped


@pytest.mark.smoke
def test_as_published(path: Path) -> None:
    """Weights over some steps equal those of the authors' loop, the output layer's too."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.ReLU(), nn.Linear(7, 4, bias=False)
    )
    rule = path.foton(network.double(), as_published=True, temperature=2.0)
    steps = torch.optim.SGD(rule.parameters(), lr=0.1)
    weights = [p.detach().cpu().numpy().copy() for p in rule.parameters()]
    assert defect(rule.units[-1].weights[0].detach()) > 0.1, "the output layer starts as it is"
    for x, y in path.batches(4, 12):
        rule.assign_credit(x.double(), y)
        steps.step()
        rule.constrain(steps)
        weights = as_its_authors_run_it(weights, x.double().cpu().numpy(), y.cpu().numpy(), 2.0, 0.1)
        for layer, (parameter, expected) in enumerate(zip(rule.parameters(), weights, strict=True)):
            gap = rms(parameter.detach().cpu().numpy() - expected)
            assert gap <= 1e-10, f"as published: weights[{layer}] off by {gap}"


def test_the_published_step_may_be_taken_every_second_time() -> None:
    layer = nn.Linear(5, 4)
    constraint = ScaledBjorck({"layer": (layer, "weight")}, every=2)
    before = layer.weight.detach().clone()
    constraint.step()
    assert torch.equal(layer.weight, before)
    constraint.step()
    assert defect(layer.weight.detach()) <= TOLERANCE


@pytest.mark.parametrize("kind", ["whole", "labels ignored", "a part of a batch", "a network for images"])
def test_only_steps_by_one_product_of_the_batch_are_remembered(kind: str) -> None:
    """Of hidden layers, whose factors then are those of the step."""
    x, y = batches(1, 80)[0]
    loss = nn.CrossEntropyLoss(ignore_index=-1) if kind == "labels ignored" else "cross_entropy"
    network = model(80, 64, 64, 4)
    if kind == "a network for images":
        x, network = (
            x[:, :64].reshape(-1, 4, 4, 4),
            nn.Sequential(OrthogonalConv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 4)),
        )
    rule = Foton(network, loss=loss)
    if kind == "a part of a batch":
        rule.shared = SimpleNamespace(total=16, rows=slice(None), gathered=lambda rows: rows)
    rule.assign_credit(x, y)
    assert list(rule._last_step) == (["0", "2"] if kind == "whole" else [])


def test_a_temperature_is_the_losses(path: Path) -> None:
    """The loss is that of the scores times the temperature; squared errors have none."""
    torch.manual_seed(0)
    rule = path.foton(model(8, 6, 4), temperature=2.0)
    x, y = path.batches(1, 8)[0]
    with torch.no_grad():
        expected = nn.functional.cross_entropy(2 * rule(x), y)
    assert torch.allclose(rule.assign_credit(x, y), expected), "loss"


def test_a_published_step_that_diverges_is_named(twin: TwinSide) -> None:
    rule = Foton(model(8, 6, 4), as_published=True)
    with torch.no_grad():
        rule.units[-1].module.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="weight of layer '2': not finite at step 1"):
        rule.constrain()


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_the_largest_entry_is_of_the_smaller_gram_matrix(shape: tuple[int, int]) -> None:
    weight, rows = torch.randn(shape, dtype=torch.float64), torch.tensor([0, 2])
    gram = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    expected = (gram - torch.eye(min(shape))).abs()
    assert torch.isclose(orthogonality._largest_entry(weight, rows), expected[rows].max())
    assert torch.isclose(orthogonality._largest_of_diagonal(weight), expected.diagonal().max())
    assert torch.isclose(orthogonality._largest_of_diagonal(0 * weight), weight.new_ones(())), "1 too small"
    assert torch.isclose(orthogonality._largest_entry(0 * weight, rows), weight.new_ones(())), "1 too small"


def test_a_small_residual_takes_one_step_of_the_lowest_order() -> None:
    """|E| < 1 in the Frobenius norm, and the square of a column's within the tolerance: (1, 1) is proven."""
    rule = Foton(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)), orthogonality_tolerance=TOLERANCE)
    constraint = rule.orthogonality
    assert constraint is not None
    assert constraint._of_norms(orthogonality.SHARE * TOLERANCE, 0.06, 0.5) == (1, 0)
    assert constraint._of_norms(orthogonality.SHARE * TOLERANCE * 1.001, 0.06, 0.5) == (1, 1)
    assert constraint._of_norms(orthogonality.SHARE * TOLERANCE, 0.06, 0.51) == (1, 1)
    assert constraint._of_norms(0.05, 0.06, 0.9) == (1, 1)
    assert constraint._of_norms(0.05, 0.06, 1.0) is None
    assert constraint._of_norms(0.05, 0.08, 0.9) is None
    constraint.tolerance = 0.0625
    assert constraint._of_norms(0.05, 0.25, 0.9) == (1, 1), "just the tolerance"


def held(*shapes: tuple[int, int], **options: Any) -> Orthogonality:
    """Of orthogonal weights of these shapes, (n_out, n_in)."""
    layers = {f"{i}": nn.Linear(n_in, n_out, dtype=torch.float64) for i, (n_out, n_in) in enumerate(shapes)}
    constraint = Orthogonality({name: (layer, "weight") for name, layer in layers.items()}, **options)
    constraint.initialise()
    return constraint


def test_a_check_is_by_signs() -> None:
    signs = held((3, 5))._signs(torch.device("cpu"), torch.float64, 6, 5)
    assert signs.shape == (6, 5)
    assert signs.unique().tolist() == [-1, 1]


def test_norms_of_rows_are_estimated_without_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a diagonal I - G each product with signs has the norm itself."""
    rule, _ = holding(with_gram(torch.eye(80) - torch.diag(torch.linspace(0, 2e-3, 80, dtype=torch.float64))))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(rule.orthogonality, "_entry", lambda weight, squares: seen.append(squares) or 0.0)
    rule.constrain()
    assert torch.allclose(seen[0].sqrt(), torch.linspace(0, 2e-3, 80, dtype=torch.float64), atol=1e-9)


def test_an_entry_is_looked_for_where_norms_are_beyond_the_tolerance() -> None:
    """Rows of 128 entries of 4e-4 have norms of 4.5e-3, above the share of the tolerance; no entry is."""
    g = torch.eye(128, dtype=torch.float64) + 4e-4
    rule, weight = holding(with_gram(g))
    found = rule.orthogonality._entry(weight, (g - torch.eye(128)).square().sum(dim=0))
    assert 4e-4 - 1e-9 <= found <= orthogonality.SHARE * TOLERANCE


def test_even_norms_of_rows_tell_the_largest_entry() -> None:
    """The ninth of them. No entry that is seen is larger, of an orthogonal weight none, until one is made so."""
    constraint = held((128, 128), tolerance=TOLERANCE)
    ((_, weight),) = constraint.weights().items()
    weight = weight.detach()
    squares = torch.full((128,), 1e-6, dtype=torch.float64)
    squares[:9] = torch.tensor([*torch.linspace(2.4e-5, 1.6e-5, 8), 4e-6])
    found = constraint._entry(weight, squares)
    expected = orthogonality.SHARE / orthogonality.PROBABLE * orthogonality._evenly(squares[8].item(), 128)
    assert found == pytest.approx(expected)
    weight[7] += 0.002 * weight[50]
    assert constraint._entry(weight, squares) == pytest.approx(0.002, rel=1e-6), "in the eighth row"
    constraint.tolerance = found / orthogonality.SHARE
    weight[100] *= 2
    assert constraint._entry(weight, squares) == pytest.approx(3), "looked at up to the share itself"
    constraint.tolerance = TOLERANCE
    share = orthogonality.SHARE * TOLERANCE
    assert constraint._entry(weight, torch.full((128,), share**2, dtype=torch.float64)) == share, "norms that suffice"


@pytest.mark.parametrize("kind", ["rows first", "channels last"])
def test_a_kernel_is_held_as_matrices_in_its_memory(kind: str) -> None:
    """Their columns are in the order of memory, and groups of rows are matrices of their own."""
    drawn = torch.randn(6, 4, 3, 2)
    kernel = nn.Parameter(drawn.to(memory_format=torch.channels_last) if kind == "channels last" else drawn)
    expected = (kernel if kind == "rows first" else kernel.permute(0, 2, 3, 1)).flatten(1)
    for blocks, names in ((1, ["k"]), (2, ["k[0]", "k[1]"])):
        found = dict(orthogonality.matrices("k", kernel, blocks))
        assert list(found) == names
        assert torch.equal(torch.cat([*found.values()]), expected)
        assert found[names[0]].data_ptr() == kernel.data_ptr()
        assert not any(rows.requires_grad for rows in found.values()), "no graph"
    matrix = torch.randn(6, 4)
    assert orthogonality.matrices("w", matrix)[0][1] is matrix
    assert [len(rows) for _, rows in orthogonality.matrices("w", matrix, 3)] == [2, 2, 2]


def test_what_precision_resolves_is_of_the_longer_sums() -> None:
    """Of 64 products, whichever axis they are of."""
    least = 2 * torch.finfo(torch.float64).eps * 8
    assert [resolution(torch.empty(shape, dtype=torch.float64)) for shape in ((4, 64), (64, 4))] == [least, least]


def test_many_small_entries_are_restored() -> None:
    """All are within the tolerance, and I - G has a norm above 0.5: singular values are far from 1."""
    drift_of_all = 5e-3 * (1 - torch.eye(128, dtype=torch.float64))
    rule, weight = holding(with_gram(torch.eye(128) + drift_of_all), tolerance=0.2)
    rule.constrain()
    assert torch.linalg.matrix_norm(weight @ weight.T - torch.eye(128)) <= 0.5


@pytest.mark.parametrize("change", ["every second step", "bfloat16"])
def test_nothing_is_known_where_it_is_of_no_use(change: str) -> None:
    """Where steps are rounded much, or not each is seen."""
    rule, data = Foton(model(80, 80, 80, 4), orthogonality_tolerance=0.2), large_batches(4, 80)
    if change == "bfloat16":
        rule, data = rule.bfloat16(), [(x.bfloat16(), y) for x, y in data]
    else:
        rule.orthogonality.every = 2
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-3)
    for x, y in data:
        rule.step(x, y, optimizer)
        assert not rule.orthogonality.known


def test_every_64th_step_looks_at_all_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights that stay as they are, one weight after another."""
    constraint, seen = held((80, 80), (80, 80)), []
    names = {id(weight): name for name, weight in constraint.weights().items()}
    monkeypatch.setattr(constraint, "_is_within", lambda w: seen.append((constraint.steps, names[id(w)])) or True)
    for _ in range(128):
        constraint.step()
    assert seen == [(63, "1"), (64, "0"), (127, "1"), (128, "0")]


@pytest.mark.parametrize("shape", [(150, 150), (150, 170), (170, 150)], ids=["square", "wide", "tall"])
def test_all_entries_are_within_their_share_or_not(shape: tuple[int, int]) -> None:
    """Whichever is the largest, on both sides of the diagonal; and many small ones are no small norm."""
    generator = torch.Generator().manual_seed(0)
    rows = polar_factor(torch.randn(150, max(shape), generator=generator, dtype=torch.float64))
    constraint = held((4, 4), tolerance=TOLERANCE)

    def is_within(change: torch.Tensor) -> bool:
        weight = with_gram(torch.eye(150) + change) @ rows
        return constraint._is_within(weight if shape[0] <= shape[1] else weight.T)

    for i, j in ((0, 0), (149, 149), (0, 149), (63, 64), (64, 63), (70, 71), (100, 90)):
        change = torch.zeros(150, 150, dtype=torch.float64)
        for size, expected in ((2.9e-3, True), (3.1e-3, False)):
            change[i, j] = change[j, i] = size
            assert is_within(change) == expected, f"entry {i}, {j} of {size}"
    assert is_within(torch.full((150, 150), 2e-3, dtype=torch.float64)), "norm of 0.3"
    assert not is_within(torch.full((150, 150), -2.9e-3 * 2, dtype=torch.float64)), "norm of 0.9"
    assert not constraint._is_within(with_gram(torch.eye(180, dtype=torch.float64) + 2.9e-3)), "norm of 0.52"


def test_an_accelerator_looks_at_weights_from_2048() -> None:
    constraint = held((2, 2))
    for width, expected in ((2047, False), (2048, True)):
        assert constraint._looks_at(torch.empty(width, 4096, device="meta")) == expected, width


@pytest.mark.parametrize(
    ("size", "way"),
    [(0.002, (1, 0)), (0.05, (1, 1)), (0.15, (2, 1)), (0.25, (3, 1)), (0.3, (4, 1)), (0.5, (4, 2)), (0.74, None)],
)
def test_the_least_steps_that_are_sure_to_suffice(size: float, way: tuple[int, int] | None) -> None:
    """I - G = size I in four dimensions, by the bounds of `_sufficient`."""
    residual = size * torch.eye(4, dtype=torch.float64)
    (found,) = held((4, 4), tolerance=TOLERANCE)._sufficient(residual[None])
    assert found == way
    if found is not None:
        weight = (torch.eye(4) - residual).sqrt()
        factor = orthogonality.bjorck_factor(weight @ weight.T, *found, rescale=False)
        assert defect(factor @ weight) <= TOLERANCE


@pytest.mark.parametrize(
    ("powers", "way"),
    [
        ((0.5, 0.5, 0.5, 9, 9), (2, 1)), ((0.5, 9, 0.5, 9, 0.5**4), (2, 1)), ((0.6, 0.5, 0.5, 9, 9), (3, 1)),
        ((1, 0.5, 0.75, 0.25, 9), (4, 1)), ((1, 0.5, 0.75, 0.3, 9), (4, 2)), ((9, 0.745, 9, 9, 9), (4, 2)),
        ((0.6, 9, 0.5, 9, 0.5**4), (3, 1)), ((9, 0.75, 9, 9, 9), None), ((9, 0.95, 9, 9, 9), None),
        ((1, 1, 1, 1, 1), None), ((9, 9, 9, 9, 9), None), ((math.nan,) * 5, None),
    ],
)  # fmt: skip
def test_the_bounds_of_one_and_two_steps(powers: tuple[float, ...], way: tuple[int, int] | None) -> None:
    """Columns of E, E^2 and E^4 and the norms of E and E^4: |E| = 1/2, 3/4 of 1/4 over 1 - |E| just the tolerance."""
    assert held((4, 4), tolerance=0.375)._of_powers(*powers) == way


def test_two_steps_that_just_suffice() -> None:
    left = 0.75 * 0.5**5 / (1 - 0.5)
    constraint = held((4, 4), tolerance=0.75 * left**5 / (1 - left))
    assert constraint._of_powers(9, 0.5, 9, 9, 9) == (4, 2)
    constraint.tolerance *= 0.999
    assert constraint._of_powers(9, 0.5, 9, 9, 9) is None


@pytest.mark.parametrize(
    ("count", "k", "n", "parts"),
    [(32, 512, 512, 16), (1, 512, 644, 4), (1, 1024, 514, 2), (1, 512, 641, 0), (33, 512, 512, 0), (32, 512, 496, 0)],
)
def test_a_product_in_parts_is_of_few_rows_and_a_large_matrix(
    count: int, k: int, n: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2^18 numbers; as many parts as divide its columns, up to 16."""
    seen: list[int] = []
    for name in ("bmm", "baddbmm"):
        made = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, made=made, **by: seen.append(len(a[-1])) or made(*a, **by))
    rows, matrix = torch.ones(count, k), torch.ones(k, n)
    few_rows(rows, matrix)
    few_rows(rows, matrix, less=torch.ones(count, n))
    assert seen == [parts] * 2 * bool(parts)


@pytest.mark.parametrize("columns", [640, 644], ids=["in parts of one size", "in fewer"])
@pytest.mark.parametrize("count", [4, 40])
def test_few_rows_by_a_large_matrix(count: int, columns: int) -> None:
    """In parts, which is how a CPU is fast at it, or not."""
    rows, matrix = torch.randn(count, 512, dtype=torch.float64), torch.randn(512, columns, dtype=torch.float64)
    less = torch.randn(count, columns, dtype=torch.float64)
    for w in (matrix, matrix.T.contiguous().T):
        assert torch.allclose(few_rows(rows, w), rows @ w)
        assert torch.allclose(few_rows(rows, w, less=less), less - rows @ w)
