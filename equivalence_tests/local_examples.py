"""Models and rules that the tests of local classifiers share."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from prograde.accelerated.modules import ChannelNorm, MaxMin, cfse, resnet17, tiny_cnn
from prograde.accelerated.rules import (
    ChannelClassAssignment,
    ChannelCompetition,
    DeeperForward,
    DynamicTemperature,
    Hyperspherical,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
)
from prograde.accelerated.score_losses import smooth_margin

from .placement import seeded
from .tolerance import rms

K = 4


def dense(norm: Callable[[int], nn.Module] | None = None, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((11, 16, 12, 8)):
        layers += [nn.Linear(n_in, n_out), nn.Tanh(), *([nn.Dropout(dropout)] if dropout else [])]
        layers += [] if norm is None else [norm(n_out)]
    return nn.Sequential(*layers, nn.Linear(8, K)).double()


def images(
    norm: Callable[[int], nn.Module], pool: nn.Module | None = None, activation: type[nn.Module] = nn.Tanh
) -> nn.Sequential:
    """For images of 8 x 8 pixels with 2 channels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), activation(), *([nn.AvgPool2d(2)] if pool is None else [pool]), norm(8),
        nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False), activation(), norm(12), nn.AvgPool2d(2),
        nn.Conv2d(12, 8, (3, 2), stride=(2, 1), padding=1), activation(), nn.Flatten(),
        nn.Linear(24, 8), activation(), nn.Linear(8, K),
    ).double()  # fmt: skip


def channel_norm(channels: int) -> nn.Module:
    return ChannelNorm()


group_norm = partial(nn.GroupNorm, K, affine=False)
batch_norm = partial(nn.BatchNorm2d, affine=False)
layer_norm = partial(nn.LayerNorm, elementwise_affine=False)
RULES: dict[str, Callable[[], LocalClassifiers]] = {
    "MonoForward": lambda: MonoForward(images(channel_norm), grid=2),
    "MonoForward, dense": lambda: MonoForward(dense(layer_norm), aggregation="last"),
    "Hyperspherical": lambda: Hyperspherical(images(channel_norm), grid=(3, 2, 1, 1), margin=0.2, scale=10),
    "Hyperspherical, dense": lambda: Hyperspherical(dense(layer_norm), per_class=3, sharpness=4, loss=smooth_margin()),
    "DynamicTemperature": lambda: DynamicTemperature(images(channel_norm)),
    "DynamicTemperature, dense": lambda: DynamicTemperature(dense(layer_norm), lowest=0.1, first_layer=1),
    "PatchEnergy": lambda: PatchEnergy(images(channel_norm), grid=2),
    "DeeperForward": lambda: DeeperForward(images(group_norm)),
    "ChannelCompetition": lambda: ChannelCompetition(images(batch_norm, nn.MaxPool2d(2))),
    "ChannelCompetition, PvN": lambda: ChannelCompetition(images(batch_norm), loss="pvn"),
    "ChannelCompetition, mixed": lambda: ChannelCompetition(images(batch_norm), loss="mixed"),
    "ChannelClassAssignment": lambda: ChannelClassAssignment(images(nn.InstanceNorm2d)),
    "ChannelClassAssignment, static": lambda: ChannelClassAssignment(images(group_norm), assignment="static"),
    "ChannelClassAssignment, frozen": lambda: ChannelClassAssignment(dense(), assignment="frozen"),
}


def batch(rule: LocalClassifiers | None = None, n: int = 14) -> tuple[torch.Tensor, torch.Tensor]:
    """What the rule's model takes; images without one."""
    generator = seeded(1)
    shape = (11,) if rule is not None and not rule.wants_images else (2, 8, 8)
    y = torch.randint(0, K, (n,), generator=generator)
    centres = torch.randn(K, *shape, generator=generator, dtype=torch.float64)
    return centres[y] + 0.5 * torch.randn(n, *shape, generator=generator, dtype=torch.float64), y


