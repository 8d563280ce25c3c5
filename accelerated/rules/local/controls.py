"""Backpropagation on the networks of local rules: what they are compared with."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backprop import Backprop
from ..rule import BlockUpdate, ConvolutionUpdate, Rule
from .blocks import LocalBlock
from .classifiers import LocalClassifiers
from .score_heads import Heads


def linear_classifiers(blocks: Sequence[LocalBlock], num_classes: int) -> list[nn.Module]:
    """A Linear for each layer; maps are averaged over positions before it."""
    heads: list[nn.Module] = []
    for block in blocks:
        linear = nn.Linear(block.width, num_classes).to(block.weights[0])
        heads.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear) if block.has_maps else linear)
    return heads


class BackpropDeepSupervision(LocalClassifiers):
    """Control: a classifier at every layer, and the sum of their losses by backpropagation through all layers.

    Its own classifiers are linear maps of averages over all positions. What matches a local rule is that rule itself
    with `detach=False`, or this one with the same `score`, `loss` and `aggregation`.
    `detach=True` cuts the layers apart: each learns from its own classifier alone. `options` are those of
    `LocalClassifiers`.
    """

    def __init__(
        self, model: nn.Module, *, score: Heads = linear_classifiers, detach: bool = False, **options: Any
    ) -> None:
        super().__init__(model, score=score, detach=detach, **options)


class BackpropEnsemble(Rule):
    """Control: several networks, each trained by backpropagation alone; scores are the log of their mean probability.

    All see the same batches. Give them weights of their own.
    """

    def __init__(
        self, models: Sequence[nn.Module], *, label_smoothing: float = 0.0, generator: torch.Generator | None = None
    ) -> None:
        nn.Module.__init__(self)
        if not models:
            raise ValueError("models: none, expected one or more")
        made = [Backprop(m, label_smoothing=label_smoothing, generator=generator) for m in models]
        if len({member.num_classes for member in made}) > 1:
            raise ValueError(f"models: {[member.num_classes for member in made]} classes, expected as many of each")
        self.members = nn.ModuleList(made)
        self.num_classes, self.generator = made[0].num_classes, generator
        self.convolutions = list(chain.from_iterable(member.convolutions for member in made))
        self.blocks = list(chain.from_iterable(member.blocks for member in made))

    def _members(self) -> Iterator[tuple[int, Backprop]]:
        return enumerate(cast(Iterable[Backprop], self.members))

    @property
    def units(self) -> list[LocalBlock]:
        """Those of every member in turn, the member's number before their names."""
        return [block._replace(name=f"{i}.{block.name}") for i, member in self._members() for block in member.units]

    @property
    def wants_images(self) -> bool:
        """As the first member has it."""
        return next(self._members())[1].wants_images

    @property
    def least_batch(self) -> int:
        """What every member takes."""
        return max(member.least_batch for _, member in self._members())

    def forward(self, x: Tensor) -> Tensor:
        log_probabilities = torch.stack([member(x).log_softmax(dim=1) for member in self.members])
        return log_probabilities.logsumexp(dim=0) - math.log(len(self.members))

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the members' losses."""
        return torch.stack([member.objective(x, y) for _, member in self._members()]).sum()

    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate | ConvolutionUpdate]:
        for i, member in self._members():
            for update in member.stream(x, y):
                block: Any = update.block._replace(name=f"{i}.{update.block.name}")
                yield update._replace(block=block)
