"""How a rule reads a model: a chain of units, each a layer with the parameter-free modules that follow it."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..activations import Activation, gelu, identity, maxmin, silu, tanh
from ..convolution import orthogonal_kernel_vjp, skew_kernel_vjp
from ..layers import (
    AveragePool,
    CircularConvolution,
    Convolution,
    Dense,
    Flatten,
    Layer,
    Mask,
    Maxima,
    MaxPool,
    ScaledAveragePool,
    Step,
    Unshuffle,
    Update,
    activity,
)
from ..layers import Rotation as RotationLayer
from ..modules import OrthogonalConv2d, Rotation, ScaledAvgPool2d
from ..modules.activations import MODULES, activation_of
from ..orthogonality import skew_orthogonal_vjp
from .cutting import Part, Units, is_plain, leaves, parts
from .module_layer import ModuleLayer, ModuleStep
from .watch import check_alone

ACTIVATIONS = " or ".join(", ".join(kind.__name__ for kind in MODULES.values()).rsplit(", ", 1))
OURS = "of prograde.accelerated.modules"
INSTEAD = {
    "Dropout": "the rule has no dropout; remove it",
    "ShortcutNetwork": "use MonoForward or Hyperspherical",
    **dict.fromkeys(
        ("RecurrentNetwork", "RNN", "GRU", "LSTM"),
        "use RecurrentFtp or BackpropThroughTime, with units=[model.gru, model.head] on a model of your own",
    ),
    **dict.fromkeys(
        ("DistributedDataParallel", "FullyShardedDataParallel", "FSDP"),
        "pass the bare model, and put prograde.accelerated.parallel.DataParallel around the rule",
    ),
    "OptimizedModule": "pass the uncompiled model",
    "Softmax": "the loss contains it; remove it",
    "LogSoftmax": "the loss contains it; remove it",
    "Sigmoid": "use Tanh",
    **dict.fromkeys(("ELU", "SELU", "CELU", "PReLU", "Mish", "Softplus"), "use ReLU, GELU or SiLU"),
}
"""What to use in the place of a layer that a rule does not train, by the beginning of the layer's name."""

ANY_MODULE = "Ftp, Pepita, DirectFeedbackAlignment, ForwardForward and local rules such as MonoForward take any module"

INSTEAD_OF_MAPS = {
    "OrthogonalConv2d": {
        "Conv2d": f"padded with zeros it is not orthogonal, as the rule needs it; use OrthogonalConv2d {OURS}",
        "AvgPool": f"a mean shrinks what orthogonal layers keep; use ScaledAvgPool2d {OURS}, which does not",
    },
    "Conv2d": {
        "OrthogonalConv2d": "use Conv2d, or train it by Foton or Backprop",
        "ScaledAvgPool2d": "use AvgPool2d",
        "PixelUnshuffle": "use a stride or pooling",
        "AdaptiveAvgPool2d": "use AvgPool2d",
        "AdaptiveMaxPool2d": "use MaxPool2d",
    },
    "Linear": dict.fromkeys(
        ("Conv2d", "OrthogonalConv2d", "MaxPool2d", "AvgPool2d", "PixelUnshuffle"),
        "Ftp, Pepita, FeedbackAlignment, ForwardForward, Backprop and local classifiers such as MonoForward train "
        "Conv2d, Foton OrthogonalConv2d",
    ),
}
"""The same of feature maps, by the layer that the rule trains."""


Held: TypeAlias = tuple[nn.Module, str]
"""A parameter by the module that has it and its name there, where a new one may take its place."""


Trainable: TypeAlias = nn.Linear | nn.Conv2d | OrthogonalConv2d | Rotation
"""Layers with a closed form."""


PARAMETERS = ("weight", "bias", "mixing", "bases", "orthogonal")
"""What those may have."""

ELEMENTWISE = (
    *MODULES.values(), nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Sigmoid,
    nn.LogSigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink,
)  # fmt: skip
"""Activations; those that `activation_of` does not know are run as they are."""

UNSCALED = (tanh, gelu, silu, maxmin)
"""Activations that don't take a dropout mask out of their argument, as the others do: f(m a) = m f(a) for m >= 0."""

OUTLETS = (
    nn.Flatten, nn.Unflatten, nn.PixelUnshuffle, nn.PixelShuffle, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.LPPool1d, nn.LPPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample,
    ScaledAvgPool2d,
)  # fmt: skip
"""What stands between units."""


