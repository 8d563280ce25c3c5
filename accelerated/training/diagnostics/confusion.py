"""Which classes a rule takes for which."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ...rules import Rule
from ...rules.output_loss import Targets, parted
from ...rules.rule import evaluating
from ..evaluation import counted


@torch.no_grad()
def confusion(rule: Rule, batches: Iterable[tuple[Tensor, Targets]]) -> Tensor:
    """How often each class (rows) is guessed to be each (columns), of batches (x, y): (K, K), int64.

    y are the labels of samples, (batch,), or of their positions, (batch, positions); of a pair of labels and weights
    the first. Those that the loss ignores are left out. Modes stay as they were. Raises UserError for other labels.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> confusion(rule, [(torch.eye(2), torch.tensor([0, 0]))]).sum(dim=1).tolist()
    [2, 0]
    """
    classes = rule.num_classes
    counts = torch.zeros(classes**2, dtype=torch.int64)
    with evaluating(rule):
        for x, y in batches:
            scores, labels = rule(x), parted(y)[0]
            pairs = (labels * classes + scores.argmax(dim=-1))[counted(rule, scores, labels)]
            counts += pairs.bincount(minlength=classes**2).cpu()
    return counts.view(classes, classes)
