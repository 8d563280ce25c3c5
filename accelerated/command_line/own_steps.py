"""Training steps of the user's own code, or of somebody else's, timed beside the rules: `--beside module:function`."""

import inspect
import re
import traceback
from collections.abc import Callable
from functools import partial
from inspect import Parameter
from typing import Any, NamedTuple, SupportsFloat

import torch
from torch import Tensor

from ..training import UserError
from ..training.errors import unknown
from ..training.networks import Named, code, imported
from .contenders import BESIDE, OPTIMIZERS, Contender, Setting, placed, rate_of

EXPECTED = "expected package.module:function"

FACTS: dict[str, Callable[[Setting], Any]] = {
    "model": lambda setting: placed(setting.made().model, setting),
    "widths": lambda setting: _widths(setting),
    "sample_shape": lambda setting: tuple(setting.made().example.shape[1:]),
    "num_classes": lambda setting: setting.num_classes,
    "batch": lambda setting: setting.batch,
    "device": lambda setting: setting.device,
    "dtype": lambda setting: setting.dtype,
    "learning_rate": lambda setting: rate_of(setting, "backprop"),
    "make_optimizer": lambda setting: partial(OPTIMIZERS[setting.optimizer][0], lr=rate_of(setting, "backprop")),
}
"""What a function is given if it names it."""

SHARED: dict[str, Callable[[], Any]] = {
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "number of threads": torch.get_num_threads,
    "precision of float32 products": torch.get_float32_matmul_precision,
    "recording of gradients": torch.is_grad_enabled,
}
"""Settings of PyTorch that one contender could change for all."""


def names(text: str) -> list[str]:
    """`foreach,peers:pepita:p=0.1,q=2` as two names, each once: a comma before `q=` or in brackets joins arguments."""
    found: list[str] = []
    for part in re.split(r",(?![^(\[]*[)\]])", text):
        if found and ":" in found[-1] and re.match(r"\s*\w+\s*=", part):
            found[-1] += f",{part}"
        elif part.strip():
            found.append(part.strip())
    return list(dict.fromkeys(found))


class OwnStep(NamedTuple):
    """A function that makes a step, by its name on the line."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    named: tuple[str, ...]
    """Of FACTS what it is given."""

    def contender(self, setting: Setting) -> Contender:
        """Raises UserError for a function that fails or gives no step, and the contender for a step that does."""
        if "widths" in self.named and setting.widths is None:
            raise self._error(f"names widths, but --network is '{setting.network}'; expected widths, as in 784-256-10")
        facts = {name: FACTS[name](setting) for name in self.named}
        before = _shared()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setting.seed)
            try:
                made = self.function(**facts, **self.arguments)
            except Exception as error:  # somebody's code may raise anything
                raise self._failure("", error) from error
        if not callable(made):
            raise self._error(f"gives a {type(made).__name__}, expected step(x, y), which takes one training step")
        self._check_shared(before)
        steps = 0

        def step(x: Tensor, y: Tensor) -> Tensor | float | None:
            nonlocal steps
            versions = x._version, y._version
            try:
                loss = made(x, y)
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except Exception as error:
                raise self._failure("its step: ", error) from error
            for name, tensor, version in zip("xy", (x, y), versions, strict=True):
                if tensor._version != version:
                    raise self._error(f"its step writes into {name}, which all are given; expected {name}.clone()")
            steps += 1
            if steps == 1:
                self._check_shared(before)
            return self._loss(loss)

        asked = {"learning_rate", "make_optimizer"} & {*self.named}
        rate = rate_of(setting, "backprop") if asked else self.arguments.get("learning_rate")
        return Contender(self.name, step, None, rate, [], counted="")

    def _loss(self, loss: Any) -> Tensor | float | None:
        if loss is None:
            return None
        if isinstance(loss, Tensor):
            if loss.numel() == 1:
                return loss.detach()
        elif isinstance(loss, SupportsFloat):
            return float(loss)
        kind = f"{type(loss).__name__} of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else type(loss).__name__
        raise self._error(f"its step gives a {kind}, expected the loss, one number, or None")

    def _check_shared(self, before: dict[str, Any]) -> None:
        for name, value in _shared().items():
            if value != before[name]:
                raise self._error(
                    f"changes PyTorch's {name} from {before[name]} to {value} for all; expected it set back"
                )

    def _failure(self, where: str, error: Exception) -> UserError:
        frames = traceback.extract_tb(error.__traceback__)
        own = getattr(inspect.getmodule(self.function), "__file__", None)
        at = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
        return self._error(f"{where}{type(error).__name__}: {error} ({at.filename}:{at.lineno})")

    def _error(self, text: str) -> UserError:
        return UserError(f"--beside: '{self.name}' {text}")


def _shared() -> dict[str, Any]:
    return {name: now() for name, now in SHARED.items()}


def _widths(setting: Setting) -> tuple[int, ...]:
    assert setting.widths is not None
    return setting.widths


def read(name: str) -> OwnStep:
    """The function that `package.module:function:argument=value,...` names. Raises UserError."""
    if ":" not in name:
        raise unknown("--beside", name, [*BESIDE, "package.module:function"])
    called: Named = code(name, "--beside", "peers:pepita:dropout=0.1", EXPECTED)
    before = _shared()
    function = imported(called.factory, "--beside")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"--beside: '{name}' is a {type(function).__name__}, expected a function") from error
    takes = {p.name: p for p in parameters.values() if p.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)}
    for argument in called.arguments:
        if argument not in takes:
            raise unknown("--beside", argument, list(takes))
    left = {key: p for key, p in takes.items() if key not in called.arguments}
    for key, parameter in left.items():
        if key not in FACTS and parameter.default is Parameter.empty:
            raise UserError(
                f"--beside: '{name}' wants '{key}', expected some of {', '.join(FACTS)}, and a default for others"
            )
    found = OwnStep(name, function, called.arguments, tuple(key for key in left if key in FACTS))
    found._check_shared(before)
    return found
