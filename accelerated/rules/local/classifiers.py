"""Local classifiers as rules: every layer has class scores and a loss of its own."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...local_classifiers import concatenated
from ...score_losses import ScoreLoss
from ..convolving import convolving
from ..cutting import Units
from ..module_layer import strided
from ..output_loss import Loss, LossLike, OwnLoss, SquaredError, Targets, parted, read_loss
from ..rule import IN_NO_UNIT, UnitUpdate, evaluating, gradients_by
from .layer_aggregation import Aggregation, LayerAggregation, counted
from .module_rule import ModuleRule
from .score_heads import Heads, LinearHead, ScoreHead, check_scores, gridded, head_credit, head_loss
from .units import LocalUnit, ScoreAfter

OF_LABELS = "expected a loss of labels"
OF_NUMBERS = "expected 'last', 'validation-loss' or 'training-loss'"

LINEAR_MAPS = gridded(LinearHead, 4)
"""Learned maps of the averages of 4 x 4 cells, or of all units of a dense layer."""


class LocalClassifiers(ModuleRule):
    """Every layer is a classifier: an auxiliary loss on its own class scores trains it, and its output is detached.

    The model is an `nn.Sequential` of layers, each with an activation, Dropout, normalisation and pooling after it, or
    a `ShortcutNetwork`; `prograde.accelerated.modules` has those of papers. Of any other model `units` are its layers:
    modules in the order in which they run, or their names; `example` is a batch as the model takes it, which tells how
    wide they are where they are no Linear or Conv2d. The loss trains the layer and the modules up to its activation.
    Normalisation and pooling after it have no gradient; their parameters stay as they are. With
    `score_after="normalisation"` they belong to the layer and are trained. A last Linear without an activation gives K
    and is left out; a model that ends otherwise needs `num_classes`, or an example.

    `score` makes a module for every unit, from its activities, (batch, units) or (batch, channels, height, width), to
    (batch, K). Of tokens, (batch, tokens, units), as an example shows them, it gets the mean; or each token as a sample
    where the model gives scores, and y has a label, of every token. A linear head on dense layers is
    `lambda units, classes: [nn.Linear(unit.width, classes) for unit in units]`. `loss` is made by
    `prograde.accelerated.score_losses`, such as `cross_entropy()`, or one of those that `OutputLoss` names: then y are
    its own. `num_classes` is the number of scores, whatever they are of.

    One pass gives the scores of all layers. `aggregation` makes one score of them:

    - "last": the last layer's;
    - "sum": the sum of the layers from `first_layer` on, by default all;
    - "range": the sum of a range of layers, the most accurate range on held-out data. Before `calibrate` the range
      begins with `first_layer`, by default the second, and ends with the last;
    - "validation-loss", "training-loss": weighted by softmax(-loss) of the last epoch; evenly before the first;
    - "readout": batch normalisation, dropout at `readout_dropout` and a linear map of the activities from `first_layer`
      on, maps averaged over positions. Its own cross-entropy, with `readout_smoothing` of the labels, trains it.

    `calibrate` takes the held-out data. `detach=False` is the control: backpropagation of the sum of all losses through
    all layers. `generator` draws this package's heads. Dropout and PyTorch's own modules use its global generator.

    Raises ValueError for scores that are no module for each layer, and for a loss or an aggregation that asks of
    the targets what they do not have.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> heads = [nn.Linear(4, 3), nn.Linear(5, 3)]
    >>> rule, x = LocalClassifiers(model, score=lambda units, classes: heads), torch.eye(2)
    >>> torch.allclose(rule(x), heads[0](model[:2](x)) + heads[1](model[:4](x)), atol=1e-6)
    True
    """

    scores_are: ClassVar[str] = ""
    """Why its scores are of classes alone, if they are."""

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Units | None = None,
        example: Tensor | None = None,
        score: Heads = LINEAR_MAPS,
        loss: LossLike | ScoreLoss | None = None,
        aggregation: Aggregation = "sum",
        first_layer: int | None = None,
        score_after: ScoreAfter = "activation",
        num_classes: int | None = None,
        readout_dropout: float = 0.0,
        readout_smoothing: float = 0.0,
        detach: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        found = _read(loss)
        super().__init__(
            model,
            units=units,
            example=example,
            score_after=score_after,
            num_classes=num_classes,
            least_classes=found.least_outputs if isinstance(found, Loss) else 2,
            generator=generator,
        )
        expected = "expected a function of units and classes to a list of modules, one for each unit"
        if not callable(score) or isinstance(score, nn.Module | type):
            raise ValueError(f"score: {score!r}, {expected}")
        made = score(self.units, self.num_classes)
        if isinstance(made, nn.Module) and not isinstance(made, nn.ModuleList | nn.Sequential):
            raise ValueError(f"score: gives a {type(made).__name__}, {expected}")
        heads = list(made)
        for unit, head in zip(self.units, heads, strict=False):
            if not isinstance(head, nn.Module):
                raise ValueError(f"score: a {type(head).__name__} for layer '{unit.name}', expected an nn.Module")
        self.heads = nn.ModuleList(heads)
        if len(self.heads) != len(self.units):
            raise ValueError(f"score: {len(self.heads)} modules, expected one for each of {len(self.units)} layers")
        self._check_apart()
        self.loss: ScoreLoss = found
        if isinstance(found, Loss):
            found.for_scores(self.num_classes, self.units[0].weights[0])
            if self.scores_are and not found.labels:
                raise ValueError(f"loss: {loss!r}, but {type(self).__name__} scores {self.scores_are}, {OF_LABELS}")
            if not found.labels and aggregation in ("range", "readout"):
                raise ValueError(f"aggregation: {aggregation!r}, which labels choose or train, {OF_LABELS}")
            if found.targets_are == "numbers" and not found.labels and aggregation == "sum":
                raise ValueError(f"aggregation: 'sum' of the numbers that every layer tells, {OF_NUMBERS}")
        self.detach = detach
        self.aggregation = LayerAggregation(
            aggregation,
            [unit.width if aggregation == "readout" else 0 for unit in self.units],
            self.num_classes,
            first_layer=first_layer,
            dropout=readout_dropout,
            smoothing=readout_smoothing,
            like=self.units[0].weights[0],
        )
        self.check_hooks()

    def calls(self, module: nn.Module) -> bool:
        *before, last = self.units
        called = [m for unit in before for m in (unit.module, *unit.inside, *unit.outside)]
        return any(module in set(m.modules()) for m in (*self.local.stem, *called, last.module, *last.inside))

    @property
    def differentiates(self) -> bool:  # type: ignore[override]
        """As a control: a local step has no backward pass through the model."""
        return not self.detach

    def checked_input(self, x: Tensor) -> Tensor:
        self.check_hooks()
        return super().checked_input(x)

    def _check_apart(self) -> None:
        """Raises ValueError for a parameter that two losses would train, of which only one would count."""
        owners: dict[Tensor, str] = {}
        for unit in self.units:
            for parameter in unit.trained:
                other = owners.setdefault(parameter, unit.name)
                if other != unit.name:
                    raise ValueError(f"layer '{unit.name}': shares a parameter with layer '{other}', expected its own")
        owners = {parameter: f"layer '{name}'" for parameter, name in owners.items()}
        for unit, head in zip(self.units, self.heads, strict=True):
            own = f"the score of layer '{unit.name}'"
            for parameter in head.parameters():
                other = owners.setdefault(parameter, own)
                if other != own:
                    raise ValueError(f"score: {own} shares a parameter with {other}, expected modules of their own")

    def untrained(self) -> dict[Tensor, str]:
        """What is outside of the units; without `detach` later losses reach all but what follows the last score."""
        found: dict[Tensor, str] = dict.fromkeys(self.model.parameters(), IN_NO_UNIT)
        trained = [module for unit in self.units for module in (unit.module, *unit.inside)]
        between = [*self.local.stem, *(module for unit in self.units[:-1] for module in unit.outside)]
        found |= dict.fromkeys(_parameters(self.local.stem), "before the first unit, whose loss does not reach it")
        for unit in self.units:
            why = f"behind the score of unit '{unit.name}', whose loss does not reach it"
            found |= dict.fromkeys(_parameters(unit.outside), why)
        for parameter in _parameters(trained if self.detach else [*trained, *between]):
            found.pop(parameter, None)
        return found

    @property
    def chooses_on_held_out_data(self) -> bool:  # type: ignore[override]
        """For the ways of aggregation that do."""
        return self.aggregation.kind in ("range", "validation-loss")

    def no_weight_decay(self) -> list[nn.Parameter]:
        return [p for head in self.heads if isinstance(head, ScoreHead) for p in head.no_weight_decay()]

    def check_y(self, x: Tensor, y: Targets) -> None:
        labels, positions = parted(y)[0], self.positions(x)
        as_scores = isinstance(labels, Tensor) and labels.is_floating_point() and labels.shape[1:] > (1,)
        if isinstance(self.loss, Loss):
            self.loss.check(x, y, self.num_classes, positions)
        elif as_scores and not self.scores_are:
            OwnLoss(self.loss).check(x, y, self.num_classes, positions)  # type: ignore[arg-type]
        else:
            super().check_y(x, y)
        kind = self.aggregation.kind
        if kind in ("range", "readout") and (as_scores or isinstance(y, tuple)):
            raise ValueError(f"y: no labels alone, but they choose or train the aggregation {kind!r}")
        if kind == "sum" and as_scores and isinstance(self.loss, SquaredError):
            raise ValueError(f"y: numbers, which the aggregation 'sum' adds up over layers; {OF_NUMBERS}")

    def _rows(self, y: Targets) -> Targets:
        """y with the labels of all tokens in one row, where each has one, as their scores are."""
        if not self.per_token:
            return y
        labels, weight = parted(y)
        return labels.flatten(0, 1) if weight is None else (labels.flatten(0, 1), weight.flatten(0, 1))

    def _seen(self, h: Tensor) -> Tensor:
        """What a score is made from: of tokens, (batch, tokens, units), their mean, or each where each has a label."""
        if h.dim() != 3 or self.sample_shape is None:
            return h
        return h.flatten(0, 1) if self.per_token else h.mean(dim=1)

    def _scored(self, activities: Iterable[Tensor]) -> Tensor:
        scores = [head(self._seen(h)) for head, h in zip(self.heads, activities, strict=True)]
        for unit, found in zip(self.units, scores, strict=True):
            check_scores(found, unit.name, self.num_classes)
        return torch.stack(scores)

    def scores(self, x: Tensor) -> Tensor:
        """Class scores, (batch, K), or (batch, tokens, K) where the model gives those.

        They have PyTorch's graph: its `backward` would be plain backpropagation.
        """
        scores = self._aggregated(self.local.passes(x))
        return scores.unflatten(0, (len(x), -1)) if self.per_token else scores

    def _aggregated(self, activities: Iterable[Tensor], scores: Tensor | None = None) -> Tensor:
        """One score, (batch, K); from the layers' `scores` where they are known and asked for."""
        if self.aggregation.readout is not None:
            aggregated: Tensor = self.aggregation.readout(self.aggregation.features(map(self._seen, activities)))
        else:
            aggregated = self.aggregation(self._scored(activities) if scores is None else scores)
        return aggregated

    @torch.no_grad()
    def layer_scores(self, x: Tensor) -> Tensor:
        """The class scores of every layer, of one pass: (layers, batch, K)."""
        return self._scored(self.local.passes(self.checked_input(x)))

    @torch.no_grad()
    def layer_features(self, x: Tensor) -> list[Tensor]:
        """What every layer's score is made from: (batch, channels, height, width) or (batch, units) each."""
        return list(self.local.passes(self.checked_input(x)))

    @torch.no_grad()
    def layer_outputs(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Of one pass: `layer_features`, `layer_scores` and what the rule itself gives, (batch, K)."""
        activities = list(self.local.passes(self.checked_input(x)))
        scores = self._scored(activities)
        return activities, scores, self._aggregated(activities, scores)

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        x, y = self.checked(x, y), self._rows(y)
        if not self.detach:
            yield from self._backpropagated(x, y)
            return
        seen: list[Tensor] = []
        saved: dict[int, Tensor] = {}
        x = self.local.begin(x)
        for index in range(len(self.units)):
            h, update = self._local_update(index, x, y)
            if self.aggregation.readout is not None:
                seen.append(concatenated([self._seen(h)]))
            x = self.local.passed_on(index, h, saved)
            del h
            yield update
        yield from self.aggregation.readout_updates(seen, y, getattr(self.loss, "ignore_index", None))

    def _local_update(self, index: int, x: Tensor, y: Targets) -> tuple[Tensor, UnitUpdate]:
        """A unit's activities, and its update. A graph, where one is needed, is of this unit, and is freed here."""
        unit = self.units[index]
        closed = not unit.takes_graph and (unit.has_maps or x.dim() == 2)
        if closed:
            h = seen = unit.rectified(x)
        else:
            with torch.enable_grad(), convolving():
                h = unit.activities(x)
                seen = self._seen(h)
        found = head_credit(self.heads[index], seen.detach(), y, self.loss, unit.name, self.num_classes)
        self.aggregation.note(index, found.loss, counted(self.loss, y, len(seen)))
        if closed:
            return h, UnitUpdate(unit, unit.rectified_gradients(x, h, found.activities), found.cost, found.own)
        gradients = gradients_by(seen, unit.trained, found.activities)
        return h.detach(), _unit_update(unit, gradients, found.own, found.cost)

    def _losses(self, x: Tensor, y: Targets) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Every layer's activities, and its mean loss without and with its score's penalty, in one graph."""
        activities = list(self.local.passes(x))
        layers = zip(self.units, self.heads, activities, strict=True)
        losses = [head_loss(head, self._seen(h), y, self.loss, unit.name, self.num_classes) for unit, head, h in layers]
        return activities, losses

    def _backpropagated(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        """The updates by the sum of all losses."""
        learned = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            activities, losses = self._losses(x, y)
            total = torch.stack([cost for _, cost in losses]).sum()
        found = torch.autograd.grad(total, learned, allow_unused=True) if total.requires_grad else [None] * len(learned)
        known = zip(learned, found, strict=True)
        gradients: dict[Tensor, Tensor] = {p: strided(g) for p, g in known if g is not None}
        for index, (unit, head) in enumerate(zip(self.units, self.heads, strict=True)):
            loss, cost = (part.detach() for part in losses[index])
            self.aggregation.note(index, loss, counted(self.loss, y, len(x)))
            around = (*self.local.stem, *unit.outside) if index == 0 else unit.outside
            others = [p for module in (*around, head) for p in module.parameters()]
            own = [(p, gradients[p]) for p in others if p in gradients]
            of_unit = {p: gradients[p] if p in gradients else torch.zeros_like(p) for p in unit.trained}
            yield _unit_update(unit, of_unit, own, cost)
        seen = [concatenated([self._seen(h.detach())]) for h in activities]
        yield from self.aggregation.readout_updates(seen, y, getattr(self.loss, "ignore_index", None))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses layers or their weights, as `aggregation` says, on held-out data; and ends an epoch of the scores.

        Without a batch nothing is chosen. Raises ValueError for anything but pairs (x, y).
        """
        for head in self.heads:
            if isinstance(head, ScoreHead):
                head.end_epoch()
        with evaluating(self):
            self.aggregation.choose(self.layer_scores, map(self._checked_pair, batches), self.loss)

    def _checked_pair(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"batches: a {type(pair).__name__}, expected pairs (x, y), as in calibrate([(x, y)])")
        x, y = pair
        return self.checked(x, y), self._rows(y)

    def objective(self, x: Tensor, y: Targets) -> Tensor:
        """The sum of the layers' losses, where later losses reach earlier layers: what locality leaves out."""
        return torch.stack([cost for _, cost in self._losses(self.checked(x, y), self._rows(y))[1]]).sum()


def _parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    return [parameter for module in modules for parameter in module.parameters()]


def _read(loss: LossLike | ScoreLoss | None) -> ScoreLoss:
    """A name or a module as a score loss; a function is one, or gives the mean loss."""
    if callable(loss) and not isinstance(loss, nn.Module | type):
        return loss  # type: ignore[return-value]
    return read_loss("cross_entropy" if loss is None else loss)


def _unit_update(
    unit: LocalUnit, gradients: Mapping[Tensor, Tensor], own: Iterable[tuple[Tensor, Tensor]], loss: Tensor
) -> UnitUpdate:
    """From the gradients of what is trained in a unit."""
    inner = ((p, gradients[p]) for p in unit.inner)
    return UnitUpdate(unit, [gradients[p] for p in unit.parameters], loss, (*inner, *own))
