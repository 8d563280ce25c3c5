"""What rules refuse: models, options and data. The message says where, what came and what was expected.

Each row has the beginning of its message, where `...` stands for any text. A refusal changes nothing.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prograde.accelerated.cumulative_goodness import compensated
from prograde.accelerated.modules import (
    MaxMin,
    OrthogonalConv2d,
    Rotation,
    ScaledAvgPool2d,
    ShortcutNetwork,
    resnet17,
)
from prograde.accelerated.rules import (
    Backprop,
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
    Pepita,
    RecurrentFtp,
    SymBa,
)
from prograde.accelerated.rules.local.score_heads import LinearHead
from prograde.accelerated.score_losses import cross_entropy
from prograde.equivalence_tests.rule_examples import (
    EXAMPLES,
    K,
    blocks,
    dense,
    elman,
    gru,
    images,
    normalised,
    normalised_images,
    refusal,
)
from prograde.equivalence_tests.sides import TwinSide
from prograde.equivalence_tests.test_score_heads import Shifted

pytestmark = [pytest.mark.smoke, pytest.mark.usefixtures("ours_only")]

nan, inf = float("nan"), float("inf")
Build: TypeAlias = Callable[..., CreditAssignment]


def check(call: Callable[[], object], said: str) -> None:
    message, pattern = refusal(call), re.escape(said).replace(re.escape("..."), ".*")
    assert re.match(pattern, message), f"{message}\nexpected: {said}"


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Parameters and buffers stay as they are inside, and no gradient is given."""
    state = {name: t for name, t in chain(module.named_parameters(), module.named_buffers()) if not is_lazy(t)}
    before = {name: tensor.detach().clone() for name, tensor in state.items()}
    yield
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True, msg=f"{name}: changed")
    assert all(p.grad is None for p in module.parameters()), "gradients"


