"""How a rule reads a model: a chain of blocks, each a linear layer with the parameter-free layers that follow it."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from ..activations import Activation, identity, maxmin, tanh
from ..layers import Dense, Mask, Step
from ..modules.activations import MODULES, activation_of

ACTIVATIONS = " or ".join(", ".join(kind.__name__ for kind in MODULES.values()).rsplit(", ", 1))
TRAINABLE = f"Linear, each with {ACTIVATIONS} and Dropout after it, and Flatten before the first"
WITHOUT_DROPOUT = f"Linear, each with {ACTIVATIONS} after it, and Flatten before the first"

INSTEAD = {
    "MaxPool": "a maximum is no linear map; under Foton, ScaledAvgPool2d of prograde.accelerated.modules",
    "AvgPool": "it shrinks differences; under Foton, ScaledAvgPool2d of prograde.accelerated.modules",
    "Conv": "Ftp, ForwardForward, Backprop and local classifiers such as MonoForward train Conv2d, Foton and Backprop "
    "OrthogonalConv2d of prograde.accelerated.modules; padded with zeros a convolution is not orthogonal",
    "OrthogonalConv": "only Foton and Backprop train it",
    "BatchNorm": "it couples samples and is not part of the rule; remove it, or use MonoForward or Hyperspherical",
    **dict.fromkeys(
        ("LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm", "ChannelNorm"),
        "it is not part of the rule; remove it, or use MonoForward or Hyperspherical",
    ),
    "ShortcutNetwork": "use MonoForward or Hyperspherical",
    **dict.fromkeys(
        ("RecurrentNetwork", "RNN", "GRU"),
        "use RecurrentFtp or BackpropThroughTime, and RecurrentNetwork of prograde.accelerated.modules",
    ),
    "OptimizedModule": "pass the uncompiled model",
    "Softmax": "the loss contains it; remove it",
    "LogSoftmax": "the loss contains it; remove it",
    "Sigmoid": "use Tanh",
    **dict.fromkeys(("GELU", "SiLU", "ELU", "SELU", "CELU", "PReLU", "Mish", "Softplus"), "use ReLU or Tanh"),
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

    def layer(self, mask: Tensor | None = None, outlet: tuple[Step, ...] = ()) -> Dense:
        """The unit as the functions of this package take it; the tensors are the parameters themselves."""
        steps = (self.activation,) if mask is None else (self.activation, Mask(mask))
        return Dense(self.linear.weight, self.linear.bias, steps, outlet)

    def activity_shape(self, size: list[int]) -> tuple[int, ...]:
        """Of a sample's activities, whatever the size of images."""
        return (self.linear.out_features,)

    def output_size(self, size: list[int]) -> list[int]:
        """As it is: no image is left."""
        return size

    @property
    def is_linear(self) -> bool:
        return self.activation == identity

    @property
    def dropout_rate(self) -> float:
        return self.dropout.p if self.dropout is not None and self.dropout.training else 0.0


