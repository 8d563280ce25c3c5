"""The loss at the scores as rules take it: by a name, as one of PyTorch's modules, or as a function of one's own."""

from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from .. import losses
from .._arrays import readable, wide
from ..score_losses import ScoreLossCredit

Targets: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""Labels, or targets as the scores; or a pair of these and a weight of each label."""

LossLike: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]
"""What `read_loss` reads."""


def parted(y: Targets) -> tuple[Tensor, Tensor | None]:
    """Labels or targets, and the weight of each label, if there are any."""
    return y if isinstance(y, tuple) else (y, None)


def check_labels(
    x: Tensor, y: Tensor, num_classes: int, positions: Sequence[int] = (), ignore_index: int | None = None
) -> None:
    """Raises ValueError unless y has a label in 0..K-1 for each sample of x, or for each position of it.

    Labels on a GPU are not looked at.
    """
    if not isinstance(y, Tensor):
        raise ValueError(f"y: a {type(y).__name__}, expected a torch.Tensor")
    shape = (len(x), *positions)
    if y.shape != shape or y.dtype != torch.int64:
        hint = ""
        if y.shape == (len(x), 1):
            hint = "; y.squeeze(1)" if y.dtype == torch.int64 else "; y.squeeze(1).long()"
        elif y.shape == (*shape, num_classes):
            hint = f"; y.argmax(dim={y.dim() - 1}) of one-hot labels"
        elif y.dim() == 1 and positions:
            hint = ", a label for each position of a sample"
        elif y.dim() == 1:
            hint = "; y.long()" if len(y) == len(x) else f", a label for each sample of x; got {len(y)} labels"
        raise ValueError(f"y: {y.dtype} of shape {tuple(y.shape)}, expected int64 of shape {shape}{hint}")
    check_device("y", y, x)
    if readable(y):  # elsewhere looking would wait for the device
        known = y if ignore_index is None else y.masked_fill(y == ignore_index, 0)
        low, high = (end.item() for end in known.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(f"y: labels {low}..{high}, expected 0..{num_classes - 1}")


def check_device(name: str, array: Tensor, x: Tensor) -> None:
    """Raises ValueError for another device than x's."""
    if array.device != x.device:
        raise ValueError(f"{name}: on {array.device}, expected {x.device}, where x is")


