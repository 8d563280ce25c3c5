"""How a rule reads a model: a chain of blocks, each a linear layer with the parameter-free layers that follow it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..activations import Activation, identity, leaky_relu, maxmin, relu, tanh
from ..modules import MaxMin, OrthogonalConv2d, ScaledAvgPool2d

TRAINABLE = "Linear, each with ReLU, LeakyReLU, Tanh or MaxMin and Dropout after it, and Flatten before the first"

IMAGES = (
    "PixelUnshuffle, OrthogonalConv2d, each with an activation and ScaledAvgPool2d after it, then Flatten and Linear"
)

INSTEAD = {
    "MaxPool": "a maximum is no linear map; under Foton, ScaledAvgPool2d of prograde.accelerated.modules",
    "AvgPool": "it shrinks differences; under Foton, ScaledAvgPool2d of prograde.accelerated.modules",
    "Conv": "Foton and Backprop train OrthogonalConv2d of prograde.accelerated.modules; padded with zeros a "
    "convolution is not orthogonal",
    "OrthogonalConv": "only Foton and Backprop train it",
    "BatchNorm": "it couples samples and is not part of the rule; remove it",
    "LayerNorm": "it is not part of the rule; remove it",
    "Softmax": "the loss contains it; remove it",
    "LogSoftmax": "the loss contains it; remove it",
    "Sigmoid": "use Tanh",
    **dict.fromkeys(("GELU", "SiLU", "ELU", "SELU", "CELU", "Mish", "Softplus"), "use ReLU or Tanh"),
}


Held: TypeAlias = tuple[nn.Module, str]
"""A parameter by the module that has it and its name there, where a new one may take its place."""


class Block(NamedTuple):
    """A local unit: a linear layer, its activation, and dropout or None. `name` is its path in the model."""

    name: str
    linear: nn.Linear
    activation: Activation
    dropout: nn.Dropout | None

    @property
    def held(self) -> dict[str, Held]:
        """What is orthogonal under FOTON, by its name in the model."""
        return {self.name: (self.linear, "weight")}

    @property
    def weights(self) -> list[Tensor]:
        """What the layer is trained by, but for the bias."""
        return [self.linear.weight]

    @property
    def bias(self) -> nn.Parameter | None:
        return self.linear.bias

    @property
    def is_linear(self) -> bool:
        return self.activation == identity

    @property
    def dropout_rate(self) -> float:
        return self.dropout.p if self.dropout is not None and self.dropout.training else 0.0


class ConvolutionalBlock(NamedTuple):
    """A local unit: an orthogonal convolution and its activation, unshuffling by `factor` before, pooling after."""

    name: str
    convolution: OrthogonalConv2d
    activation: Activation
    factor: int
    pool: int

    @property
    def held(self) -> dict[str, Held]:
        """What is orthogonal under FOTON, by its name in the model."""
        bases = {f"{self.name}.bases.{i}": (self.convolution.bases, str(i)) for i in range(len(self.convolution.bases))}
        return {f"{self.name}.mixing": (self.convolution, "mixing"), **bases}

    @property
    def weights(self) -> list[Tensor]:
        """What the layer is trained by, but for the bias."""
        return [self.convolution.mixing, *self.convolution.bases]

    @property
    def bias(self) -> nn.Parameter | None:
        return self.convolution.bias


Unit: TypeAlias = Block | ConvolutionalBlock


def _leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, module in model._modules.items():  # unlike named_children, repeats what stands in the model twice
        if module is None:
            continue
        if _is_plain(module, nn.Sequential):
            yield from _leaves(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module is of that kind and computes as it does."""
    return isinstance(module, kind) and type(module).forward is kind.forward


def _check_parameters(name: str, module: nn.Module, before: Sequence["Unit"], rule: str) -> None:
    """Raises ValueError for a layer that cannot be trained by setting the gradients of parameters of its own."""
    own = list(module.parameters())
    if is_parametrized(module) or any(is_lazy(p) for p in own):
        raise ValueError(f"layer '{name}': a parameter is computed or not there yet; {rule} needs plain ones")
    if not all(p.requires_grad for p in own):
        raise ValueError(f"layer '{name}': frozen (requires_grad is False); {rule} trains every layer of its model")
    if not all(torch.isfinite(p).all() for p in own):
        raise ValueError(f"layer '{name}': its parameters are not all finite")
    taken = {id(p): unit.name for unit in before for p in (*unit.weights, unit.bias) if p is not None}
    for p in own:
        if id(p) in taken:
            raise ValueError(
                f"layer '{name}': shares a parameter with layer '{taken[id(p)]}'; {rule} needs each layer's own"
            )


