"""Local heads as modules: learned arrays are parameters, fixed ones are buffers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..._arrays import wide
from ...learned_scores import channel_class, prototype_cosine, random_logits, random_prototypes
from ...score_losses import ScoreLoss, ScoreLossCredit
from ...scores import (
    Grid,
    Score,
    group_mean,
    group_mean_square,
    linear_map,
    no_penalty,
    patch_energy,
    random_projection,
    random_readout,
)
from ..output_loss import OwnLoss, Targets
from .units import LocalUnit

Heads: TypeAlias = Callable[[Sequence[LocalUnit], int], Sequence[nn.Module]]
"""What makes the scores of a network's units for so many classes: modules from activities to (batch, K)."""

Assignment: TypeAlias = Literal["learned", "static", "frozen"]
"""Of channels to classes: learned, contiguous groups, or left as drawn."""

UNASSIGNED = -1e30
"""A logit that any temperature leaves without a share; infinity times 0 would be none. Half precision has less."""


class HeadCredit(NamedTuple):
    """What a layer learns from its loss: the mean, that of the score's parameters with it; the gradient by the
    activities; and pairs of a parameter of the score and what to subtract from it.
    """

    loss: Tensor
    cost: Tensor
    activities: Tensor
    own: tuple[tuple[Tensor, Tensor], ...]


class ScoreHead(nn.Module):
    """A score with its gradient in closed form, without a graph."""

    def score(self) -> Score:
        """As `prograde.accelerated.scores` has it."""
        raise NotImplementedError

    def arrays(self) -> tuple[Tensor, ...]:
        """Its learned arrays; those that are buffers here stay as they are."""
        return ()

    def no_weight_decay(self) -> list[nn.Parameter]:
        """Parameters that weight decay should leave alone, as a log temperature, for which 0 has a meaning."""
        return []

    def end_epoch(self) -> None:
        """Moves on what changes from epoch to epoch."""

    def forward(self, h: Tensor) -> Tensor:
        check_activities(h)
        return self.score().value(h, self.arrays())


def check_activities(h: Tensor) -> None:
    """Raises ValueError for anything but units and maps."""
    if h.dim() not in (2, 4):
        raise ValueError(
            f"score: activities of shape {tuple(h.shape)}, expected (batch, units) or maps; put nn.Flatten before"
        )


def check_scores(scores: Tensor, layer: str, num_classes: int) -> None:
    """Raises ValueError for other scores of that layer than (batch, K)."""
    if scores.dim() != 2 or scores.shape[1] != num_classes:
        raise ValueError(
            f"score: {tuple(scores.shape)} of layer '{layer}', expected (batch, {num_classes}), one of each class"
        )


def head_credit(head: nn.Module, h: Tensor, y: Targets, loss: ScoreLoss, layer: str, num_classes: int) -> HeadCredit:
    """By the score's closed form; of a module that is no ScoreHead by autograd.

    Raises ValueError, with the layer's name, unless there is a score of each class.
    """
    if not isinstance(head, ScoreHead):
        return _by_autograd(head, h, y, loss, layer, num_classes)
    score, arrays = head.score(), head.arrays()
    check_activities(h)
    scores, credit = score.pullback(h, arrays)
    if head._forward_hooks or head._forward_pre_hooks:  # which are to see the scores, and may change them
        scores = head(h)
    check_scores(scores, layer, num_classes)
    losses, e = judged(loss, scores, y)
    activities, gradients = credit(e / len(h))
    mean = cost = losses.mean()
    if score.penalty is not no_penalty:
        penalty, of_penalty = score.penalty(arrays)
        cost, gradients = mean + penalty, tuple(g + p for g, p in zip(gradients, of_penalty, strict=True))
    own = tuple((p, g) for p, g in zip(arrays, gradients, strict=True) if p.requires_grad)
    return HeadCredit(mean, cost, activities, own)


def judged(loss: ScoreLoss, scores: Tensor, y: Targets) -> ScoreLossCredit:
    """Of a function to the mean loss by its gradient. Raises ValueError for one that gives anything else."""
    function: Callable[..., Any] = loss
    found = function(scores, y)
    if isinstance(found, Tensor):
        credit: ScoreLossCredit = OwnLoss(function)(scores, y)
        return credit
    if not isinstance(found, tuple):
        raise ValueError(
            f"loss: gives a {type(found).__name__}, expected their mean, or losses and their derivatives by the "
            "scores, as those that prograde.accelerated.score_losses makes do: cross_entropy() is one"
        )
    return ScoreLossCredit(*found)


