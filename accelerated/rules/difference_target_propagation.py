"""Difference target propagation as a rule: a relative of the forward-only ones."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..difference_target_propagation import inverse_factors, inverse_noise, random_inverses, update_factors
from ..network import Network, forward, layer_update
from .rule import BlockUpdate, OutputErrorRule, check_place


class DifferenceTargetPropagation(OutputErrorRule):
    """Difference target propagation (Lee et al., 2015): targets that run backward through learned inverses.

    `inverse_weights` and `inverse_biases` are parameters, which the same optimizer trains from the same batches.
    `noise` is the standard deviation of the noise on the activations that the inverses learn to recover. `step` is the
    length of the gradient step to the last hidden layer's target. Each inverse has the
    activation of the layer whose activations it recovers. The model has no Dropout.
    """

    takes_dropout = False

    def __init__(
        self,
        model: nn.Module,
        *,
        step: float = 1.0,
        noise: float = 0.1,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        for name, value in {"step": step, "noise": noise}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        for block in self.blocks:
            if block.dropout is not None:
                raise ValueError(f"layer '{block.name}': Dropout after it, which the inverses can't undo; remove it")
        if len(self.blocks) < 2:
            raise ValueError("model: no hidden layer; DifferenceTargetPropagation needs one to have a target")
        self.step, self.noise = step, noise
        self.widths = tuple(block.linear.out_features for block in self.blocks[:-1])
        weight = self.blocks[0].linear.weight
        drawn = random_inverses(self.widths, generator, device=weight.device, dtype=weight.dtype)
        self.inverse_weights = nn.ParameterList(drawn.weights)
        self.inverse_biases = nn.ParameterList([bias for bias in drawn.biases if bias is not None])

    def inverses(self) -> Network:
        """The inverses as functions of this package take them, each with the activation of the layer below."""
        activations = tuple(block.activation for block in self.blocks[: len(self.inverse_weights)])
        return Network(tuple(self.inverse_weights), tuple(self.inverse_biases), activations)

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        for name, parameter in self.inverse_weights.named_parameters():
            check_place(f"inverse_weights.{name}", parameter, x)
        network, inverses = self.network(), self.inverses()
        clean = forward(network, x)
        error = self.output_gradient(clean.scores, y)
        noise = inverse_noise(self.widths, len(x), self.generator, self.noise, device=x.device, dtype=x.dtype)
        factors = list(update_factors(network, inverses, clean, error, self.step))
        learned = [
            layer_update(delta, h, bias)
            for (delta, h), bias in zip(inverse_factors(network, inverses, clean, noise), inverses.biases, strict=True)
        ]
        for index, (block, (delta, z)) in enumerate(zip(self.blocks, factors, strict=True)):
            own: tuple[tuple[Tensor, Tensor], ...] = ()
            if 0 < index < len(self.blocks) - 1:
                update = learned[index - 1]
                assert update.bias is not None
                parameters = (self.inverse_weights[index - 1], self.inverse_biases[index - 1])
                own = tuple(zip(parameters, (update.weight, update.bias), strict=True))
            loss = self.output_loss(clean.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.bias), loss, own)
