"""What may have happened to a model since a rule was built on it: a layer replaced, a hook registered."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import nn

SHARING = {"DistributedDataParallel": "DDP", "FullyShardedDataParallel": "FSDP", "DTensor": "FSDP"}
"""What PyTorch shares a model out by, in several processes, and how that is called."""


def check_alone(name: str, thing: object, rule: str) -> None:
    """Raises ValueError for a module, or a parameter, that PyTorch's wrappers for several processes have in hand."""
    is_managed = isinstance(thing, nn.Module) and hasattr(thing, "_is_fsdp_managed_module")
    found = SHARING.get(type(thing).__name__) or ("FSDP" if is_managed else None)
    if found:
        raise shared_out(f"layer '{name}'" if name else "model", found, rule)


def shared_out(where: str, wrapper: str, rule: str) -> ValueError:
    """The error for a model, or a rule, in one of these wrappers."""
    return ValueError(
        f"{where}: in {wrapper}, which averages what loss.backward() gives and would leave the processes of a {rule} "
        f"apart; expected the bare model, and prograde.accelerated.parallel.DataParallel around the rule"
    )


class Watched(NamedTuple):
    """A module of the model, its path there, and its children and the names of its parameters at the time."""

    name: str
    module: nn.Module
    children: dict[str, nn.Module | None]
    parameters: set[str]


def watched(model: nn.Module) -> list[Watched]:
    """All modules of the model, itself first."""
    return [
        Watched(name, module, dict(module._modules), set(module._parameters)) for name, module in model.named_modules()
    ]


def check_unchanged(found: Sequence[Watched], model: nn.Module, rule: str) -> None:
    """Raises ValueError, with the layer's name, where other modules stand in the model than were found."""
    again = _again(rule)
    if found and found[0].module is not model:
        raise ValueError(f"model: replaced {again}")
    for name, module, children, _ in found:
        if module._modules != children:
            keys = (*children, *module._modules)
            key = next(key for key in keys if children.get(key, ...) is not module._modules.get(key, ...))
            raise ValueError(f"layer '{f'{name}.{key}'.lstrip('.')}': replaced, added or removed {again}")


def _again(rule: str) -> str:
    return f"since the {rule} was built; build another on the model as it is, and an optimizer of its parameters"


def check_same_parameters(found: Sequence[Watched], rule: str) -> None:
    """Raises ValueError, with the layer's name, where a module has others than were found, as after pruning."""
    for name, module, _, parameters in found:
        if set(module._parameters) != parameters:
            key = min(parameters ^ set(module._parameters))
            where = f"layer '{name}'" if name else "model"
            raise ValueError(f"{where}: its parameter '{key}' came, went or is computed {_again(rule)}")


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether a hook of the module's forward pass is registered, before it or after it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether a hook of the module's backward pass is registered, before it or after it."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def hooks(found: Sequence[Watched]) -> list[int]:
    """The numbers, each given once, of all hooks on the modules and on their parameters."""
    held = [
        of
        for _, module, *_ in found
        for of in (
            *(module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks),
            *(p._backward_hooks for p in module._parameters.values() if p is not None),
            *(p._post_accumulate_grad_hooks for p in module._parameters.values() if p is not None),
        )
    ]
    return [number for of in held if of for number in of]


def check_hooks(found: Sequence[Watched], rule: str, calls: Callable[[nn.Module], bool], differentiates: bool) -> None:
    """Raises ValueError, with the layer's name, for a hook that would not be called, and for DDP and FSDP.

    `calls` tells the modules that the rule calls as their model would; `differentiates`, whether it has a backward
    pass through them. Hooks of all modules, which PyTorch registers globally, are not looked for.
    """
    for name, module, *_ in found:
        where = f"layer '{name}'" if name else "model"
        check_alone(name, module, rule)
        if has_forward_hooks(module) and not calls(module):
            raise ValueError(
                f"{where}: a forward hook, which {rule} does not call; register it for a pass `model(x)` outside "
                "training, then remove it"
            )
        if has_backward_hooks(module) and not differentiates:
            raise ValueError(f"{where}: a backward hook, but {rule} has no backward pass through the model; remove it")
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            check_alone(name, parameter, rule)
            if parameter._post_accumulate_grad_hooks or (parameter._backward_hooks and not differentiates):
                raise ValueError(
                    f"{where}: a hook on its {key}, which {rule} does not call; remove it, and change `.grad` after "
                    "assign_credit"
                )
