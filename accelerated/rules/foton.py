"""FOTON as a rule."""

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .. import convolutional_foton as images
from .._arrays import check_positive
from ..convolution import orthogonal_kernel_vjp
from ..foton import error_projection, recomputed_factors, update_factors
from ..modules import OrthogonalConv2d
from ..network import Network, forward, layer_update, scores
from .chain import Block
from .images import ConvolutionalBlock
from .orthogonality import Orthogonality, PlainStep, hidden_weights
from .rule import BlockUpdate, ConvolutionUpdate, OutputErrorRule, check_count


class Foton(OutputErrorRule):
    """FOTON (arXiv 2512.20668): two forward passes through orthogonal weights.

    Building the rule replaces the weights of the hidden layers, in place, by their polar factors. `constrain()` keeps
    every entry of their Gram matrices within `orthogonality_tolerance` of the identity, and checks them every
    `orthogonality_every` steps. The output layer is free: the theory does not need it orthogonal, and it has its exact
    gradient.

    The error projection is rebuilt every `projection_every` training steps. `activation_gain` is the factor by which
    the activation multiplies norms, about 0.7 for ReLU; each layer's update is divided by what follows from it.
    `linear=True` is not in the paper: the second pass omits the activations, and each layer applies its own derivative.
    It costs no more and is closer to backpropagation in deep networks.
    `recompute=True` computes the clean pass twice and holds one layer at a time. With `stream` the memory for
    activations then does not grow with depth; the price is one more product for each layer.

    Models for images begin with `OrthogonalConv2d` and `ScaledAvgPool2d` of `prograde.accelerated.modules`.
    `orthogonality_tolerance` then applies to the 2 kernel_size - 1 orthogonal parts of a kernel, whose defects add up.
    """

    convolution_kinds = (OrthogonalConv2d,)
    projection: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        orthogonality_tolerance: float = 5e-3,
        orthogonality_every: int = 1,
        projection_every: int = 1,
        activation_gain: float = 1.0,
        linear: bool = False,
        recompute: bool = False,
        loss: str = "cross_entropy",
        label_smoothing: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(model, loss=loss, label_smoothing=label_smoothing, generator=generator)
        check_positive("orthogonality_tolerance", orthogonality_tolerance)
        check_count("orthogonality_every", orthogonality_every)
        check_count("projection_every", projection_every)
        check_positive("activation_gain", activation_gain)
        if self.convolutions and (projection_every > 1 or recompute):
            raise ValueError(
                f"projection_every={projection_every}, recompute={recompute}: with convolutions neither is possible"
            )
        self.orthogonality = Orthogonality(
            hidden_weights(self), tolerance=orthogonality_tolerance, every=orthogonality_every
        )
        self.orthogonality.initialise()
        self.projection_every = projection_every
        self.activation_gain = activation_gain
        self.linear = linear
        self.recompute = recompute
        if projection_every > 1:
            self.register_buffer("projection", error_projection(self.network().weights).detach())
        self._uses = 0
        self._last_step: dict[str, _Credit] = {}
        self._versions = self._weight_versions()
        self._unconstrained_changes = 0

    @torch.no_grad()
    def stream(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate | ConvolutionUpdate]:
        x = self.checked(x, y)
        self._warn_if_unconstrained()
        if self.convolutions:
            yield from self._stream_images(x, y)
            return
        network = self.network()
        projection = self._projection(network)
        self._last_step.clear()
        if self.recompute:
            replay = self.replay(x.device)
            output = scores(network, x, self.draw_masks(x, self.generator))
            error = self.output_gradient(output, y)
            masks = self.draw_masks(x, replay)
            factors = recomputed_factors(network, x, error, projection, masks, self.activation_gain, self.linear)
            for block, (delta, z) in zip(self.blocks, factors, strict=True):
                yield BlockUpdate(block, *layer_update(delta, z, block.linear.bias), self._loss(block, output, y))
            return
        held_masks = self.masks(x)
        clean = forward(network, x, held_masks)
        error = self.output_gradient(clean.scores, y)
        factors = update_factors(network, clean, error, projection, held_masks, self.activation_gain, self.linear)
        for block, a, (delta, z) in zip(self.blocks, clean.preactivations, factors, strict=True):
            update = layer_update(delta, z, block.linear.bias)
            if block is not self.blocks[-1] and self.orthogonality.knows_steps_of(len(x), block.linear.weight):
                self._last_step[block.name] = _Credit(block, delta, z, a, block.linear.bias, update.weight)
            yield BlockUpdate(block, *update, self._loss(block, clean.scores, y))

    def _stream_images(self, x: Tensor, y: Tensor) -> Iterator[BlockUpdate | ConvolutionUpdate]:
        units = [unit for unit in self.convolutions if isinstance(unit, ConvolutionalBlock)]
        layers = tuple(
            images.ConvolutionalLayer(unit.convolution.kernel(), unit.bias, unit.activation, unit.factor, unit.pool)
            for unit in units
        )
        network = images.ConvolutionalNetwork(layers, self.network())
        clean = images.forward(network, x)
        error = self.output_gradient(clean.dense.scores, y)
        projection = images.error_projection(network, clean)
        factors = images.update_factors(network, clean, error, projection, self.activation_gain, self.linear)
        for unit, layer in zip(units, layers, strict=True):
            kernel, bias = images.layer_update(*next(factors), layer)
            mixing, bases = orthogonal_kernel_vjp(unit.convolution.mixing, list(unit.convolution.bases), kernel)
            yield ConvolutionUpdate(unit, mixing, bases, bias)
        for block, (delta, z) in zip(self.blocks, factors, strict=True):
            yield BlockUpdate(block, *layer_update(delta, z, block.bias), self._loss(block, clean.dense.scores, y))

    def _loss(self, block: Block, output: Tensor, y: Tensor) -> Tensor | None:
        return self.output_loss(output, y) if block is self.blocks[-1] else None

    def _projection(self, network: Network) -> Tensor:
        """F, of the present weights or those of up to `projection_every` - 1 training steps ago."""
        if self.projection_every == 1:
            return error_projection(network.weights)
        if self.training:
            if self._uses % self.projection_every == 0:
                self.projection.copy_(error_projection(network.weights))
            self._uses += 1
        return self.projection

    def get_extra_state(self) -> int:
        return self._uses

    def set_extra_state(self, state: int) -> None:
        self._uses = state

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses nothing; raises FloatingPointError where the weights of the last steps were not orthogonal."""
        self.orthogonality.settle()

    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Restores orthogonality, see `Orthogonality`. Given the optimizer, less work may do.

        `torch.optim.SGD` without momentum and weight decay, stepped once since `assign_credit` on the gradients as they
        were left, is recognised: after a small batch the polar factor of the weights is known from the batch. In any
        other case the weights are checked, and a drift within the tolerance may stay. Both lead to the same polar
        factor, to a few hundredths of the step; the weights themselves differ within the tolerance.
        """
        plain = {}
        for name, credit in self._last_step.items():
            rate = plain_rate(optimizer, credit.block.linear.weight) if credit.was_applied() else None
            if rate is not None:
                plain[name] = PlainStep(credit.delta, credit.z, credit.preactivation, rate)
        self._last_step.clear()
        self.orthogonality.step(plain)
        self._versions = self._weight_versions()
        self._unconstrained_changes = 0

    def _weight_versions(self) -> list[tuple[int, int]]:
        """What tells whether the weights were changed in place or replaced."""
        return [(id(weight), weight._version) for weight in self.orthogonality.weights(frozen=True).values()]

    def _warn_if_unconstrained(self) -> None:
        """Warns of a second change of the weights without `constrain`: the first may be a checkpoint's."""
        versions = self._weight_versions()
        if versions != self._versions:
            self._versions = versions
            self._unconstrained_changes += 1
            if self._unconstrained_changes == 2:
                warnings.warn(
                    "Foton: the weights were changed twice without constrain(); "
                    "call rule.constrain(optimizer) after every optimizer.step(), or training diverges",
                    stacklevel=4,
                )


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
