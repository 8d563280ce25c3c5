"""Layers that PyTorch lacks, to be put into a model like any other, and the recurrent model that rules train."""

from .maxmin import MaxMin
from .orthogonal_conv import OrthogonalConv2d, ScaledAvgPool2d
from .recurrent import RecurrentNetwork

__all__ = ["MaxMin", "OrthogonalConv2d", "RecurrentNetwork", "ScaledAvgPool2d"]
