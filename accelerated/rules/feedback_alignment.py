"""Feedback alignment and its direct forms as rules: relatives of the forward-only ones."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import direct_feedback_alignment, feedback_alignment
from .._arrays import check_positive
from ..direct_random_target_projection import without_mean
from ..layers import Layer, Pass
from .output_loss import Targets, parted
from .rule import OutputErrorRule, check_place, has_shared_positions

NUMBERS = "but DirectRandomTargetProjection sends labels in place of errors; expected a loss of labels"


class _FeedbackRule(OutputErrorRule):
    """A rule that carries a signal back through fixed random matrices: buffers feedback_0, feedback_1, and so on."""

    convolution_kinds = (nn.Conv2d,)

    def _register(self, matrices: Iterable[Tensor], first: int = 0) -> None:
        self._names = []
        for i, matrix in enumerate(matrices, first):
            self._names.append(f"feedback_{i}")
            self.register_buffer(self._names[-1], matrix)

    @property
    def feedback(self) -> tuple[Tensor, ...]:
        """The matrices, first layer first."""
        return tuple(self.get_buffer(name) for name in self._names)

    def checked(self, x: Tensor, y: Targets) -> Tensor:
        x = super().checked(x, y)
        for name in self._names:
            check_place(name, self.get_buffer(name), self.units[0].weights[0])
        return x


class FeedbackAlignment(_FeedbackRule):
    """Feedback alignment (Lillicrap et al., 2016): a backward pass through random arrays shaped like the weights.

    Models for images may begin with Conv2d and pooling; their kernels have random kernels as feedback.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> rule, x, y = FeedbackAlignment(model), torch.eye(2), torch.tensor([0, 2])
    >>> rule.feedback[0].data[:] = model[2].weight.data  # with the weight itself it is backpropagation
    >>> loss, weight = rule.assign_credit(x, y), model[0].weight
    >>> torch.allclose(weight.grad, torch.autograd.grad(rule.objective(x, y), weight)[0], atol=1e-6)
    True
    """

    needs = "layers with a weight that a random one can stand in for"

    def __init__(
        self,
        model: nn.Module,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        shapes = [tuple(unit.weights[0].shape) for unit in self.units]
        weight = self.units[0].weights[0]
        drawn = feedback_alignment.random_feedback(shapes, self.generator, device=weight.device, dtype=weight.dtype)
        self._register(drawn[1:], first=1)  # nothing goes back through B_1

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Targets
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return feedback_alignment.update_factors(layers, clean, error, self.feedback)


class DirectFeedbackAlignment(_FeedbackRule):
    """Direct feedback alignment (Nokland, 2016): each hidden layer has its own random feedback matrix.

    The matrices, (n_l, K), are uniform on +-scale sqrt(6 / K). With `signs` they receive only the signs of the error.

    Models for images may begin with Conv2d and pooling; `image_size`, (height, width) of the images, gives the sizes
    of their feature maps. `by_channel=True` gives all positions of a channel one row of the matrix (ours, as positions
    share a kernel). The matrices of maps are drawn at `scale` / sqrt(positions), or / positions with `by_channel`:
    the update of a kernel is a sum over positions.

    Raises ValueError unless `scale` is positive, and for `by_channel` without convolutions.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    >>> [tuple(matrix.shape) for matrix in DirectFeedbackAlignment(model).feedback]
    [(4, 3), (5, 3)]
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 1.0,
        signs: bool = False,
        image_size: tuple[int, int] | None = None,
        by_channel: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        check_positive("scale", scale)
        shapes = self.sample_shapes(image_size)[1:-1]
        hidden = [(shape, unit.gives_channels_first) for shape, unit in zip(shapes, self.units, strict=False)]
        if by_channel and not any(has_shared_positions(*of_unit) for of_unit in hidden):
            raise ValueError("by_channel: True, but the model has no convolutions")
        self.signs, self.by_channel = signs, self._by_channel(by_channel, default=False)
        self._register(self._drawn(*of_unit, scale) for of_unit in hidden)

    def _drawn(self, shape: tuple[int, ...], channels_first: bool, scale: float) -> Tensor:
        by_channel = self.by_channel and has_shared_positions(shape, channels_first)
        rows, scale = self.rows_and_scale(shape, channels_first, scale, by_channel)
        weight = self.units[0].weights[0]
        (drawn,) = direct_feedback_alignment.random_feedback(
            (rows,), self.num_classes, self.generator, scale, device=weight.device, dtype=weight.dtype
        )
        return drawn

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Targets
    ) -> Iterator[tuple[Tensor, Tensor]]:
        signal = torch.sign(error) if self.signs else error
        return direct_feedback_alignment.update_factors(layers, clean, error, self.feedback, signal)


class DirectRandomTargetProjection(DirectFeedbackAlignment, sets=("signs",)):
    """Direct random target projection (Frenkel et al., 2021): every hidden layer receives the label alone.

    A label tells the sign of an error whose outputs lie between 0 and 1: losses of numbers, and functions of one's own,
    are refused. Use Tanh. The label does not shrink as the error does, and with ReLU activations grow without bound.
    `centred` (ours) takes the mean of its K entries off each label, 1/K of a class, which moves all samples alike:
    transformers and recurrent layers need it. Images and `by_channel` are as for `DirectFeedbackAlignment`.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> rule, x, y = DirectRandomTargetProjection(model), torch.eye(2), torch.tensor([0, 2])
    >>> first, _ = rule.stream(x, y)
    >>> model[2].weight.data *= 10  # whatever the scores, the hidden layer learns the same
    >>> torch.equal(first.gradients[0], next(rule.stream(x, y)).gradients[0])
    True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        centred: bool = False,
        scale: float = 1.0,
        image_size: tuple[int, int] | None = None,
        by_channel: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, scale=scale, image_size=image_size, by_channel=by_channel, **options)
        if not (self.loss.labels or self.loss.targets_are == "several labels"):
            raise ValueError(f"loss: {options['loss']!r}, {NUMBERS}")
        if centred and self.num_classes == 1:
            raise ValueError("centred: True, expected False of one score, whose label would be 0")
        self.centred = centred

    def check_y(self, x: Tensor, y: Targets) -> None:
        super().check_y(x, y)
        if self.loss.targets_are == "numbers" and parted(y)[0].is_floating_point():
            raise ValueError(f"y: numbers, {NUMBERS}")

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Targets
    ) -> Iterator[tuple[Tensor, Tensor]]:
        targets = self.loss.label_vectors(clean.scores, y)
        targets = without_mean(targets) if self.centred else targets
        return direct_feedback_alignment.update_factors(layers, clean, error, self.feedback, targets)
