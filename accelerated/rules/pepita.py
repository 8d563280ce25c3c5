"""PEPITA as a rule."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import check_positive, check_shape, wide
from ..layers import Layer, Pass
from ..pepita import OutputError, Presynaptic, error_projection, update_factors
from .output_loss import Targets
from .recomputing import RecomputingRule
from .rule import check_place
from .second_pass import SecondPass, carried_modulated_factors, check_second_pass, full_modulated_factors
from .units import check_dense


class Pepita(RecomputingRule):
    """PEPITA (Dellaferrera and Kreiman, 2022): a second forward pass with the error projected onto the input.

    `projection`, the transpose of F, is a buffer drawn once: for each class a row shaped as a sample, of n_0 numbers,
    uniform on +-scale * sqrt(6 / n_0). `output_error` and `presynaptic` choose between the published forms, see
    `prograde.reference.pepita`. `second_pass="full"` runs the modulated pass in place of differences to the clean one:
    equal but for rounding, as on `Hardware`.

    Models for images may begin with Conv2d and pooling; `image_size` is (height, width) of the images.
    The paper has one convolution; through two, training was at chance with ReLU and far behind with Tanh.

    Raises ValueError unless `scale` is positive, for options that are not known, and where every position of the scores
    has a label but x has others.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> rule = Pepita(model)
    >>> rule.projection.shape  # a row shaped as a sample for each class
    torch.Size([3, 2])
    """

    convolution_kinds = (nn.Conv2d,)

    runs_twice = True
    projection: Tensor
    takes_positions = "with an example"

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: float = 0.05,
        output_error: OutputError = "clean",
        presynaptic: Presynaptic = "modulated",
        second_pass: SecondPass = "difference",
        image_size: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        for name, value in {"output_error": output_error, "presynaptic": presynaptic}.items():
            if value not in ("clean", "modulated"):
                raise ValueError(f"{name}: {value!r}, expected 'clean' or 'modulated'")
        check_second_pass(second_pass, self.recompute)
        check_positive("scale", scale)
        self.output_error: OutputError = output_error
        self.presynaptic: Presynaptic = presynaptic
        self.second_pass: SecondPass = second_pass
        weight = self.units[0].weights[0]
        shapes = self.sample_shapes(image_size)
        if self.starts_from_tokens and self.units[0].outlet:
            raise ValueError(f"units: '{self.units[0].name}' of tokens is followed by what is no unit, expected a unit")
        sample = shapes[1 if self.starts_from_tokens else 0]
        if self.labels_positions:
            self.check_positions(sample)
            *_, features = sample
            sample = (features,)
        projection = error_projection(
            sample, self.num_classes, self.generator, scale, device=weight.device, dtype=weight.dtype
        )
        self.register_buffer("projection", projection)

    def checked(self, x: Tensor, y: Targets) -> Tensor:
        check_dense(x)
        x = super().checked(x, y)
        check_place("projection", self.projection, self.units[0].weights[0])
        return x

    def factors(
        self, layers: tuple[Layer, ...], clean: Pass, error: Tensor, y: Targets
    ) -> Iterator[tuple[Tensor, Tensor]]:
        modulated_gradient = None if self.output_error == "clean" else partial(self.output_gradient, y=y)
        second = self._second(wide(error.dtype) == error.dtype)
        if self.starts_from_tokens:
            yield -torch.tensordot(error, self.projection, dims=1), clean.inputs[0]
            layers, clean = layers[1:], Pass(*(found[1:] for found in clean))
        if not self.labels_positions:
            check_shape("x", clean.inputs[0][:1], (1, *self.projection.shape[1:]))
        yield from second(layers, clean, error, self.projection, modulated_gradient, self.presynaptic)

    def _second(self, resolves: bool) -> Callable[..., Iterator[tuple[Tensor, Tensor]]]:
        """How the second pass is run: of modules in full, one run less, where the precision resolves its difference."""
        if not (self._run or self.labels_positions):
            return full_modulated_factors if self.second_pass == "full" else update_factors
        full = self.second_pass == "full" or (resolves and not self.recompute)
        return full_modulated_factors if full else carried_modulated_factors
