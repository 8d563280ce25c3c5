"""How a local rule reads a model: every Conv2d or Linear with what follows it, cut where its score is taken."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ..._autocast import lowered, raised
from ...convolution import weight_gradient
from ...local_classifiers import Shortcut, wired
from ...modules import OrthogonalConv2d, ScaledAvgPool2d, ShortcutNetwork
from ...normalisations import instance_norm
from ..convolving import applied
from ..cutting import NORMALISATIONS, Part, channels_first, is_plain, line, needs_default_order
from ..stepping import weight_update
from ..units import ELEMENTWISE, PARAMETERS, Trainable, Unit, channels_last, check_parameters, refusal
from ..watch import has_forward_hooks

ScoreAfter: TypeAlias = Literal["activation", "normalisation"]
"""What a layer's score comes after: its activation (and Dropout right behind it), or its last normalisation."""

ACTIVATIONS = (*ELEMENTWISE, nn.PReLU)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
SHAPES = (
    nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelUnshuffle, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.LPPool2d, ScaledAvgPool2d,
)  # fmt: skip
KEEP_MEMORY = (nn.Identity, nn.Flatten, nn.Unflatten, *DROPOUTS)
"""What may give the very memory that it gets, Dropout in evaluation for one."""
KNOWN = (*ACTIVATIONS, *DROPOUTS, *NORMALISATIONS, *SHAPES)
"""What may follow a layer without changing how wide it is, but for changes of shape behind its score."""
TRAINABLE = "Conv2d and Linear, each followed by an activation, Dropout, normalisation and pooling"


@dataclass(frozen=True, eq=False)
class LocalUnit(Unit):
    """A unit with the modules up to its score, and those that what it passes on goes through.

    Its loss trains `module`, of any kind, and the modules inside. Parameters of the modules outside stay as they are.
    `rectifier` is the module inside where that is a ReLU or LeakyReLU alone: the derivative follows from the value, and
    a step needs no graph. `shape` is that of a sample's activities, where an example has told it.

    >>> [unit] = MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))).units
    >>> unit.name, unit.width, unit.inside, unit.outside
    ('0', 4, (ReLU(),), (Flatten(start_dim=1, end_dim=-1),))
    """

    module: nn.Module  # type: ignore[assignment]
    inside: tuple[nn.Module, ...] = ()
    outside: tuple[nn.Module, ...] = ()
    rectifier: nn.ReLU | nn.LeakyReLU | None = None
    shape: torch.Size | None = None
    is_layer: bool = field(init=False)
    """Whether the module had the weights and the bias of its kind, and no other parameters, as it was read."""
    _has_inner: bool = field(init=False)
    _begins_with_maps: bool = field(init=False)
    _needs_default_order: bool = field(init=False)

    def __post_init__(self) -> None:
        named = {name.partition(".")[0] for name, _ in self.module.named_parameters()}
        object.__setattr__(self, "is_layer", isinstance(self.module, Trainable) and named.issubset(PARAMETERS))
        inner = any(True for module in self.inside for _ in module.parameters())
        object.__setattr__(self, "_has_inner", inner)
        object.__setattr__(self, "_needs_default_order", needs_default_order([self.module, *self.inside]))
        first = next((m for m in self.module.modules() if any(True for _ in m.parameters(recurse=False))), self.module)
        object.__setattr__(self, "_begins_with_maps", isinstance(first, nn.Conv2d | OrthogonalConv2d))

    @property
    def weights(self) -> list[Tensor]:
        """What the layer is trained by, but for the bias; of a module of another kind, all of its parameters."""
        return self.of_layer() if self.is_layer else list(self.module.parameters())

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias if self.is_layer else None

    @property
    def has_maps(self) -> bool:
        """Whether its activities are (batch, channels, height, width), without an example as its first layer tells."""
        if self.shape is not None:
            return len(self.shape) == 3
        return self._begins_with_maps

    @property
    def width(self) -> int:
        """Channels or units that it gives. Raises ValueError where only an example could tell them."""
        if self.shape is not None:
            return self.shape[0] if self.has_maps else self.shape[-1]
        if not self.is_layer or not all(isinstance(module, KNOWN) for module in self.inside):
            raise ValueError(
                f"example: None, expected a batch as the model takes it, (batch, ...), which tells how wide unit "
                f"'{self.name}' is, a {type(self.module).__name__}"
            )
        return super().width

    @property
    def inner(self) -> list[nn.Parameter]:
        """The parameters of the modules inside, but for frozen ones and those of the module itself."""
        if not self._has_inner:
            return []
        found = dict.fromkeys(p for module in self.inside for p in module.parameters() if p.requires_grad)
        return [p for p in found if p not in set(self.module.parameters())]

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
        if any(getattr(part, "inplace", False) for part in self.module.modules()):
            x = x.clone()  # which may be written over: the activities of the unit before
        x = channels_first(x) if self._needs_default_order else x
        modules = (self.module, *self.inside)
        return raised(_through(modules, x), x, modules)

    def rectified(self, x: Tensor) -> Tensor:
        """The same in a unit with a rectifier, without a graph: written over what the layer gave."""
        h = raised(_through((self.module,), x), x, (self.module,))
        if isinstance(self.rectifier, nn.LeakyReLU):
            return functional.leaky_relu_(h, self.rectifier.negative_slope)
        return torch.relu_(h)

    def rectified_gradients(self, x: Tensor, h: Tensor, gradient: Tensor) -> list[Tensor]:
        """Of what is `trained` in a unit with a rectifier, from its input, activities and a gradient by these.

        That gradient is written over, unless one number of it stands for many activities.
        """
        delta, layer = gradient if gradient.stride() == h.stride() else torch.empty_like(h), self.module
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        if isinstance(self.rectifier, nn.LeakyReLU):
            slope = self.rectifier.negative_slope
            torch.ops.aten.leaky_relu_backward.grad_input(gradient, h, slope, False, grad_input=delta)
        else:
            torch.ops.aten.threshold_backward.grad_input(gradient, h, 0, grad_input=delta)
        if isinstance(layer, nn.Conv2d):
            place = layer.stride, layer.padding, layer.dilation, layer.groups
            weight = weight_gradient(x, layer.weight.shape, delta, *place)
        else:
            weight = weight_update(delta.T, x)
        return [weight] if self.bias is None else [weight, delta.sum(dim=(0, *range(2, delta.dim())))]

    def pass_on(self, h: Tensor) -> Tensor:
        """What the next unit gets, but for shortcuts."""
        given = h
        with lowered():
            for module in self.outside:
                given = _applied(module, given)
                if h.dim() == 4 and h.stride(1) == 1:  # which some normalisations do not keep to
                    given = channels_last(given)
        return raised(given, h, self.outside)