def leaves(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of an `nn.Sequential` and of those in it, with their paths in the model."""
    for name, module in model._modules.items():  # unlike named_children, repeats what stands in the model twice
        if module is None:
            continue
        if is_plain(module, nn.Sequential):
            yield from leaves(module, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", module


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether the module is of that kind and computes as it does."""
    return isinstance(module, kind) and type(module).forward is kind.forward


class Trained(Protocol):
    """What every local unit has: a name, and the parameters it is trained by."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> list[Tensor]: ...

    @property
    def bias(self) -> Tensor | None: ...


def check_parameters(name: str, module: nn.Module, before: Sequence[Trained], rule: str) -> None:
    """Raises ValueError for a layer that cannot be trained by setting the gradients of parameters of its own."""
    own = list(module.parameters())
    computed = not isinstance(getattr(module, "weight", None), nn.Parameter | None)  # as the older weight_norm does
    if computed or is_parametrized(module) or any(is_lazy(p) for p in own):
        raise ValueError(f"layer '{name}': a parameter is computed or not there yet; {rule} needs plain ones")
    for key, p in module.named_parameters():
        if p.numel() == 0:
            raise ValueError(f"layer '{name}': its {key} has shape {tuple(p.shape)}; {rule} needs a unit at least")
    like = before[0].weights[0] if before else own[0]
    if any((p.dtype, p.device) != (like.dtype, like.device) for p in own):
        places = sorted({f"{p.dtype} on {p.device}" for p in own})
        raise ValueError(
            f"layer '{name}': {' and '.join(places)}; {rule} needs all of its model as {like.dtype} on {like.device}"
        )
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
    check_parameters(name, module, chain, rule)
    if chain and chain[-1].linear.out_features != module.in_features:
        raise ValueError(
            f"layer '{name}': takes {module.in_features} features, "
            f"but layer '{chain[-1].name}' gives {chain[-1].linear.out_features}"
        )


def _is_whole_flatten(name: str, module: nn.Module, rule: str) -> bool:
    """Whether it is a Flatten. Raises ValueError for one that leaves more than one axis of a sample."""
    if not isinstance(module, nn.Flatten):
        return False
    if (module.start_dim, module.end_dim) != (1, -1):
        raise ValueError(f"layer '{name}': {module}; {rule} wants samples flattened whole, as Flatten() does")
    return True


def blocks(model: nn.Module, rule: str, trainable: str = TRAINABLE) -> list[Block]:
    """The blocks of an `nn.Sequential` (nested ones included), first layer first.

    Raises ValueError, with the layer's name and what to use instead, for a model that is no such chain.
    """
    if not is_plain(model, nn.Sequential):
        raise refusal("", model, rule, trainable)
    return dense_blocks(list(leaves(model)), rule, trainable)


def refusal(
    name: str, module: nn.Module, rule: str, trainable: str, network: str = "an nn.Sequential of "
) -> ValueError:
    """The error for a layer that the rule can't train, or for the model (no name), with what to use instead."""
    kind = type(module).__name__
    named = re.findall(r"\w+", trainable)
    starts = [start for start in INSTEAD if kind.startswith(start) and not {kind, f"{start}2d"} & set(named)]
    hint = f" ({INSTEAD[starts[0]]})" if starts else ""
    ours = type(module).__module__.startswith(("torch.", "prograde.")) and not list(module.parameters())
    if not (starts or ours or is_plain(module, nn.Linear) or is_plain(module, nn.Sequential)):
        hint = " (no rule trains it yet)"
    where = f"layer '{name}'" if name else "model"
    return ValueError(f"{where}: {kind}; {rule} trains {network}{trainable}{hint}")


def dense_blocks(found: list[tuple[str, nn.Module]], rule: str, trainable: str = TRAINABLE) -> list[Block]:
    """The blocks of layers with their names. Raises ValueError as `blocks` does."""
    chain: list[Block] = []
    for name, module in found:
        activation = activation_of(module)
        if isinstance(module, nn.Linear) and is_plain(module, nn.Linear):
            _check_linear(name, module, chain, rule)
            chain.append(Block(name, module, identity, None))
        elif isinstance(module, nn.Identity) or (_is_whole_flatten(name, module, rule) and not chain):
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
        elif isinstance(module, nn.Dropout) and trainable == TRAINABLE:
            raise ValueError(f"layer '{name}': Dropout before the first Linear; {rule} takes it after one, remove it")
        else:
            raise refusal(name, module, rule, trainable)
    if not chain:
        raise ValueError(f"model: no Linear layer; {rule} trains an nn.Sequential of {trainable}")
    return chain


def flat_input(x: Tensor, weight: Tensor) -> Tensor:
    """x as (batch, n_0). Raises ValueError for an empty batch or another size or dtype than the first weight's."""
    if x.dim() < 2 or len(x) == 0:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (batch, ...) with at least one sample")
    x = x.flatten(1)
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: {x.shape[1]} features a sample, expected {weight.shape[1]}")
    check_like(x, weight)
    return x


def check_like(x: Tensor, weight: Tensor) -> None:
    """Raises ValueError for x of another dtype or on another device than the model's weights."""
    if x.dtype != weight.dtype:
        raise ValueError(f"x: dtype {x.dtype}, expected {weight.dtype} as the model's weights")
    if x.device != weight.device:
        raise ValueError(f"x: on {x.device}, expected {weight.device} as the model's weights")


def channels_last(x: Tensor) -> Tensor:
    """Feature maps in PyTorch's channels-last format where x is on a CPU, which convolves and pools it faster.

    The layers that follow keep the format. A single channel needs its strides set: `contiguous` leaves them as they
    are, and the first convolution then takes ten times as long.
    """
    if x.dim() != 4 or x.device.type != "cpu" or x.stride(1) == 1:
        return x
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)
