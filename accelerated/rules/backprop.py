"""Backpropagation with the interface of a rule, to compare the others with."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ..modules import OrthogonalConv2d
from .images import Conv2dBlock, ConvolutionalBlock
from .orthogonality import Orthogonality, hidden_weights
from .rule import BlockUpdate, ConvolutionUpdate, OutputErrorRule, gradients_by


class Backprop(OutputErrorRule):
    """Backpropagation by PyTorch's autograd.

    `orthogonal=True` holds the weights of the hidden layers orthogonal as `Foton` does. This control separates the cost
    of the constraint from that of the rule. `stream` frees no memory: updates come after the whole backward pass.
    Dropout draws from PyTorch's global generator, as nn.Dropout does, and ignores `generator`.
    """

    convolution_kinds = (OrthogonalConv2d, nn.Conv2d)
    differentiates = True

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
            if any(isinstance(unit, Conv2dBlock) for unit in self.convolutions):
                raise ValueError("orthogonal: True, with Conv2d, whose kernels are not held orthogonal")
            self.orthogonality = Orthogonality(hidden_weights(self))
            self.orthogonality.initialise()

    def calls(self, module: nn.Module) -> bool:
        return True

    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate | ConvolutionUpdate]:
        self.checked(x, y)
        parameters = [p for unit in self.units for p in (*unit.weights, unit.bias) if p is not None]
        with torch.enable_grad():
            loss = self.objective(x, y)
            gradients = gradients_by(loss, parameters)
        for unit in self.units:
            found = [gradients[weight] for weight in unit.weights]
            bias = None if unit.bias is None else gradients[unit.bias]
            if isinstance(unit, ConvolutionalBlock):
                yield ConvolutionUpdate(unit, found[0], found[1:], bias)
            else:
                yield BlockUpdate(unit, found[0], bias, loss.detach() if unit is self.blocks[-1] else None)

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses nothing; raises FloatingPointError where the weights of the last steps were not orthogonal."""
        if self.orthogonality is not None:
            self.orthogonality.settle()

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        if self.orthogonality is not None:
            self.orthogonality.step()
