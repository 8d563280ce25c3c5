"""Optimizer steps on each unit as its update becomes known, and products that go into a weight unseen."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import local
from typing import Any, NamedTuple, TypeAlias, final

import torch
import torch.optim.optimizer as all_optimizers
from torch import Tensor
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from .._autocast import is_lowered, product
from ..layers import Dense, Layer

GLOBAL_HOOKS = all_optimizers._global_optimizer_pre_hooks, all_optimizers._global_optimizer_post_hooks
STEPS = {
    kind: inspect.unwrap(kind.step) for kind in (SGD, Adam, AdamW, Adadelta, Adagrad, Adamax, NAdam, RAdam, RMSprop)
}
"""Of PyTorch's optimizers that step each parameter by itself, their steps, whatever was put in their place since."""
UNKNOWN = "nesterov", "maximize", "differentiable"
"""Settings of SGD with which its step is left to it."""
LARGE = 2**18
"""Of how many numbers the largest parameter has to be for an optimizer to be called once a unit: less is sooner done
than said."""


@final
class Factors(NamedTuple):
    """What is to be subtracted from a weight, as the factors of its product: (n_out, rows) and (rows, n_in)."""

    left: Tensor
    right: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    def product(self, out: Tensor | None = None) -> Tensor:
        """The update itself: (n_out, n_in)."""
        return torch.mm(self.left, self.right, out=out)

    def __rmul__(self, number: float | Tensor) -> "Factors":  # type: ignore[override]
        return Factors(number * self.left, self.right)


class _Mode(local):
    def __init__(self) -> None:
        self.on = False


_MODE = _Mode()


@contextmanager
def in_factors() -> Iterator[None]:
    """Inside, in this thread, `weight_update` multiplies nothing."""
    before, _MODE.on = _MODE.on, True
    try:
        yield
    finally:
        _MODE.on = before


def wants_factors() -> bool:
    """Whether whoever takes the updates multiplies by itself, in the parameters' own precision."""
    return _MODE.on and not is_lowered()


class FactoredDense(Dense):
    """A dense layer whose update of the weight is left as its factors."""

    def update(self, z: Tensor, delta: Tensor) -> Any:
        """Factors of 1/B delta z^T, and 1/B delta where there is a bias: sums over samples and positions."""
        scaled = (delta / len(delta)).flatten(0, -2)
        weight = Factors(scaled.T, z.flatten(0, -2))
        return (weight,) if self.bias is None else (weight, scaled.sum(dim=0))


def factored(layer: Layer) -> Layer:
    """The layer with its update left as factors, inside `in_factors` and where it is dense."""
    return FactoredDense(*layer) if wants_factors() and isinstance(layer, Dense) else layer


def weight_update(left: Tensor, right: Tensor) -> Any:
    """left @ right, or its factors inside `in_factors`."""
    return Factors(left, right) if wants_factors() else product(torch.matmul, left, right)


def stepping(optimizer: Optimizer, held: Sequence[Tensor], memory: "Memory") -> "PlainSGD | UnitSteps | None":
    """How the optimizer steps these parameters a unit at a time; None where it has to step them together.

    So it is with an optimizer of another kind, a setting of UNKNOWN, a hook or a step of one's own, and where it has
    parameters besides whose gradients wait for it.
    """
    if not _is_own(optimizer) or any((optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)):
        return None
    if any(GLOBAL_HOOKS):
        return None
    others = set(held)
    if any(p.grad is not None for group in optimizer.param_groups for p in group["params"] if p not in others):
        return None
    if not isinstance(optimizer, SGD):
        return UnitSteps(optimizer, memory) if max(p.numel() for p in held) >= LARGE else None
    for group in optimizer.param_groups:
        if not isinstance(group["lr"], int | float) or any(group[name] for name in UNKNOWN):
            return None
    return PlainSGD(optimizer)


def step_together(optimizer: Optimizer) -> None:
    """`optimizer.step()`; SGD's to rounding, without what PyTorch asks in it at every step."""
    if not torch.compiler.is_compiling():
        held = [p for group in optimizer.param_groups for p in group["params"]]
        stepper = stepping(optimizer, held, {})
        if isinstance(stepper, PlainSGD):
            stepper.step((p, p.grad) for p in held if p.grad is not None)
            stepper.done()
            return
    optimizer.step()


