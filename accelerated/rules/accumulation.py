"""Steps on more samples than are held at one time."""

from typing import Any

import torch
from torch import Tensor

from .rule import CreditAssignment, Inputs, is_inferring, lasting


@torch.no_grad()
def accumulate(rule: CreditAssignment, x: Inputs, y: Any, share: float = 1.0) -> Tensor:
    """Adds `share` of the batch's credit to `.grad`, each unit's as it becomes known; returns that share of the loss.

        for x, y in micro_batches:                                 # of one step
            loss += accumulate(rule, x, y, 1 / len(micro_batches))
        optimizer.step()
        rule.constrain(optimizer)
        optimizer.zero_grad()

    Beside the gradients nothing is held but what `stream` holds, and one unit's update. Weights of batches of several
    sizes are their shares of all samples. x, y and errors as for `stream`.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> rule, x, y = Backprop(model), torch.eye(2), torch.tensor([0, 2])
    >>> for i in range(2):
    ...     loss = accumulate(rule, x[i : i + 1], y[i : i + 1], share=1 / 2)
    >>> halves = model[0].weight.grad
    >>> loss = rule.assign_credit(x, y)
    >>> torch.allclose(halves, model[0].weight.grad, atol=1e-6)
    True
    """
    if is_inferring():
        with torch.inference_mode(False):
            return accumulate(rule, lasting(x), lasting(y), share)
    loss = torch.zeros((), device=next(rule.parameters()).device)
    for update in rule.stream(x, y):
        for held, gradient in update.pairs:
            if held.grad is None:
                held.grad = gradient * share
            else:
                held.grad.add_(gradient, alpha=share)
        if update.loss is not None:
            loss = loss + share * update.loss
        del update
    return loss
