"""Networks of the papers, as modules."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from prograde.accelerated.modules import (
    TransformerBlock,
    cfse,
    char_transformer,
    gru_classifier,
    lenet,
    resnet17,
    resnet18,
    small_cnn,
    tiny_cnn,
    vgg8,
    vgg11,
    vit,
)
from prograde.accelerated.rules import ChannelCompetition, DeeperForward, DynamicTemperature
from prograde.equivalence_tests.local_examples import K

pytestmark = pytest.mark.usefixtures("ours_only")


@pytest.mark.parametrize("planes", [(4, 8, 16, 32)])
def test_resnet_17_is_wired_as_published(planes: Any) -> None:
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


def test_sizes_are_those_published() -> None:
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


def test_networks_of_everybody_have_the_published_number_of_parameters() -> None:
    """GPT-2 shares the matrix of its embedding with the output layer, ViT-B/16 has a class token; ours do not."""

    def count(make: Callable[[], nn.Module]) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in make().parameters())

    assert count(lenet) == 61_706
    assert count(resnet18) == 11_173_962
    class_token = 2 * 768  # and its position
    assert count(lambda: vit(1000, 3, 224, 16, 768, 12, 12)) == 86_567_656 - class_token
    output = 50_257 * 768 + 50_257
    assert count(lambda: char_transformer(50_257, 1024, 768, 12, 12)) == 124_439_808 + output
    gru = 3 * 16 * (8 + 16 + 2) + 3 * 16 * (16 + 16 + 2)
    assert count(lambda: gru_classifier(11, 5, 8, 16, depth=2)) == 11 * 8 + gru + 16 * 5 + 5


def test_units_of_a_resnet_are_the_resnet() -> None:
    torch.manual_seed(0)
    network = resnet18(K, 1, widths=(4, 6)).double()
    units = network.units()
    assert [sum(p.numel() for p in unit.parameters()) > 0 for unit in units] == [True] * 5 + [False] * 2 + [True]
    assert sum(len(list(unit.parameters())) for unit in units) == len(list(network.parameters()))
    x = torch.randn(3, 1, 9, 8, dtype=torch.float64)
    for mode in (True, False):
        network.train(mode)
        assert torch.equal(nn.Sequential(*units)(x), network(x)), "units"
    assert units[0](x).shape == (3, 4, 9, 8)
    assert units[4](units[3](units[2](units[1](units[0](x))))).shape == (3, 6, 5, 4)


def test_a_residual_block_adds_what_comes_in() -> None:
    """With its second normalisation at 0 it is ReLU, of what comes in or of a convolution of 1 x 1 of that."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    _, same, _, wider, *_ = resnet18(K, 3, widths=(4, 8)).eval().units()[0:5]
    for block in (same, wider):
        nn.init.zeros_(block.bn2.weight)
    assert torch.equal(same(x), x.relu()), "skip"
    expected = nn.functional.conv2d(x, wider.downsample[0].weight, stride=2).div((1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(wider(x), expected)


@pytest.mark.parametrize("image_size", [12, 28, 32])
def test_lenet_takes_images_of_its_size(image_size: int) -> None:
    network = lenet(K, 2, image_size, channels=(3, 5), hidden=(7,))
    assert network(torch.randn(2, 2, image_size, image_size)).shape == (2, K)


def test_attention_is_that_of_pytorch() -> None:
    """nn.TransformerEncoderLayer with the same weights; the exact GELU."""
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, causal=True).double()
    theirs = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True).double()
    pairs = {
        "self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias,
        "self_attn.out_proj.weight": block.projection.weight, "self_attn.out_proj.bias": block.projection.bias,
        "linear1.weight": block.mlp[0].weight, "linear1.bias": block.mlp[0].bias,
        "linear2.weight": block.mlp[2].weight, "linear2.bias": block.mlp[2].bias,
        "norm1.weight": block.norm1.weight, "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight, "norm2.bias": block.norm2.bias,
    }  # fmt: skip
    theirs.load_state_dict(pairs)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    later = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    torch.testing.assert_close(block(x), theirs(x, src_mask=later, is_causal=True))


