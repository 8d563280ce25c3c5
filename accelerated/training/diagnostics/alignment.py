"""How well a rule's updates point along the gradient that backpropagation would have given."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ...rules import Rule, UnitUpdate
from ...rules.rule import evaluating


def alignment(rule: Rule, x: Tensor, y: Tensor) -> dict[str, float]:
    """The cosine between each unit's weight update and the gradient of `rule.objective`, by the unit's name.

    Without dropout, at the same weights, batch and random draws. `.grad`, generators and modes stay as they were.
    Units with a frozen weight are left out. Shapes and errors as for `rule.assign_credit`; TypeError for what is no
    rule.
    """
    check_rule(rule, "alignment")
    units = [unit for unit in rule.units if all(weight.requires_grad for weight in unit.weights)]
    if not units:
        return {}
    weights = [weight for unit in units for weight in unit.weights]
    with undisturbed(rule, x):
        updates = {update.unit.name: _weights_of(update) for update in rule.stream(x, y)}
    with undisturbed(rule, x), torch.enable_grad():
        gradients = iter(torch.autograd.grad(rule.objective(x, y), weights))
    names = [unit.name for unit in units]
    backpropagated = [_flat([next(gradients) for _ in unit.weights]) for unit in units]
    cosines = [torch.sum(_unit(updates[name]) * _unit(b)) for name, b in zip(names, backpropagated, strict=True)]
    return dict(zip(names, torch.stack(cosines).tolist(), strict=True))


def check_rule(rule: object, caller: str) -> None:
    """Raises TypeError for what is no rule."""
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: a {type(rule).__name__}, but {caller} takes a Rule, such as Foton(model)")


def _weights_of(update: UnitUpdate) -> Tensor:
    """What is to be subtracted from the unit's weights, 0 for a unit that is left as it is."""
    weights = update.unit.weights
    return _flat(map(torch.zeros_like, weights) if update.gradients is None else update.gradients[: len(weights)])


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _unit(a: Tensor) -> Tensor:
    """a divided by its norm, however small that is; 0 stays 0."""
    scaled = a / a.abs().amax().clamp(min=torch.finfo(a.dtype).tiny)
    return scaled / torch.linalg.vector_norm(scaled).clamp(min=torch.finfo(a.dtype).tiny)


@contextmanager
def undisturbed(rule: Rule, x: Tensor) -> Iterator[None]:
    """Evaluation mode inside; modes and generators as before afterwards."""
    state = None if rule.generator is None else rule.generator.get_state()
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices), evaluating(rule):
        try:
            yield
        finally:
            if rule.generator is not None and state is not None:
                rule.generator.set_state(state)
