"""How a rule reads a model for images: convolutions that come before the dense blocks."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from ..activations import Activation, identity, maxmin
from ..layers import CircularConvolution, Convolution, Mask, MaxPool, ScaledAveragePool, Step
from ..modules import OrthogonalConv2d, ScaledAvgPool2d
from ..modules.activations import activation_of
from .chain import (
    ACTIVATIONS,
    TRAINABLE,
    WITHOUT_DROPOUT,
    Block,
    Held,
    blocks,
    channels_last,
    check_like,
    check_parameters,
    dense_blocks,
    is_plain,
    leaves,
    refusal,
)

ORTHOGONAL = (
    "PixelUnshuffle, OrthogonalConv2d, each with an activation, Dropout and ScaledAvgPool2d after it, in this order, "
    "then Flatten and Linear"
)
PLAIN = f"Conv2d, each with {ACTIVATIONS} and MaxPool2d after it, then Flatten and Linear"


class ConvolutionalBlock(NamedTuple):
    """A local unit: an orthogonal convolution, its activation and dropout; unshuffling before, pooling after."""

    name: str
    convolution: OrthogonalConv2d
    activation: Activation
    factor: int
    pool: int
    dropout: nn.Dropout | None = None

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
    def bias(self) -> Tensor | None:
        return self.convolution.bias

    def layer(self, mask: Tensor | None = None, outlet: tuple[Step, ...] = ()) -> CircularConvolution:
        """The unit as the functions of this package take it, its kernel made of the parameters; `outlet` comes last."""
        steps = (self.activation,) if mask is None else (self.activation, Mask(mask))
        pooled = (ScaledAveragePool(self.pool),) if self.pool > 1 else ()
        return CircularConvolution(self.convolution.kernel(), self.bias, steps, (*pooled, *outlet))

    @property
    def image_channels(self) -> int:
        """Of what goes into the block, before it is unshuffled."""
        return self.convolution.in_channels // self.factor**2

    @property
    def dropout_rate(self) -> float:
        return self.dropout.p if self.dropout is not None and self.dropout.training else 0.0

    def activity_shape(self, size: list[int]) -> tuple[int, ...]:
        """Of a sample's activities, for images of that height and width."""
        return (self.convolution.out_channels, *(side // self.factor for side in size))

    def output_size(self, size: list[int]) -> list[int]:
        """Height and width of what images of that size become. Raises ValueError where they do not fit."""
        for name, divisor in (("unshuffled", self.factor), ("pooled", self.pool)):
            if any(side % divisor for side in size):
                raise ValueError(
                    f"x: {size[0]} x {size[1]} pixels at layer '{self.name}', which can't be {name} by {divisor}"
                )
            size = [side // divisor for side in size]
        return size


class Conv2dBlock(NamedTuple):
    """A local unit: a convolution padded with zeros, its activation, and max pooling by `pool`."""

    name: str
    convolution: nn.Conv2d
    activation: Activation
    pool: int

    @property
    def held(self) -> dict[str, Held]:
        """Nothing: a padded convolution is not orthogonal."""
        return {}

    @property
    def weights(self) -> list[Tensor]:
        """What the layer is trained by, but for the bias."""
        return [self.convolution.weight]

    @property
    def bias(self) -> Tensor | None:
        return self.convolution.bias

    def layer(self, mask: Tensor | None = None, outlet: tuple[Step, ...] = ()) -> Convolution:
        """The unit as the functions of this package take it; `outlet` comes last."""
        steps = (self.activation,) if mask is None else (self.activation, Mask(mask))
        pooled = (MaxPool(self.pool),) if self.pool > 1 else ()
        return Convolution(self.convolution.weight, self.bias, steps, (*pooled, *outlet), self.stride, self.padding)

    @property
    def image_channels(self) -> int:
        """Of what goes into the block."""
        return self.convolution.in_channels

    @property
    def stride(self) -> tuple[int, int]:
        rows, columns = self.convolution.stride
        return rows, columns

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros on each side."""
        given = self.convolution.padding
        if isinstance(given, str):
            rows, columns = self.convolution.kernel_size
            return ((rows - 1) // 2, (columns - 1) // 2) if given == "same" else (0, 0)
        rows, columns = given
        return rows, columns

    @property
    def dropout_rate(self) -> float:
        """None is dropped."""
        return 0.0

    def activity_shape(self, size: list[int]) -> tuple[int, ...]:
        """Of a sample's activities, for images of that height and width."""
        return (self.convolution.out_channels, *self.map_size(size))

    def map_size(self, size: Sequence[int]) -> list[int]:
        """Height and width before pooling. Raises ValueError where the image is too small."""
        sides = zip(size, self.convolution.kernel_size, self.stride, self.padding, strict=True)
        found = [(side + 2 * around - kernel) // step + 1 for side, kernel, step, around in sides]
        if min(found) < self.pool:
            raise ValueError(f"x: {size[0]} x {size[1]} pixels are too few for layer '{self.name}'")
        return found

    def output_size(self, size: list[int]) -> list[int]:
        """Height and width of what images of that size become. Raises ValueError where they are too small."""
        return [side // self.pool for side in self.map_size(size)]


ImageBlock: TypeAlias = ConvolutionalBlock | Conv2dBlock
Unit: TypeAlias = Block | ImageBlock


def image_blocks(
    model: nn.Module, rule: str, kinds: tuple[type[nn.Module], ...], trainable: str = TRAINABLE
) -> tuple[list[ImageBlock], list[Block]]:
    """As `blocks`, for a model that may begin with convolutions of one of these kinds: these, and the dense blocks."""
    found = list(leaves(model)) if is_plain(model, nn.Sequential) else []
    present = [kind for kind in kinds if any(is_plain(module, kind) for _, module in found)]
    if not present:
        return [], blocks(model, rule, trainable)
    end = next((i for i, (_, module) in enumerate(found) if isinstance(module, nn.Flatten)), len(found))
    chain: list[ImageBlock] = []
    takes_dropout = trainable == TRAINABLE and present[0] is OrthogonalConv2d
    if present[0] is OrthogonalConv2d:
        chain += _orthogonal_blocks(found[:end], rule, takes_dropout)
    else:
        chain += _plain_blocks(found[:end], rule)
    dense = dense_blocks(found[end:], rule, trainable if takes_dropout else WITHOUT_DROPOUT)
    for block in dense:
        if block.dropout is not None and not takes_dropout:
            raise ValueError(
                f"layer '{block.name}': Dropout after it; {rule} does without in convolutional models, remove it"
            )
    return chain, dense


def _orthogonal_blocks(found: list[tuple[str, nn.Module]], rule: str, dropout: bool) -> list[ConvolutionalBlock]:
    chain: list[ConvolutionalBlock] = []
    factor, ready = 1, False  # ready: the last block may take an activation
    bare = False  # may take a Dropout
    for name, module in found:
        activation = activation_of(module)
        if isinstance(module, OrthogonalConv2d) and is_plain(module, OrthogonalConv2d):
            _check_convolution(name, module, chain, factor, rule)
            chain.append(ConvolutionalBlock(name, module, identity, factor, 1))
            factor, ready, bare = 1, True, dropout
        elif isinstance(module, nn.PixelUnshuffle):
            if factor > 1:
                raise ValueError(f"layer '{name}': a second PixelUnshuffle; use one, of the product of their factors")
            factor, ready, bare = module.downscale_factor, False, False
        elif activation is not None and ready:
            _check_maxmin(name, activation, chain[-1])
            chain[-1] = chain[-1]._replace(activation=activation)
            ready = False
        elif isinstance(module, nn.Dropout) and bare:
            chain[-1] = chain[-1]._replace(dropout=module)
            ready = bare = False
        elif isinstance(module, ScaledAvgPool2d) and is_plain(module, ScaledAvgPool2d) and chain and factor == 1:
            chain[-1] = chain[-1]._replace(pool=chain[-1].pool * module.kernel_size)
            ready = bare = False
        elif not isinstance(module, nn.Identity):
            raise refusal(name, module, rule, ORTHOGONAL)
    if factor > 1:
        raise ValueError(f"layer '{found[-1][0]}': PixelUnshuffle; {rule} needs an OrthogonalConv2d behind it")
    return chain


def _plain_blocks(found: list[tuple[str, nn.Module]], rule: str) -> list[Conv2dBlock]:
    chain: list[Conv2dBlock] = []
    ready = False
    for name, module in found:
        activation = activation_of(module)
        if isinstance(module, nn.Conv2d) and is_plain(module, nn.Conv2d):
            _check_conv2d(name, module, rule)
            _check_convolution(name, module, chain, 1, rule)
            chain.append(Conv2dBlock(name, module, identity, 1))
            ready = True
        elif activation is not None and ready:
            _check_maxmin(name, activation, chain[-1])
            chain[-1] = chain[-1]._replace(activation=activation)
            ready = False
        elif isinstance(module, nn.MaxPool2d) and is_plain(module, nn.MaxPool2d) and chain and chain[-1].pool == 1:
            chain[-1] = chain[-1]._replace(pool=_pool_size(name, module, rule))
            ready = False
        elif not isinstance(module, nn.Identity):
            raise refusal(name, module, rule, PLAIN)
    return chain


def _check_convolution(
    name: str, module: OrthogonalConv2d | nn.Conv2d, chain: Sequence[ImageBlock], factor: int, rule: str
) -> None:
    """Raises ValueError for a convolution that does not take what the one before gives, or is not to be trained."""
    check_parameters(name, module, chain, rule)
    if module.in_channels % factor**2:
        raise ValueError(
            f"layer '{name}': takes {module.in_channels} channels, expected a multiple of {factor**2} after unshuffling"
        )
    if chain and chain[-1].convolution.out_channels * factor**2 != module.in_channels:
        given = chain[-1].convolution.out_channels * factor**2
        raise ValueError(f"layer '{name}': takes {module.in_channels} channels, but gets {given}")


def _check_conv2d(name: str, module: nn.Conv2d, rule: str) -> None:
    """Raises ValueError for a Conv2d that is more than a kernel, a stride and zeros around the image."""
    if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
        raise ValueError(f"layer '{name}': {module}; {rule} trains Conv2d without groups and dilation, padded by zeros")
    if module.padding == "same" and any(side % 2 == 0 for side in module.kernel_size):
        raise ValueError(f"layer '{name}': {module}; {rule} wants as much padding on both sides: an odd kernel_size")


def _check_maxmin(name: str, activation: Activation, block: ImageBlock) -> None:
    if activation == maxmin and block.convolution.out_channels % 2:
        raise ValueError(f"layer '{name}': MaxMin pairs channels, but layer '{block.name}' gives an odd number")


def _pool_size(name: str, module: nn.MaxPool2d, rule: str) -> int:
    """The side of the squares. Raises ValueError for windows that are no squares side by side."""
    given = (module.kernel_size, module.stride, module.padding, module.dilation)
    size, stride, padding, dilation = ({side} if isinstance(side, int) else set(side) for side in given)
    whole = len(size) == 1 and size == stride and (padding, dilation) == ({0}, {1})
    if not whole or module.ceil_mode or module.return_indices:
        raise ValueError(f"layer '{name}': {module}; {rule} trains MaxPool2d(n) with squares side by side only")
    return int(size.pop())


def image_input(x: Tensor, chain: list[ImageBlock], dense: Block, planes: int) -> Tensor:
    """x, (batch, c_0, height, width), where the first convolution takes c_0 + planes channels and `dense` what is left.

    Raises ValueError for an empty batch, another shape or dtype than the model's.
    """
    first = chain[0]
    channels = first.image_channels - planes
    if x.dim() != 4 or len(x) == 0 or x.shape[1] != channels:
        raise ValueError(
            f"x: shape {tuple(x.shape)}, expected (batch, {channels}, height, width) with at least one image"
        )
    check_like(x, first.weights[0])
    size = list(x.shape[2:])
    for block in chain:
        size = block.output_size(size)
    channels = chain[-1].convolution.out_channels
    features = channels * size[0] * size[1]
    if features != dense.linear.in_features:
        raise ValueError(
            f"layer '{dense.name}': takes {dense.linear.in_features} features, but images of {x.shape[2]} x "
            f"{x.shape[3]} give {features} ({channels} x {size[0]} x {size[1]})"
        )
    return channels_last(x)
