"""Backpropagation with the interface of a rule, to compare the others with."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from ..modules import OrthogonalConv2d
from .local.module_rule import ModuleRule
from .local.units import LOCAL
from .orthogonality import Orthogonality, hidden_weights
from .output_loss import LossLike, Targets, read_loss
from .rule import OutputLoss, UnitUpdate, gradients_by


class Backprop(OutputLoss, ModuleRule):
    """Backpropagation by PyTorch's autograd, on any model that another rule of this package trains but recurrent ones.

    The model ends with a Linear to the scores; `loss` and y are those of `OutputLoss`. `orthogonal=True` holds the
    weights of the hidden layers orthogonal as `Foton` does. This control separates the cost of the constraint from that
    of the rule. `stream` frees no memory: updates come after the whole backward pass. Dropout draws from PyTorch's
    global generator, as nn.Dropout does, and ignores `generator`.
    """

    kinds = (*LOCAL, OrthogonalConv2d)
    whole = True
    differentiates = True

    def __init__(
        self,
        model: nn.Module,
        *,
        orthogonal: bool = False,
        loss: LossLike = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, least_classes=read_loss(loss, label_smoothing).least_outputs, generator=generator)
        self.set_loss(loss, label_smoothing)
        self.orthogonality: Orthogonality | None = None
        if orthogonal:
            if any(isinstance(unit.module, nn.Conv2d) for unit in self.units):
                raise ValueError("orthogonal: True, with Conv2d, whose kernels are not held orthogonal")
            self.orthogonality = Orthogonality(hidden_weights(self))
            self.orthogonality.initialise()
        self.check_hooks()

    def calls(self, module: nn.Module) -> bool:
        return True

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        """The units' updates; with the last one come those of parameters that belong to no unit, as normalisations'."""
        x = self.checked(x, y)
        with torch.enable_grad():
            loss = self.output_loss(self.model(x), y)
            gradients = gradients_by(loss, self.model.parameters())
        taken = {p for unit in self.units for p in unit.parameters}
        others = tuple((p, g) for p, g in gradients.items() if p not in taken)
        *hidden, last = (UnitUpdate(unit, [gradients[p] for p in unit.parameters]) for unit in self.units)
        yield from hidden
        yield last._replace(loss=loss.detach(), own=others)

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses nothing; raises FloatingPointError where the weights of the last steps were not orthogonal."""
        if self.orthogonality is not None:
            self.orthogonality.settle()

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        if self.orthogonality is not None:
            self.orthogonality.step()
