"""Which classes a rule takes for which."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ...rules import Rule
from ...rules.rule import evaluating


@torch.no_grad()
def confusion(rule: Rule, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How often each class (rows) is guessed to be each (columns), of batches (x, y): (K, K), int64.

    y are the labels of samples, (batch,), or of their positions, (batch, positions). Modes stay as they were.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> confusion(rule, [(torch.eye(2), torch.tensor([0, 0]))]).sum(dim=1).tolist()
    [2, 0]
    """
    classes = rule.num_classes
    counts = torch.zeros(classes**2, dtype=torch.int64)
    with evaluating(rule):
        for x, y in batches:
            pairs = y * classes + rule(x).argmax(dim=-1)
            counts += pairs.flatten().bincount(minlength=classes**2).cpu()
    return counts.view(classes, classes)