@dataclass(frozen=True, eq=False)
class Unit:
    """What a local step trains: a layer with parameters of its own. `name` is its path in the model.

    >>> units = Pepita(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))).units
    >>> [(unit.name, unit.width, [tuple(p.shape) for p in unit.parameters]) for unit in units]
    [('0', 4, [(4, 2), (4,)]), ('2', 3, [(3, 4), (3,)])]
    """

    name: str
    module: Trainable

    @property
    def linear(self) -> nn.Linear | nn.Conv2d | OrthogonalConv2d:
        """The layer that has the parameters: of a rotation, the orthogonal one that its weight is made of."""
        return self.module.orthogonal if isinstance(self.module, Rotation) else self.module

    def of_layer(self) -> list[Tensor]:
        """What a layer with a closed form is trained by, but for the bias."""
        if isinstance(self.linear, OrthogonalConv2d):
            return [self.linear.mixing, *self.linear.bases]
        return [self.linear.weight]

    @property
    def weights(self) -> list[Tensor]:
        """What the layer is trained by, but for the bias."""
        return self.of_layer()

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @property
    def parameters(self) -> list[Tensor]:
        """The weights, then the bias if there is one."""
        return self.weights if self.bias is None else [*self.weights, self.bias]

    @property
    def held(self) -> dict[str, Held]:
        """What can be held orthogonal, by its name in the model: nothing of a padded convolution."""
        name = f"{self.name}.orthogonal" if isinstance(self.module, Rotation) else self.name
        match self.linear:
            case OrthogonalConv2d() as module:
                bases = {f"{name}.bases.{i}": (module.bases, str(i)) for i in range(len(module.bases))}
                return {f"{name}.mixing": (module, "mixing"), **bases}
            case nn.Linear() as linear:
                return {name: (linear, "weight")}
        return {}

    @property
    def has_maps(self) -> bool:
        """Whether its activities are (batch, channels, height, width)."""
        return not isinstance(self.linear, nn.Linear)

    @property
    def width(self) -> int:
        """Channels or units that it gives."""
        return self.linear.out_features if isinstance(self.linear, nn.Linear) else self.linear.out_channels


