"""Every rule gives the gradients that it gave before algorithms were written over layers.

`same_updates.npz` was written by the rules as they stood before that change, in float64. It stands for code that is
gone, and is kept until the issue after that change lands; then both files are deleted.
A case is known by its name alone: when a rule, an option or a loss gets another name, only its entry in CASES changes.
On a processor without AVX2, feedback from a seed is drawn in float32 with other rounding, and its two cases differ.
The file is not written anew to make a test pass. `python tests/test_same_updates.py --write` writes it.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prograde.accelerated import cumulative_goodness, pair_losses
from prograde.accelerated.goodness import GOODNESS, negated
from prograde.accelerated.local_classifiers import Shortcut
from prograde.accelerated.modules import (
    ChannelNorm,
    MaxMin,
    OrthogonalConv2d,
    RecurrentNetwork,
    ScaledAvgPool2d,
    ShortcutNetwork,
)
from prograde.accelerated.rules import (
    Backprop,
    BackpropDeepSupervision,
    BackpropEnsemble,
    BackpropThroughTime,
    ChannelClassAssignment,
    ChannelCompetition,
    CreditAssignment,
    CumulativeForwardForward,
    DeeperForward,
    DifferenceTargetPropagation,
    DirectFeedbackAlignment,
    DirectRandomTargetProjection,
    DynamicTemperature,
    FeedbackAlignment,
    ForwardForward,
    Foton,
    Ftp,
    Hardware,
    HybridDynamicTemperature,
    Hyperspherical,
    LayerCollaboration,
    LocalClassifiers,
    MonoForward,
    PatchEnergy,
    Pepita,
    RecurrentFtp,
    SymBa,
)
from prograde.accelerated.score_losses import positive_versus_negative, smooth_margin

FILE = Path(__file__).with_name("same_updates.npz")
STEPS, RATE = 2, 0.1
PROJECTIONS = 6
TOLERANCE = 1e-9
FLAT, IMAGES, SEQUENCES = (16,), (3, 8, 8), (7, 5)
K = 4


class Case(NamedTuple):
    """A rule with its options, on a model and samples of a shape."""

    rule: Callable[..., CreditAssignment]
    model: Callable[[], nn.Module]
    sample: tuple[int, ...]
    options: dict[str, Any]
    batch: int
    momentum: float
    regression: bool


# Models. Widths differ where a rule allows it, so that no matrix stands in for its transpose.


def dense(
    activation: Callable[[], nn.Module] = nn.Tanh,
    widths: tuple[int, ...] = (16, 8, 6),
    bias: bool = True,
    after: Callable[[int], list[nn.Module]] = lambda width: [],
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out, bias), activation(), *after(n_out)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], K, bias))

    return build


def dropped(width: int) -> list[nn.Module]:
    return [nn.Dropout(0.3)]


def batch_norm(width: int) -> list[nn.Module]:
    return [nn.BatchNorm1d(width)]


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2)


def nested() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(16, 8), nn.Identity(), nn.ReLU()), nn.Linear(8, 6, bias=False), nn.Tanh(),
        nn.Dropout(0.4), nn.Linear(6, 8), MaxMin(), nn.Linear(8, K),
    )  # fmt: skip


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, K),
    )  # fmt: skip


def strided_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), nn.LeakyReLU(0.2), nn.Conv2d(4, 6, 2),
        MaxMin(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12, K, bias=False),
    )  # fmt: skip


def deep_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, K),
    )  # fmt: skip


def images_with_planes() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3 + K, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, K),
    )  # fmt: skip


def orthogonal_images(activation: Callable[[], nn.Module] = nn.Tanh) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.PixelUnshuffle(2), OrthogonalConv2d(12, 12, 3), activation(), ScaledAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 8), activation(), nn.Linear(8, K),
    )  # fmt: skip


def deep_orthogonal_images() -> nn.Module:
    return nn.Sequential(
        OrthogonalConv2d(3, 4, 2, bias=False), nn.Tanh(), nn.PixelUnshuffle(2), OrthogonalConv2d(16, 6, 3), MaxMin(),
        ScaledAvgPool2d(2), OrthogonalConv2d(6, 6, 1), nn.Flatten(), nn.Linear(24, 6), nn.Tanh(), nn.Linear(6, K),
    )  # fmt: skip


def normalised_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, K),
    )  # fmt: skip


def varied_images() -> nn.Module:
    """What only local rules and backpropagation take: groups, dropout, normalisations and poolings of many kinds."""
    return nn.Sequential(
        nn.GroupNorm(1, 3, affine=False), nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GELU(), nn.Dropout2d(0.3),
        ChannelNorm(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 3, padding=1, groups=2, padding_mode="circular"), nn.ReLU(),
        nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.InstanceNorm2d(8),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.SiLU(), nn.LayerNorm(8), nn.Linear(8, K),
    )  # fmt: skip


def shortcut_images() -> nn.Module:
    def block(n_in: int, n_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.ReLU(), ChannelNorm())

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, K))
    shortcuts = [Shortcut(0, 1, "add"), Shortcut(1, 2, "concatenate", 2)]
    return ShortcutNetwork(nn.Identity(), [block(3, 4, 1), block(4, 4, 1), block(4, 12, 2)], shortcuts, head)


def elman() -> nn.Module:
    return RecurrentNetwork(5, 6, K)


def gru() -> nn.Module:
    return RecurrentNetwork(5, 6, K, "gru")


# Rules that are not built from one model.


def ensemble(model: nn.Module, **options: Any) -> CreditAssignment:
    other = filled(dense(nn.ReLU, (16, 5))().to(torch.float64))
    return BackpropEnsemble([model, other], **options)


def hardware(rule: Callable[..., Any], **own: Any) -> Callable[..., CreditAssignment]:
    def build(model: nn.Module, generator: torch.Generator, **options: Any) -> CreditAssignment:
        return Hardware(rule(model, generator=generator, **own), **options)

    return build


def asynchronous_foton(model: nn.Module, **options: Any) -> CreditAssignment:
    """The constraint as it is held on an accelerator."""
    rule = Foton(model, **options)
    rule.orthogonality.asynchronous = True
    return rule


def frozen(rule: Callable[..., CreditAssignment], layer: str) -> Callable[..., CreditAssignment]:
    def build(model: nn.Module, **options: Any) -> CreditAssignment:
        built = rule(model, **options)
        model.get_parameter(layer).requires_grad_(False)
        return built

    return build


def evaluated(rule: Callable[..., CreditAssignment]) -> Callable[..., CreditAssignment]:
    """The rule in evaluation mode, where nothing is dropped."""
    return lambda model, **options: rule(model, **options).eval()


def case(
    rule: Callable[..., CreditAssignment],
    model: Callable[[], nn.Module] | None = None,
    sample: tuple[int, ...] = FLAT,
    batch: int = 6,
    momentum: float = 0.0,
    regression: bool = False,
    **options: Any,
) -> Case:
    return Case(rule, dense() if model is None else model, sample, options, batch, momentum, regression)


DENSE: dict[str, Callable[[], nn.Module]] = {
    "tanh": dense(),
    "relu": dense(nn.ReLU),
    "leaky relu": dense(leaky),
    "maxmin": dense(MaxMin),
    "linear": dense(nn.Identity),
    "no biases": dense(nn.ReLU, bias=False),
    "widening": dense(nn.Tanh, (16, 6, 10, 6)),
    "one hidden layer": dense(nn.ReLU, (16, 8)),
}
DROPPED: dict[str, Callable[[], nn.Module]] = {
    "tanh, dropout": dense(after=dropped),
    "relu, dropout, no biases": dense(nn.ReLU, bias=False, after=dropped),
    "nested": nested,
}
ERROR_RULES: dict[str, Callable[..., CreditAssignment]] = {
    "backprop": Backprop,
    "foton": Foton,
    "ftp": Ftp,
    "pepita": Pepita,
    "fa": FeedbackAlignment,
    "dfa": DirectFeedbackAlignment,
    "drtp": DirectRandomTargetProjection,
    "dtp": DifferenceTargetPropagation,
}
CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "images": images,
    "strided images": strided_images,
    "deep images": deep_images,
}
GOODNESS_RULES: dict[str, Callable[..., CreditAssignment]] = {
    "forward-forward": ForwardForward,
    "symba": SymBa,
    "layer-collaboration": LayerCollaboration,
    "cumulative": CumulativeForwardForward,
}
LOCAL_RULES: dict[str, Callable[..., CreditAssignment]] = {
    "local classifiers": LocalClassifiers,
    "mono-forward": MonoForward,
    "hyperspherical": Hyperspherical,
    "dynamic-temperature": DynamicTemperature,
    "patch-energy": PatchEnergy,
    "deeper-forward": DeeperForward,
    "channel-competition": ChannelCompetition,
    "channel-class-assignment": ChannelClassAssignment,
    "deep supervision": BackpropDeepSupervision,
    "end to end": Backprop,
}
LOCAL_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (dense(nn.ReLU, (16, 8, 8)), FLAT),
    "dense, tanh and dropout": (dense(nn.Tanh, (16, 8, 8), after=dropped), FLAT),
    "dense, normalised": (dense(nn.ReLU, (16, 8, 8), after=batch_norm), FLAT),
    "normalised images": (normalised_images, IMAGES),
    "varied images": (varied_images, IMAGES),
    "shortcuts": (shortcut_images, IMAGES),
}

CASES: dict[str, Case] = {
    # Rules that start from the error of the scores.
    **{f"{name}, {model}": case(rule, DENSE[model]) for name, rule in ERROR_RULES.items() for model in DENSE},
    **{
        f"{name}, {model}": case(rule, DROPPED[model])
        for name, rule in ERROR_RULES.items()
        for model in DROPPED
        if name != "dtp"
    },
    **{f"{name}, squared error": case(rule, loss="squared_error") for name, rule in ERROR_RULES.items()},
    **{
        f"{name}, smoothed labels": case(rule, dense(nn.ReLU), label_smoothing=0.1)
        for name, rule in ERROR_RULES.items()
        if name != "drtp"
    },
    **{f"{name}, a frozen weight": case(frozen(rule, "2.weight")) for name, rule in ERROR_RULES.items()},
    **{
        f"{name}, no hidden layer": case(rule, dense(widths=(16,)))
        for name, rule in ERROR_RULES.items()
        if name not in ("ftp", "dtp")
    },
    **{
        f"{name}, flattened images, in evaluation": case(evaluated(rule), nested, (1, 4, 4))
        for name, rule in ERROR_RULES.items()
        if name != "dtp"
    },
    "backprop, images, squared error": case(Backprop, images, IMAGES, loss="squared_error"),
    "backprop, orthogonal": case(Backprop, orthogonal=True),
    **{f"backprop, {name}": case(Backprop, model, IMAGES) for name, model in CONVOLUTIONS.items()},
    "backprop, free circular images": case(Backprop, orthogonal_images(), IMAGES),
    "backprop, orthogonal images": case(Backprop, orthogonal_images(), IMAGES, orthogonal=True),
    "backprop, deep orthogonal images": case(Backprop, deep_orthogonal_images, IMAGES, orthogonal=True),
    # FOTON.
    "foton, linear pass": case(Foton, dense(nn.ReLU), linear=True),
    "foton, linear pass, dropout": case(Foton, dense(after=dropped), linear=True),
    "foton, activation that shrinks": case(Foton, dense(nn.ReLU), activation_gain=0.7),
    "foton, activation that shrinks, linear pass": case(Foton, activation_gain=0.7, linear=True),
    "foton, projection of two steps": case(Foton, projection_every=2),
    "foton, clean pass twice": case(Foton, recompute=True),
    "foton, clean pass twice, dropout": case(Foton, dense(nn.ReLU, after=dropped), recompute=True),
    "foton, clean pass twice, linear pass": case(Foton, nested, recompute=True, linear=True, activation_gain=0.8),
    "foton, constraint every second step": case(Foton, orthogonality_every=2),
    "foton, tight constraint": case(Foton, orthogonality_tolerance=1e-6),
    "foton, small batch": case(Foton, batch=2),
    "foton, small batch, wide layers": case(Foton, dense(nn.ReLU, (16, 12, 12)), batch=2),
    "foton, momentum": case(Foton, momentum=0.9),
    "foton, asynchronous": case(asynchronous_foton),
    "foton, images": case(Foton, orthogonal_images(), IMAGES),
    "foton, images, relu": case(Foton, orthogonal_images(nn.ReLU), IMAGES, activation_gain=0.7),
    "foton, images, linear pass": case(Foton, orthogonal_images(nn.ReLU), IMAGES, linear=True),
    "foton, images, linear pass, squared error": case(
        Foton, orthogonal_images(), IMAGES, linear=True, activation_gain=0.8, loss="squared_error"
    ),
    "foton, deep images": case(Foton, deep_orthogonal_images, IMAGES),
    "foton, deep images, linear pass": case(Foton, deep_orthogonal_images, IMAGES, linear=True),
    # FTP.
    **{f"ftp, {phi} of projections": case(Ftp, phi=phi) for phi in ("identity", "relu", "tanh", "maxmin")},
    **{
        f"ftp, target of layer {layer}, {'full' if full else 'differences'}, {model}": case(
            Ftp, DROPPED[model], inject=layer, second_pass="full" if full else "difference"
        )
        for layer in (0, 1, 2)
        for full in (False, True)
        for model in ("tanh, dropout", "nested")
    },
    "ftp, gain and scale": case(Ftp, dense(nn.ReLU), gain=0.7, scale=0.2),
    "ftp, normal feedback": case(Ftp, law="normal"),
    "ftp, feedback of rank 2": case(Ftp, rank=2),
    "ftp, feedback from a seed": case(Ftp, seeded=True),
    **{f"ftp, {name}": case(Ftp, model, IMAGES, image_size=(8, 8)) for name, model in CONVOLUTIONS.items()},
    **{
        f"ftp, {name}, each position its own": case(Ftp, model, IMAGES, image_size=(8, 8), by_channel=False)
        for name, model in CONVOLUTIONS.items()
    },
    "ftp, images, feedback of rank 2": case(Ftp, images, IMAGES, image_size=(8, 8), rank=2),
    "ftp, images, rank 2, each position its own": case(
        Ftp, deep_images, IMAGES, image_size=(8, 8), rank=2, by_channel=False
    ),
    "ftp, images, feedback from a seed": case(Ftp, images, IMAGES, image_size=(8, 8), seeded=True),
    "ftp, images, relu of projections": case(Ftp, images, IMAGES, image_size=(8, 8), phi="relu", gain=0.7),
    "ftp, images, maxmin of projections": case(
        Ftp, images, IMAGES, image_size=(8, 8), phi="maxmin", by_channel=False, label_smoothing=0.1
    ),
    # PEPITA.
    **{
        f"pepita, {error} error, {inputs} inputs, {'full' if full else 'differences'}": case(
            Pepita,
            nested,
            output_error=error,
            presynaptic=inputs,
            second_pass="full" if full else "difference",
        )
        for error in ("clean", "modulated")
        for inputs in ("clean", "modulated")
        for full in (False, True)
    },
    "pepita, scale": case(Pepita, scale=0.5),
    # Direct feedback and target propagation.
    "dfa, signs": case(DirectFeedbackAlignment, signs=True),
    "dfa, signs, dropout": case(DirectFeedbackAlignment, nested, signs=True, scale=0.5),
    "drtp, scale": case(DirectRandomTargetProjection, scale=0.3),
    "dtp, step and noise": case(DifferenceTargetPropagation, dense(nn.ReLU, (16, 8, 6, 8)), step=0.5, noise=0.3),
    # Forward-Forward and its relatives.
    **{
        f"{name}, {model}": case(rule, DENSE[model])
        for name, rule in GOODNESS_RULES.items()
        for model in DENSE
        if model != "linear"
    },
    **{
        f"{name}, {model}": case(rule, CONVOLUTIONS[model], IMAGES, goodness="mean-square")
        for name, rule in GOODNESS_RULES.items()
        for model in CONVOLUTIONS
    },
    **{
        f"{name}, images, planes": case(rule, images_with_planes, IMAGES, goodness="mean-square", labels="planes")
        for name, rule in GOODNESS_RULES.items()
    },
    **{f"forward-forward, {name}": case(ForwardForward, dense(leaky), goodness=name) for name in GOODNESS},
    **{
        f"forward-forward, images, {name}": case(ForwardForward, images, IMAGES, goodness=name, threshold=0.5)
        for name in GOODNESS
    },
    "forward-forward, negated goodness": case(ForwardForward, goodness=negated(GOODNESS["mean-square"])),
    **{
        f"forward-forward, prior {prior}, {model}": case(
            ForwardForward, DENSE[model], prior=prior, goodness="mean-square", loss=pair_losses.collaboration(1.0)
        )
        for prior in ("none", "before", "others")
        for model in ("tanh", "widening")
    },
    **{
        f"forward-forward, {name}": case(ForwardForward, dense(nn.ReLU), goodness="mean-square", loss=loss)
        for name, loss in {
            "threshold": pair_losses.threshold(0.3),
            "symmetric": pair_losses.symba(2.0),
            "smoothed triplet": pair_losses.smoothed_triplet(),
            "two thresholds": pair_losses.two_thresholds(1.0, 0.5, 0.1),
            "collaboration": pair_losses.collaboration(2.0),
            "cumulative": cumulative_goodness.cumulative(),
        }.items()
    },
    "forward-forward, threshold and brightness": case(ForwardForward, threshold=0.5, amplitude=2.0, prior="none"),
    "forward-forward, classes given": case(
        ForwardForward, lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()), num_classes=K
    ),
    **{
        f"forward-forward, {negatives} negatives, {model}": case(
            ForwardForward,
            found,
            sample,
            negatives=negatives,
            readout=True,
            first_layer=1,
            mask_passes=2,
            goodness="mean-square",
        )
        for negatives in ("wrong", "hard", "hybrid", "pairs")
        for model, found, sample in (("dense", dense(nn.ReLU), FLAT), ("images", images, IMAGES))
    },
    "forward-forward, hard negatives by goodness": case(ForwardForward, negatives="hard", hard_law="root"),
    "forward-forward, hard negatives by softmax": case(ForwardForward, negatives="hard", hard_law="softmax"),
    "forward-forward, hybrid negatives, image shape": case(
        ForwardForward, negatives="hybrid", readout=True, image_shape=(2, 2, 4), mask_passes=1
    ),
    "forward-forward, read-out of the last layers": case(
        ForwardForward, dense(nn.ReLU, (16, 8, 6, 8)), readout=True, first_layer=1
    ),
    "forward-forward, hard negatives by the last layers": case(
        ForwardForward, dense(nn.ReLU, (16, 8, 6, 8)), negatives="hard", first_layer=1
    ),
    "forward-forward, read-out of planes": case(
        ForwardForward, images_with_planes, IMAGES, labels="planes", readout=True, first_layer=1, goodness="mean-square"
    ),
    "symba, alpha": case(SymBa, dense(nn.ReLU), alpha=2.0, prior="none"),
    "layer-collaboration, before": case(LayerCollaboration, dense(nn.ReLU, (16, 8, 6, 8)), prior="before"),
    "layer-collaboration, threshold": case(LayerCollaboration, dense(nn.ReLU), threshold=0.5),
    **{
        f"cumulative, {remedy}, {model}": case(CumulativeForwardForward, found, sample, remedy=remedy)
        for remedy in cumulative_goodness.REMEDIES
        for model, found, sample in (
            ("three layers", dense(nn.ReLU, (16, 8, 6, 8)), FLAT),
            ("convolutions", deep_images, IMAGES),
        )
    },
    "cumulative, learned gate": case(
        CumulativeForwardForward, dense(nn.ReLU, (16, 8, 6, 8)), remedy="hardness-gated", learn_gate=True
    ),
    "cumulative, learned gate, images": case(
        CumulativeForwardForward, images, IMAGES, remedy="hardness-gated", learn_gate=True, gamma=0.5, beta=2.0
    ),
    "cumulative, gamma and beta": case(CumulativeForwardForward, gamma=0.5, beta=2.0),
    # Local classifiers and their controls.
    **{
        f"{name}, {model}": case(rule, found, sample)
        for name, rule in LOCAL_RULES.items()
        for model, (found, sample) in LOCAL_MODELS.items()
    },
    **{
        f"{name}, not detached": case(rule, normalised_images, IMAGES, detach=False)
        for name, rule in LOCAL_RULES.items()
        if name != "end to end"
    },
    **{
        f"{name}, score after normalisation": case(rule, normalised_images, IMAGES, score_after="normalisation")
        for name, rule in LOCAL_RULES.items()
        if name != "end to end"
    },
    **{
        f"mono-forward, {kind}": case(MonoForward, varied_images, IMAGES, aggregation=kind)
        for kind in ("last", "sum", "range", "validation-loss", "training-loss", "readout")
    },
    "mono-forward, read-out": case(
        MonoForward, nested, aggregation="readout", first_layer=1, readout_dropout=0.2, readout_smoothing=0.1
    ),
    "mono-forward, in evaluation": case(evaluated(MonoForward), varied_images, IMAGES),
    "mono-forward, one cell": case(MonoForward, images, IMAGES, grid=1),
    "mono-forward, cells of each layer": case(MonoForward, images, IMAGES, grid=(2, 1, 1)),
    "mono-forward, classes given": case(
        MonoForward, lambda: nn.Sequential(nn.Linear(16, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.ELU()), num_classes=K
    ),
    "local classifiers, positive versus negative": case(
        LocalClassifiers, dense(nn.ReLU), loss=positive_versus_negative(1.0)
    ),
    "local classifiers, smooth margin": case(LocalClassifiers, images, IMAGES, loss=smooth_margin()),
    "local classifiers, modules as scores": case(
        LocalClassifiers,
        score=lambda blocks, classes: [nn.Linear(b.width, classes) for b in blocks],
    ),
    "local classifiers, a frozen weight": case(frozen(LocalClassifiers, "2.weight")),
    "hyperspherical, prototypes": case(
        Hyperspherical, images, IMAGES, scale=5.0, margin=0.2, per_class=2, sharpness=4.0, grid=2
    ),
    "dynamic-temperature, bounds": case(DynamicTemperature, images, IMAGES, grid=4, lowest=0.1, highest=1.0),
    "dynamic-temperature, read-out": case(
        DynamicTemperature, images, IMAGES, aggregation="readout", first_layer=1, readout_smoothing=0.1
    ),
    "patch-energy, cells": case(PatchEnergy, images, IMAGES, grid=2),
    **{
        f"channel-competition, {loss}": case(ChannelCompetition, LOCAL_MODELS["dense, normalised"][0], loss=loss)
        for loss in ("cwc", "pvn", "mixed")
    },
    **{
        f"channel-class-assignment, {kind}": case(
            ChannelClassAssignment, normalised_images, IMAGES, assignment=kind, settings={"scaled": kind == "learned"}
        )
        for kind in ("learned", "static", "frozen")
    },
    "channel-class-assignment, settings": case(
        ChannelClassAssignment,
        dense(nn.ReLU),
        settings={"temperature": 2.0, "entropy": 0.1, "ramp": 0},
        label_smoothing=0.0,
        aggregation="training-loss",
    ),
    "deep supervision, detached": case(BackpropDeepSupervision, varied_images, IMAGES, detach=True),
    "deep supervision, read-out": case(BackpropDeepSupervision, aggregation="readout"),
    "end to end, smoothed labels": case(Backprop, images, IMAGES, label_smoothing=0.1),
    "ensemble": case(ensemble),
    "ensemble, smoothed labels": case(ensemble, nested, label_smoothing=0.1),
    # DTG-FF's dense network.
    "hybrid, tanh": case(HybridDynamicTemperature),
    "hybrid, relu": case(HybridDynamicTemperature, dense(nn.ReLU, (16, 8, 6, 8))),
    "hybrid, no biases": case(HybridDynamicTemperature, dense(leaky, bias=False)),
    "hybrid, share and brightness": case(HybridDynamicTemperature, share=1.0, amplitude=2.0),
    "hybrid, classifier alone": case(HybridDynamicTemperature, dense(leaky, bias=False), share=0.0),
    # Hardware: without noise, where no order of reads matters; and with it.
    **{
        f"{name} on hardware, {kind}": case(hardware(rule, **own), dense(nn.ReLU, (16, 8, 8)), **settings)
        for name, rule, own in (
            ("backprop", Backprop, {}),
            ("orthogonal backprop", Backprop, {"orthogonal": True}),
            ("foton", Foton, {}),
            ("foton, linear pass", Foton, {"linear": True}),
            ("ftp", Ftp, {}),
            ("ftp, full", Ftp, {"second_pass": "full"}),
            ("pepita", Pepita, {}),
            ("pepita, full", Pepita, {"second_pass": "full"}),
            ("fa", FeedbackAlignment, {}),
            ("dfa", DirectFeedbackAlignment, {}),
            ("drtp", DirectRandomTargetProjection, {}),
            ("dtp", DifferenceTargetPropagation, {}),
            ("forward-forward", ForwardForward, {}),
            ("local classifiers", MonoForward, {}),
        )
        for kind, settings in {
            "quantised": {"bits": 8},
            "written with noise": {"weight_bits": 6, "programming_noise": 0.01, "weight_range": 0.8},
            "read with noise": {"bits": 8, "read_noise": 0.01, "programming_noise": 0.01},
        }.items()
    },
    # Recurrent networks.
    **{
        f"recurrent ftp, {cell}, {inject} step, {reduction}": case(
            RecurrentFtp, model, SEQUENCES, inject=inject, reduction=reduction
        )
        for cell, model in (("elman", elman), ("gru", gru))
        for inject in ("first", "every")
        for reduction in ("sum", "mean")
    },
    "recurrent ftp, regression": case(RecurrentFtp, gru, SEQUENCES, regression=True, loss="squared_error", phi="relu"),
    "recurrent ftp, gain and scale": case(RecurrentFtp, elman, SEQUENCES, gain=0.5, scale=1.0, law="normal"),
    **{
        f"backprop through time, {cell}, {length}": case(BackpropThroughTime, model, SEQUENCES, truncation=truncation)
        for cell, model in (("elman", elman), ("gru", gru))
        for length, truncation in (("whole", None), ("3 steps", 3))
    },
    "recurrent ftp, a frozen weight": case(frozen(RecurrentFtp, "recurrent.weight_hh_l0"), gru, SEQUENCES),
    "backprop through time, regression": case(
        BackpropThroughTime, elman, SEQUENCES, regression=True, loss="squared_error"
    ),
}

CHANGED = {
    f"{name} on hardware, {kind}"
    for name in ("foton", "foton, linear pass")
    for kind in ("written with noise", "read with noise")
}
"""FOTON's projection reads the last weight from its crossbar too, which before was taken as it is."""