def _by_autograd(head: nn.Module, h: Tensor, y: Targets, loss: ScoreLoss, layer: str, num_classes: int) -> HeadCredit:
    learned = [p for p in head.parameters() if p.requires_grad]
    with torch.enable_grad():
        seen = h.detach().requires_grad_()
        scores = head(seen)
    check_scores(scores, layer, num_classes)
    losses, e = judged(loss, scores.detach(), y)
    activities, *found = torch.autograd.grad(scores, (seen, *learned), e / len(h), allow_unused=True)
    if activities is not None and any(g is not None and _overlap(activities, g) for g in found):
        activities = activities.clone()  # since its memory is written over
    mean = losses.mean()
    own = tuple((p, g) for p, g in zip(learned, found, strict=True) if g is not None)
    return HeadCredit(mean, mean, torch.zeros_like(h) if activities is None else activities, own)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether they may share memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def head_loss(
    head: nn.Module, h: Tensor, y: Targets, loss: ScoreLoss, layer: str, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The layer's mean loss and what its score's parameters cost with it, with their graph where there is one.

    Raises ValueError, with the layer's name, unless there is a score of each class.
    """
    scores = head(h)
    check_scores(scores, layer, num_classes)
    mean = judged(loss, scores, y).loss.mean()
    return mean, mean + head.score().penalty(head.arrays())[0] if isinstance(head, ScoreHead) else mean


def size_of(unit: LocalUnit, grid: Grid) -> tuple[int, Grid]:
    """How many numbers a score sees of a unit, and the grid, which a dense unit has none of.

    Raises ValueError for maps without a grid, whose size is not known.
    """
    if not unit.has_maps:
        return unit.width, None
    if grid is None:
        raise ValueError(f"layer '{unit.name}': grid: None, expected the cells that its maps are pooled to")
    return unit.width * grid[0] * grid[1], grid


GridSize: TypeAlias = int | Sequence[int] | None
"""Cells a side of square grids: of all layers, or of each; None for fewer the more channels a layer has."""


def grids(units: Sequence[LocalUnit], sides: GridSize) -> list[tuple[int, int]]:
    """The grid of each unit; None for max(1, floor(C_L / C_l)) cells a side (arXiv 2509.12394), of L convolutions.

    Raises ValueError for another number of them.
    """
    if sides is None:
        last = max((unit.width for unit in [b for b in units if b.has_maps][-1:]), default=1)
        sides = [max(1, last // unit.width) for unit in units]
    found = list(sides) if isinstance(sides, Sequence) else [sides] * len(units)
    if len(found) != len(units) or not all(isinstance(side, int) and side >= 1 for side in found):
        raise ValueError(f"grid: {sides}, expected a positive integer, or one for each of {len(units)} layers")
    return [(side, side) for side in found]


def each(head: Callable[..., nn.Module], **settings: Any) -> Heads:
    """That head for every unit."""
    return lambda units, num_classes: [head(unit, num_classes, **settings) for unit in units]


def gridded(head: Callable[..., nn.Module], sides: GridSize, **settings: Any) -> Heads:
    """That head for every unit, on a grid where the unit gives maps."""
    return lambda units, num_classes: [
        head(unit, num_classes, grid=grid, **settings) for unit, grid in zip(units, grids(units, sides), strict=True)
    ]


def like(unit: LocalUnit) -> dict[str, Any]:
    """Where and in what precision a unit's score has its arrays."""
    return {"device": unit.weights[0].device, "dtype": unit.weights[0].dtype}


class GroupHead(ScoreHead):
    """Means of the channels of each class, or of their squares, contiguous groups in turn."""

    def __init__(self, unit: LocalUnit, num_classes: int, *, square: bool = False) -> None:
        super().__init__()
        if unit.width % num_classes:
            raise ValueError(
                f"layer '{unit.name}': {unit.width} channels, expected a multiple of the {num_classes} classes"
            )
        self.num_classes, self.square = num_classes, square

    def score(self) -> Score:
        return group_mean_square(self.num_classes) if self.square else group_mean(self.num_classes)


class LinearHead(ScoreHead):
    """A learned linear map without bias, of the cells' means where the unit gives maps; nn.Linear's first weights."""

    def __init__(
        self, unit: LocalUnit, num_classes: int, *, grid: Grid = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        size, self.grid = size_of(unit, grid)
        weight = torch.empty(num_classes, size, **like(unit))
        self.matrix = nn.Parameter(weight.uniform_(-(size**-0.5), size**-0.5, generator=generator))

    def score(self) -> Score:
        return linear_map(self.grid)

    def arrays(self) -> tuple[Tensor, ...]:
        return (self.matrix,)


class FixedHead(ScoreHead):
    """What a fixed random read-out is made of; the law of its weights is `random_projection`'s."""

    def __init__(
        self, unit: LocalUnit, num_classes: int, *, grid: Grid = None, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        size, self.grid = size_of(unit, grid)
        self.projection: Tensor
        self.offset: Tensor
        projection, offset = random_projection(size, num_classes, generator, **like(unit))
        self.register_buffer("projection", projection)
        self.register_buffer("offset", offset)


class ReadoutHead(FixedHead):
    """A fixed random read-out of pooled squares, at a temperature learned between `lowest` and `highest`."""

    def __init__(
        self, unit: LocalUnit, num_classes: int, *, lowest: float = 0.5, highest: float = 2.0, **options: Any
    ) -> None:
        if not 0 < lowest <= highest < float("inf"):
            raise ValueError(f"lowest, highest: {lowest}, {highest}, expected 0 < lowest <= highest")
        super().__init__(unit, num_classes, **options)
        self.lowest, self.highest = lowest, highest
        self.alpha = nn.Parameter(torch.zeros((), **like(unit)))

    def score(self) -> Score:
        return random_readout(self.projection, self.offset, self.grid, self.lowest, self.highest)

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [self.alpha]

    def arrays(self) -> tuple[Tensor, ...]:
        return (self.alpha,)


class PatchHead(FixedHead):
    """A fixed random read-out of the patches' energies; patches overlap where maps have fewer pixels a side."""

    def score(self) -> Score:
        return patch_energy(self.projection, self.offset, self.grid)


class PrototypeHead(ScoreHead):
    """Cosines to learned prototypes, `per_class` of each class, joined by their soft maximum of that sharpness."""

    def __init__(
        self,
        unit: LocalUnit,
        num_classes: int,
        *,
        grid: Grid = None,
        per_class: int = 1,
        sharpness: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if type(per_class) is not int or per_class < 1:
            raise ValueError(f"per_class: {per_class}, expected a positive integer")
        size, self.grid = size_of(unit, grid)
        self.sharpness = sharpness
        self.prototypes = nn.Parameter(random_prototypes(num_classes, per_class, size, generator, **like(unit)))
        self.score()

    def score(self) -> Score:
        return prototype_cosine(self.sharpness, self.grid)

    def arrays(self) -> tuple[Tensor, ...]:
        return (self.prototypes,)


class ChannelHead(ScoreHead):
    """Channels assigned to classes: learned from noise on; or fixed, as contiguous groups or as drawn.

    `cooling` multiplies the temperature after every epoch, that of a fixed assignment too, and the weight of
    orthogonality grows over the first `ramp` epochs; both begin anew with the module, and are part of its state. The
    paper starts from a temperature of 10, at
    which channels are shared out almost evenly and learn almost nothing; here it is 1.
    """

    def __init__(
        self,
        unit: LocalUnit,
        num_classes: int,
        *,
        assignment: Assignment = "learned",
        pooling: tuple[float, float, float] = (0.94, 0.06, -0.05),
        temperature: float = 1.0,
        entropy: float = 1e-2,
        orthogonality: float = 1e-3,
        scaled: bool = False,
        cooling: float = 0.995,
        ramp: int = 50,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if assignment not in get_args(Assignment):
            raise ValueError(f"assignment: {assignment!r}, expected one of {', '.join(get_args(Assignment))}")
        if unit.width < num_classes:
            raise ValueError(f"layer '{unit.name}': {unit.width} channels, expected one for each class at least")
        if len(pooling) != 3 or not all(map(math.isfinite, pooling)):
            raise ValueError(f"pooling: {pooling}, expected the weights of mean, maximum and minimum")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: {temperature}, expected a positive number")
        if not 0 < cooling <= 1:
            raise ValueError(f"cooling: {cooling}, expected more than 0 and at most 1")
        for name, value in (("entropy", entropy), ("orthogonality", orthogonality), ("ramp", ramp)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: {value}, expected 0 or more")
        self.pooling, self.entropy, self.orthogonality, self.scaled = pooling, entropy, orthogonality, scaled
        self.cooling, self.ramp = cooling, ramp
        logits = random_logits(unit.width, num_classes, generator, **like(unit))
        if assignment == "static":
            groups = torch.arange(unit.width, device=logits.device) * num_classes // unit.width
            unassigned = max(UNASSIGNED, torch.finfo(logits.dtype).min)
            logits = torch.full_like(logits, unassigned).scatter_(1, groups[:, None], 0)
        log_temperature = torch.full((), math.log(temperature), **like(unit))
        for name, array in (("logits", logits), ("log_temperature", log_temperature)):
            if assignment == "learned":
                self.register_parameter(name, nn.Parameter(array))
            else:
                self.register_buffer(name, array)
        self.fixed = assignment != "learned"
        self.epochs: Tensor
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64, device=logits.device))

    def score(self) -> Score:
        # Both numbers are tensors, so that no step waits for the device to tell the epoch.
        epochs = self.epochs.to(wide(self.arrays()[0].dtype))
        cooling: Any = self.cooling**epochs
        orthogonality: Any = self.orthogonality * (epochs / max(1, self.ramp)).clamp(max=1)
        if self.ramp == 0:
            orthogonality = self.orthogonality
        score = channel_class(self.pooling, self.entropy, orthogonality, self.scaled, cooling)
        return score._replace(penalty=no_penalty) if self.fixed else score

    def arrays(self) -> tuple[Tensor, ...]:
        logits, log_temperature = (getattr(self, name) for name in ("logits", "log_temperature"))
        return logits, log_temperature

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [] if self.fixed else [self.get_parameter("log_temperature")]

    def end_epoch(self) -> None:
        self.epochs += 1
