"""Layers that PyTorch lacks, to be put into a model like any other, and networks that rules train."""

from .activations import MaxMin
from .channel_norm import ChannelNorm
from .networks import ResidualBlock, ResNet, cfse, lenet, resnet17, resnet18, small_cnn, tiny_cnn, vgg8, vgg11
from .orthogonal_conv import OrthogonalConv2d, ScaledAvgPool2d
from .recurrent import RecurrentNetwork
from .rotation import Rotation
from .sequences import GRUStates, LastToken, gru_classifier
from .shortcuts import ShortcutNetwork
from .transformers import MeanToken, PatchEmbedding, TokenEmbedding, TransformerBlock, char_transformer, vit

__all__ = [
    "ChannelNorm",
    "GRUStates",
    "LastToken",
    "MaxMin",
    "MeanToken",
    "OrthogonalConv2d",
    "PatchEmbedding",
    "RecurrentNetwork",
    "ResNet",
    "ResidualBlock",
    "Rotation",
    "ScaledAvgPool2d",
    "ShortcutNetwork",
    "TokenEmbedding",
    "TransformerBlock",
    "cfse",
    "char_transformer",
    "gru_classifier",
    "lenet",
    "resnet17",
    "resnet18",
    "small_cnn",
    "tiny_cnn",
    "vgg8",
    "vgg11",
    "vit",
]
