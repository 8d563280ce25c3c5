"""A step in an autocast region: near to the step outside of it, with differences in the parameters' own dtype."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from prograde.accelerated._autocast import Region, in_full, is_lowered, lowered, outside, product, region_on, step_in
from prograde.accelerated.rules import Backprop, DirectFeedbackAlignment, Foton, Ftp, MonoForward, Pepita, Rule
from prograde.equivalence_tests.rule_examples import (
    EXAMPLES,
    Block,
    dense,
    images,
    normalised_images,
    refusal,
    rotated_images,
)
from prograde.equivalence_tests.sides import TwinSide

LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}
JUMPS = (images, normalised_images, rotated_images)
"""Models with maxima and ReLU of maps: rounding chooses another of two that are near."""
ON_HARDWARE = [name for name in EXAMPLES if "hardware" in name]

pytestmark = [pytest.mark.places_itself, pytest.mark.usefixtures("ours_only")]


@pytest.fixture(params=LOWER)
def region(request: pytest.FixtureRequest, twin: TwinSide) -> Callable[[], Any]:
    return partial(torch.autocast, torch.device(twin.device).type, LOWER[request.param])


def credited(rule: Rule, x: torch.Tensor, y: Any) -> dict[str, torch.Tensor]:
    """The gradients of a step whose draws are the same each time."""
    torch.manual_seed(5)
    if rule.generator is not None:
        rule.generator.manual_seed(3)
    loss = rule.assign_credit(x, y)
    assert loss.dtype == torch.float32, "the loss's dtype"
    return {name: p.grad.clone() for name, p in rule.named_parameters() if p.grad is not None}


def example(name: str, device: Any) -> tuple[Rule, torch.Tensor, torch.Tensor]:
    rule: Any = EXAMPLES[name].build(device).float()
    x, y = EXAMPLES[name].batch(device, 32)
    return rule, x.float(), y


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in ON_HARDWARE])
def test_a_step_is_near_the_one_outside(name: str, region: Any, twin: TwinSide) -> None:
    """Within a few roundings, and not the same: products were lowered."""
    rule, x, y = example(name, twin.device)
    expected = credited(*example(name, twin.device))
    with region() as inside:
        found = credited(rule, x, y)
    eps = torch.finfo(inside.fast_dtype).eps
    largest = max(g.norm() for g in expected.values())
    apart = {
        parameter: float((found[parameter] - g).norm() / (g.norm() + largest / 100))
        for parameter, g in expected.items()
    }
    assert found.keys() == expected.keys()
    assert {g.dtype for g in found.values()} == {torch.float32}, "dtypes"
    assert max(apart.values()) < (0.2 if EXAMPLES[name].model in JUMPS else 8 * eps), "near the step outside"
    assert max(apart.values()) > eps / 10, "products in the region's dtype"


@pytest.mark.parametrize("name", ON_HARDWARE)
def test_crossbars_are_refused(name: str, twin: TwinSide) -> None:
    rule, x, y = example(name, twin.device)
    kind = x.device.type
    said = f"autocast is on for {kind}: Hardware computes in the precision of its crossbars; leave the autocast region"
    with torch.autocast(kind, torch.bfloat16):
        assert refusal(lambda: rule.assign_credit(x, y)) == said
        assert refusal(lambda: rule(x)) == said


class Seen(nn.Module):
    """Notes the dtype of a product inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.linear(x)
        self.dtypes.append(a.dtype)
        return a.tanh() + x


def modules(seen: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), seen, nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("rule", "dtypes"),
    {
        DirectFeedbackAlignment: [torch.bfloat16],
        MonoForward: [torch.bfloat16],
        Ftp: [torch.bfloat16, torch.float32, torch.float32],
    }.items(),
)
def test_differences_of_modules_are_taken_outside(rule: Any, dtypes: list[torch.dtype], twin: TwinSide) -> None:
    """A module runs in the region; where two of its values are subtracted, both are computed without it."""
    torch.manual_seed(0)
    seen = Seen()
    x, y = torch.randn(6, 16, device=twin.device), torch.arange(6, device=twin.device) % 4
    built = rule(modules(seen).to(twin.device), example=x)
    built.assign_credit(x, y)
    seen.dtypes.clear()
    with torch.autocast(x.device.type, torch.bfloat16):
        built.assign_credit(x, y)
    assert seen.dtypes == dtypes, "where the module ran"


@pytest.mark.parametrize("options", [{}, {"second_pass": "full"}], ids=["difference", "full"])
@pytest.mark.parametrize("rule", [Ftp, Pepita])
@pytest.mark.parametrize("inner", [nn.Tanh, partial(Block, 8)], ids=["closed form", "module"])
def test_small_differences_do_not_cancel(
    rule: Any, options: dict[str, str], inner: Any, region: Any, twin: TwinSide
) -> None:
    """An update of a correction that is a few roundings of the activities keeps the digits of the region's dtype."""
    found, eps = [], torch.finfo(region().fast_dtype).eps
    for inside in (torch.no_grad, region):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 8), inner(), nn.Linear(8, 8), nn.Tanh())
        built = rule(model.append(nn.Linear(8, 4)).to(twin.device), scale=8 * eps, **options)
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1)).to(twin.device)
        with inside():
            found.append(credited(built, x, torch.arange(32, device=twin.device) % 4)["model.4.weight"])
    exact, lowered = found
    assert (lowered - exact).norm() < 8 * eps * exact.norm(), "digits of a small difference"


