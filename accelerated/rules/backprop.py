"""Backpropagation with the face of a rule: the yardstick of every other one."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .orthogonality import Orthogonality
from .rule import BlockUpdate, OutputErrorRule


class Backprop(OutputErrorRule):
    """Backpropagation by PyTorch's autograd.

    `orthogonal=True` holds the weights of the hidden layers orthogonal as `Foton` does: the control that tells what the
    constraint costs from what the rule costs. Updates come only after the whole backward pass: `stream` frees nothing.
    Dropout draws as nn.Dropout does, from PyTorch's global generator, whatever `generator` is.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        orthogonal: bool = False,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        self.orthogonality: Orthogonality | None = None
        if orthogonal:
            self.orthogonality = Orthogonality({block.name: block.linear for block in self.blocks[:-1]})
            self.orthogonality.initialise()

    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        self.checked(x, y)
        parameters = [p for block in self.blocks for p in (block.linear.weight, block.linear.bias) if p is not None]
        with torch.enable_grad():
            loss = self.objective(x, y)
            gradients = iter(torch.autograd.grad(loss, parameters))
        for block in self.blocks:
            weight = next(gradients)
            bias = None if block.linear.bias is None else next(gradients)
            yield BlockUpdate(block, weight, bias, loss.detach() if block is self.blocks[-1] else None)

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        if self.orthogonality is not None:
            self.orthogonality.step()
