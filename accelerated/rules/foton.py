"""FOTON as a rule."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..foton import error_projection, update_factors
from ..network import forward, layer_update
from .orthogonality import Orthogonality
from .rule import BlockUpdate, OutputErrorRule


class Foton(OutputErrorRule):
    """FOTON (arXiv 2512.20668): two forward passes through orthogonal weights.

    At construction the weights of the hidden layers are replaced, in place, by their polar factors, and `constrain()` keeps
    them orthogonal to within `limit` in every entry of their Gram matrices. The output layer is left free: the theory does
    not need it orthogonal, and it is trained with its exact gradient.
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
        hidden = {block.name: block.linear.weight for block in self.blocks[:-1]}
        self.orthogonality = Orthogonality(hidden, limit=limit)
        self.orthogonality.initialise()

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        network, masks = self.network(), self.masks(x)
        clean = forward(network, x, masks)
        error = self.output_gradient(clean.scores, y)
        factors = update_factors(network, clean, error, error_projection(network.weights), masks)
        for block, (delta, z) in zip(self.blocks, factors, strict=True):
            loss = self.output_loss(clean.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.linear.bias), loss)

    def constrain(self) -> None:
        self.orthogonality.step()
