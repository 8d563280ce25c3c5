"""On the device of `--device`: what tests make, and nothing that the package under test makes."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from prograde.accelerated.layers import he_uniform
from prograde.accelerated.modules import OrthogonalConv2d, RecurrentNetwork
from prograde.equivalence_tests.placement import Placement, seeded
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.smoke


def test_what_a_test_makes_is_on_the_device_under_test(twin: TwinSide) -> None:
    made = torch.zeros(2), nn.Linear(2, 2).weight, seeded(1), torch.rand(2, generator=seeded(1))
    assert {part.device.type for part in made} == {twin.device.type}


@pytest.mark.places_itself
def test_models_are_placed_and_what_the_package_makes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "device", torch.device("meta"))
    with Placement():
        models = nn.Conv2d(1, 2, 3), RecurrentNetwork(2, 3, 4, "gru"), OrthogonalConv2d(2, 2, 3)
        placed = torch.tensor([1.0]), *(parameter for model in models for parameter in model.parameters())
        elsewhere = he_uniform((3, 2)), torch.zeros(2, device="cpu"), torch.rand(2, generator=torch.Generator("cpu"))
    assert {part.device.type for part in placed} == {"meta"}, "made by the test"
    assert {part.device.type for part in elsewhere} == {"cpu"}, "made by the package, or where the test says"


def test_no_test_takes_the_device_for_the_cpu() -> None:
    """A bare generator is of the CPU, and only a tensor of the CPU becomes an array."""
    bare = re.compile(r"torch\.Generator\(\)|(?<!\.cpu\(\))\.numpy\(\)")
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        text = path.read_text()
        if path.name == Path(__file__).name or re.search(r"^pytestmark = .*places_itself", text, re.M):
            continue
        lines = re.sub(r"\s*\n\s*\.", ".", text).splitlines()
        found = [line.strip() for line in lines if bare.search(line)]
        assert not found, f"{path.name}: {found}"