def _check_linear(name: str, module: nn.Linear, chain: list["Block"], rule: str) -> None:
    """Raises ValueError for a Linear that cannot be trained by setting the gradient of its own weight."""
    if not isinstance(module.weight, nn.Parameter):
        raise ValueError(f"layer '{name}': its weight is computed; {rule} needs a plain Linear")
    _check_parameters(name, module, chain, rule)
    if chain and chain[-1].linear.out_features != module.in_features:
        raise ValueError(
            f"layer '{name}': takes {module.in_features} features, "
            f"but layer '{chain[-1].name}' gives {chain[-1].linear.out_features}"
        )


def _activation(module: nn.Module) -> Activation | None:
    match module:
        case nn.ReLU():
            return relu
        case nn.LeakyReLU():
            return leaky_relu(module.negative_slope)
        case nn.Tanh():
            return tanh
        case MaxMin():
            return maxmin
    return None


def blocks(model: nn.Module, rule: str) -> list[Block]:
    """The blocks of an `nn.Sequential` (nested ones included), first layer first.

    Raises ValueError, with the layer's name and what to use instead, for a model that is no such chain.
    """
    if not _is_plain(model, nn.Sequential):
        raise ValueError(f"model: a {type(model).__name__}; {rule} trains an nn.Sequential of {TRAINABLE}")
    return _dense_blocks(list(_leaves(model)), rule)


def convolutional_blocks(model: nn.Module, rule: str) -> tuple[list[ConvolutionalBlock], list[Block]]:
    """As `blocks`, for a model that may begin with convolutions: these, and the dense blocks after them."""
    leaves = list(_leaves(model)) if _is_plain(model, nn.Sequential) else []
    if not any(isinstance(module, OrthogonalConv2d) for _, module in leaves):
        return [], blocks(model, rule)
    end = next((i for i, (_, module) in enumerate(leaves) if isinstance(module, nn.Flatten)), len(leaves))
    chain: list[ConvolutionalBlock] = []
    factor, ready = 1, False  # ready: the last block may take an activation
    for name, module in leaves[:end]:
        activation = _activation(module)
        if isinstance(module, OrthogonalConv2d) and _is_plain(module, OrthogonalConv2d):
            _check_convolution(name, module, chain, factor, rule)
            chain.append(ConvolutionalBlock(name, module, identity, factor, 1))
            factor, ready = 1, True
        elif isinstance(module, nn.PixelUnshuffle):
            if factor > 1:
                raise ValueError(f"layer '{name}': a second PixelUnshuffle; use one, of the product of their factors")
            factor, ready = module.downscale_factor, False
        elif activation is not None and ready:
            if activation == maxmin and chain[-1].convolution.out_channels % 2:
                raise ValueError(
                    f"layer '{name}': MaxMin pairs channels, but layer '{chain[-1].name}' gives an odd number"
                )
            chain[-1] = chain[-1]._replace(activation=activation)
            ready = False
        elif _is_plain(module, ScaledAvgPool2d) and chain and factor == 1:
            assert isinstance(module, ScaledAvgPool2d)
            chain[-1] = chain[-1]._replace(pool=chain[-1].pool * module.kernel_size)
            ready = False
        elif not isinstance(module, nn.Identity):
            raise _refusal(name, module, rule, IMAGES)
    if factor > 1:
        raise ValueError(f"layer '{leaves[end - 1][0]}': PixelUnshuffle; {rule} needs an OrthogonalConv2d behind it")
    dense = _dense_blocks(leaves[end:], rule)
    for block in dense:
        if block.dropout is not None:
            raise ValueError(
                f"layer '{block.name}': Dropout after it; {rule} does without in convolutional models, remove it"
            )
    return chain, dense


