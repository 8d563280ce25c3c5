"""Networks of the papers, as modules."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.modules import cfse, resnet17, small_cnn, tiny_cnn, vgg8, vgg11
from prograde.accelerated.rules import ChannelCompetition, DeeperForward, DynamicTemperature
from prograde.equivalence_tests.local_examples import K

pytestmark = pytest.mark.usefixtures("ours_only")


@pytest.mark.parametrize("planes", [(4, 8, 16, 32)])
def test_resnet_17_is_wired_as_published(planes: Any):
    """By its description: saved after layers 0, 2, 4, ..., added at 2, 6, 10, 14, concatenated at 4, 8, 12, 16."""
    torch.manual_seed(0)
    network = resnet17(K, 3, 0.0, planes=planes).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    features = network.stem(x)
    saved = None
    for index, block in enumerate(network.blocks):
        features = block(features)
        if index in (2, 6, 10, 14):
            features = features + saved
        elif index in (4, 8, 12, 16):
            features = torch.cat([features, saved], dim=1)
        if index % 2 == 0:
            saved = nn.functional.avg_pool2d(features, 2) if index in (4, 8, 12) else features
    assert features.shape == (2, 2 * planes[-1], 2, 2)
    assert torch.equal(network(x), network.head(features)), "wiring"


def test_sizes_are_those_published():
    """Weights of convolutions, in millions."""

    def kernels(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters() if p.dim() == 4)

    assert kernels(resnet17()) == 30_602_700
    assert round(kernels(tiny_cnn()) / 1e6, 2) == 2.67
    assert round(kernels(vgg8()) / 1e6, 2) == 9.15
    assert kernels(vgg11()) == 9_217_728
    assert [b.module.groups for b in ChannelCompetition(cfse()).units] == [1, 10, 1, 10]  # type: ignore[union-attr]
    assert len(DeeperForward(resnet17()).units) == 17
    assert len(DynamicTemperature(vgg8()).units) == 7
    assert [head.grid for head in DynamicTemperature(vgg8()).heads] == [(g, g) for g in (4, 2, 2, 1, 1, 1, 1)]


@pytest.mark.parametrize(
    "make", [partial(small_cnn, (8, 12)), tiny_cnn, cfse, partial(resnet17, planes=(20, 40, 80, 160))]
)
def test_plain_backpropagation_trains_the_very_same_network(make: Callable[..., nn.Module]):
    """Its scores and gradients need no rule."""
    torch.manual_seed(0)
    network = make(num_classes=10, image_channels=1)
    x, y = torch.randn(4, 1, 16, 16), torch.arange(4)
    nn.functional.cross_entropy(network(x), y).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters()), "trained whole"


def test_small_networks_keep_the_size_of_maps_whatever_the_kernel():
    rule = DeeperForward(small_cnn((10, 20), image_channels=2, pool_after=(0,), kernel_size=5))
    first, second = rule.layer_features(torch.randn(3, 2, 12, 12))
    assert [unit.module.kernel_size for unit in rule.units] == [(5, 5), (5, 5)]  # type: ignore[union-attr]
    assert first.shape == (3, 10, 12, 12)
    assert second.shape == (3, 20, 6, 6)
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"kernel_size: {size}, expected an odd number"):
            small_cnn((10, 20), kernel_size=size)
