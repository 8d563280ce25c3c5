"""Published local classifiers as rules. `options` are those of `LocalClassifiers`."""

import math
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from ..._arrays import check_positive
from ...score_losses import ScoreLoss, cosine_margin, cross_entropy, mixed, positive_versus_negative
from ..output_loss import LossLike
from .classifiers import LocalClassifiers
from .layer_aggregation import Aggregation
from .score_heads import (
    Assignment,
    ChannelHead,
    GridSize,
    GroupHead,
    LinearHead,
    PatchHead,
    PrototypeHead,
    ReadoutHead,
    each,
    gridded,
)

Competition: TypeAlias = Literal["cwc", "pvn", "mixed"]
"""CwComp's losses: cross-entropy, positive versus negative, and .28 of the one with .72 of the other."""


class MonoForward(LocalClassifiers, sets=("score",)):
    """Mono-Forward (arXiv 2501.09238): a learned linear map of each layer's activities, and its cross-entropy.

    This is the simplest of these rules. The paper's head maps all units of a convolution; here they are averaged over
    `grid` x `grid` cells first. The paper scores by the sum of all layers or by the last.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> x, y, rule = torch.eye(2), torch.tensor([0, 2]), MonoForward(model)
    >>> updates = list(rule.stream(x, y))
    >>> torch.allclose(rule.assign_credit(x, y), sum(update.loss for update in updates), atol=1e-6)
    True
    """

    def __init__(self, model: nn.Module, *, grid: GridSize = 4, **options: Any) -> None:
        super().__init__(model, score=gridded(LinearHead, grid, generator=options.get("generator")), **options)


class Hyperspherical(LocalClassifiers, sets=("score",)):
    """Hyperspherical Forward-Forward (arXiv 2605.00082), as its summaries are read: cosines to learned prototypes.

    Each class has `per_class` prototypes; a soft maximum of `sharpness` joins their cosines. The loss is the
    cross-entropy of `scale` times the cosines, the label's reduced by `margin`; `loss` replaces it. Layers should pass
    on their direction alone: put nn.RMSNorm(width, elementwise_affine=False) or `ChannelNorm` behind each.

    Raises ValueError unless `scale` is positive, and for a negative `margin`.

    >>> rule, x = Hyperspherical(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))), torch.eye(2)
    >>> bool((rule(x).abs() <= 1).all())  # the cosines of one layer
    True
    """

    scores_are = "cosines to prototypes of classes"

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 20.0,
        margin: float = 0.0,
        per_class: int = 1,
        sharpness: float = 10.0,
        grid: GridSize = 4,
        loss: LossLike | ScoreLoss | None = None,
        **options: Any,
    ) -> None:
        check_positive("scale", scale)
        if not 0 <= margin < math.inf:
            raise ValueError(f"margin: {margin}, expected 0 or more")
        generator = options.get("generator")
        score = gridded(PrototypeHead, grid, per_class=per_class, sharpness=sharpness, generator=generator)
        super().__init__(model, score=score, loss=loss or cosine_margin(scale, margin), **options)


class DynamicTemperature(LocalClassifiers, sets=("score",)):
    """DTG-FF (arXiv 2606.06539): squares averaged over cells, by a fixed random read-out at a learned temperature.

    `grid` is the number of cells a side, for all layers or for each. None is the paper's: the last layer's channels
    divided by this layer's, rounded down. That is 1 in a network that does not widen, and the mean of a whole map
    carries little information; use 4 there. A dense layer has all its squares read out, as in the paper's synthetic
    experiment. The paper's other dense form is not local and is `HybridDynamicTemperature`. Temperatures stay between
    `lowest` and `highest`: 0.5 and 2 are published for convolutions, 0.1 and 2 for dense networks. Put `ChannelNorm`
    behind each layer. The paper's other classifier is `aggregation="readout"`, `first_layer=1`, `readout_dropout=0.2`,
    `readout_smoothing=0.1`.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> rule = DynamicTemperature(model)
    >>> loss = rule.assign_credit(torch.eye(2), torch.tensor([0, 2]))
    >>> [tuple(p.shape) for p in rule.no_weight_decay()]  # the temperature of each layer
    [()]
    """

    def __init__(
        self, model: nn.Module, *, grid: GridSize = None, lowest: float = 0.5, highest: float = 2.0, **options: Any
    ) -> None:
        generator = options.get("generator")
        score = gridded(ReadoutHead, grid, lowest=lowest, highest=highest, generator=generator)
        super().__init__(model, score=score, **options)


