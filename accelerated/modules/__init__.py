"""Layers that PyTorch lacks, to be put into a model like any other."""

from .maxmin import MaxMin

__all__ = ["MaxMin"]