@dataclass(frozen=True, eq=False)
class ChainUnit(Unit):
    """A unit of a chain: what keeps the shape of its activities, and what they go through to the next unit.

    `parts` are all of its modules in the order in which they run; of these, `inside` make its preactivations where
    that takes more than `module`, or has no closed form. They are differentiated by autograd, the unit by itself.

    >>> first, last = Pepita(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))).units
    >>> isinstance(first, ChainUnit), first.name, first.parts
    (True, '0', (Linear(in_features=2, out_features=4, bias=True), ReLU()))
    >>> last.parts
    (Linear(in_features=4, out_features=3, bias=True),)
    """

    parts: tuple[nn.Module, ...] = ()
    inside: tuple[nn.Module, ...] = ()
    activation: Step = identity
    dropout: nn.Dropout | None = None
    maxima: tuple[Step, ...] = ()
    outlet: tuple[Step, ...] = ()

    @property
    def weights(self) -> list[Tensor]:
        """What the layer is trained by, but for the bias; of modules inside, all parameters."""
        if not self.inside:
            return self.of_layer()
        return list(dict.fromkeys(p for module in self.inside for p in module.parameters()))

    @property
    def bias(self) -> Tensor | None:
        return None if self.inside else self.linear.bias

    @property
    def held(self) -> dict[str, Held]:
        return {} if self.inside else super().held

    @property
    def has_maps(self) -> bool:
        """Whether its activities are (batch, channels, height, width), as far as its first layer tells."""
        first = next((part for module in self.inside for part in module.modules() if _has_size(part)), self.linear)
        return isinstance(first, nn.Conv2d | OrthogonalConv2d)

    @property
    def width(self) -> int:
        """Channels or units that it gives, as far as its last layer tells."""
        *_, last = (self.linear, *(part for module in self.inside for part in module.modules() if _has_size(part)))
        return last.out_features if isinstance(last, nn.Linear) else getattr(last, "out_channels", 0)

    @property
    def gives_channels_first(self) -> bool:
        """Whether the channels of its activities are axis 1, as far as its last layer tells; else they are the last."""
        *_, last = (self.module, *(part for module in self.inside for part in module.modules() if _has_size(part)))
        return not isinstance(last, nn.Linear) and _has_size(last)

    @property
    def run(self) -> list[nn.Module]:
        """The modules without a closed form, which are run as they are."""
        steps = (self.activation, *self.outlet)
        return [*self.inside, *(step.module for step in steps if isinstance(step, ModuleStep))]

    @property
    def is_closed(self) -> bool:
        """Whether everything about it has a closed form."""
        return not self.run

    @property
    def is_linear(self) -> bool:
        return self.activation == identity

    @property
    def gives_scores(self) -> bool:
        """Whether a Linear stands at its end."""
        return self.is_linear and isinstance(self.parts[-1] if self.inside else self.module, nn.Linear)

    @property
    def dropout_rate(self) -> float:
        return self.dropout.p if self.dropout is not None and self.dropout.training else 0.0

    def layer(self, mask: Tensor | None = None) -> Layer:
        """The unit as the functions of this package take it; the tensors are the parameters themselves.

        An orthogonal kernel is made of its parts here. What remembers a step's numbers is of this step alone.
        """
        activation, *outlet = afresh((self.activation, *self.outlet))
        steps: tuple[Step, ...] = (activation,) if mask is None else (activation, Mask(mask))
        steps = (*steps, *afresh(self.maxima))
        if self.inside:
            steps = tuple(step for step in steps if step != identity)
            return ModuleLayer(self.inside, self.weights, steps, tuple(outlet), self.name)
        match self.module:
            case Rotation() as module:
                inside = activation_of(module.activation)
                kind = CircularConvolution if self.has_maps else Dense
                branch = kind(module.skew(), self.bias, () if inside is None else (inside,))
                return RotationLayer(branch, module.angle, steps, tuple(outlet))
            case OrthogonalConv2d() as module:
                return CircularConvolution(module.kernel(), module.bias, steps, tuple(outlet))
            case nn.Conv2d() as module:
                rows, columns = module.stride
                place = ((rows, columns), _padding(module), module.groups)
                return Convolution(module.weight, module.bias, steps, tuple(outlet), *place)
        return Dense(self.module.weight, self.module.bias, steps, tuple(outlet))

    def gradients(self, update: Update) -> tuple[Tensor, ...]:
        """The layer's update as that of `parameters`: of an orthogonal kernel, what it means for the kernel's parts."""
        if self.inside:
            return update
        weight, *bias = update
        rotates = isinstance(self.module, Rotation)
        match self.linear:
            case OrthogonalConv2d() as linear:
                kernel = skew_kernel_vjp(linear.kernel(), weight) if rotates else weight
                mixing, bases = orthogonal_kernel_vjp(linear.mixing, list(linear.bases), kernel)
                return (mixing, *bases, *bias)
            case linear if rotates:
                return (skew_orthogonal_vjp(linear.weight, weight), *bias)
        return update


def _has_size(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd | OrthogonalConv2d)


