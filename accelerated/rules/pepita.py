"""PEPITA as a rule."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from .._arrays import check_positive
from ..network import forward, layer_update
from ..pepita import OutputError, Presynaptic, error_projection, update_factors
from .rule import BlockUpdate, OutputErrorRule, check_place
from .second_pass import SecondPass, check_second_pass, full_modulated_factors


class Pepita(OutputErrorRule):
    """PEPITA (Dellaferrera and Kreiman, 2022): a second forward pass with the error projected onto the input.

    `projection`, F, is a buffer drawn once, (n_0, K) uniform on +-scale * sqrt(6 / n_0). `output_error` and
    `presynaptic` choose between the published forms, see `prograde.reference.pepita`. `second_pass="full"` runs the
    modulated pass in place of differences to the clean one: equal but for rounding, as on `Hardware`.
    """

    projection: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 0.05,
        output_error: OutputError = "clean",
        presynaptic: Presynaptic = "modulated",
        second_pass: SecondPass = "difference",
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        for name, value in {"output_error": output_error, "presynaptic": presynaptic}.items():
            if value not in ("clean", "modulated"):
                raise ValueError(f"{name}: {value!r}, expected 'clean' or 'modulated'")
        check_second_pass(second_pass)
        check_positive("scale", scale)
        self.output_error: OutputError = output_error
        self.presynaptic: Presynaptic = presynaptic
        self.second_pass: SecondPass = second_pass
        weight = self.blocks[0].linear.weight
        projection = error_projection(
            weight.shape[1], self.num_classes, generator, scale, device=weight.device, dtype=weight.dtype
        )
        self.register_buffer("projection", projection)

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        check_place("projection", self.projection, x)
        network, masks = self.network(), self.masks(x)
        clean = forward(network, x, masks)
        error = self.output_gradient(clean.scores, y)
        modulated_gradient = None if self.output_error == "clean" else partial(self.output_gradient, y=y)
        second = full_modulated_factors if self.second_pass == "full" else update_factors
        factors = second(network, clean, error, self.projection, masks, modulated_gradient, self.presynaptic)
        for block, (delta, z) in zip(self.blocks, factors, strict=True):
            loss = self.output_loss(clean.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.linear.bias), loss)
