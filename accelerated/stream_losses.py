"""Losses on the goodness of a layer for a positive and a negative stream. See the reference."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from ._arrays import Array

__all__ = ["LayerCredit", "LayerGoodness", "LayerLoss"]


class LayerGoodness(NamedTuple):
    """What a layer's loss is computed from; see the reference's table."""

    layer: int
    depth: int
    scale: float
    positive: Array
    negative: Array
    prior_positive: Array
    prior_negative: Array


class LayerCredit(NamedTuple):
    """The loss of each sample and its derivatives by the two goodnesses of the layer itself: (batch,) each."""

    loss: Array
    positive: Array
    negative: Array


LayerLoss: TypeAlias = Callable[[LayerGoodness], LayerCredit]
"""A loss of one layer."""
