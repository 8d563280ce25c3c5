"""How well a rule's updates point along the gradient that backpropagation would have given."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..._arrays import draws_undone
from ...rules import Rule, UnitUpdate
from ...rules.rule import evaluating


def alignment(rule: Rule, x: Any, y: Any) -> dict[str, float]:
    """The cosine between each unit's weight update and the gradient of `rule.objective`, by the unit's name.

    Without dropout, at the same weights, batch and random draws. `.grad`, generators and modes stay as they were.
    Units with a frozen weight are left out. Shapes and errors as for `rule.assign_credit`; TypeError for what is no
    rule.

    >>> rule = rules.Backprop(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)))
    >>> {name: round(cosine, 4) for name, cosine in alignment(rule, torch.eye(2), torch.tensor([0, 2])).items()}
    {'0': 1.0, '2': 1.0}
    """
    check_rule(rule, "alignment")
    return cosines(rule, x, y, updates_by_unit(rule, x, y))


def updates_by_unit(rule: Rule, x: Any, y: Any) -> dict[str, UnitUpdate]:
    """What a step on the batch would do to each of the rule's units, by the unit's name; nothing is changed."""
    names = {unit.name for unit in rule.units}
    with undisturbed(rule):
        return {update.unit.name: update for update in rule.stream(x, y) if update.unit.name in names}


def cosines(rule: Rule, x: Any, y: Any, updates: dict[str, UnitUpdate]) -> dict[str, float]:
    """`alignment` of updates that are known."""
    units = [unit for unit in rule.units if all(weight.requires_grad for weight in unit.weights)]
    if not units:
        return {}
    weights = [weight for unit in units for weight in unit.weights]
    with undisturbed(rule), torch.enable_grad():
        gradients = iter(torch.autograd.grad(rule.objective(x, y), weights))
    names = [unit.name for unit in units]
    backpropagated = [_flat([next(gradients) for _ in unit.weights]) for unit in units]
    found = [
        torch.sum(_unit(_weights_of(updates[name])) * _unit(gradient))
        for name, gradient in zip(names, backpropagated, strict=True)
    ]
    return dict(zip(names, torch.stack(found).tolist(), strict=True))


def check_rule(rule: object, caller: str) -> None:
    """Raises TypeError for what is no rule."""
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: a {type(rule).__name__}, but {caller} takes a Rule, such as Foton(model)")


def _weights_of(update: UnitUpdate) -> Tensor:
    """What is to be subtracted from the unit's weights, 0 for a unit that is left as it is."""
    weights = update.unit.weights
    return _flat(map(torch.zeros_like, weights) if update.gradients is None else update.gradients[: len(weights)])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([(tensor.to_dense() if tensor.is_sparse else tensor).flatten() for tensor in tensors])


def _unit(a: Tensor) -> Tensor:
    """a divided by its norm, however small that is; 0 stays 0."""
    scaled = a / a.abs().amax().clamp(min=torch.finfo(a.dtype).tiny)
    return scaled / torch.linalg.vector_norm(scaled).clamp(min=torch.finfo(a.dtype).tiny)


@contextmanager
def undisturbed(rule: Rule) -> Iterator[None]:
    """Evaluation mode inside; modes and generators as before afterwards."""
    state = None if rule.generator is None else rule.generator.get_state()
    device = next(rule.parameters()).device
    with draws_undone(device), evaluating(rule):
        try:
            yield
        finally:
            if rule.generator is not None and state is not None:
                rule.generator.set_state(state)