def test_scores_of_a_character_come_from_it_and_those_before() -> None:
    torch.manual_seed(0)
    network = char_transformer(9, context=8, width=12, depth=2, heads=2).double()
    x = torch.randint(9, (3, 7))
    scores = network(x)
    assert scores.shape == (3, 7, 9)
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 9
    differs = (network(changed) != scores).flatten(2).any(dim=2)
    assert differs.tolist() == [[False] * 4 + [True] * 3] * 3, "causal"
    with pytest.raises(ValueError, match="x: 9 tokens, expected at most 8"):
        network(torch.zeros(1, 9, dtype=torch.int64))


def test_patches_of_a_vision_transformer_are_squares_of_the_image() -> None:
    torch.manual_seed(0)
    network = vit(K, 2, image_size=8, patch=4, width=12, depth=1, heads=2).double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    assert network(x).shape == (2, K)
    before = network.embedding(x)
    assert before.shape == (2, 4, 12)
    x[:, :, 4:, :4] += 1
    differs = (network.embedding(x) != before).any(dim=2)
    assert differs.tolist() == [[False, False, True, False]] * 2, "patches"
    rest = nn.Sequential(*list(network)[1:])
    torch.testing.assert_close(rest(before), rest(before.flip(1)))  # a mean has no order


def test_a_gru_classifier_reads_its_last_state() -> None:
    torch.manual_seed(0)
    network = gru_classifier(9, K, width=5, hidden=6, depth=2).double()
    x = torch.randint(9, (3, 7))
    gru = nn.GRU(5, 6, 2, batch_first=True).double()
    state = {f"{key}{layer}": value for layer in (0, 1) for key, value in _of_layer(network.layers[layer]).items()}
    gru.load_state_dict(state)
    states, _ = gru(network.embedding(x))
    torch.testing.assert_close(network(x), network.output(states[:, -1]))
    assert network(x).shape == (3, K)


def _of_layer(layer: nn.Module) -> dict[str, Any]:
    return {key.removeprefix("gru.")[:-1]: value for key, value in layer.state_dict().items()}


def test_sizes_that_do_not_fit_are_refused() -> None:
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: lenet(image_size=30), "image_size: 30, expected a multiple of 4, and 12 or more"),
        (lambda: lenet(image_size=8), "image_size: 8, expected a multiple of 4, and 12 or more"),
        (lambda: vit(image_size=30), "patch: 4, expected a divisor of the image size 30"),
        (lambda: vit(patch=0), "patch: 0, expected a divisor"),
        (lambda: vit(width=10), "heads: 3, expected a divisor of the width 10"),
        (lambda: char_transformer(9, heads=0), "heads: 0, expected a divisor of the width 128"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    "make",
    [
        partial(small_cnn, (8, 12)),
        tiny_cnn,
        cfse,
        partial(resnet17, planes=(20, 40, 80, 160)),
        partial(lenet, image_size=16),
        partial(resnet18, widths=(4, 8)),
        partial(vit, image_size=16, width=12, depth=2),
        partial(vgg8, normalisation=nn.BatchNorm2d, channels=(4, 4, 6, 6, 8, 8, 8)),
    ],
)
def test_plain_backpropagation_trains_the_very_same_network(make: Callable[..., nn.Module]) -> None:
    """Its scores and gradients need no rule."""
    torch.manual_seed(0)
    network = make(num_classes=10, image_channels=1)
    x, y = torch.randn(4, 1, 16, 16), torch.arange(4)
    nn.functional.cross_entropy(network(x), y).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters()), "trained whole"


def test_small_networks_keep_the_size_of_maps_whatever_the_kernel() -> None:
    rule = DeeperForward(small_cnn((10, 20), image_channels=2, pool_after=(0,), kernel_size=5))
    first, second = rule.layer_features(torch.randn(3, 2, 12, 12))
    assert [unit.module.kernel_size for unit in rule.units] == [(5, 5), (5, 5)]  # type: ignore[union-attr]
    assert first.shape == (3, 10, 12, 12)
    assert second.shape == (3, 20, 6, 6)
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"kernel_size: {size}, expected an odd number"):
            small_cnn((10, 20), kernel_size=size)