def tied(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    second.weight = first.weight
    return second


def twice(layer: nn.Module, *between: nn.Module) -> list[nn.Module]:
    return [layer, *between, layer]


def poisoned(layer: nn.Linear) -> nn.Linear:
    nn.init.constant_(layer.bias, nan)
    return layer


def with_bias(layer: nn.Linear) -> nn.Linear:
    """Of another dtype than its weight."""
    layer.bias = nn.Parameter(layer.bias.detach().double())
    return layer


def normed(layer: nn.Linear) -> nn.Linear:
    """As the older torch.nn.utils.weight_norm made it: a parameter of another name, from which a hook computes it."""
    weight = layer.weight
    del layer.weight
    layer.weight_v = weight
    layer.weight = weight.detach() * 1
    return layer


def compiled(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # PyTorch's own, of what its compiler imports
        return torch.compile(model)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class LeakyPool(nn.MaxPool2d):
    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = super().forward(x) - 0.1
        return pooled


def shortcuts(stem: nn.Module, *block: nn.Module) -> nn.Module:
    return ShortcutNetwork(stem, [nn.Sequential(*block)], [], nn.Sequential(nn.Linear(3, 2)))


def written_over(*between: nn.Module) -> list[nn.Module]:
    return [nn.Linear(3, 3), nn.Tanh(), *between, nn.Hardtanh(inplace=True), nn.Linear(3, 2)]


def end() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(4, 2)]


def block() -> list[nn.Module]:
    return [nn.Conv2d(2, 4, 3), nn.Tanh()]


class Shrinking(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Scaled(nn.Linear):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.scale = nn.Parameter(torch.ones(()))


def patched(layer: nn.Module) -> nn.Module:
    """With another forward pass than its class has."""
    forward = layer.forward
    layer.forward = lambda x: 3 * forward(x)
    return layer


# Each rule's models, or the layers of an nn.Sequential. What the reader says is said once: every rule uses it.
MODELS: dict[Build, list[tuple[Callable[[], nn.Module | list[nn.Module]], str]]] = {
    Foton: [
        (
            lambda: nn.Linear(3, 2),
            "model: Linear; Foton trains an nn.Sequential of Linear, each followed by an activation (ReLU, LeakyReLU, "
            "Tanh, GELU, SiLU or MaxMin) and Dropout, and Flatten before the first",
        ),
        (lambda: [nn.Linear(3, 4), Shrinking(), nn.Linear(4, 2)], "layer '1': Shrinking has a forward pass of its own"),
        (lambda: [nn.Linear(3, 4), patched(nn.ReLU()), nn.Linear(4, 2)], "layer '1': ReLU has a forward pass of its"),
        (lambda: [patched(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)], "layer '0': Linear has a forward pass of it"),
        (lambda: [Scaled(3, 4), nn.ReLU(), nn.Linear(4, 2)], "layer '0': Foton would not train its scale, which a S"),
        (lambda: [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)], "layer '2': gives 1 class score, expected 2 or more"),
        (lambda: [nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)], "layer '2': gives 1 class score"),
        (lambda: Residual(nn.Linear(3, 3)), "model: Residual; ...(it needs layers that can be held orthogonal"),
        (lambda: compiled(nn.Sequential(nn.Linear(3, 2))), "model: OptimizedModule; ...(pass the uncompiled model)"),
        (lambda: shortcuts(nn.Identity(), nn.Linear(3, 3)), "model: ShortcutNetwork; ...(use MonoForward or Hyper"),
        (elman, "model: RecurrentNetwork; ...(use RecurrentFtp or BackpropThroughTime, with"),
        (lambda: [nn.LSTM(3, 4), nn.Linear(4, 2)], "layer '0': LSTM; ...(use RecurrentFtp or BackpropThroughTime, w"),
        (lambda: [nn.Flatten()], "model: no layer with weights; Foton trains an nn.Sequential of Linear"),
        (lambda: [nn.TransformerEncoderLayer(4, 2), *end()], "layer '0': TransformerEncoderLayer; ...(it needs layers"),
        (lambda: [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)], "layer '1': BatchNorm1d; ...(it needs laye"),
        (lambda: [nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)], "layer '1': LayerNorm; ...MonoForward take"),
        (lambda: [nn.Sequential(nn.Linear(3, 4), nn.ELU())], "layer '0.1': ELU; ...(use ReLU, GELU or SiLU)"),
        (lambda: [nn.Linear(3, 4), nn.Softmax(1)], "layer '1': Softmax; ...(the loss contains it; remove it)"),
        (lambda: [nn.Linear(3, 2), nn.ReLU()], "layer '1': ReLU at the end, expected a Linear that gives the class sc"),
        (lambda: [nn.Linear(3, 2), nn.ReLU(), nn.Identity()], "layer '1': ReLU at the end, expected a Linear that g"),
        (lambda: [nn.Linear(3, 2), nn.Dropout()], "layer '1': Dropout at the end, expected a Linear that gives"),
        (lambda: [nn.Linear(3, 2), nn.Flatten()], "layer '1': Flatten in this place; Foton trains"),
        (lambda: [nn.Linear(3, 4), *twice(nn.ReLU())], "layer '2': a second activation after layer '0'; remove one"),
        (lambda: [nn.Linear(3, 4), *twice(nn.Dropout())], "layer '2': a second Dropout after layer '0'; remove one"),
        (lambda: [nn.Linear(3, 4), nn.Dropout(), nn.Tanh()], "layer '2': Tanh after Dropout; put the Dropout behin"),
        (lambda: [nn.Linear(3, 4), nn.Dropout(), nn.GELU()], "layer '2': GELU after Dropout; put the Dropout behin"),
        (lambda: [nn.Dropout(), nn.Linear(4, 3)], "layer '0': Dropout before the first layer; ...remove it"),
        (lambda: [nn.Linear(4, 3), nn.AlphaDropout()], "layer '1': AlphaDropout; Foton trains"),
        (lambda: [nn.Linear(3, 5), MaxMin()], "layer '1': MaxMin pairs units, but layer '0' gives 5, an odd one"),
        (lambda: [nn.Linear(3, 4), nn.Linear(5, 2)], "layer '1': takes 5 features, but layer '0' gives 4"),
        (lambda: twice(nn.Linear(3, 3), nn.ReLU()), "layer '2': shares a parameter with layer '0'; Foton needs each"),
        (lambda: [a := nn.Linear(3, 3), tied(a, nn.Linear(3, 3))], "layer '1': shares a parameter with layer '0'"),
        (lambda: [nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))], "layer '0': a parameter is computed; Foton"),
        (lambda: [normed(nn.Linear(16, 8)), nn.ReLU(), nn.Linear(8, K)], "layer '0': a parameter is computed; Foton"),
        (lambda: [nn.LazyLinear(2)], "layer '0': its parameters are not there yet; call the model once, then build"),
        (lambda: [nn.Linear(3, 0), nn.Linear(0, 2)], "layer '0': its weight has shape (0, 3); Foton needs a unit"),
        (lambda: [nn.Linear(0, 3), nn.Linear(3, 2)], "layer '0': its weight has shape (3, 0); Foton needs a unit"),
        (lambda: [nn.Linear(3, 4), nn.Linear(4, 2).double()], "layer '1': torch.float64 on ...; Foton needs all of"),
        (lambda: [with_bias(nn.Linear(3, 4)), *end()], "layer '0': torch.float32 on cpu and torch.float64 on cpu;"),
        (lambda: [poisoned(nn.Linear(3, 4)), *end()], "layer '0': its parameters are not all finite, expected finite"),
        (lambda: [nn.Linear(3, 4).requires_grad_(False), *end()[1:]], "weight of layer '0': frozen and not orthogonal"),
        (lambda: [OrthogonalConv2d(4, 4, 3), nn.MaxPool2d(3, 2)], "layer '1': ...Foton trains MaxPool2d(n) with"),
        (lambda: [OrthogonalConv2d(4, 4, 3), *[nn.MaxPool2d(2)] * 2], "layer '2': MaxPool2d in this place; Foton"),
        (lambda: [Rotation(4, 0.1, nn.Softplus()), *end()], "layer '0': Softplus inside; Foton trains Rotation with R"),
        (lambda: [nn.Linear(3, 6), Rotation(4, 0.1), *end()], "layer '1': takes 4 features, but layer '0' gives 6"),
        (lambda: [OrthogonalConv2d(4, 4, 3), nn.AvgPool2d(2)], "layer '1': AvgPool2d; ...(a mean shrinks what orth"),
        (lambda: [nn.Conv2d(4, 4, 3), *end()], "layer '0': Conv2d; ...of OrthogonalConv2d...it is not orthogonal, as"),
        (lambda: [OrthogonalConv2d(4, 4, 3), OrthogonalConv2d(3, 4, 3)], "layer '1': takes 3 channels, but gets 4"),
        (lambda: [*twice(OrthogonalConv2d(4, 4, 3)), *end()], "layer '1': shares a parameter with layer '0'"),
        (lambda: [OrthogonalConv2d(4, 3, 3), MaxMin()], "layer '1': MaxMin pairs channels, but layer '0' gives 3"),
        (lambda: [OrthogonalConv2d(4, 3, 3), nn.Flatten()], "layer '1': Flatten at the end, expected a Linear that gi"),
        (lambda: [OrthogonalConv2d(4, 3, 3), nn.PixelUnshuffle(2), nn.Tanh()], "layer '2': Tanh in this place; Foton"),
        (
            lambda: [nn.PixelUnshuffle(2), OrthogonalConv2d(6, 3, 3)],
            "layer '1': takes 6 channels, expected a multiple of 4 after unshuffling",
        ),
        (lambda: [*twice(nn.PixelUnshuffle(2)), OrthogonalConv2d(18, 3, 3)], "layer '2': takes 18 ...a multiple of 16"),
        (
            lambda: [OrthogonalConv2d(4, 4, 3), ScaledAvgPool2d(2), nn.Dropout()],
            "layer '2': Dropout after pooling or Flatten; put it right behind the activation",
        ),
    ],
    FeedbackAlignment: [
        (lambda: [*block(), nn.Flatten(), nn.MaxPool2d(2), nn.Linear(4, 2)], "layer '3': MaxPool2d in this place; F"),
        (lambda: [*block(), nn.Linear(4, 2)], "layer '2': Linear after maps of layer '0'; put a Flatten before it"),
        (lambda: [nn.Linear(4, 4), *block(), *end()], "layer '1': Conv2d in this place; FeedbackAlignment trains"),
        (lambda: [nn.Flatten(), *block(), *end()], "layer '1': Conv2d in this place; FeedbackAlignment trains"),
        (lambda: [nn.MaxPool2d(2), *block(), *end()], "layer '0': MaxPool2d in this place; FeedbackAlignment trains"),
        (lambda: [nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Tanh(), *end()], "layer '2': Tanh in this place; Feedb"),
        (lambda: [*block(), nn.MaxPool2d(2), nn.Dropout(), *end()], "layer '3': Dropout after pooling or Flatten"),
        (lambda: [*block(), nn.Dropout2d(), *end()], "layer '2': Dropout2d; ...(use Dropout)"),
        (lambda: [*block(), nn.AvgPool2d(2, divisor_override=3), *end()], "layer '2': AvgPool2d(...trains AvgPool2"),
        (lambda: [*block(), nn.MaxPool2d(3, stride=2), *end()], "layer '2': MaxPool2d(...trains MaxPool2d(n) with sq"),
        (lambda: [*block(), nn.MaxPool2d((2, 3)), *end()], "layer '2': MaxPool2d(...trains MaxPool2d(n) with squares"),
        (lambda: [*block(), nn.AdaptiveAvgPool2d(2), *end()], "layer '2': AdaptiveAvgPool2d; ...(use AvgPool2d)"),
        (lambda: [*block(), LeakyPool(2), *end()], "layer '2': LeakyPool has a forward pass of its own"),
        (lambda: [*block(), nn.Flatten(2), *end()], "layer '2': Flatten(start_dim=2...wants samples flattened whole"),
        (lambda: [nn.Conv2d(2, 4, 3, groups=2), *end()], "layer '0': Conv2d(...without groups and dilation...MonoForw"),
        (lambda: [nn.Conv2d(2, 4, 3, dilation=2), *end()], "layer '0': Conv2d(...without groups and dilation"),
        (lambda: [nn.Conv2d(2, 4, 3, padding_mode="circular"), *end()], "layer '0': Conv2d(...padded with zeros"),
        (lambda: [nn.Conv2d(2, 4, 4, padding="same"), *end()], "layer '0': Conv2d(...odd kernel_size"),
        (lambda: [*block(), nn.Conv2d(3, 4, 1), *end()], "layer '2': takes 3 channels, but gets 4"),
        (lambda: [nn.Conv2d(2, 3, 3), MaxMin(), *end()], "layer '1': MaxMin pairs channels, but layer '0' gives 3"),
        (lambda: [OrthogonalConv2d(2, 4, 3), *end()], "layer '0': OrthogonalConv2d; ...(use Conv2d, or train it by"),
        (lambda: [*block(), ScaledAvgPool2d(2), *end()], "layer '2': ScaledAvgPool2d; ...(use AvgPool2d)"),
    ],
    Ftp: [
        (lambda: [nn.Linear(4, 2)], "model: no hidden layer; Ftp needs one to have a target"),
        (lambda: [nn.Linear(3, 4), nn.Linear(5, 2)], "layer '1': takes 5 features, but layer '0' gives 4"),
        (lambda: [*block(), nn.Linear(4, 2)], "layer '2': Linear after maps of layer '0'; put a Flatten before it"),
        (lambda: [*block(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 1), *end()], "layer '3': takes 3 channels, but gets 4"),
        (lambda: [nn.Linear(3, 3), *twice(nn.PReLU(), nn.Linear(3, 3))], "layer '3': shares a parameter with layer"),
        (lambda: [nn.Linear(3, 3), nn.Linear(3, 3), *twice(nn.PReLU(), nn.Linear(3, 3))],
         "layer '4': shares a parameter with layer '1'"),
        (lambda: Residual(nn.Linear(3, 3)), "model: Residual; ...(or the units of any other model: units=[...]"),
        (lambda: [nn.Linear(3, 2), nn.Softmax(1)], "layer '1': Softmax; ...(the loss contains it; remove it)"),
    ],
    Pepita: [
        (lambda: [nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.LayerNorm(2)], "example: None, ...by unit '2' are"),
    ],
    DifferenceTargetPropagation: [
        (lambda: [nn.Linear(4, 2)], "model: no hidden layer; DifferenceTargetPropagation needs one"),
        (lambda: [nn.Linear(4, 2), nn.Dropout()], "layer '1': Dropout; ...(the rule has no dropout; remove it)"),
        (lambda: [*block(), *end()], "layer '0': Conv2d; ...(Ftp, Pepita, FeedbackAlignment, ForwardForward, Backprop"),
    ],
    SymBa: [
        (lambda: [nn.Linear(4, 2)], "model: no hidden layer; SymBa trains Linear layers that an activation follows"),
        (lambda: [nn.Linear(4, 2), nn.ReLU(), nn.Dropout()], "layer '2': Dropout; ...MaxMin), and...no dropout; re"),
        (lambda: [nn.Dropout(), nn.Linear(4, 2)], "layer '0': Dropout; ...(the rule has no dropout; remove it)"),
        (lambda: [*block(), nn.Dropout(), *end()], "layer '2': Dropout; ...MaxMin) and MaxPool2d or...no dropout; r"),
        (lambda: [nn.Linear(4, 2), nn.ReLU()], "layer '1': ReLU at the end, expected a Linear ...or num_classes"),
        (lambda: [*block(), nn.Flatten(), nn.Linear(4, 1)], "num_classes: 1, expected 2 or more"),
        (lambda: [nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)], "num_classes: 3, expected 2..2, the pixels of the in"),
    ],
    HybridDynamicTemperature: [
        (lambda: [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), *end()], "layer '1': BatchNorm1d; ...use LayerNorm"),
        (lambda: [nn.Linear(4, 2), nn.Dropout()], "layer '1': Dropout; ...(the rule has no dropout; remove it)"),
        (lambda: [nn.Linear(4, 2), nn.ReLU()], "layer '1': ReLU at the end, expected a Linear that gives the class"),
        (lambda: [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)], "model: 1 hidden layer, expected two or more"),
        (lambda: [*(nn.Linear(2, 2) for _ in range(3)), nn.Linear(2, 3)], "num_classes: 3, expected 2..2, the inputs"),
    ],
    Backprop: [
        (block, "layer '1': Tanh at the end, expected a Linear that gives the class scores, or an example, a batch"),
        (nn.ReLU, "model: ReLU without parameters, expected some to train"),
    ],
    MonoForward: [
        (lambda: [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)], "model: its last layer gives 1 class score, expected"),
        (lambda: nn.Linear(3, 2), "model: Linear; MonoForward trains an nn.Sequential of Conv2d and Linear"),
        (lambda: [nn.Flatten(), nn.Linear(3, 2)], "model: no hidden layer; MonoForward trains an nn.Sequential"),
        (lambda: [nn.Linear(3, 2), nn.Bilinear(2, 2, 2)], "layer '1': Bilinear at the end, expected a Lin"),
        (lambda: [nn.Conv1d(3, 3, 1), nn.Linear(3, 2)], "example: None, ...which tells how wide unit '0' is, a Conv1d"),
        (lambda: [OrthogonalConv2d(2, 4, 3), *end()], "layer '0': OrthogonalConv2d; ...(use Conv2d, or train it by"),
        (lambda: [nn.Linear(3, 2), nn.Softmax(1)], "layer '1': Softmax; ...(the loss contains it; remove it)"),
        (lambda: [nn.Linear(3, 2), nn.ReLU()], "layer '1': ReLU at the end, expected a Linear ...or num_classes"),
        (lambda: [*twice(nn.Linear(3, 3)), *end()], "layer '1': shares a parameter with layer '0'"),
        (lambda: [nn.Linear(3, 3), *twice(nn.PReLU(), nn.Linear(3, 3)), *end()], "layer '2': shares a parameter"),
        (lambda: written_over(), "layer '0': inplace=True of the Hardtanh after it would write over"),
        (lambda: written_over(nn.Identity()), "layer '0': inplace=True of the Hardtanh after it would write over"),
        (lambda: written_over(nn.Flatten()), "layer '0': inplace=True of the Hardtanh after it would write over"),
        (lambda: written_over(nn.Flatten(), nn.Dropout()), "layer '0': inplace=True of the Hardtanh after it would"),
        (lambda: shortcuts(nn.Identity(), nn.Linear(3, 3), nn.Linear(3, 3)), "block 'blocks.0': 2 layers, expected"),
        (lambda: shortcuts(nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3)), "layer 'stem.0': in the stem; MonoFor"),
    ],
    DeeperForward: [
        (lambda: [nn.Linear(3, 6), nn.Linear(6, 4)], "layer '0': 6 channels, expected a multiple of the 4 classes"),
    ],
    ChannelClassAssignment: [
        (lambda: [nn.Linear(3, 3), nn.Linear(3, 4)], "layer '0': 3 channels, expected one for each class"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "model", "said"),
    [pytest.param(rule, *row, id=f"{rule.__name__}-{row[1]}") for rule, rows in MODELS.items() for row in rows],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:Lazy modules")
def test_models(rule: Build, model: Callable[[], nn.Module | list[nn.Module]], said: str) -> None:
    made = model()
    made = made if isinstance(made, nn.Module) else nn.Sequential(*made)
    with unchanged(made):
        check(lambda: rule(made), said)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_rule_reads_its_model(name: str) -> None:
    model = nn.Bilinear(2, 2, 2)
    whole = (name.startswith("backprop") and "time" not in name) or name in ("end to end", "ensemble")
    said = "model: Bilinear; how many scores it gives is not known" if whole else "model: Bilinear; ... trains a"
    check(lambda: EXAMPLES[name].rule(model, generator=None), said)


def hardware(model: nn.Module, **options: Any) -> Hardware:
    return Hardware(Ftp(model), **options)


def settings(model: nn.Module, **options: Any) -> ChannelClassAssignment:
    return ChannelClassAssignment(model, settings=options)


def through_time(model: nn.Module, **options: Any) -> BackpropThroughTime:
    return BackpropThroughTime(gru(), **options)


# Values that an option cannot have in any model, and what was expected.
OPTIONS: list[tuple[Build, str, list[Any], str]] = [
    (Foton, "orthogonality_every", [1.5, 0, True, nan], "a positive integer"),
    (Foton, "projection_every", [1.5, 0], "a positive integer"),
    (Foton, "orthogonality_tolerance", [nan, inf, 0, -1.0], "a positive number"),
    (Foton, "activation_gain", [nan, 0, inf], "a positive number"),
    (Foton, "temperature", [0], "a positive number"),
    (Backprop, "loss", ["hinge"], "'cross_entropy', 'squared_error', 'binary_cross_entropy', 'huber', a loss"),
    (Pepita, "scale", [0, -1.0, nan, inf], "a positive number"),
    (Pepita, "output_error", ["none"], "'clean' or 'modulated'"),
    (Pepita, "second_pass", ["none"], "'difference' or 'full'"),
    (Ftp, "inject", [1.0, True, 3], "0..2, the input or a hidden layer"),
    (Ftp, "phi", ["sine"], "one of identity, relu"),
    (Ftp, "gain", [nan, 0], "a positive number"),
    (Ftp, "scale", [nan, 0], "a positive number"),
    (Ftp, "rank", [True, 5], "1..4, the number of classes"),
    (Ftp, "law", ["cauchy"], "one of uniform, normal"),
    (DirectFeedbackAlignment, "scale", [nan, 0], "a positive number"),
    (DifferenceTargetPropagation, "noise", [nan, 0], "a positive number"),
    (DifferenceTargetPropagation, "step", [nan, 0], "a positive number"),
    (ForwardForward, "goodness", ["energy"], "one of sum-of-squares"),
    (ForwardForward, "loss", ["symba"], "a loss, as pair_losses"),
    (ForwardForward, "threshold", [nan, inf], "a finite number"),
    (ForwardForward, "first_layer", [1.0, -1], "an integer of 0 or more"),
    (ForwardForward, "first_layer", [2], "0..1"),
    (ForwardForward, "num_classes", [4.0], "a positive integer"),
    (ForwardForward, "amplitude", [nan, 0.0], "a positive number"),
    (ForwardForward, "mask_passes", [0, 1.5], "a positive integer"),
    (ForwardForward, "image_shape", [(2, 3, 4)], "channels, height and width of the 16 pixels that layer '0' takes"),
    (SymBa, "alpha", [-4.0], "a positive number"),
    (SymBa, "negatives", ["soft"], "one of wrong, hard"),
    (SymBa, "labels", ["edges"], "one of pixels, planes, tokens"),
    (SymBa, "hard_law", ["square"], "one of root, softmax"),
    (LayerCollaboration, "threshold", [nan, inf], "a finite number"),
    (LayerCollaboration, "prior", ["after"], "one of none, before"),
    (LayerCollaboration, "prior", ["none"], ""),
    (CumulativeForwardForward, "gamma", [nan, inf, -1.0], "0 or a positive number"),
    (CumulativeForwardForward, "beta", [nan, 0, -4.0], "a positive number"),
    (CumulativeForwardForward, "prior", ["others"], "'before'"),
    (CumulativeForwardForward, "remedy", ["none"], "one of cumulative"),
    (CumulativeForwardForward, "learn_gate", [True], "...'hardness-gated'"),
    (HybridDynamicTemperature, "share", [nan, -1.0, inf], "0 or a positive number"),
    (HybridDynamicTemperature, "amplitude", [nan, 0], "a positive number"),
    (MonoForward, "first_layer", [1.0, 2], "0..1"),
    (MonoForward, "num_classes", [4.0, 1], "an integer of 2 or more"),
    (MonoForward, "grid", [1.5, 0, [2.5, 1], (2, 2, 2)], "a positive integer, or one for each of 2 layers"),
    (MonoForward, "aggregation", ["mean"], "one of last, sum"),
    (MonoForward, "score_after", ["pool"], "one of activation"),
    (MonoForward, "loss", ["hinge"], "'cross_entropy', 'squared_error', "),
    (ChannelCompetition, "loss", ["ff"], "one of cwc, pvn, mixed"),
    (ChannelClassAssignment, "assignment", ["drawn"], "one of"),
    (Hyperspherical, "per_class", [1.5, 0], "a positive integer"),
    (Hyperspherical, "sharpness", [nan, 0, inf], "a positive number"),
    (Hyperspherical, "scale", [0], "a positive number"),
    (Hyperspherical, "margin", [nan, -1], "0 or more"),
    (hardware, "bits", [2.5, 1], "an integer of 2 or more, or None"),
    (hardware, "read_noise", [nan, -1], "0 or a positive number"),
    (settings, "temperature", [0], "a positive number"),
    (settings, "pooling", [(nan, 1.0, 1.0), (1.0,), (1, 0)], "the weights of mean, maximum and minimum"),
    (settings, "cooling", [0], "more than 0 and at most 1"),
    (settings, "entropy", [-1], "0 or more"),
    (settings, "ramp", [-1], "0 or more"),
    (through_time, "truncation", [1.5, 0], "at least one step, or None"),
    *(
        (rule, "label_smoothing", [nan, 1.0, -0.1], "0 <= label_smoothing < 1, for cross_entropy")
        for rule in (Backprop, Pepita, FeedbackAlignment)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "option", "values", "expected"), OPTIONS)
def test_options(rule: Build, option: str, values: list[Any], expected: str) -> None:
    model = dense()
    with unchanged(model):
        for value in values:
            check(lambda value=value: rule(model, **{option: value}), f"{option}: {value!r}, expected {expected}")


def planes(channels: int) -> Callable[[], nn.Module]:
    """For images of 3 channels and planes of labels."""
    return lambda: nn.Sequential(nn.Conv2d(3 + channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, K))


def of_width(n: int, hidden: int = 8) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(n, hidden), nn.ReLU(), nn.Linear(hidden, K))