def _is_own(optimizer: Optimizer) -> bool:
    """Whether its step is PyTorch's own, and one that takes each parameter by itself."""
    kind = type(optimizer)
    if kind not in STEPS or inspect.unwrap(kind.step) is not STEPS[kind]:
        return False
    return "step" not in vars(optimizer) or _is_counted(optimizer)


Memory: TypeAlias = dict[tuple[torch.dtype, torch.device], Tensor]
"""What the updates of one unit's dense weights are multiplied into, again and again."""


class UnitSteps:
    """The optimizer's own step, unit by unit: no more gradients are held than one unit has."""

    def __init__(self, optimizer: Optimizer, memory: Memory) -> None:
        self.optimizer, self.memory = optimizer, memory

    def step(self, pairs: Iterable[tuple[Tensor, Tensor | Factors]]) -> None:
        """Each parameter as the optimizer steps it."""
        pairs, free = list(pairs), None
        for parameter, update in pairs:
            if isinstance(update, Factors):
                free = self._of_unit(pairs, parameter) if free is None else free
                place, free = free[: parameter.numel()].view(parameter.shape), free[parameter.numel() :]
                update = torch.mm(*update, out=place)
            parameter.grad = update
        self.optimizer.step()
        for parameter, _ in pairs:
            parameter.grad = None

    def _of_unit(self, pairs: Iterable[tuple[Tensor, Tensor | Factors]], like: Tensor) -> Tensor:
        """Memory for the updates of the unit's dense weights, all of one dtype and device."""
        size = sum(p.numel() for p, update in pairs if isinstance(update, Factors))
        held = self.memory.get((like.dtype, like.device))
        if held is None or len(held) < size:
            held = self.memory[like.dtype, like.device] = like.new_empty(size)
        return held

    def done(self) -> None:
        """Nothing is left to say."""


class PlainSGD:
    """torch.optim.SGD's step, parameter by parameter, with the optimizer's own settings and momentum buffers."""

    def __init__(self, optimizer: SGD) -> None:
        self.optimizer = optimizer
        self.settings = {p: group for group in optimizer.param_groups for p in group["params"]}

    def step(self, pairs: Iterable[tuple[Tensor, Tensor | Factors]]) -> None:
        """Each parameter minus what its update, the optimizer's rate and its momentum say."""
        for parameter, update in pairs:
            settings = self.settings.get(parameter)
            if settings is None:  # as a parameter that the optimizer was not given
                continue
            rate, momentum, decay = settings["lr"], settings["momentum"], settings["weight_decay"]
            if not momentum:
                _add(parameter, update, 1 - rate * decay, -rate)
                continue
            state = self.optimizer.state[parameter]
            buffer, share = state.get("momentum_buffer"), 1 - settings["dampening"]
            if buffer is None:
                buffer, momentum, share = torch.zeros_like(parameter), 0.0, 1.0
                state["momentum_buffer"] = buffer
            _add(buffer, update, momentum, share)
            if decay:
                buffer.add_(parameter, alpha=share * decay)
            parameter.add_(buffer, alpha=-rate)

    def done(self) -> None:
        """Says that the optimizer has made a step, which schedulers ask for."""
        if _is_counted(self.optimizer):
            self.optimizer._opt_called = True  # type: ignore[attr-defined]


def _is_counted(optimizer: Optimizer) -> bool:
    """Whether a scheduler has put itself around the optimizer's step, to see that it is called."""
    return hasattr(optimizer.step, "_wrapped_by_lr_sched")


def _add(array: Tensor, update: Tensor | Factors, beta: float, alpha: float) -> None:
    """The array becomes beta times itself and alpha times the update."""
    if isinstance(update, Factors):
        array.addmm_(*update, beta=beta, alpha=alpha)
    elif beta == 1:
        array.add_(update, alpha=alpha)
    else:
        array.mul_(beta).add_(update, alpha=alpha)