def filled(model: nn.Module) -> nn.Module:
    """The model with parameters from NumPy's frozen generator: whatever draws initial weights may change."""
    for name, parameter in model.named_parameters():
        drawn = np.random.RandomState(crc32(name.encode())).standard_normal(tuple(parameter.shape))
        is_scale = name.endswith("weight") and parameter.dim() == 1
        width = 10 if parameter.dim() == 1 else parameter[0].numel()
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(drawn / width**0.5 + is_scale))
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def batches(case: Case) -> list[tuple[Tensor, Tensor]]:
    found = []
    for step in range(STEPS):
        random = np.random.RandomState(step)
        x = torch.from_numpy(random.standard_normal((case.batch, *case.sample)))
        y = torch.from_numpy((np.arange(case.batch) + step) % K)
        found.append((x, torch.from_numpy(random.standard_normal((case.batch, K))) if case.regression else y))
    return found


def digest(array: Tensor | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Products of the array with vectors of random signs, which tell a change of any entry; NaN for no array."""
    if array is None:
        return np.full(PROJECTIONS, np.nan)
    flat = array.detach().contiguous().numpy().ravel().astype(np.float64)
    return (2 * np.random.RandomState(flat.size).randint(2, size=(PROJECTIONS, flat.size)) - 1) @ flat


def updates(case: Case) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Digests of the loss and of every gradient in both steps, by step and name, and of the scores afterwards."""
    with torch.random.fork_rng(devices=[]), default_dtype(torch.float64):  # PyTorch's own modules draw in it
        torch.manual_seed(0)
        model = filled(case.model().to(torch.float64))
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(1)
        rule = case.rule(model, generator=generator, **case.options)
        optimizer = torch.optim.SGD(rule.parameters(), RATE, case.momentum)
        found = {}
        for step, (x, y) in enumerate(batches(case)):
            generator.manual_seed(2 + step)  # what a step draws, no matter what was drawn before
            torch.manual_seed(2 + step)
            found[f"{step}: loss"] = digest(rule.assign_credit(x, y))
            found.update({f"{step}: {name}": digest(p.grad) for name, p in rule.named_parameters()})
            optimizer.step()
            rule.constrain(optimizer)
        rule.eval()
        with torch.no_grad():
            found["scores"] = digest(rule(x))
    return found


def stored(file: Any, name: str) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    return dict(zip(file[f"{name}: names"], file[f"{name}: digests"], strict=True))


@pytest.fixture(scope="module")
def before() -> Any:
    with np.load(FILE) as file:
        return dict(file)


@pytest.mark.parametrize("name", [name for name in CASES if name not in CHANGED])
def test_the_updates_are_as_before(name: str, before: Any) -> None:
    expected, found = stored(before, name), updates(CASES[name])
    assert list(found) == list(expected)
    for array, one in expected.items():
        assert np.array_equal(np.isnan(one), np.isnan(found[array])), f"{array}: filled or not, other than before"
        if not np.isnan(one).any():
            difference = np.abs(found[array] - one).max()
            assert difference <= TOLERANCE * np.abs(one).max(), f"{array}: differs by {difference}"


def test_no_case_was_left_out(before: Any) -> None:
    assert {name.rpartition(": ")[0] for name in before} == set(CASES)


def write() -> None:
    arrays = {}
    for name, case in CASES.items():
        found = updates(case)
        arrays[f"{name}: names"] = np.array(list(found))
        arrays[f"{name}: digests"] = np.stack(list(found.values()))
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
