"""Every rule on a small model of its own: what is promised of all rules is tested on each of these."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from prograde import reference
from prograde.accelerated import activations
from prograde.accelerated.modules import OrthogonalConv2d, RecurrentNetwork, Rotation, ScaledAvgPool2d
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
    MonoForward,
    PatchEnergy,
    Pepita,
    RecurrentFtp,
    Rule,
    SymBa,
)
from prograde.accelerated.rules.rule import LayeredRule

K = 4
BATCH = 6
Made = TypeVar("Made", bound=CreditAssignment)


def dense(activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, K))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, K)
    )


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, K),
    )  # fmt: skip


def orthogonal_images() -> nn.Module:
    return nn.Sequential(
        nn.PixelUnshuffle(2), OrthogonalConv2d(12, 12, 3), nn.Tanh(), ScaledAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, K),
    )  # fmt: skip


def rotated_images() -> nn.Module:
    return nn.Sequential(
        nn.PixelUnshuffle(2), OrthogonalConv2d(12, 4, 2), nn.Tanh(), nn.MaxPool2d(2), Rotation(4, 0.5, nn.Tanh(), 2),
        nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), Rotation(8, 0.5, nn.ReLU()), nn.Linear(8, K),
    )  # fmt: skip


def normalised_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, K),
    )  # fmt: skip


class Block(nn.Module):
    """What a rule can only run: a shortcut around two layers, with draws of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def blocks() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Softplus(), Block(8), nn.LayerNorm(8), nn.Linear(8, K))


def elman() -> nn.Module:
    return RecurrentNetwork(5, 6, K)


def gru() -> nn.Module:
    return RecurrentNetwork(5, 6, K, "gru")


FLAT, IMAGES, SEQUENCES = (16,), (3, 8, 8), (7, 5)