class Loss(nn.Module):
    """A loss of scores, (batch, ..., K). It has no parameters; class weights are buffers, which move with the rule."""

    labels: ClassVar[bool] = False
    """Whether y may be labels, int64, (batch, ...)."""
    targets_are: ClassVar[str] = ""
    """What targets as the scores are, if y may be those: probabilities, several labels (0 to 1 each) or numbers."""
    least_outputs: ClassVar[int] = 1
    """How many scores there have to be."""
    ignore_index: int | None = None
    share: float = 1.0
    """In a share of a larger batch, by what its weights are multiplied so that their mean in the larger one is 1."""

    def of_labels(self, scores: Tensor, y: Targets) -> Tensor:
        """The weighted loss of each label: (batch, ...)."""
        raise NotImplementedError

    def gradient(self, scores: Tensor, y: Targets) -> Tensor:
        """e, as the scores: N times the gradient of `value`."""
        raise NotImplementedError

    def value(self, scores: Tensor, y: Targets) -> Tensor:
        """The mean over the N labels that are not ignored, a scalar."""
        found, count = self.of_labels(scores, y), self.count(scores, y)
        return found.mean() if isinstance(count, int) else found.sum() / count.clamp(min=1)

    def count(self, scores: Tensor, y: Targets) -> int | Tensor:
        """N; a tensor where labels may be ignored, so that nothing waits for it."""
        return losses.number(scores, parted(y)[0], self.ignore_index)

    def total_weight(self, y: Targets) -> int | Tensor:
        """What the mean of a batch counts by beside those of others: the number of its labels, or their weight in all.

        Of targets as the scores it is in proportion to that.
        """
        labels, weight = parted(y)
        return labels.numel() if weight is None else weight.sum()

    def _in_share(self, found: Tensor) -> Tensor:
        return found if self.share == 1 else self.share * found

    def forward(self, scores: Tensor, y: Targets) -> ScoreLossCredit:
        """As a `ScoreLoss` of one layer: its means over the rows of scores are those over N labels."""
        found, error, count = self.of_labels(scores, y), self.gradient(scores.detach(), y), self.count(scores, y)
        if isinstance(count, int):
            return ScoreLossCredit(found, error)
        share = len(scores) / count.clamp(min=1).to(wide(scores.dtype))
        return ScoreLossCredit(share * found, share * error)

    def outputs(self, scores: Tensor) -> Tensor:
        """What targets are compared with, as the scores: probabilities, or the scores themselves."""
        return scores

    def pursued(self, scores: Tensor, y: Targets, error: Tensor) -> Tensor:
        """What e draws the outputs to, as the scores: the outputs less e, which are the targets themselves."""
        return self.outputs(scores) - error

    def label_vectors(self, scores: Tensor, y: Targets) -> Tensor:
        """The targets alone, as the scores, weighted as in the loss; 0 where a label is ignored."""
        raise NotImplementedError

    def for_scores(self, num_classes: int, like: Tensor) -> None:
        """Takes its class weights to the place of `like`. Raises ValueError unless there is one for each score."""
        for name, weight in self.named_buffers(recurse=False):
            if weight.numel() != 1 and weight.shape != (num_classes,):
                shape = tuple(weight.shape)
                raise ValueError(f"loss: its {name} has shape {shape}, expected ({num_classes},), one for each score")
            if not (weight >= 0).all() or not torch.isfinite(weight).all():
                raise ValueError(f"loss: its {name} has negative or infinite numbers, expected 0 or more")
            setattr(self, name, weight.detach().to(like).expand(num_classes).clone())

    def check(self, x: Tensor, y: Targets, num_classes: int, positions: Sequence[int] = ()) -> None:
        """Raises ValueError unless y fits x: a label, or targets of K scores, for each sample, or position of it."""
        labels, weight = y if isinstance(y, tuple) and len(y) == 2 else (y, None)
        shape = (len(x), *positions, num_classes)
        is_float = isinstance(labels, Tensor) and labels.is_floating_point()
        as_scores = is_float and (self.targets_are == "numbers" or labels.shape[len(shape) - 1 :] > (1,))
        if self.labels and num_classes > 1 and not as_scores:
            check_labels(x, labels, num_classes, positions, self.ignore_index)
        else:
            check_targets(x, labels, shape, self.targets_are)
        if weight is not None:
            _check_weight(x, weight, shape[:-1])


def check_targets(x: Tensor, y: Tensor, shape: tuple[int, ...], are: str) -> None:
    """Raises ValueError unless y has that shape, or that of labels for one score, in x's dtype, and are what they are.

    Their numbers are looked at on a CPU alone.
    """
    if not isinstance(y, Tensor):
        raise ValueError(f"y: a {type(y).__name__}, expected a torch.Tensor")
    fits = y.shape == shape or (*y.shape, 1) == shape
    dtype = x.dtype if x.is_floating_point() else None  # tokens say nothing of it
    if not fits or not y.is_floating_point() or dtype not in (None, y.dtype):
        hint = f"; y.to({dtype})" if fits and dtype is not None else ""
        expected = f"{dtype or 'real numbers'} of shape {shape}, {are}"
        raise ValueError(f"y: {y.dtype} of shape {tuple(y.shape)}, expected {expected}{hint}")
    check_device("y", y, x)
    if readable(y):
        low, high = (end.item() for end in y.aminmax())
        if are == "numbers" and not (isfinite(low) and isfinite(high)):
            raise ValueError("y: NaN or infinity among them, expected finite numbers")
        if are != "numbers" and not (low >= 0 and high <= 1):
            raise ValueError(f"y: {low}..{high}, expected 0..1, {are}")


