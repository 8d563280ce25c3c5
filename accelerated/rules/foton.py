"""FOTON as a rule."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..foton import error_projection, update_factors
from ..network import forward, layer_update
from .chain import Block
from .orthogonality import Orthogonality, PlainStep
from .rule import BlockUpdate, OutputErrorRule


class Foton(OutputErrorRule):
    """FOTON (arXiv 2512.20668): two forward passes through orthogonal weights.

    At construction the weights of the hidden layers are replaced, in place, by their polar factors, and `constrain()`
    keeps them orthogonal to within `limit` in every entry of their Gram matrices. The output layer is left free: the
    theory does not need it orthogonal, and it is trained with its exact gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        limit: float = 5e-3,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        hidden = {block.name: block.linear for block in self.blocks[:-1]}
        self.orthogonality = Orthogonality(hidden, limit=limit)
        self.orthogonality.initialise()
        self._last_step: dict[str, _Credit] = {}

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        network, masks = self.network(), self.masks(x)
        clean = forward(network, x, masks)
        error = self.output_gradient(clean.scores, y)
        factors = update_factors(network, clean, error, error_projection(network.weights), masks)
        self._last_step.clear()
        for block, a, (delta, z) in zip(self.blocks, clean.preactivations, factors, strict=True):
            is_output = block is self.blocks[-1]
            update = layer_update(delta, z, block.linear.bias)
            if not is_output:
                self._last_step[block.name] = _Credit(block, delta, z, a, block.linear.bias, update.weight)
            loss = self.output_loss(clean.scores, y) if is_output else None
            yield BlockUpdate(block, *update, loss)

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Restores orthogonality. Given the optimizer, plain SGD is recognised and costs thin products only.

        That is `torch.optim.SGD` without momentum and weight decay, stepped once since `assign_credit`, on the
        gradients as they were left. After anything else the Gram matrices of the weights tell what there is to
        restore.
        """
        plain = {}
        for name, credit in self._last_step.items():
            rate = plain_rate(optimizer, credit.block.linear.weight) if credit.was_applied() else None
            if rate is not None:
                plain[name] = PlainStep(credit.delta, credit.z, credit.preactivation, rate)
        self._last_step.clear()
        self.orthogonality.step(plain)


class _Credit:
    """What the last `assign_credit` gave to a block, held until `constrain`."""

    def __init__(
        self, block: Block, delta: Tensor, z: Tensor, a: Tensor, bias: Tensor | None, gradient: Tensor
    ) -> None:
        self.block = block
        self.delta, self.z = delta, z
        self.preactivation = a if bias is None else a - bias
        self.gradient = gradient
        self.versions = (gradient._version, block.linear.weight._version)

    def was_applied(self) -> bool:
        """Whether the weight was changed once since, with its gradient untouched."""
        weight = self.block.linear.weight
        versions = (self.gradient._version, weight._version - 1)
        return weight.grad is self.gradient and versions == self.versions


def plain_rate(optimizer: torch.optim.Optimizer | None, parameter: Tensor) -> float | None:
    """The learning rate of an optimizer that takes plain gradient steps on the parameter; None for any other."""
    if type(optimizer) is not torch.optim.SGD:
        return None
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            plain = not (group["momentum"] or group["weight_decay"] or group["maximize"])
            return float(group["lr"]) if plain else None
    return None
