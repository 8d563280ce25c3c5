"""The optimizer and the scheduler of a training: the recipe's, or one's own."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..rules import Rule
from .errors import UserError
from .recipes import Recipe
from .schedules import Schedule


def groups(rule: Rule) -> list[dict[str, Any]]:
    """The rule's parameters, and apart from them those that weight decay is not for."""
    no_weight_decay = rule.no_weight_decay()
    apart = {id(parameter) for parameter in no_weight_decay}
    found: list[dict[str, Any]] = [{"params": [p for p in rule.parameters() if id(p) not in apart]}]
    return [*found, {"params": no_weight_decay, "weight_decay": 0.0}] if no_weight_decay else found


def of_recipe(rule: Rule, recipe: Recipe) -> Optimizer:
    """The optimizer that a recipe names."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups(rule), lr=rate, momentum=recipe.momentum, weight_decay=decay)
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    fused = next(rule.parameters()).device.type in ("cpu", "cuda")
    return adam(groups(rule), lr=rate, weight_decay=decay, fused=fused)


def optimizer_of(rule: Rule, given: Optimizer | Callable[[Any], Optimizer]) -> Optimizer:
    """One's own, or what a function makes of the rule's parameters.

    Raises UserError, by name, for what is no optimizer and for parameters that it does not train.
    """
    found = given if isinstance(given, Optimizer) or not callable(given) else given(groups(rule))
    if not isinstance(found, Optimizer):
        if isinstance(found, torch.amp.GradScaler):
            raise UserError(
                "optimizer: a GradScaler, which scales a loss for backward(); a rule's gradients are never scaled: "
                "give the optimizer alone"
            )
        raise UserError(
            f"optimizer: a {type(found).__name__}, expected one of torch.optim, or a function that makes it"
        )
    if inspect.signature(found.step).parameters["closure"].default is inspect.Parameter.empty:
        raise UserError(
            f"optimizer: {type(found).__name__}, whose step computes the loss anew; expected one that takes gradients"
        )
    held = {id(parameter) for group in found.param_groups for parameter in group["params"]}
    missing = [name for name, p in rule.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise UserError(
            f"optimizer: lacks {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}, expected all of "
            "rule.parameters(); requires_grad_(False) freezes one"
        )
    return found


def scheduler_of(optimizer: Optimizer, given: LRScheduler | Callable[[Optimizer], LRScheduler]) -> LRScheduler:
    """One's own, or what a function makes of the optimizer.

    Raises UserError for what is no scheduler of this optimizer.
    """
    found = given if isinstance(given, LRScheduler) or not callable(given) else given(optimizer)
    if not isinstance(found, LRScheduler):
        raise UserError(
            f"scheduler: a {type(found).__name__}, expected one of torch.optim.lr_scheduler, or a function that makes "
            "it"
        )
    if found.optimizer is not optimizer:
        raise UserError("scheduler: of another optimizer, expected one of the optimizer that trains")
    return found


def schedule_of(optimizer: Optimizer, recipe: Recipe, steps: int | None) -> LRScheduler | None:
    """The recipe's, None for a constant rate. Raises UserError where it needs to know how many steps there are."""
    if recipe.schedule == "constant":
        return None
    if steps is None:
        raise UserError(
            f"max_steps: None, but the recipe's schedule {recipe.schedule!r} needs to know how many steps there are, "
            "and train has no length; expected a number of steps, a scheduler, or Recipe(schedule='constant')"
        )
    return Schedule(optimizer, recipe.schedule, steps)
