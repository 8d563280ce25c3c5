"""Optimizer steps on each unit as its update becomes known, and products that go into a weight unseen."""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as all_optimizers

from .._autocast import is_lowered, product
from ..layers import Dense, Layer

GLOBAL_HOOKS = all_optimizers._global_optimizer_pre_hooks, all_optimizers._global_optimizer_post_hooks
SGD_STEP = inspect.unwrap(SGD.step)
"""PyTorch's own, whatever was put in its place or around it since."""
UNKNOWN = "nesterov", "maximize", "differentiable"
"""Settings of SGD with which its step is left to it."""


class Factors(NamedTuple):
    """What is to be subtracted from a weight, as the factors of its product: (n_out, rows) and (rows, n_in)."""

    left: Tensor
    right: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    def __rmul__(self, number: float | Tensor) -> "Factors":  # type: ignore[override]
        return Factors(number * self.left, self.right)


class _Mode(local):
    on = False


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


class PlainSGD:
    """torch.optim.SGD's step, parameter by parameter, with the optimizer's own settings and momentum buffers."""

    def __init__(self, optimizer: SGD) -> None:
        self.optimizer = optimizer
        self.settings = {p: group for group in optimizer.param_groups for p in group["params"]}

    @classmethod
    def of(cls, optimizer: Optimizer) -> "PlainSGD | None":
        """None for one whose step may be another: no SGD, a setting of UNKNOWN, a hook or a step of one's own."""
        if type(optimizer) is not SGD or inspect.unwrap(SGD.step) is not SGD_STEP:
            return None
        if "step" in vars(optimizer) and not _is_counted(optimizer):
            return None
        if any((optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks, *GLOBAL_HOOKS)):
            return None
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], int | float) or any(group[name] for name in UNKNOWN):
                return None
        return cls(optimizer)

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
