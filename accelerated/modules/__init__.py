"""Layers that PyTorch lacks, to be put into a model like any other."""

from .maxmin import MaxMin
from .orthogonal_conv import OrthogonalConv2d, ScaledAvgPool2d

__all__ = ["MaxMin", "OrthogonalConv2d", "ScaledAvgPool2d"]