def _check_convolution(
    name: str, module: OrthogonalConv2d, chain: list[ConvolutionalBlock], factor: int, rule: str
) -> None:
    """Raises ValueError for a convolution that does not take what the one before gives, or is not to be trained."""
    _check_parameters(name, module, chain, rule)
    if module.in_channels % factor**2:
        raise ValueError(
            f"layer '{name}': takes {module.in_channels} channels, expected a multiple of {factor**2} after unshuffling"
        )
    if chain and chain[-1].convolution.out_channels * factor**2 != module.in_channels:
        given = chain[-1].convolution.out_channels * factor**2
        raise ValueError(f"layer '{name}': takes {module.in_channels} channels, but gets {given}")


def _refusal(name: str, module: nn.Module, rule: str, trainable: str) -> ValueError:
    kind = type(module).__name__
    hint = next((text for start, text in INSTEAD.items() if kind.startswith(start)), None)
    return ValueError(
        f"layer '{name}': {kind}; {rule} trains an nn.Sequential of {trainable}" + (f" ({hint})" if hint else "")
    )


def _dense_blocks(leaves: list[tuple[str, nn.Module]], rule: str) -> list[Block]:
    chain: list[Block] = []
    for name, module in leaves:
        activation = _activation(module)
        if isinstance(module, nn.Linear) and _is_plain(module, nn.Linear):
            _check_linear(name, module, chain, rule)
            chain.append(Block(name, module, identity, None))
        elif isinstance(module, nn.Identity) or (isinstance(module, nn.Flatten) and not chain):
            continue
        elif activation is not None and chain:
            block = chain[-1]
            if not block.is_linear:
                raise ValueError(f"layer '{name}': a second activation after layer '{block.name}'; remove one")
            if block.dropout is not None and activation in (tanh, maxmin):
                raise ValueError(f"layer '{name}': {type(module).__name__} after Dropout; put the Dropout behind it")
            if activation == maxmin and block.linear.out_features % 2:
                raise ValueError(
                    f"layer '{name}': MaxMin pairs units, but layer '{block.name}' gives {block.linear.out_features}"
                )
            chain[-1] = block._replace(activation=activation)
        elif isinstance(module, nn.Dropout) and chain:
            if chain[-1].dropout is not None:
                raise ValueError(f"layer '{name}': a second Dropout after layer '{chain[-1].name}'; remove one")
            chain[-1] = chain[-1]._replace(dropout=module)
        else:
            raise _refusal(name, module, rule, TRAINABLE)
    if not chain:
        raise ValueError(f"model: no Linear layer; {rule} trains an nn.Sequential of {TRAINABLE}")
    return chain


def flat_input(x: Tensor, chain: list[Block]) -> Tensor:
    """x as (batch, n_0). Raises ValueError for an empty batch or another size or dtype than the model's."""
    weight = chain[0].linear.weight
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...) with at least one sample")
    x = x.flatten(1)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: {x.shape[1]} features a sample, expected {weight.shape[1]}")
    if x.dtype != weight.dtype:
        raise ValueError(f"x: dtype {x.dtype}, expected {weight.dtype} as the model's weights")
    return x


def image_input(x: Tensor, chain: list[ConvolutionalBlock], dense: list[Block]) -> Tensor:
    """x, (batch, c_0, height, width). Raises ValueError for an empty batch, another shape or dtype than the model's."""
    first = chain[0]
    channels = first.convolution.in_channels // first.factor**2
    if x.dim() != 4 or len(x) == 0 or x.shape[1] != channels:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, expected (batch, {channels}, height, width) with at least one image"
        )
    if x.dtype != first.convolution.mixing.dtype:
        raise ValueError(f"x: dtype {x.dtype}, expected {first.convolution.mixing.dtype} as the model's weights")
    sizes = list(x.shape[2:])
    for block in chain:
        for name, divisor in (("unshuffled", block.factor), ("pooled", block.pool)):
            if any(size % divisor for size in sizes):
                found = f"{sizes[0]} x {sizes[1]}"
                raise ValueError(f"x: {found} pixels at layer '{block.name}', which can't be {name} by {divisor}")
            sizes = [size // divisor for size in sizes]
    channels = chain[-1].convolution.out_channels
    features = channels * sizes[0] * sizes[1]
    if features != dense[0].linear.in_features:
        raise ValueError(
            f"layer '{dense[0].name}': takes {dense[0].linear.in_features} features, but images of {x.shape[2]} x "
            f"{x.shape[3]} give {features} ({channels} x {sizes[0]} x {sizes[1]})"
        )
    return x
