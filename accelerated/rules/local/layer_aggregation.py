"""One class score from those of all layers, with what is chosen or learned for it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Self, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ..._arrays import wide, widened
from ...aggregation import loss_weights, range_hits, weighted
from ...local_classifiers import concatenated
from ...score_losses import ScoreLoss
from ..output_loss import CrossEntropy, Loss, Targets
from ..rule import UnitUpdate, gradients_by
from ..units import Unit
from .score_heads import judged

Aggregation: TypeAlias = Literal["last", "sum", "range", "validation-loss", "training-loss", "readout"]
"""How one score is made; `LocalClassifiers` says what they are."""


class LayerAggregation(nn.Module):
    """Weights of the layers, which `forward` multiplies their scores with; or a read-out of their activities."""

    weights: Tensor
    loss_total: Tensor
    loss_count: Tensor

    def __init__(
        self,
        kind: Aggregation,
        widths: Sequence[int],
        num_classes: int,
        *,
        first_layer: int | None,
        dropout: float,
        smoothing: float,
        like: Tensor,
    ) -> None:
        super().__init__()
        if kind not in get_args(Aggregation):
            raise ValueError(f"aggregation: {kind!r}, expected one of {', '.join(get_args(Aggregation))}")
        if first_layer is not None and kind not in ("sum", "range", "readout"):
            raise ValueError(f"first_layer: {first_layer}, but the aggregation is {kind!r}, expected None")
        for name, rate in (("readout_dropout", dropout), ("readout_smoothing", smoothing)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: {rate}, expected 0 or more and less than 1")
            if rate and kind != "readout":
                raise ValueError(f"{name}: {rate}, but the aggregation is {kind!r}, expected 'readout'")
        if first_layer is None:
            first_layer = 1 if kind == "range" and len(widths) > 1 else 0
        if type(first_layer) is not int or not 0 <= first_layer < len(widths):
            raise ValueError(f"first_layer: {first_layer}, expected 0..{len(widths) - 1}")
        self.kind, self.first_layer, self.smoothing = kind, first_layer, smoothing
        weights = torch.zeros(len(widths), device=like.device, dtype=like.dtype)
        # Of every layer since the last epoch, in more digits than half precision has: its sums would soon stand still.
        self.register_buffer("loss_total", torch.zeros_like(weights, dtype=wide(weights.dtype)))
        self.register_buffer("loss_count", torch.zeros_like(self.loss_total))
        if kind == "last":
            weights[-1] = 1
        elif kind in ("validation-loss", "training-loss"):
            weights += 1 / len(widths)
        else:
            weights[first_layer:] = 1
        self.register_buffer("weights", weights)
        self.readout: nn.Sequential | None = None
        if kind == "readout":
            width = sum(widths[first_layer:])
            layers = nn.BatchNorm1d(width), nn.Dropout(dropout), nn.Linear(width, num_classes)
            self.readout = nn.Sequential(*layers).to(like.device, like.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.loss_total, self.loss_count = widened(self.loss_total), widened(self.loss_count)
        return self

    def forward(self, scores: Tensor) -> Tensor:
        """(layers, batch, K) to (batch, K)."""
        taken = self.weights[:, None, None] != 0  # infinite scores of layers left out would not be 0 by any weight
        return weighted(torch.where(taken, scores, 0), self.weights)

    def note(self, layer: int, loss: Tensor, weight: float | Tensor) -> None:
        """Takes down a layer's mean loss in training, of labels of so much weight; see `counted`."""
        if self.kind == "training-loss" and self.training:
            self.loss_total[layer] += loss * weight
            self.loss_count[layer] += weight

    @torch.no_grad()
    def choose(
        self, layer_scores: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], loss: ScoreLoss
    ) -> None:
        """Sets the weights that held-out data, or the noted losses, ask for."""
        if self.kind == "range":
            hits = sum(range_hits(*known(layer_scores(x), y, loss)) for x, y in batches)
            if isinstance(hits, Tensor):
                first, last = divmod(int(hits.argmax()), len(self.weights))  # the first of equals, row by row
                layers = torch.arange(len(self.weights), device=self.weights.device)
                self.weights.copy_((layers >= first) & (layers <= last))
            return
        if self.kind == "validation-loss":
            for x, y in batches:
                scores = layer_scores(x)
                weight = counted(loss, y, scores.shape[1])
                self.loss_total += weight * torch.stack([judged(loss, of_layer, y).loss.mean() for of_layer in scores])
                self.loss_count += weight
        if self.kind in ("validation-loss", "training-loss") and self.loss_count.all():
            self.weights.copy_(loss_weights(self.loss_total / self.loss_count))
        self.loss_total.zero_()
        self.loss_count.zero_()

    def features(self, activities: Iterable[Tensor]) -> Tensor:
        """What the read-out sees of all layers' activities: (batch, sum of widths)."""
        return torch.cat([concatenated([h]) for h in islice(activities, self.first_layer, None)], dim=1)

    def readout_updates(self, features: list[Tensor], y: Any, ignore_index: int | None) -> Iterator[UnitUpdate]:
        """The read-out's, if there is one, by its own loss, from what each layer gives to `features`."""
        if self.readout is None:
            return
        norm, _, linear = self.readout
        assert isinstance(linear, nn.Linear)
        trained = [linear.weight, linear.bias, *norm.parameters()]
        with torch.enable_grad():
            scores = self.readout(torch.cat(features[self.first_layer :], dim=1))
            loss = CrossEntropy(self.smoothing, ignore_index=ignore_index).value(scores, y)
        gradients = gradients_by(loss, trained)
        own = tuple((p, gradients[p]) for p in norm.parameters())
        unit = Unit("readout", linear)
        yield UnitUpdate(unit, [gradients[p] for p in unit.parameters], loss.detach(), own)


def counted(loss: ScoreLoss, y: Targets, samples: int) -> float | Tensor:
    """What a batch's mean loss counts by beside those of others: the labels in it, or what these weigh."""
    return loss.total_weight(y) / loss.share if isinstance(loss, Loss) else samples


def known(scores: Tensor, y: Tensor, loss: ScoreLoss) -> tuple[Tensor, Tensor]:
    """Scores, (layers, batch, K), and labels but for those that the loss ignores."""
    ignored = getattr(loss, "ignore_index", None)
    if ignored is None:
        return scores, y
    kept = y != ignored
    return scores[:, kept], y[kept]