class Example(NamedTuple):
    """A rule, the model that it is built on, and the shape of the samples."""

    rule: Callable[..., CreditAssignment]
    model: Callable[[], nn.Module] = dense
    shape: tuple[int, ...] = FLAT

    def build(self, device: Any, prepare: Callable[[nn.Module], object] = lambda model: None) -> CreditAssignment:
        """The rule in float64 on a model that was prepared."""
        torch.manual_seed(0)
        model = self.model().to(device, torch.float64)
        prepare(model)
        return self.rule(model, generator=torch.Generator(device))

    def batch(self, device: Any, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(size, *self.shape, generator=generator, dtype=torch.float64)
        return x.to(device), (torch.arange(size) % K).to(device)


def refusal(call: Callable[[], object]) -> str:
    """The message of the ValueError or TypeError that the call raises; "accepted" where there is none."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "accepted"


def ensemble(model: nn.Module, generator: torch.Generator) -> Rule:
    return BackpropEnsemble([model, dense().to(next(model.parameters()))], generator=generator)


def hardware(rule: Callable[..., Rule]) -> Callable[..., Rule]:
    def build(model: nn.Module, generator: torch.Generator) -> Rule:
        return Hardware(rule(model, generator=generator), bits=8, read_noise=0.01, programming_noise=0.01)

    return build


def asynchronous(model: nn.Module, generator: torch.Generator) -> Rule:
    """FOTON with the constraint as it is held on an accelerator."""
    rule = Foton(model, generator=generator)
    rule.orthogonality.asynchronous = True
    return rule


def options(rule: Callable[..., Made], **given: Any) -> Callable[..., Made]:
    return lambda model, generator: rule(model, generator=generator, **given)


EXAMPLES: dict[str, Example] = {
    "backprop": Example(Backprop),
    "backprop, orthogonal": Example(options(Backprop, orthogonal=True)),
    "backprop, images": Example(Backprop, images, IMAGES),
    "foton": Example(Foton),
    "foton, recompute": Example(options(Foton, recompute=True, linear=True)),
    "foton, asynchronous": Example(asynchronous),
    "foton, images": Example(Foton, orthogonal_images, IMAGES),
    "foton, rotations": Example(options(Foton, linear=True), rotated_images, IMAGES),
    "ftp": Example(Ftp),
    "ftp, second layer": Example(options(Ftp, inject=2, second_pass="full")),
    "ftp, recompute": Example(options(Ftp, recompute=True)),
    "ftp, modules": Example(Ftp, blocks),
    "ftp, images": Example(options(Ftp, image_size=(8, 8)), images, IMAGES),
    "pepita": Example(Pepita),
    "pepita, modules": Example(Pepita, blocks),
    "pepita, images": Example(options(Pepita, image_size=(8, 8), second_pass="full"), images, IMAGES),
    "fa": Example(FeedbackAlignment),
    "fa, images": Example(FeedbackAlignment, images, IMAGES),
    "dfa": Example(DirectFeedbackAlignment),
    "dfa, modules": Example(DirectFeedbackAlignment, blocks),
    "dfa, images": Example(options(DirectFeedbackAlignment, image_size=(8, 8)), images, IMAGES),
    "drtp": Example(DirectRandomTargetProjection),
    "drtp, images": Example(options(DirectRandomTargetProjection, image_size=(8, 8), by_channel=True), images, IMAGES),
    "dtp": Example(DifferenceTargetPropagation),
    "forward-forward": Example(ForwardForward),
    "forward-forward, read-out": Example(options(ForwardForward, readout=True, negatives="hard")),
    "forward-forward, hybrid": Example(options(ForwardForward, readout=True, negatives="hybrid")),
    "forward-forward, pairs": Example(options(ForwardForward, readout=True, negatives="pairs")),
    "forward-forward, modules": Example(ForwardForward, blocks),
    "forward-forward, images": Example(options(ForwardForward, goodness="mean-square"), images, IMAGES),
    "symba": Example(SymBa),
    "layer-collaboration": Example(LayerCollaboration),
    "cumulative": Example(options(CumulativeForwardForward, remedy="hardness-gated", learn_gate=True)),
    "hybrid-dynamic-temperature": Example(HybridDynamicTemperature),
    "mono-forward": Example(MonoForward, lambda: dense(nn.ReLU)),
    "mono-forward, tanh": Example(options(MonoForward, aggregation="readout")),
    "mono-forward, images": Example(options(MonoForward, grid=1), normalised_images, IMAGES),
    "hyperspherical": Example(Hyperspherical),
    "dynamic-temperature": Example(DynamicTemperature),
    "patch-energy": Example(PatchEnergy),
    "deeper-forward": Example(DeeperForward),
    "channel-competition": Example(ChannelCompetition, normalised),
    "channel-competition, images": Example(ChannelCompetition, normalised_images, IMAGES),
    "channel-class-assignment": Example(ChannelClassAssignment),
    "deep supervision": Example(BackpropDeepSupervision, normalised),
    "deep supervision, read-out": Example(options(BackpropDeepSupervision, aggregation="readout")),
    "end to end": Example(Backprop, normalised),
    "ensemble": Example(ensemble),
    "foton on hardware": Example(hardware(Foton)),
    "ftp on hardware": Example(hardware(Ftp)),
    "pepita on hardware with images": Example(hardware(options(Pepita, image_size=(8, 8))), images, IMAGES),
    "local classifiers on hardware": Example(hardware(MonoForward)),
    "local classifiers on hardware with images": Example(hardware(MonoForward), images, IMAGES),
    "recurrent ftp on hardware": Example(hardware(RecurrentFtp), gru, SEQUENCES),
    "recurrent ftp": Example(RecurrentFtp, elman, SEQUENCES),
    "recurrent ftp, gru": Example(RecurrentFtp, gru, SEQUENCES),
    "backprop through time": Example(BackpropThroughTime, gru, SEQUENCES),
    "truncated": Example(options(BackpropThroughTime, truncation=3), elman, SEQUENCES),
}


def reference_layers(rule: LayeredRule, masks: Any = None) -> Any:
    """The rule's layers as the reference's, in float64."""
    return _in_reference(rule.layers(masks))


def _in_reference(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return part.detach().double().cpu().numpy()
    if isinstance(part, activations.Activation):
        names = [name for name, activation in activations.ACTIVATIONS.items() if activation == part]
        if names:
            return reference.activations.ACTIVATIONS[names[0]]
        return reference.activations.leaky_relu(part.value.args[0])  # type: ignore[attr-defined]
    if type(part) is tuple:
        return tuple(map(_in_reference, part))
    parts = [f.name for f in fields(part) if f.init] if is_dataclass(part) else getattr(part, "_fields", None)
    if parts is None:
        return part
    return getattr(reference.layers, type(part).__name__)(*(_in_reference(getattr(part, name)) for name in parts))