def _through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What modules give that run one after another."""
    with lowered():
        for module in modules:
            x = applied(module, x)
    return x


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
        return raised(_through(self.stem, x), x, self.stem)

    def passes(self, x: Tensor) -> Iterator[Tensor]:
        """Every unit's activities."""
        saved: dict[int, Tensor] = {}
        x = self.begin(x)
        for index, unit in enumerate(self.units):
            h = unit.activities(x)
            yield h
            x = self.passed_on(index, h, saved)

    def passed_on(self, index: int, h: Tensor, saved: dict[int, Tensor]) -> Tensor:
        """What the next unit gets; of the last one nothing is asked."""
        if index + 1 == len(self.units):
            return h
        return wired(self.units[index].pass_on(h), index, self.shortcuts, saved)

    @property
    def is_known(self) -> bool:
        """Whether its modules are PyTorch's and this package's, as far as they are known to run without numbers."""
        modules = (*self.stem, *(m for unit in self.units for m in (*unit.inside, *unit.outside)), *self.head)
        return all(isinstance(m, KNOWN) for m in modules) and all(_is_own(unit.module) for unit in self.units)


def _is_own(module: nn.Module) -> bool:
    return any(is_plain(module, kind) for kind in (nn.Linear, nn.Conv2d, OrthogonalConv2d))


