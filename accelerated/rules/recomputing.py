"""A clean pass that is not held: what is of a layer is computed once more when its turn comes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import Layer, Pass, activity, per_label
from ..layers import scores as scores_of
from .output_loss import Targets
from .rule import OutputErrorRule, UnitUpdate
from .stepping import factored


@dataclass
class Row:
    """Of a layer, itself and what a pass gives."""

    layer: Layer
    z: Tensor
    a: Tensor

    @cached_property
    def h(self) -> Tensor:
        return activity(self.layer.steps, self.a)


class _Rows:
    """The rows of a pass in order, one held at a time; the last one's activities, `scores`, are known."""

    def __init__(self, layers: Iterator[Layer], depth: int, x: Tensor, scores: Tensor) -> None:
        self.layers, self.depth, self.x, self.scores = layers, depth, x, scores
        self.index = -1
        self.row: Row | None = None

    def at(self, index: int) -> Row:
        """The row of that layer, of which there is none before it left. Raises IndexError for one that is gone."""
        if index < self.index:
            raise IndexError(f"layers[{index}]: gone, the pass is at layers[{self.index}]")
        while self.index < index:
            self.row = self._after(self.row)
            self.index += 1
        assert self.row is not None
        return self.row

    def _after(self, row: Row | None) -> Row:
        z = self.x if row is None else activity(row.layer.outlet, row.h)
        self.row = row = None
        layer = next(self.layers)
        if self.index + 2 == self.depth:
            return Row(layer, z, self.scores)
        return Row(layer, z, layer.value(z))


class _Column(Sequence[Any]):
    """One part of the rows, by its name."""

    def __init__(self, rows: _Rows, part: str, places: range) -> None:
        self.rows, self.part, self.places = rows, part, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        place = self.places[index]
        if isinstance(place, range):
            return _Column(self.rows, self.part, place)
        if self.part == "h" and place + 1 == self.rows.depth:
            return self.rows.scores
        return getattr(self.rows.at(place), self.part)


def recomputed(layers: Iterator[Layer], depth: int, x: Tensor, scores: Tensor) -> tuple[Any, Pass]:
    """The layers, and the pass of x through them that gave the scores, for one walk through both in forward order.

    A layer and what the pass gives of it are there until the next layer's are asked for.
    """
    rows = _Rows(layers, depth, x, scores)
    taken, inputs, preactivations, activities = (
        cast(Any, _Column(rows, part, range(depth))) for part in ("layer", "z", "a", "h")
    )
    return taken, Pass(inputs, preactivations, activities)


class RecomputingRule(OutputErrorRule):
    """A rule with a second pass, of which one layer at a time may be held.

    `recompute=True` makes the clean pass twice, for one product more of each hidden layer. With `stream`, and
    with `step` where it steps unit by unit, the memory for activations then does not grow with depth.
    """

    def __init__(self, model: nn.Module, *, recompute: bool = False, **options: Any) -> None:
        super().__init__(model, **options)
        self.recompute = recompute
        if not recompute:
            return
        for unit in self.units:
            if unit.run or any(isinstance(part, _BatchNorm) for part in unit.parts):
                raise ValueError(
                    f"recompute: True, but unit '{unit.name}' has modules that a second clean pass would not repeat; "
                    "expected Linear and Conv2d with activations, Dropout and pooling"
                )

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        if not self.recompute:
            yield from super().stream(x, y)
            return
        x = self.checked(x, y)
        start = self.begin(x)
        replay = self.replay(x.device) if any(unit.dropout_rate for unit in self.units) else None
        scores = scores_of(self.each_layer(self.draw_masks(x, self.generator)), start)
        error, count = self.output_gradient(scores, y), self.loss.count(scores, y)
        layers, clean = recomputed(self.each_layer(self.draw_masks(x, replay)), len(self.units), start, scores)
        factors = self.factors(layers, clean, error, y)
        for index, unit in enumerate(self.units):
            delta, z = next(factors)
            update = None if delta is None else per_label(factored(layers[index]).update(z, delta), len(x), count)
            del delta, z  # not held while the next layer's are computed
            loss = self.output_loss(scores, y) if unit is self.units[-1] else None
            yield UnitUpdate(unit, None if update is None else unit.gradients(update), loss)
            del update
