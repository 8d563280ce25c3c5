"""How good a rule's scores are."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arrays import wide
from ..rules import Rule
from ..rules.output_loss import Loss, parted
from ..rules.rule import OutputLoss, evaluating
from .data import Split
from .errors import UserError

EVALUATION_BATCH = 1000


class Evaluation(NamedTuple):
    """The share of labels whose score is the highest, and the mean loss at the scores; None without labels or loss."""

    accuracy: float | None
    loss: float | None


@torch.no_grad()
def evaluate(rule: Rule, batches: Iterable[tuple[Tensor, Any]]) -> Evaluation:
    """Over batches (x, y), in evaluation mode. Labels may be of positions; those that the loss ignores do not count.

    Raises UserError for no batches, and for labels that do not fit the scores.
    """
    held = getattr(rule, "rule", rule)  # of hardware
    found = getattr(held, "loss", None)
    loss = found if isinstance(found, Loss) else None
    at_scores = isinstance(held, OutputLoss)  # else it is each layer's, which numbers are compared with all the same
    ignored = None if loss is None else loss.ignore_index
    parameter = next(rule.parameters())
    total = torch.zeros((), device=parameter.device, dtype=wide(parameter.dtype))
    right, labelled = (torch.zeros((), device=parameter.device, dtype=torch.int64) for _ in range(2))
    samples, are_labels = 0, False
    with evaluating(rule):
        for x, y in batches:
            scores, (labels, _) = rule(x), parted(y)
            samples += len(x)
            are_labels = not labels.is_floating_point()
            if are_labels:
                if labels.shape != scores.shape[:-1]:
                    raise UserError(
                        f"data: labels of shape {tuple(labels.shape)}, expected {tuple(scores.shape[:-1])}, one for "
                        f"each sample or position of the scores, {tuple(scores.shape)}"
                    )
                known = torch.ones_like(labels, dtype=torch.bool) if ignored is None else labels != ignored
                right += ((scores.argmax(dim=-1) == labels) & known).sum()
                labelled += known.sum()
            if loss is not None and (at_scores or not are_labels):
                total += loss.value(scores, y) * len(x)
    if not samples:
        raise UserError("data: no batches to evaluate on, expected one or more")
    share = right.item() / max(1, labelled.item()) if are_labels else None
    has_loss = loss is not None and (at_scores or not are_labels)
    return Evaluation(share, total.item() / samples if has_loss else None)


def accuracy(rule: Rule, split: Split) -> float:
    """The share of samples whose highest score is their label's. Raises UserError for targets that are no labels."""
    batches = zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True)
    share = evaluate(rule, batches).accuracy
    if share is None:
        raise UserError(f"labels: {split.labels.dtype}, expected int64, whose accuracy there is")
    return share
