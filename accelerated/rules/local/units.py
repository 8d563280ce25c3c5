"""How a local rule reads a model: every Conv2d or Linear with what follows it, cut where its score is taken."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from ...local_classifiers import Shortcut, wired
from ...modules import ScaledAvgPool2d, ShortcutNetwork
from ...modules.activations import MODULES
from ...normalisations import instance_norm
from ..cutting import NORMALISATIONS, is_plain, leaves
from ..units import Trainable, Unit, channels_last, check_forward, check_parameters, refusal
from ..watch import has_forward_hooks

ScoreAfter: TypeAlias = Literal["activation", "normalisation"]
"""What a layer's score comes after: its activation (and Dropout right behind it), or its last normalisation."""

ACTIVATIONS = (
    *MODULES.values(), nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Sigmoid,
    nn.Hardtanh, nn.Hardswish,
)  # fmt: skip
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
SHAPES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelUnshuffle, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.LPPool2d, ScaledAvgPool2d,
)  # fmt: skip
KEEP_MEMORY = (nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS)
"""What may give the very memory that it gets, Dropout in evaluation for one."""
TRAINABLE = "Conv2d and Linear, each followed by an activation, Dropout, normalisation and pooling"


LOCAL: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
"""Layers that have a local loss."""


@dataclass(frozen=True, eq=False)
class LocalUnit(Unit):
    """A unit with the modules up to its score, and those that what it passes on goes through.

    Its loss trains the layer and the modules inside. Parameters of the modules outside stay as they are. `rectifier` is
    the module inside where that is a ReLU or LeakyReLU alone: the derivative follows from the value, and a step needs
    no graph.
    """

    inside: tuple[nn.Module, ...] = ()
    outside: tuple[nn.Module, ...] = ()
    rectifier: nn.ReLU | nn.LeakyReLU | None = None

    @property
    def inner(self) -> list[nn.Parameter]:
        """The parameters of the modules inside, but for frozen ones."""
        return [p for module in self.inside for p in module.parameters() if p.requires_grad]

    @property
    def takes_graph(self) -> bool:
        """Whether a step needs a graph of autograd: without a rectifier, or where hooks want to see each activity."""
        return self.rectifier is None or has_forward_hooks(self.rectifier) or has_forward_hooks(self.module)

    @property
    def trained(self) -> list[Tensor]:
        """What its loss trains: `parameters` and then `inner`."""
        return [*self.parameters, *self.inner]

    def activities(self, x: Tensor) -> Tensor:
        """What the score is made from."""
        x = self.module(x)
        for module in self.inside:
            x = module(x)
        return x

    def rectified(self, x: Tensor) -> Tensor:
        """The same in a unit with a rectifier, without a graph: written over what the layer gave."""
        h = self.module(x)
        if isinstance(self.rectifier, nn.LeakyReLU):
            return functional.leaky_relu_(h, self.rectifier.negative_slope)
        return torch.relu_(h)

    def rectified_gradients(self, x: Tensor, h: Tensor, gradient: Tensor) -> list[Tensor]:
        """Of what is `trained` in a unit with a rectifier, from its input, activities and a gradient by these.

        That gradient is written over, unless one number of it stands for many activities.
        """
        delta, layer = gradient if gradient.stride() == h.stride() else torch.empty_like(h), self.module
        if isinstance(self.rectifier, nn.LeakyReLU):
            slope = self.rectifier.negative_slope
            torch.ops.aten.leaky_relu_backward.grad_input(gradient, h, slope, False, grad_input=delta)
        else:
            torch.ops.aten.threshold_backward.grad_input(gradient, h, 0, grad_input=delta)
        if isinstance(layer, nn.Conv2d):
            place = layer.stride, layer.padding, layer.dilation, layer.groups
            weight = conv2d_weight(x, layer.weight.shape, delta, *place)
        else:
            weight = delta.T @ x
        return [weight] if self.bias is None else [weight, delta.sum(dim=(0, *range(2, delta.dim())))]

    def pass_on(self, h: Tensor) -> Tensor:
        """What the next unit gets, but for shortcuts."""
        for module in self.outside:
            h = channels_last(_applied(module, h))  # which some normalisations do not keep to
        return h