def afresh(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps, with memories of their own where they have one."""
    return tuple(replace(step) if isinstance(step, Maxima | MaxPool | ModuleStep) else step for step in steps)


class Chain(NamedTuple):
    """A model as a rule sees it: what comes before the first unit, and the units."""

    stem: tuple[Step, ...]
    units: list[ChainUnit]

    @property
    def stem_runs(self) -> bool:
        """Whether a module is run before the first unit, which may take integers."""
        return any(isinstance(step, ModuleStep) for step in self.stem)

    @property
    def run(self) -> list[nn.Module]:
        """The modules without a closed form, which are run as they are."""
        of_stem = [step.module for step in self.stem if isinstance(step, ModuleStep)]
        return [*of_stem, *(module for unit in self.units for module in unit.run)]

    @property
    def image_channels(self) -> int:
        """Of what goes into a model for images."""
        module = self.units[0].linear
        assert not isinstance(module, nn.Linear)
        return module.in_channels // prod([step.factor**2 for step in self.stem if isinstance(step, Unshuffle)])

    def activity_shapes(self, sample: torch.Size) -> list[torch.Size]:
        """The shape of each unit's activities, all in closed form, for samples of that shape. Nothing is computed.

        Raises ValueError, with the layer's name, where they do not fit.
        """
        like = self.units[0].weights[0]
        z = torch.empty(1, *sample, device="meta", dtype=like.dtype)
        found = []
        where = f"what comes before layer '{self.units[0].name}'"
        try:
            z = activity(self.stem, z)
            for unit in self.units:
                where = f"layer '{unit.name}'"
                layer, module = _ghost(unit), unit.linear
                if isinstance(module, nn.Linear) and z.shape[-1] != module.in_features:
                    raise ValueError(f"takes {module.in_features} features, but gets {z.shape[-1]}")
                h = activity(layer.steps, layer.value(z))
                found.append(h.shape[1:])
                where = f"what follows layer '{unit.name}'"
                z = activity(layer.outlet, h)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"x: samples of shape {tuple(sample)} do not pass {where} ({error})") from error
        return found


def _ghost(unit: ChainUnit) -> Layer:
    """The unit's layer on the meta device, where there are shapes but no numbers."""
    module = unit.linear  # a rotation keeps the shape, as this layer does
    if isinstance(module, OrthogonalConv2d):
        shape = (module.out_channels, module.in_channels, module.kernel_size, module.kernel_size)
        kernel = torch.empty(shape, device="meta", dtype=module.mixing.dtype)
        return CircularConvolution(kernel, None, (unit.activation,), unit.outlet)
    layer = replace(unit, module=module).layer()
    weight = torch.empty_like(module.weight, device="meta")
    return layer._replace(bias=None, **{layer._fields[0]: weight})  # type: ignore[attr-defined]


def _padding(module: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns of zeros on each side."""
    if isinstance(module.padding, str):
        rows, columns = module.kernel_size
        return (rows // 2, columns // 2) if module.padding == "same" else (0, 0)
    rows, columns = module.padding
    return rows, columns


def computes_otherwise(module: nn.Module) -> bool:
    """Whether it is a module of PyTorch's or this package's that computes in another way than its class."""
    ours = ("torch.nn.", __name__.removesuffix("rules.units"))
    kind = next(kind for kind in type(module).__mro__ if kind.__module__.startswith(ours))
    return kind is not nn.Module and not is_plain(module, kind)


def check_forward(name: str, module: nn.Module, rule: str) -> None:
    """Raises ValueError for a module of PyTorch's or this package's that computes in another way than its class."""
    if computes_otherwise(module):
        raise ValueError(
            f"layer '{name}': {type(module).__name__} has a forward pass of its own, which {rule} would not run"
        )


def check_parameters(name: str, module: nn.Module, before: Sequence[Unit], rule: str, closed: bool) -> None:
    """Raises ValueError for a layer that cannot be trained by setting the gradients of parameters of its own.

    They are those of its kind, where it has a closed form.
    """
    for part in module.modules():
        check_alone(name, part, rule)
    own = list(module.parameters())
    computed = not isinstance(getattr(module, "weight", None), nn.Parameter | None)  # as the older weight_norm does
    if any(is_lazy(p) for p in own):
        raise ValueError(f"layer '{name}': its parameters are not there yet; call the model once, then build {rule}")
    if closed and (computed or is_parametrized(module)):
        raise ValueError(f"layer '{name}': a parameter is computed; {rule} needs plain ones, remove what computes it")
    for key, p in module.named_parameters():
        if closed and key.partition(".")[0] not in PARAMETERS:
            raise ValueError(f"layer '{name}': {rule} would not train its {key}, which a {type(module).__name__} adds")
        if p.numel() == 0:
            raise ValueError(f"layer '{name}': its {key} has shape {tuple(p.shape)}; {rule} needs a unit at least")
    if not own:
        return
    like = before[0].weights[0] if before else own[0]
    if any((p.dtype, p.device) != (like.dtype, like.device) for p in own):
        places = sorted({f"{p.dtype} on {p.device}" for p in own})
        raise ValueError(
            f"layer '{name}': {' and '.join(places)}; {rule} needs all of its model as {like.dtype} on {like.device}"
        )
    if not all(torch.isfinite(p).all() for p in own):
        raise ValueError(f"layer '{name}': its parameters are not all finite, expected finite numbers")
    taken = {id(p): unit.name for unit in before for p in unit.parameters}
    for p in own:
        if id(p) in taken:
            raise ValueError(
                f"layer '{name}': shares a parameter with layer '{taken[id(p)]}'; {rule} needs each layer's own"
            )


def _outlet_of(name: str, module: nn.Module, rule: str, orthogonal: bool) -> Step | None:
    """The step in closed form that a module is on the way to the next unit, or None.

    Raises ValueError for one that has other settings than the closed form.
    """
    match module:
        case nn.Flatten():
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"layer '{name}': {module}; {rule} wants samples flattened whole, as Flatten() does")
            return Flatten()
        case nn.PixelUnshuffle() if orthogonal:
            return Unshuffle(module.downscale_factor)
        case ScaledAvgPool2d() if orthogonal:
            return ScaledAveragePool(module.kernel_size)
        case nn.MaxPool2d() if not orthogonal:
            return MaxPool(_square(name, module, rule))
        case nn.AvgPool2d() if not orthogonal:
            return AveragePool(_square(name, module, rule))
    return None


def _square(name: str, module: nn.MaxPool2d | nn.AvgPool2d, rule: str) -> int:
    """The side of the squares. Raises ValueError for windows that are no squares side by side."""
    given = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
    size, *rest = ({n} if isinstance(n, int) else set(n) for n in given)
    special = (module.ceil_mode, getattr(module, "return_indices", None), getattr(module, "divisor_override", None))
    if len(size) > 1 or rest != [size, {0}, {1}] or any(special):
        kind = type(module).__name__
        raise ValueError(f"layer '{name}': {module}; {rule} trains {kind}(n) with squares side by side only")
    return int(size.pop())


def read(
    model: nn.Module,
    rule: str,
    kinds: Sequence[type[nn.Module]] = (),
    dropout: bool = True,
    needs: str = "",
    units: Units | None = None,
    example: Tensor | None = None,
    begins_with_x: bool = False,
    ends_in_scores: bool = False,
) -> Chain:
    """The chain of an `nn.Sequential` (nested ones included), or of the `units` of any model.

    Its closed convolutions are all of one of `kinds`. `needs` is what the rule needs of every layer, where it takes
    closed forms alone; else modules without one are run as they are. With `begins_with_x` all that is run belongs to
    units but Flatten, with `ends_in_scores` nothing follows the last one. Raises ValueError, with the layer's name and
    what to use instead, for a model that is no such chain.
    """
    plain = is_plain(model, nn.Sequential)
    found = parts(model, units, example, rule) if plain or units is not None else []
    layers = [_linear(part.module) for part in found]
    kind = next((kind for kind in kinds if any(is_plain(layer, kind) for layer in layers)), None)
    has_maps = any(re.search("2d|PixelUnshuffle", type(part.module).__name__) for part in found)
    trainable = _trainable(kind or (kinds[0] if kinds and has_maps else None), dropout)
    reader = _Reader(rule, kind, dropout, needs, trainable, OrthogonalConv2d in kinds, begins_with_x)
    if not plain and units is None:
        raise reader.refusal("", model)
    for part in found:
        reader.take(part)
    if not reader.units:
        raise ValueError(f"model: no layer with weights; {rule} trains an nn.Sequential of {reader.trainable}")
    if ends_in_scores and not needs:
        if isinstance(found[-1].module, nn.Softmax | nn.LogSoftmax):
            raise reader.refusal(found[-1].name, found[-1].module)
        reader.end()
    last = reader.units[-1]
    if last.has_maps and last.is_closed:
        raise without_scores(model)
    return Chain(tuple(reader.stem), reader.units)


class _Reader:
    """Makes the units of a chain from the parts of a model, taken in turn."""

    def __init__(
        self,
        rule: str,
        kind: type[nn.Module] | None,
        dropout: bool,
        needs: str,
        trainable: str,
        rotates: bool,
        begins_with_x: bool,
    ) -> None:
        self.rule, self.kind, self.dropout, self.needs, self.trainable = rule, kind, dropout, needs, trainable
        self.rotates = rotates  # whether rotations have a closed form
        self.begins_with_x = begins_with_x
        self.stem: list[Step] = []
        self.units: list[ChainUnit] = []
        self._before: list[nn.Module] = []  # the modules of the stem
        self._joining: list[nn.Module] = []  # what has to be in one graph with the first layer, and comes before it

    def refusal(self, name: str, module: nn.Module) -> ValueError:
        return refusal(name, module, self.rule, self.trainable, needs=self.needs)

    def take(self, part: Part) -> None:
        """Raises ValueError for a part that the rule cannot train, or not in this place."""
        name, module = part.name, part.module
        if self.needs:
            check_forward(name, module, self.rule)
        if isinstance(module, nn.Identity):
            return
        last = self.units[-1] if self.units and not self.units[-1].outlet else None  # that may have an activation
        activation = None if computes_otherwise(module) else activation_of(module)
        own = list(module.parameters())
        if part.begins and not isinstance(module, nn.PReLU):
            self._begin(name, module)
        elif activation is not None and last is not None and (self.needs or self._may_follow(activation, last)):
            self.units[-1] = _activated(name, module, activation, last)
        elif isinstance(module, nn.Dropout) and self.dropout and (self.needs or (last and last.dropout is None)):
            self.units[-1:] = [_dropped(name, module, last, self.units, self.rule)]
        elif isinstance(module, nn.MaxPool2d) and self.kind is OrthogonalConv2d and last is not None and last.has_maps:
            size, kept = _square(name, module, self.rule), (*last.parts, module)
            outlet = (ScaledAveragePool(size),)
            self.units[-1] = replace(last, parts=kept, maxima=(Maxima(size),), outlet=outlet)
        elif self.needs or (isinstance(module, nn.modules.dropout._DropoutNd) and not self.dropout):
            self._follow(name, module, self._closed_outlet(name, module))
        elif last is not None and isinstance(module, ELEMENTWISE) and last.is_linear and last.dropout is None:
            self.units[-1] = replace(last, parts=(*last.parts, module), activation=activation or ModuleStep(module))
        elif isinstance(module, (*OUTLETS, nn.Dropout) if self.units else nn.Module) and not own and not self._joining:
            self._follow(name, module, self._closed_outlet(name, module) or ModuleStep(module))
        else:
            self._join(name, module)

    def _may_follow(self, activation: Activation, unit: ChainUnit) -> bool:
        return unit.is_linear and (unit.dropout is None or activation not in UNSCALED)

    def _closed_outlet(self, name: str, module: nn.Module) -> Step | None:
        """Raises ValueError for settings that have no closed form, where the rule takes nothing else."""
        if computes_otherwise(module):
            return None
        try:
            step = _outlet_of(name, module, self.rule, self.kind is OrthogonalConv2d)
        except ValueError:
            if self.needs:
                raise
            return None
        of_maps = self.kind is not None and bool(self.units) and self.units[-1].has_maps
        of_maps = of_maps and Flatten() not in self.units[-1].outlet
        before_first = isinstance(step, Flatten | Unshuffle) and not self.units
        return step if of_maps or before_first or (isinstance(step, Flatten) and not self.needs) else None

    def _follow(self, name: str, module: nn.Module, step: Step | None) -> None:
        """Makes it a step of the stem or of the last outlet."""
        if step is None:
            raise self.refusal(name, module)
        if self.units:
            unit = self.units[-1]
            self.units[-1] = replace(unit, parts=(*unit.parts, module), outlet=(*unit.outlet, step))
        else:
            self.stem.append(step)
            self._before.append(module)

    def _join(self, name: str, module: nn.Module) -> None:
        """Puts it into one graph with all that the last unit has so far, or with the first layer, which follows."""
        check_parameters(name, module, self.units[:-1], self.rule, closed=False)
        if self.units:
            self._join_all(module)
        else:
            self._joining.append(module)

    def _join_all(self, *further: nn.Module) -> None:
        inside = (*self.units[-1].parts, *further)
        self.units[-1] = ChainUnit(self.units[-1].name, self.units[-1].module, inside, inside)

    def end(self) -> None:
        """Makes the last unit's outlet a part of its map."""
        if self.units[-1].outlet:
            self._join_all()

    def _begin(self, name: str, module: nn.Module) -> None:
        dense = is_plain(module, nn.Linear)
        rotates = self.rotates and isinstance(module, Rotation)
        of_kind = self.kind is not None and isinstance(module, self.kind) and not computes_otherwise(module)
        of_kind = of_kind or rotates
        closed = not self._joining and (dense or (of_kind and (bool(self.needs) or _has_closed_form(module))))
        keys = {key.partition(".")[0] for key, _ in module.named_parameters()}
        closed = closed and not is_parametrized(module) and keys.issubset(PARAMETERS)
        flattened = closed and all(isinstance(step, Flatten) for step in self.stem)
        if self.begins_with_x and not self.units and not flattened and self._before:
            self.stem, self._joining, closed = [], [*self._before, *self._joining], False
        outlet = tuple(self.units[-1].outlet) if self.units else tuple(self.stem)
        if self.needs:
            if not (dense or of_kind):
                raise self.refusal(name, module)
            if rotates:
                _check_inside(name, module.activation, self.rule)  # type: ignore[arg-type]
            _check_layer(name, _linear(module), self.units, outlet, self.rule, self.refusal)
        check_parameters(name, module, self.units, self.rule, closed=bool(self.needs) or closed)
        if self.needs:
            _check_fit(name, _linear(module), self.units[-1] if self.units else None, outlet)
        elif closed:
            self._check_sizes(name, module)
        inside = () if closed or self.needs else (*self._joining, module)
        self.units.append(ChainUnit(name, module, (*self._joining, module), inside))  # type: ignore[arg-type]
        self._joining = []

    def _check_sizes(self, name: str, module: nn.Module) -> None:
        """Raises ValueError for a layer in closed form that does not take what another such gives it."""
        before = self.units[-1] if self.units else None
        if before is None or not before.is_closed:
            return
        if isinstance(module, nn.Linear) and before.has_maps and Flatten() not in before.outlet:
            raise _unflattened(name, before)
        if before.has_maps or not before.outlet:
            _check_fit(name, module, before, tuple(before.outlet))


def _linear(module: nn.Module) -> nn.Module:
    """The layer itself, or what a rotation is made of."""
    return module.orthogonal if isinstance(module, Rotation) else module


def _check_inside(name: str, activation: nn.Module, rule: str) -> None:
    """Raises ValueError for an activation of a rotation that has no closed form."""
    if not isinstance(activation, nn.Identity) and (
        activation_of(activation) is None or computes_otherwise(activation)
    ):
        kind = type(activation).__name__
        raise ValueError(f"layer '{name}': {kind} inside; {rule} trains Rotation with {ACTIVATIONS} or none")


def _has_closed_form(module: nn.Module) -> bool:
    """Whether a convolution has one."""
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, OrthogonalConv2d)
    same_but_even = module.padding == "same" and any(side % 2 == 0 for side in module.kernel_size)
    return module.dilation == (1, 1) and module.padding_mode == "zeros" and not same_but_even


def _trainable(kind: type[nn.Module] | None, dropout: bool) -> str:
    """What the chains are made of whose convolutions are of that kind; None: that have none."""
    after = [f"an activation ({ACTIVATIONS})", *["Dropout"] * dropout]
    if kind is None:
        return f"Linear, each followed by {' and '.join(after)}, and Flatten before the first"
    layer, pooling = "Conv2d", "MaxPool2d or AvgPool2d"
    if kind is OrthogonalConv2d:
        layer, pooling = "OrthogonalConv2d with PixelUnshuffle before it", "ScaledAvgPool2d or MaxPool2d"
    return f"{layer}, each followed by {', '.join(after)} and {pooling}, in this order, then Flatten and Linear"


def _check_layer(
    name: str,
    module: nn.Module,
    before: list[ChainUnit],
    outlet: tuple[Step, ...],
    rule: str,
    refused: Callable[[str, nn.Module], ValueError],
) -> None:
    """Raises ValueError for a layer that has no closed form, or does not take what the one before gives."""
    dense, flat = isinstance(module, nn.Linear), Flatten() in outlet
    if dense and before and before[-1].has_maps and not flat:
        raise _unflattened(name, before[-1])
    if (before and before[-1].has_maps != (not dense or flat)) or (flat and not dense):
        raise refused(name, module)
    if isinstance(module, nn.Conv2d):
        if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            raise ValueError(
                f"layer '{name}': {module}; {rule} trains Conv2d without groups and dilation, padded with zeros "
                "(Backprop and local classifiers such as MonoForward train any)"
            )
        if not _has_closed_form(module):
            raise ValueError(
                f"layer '{name}': {module}; {rule} wants as much padding on both sides: an odd kernel_size"
            )


def _unflattened(name: str, before: ChainUnit) -> ValueError:
    return ValueError(f"layer '{name}': Linear after maps of layer '{before.name}'; put a Flatten before it")


def _check_fit(name: str, module: nn.Module, before: ChainUnit | None, outlet: tuple[Step, ...]) -> None:
    """Raises ValueError where the layer's inputs are not as many as the layer before gives."""
    if isinstance(module, nn.Linear):
        if before is not None and not before.has_maps and before.width != module.in_features:
            raise ValueError(
                f"layer '{name}': takes {module.in_features} features, but layer '{before.name}' gives {before.width}"
            )
        return
    factor = prod(step.factor for step in outlet if isinstance(step, Unshuffle))
    if module.in_channels % factor**2:  # type: ignore[operator]
        raise ValueError(
            f"layer '{name}': takes {module.in_channels} channels, expected a multiple of {factor**2} after unshuffling"
        )
    given = module.in_channels if before is None else before.width * factor**2
    if given != module.in_channels:
        raise ValueError(f"layer '{name}': takes {module.in_channels} channels, but gets {given}")


def _activated(name: str, module: nn.Module, activation: Activation, unit: ChainUnit) -> ChainUnit:
    """The unit with its activation. Raises ValueError where it can have none."""
    if not unit.is_linear:
        raise ValueError(f"layer '{name}': a second activation after layer '{unit.name}'; remove one")
    if unit.dropout is not None and activation in UNSCALED:
        raise ValueError(f"layer '{name}': {type(module).__name__} after Dropout; put the Dropout behind it")
    if activation == maxmin and unit.width % 2:
        what = "channels" if unit.has_maps else "units"
        raise ValueError(f"layer '{name}': MaxMin pairs {what}, but layer '{unit.name}' gives {unit.width}, an odd one")
    return replace(unit, parts=(*unit.parts, module), activation=activation)


def _dropped(name: str, module: nn.Dropout, unit: ChainUnit | None, units: list[ChainUnit], rule: str) -> ChainUnit:
    """The unit with its dropout. Raises ValueError where there is none, or it has one already."""
    if not units:
        raise ValueError(f"layer '{name}': Dropout before the first layer; {rule} takes it after one, remove it")
    if unit is None:
        raise ValueError(f"layer '{name}': Dropout after pooling or Flatten; put it right behind the activation")
    if unit.dropout is not None:
        raise ValueError(f"layer '{name}': a second Dropout after layer '{unit.name}'; remove one")
    return replace(unit, parts=(*unit.parts, module), dropout=module)


def refusal(
    name: str, module: nn.Module, rule: str, trainable: str, network: str = "an nn.Sequential of ", needs: str = ""
) -> ValueError:
    """The error for a layer that the rule can't train, or for the model (no name), with what to use instead.

    `needs` is what the rule needs of every layer, where it does not take any module.
    """
    kind = type(module).__name__
    named = re.findall(r"\w+", trainable)
    misplaced = bool(name) and kind in named
    of_maps = next((INSTEAD_OF_MAPS[layer] for layer in INSTEAD_OF_MAPS if layer in named), {})
    instead = {**of_maps, **INSTEAD, **({"Dropout": "use Dropout"} if "Dropout" in named else {})}
    hint = "" if misplaced else next((f" ({instead[start]})" for start in instead if kind.startswith(start)), "")
    if not (hint or misplaced or is_plain(module, nn.Linear) or is_plain(module, nn.Sequential)):
        if needs:
            hint = f" (it needs {needs}; {ANY_MODULE})"
        elif not name:
            hint = " (or the units of any other model: units=[...], its modules in the order in which they run)"
    where = f"layer '{name}'" if name else "model"
    return ValueError(f"{where}: {kind}{' in this place' * misplaced}; {rule} trains {network}{trainable}{hint}")


def without_scores(model: nn.Module, otherwise: str = "") -> ValueError:
    """The error for a model that does not end with a Linear, or what `otherwise` says instead of one."""
    *_, (name, module) = (leaf for leaf in leaves(model) if not isinstance(leaf[1], nn.Identity))
    kind = type(module).__name__
    return ValueError(f"layer '{name}': {kind} at the end, expected a Linear that gives the class scores{otherwise}")


def check_batch(x: Tensor) -> None:
    """Raises ValueError for an empty batch, and for a sample alone."""
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...) with at least one sample")