def low(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: dense().to(dtype)


# Options that fit neither the model nor one another.
TOGETHER: list[tuple[Build, Callable[[], nn.Module], dict[str, Any], str]] = [
    (Foton, dense, {"temperature": 2, "loss": "squared_error"}, "temperature: 2, expected 1 with another loss than"),
    (Foton, low(torch.bfloat16), {}, "tolerance: 0.005, ...0.016, what torch.bfloat16 resolves in layer '0'; ...finer"),
    (
        Foton, of_width(784, 300), {"orthogonality_tolerance": 1e-6},
        "tolerance: 1e-06, expected at least 6.7e-06, what torch.float32 resolves in layer '0'",
    ),
    (Backprop, images, {"orthogonal": True}, "orthogonal: True, with Conv2d, whose kernels are not held orthogonal"),
    *(
        (rule, dense, {"label_smoothing": 0.1, "loss": "squared_error"}, "label_smoothing: 0.1, ...for cross_entropy")
        for rule in (Backprop, Pepita, FeedbackAlignment)
    ),
    *((rule, dense, {"los": 1}, f"{rule.__name__}: unknown option 'los', expected one of ...amplitude")
      for rule in (SymBa, LayerCollaboration, CumulativeForwardForward)),
    *((rule, dense, {"linaer": True}, f"{rule.__name__}: unknown option 'linaer', expected one of ")
      for rule in (Backprop, Foton, Ftp, MonoForward, DynamicTemperature, RecurrentFtp)),
    (SymBa, dense, {"loss": compensated()}, "SymBa: unknown option 'loss'"),
    *(
        row
        for rule in (DirectFeedbackAlignment, Ftp)
        for row in (
            (rule, images, {}, "image_size: None, expected (height, width) of the images, for a model with convolut"),
            (rule, images, {"image_size": 8}, "image_size: 8, expected (height, width)"),
            (rule, images, {"image_size": (8.0, 8.0)}, "image_size: (8.0, 8.0), expected (height, width)"),
            (rule, images, {"image_size": (0, 8)}, "image_size: (0, 8), expected (height, width)"),
            (rule, images, {"image_size": (1, 8, 8)}, "image_size: (1, 8, 8), expected (height, width)"),
            (rule, images, {"image_size": (12, 12)}, "x: samples of shape (3, 12, 12) do not pass layer '6' (takes"),
            (rule, dense, {"image_size": (8, 8)}, "image_size: (8, 8), but the model has no convolutions"),
            (rule, dense, {"by_channel": True}, "by_channel: True, but the model has no convolutions"),
        )
    ),
    (
        DirectRandomTargetProjection, lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
        {"loss": "binary_cross_entropy", "centred": True}, "centred: True, expected False of one score, whose label",
    ),
    (Ftp, images, {"image_size": (8, 8), "inject": 3, "by_channel": True}, "by_channel: True, but layer 3 gives no"),
    (Ftp, images, {"image_size": (8, 8), "phi": "maxmin"}, "phi: 'maxmin' pairs units, expected an elementwise one"),
    (Ftp, lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), {"phi": "maxmin"}, "phi: 'maxmin' ...target has 3"),
    (Ftp, dense, {"rank": 2, "law": "normal"}, "law: 'normal', with rank"),
    *((Ftp, dense, {"rank": rank}, f"rank: {rank}, expected 1..4, the number of cl") for rank in (0, 5, 2.0, True)),
    (ForwardForward, dense, {"num_classes": 3}, "num_classes: 3, but layer '4' has 4"),
    (ForwardForward, dense, {"loss": nn.CrossEntropyLoss()}, "loss: CrossEntropyLoss(), expected a loss"),
    (ForwardForward, dense, {"loss": nn.CrossEntropyLoss}, "loss: <class ...Loss'>, expected a loss, as pair_losses"),
    (ForwardForward, dense, {"loss": compensated(), "threshold": 2.0}, "threshold: 2.0, but a loss is given"),
    (ForwardForward, dense, {"labels": "planes"}, "labels: 'planes', but the model does not begin with a Conv2d"),
    (ForwardForward, planes(1), {"labels": "planes"}, "layer '0': takes 4 channels, expected ...4 more"),
    (ForwardForward, dense, {"negatives": "hybrid"}, "readout: False, but negatives 'hybrid' have no labels"),
    (
        ForwardForward, planes(4), {"negatives": "pairs", "readout": True, "labels": "planes"},
        "labels: 'planes', but negatives 'pairs' have no labels",
    ),
    (ForwardForward, images, {"readout": True}, "first_layer: 0, expected 1 or more with readout"),
    (ForwardForward, images, {"image_shape": (3, 8, 8)}, "image_shape: (3, 8, 8), expected None"),
    (
        ForwardForward, of_width(15), {"negatives": "hybrid", "readout": True},
        "image_shape: None, expected (channels, height, width) for negatives 'hybrid', since 15",
    ),
    (SymBa, dense, {"hard_law": "root", "readout": True}, "hard_law: 'root', expected 'softmax' with readout"),
    (CumulativeForwardForward, dense, {"remedy": "per-block", "gamma": 1.0}, "...'per-block' does not take gamma"),
    (CumulativeForwardForward, dense, {"remedy": compensated(), "beta": 1.0}, "beta: given, but the remedy"),
    (MonoForward, dense, {"num_classes": 3}, "num_classes: 3, but the model's last layer has 4"),
    (MonoForward, dense, {"readout_dropout": 0.2}, "readout_dropout: 0.2, but the aggregation is 'sum', expected 're"),
    *(
        (MonoForward, dense, {"aggregation": "readout", option: value}, f"{option}: {value}, expected 0 or more and")
        for option, value in {"readout_dropout": 1, "readout_smoothing": -1}.items()
    ),
    (DeeperForward, lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()), {"num_classes": 1}, "num_classes: 1, expect"),
    (
        LocalClassifiers, lambda: nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
        {"num_classes": 1, "loss": cross_entropy()}, "num_classes: 1, expected an integer of 2 or more",
    ),
    (DynamicTemperature, dense, {"lowest": 0}, "lowest, highest: 0, 2.0, expected 0 < lowest"),
    (
        ChannelClassAssignment, dense, {"label_smoothing": 0.5, "loss": cross_entropy()},
        "label_smoothing: 0.5, but a loss is given, which has its own if any",
    ),
    (ChannelClassAssignment, dense, {"first_layer": 1}, "first_layer: 1, but the aggregation is 'validation-loss',"),
    (LocalClassifiers, dense, {"score": lambda units, k: []}, "score: 0 modules, expected one for each"),
    (LocalClassifiers, dense, {"score": nn.Flatten()}, "score: Flatten(...expected a function of units"),
    (LocalClassifiers, dense, {"score": Shifted}, "score: <class ...Shifted'>, expected a function of units"),
    (LocalClassifiers, dense, {"score": lambda units, k: Shifted()}, "score: gives a Shifted, expected a function"),
    (LocalClassifiers, dense, {"score": lambda units, k: [torch.sum] * 2}, "score: a builtin...for layer '0'"),
    (
        LocalClassifiers, dense, {"score": lambda units, k: [nn.Linear(8, k)] * 2},
        "score: the score of layer '2' shares a parameter with the score of layer '0', expected modules of",
    ),
    (
        LocalClassifiers, dense, {"score": lambda units, k: [unit.module for unit in units]},
        "score: the score of layer '0' shares a parameter with layer '0'",
    ),
    (BackpropEnsemble, dense, {}, "models: a Sequential, expected a list of models"),
    (lambda model: BackpropEnsemble([]), dense, {}, "models: none, expected one or more"),
    (lambda model: BackpropEnsemble([model, model]), dense, {}, "models: two of them share a parameter, expected"),
    (lambda model: BackpropEnsemble([model, normalised()[:4]]), dense, {}, "models: [4, 8]"),
    (lambda model: resnet17(planes=(10, 10, 10, 10)), dense, {}, "planes:"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "model", "options", "said"), TOGETHER, ids=[row[-1] for row in TOGETHER])
