"""PEPITA as a rule."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from .._arrays import check_positive
from ..layers import Layer, Pass
from ..pepita import OutputError, Presynaptic, error_projection, update_factors
from .rule import OutputErrorRule, check_place
from .second_pass import SecondPass, check_second_pass, full_modulated_factors


class Pepita(OutputErrorRule):
    """PEPITA (Dellaferrera and Kreiman, 2022): a second forward pass with the error projected onto the input.

    `projection`, the transpose of F, is a buffer drawn once: for each class a row shaped as a sample, of n_0 numbers,
    uniform on +-scale * sqrt(6 / n_0). `output_error` and `presynaptic` choose between the published forms, see
    `prograde.reference.pepita`. `second_pass="full"` runs the modulated pass in place of differences to the clean one:
    equal but for rounding, as on `Hardware`.

    Models for images may begin with Conv2d and pooling; `image_size` is (height, width) of the images.
    The paper has one convolution; through two, training was at chance with ReLU and far behind with Tanh.
    """

    convolution_kinds = (nn.Conv2d,)

    projection: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 0.05,
        output_error: OutputError = "clean",
        presynaptic: Presynaptic = "modulated",
        second_pass: SecondPass = "difference",
        image_size: tuple[int, int] | None = None,
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
        weight = self.units[0].weights[0]
        sample = self.sample_shapes(image_size)[0]
        projection = error_projection(
            sample, self.num_classes, generator, scale, device=weight.device, dtype=weight.dtype
        )
        self.register_buffer("projection", projection)

    def checked(self, x: Tensor, y: Tensor) -> Tensor:
        x = super().checked(x, y)
        check_place("projection", self.projection, x)
        return x

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        modulated_gradient = None if self.output_error == "clean" else partial(self.output_gradient, y=y)
        second = full_modulated_factors if self.second_pass == "full" else update_factors
        return second(layers, clean, error, self.projection, modulated_gradient, self.presynaptic)
