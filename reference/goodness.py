"""Goodness: how active a layer is, the one number by which it tells positive from negative data."""

from collections.abc import Callable
from typing import NamedTuple

from ._arrays import Array

__all__ = ["Goodness"]


class Goodness(NamedTuple):
    """A goodness with its gradient; see the module's table."""

    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    scale: Callable[[int], float]