def test_options_together(rule: Build, model: Callable[[], nn.Module], options: dict[str, Any], said: str) -> None:
    made = model()
    with unchanged(made):
        check(lambda: rule(made, **options), said)


def test_a_rule_of_ones_own_has_the_options_that_it_names() -> None:
    class Whole(Backprop):
        def __init__(self) -> None:
            super().__init__(dense())

    class Open(Backprop):
        def __init__(self, model: nn.Module, width: int = 3, **options: Any) -> None:
            super().__init__(model, **options)

    assert Whole().num_classes == Open(dense(), loss="squared_error").num_classes == 4
    with pytest.raises(TypeError, match="Open: unknown option 'los', expected one of width, units, "):
        Open(dense(), los=1)
    with pytest.raises(TypeError, match="Whole: unknown option 'loss', expected one of none"):
        Whole(loss=1)  # type: ignore[call-arg]


def test_options_at_the_edge_are_accepted() -> None:
    accepted = [
        *(
            partial(rule, dense(), **options)
            for rule in (Backprop, Pepita, FeedbackAlignment)
            for options in ({"label_smoothing": 0.1}, {"label_smoothing": 0.0, "loss": "squared_error"})
        ),
        *(
            partial(ChannelClassAssignment, dense(), **options)
            for options in ({"label_smoothing": 0.5}, {"loss": cross_entropy()}, {})
        ),
        partial(Ftp, images(), image_size=(8, 8), phi="maxmin", by_channel=False),
        partial(Foton, dense().bfloat16(), orthogonality_tolerance=0.05),
        partial(ForwardForward, nn.Sequential(nn.Linear(16, 8), nn.ReLU()), num_classes=3),
        partial(DifferenceTargetPropagation, of_width(16)()),
    ]
    for build in accepted:
        assert refusal(build) == "accepted", build


