"""Forward Target Propagation as a rule."""

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from .. import convolutional_ftp as images
from ..activations import ACTIVATIONS, Activation
from ..convolutional_network import forward as image_forward
from ..convolutional_network import layer_update as kernel_layer_update
from ..ftp import (
    Feedback,
    FeedbackLaw,
    differences,
    first_difference,
    local_factors,
    low_rank_feedback,
    random_feedback,
)
from ..losses import one_hot
from ..network import forward, layer_update
from .images import Conv2dBlock
from .rule import BlockUpdate, OutputErrorRule, check_place
from .second_pass import SecondPass, check_second_pass, full_differences, full_first_difference


class Ftp(OutputErrorRule):
    """Forward Target Propagation (arXiv 2506.11030): projections of the label and the output make the first target.

    A reconstruction, see `prograde.reference.ftp`: what is not known of the paper is an option. `feedback`, G, is drawn
    once, (n_j, K), by `law` and `scale`, and held as a buffer. `phi` is the name of the activation that projections go
    through; None takes tanh where the model has tanh and the identity elsewhere (ReLU on G leaves tanh layers
    untrained). `gain` multiplies the correction. `inject` is j, the layer with the first target, 1 for the first hidden
    one and 0 for the input; layers before it are not trained. `second_pass="full"` runs the targets themselves through
    the layers, in place of their differences to the activations: equal but for rounding, as on `Hardware`.
    With ReLU a rate that suits backpropagation may be too large: training then ends at chance or in NaN. A `scale` of
    0.1, or a rate that is smaller by that much, is the remedy.

    Models for images may begin with Conv2d and MaxPool2d. The first feature map then has the first target, and
    `image_size`, (height, width) of the images, gives its size. `by_channel`, the default there, gives all positions of
    a channel one row of G (ours, as positions share a kernel); False gives each position its own, as in the paper, and
    diverged with ReLU through two convolutions. G is drawn at `scale` / positions, or / sqrt(positions) without
    `by_channel`; see `prograde.reference.convolutional_ftp`. Where G is too large to be held, `rank` makes it a product
    of two factors, and `seeded` keeps a seed in its place, from which it is drawn anew at each step, on the CPU, the
    same on every device and in every precision.
    """

    convolution_kinds = (nn.Conv2d,)
    feedback: Tensor
    feedback_right: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        phi: str | None = None,
        gain: float = 1.0,
        scale: float = 0.5,
        law: FeedbackLaw = "uniform",
        inject: int = 1,
        second_pass: SecondPass = "difference",
        image_size: tuple[int, int] | None = None,
        rank: int | None = None,
        by_channel: bool | None = None,
        seeded: bool = False,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        if phi is None:
            phi = "tanh" if any(unit.activation is ACTIVATIONS["tanh"] for unit in self.units) else "identity"
        if phi not in ACTIVATIONS:
            raise ValueError(f"phi: {phi!r}, expected one of {', '.join(ACTIVATIONS)}")
        for name, value in {"gain": gain, "scale": scale}.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}: {value}, expected a positive number")
        self.phi: Activation = ACTIVATIONS[phi]
        self.gain, self.scale, self.inject, self.rank = gain, scale, inject, rank
        self.by_channel = bool(self.convolutions) if by_channel is None else by_channel
        self.law: FeedbackLaw = law
        self.second_pass: SecondPass = second_pass
        check_second_pass(second_pass)
        if self.convolutions and second_pass == "full":
            raise ValueError("second_pass: 'full', expected 'difference' in a model for images")
        if law not in get_args(FeedbackLaw):
            raise ValueError(f"law: {law!r}, expected one of {', '.join(get_args(FeedbackLaw))}")
        if rank is not None and (type(rank) is not int or not 1 <= rank <= self.num_classes):
            raise ValueError(f"rank: {rank!r}, expected 1..{self.num_classes}, the number of classes, or None")
        if rank is not None and law != "uniform":
            raise ValueError(f"law: {law!r}, with rank, whose factors are normal")
        if not self.convolutions and (by_channel or image_size is not None):
            given = f"image_size: {image_size}" if image_size is not None else "by_channel: True"
            raise ValueError(f"{given}, but the model has no convolutions")
        self.rows, self.positions = self._feature_map(image_size) if self.convolutions else self._units()
        if phi == "maxmin" and self.by_channel:
            raise ValueError("phi: 'maxmin' pairs units, expected an elementwise one where a channel has one row of G")
        if phi == "maxmin" and self.rows * self.positions % 2:
            raise ValueError(f"phi: 'maxmin' pairs units, but the first target has {self.rows * self.positions}")
        self.seed: int | None = None
        if seeded:
            place = None if generator is None else generator.device
            self.seed = int(torch.randint(2**62, (), generator=generator, device=place).item())
            return
        weight = self.units[0].weights[0]
        drawn = self._drawn(generator, device=weight.device, dtype=weight.dtype)
        if isinstance(drawn, tuple):
            self.register_buffer("feedback", drawn[0])
            self.register_buffer("feedback_right", drawn[1])
        else:
            self.register_buffer("feedback", drawn)

    def _units(self) -> tuple[int, int]:
        """n_j, and 1 position. Raises ValueError where no layer has that number."""
        if len(self.blocks) == 1:
            raise ValueError("model: no hidden layer; Ftp needs one to have a target")
        if type(self.inject) is not int or not 0 <= self.inject < len(self.blocks):
            raise ValueError(f"inject: {self.inject}, expected 0..{len(self.blocks) - 1}, the input or a hidden layer")
        first = self.blocks[max(self.inject, 1) - 1].linear
        return (first.out_features if self.inject else first.in_features), 1

    def _feature_map(self, image_size: tuple[int, int] | None) -> tuple[int, int]:
        """Channels and positions of the first feature map. Raises ValueError without a size that fits."""
        first = self.convolutions[0]
        assert isinstance(first, Conv2dBlock)
        if self.inject != 1:
            raise ValueError(f"inject: {self.inject}, expected 1, the first convolution, in a model for images")
        is_size = isinstance(image_size, Sequence) and len(image_size) == 2
        if image_size is None or not is_size or not all(type(n) is int and n > 0 for n in image_size):
            raise ValueError(
                f"image_size: {image_size!r}, expected (height, width) of the images, for a model with convolutions"
            )
        shape = (1, first.convolution.in_channels, *image_size)
        self.checked_input(torch.empty(shape, device=first.weights[0].device, dtype=first.weights[0].dtype))
        height, width = first.map_size(image_size)
        self.image_size = (image_size[0], image_size[1])
        return first.convolution.out_channels, height * width

    def _drawn(
        self, generator: torch.Generator | None, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Feedback:
        """G or its factors, with one row a channel if positions share it."""
        rows = self.rows * (1 if self.by_channel else self.positions)
        scale = self.scale / (self.positions if self.by_channel else self.positions**0.5)
        if self.rank is not None:
            return low_rank_feedback(rows, self.num_classes, self.rank, generator, scale, device=device, dtype=dtype)
        return random_feedback(rows, self.num_classes, generator, scale, self.law, device=device, dtype=dtype)

    def _feedback(self, x: Tensor) -> Feedback:
        if self.seed is not None:
            drawn = self._drawn(torch.Generator().manual_seed(self.seed), dtype=torch.float32)
            return tuple(part.to(x) for part in drawn) if isinstance(drawn, tuple) else drawn.to(x)  # type: ignore[return-value]
        check_place("feedback", self.feedback, x)
        return self.feedback if self.rank is None else (self.feedback, self.feedback_right)

    def get_extra_state(self) -> int | None:
        return self.seed

    def set_extra_state(self, state: int | None) -> None:
        if (state is None) != (self.seed is None):
            raise ValueError(
                f"seeded: {self.seed is not None}, but the state was saved by a rule with {state is not None}"
            )
        self.seed = state

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate]:
        x = self.checked(x, y)
        if self.convolutions and tuple(x.shape[2:]) != self.image_size:
            came, expected = (" x ".join(map(str, size)) for size in (x.shape[2:], self.image_size))
            raise ValueError(f"x: images of {came}, expected {expected}, the image_size")
        feedback = self._feedback(x)
        if self.convolutions:
            yield from self._stream_images(x, y, feedback)
            return
        network, masks = self.network(), self.masks(x)
        clean = forward(network, x, masks)
        error = self.output_gradient(clean.scores, y)
        full = self.second_pass == "full"
        difference = full_first_difference if full else first_difference
        first = difference(feedback, self._targets(x, y), error, self.phi, self.gain)
        found = (full_differences if full else differences)(network, clean, first, masks, self.inject)
        factors = local_factors(network, clean, error, found, masks, self.inject)
        for index, (block, (delta, z)) in enumerate(zip(self.blocks, factors, strict=True)):
            if index < self.inject - 1:
                yield BlockUpdate(block, torch.zeros_like(block.linear.weight), None, None, trained=False)
                continue
            loss = self.output_loss(clean.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.bias), loss)

    def _targets(self, x: Tensor, y: Tensor) -> Tensor:
        return one_hot(y, self.num_classes, self.label_smoothing, dtype=x.dtype)

    def _stream_images(self, x: Tensor, y: Tensor, feedback: Feedback) -> Iterator[BlockUpdate]:
        network = self.image_network()
        clean = image_forward(network, x)
        error = self.output_gradient(clean.dense.scores, y)
        shape = clean.preactivations[0].shape[1:]
        shared = (shape[0], 1, 1) if self.by_channel else shape
        first = images.first_difference(feedback, self._targets(x, y), error, shared, self.phi, self.gain)
        factors = images.update_factors(network, clean, error, first.expand(-1, *shape))
        for unit, layer in zip(self.convolutions, network.layers, strict=True):
            delta, z = next(factors)
            assert isinstance(unit, Conv2dBlock)
            yield BlockUpdate(unit, *kernel_layer_update(delta, z, layer), None)
        for block, (delta, z) in zip(self.blocks, factors, strict=True):
            loss = self.output_loss(clean.dense.scores, y) if block is self.blocks[-1] else None
            yield BlockUpdate(block, *layer_update(delta, z, block.bias), loss)
