"""What all rules share: the interface that a training loop uses."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, wraps
from math import isfinite, prod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence

from .._arrays import generators, readable, wide
from .._autocast import Region, in_full, region_on, step_in
from ..layers import Flatten, Layer, Pass, activity, forward, per_label
from .cutting import Units, check_same, default_strides, parts, untouched
from .export import Inference
from .module_layer import ModuleLayer, strided
from .output_loss import Loss, LossLike, Targets, check_labels, read_loss
from .step_loss import StepLoss
from .stepping import Factors, Memory, PlainSGD, UnitSteps, factored, in_factors, step_together, stepping
from .units import (
    ChainUnit,
    Unit,
    afresh,
    channels_last,
    check_batch,
    check_like,
    flat_input,
    has_positions,
    read,
    without_scores,
)
from .watch import Watched, check_hooks, check_same_parameters, check_unchanged, hooks, shared_out, watched

Inputs: TypeAlias = Tensor | tuple[Tensor, Tensor] | PackedSequence
"""x as a rule takes it; of recurrent rules (batch, steps, features) or tokens (batch, steps), or x, padded, with the
samples' lengths, or x packed."""

IN_NO_UNIT = "in no unit: the rule's scores do not depend on it"
"""Why a parameter is left out, a last Linear's for one where each layer has a loss of its own."""


class UnitUpdate(NamedTuple):
    """What an optimizer is to subtract from a unit's parameters, and its own batch-mean loss if it has one.

    `gradients` are in the order of `unit.parameters`; None for a unit that the rule leaves as it is. `own` pairs
    further parameters with their updates: the rule's own, as those of a score, or of modules between units.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> first, last = Foton(model).stream(torch.eye(2), torch.tensor([0, 2]))
    >>> [tuple(gradient.shape) for gradient in first.gradients], first.loss is None, last.loss.shape
    ([(4, 2), (4,)], True, torch.Size([]))
    """

    unit: Unit
    gradients: Sequence[Tensor] | None
    loss: Tensor | None = None
    own: tuple[tuple[Tensor, Tensor], ...] = ()

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter of the unit, then those of the rule's own, and what to subtract; frozen ones are left out."""
        of_unit = () if self.gradients is None else zip(self.unit.parameters, self.gradients, strict=True)
        return trained_pairs([*of_unit, *self.own])