# Batches of 6 samples with labels up to 3 that no rule takes; what the message asks for is right.
DATA: list[tuple[Callable[[Tensor, Tensor], tuple[Any, Any]], str]] = [
    (lambda x, y: (x, y[:, None]), "y: torch.int64 of shape (6, 1), expected int64 of shape (6,); y.squeeze(1)"),
    (lambda x, y: (x, y[:, None].double()), "y: torch.float64 of shape (6, 1), ...; y.squeeze(1).long()"),
    (lambda x, y: (x, nn.functional.one_hot(y, K)), "y: torch.int64 of shape (6, 4), ...; y.argmax(dim=1) of one-hot"),
    (lambda x, y: (x, y.double()), "y: torch.float64 of shape (6,), expected int64 of shape (6,); y.long()"),
    (lambda x, y: (x, y[:5]), "y: torch.int64 of shape (5,), ..., a label for each sample of x; got 5 labels"),
    (lambda x, y: (x, y.tolist()), "y: a list, expected a torch.Tensor"),
    (lambda x, y: (x.tolist(), y), "x: a list, expected a torch.Tensor"),
    (lambda x, y: (x[:0], y[:0]), "x: shape (0, ...at least one"),
    (lambda x, y: (x.flatten(1)[:, 0], y), "x: shape (6,), expected (batch, "),
    (lambda x, y: (x.to("meta"), y), "x: on meta, expected "),
    (lambda x, y: (x, y.to("meta")), "y: on meta, expected "),
    (lambda x, y: (x.float(), y), "x: dtype torch.float32, expected torch.float64 as ...; x.to(torch.float64)"),
    (lambda x, y: (x.long(), y), "x: "),
    (lambda x, y: (x.flatten(1)[:, :3], y), "x: "),
]
# Elsewhere looking would wait for the device.
DATA_ON_CPU: list[tuple[Callable[[Tensor, Tensor], tuple[Any, Any]], str]] = [
    *(
        (lambda x, y, wrong=wrong: (x.index_fill(0, torch.tensor([1]), wrong), y),
         "x: 1 of 6 samples have NaN or infinity, expected finite numbers")
        for wrong in (nan, inf, -inf)
    ),
    (lambda x, y: (x, y + 1), "y: labels 1..4, expected 0..3"),
    (lambda x, y: (x, y - 100), "y: labels -100..-97, expected 0..3"),
]  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_data(name: str, twin: TwinSide) -> None:
    rule = EXAMPLES[name].build(twin.device)
    x, y = EXAMPLES[name].batch(twin.device)
    with unchanged(rule):
        for change, said in DATA + DATA_ON_CPU * (x.device.type == "cpu"):
            check(lambda change=change: rule.assign_credit(*change(x, y)), said)
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted", "what was right"