def check_dense(x: Tensor) -> None:
    """Raises ValueError for a sparse x, of a rule that writes into x or adds to it."""
    if isinstance(x, Tensor) and x.layout != torch.strided:
        raise ValueError(f"x: {x.layout}, expected a dense tensor, to which the rule adds numbers; x.to_dense()")


def flat_input(x: Tensor, weight: Tensor) -> Tensor:
    """x as (batch, n_0). Raises ValueError for another size or dtype than the first weight's."""
    x = x.flatten(1)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: {x.shape[1]} features a sample, expected {weight.shape[1]}")
    check_like(x, weight)
    return x


def has_positions(x: Tensor, features: int, example: Sequence[int] | None) -> bool:
    """Whether a first Linear takes x position by position, as in the model, and not a sample's numbers in one row.

    `example` is the shape of a sample that showed it, if there was one. Without it a row of these features is a sample.
    """
    shown = example is not None and len(example) > 1 and example[-1] == features
    return x.shape[-1] == features and (shown or prod(x.shape[1:]) != features)


def check_like(x: Tensor, weight: Tensor) -> None:
    """Raises ValueError for x of another dtype or on another device than the model's weights."""
    if x.dtype != weight.dtype:
        raise ValueError(f"x: dtype {x.dtype}, expected {weight.dtype} as the model's weights; x.to({weight.dtype})")
    if x.device != weight.device:
        raise ValueError(f"x: on {x.device}, expected {weight.device} as the model's weights")


def channels_last(x: Tensor) -> Tensor:
    """Feature maps in PyTorch's channels-last format where x is on a CPU, which convolves and pools it faster.

    The layers that follow keep the format. A single channel needs its strides set: `contiguous` leaves them as they
    are, and the first convolution then takes ten times as long.
    """
    if x.dim() != 4 or x.device.type != "cpu" or x.stride(1) == 1:
        return x
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