def _applied(module: nn.Module, h: Tensor) -> Tensor:
    """What the module gives; instance normalisation that learns nothing goes by the function, which is faster."""
    if is_plain(module, nn.InstanceNorm2d) and not has_forward_hooks(module):
        match module:
            case nn.InstanceNorm2d(affine=False, track_running_stats=False):
                return instance_norm(h, module.eps)
    given: Tensor = module(h)
    return given


class LocalNetwork(NamedTuple):
    """A model as a rule sees it; `num_classes` where a last Linear gives them.

    That Linear is left out, or the last of the units; `head` is what stands before it where shortcuts end before.
    """

    stem: tuple[nn.Module, ...]
    units: list[LocalUnit]
    shortcuts: tuple[Shortcut, ...]
    num_classes: int | None
    head: tuple[nn.Module, ...] = ()

    def begin(self, x: Tensor) -> Tensor:
        """What the first unit gets."""
        for module in self.stem:
            x = module(x)
        return x


Found: TypeAlias = list[tuple[str, nn.Module]]


def read(
    model: nn.Module,
    rule: str,
    score_after: ScoreAfter = "activation",
    kinds: tuple[type[nn.Module], ...] = LOCAL,
    whole: bool = False,
) -> LocalNetwork:
    """The units of an `nn.Sequential` (nested ones included) or of a `ShortcutNetwork`, first layer first.

    They begin at layers of these `kinds`. `whole` counts a last Linear, which has no local loss, among them.
    Raises ValueError, with the layer's name and what to use instead, for a model that is no such network.
    """
    shortcuts: tuple[Shortcut, ...] = ()
    before_last: tuple[nn.Module, ...] = ()
    if isinstance(model, ShortcutNetwork):
        head, shortcuts = _leaves(model.head, "head"), model.shortcuts
        last = _last_linear(head)
        stem, units = _cut(_leaves(model.stem, "stem"), rule, score_after, [], kinds)
        for index, block in enumerate(model.blocks):
            before, found = _cut(_leaves(block, f"blocks.{index}"), rule, score_after, units, kinds)
            if before or len(found) != 1:
                raise ValueError(f"block 'blocks.{index}': {len(found)} layers, expected one, and first in it")
            units = [*units, *found]
        if len(units) > len(model.blocks):
            raise ValueError(f"layer '{units[0].name}': in the stem; {rule} trains the layers of blocks")
        if whole:
            before_last, found = _cut(head, rule, score_after, units, kinds)
            units = [*units, *found]
    elif is_plain(model, nn.Sequential):
        last = _last_linear(list(leaves(model)))
        stem, units = _cut(list(leaves(model)), rule, score_after, [], kinds)
        units = units if last is None or whole else units[:-1]
    else:
        raise refusal("", model, rule, TRAINABLE)
    if not units:
        raise ValueError(f"model: no hidden layer; {rule} trains an nn.Sequential of {TRAINABLE}")
    return LocalNetwork(stem, units, shortcuts, None if last is None else last.out_features, before_last)


def _leaves(module: nn.Module, name: str) -> Found:
    return list(leaves(module, f"{name}.")) if is_plain(module, nn.Sequential) else [(name, module)]


def _last_linear(found: Found) -> nn.Linear | None:
    """The Linear that the layers end with, if they do."""
    for _, module in reversed(found):
        if not isinstance(module, nn.Identity):
            return module if isinstance(module, nn.Linear) and is_plain(module, nn.Linear) else None
    return None