def numpy(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().double().cpu().numpy()


def same(name: str, ours: Any, theirs: Any) -> None:
    if theirs is None:
        assert ours is None, name
    else:
        assert rms(theirs) > 0, f"{name}: vacuous"
        assert rms(numpy(ours) - theirs) <= 1e-10 * rms(theirs), name


def own_score(blocks: Any, classes: int) -> list[nn.Module]:
    """A score of a user's own, of modules that no twin has."""
    return [
        nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(block.width, classes)).double()
        if block.has_maps
        else nn.Linear(block.width, classes).double()
        for block in blocks
    ]


def odd(activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """What the reference has no word for: other activations, learned normalisation, dropout, nested and unflattened."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 8, 8)),
        nn.Sequential(nn.Conv2d(2, 6, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(6), nn.PReLU()),
        nn.Dropout(0.3), nn.LayerNorm([8, 8]), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, dilation=2, padding=2), activation(), nn.BatchNorm2d(8), nn.Dropout2d(0.2), nn.Flatten(),
        nn.Linear(128, 6), activation(),
    ).double()  # fmt: skip


def asge() -> nn.Sequential:
    """Layers as they are published: pooled by roots of sums of squares."""
    torch.manual_seed(0)
    layers = [
        (nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.LPPool2d(2, 2), ChannelNorm())
        for n_in, n_out in ((2, 6), (6, 12))
    ]
    return nn.Sequential(*layers[0], *layers[1], nn.Flatten(), nn.Linear(48, K)).double()


MODELS: dict[str, Callable[[], tuple[LocalClassifiers, tuple[int, ...]]]] = {
    "own score": lambda: (LocalClassifiers(odd(), score=own_score, num_classes=K), (128,)),
    "after normalisation": lambda: (
        LocalClassifiers(odd(nn.SiLU), score=own_score, score_after="normalisation", num_classes=K), (128,),
    ),
    "ResNet-17": lambda: (
        DeeperForward(resnet17(K, 2, 0.1, planes=(4, 8, 16, 32)).double()), (2, 16, 16),
    ),
    "TinyCNN": lambda: (ChannelClassAssignment(tiny_cnn(K, 2).double()), (2, 8, 8)),
    "CFSE": lambda: (ChannelCompetition(cfse((4, 8, 12, 16), K, 2, 0.1).double()), (2, 8, 8)),
    "LeakyReLU": lambda: (MonoForward(images(channel_norm, activation=nn.LeakyReLU)), (2, 8, 8)),
    "three axes": lambda: (
        LocalClassifiers(
            nn.Sequential(
                nn.Unflatten(1, (3, 5)), nn.Linear(5, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 6), nn.ReLU()
            ).double(),
            score=lambda b, k: [nn.Sequential(nn.Flatten(), nn.Linear(n, k)).double() for n in (18, 6)], num_classes=K,
        ),
        (15,),
    ),
    "ASGE": lambda: (PatchEnergy(asge()), (2, 8, 8)),
    "MaxMin": lambda: (Hyperspherical(images(channel_norm, activation=MaxMin)), (2, 8, 8)),
    "rectified, as convolutions may be": lambda: (
        LocalClassifiers(
            nn.Sequential(
                nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular"), nn.ReLU(),
                nn.Conv2d(6, 6, 3, dilation=2, padding=2), nn.ReLU(),
                nn.Conv2d(6, 6, 3, dilation=(1, 2), padding="same"), nn.ReLU(),
                nn.Conv2d(6, 6, 3, stride=2, groups=2, bias=False), nn.LeakyReLU(-0.1), nn.Linear(3, 5), nn.ReLU(),
            ).double(),
            score=lambda blocks, k: [
                nn.Sequential(nn.Flatten(), nn.Linear(n, k)).double() for n in (384, 384, 384, 54, 90)
            ],
            num_classes=K,
        ),
        (2, 8, 8),
    ),
}  # fmt: skip


def held_out(rule: LocalClassifiers) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = batch(rule, 40)
    return list(zip(x.split(15), y.split(15), strict=True))


def channels(**settings: Any) -> ChannelClassAssignment:
    return ChannelClassAssignment(dense(), settings=settings)