class PatchEnergy(LocalClassifiers, sets=("score",)):
    """ASGE (arXiv 2509.12394): the energies of patches through a fixed random read-out, whose law it omits.

    `grid` is the number of patches a side, for all layers or for each; None, the paper's, as in `DynamicTemperature`.
    A published layer is Conv2d, ReLU, nn.LPPool2d(2, 2) and `ChannelNorm`. LPPool2d of norm 2 takes roots of sums; the
    paper takes those of means, half as large. The normalisation leaves no difference, but for its eps.

    >>> layer = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.LPPool2d(2, 2), modules.ChannelNorm()
    >>> PatchEnergy(nn.Sequential(*layer), num_classes=3)(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, model: nn.Module, *, grid: GridSize = None, **options: Any) -> None:
        super().__init__(model, score=gridded(PatchHead, grid, generator=options.get("generator")), **options)


class DeeperForward(LocalClassifiers, sets=("score",)):
    """DeeperForward (Sun et al., ICLR 2025): mean activities of the channels of each class.

    Put nn.GroupNorm(num_classes, channels, affine=False), the same groups, behind each layer. `calibrate` chooses the
    range of layers. `fit` calls it after every epoch; call it in a loop of your own.

    >>> model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    >>> rule, x = DeeperForward(model), torch.eye(2)
    >>> torch.allclose(rule(x), model[:4](x).view(2, 3, 2).mean(dim=2), atol=1e-6)
    True
    """

    scores_are = "mean activities of the channels of a class"

    def __init__(self, model: nn.Module, *, aggregation: Aggregation = "range", **options: Any) -> None:
        super().__init__(model, score=each(GroupHead), aggregation=aggregation, **options)


class ChannelCompetition(LocalClassifiers, sets=("score",)):
    """CwComp (arXiv 2312.12668): mean squares of the channels of each class, after batch normalisation.

    Normalisation, and pooling before it, are part of the layer that learns. Scores are the last layer's, unless
    `aggregation` says otherwise.

    Raises ValueError for an unknown loss.

    >>> ChannelCompetition(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    Traceback (most recent call last):
    ValueError: layer '0': 4 channels, expected a multiple of the 3 classes
    """

    scores_are = "mean squares of the channels of a class"

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Competition | ScoreLoss = "cwc",
        aggregation: Aggregation = "last",
        **options: Any,
    ) -> None:
        losses = dict(zip(get_args(Competition), (cross_entropy, positive_versus_negative, mixed), strict=True))
        if isinstance(loss, str) and loss not in losses:
            raise ValueError(f"loss: {loss!r}, expected one of {', '.join(losses)}, or a loss")
        found = losses[loss]() if isinstance(loss, str) else loss
        options = {"score_after": "normalisation", **options}
        super().__init__(model, score=each(GroupHead, square=True), loss=found, aggregation=aggregation, **options)


class ChannelClassAssignment(LocalClassifiers, sets=("score",)):
    """CAW-Conv (arXiv 2606.09928): pooled channels, each with a learned distribution over the classes.

    `assignment` is "learned" from noise, or for comparison "static" (contiguous groups) or "frozen" as drawn. Layers
    are weighted by their losses: on held-out data as in the paper's text, or with `aggregation="training-loss"` as in
    its code. "sum" weights them evenly. `calibrate` chooses the weights and cools the temperatures. `fit` calls it
    after every epoch; call it in a loop of your own. `settings` are those of `ChannelHead`, by name. The loss is a
    cross-entropy with `label_smoothing`, 0.1 unless given, or the `loss` that is given. The paper puts
    nn.InstanceNorm2d behind each layer and clips the gradient of each layer at a norm of 1.

    Raises ValueError for `label_smoothing` beside a loss.

    >>> model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.InstanceNorm2d(6), nn.Conv2d(6, 6, 3), nn.ReLU())
    >>> rule = ChannelClassAssignment(model, num_classes=3)
    >>> rule(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 3])
    """

    scores_are = "channels assigned to classes"

    def __init__(
        self,
        model: nn.Module,
        *,
        assignment: Assignment = "learned",
        label_smoothing: float | None = None,
        aggregation: Aggregation = "validation-loss",
        settings: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        score = each(ChannelHead, assignment=assignment, generator=options.get("generator"), **(settings or {}))
        if options.get("loss") is None:
            options["loss"] = cross_entropy(0.1 if label_smoothing is None else label_smoothing)
        elif label_smoothing is not None:
            raise ValueError(f"label_smoothing: {label_smoothing}, but a loss is given, which has its own if any")
        super().__init__(model, score=score, aggregation=aggregation, **options)
