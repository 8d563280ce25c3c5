"""Backpropagation on the networks of local rules: what they are compared with."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backprop import Backprop
from ..rule import Rule, UnitUpdate
from ..units import Unit
from .classifiers import LocalClassifiers
from .score_heads import Heads
from .units import LocalUnit


def linear_classifiers(units: Sequence[LocalUnit], num_classes: int) -> list[nn.Module]:
    """A Linear for each layer; maps are averaged over positions before it."""
    heads: list[nn.Module] = []
    for unit in units:
        linear = nn.Linear(unit.width, num_classes).to(unit.weights[0])
        heads.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear) if unit.has_maps else linear)
    return heads


class BackpropDeepSupervision(LocalClassifiers):
    """Control: a classifier at every layer, and the sum of their losses by backpropagation through all layers.

    Its own classifiers are linear maps of averages over all positions. What matches a local rule is that rule itself
    with `detach=False`, or this one with the same `score`, `loss` and `aggregation`.
    `detach=True` cuts the layers apart: each learns from its own classifier alone. `options` are those of
    `LocalClassifiers`.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    >>> rule = BackpropDeepSupervision(model)  # in the last Linear's place there is a classifier behind each layer
    >>> [unit.name for unit in rule.units], sorted(rule.left_out)
    (['0', '2'], ['model.4.bias', 'model.4.weight'])
    """

    def __init__(
        self, model: nn.Module, *, score: Heads = linear_classifiers, detach: bool = False, **options: Any
    ) -> None:
        super().__init__(model, score=score, detach=detach, **options)


class BackpropEnsemble(Rule):
    """Control: several networks, each trained by backpropagation alone; scores are the log of their mean probability.

    All see the same batches. Give them weights of their own.

    Raises ValueError for no list of models, for models of other numbers of classes, and for shared parameters.

    >>> one, other = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    >>> probabilities = BackpropEnsemble([one, other])(torch.eye(2)).exp()
    >>> torch.allclose(probabilities.sum(dim=1), torch.ones(2), atol=1e-6)
    True
    """

    differentiates = True

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        example: Tensor | None = None,
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList):
            raise ValueError(f"models: a {type(models).__name__}, expected a list of models")
        if not models:
            raise ValueError("models: none, expected one or more")
        made = [Backprop(m, example=example, label_smoothing=label_smoothing, generator=generator) for m in models]
        if len({member.num_classes for member in made}) > 1:
            raise ValueError(f"models: {[member.num_classes for member in made]} classes, expected as many of each")
        parameters = [p for member in made for p in member.model.parameters()]
        if len(set(parameters)) < len(parameters):
            raise ValueError("models: two of them share a parameter, expected weights of their own")
        self.members = nn.ModuleList(made)
        self.num_classes, self.generator = made[0].num_classes, generator
        self.units = [_of_member(i, unit) for i, member in enumerate(made) for unit in member.units]

    def _members(self) -> Iterator[tuple[int, Backprop]]:
        return enumerate(cast(Iterable[Backprop], self.members))

    @property
    def wants_images(self) -> bool:
        """As the first member has it."""
        return next(self._members())[1].wants_images

    @property
    def least_batch(self) -> int:
        """What every member takes."""
        return max(member.least_batch for _, member in self._members())

    def checked_input(self, x: Tensor) -> Tensor:
        """As every member takes it."""
        first, *_ = (member.checked_input(x) for _, member in self._members())
        return first

    def scores(self, x: Tensor) -> Tensor:
        log_probabilities = torch.stack([member.scores(x).log_softmax(dim=-1) for _, member in self._members()])
        return log_probabilities.logsumexp(dim=0) - math.log(len(self.members))

    def activities(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        for _, member in self._members():
            yield from member.activities(x, y)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the members' losses."""
        return torch.stack([member.objective(x, y) for _, member in self._members()]).sum()

    def stream(self, x: Tensor, y: Tensor) -> Iterator[UnitUpdate]:
        for i, member in self._members():
            for update in member.stream(x, y):
                yield update._replace(unit=_of_member(i, update.unit))


def _of_member(number: int, unit: Unit) -> Unit:
    """With the member's number before the unit's name."""
    return replace(unit, name=f"{number}.{unit.name}")