def test_a_unit_that_is_stepped_in_the_region_counts_at_once(twin: TwinSide) -> None:
    """The casts of a step before are not used again."""
    found = []
    for whole in (True, False):
        torch.manual_seed(0)
        x, y = torch.randn(6, 16, device=twin.device), torch.arange(6, device=twin.device) % 4
        rule = MonoForward(modules(Seen()).to(twin.device), example=x)
        region = partial(torch.autocast, x.device.type, torch.bfloat16)
        with region() if whole else nullcontext():
            for _ in range(3):
                with region():
                    for update in rule.stream(x, y):
                        assert torch.is_autocast_enabled(x.device.type), "autocast where an update is used"
                        for parameter, gradient in update.pairs:
                            with torch.no_grad():
                                parameter -= gradient
        found.append([p.detach().clone() for p in rule.parameters()])
    assert all(map(torch.equal, *found)), "a region around three steps, and one around each"


def test_scores_in_a_region_are_of_the_weights_as_they_are(twin: TwinSide) -> None:
    """Those after a step are not made from casts that scores before it have left."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 16, device=twin.device), torch.arange(6, device=twin.device) % 4
    rule = Backprop(dense().float().to(twin.device))
    optimizer = torch.optim.SGD(rule.parameters(), lr=1.0)
    with torch.autocast(x.device.type, torch.bfloat16):
        rule(x)
        rule.assign_credit(x, y)
        optimizer.step()
        found = rule(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(found, rule(x)), "scores of the weights before the step"


def test_the_constraint_keeps_the_weights_own_precision(twin: TwinSide) -> None:
    found = []
    for enabled in (True, False):
        torch.manual_seed(0)
        device = torch.device(twin.device)
        x, y = torch.randn(32, 16, device=device), torch.arange(32, device=device) % 4
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            rule = Foton(dense().float().to(device))
        optimizer = torch.optim.SGD(rule.parameters(), lr=0.5)
        for _ in range(3):
            rule.assign_credit(x, y)
            optimizer.step()
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                rule.constrain()
        found.append([p.detach().clone() for p in rule.parameters()])
    assert all(map(torch.equal, *found)), "weights constrained in a region"


@pytest.mark.parametrize("name", LOWER)
def test_what_underflows(name: str, twin: TwinSide) -> None:
    """Credit divided by the batch is below the numbers of float16 from 2^-25 on: no gradient of a hidden weight."""
    torch.manual_seed(0)
    tiny = 2.0**-20
    rule = Ftp(dense().float().to(twin.device), loss=lambda s, y: tiny * functional.cross_entropy(s, y), scale=0.1)
    x, y = torch.randn(64, 16, device=twin.device), torch.arange(64, device=twin.device) % 4
    with torch.autocast(x.device.type, LOWER[name]):
        found = credited(rule, x, y)
    assert any(g.any() for p, g in found.items() if "weight" in p) == (name == "bfloat16"), "gradients of 1e-8"
    assert found["model.0.bias"].any(), "of biases, which are no product"


def test_products_have_the_dtype_of_their_first_operand() -> None:
    """Whatever the others', and the region's."""
    a, b = torch.ones(2, 3), torch.ones(3, 4)
    with step_in(Region("cpu", torch.bfloat16)):
        assert product(torch.matmul, a, b.bfloat16()).dtype == torch.float32
        assert product(torch.matmul, a.bfloat16(), b).dtype == torch.bfloat16
        assert product(torch.matmul, a.double(), b.double()).dtype == torch.float64
        assert product(torch.mul, a, a.double()).dtype == torch.float32
        assert product(lambda a, bias: a, 1 + a / 1000, None).eq(1).all(), "rounded, whatever is not there"


def test_what_a_step_in_a_region_is_in() -> None:
    """In the region only as `lowered`, where casts of weights are not kept, and in none where all is in full."""
    cpu = torch.device("cpu")
    assert (region_on(cpu), is_lowered(), in_full(), lowered()) == (None, False, outside(cpu), outside(cpu))
    with torch.autocast("cpu", torch.float16):
        region = region_on(cpu)
        assert region == ("cpu", torch.float16)
        with outside(cpu):
            assert not torch.is_autocast_enabled("cpu")
        with step_in(region):
            assert (region_on(cpu), is_lowered(), torch.is_autocast_enabled("cpu")) == (region, True, False)
            with lowered():
                assert (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()) == (True, False)
                assert torch.get_autocast_dtype("cpu") == torch.float16
            with in_full():
                assert (is_lowered(), torch.is_autocast_enabled("cpu")) == (False, False)
            assert is_lowered()
        assert (is_lowered(), torch.is_autocast_enabled("cpu")) == (False, True)
