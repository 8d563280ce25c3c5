"""Backpropagation with the interface of a rule, to compare the others with."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .._autocast import lowered, outside
from .cutting import Units, default_strides, no_tensor
from .local.module_rule import ModuleRule
from .orthogonality import Orthogonality, hidden_weights
from .output_loss import LossLike, Targets, read_loss
from .rule import OutputLoss, UnitUpdate, gradients_by


class Backprop(OutputLoss, ModuleRule):
    """Backpropagation by PyTorch's autograd, on any model.

    The model gives scores, (batch, K): its last Linear tells K, or an `example`, a batch as it takes it. `loss` and y
    are those of `OutputLoss`. The layers of an `nn.Sequential` are its units, or the `units` of any model, as
    `LocalClassifiers` takes them; without them a model of another kind is one unit. `orthogonal=True` holds the weights
    of the hidden layers orthogonal as `Foton` does. This control separates the cost of the constraint from that of the
    rule. `stream` frees no memory: updates come after the whole backward pass. Dropout draws from PyTorch's global
    generator, as nn.Dropout does, and ignores `generator`.

    Raises ValueError for a model whose hidden weights cannot be held orthogonal where they are to be, and for
    hooks.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> x, y = torch.eye(2), torch.tensor([0, 2])
    >>> loss = Backprop(model).assign_credit(x, y)
    >>> [expected] = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model[0].weight)
    >>> torch.allclose(model[0].weight.grad, expected, atol=1e-6)
    True
    """

    whole = True
    differentiates = True

    def __init__(
        self,
        model: nn.Module,
        *,
        units: Units | None = None,
        example: Tensor | None = None,
        orthogonal: bool = False,
        loss: LossLike = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        least = read_loss(loss, label_smoothing).least_outputs
        super().__init__(model, units=units, example=example, least_classes=least, generator=generator)
        self.set_loss(loss, label_smoothing)
        self.orthogonality: Orthogonality | None = None
        if orthogonal:
            for unit in self.units:
                kind = type(unit.module).__name__
                if not unit.held:
                    what = "kernels" if isinstance(unit.module, nn.Conv2d) else "weights"
                    raise ValueError(f"orthogonal: True, with {kind}, whose {what} are not held orthogonal")
            self.orthogonality = Orthogonality(hidden_weights(self))
            with outside(self.units[0].weights[0].device):
                self.orthogonality.initialise()
        self.check_hooks()

    def calls(self, module: nn.Module) -> bool:
        return True

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        """The units' updates; with the last one come those of parameters that belong to no unit, as normalisations'."""
        x = self.checked(x, y)
        with torch.enable_grad(), lowered():
            scores = self.model(default_strides(self.model, x))
            if not isinstance(scores, Tensor):
                raise no_tensor(scores)
            self._check_scores(x, scores)
            loss = self.output_loss(scores, y)
            gradients = gradients_by(loss, self.model.parameters())
        taken = {p for unit in self.units for p in unit.parameters}
        others = tuple((p, g) for p, g in gradients.items() if p not in taken)
        *hidden, last = (UnitUpdate(unit, [gradients[p] for p in unit.parameters]) for unit in self.units)
        yield from hidden
        yield last._replace(loss=loss.detach(), own=others)

    def _check_scores(self, x: Tensor, scores: Tensor) -> None:
        """Raises ValueError for scores of other positions than labels are of, over which a loss might broadcast."""
        expected = (len(x), *self.positions(x), self.num_classes)
        if scores.shape != expected:
            raise ValueError(
                f"model: gives {tuple(scores.shape)}, expected {expected}; "
                "where positions have a label each, give the rule an example"
            )

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses nothing; raises FloatingPointError where the weights of the last steps were not orthogonal."""
        if self.orthogonality is not None:
            self.orthogonality.settle()

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        if self.orthogonality is not None:
            with outside(self.units[0].weights[0].device):
                self.orthogonality.step()
