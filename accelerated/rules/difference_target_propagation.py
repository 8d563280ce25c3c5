"""Difference target propagation as a rule: a relative of the forward-only ones."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..difference_target_propagation import inverse_factors, inverse_noise, random_inverses, update_factors
from ..layers import Dense, dense_chain, forward, updates
from .output_loss import Targets
from .rule import OutputErrorRule, UnitUpdate, check_place


class DifferenceTargetPropagation(OutputErrorRule):
    """Difference target propagation (Lee et al., 2015): targets that run backward through learned inverses.

    `inverse_weights` and `inverse_biases` are parameters, which the same optimizer trains from the same batches.
    `noise` is the standard deviation of the noise on the activations that the inverses learn to recover. `step` is the
    length of the gradient step to the last hidden layer's target. Each inverse has the
    activation of the layer whose activations it recovers. The model has no Dropout.

    Raises ValueError for a model without a hidden layer, and unless `step` and `noise` are positive.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    >>> rule = DifferenceTargetPropagation(model)
    >>> [tuple(weight.shape) for weight in rule.inverse_weights]  # from the second hidden layer to the first
    [(4, 5)]
    """

    takes_dropout = False
    takes_positions = "never"
    needs = "dense layers, which it learns to invert"

    def __init__(
        self,
        model: nn.Module,
        *,
        step: float = 1.0,
        noise: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        for name, value in {"step": step, "noise": noise}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        if len(self.units) < 2:
            raise ValueError("model: no hidden layer; DifferenceTargetPropagation needs one to have a target")
        self.target_step, self.noise = step, noise
        self.widths = tuple(unit.width for unit in self.units[:-1])
        weight = self.units[0].weights[0]
        drawn = random_inverses(self.widths, self.generator, device=weight.device, dtype=weight.dtype)
        self.inverse_weights = nn.ParameterList([inverse.weight for inverse in drawn])
        self.inverse_biases = nn.ParameterList([inverse.bias for inverse in drawn])

    def inverses(self) -> tuple[Dense, ...]:
        """The inverses as functions of this package take them, each with the activation of the layer below."""
        activations = [unit.activation for unit in self.units[: len(self.inverse_weights)]]
        return dense_chain(tuple(self.inverse_weights), tuple(self.inverse_biases), activations)

    def stream(self, x: Tensor, y: Targets) -> Iterator[UnitUpdate]:
        x = self.checked(x, y)
        for name, parameter in self.inverse_weights.named_parameters():
            check_place(f"inverse_weights.{name}", parameter, x)
        layers, inverses = self.layers(), self.inverses()
        clean = forward(layers, x)
        error = self.output_gradient(clean.scores, y)
        drawn = inverse_noise(self.widths, self.samples(x), self.generator, self.noise, device=x.device, dtype=x.dtype)
        noise = tuple(map(self.own, drawn))
        factors = update_factors(layers, inverses, clean, error, self.target_step)
        found = updates(layers, factors, self.loss.count(clean.scores, y))
        learned = updates(inverses, inverse_factors(layers, inverses, clean, noise))
        parameters = zip(self.inverse_weights, self.inverse_biases, strict=True)
        pairs = (tuple(zip(held, update, strict=True)) for held, update in zip(parameters, learned, strict=True))
        for unit, update, own in zip(self.units, found, ((), *pairs, ()), strict=True):
            yield UnitUpdate(unit, update, self.output_loss(clean.scores, y) if unit is self.units[-1] else None, own)