def _check_weight(x: Tensor, weight: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.shape != shape:
        found = f"{weight.dtype} of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else f"{weight!r}"
        raise ValueError(f"weights of y: {found}, expected real numbers of shape {shape}, one for each label")
    check_device("weights of y", weight, x)
    if readable(weight) and not 0 <= weight.min().item() <= weight.max().item() < float("inf"):
        raise ValueError("weights of y: some negative or not finite, expected 0 or more")


class CrossEntropy(Loss):
    """Of labels, or of probabilities; see `prograde.accelerated.losses.cross_entropy`."""

    labels = True
    targets_are = "probabilities"
    least_outputs = 2
    class_weight: Tensor | None

    def __init__(
        self, label_smoothing: float = 0.0, class_weight: Tensor | None = None, ignore_index: int | None = None
    ) -> None:
        super().__init__()
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index
        self.register_buffer("class_weight", class_weight, persistent=False)

    def _options(self, weight: Tensor | None) -> tuple[Any, ...]:
        return 1.0, self.label_smoothing, self.class_weight, weight, self.ignore_index

    def of_labels(self, scores: Tensor, y: Targets) -> Tensor:
        labels, weight = parted(y)
        return self._in_share(losses.entropies(scores, labels, *self._options(weight)))

    def gradient(self, scores: Tensor, y: Targets) -> Tensor:
        labels, weight = parted(y)
        return self._in_share(losses.errors(scores, labels, *self._options(weight)))

    def total_weight(self, y: Targets) -> int | Tensor:
        labels, weight = parted(y)
        if labels.is_floating_point() or (self.ignore_index is None and self.class_weight is None):
            return super().total_weight(y)
        ignored = torch.zeros_like(labels, dtype=torch.bool)
        if self.ignore_index is not None:
            ignored = labels == self.ignore_index
        each = torch.ones_like(labels) if weight is None else weight
        if self.class_weight is not None:
            each = each * self.class_weight[labels.masked_fill(ignored, 0)]
        return each.masked_fill(ignored, 0).sum()

    def outputs(self, scores: Tensor) -> Tensor:
        return torch.softmax(scores, dim=-1)

    def _hot(self, scores: Tensor, labels: Tensor) -> Tensor:
        if losses.are_targets(scores, labels):
            return labels
        known = labels if self.ignore_index is None else labels.masked_fill(labels == self.ignore_index, 0)
        return losses.hot(known, scores.shape[-1], dtype=scores.dtype)

    def pursued(self, scores: Tensor, y: Targets, error: Tensor) -> Tensor:
        labels, weight = parted(y)
        if weight is not None or self.class_weight is not None:
            return super().pursued(scores, y, error)
        targets = self._hot(scores, labels)
        return losses.smoothed(targets, self.label_smoothing) if self.label_smoothing else targets

    def label_vectors(self, scores: Tensor, y: Targets) -> Tensor:
        labels, weight = parted(y)
        vectors = self._hot(scores, labels)
        if self.class_weight is not None:
            vectors = self.class_weight * vectors
        v = losses.label_weights(scores, labels, self.class_weight, weight, self.ignore_index)
        if v is not None:
            return self._in_share(losses.times(v, vectors))
        if self.ignore_index is None or losses.are_targets(scores, labels):
            return vectors
        return vectors.masked_fill((labels == self.ignore_index)[..., None], 0)


class BinaryCrossEntropy(Loss):
    """Of several labels at once: `prograde.accelerated.losses.binary_cross_entropy`, or its mean over the scores."""

    targets_are = "several labels"
    class_weight: Tensor | None
    positive_weight: Tensor | None

    def __init__(
        self, class_weight: Tensor | None = None, positive_weight: Tensor | None = None, mean: bool = False
    ) -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.register_buffer("positive_weight", positive_weight, persistent=False)

    def _scaled(self, scores: Tensor, found: Tensor) -> Tensor:
        return self._in_share(found / scores.shape[-1] if self.mean else found)

    def of_labels(self, scores: Tensor, y: Targets) -> Tensor:
        targets, weight = parted(y)
        found = losses.binary_cross_entropy(scores, targets, self.class_weight, self.positive_weight, weight)
        return self._scaled(scores, found)

    def gradient(self, scores: Tensor, y: Targets) -> Tensor:
        targets, weight = parted(y)
        found = losses.binary_cross_entropy_gradient(scores, targets, self.class_weight, self.positive_weight, weight)
        return self._scaled(scores, found)

    def outputs(self, scores: Tensor) -> Tensor:
        return torch.sigmoid(scores)

    def pursued(self, scores: Tensor, y: Targets, error: Tensor) -> Tensor:
        targets, weight = parted(y)
        if weight is not None or self.mean or self.class_weight is not None or self.positive_weight is not None:
            return super().pursued(scores, y, error)
        return losses.shaped(scores, targets)

    def label_vectors(self, scores: Tensor, y: Targets) -> Tensor:
        targets, weight = parted(y)
        vectors = losses.shaped(scores, targets)
        for factor in (self.class_weight, self.positive_weight):
            vectors = vectors if factor is None else factor * vectors
        v = losses.label_weights(scores, scores, None, weight, None)
        return self._scaled(scores, vectors if v is None else losses.times(v, vectors))


class Distance(Loss):
    """Of numbers: a loss of `prograde.accelerated.losses` by the differences of scores and targets.

    It is multiplied by `factor`, and divided by the number of scores where it is their `mean`.
    """

    targets_are = "numbers"

    def __init__(
        self, function: Callable[..., Tensor], gradient: Callable[..., Tensor], factor: float = 1.0, mean: bool = False
    ) -> None:
        super().__init__()
        self.function, self.function_gradient, self.factor, self.mean = function, gradient, factor, mean

    def _scaled(self, scores: Tensor, found: Tensor) -> Tensor:
        factor = self.factor / scores.shape[-1] if self.mean else self.factor
        return self._in_share(found if factor == 1 else factor * found)

    def of_labels(self, scores: Tensor, y: Targets) -> Tensor:
        targets, weight = parted(y)
        return self._scaled(scores, self.function(scores, targets, sample_weight=weight))

    def gradient(self, scores: Tensor, y: Targets) -> Tensor:
        targets, weight = parted(y)
        return self._scaled(scores, self.function_gradient(scores, targets, sample_weight=weight))


class SquaredError(Distance):
    """Half the sum of squares to the numbers, or to the one-hot label."""

    labels = True

    def __init__(self) -> None:
        super().__init__(losses.squared_error, losses.squared_error_gradient)

    def pursued(self, scores: Tensor, y: Targets, error: Tensor) -> Tensor:
        targets, weight = parted(y)
        return super().pursued(scores, y, error) if weight is not None else self._vectors(scores, targets)

    @staticmethod
    def _vectors(scores: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point():
            return losses.shaped(scores, y)
        return losses.hot(y, scores.shape[-1], dtype=scores.dtype)

    def label_vectors(self, scores: Tensor, y: Targets) -> Tensor:
        labels, weight = parted(y)
        v = losses.label_weights(scores, scores, None, weight, None)
        vectors = self._vectors(scores, labels)
        return self._in_share(vectors if v is None else losses.times(v, vectors))


class OwnLoss(Loss):
    """A function of scores and targets to their mean loss, used by its gradient at the scores alone."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def of_labels(self, scores: Tensor, y: Targets) -> Tensor:
        return self.value(scores, y).expand(scores.shape[:-1])

    def value(self, scores: Tensor, y: Targets) -> Tensor:
        found = self.function(scores, parted(y)[0])
        if not isinstance(found, Tensor) or found.dim() != 0:
            gave = (
                f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            )
            raise ValueError(f"loss: gives {gave}, expected a scalar, the mean over the labels")
        return found

    def gradient(self, scores: Tensor, y: Targets) -> Tensor:
        with torch.enable_grad():
            seen = scores.detach().requires_grad_()
            value = self.value(seen, y)
        if not value.requires_grad:
            raise ValueError("loss: its value has no graph to the scores, expected a differentiable function of them")
        (found,) = torch.autograd.grad(value, seen)
        return self.count(scores, y) * found

    def count(self, scores: Tensor, y: Targets) -> int:
        return scores[..., 0].numel()

    def check(self, x: Tensor, y: Targets, num_classes: int, positions: Sequence[int] = ()) -> None:
        """What y has to be is the function's to say, but a tensor with an entry for each sample."""
        if not isinstance(y, Tensor):
            hint = ", without weights, which the loss may have itself" if isinstance(y, tuple) else ""
            raise ValueError(f"y: a {type(y).__name__}, expected a torch.Tensor{hint}")
        if y.dim() == 0 or len(y) != len(x):
            raise ValueError(f"y: shape {tuple(y.shape)}, expected ({len(x)}, ...), targets for each sample of x")
        check_device("y", y, x)


NAMES = ("cross_entropy", "squared_error", "binary_cross_entropy", "huber")


def read_loss(loss: LossLike, label_smoothing: float = 0.0) -> Loss:
    """The loss of a name, of a module of torch.nn with reduction="mean", or of a function of one's own.

    Raises ValueError for anything else, and for label smoothing of another one than "cross_entropy".
    """
    if not 0 <= label_smoothing < 1 or (label_smoothing and loss != "cross_entropy"):
        raise ValueError(f"label_smoothing: {label_smoothing}, expected 0 <= label_smoothing < 1, for cross_entropy")
    match loss:
        case "cross_entropy":
            return CrossEntropy(label_smoothing)
        case "squared_error":
            return SquaredError()
        case "binary_cross_entropy":
            return BinaryCrossEntropy()
        case "huber":
            return Distance(losses.huber, losses.huber_gradient)
    if isinstance(loss, str | type) or not callable(loss):
        raise ValueError(
            f"loss: {loss!r}, expected {', '.join(map(repr, NAMES))}, a loss of torch.nn, or a function of scores and "
            "targets to their mean loss"
        )
    if isinstance(loss, nn.Module):
        return _of_module(loss)
    return OwnLoss(loss)


def _of_module(loss: Any) -> Loss:
    if getattr(loss, "reduction", "mean") != "mean":
        raise ValueError(f"loss: {type(loss).__name__} with reduction={loss.reduction!r}, expected 'mean'")
    if any(True for _ in loss.parameters()):
        raise ValueError(f"loss: {type(loss).__name__} has parameters, which no rule trains; expected one without")
    kind = type(loss)
    if kind is nn.CrossEntropyLoss:
        return CrossEntropy(loss.label_smoothing, loss.weight, loss.ignore_index)
    if kind is nn.BCEWithLogitsLoss:
        return BinaryCrossEntropy(loss.weight, loss.pos_weight, mean=True)
    if kind is nn.MSELoss:
        return Distance(losses.squared_error, losses.squared_error_gradient, 2.0, mean=True)
    if kind is nn.L1Loss or (kind is nn.SmoothL1Loss and loss.beta == 0):
        return Distance(losses.absolute_error, losses.absolute_error_gradient, mean=True)
    if kind in (nn.HuberLoss, nn.SmoothL1Loss):
        size = loss.delta if kind is nn.HuberLoss else loss.beta
        value, gradient = partial(losses.huber, delta=size), partial(losses.huber_gradient, delta=size)
        return Distance(value, gradient, 1.0 if kind is nn.HuberLoss else 1 / size, mean=True)
    return OwnLoss(loss)
