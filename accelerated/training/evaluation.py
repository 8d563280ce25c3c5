"""How good a rule's scores are."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arrays import readable, wide
from ..rules import Rule
from ..rules.output_loss import Loss, OwnLoss, Targets, parted
from ..rules.recurrent import RecurrentRule
from ..rules.rule import OutputLoss, evaluating
from .data import Split
from .errors import UserError

EVALUATION_BATCH = 1000


class Evaluation(NamedTuple):
    """The share of labels whose score is the highest, and the mean loss at the scores; None without labels or loss."""

    accuracy: float | None
    loss: float | None


def samples_in(y: Targets) -> int:
    """How many samples a batch has, whatever its x is: y has one entry for each."""
    return len(parted(y)[0])


def total_weight(rule: Rule, x: Any, y: Targets) -> int | Tensor:
    """What a batch counts by in a mean over batches: the labels that the rule's loss counts, or what these weigh."""
    loss = _loss_of(rule)
    return samples_in(y) if loss is None else loss.total_weight(_known(rule, x, parted(y)[0], y)[1])


def held(rule: Rule) -> Rule:
    """The rule itself, of one that hardware or several processes run."""
    found: Rule = getattr(rule, "rule", rule)
    return found


def _loss_of(rule: Rule) -> Loss | None:
    found = getattr(held(rule), "loss", None)
    return found if isinstance(found, Loss) else None


def _known(rule: Rule, x: Any, scores: Tensor, y: Targets) -> tuple[Tensor, Targets]:
    """Scores and y without what is behind the end of sequences of several lengths."""
    inner = held(rule)
    if isinstance(x, Tensor) or not isinstance(inner, RecurrentRule):
        return scores, y
    return inner.labelled(scores, y, inner.sequences(x)[1])[:2]


def counted(rule: Rule, scores: Tensor, labels: Tensor) -> Tensor:
    """Of which labels it is asked whether their score is the highest, shaped as labels: those that no loss ignores.

    Raises UserError unless there is one of each scores; on a CPU for labels of classes without a score, too, but where
    a function of one's own says what labels are.
    """
    if labels.shape != scores.shape[:-1]:
        raise UserError(
            f"data: labels of shape {tuple(labels.shape)}, expected {tuple(scores.shape[:-1])}, one for "
            f"each sample or position of the scores, {tuple(scores.shape)}"
        )
    loss, classes = _loss_of(rule), scores.shape[-1]
    is_known = torch.ones_like(labels, dtype=torch.bool)
    if loss is not None and loss.ignore_index is not None:
        is_known = labels != loss.ignore_index
    if readable(labels) and not isinstance(loss, OwnLoss) and (is_known & ((labels < 0) | (labels >= classes))).any():
        low, high = (end.item() for end in labels[is_known].aminmax())
        raise UserError(f"data: labels {low}..{high}, expected 0..{classes - 1}, the classes that have scores")
    return is_known


@torch.no_grad()
def evaluate(
    rule: Rule,
    batches: Iterable[tuple[Any, Targets]],
    summed: Callable[..., Sequence[float]] = lambda *numbers: numbers,
) -> Evaluation:
    """Over batches (x, y), in evaluation mode. Labels may be of positions; those that the loss ignores do not count.

    The loss is that of one batch of all samples, so far as it is a mean over them. `summed` gives numbers over all
    processes that have a part of the batches.

    Raises UserError for no batches, and for labels that do not fit the scores.
    """
    loss = _loss_of(rule)
    at_scores = isinstance(held(rule), OutputLoss)  # else it is each layer's, which numbers are compared with as well
    parameter = next(rule.parameters())
    total, weight = (torch.zeros((), device=parameter.device, dtype=wide(parameter.dtype)) for _ in range(2))
    right, labelled = (torch.zeros((), device=parameter.device, dtype=torch.int64) for _ in range(2))
    samples, are_labels = 0, False
    with evaluating(rule):
        for x, y in batches:
            samples += samples_in(y)
            scores, y = _known(rule, x, rule(x), y)
            labels, _ = parted(y)
            are_labels = not labels.is_floating_point()
            if are_labels:
                known = counted(rule, scores, labels)
                right += ((scores.argmax(dim=-1) == labels) & known).sum()
                labelled += known.sum()
            if loss is not None and (at_scores or not are_labels):
                share = loss.total_weight(y)
                total += loss.value(scores, y) * share
                weight += share
    found = [float(number) for number in (total, weight, right, labelled, samples, are_labels)]
    cost, costs, hits, labels_in_all, samples_in_all, of_labels = summed(*found)
    if not samples_in_all:
        raise UserError("data: no batches to evaluate on, expected one or more")
    has_loss = loss is not None and (at_scores or not of_labels)
    return Evaluation(
        hits / max(1.0, labels_in_all) if of_labels else None, cost / (costs or 1.0) if has_loss else None
    )


def accuracy(rule: Rule, split: Split) -> float:
    """The share of samples whose highest score is their label's. Raises UserError for targets that are no labels.

    >>> rule = rules.MonoForward(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> x = torch.eye(2)
    >>> accuracy(rule, Split(x, rule(x).argmax(dim=1)))
    1.0
    """
    batches = zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True)
    share = evaluate(rule, batches).accuracy
    if share is None:
        raise UserError(f"labels: {split.labels.dtype}, expected int64, whose accuracy there is")
    return share
