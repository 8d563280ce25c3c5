"""Layers that PyTorch lacks, to be put into a model like any other, and networks that rules train."""

from .activations import MaxMin
from .channel_norm import ChannelNorm
from .networks import cfse, resnet17, small_cnn, tiny_cnn, vgg8, vgg11
from .orthogonal_conv import OrthogonalConv2d, ScaledAvgPool2d
from .recurrent import RecurrentNetwork
from .shortcuts import ShortcutNetwork

__all__ = [
    "ChannelNorm",
    "MaxMin",
    "OrthogonalConv2d",
    "RecurrentNetwork",
    "ScaledAvgPool2d",
    "ShortcutNetwork",
    "cfse",
    "resnet17",
    "small_cnn",
    "tiny_cnn",
    "vgg8",
    "vgg11",
]
