"""What rules reach on the digits: far better than chance, in seconds."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from prograde.accelerated.rules import (
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    FeedbackAlignment,
    Pepita,
    Rule,
)
from prograde.accelerated.training import load


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10),
    )  # fmt: skip


def one_convolution() -> nn.Module:
    """As in PEPITA's paper."""
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))


SIZED = {"image_size": (8, 8)}


@pytest.mark.parametrize(
    ("rule", "model", "rate", "least"),
    [
        (FeedbackAlignment, convolutional, 0.03, 0.8),
        (partial(DirectFeedbackAlignment, **SIZED), convolutional, 0.01, 0.65),
        (partial(DirectRandomTargetProjection, **SIZED), convolutional, 0.01, 0.45),
        (partial(Pepita, **SIZED), one_convolution, 0.01, 0.75),
    ],
    ids=["fa", "dfa", "drtp", "pepita"],
)
def test_convolutions_learn_the_digits(
    rule: Callable[[nn.Module], Rule], model: Callable[[], nn.Module], rate: float, least: float
) -> None:
    torch.manual_seed(0)
    data = load("digits")
    train, test = ((part.images.unflatten(1, (1, 8, 8)), part.labels) for part in (data.train, data.test))
    mean, std = train[0].mean(), train[0].std()
    built = rule(model())
    optimizer = torch.optim.SGD(built.parameters(), lr=rate, momentum=0.9)
    for _ in range(5):
        for rows in torch.randperm(len(train[1])).split(32):
            built.assign_credit((train[0][rows] - mean) / std, train[1][rows])
            optimizer.step()
    with torch.no_grad():
        found = built((test[0] - mean) / std).argmax(dim=1)
    accuracy = (found == test[1]).float().mean().item()
    assert accuracy >= least, f"{accuracy:.3f}"
