"""Convolutional classifiers, for images (batch, image_channels, height, width).

Ordinary modules that end with a linear layer to the scores: plain backpropagation trains them whole. Under a local rule
every unit is a layer with a loss of its own, and the last linear layer is left out.

LeNet and ResNet are as everybody has them. The others are those of papers on local learning: a convolution is followed
by its activation, dropout where the paper has it there, and then normalisation and pooling. Convolutions without bias
start as Kaiming's normal weights for the number of outputs.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

from torch import Tensor, nn

from ..local_classifiers import Shortcut
from .channel_norm import ChannelNorm
from .shortcuts import ShortcutNetwork

Normalisation = Callable[[int], nn.Module]
"""What makes the normalisation of so many channels."""


def _channel_norm(channels: int) -> nn.Module:
    return ChannelNorm()


def _convolution(n_in: int, n_out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Padded so that the size of images is kept, but for the stride."""
    layer = nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _head(channels: int, num_classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []


def small_cnn(
    channels: Sequence[int] = (32, 64, 128, 128),
    num_classes: int = 10,
    image_channels: int = 1,
    pool_after: Collection[int] = (0, 2),
    normalisation: Normalisation = _channel_norm,
    normalise_last: bool = False,
    kernel_size: int = 3,
) -> nn.Sequential:
    """Convolutions, averages of 2 x 2 after some of them: for MNIST on a CPU.

    The last convolution has no normalisation, which would fix the averages that plain backpropagation reads.
    `normalise_last` adds it, for rules whose scores come after it. `kernel_size` is odd, or ValueError is raised.

    >>> small_cnn((4, 4, 4, 4), num_classes=3)(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 3])
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: {kernel_size!r}, expected an odd number, which keeps the size of maps")
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(zip((image_channels, *channels), channels, strict=False)):
        layers += [_convolution(n_in, n_out, kernel_size), nn.ReLU()]
        if normalise_last or index + 1 < len(channels):
            layers.append(normalisation(n_out))
        if index in pool_after:
            layers.append(nn.AvgPool2d(2))
    return nn.Sequential(*layers, *_head(channels[-1], num_classes))


def lenet(
    num_classes: int = 10,
    image_channels: int = 1,
    image_size: int = 28,
    channels: tuple[int, int] = (6, 16),
    hidden: Sequence[int] = (120, 84),
) -> nn.Sequential:
    """LeNet-5 (LeCun et al., 1998) with Tanh, averages and all channels connected: 61,706 parameters.

    Images are square. Those of 32 x 32 need no padding; smaller ones get two pixels on each side, as MNIST's do there.
    Raises ValueError for a size that does not fit.

    >>> sum(parameter.numel() for parameter in lenet().parameters())
    61706
    """
    padding = 0 if image_size >= 32 else 2
    side, odd = divmod(image_size + 2 * padding - 4, 4)
    if odd or side < 3:
        raise ValueError(f"image_size: {image_size!r}, expected a multiple of 4, and 12 or more")
    first, second = channels
    layers: list[nn.Module] = [
        nn.Conv2d(image_channels, first, 5, padding=padding), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(first, second, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
    ]  # fmt: skip
    n_in = second * (side - 2) ** 2
    for width in hidden:
        layers += [nn.Linear(n_in, width), nn.Tanh()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, num_classes))


class ResidualBlock(nn.Module):
    """Two convolutions of 3 x 3 with batch normalisation, added to what comes in: He et al.'s basic block.

    (batch, n_in, height, width) to (batch, n_out, height / stride, width / stride). Where the shapes differ, what comes
    in goes through a convolution of 1 x 1.

    >>> ResidualBlock(2, 4, stride=2)(torch.ones(1, 2, 8, 8)).shape
    torch.Size([1, 4, 4, 4])
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(n_in, n_out, 3, stride), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = _convolution(n_out, n_out), nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(_convolution(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        sums: Tensor = self.relu(self.bn2(self.conv2(h)) + self.downsample(x))
        return sums


class ResNet(nn.Module):
    """A residual network (He et al., CVPR 2016) in the form for small images: no pooling at its beginning.

    One convolution, a stage of residual blocks for each of `widths`, each after the first with half the image's side,
    and the scores of the average over positions. `depths` has the number of blocks of each stage.

    >>> ResNet(3, 1, widths=(4, 8), depths=(1, 1))(torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 3])
    """

    def __init__(self, num_classes: int, image_channels: int, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(image_channels, widths[0]), nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        for stage, (n_in, n_out, depth) in enumerate(zip((widths[0], *widths), widths, depths, strict=False)):
            blocks.append(ResidualBlock(n_in, n_out, 2 if stage else 1))
            blocks += [ResidualBlock(n_out, n_out) for _ in range(depth - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        scores: Tensor = self.fc(self.flatten(self.pool(x)))
        return scores

    def units(self) -> list[nn.Module]:
        """For a rule's `units`: what run one after another are the model. Each block is one."""
        return [nn.Sequential(self.conv1, self.bn1, self.relu), *self.blocks, self.pool, self.flatten, self.fc]


def resnet18(num_classes: int = 10, image_channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512)) -> ResNet:
    """ResNet-18 in the form for CIFAR: 11,173,962 parameters. Under a rule, give it `units=model.units()`.

    >>> resnet18(3, widths=(2, 4, 6, 8))(torch.ones(1, 3, 16, 16)).shape
    torch.Size([1, 3])
    """
    return ResNet(num_classes, image_channels, widths, [2] * len(widths))


def _vgg(
    channels: Sequence[int],
    pool_after: Collection[int],
    num_classes: int,
    image_channels: int,
    dropout: float,
    normalisation: Normalisation,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(zip((image_channels, *channels), channels, strict=False)):
        layers += [_convolution(n_in, n_out), nn.ReLU()]
        if index + 1 < len(channels):  # behind the last it would take from its averages what backpropagation reads
            layers.append(normalisation(n_out))
        if index in pool_after:
            layers.append(nn.AvgPool2d(2))
        layers += _dropout(dropout)
    return nn.Sequential(*layers, *_head(channels[-1], num_classes))


def vgg8(
    num_classes: int = 10,
    image_channels: int = 3,
    dropout: float = 0.1,
    normalisation: Normalisation = _channel_norm,
    channels: Sequence[int] = (128, 256, 256, 512, 512, 512, 512),
) -> nn.Sequential:
    """The VGG8 of DTG-FF (arXiv 2606.06539): 9.15 million weights in seven convolutions, for images of 32 x 32.

    Dropout acts on what is passed on; where it stands beside the pooling the text does not say. With
    normalisation=nn.BatchNorm2d it is a VGG as users have it, but for the order: normalisation follows ReLU here.

    >>> sum(p.numel() for p in vgg8().parameters() if p.dim() == 4)
    9145728
    """
    return _vgg(channels, (1, 3, 4, 5), num_classes, image_channels, dropout, normalisation)


def vgg11(
    num_classes: int = 10,
    image_channels: int = 3,
    dropout: float = 0.1,
    normalisation: Normalisation = _channel_norm,
    channels: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
) -> nn.Sequential:
    """The VGG11 of DTG-FF, whose text gives only eight convolutions from 64 channels on and an early pooling.

    The widths and the pooling are those of VGG11 elsewhere: 9.22 million weights.

    >>> sum(p.numel() for p in vgg11().parameters() if p.dim() == 4)
    9217728
    """
    return _vgg(channels, (0, 1, 3, 5, 7), num_classes, image_channels, dropout, normalisation)


def cfse(
    channels: Sequence[int] = (20, 80, 240, 480), num_classes: int = 10, image_channels: int = 3, dropout: float = 0.0
) -> nn.Sequential:
    """The network of CwComp (arXiv 2312.12668): alternating convolutions of all channels and of each class's own.

    The latter are pooled; batch normalisation stands last, and the score after it. The channels are those for ten
    classes. Channels are multiples of the classes.

    >>> cfse((2, 4, 6, 8), num_classes=2)(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 2])
    """
    layers: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(zip((image_channels, *channels), channels, strict=False)):
        own = index % 2 == 1
        layers += [*_dropout(dropout), _convolution(n_in, n_out, groups=num_classes if own else 1), nn.ReLU()]
        if own:
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.BatchNorm2d(n_out, eps=1e-4))
    return nn.Sequential(*layers, *_head(channels[-1], num_classes))


def _by_classes(num_classes: int, channels: int) -> nn.Module:
    return nn.GroupNorm(num_classes, channels, affine=False)


def _deeper(normalisation: Normalisation | None, num_classes: int) -> Normalisation:
    return partial(_by_classes, num_classes) if normalisation is None else normalisation


def tiny_cnn(
    num_classes: int = 10,
    image_channels: int = 3,
    dropout: float = 0.2,
    normalisation: Normalisation | None = None,
) -> nn.Sequential:
    """The smallest of DeeperForward (Sun et al., ICLR 2025): 2.67 million weights in four convolutions.

    Images are normalised as a whole; so are the channels of each class, unless another normalisation is given.

    >>> sum(p.numel() for p in tiny_cnn().parameters() if p.dim() == 4)
    2667500
    """
    norm = _deeper(normalisation, num_classes)
    layers: list[nn.Module] = [nn.GroupNorm(1, image_channels, affine=False)]
    for n_in, n_out, size, pool in ((image_channels, 100, 5, 2), (100, 200, 5, 2), (200, 400, 3, 1), (400, 400, 3, 1)):
        layers += [_convolution(n_in, n_out, size), nn.ReLU(), *_dropout(dropout), norm(n_out)]
        if pool > 1:
            layers.append(nn.AvgPool2d(pool))
    return nn.Sequential(*layers, *_head(400, num_classes))


def resnet17(
    num_classes: int = 10,
    image_channels: int = 3,
    dropout: float = 0.2,
    normalisation: Normalisation | None = None,
    planes: Sequence[int] = (100, 200, 400, 800),
) -> ShortcutNetwork:
    """The ResNet17 of DeeperForward and CAW-Conv: 30.6 million weights in 17 convolutions, for images of 32 x 32.

    A shortcut after every second layer adds, or at the end of a stage of four concatenates, which doubles the channels;
    the stages after the first halve the image. `planes` are the channels of the stages, each twice those before it, or
    ValueError is raised.

    >>> resnet17(2, planes=(4, 8, 16, 32))(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 2])
    """
    if list(planes) != [planes[0] << stage for stage in range(len(planes))]:
        raise ValueError(f"planes: {tuple(planes)}, expected each twice those before it, which shortcuts concatenate")
    norm = _deeper(normalisation, num_classes)
    blocks = [_block(image_channels, planes[0], 1, dropout, norm)]
    for stage, width in enumerate(planes):
        blocks += [_block(width, width, 2 if stage and not i else 1, dropout, norm) for i in range(4)]
    shortcuts = [
        Shortcut(
            target - 2, target, "concatenate" if target % 4 == 0 else "add", 2 if target % 4 == 2 and target > 2 else 1
        )
        for target in range(2, len(blocks), 2)
    ]
    stem = nn.GroupNorm(1, image_channels, affine=False)
    return ShortcutNetwork(stem, blocks, shortcuts, nn.Sequential(*_head(2 * planes[-1], num_classes)))


def _block(n_in: int, n_out: int, stride: int, dropout: float, normalisation: Normalisation) -> nn.Sequential:
    return nn.Sequential(_convolution(n_in, n_out, 3, stride), nn.ReLU(), *_dropout(dropout), normalisation(n_out))
