"""What rules refuse: batches, labels, options and models, each with the argument, what came and what was expected."""

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import ChannelCompetition, MonoForward
from prograde.equivalence_tests.rule_examples import EXAMPLES, K, normalised
from prograde.equivalence_tests.sides import TwinSide

pytestmark = pytest.mark.smoke


@pytest.fixture(autouse=True)
def _ours_only(twin: TwinSide) -> None:
    if not twin.is_ours:
        pytest.skip("rules are prograde's own")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_least_batch_is_what_a_step_takes(name: str, twin: TwinSide):
    """Where that is 2, one sample is refused, but for maps: batch normalisation has their positions too."""
    example = EXAMPLES[name]
    rule = example.build(twin.device)
    rule.assign_credit(*example.batch(twin.device, size=rule.least_batch))
    expects_two = any(part in name for part in ("hybrid", "pairs", "competition", "deep supervision", "end to end"))
    assert rule.least_batch == (2 if expects_two or name in ("mono-forward, tanh", "mono-forward, images") else 1)
    if rule.least_batch == 2 and len(example.shape) == 1:
        with pytest.raises(ValueError, match="x: a batch of 1, expected 2 or more: "):
            rule.assign_credit(*example.batch(twin.device, size=1))


def test_batch_normalisation_at_rest_takes_one_sample(twin: TwinSide):
    model = normalised().to(twin.device)
    rule = ChannelCompetition(model)
    for norm in (model[2], model[5]):
        norm.eval()
    assert rule.least_batch == 1, "each module's own mode counts"
    rule.assign_credit(torch.ones(1, 16, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device))
    model[5].train()
    with pytest.raises(ValueError, match="x: a batch of 1, expected 2 or more: BatchNorm1d '5' normalises"):
        rule.assign_credit(torch.ones(1, 16, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device))


def test_one_map_of_one_pixel_is_refused_with_the_layers_name(twin: TwinSide):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, K))
    rule = MonoForward(model.to(twin.device), grid=1)
    x, y = torch.ones(1, 1, 3, 3, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device)
    with pytest.raises(
        ValueError, match=r"x: samples of shape \(1, 3, 3\) do not pass layer '0' \(Expected more than 1"
    ):
        rule.assign_credit(x, y)