def trained_pairs(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The pairs of parameters that are not frozen: the one place where `requires_grad=False` is honoured.

    Gradients are strided as their parameters: fused optimizers read both in the order of memory.
    """
    return [
        (held, gradient if _lies_as(gradient, held) else torch.empty_like(held).copy_(gradient))
        for held, gradient in pairs
        if held.requires_grad
    ]


def _lies_as(gradient: Tensor | Factors, held: Tensor) -> bool:
    return isinstance(gradient, Factors) or gradient.stride() == held.stride()


def gradients_by(output: Tensor, parameters: Iterable[Tensor], credit: Tensor | None = None) -> dict[Tensor, Tensor]:
    """By autograd, the gradient of <credit, output> by each parameter; 0 by one that is frozen or unused."""
    parameters = list(parameters)
    learned = [p for p in parameters if p.requires_grad]
    found = torch.autograd.grad(output, learned, credit, allow_unused=True) if learned else ()
    gradients = {p: strided(g) for p, g in zip(learned, found, strict=True) if g is not None}
    return {p: gradients[p] if p in gradients else torch.zeros_like(p) for p in parameters}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def check_place(name: str, buffer: Tensor, x: Tensor) -> None:
    """Raises ValueError for a buffer of another dtype or device than x: the model was converted without its rule."""
    if (buffer.dtype, buffer.device) != (x.dtype, x.device):
        raise ValueError(
            f"{name}: {buffer.dtype} on {buffer.device}, expected {x.dtype} on {x.device}; "
            "convert or move the rule, not its model"
        )


def has_shared_positions(shape: Sequence[int], channels_first: bool) -> bool:
    """Whether activities are maps or tokens, whose positions may share the rows of a projection."""
    return len(shape) == (3 if channels_first else 2)


def over_positions(values: Tensor, labels: Tensor, h: Tensor) -> Tensor:
    """Numbers of channels, (labels, channels), at all positions of each label's sample in h: shaped as h.

    `labels` is (samples, K), or (samples, positions, K) where each position has its own.
    """
    if labels.dim() > 2:
        return values.view_as(h)
    return (values[:, :, None, None] if h.dim() == 4 else values[:, None]).expand(h.shape)


def one_sample(name: str, norm: nn.Module) -> ValueError:
    """The error for a batch of one where samples are normalised over."""
    return ValueError(f"x: a batch of 1, expected 2 or more: {type(norm).__name__} '{name}' normalises over it")


def check_finite(x: Tensor) -> None:
    """Raises ValueError for x with NaN or infinity in it, where that can be looked at: see `readable`."""
    if readable(x) and not isfinite(x.sum(dtype=wide(x.dtype))):  # one number, many times as fast
        bad = len(x) - int(x.flatten(1).isfinite().all(dim=1).sum())
        if bad:
            raise ValueError(f"x: {bad} of {len(x)} samples have NaN or infinity, expected finite numbers")


def _whole_signature(rule: type, sets: Sequence[str]) -> inspect.Signature:
    """The signature of the class, with its parent's options in the place of its `**options`."""
    own = list(inspect.signature(rule.__dict__["__init__"]).parameters.values())[1:]
    if own and own[-1].kind is inspect.Parameter.VAR_KEYWORD:
        taken = {parameter.name for parameter in own[:-1]} | set(sets)
        parent, *_ = rule.__bases__
        passed = inspect.signature(parent).parameters.values()
        kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
        own[-1:] = [parameter for parameter in passed if parameter.name not in taken and parameter.kind in kinds]
    return inspect.Signature(own)


def check_count(name: str, value: int, least: int = 1) -> None:
    """Raises ValueError unless the value is an integer of that size."""
    if type(value) is not int or value < least:
        expected = "a positive integer" if least == 1 else f"an integer of {least} or more"
        raise ValueError(f"{name}: {value!r}, expected {expected}")


def check_options(rule: type, options: Iterable[str]) -> None:
    """Raises TypeError for an option that the rule's signature does not have."""
    known = inspect.signature(rule).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in options:
        if name not in known:
            expected = ", ".join(list(known)[1:]) or "none"
            raise TypeError(f"{rule.__name__}: unknown option '{name}', expected one of {expected}")


def _as_a_step(stream: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`stream` without graph, and with autocast for what takes it alone, whatever is on where updates are used."""

    @wraps(stream)
    def steps(rule: nn.Module, x: Any, y: Any) -> Iterator[Any]:
        region = region_on(next(rule.parameters()).device)
        if is_inferring():
            return _stepped(stream(rule, lasting(x), lasting(y)), region)
        if region is None and not torch.is_grad_enabled():
            return stream(rule, x, y)
        return _stepped(stream(rule, x, y), region)

    return steps


CODE = FunctionType, BuiltinFunctionType, MethodDescriptorType, CodeType, ModuleType, type
"""What a program is made of."""


def kept_guards(guards: Sequence[Any]) -> list[bool]:
    """Of the compiler's guards those that a step asks: about rules, models, settings and PyTorch's global state.

    What functions and classes are does not change from step to step. Two fifths of a small step's guards ask for that.
    """
    return [not ("type(" in guard.name or (guard.is_global and isinstance(guard.value, CODE))) for guard in guards]


def _with_own_code(method: Any) -> MethodType:
    """The method, with a copy of its code: the compiler keeps by code what it makes, and no more than a few of each."""
    of = method.__func__
    copied = FunctionType(of.__code__.replace(), of.__globals__, of.__name__, of.__defaults__, of.__closure__)
    return MethodType(copied, method.__self__)


def is_inferring() -> bool:
    """Whether inference mode is on, in which no unit could have a graph; compiled code does not ask."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def lasting(array: Any) -> Any:
    """A tensor of inference mode, or each of a tuple, as one that a graph may hold."""
    if type(array) is tuple:
        return tuple(map(lasting, array))
    with torch.inference_mode(False):
        return array.clone() if isinstance(array, Tensor) and array.is_inference() else array


def _stepped(updates: Iterator[Any], region: Region | None) -> Iterator[Any]:
    while True:
        outside = torch.inference_mode(False) if is_inferring() else nullcontext()
        with outside, torch.no_grad(), nullcontext() if region is None else step_in(region):
            update = next(updates, None)
        if update is None:
            return
        yield update


class Share(NamedTuple):
    """The rows of a larger batch that the batch in hand is, one of several processes' each.

    `gathered` puts all rows together from those of each process, in order.
    """

    rows: slice
    total: int
    gathered: Callable[[Tensor], Tensor]


class Update(Protocol):
    """What an optimizer is to subtract from a part of a model, and that part's own batch-mean loss if it has one."""

    @property
    def loss(self) -> Tensor | None: ...

    @property
    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter, and what is to be subtracted from it."""
        ...


class CreditAssignment(nn.Module):
    """The interface that a training loop uses, for any model.

        loss = rule.assign_credit(x, y)    # in place of loss.backward()
        optimizer.step()
        rule.constrain(optimizer)

    The rule owns the model and the parameters and buffers that the algorithm adds. Pass `rule.parameters()` to the
    optimizer, and save `rule.state_dict()`.

    A parameter with `requires_grad=False` stays as it is, whenever it was frozen. A hook on the model's modules is
    called as in any pass, or refused by name. A layer that is replaced after the rule was built is refused by name.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> model[0].bias.requires_grad = False
    >>> rule = Foton(model)
    >>> loss = rule.assign_credit(torch.eye(2), torch.tensor([0, 2]))
    >>> [name for name, parameter in rule.named_parameters() if parameter.grad is None]
    ['model.0.bias']
    """

    __signature__: ClassVar[inspect.Signature]

    model: nn.Module
    connects_processes = False
    """Whether a step is one of several processes together."""
    steps_by_unit = False
    """Whether `step` may change a unit as soon as its update is known."""
    differentiates = False
    """Whether a step has a backward pass through the whole model, where backward hooks are called."""
    _watched: Sequence[Watched] = ()
    _is_told_apart = False
    _compiled: Callable[[Inputs, Any], Tensor] | None = None
    _compiled_hooks: Sequence[int] = ()

    def __init_subclass__(cls, sets: Sequence[str] = (), **settings: Any) -> None:
        """Puts the parent's options into the signature, except those that the class itself `sets`.

        Its `stream` is made a step: no graph, and of autocast what `_autocast` says.
        """
        super().__init_subclass__(**settings)
        if "stream" in cls.__dict__:
            cls.stream = _as_a_step(cls.__dict__["stream"])  # type: ignore[method-assign]
        if "__init__" in cls.__dict__:
            cls.__signature__ = _whole_signature(cls, sets)

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Raises TypeError for an option that the rule lacks: a parent, which is given the rest, would name itself."""
        check_options(cls, options)
        return super().__new__(cls)

    @cached_property
    def _memory(self) -> Memory:
        return {}

    def watch(self, model: nn.Module) -> None:
        """Takes the model, whose modules must stay the same."""
        self.model = model
        self._watched = watched(model)

    def check_unchanged(self) -> None:
        """Raises ValueError, with the layer's name, where a layer was replaced, added or removed since."""
        if self._watched:
            check_unchanged(self._watched, self.model, type(self).__name__)

    def check_same_parameters(self) -> None:
        """Raises ValueError, with the layer's name, where a parameter came, went or is computed since."""
        check_same_parameters(self._watched, type(self).__name__)

    def check_hooks(self) -> None:
        """Raises ValueError, with the layer's name, for a hook that the rule would not call."""
        check_hooks(self._watched, type(self).__name__, self.calls, self.differentiates)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Asked for when DistributedDataParallel is put around the rule. Raises ValueError."""
        raise shared_out("rule", "DDP", type(self).__name__)

    def calls(self, module: nn.Module) -> bool:
        """Whether a step calls this module of the model once, as the model would: then its forward hooks are called."""
        return False

    def stream(self, x: Any, y: Any) -> Iterator[Update]:
        """The updates of the model's parts in forward order; a part may be stepped before the next is asked for."""
        raise NotImplementedError

    @torch.no_grad()
    def assign_credit(self, x: Inputs, y: Any) -> Tensor:
        """Fills `.grad` of every trained parameter, replacing what was there, and returns the loss, a scalar.

        A parameter that is frozen at the time (`requires_grad=False`) gets None.
        The loss is the batch mean at the output, or the sum of the parts' own losses for a rule that has those. No
        graph is left behind. x, y and errors as for `stream`.
        """
        if is_inferring():
            with torch.inference_mode(False):
                return self.assign_credit(lasting(x), lasting(y))
        self._warn_if_apart()
        if torch.compiler.is_compiling():
            return self._credited(x, y)
        credited = self._compiled
        if credited is None or hooks(self._watched) != self._compiled_hooks:
            credited = self._credited
        return credited(x, y).as_subclass(StepLoss)

    def _credited(self, x: Inputs, y: Any) -> Tensor:
        """What `compile` compiles: `assign_credit` itself would call what it is compiled to where a graph breaks."""
        for parameter in self.parameters():
            parameter.grad = None  # so that the new gradients take its memory
        gradients: dict[Tensor, Tensor] = {}
        own: list[Tensor] = []
        for update in self.stream(x, y):
            for held, gradient in update.pairs:
                if held in gradients:
                    raise ValueError("model: a parameter of two layers, tied since the rule was built; untie it")
                gradients[held] = gradient
            if update.loss is not None:
                own.append(update.loss)
        for held, gradient in gradients.items():  # after the last error that a step may raise
            held.grad = gradient
        return sum(own, torch.zeros((), device=next(self.parameters()).device))

    @torch.no_grad()
    def step(self, x: Inputs, y: Any, optimizer: torch.optim.Optimizer) -> Tensor:
        """`assign_credit`, `optimizer.step()` and `constrain(optimizer)` in one, and returns the loss.

        With `torch.optim.SGD` a unit is stepped as soon as its update is known, and the update of a dense weight is
        added to it, or to its momentum, as it is multiplied: it is never held. Adam, AdamW and their kin step large
        weights unit by unit too, and no more gradients are held than one unit has. The weights are those of the three
        calls to rounding; `.grad` is None afterwards. Other optimizers, those with hooks or with gradients of other
        parameters, and SGD with `nesterov` step once, at the end. x, y and errors as for `stream`.
        """
        if is_inferring():
            with torch.inference_mode(False):  # the optimizer's state is to last, too
                return self.step(lasting(x), lasting(y), optimizer)
        self._warn_if_apart()
        stepper = None if self._compiled is not None else self._stepper(optimizer)
        if stepper is None:
            loss = self.assign_credit(x, y)
            step_together(optimizer)
        else:
            loss = self._by_unit(x, y, stepper)
        self.constrain(optimizer)
        return loss

    def _by_unit(self, x: Inputs, y: Any, stepper: PlainSGD | UnitSteps) -> Tensor:
        for parameter in self._held():
            parameter.grad = None
        own: list[Tensor] = []
        with in_factors():
            for update in self.stream(x, y):
                stepper.step(update.pairs)
                if update.loss is not None:
                    own.append(update.loss)
                del update  # and its gradients
        stepper.done()
        return sum(own, torch.zeros((), device=next(self.parameters()).device)).as_subclass(StepLoss)

    def _held(self) -> list[Tensor]:
        """Its parameters; those of two modules twice."""
        return [p for module in self.modules() for p in module._parameters.values() if p is not None]

    def _stepper(self, optimizer: torch.optim.Optimizer) -> PlainSGD | UnitSteps | None:
        """What steps a unit as soon as its update is known; None where all are stepped at the end."""
        held = self._held()
        by_unit = self.steps_by_unit and not torch.compiler.is_compiling()
        own_credit = getattr(self.assign_credit, "__func__", None) is not CreditAssignment.assign_credit
        are_tied = len(set(held)) < len(held)
        apart = own_credit or are_tied
        return stepping(optimizer, held, self._memory) if by_unit and not apart else None

    def compile(self, **options: Any) -> None:
        """From now on `assign_credit` is compiled, in place, with `torch.compile`'s options; `step` takes it so.

        It pays where layers are small and time goes into Python. A copy of the rule is not compiled. Nor is a step
        while other hooks are registered than when this was called: compiled code would not see them.
        """
        if "mode" not in options:
            options["options"] = {"guard_filter_fn": kept_guards, **(options.get("options") or {})}
        self._compiled = torch.compile(_with_own_code(self._credited), **options)
        self._compiled_hooks = hooks(self._watched)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, whose steps are its own."""
        return {**super().__getstate__(), "_compiled": None, "_memory": {}}  # type: ignore[no-untyped-call]

    def _warn_if_apart(self) -> None:
        """Warns, once, of a step that this process makes alone, though it was started as one of several."""
        apart = not (self.connects_processes or self._is_told_apart) and distributed.is_available()
        if apart and distributed.is_initialized() and distributed.get_world_size() > 1:
            self._is_told_apart = True
            warnings.warn(
                f"{type(self).__name__}: {distributed.get_world_size()} processes, each of which trains alone; put "
                "prograde.accelerated.parallel.DataParallel around the rule for one training",
                stacklevel=4,  # of whom calls assign_credit, past the wrapper of no_grad
            )

    @property
    def least_batch(self) -> int:
        """The fewest samples that a training step is sure to take: 2 where samples are mixed or normalised over."""
        return 1

    @property
    def left_out(self) -> dict[str, str]:
        """The parameters that no step changes, frozen or not, by their names in `named_parameters`, and why."""
        reasons = self.untrained()
        return {name: reasons[parameter] for name, parameter in self.named_parameters() if parameter in reasons}

    def untrained(self) -> dict[Tensor, str]:
        """The parameters that no step changes, and why."""
        return {}

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Parameters that weight decay should leave alone, since 0 has a meaning for them: none for most rules."""
        return []

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Restores the rule's constraint on the weights, if it has one. Call it after every `optimizer.step()`.

        With the optimizer the rule may need less work. The weights are the same within the constraint's tolerance.
        """

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Makes the rule's choices on held-out data, given as batches (x, y). Call it after every epoch.

        The choices are part of the state. Most rules have none.
        """

    def objective(self, x: Tensor, y: Any) -> Tensor:
        """The loss, with its graph, whose backpropagated gradient this rule stands in for: a scalar."""
        raise NotImplementedError


class Rule(CreditAssignment):
    """A learning rule around a chain of layers. `rule(x)` gives class scores, (batch, K).

    Attributes: `model`; `units`, what it trains, in forward order; `num_classes`, K; `generator`, which random draws
    come from (None: PyTorch's own).

    >>> rule = Pepita(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)))
    >>> isinstance(rule, Rule), rule.num_classes, [unit.name for unit in rule.units], rule.least_batch
    (True, 3, ['0', '2'], 1)
    """

    units: Sequence[Any]
    num_classes: int
    generator: torch.Generator | None
    shared: Share | None = None
    """Of a larger batch, for all of which draws are made and by all of which samples are mixed; see `DataParallel`."""
    wants_sequences = False
    """Whether x is (batch, steps, features)."""
    chooses_on_held_out_data = False
    """Whether `calibrate` is of use with data alone."""
    on_crossbars = False
    """Whether `Hardware` sees the products at the time: each is then one, of the batch with a matrix as it is held."""

    def stream(self, x: Tensor, y: Any) -> Iterator[UnitUpdate]:
        """The units' updates in forward order; a unit may be stepped before the next update is asked for.

        x is (batch, ...) and y (batch,), int64 labels, or what the rule's loss takes. Raises ValueError for other
        shapes or dtypes.
        """
        raise NotImplementedError

    def activities(self, x: Tensor, y: Any) -> Iterator[Tensor]:
        """What each unit gives for x in forward order, (batch, ...); nothing of units that run once a time step.

        A rule that puts labels into its input puts in y. Shapes and errors as for `stream`.
        """
        return iter(())

    def scores(self, x: Tensor) -> Tensor:
        """What `rule(x)` gives, for an x that is checked."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.checked_input(x))

    def inference(self) -> nn.Module:
        """What gives the scores: the model itself, or it and the rule's own read-out."""
        return Inference(self)

    def export(self) -> nn.Module:
        """A copy of what gives the scores, in evaluation mode and frozen: of x as the model takes it, (batch, K).

        It has no rule's checks, and `torch.export` and `torch.onnx.export` take it. Where the scores are the model's
        own it is a copy of the model.
        """
        return copy.deepcopy(self.inference()).eval().requires_grad_(False)

    @property
    def wants_images(self) -> bool:
        """Whether x is (batch, channels, height, width)."""
        return bool(self.units[0].has_maps)

    def checked_input(self, x: Tensor) -> Tensor:
        """x as the first unit takes it. Raises ValueError unless x fits the model."""
        raise NotImplementedError

    def batch_norms(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules that normalise by the batch in hand, by their names in the model."""
        for name, module in self.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                yield name.removeprefix("model."), module

    def checked(self, x: Tensor, y: Any) -> Tensor:
        """x as the first unit takes it. Raises ValueError unless x and y fit the model and each other."""
        self.check_same_parameters()
        self.check_hooks()
        x = self.checked_input(x)
        check_finite(x)
        self.check_y(x, y)
        return x

    def samples(self, x: Tensor) -> int:
        """How many there are in x, and in the other shares of the batch."""
        return len(x) if self.shared is None else self.shared.total

    def gathered(self, rows: Tensor) -> Tensor:
        """These rows, one or more for each sample, with those of the other shares of the batch."""
        return rows if self.shared is None else self.shared.gathered(rows)

    def own(self, rows: Tensor) -> Tensor:
        """Of all rows those of the batch in hand."""
        return rows if self.shared is None else rows[self.shared.rows]

    def check_y(self, x: Tensor, y: Any) -> None:
        """Raises ValueError unless y fits x, which is checked."""
        check_labels(x, y, self.num_classes, self.positions(x))

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """What labels are of, within a sample of x: () for one of each sample."""
        return ()


class LayeredRule(Rule):
    """A rule that computes by the functions of this package on the layers of a chain."""

    steps_by_unit = True

    convolution_kinds: ClassVar[tuple[type[nn.Module], ...]] = ()
    """What convolutions it computes in closed form."""
    begins_with_x: ClassVar[bool] = False
    """Whether it changes x itself, so that all that is run belongs to a unit."""
    ends_in_scores: ClassVar[bool] = False
    """Whether the last unit is trained by the scores."""
    runs_twice: ClassVar[bool] = False
    """Whether a step evaluates units at other inputs than the clean pass's."""
    needs: ClassVar[str] = ""
    """What it needs of every layer, where it takes closed forms alone; else it takes any module."""
    takes_dropout: ClassVar[bool] = True
    """Whether Dropout may follow a layer."""
    label_planes = 0
    """How many channels of the first convolution are not the images'."""
    units: Sequence[ChainUnit]

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Units | None = None,
        example: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.chain = read(
            model, name, self.convolution_kinds, self.takes_dropout, self.needs, units, example,
            self.begins_with_x, self.ends_in_scores,
        )  # fmt: skip
        self.watch(model)
        self.units = self.chain.units
        self.generator = generator
        self.example_of = None if example is None else (example.shape[1:], example.dtype)
        self._shapes: dict[tuple[torch.Size, torch.dtype], list[torch.Size]] = {}  # of activities, by those of samples
        self._run = {part for module in self.chain.run for part in module.modules()}
        self._is_tried = False
        self._unchecked = parts(model, units) if units is not None and example is None else []
        last = self.units[-1]
        self.num_classes = last.width
        if last.inside and self.example_of is not None:
            self.num_classes = self.activity_shapes(*self.example_of)[-1][-1]
        elif last.inside and self.ends_in_scores and not last.gives_scores:
            raise ValueError(f"example: None, expected a batch, whose scores by unit '{last.name}' are counted")
        self.check_hooks()

    def untrained(self) -> dict[Tensor, str]:
        trained = {parameter for unit in self.units for parameter in unit.parameters}
        return {parameter: IN_NO_UNIT for parameter in self.model.parameters() if parameter not in trained}

    def modules_run(self) -> Iterator[nn.Module]:
        """Every module of the units, those that stand for functions of the model's among them."""
        for unit in self.units:
            for part in unit.parts:
                yield from part.modules()

    def calls(self, module: nn.Module) -> bool:
        """Whether it is a module without a closed form, which is run as it is."""
        return module in self._run

    def layers(self, masks: Iterable[Tensor | None] | None = None) -> tuple[Layer, ...]:
        """The units as the functions of this package take them; `masks` has a dropout mask or None for each.

        Tensors are the parameters themselves. What the first layer takes is `begin(x)`.
        """
        return tuple(self.each_layer(masks))

    def each_layer(self, masks: Iterable[Tensor | None] | None) -> Iterator[Layer]:
        """`layers` one at a time, each with its mask taken when its turn comes."""
        for unit, mask in zip(self.units, masks or [None] * len(self.units), strict=True):
            yield unit.layer(mask)

    @torch.no_grad()
    def activities(self, x: Tensor, y: Any) -> Iterator[Tensor]:
        yield from self._activities(self.checked(x, y))

    def begin(self, x: Tensor) -> Tensor:
        """x as the first layer takes it: what comes before it has been run."""
        return activity(afresh(self.chain.stem), x)

    def activity_shapes(self, sample: torch.Size, dtype: torch.dtype | None = None) -> list[torch.Size]:
        """The shape of each unit's activities for samples of that shape. Raises ValueError where they do not fit."""
        if torch.compiler.is_compiling() and not self._run:  # what is remembered would be guarded
            return self.chain.activity_shapes(sample)
        key = (sample, dtype or self.units[0].weights[0].dtype)
        if key not in self._shapes:
            if not self._run:
                self._shapes[key] = self.chain.activity_shapes(sample)
            else:
                x = torch.zeros(2, *sample, dtype=key[1], device=self.units[0].weights[0].device)
                with torch.no_grad(), in_full(), untouched(self.model, x), evaluating(self.model):
                    self._shapes[key] = [h.shape[1:] for h in self._activities(x)]
        return self._shapes[key]

    def _activities(self, x: Tensor) -> Iterator[Tensor]:
        """Each unit's, by running it. Raises ValueError, with the unit's name, where samples do not fit."""
        where, shape = f"what comes before unit '{self.units[0].name}'", tuple(x.shape[1:])
        try:
            z = self.begin(x)
            for unit in self.units:
                where, layer = f"unit '{unit.name}'", unit.layer()
                a = layer.value(z)
                if not isinstance(a, Tensor) or len(a) != len(x):
                    given = tuple(a.shape) if isinstance(a, Tensor) else f"a {type(a).__name__}"
                    raise ValueError(f"gives {given}, expected a tensor (batch, ...)")
                h = activity(layer.steps, a)
                if h.ndim < 2:
                    raise ValueError(f"gives {tuple(h.shape)}, expected scores (batch, K), of one without squeeze")
                yield h
                where = f"what follows unit '{unit.name}'"
                z = activity(layer.outlet, h)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"x: samples of shape {shape} do not pass {where} ({error})") from error

    def masks(self, x: Tensor) -> tuple[Tensor | None, ...] | None:
        """One draw of the units' dropout masks for the batch x, or None where nothing is dropped."""
        return tuple(self.draw_masks(x, self.generator)) if any(unit.dropout_rate for unit in self.units) else None

    def draw_masks(self, x: Tensor, generator: torch.Generator | None) -> Iterator[Tensor | None]:
        """The units' dropout masks for the batch x, each drawn when its turn comes; None where nothing is dropped."""
        for unit, shape in zip(self.units, self.activity_shapes(x.shape[1:], x.dtype), strict=True):
            rate = unit.dropout_rate
            if not rate:
                yield None
                continue
            dtype = unit.weights[0].dtype
            keep = max(1 - rate, torch.finfo(dtype).eps)  # a rate of 1 drops all
            mask = channels_last(torch.empty(self.samples(x), *shape, device=x.device, dtype=dtype))
            yield self.own(mask.bernoulli_(1 - rate, generator=generator).div_(keep))

    def replay(self, device: torch.device) -> torch.Generator:
        """A copy of the rule's generator, which repeats the draws that come next."""
        generator = torch.Generator(device)
        generator.set_state((self.generator or generators(device)[-1]).get_state())
        return generator

    @property
    def least_batch(self) -> int:
        """2 while batch normalisation is in training mode."""
        return 2 if any(self.batch_norms()) else 1

    def checked(self, x: Tensor, y: Any) -> Tensor:
        x = super().checked(x, y)
        if self.samples(x) == 1 < self.least_batch:
            for name, norm in self.batch_norms():
                raise one_sample(name, norm)
        if self._unchecked:
            check_same(self.model, self._unchecked, x)
            self._unchecked = []
        if not self._is_tried and self._run and self.runs_twice:
            self._check_repeated(x)
            self._is_tried = True
        return x

    def _check_repeated(self, x: Tensor) -> None:
        """Raises ValueError, with its name, for a unit that does not repeat itself: a second pass is through others."""
        with torch.no_grad(), in_full(), untouched(self.model, x):
            z = self.begin(x)
            for unit in self.units:
                layer = unit.layer()
                a = layer.value(z)
                if isinstance(layer, ModuleLayer) and z.is_floating_point():
                    apart = (layer.again(z) - a).abs().max()
                    if not apart <= torch.finfo(a.dtype).eps ** 0.5 * a.abs().max():
                        raise ValueError(
                            f"unit '{unit.name}': gives results {apart:.3g} apart for the same input, twice in a step; "
                            "expected a function of its input, of PyTorch's generators and of buffers, without hooks "
                            "that change it"
                        )
                z = activity(layer.outlet, activity(layer.steps, a))

    def checked_input(self, x: Tensor) -> Tensor:
        """x as the model takes it; without an example, of (batch, n_0) any shape. Raises ValueError unless it fits."""
        self.check_unchanged()
        if not isinstance(x, Tensor):
            raise ValueError(f"x: a {type(x).__name__}, expected a torch.Tensor")
        check_batch(x)
        first = self.units[0]
        weight = first.weights[0]
        flat = isinstance(first.module, nn.Linear) and not first.inside and set(self.chain.stem) <= {Flatten()}
        shown = None if self.example_of is None else self.example_of[0]
        if flat and (self.chain.stem or not has_positions(x, weight.shape[1], shown)):
            return flat_input(x, weight)
        if self._run or not self.wants_images:
            if x.is_floating_point() or (first.is_closed and not self.chain.stem_runs):
                check_like(x, weight)
            self.activity_shapes(x.shape[1:], x.dtype)
            return x if self._run else channels_last(x)  # one's own modules may read it as it is
        channels = self.chain.image_channels - self.label_planes
        if x.dim() != 4 or x.shape[1] != channels:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, {channels}, height, width)")
        check_like(x, weight)
        self.activity_shapes(torch.Size((self.chain.image_channels, *x.shape[2:])))
        return channels_last(x)


class OutputLoss(Rule):
    """A rule with a loss at the scores.

    `loss` is "cross_entropy" (with `label_smoothing`), "squared_error" (half the sum of squares to the one-hot label,
    or to numbers), "binary_cross_entropy" (summed over several labels) or "huber"; one of PyTorch's modules, such as
    nn.CrossEntropyLoss(weight, ignore_index=0) or nn.MSELoss(), whose mean it is; or a function of scores and targets
    to their mean loss, which is used by its gradient at the scores.

    y are int64 labels, (batch,), or targets in the dtype of x, (batch, K): probabilities for a cross-entropy, several
    labels of 0 and 1, or numbers; (batch,) too where K is 1. A pair of these and a weight of each label, (batch,),
    weighs the samples: the loss is their weighted mean. A second pass (Foton, Ftp, Pepita) starts from the weighted
    error, so that through nonlinear layers a sample of weight 2 is not two samples.
    """

    loss: Loss

    def set_loss(self, loss: LossLike, label_smoothing: float = 0.0) -> None:
        """Raises ValueError for a loss that the rule can't take, or with class weights that do not fit."""
        self.loss = read_loss(loss, label_smoothing)
        if self.num_classes < self.loss.least_outputs:
            name = self.units[-1].name
            raise ValueError(f"layer '{name}': gives {self.num_classes} class score, expected 2 or more")
        self.loss.for_scores(self.num_classes, next(self.model.parameters()))

    def scores(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(default_strides(self.model, x))
        return found

    def inference(self) -> nn.Module:
        return self.model

    def check_y(self, x: Tensor, y: Targets) -> None:
        self.loss.check(x, y, self.num_classes, self.positions(x))

    def output_loss(self, scores: Tensor, y: Targets) -> Tensor:
        """The mean over the labels, a scalar."""
        return self.loss.value(scores, y)

    def output_gradient(self, scores: Tensor, y: Targets) -> Tensor:
        """e, the loss's gradient of each label: (batch, K)."""
        return self.loss.gradient(scores, y)

    def objective(self, x: Tensor, y: Targets) -> Tensor:
        return self.output_loss(self(x), y)


class OutputErrorRule(OutputLoss, LayeredRule):
    """A rule that starts from the error of the last layer's scores: that layer has no activation and gives K."""

    ends_in_scores = True
    starts_from_tokens = False
    """Whether the first unit takes integers, onto which nothing can be projected."""
    takes_positions: ClassVar[Literal["never", "with an example", "always"]] = "always"
    """Whether positions of a sample may have scores, and a label, each."""

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Units | None = None,
        example: Tensor | None = None,
        loss: LossLike = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, units=units, example=example, generator=generator)
        last = self.units[-1]
        if not last.is_linear or last.dropout is not None or not self.num_classes:
            raise without_scores(model)
        self.set_loss(loss, label_smoothing)
        self.image_size: tuple[int, int] | None = None

    def sample_shapes(self, image_size: tuple[int, int] | None) -> list[tuple[int, ...]]:
        """A sample's shape as the first unit takes it, then in the activities of each; images have to be of that size.

        Raises ValueError for a model with convolutions and no size that fits, and for a size without convolutions.
        """
        if self.example_of is not None:
            if image_size is not None:
                raise ValueError(f"image_size: {image_size}, expected None with an example, which has a size")
            sample, dtype = self.example_of
            with torch.no_grad(), evaluating(self.model):
                z = self.begin(torch.zeros(1, *sample, dtype=dtype, device=self.units[0].weights[0].device))
            self.starts_from_tokens = not z.is_floating_point()
            return [tuple(shape) for shape in (z.shape[1:], *self.activity_shapes(sample, dtype))]
        if not self._run and not self.wants_images:
            if image_size is not None:
                raise ValueError(f"image_size: {image_size}, but the model has no convolutions")
            sample = self.units[0].weights[0].shape[1:]
        elif isinstance(self.units[0].module, nn.Linear) and not self.chain.stem and image_size is None:
            sample = torch.Size((self.units[0].module.in_features,))
        elif image_size is None and self._run:
            raise ValueError(
                "example: None, expected a batch as the model takes it, (batch, ...), from which the sizes of what its "
                "units give are read"
            )
        else:
            is_size = isinstance(image_size, Sequence) and len(image_size) == 2
            if image_size is None or not is_size or not all(type(n) is int and n > 0 for n in image_size):
                raise ValueError(
                    f"image_size: {image_size!r}, expected (height, width) of the images, for a model with convolutions"
                )
            height, width = self.image_size = image_size
            sample = torch.Size((self.chain.image_channels, height, width))
        return [tuple(shape) for shape in (sample, *self.activity_shapes(sample))]

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """Those that have scores, and a label, of their own; () where a sample has."""
        return tuple(self.activity_shapes(x.shape[1:], x.dtype)[-1][:-1])

    @property
    def labels_positions(self) -> bool:
        """Whether every position has scores of its own, (batch, positions, K), and a label."""
        return self.example_of is not None and len(self.activity_shapes(*self.example_of)[-1]) == 2

    def check_positions(self, shape: Sequence[int], channels_first: bool = False) -> None:
        """Raises ValueError for a sample's array of other positions than those that have a label each."""
        expected = self.activity_shapes(*self.example_of)[-1][:-1] if self.example_of else ()
        if channels_first or tuple(shape[:-1]) != tuple(expected):
            raise ValueError(
                f"model: labels of positions {tuple(expected)} cannot be projected onto {tuple(shape)}, expected "
                "(positions, features); where a unit gives maps, put what makes positions of them into it"
            )

    def _by_channel(self, by_channel: bool | None, default: bool) -> bool:
        """Whether positions share the rows of a projection. Raises ValueError where they must, by their labels."""
        if by_channel is None:
            return default or self.labels_positions
        if self.labels_positions and not by_channel:
            raise ValueError("by_channel: False, expected True, since every position has a label of its own")
        return by_channel

    def rows_and_scale(
        self, shape: tuple[int, ...], channels_first: bool, scale: float, by_channel: bool
    ) -> tuple[int, float]:
        """Rows of a matrix that projects labels onto activities of that shape, and the scale it is drawn at.

        The update of a weight is a sum over positions, unless each has a label of its own.
        """
        channels = shape[0] if channels_first else shape[-1]
        positions = prod(shape) // channels
        if self.labels_positions:
            self.check_positions(shape, channels_first)
            return channels, scale
        return (channels, scale / positions) if by_channel else (channels * positions, scale / positions**0.5)

    def checked(self, x: Tensor, y: Targets) -> Tensor:
        x = super().checked(x, y)
        if self.takes_positions != "always" and self.positions(x):
            with_an_example = self.takes_positions == "with an example"
            if not (with_an_example and self.labels_positions):
                instead = "give the rule an example" if with_an_example else "make them samples, x.flatten(0, 1)"
                raise ValueError(f"x: shape {tuple(x.shape)}, whose positions have a label each; {instead}")
        if self.image_size is not None and x.shape[2:] != torch.Size(self.image_size):
            came, expected = (" x ".join(map(str, size)) for size in (x.shape[2:], self.image_size))
            raise ValueError(f"x: images of {came}, expected {expected}, the image_size")
        return x

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Targets
    ) -> Iterator[tuple[Tensor | None, Tensor]]:
        """delta_l and z_l of every layer, first layer first, from the clean pass and its error.

        None for delta_l stands for a layer that the rule does not train.
        """
        raise NotImplementedError

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        layers = self.layers(self.masks(x))
        clean = forward(layers, self.begin(x))
        error = self.output_gradient(clean.scores, y)
        count, last = self.loss.count(clean.scores, y), self.units[-1]
        for unit, layer, (delta, z) in zip(self.units, layers, self.factors(layers, clean, error, y), strict=True):
            update = None if delta is None else per_label(factored(layer).update(z, delta), len(x), count)
            gradients = None if update is None else unit.gradients(update)
            yield UnitUpdate(unit, gradients, self.output_loss(clean.scores, y) if unit is last else None)
