"""Feedback alignment and its direct forms as rules: relatives of the forward-only ones."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .. import direct_feedback_alignment, feedback_alignment
from ..losses import one_hot
from ..network import ForwardPass, Masks, Network, forward, layer_update
from .rule import BlockUpdate, OutputErrorRule, check_place


class _FeedbackRule(OutputErrorRule):
    """A rule that carries a signal back through fixed random matrices: buffers feedback_0, feedback_1, and so on."""

    def _register(self, matrices: Iterable[Tensor], first: int = 0) -> None:
        self._names = []
        for i, matrix in enumerate(matrices, first):
            self._names.append(f"feedback_{i}")
            self.register_buffer(self._names[-1], matrix)

    @property
    def feedback(self) -> tuple[Tensor, ...]:
        """The matrices, first layer first."""
        return tuple(self.get_buffer(name) for name in self._names)

    def _factors(
        self, network: Network, clean: ForwardPass, error: Tensor, y: Tensor, masks: Masks
    ) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        for name in self._names:
            check_place(name, self.get_buffer(name), x)
        network, masks = self.network(), self.masks(x)
        clean = forward(network, x, masks)
        error = self.output_gradient(clean.scores, y)
        factors = self._factors(network, clean, error, y, masks)
        for block, (delta, z) in zip(self.blocks, factors, strict=True):
            loss = self.output_loss(clean.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.bias), loss)


class FeedbackAlignment(_FeedbackRule):
    """Feedback alignment (Lillicrap et al., 2016): a backward pass through random matrices shaped like the weights."""

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        weight = self.blocks[0].linear.weight
        widths = (weight.shape[1], *(block.linear.out_features for block in self.blocks))
        drawn = feedback_alignment.random_feedback(widths, generator, device=weight.device, dtype=weight.dtype)
        self._register(drawn[1:], first=1)  # nothing goes back through B_1

    def _factors(
        self, network: Network, clean: ForwardPass, error: Tensor, y: Tensor, masks: Masks
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return feedback_alignment.update_factors(network, clean, error, (network.weights[0], *self.feedback), masks)


class DirectFeedbackAlignment(_FeedbackRule):
    """Direct feedback alignment (Nokland, 2016): each hidden layer has its own random feedback matrix.

    The matrices, (n_l, K), are uniform on +-scale sqrt(6 / K). With `signs` they receive only the signs of the error.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 1.0,
        signs: bool = False,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale: {scale}, expected a positive number")
        self.signs = signs
        weight = self.blocks[0].linear.weight
        widths = tuple(block.linear.out_features for block in self.blocks[:-1])
        self._register(
            direct_feedback_alignment.random_feedback(
                widths, self.num_classes, generator, scale, device=weight.device, dtype=weight.dtype
            )
        )

    def _factors(
        self, network: Network, clean: ForwardPass, error: Tensor, y: Tensor, masks: Masks
    ) -> Iterator[tuple[Tensor, Tensor]]:
        signal = torch.sign(error) if self.signs else error
        return direct_feedback_alignment.update_factors(network, clean, error, self.feedback, masks, signal)


class DirectRandomTargetProjection(DirectFeedbackAlignment):
    """Direct random target projection (Frenkel et al., 2021): every hidden layer receives the label alone.

    Use Tanh. The label does not shrink as the error does, and with ReLU activations grow without bound.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 1.0,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, scale=scale, loss=loss, label_smoothing=label_smoothing, generator=generator)

    def _factors(
        self, network: Network, clean: ForwardPass, error: Tensor, y: Tensor, masks: Masks
    ) -> Iterator[tuple[Tensor, Tensor]]:
        targets = one_hot(y, self.num_classes, dtype=error.dtype)
        return direct_feedback_alignment.update_factors(network, clean, error, self.feedback, masks, targets)
