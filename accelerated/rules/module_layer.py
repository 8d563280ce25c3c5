"""Any modules as a layer or as a step: what algorithms ask of a part of a network, by a graph of this part alone.

The first evaluation is the clean pass's. Any other is lent that pass's batch statistics and random draws, writes into
no buffer and calls no forward hook, so that both passes are through one function, and are one step to whoever looks.

Differences are of two values in float32 at least: modules of half precision are lent their parameters in it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._arrays import draws_undone, generators, is_captured, widened
from .._autocast import in_full, is_lowered, lowered, raised
from ..layers import Step, Update
from .convolving import applied, convolving
from .cutting import channels_first, needs_default_order


class Evaluator:
    """Modules that run one after another, the first time as they do by themselves, afterwards as they did then."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = modules
        self._parts = [part for module in modules for part in module.modules()]
        # One's own modules may write over their input, which others hold.
        self._writes = any(getattr(part, "inplace", False) or _is_own(part) for part in self._parts)
        self._needs_default_order = needs_default_order(modules)
        self._buffers: list[tuple[nn.Module, dict[str, Tensor | None]]] = []  # before the clean pass
        self._normalised: dict[_BatchNorm, list[Tensor]] = {}  # what was normalised by its own statistics
        self._drawn: list[Tensor] | None = None  # states of the generators before the draws
        self._is_clean = True
        self._dtype: torch.dtype | None = None  # of the clean pass's input

    def __call__(self, x: Tensor) -> Tensor:
        x = x.clone() if self._writes else x
        x = channels_first(x) if self._needs_default_order else x
        if self._is_clean:
            self._is_clean, self._dtype = False, x.dtype
            return self._run_clean(x)
        if is_captured(x.device) and any(module in _DRAWING and module.training for module in self.modules):
            names = ", ".join(type(module).__name__ for module in self.modules)
            raise ValueError(f"{names}: draws, and runs twice in a step; a CUDA graph can't draw the same again")
        with ExitStack() as stack:
            stack.enter_context(unhooked(self._parts))
            for part, buffers in self._buffers:
                stack.enter_context(_lent(part, _buffers=_copied(buffers)))
            for part in self._parts if x.dtype != self._dtype else ():
                stack.enter_context(_lent(part, **_in_full_precision(part)))
            for norm, seen in self._normalised.items():
                stack.enter_context(_lent_statistics(norm, iter(seen)))
            if self._drawn is not None:
                stack.enter_context(draws_undone(x.device))
                for generator, state in zip(generators(x.device), self._drawn, strict=True):
                    generator.set_state(state)
            return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        given = x
        with lowered():
            for module in self.modules:
                given = applied(module, given)
        return raised(given, x, self._parts)

    def _run_clean(self, x: Tensor) -> Tensor:
        of_batch = [part for part in self._parts if isinstance(part, _BatchNorm)]
        norms = [part for part in of_batch if part.training or part.running_mean is None]
        self._normalised = {norm: [] for norm in norms}
        written = [part for part in self._parts if part.training and part._buffers and part not in norms]
        self._buffers = [(part, _copied(part._buffers)) for part in written]
        before = _states(x.device)
        hooks = [norm.register_forward_pre_hook(self._note) for norm in norms]
        try:
            y = self._run(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not all(map(torch.equal, before, _states(x.device))):
            self._drawn = before
            _DRAWING.update(self.modules)
        return y

    def _note(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        self._normalised[norm].append(inputs[0].detach())


def _states(device: torch.device) -> list[Tensor]:
    """Of the generators that a module may draw from; none while a CUDA graph is captured, which has its own."""
    return [] if is_captured(device) else [generator.get_state() for generator in generators(device)]


_DRAWING: WeakSet[nn.Module] = WeakSet()
"""Modules that were seen to draw, which a captured step does not show."""


@contextmanager
def unhooked(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, no forward hook of these modules is called."""
    hooked = [part for part in parts if part._forward_hooks or part._forward_pre_hooks]
    own = [(part, part._forward_hooks, part._forward_pre_hooks) for part in hooked]
    for part in hooked:
        part._forward_hooks, part._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, after, before in own:
            part._forward_hooks, part._forward_pre_hooks = after, before


def _is_own(part: nn.Module) -> bool:
    """Whether PyTorch does not have it."""
    return not type(part).__module__.startswith("torch.nn.")


def _copied(buffers: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()}


@contextmanager
def _lent(part: nn.Module, **attributes: Any) -> Iterator[None]:
    """These in the place of the module's own."""
    own = {name: part.__dict__[name] for name in attributes}
    part.__dict__.update(attributes)
    try:
        yield
    finally:
        part.__dict__.update(own)


def _in_full_precision(part: nn.Module) -> dict[str, Any]:
    """A module's parameters and buffers in float32 at least, with their graph; of nn.RNN and its kin, its list too."""

    def wider(held: Tensor | None) -> Tensor | None:
        return held if held is None or not held.is_floating_point() else widened(held)

    kept = ("_parameters", "_buffers")
    found: dict[str, Any] = {kind: {name: wider(p) for name, p in part.__dict__[kind].items()} for kind in kept}
    if isinstance(part, nn.RNNBase):
        found["_flat_weights"] = [wider(p) for p in part._flat_weights]
    return found


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """The variance and the mean of each channel; a module that has seen more than x has `statistics` of its own."""
    return torch.var_mean(widened(x), [0, *range(2, x.dim())], correction=0)


@contextmanager
def _lent_statistics(norm: _BatchNorm, seen: Iterator[Tensor]) -> Iterator[None]:
    """Each call normalises by the mean and the variance of what was `seen` in its turn, in place of its own batch."""

    def lend(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = next(seen)
        norm.running_var, norm.running_mean = getattr(norm, "statistics", _statistics)(x)
        norm.training = False

    lent = _in_full_precision(norm)  # as the statistics are
    lent["_buffers"] |= {"running_mean": None, "running_var": None}
    hook = norm.register_forward_pre_hook(lend)
    try:
        with _lent(norm, training=norm.training, **lent):
            yield
    finally:
        hook.remove()


class _Run(NamedTuple):
    """An input, the leaf of the graph in its place, and what came out, with the graph."""

    z: Tensor
    leaf: Tensor
    a: Tensor


class ModuleLayer:
    """A `Layer` of modules that run one after another, with derivatives by autograd, for one step.

    The graph of the clean pass is held until the layer's update. Its input and update are told by that input's
    identity; at another z the modules run once more. `parameters` are those of the update, in this order; `name` is the
    unit's, for errors. `difference` subtracts two values, in float32 at least: it cancels where u is small against z.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        parameters: Sequence[Tensor],
        steps: tuple[Step, ...] = (),
        outlet: tuple[Step, ...] = (),
        name: str = "",
    ) -> None:
        self.parameters, self.steps, self.outlet, self.name = parameters, steps, outlet, name
        self._evaluate = Evaluator(modules)
        self._held: list[_Run] = []

    def _run(self, z: Tensor) -> _Run:
        for run in self._held:
            if run.z is z:
                return run
        with torch.inference_mode(False), torch.enable_grad(), convolving():
            leaf = (z.clone() if z.is_inference() else z.detach()).requires_grad_(z.is_floating_point())
            run = _Run(z, leaf, self._evaluate(leaf))
        self._held.append(run)
        return run

    def value(self, z: Tensor) -> Tensor:
        """What the modules give for z: in a step, which has no graph, as the start of one of this layer alone."""
        return self._evaluate(z) if torch.is_grad_enabled() else self._run(z).a.detach()

    def difference(self, z: Tensor, u: Tensor) -> Tensor:
        """The value at z less that at z - u."""
        check_differentiable(z)
        if len(u) != len(z):  # rows of a projection
            raise ValueError(f"u: {len(u)} rows, expected {len(z)}, those of z, through a module that is not linear")
        wide = widened(z)
        here = self._evaluate if is_lowered() or wide is not z else self.value
        with torch.no_grad(), in_full():
            changed = here(wide) - self._evaluate(wide - widened(u))
        return changed.to(z.dtype)

    def again(self, z: Tensor) -> Tensor:
        """The value once more, as differences are taken of it."""
        with torch.no_grad(), in_full():
            return self._evaluate(widened(z)).to(z.dtype)

    def adjoint(self, z: Tensor, d: Tensor) -> Tensor:
        """The derivative's transpose times d, a sample shaped as z's."""
        check_differentiable(z)
        run = self._run(z)
        (found,) = torch.autograd.grad(run.a, run.leaf, d, retain_graph=True)
        return found

    def update(self, z: Tensor, delta: Tensor) -> Update:
        """1/B times the gradient of <delta, value> by each parameter; 0 by those that are frozen or unused.

        The graph at z is freed.
        """
        learned = [p for p in self.parameters if p.requires_grad]
        found: Sequence[Tensor | None] = ()
        if learned:
            a = self._run(z).a
            if a.requires_grad:
                found = torch.autograd.grad(a, learned, delta / len(delta), allow_unused=True)
            if all(gradient is None for gradient in found):
                raise ValueError(
                    f"unit '{self.name}': its parameters do not reach what it gives, as with checkpoint(use_reentrant="
                    "True), .data or no_grad inside; expected a forward pass that autograd differentiates, or frozen "
                    "parameters"
                )
        self._held = [run for run in self._held if run.z is not z]
        gradients = dict(zip(learned, found, strict=True))
        return tuple(_dense(gradients.get(p), p) for p in self.parameters)


def _dense(gradient: Tensor | None, p: Tensor) -> Tensor:
    if gradient is None:
        return p.new_zeros(()).expand_as(p)
    return strided(gradient)


def strided(gradient: Tensor) -> Tensor:
    """As it is, or dense, of nn.Embedding(sparse=True): rules and optimizers then take it as any other."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def check_differentiable(z: Tensor) -> None:
    """Raises ValueError for integers, tokens for one."""
    if not z.is_floating_point():
        raise ValueError(f"z: {z.dtype}, expected floating point: integers have neither difference nor derivative")


@dataclass(frozen=True, eq=False)
class ModuleStep:
    """A `Step` that is a module without parameters, its derivatives by autograd, for one step of training."""

    module: nn.Module
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)
    _evaluators: list[Evaluator] = field(default_factory=list, init=False, repr=False)

    def _evaluate(self, a: Tensor) -> Tensor:
        if not self._evaluators:
            self._evaluators.append(Evaluator((self.module,)))
        return self._evaluators[0](a)

    def value(self, a: Tensor) -> Tensor:
        """What the module gives for a: found again where a was the last."""
        if not self._seen or self._seen[0][0] is not a:
            self._seen[:] = [(a, self._evaluate(a))]
        return self._seen[0][1]

    def jvp(self, a: Tensor, u: Tensor) -> Tensor:
        """The derivative along u."""
        d = torch.zeros_like(self.value(a), requires_grad=True)
        with torch.enable_grad():  # vjp is linear in d: its derivative by d, transposed, is jvp
            leaf = a.detach().requires_grad_()
            (pulled,) = torch.autograd.grad(self._evaluate(leaf), leaf, d, create_graph=True)
        (along,) = torch.autograd.grad(pulled, d, u)
        return along

    def vjp(self, a: Tensor, d: Tensor) -> Tensor:
        """The derivative's transpose times d."""
        self.value(a)
        with torch.enable_grad():
            leaf = a.detach().requires_grad_()
            value = self._evaluate(leaf)
        (found,) = torch.autograd.grad(value, leaf, d)
        return found

    def difference(self, a: Tensor, u: Tensor) -> Tensor:
        """The value at a less that at a - u."""
        wide = widened(a)
        here = self._evaluate if is_lowered() or wide is not a else self.value
        with in_full():
            return (here(wide) - self._evaluate(wide - widened(u))).to(a.dtype)