def _cut(
    found: Found, rule: str, score_after: ScoreAfter, before: list[LocalUnit], kinds: tuple[type[nn.Module], ...]
) -> tuple[tuple[nn.Module, ...], list[LocalUnit]]:
    """What comes before the first layer, and the units."""
    stem: list[nn.Module] = []
    units: list[LocalUnit] = []
    after: list[list[nn.Module]] = []
    for name, module in found:
        if isinstance(module, Trainable) and isinstance(module, kinds):
            check_forward(name, module, rule)
            check_parameters(name, module, [*before, *units], rule)
            units.append(LocalUnit(name, module))
            after.append([])
        elif isinstance(module, (*ACTIVATIONS, *DROPOUTS, *NORMALISATIONS, *SHAPES)):
            (after[-1] if after else stem).append(module)
        else:
            raise refusal(name, module, rule, TRAINABLE)
    for index, modules in enumerate(after):
        end = _before_score(modules, score_after)
        inside, outside = tuple(modules[:end]), tuple(modules[end:])
        for module in outside:
            if getattr(module, "inplace", False):
                raise ValueError(
                    f"layer '{units[index].name}': inplace=True of the {type(module).__name__} after it would write "
                    "over what its score is made from; expected inplace=False"
                )
            if not isinstance(module, KEEP_MEMORY):
                break
        rectifier = _rectifier(units[index].module, inside)
        units[index] = replace(units[index], inside=inside, outside=outside, rectifier=rectifier)
    return tuple(stem), units


def _rectifier(layer: Trainable, inside: tuple[nn.Module, ...]) -> nn.ReLU | nn.LeakyReLU | None:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    match inside:
        case (nn.ReLU() as module,) if is_plain(module, nn.ReLU):
            return module
        case (nn.LeakyReLU() as module,) if is_plain(module, nn.LeakyReLU) and module.negative_slope > 0:
            return module
    return None


def _before_score(modules: list[nn.Module], score_after: ScoreAfter) -> int:
    """How many of a unit's modules come before its score."""
    norms = [i for i, module in enumerate(modules) if isinstance(module, NORMALISATIONS)]
    if score_after == "normalisation" and norms:
        return norms[-1] + 1
    end = next((i + 1 for i, module in enumerate(modules) if isinstance(module, ACTIVATIONS)), 0)
    while end < len(modules) and isinstance(modules[end], DROPOUTS):
        end += 1
    return end


def check_sizes(network: LocalNetwork, sample: torch.Size, dtype: torch.dtype, batch: int = 2) -> None:
    """Raises ValueError, with the layer's name, where samples of that shape do not pass. Nothing is computed."""
    x = torch.empty(batch, *sample, device="meta", dtype=dtype)
    saved: dict[int, Tensor] = {}
    name = network.units[0].name
    try:
        for module in network.stem:
            x = _ghost(module, x)
        for index, unit in enumerate(network.units):
            name = unit.name
            if index + 1 == len(network.units):
                for module in network.head:
                    x = _ghost(module, x)
            if unit.has_maps and x.dim() != 4:
                raise ValueError(f"takes (channels, height, width) a sample, but gets {tuple(x.shape[1:])}")
            if isinstance(unit.module, nn.Conv2d) and x.shape[1] != unit.module.in_channels:
                raise ValueError(f"takes {unit.module.in_channels} channels, but gets {x.shape[1]}")
            if isinstance(unit.module, nn.Linear) and x.shape[-1] != unit.module.in_features:
                raise ValueError(f"takes {unit.module.in_features} features, but gets {x.shape[-1]}")
            for module in (unit.module, *unit.inside, *unit.outside):
                x = _ghost(module, x)
            x = wired(x, index, network.shortcuts, saved)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"x: samples of shape {tuple(sample)} do not pass layer '{name}' ({error})") from error


def _ghost(module: nn.Module, x: Tensor) -> Tensor:
    """What the module gives, on the meta device."""
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in module.state_dict().items()}
    y: Tensor = functional_call(_Unhooked(module), {f"module.{name}": tensor for name, tensor in state.items()}, (x,))
    return y


class _Unhooked(nn.Module):
    """A module without its hooks, which may read values: the meta device has none."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module.forward(x)
        return y