def read(
    model: nn.Module,
    rule: str,
    score_after: ScoreAfter = "activation",
    whole: bool = False,
    units: Sequence[Part] | None = None,
) -> LocalNetwork:
    """The units of an `nn.Sequential` (nested ones included), of a `ShortcutNetwork`, or of the parts of any model.

    First layer first. `whole` is for a rule that differentiates the whole model: a last Linear, which has no local
    loss, is among the units, and a model of another kind is one unit. Raises ValueError, with the layer's name and what
    to use instead, for a model that is no such network.
    """
    shortcuts: tuple[Shortcut, ...] = ()
    before_last: tuple[nn.Module, ...] = ()
    if whole and units is None and not _is_chain(model):
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        check_parameters("model", model, [], rule, closed=False)
        if next(model.parameters(), None) is None:
            raise ValueError(f"model: {type(model).__name__} without parameters, expected some to train")
        return LocalNetwork((), [LocalUnit("model", model)], (), linears[-1].out_features if linears else None)
    if units is None and isinstance(model, ShortcutNetwork):
        head, shortcuts = line(model.head, "head"), model.shortcuts
        last = _last_linear(head)
        stem, found = _cut(line(model.stem, "stem"), rule, score_after, [])
        for index, block in enumerate(model.blocks):
            before, more = _cut(line(block, f"blocks.{index}"), rule, score_after, found)
            if before or len(more) != 1:
                raise ValueError(f"block 'blocks.{index}': {len(more)} layers, expected one, and first in it")
            found = [*found, *more]
        if len(found) > len(model.blocks):
            raise ValueError(f"layer '{found[0].name}': in the stem; {rule} trains the layers of blocks")
        if whole:
            before_last, more = _cut(head, rule, score_after, found)
            found = [*found, *more]
    elif units is not None or is_plain(model, nn.Sequential):
        given = line(model) if units is None else list(units)
        last = _last_linear(given)
        given = [part._replace(begins=True) if part.module is last else part for part in given]
        stem, found = _cut(given, rule, score_after, [])
        found = found if last is None or whole else found[:-1]
    else:
        raise refusal("", model, rule, TRAINABLE)
    for unit in found:
        if isinstance(unit.module, OrthogonalConv2d) and not whole:  # whose parts nothing would hold orthogonal
            raise refusal(unit.name, unit.module, rule, TRAINABLE)
    if not found:
        raise ValueError(f"model: no hidden layer; {rule} trains an nn.Sequential of {TRAINABLE}")
    return LocalNetwork(stem, found, shortcuts, None if last is None else last.out_features, before_last)


def _is_chain(model: nn.Module) -> bool:
    """Whether it is read layer by layer, each with parameters of its own."""
    if isinstance(model, ShortcutNetwork) or not is_plain(model, nn.Sequential):
        return isinstance(model, ShortcutNetwork)
    own = [p for part in line(model) for p in part.module.parameters()]
    return len(set(own)) == len(own)


def _last_linear(found: Sequence[Part]) -> nn.Linear | None:
    """The Linear that the layers end with, if they do."""
    for _, module, _ in reversed(found):
        if not isinstance(module, nn.Identity):
            return module if isinstance(module, nn.Linear) and is_plain(module, nn.Linear) else None
    return None


def _cut(
    found: Sequence[Part], rule: str, score_after: ScoreAfter, before: list[LocalUnit]
) -> tuple[tuple[nn.Module, ...], list[LocalUnit]]:
    """What comes before the first layer, and the units."""
    stem: list[nn.Module] = []
    units: list[LocalUnit] = []
    after: list[list[nn.Module]] = []
    for name, module, begins in found:
        if isinstance(module, nn.Softmax | nn.LogSoftmax) and module is found[-1].module:
            raise refusal(name, module, rule, TRAINABLE)
        if begins:
            check_parameters(name, module, [*before, *units], rule, closed=False)
            units.append(LocalUnit(name, module))
            after.append([])
        else:
            (after[-1] if after else stem).append(module)
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


def _rectifier(layer: nn.Module, inside: tuple[nn.Module, ...]) -> nn.ReLU | nn.LeakyReLU | None:
    if not _is_own(layer) or isinstance(layer, OrthogonalConv2d) or not LocalUnit("", layer).is_layer:
        return None
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return None
    match inside:
        case (nn.ReLU() as module,) if is_plain(module, nn.ReLU):
            return module
        case (nn.LeakyReLU() as module,) if is_plain(module, nn.LeakyReLU) and module.negative_slope > 0:
            return module
    return None


def _before_score(modules: list[nn.Module], score_after: ScoreAfter) -> int:
    """How many of a unit's modules come before its score: all that learn, but for normalisation, are among them.

    What is of no known kind and has no parameters is taken for an activation.
    """
    norms = [i for i, module in enumerate(modules) if isinstance(module, NORMALISATIONS)]
    if score_after == "normalisation" and norms:
        return norms[-1] + 1
    learns = [any(True for _ in module.parameters()) and not isinstance(module, KNOWN) for module in modules]
    end = max((i + 1 for i, found in enumerate(learns) if found), default=0)
    others = (*DROPOUTS, *NORMALISATIONS, *SHAPES)
    end = next((i + 1 for i, module in enumerate(modules[end:], end) if not isinstance(module, others)), end)
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
            if isinstance(unit.module, nn.Conv2d | OrthogonalConv2d) and x.dim() != 4:
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
    state = {
        name: tensor.clone() if tensor.dim() == 0 else torch.empty_like(tensor, device="meta")  # a count is read
        for name, tensor in module.state_dict().items()
    }
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
