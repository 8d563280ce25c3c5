"""Networks by name, as a recipe and the command line give them: `lenet`, `vit:patch=7,depth=2`, `my_module:factory`."""

import ast
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modules import RecurrentNetwork, cfse, lenet, resnet17, resnet18, small_cnn, tiny_cnn, vgg8, vgg11, vit
from .errors import UserError, unknown

MLP = "mlp"
WIDEST = 1_000_000

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "lenet": lenet,
    "vgg8": vgg8,
    "vgg11": vgg11,
    "resnet17": resnet17,
    "resnet18": resnet18,
    "vit": vit,
    "small-cnn": small_cnn,
    "tiny-cnn": tiny_cnn,
    "cfse": cfse,
    "rnn": partial(RecurrentNetwork, hidden_size=128),
    "gru": partial(RecurrentNetwork, hidden_size=128, cell="gru"),
    "lstm": partial(RecurrentNetwork, hidden_size=128, cell="lstm"),
}
"""What makes a network that is no `mlp`, by its name."""


class Named(NamedTuple):
    """A name, taken apart: that of the factory, and arguments for it."""

    factory: str
    arguments: dict[str, Any]

    @property
    def is_code(self) -> bool:
        """Whether it is a function of the user's, in a module that has to be imported."""
        return ":" in self.factory


def widths(text: str, argument: str) -> tuple[int, ...]:
    """`512-256` as (512, 256). Raises UserError."""
    parts = text.split("-")
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= WIDEST for part in parts):
        raise UserError(
            f"{argument}: '{text}', expected positive integers up to {WIDEST} joined by '-', such as 512-256"
        )
    return tuple(int(part) for part in parts)


def named(model: Any) -> Named:
    """A name of NETWORKS or `package.module:factory`, with `:name=value,...` behind it or not. Raises UserError."""
    expected = f"expected mlp:512-256, {', '.join(NETWORKS)} or package.module:factory"
    if not isinstance(model, str):
        raise UserError(f"model: {model!r}, {expected}")
    first, _, rest = model.partition(":")
    if first in NETWORKS:
        return Named(first, _arguments(rest, model, "model", "vit:patch=7,depth=2"))
    if not rest:
        raise unknown("model", model, [MLP, *NETWORKS, "package.module:factory"])
    return code(model, "model", "vit:patch=7,depth=2", expected)


def code(text: str, argument: str, example: str, expected: str) -> Named:
    """`package.module:function`, with `:name=value,...` behind it or not. Raises UserError, also for other names."""
    module, _, rest = text.partition(":")
    function, _, rest = rest.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{argument}: '{text}', {expected}")
    return Named(f"{module}:{function}", _arguments(rest, text, argument, example))


def _arguments(rest: str, text: str, argument: str, example: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"made({rest})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, AssertionError) as error:
        raise UserError(f"{argument}: '{text}', expected arguments as in {example}") from error


def imported(name: str, argument: str) -> Any:
    """What `package.module:function` names. Raises UserError where it can't be imported."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the module may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{argument}: '{name}' can't be imported ({reason}); is its folder in PYTHONPATH?") from error
    if found is None:
        raise UserError(f"{argument}: module '{module}' has no '{function}'")
    return found


class Made(NamedTuple):
    """A network, its units where it says what they are, and a batch as it takes it, on the CPU."""

    model: nn.Module
    units: Any
    example: Tensor


def made(model: str, sample: tuple[int, ...], num_classes: int, dtype: torch.dtype) -> Made:
    """The network of that name for samples of that shape.

    Its factory is given what it names of `num_classes`, `features` (and is then given rows of numbers), `input_size`
    (sequences of such numbers), and of images `image_shape`, (channels, height, width), `image_channels` and
    `image_size`, a side. One that names none of these gets images as images. The units are the model's own, `units`, an
    attribute or a method. Raises UserError where the name, its arguments or the samples do not fit.
    """
    name, arguments = named(model)
    factory: Callable[..., nn.Module] = NETWORKS[name] if name in NETWORKS else imported(name, "model")
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"model: '{name}' is a {type(factory).__name__}, expected a function of yours") from error
    takes = [parameter for parameter in parameters if parameter not in arguments]
    facts: dict[str, Any] = {"num_classes": num_classes, "num_outputs": num_classes}
    if "features" in takes:
        shape: tuple[int, ...] = (prod(sample),)
        facts["features"] = prod(sample)
    elif "input_size" in takes:
        if len(sample) != 2:
            raise UserError(f"model: '{model}' takes sequences, but samples have shape {sample}")
        shape, facts["input_size"] = sample, sample[1]
    else:
        shape = (1, *sample) if len(sample) == 2 else sample
        if len(shape) == 3:
            facts |= {"image_shape": shape, "image_channels": shape[0], "image_size": shape[1]}
        wanted = [fact for fact in ("image_shape", "image_channels", "image_size") if fact in takes]
        if wanted and len(shape) != 3:
            raise UserError(f"model: '{model}' takes images, but samples have shape {sample}")
        if "image_size" in takes and shape[1] != shape[2]:
            raise UserError(f"model: '{model}' takes square images, but samples have shape {sample}")
    for given in arguments:
        if given not in parameters:
            raise unknown("model", given, list(parameters))
    try:
        found = factory(**{fact: value for fact, value in facts.items() if fact in takes}, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"model: '{model}': {error}") from error
    if not isinstance(found, nn.Module):
        raise UserError(f"model: '{model}' gives a {type(found).__name__}, expected an nn.Module")
    units = getattr(found, "units", None)
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=dtype, device="cpu")
    return Made(found.to(dtype), units() if callable(units) else units, example)