def narrow() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 4))


def one_pixel() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, K))


def embedded() -> nn.Module:
    """Of one token the embedding would be a sample as any other."""
    return nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, K))


of_tokens = partial(DirectFeedbackAlignment, example=torch.zeros(2, 3, dtype=torch.int64))


def unshuffled() -> nn.Module:
    """For images of 8 x 8 pixels."""
    return nn.Sequential(
        nn.PixelUnshuffle(4), OrthogonalConv2d(16, 4, 3), nn.Tanh(), ScaledAvgPool2d(2), nn.Flatten(), nn.Linear(4, K)
    )


def on_images(rule: Callable[..., CreditAssignment]) -> Build:
    return partial(rule, image_size=(8, 8))


def local(rule: Callable[..., CreditAssignment] = MonoForward) -> Build:
    return partial(rule, grid=1)


# Shapes of x that do not fit a model, its first number the samples.
SHAPES: list[tuple[Build, Callable[[], nn.Module], tuple[int, ...], str]] = [
    (Backprop, dense, (6, 5), "x: 5 features a sample, expected 16"),
    (Foton, dense, (6, 5), "x: 5 features a sample, expected 16"),
    (Foton, unshuffled, (5, 64), "x: shape (5, 64), expected (batch, 1, height, width)"),
    (Foton, unshuffled, (0, 1, 8, 8), "x: shape (0, 1, 8, 8), expected (batch, ...) with at least one sample"),
    *(
        (rule, dense, shape, f"x: shape {shape}, expected (batch, ...) with at least one sample")
        for rule in (Foton, MonoForward) for shape in ((0, 16), (0, 2, 16), (0, 4, 4))
    ),
    (Foton, unshuffled, (5, 2, 8, 8), "x: shape (5, 2, 8, 8), expected (batch, 1, height, width)"),
    (Foton, unshuffled, (5, 1, 16, 16), "x: samples of shape (1, 16, 16) do not pass layer '5' (takes 4 features, but"),
    (Foton, unshuffled, (5, 1, 4, 4), "x: samples of shape (1, 4, 4) do not pass what follows layer '1' (x: 1 x 1 pix"),
    (Foton, unshuffled, (5, 1, 9, 8), "x: samples of shape (1, 9, 8) do not pass what comes before layer '1' (x: 9 x"),
    (FeedbackAlignment, images, (5, 3, 1, 1), "x: samples of shape (3, 1, 1) do not pass what follows layer '0'"),
    (FeedbackAlignment, images, (5, 3, 4, 4), "x: samples of shape (3, 4, 4) do not pass layer '3' (z: 2 pixels"),
    (on_images(DirectFeedbackAlignment), images, (5, 3, 9, 9), "x: images of 9 x 9, expected 8 x 8, the image_size"),
    (on_images(Ftp), images, (5, 3, 9, 9), "x: images of 9 x 9, expected 8 x 8, the image_size"),
    (ForwardForward, images, (5, 3, 12, 8), "x: samples of shape (3, 12, 8) do not pass layer '6' (takes 32 features"),
    (partial(ForwardForward, labels="planes"), planes(4), (5, 7, 8, 8), "x: shape (5, 7, 8, 8), expected (batch, 3"),
    (ForwardForward, narrow, (5, 1, 1, 1), "x: 1 pixels, expected at least 4, one for each label"),
    (Ftp, blocks, (6, 5), "x: samples of shape (5,) do not pass unit '0' ("),
    (of_tokens, embedded, (6,), "x: shape (6,), expected (batch, ...) with at least one sample"),
    (RecurrentFtp, elman, (5, 7, 3), "x: shape (5, 7, 3), expected (batch, steps, 5)"),
    (local(), normalised_images, (5, 192), "x: samples of shape (192,) do not pass layer '0' (takes (channels, heig"),
    (local(), normalised_images, (5, 8, 8), "x: samples of shape (8, 8) do not pass layer '0' (takes (channels, heig"),
    (local(), normalised_images, (5, 2, 8, 8), "x: samples of shape (2, 8, 8) do not pass layer '0' (takes 3 channels"),
    (local(), normalised_images, (5, 3, 16, 8), "x: samples of shape (3, 16, 8) do not pass layer '8' (takes 32 feat"),
    (local(), normalised_images, (5, 3, 2, 2), "x: samples of shape (3, 2, 2) do not pass layer '4'"),
    (local(), one_pixel, (1, 3, 3, 3), "x: samples of shape (3, 3, 3) do not pass layer '0' (Expected more than 1"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "model", "shape", "said"), SHAPES, ids=[row[-1] for row in SHAPES])
def test_shapes(rule: Build, model: Callable[[], nn.Module], shape: tuple[int, ...], said: str) -> None:
    built = rule(model())
    x, y = torch.ones(shape), torch.zeros(shape[0], dtype=torch.int64)
    x = x.long() if model is embedded else x
    with unchanged(built):
        check(lambda: built.assign_credit(x, y), said)
        if len(x) > 1 and "image_size" not in said:  # that scores need not have
            check(lambda: built(x), said)


class Halved(nn.Module):
    """Half as many positions, each with as many features."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).mean(dim=2)


@pytest.mark.parametrize(
    ("rule", "layers", "shape", "said"),
    [
        (Pepita, [nn.Linear(5, 4), Halved(), nn.Linear(4, K)], (6, 5), "(3,) cannot be projected onto (6, 5)"),
        (Pepita, [nn.Conv2d(2, 6, 1), nn.Flatten(2), nn.Linear(9, K)], (2, 3, 3), "(6,) cannot be... onto (2, 3, 3)"),
        (Pepita, [nn.Conv2d(6, 6, 1), nn.Flatten(2), nn.Linear(9, K)], (6, 3, 3), "(6,) cannot be... onto (6, 3, 3)"),
        (partial(Ftp, inject=0), [nn.Linear(5, 4), Halved(), nn.Linear(4, K)], (6, 5), "(3,) cannot be... (6, 5)"),
        *(
            (rule, layers, shape, said)
            for rule in (Ftp, DirectFeedbackAlignment, DirectRandomTargetProjection)
            for layers, shape, said in (
                ([nn.Linear(5, 4), nn.Unflatten(1, (3, 2)), nn.Flatten(2), nn.Linear(8, K)], (6, 5), "(3,) ...(6, 4)"),
                ([nn.Conv1d(6, 6, 1), nn.Unflatten(1, (3, 2)), nn.Flatten(1, 2), nn.Linear(5, K)], (6, 5), "(6,) ..."),
                ([nn.Conv2d(2, 6, 1), nn.Flatten(2), nn.Linear(9, K)], (2, 3, 3), "(6,) ...(6, 3, 3)"),
            )
        ),
    ],
)
def test_labels_of_positions_are_of_what_they_are_projected_onto(
    rule: Build, layers: list[nn.Module], shape: tuple[int, ...], said: str
) -> None:
    """Else the error of one position would change others."""
    model = nn.Sequential(*layers)
    check(lambda: rule(model, example=torch.ones(2, *shape)), f"model: labels of positions {said}")


def test_one_number_a_sample_is_no_row_of_targets() -> None:
    """Of a loss that takes labels alone: what is wrong with the labels is said."""
    rule = MonoForward(dense(), loss=cross_entropy())
    check(
        lambda: rule.assign_credit(torch.ones(6, 16), torch.zeros(6, 1)),
        "y: torch.float32 of shape (6, 1), expected int64 of shape (6,); y.squeeze(1).long()",
    )


def test_samples_that_passed_say_nothing_of_others() -> None:
    """Of 8 x 8 pixels each: images have passed, maps without channels do not."""
    rule, y = local()(normalised_images()), torch.zeros(5, dtype=torch.int64)
    rule.assign_credit(torch.ones(5, 3, 8, 8), y)
    check(lambda: rule.assign_credit(torch.ones(5, 8, 8), y), "x: samples of shape (8, 8) do not pass layer '0'")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_least_batch_is_what_a_step_takes(name: str, twin: TwinSide) -> None:
    """Where that is 2, one sample is refused, but for maps: batch normalisation has their positions too."""
    example = EXAMPLES[name]
    rule = example.build(twin.device)
    of_two = ("hybrid", "pairs", "competition", "deep supervision", "end to end", "ftp, modules", "pepita, modules")
    expects_two = any(part in name for part in (*of_two, "dfa, modules", "mono-forward, tanh", "mono-forward, images"))
    assert rule.least_batch == (2 if expects_two else 1)
    x, y = example.batch(twin.device, size=1)
    if rule.least_batch == 2 and len(example.shape) == 1:
        with unchanged(rule):
            check(lambda: rule.assign_credit(x, y), "x: a batch of 1, expected 2 or more: ")
            assert rule.eval()(x).shape == (1, K), "scores need no second sample"
        rule.train()
    rule.assign_credit(*example.batch(twin.device, size=rule.least_batch))


@pytest.mark.parametrize("kind", [ChannelCompetition, Pepita])
def test_batch_normalisation_at_rest_takes_one_sample(kind: Build, twin: TwinSide) -> None:
    model = normalised().to(twin.device)
    rule = kind(model)
    for norm in (model[2], model[5]):
        norm.eval()
    assert rule.least_batch == 1, "each module's own mode counts"
    x, y = torch.ones(1, 16, device=twin.device), torch.zeros(1, dtype=torch.int64, device=twin.device)
    rule.assign_credit(x, y)
    model[5].train()
    assert rule.least_batch == 2
    check(lambda: rule.assign_credit(x, y), "x: a batch of 1, expected 2 or more: BatchNorm1d '5' normalises")


def test_a_read_out_asks_for_two_samples_where_it_learns(twin: TwinSide) -> None:
    rule = EXAMPLES["mono-forward, tanh"].build(twin.device)
    x, y = EXAMPLES["mono-forward, tanh"].batch(twin.device, size=1)
    check(lambda: next(rule.stream(x, y)), "x: a batch of 1, expected 2 or more: BatchNorm1d 'aggregation.readout.0'")
    for update in rule.eval().stream(x, y):
        assert all(torch.isfinite(gradient).all() for _, gradient in update.pairs)


def in_blocks(x: Tensor) -> Tensor:
    return x.to_sparse_bsr((2, 2))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("sparse", [Tensor.to_sparse, Tensor.to_sparse_csr, in_blocks])
@pytest.mark.parametrize("kind", [Pepita, ForwardForward, SymBa, CumulativeForwardForward])
def test_what_adds_to_x_takes_no_sparse_one(kind: Build, sparse: Callable[[Tensor], Tensor], twin: TwinSide) -> None:
    rule = kind(dense().to(twin.device))
    x, y = torch.eye(4, 16, device=twin.device), torch.arange(4, device=twin.device)
    rule.assign_credit(x, y)
    check(lambda: rule.assign_credit(sparse(x), y), "x: torch.sparse_...expected a dense tensor...x.to_dense()")


def test_large_finite_numbers_are_no_infinity(twin: TwinSide) -> None:
    """Even where their sum is."""
    rule = Backprop(dense().to(twin.device))
    x = torch.full((2, 16), torch.finfo(torch.float32).max, device=twin.device)
    y = torch.zeros(2, dtype=torch.int64, device=twin.device)
    assert refusal(lambda: rule.assign_credit(x, y)) == "accepted"


def test_a_recurrent_network_of_one_score_has_no_classes() -> None:
    model = gru()
    model.output = nn.Linear(model.output.in_features, 1).to(next(model.parameters()))
    check(lambda: RecurrentFtp(model), "layer 'output': gives 1 class score, expected 2 or more")


def test_targets_of_one_output_may_be_in_a_row(twin: TwinSide) -> None:
    rule = RecurrentFtp(EXAMPLES["recurrent ftp"].build(twin.device).model)
    rule.model.output = nn.Linear(6, 1).to(twin.device, torch.float64)
    rule = RecurrentFtp(rule.model, loss="squared_error")
    x, y = EXAMPLES["recurrent ftp"].batch(twin.device)
    loss = rule.assign_credit(x, y.to(x))
    assert torch.equal(loss, rule.assign_credit(x, y.to(x)[:, None])), "targets of a row"


def read_out(model: nn.Module, **options: Any) -> MonoForward:
    return MonoForward(model, aggregation="readout", **options)


# Losses, and y with them, that a rule cannot take; without a change of y, they are refused when the rule is built.
LOSSES: list[tuple[Build, Any, Callable[[Tensor, Tensor], Any] | None, str]] = [
    (Backprop, nn.MSELoss, None, "loss: <class ...MSELoss'>, expected 'cross_entropy', 'squared_error'"),
    (Backprop, 3, None, "loss: 3, expected 'cross_entropy'"),
    (Backprop, nn.MSELoss(reduction="sum"), None, "loss: MSELoss with reduction='sum', expected 'mean'"),
    (Foton, nn.CrossEntropyLoss(torch.ones(3)), None, "loss: its class_weight has shape (3,), expected (4,), one for"),
    (Ftp, nn.BCEWithLogitsLoss(pos_weight=-torch.ones(4)), None, "loss: its positive_weight has negative or infini"),
    (Pepita, nn.AdaptiveLogSoftmaxWithLoss(4, 4, [2]), None, "loss: AdaptiveLogSoftmaxWithLoss has parameters, which"),
    *(
        (DirectRandomTargetProjection, loss, None, "loss: ..., but DirectRandomTargetProjection sends labels in place")
        for loss in ("huber", nn.MSELoss(), nn.L1Loss(), nn.functional.mse_loss)
    ),
    (
        DirectRandomTargetProjection, "squared_error", lambda x, y: torch.rand(6, K),
        "y: numbers, but DirectRandomTargetProjection sends labels in place of errors; expected a loss of labels",
    ),
    (Backprop, "cross_entropy", lambda x, y: torch.ones(6, 3), "y: torch.float32 of shape (6, 3), expected ...prob"),
    (Backprop, "cross_entropy", lambda x, y: 2 * torch.ones(6, K), "y: 2.0..2.0, expected 0..1, probabilities"),
    (Backprop, "cross_entropy", lambda x, y: torch.ones(6, K).double(), "y: torch.float64 ...; y.to(torch.float32)"),
    (Foton, "binary_cross_entropy", lambda x, y: y, "y: torch.int64 of shape (6,), expected ...(6, 4), several labels"),
    (Foton, "huber", lambda x, y: torch.full((6, K), nan), "y: NaN or infinity among them, expected finite numbers"),
    (Foton, "huber", lambda x, y: torch.full((6, K), inf), "y: NaN or infinity among them, expected finite numbers"),
    *(
        (Ftp, "huber", lambda x, y, wrong=wrong: torch.eye(6)[:, :K].masked_fill(torch.eye(6)[:, :K] > 0, wrong),
         "y: NaN or infinity among them, expected finite numbers")
        for wrong in (inf, -inf)
    ),
    (Foton, "squared_error", lambda x, y: torch.ones(6), "y: ...of shape (6,), expected ...of shape (6, 4), numbers"),
    (Foton, nn.CrossEntropyLoss(ignore_index=0), lambda x, y: y - 1, "y: labels -1..2, expected 0..3"),
    (Ftp, "cross_entropy", lambda x, y: (y, torch.ones(5)), "weights of y: ...(5,), expected real numbers of shape (6"),
    (Ftp, "cross_entropy", lambda x, y: (y, -torch.ones(6)), "weights of y: some negative or not finite, expected 0"),
    *(
        (Ftp, "cross_entropy", lambda x, y, wrong=wrong: (y, torch.ones(6).index_fill(0, torch.tensor([1]), wrong)),
         "weights of y: some negative or not finite, expected 0")
        for wrong in (nan, inf, -1)
    ),
    (Ftp, "cross_entropy", lambda x, y: (y, y), "weights of y: torch.int64 of shape (6,), expected real numbers"),
    (Pepita, nn.functional.mse_loss, lambda x, y: torch.ones(5, K), "y: shape (5, 4), expected (6, ...), targets for"),
    (Pepita, nn.functional.mse_loss, lambda x, y: (x, x), "y: a tuple, expected a torch.Tensor, without weights"),
    (Pepita, lambda s, t: (s - t).abs(), lambda x, y: torch.ones(6, K), "loss: gives a tensor of shape (6, 4), expect"),
    (Pepita, lambda s, t: 3.0, lambda x, y: torch.ones(6, K), "loss: gives a float, expected a scalar, the mean over"),
    (Pepita, lambda s, t: t.mean(), lambda x, y: torch.ones(6, K), "loss: its value has no graph to the scores"),
    *(
        (rule, loss, None, f"loss: ..., but {rule.__name__} scores {what}")
        for rule, what in (
            (Hyperspherical, "cosines to prototypes"), (DeeperForward, "mean activities"),
            (ChannelCompetition, "mean squares"), (ChannelClassAssignment, "channels assigned"),
        )
        for loss in (nn.MSELoss(), nn.BCEWithLogitsLoss())
    ),
    (MonoForward, "huber", None, "aggregation: 'sum' of the numbers that every layer tells, expected 'last', 'valida"),
    (MonoForward, "squared_error", lambda x, y: torch.ones(6, K), "y: numbers, which the aggregation 'sum' adds up"),
    (read_out, "binary_cross_entropy", None, "aggregation: 'readout', which labels choose or train, expected a loss"),
    (read_out, "cross_entropy", lambda x, y: (y, torch.ones(6)), "y: no labels alone, but they choose or train the"),
    *(
        (rule, None, lambda x, y: (y, torch.ones(6)), "y: a tuple, expected a torch.Tensor")
        for rule in (ForwardForward, SymBa, ChannelCompetition)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "loss", "change", "said"), LOSSES, ids=[row[-1] for row in LOSSES])
def test_losses(rule: Build, loss: Any, change: Callable[[Tensor, Tensor], Any] | None, said: str) -> None:
    model = dense()
    if change is None:
        with unchanged(model):
            check(lambda: rule(model, loss=loss), said)
        return
    built = rule(model, **({} if loss is None else {"loss": loss}))
    x, y = torch.randn(6, 16), torch.arange(6) % K
    with unchanged(built):
        check(lambda: built.assign_credit(x, change(x, y)), said)


@pytest.mark.parametrize("rule", [DirectFeedbackAlignment, Foton, MonoForward, Pepita])
def test_layers_tied_since_the_rule_was_built_are_refused(rule: Build) -> None:
    """Where each has an update of its own: the second would replace the first."""
    model = nn.Sequential(*(part for _ in range(3) for part in (nn.Linear(6, 6), nn.Tanh())), nn.Linear(6, K))
    built = rule(model)
    model[4].weight = model[2].weight
    x, y = torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1)
    for step in (partial(built.assign_credit, x, y), partial(built.step, x, y, optimizer)):
        with unchanged(built):
            check(step, "model: a parameter of two layers, tied since the rule was built;")


def test_scores_and_losses_of_ones_own_are_checked() -> None:
    x, y = torch.randn(6, 16), torch.arange(6) % K
    for kind in (
        lambda units, k: [nn.Linear(unit.width, k + 3) for unit in units],
        lambda units, k: [LinearHead(unit, k + 3) for unit in units],
    ):
        for detach in (True, False):
            rule = LocalClassifiers(dense(), score=kind, detach=detach)
            with unchanged(rule):
                for run in (lambda: rule(x), lambda: rule.assign_credit(x, y)):  # noqa: B023
                    check(run, "score: (6, 7) of layer '0', expected (batch, 4)")
    rule = MonoForward(dense(), loss=lambda scores, y: [scores])
    with unchanged(rule):
        check(lambda: rule.assign_credit(x, y), "loss: gives a list, expected their mean, or losses and their deriv")
    grouped = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU(), nn.Unflatten(1, (1, 8)), nn.Linear(8, 8), nn.ReLU())
    check(
        lambda: DeeperForward(grouped, num_classes=K)(torch.randn(2, 2, 8, 8)),
        "score: activities of shape (2, 1, 8, 8, 8), expected (batch, units)",
    )


def test_calibration_checks_its_labels_and_leaves_the_mode_after_an_error() -> None:
    rule = DeeperForward(dense())
    x, y = torch.randn(6, 16), torch.arange(6) % K
    with unchanged(rule):
        check(lambda: rule.calibrate([(x, y[:3])]), "y: ..., expected int64 of shape (6,)")
        if y.device.type == "cpu":  # elsewhere looking would wait for the device
            check(lambda: rule.calibrate([(x, y + 9)]), "y: labels 9..12, expected 0..3")
        check(lambda: rule.calibrate((x, y)), "batches: a Tensor, expected pairs (x, y),")
    assert rule.training, "mode after an error"


class OneNumber(nn.Module):
    """A regression whose forward takes the scores' axis away."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).squeeze(-1)


@pytest.mark.parametrize("rule", [Ftp, Pepita, DirectFeedbackAlignment, MonoForward, Backprop])
def test_scores_without_an_axis_are_refused(rule: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("gives (2,), expected scores (batch, K), of one without squeeze")):
        rule(OneNumber(), units=["a", "b"], example=torch.zeros(2, 8), loss="squared_error")
